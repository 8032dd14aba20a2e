//! What the RTL did once, the models must do today; needs no Verilator.

use cosim::{Observed, Trace, compare, model};
use std::{fs, path::Path};
use xxhash_rust::xxh3::xxh3_64;

#[test]
fn models_repeat_the_recorded_runs() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces");
    let mut n_traces = 0;
    for entry in fs::read_dir(&directory).expect("traces/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "trace") {
            continue;
        }
        let name = path.display();
        let text = fs::read_to_string(&path).expect("a trace");
        let trace = Trace::from_text(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let dram = trace.dram();
        for step in [false, true] {
            let run = model(&trace.program, &trace.config, &dram, step)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(
                xxh3_64(&run.dram),
                trace.dram_hash,
                "{name}: DRAM, stepped: {step}"
            );
            let run = Observed {
                dram: Vec::new(),
                ..run
            };
            if let Some(difference) = compare(&trace.program, &trace.observed, &run) {
                panic!("{name}, stepped: {step}: {difference}");
            }
        }
        n_traces += 1;
    }
    assert!(
        n_traces >= 20,
        "only {n_traces} recorded runs in {}",
        directory.display()
    );
}
