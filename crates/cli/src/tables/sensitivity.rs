//! The sensitivity report as tables: a line for each layer, a column for each source.
//!
//! Invariant: as all tables (see the module above).

use super::{add, new_table, percent};
use crate::report::{Cost, SensitivityReport};
use std::fmt::Write;

const SOURCES: [&str; 4] = ["weights", "activations", "constants", "overflow"];

/// What each source costs in all layers, then layer by layer.
pub fn sensitivity(report: &SensitivityReport) -> String {
    let mut whole = new_table(
        &["source, in all layers"],
        &["output error", "agreement", "top-1"],
    );
    let share = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), percent);
    for cost in &report.sources {
        let row = vec![
            cost.source.to_owned(),
            error(cost),
            share(cost.agreement),
            share(cost.top1),
        ];
        add(&mut whole, row);
    }
    let mut table = new_table(&["output error by layer"], &SOURCES);
    let mut layers: Vec<&Option<String>> = Vec::new();
    for cost in &report.costs {
        if layers.last() != Some(&&cost.layer) {
            layers.push(&cost.layer);
        }
    }
    for layer in layers {
        let mut row = vec![layer.clone().unwrap_or_else(|| "(input)".to_owned())];
        row.extend(SOURCES.iter().map(|source| {
            let mut costs = report.costs.iter();
            let cost = costs.find(|cost| cost.layer == *layer && cost.source == *source);
            cost.map_or_else(|| "-".to_owned(), error)
        }));
        add(&mut table, row);
    }
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\nSensitivity: one source switched on at a time, all else real-valued (overflow: all else integer)\n\n{whole}\n\n{table}"
    );
    text
}

/// In parts of the float outputs' energy.
fn error(cost: &Cost) -> String {
    format!("{:.3} %", cost.relative_error * 100.0)
}
