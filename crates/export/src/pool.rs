//! Pooling, element-wise addition, sub-sampling and re-scaling.
//!
//! Invariant: a window's maximum or sum is exact: maxima are taken in a type that holds the tensor,
//! sums are 32-bit integers.

use crate::{
    conv::{small_number, window_input},
    graph::{Attribute, Data, Graph},
    numbers::{Interval, Term},
    post::{Reduced, requantize, slice},
    write::{Form, Values, container},
};
use arith::Requant;
use network::{Pool, Reduction, Tensor, Window};
use onnx::DataType;

/// Adds a pool's nodes; the name of the result, and the form that was chosen.
pub(crate) fn add(
    graph: &mut Graph,
    values: &Values<'_>,
    pool: &Pool,
    output: &Tensor,
) -> (String, Form) {
    let input = values.network.tensor(pool.input);
    let bounds = window_bounds(pool, values.bounds(pool.input));
    let reduced = reduce(graph, values, pool, output);
    if is_copied(pool, input, output) {
        let clamps = [pool.post.q_min, pool.post.q_max];
        let made = clamp(graph, reduced, bounds, clamps, output);
        return (made, Form::Copied);
    }
    let (dims, requants) = multipliers(pool, input, output);
    let behind = output.shape.channels - pool.channel_offset - input.shape.channels;
    let zero_channels = [pool.channel_offset, behind];
    let term = |requant| Term { requant, v: bounds };
    let reduced = Reduced {
        name: reduced,
        terms: requants.into_iter().map(term).collect(),
        dims,
        zero_channels,
    };
    let (made, numbers) = requantize(graph, values, &pool.post, &reduced, output);
    (made, Form::Explicit(numbers))
}

/// One multiplier, or one for each pixel where an average counts fewer taps at the edges.
fn multipliers(pool: &Pool, input: &Tensor, output: &Tensor) -> ([usize; 4], Vec<Requant>) {
    if pool.margin.is_none() {
        return ([1; 4], vec![pool.post.requant_of(0)]);
    }
    let [height, width] = output.shape.extent();
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| [y, x]));
    let of = |pixel| pool.requant_at(pixel, input.shape.extent());
    ([1, 1, height, width], pixels.map(of).collect())
}

/// What a window can become.
fn window_bounds(pool: &Pool, operand: Interval) -> Interval {
    match pool.reduction {
        Reduction::Max => operand,
        Reduction::Sum => {
            let n = pool.window.n_taps() as i64;
            let padded = operand.join(Interval::new(0, 0));
            Interval::new(n * padded.min, n * padded.max)
        }
    }
}

/// Whether nothing happens to the reduced value but a clamp: a factor of 1, nothing added, and the
/// same container before and after.
fn is_copied(pool: &Pool, input: &Tensor, output: &Tensor) -> bool {
    let post = &pool.post;
    let stays = pool.window.n_taps() == 1 || pool.reduction == Reduction::Max;
    is_one(post.requant[0])
        && pool.margin.is_none()
        && post.residual.is_none()
        && post.negative_slope.is_none()
        && stays
        && input.shape.channels == output.shape.channels
        && container(input.format) == container(output.format)
        && output.format.bits <= 8
}

/// Whether a multiplier changes nothing.
pub(crate) fn is_one(requant: Requant) -> bool {
    u64::from(requant.mantissa) == 1 << requant.shift
}

/// Clamps a value inside `bounds` in the output's container of at most 8 bits.
pub(crate) fn clamp(
    graph: &mut Graph,
    value: String,
    bounds: Interval,
    [q_min, q_max]: [i32; 2],
    output: &Tensor,
) -> String {
    if i64::from(q_min) <= bounds.min && bounds.max <= i64::from(q_max) {
        return value;
    }
    let low = graph.scalar(&small_number(output, q_min), "q_min");
    let high = graph.scalar(&small_number(output, q_max), "q_max");
    graph.node("Clip", &[&value, &low, &high], "clamped", &[])
}

