//! What somebody has decided already: scales, rounded weights and biases that the quantizer takes
//! over instead of choosing its own.
//!
//! Invariant: a choice replaces one decision; everything that follows from it (multipliers, bias
//! mantissas, shifts) is derived by the same rules as without choices.

use arith::Scale;
use ndarray::Array4;
use network::{Network, Op};
use std::collections::BTreeMap;

/// Decisions by tensor index; a layer's stand under the tensor that it makes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// Activation scales; one of a group of tensors that share a scale is enough.
    pub scales: BTreeMap<usize, Scale>,
    /// Convolutions.
    pub layers: BTreeMap<usize, LayerChoice>,
}

/// Decisions about one convolution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerChoice {
    /// One, or one per output channel.
    pub weight_scales: Option<Vec<Scale>>,
    /// Rounded weights, in units of the chosen weight scales.
    pub weights: Option<Array4<i8>>,
    /// Biases as real numbers; no correction is added to them.
    pub bias: Option<Vec<f32>>,
}

impl Choices {
    /// Every scale of a network, so that quantizing again needs no search; weights and biases stay
    /// open.
    pub fn scales_of(network: &Network) -> Self {
        let scales = (network.tensors.iter().enumerate())
            .map(|(t, tensor)| (t, tensor.scale))
            .collect();
        let layers = network
            .layers
            .iter()
            .filter_map(|layer| match &layer.op {
                Op::Conv(conv) => {
                    let choice = LayerChoice {
                        weight_scales: Some(conv.weight_scales.clone()),
                        ..LayerChoice::default()
                    };
                    Some((layer.output.index(), choice))
                }
                Op::Pool(_) | Op::Concat(_) => None,
            })
            .collect();
        Self { scales, layers }
    }
}
