//! What a forward pass leaves behind for the backward pass.
//!
//! Invariant: `real = value · unit`; maps lie pixel by pixel, channels fastest, image after image.

use crate::normalization::Normalized;

/// The values of some images.
#[derive(Debug)]
pub(crate) struct Tape {
    pub(crate) n_images: usize,
    /// One per tensor: integers in an integer pass.
    pub(crate) values: Vec<Vec<f32>>,
    /// One per tensor.
    pub(crate) units: Vec<f32>,
    /// One per layer: what was rounded and clamped, in the output's unit; empty for concatenations.
    pub(crate) before: Vec<Vec<f32>>,
    /// One per layer: where gradients pass.
    pub(crate) gates: Vec<Gate>,
    /// One per layer: the squared errors of its output at half its scale, its scale and twice its
    /// scale, in squares of the scale (zeros unless asked for).
    pub(crate) errors: Vec<[f64; 3]>,
    /// One per layer, where a float pass normalized.
    pub(crate) normalized: Vec<Option<Normalized>>,
}

/// The derivative of what follows a reduction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gate {
    /// Nothing passes below …
    pub(crate) low: f32,
    /// … and above.
    pub(crate) high: f32,
    /// Factor of negative values.
    pub(crate) slope: f32,
}

impl Gate {
    pub(crate) const OPEN: Self = Self {
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
        slope: 1.0,
    };

    /// Multiplies gradients by the derivative.
    pub(crate) fn pass(self, before: &[f32], gradient: &mut [f32]) {
        if self == Self::OPEN {
            return;
        }
        for (g, &u) in gradient.iter_mut().zip(before) {
            let inside = u >= self.low && u <= self.high;
            let slope = if u < 0.0 { self.slope } else { 1.0 };
            *g = if inside { *g * slope } else { 0.0 };
        }
    }
}

impl Tape {
    pub(crate) fn new(n_images: usize, n_tensors: usize, n_layers: usize) -> Self {
        Self {
            n_images,
            values: vec![Vec::new(); n_tensors],
            units: vec![1.0; n_tensors],
            before: Vec::with_capacity(n_layers),
            gates: Vec::with_capacity(n_layers),
            errors: vec![[0.0; 3]; n_layers],
            normalized: (0..n_layers).map(|_| None).collect(),
        }
    }
}
