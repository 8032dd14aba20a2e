//! The oracle: the formulas of the graph's documentation, slow and obvious.
//!
//! Invariant: every number is computed exactly as documented, one step after the other; nothing is
//! blocked, vectorised or reordered, so this is what every faster model is compared with.

use crate::accumulate::accumulate;
use crate::{Conv, Error, Fault, Layer, Network, Op, Part, Pool, Post, Reduction, Residual, Shape};
use arith::{
    AccumulatorFormat, Arithmetic, ChannelOverflow, Format, ReductionOrder, Requant, Rounding,
    shift_right_rounding,
};
use ndarray::{Array3, ArrayView3, Axis, s};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

/// Every value that one image makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// One per tensor id: `[channel, row, column]`.
    pub tensors: Vec<Array3<i32>>,
    /// One list per layer: one record per output channel of a convolution, empty otherwise.
    pub overflow: Vec<Vec<ChannelOverflow>>,
}

/// Computes the whole network on one image, `[channel, row, column]`.
///
/// # Errors
/// A network that [`Network::verify`] refuses, a bias that the accumulator cannot hold, an image of
/// another shape or with a value outside the input's format.
pub fn evaluate(
    network: &Network,
    arithmetic: Arithmetic,
    input: &Array3<i32>,
) -> Result<Evaluation, Error> {
    network.verify()?;
    check_bias(network, arithmetic.accumulator)?;
    check_input(network, input)?;
    let mut tensors = vec![Array3::default((0, 0, 0)); network.tensors.len()];
    let mut overflow = Vec::with_capacity(network.layers.len());
    tensors[network.input.0] = input.as_standard_layout().into_owned();
    for layer in &network.layers {
        let (output, record) = evaluate_layer(network, arithmetic, layer, &tensors);
        tensors[layer.output.0] = output;
        overflow.push(record);
    }
    Ok(Evaluation { tensors, overflow })
}

/// Whether the accumulators can hold every bias of a verified network.
///
/// # Errors
/// The first bias that does not fit, or an accumulator that is not 8 to 32 bits wide.
pub fn check_bias(network: &Network, accumulator: AccumulatorFormat) -> Result<(), Error> {
    let width_bits = accumulator.width_bits;
    if !(8..=32).contains(&width_bits) {
        return Err(Error::AccumulatorWidth { width_bits });
    }
    for (index, layer) in network.layers.iter().enumerate() {
        for (channel, bias) in layer
            .conv()
            .into_iter()
            .flat_map(|conv| &conv.bias)
            .enumerate()
        {
            let value = bias.value();
            if !accumulator.holds(value) {
                let fault = Fault::Bias {
                    channel,
                    value,
                    width_bits,
                };
                return Err(network.layer_error(index, fault));
            }
        }
    }
    Ok(())
}

/// What follows the reduction `v` of an output channel; see [`Post`] for the formula. `residual` is
/// the second operand's integer (0 without one).
pub fn post_process(post: &Post, channel: usize, v: i64, residual: i32, rounding: Rounding) -> i32 {
    apply(post, post.requant_of(channel), v, residual, rounding)
}

fn apply(post: &Post, requant: Requant, v: i64, residual: i32, rounding: Rounding) -> i32 {
    let mut shift = requant.shift;
    let mut p = v * i64::from(requant.mantissa);
    if let Some(second) = &post.residual {
        p += (i64::from(residual) * i64::from(second.requant.mantissa))
            << (shift - second.requant.shift);
    }
    if let Some(slope) = post.negative_slope
        && p < 0
    {
        p *= i64::from(slope.mantissa);
        shift += slope.shift;
    }
    let y = shift_right_rounding(p, shift, rounding);
    y.clamp(post.q_min.into(), post.q_max.into()) as i32
}

/// Whether an image, `[channel, row, column]`, is one for the network.
///
/// # Errors
/// Another shape, or the first value outside the input's format.
pub fn check_input(network: &Network, input: &Array3<i32>) -> Result<(), Error> {
    let tensor = network.tensor(network.input);
    if input.dim() != tensor.shape.dim() {
        let (c, h, w) = input.dim();
        return Err(Error::InputShape {
            found: [c, h, w],
            expected: tensor.shape,
        });
    }
    let (low, high) = (tensor.format.q_min(), tensor.format.q_max());
    let extremes = |(least, most): (i32, i32), &value: &i32| (least.min(value), most.max(value));
    let (least, most) = match input.as_slice() {
        Some(values) => values.iter().fold((0, 0), extremes),
        None => input.iter().fold((0, 0), extremes),
    };
    if low <= least && most <= high {
        return Ok(());
    }
    for ((c, y, x), &value) in input.indexed_iter() {
        tensor
            .format
            .check(value.into())
            .map_err(|source| Error::InputValue {
                at: [c, y, x],
                source,
            })?;
    }
    Ok(())
}

fn evaluate_layer(
    network: &Network,
    arithmetic: Arithmetic,
    layer: &Layer,
    tensors: &[Array3<i32>],
) -> (Array3<i32>, Vec<ChannelOverflow>) {
    let shape = network.output_of(layer).shape;
    match &layer.op {
        Op::Conv(conv) => convolve(conv, shape, arithmetic, tensors),
        Op::Pool(pool) => (
            reduce(pool, shape, arithmetic.rounding, tensors),
            Vec::new(),
        ),
        Op::Concat(parts) => {
            let format = network.output_of(layer).format;
            (
                join(parts, shape, format, arithmetic.rounding, tensors),
                Vec::new(),
            )
        }
    }
}