/// The window's maximum or sum; the input itself where the window is one element.
fn reduce(graph: &mut Graph, values: &Values<'_>, pool: &Pool, output: &Tensor) -> String {
    let input = values.network.tensor(pool.input);
    let window = pool.window;
    let (from, to) = (input.shape.extent(), output.shape.extent());
    let reads_inside = [0, 1]
        .iter()
        .all(|&axis| window.pad[axis] == 0 && window.pad_after(axis, from[axis], to[axis]) <= 0);
    if window.kernel == [1, 1] && reads_inside {
        let name = values.name(pool.input);
        if from == to {
            return name.to_owned();
        }
        let ends = [0, 1].map(|axis| (to[axis] - 1) * window.stride[axis] + 1);
        return slice(graph, name, [0, 0], ends, window.stride, "sampled");
    }
    match pool.reduction {
        Reduction::Max => maximum(graph, values, pool, output),
        Reduction::Sum if window.kernel == from && to == [1, 1] && reads_inside => {
            let wide = graph.cast(values.name(pool.input), DataType::Int32, "wide");
            let axes = graph.integers(&[2, 3], "axes");
            graph.node("ReduceSum", &[&wide, &axes], "window_sum", &[])
        }
        Reduction::Sum => sum(graph, values, pool, output),
    }
}

fn maximum(graph: &mut Graph, values: &Values<'_>, pool: &Pool, output: &Tensor) -> String {
    let input = values.network.tensor(pool.input);
    let (mut operand, mut attributes) =
        window_input(graph, values, pool.input, pool.window, output);
    let is_wide = input.format.bits > 8;
    if is_wide {
        // ONNX has no 16-bit MaxPool; float32 holds 16 bits.
        operand = graph.cast(&operand, DataType::Float, "wide");
    }
    let Some(Attribute::Ints(_, pads)) = attributes.last() else {
        unreachable!("a window has pads");
    };
    let kernel = pool.window.kernel.map(|extent| extent as i64);
    let is_deep = [0, 1, 2, 3]
        .iter()
        .any(|&side| pads[side] >= kernel[side % 2]);
    if is_deep {
        // Runtimes refuse padding as deep as the kernel, which dilated windows may have. Every
        // window has an element of the input, so the smallest integer never wins.
        let list = [0, 0, pads[0], pads[1], 0, 0, pads[2], pads[3]];
        let pads = graph.integers(&list, "pads");
        let smallest = input.format.q_min();
        let smallest = if is_wide {
            Data::Float(vec![smallest as f32])
        } else if input.format.signed {
            Data::Int8(vec![smallest as i8])
        } else {
            Data::Uint8(vec![0])
        };
        let smallest = graph.scalar(&smallest, "smallest");
        operand = graph.node("Pad", &[&operand, &pads, &smallest], "padded", &[]);
        attributes.pop();
    }
    graph.node("MaxPool", &[&operand], "window_max", &attributes)
}

/// A depthwise convolution with ones.
fn sum(graph: &mut Graph, values: &Values<'_>, pool: &Pool, output: &Tensor) -> String {
    let input = values.network.tensor(pool.input);
    let channels = input.shape.channels;
    let (operand, mut attributes) = window_input(graph, values, pool.input, pool.window, output);
    attributes.push(Attribute::Int("group", channels as i64));
    let convolve = |graph: &mut Graph, operand: &str| {
        let ones = ones(graph, channels, pool.window);
        graph.node("ConvInteger", &[operand, &ones], "window_sum", &attributes)
    };
    if input.format.bits <= 8 {
        return convolve(graph, &operand);
    }
    // ConvInteger takes 8 bits: high and low half are summed apart.
    let wide = graph.cast(&operand, DataType::Int32, "wide");
    let base = graph.scalar(&Data::Int32(vec![256]), "base");
    let low = graph.node("Mod", &[&wide, &base], "low", &[]);
    let rest = graph.node("Sub", &[&wide, &low], "rest", &[]);
    let high = graph.node("Div", &[&rest, &base], "high", &[]);
    let signed = input.format.signed;
    let high_type = if signed {
        DataType::Int8
    } else {
        DataType::Uint8
    };
    let high = graph.cast(&high, high_type, "high_half");
    let low = graph.cast(&low, DataType::Uint8, "low_half");
    let high = convolve(graph, &high);
    let low = convolve(graph, &low);
    let high = graph.node("Mul", &[&high, &base], "high_sum", &[]);
    graph.node("Add", &[&high, &low], "window_sum", &[])
}

fn ones(graph: &mut Graph, channels: usize, window: Window) -> String {
    let [rows, columns] = window.kernel;
    let list = vec![1; channels * rows * columns];
    graph.constant(&[channels, 1, rows, columns], &Data::Int8(list), "ones")
}
