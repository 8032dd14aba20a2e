//! Convolutions: `QLinearConv` where it is exact, else `ConvInteger` and an explicit requantization.
//!
//! Invariant: no sum of two products of stored operands leaves 16 bits where one operand is stored
//! as uint8 and the other as int8. Runtimes multiply such pairs with x86's `vpmaddubsw`, which
//! saturates there; pairs of one signedness are exact everywhere.

use crate::{
    graph::{Attribute, Data, Graph},
    numbers::{Interval, Numbers, Term, choose},
    post::{Reduced, requantize, slice},
    write::{Form, Values, container},
};
use arith::Rounding;
use network::{Conv, Tensor, TensorId, Window};

/// Zero-point of weights that are stored as uint8.
const OFFSET: u8 = 128;

/// Adds a convolution's nodes; the name of the result, and the form that was chosen.
pub(crate) fn add(
    graph: &mut Graph,
    values: &Values<'_>,
    conv: &Conv,
    output: &Tensor,
) -> (String, Form) {
    let input = values.network.tensor(conv.input);
    let terms = terms(conv, values.bounds(conv.input));
    let weights = add_weights(graph, conv, input, values.bounds(conv.input));
    let (operand, mut attributes) = window_input(graph, values, conv.input, conv.window, output);
    attributes.push(Attribute::Int("group", conv.groups as i64));
    if is_one_node(values, conv, input, output, &terms) {
        let made = one_node(graph, conv, &operand, &weights, output, &attributes);
        return (made, Form::OneNode);
    }
    let zero = match container(input.format) {
        onnx::DataType::Int8 => graph.scalar(&Data::Int8(vec![0]), "zero_point"),
        _ => graph.scalar(&Data::Uint8(vec![0]), "zero_point"),
    };
    let inputs = [&operand, &weights.name, &zero, &weights.zero_point].map(String::as_str);
    let mut sum = graph.node("ConvInteger", &inputs, "products", &attributes);
    if conv.bias.iter().any(|bias| bias.value() != 0) {
        let bias = bias(conv);
        let bias = graph.constant(&[1, bias.len(), 1, 1], &Data::Int32(bias), "bias");
        sum = graph.node("Add", &[&sum, &bias], "accumulator", &[]);
    }
    let reduced = Reduced {
        name: sum,
        dims: [1, terms.len(), 1, 1],
        terms,
        zero_channels: [0, 0],
    };
    let (made, numbers) = requantize(graph, values, &conv.post, &reduced, output);
    (made, Form::Explicit(numbers))
}

/// `QLinearConv` computes `round(float32(acc) · float32(M · 2^-n))`, half to even, and saturates to
/// the container. Runtimes have it for operands and results of one signedness.
fn is_one_node(
    values: &Values<'_>,
    conv: &Conv,
    input: &Tensor,
    output: &Tensor,
    terms: &[Term],
) -> bool {
    let post = &conv.post;
    values.rounding == Rounding::HalfEven
        && post.residual.is_none()
        && post.negative_slope.is_none()
        && output.format.bits <= 8
        && output.format.signed == input.format.signed
        && choose(post, terms, None, values.rounding) == Numbers::Float32
}

