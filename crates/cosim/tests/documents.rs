//! What the documents say about files and tests: the named ones exist.

use std::{collections::BTreeSet, fs, path::Path};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What stands between backquotes, line by line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn every_latency_of_the_machine_names_a_file_of_the_rtl() {
    let text = document("machine.md");
    let is_source = |name: &&str| Path::new(name).extension().is_some_and(|ext| ext == "sv");
    let named: BTreeSet<&str> = text.lines().flat_map(quoted).filter(is_source).collect();
    let rtl = root().join("crates/cosim/rtl");
    for name in &named {
        assert!(rtl.join(name).is_file(), "machine.md names {name}");
    }
    let mut n_latencies = 0;
    for header in ["| instruction | unit ready", "| latency | file"] {
        let table = text.lines().skip_while(|line| !line.starts_with(header));
        for row in table.skip(2).take_while(|line| line.starts_with('|')) {
            let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or("");
            assert!(quoted(last).any(|word| is_source(&word)), "no file: {row}");
            n_latencies += 1;
        }
    }
    assert!(n_latencies >= 20, "{n_latencies} rows of latencies");
    // And the other way round: no module that the page forgets, but those without a clock of theirs.
    let untimed = [
        "accumulators.sv",
        "activation_port.sv",
        "grid.sv",
        "isa_pkg.sv",
        "overflow_add.sv",
        "overflow_counters.sv",
        "parameters.sv",
        "scratchpad.sv",
        "systole.sv",
        "systole_pkg.sv",
        "weight_port.sv",
    ];
    for entry in fs::read_dir(&rtl).expect("crates/cosim/rtl") {
        let name = entry
            .expect("readable")
            .file_name()
            .into_string()
            .expect("a name");
        assert!(
            !is_source(&&*name) || named.contains(&*name) || untimed.contains(&&*name),
            "machine.md does not say what {name} realises"
        );
    }
}

#[test]
fn deviations_name_tests_that_exist() {
    let text = document("deviations.md");
    let mut n_tests = 0;
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let Some(check) = line.trim_end_matches('|').rsplit('|').next() else {
            continue;
        };
        let words: Vec<&str> = quoted(check).collect();
        for path in words
            .iter()
            .filter(|w| w.contains('/') && !w.contains([' ', '*']))
        {
            assert!(root().join(path).exists(), "deviations.md names {path}");
        }
        // "`test` in `file`"
        for pair in check.split("` in `").collect::<Vec<_>>().windows(2) {
            let test = pair[0].rsplit('`').next().unwrap_or("");
            let path = pair[1].split('`').next().unwrap_or("");
            let source = fs::read_to_string(root().join(path)).expect(path);
            assert!(
                source.contains(&format!("#[test]\nfn {test}()")),
                "deviations.md names {test} in {path}"
            );
            n_tests += 1;
        }
    }
    assert!(n_tests >= 4, "{n_tests} tests are named");
}
