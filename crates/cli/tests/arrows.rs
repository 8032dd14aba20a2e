//! Holds the crates to the picture: arrows one way only, and only `cli` knows everybody.

use std::{collections::BTreeMap, fs, path::Path};

/// Which workspace crates each crate may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("arith", &[]),
    ("network", &["arith"]),
    ("kernels", &["arith"]),
    ("functional", &["arith", "kernels", "network"]),
    ("onnx", &[]),
    ("quantizer", &["arith", "network", "onnx"]),
    ("tune", &["arith", "network", "quantizer", "functional"]),
    ("export", &["arith", "network", "onnx"]),
    ("isa", &["arith"]),
    ("accelerator", &["arith", "isa"]),
    ("compiler", &["arith", "network", "isa", "accelerator"]),
    ("waveform", &["accelerator"]),
    ("reference", &["onnx"]),
    ("trainer", &["arith", "network", "quantizer"]),
    // Nothing needs the co-simulation.
    (
        "cosim",
        &[
            "arith",
            "network",
            "isa",
            "accelerator",
            "compiler",
            "waveform",
        ],
    ),
    (
        "cli",
        &[
            "arith",
            "network",
            "quantizer",
            "export",
            "isa",
            "accelerator",
            "compiler",
            "waveform",
            "functional",
            "reference",
            "tune",
            "trainer",
        ],
    ),
];

#[test]
fn crates_know_only_what_they_must() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("crates/");
    let mut used: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(crates).expect("crates/ is readable") {
        let folder = entry.expect("readable").path();
        let Ok(text) = fs::read_to_string(folder.join("Cargo.toml")) else {
            continue;
        };
        let manifest: toml::Table = text.parse().expect("manifests are TOML");
        let name = folder
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
        let names = dependencies
            .into_iter()
            .flat_map(toml::Table::keys)
            .cloned()
            .collect();
        used.insert(name, names);
    }
    for (name, allowed) in ARROWS {
        let dependencies = used
            .get(*name)
            .unwrap_or_else(|| panic!("crate {name} is gone"));
        for dependency in dependencies.iter().filter(|d| used.contains_key(*d)) {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not use {dependency}"
            );
        }
    }
}
