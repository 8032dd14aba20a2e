//! What `systole gemm` reports.
//!
//! Invariant: `cycles` = `scale_sim_v3_cycles` + `correction_cycles`.

use serde::Serialize;

/// One matrix product on the array alone.
#[derive(Clone, Debug, Serialize)]
pub struct GemmPoint {
    /// As the file of points calls it.
    pub name: String,
    /// Output pixels.
    pub m: u64,
    /// Output channels.
    pub n: u64,
    /// Steps of the reduction.
    pub k: u64,
    /// The array's.
    pub dataflow: &'static str,
    /// PE rows.
    pub rows: u32,
    /// PE columns.
    pub cols: u32,
    /// Folds, one after the other.
    pub n_folds: u64,
    /// Cycles of all folds by the event model.
    pub cycles: u64,
    /// What SCALE-Sim v3 leaves out: `docs/deviations.md`.
    pub correction_cycles: u64,
    /// What SCALE-Sim v3 should report then.
    pub scale_sim_v3_cycles: u64,
    /// What the file of points says.
    pub published_cycles: Option<u64>,
    /// `scale_sim_v3_cycles - published_cycles`.
    pub difference: Option<i64>,
}
