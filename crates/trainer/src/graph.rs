//! The folded network with everything that its passes need to know in advance.
//!
//! Invariant: layers, tensors and their order are the float network's, which are also the integer
//! network's.

use crate::convolution::{Geometry, Panels};
use crate::error::Error;
use network::{Shape, Window};
use quantizer::{FloatConv, FloatNetwork, FloatOp, FloatPart, FloatPool, FloatPost, View};

/// Largest number of elements of one image's tensors: what a pass holds several times.
const MAX_ELEMENTS: usize = 1 << 28;

/// A network and its geometry.
#[derive(Clone, Debug)]
pub(crate) struct Graph {
    pub(crate) net: FloatNetwork,
    /// One per layer; nothing for layers without weights.
    pub(crate) convs: Vec<Option<ConvGeometry>>,
}

/// How a convolution's three passes read.
#[derive(Clone, Debug)]
pub(crate) struct ConvGeometry {
    pub(crate) forward: Geometry,
    /// Gradients back to the input.
    pub(crate) back: Geometry,
}

impl Graph {
    pub(crate) fn new(net: &FloatNetwork) -> Result<Self, Error> {
        let mut tensors = net.tensors.iter();
        let total = tensors.try_fold(0usize, |sum, t| sum.checked_add(t.shape.checked_len()?));
        if total.is_none_or(|n| n > MAX_ELEMENTS) {
            return Err(Error::TooLarge { max: MAX_ELEMENTS });
        }
        let convs = net.layers.iter().map(|layer| {
            let FloatOp::Conv(conv) = &layer.op else {
                return None;
            };
            let (map, output) = (
                net.tensors[conv.input].shape,
                net.tensors[layer.output].shape,
            );
            Some(ConvGeometry {
                forward: Geometry::new(map, output, conv.window, conv.groups),
                back: Geometry::transposed(map, output, conv.window, conv.groups),
            })
        });
        Ok(Self {
            convs: convs.collect(),
            net: net.clone(),
        })
    }

    pub(crate) fn shape(&self, tensor: usize) -> Shape {
        self.net.tensors[tensor].shape
    }

    /// Gives a layer other weights, in its own order, and biases.
    pub(crate) fn set(&mut self, layer: usize, weights: &[f32], bias: &[f32]) {
        let conv = self.conv_mut(layer);
        conv.weights
            .iter_mut()
            .zip(weights)
            .for_each(|(w, v)| *w = *v);
        conv.bias.copy_from_slice(bias);
    }

    /// A layer's panels in the order of its float weights; zeros where there are none.
    pub(crate) fn in_order(&self, layer: usize, panels: Option<&Panels>) -> Vec<f32> {
        let conv = self.conv(layer);
        let mut of = vec![0f32; conv.weights.len()];
        let (Some(geometry), Some(panels)) = (&self.convs[layer], panels) else {
            return of;
        };
        let (n_outputs, n_channels, n_rows, n_columns) = conv.weights.dim();
        for k in 0..geometry.forward.reduction() {
            let [c, y, x] = position(conv, k);
            for o in 0..n_outputs {
                let at = ((o * n_channels + c) * n_rows + y) * n_columns + x;
                of[at] = panels.get(&geometry.forward, o, k);
            }
        }
        of
    }

    /// Panels of the float weights for the backward pass, one per layer with weights.
    pub(crate) fn panels_back(&self) -> Vec<Option<Panels>> {
        let of = |layer: usize| {
            let (geometry, conv) = (self.convs[layer].as_ref()?, self.conv_or_none(layer)?);
            Some(geometry.panels_back(conv, |at| conv.weights[at]))
        };
        (0..self.convs.len()).map(of).collect()
    }

    /// Indices of the layers with weights.
    pub(crate) fn weighted(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.convs.len()).filter(|&layer| self.convs[layer].is_some())
    }

    /// The convolution of a layer that has weights.
    pub(crate) fn conv(&self, layer: usize) -> &FloatConv {
        self.conv_or_none(layer)
            .expect("only layers with weights are asked")
    }

    pub(crate) fn conv_or_none(&self, layer: usize) -> Option<&FloatConv> {
        match &self.net.layers[layer].op {
            FloatOp::Conv(conv) => Some(conv),
            FloatOp::Pool(_) | FloatOp::Concat(_) => None,
        }
    }

    pub(crate) fn conv_mut(&mut self, layer: usize) -> &mut FloatConv {
        match &mut self.net.layers[layer].op {
            FloatOp::Conv(conv) => conv,
            FloatOp::Pool(_) | FloatOp::Concat(_) => {
                unreachable!("only layers with weights are asked")
            }
        }
    }
}

