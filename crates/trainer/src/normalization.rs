//! Batch normalization of float training.
//!
//! Invariant: sums run over pixels in order, in 64-bit floats.

/// What training knows of one layer's normalization.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Norm {
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    /// Running statistics, for inference.
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
}

/// What one pass normalized.
#[derive(Debug)]
pub(crate) struct Normalized {
    /// `(z - mean) · inverse`.
    pub(crate) hat: Vec<f32>,
    /// `1 / sqrt(variance + ε)`, per channel.
    pub(crate) inverse: Vec<f32>,
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
}

/// ONNX's default.
pub(crate) const EPSILON: f32 = 1e-5;

impl Norm {
    pub(crate) fn new(n_channels: usize) -> Self {
        Self {
            gamma: vec![1.0; n_channels],
            beta: vec![0.0; n_channels],
            mean: vec![0.0; n_channels],
            variance: vec![1.0; n_channels],
        }
    }

    /// Normalizes with the statistics of `maps`.
    pub(crate) fn apply(&self, maps: &mut [f32]) -> Normalized {
        let n = self.gamma.len();
        let count = (maps.len() / n) as f64;
        let mean = channel_sums(maps, n, |_, x| x).map(|s| s / count);
        let mean: Vec<f64> = mean.collect();
        let square = |c: usize, x: f64| (x - mean[c]).powi(2);
        let variance: Vec<f64> = channel_sums(maps, n, square).map(|s| s / count).collect();
        let inverse: Vec<f32> = variance
            .iter()
            .map(|v| (1.0 / (v + f64::from(EPSILON)).sqrt()) as f32)
            .collect();
        let mean: Vec<f32> = mean.into_iter().map(|m| m as f32).collect();
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
            mean,
            variance: variance.into_iter().map(|v| v as f32).collect(),
        }
    }
}

impl Normalized {
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
