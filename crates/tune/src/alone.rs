//! Activation scales by what they do to the network's outputs: each tensor is rounded alone in an
//! otherwise real-valued network, at one scale after the other.
//!
//! The squared error of a tensor weighs every value the same; the outputs do not. Rounding one
//! tensor at a time keeps the others' errors from being compensated by chance, so that the scales
//! are good starts for rounding that is learned later.
//! Invariant: images are added in order; a scale is changed only if the error on the images falls.

use crate::simulate::Simulator;
use crate::{Error, Progress, Subject};
use arith::Scale;
use ndarray::Array3;
use quantizer::Choices;
use rayon::prelude::*;
use std::ops::Range;

/// How [`search_activations`] works.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivationSearch {
    /// Images to measure on.
    pub images: Range<usize>,
    /// Factors tried of each scale.
    pub factors: Vec<f64>,
}

impl ActivationSearch {
    /// From three quarters to twice the scale: least squared error clips too much rather than too
    /// little.
    pub fn new(images: Range<usize>) -> Self {
        let factors = vec![0.75, 0.85, 0.92, 1.0, 1.08, 1.17, 1.27, 1.4, 1.6, 2.0];
        Self { images, factors }
    }
}

/// Scales of all activations that no other tensor shares. `real` gives an image as the float network
/// reads it.
///
/// # Errors
/// A layer that has no integer form.
pub fn search_activations(
    subject: &Subject<'_>,
    start: &Choices,
    search: &ActivationSearch,
    real: &(dyn Fn(usize) -> Array3<f32> + Sync),
    progress: &mut Progress<'_>,
) -> Result<Choices, Error> {
    let network = subject.quantize(start)?;
    let simulator = Simulator::new(subject.float, &network);
    let groups = quantizer::scale_groups(subject.float);
    let searched: Vec<usize> = (0..network.layers.len())
        .filter(|&index| {
            let t = network.layers[index].output.index();
            let sharers = groups.iter().filter(|&&group| group == groups[t]);
            network.tensors[t].format.bits <= 8 && sharers.count() == 1
        })
        .collect();
    let candidates: Vec<Vec<Scale>> = searched
        .iter()
        .map(|&index| {
            let scale = network.output_of(&network.layers[index]).scale;
            let tried = search.factors.iter();
            tried
                .filter_map(|factor| Scale::nearest(scale.real() * factor))
                .collect()
        })
        .collect();
    let mut totals: Vec<Vec<f64>> = candidates.iter().map(|c| vec![0.0; c.len()]).collect();
    let n = search.images.len();
    // Portions, so that progress shows and memory stays bounded.
    let images: Vec<usize> = search.images.clone().collect();
    for (portion, images) in images.chunks(16).enumerate() {
        progress("activation scales", portion * 16, n);
        let errors: Vec<Vec<Vec<f64>>> = images
            .par_iter()
            .map(|&image| of_image(&simulator, &real(image), &searched, &candidates))
            .collect();
        for of_image in errors {
            for (totals, errors) in totals.iter_mut().zip(of_image) {
                totals.iter_mut().zip(errors).for_each(|(t, e)| *t += e);
            }
        }
    }
    let mut choices = Choices {
        layers: start.layers.clone(),
        ..Choices::scales_of(&network)
    };
    for ((index, candidates), totals) in searched.iter().zip(&candidates).zip(&totals) {
        let tensor = network.layers[*index].output;
        let own = network.tensor(tensor).scale;
        let mut best = None;
        for (&scale, &total) in candidates.iter().zip(totals) {
            if best.is_none_or(|(least, _)| total < least) {
                best = Some((total, scale));
            }
        }
        choices
            .scales
            .insert(tensor.index(), best.map_or(own, |(_, scale)| scale));
    }
    progress("", n, n);
    Ok(choices)
}

/// Squared change of the outputs by tensor and scale.
fn of_image(
    simulator: &Simulator<'_>,
    image: &Array3<f32>,
    searched: &[usize],
    candidates: &[Vec<Scale>],
) -> Vec<Vec<f64>> {
    let base = simulator.run(image, &|_, _| false);
    let floats = simulator.outputs(&base);
    let error = |index: usize, scale: Scale| -> f64 {
        let outputs = simulator.outputs(&simulator.rounded_at(&base, Some(index), scale));
        let pairs = outputs.iter().flatten().zip(floats.iter().flatten());
        pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    searched
        .iter()
        .zip(candidates)
        .map(|(&index, scales)| scales.iter().map(|&scale| error(index, scale)).collect())
        .collect()
}
