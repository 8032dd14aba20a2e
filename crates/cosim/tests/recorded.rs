//! What the RTL did once, the models must do today; needs no Verilator.

use cosim::{Model, recordings, waves};
use std::path::Path;

#[test]
fn models_repeat_the_recorded_runs() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces");
    let files = recordings::files(&directory).expect("traces/");
    assert!(files.len() >= 100, "only {} recorded runs", files.len());
    for path in files {
        let name = path.display();
        let (_, trace) = recordings::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        for which in Model::ALL {
            let difference =
                recordings::judge(&trace, which).unwrap_or_else(|error| panic!("{name}: {error}"));
            if let Some(difference) = difference {
                panic!("{name}, {} model: {difference}", which.name());
            }
        }
    }
}

#[test]
fn the_stepped_model_has_the_recorded_waveforms() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces");
    for (trace, waveform) in waves::recorded(&directory) {
        let name = waveform.display();
        let found =
            waves::judge(&trace, &waveform).unwrap_or_else(|error| panic!("{name}: {error}"));
        if let Some(first) = &found.first {
            panic!("{name}: {} values differ; {first}", found.n_differences);
        }
        assert_eq!(found.missing, Vec::<String>::new(), "{name}");
        assert!(found.known.len() >= waves::LEAST_SIGNALS, "{name}");
        assert!(
            found.n_cycles >= 500 && found.n_values > 50_000,
            "{name}: {found:?}"
        );
    }
}

/// Every kind of difference is seen, and the first is named.
#[test]
fn another_run_has_another_waveform() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../traces");
    let (path, _) = waves::recorded(&directory).remove(0);
    let (_, trace) = recordings::read(&path).expect("a recording");
    let wave = |config: &accelerator::Config| {
        let mut program = trace.program.clone();
        program.machine = config.fingerprint();
        waves::stepped_waveform(&program, config, &trace.dram(), 0..300).expect("it runs")
    };
    let plain = wave(&trace.config);
    let mut config = trace.config.clone();
    config.dram.latency_cycles += 1;
    let found = waves::compare_waveforms(wave(&config), plain).expect("both are waveforms");
    let first = found.first.expect("a late DRAM is seen").to_string();
    let latency = trace.config.dram.latency_cycles;
    // A load issues in cycle 0, starts in 1, offers its burst in 2.
    assert!(
        first.starts_with(&format!("cycle {}, systole.", 2 + latency)),
        "{first}"
    );
    assert!(first.ends_with("0 in the RTL, 1 in the model"), "{first}");
}
