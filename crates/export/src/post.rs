//! Requantization as ONNX nodes: multiply, add, slope, round, clamp.
//!
//! Invariant: the nodes compute `network::post_process` exactly in the number type that
//! [`choose`](crate::numbers::choose) gives for the layer's bounds.

use crate::{
    graph::{Data, Graph},
    numbers::{Interval, Numbers, Term, choose},
    write::{Values, container},
};
use arith::{Requant, Rounding};
use network::{Post, Residual, Tensor};
use onnx::DataType;

/// What is requantized: a value, its multipliers, and what is known of it.
pub(crate) struct Reduced {
    /// Name in the graph; an integer type or float32.
    pub(crate) name: String,
    /// One multiplier for all elements, one for each channel, or one for each pixel.
    pub(crate) terms: Vec<Term>,
    /// Extents of the list of multipliers, as they are broadcast over the value.
    pub(crate) dims: [usize; 4],
    /// Channels of zeros before and behind those that the value has.
    pub(crate) zero_channels: [usize; 2],
}

impl Reduced {
    /// A value with one multiplier.
    pub(crate) fn uniform(name: String, requant: Requant, v: Interval) -> Self {
        Self {
            name,
            terms: vec![Term { requant, v }],
            dims: [1; 4],
            zero_channels: [0, 0],
        }
    }
}

/// Adds the nodes; the name of the result in the output's container, and the number type. Of `post`
/// only the multipliers are not used.
pub(crate) fn requantize(
    graph: &mut Graph,
    values: &Values<'_>,
    post: &Post,
    reduced: &Reduced,
    output: &Tensor,
) -> (String, Numbers) {
    let residual = post.residual.map(|residual| {
        let mut bounds = values.bounds(residual.tensor);
        if residual_zero_channels(values, &residual, output) != [0, 0] {
            bounds = bounds.join(Interval::new(0, 0));
        }
        bounds
    });
    let numbers = choose(post, &reduced.terms, residual, values.rounding);
    let mut body = Body {
        graph,
        values,
        post,
        output,
        numbers,
        reduced,
    };
    let v = body
        .graph
        .cast(&reduced.name, numbers.data_type(), "number");
    let v = body.pad_channels(v, reduced.zero_channels);
    let rounded = match numbers {
        Numbers::Float32 | Numbers::Float64 => body.in_floats(&v),
        Numbers::Int64 => body.in_integers(&v),
    };
    let low = body.number(post.q_min.into(), "q_min");
    let high = body.number(post.q_max.into(), "q_max");
    let clamped = graph.node("Clip", &[&rounded, &low, &high], "clamped", &[]);
    let made = graph.cast(&clamped, container(output.format), "integer");
    (made, numbers)
}

/// Channels of the output before and behind those that the residual reaches.
fn residual_zero_channels(values: &Values<'_>, residual: &Residual, output: &Tensor) -> [usize; 2] {
    let own = values.network.tensor(residual.tensor).shape.channels;
    let before = residual.channel_offset;
    [before, output.shape.channels - before - own]
}

struct Body<'g, 'n> {
    graph: &'g mut Graph,
    values: &'n Values<'n>,
    post: &'n Post,
    output: &'n Tensor,
    numbers: Numbers,
    reduced: &'n Reduced,
}

impl Body<'_, '_> {
    /// A number of the layer's type.
    fn number(&mut self, value: f64, what: &str) -> String {
        let data = match self.numbers {
            Numbers::Float32 => Data::Float(vec![value as f32]),
            Numbers::Float64 => Data::Double(vec![value]),
            Numbers::Int64 => Data::Int64(vec![value as i64]),
        };
        self.graph.scalar(&data, what)
    }

    /// A number for each multiplier, as floats.
    fn factors(&mut self) -> String {
        let factors = self.reduced.terms.iter().map(|term| term.requant.factor());
        let data = match self.numbers {
            Numbers::Float32 => Data::Float(factors.map(|f| f as f32).collect()),
            Numbers::Float64 => Data::Double(factors.collect()),
            Numbers::Int64 => unreachable!("integers have no factors but mantissas"),
        };
        self.graph.constant(&self.reduced.dims, &data, "factor")
    }

