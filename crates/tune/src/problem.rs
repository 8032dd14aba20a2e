//! One layer as a fitting problem: integer patches, what a unit of the sum is worth, what is added,
//! where the result is clipped, and the float values that it should have.
//!
//! Invariant: with integer weights and bias, [`Problem::outputs`] is the layer's output before the
//! last rounding, as the machine's multipliers make it.

use crate::Guarantee;
use crate::targets::Sampled;
use ndarray::{Array1, Array2, Axis, s};
use network::{Conv, Network, Post};

/// Multiplications that a Gram matrix may take.
const MAX_GRAM_PRODUCTS: usize = 1 << 34;

/// A convolution of one group on sampled pixels.
#[derive(Clone, Debug)]
pub struct Problem {
    /// `[row, step]`: the integers that the kernel reads; steps run over kernel row, kernel column,
    /// channel.
    pub patches: Array2<i16>,
    /// Real value of one unit of an output channel's sum.
    pub unit: Vec<f32>,
    /// `[row, channel]`, real: the second operand of an addition; empty without one.
    pub added: Option<Array2<f32>>,
    /// `[row, channel]`: float values.
    pub targets: Array2<f32>,
    /// Least output value.
    pub low: f32,
    /// Largest output value.
    pub high: f32,
    /// Factor of negative values.
    pub slope: f32,
    /// What every partial sum has to fit, if that is wanted.
    pub guarantee: Option<Guarantee>,
}

/// Integer tensors of one image as the walk keeps them: pixel by pixel, channels fastest.
pub(crate) struct Plane {
    pub(crate) values: Vec<i16>,
    pub(crate) channels: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Plane {
    pub(crate) fn of(values: &functional::Values) -> Self {
        let shape = values.shape();
        Self {
            values: values.iter().map(|q| q as i16).collect(),
            channels: shape.channels,
            width: shape.width,
            height: shape.height,
        }
    }

    fn at(&self, y: usize, x: usize) -> &[i16] {
        &self.values[(y * self.width + x) * self.channels..][..self.channels]
    }
}

impl Problem {
    /// Rows.
    pub fn n_rows(&self) -> usize {
        self.patches.nrows()
    }

    /// Output channels.
    pub fn n_channels(&self) -> usize {
        self.unit.len()
    }

    /// The layer's output from a real-valued sum.
    pub fn activate(&self, z: f32) -> f32 {
        let leaky = if z < 0.0 { z * self.slope } else { z };
        leaky.max(self.low).min(self.high)
    }

    /// The derivative of [`Self::activate`].
    pub(crate) fn derivative(&self, z: f32) -> f32 {
        let (factor, leaky) = if z < 0.0 {
            (self.slope, z * self.slope)
        } else {
            (1.0, z)
        };
        if leaky > self.low && leaky < self.high {
            factor
        } else {
            0.0
        }
    }

    /// Outputs on the given patches: `rows` are their places in the problem. `weights` are
    /// `[channel, step]`, `bias` in units of the sum; before the activation function.
    pub(crate) fn sums(
        &self,
        patches: &Array2<f32>,
        rows: &[usize],
        weights: &Array2<f32>,
        bias: &[f32],
    ) -> Array2<f32> {
        let mut z = patches.dot(&weights.t());
        for (mut z, &row) in z.axis_iter_mut(Axis(0)).zip(rows) {
            for (c, z) in z.iter_mut().enumerate() {
                *z = (*z + bias[c]) * self.unit[c];
            }
            if let Some(added) = &self.added {
                z += &added.row(row);
            }
        }
        z
    }

    /// Outputs of all rows, for tests and small problems.
    pub fn outputs(&self, weights: &Array2<f32>, bias: &[f32]) -> Array2<f32> {
        let rows: Vec<usize> = (0..self.n_rows()).collect();
        let patches = self.patches.mapv(f32::from);
        let mut z = self.sums(&patches, &rows, weights, bias);
        z.mapv_inplace(|z| self.activate(z));
        z
    }

    /// Products of the inputs of each two steps, summed over (some of the) rows: up to a factor
    /// what changes of the weights cost before the activation function.
    pub(crate) fn gram(&self) -> Array2<f32> {
        let k = self.patches.ncols();
        let n = (MAX_GRAM_PRODUCTS / (k * k)).clamp(1024, 1 << 16);
        let every = self.n_rows().div_ceil(n).max(1);
        let rows = self.patches.slice(s![..;every, ..]).mapv(f32::from);
        rows.t().dot(&rows)
    }

