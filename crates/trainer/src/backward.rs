//! The backward pass: straight through every rounding, clipped where the forward pass clipped.
//!
//! Source: LLSQ (Zhao et al., ICLR 2020), section 3.2. Gradients are those of real values; what the
//! multipliers' mantissas rounded away is passed straight through as well.
//! Invariant: a pass touches nothing but its own gradients; [`Gradients::add`] sums passes in the
//! caller's order.

use crate::convolution::{self, Panels};
use crate::graph::{Graph, divisor, each_tap, look_back, post, seen_by};
use crate::normalization::Norm;
use crate::scales::Slope;
use crate::tape::Tape;
use network::Reduction;
use quantizer::{FloatOp, FloatPool};

/// Gradients of a loss.
#[derive(Clone, Debug)]
pub(crate) struct Gradients {
    /// One per layer, for weights in real units.
    pub(crate) weights: Vec<Option<Panels>>,
    /// One list per layer.
    pub(crate) bias: Vec<Vec<f32>>,
    /// One per layer: the loss's gradient of its output's scale.
    pub(crate) scales: Vec<f64>,
    /// One list per layer: of a normalization's gamma (its beta's is `bias`).
    pub(crate) gamma: Vec<Vec<f32>>,
}

/// What the pass needs beside the tape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) graph: &'a Graph,
    /// One per layer with weights, in real units.
    pub(crate) panels: &'a [Option<Panels>],
    /// One per layer: how the loss moves its output's scale.
    pub(crate) learned: &'a [Option<Slope>],
    pub(crate) norms: &'a [Option<Norm>],
    /// By layer, where there are any: further gradients of a convolution's sums, before normalization.
    pub(crate) sums: &'a [Option<Vec<f32>>],
}

impl Gradients {
    /// Adds another pass's.
    pub(crate) fn add(&mut self, other: &Self) {
        for (a, b) in self.weights.iter_mut().zip(&other.weights) {
            if let (Some(a), Some(b)) = (a, b) {
                a.add(b);
            }
        }
        let lists = self.bias.iter_mut().zip(&other.bias);
        for (a, b) in lists.chain(self.gamma.iter_mut().zip(&other.gamma)) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
        self.scales
            .iter_mut()
            .zip(&other.scales)
            .for_each(|(a, b)| *a += b);
    }
}

/// Gradients of everything from those of the outputs: `(tensor, gradient)`.
pub(crate) fn backward(
    context: Context<'_>,
    tape: &Tape,
    outputs: Vec<(usize, Vec<f32>)>,
) -> Gradients {
    let graph = context.graph;
    let n_layers = graph.net.layers.len();
    let mut gradients = Gradients {
        weights: vec![None; n_layers],
        bias: vec![Vec::new(); n_layers],
        scales: vec![0.0; n_layers],
        gamma: vec![Vec::new(); n_layers],
    };
    let mut of = vec![Vec::new(); graph.net.tensors.len()];
    for (tensor, gradient) in outputs {
        of[tensor] = gradient;
    }
    for (index, layer) in graph.net.layers.iter().enumerate().rev() {
        let mut gradient = std::mem::take(&mut of[layer.output]);
        if gradient.is_empty() {
            // Nothing that counts reads it.
            gradient = vec![0.0; tape.values[layer.output].len()];
        }
        let before = &tape.before[index];
        if let Some(slope) = context.learned[index] {
            let gate = tape.gates[index];
            let values = before.iter().zip(&tape.values[layer.output]);
            for (g, (&u, &q)) in gradient.iter().zip(values) {
                let u = u.max(gate.low).min(gate.high);
                gradients.scales[index] += f64::from(g * (slope.of)(u, q, slope.format));
            }
        }
        tape.gates[index].pass(before, &mut gradient);
        if let Some(view) = post(&layer.op).and_then(|post| post.residual) {
            let (from, to) = (graph.shape(view.tensor), graph.shape(layer.output));
            let sum = grown(&mut of[view.tensor], tape.n_images * from.len());
            let maps = sum.chunks_exact_mut(from.len());
            for (sum, gradient) in maps.zip(gradient.chunks_exact(to.len())) {
                look_back(view, gradient, from, to, sum);
            }
        }
        match &layer.op {
            FloatOp::Conv(_) => conv(context, tape, index, gradient, &mut gradients, &mut of),
            FloatOp::Pool(pool) => {
                let from = tape.n_images * graph.shape(pool.input).len();
                let mut sum = std::mem::take(&mut of[pool.input]);
                grown(&mut sum, from);
                self::pool(graph, tape, index, pool, &gradient, &mut sum);
                of[pool.input] = sum;
            }
            FloatOp::Concat(parts) => {
                let to = graph.shape(layer.output);
                let mut first = 0;
                for part in parts {
                    let from = graph.shape(part.tensor);
                    let sum = grown(&mut of[part.tensor], tape.n_images * from.len());
                    let maps = sum.chunks_exact_mut(from.len());
                    for (sum, gradient) in maps.zip(gradient.chunks_exact(to.len())) {
                        for (at, g) in gradient.chunks_exact(to.channels).enumerate() {
                            let sum = &mut sum[seen_by(part, at, from, to)..];
                            let g = &g[first..first + part.n_channels];
                            sum.iter_mut().zip(g).for_each(|(s, g)| *s += g);
                        }
                    }
                    first += part.n_channels;
                }
            }
        }
    }
    gradients
}

