//! Folding: batch normalization and biases into convolutions, activation functions and
//! additions into the layer before them, shortcuts into views.
//!
//! Invariant: the folded network computes the same real function as the graph. Factors are
//! computed in float32 in the exporters' order (`γ / sqrt(σ² + ε)`, then `w · factor`, then
//! `(b - μ) · factor + β`), so a model that an exporter has folded already gives the same bits.

use crate::float::{
    Activation, FloatConv, FloatLayer, FloatNetwork, FloatOp, FloatPool, FloatPost, FloatTensor,
    View,
};
use crate::raw::{RawGraph, RawOp};
use ndarray::{Array4, Axis};
use network::{Reduction, Window};
use std::collections::BTreeMap;

const POINT: Window = Window {
    kernel: [1, 1],
    stride: [1, 1],
    dilation: [1, 1],
    pad: [0, 0],
};

/// Folds a graph. Nodes that no output needs disappear.
pub(crate) fn fold(graph: RawGraph) -> FloatNetwork {
    let n_uses = count_uses(&graph);
    let mut folder = Folder {
        tensors: vec![graph.values[0].clone()],
        layers: Vec::new(),
        maker: BTreeMap::new(),
        views: vec![None; graph.values.len()],
        n_uses,
        shapes_only: graph.shapes_only,
        values: graph.values,
    };
    folder.views[0] = Some(whole(0));
    for node in graph.nodes {
        if folder.n_uses[node.output] > 0 {
            folder.node(&node.name, node.output, node.op);
        }
    }
    let outputs = graph
        .outputs
        .iter()
        .map(|&value| folder.tensor(value))
        .collect();
    FloatNetwork {
        name: graph.name,
        tensors: folder.tensors,
        outputs,
        layers: folder.layers,
        shapes_only: folder.shapes_only,
    }
    .in_order()
}

const fn whole(tensor: usize) -> View {
    View {
        tensor,
        stride: [1, 1],
        channel_offset: 0,
    }
}

/// How often live nodes and the host read each value.
fn count_uses(graph: &RawGraph) -> Vec<usize> {
    let mut n_uses = vec![0; graph.values.len()];
    graph.outputs.iter().for_each(|&value| n_uses[value] += 1);
    for node in graph.nodes.iter().rev() {
        if n_uses[node.output] > 0 {
            node.op
                .inputs()
                .into_iter()
                .for_each(|value| n_uses[value] += 1);
        }
    }
    n_uses
}

struct Folder {
    values: Vec<FloatTensor>,
    n_uses: Vec<usize>,
    shapes_only: bool,
    /// Where each value is found.
    views: Vec<Option<View>>,
    tensors: Vec<FloatTensor>,
    layers: Vec<FloatLayer>,
    /// Layer index of each tensor except the input.
    maker: BTreeMap<usize, usize>,
}

impl Folder {
    fn view(&self, value: usize) -> View {
        self.views[value].expect("nodes stand in order and readers of a value are live")
    }

    /// The value as a tensor of its own: a view is sampled by a layer.
    fn tensor(&mut self, value: usize) -> usize {
        let view = self.view(value);
        if self.tensors[view.tensor].shape == self.values[value].shape && view == whole(view.tensor)
        {
            return view.tensor;
        }
        let name = self.values[value].name.clone();
        let window = Window {
            stride: view.stride,
            ..POINT
        };
        let pool = FloatPool {
            input: view.tensor,
            channel_offset: view.channel_offset,
            window,
            reduction: Reduction::Sum,
            divisor: 1,
            post: FloatPost::NONE,
        };
        self.push(&name, value, FloatOp::Pool(pool));
        self.view(value).tensor
    }

    fn push(&mut self, name: &str, value: usize, op: FloatOp) {
        let output = self.tensors.len();
        self.tensors.push(self.values[value].clone());
        self.maker.insert(output, self.layers.len());
        self.layers.push(FloatLayer {
            name: name.into(),
            output,
            op,
        });
        self.views[value] = Some(whole(output));
    }

    /// The layer that makes `value` for one reader only, which may therefore change it.
    fn owned(&self, value: usize) -> Option<usize> {
        let view = self.view(value);
        let same = self.tensors[view.tensor].name == self.values[value].name;
        (self.n_uses[value] == 1 && same && view == whole(view.tensor))
            .then(|| self.maker.get(&view.tensor).copied())
            .flatten()
    }

    /// `layer` now makes `value`.
    fn rename(&mut self, layer: usize, value: usize) {
        let output = self.layers[layer].output;
        self.tensors[output] = self.values[value].clone();
        self.views[value] = Some(whole(output));
    }

    fn node(&mut self, name: &str, output: usize, op: RawOp) {
        match op {
            RawOp::Conv {
                input,
                window,
                groups,
                weights,
                bias,
            } => {
                let input = self.tensor(input);
                let post = FloatPost::NONE;
                let conv = FloatConv {
                    input,
                    window,
                    groups,
                    weights,
                    bias,
                    post,
                };
                self.push(name, output, FloatOp::Conv(conv));
            }
            RawOp::Affine {
                input,
                scale,
                mean,
                shift,
            } => {
                self.affine(name, output, input, &scale, &mean, &shift);
            }
            RawOp::Add(a, b) => self.add(name, output, a, b),
            RawOp::Activation(input, activation) => {
                self.activation(name, output, input, activation);
            }
            RawOp::Pool {
                input,
                window,
                reduction,
                divisor,
            } => {
                let input = self.tensor(input);
                let post = FloatPost::NONE;
                let pool = FloatPool {
                    input,
                    channel_offset: 0,
                    window,
                    reduction,
                    divisor,
                    post,
                };
                self.push(name, output, FloatOp::Pool(pool));
            }
            RawOp::Concat(inputs) => {
                let inputs = inputs.into_iter().map(|value| self.tensor(value)).collect();
                self.push(name, output, FloatOp::Concat(inputs));
            }
            RawOp::Sample { input, stride } => {
                let view = self.view(input);
                let stride = [view.stride[0] * stride[0], view.stride[1] * stride[1]];
                self.views[output] = Some(View { stride, ..view });
            }
            RawOp::PadChannels { input, before } => {
                let view = self.view(input);
                let channel_offset = view.channel_offset + before;
                self.views[output] = Some(View {
                    channel_offset,
                    ..view
                });
            }
        }
    }

