//! The Pareto front: the points that no other point beats on every axis.
//!
//! Invariant: the front depends on the set of points alone; among equal points all stay.

use super::Row;
use std::collections::BTreeMap;

/// A column to judge by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// The column's name.
    pub column: &'static str,
    /// How people call it, with its unit.
    pub label: &'static str,
    /// From the column's unit to the label's.
    factor: f64,
    /// Whether more is better.
    pub is_gain: bool,
}

const AXES: [Axis; 11] = [
    axis("seconds", "latency, ms", 1e3, false),
    axis("total_cycles", "latency, cycles", 1.0, false),
    axis("frames_per_second", "frames a second", 1.0, true),
    axis("energy_fj", "energy, mJ", 1e-12, false),
    axis("average_watts", "average power, W", 1.0, false),
    axis("sram_bytes", "SRAM, KiB", 1.0 / 1024.0, false),
    axis("weight_bytes", "weights, KiB", 1.0 / 1024.0, false),
    axis("compute_utilization", "compute utilization, %", 100.0, true),
    axis("sqnr_db", "SQNR, dB", 1.0, true),
    axis("top1", "top-1, %", 100.0, true),
    axis("agreement", "agreement with float, %", 100.0, true),
];

const fn axis(column: &'static str, label: &'static str, factor: f64, is_gain: bool) -> Axis {
    Axis {
        column,
        label,
        factor,
        is_gain,
    }
}

impl Axis {
    /// By its column.
    pub fn of(column: &str) -> Option<Self> {
        AXES.into_iter().find(|axis| axis.column == column)
    }

    /// Every column that can be an axis.
    pub fn names() -> String {
        AXES.map(|axis| axis.column).join(", ")
    }

    /// Latency, energy, SRAM and, where it was measured, accuracy.
    pub fn defaults(columns: &[&str], rows: &[Row]) -> Vec<Self> {
        let is_measured = |name: &str| {
            let column = columns.iter().position(|column| *column == name);
            column.is_some_and(|column| rows.iter().any(|row| !row[column].is_empty()))
        };
        let accuracy = ["top1", "sqnr_db"]
            .into_iter()
            .find(|name| is_measured(name));
        ["seconds", "energy_fj", "sram_bytes"]
            .into_iter()
            .chain(accuracy)
            .filter_map(Self::of)
            .collect()
    }
}

/// A point on the axes: its row's position, and a value an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Position among the rows.
    pub row: usize,
    /// In the order and the units of the axes.
    pub values: Vec<f64>,
    /// Whether no other point of its network beats it.
    pub is_front: bool,
}

/// The points that have a value on every axis, by network (the first column), best first axis first.
pub fn fronts(columns: &[&str], rows: &[Row], axes: &[Axis]) -> BTreeMap<String, Vec<Placed>> {
    let positions: Vec<Option<usize>> = axes
        .iter()
        .map(|axis| columns.iter().position(|column| *column == axis.column))
        .collect();
    let mut networks: BTreeMap<String, Vec<Placed>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        let values: Option<Vec<f64>> = positions
            .iter()
            .zip(axes)
            .map(|(position, axis)| Some(row.get((*position)?)?.parse::<f64>().ok()? * axis.factor))
            .collect();
        if let Some(values) = values {
            let placed = Placed {
                row: index,
                values,
                is_front: true,
            };
            networks.entry(row[0].clone()).or_default().push(placed);
        }
    }
    for placed in networks.values_mut() {
        let all = placed.clone();
        for point in placed.iter_mut() {
            point.is_front = !all
                .iter()
                .any(|other| beats(&other.values, &point.values, axes));
        }
        placed.sort_by(|a, b| {
            let order = a.values[0].total_cmp(&b.values[0]);
            if axes[0].is_gain {
                order.reverse()
            } else {
                order
            }
            .then(a.row.cmp(&b.row))
        });
    }
    networks
}

/// At least as good on every axis, better on one.
fn beats(a: &[f64], b: &[f64], axes: &[Axis]) -> bool {
    let gain = |a: f64, b: f64, axis: &Axis| if axis.is_gain { a - b } else { b - a };
    let gains = || {
        a.iter()
            .zip(b)
            .zip(axes)
            .map(|((&a, &b), axis)| gain(a, b, axis))
    };
    gains().all(|gain| gain >= 0.0) && gains().any(|gain| gain > 0.0)
}

#[cfg(test)]
mod tests {
    use super::{Axis, fronts};

    #[test]
    fn beaten_points_are_not_on_the_front() {
        let columns = ["network", "seconds", "top1"];
        let axes = [
            Axis::of("seconds").expect("known"),
            Axis::of("top1").expect("known"),
        ];
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [
            row(["a", "2", "0.9"]),
            row(["a", "1", "0.8"]),
            row(["a", "2", "0.8"]),
            row(["a", "1", "0.8"]),
            row(["a", "3", ""]),
            row(["b", "9", "0.1"]),
        ];
        let found: Vec<_> = fronts(&columns, &rows, &axes)
            .into_values()
            .map(|points| {
                points
                    .iter()
                    .map(|p| (p.row, p.is_front))
                    .collect::<Vec<_>>()
            })
            .collect();
        let a = vec![(1, true), (3, true), (0, true), (2, false)];
        assert_eq!(found, [a, vec![(5, true)]]);
    }
}