fn one_node(
    graph: &mut Graph,
    conv: &Conv,
    operand: &str,
    weights: &Weights,
    output: &Tensor,
    attributes: &[Attribute<'_>],
) -> String {
    let post = &conv.post;
    let number = |value: i32| small_number(output, value);
    let is_narrow = (post.q_min, post.q_max)
        != if output.format.signed {
            (-128, 127)
        } else {
            (0, 255)
        };
    let one = graph.scalar(&Data::Float(vec![1.0]), "one");
    let zero = graph.scalar(&number(0), "zero_point");
    let factors: Vec<f32> = conv
        .post
        .requant
        .iter()
        .map(|r| r.factor() as f32)
        .collect();
    let factor = match factors.as_slice() {
        [_] => graph.scalar(&Data::Float(factors), "factor"),
        many => graph.constant(&[many.len()], &Data::Float(factors.clone()), "factor"),
    };
    let bias = bias(conv);
    let bias = graph.constant(&[bias.len()], &Data::Int32(bias), "bias");
    let inputs = [
        operand,
        &one,
        &zero,
        &weights.name,
        &factor,
        &weights.zero_point,
        &one,
        &zero,
        &bias,
    ];
    let made = graph.node("QLinearConv", &inputs, "convolved", attributes);
    if !is_narrow {
        return made;
    }
    let low = graph.scalar(&number(post.q_min), "q_min");
    let high = graph.scalar(&number(post.q_max), "q_max");
    graph.node("Clip", &[&made, &low, &high], "clamped", &[])
}

/// A number in the container of a tensor of at most 8 bits.
pub(crate) fn small_number(tensor: &Tensor, value: i32) -> Data {
    if tensor.format.signed {
        Data::Int8(vec![value as i8])
    } else {
        Data::Uint8(vec![value as u8])
    }
}

struct Weights {
    name: String,
    zero_point: String,
}

fn add_weights(graph: &mut Graph, conv: &Conv, input: &Tensor, operand: Interval) -> Weights {
    let largest = conv.weights.iter().map(|w| w.unsigned_abs()).max();
    let pair = 2 * operand.magnitude() * u64::from(largest.unwrap_or(0));
    let is_mixed = !input.format.signed;
    let (o, i, rows, columns) = conv.weights.dim();
    let dims = [o, i, rows, columns];
    let list = conv.weights.iter();
    let (weights, zero_point) = if is_mixed && pair > i16::MAX as u64 {
        let shifted = list.map(|&w| (w as u8).wrapping_add(OFFSET)).collect();
        (Data::Uint8(shifted), Data::Uint8(vec![OFFSET]))
    } else {
        (Data::Int8(list.copied().collect()), Data::Int8(vec![0]))
    };
    Weights {
        name: graph.constant(&dims, &weights, "weights"),
        zero_point: graph.scalar(&zero_point, "weight_zero_point"),
    }
}

/// The accumulators' initial values.
fn bias(conv: &Conv) -> Vec<i32> {
    let fits = "verify refuses a bias that 32 bits cannot hold";
    conv.bias
        .iter()
        .map(|bias| i32::try_from(bias.value()).expect(fits))
        .collect()
}

/// The multipliers, and what the accumulators can hold at the end, whatever the input (its format
/// and the clamp of the layer before are known). An accumulator that does not overflow holds 32
/// bits.
fn terms(conv: &Conv, operand: Interval) -> Vec<Term> {
    // A tap may also lie in the padding.
    let operand = operand.join(Interval::new(0, 0));
    let bounds = conv.weights.outer_iter().zip(&conv.bias);
    let bounds = bounds.map(|(weights, bias)| {
        let mut sum = Interval::new(bias.value(), bias.value());
        for &weight in weights {
            let ends = [operand.min, operand.max].map(|end| end * i64::from(weight));
            sum.min += ends[0].min(ends[1]);
            sum.max += ends[0].max(ends[1]);
        }
        let fitting = |end: i64| end.clamp(i32::MIN.into(), i32::MAX.into());
        Interval::new(fitting(sum.min), fitting(sum.max))
    });
    match conv.post.requant.as_slice() {
        &[requant] => {
            let v = bounds.reduce(Interval::join);
            let v = v.expect("verify refuses a convolution without channels");
            vec![Term { requant, v }]
        }
        each => {
            let pairs = each.iter().zip(bounds);
            pairs.map(|(&requant, v)| Term { requant, v }).collect()
        }
    }
}

/// The operand of a sliding window, cropped to what the window reads where ONNX would otherwise
/// find room for more outputs, and the window's attributes.
pub(crate) fn window_input(
    graph: &mut Graph,
    values: &Values<'_>,
    id: TensorId,
    window: Window,
    output: &Tensor,
) -> (String, Vec<Attribute<'static>>) {
    let input = values.network.tensor(id).shape.extent();
    let made = output.shape.extent();
    let behind = [0, 1].map(|axis| window.pad_after(axis, input[axis], made[axis]));
    let has_surplus = |axis: usize| {
        behind[axis] < 0 && window.output_extent(axis, input[axis], 0) != Some(made[axis])
    };
    let mut name = values.name(id).to_owned();
    if has_surplus(0) || has_surplus(1) {
        let ends =
            [0, 1].map(|axis| input[axis].saturating_add_signed(behind[axis].min(0) as isize));
        name = slice(graph, &name, [0, 0], ends, [1, 1], "cropped");
    }
    let pads = [
        window.pad[0] as i64,
        window.pad[1] as i64,
        behind[0].max(0),
        behind[1].max(0),
    ];
    let list = |pair: [usize; 2]| pair.map(|n| n as i64).to_vec();
    let attributes = vec![
        Attribute::Ints("kernel_shape", list(window.kernel)),
        Attribute::Ints("strides", list(window.stride)),
        Attribute::Ints("dilations", list(window.dilation)),
        Attribute::Ints("pads", pads.to_vec()),
    ];
    (name, attributes)
}
