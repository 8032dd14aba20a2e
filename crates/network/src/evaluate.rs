//! The oracle: the formulas of the graph's documentation, slow and obvious.
//!
//! Invariant: every number is computed exactly as documented, one step after the other; nothing is
//! blocked, vectorised or reordered, so this is what every faster model is compared with.

use crate::{Conv, Error, Fault, Layer, Network, Op, Pool, Post, Reduction, Residual, Shape};
use arith::{AccumulatorFormat, Arithmetic, ChannelOverflow, Rounding, shift_right_rounding};
use ndarray::Array3;

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
    let requant = post.requant_of(channel);
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

fn check_input(network: &Network, input: &Array3<i32>) -> Result<(), Error> {
    let tensor = network.tensor(network.input);
    if input.dim() != tensor.shape.dim() {
        let (c, h, w) = input.dim();
        return Err(Error::InputShape {
            found: [c, h, w],
            expected: tensor.shape,
        });
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
            let mut output = Array3::zeros(shape.dim());
            let sources = parts.iter().flat_map(|id| tensors[id.0].outer_iter());
            for (mut channel, source) in output.outer_iter_mut().zip(sources) {
                channel.assign(&source);
            }
            (output, Vec::new())
        }
    }
}

fn convolve(
    conv: &Conv,
    shape: Shape,
    arithmetic: Arithmetic,
    tensors: &[Array3<i32>],
) -> (Array3<i32>, Vec<ChannelOverflow>) {
    let input = &tensors[conv.input.0];
    let mut overflow = vec![ChannelOverflow::default(); shape.channels];
    let output = Array3::from_shape_fn(shape.dim(), |(channel, y, x)| {
        let acc = accumulate(
            conv,
            input,
            [channel, y, x],
            arithmetic.accumulator,
            &mut overflow[channel],
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
    (output, overflow)
}

/// One output element's accumulator, from the bias through every step in order.
fn accumulate(
    conv: &Conv,
    input: &Array3<i32>,
    [channel, y, x]: [usize; 3],
    accumulator: AccumulatorFormat,
    overflow: &mut ChannelOverflow,
) -> i32 {
    let (_, height, width) = input.dim();
    let mut exact = conv.bias[channel].value();
    let mut acc = exact as i32;
    let mut seen = ChannelOverflow {
        min_partial_sum: exact,
        max_partial_sum: exact,
        ..Default::default()
    };
    let mut k = 0u32;
    for ky in 0..conv.window.kernel[0] {
        for kx in 0..conv.window.kernel[1] {
            let source_y = conv.window.source(0, y, ky, height);
            let source_x = conv.window.source(1, x, kx, width);
            for group_channel in 0..conv.n_group_channels() {
                let product = match (source_y, source_x) {
                    (Some(sy), Some(sx)) => {
                        i32::from(conv.weights[[channel, group_channel, ky, kx]])
                            * input[[conv.input_channel(channel, group_channel), sy, sx]]
                    }
                    _ => 0,
                };
                let sum = accumulator.add(acc, product);
                acc = sum.acc;
                if sum.overflowed {
                    seen.n_overflowed += 1;
                    seen.n_outputs_touched = 1;
                    seen.first_k = seen.first_k.or(Some(k));
                }
                exact += i64::from(product);
                seen.min_partial_sum = seen.min_partial_sum.min(exact);
                seen.max_partial_sum = seen.max_partial_sum.max(exact);
                k += 1;
            }
        }
    }
    overflow.merge(&seen);
    acc
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
        post_process(&pool.post, channel, v, residual, rounding)
    })
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
