//! The network in real numbers, each of its roundings switched on or off.
//!
//! Invariant: with every switch off it computes the folded float network; with every switch on the
//! integer network with accumulators that suffice, up to float rounding at ties.

use crate::sensitivity::Source;
use arith::Scale;
use ndarray::{Array2, Array3, ArrayView2, CowArray, Ix2, aview1, s};
use network::{Conv, Layer, Network, Op, Pool, Reduction, Residual, Shape, Tensor};
use quantizer::{Activation, FloatConv, FloatNetwork, FloatOp, FloatPost};

/// Whether a source is on in a layer (`None` is the input).
pub(crate) type Switches<'a> = dyn Fn(Option<usize>, Source) -> bool + 'a;

/// A network and its float original, prepared.
pub(crate) struct Simulator<'a> {
    network: &'a Network,
    layers: Vec<Prepared<'a>>,
}

/// A layer's real-valued side.
struct Prepared<'a> {
    layer: &'a Layer,
    post: Option<&'a FloatPost>,
    divisor: f64,
    conv: Option<PreparedConv>,
}

/// `[channel, step]`, steps over kernel row, kernel column, channel.
struct PreparedConv {
    float: Array2<f32>,
    rounded: Array2<f32>,
    /// Bias: of the float layer; fitted to the rounded weights; the float one on its integer grid.
    bias: Vec<f32>,
    fitted_bias: Vec<f32>,
    rounded_bias: Vec<f32>,
    /// What the multipliers make of 1.
    gain: Vec<f32>,
}

impl<'a> Simulator<'a> {
    pub(crate) fn new(float: &'a FloatNetwork, network: &'a Network) -> Self {
        let layers = network
            .layers
            .iter()
            .map(|layer| {
                let output = layer.output.index();
                let original = float.layers.iter().find(|l| l.output == output);
                let original = original.map(|l| &l.op);
                let (post, divisor, conv) = match (original, &layer.op) {
                    (Some(FloatOp::Conv(float)), Op::Conv(conv)) => {
                        let prepared = PreparedConv::new(network, layer, conv, float);
                        (Some(&float.post), 1, Some(prepared))
                    }
                    (Some(FloatOp::Pool(pool)), _) => (Some(&pool.post), pool.divisor, None),
                    _ => (None, 1, None),
                };
                Prepared {
                    layer,
                    post,
                    divisor: divisor as f64,
                    conv,
                }
            })
            .collect();
        Self { network, layers }
    }

    /// Every tensor of an image, `[row, column, channel]`.
    pub(crate) fn run(&self, image: &Array3<f32>, on: &Switches<'_>) -> Vec<Array3<f32>> {
        let empty = vec![Array3::zeros((0, 0, 0)); self.network.tensors.len()];
        self.rerun(&empty, image, 0, on)
    }

    /// As [`Self::run`], when nothing is switched on before layer `from` and `base` has the values
    /// of everything switched off.
    pub(crate) fn rerun(
        &self,
        base: &[Array3<f32>],
        image: &Array3<f32>,
        from: usize,
        on: &Switches<'_>,
    ) -> Vec<Array3<f32>> {
        let mut tensors = base.to_vec();
        let input = self.network.input;
        let pixels = image.view().permuted_axes([1, 2, 0]);
        let mut pixels = pixels.as_standard_layout().into_owned();
        if on(None, Source::Activations) {
            round(&mut pixels, self.network.tensor(input));
        }
        tensors[input.index()] = pixels;
        for index in from..self.layers.len() {
            let switched = |source| on(Some(index), source);
            let made = self.layer(index, &tensors, &switched);
            tensors[self.layers[index].layer.output.index()] = made;
        }
        tensors
    }

    /// As [`Self::run`] with everything off but the rounding of one tensor, at a scale of its own;
    /// `base` has the values of everything off.
    pub(crate) fn rounded_at(
        &self,
        base: &[Array3<f32>],
        made_by: Option<usize>,
        scale: Scale,
    ) -> Vec<Array3<f32>> {
        let id = made_by.map_or(self.network.input, |index| self.layers[index].layer.output);
        let tensor = Tensor {
            scale,
            ..self.network.tensor(id).clone()
        };
        let mut tensors = base.to_vec();
        round(&mut tensors[id.index()], &tensor);
        for index in made_by.map_or(0, |index| index + 1)..self.layers.len() {
            let made = self.layer(index, &tensors, &|_| false);
            tensors[self.layers[index].layer.output.index()] = made;
        }
        tensors
    }

