//! Reports from outside: parts sum to totals, no layer beats its roofline, CSV and trace say the
//! same as JSON, and `docs/reports.md` has every key and no other.

use crate::common::Workshop;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no count"))
}

fn sum(map: &Value) -> u64 {
    let map = map.as_object().expect("a map");
    map.values().map(number).sum()
}

fn layers(report: &Value) -> &Vec<Value> {
    report["layers"].as_array().expect("a list")
}

#[test]
fn parts_sum_to_totals_and_no_layer_beats_its_roofline() {
    let shop = Workshop::with_digits();
    for bits in ["4", "8"] {
        let line =
            format!("latency digits.onnx --json --weight-bits {bits} --activation-bits {bits}");
        let report = json(&shop.succeed(&line));
        for (total, part) in [
            ("total_cycles", "cycles"),
            ("n_macs", "n_macs"),
            ("dram_read_bytes", "dram_read_bytes"),
            ("dram_written_bytes", "dram_written_bytes"),
            ("energy_fj", "energy_fj"),
        ] {
            let parts: u64 = layers(&report)
                .iter()
                .map(|layer| number(&layer[part]))
                .sum();
            assert_eq!(number(&report[total]), parts, "{total}");
        }
        for maps in ["owned_cycles", "energy_by_unit_fj", "actions"] {
            for key in report[maps].as_object().expect("a map").keys() {
                let parts = layers(&report)
                    .iter()
                    .map(|layer| number(&layer[maps][key]));
                assert_eq!(
                    number(&report[maps][key]),
                    parts.sum::<u64>(),
                    "{maps}.{key}"
                );
            }
        }
        let mut from = 0;
        for layer in layers(&report) {
            assert_eq!(number(&layer["from_cycle"]), from);
            let cycles = number(&layer["cycles"]);
            from += cycles;
            assert_eq!(sum(&layer["owned_cycles"]), cycles);
            assert_eq!(
                sum(&layer["energy_by_unit_fj"]),
                number(&layer["energy_fj"])
            );
            for floor in ["compute", "memory", "post"] {
                let floor = number(&layer[format!("{floor}_floor_cycles")]);
                assert!(floor <= cycles, "{}: {floor} > {cycles}", layer["name"]);
            }
        }
        energy_is_counts_times_prices(&report);
    }
}

fn energy_is_counts_times_prices(report: &Value) {
    let prices = report["action_fj"].as_object().expect("a map");
    let actions: u64 = prices
        .iter()
        .map(|(action, price)| number(price) * number(&report["actions"][action]))
        .sum();
    let cycles = number(&report["cycle_fj"]) * number(&report["total_cycles"]);
    assert_eq!(number(&report["energy_fj"]), actions + cycles);
    let seconds = report["total_seconds"].as_f64().expect("a number");
    let watts = report["average_watts"].as_f64().expect("a number");
    let joules = number(&report["energy_fj"]) as f64 * 1e-15;
    assert!((watts * seconds - joules).abs() < 1e-9 * joules);
}

#[test]
fn prices_of_the_machine_file_count() {
    let shop = Workshop::with_digits();
    shop.write(
        "free.toml",
        "base = \"edge-16x16\"\n[energy]\nmultiply_pj = 0\ncycle_pj = 2.5\n",
    );
    let free = json(&shop.succeed("latency digits.onnx --json --machine free.toml"));
    let priced = json(&shop.succeed("latency digits.onnx --json --machine edge-16x16"));
    energy_is_counts_times_prices(&free);
    assert_eq!(number(&free["cycle_fj"]), 2500);
    assert_eq!(free["actions"], priced["actions"]);
    assert_eq!(
        free["machine"]["fingerprint"],
        priced["machine"]["fingerprint"]
    );
    assert_ne!(free["energy_fj"], priced["energy_fj"]);
    shop.refuse(
        "latency digits.onnx --machine edge-16x17",
        &["edge-16x17", "edge-16x16"],
    );
}

#[test]
fn csv_says_the_same_as_json() {
    let shop = Workshop::with_digits();
    let data = "net.safetensors --data digits_test.npz --max-images 5";
    for (line, list) in [
        ("latency net.safetensors".to_owned(), "layers"),
        (format!("overflow {data}"), "layers"),
        (format!("compare {data} --model digits.onnx"), "tensors"),
    ] {
        let report = json(&shop.succeed(&format!("{line} --json")));
        let text = shop.succeed(&format!("{line} --csv"));
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let keys = reader.headers().expect("a first line").clone();
        let rows: Vec<csv::StringRecord> =
            reader.records().map(|row| row.expect("a line")).collect();
        let expected = report[list].as_array().expect("a list");
        assert_eq!(rows.len(), expected.len(), "{line}");
        for (row, expected) in rows.iter().zip(expected) {
            for (key, cell) in keys.iter().zip(row) {
                let value = key.split('.').fold(expected, |value, key| &value[key]);
                let same = match value {
                    Value::Null => cell.is_empty(),
                    Value::String(text) => cell == text,
                    // The test's JSON reader is off by a bit in the last place.
                    Value::Number(number) if number.is_f64() => {
                        let (a, b) = (number.as_f64(), cell.parse().ok());
                        a.zip(b)
                            .is_some_and(|(a, b): (f64, f64)| (a - b).abs() <= a.abs() * 1e-15)
                    }
                    other => {
                        let text = other.to_string();
                        cell == text
                    }
                };
                assert!(same, "{line}: {key}: {cell} for {value}");
            }
        }
        shop.refuse(&format!("{line} --csv --json"), &["--json"]);
    }
}