/// The sum of gradients of a tensor, begun at 0.
fn grown(sum: &mut Vec<f32>, n: usize) -> &mut [f32] {
    sum.resize(n, 0.0);
    sum
}

fn conv(
    context: Context<'_>,
    tape: &Tape,
    index: usize,
    mut gradient: Vec<f32>,
    gradients: &mut Gradients,
    of: &mut [Vec<f32>],
) {
    let graph = context.graph;
    let (Some(geometry), Some(panels)) = (&graph.convs[index], &context.panels[index]) else {
        unreachable!("a convolution has weights");
    };
    let conv = graph.conv(index);
    let (from, to) = (
        graph.shape(conv.input),
        graph.shape(graph.net.layers[index].output),
    );
    let norm = context.norms.get(index).and_then(Option::as_ref);
    if let (Some(norm), Some(normalized)) = (norm, &tape.normalized[index]) {
        let [gamma, beta] = normalized.backward(norm, &mut gradient);
        gradients.gamma[index] = gamma;
        gradients.bias[index] = beta;
    } else {
        let mut bias = vec![0f32; to.channels];
        for pixel in gradient.chunks_exact(to.channels) {
            bias.iter_mut().zip(pixel).for_each(|(b, g)| *b += g);
        }
        gradients.bias[index] = bias;
    }
    if let Some(more) = context.sums.get(index).and_then(Option::as_ref) {
        gradient.iter_mut().zip(more).for_each(|(g, m)| *g += m);
    }
    let mut weights = Panels::zeros(&geometry.forward);
    let mut scratch = Vec::new();
    let maps = tape.values[conv.input].chunks_exact(from.len());
    for (map, gradient) in maps.zip(gradient.chunks_exact(to.len())) {
        geometry.forward.pad(map, &mut scratch);
        convolution::backward(&geometry.forward, &scratch, gradient, &mut weights);
    }
    weights.scale(tape.units[conv.input]);
    gradients.weights[index] = Some(weights);
    if conv.input == 0 {
        return;
    }
    let sum = grown(&mut of[conv.input], tape.n_images * from.len());
    let mut back = vec![0f32; from.len()];
    let maps = sum.chunks_exact_mut(from.len());
    for (sum, gradient) in maps.zip(gradient.chunks_exact(to.len())) {
        convolution::spread(gradient, from, to, conv.window, &mut scratch);
        convolution::forward(&geometry.back, &scratch, panels, &mut back);
        sum.iter_mut().zip(&back).for_each(|(s, b)| *s += b);
    }
}

fn pool(
    graph: &Graph,
    tape: &Tape,
    index: usize,
    pool: &FloatPool,
    gradient: &[f32],
    sum: &mut [f32],
) {
    let (from, to) = (
        graph.shape(pool.input),
        graph.shape(graph.net.layers[index].output),
    );
    let n = from
        .channels
        .min(to.channels.saturating_sub(pool.channel_offset));
    let mut taken = Vec::new();
    for image in 0..tape.n_images {
        let gradient = &gradient[image * to.len()..][..to.len()];
        let sum = &mut sum[image * from.len()..][..from.len()];
        let input = &tape.values[pool.input][image * from.len()..][..from.len()];
        let before = &tape.before[index][image * to.len()..][..to.len()];
        taken.clear();
        taken.resize(to.len(), false);
        each_tap(pool.window, from, to, |at, seen| {
            let first = at * to.channels + pool.channel_offset;
            let share = 1.0 / divisor(pool, at, from, to) as f32;
            for c in 0..n {
                let (at, seen) = (first + c, seen * from.channels + c);
                match pool.reduction {
                    Reduction::Sum => sum[seen] += gradient[at] * share,
                    // The first of equal values gets it all.
                    Reduction::Max if !taken[at] && input[seen] >= before[at] => {
                        taken[at] = true;
                        sum[seen] += gradient[at];
                    }
                    Reduction::Max => {}
                }
            }
        });
    }
}
