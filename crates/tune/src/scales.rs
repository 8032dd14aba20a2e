//! Coordinate search of scales on the network's output error: one tensor or layer after the other,
//! a little smaller or larger, kept where the outputs come closer to the float network's.
//!
//! Invariant: a move is kept only if the cost on the images that are searched on falls, so the
//! result is never worse there than the start.

use crate::{Error, OutputError, Progress, Subject, output_error};
use arith::Scale;
use quantizer::Choices;

/// How [`search_scales`] works.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleSearch {
    /// Images to search on, from the first.
    pub n_images: usize,
    /// Factors tried of each scale.
    pub factors: Vec<f64>,
    /// Times that all scales are visited.
    pub n_rounds: usize,
    /// Weight scales too, not only activations'; those of weights that are rounded already stay.
    pub weights: bool,
}

impl Default for ScaleSearch {
    fn default() -> Self {
        Self {
            n_images: 256,
            factors: vec![0.8, 0.9, 1.1, 1.25],
            n_rounds: 1,
            weights: true,
        }
    }
}

/// Searches from `start` and returns the scales with the output errors before and after.
///
/// # Errors
/// A layer that has no integer form.
pub fn search_scales(
    subject: &Subject<'_>,
    start: &Choices,
    search: &ScaleSearch,
    progress: &mut Progress<'_>,
) -> Result<(Choices, [OutputError; 2]), Error> {
    let network = subject.quantize(start)?;
    let images = 0..search.n_images.min(subject.targets.n_images());
    let before = output_error(subject, &network, images.clone())?;
    let mut best = (before, Choices::scales_of(&network));
    for (tensor, layer) in &start.layers {
        let choice = best.1.layers.entry(*tensor).or_default();
        choice.weights.clone_from(&layer.weights);
        choice.bias.clone_from(&layer.bias);
    }
    let mut moves: Vec<Coordinate> = Vec::new();
    for layer in &network.layers {
        let t = layer.output.index();
        let is_rounded = (start.layers.get(&t)).is_some_and(|choice| choice.weights.is_some());
        if layer.conv().is_some() && search.weights && !is_rounded {
            moves.push(Coordinate::Weights(t));
        }
        let copies = matches!(layer.op, network::Op::Concat(_));
        if !copies && network.tensors[t].format.bits <= 8 {
            moves.push(Coordinate::Activation(t));
        }
    }
    let n = moves.len() * search.n_rounds;
    for round in 0..search.n_rounds {
        for (index, coordinate) in moves.iter().enumerate() {
            progress("scales", round * moves.len() + index, n);
            for &factor in &search.factors {
                let Some(choices) = coordinate.moved(&best.1, factor) else {
                    continue;
                };
                // A scale so far off that a layer has no integer form is no candidate.
                let Ok(network) = subject.quantize(&choices) else {
                    continue;
                };
                let Ok(error) = output_error(subject, &network, images.clone()) else {
                    continue;
                };
                if error.cost() < best.0.cost() {
                    best = (error, choices);
                }
            }
        }
    }
    progress("", n, n);
    Ok((best.1, [before, best.0]))
}

#[derive(Clone, Copy, Debug)]
enum Coordinate {
    Activation(usize),
    Weights(usize),
}

impl Coordinate {
    fn moved(self, from: &Choices, factor: f64) -> Option<Choices> {
        let mut choices = from.clone();
        let scaled = |scale: &mut Scale| {
            *scale = Scale::nearest(scale.real() * factor)?;
            Some(())
        };
        match self {
            Self::Activation(t) => scaled(choices.scales.get_mut(&t)?)?,
            Self::Weights(t) => {
                let layer = choices.layers.get_mut(&t)?;
                for scale in layer.weight_scales.as_mut()? {
                    scaled(scale)?;
                }
            }
        }
        Some(choices)
    }
}