    /// The outputs' values.
    pub(crate) fn outputs(&self, tensors: &[Array3<f32>]) -> Vec<Vec<f32>> {
        let outputs = self.network.outputs.iter();
        outputs
            .map(|&id| tensors[id.index()].iter().copied().collect())
            .collect()
    }

    fn layer(
        &self,
        index: usize,
        tensors: &[Array3<f32>],
        on: &dyn Fn(Source) -> bool,
    ) -> Array3<f32> {
        let prepared = &self.layers[index];
        let layer = prepared.layer;
        let tensor = self.network.output_of(layer);
        let mut made = match (&layer.op, &prepared.conv) {
            (Op::Conv(conv), Some(weights)) => {
                weights.convolve(conv, tensor.shape, &tensors[conv.input.index()], on)
            }
            (Op::Conv(_), None) => panic!("the float network has every convolution"),
            (Op::Pool(pool), _) => self.pool(prepared, pool, tensor, tensors, on),
            (Op::Concat(parts), _) => {
                let mut made = Array3::zeros(hwc(tensor.shape));
                let mut first = 0;
                for part in parts {
                    let source = &tensors[part.tensor.index()];
                    for ((y, x, c), value) in made.indexed_iter_mut() {
                        if (first..first + part.n_channels).contains(&c) {
                            let row = part.offset[0] + y * part.stride[0];
                            let column = part.offset[1] + x * part.stride[1];
                            *value = source[[row, column, part.channel + c - first]];
                        }
                    }
                    first += part.n_channels;
                }
                made
            }
        };
        if let Some(residual) = layer.op.post().and_then(|post| post.residual) {
            let gain = if on(Source::Constants) {
                let unit = self.network.tensor(residual.tensor).scale.real();
                residual.requant.factor() * tensor.scale.real() / unit
            } else {
                1.0
            };
            add(
                &mut made,
                residual,
                &tensors[residual.tensor.index()],
                gain as f32,
            );
        }
        if let Some(post) = prepared.post {
            made.mapv_inplace(|v| activate(post.activation, v));
        }
        if on(Source::Activations) {
            round(&mut made, tensor);
        }
        made
    }

    fn pool(
        &self,
        prepared: &Prepared<'_>,
        pool: &Pool,
        tensor: &Tensor,
        tensors: &[Array3<f32>],
        on: &dyn Fn(Source) -> bool,
    ) -> Array3<f32> {
        let input = &tensors[pool.input.index()];
        let (height, width, channels) = input.dim();
        let s_in = self.network.tensor(pool.input).scale.real();
        Array3::from_shape_fn(hwc(tensor.shape), |(y, x, c)| {
            let Some(source) = c.checked_sub(pool.channel_offset).filter(|&c| c < channels) else {
                return 0.0;
            };
            let rows =
                (0..pool.window.kernel[0]).filter_map(|ky| pool.window.source(0, y, ky, height));
            let values = rows.flat_map(|sy| {
                (0..pool.window.kernel[1])
                    .filter_map(|kx| pool.window.source(1, x, kx, width))
                    .map(move |sx| input[[sy, sx, source]])
            });
            if pool.reduction == Reduction::Max {
                return values.fold(f32::NEG_INFINITY, f32::max);
            }
            let rounded = pool.requant_at([y, x], [height, width]).factor() * tensor.scale.real();
            let exact = match pool.margin {
                None => 1.0 / prepared.divisor,
                Some(margin) => {
                    let counted =
                        |axis, index, extent| margin.n_counted(pool.window, axis, index, extent);
                    1.0 / (counted(0, y, height) * counted(1, x, width)) as f64
                }
            };
            let gain = if on(Source::Constants) {
                rounded / s_in
            } else {
                exact
            };
            (values.map(f64::from).sum::<f64>() * gain) as f32
        })
    }
}