    fn affine(
        &mut self,
        name: &str,
        output: usize,
        input: usize,
        scale: &[f32],
        mean: &[f32],
        shift: &[f32],
    ) {
        if let Some(layer) = self.owned(input)
            && let FloatOp::Conv(conv) = &mut self.layers[layer].op
            && conv.post == FloatPost::NONE
        {
            if self.shapes_only {
                self.rename(layer, output);
                return;
            }
            for (c, mut kernel) in conv.weights.axis_iter_mut(Axis(0)).enumerate() {
                kernel.iter_mut().for_each(|w| *w *= scale[c]);
                conv.bias[c] = (conv.bias[c] - mean[c]) * scale[c] + shift[c];
            }
            self.rename(layer, output);
            return;
        }
        // Nothing to fold into: a depthwise 1 × 1 convolution computes the same.
        let input = self.tensor(input);
        let conv = FloatConv {
            input,
            window: POINT,
            groups: scale.len(),
            weights: Array4::from_shape_fn((scale.len(), 1, 1, 1), |(c, ..)| scale[c]),
            bias: (0..scale.len())
                .map(|c| (0.0 - mean[c]) * scale[c] + shift[c])
                .collect(),
            post: FloatPost::NONE,
        };
        self.push(name, output, FloatOp::Conv(conv));
    }

    fn activation(&mut self, name: &str, output: usize, input: usize, wanted: Activation) {
        if let Some(layer) = self.owned(input) {
            let post = match &mut self.layers[layer].op {
                FloatOp::Conv(conv) => Some(&mut conv.post),
                FloatOp::Pool(pool) => Some(&mut pool.post),
                FloatOp::Concat(_) => None,
            };
            if let Some(post) = post
                && let Some(both) = compose(post.activation, wanted)
            {
                post.activation = both;
                self.rename(layer, output);
                return;
            }
        }
        let view = self.view(input);
        let pool = FloatPool {
            input: view.tensor,
            channel_offset: view.channel_offset,
            window: Window {
                stride: view.stride,
                ..POINT
            },
            reduction: Reduction::Sum,
            divisor: 1,
            post: FloatPost {
                residual: None,
                activation: wanted,
            },
        };
        self.push(name, output, FloatOp::Pool(pool));
    }

    /// An addition joins the later convolution that nobody else reads; without one it is a layer.
    fn add(&mut self, name: &str, output: usize, a: usize, b: usize) {
        let candidate = |this: &Self, value: usize| {
            this.owned(value)
                .filter(|&layer| match &this.layers[layer].op {
                    FloatOp::Conv(conv) => conv.post == FloatPost::NONE,
                    FloatOp::Pool(_) | FloatOp::Concat(_) => false,
                })
        };
        let (of_a, of_b) = (candidate(self, a), candidate(self, b));
        let (layer, other) = if of_a > of_b { (of_a, b) } else { (of_b, a) };
        let residual = self.view(other);
        if let Some(layer) = layer {
            if let FloatOp::Conv(conv) = &mut self.layers[layer].op {
                conv.post.residual = Some(residual);
            }
            self.rename(layer, output);
            return;
        }
        let first = self.view(a);
        let pool = FloatPool {
            input: first.tensor,
            channel_offset: first.channel_offset,
            window: Window {
                stride: first.stride,
                ..POINT
            },
            reduction: Reduction::Sum,
            divisor: 1,
            post: FloatPost {
                residual: Some(self.view(b)),
                activation: Activation::None,
            },
        };
        self.push(name, output, FloatOp::Pool(pool));
    }
}

impl FloatNetwork {
    /// A fused addition may wait for a tensor that is made after its convolution stood: moves
    /// each layer behind its inputs, keeping the order otherwise.
    fn in_order(mut self) -> Self {
        let mut ready = vec![false; self.tensors.len()];
        ready[0] = true;
        let mut waiting: Vec<FloatLayer> = Vec::new();
        let mut ordered = Vec::with_capacity(self.layers.len());
        for layer in std::mem::take(&mut self.layers) {
            waiting.push(layer);
            while let Some(next) = waiting
                .iter()
                .position(|layer| layer.op.inputs().iter().all(|&t| ready[t]))
            {
                let layer = waiting.remove(next);
                ready[layer.output] = true;
                ordered.push(layer);
            }
        }
        assert!(waiting.is_empty(), "the folded graph has a cycle");
        self.layers = ordered;
        self
    }
}

/// `second(first(x))` as one function, where one exists.
fn compose(first: Activation, second: Activation) -> Option<Activation> {
    match (first, second) {
        (Activation::None, other) | (other, Activation::None) => Some(other),
        (
            Activation::Clamp { low, high },
            Activation::Clamp {
                low: floor,
                high: ceiling,
            },
        ) => {
            let clip = |v: f32| v.max(floor).min(ceiling);
            Some(Activation::Clamp {
                low: clip(low),
                high: clip(high),
            })
        }
        (Activation::Clamp { low, .. }, Activation::Leaky { .. }) if low >= 0.0 => Some(first),
        _ => None,
    }
}
