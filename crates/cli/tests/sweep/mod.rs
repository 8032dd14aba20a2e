//! `systole sweep`: all combinations, accuracy, going on after a stop, and mistakes.

use crate::common::Workshop;
use std::collections::BTreeMap;

const SWEEP: &str = r#"
[[network]]
file = "digits.onnx"
calibration = "digits_calibration.npz"
data = "digits_test.npz"
max_images = 50
scale = 0.0625

[grid.machine]
base = ["paper-8x8-os", "paper-8x8-ws"]
"dram.latency_cycles" = [1, 100]

[grid.quantizer]
weight_bits = [2, 4]

[[point]]

[[point]]
machine = { base = "edge-16x16", "scratchpad.activation_bytes" = 16 }
quantizer = { weight_bits = 8 }
"#;

fn shop() -> Workshop {
    let shop = Workshop::with_digits();
    shop.write("s.toml", SWEEP);
    shop
}

fn rows(text: &[u8]) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_reader(text);
    reader
        .deserialize()
        .map(|row| row.expect("a line"))
        .collect()
}

#[test]
fn every_combination_is_a_line_and_agrees_with_latency() {
    let shop = shop();
    let text = shop.succeed("sweep s.toml --plot s.svg");
    assert!(text.contains("points are beaten by no other"), "{text}");
    assert!(
        text.contains("2 points do not fit their machine; point 8:"),
        "{text}"
    );
    let rows = rows(&shop.read("s.csv"));
    let settings: Vec<_> = rows
        .iter()
        .map(|row| {
            let of = |key: &str| row[key].as_str();
            (
                of("base"),
                of("dram.latency_cycles"),
                of("weight_bits"),
                of("error").is_empty(),
            )
        })
        .collect();
    let grid = |bits| {
        ["paper-8x8-os", "paper-8x8-ws"]
            .into_iter()
            .flat_map(move |base| ["1", "100"].map(|latency| (base, latency, bits, true)))
    };
    let own = ["1", "100"].map(|latency| ("edge-16x16", latency, "8", false));
    let expected: Vec<_> = grid("2").chain(grid("4")).chain(own).collect();
    assert_eq!(settings, expected);
    let better = |key: &str, a: usize, b: usize| {
        let of = |index: usize| rows[index][key].parse::<f64>().expect("a number");
        assert!(of(a) > of(b), "{key} of points {a} and {b}");
    };
    better("sqnr_db", 4, 0);
    better("total_cycles", 1, 0);
    shop.write(
        "m.toml",
        "base = \"paper-8x8-ws\"\nname = \"m\"\n[dram]\nlatency_cycles = 100\n",
    );
    let alone = shop.succeed("latency net.safetensors --machine m.toml --json");
    let alone: serde_json::Value = serde_json::from_str(&alone).expect("JSON");
    assert_eq!(rows[7]["total_cycles"], alone["total_cycles"].to_string());
    assert_eq!(rows[7]["energy_fj"], alone["energy_fj"].to_string());
    assert!(
        String::from_utf8(shop.read("s.svg"))
            .expect("text")
            .starts_with("<svg")
    );
}

#[test]
fn a_stopped_sweep_goes_on_to_the_same_file() {
    let shop = shop();
    shop.succeed("sweep s.toml --plot s.svg");
    let (whole, plot) = (shop.read("s.csv"), shop.read("s.svg"));
    for part in [1, 2, 3] {
        shop.write("s.csv", &whole[..whole.len() * part / 4]);
        let outcome = shop.run_with("sweep s.toml --plot s.svg", &[("RAYON_NUM_THREADS", "1")]);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        assert!(shop.read("s.csv") == whole);
        assert!(shop.read("s.svg") == plot);
    }
    let outcome = shop.run("sweep s.toml");
    assert!(
        outcome.stderr.contains("10 of 10 points are done already"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn results_of_something_else_are_left_alone() {
    let shop = shop();
    shop.succeed("sweep s.toml");
    let old = shop.read("s.csv");
    shop.write(
        "s.toml",
        SWEEP.replace("max_images = 50", "max_images = 40"),
    );
    shop.refuse("sweep s.toml", &["s.csv", "another sweep", "--output"]);
    assert!(shop.read("s.csv") == old);
    shop.write("notes.txt", "no line end");
    shop.refuse(
        "sweep s.toml --output notes.txt",
        &["notes.txt", "something else"],
    );
}

#[test]
fn bad_sweeps_are_refused() {
    let shop = shop();
    for (from, to, says) in [
        (
            "[1, 100]",
            "7",
            "s.toml:11:25: a list of values is needed here",
        ),
        (
            "latency_cycles\"",
            "latency_cycle\"",
            "did you mean `latency_cycles`?",
        ),
        (
            "[1, 100]",
            "[1, 0]",
            "latency_cycles = 0: must be 1 to 100000",
        ),
        ("weight_bits = [", "weight_bit = [", "--weight-bit"),
        ("\"paper-8x8-os\"", "\"paper-9x9-os\"", "paper-9x9-os"),
        (
            "[[network]]",
            "front = [\"speed\"]\n[[network]]",
            "s.toml:2:10: no such axis",
        ),
        (
            "max_images",
            "max_image",
            "s.toml:6:1: unknown field `max_image`",
        ),
        ("digits.onnx", "net.safetensors", "quantized already"),
        ("digits_test.npz", "none.npz", "none.npz"),
    ] {
        assert!(SWEEP.contains(from), "{from}");
        shop.write("s.toml", SWEEP.replace(from, to));
        let outcome = shop.run("sweep s.toml");
        assert_eq!(outcome.code, 2, "{to}: {}", outcome.stdout);
        assert!(
            outcome.stderr.contains(says),
            "{to}: no {says:?} in {}",
            outcome.stderr
        );
    }
}
