//! What `systole bench` reports.
//!
//! Invariant: seconds are wall time of this computer; everything else is as in other reports.

use super::Header;
use serde::Serialize;

/// `systole bench`.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Who and what.
    #[serde(flatten)]
    pub header: Header,
    /// The kernels that the processor allows.
    pub level: String,
    /// Threads that compute.
    pub n_threads: usize,
    /// Multiply-accumulates of an image.
    pub n_macs: u64,
    /// Of them, those that overflowed.
    pub n_overflowed: u64,
    /// What was timed.
    pub stages: Vec<StageTime>,
}

/// A stage's time.
#[derive(Clone, Debug, Serialize)]
pub struct StageTime {
    /// `compile` (search and timing), `time` (the event model alone), `prepare` (weights packed once),
    /// `run` (an image: values and events).
    pub name: &'static str,
    /// How often it ran.
    pub n_repetitions: usize,
    /// The shortest run.
    pub min_seconds: f64,
    /// The run in the middle.
    pub median_seconds: f64,
    /// What it works on.
    pub n_items: u64,
    /// What these are.
    pub unit: &'static str,
    /// `n_items / median_seconds`.
    pub items_per_second: f64,
}
