//! Batch normalization: of float training, and of integer training before its statistics are frozen.
//!
//! Invariant: sums run over pixels in order, in 64-bit floats.

use crate::optimizer::{Parameter, Role};
use quantizer::FloatConv;

/// What training knows of one layer's normalization.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Norm {
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    /// Running statistics, for inference.
    pub(crate) running: Statistics,
}

/// What one pass normalized.
#[derive(Debug)]
pub(crate) struct Normalized {
    /// `(z - mean) · inverse`.
    pub(crate) hat: Vec<f32>,
    /// `1 / sqrt(variance + ε)`, per channel.
    pub(crate) inverse: Vec<f32>,
    pub(crate) statistics: Statistics,
}

/// Mean and variance of every channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
}

/// ONNX's default.
const EPSILON: f32 = 1e-5;

/// Share of a batch in the running statistics.
const MOMENTUM: f32 = 0.1;

/// Where a layer's normalization stands among the parameters: gamma, running mean and variance, one
/// after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormSlots(usize);

impl NormSlots {
    pub(crate) fn gamma(self) -> usize {
        self.0
    }

    /// Adds parameters for `n_channels`; they normalize nothing yet.
    pub(crate) fn add(
        name: &str,
        n_channels: usize,
        gamma: Role,
        mut add: impl FnMut(String, Role, Vec<f32>) -> usize,
    ) -> Self {
        let norm = Norm::new(n_channels);
        let first = add(format!("{name}.gamma"), gamma, norm.gamma);
        add(format!("{name}.mean"), Role::Statistic, norm.running.mean);
        add(
            format!("{name}.variance"),
            Role::Statistic,
            norm.running.variance,
        );
        Self(first)
    }

    /// The normalization of the moment.
    pub(crate) fn norm(self, parameters: &[Parameter], beta: usize) -> Norm {
        let list = |index: usize| parameters[index].values.clone();
        Norm {
            gamma: list(self.0),
            beta: list(beta),
            running: Statistics {
                mean: list(self.0 + 1),
                variance: list(self.0 + 2),
            },
        }
    }

    /// Takes statistics into the running ones, `share` of a batch's part.
    pub(crate) fn follow(self, parameters: &mut [Parameter], seen: &Statistics, share: f32) {
        for (index, seen) in [(self.0 + 1, &seen.mean), (self.0 + 2, &seen.variance)] {
            let running = &mut parameters[index].values;
            for (running, seen) in running.iter_mut().zip(seen) {
                *running += MOMENTUM * share * (seen - *running);
            }
        }
    }

    /// Makes these the running statistics, and gamma and beta such that nothing changes.
    pub(crate) fn begin(self, parameters: &mut [Parameter], beta: usize, seen: Statistics) {
        let spread = |v: &f32| (f64::from(*v) + f64::from(EPSILON)).sqrt() as f32;
        let start = |parameter: &mut Parameter, values: Vec<f32>| {
            parameter.average.clone_from(&values);
            parameter.values = values;
        };
        let moved = parameters[beta].values.iter().zip(&seen.mean);
        let moved = moved.map(|(b, mean)| b + mean).collect();
        start(&mut parameters[beta], moved);
        start(
            &mut parameters[self.0],
            seen.variance.iter().map(spread).collect(),
        );
        start(&mut parameters[self.0 + 1], seen.mean);
        start(&mut parameters[self.0 + 2], seen.variance);
    }
}

impl Norm {
    pub(crate) fn new(n_channels: usize) -> Self {
        Self {
            gamma: vec![1.0; n_channels],
            beta: vec![0.0; n_channels],
            running: Statistics {
                mean: vec![0.0; n_channels],
                variance: vec![1.0; n_channels],
            },
        }
    }

    /// Normalizes with the statistics of `maps`.
    pub(crate) fn apply(&self, maps: &mut [f32]) -> Normalized {
        let n = self.gamma.len();
        let (mean, variance) = moments(maps, n);
        let inverse = inverse(variance.iter().copied());
        let statistics = Statistics::of_moments(&mean, &variance);
        let mean = &statistics.mean;
        let mut hat = Vec::with_capacity(maps.len());
        for pixel in maps.chunks_exact_mut(n) {
            for (c, x) in pixel.iter_mut().enumerate() {
                let normal = (*x - mean[c]) * inverse[c];
                hat.push(normal);
                *x = normal * self.gamma[c] + self.beta[c];
            }
        }
        Normalized {
            hat,
            inverse,
            statistics,
        }
    }