    /// Mean of the squared inputs of each step.
    pub(crate) fn mean_squares(&self) -> Array1<f32> {
        let mut sums = Array1::<f64>::zeros(self.patches.ncols());
        for row in self.patches.rows() {
            sums.zip_mut_with(&row, |s, &x| *s += f64::from(x) * f64::from(x));
        }
        sums.mapv(|s| (s / self.n_rows() as f64) as f32)
    }
}

/// The problems of a layer, one for each group.
pub(crate) fn problems(
    network: &Network,
    conv: &Conv,
    output: usize,
    sample: &Sampled,
    input: &[Plane],
    residual: Option<&[Plane]>,
    guarantee: Option<Guarantee>,
) -> Vec<Problem> {
    let tensor = &network.tensors[output];
    let s_o = tensor.scale.real();
    let n_channels = conv.n_output_channels();
    let per_group = n_channels / conv.groups;
    let n_rows = sample.pixels.len();
    let [low, high] = [conv.post.q_min, conv.post.q_max].map(|q| (f64::from(q) * s_o) as f32);
    let targets = ndarray::ArrayView2::from_shape((n_rows, n_channels), &sample.values)
        .expect("a value for every pixel and channel");
    let added = residual.map(|planes| added(network, &conv.post, sample, planes, output));
    (0..conv.groups)
        .map(|group| {
            let channels = group * per_group..(group + 1) * per_group;
            let columns = s![.., channels.clone()];
            Problem {
                patches: patches(conv, group, sample, input, tensor.shape.width),
                unit: channels
                    .map(|c| (conv.post.requant_of(c).factor() * s_o) as f32)
                    .collect(),
                added: added.as_ref().map(|a| a.slice(columns).to_owned()),
                targets: targets.slice(columns).mapv(|t| t.max(low).min(high)),
                low,
                high,
                slope: conv.post.negative_slope.map_or(1.0, |s| s.factor() as f32),
                guarantee,
            }
        })
        .collect()
}

fn patches(
    conv: &Conv,
    group: usize,
    sample: &Sampled,
    input: &[Plane],
    width: usize,
) -> Array2<i16> {
    let n = conv.n_group_channels();
    let mut patches = Array2::zeros((sample.pixels.len(), conv.reduction_length()));
    let mut rows = patches.axis_iter_mut(Axis(0));
    for (image, plane) in input.iter().enumerate() {
        for (&pixel, mut row) in sample.of_image(image).iter().zip(&mut rows) {
            let row = row.as_slice_mut().expect("rows are contiguous");
            let (y, x) = (pixel as usize / width, pixel as usize % width);
            let [kernel_height, kernel_width] = conv.window.kernel;
            for ky in 0..kernel_height {
                let Some(source_y) = conv.window.source(0, y, ky, plane.height) else {
                    continue;
                };
                for kx in 0..kernel_width {
                    if let Some(source_x) = conv.window.source(1, x, kx, plane.width) {
                        let from = &plane.at(source_y, source_x)[group * n..(group + 1) * n];
                        row[(ky * kernel_width + kx) * n..][..n].copy_from_slice(from);
                    }
                }
            }
        }
    }
    patches
}

fn added(
    network: &Network,
    post: &Post,
    sample: &Sampled,
    planes: &[Plane],
    output: usize,
) -> Array2<f32> {
    let tensor = &network.tensors[output];
    let residual = post.residual.expect("planes are of a residual");
    let unit = (residual.requant.factor() * tensor.scale.real()) as f32;
    let mut added = Array2::zeros((sample.pixels.len(), tensor.shape.channels));
    let mut rows = added.axis_iter_mut(Axis(0));
    for (image, plane) in planes.iter().enumerate() {
        for (&pixel, mut row) in sample.of_image(image).iter().zip(&mut rows) {
            let y = pixel as usize / tensor.shape.width * residual.stride[0];
            let x = pixel as usize % tensor.shape.width * residual.stride[1];
            let reached = row.iter_mut().skip(residual.channel_offset);
            for (place, &q) in reached.zip(plane.at(y, x)) {
                *place = f32::from(q) * unit;
            }
        }
    }
    added
}