    /// A number for each multiplier, as integers.
    fn integers(&mut self, f: impl Fn(Requant) -> i64, what: &str) -> String {
        let list = self.reduced.terms.iter().map(|term| f(term.requant));
        let data = Data::Int64(list.collect());
        self.graph.constant(&self.reduced.dims, &data, what)
    }

    fn pad_channels(&mut self, value: String, [before, behind]: [usize; 2]) -> String {
        if before + behind == 0 {
            return value;
        }
        let pads = [0, before, 0, 0, 0, behind, 0, 0].map(|n| n as i64);
        let pads = self.graph.integers(&pads, "zero_channels");
        let zero = self.number(0., "zero");
        self.graph
            .node("Pad", &[&value, &pads, &zero], "widened", &[])
    }

    /// The second operand, sub-sampled, widened and in the layer's number type.
    fn residual(&mut self, residual: &Residual) -> String {
        let source = self.values.network.tensor(residual.tensor);
        let mut name = self.values.name(residual.tensor).to_owned();
        let wanted = self.output.shape.extent();
        if source.shape.extent() != wanted {
            let stride = residual.stride;
            let ends = [0, 1].map(|axis| (wanted[axis] - 1) * stride[axis] + 1);
            name = slice(self.graph, &name, [0, 0], ends, stride, "sampled");
        }
        let name = self.graph.cast(&name, self.numbers.data_type(), "residual");
        let zeros = residual_zero_channels(self.values, residual, self.output);
        self.pad_channels(name, zeros)
    }

    fn in_floats(&mut self, v: &str) -> String {
        let post = self.post;
        let factor = self.factors();
        let mut x = self.graph.node("Mul", &[v, &factor], "scaled", &[]);
        if let Some(residual) = &post.residual {
            let r = self.residual(residual);
            let factor = self.number(residual.requant.factor(), "residual_factor");
            let scaled = self
                .graph
                .node("Mul", &[&r, &factor], "residual_scaled", &[]);
            x = self.graph.node("Add", &[&x, &scaled], "sum", &[]);
        }
        if let Some(slope) = post.negative_slope {
            let zero = self.number(0., "zero");
            let is_negative = self.graph.node("Less", &[&x, &zero], "is_negative", &[]);
            let factor = self.number(slope.factor(), "slope");
            let sloped = self.graph.node("Mul", &[&x, &factor], "sloped", &[]);
            x = self
                .graph
                .node("Where", &[&is_negative, &sloped, &x], "leaky", &[]);
        }
        match self.values.rounding {
            Rounding::HalfEven => self.graph.node("Round", &[&x], "rounded", &[]),
            Rounding::Floor => self.graph.node("Floor", &[&x], "rounded", &[]),
            Rounding::HalfUp => {
                let half = self.number(0.5, "half");
                let raised = self.graph.node("Add", &[&x, &half], "raised", &[]);
                self.graph.node("Floor", &[&raised], "rounded", &[])
            }
            Rounding::HalfAwayFromZero => {
                let half = self.number(0.5, "half");
                let sign = self.graph.node("Sign", &[&x], "sign", &[]);
                let magnitude = self.graph.node("Abs", &[&x], "magnitude", &[]);
                let raised = self.graph.node("Add", &[&magnitude, &half], "raised", &[]);
                let floor = self.graph.node("Floor", &[&raised], "floor", &[]);
                self.graph.node("Mul", &[&floor, &sign], "rounded", &[])
            }
        }
    }