    /// The scale and shift that normalization by these statistics is: `z · factor + shift`.
    pub(crate) fn affine(&self, statistics: &Statistics) -> Affine {
        let pairs = self.gamma.iter().zip(&statistics.variance);
        let factor: Vec<f32> = pairs.map(|(g, v)| g / (v + EPSILON).sqrt()).collect();
        let moved = factor.iter().zip(&statistics.mean).zip(&self.beta);
        Affine {
            shift: moved.map(|((f, mean), beta)| beta - mean * f).collect(),
            factor,
            inverse: inverse(statistics.variance.iter().map(|&v| v.into())),
            mean: statistics.mean.clone(),
        }
    }
}

/// A normalization as a scale and a shift per channel, and what they were made of.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    factor: Vec<f32>,
    shift: Vec<f32>,
    inverse: Vec<f32>,
    mean: Vec<f32>,
}

impl Affine {
    /// Into weights and bias; the bias takes the shift's place.
    pub(crate) fn fold(&self, conv: &mut FloatConv) {
        for (mut kernel, factor) in conv.weights.outer_iter_mut().zip(&self.factor) {
            kernel.iter_mut().for_each(|w| *w *= factor);
        }
        conv.bias.copy_from_slice(&self.shift);
    }

    /// Turns the gradients of folded weights (`weights · factor`, one kernel after the other) into
    /// those of `weights`; gamma's times the variance, so that a step of plain descent does not depend
    /// on the unit of the sums. `shifts` are the folded biases' gradients, which are beta's too. The
    /// statistics count as constants here, see [`Affine::slopes`].
    pub(crate) fn backward(
        &self,
        weights: &[f32],
        gradient: &mut [f32],
        shifts: &[f32],
    ) -> Vec<f32> {
        let n = weights.len() / self.factor.len();
        let kernels = weights.chunks_exact(n).zip(gradient.chunks_exact_mut(n));
        let of = |(c, (kernel, gradient)): (usize, (&[f32], &mut [f32]))| {
            let mut sum = 0f64;
            for (w, g) in kernel.iter().zip(gradient) {
                sum += f64::from(*w) * f64::from(*g);
                *g *= self.factor[c];
            }
            let of_shift = f64::from(shifts[c]) * f64::from(self.mean[c]);
            ((sum - of_shift) / f64::from(self.inverse[c])) as f32
        };
        kernels.enumerate().map(of).collect()
    }

    /// Gamma's gradients, as [`Affine::backward`] gives them.
    pub(crate) fn of_gamma(&self, gradients: &[f32]) -> Vec<f32> {
        let pairs = gradients.iter().zip(&self.inverse);
        pairs.map(|(g, i)| g / (i * i)).collect()
    }

    /// Of mean and variance, from gamma's (as [`Affine::backward`] gives it) and beta's.
    pub(crate) fn slopes(&self, gamma: &[f32], beta: &[f32]) -> Slopes {
        let through = self.factor.iter().zip(&self.inverse).zip(gamma);
        Slopes {
            mean: self.factor.iter().zip(beta).map(|(f, g)| -f * g).collect(),
            variance: through
                .map(|((f, i), g)| -0.5 * f * i * i * i * g)
                .collect(),
        }
    }
}

/// The loss's gradients of a layer's statistics, per channel.
#[derive(Clone, Debug)]
pub(crate) struct Slopes {
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
}

/// `1 / sqrt(variance + ε)`.
fn inverse(variance: impl Iterator<Item = f64>) -> Vec<f32> {
    let of = |v: f64| (1.0 / (v + f64::from(EPSILON)).sqrt()) as f32;
    variance.map(of).collect()
}

/// Mean and variance of each of `n` channels.
fn moments(maps: &[f32], n: usize) -> (Vec<f64>, Vec<f64>) {
    let count = (maps.len() / n) as f64;
    let mean = channel_sums(maps, n, |_, x| x).map(|s| s / count);
    let mean: Vec<f64> = mean.collect();
    let square = |c: usize, x: f64| (x - mean[c]).powi(2);
    let variance = channel_sums(maps, n, square).map(|s| s / count);
    let variance = variance.collect();
    (mean, variance)
}

impl Statistics {
    /// Of maps of `n` channels.
    pub(crate) fn of(maps: &[f32], n: usize) -> Self {
        let (mean, variance) = moments(maps, n);
        Self::of_moments(&mean, &variance)
    }

    fn of_moments(mean: &[f64], variance: &[f64]) -> Self {
        let stored = |list: &[f64]| list.iter().map(|&x| x as f32).collect();
        Self {
            mean: stored(mean),
            variance: stored(variance),
        }
    }

