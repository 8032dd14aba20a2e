//! The sensitivity part of `systole compare`.
//!
//! Invariant: as all reports (see the module above).

use serde::Serialize;

/// What each source of error costs, one switched on at a time.
#[derive(Clone, Debug, Serialize)]
pub struct SensitivityReport {
    /// Weights, activations, constants, overflow, each in all layers at once.
    pub sources: Vec<Cost>,
    /// Each layer's sources, in execution order; the input's activations first.
    pub costs: Vec<Cost>,
}

/// What one source costs.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// Where it is switched on: the layer; `null` for the input, and for all layers at once.
    pub layer: Option<String>,
    /// `weights` (with the bias fitted to them), `activations`, `constants` (rounded bias and
    /// multipliers), `overflow`.
    pub source: &'static str,
    /// Squared change of the outputs over the squared float outputs. Overflow changes the outputs
    /// of the integer network with accumulators that suffice, the others those of the float one.
    pub relative_error: f64,
    /// Share of images whose largest output is that of the float network.
    pub agreement: Option<f64>,
    /// Share of images whose largest output is at the label; `null` without labels.
    pub top1: Option<f64>,
}