impl PreparedConv {
    fn new(network: &Network, layer: &Layer, conv: &Conv, float: &FloatConv) -> Self {
        let s_a = network.tensor(conv.input).scale.real();
        let s_o = network.output_of(layer).scale.real();
        let n_channels = conv.n_output_channels();
        let scale = |c: usize| {
            let index = if conv.weight_scales.len() == 1 { 0 } else { c };
            conv.weight_scales[index].real()
        };
        let steps = |c: usize, k: usize| {
            let n = conv.n_group_channels();
            let (tap, channel) = (k / n, k % n);
            let width = conv.window.kernel[1];
            [c, channel, tap / width, tap % width]
        };
        let shape = (n_channels, conv.reduction_length());
        let each = |f: &dyn Fn(usize) -> f64| (0..n_channels).map(|c| f(c) as f32).collect();
        let unit = |c: usize| scale(c) * s_a;
        Self {
            float: Array2::from_shape_fn(shape, |(c, k)| float.weights[steps(c, k)]),
            rounded: Array2::from_shape_fn(shape, |(c, k)| {
                (f64::from(conv.weights[steps(c, k)]) * scale(c)) as f32
            }),
            bias: float.bias.clone(),
            fitted_bias: each(&|c| conv.bias[c].value() as f64 * unit(c)),
            rounded_bias: each(&|c| {
                let step = 2f64.powi(i32::from(conv.bias[c].shift)) * unit(c);
                (f64::from(float.bias[c]) / step).round_ties_even() * step
            }),
            gain: each(&|c| conv.post.requant_of(c).factor() * s_o / unit(c)),
        }
    }

    fn convolve(
        &self,
        conv: &Conv,
        shape: Shape,
        input: &Array3<f32>,
        on: &dyn Fn(Source) -> bool,
    ) -> Array3<f32> {
        let (weights, bias) = match (on(Source::Weights), on(Source::Constants)) {
            (true, _) => (&self.rounded, &self.fitted_bias),
            (false, true) => (&self.float, &self.rounded_bias),
            (false, false) => (&self.float, &self.bias),
        };
        let mut made = if conv.is_plain_depthwise() {
            depthwise(conv, weights, shape, input)
        } else if conv.groups == 1 {
            let sums = patches(conv, 0, shape, input).dot(&weights.t());
            // A product of matrices may come out column by column.
            sums.as_standard_layout().into_owned()
        } else {
            let per_group = conv.n_output_channels() / conv.groups;
            let mut made = Array2::zeros((shape.height * shape.width, shape.channels));
            for group in 0..conv.groups {
                let channels = group * per_group..(group + 1) * per_group;
                let weights: ArrayView2<'_, f32> = weights.slice(s![channels.clone(), ..]);
                let sums = patches(conv, group, shape, input).dot(&weights.t());
                made.slice_mut(s![.., channels]).assign(&sums);
            }
            made
        };
        made += &aview1(bias);
        if on(Source::Constants) {
            made *= &aview1(&self.gain);
        }
        made.into_shape_with_order(hwc(shape))
            .expect("a row for every pixel")
    }
}

/// A row for every output pixel: the group's inputs to its window, 0 in the padding.
fn patches<'a>(
    conv: &Conv,
    group: usize,
    shape: Shape,
    input: &'a Array3<f32>,
) -> CowArray<'a, f32, Ix2> {
    let (height, width, channels) = input.dim();
    let n_pixels = shape.height * shape.width;
    let is_input = conv.groups == 1
        && conv.window.n_taps() == 1
        && conv.window.stride == [1, 1]
        && conv.window.pad == [0, 0];
    if is_input && n_pixels == height * width {
        let pixels = input.to_shape((n_pixels, channels));
        return pixels.expect("standard layout");
    }
    let n = conv.n_group_channels();
    let mut patches = Array2::zeros((n_pixels, conv.reduction_length()));
    let target = patches.as_slice_mut().expect("standard layout");
    let input = input.as_slice().expect("standard layout");
    each_tap(conv, shape, [height, width], |tap, output, source| {
        target[output * conv.reduction_length() + tap * n..][..n]
            .copy_from_slice(&input[source * channels + group * n..][..n]);
    });
    patches.into()
}