    /// Of several parts together, each with its number of images.
    pub(crate) fn pooled(parts: &[(usize, Self)]) -> Self {
        let n_images: usize = parts.iter().map(|(n, _)| n).sum();
        let n_channels = parts.first().map_or(0, |(_, part)| part.mean.len());
        let over = |of: &dyn Fn(&Self) -> f64| {
            let sums = parts.iter().map(|(n, part)| *n as f64 * of(part));
            sums.sum::<f64>() / n_images as f64
        };
        let (mut mean, mut variance) = (Vec::new(), Vec::new());
        for c in 0..n_channels {
            let of_all = over(&|part| part.mean[c].into());
            let spread = |part: &Self| {
                f64::from(part.variance[c]) + (f64::from(part.mean[c]) - of_all).powi(2)
            };
            variance.push(over(&spread) as f32);
            mean.push(of_all as f32);
        }
        Self { mean, variance }
    }
}

impl Normalized {
    /// Only seen, not normalized.
    pub(crate) fn seen(maps: &[f32], n_channels: usize) -> Self {
        Self {
            hat: Vec::new(),
            inverse: Vec::new(),
            statistics: Statistics::of(maps, n_channels),
        }
    }

    /// The gradients of sums of which `count` in all have these statistics.
    pub(crate) fn spread(&self, of_all: &Statistics, slopes: &Slopes, count: usize) -> Vec<f32> {
        let n = self.inverse.len();
        let share = 1.0 / count as f64;
        let sum = |(at, &hat): (usize, &f32)| {
            let c = at % n;
            let z =
                f64::from(hat) / f64::from(self.inverse[c]) + f64::from(self.statistics.mean[c]);
            let centred = z - f64::from(of_all.mean[c]);
            let slope = f64::from(slopes.mean[c]) + 2.0 * f64::from(slopes.variance[c]) * centred;
            (slope * share) as f32
        };
        self.hat.iter().enumerate().map(sum).collect()
    }

    /// Turns gradients of the result into those of the argument; those of gamma and beta.
    pub(crate) fn backward(&self, norm: &Norm, gradient: &mut [f32]) -> [Vec<f32>; 2] {
        let n = norm.gamma.len();
        let count = (gradient.len() / n) as f64;
        let beta: Vec<f64> = channel_sums(gradient, n, |_, g| g).collect();
        let mut gamma = vec![0f64; n];
        for (g, hat) in gradient.chunks_exact(n).zip(self.hat.chunks_exact(n)) {
            for c in 0..n {
                gamma[c] += f64::from(g[c]) * f64::from(hat[c]);
            }
        }
        for (g, hat) in gradient.chunks_exact_mut(n).zip(self.hat.chunks_exact(n)) {
            for c in 0..n {
                let centred = f64::from(g[c]) - (beta[c] + f64::from(hat[c]) * gamma[c]) / count;
                g[c] = norm.gamma[c] * self.inverse[c] * centred as f32;
            }
        }
        [gamma, beta].map(|v| v.into_iter().map(|x| x as f32).collect())
    }
}

fn channel_sums(
    maps: &[f32],
    n: usize,
    of: impl Fn(usize, f64) -> f64,
) -> impl Iterator<Item = f64> {
    let mut sums = vec![0f64; n];
    for pixel in maps.chunks_exact(n) {
        for (c, &x) in pixel.iter().enumerate() {
            sums[c] += of(c, x.into());
        }
    }
    sums.into_iter()
}

