//! The front of a sweep for people.

use super::{add, new_table};
use crate::sweep::{Axis, Placed, Row};
use std::{collections::BTreeMap, fmt::Write};

/// For every network the points that no other beats; `names` are network and settings.
pub fn sweep(
    names: &[&str],
    rows: &[Row],
    axes: &[Axis],
    networks: &BTreeMap<String, Vec<Placed>>,
) -> String {
    let labels: Vec<&str> = axes.iter().map(|axis| axis.label).collect();
    let mut table = new_table(&[&["point"], names].concat(), &labels);
    let (mut n_front, mut n_placed) = (0, 0);
    for point in networks.values().flatten() {
        n_placed += 1;
        if !point.is_front {
            continue;
        }
        n_front += 1;
        let row = &rows[point.row];
        let mut cells = vec![point.row.to_string()];
        cells.extend(row[..names.len()].iter().cloned());
        cells.extend(point.values.iter().map(|&value| number(value)));
        add(&mut table, cells);
    }
    let mut text = format!("{table}\n\n{n_front} of {n_placed} points are beaten by no other\n");
    let failed = rows.iter().enumerate().filter_map(|(index, row)| {
        let error = row.last()?;
        (!error.is_empty()).then_some((index, error))
    });
    let failed: Vec<_> = failed.collect();
    if let Some((index, error)) = failed.first() {
        let n = failed.len();
        let _ = writeln!(
            text,
            "{n} points do not fit their machine; point {index}: {error}"
        );
    }
    text
}

/// Whole numbers in full, others with four digits.
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        super::grouped(value as u64)
    } else if value.abs() < 1e-2 {
        format!("{value:.3e}")
    } else {
        format!("{value:.4}")
    }
}