/// What a pool divides the sum of output pixel `at` by.
pub(crate) fn divisor(pool: &FloatPool, at: usize, from: Shape, to: Shape) -> usize {
    let Some(margin) = pool.margin else {
        return pool.divisor;
    };
    let counted = |axis, index| margin.n_counted(pool.window, axis, index, from.extent()[axis]);
    counted(0, at / to.width) * counted(1, at % to.width)
}

/// Where the first channel stands that a part of a concatenation reads for output pixel `at`.
pub(crate) fn seen_by(part: &FloatPart, at: usize, from: Shape, to: Shape) -> usize {
    let row = part.offset[0] + at / to.width * part.stride[0];
    let column = part.offset[1] + at % to.width * part.stride[1];
    (row * from.width + column) * from.channels + part.channel
}

/// What follows a layer's reduction; a concatenation has nothing.
pub(crate) fn post(op: &FloatOp) -> Option<&FloatPost> {
    match op {
        FloatOp::Conv(conv) => Some(&conv.post),
        FloatOp::Pool(pool) => Some(&pool.post),
        FloatOp::Concat(_) => None,
    }
}

/// Where product `k` of a window (row, column, channel) stands in `[channel, row, column]` weights.
pub(crate) fn position(conv: &FloatConv, k: usize) -> [usize; 3] {
    let n_channels = conv.weights.dim().1;
    let [_, n_columns] = conv.window.kernel;
    let tap = k / n_channels;
    [k % n_channels, tap / n_columns, tap % n_columns]
}

impl ConvGeometry {
    /// Panels of the forward pass; `weight[output channel, channel, row, column]`.
    pub(crate) fn panels(&self, conv: &FloatConv, weight: impl Fn([usize; 4]) -> f32) -> Panels {
        Panels::new(&self.forward, |o, k| {
            let [c, y, x] = position(conv, k);
            weight([o, c, y, x])
        })
    }

    /// Panels that bring gradients back: the kernel turned round, channels and outputs exchanged.
    pub(crate) fn panels_back(
        &self,
        conv: &FloatConv,
        weight: impl Fn([usize; 4]) -> f32,
    ) -> Panels {
        let (n_outputs, n_channels, n_rows, n_columns) = conv.weights.dim();
        let n_group_outputs = n_outputs / conv.groups;
        Panels::new(&self.back, |channel, k| {
            let (tap, o) = (k / n_group_outputs, k % n_group_outputs);
            let (y, x) = (
                n_rows - 1 - tap / n_columns,
                n_columns - 1 - tap % n_columns,
            );
            let group = channel / n_channels;
            weight([group * n_group_outputs + o, channel % n_channels, y, x])
        })
    }
}

/// A second operand as the output sees it: 0 where its channel does not exist.
pub(crate) fn look(view: View, source: &[f32], from: Shape, to: Shape, out: &mut Vec<f32>) {
    out.clear();
    out.resize(to.len(), 0.0);
    each_seen(view, from, to, |at, seen, n| {
        out[at..at + n].copy_from_slice(&source[seen..seen + n]);
    });
}

/// Adds gradients of [`look`]'s result to those of its source.
pub(crate) fn look_back(view: View, gradient: &[f32], from: Shape, to: Shape, out: &mut [f32]) {
    each_seen(view, from, to, |at, seen, n| {
        let all = out[seen..seen + n].iter_mut().zip(&gradient[at..at + n]);
        all.for_each(|(sum, g)| *sum += g);
    });
}

fn each_seen(view: View, from: Shape, to: Shape, mut see: impl FnMut(usize, usize, usize)) {
    let n = from
        .channels
        .min(to.channels.saturating_sub(view.channel_offset));
    for y in 0..to.height {
        for x in 0..to.width {
            let at = (y * to.width + x) * to.channels + view.channel_offset;
            let row = y * view.stride[0];
            see(
                at,
                (row * from.width + x * view.stride[1]) * from.channels,
                n,
            );
        }
    }
}

/// Visits every tap of every window inside the input: output pixel, input pixel.
pub(crate) fn each_tap(
    window: Window,
    from: Shape,
    to: Shape,
    mut visit: impl FnMut(usize, usize),
) {
    for y in 0..to.height {
        for x in 0..to.width {
            for ky in 0..window.kernel[0] {
                let Some(row) = window.source(0, y, ky, from.height) else {
                    continue;
                };
                for kx in 0..window.kernel[1] {
                    let Some(column) = window.source(1, x, kx, from.width) else {
                        continue;
                    };
                    visit(y * to.width + x, row * from.width + column);
                }
            }
        }
    }
}
