//! Methods that look at what the layers compute, from outside: they help, they keep what they
//! promise, and they depend on nothing but their inputs.

use crate::common::{QUANTIZE, Workshop, asset};

const TEST: &str = "--model digits.onnx --data digits_test.npz";

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn number(value: &serde_json::Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// The relative error behind a candidate's name.
fn relative(story: &str, name: &str) -> f64 {
    let line = story.lines().find(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some(name) && words.next() == Some("relative")
    });
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{story}"));
    let word = line.split_whitespace().nth(2);
    word.and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{line}"))
}

fn sqnr_db(shop: &Workshop, network: &str) -> f64 {
    let report = json(&shop.succeed(&format!("compare {network} {TEST} --json")));
    let tensors = report["tensors"].as_array().expect("a list");
    number(&tensors[tensors.len() - 1]["sqnr_db"])
}

#[test]
fn learned_rounding_helps_on_images_that_it_has_not_seen() {
    let shop = Workshop::with_digits();
    for granularity in ["per-tensor", "per-channel"] {
        let line = format!("{QUANTIZE} --granularity {granularity}");
        shop.succeed(&format!("{line} -o mse.safetensors"));
        let story = shop.succeed(&format!(
            "{line} --method adaround --steps 600 -o ada.safetensors"
        ));
        assert!(
            relative(&story, "adaround") < 0.7 * relative(&story, "mse"),
            "{story}"
        );
        let (plain, learned) = (
            sqnr_db(&shop, "mse.safetensors"),
            sqnr_db(&shop, "ada.safetensors"),
        );
        assert!(learned > plain + 1.0, "{granularity}: {learned} {plain} dB");
    }
}

#[test]
fn learned_rounding_depends_on_the_seed_and_not_on_threads() {
    let shop = Workshop::with_digits();
    let line = format!("{QUANTIZE} --method adaround --steps 40 -o a.safetensors");
    let mut files = Vec::new();
    for threads in ["1", "2"] {
        let variables = [
            ("RAYON_NUM_THREADS", threads),
            ("RTEN_NUM_THREADS", threads),
        ];
        let outcome = shop.run_with(&line, &variables);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        files.push((outcome.stdout, shop.read("a.safetensors")));
    }
    assert!(files[0] == files[1], "threads show");
    shop.succeed(&format!("{line} --seed 1"));
    assert!(shop.read("a.safetensors") != files[0].1, "the seed is dead");
}

#[test]
fn auto_takes_the_least_divergence() {
    let shop = Workshop::with_digits();
    let story = shop.succeed(&format!(
        "{QUANTIZE} --method auto --steps 100 -o auto.safetensors"
    ));
    let costs: Vec<(f64, &str)> = story
        .lines()
        .filter(|line| line.contains("divergence"))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let at = words.iter().position(|word| *word == "divergence");
            let cost = words[at.expect("it is there") + 1].parse();
            (cost.expect("a number"), words[0])
        })
        .collect();
    assert_eq!(costs.len(), 7, "{story}");
    let taken = story.lines().find_map(|line| line.strip_prefix("taken: "));
    let least = costs.iter().map(|c| c.0).fold(f64::INFINITY, f64::min);
    assert!(
        costs
            .iter()
            .any(|&(cost, name)| cost <= least && Some(name) == taken),
        "{story}"
    );
}

/// Without the guarantee the same accumulators overflow; with it no image can make them.
#[test]
fn guaranteed_accumulators_never_overflow() {
    let shop = Workshop::with_digits();
    shop.write("digits_train.npz", asset("digits_train.npz"));
    for bits in [11, 12] {
        shop.write(
            "narrow.toml",
            format!("base = \"edge-16x16\"\n[accumulator]\nwidth_bits = {bits}\n"),
        );
        let events = |network: &str| -> u64 {
            let line =
                format!("overflow {network} --data digits_test.npz --machine narrow.toml --json");
            let report = json(&shop.succeed(&line));
            let layers = report["layers"].as_array().expect("a list").iter();
            layers
                .map(|layer| layer["n_overflowed"].as_u64().expect("a count"))
                .sum()
        };
        if bits == 12 {
            shop.succeed(&format!("{QUANTIZE} -o free.safetensors"));
            assert!(events("free.safetensors") > 0, "nothing to guard against");
        }
        for method in ["mse", "adaround --steps 60"] {
            let line = format!(
                "{QUANTIZE} --accumulator-bits {bits} --method {method} -o safe.safetensors"
            );
            let proof = shop.succeed(&line);
            assert!(
                proof.contains(&format!("74 of 74 channels cannot overflow {bits} bits")),
                "{proof}"
            );
            assert!(proof.contains("slack"), "a line for each layer in\n{proof}");
            assert_eq!(events("safe.safetensors"), 0, "{method} at {bits} bits");
        }
        shop.succeed(&format!(
            "train digits.onnx --data digits_train.npz --scale 0.0625 --no-flip --max-images 200 --batch 50 \
             --epochs 2 --machine narrow.toml --accumulator-bits {bits} -o trained.safetensors"
        ));
        assert_eq!(events("trained.safetensors"), 0, "trained at {bits} bits");
    }
}