    /// `p` and its divisor `2^n` as 64-bit integers, then a rounded division.
    fn in_integers(&mut self, v: &str) -> String {
        let post = self.post;
        let mantissa = self.integers(|r| i64::from(r.mantissa), "mantissa");
        let mut p = self.graph.node("Mul", &[v, &mantissa], "product", &[]);
        if let Some(residual) = &post.residual {
            let r = self.residual(residual);
            let Requant { mantissa, shift } = residual.requant;
            let aligned = |first: Requant| i64::from(mantissa) << (first.shift - shift);
            let aligned = self.integers(aligned, "residual_mantissa");
            let product = self
                .graph
                .node("Mul", &[&r, &aligned], "residual_product", &[]);
            p = self.graph.node("Add", &[&p, &product], "sum", &[]);
        }
        let mut divisor = self.integers(|r| 1i64 << r.shift, "divisor");
        if let Some(slope) = post.negative_slope {
            let zero = self.number(0., "zero");
            let is_negative = self.graph.node("Less", &[&p, &zero], "is_negative", &[]);
            let factor = self.number(slope.mantissa.into(), "slope");
            let sloped = self.graph.node("Mul", &[&p, &factor], "sloped", &[]);
            p = self
                .graph
                .node("Where", &[&is_negative, &sloped, &p], "leaky", &[]);
            let steep = |r: Requant| 1i64 << (r.shift + slope.shift);
            let steep = self.integers(steep, "negative_divisor");
            divisor = self
                .graph
                .node("Where", &[&is_negative, &steep, &divisor], "divisor", &[]);
        }
        self.divide(&p, &divisor)
    }

    /// `p / divisor`, rounded.
    fn divide(&mut self, p: &str, divisor: &str) -> String {
        let half = |body: &mut Self| {
            let two = body.number(2., "two");
            body.graph.node("Div", &[divisor, &two], "half", &[])
        };
        match self.values.rounding {
            Rounding::Floor => self.floor_divide(p, divisor).0,
            Rounding::HalfUp => {
                let half = half(self);
                let raised = self.graph.node("Add", &[p, &half], "raised", &[]);
                self.floor_divide(&raised, divisor).0
            }
            Rounding::HalfAwayFromZero => {
                let half = half(self);
                let sign = self.graph.node("Sign", &[p], "sign", &[]);
                let magnitude = self.graph.node("Abs", &[p], "magnitude", &[]);
                let raised = self.graph.node("Add", &[&magnitude, &half], "raised", &[]);
                let (floor, _) = self.floor_divide(&raised, divisor);
                self.graph.node("Mul", &[&floor, &sign], "rounded", &[])
            }
            Rounding::HalfEven => {
                let (floor, rest) = self.floor_divide(p, divisor);
                // Twice the rest, because one half of a divisor of 1 is no integer.
                let twice = self.graph.node("Add", &[&rest, &rest], "twice", &[]);
                let is_above = self
                    .graph
                    .node("Greater", &[&twice, divisor], "is_above", &[]);
                let is_tie = self.graph.node("Equal", &[&twice, divisor], "is_tie", &[]);
                let two = self.number(2., "two");
                let one = self.number(1., "one");
                let parity = self.graph.node("Mod", &[&floor, &two], "parity", &[]);
                let is_odd = self.graph.node("Equal", &[&parity, &one], "is_odd", &[]);
                let to_even = self.graph.node("And", &[&is_tie, &is_odd], "to_even", &[]);
                let is_up = self.graph.node("Or", &[&is_above, &to_even], "is_up", &[]);
                let up = self.graph.cast(&is_up, DataType::Int64, "up");
                self.graph.node("Add", &[&floor, &up], "rounded", &[])
            }
        }
    }

    /// Quotient towards minus infinity, and what remains (ONNX's own division goes towards zero).
    fn floor_divide(&mut self, p: &str, divisor: &str) -> (String, String) {
        let rest = self.graph.node("Mod", &[p, divisor], "rest", &[]);
        let multiple = self.graph.node("Sub", &[p, &rest], "multiple", &[]);
        let floor = self.graph.node("Div", &[&multiple, divisor], "floor", &[]);
        (floor, rest)
    }
}

/// Every `steps`-th element from `starts` to before `ends`, of the last axes.
pub(crate) fn slice<const N: usize>(
    graph: &mut Graph,
    input: &str,
    starts: [usize; N],
    ends: [usize; N],
    steps: [usize; N],
    step: &str,
) -> String {
    let mut list = |list: [usize; N], what: &str| {
        let list = list.map(|n| n as i64);
        graph.integers(&list, what)
    };
    let starts = list(starts, "starts");
    let ends = list(ends, "ends");
    let axes = list(std::array::from_fn(|axis| 4 - N + axis), "axes");
    let steps = list(steps, "steps");
    graph.node("Slice", &[input, &starts, &ends, &axes, &steps], step, &[])
}
