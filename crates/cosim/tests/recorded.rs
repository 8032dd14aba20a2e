//! What the RTL did once, the models must do today; needs no Verilator.

use cosim::{Model, recordings};
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
