//! How far the integer network's outputs are from the float network's.
//!
//! Invariant: images are added in order, whatever thread computed them.

use crate::{Error, Subject};
use functional::{Detail, Engine, Level, Threads};
use network::Network;
use rayon::prelude::*;
use std::ops::Range;

/// The output error over some images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutputError {
    /// Squared error of all outputs over their float squares.
    pub relative: f64,
    /// Mean Kullback–Leibler divergence of the integer network's softmax from the float network's,
    /// natural logarithm; `None` unless the first output is a vector of classes.
    pub divergence: Option<f64>,
    /// Share of images whose largest first output is the same; `None` as above.
    pub agreement: Option<f64>,
    /// Images.
    pub n_images: usize,
}

impl OutputError {
    /// What the searches make small: the divergence of class vectors, else the relative error.
    pub fn cost(&self) -> f64 {
        self.divergence.unwrap_or(self.relative)
    }
}

/// Sums of one image.
struct Sums {
    error: f64,
    signal: f64,
    divergence: f64,
    agrees: bool,
}

/// Compares the outputs of a network on some of the recorded images.
///
/// # Errors
/// The engine refuses the network.
///
/// # Panics
/// Images that were not recorded.
pub fn output_error(
    subject: &Subject<'_>,
    network: &Network,
    images: Range<usize>,
) -> Result<OutputError, Error> {
    let engine = Engine::new(network, subject.arithmetic, Level::best())?;
    let input = network.tensor(network.input);
    let n_images = images.len();
    let sums: Vec<Sums> = images
        .into_par_iter()
        .map(|index| {
            let image = (subject.images)(index, input);
            let run = engine.run(&image, Detail::Values, Threads::One)?;
            let mut sums = Sums {
                error: 0.0,
                signal: 0.0,
                divergence: 0.0,
                agrees: true,
            };
            for (place, &output) in network.outputs.iter().enumerate() {
                let scale = network.tensor(output).scale.real();
                let reals = run.tensor(output).to_array();
                let reals: Vec<f64> = reals.iter().map(|&q| f64::from(q) * scale).collect();
                let floats = subject.targets.output(output.index(), index);
                for (&float, real) in floats.iter().zip(&reals) {
                    let float = f64::from(float);
                    sums.error += (float - real).powi(2);
                    sums.signal += float * float;
                }
                if place == 0 {
                    let floats: Vec<f64> = floats.iter().map(|&v| v.into()).collect();
                    sums.divergence = divergence(&floats, &reals);
                    sums.agrees = largest(&floats) == largest(&reals);
                }
            }
            Ok(sums)
        })
        .collect::<Result<_, Error>>()?;
    let total = |f: fn(&Sums) -> f64| sums.iter().map(f).sum::<f64>();
    let shape = network.tensor(network.outputs[0]).shape;
    let is_classes = shape.height == 1 && shape.width == 1 && shape.channels > 1;
    let mean = |sum: f64| is_classes.then(|| sum / n_images as f64);
    Ok(OutputError {
        relative: total(|s| s.error) / total(|s| s.signal).max(f64::MIN_POSITIVE),
        divergence: mean(total(|s| s.divergence)),
        agreement: mean(total(|s| f64::from(u8::from(s.agrees)))),
        n_images,
    })
}

/// `Σ p · ln(p / q)` of two softmaxes.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let logs = |x: &[f64]| {
        let peak = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
        let sum: f64 = x.iter().map(|v| (v - peak).exp()).sum();
        x.iter().map(|v| v - peak - sum.ln()).collect::<Vec<f64>>()
    };
    let (p, q) = (logs(p), logs(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::divergence;

    #[test]
    fn divergence_of_known_distributions() {
        assert!(divergence(&[1.0, 2.0], &[4.0, 5.0]).abs() < 1e-12);
        let p = [0.75f64.ln(), 0.25f64.ln()];
        let q = [0.5f64.ln(), 0.5f64.ln()];
        let expected = 0.75 * (1.5f64).ln() + 0.25 * (0.5f64).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-12);
    }
}
