//! Joined views of tensors.
//!
//! Invariant: a view whose multiplier is 1 is copied, every other one is requantized by itself.

use crate::{
    graph::{Attribute, Graph},
    numbers::{Interval, Numbers},
    pool::{clamp, is_one},
    post::{Reduced, requantize, slice},
    write::{Form, Values, container},
};
use network::{Part, Post, Tensor};

/// Adds a concatenation's nodes; the name of the result, and the form that was chosen.
pub(crate) fn add(
    graph: &mut Graph,
    values: &Values<'_>,
    parts: &[Part],
    output: &Tensor,
) -> (String, Form) {
    let mut numbers = None;
    let mut names = Vec::with_capacity(parts.len());
    for part in parts {
        let (name, of_part) = add_part(graph, values, part, output);
        names.push(name);
        numbers = numbers.max(of_part);
    }
    let form = numbers.map_or(Form::Copied, Form::Explicit);
    if let [only] = names.as_slice() {
        return (only.clone(), form);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let axis = Attribute::Int("axis", 1);
    (graph.node("Concat", &names, "joined", &[axis]), form)
}

/// The name of a part, and the number type of its requantization.
fn add_part(
    graph: &mut Graph,
    values: &Values<'_>,
    part: &Part,
    output: &Tensor,
) -> (String, Option<Numbers>) {
    let source = values.network.tensor(part.tensor);
    let view = view(graph, values, part, output);
    let bounds = values.bounds(part.tensor);
    let (q_min, q_max) = (output.format.q_min(), output.format.q_max());
    let range = Interval::new(q_min.into(), q_max.into());
    let is_inside = range.join(bounds) == range;
    let is_copied = is_one(part.requant)
        && container(source.format) == container(output.format)
        && (is_inside || output.format.bits <= 8);
    if is_copied {
        let made = clamp(graph, view, bounds, [q_min, q_max], output);
        return (made, None);
    }
    let post = Post {
        requant: vec![part.requant],
        residual: None,
        negative_slope: None,
        q_min,
        q_max,
    };
    let reduced = Reduced::uniform(view, part.requant, bounds);
    let (made, numbers) = requantize(graph, values, &post, &reduced, output);
    (made, Some(numbers))
}

/// The channels, rows and columns of a part; the tensor itself where that is all of it.
fn view(graph: &mut Graph, values: &Values<'_>, part: &Part, output: &Tensor) -> String {
    let name = values.name(part.tensor);
    let shape = values.network.tensor(part.tensor).shape;
    let [height, width] = output.shape.extent();
    if [shape.channels, shape.height, shape.width] == [part.n_channels, height, width] {
        return name.to_owned();
    }
    let starts = [part.channel, part.offset[0], part.offset[1]];
    let ends = [
        part.channel + part.n_channels,
        part.offset[0] + (height - 1) * part.stride[0] + 1,
        part.offset[1] + (width - 1) * part.stride[1] + 1,
    ];
    let steps = [1, part.stride[0], part.stride[1]];
    slice(graph, name, starts, ends, steps, "view")
}
