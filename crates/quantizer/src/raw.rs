//! The imported graph before folding: one node per ONNX operator that computes on activations.
//!
//! Invariant: every value is made by one node that stands before its readers; value 0 is the
//! input.

use crate::float::{Activation, FloatTensor};
use ndarray::Array4;
use network::{Reduction, Window};

/// A graph of simple nodes.
#[derive(Debug)]
pub(crate) struct RawGraph {
    pub(crate) name: String,
    pub(crate) values: Vec<FloatTensor>,
    pub(crate) nodes: Vec<RawNode>,
    pub(crate) outputs: Vec<usize>,
    /// Weights were not read.
    pub(crate) shapes_only: bool,
}

/// One operation on activations.
#[derive(Debug)]
pub(crate) struct RawNode {
    pub(crate) name: String,
    pub(crate) output: usize,
    pub(crate) op: RawOp,
}

#[derive(Debug)]
pub(crate) enum RawOp {
    Conv {
        input: usize,
        window: Window,
        groups: usize,
        weights: Array4<f32>,
        bias: Vec<f32>,
    },
    /// `x · scale[c] + (shift[c] - mean[c] · scale[c])`: batch normalization, constant addition.
    Affine {
        input: usize,
        scale: Vec<f32>,
        mean: Vec<f32>,
        shift: Vec<f32>,
    },
    Add(usize, usize),
    Activation(usize, Activation),
    Pool {
        input: usize,
        window: Window,
        reduction: Reduction,
        divisor: usize,
    },
    Concat(Vec<usize>),
    /// Every `stride`-th row and column.
    Sample {
        input: usize,
        stride: [usize; 2],
    },
    /// Zero channels around.
    PadChannels {
        input: usize,
        before: usize,
    },
}

impl RawOp {
    pub(crate) fn inputs(&self) -> Vec<usize> {
        match self {
            Self::Conv { input, .. }
            | Self::Affine { input, .. }
            | Self::Activation(input, _)
            | Self::Pool { input, .. }
            | Self::Sample { input, .. }
            | Self::PadChannels { input, .. } => vec![*input],
            Self::Add(a, b) => vec![*a, *b],
            Self::Concat(inputs) => inputs.clone(),
        }
    }
}