/// Sums of a convolution whose output channels read one input channel each, in the order of the taps.
fn depthwise(conv: &Conv, weights: &Array2<f32>, shape: Shape, input: &Array3<f32>) -> Array2<f32> {
    let (height, width, channels) = input.dim();
    let by_tap = weights.t().as_standard_layout().into_owned();
    let by_tap = by_tap.as_slice().expect("standard layout");
    let input = input.as_slice().expect("standard layout");
    let mut made = Array2::zeros((shape.height * shape.width, channels));
    let target = made.as_slice_mut().expect("standard layout");
    each_tap(conv, shape, [height, width], |tap, output, source| {
        let sums = &mut target[output * channels..][..channels];
        let products = input[source * channels..][..channels]
            .iter()
            .zip(&by_tap[tap * channels..][..channels]);
        for (sum, (a, w)) in sums.iter_mut().zip(products) {
            *sum += a * w;
        }
    });
    made
}

/// Calls `f(tap, output pixel, input pixel)` for everything that is not padding, the taps of a pixel
/// in order.
fn each_tap(
    conv: &Conv,
    shape: Shape,
    [height, width]: [usize; 2],
    mut f: impl FnMut(usize, usize, usize),
) {
    let [kernel_height, kernel_width] = conv.window.kernel;
    for y in 0..shape.height {
        for x in 0..shape.width {
            for ky in 0..kernel_height {
                let Some(sy) = conv.window.source(0, y, ky, height) else {
                    continue;
                };
                for kx in 0..kernel_width {
                    if let Some(sx) = conv.window.source(1, x, kx, width) {
                        f(ky * kernel_width + kx, y * shape.width + x, sy * width + sx);
                    }
                }
            }
        }
    }
}

const fn hwc(shape: Shape) -> (usize, usize, usize) {
    (shape.height, shape.width, shape.channels)
}

fn add(made: &mut Array3<f32>, residual: Residual, from: &Array3<f32>, gain: f32) {
    let (height, width, channels) = made.dim();
    let first = residual.channel_offset.min(channels);
    let n = from.dim().2.min(channels - first);
    let [rows, columns] = residual.stride;
    for y in 0..height {
        for x in 0..width {
            let mut sums = made.slice_mut(s![y, x, first..first + n]);
            sums.scaled_add(gain, &from.slice(s![y * rows, x * columns, ..n]));
        }
    }
}

fn activate(activation: Activation, v: f32) -> f32 {
    match activation {
        Activation::None => v,
        Activation::Clamp { low, high } => v.max(low).min(high),
        Activation::Leaky { slope } => {
            if v < 0.0 {
                v * slope
            } else {
                v
            }
        }
    }
}

