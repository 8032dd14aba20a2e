//! The forward pass on real numbers: the teacher, and the training of float networks.
//!
//! Invariant: with batch statistics, mean and variance are those of the images of one pass (ghost
//! batch normalization, Hoffer et al., NIPS 2017), so passes share nothing.

use crate::convolution::{self, Panels};
use crate::graph::{Graph, divisor, look, seen_by};
use crate::integer::reduce;
use crate::normalization::{self, Norm, Normalized};
use crate::tape::{Gate, Tape};
use network::Shape;
use quantizer::{Activation, FloatOp, FloatPart, FloatPost};

/// A float network, ready for its images.
#[derive(Debug)]
pub(crate) struct Float<'a> {
    graph: &'a Graph,
    panels: Vec<Option<Panels>>,
    /// One per layer; convolutions with one have no bias.
    norms: &'a [Option<Norm>],
    /// Whether the sums of convolutions are looked at.
    measures: bool,
}

impl<'a> Float<'a> {
    pub(crate) fn new(graph: &'a Graph, norms: &'a [Option<Norm>]) -> Self {
        let panels = graph.convs.iter().enumerate().map(|(layer, geometry)| {
            let conv = graph.conv_or_none(layer)?;
            Some(geometry.as_ref()?.panels(conv, |at| conv.weights[at]))
        });
        Self {
            panels: panels.collect(),
            graph,
            norms,
            measures: false,
        }
    }

    /// Without normalization; the tape has the statistics of every convolution's sums, biases apart.
    pub(crate) fn measuring(graph: &'a Graph) -> Self {
        Self {
            measures: true,
            ..Self::new(graph, &[])
        }
    }

    pub(crate) fn run(&self, images: Vec<f32>) -> Tape {
        let net = &self.graph.net;
        let n_images = images.len() / net.tensors[0].shape.len();
        let mut tape = Tape::new(n_images, net.tensors.len(), net.layers.len());
        tape.values[0] = images;
        for (index, layer) in net.layers.iter().enumerate() {
            let shape = self.graph.shape(layer.output);
            let mut before = vec![0f32; n_images * shape.len()];
            let post = match &layer.op {
                FloatOp::Conv(conv) => {
                    self.conv(index, &tape, shape, &mut before);
                    if let Some(norm) = self.norms.get(index).and_then(Option::as_ref) {
                        tape.normalized[index] = Some(norm.apply(&mut before));
                    } else {
                        if self.measures {
                            tape.normalized[index] =
                                Some(Normalized::seen(&before, shape.channels));
                        }
                        normalization::add_bias(&mut before, &conv.bias);
                    }
                    Some(&conv.post)
                }
                FloatOp::Pool(pool) => {
                    let from = self.graph.shape(pool.input);
                    let maps = tape.values[pool.input].chunks_exact(from.len());
                    for (map, out) in maps.zip(before.chunks_exact_mut(shape.len())) {
                        let reduced = reduce(
                            pool.window,
                            pool.channel_offset,
                            pool.reduction,
                            map,
                            from,
                            shape,
                        );
                        let averaged = out.chunks_exact_mut(shape.channels);
                        let sums = reduced.chunks_exact(shape.channels);
                        for (at, (out, sums)) in averaged.zip(sums).enumerate() {
                            let divisor = divisor(pool, at, from, shape) as f32;
                            out.iter_mut().zip(sums).for_each(|(o, r)| *o = r / divisor);
                        }
                    }
                    Some(&pool.post)
                }
                FloatOp::Concat(parts) => {
                    self.join(parts, &tape, shape, &mut before);
                    None
                }
            };
            let Some(post) = post else {
                tape.gates.push(Gate::OPEN);
                tape.before.push(Vec::new());
                tape.values[layer.output] = before;
                continue;
            };
            self.residual(post, &tape, shape, &mut before);
            let gate = gate(post.activation);
            tape.values[layer.output] = before.iter().map(|&x| activate(gate, x)).collect();
            tape.gates.push(gate);
            tape.before.push(before);
        }
        tape
    }

    fn conv(&self, index: usize, tape: &Tape, shape: Shape, before: &mut [f32]) {
        let (Some(geometry), Some(panels)) = (&self.graph.convs[index], &self.panels[index]) else {
            unreachable!("a convolution has weights");
        };
        let input = self.graph.conv(index).input;
        let from = self.graph.shape(input);
        let mut padded = Vec::new();
        let maps = tape.values[input].chunks_exact(from.len());
        for (map, out) in maps.zip(before.chunks_exact_mut(shape.len())) {
            geometry.forward.pad(map, &mut padded);
            convolution::forward(&geometry.forward, &padded, panels, out);
        }
    }

    fn residual(&self, post: &FloatPost, tape: &Tape, shape: Shape, before: &mut [f32]) {
        let Some(view) = post.residual else { return };
        let from = self.graph.shape(view.tensor);
        let mut seen = Vec::new();
        let maps = tape.values[view.tensor].chunks_exact(from.len());
        for (map, out) in maps.zip(before.chunks_exact_mut(shape.len())) {
            look(view, map, from, shape, &mut seen);
            out.iter_mut().zip(&seen).for_each(|(o, s)| *o += s);
        }
    }

    fn join(&self, parts: &[FloatPart], tape: &Tape, shape: Shape, out: &mut [f32]) {
        let mut first = 0;
        for part in parts {
            let from = self.graph.shape(part.tensor);
            let n = part.n_channels;
            let maps = tape.values[part.tensor].chunks_exact(from.len());
            for (map, out) in maps.zip(out.chunks_exact_mut(shape.len())) {
                for (at, out) in out.chunks_exact_mut(shape.channels).enumerate() {
                    let seen = &map[seen_by(part, at, from, shape)..][..n];
                    out[first..first + n].copy_from_slice(seen);
                }
            }
            first += n;
        }
    }
}

fn gate(activation: Activation) -> Gate {
    match activation {
        Activation::None => Gate::OPEN,
        Activation::Clamp { low, high } => Gate {
            low,
            high,
            slope: 1.0,
        },
        Activation::Leaky { slope } => Gate {
            slope,
            ..Gate::OPEN
        },
    }
}

fn activate(gate: Gate, x: f32) -> f32 {
    let x = if x < 0.0 { x * gate.slope } else { x };
    x.max(gate.low).min(gate.high)
}
