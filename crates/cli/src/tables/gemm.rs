//! `systole gemm` for people: a line for each kind of array, and every point that differs.

use super::{add, grouped, new_table};
use crate::report::GemmPoint;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Sums over the points of one kind of array.
#[derive(Default)]
struct Sum {
    n_points: u64,
    n_folds: u64,
    cycles: u64,
    correction: u64,
    scale_sim: u64,
    published: u64,
    n_compared: u64,
    n_different: u64,
}

impl Sum {
    fn add(&mut self, point: &GemmPoint) {
        self.n_points += 1;
        self.n_folds += point.n_folds;
        self.cycles += point.cycles;
        self.correction += point.correction_cycles;
        self.scale_sim += point.scale_sim_v3_cycles;
        self.published += point.published_cycles.unwrap_or(0);
        self.n_compared += u64::from(point.published_cycles.is_some());
        self.n_different += u64::from(point.difference.is_some_and(|d| d != 0));
    }

    fn row(&self, dataflow: &str, array: String) -> Vec<String> {
        let compared = |number: u64| {
            if self.n_compared == 0 {
                "-".to_owned()
            } else {
                grouped(number)
            }
        };
        vec![
            dataflow.to_owned(),
            array,
            grouped(self.n_points),
            grouped(self.n_folds),
            grouped(self.cycles),
            grouped(self.correction),
            grouped(self.scale_sim),
            compared(self.published),
            compared(self.n_different),
        ]
    }
}

/// The table; `-` where there is nothing to compare with.
pub fn gemm(points: &[GemmPoint]) -> String {
    let mut table = new_table(
        &["dataflow", "array"],
        &[
            "points",
            "folds",
            "cycles",
            "corrections",
            "SCALE-Sim v3",
            "published",
            "different",
        ],
    );
    let mut kinds: BTreeMap<_, Sum> = BTreeMap::new();
    let mut all = Sum::default();
    for point in points {
        kinds
            .entry((point.dataflow, point.rows, point.cols))
            .or_default()
            .add(point);
        all.add(point);
    }
    for (&(dataflow, rows, cols), sum) in &kinds {
        add(&mut table, sum.row(dataflow, format!("{rows} × {cols}")));
    }
    if kinds.len() > 1 {
        add(&mut table, all.row("all", String::new()));
    }
    let mut text = format!("{table}\n");
    for point in points
        .iter()
        .filter(|point| point.difference.is_some_and(|d| d != 0))
    {
        let GemmPoint {
            name,
            m,
            n,
            k,
            dataflow,
            rows,
            cols,
            scale_sim_v3_cycles,
            ..
        } = point;
        let published = point.published_cycles.unwrap_or(0);
        let _ = writeln!(
            text,
            "{name} M {m} N {n} K {k}, {dataflow} {rows} × {cols}: {scale_sim_v3_cycles}, published {published}"
        );
    }
    text
}