fn convolve(
    conv: &Conv,
    shape: Shape,
    arithmetic: Arithmetic,
    tensors: &[Array3<i32>],
) -> (Array3<i32>, Vec<ChannelOverflow>) {
    // Channels last: the order of the steps is then the order in memory.
    let input = tensors[conv.input.0].view().permuted_axes([1, 2, 0]);
    let input = input.as_standard_layout();
    let input = input.view();
    let weights = conv.weights.view().permuted_axes([0, 2, 3, 1]);
    let weights = weights.as_standard_layout();
    // Output channels share nothing.
    let channels: Vec<(Vec<i32>, ChannelOverflow)> = (0..shape.channels)
        .into_par_iter()
        .map(|channel| {
            let mut record = ChannelOverflow::default();
            let kernel = weights.index_axis(Axis(0), channel);
            let plane = (0..shape.height * shape.width).map(|i| {
                let (y, x) = (i / shape.width, i % shape.width);
                let acc = accumulate(
                    conv.bias[channel].value(),
                    products(conv, &kernel, &input, [channel, y, x]),
                    arithmetic.accumulator,
                    order_of(conv, arithmetic),
                    &mut record,
                );
                let residual = residual_at(conv.post.residual, tensors, [channel, y, x]);
                post_process(
                    &conv.post,
                    channel,
                    acc.into(),
                    residual,
                    arithmetic.rounding,
                )
            });
            (plane.collect(), record)
        })
        .collect();
    let (planes, overflow): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
    let output = Array3::from_shape_vec(shape.dim(), planes.concat());
    (output.expect("a plane for each channel"), overflow)
}

/// The products of one output element in the order of their steps: kernel row, kernel column,
/// channel of the group. `kernel` is `[row, column, channel]`, and so is `input`.
fn products<'a>(
    conv: &'a Conv,
    kernel: &ArrayView3<'a, i8>,
    input: &ArrayView3<'a, i32>,
    [channel, y, x]: [usize; 3],
) -> impl Iterator<Item = i32> + use<'a> {
    let (height, width, _) = input.dim();
    let (kernel, input) = (*kernel, *input);
    let first = conv.input_channel(channel, 0);
    let n_channels = conv.n_group_channels();
    kernel
        .into_shape_with_order((conv.window.n_taps(), n_channels))
        .expect("it is in standard layout")
        .into_outer_iter()
        .enumerate()
        .flat_map(move |(tap, weights)| {
            let (ky, kx) = (tap / conv.window.kernel[1], tap % conv.window.kernel[1]);
            let source_y = conv.window.source(0, y, ky, height);
            let source_x = conv.window.source(1, x, kx, width);
            let pixel = source_y.zip(source_x);
            let channels = first..first + n_channels;
            let values = pixel.map(|(sy, sx)| input.slice_move(s![sy, sx, channels]));
            (0..n_channels)
                .map(move |c| values.map_or(0, |values| i32::from(weights[c]) * values[c]))
        })
}

/// The order in which the machine sums this layer's products: the one place that knows.
pub fn order_of(conv: &Conv, arithmetic: Arithmetic) -> ReductionOrder {
    if conv.is_plain_depthwise() {
        arithmetic.depthwise_order
    } else {
        arithmetic.order
    }
}

fn reduce(pool: &Pool, shape: Shape, rounding: Rounding, tensors: &[Array3<i32>]) -> Array3<i32> {
    let input = &tensors[pool.input.0];
    let (channels, height, width) = input.dim();
    Array3::from_shape_fn(shape.dim(), |(channel, y, x)| {
        let source_channel = channel
            .checked_sub(pool.channel_offset)
            .filter(|&c| c < channels);
        let v = source_channel.map_or(0, |c| {
            let rows =
                (0..pool.window.kernel[0]).filter_map(|ky| pool.window.source(0, y, ky, height));
            let elements = rows.flat_map(|sy| {
                (0..pool.window.kernel[1])
                    .filter_map(|kx| pool.window.source(1, x, kx, width))
                    .map(move |sx| i64::from(input[[c, sy, sx]]))
            });
            match pool.reduction {
                Reduction::Max => elements.max().expect("verify refuses windows of padding"),
                Reduction::Sum => elements.sum(),
            }
        });
        let residual = residual_at(pool.post.residual, tensors, [channel, y, x]);
        let requant = pool.requant_at([y, x], [height, width]);
        apply(&pool.post, requant, v, residual, rounding)
    })
}

fn join(
    parts: &[Part],
    shape: Shape,
    format: Format,
    rounding: Rounding,
    tensors: &[Array3<i32>],
) -> Array3<i32> {
    let mut output = Array3::zeros(shape.dim());
    let mut first = 0;
    for part in parts {
        let source = &tensors[part.tensor.0];
        for c in 0..part.n_channels {
            for y in 0..shape.height {
                for x in 0..shape.width {
                    let row = part.offset[0] + y * part.stride[0];
                    let column = part.offset[1] + x * part.stride[1];
                    let v = i64::from(source[[part.channel + c, row, column]]);
                    let p = v * i64::from(part.requant.mantissa);
                    let rounded = shift_right_rounding(p, part.requant.shift, rounding);
                    output[[first + c, y, x]] =
                        rounded.clamp(format.q_min().into(), format.q_max().into()) as i32;
                }
            }
        }
        first += part.n_channels;
    }
    output
}

fn residual_at(
    residual: Option<Residual>,
    tensors: &[Array3<i32>],
    [channel, y, x]: [usize; 3],
) -> i32 {
    residual.map_or(0, |residual| {
        let tensor = &tensors[residual.tensor.0];
        channel
            .checked_sub(residual.channel_offset)
            .filter(|&c| c < tensor.dim().0)
            .map_or(0, |c| {
                tensor[[c, y * residual.stride[0], x * residual.stride[1]]]
            })
    })
}