#[test]
fn budgets_are_kept() {
    let shop = Workshop::with_digits();
    let cycles = |network: &str| -> u64 {
        let report = json(&shop.succeed(&format!("latency {network} --json")));
        report["total_cycles"].as_u64().expect("a count")
    };
    let widths = "--weight-bits 8 --activation-bits 8";
    shop.succeed(&format!("{QUANTIZE} {widths} -o wide.safetensors"));
    let widths = "--weight-bits 2 --activation-bits 2";
    shop.succeed(&format!("{QUANTIZE} {widths} -o narrow.safetensors"));
    let (most, least) = (cycles("wide.safetensors"), cycles("narrow.safetensors"));
    let budget = u64::midpoint(most, least);
    let line = format!("{QUANTIZE} --budget {budget}cycles -o mixed.safetensors");
    let story = shop.succeed(&line);
    let found = cycles("mixed.safetensors");
    assert!(found <= budget, "{found} > {budget}");
    let says = format!("{found} cycles on edge-16x16 ({most} with every layer at 8 bits, {least}");
    assert!(story.contains(&says), "{says}: not in\n{story}");
    assert!(
        sqnr_db(&shop, "mixed.safetensors") > sqnr_db(&shop, "narrow.safetensors") + 3.0,
        "bits are spent where they count"
    );
    // Accuracy as the budget: fewer cycles than at 8 bits, and a layer that was fixed stays.
    let line = format!("{QUANTIZE} --budget 1points --layer conv2.node:w=7 -o points.safetensors");
    let story = shop.succeed(&line);
    assert!(cycles("points.safetensors") < most, "{story}");
    let fixed = story
        .lines()
        .find(|line| line.split_whitespace().next() == Some("conv2.node"));
    assert_eq!(
        fixed.and_then(|line| line.split_whitespace().nth(1)),
        Some("7"),
        "{story}"
    );
    let line = format!("{QUANTIZE} -o none.safetensors --budget");
    let too_few = format!("{line} 5cycles");
    shop.refuse(&too_few, &["5 cycles", &least.to_string()]);
    let outcome = shop.run(&format!("{line} 5"));
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("0.5points"), "{}", outcome.stderr);
}

#[test]
fn sensitivity_falls_with_bits_and_overflow_shows() {
    let shop = Workshop::with_digits();
    shop.write(
        "narrow.toml",
        "base = \"edge-16x16\"\n[accumulator]\nwidth_bits = 12\n",
    );
    let of = |flags: &str, machine: &str| -> Vec<f64> {
        shop.succeed(&format!("{QUANTIZE} {flags} -o bits.safetensors"));
        let line = format!(
            "compare bits.safetensors {TEST} --max-images 40 --sensitivity --json --machine {machine}"
        );
        let report = json(&shop.succeed(&line));
        let sources = report["sensitivity"]["sources"].as_array().expect("a list");
        let costs = sources.iter();
        costs.map(|cost| number(&cost["relative_error"])).collect()
    };
    let four = of("", "edge-16x16");
    let eight = of("--weight-bits 8", "edge-16x16");
    assert!(eight[0] < 0.05 * four[0], "weights: {eight:?} {four:?}");
    assert!(four[3] == 0.0, "16 bits suffice");
    let narrow = of("", "narrow.toml");
    assert!(narrow[3] > 0.0, "12 bits do not");
    assert!(
        (narrow[0] - four[0]).abs() == 0.0,
        "weights do not depend on accumulators"
    );
}

#[test]
fn the_table_of_methods_says_what_compare_says() {
    let shop = Workshop::with_digits();
    let line = "methods digits.onnx --calibration digits_calibration.npz --data digits_test.npz \
                --scale 0.0625 --methods min-max,mse --granularities per-channel \
                --network mine=net.safetensors --markdown";
    let table = shop.succeed(line);
    let cells: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.contains('%') && line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(cells.len(), 3, "{table}");
    assert_eq!(cells[1][1..3], ["mse", "per channel"]);
    // The workshop's network is quantized by mse too.
    assert_eq!(cells[2][1], "mine");
    assert_eq!(cells[1][2..], cells[2][2..], "{table}");
    let report = json(&shop.succeed(&format!("compare net.safetensors {TEST} --json")));
    let top1 = format!("{:.2} %", 100.0 * number(&report["top1"]["integer"]));
    assert_eq!(cells[2][3], top1);
    assert!(cells[0][3..] != cells[1][3..], "min-max is no mse\n{table}");
}

#[test]
fn training_refuses_methods_that_round() {
    let shop = Workshop::with_digits();
    shop.refuse(
        "train digits.onnx --data digits_calibration.npz --scale 0.0625 --method adaround \
         -o net2.safetensors",
        &["--method adaround"],
    );
}

#[test]
fn flags_that_nothing_reads_are_refused() {
    let shop = Workshop::with_digits();
    for flag in ["--steps 5", "--held-out 5", "--seed 1"] {
        let line = format!("{QUANTIZE} {flag} -o net2.safetensors");
        shop.refuse(&line, &["--method mse does not read it"]);
    }
}