/// Adds each channel's bias.
pub(crate) fn add_bias(maps: &mut [f32], bias: &[f32]) {
    for pixel in maps.chunks_exact_mut(bias.len()) {
        pixel.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arith::SplitMix64;

    fn uniform(rng: &mut SplitMix64) -> f32 {
        rng.between(-1000, 1000) as f32 / 500.0
    }

    #[test]
    fn parts_together_have_the_statistics_of_the_whole() {
        let mut rng = SplitMix64(3);
        let maps: Vec<f32> = (0..3 * 40)
            .map(|i| uniform(&mut rng) + (i / 24) as f32)
            .collect();
        let whole = Statistics::of(&maps, 3);
        // Images of four pixels: 1, 5 and 4 of them.
        let [a, b, c] =
            [&maps[..12], &maps[12..72], &maps[72..]].map(|part| Statistics::of(part, 3));
        let pooled = Statistics::pooled(&[(1, a), (5, b), (4, c)]);
        let pairs = whole.mean.iter().zip(&pooled.mean);
        for (a, b) in pairs.chain(whole.variance.iter().zip(&pooled.variance)) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    /// Normalizing sums is summing with folded weights.
    #[test]
    fn an_affine_normalizes() {
        let mut rng = SplitMix64(4);
        let mut maps: Vec<f32> = (0..2 * 50).map(|_| uniform(&mut rng)).collect();
        let norm = Norm {
            gamma: vec![0.5, 3.0],
            beta: vec![-1.0, 0.25],
            ..Norm::new(2)
        };
        let affine = norm.affine(&Statistics::of(&maps, 2));
        let expected: Vec<f32> = maps
            .iter()
            .enumerate()
            .map(|(i, z)| z * affine.factor[i % 2] + affine.shift[i % 2])
            .collect();
        norm.apply(&mut maps);
        for (a, b) in maps.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    /// A layer of one input and one output channel, `z = w · x`, normalized by its own statistics: the
    /// gradient of `w`, through the folded weight and through the statistics, is the loss's slope.
    #[test]
    fn gradients_go_through_the_statistics() {
        let mut rng = SplitMix64(6);
        let inputs: Vec<f32> = (0..40).map(|_| uniform(&mut rng)).collect();
        let (of_weight, of_bias) = (0.75f32, -1.25f32);
        let norm = Norm {
            gamma: vec![1.5],
            beta: vec![0.5],
            ..Norm::new(1)
        };
        let sums = |w: f32| -> Vec<f32> { inputs.iter().map(|x| w * x + 0.25 * x * x).collect() };
        // The second term stands for other weights of the layer, which stay.
        let loss = |w: f32| -> f64 {
            let affine = norm.affine(&Statistics::of(&sums(w), 1));
            f64::from(w * affine.factor[0] * of_weight + affine.shift[0] * of_bias)
        };
        let w = 0.75;
        let all = sums(w);
        let pooled = Statistics::of(&all, 1);
        let affine = norm.affine(&pooled);
        let mut gradient = [of_weight];
        let of_gamma = affine.backward(&[w], &mut gradient, &[of_bias]);
        let slopes = affine.slopes(&of_gamma, &[of_bias]);
        let mut found = f64::from(gradient[0]);
        // Two parts, each normalized by itself.
        for (inputs, part) in [(&inputs[..16], &all[..16]), (&inputs[16..], &all[16..])] {
            let normalized = norm.apply(&mut part.to_vec());
            let of_sums = normalized.spread(&pooled, &slopes, 40);
            let products = inputs.iter().zip(&of_sums).map(|(x, g)| f64::from(x * g));
            found += products.sum::<f64>();
        }
        let step = 1.0 / 256.0;
        let slope = (loss(w + step) - loss(w - step)) / (2.0 * f64::from(step));
        assert!((slope - found).abs() < 1e-3, "{slope} {found}");
    }

    /// Of any linear loss of folded weights and biases, the slopes in weights, gamma and beta.
    #[test]
    fn gradients_go_through_the_folding() {
        let mut rng = SplitMix64(5);
        let mut list = |n: usize| -> Vec<f32> { (0..n).map(|_| uniform(&mut rng)).collect() };
        let (weights, of_weights, of_bias) = (list(6), list(6), list(2));
        let norm = Norm {
            gamma: vec![0.5, 2.0],
            beta: vec![0.5, -0.5],
            ..Norm::new(2)
        };
        let statistics = Statistics {
            mean: vec![0.25, -0.75],
            variance: vec![0.5, 3.0],
        };
        let loss = |weights: &[f32], norm: &Norm| -> f64 {
            let affine = norm.affine(&statistics);
            let folded = weights
                .iter()
                .enumerate()
                .map(|(i, w)| w * affine.factor[i / 3]);
            let sum: f64 = folded.zip(&of_weights).map(|(w, g)| f64::from(w * g)).sum();
            let shifts = affine.shift.iter().zip(&of_bias);
            sum + shifts.map(|(b, g)| f64::from(b * g)).sum::<f64>()
        };
        let step = 1.0 / 64.0;
        let slope = |up: f64, down: f64| (up - down) / (2.0 * f64::from(step));
        let mut gradient = of_weights.clone();
        let of_gamma = norm
            .affine(&statistics)
            .backward(&weights, &mut gradient, &of_bias);
        for (index, found) in gradient.iter().enumerate() {
            let moved = |by: f32| {
                let mut weights = weights.clone();
                weights[index] += by;
                loss(&weights, &norm)
            };
            assert!((slope(moved(step), moved(-step)) - f64::from(*found)).abs() < 1e-3);
        }
        for (c, found) in of_gamma.iter().enumerate() {
            let found = found / (statistics.variance[c] + EPSILON);
            let moved = |by: f32| {
                let mut norm = norm.clone();
                norm.gamma[c] += by;
                loss(&weights, &norm)
            };
            assert!((slope(moved(step), moved(-step)) - f64::from(found)).abs() < 1e-3);
        }
    }
}