/// Rounds values to a tensor's integers and back.
fn round(values: &mut Array3<f32>, tensor: &Tensor) {
    /// Added and taken away again, it leaves the nearest integer (ties to even) of anything below
    /// 2^51: faster than a call of `round_ties_even`.
    const MAGIC: f64 = 1.5 * (1u64 << 52) as f64;
    let scale = tensor.scale.real();
    let (low, high) = (
        f64::from(tensor.format.q_min()),
        f64::from(tensor.format.q_max()),
    );
    values.mapv_inplace(|v| {
        let q = (f64::from(v) / scale).max(low).min(high);
        (((q + MAGIC) - MAGIC) * scale) as f32
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use arith::{Format, Requant, SplitMix64};
    use network::{Post, Window};

    fn uniform(rng: &mut SplitMix64) -> f32 {
        rng.between(-1000, 1000) as f32 / 1000.0
    }

    /// A convolution of a random kind and window; its input's and output's shape.
    fn convolution(rng: &mut SplitMix64) -> (Conv, [usize; 2], Shape) {
        let groups = rng.size(1, 4);
        let (per_group_in, per_group_out) = (rng.size(1, 3), rng.size(1, 3));
        let mut two = |low, high| [rng.size(low, high), rng.size(low, high)];
        let (kernel, extent) = (two(1, 3), two(5, 9));
        let window = Window {
            kernel,
            stride: two(1, 2),
            dilation: two(1, 2),
            pad: two(0, 2),
        };
        // One row and column of padding behind the input, as far as the kernel gets.
        let output = [0, 1].map(|axis| {
            let reach = window.dilation[axis] * (kernel[axis] - 1) + 1;
            (extent[axis] + window.pad[axis] + 1 - reach.min(extent[axis])) / window.stride[axis]
        });
        let n_out = groups * per_group_out;
        let conv = Conv {
            input: network::TensorId(0),
            window,
            groups,
            weight_bits: 8,
            weights: ndarray::Array4::zeros((n_out, per_group_in, kernel[0], kernel[1])),
            weight_scales: Vec::new(),
            bias: Vec::new(),
            post: Post {
                requant: vec![Requant::IDENTITY],
                residual: None,
                negative_slope: None,
                q_min: -128,
                q_max: 127,
            },
        };
        let shape = Shape {
            channels: n_out,
            height: output[0],
            width: output[1],
        };
        (conv, extent, shape)
    }

    /// The sum of one output, tap after tap.
    fn sum(conv: &Conv, weights: &Array2<f32>, input: &Array3<f32>, [y, x, c]: [usize; 3]) -> f64 {
        let (height, width, _) = input.dim();
        let n = conv.n_group_channels();
        let mut sum = 0.0;
        for k in 0..conv.reduction_length() {
            let (tap, channel) = (k / n, conv.input_channel(c, k % n));
            let (ky, kx) = (tap / conv.window.kernel[1], tap % conv.window.kernel[1]);
            let row = conv.window.source(0, y, ky, height);
            if let (Some(row), Some(column)) = (row, conv.window.source(1, x, kx, width)) {
                sum += f64::from(input[[row, column, channel]]) * f64::from(weights[[c, k]]);
            }
        }
        sum
    }

    #[test]
    fn convolutions_of_every_kind_are_their_sums() {
        let mut kinds = [0; 4];
        for seed in 0..400 {
            let mut rng = SplitMix64(seed);
            let (conv, extent, shape) = convolution(&mut rng);
            let n_in = conv.groups * conv.n_group_channels();
            let mut input = Array3::zeros((extent[0], extent[1], n_in));
            input.mapv_inplace(|_: f32| uniform(&mut rng));
            let mut weights = Array2::zeros((shape.channels, conv.reduction_length()));
            weights.mapv_inplace(|_: f32| uniform(&mut rng));
            let channel =
                |rng: &mut SplitMix64| (0..shape.channels).map(|_| uniform(rng)).collect();
            let prepared = PreparedConv {
                float: Array2::zeros((0, 0)),
                rounded: weights,
                bias: Vec::new(),
                fitted_bias: channel(&mut rng),
                rounded_bias: Vec::new(),
                gain: channel(&mut rng),
            };
            let constants = rng.one_in(2);
            let made = prepared.convolve(&conv, shape, &input, &|source| match source {
                Source::Constants => constants,
                _ => true,
            });
            kinds[match (conv.is_plain_depthwise(), conv.groups, conv.window.n_taps()) {
                (true, ..) => 0,
                (false, 1, 1) => 1,
                (false, 1, _) => 2,
                _ => 3,
            }] += 1;
            for ((y, x, c), &value) in made.indexed_iter() {
                let sum = sum(&conv, &prepared.rounded, &input, [y, x, c]);
                let gain = if constants { prepared.gain[c] } else { 1.0 };
                let expected = (sum + f64::from(prepared.fitted_bias[c])) * f64::from(gain);
                let error = (expected - f64::from(value)).abs();
                assert!(error < 1e-4, "seed {seed}: {value}, not {expected}");
            }
        }
        assert!(kinds.iter().all(|&n| n > 5), "of each kind some: {kinds:?}");
    }

    #[test]
    fn values_round_to_the_nearest_integer_and_ties_to_even() {
        let tensor = Tensor {
            name: String::new(),
            shape: Shape {
                channels: 4001,
                height: 1,
                width: 1,
            },
            format: Format {
                bits: 8,
                signed: true,
            },
            scale: Scale::nearest(0.25).expect("a power of two"),
        };
        let mut values = Array3::from_shape_fn((1, 1, 4001), |(.., i)| (i as f32 - 2000.0) / 32.0);
        let exact = values.mapv(|v| ((v / 0.25).round_ties_even().clamp(-128.0, 127.0)) * 0.25);
        round(&mut values, &tensor);
        assert_eq!(values, exact);
    }
}