#[test]
fn the_trace_holds_every_instruction_once_and_tracks_do_not_overlap() {
    let shop = Workshop::with_digits();
    let report = json(&shop.succeed("latency net.safetensors --json --trace t.json"));
    let trace = json(&String::from_utf8(shop.read("t.json")).expect("text"));
    let mut tracks: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    let mut indices = BTreeSet::new();
    for event in trace["traceEvents"].as_array().expect("a list") {
        if event["ph"] == "X" {
            let (from, length) = (number(&event["ts"]), number(&event["dur"]));
            let track = tracks.entry(number(&event["tid"])).or_default();
            track.push((from, from + length));
            if let Some(index) = event["args"]["index"].as_u64() {
                assert!(indices.insert(index), "instruction {index} twice");
            }
        }
    }
    assert_eq!(
        indices.len() as u64,
        number(&report["actions"]["instruction"])
    );
    let total = number(&report["total_cycles"]);
    for (track, spans) in &tracks {
        for pair in spans.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "track {track}: {pair:?}");
        }
        assert!(spans.iter().all(|span| span.1 <= total));
    }
    assert_eq!(tracks[&0].len(), layers(&report).len());
    // The bus carries what the report says, in words.
    let busy: u64 = tracks[&6].iter().map(|span| span.1 - span.0).sum();
    let bytes = number(&report["actions"]["dram_read"]) + number(&report["actions"]["dram_write"]);
    assert_eq!(busy * 16, bytes);
    shop.refuse(
        "latency net.safetensors --trace nowhere/t.json",
        &["nowhere"],
    );
}

#[test]
fn tables_fit_a_terminal() {
    let shop = Workshop::with_digits();
    let text = shop.succeed("latency net.safetensors");
    for line in text.lines() {
        assert!(line.chars().count() <= 108, "{line}");
    }
    assert!(
        shop.succeed("latency net.safetensors --wide")
            .contains("static")
    );
}

#[test]
fn the_page_has_every_key_and_no_other() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reports.md");
    let page = std::fs::read_to_string(page).expect("docs/reports.md");
    // The first cell of a table's line.
    let documented: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(key, _)| key.to_owned())
        // `header` is flattened into the report.
        .filter(|key| key != "header" && key != "counts")
        .collect();
    let shop = Workshop::with_digits();
    let data = "net.safetensors --data digits_test.npz";
    let mut found = BTreeSet::new();
    for line in [
        "demo --json".to_owned(),
        format!("run {data} --check --json"),
        format!("compare {data} --model digits.onnx --max-images 3 --sensitivity --json"),
        // Accumulators so narrow that channels overflow.
        "overflow net.safetensors --data digits_test.npz --max-images 2 --json --machine narrow.toml"
            .to_owned(),
        "latency net.safetensors --json --machine narrow.toml".to_owned(),
        "gemm 5 6 7 --json".to_owned(),
        "bench net.safetensors --seconds 0.001 --json".to_owned(),
    ] {
        shop.write(
            "narrow.toml",
            "base = \"edge-16x16\"\n[accumulator]\nwidth_bits = 12\n[dram.banks]\npreset = \"ddr4-2400\"\n",
        );
        collect(&json(&shop.succeed(&line)), &mut found);
    }
    let missing: Vec<_> = found.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&found).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "not on the page: {missing:?}; only there: {stale:?}"
    );
}

fn collect(value: &Value, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                keys.insert(key.clone());
                collect(value, keys);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, keys)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn machines_by_name() {
    let shop = Workshop::with_digits();
    let list = shop.succeed("machines");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut n = 0;
    for file in std::fs::read_dir(folder).expect("configs") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|end| end == "toml") {
            let name = path
                .file_stem()
                .and_then(|name| name.to_str())
                .expect("a name");
            assert!(list.contains(name), "{name} in\n{list}");
            let text = std::fs::read_to_string(&path).expect("a machine file");
            assert_eq!(shop.succeed(&format!("machines {name}")), text);
            n += 1;
        }
    }
    assert!(n > 10);
    shop.refuse("machines edge", &["edge"]);
    // The default machine by its name, and as a file.
    let by_default = shop.succeed("latency net.safetensors");
    let by_name = shop.succeed("latency net.safetensors --machine edge-16x16");
    assert_eq!(by_default, by_name);
}

#[test]
fn the_schema_in_the_repository_is_the_command_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/machine.schema.json");
    let text = Workshop::new().succeed("schema");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &text).expect("writable");
    }
    let stored = std::fs::read_to_string(&path).expect("configs/machine.schema.json");
    assert_eq!(stored, text, "UPDATE_EXPECT=1 rewrites it");
}
