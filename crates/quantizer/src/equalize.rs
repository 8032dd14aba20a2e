//! Cross-layer equalization: channels that one scale must serve are brought to like ranges, and the
//! layers that read them take that back.
//!
//! Sources: Nagel et al., Data-Free Quantization, ICCV 2019, section 4.1 (weights of two layers); Xiao et
//! al., `SmoothQuant`, ICML 2023 (the square root between activations and the weights that read them).
//! Invariant: factors are powers of two, so every sum of the network has the same bits as before, times
//! its factor, and its outputs are the same floats (short of subnormal numbers).

use crate::float::{Activation, FloatNetwork, FloatOp, FloatPost};
use crate::{Error, Observer};
use std::collections::{BTreeMap, BTreeSet};

/// Largest factor either way, as an exponent.
const MAX_EXPONENT: f64 = 16.0;

/// A channel that is hardly read may not set the range of the others.
const MIN_WEIGHT: f64 = 1.0 / 256.0;

/// The same function with other values between its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Equalized {
    /// The network.
    pub network: FloatNetwork,
    /// Channels whose values changed, over all tensors.
    pub n_scaled: usize,
    /// Channels of all tensors.
    pub n_channels: usize,
}

/// Equalizes a network by the channel ranges of calibration images.
///
/// Channels that are added, pooled or joined share a factor. The input, the outputs, and what an
/// activation function clips at a value other than 0 keep theirs.
///
/// # Errors
/// [`Error::NotObserved`] when the observer has not seen a tensor as images.
pub fn equalize(net: &FloatNetwork, observer: &Observer) -> Result<Equalized, Error> {
    let classes = Classes::of(net);
    let exponents = exponents(net, observer, &classes)?;
    let exponent = |tensor: usize, channel: usize| exponents[classes.id(tensor, channel)];
    let mut network = net.clone();
    for layer in &mut network.layers {
        let FloatOp::Conv(conv) = &mut layer.op else {
            continue;
        };
        let (n_group_outputs, n_group_inputs) =
            (conv.bias.len() / conv.groups, conv.weights.dim().1);
        for ((o, i, _, _), weight) in conv.weights.indexed_iter_mut() {
            let read = exponent(conv.input, o / n_group_outputs * n_group_inputs + i);
            *weight *= 2f32.powi(read - exponent(layer.output, o));
        }
        for (o, bias) in conv.bias.iter_mut().enumerate() {
            *bias *= 2f32.powi(-exponent(layer.output, o));
        }
    }
    Ok(Equalized {
        network,
        n_scaled: exponents.iter().filter(|&&e| e != 0).count(),
        n_channels: exponents.len(),
    })
}

/// Channels of all tensors in sets that share a factor.
struct Classes {
    /// Id of each tensor's channel 0.
    first: Vec<usize>,
    root: Vec<usize>,
    /// By root.
    is_fixed: Vec<bool>,
}

impl Classes {
    fn of(net: &FloatNetwork) -> Self {
        let mut first = Vec::with_capacity(net.tensors.len());
        let mut n = 0;
        for tensor in &net.tensors {
            first.push(n);
            n += tensor.shape.channels;
        }
        let mut classes = Self {
            first,
            root: (0..n).collect(),
            is_fixed: vec![false; n],
        };
        let mut fixed: BTreeSet<usize> = net.outputs.iter().copied().collect();
        fixed.insert(0);
        for layer in &net.layers {
            let link = |classes: &mut Self, from: (usize, usize), to: usize, n: usize| {
                for c in 0..n {
                    classes.join(
                        classes.id(from.0, from.1 + c),
                        classes.id(layer.output, to + c),
                    );
                }
            };
            let channels = |tensor: usize| net.tensors[tensor].shape.channels;
            let post = match &layer.op {
                FloatOp::Conv(conv) => Some(&conv.post),
                FloatOp::Pool(pool) => {
                    let n = channels(pool.input).min(channels(layer.output) - pool.channel_offset);
                    link(&mut classes, (pool.input, 0), pool.channel_offset, n);
                    Some(&pool.post)
                }
                FloatOp::Concat(parts) => {
                    let mut at = 0;
                    for part in parts {
                        link(
                            &mut classes,
                            (part.tensor, part.channel),
                            at,
                            part.n_channels,
                        );
                        at += part.n_channels;
                    }
                    None
                }
            };
            if let Some(view) = post.and_then(|post| post.residual) {
                let n = channels(view.tensor).min(channels(layer.output) - view.channel_offset);
                link(&mut classes, (view.tensor, 0), view.channel_offset, n);
            }
            if post.is_some_and(|post| !keeps_factors(post)) {
                fixed.insert(layer.output);
            }
        }
        for tensor in fixed {
            for c in 0..net.tensors[tensor].shape.channels {
                let root = classes.root_of(classes.first[tensor] + c);
                classes.is_fixed[root] = true;
            }
        }
        for id in 0..n {
            classes.root[id] = classes.root_of(id);
        }
        classes
    }

    fn id(&self, tensor: usize, channel: usize) -> usize {
        self.first[tensor] + channel
    }

    fn root_of(&self, mut id: usize) -> usize {
        while self.root[id] != id {
            id = self.root[id];
        }
        id
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root_of(a), self.root_of(b));
        self.root[a.max(b)] = a.min(b);
    }
}

/// Whether `f(k · x) = k · f(x)` for `k > 0`.
fn keeps_factors(post: &FloatPost) -> bool {
    let is_free = |bound: f32| bound == 0.0 || bound.is_infinite();
    match post.activation {
        Activation::None | Activation::Leaky { .. } => true,
        Activation::Clamp { low, high } => is_free(low) && is_free(high),
    }
}

/// One for each channel: its values are to be divided by two to that power.
fn exponents(
    net: &FloatNetwork,
    observer: &Observer,
    classes: &Classes,
) -> Result<Vec<i32>, Error> {
    let n = classes.root.len();
    let mut peaks = vec![0f64; n];
    let copied = net.copied();
    for (t, tensor) in net.tensors.iter().enumerate().filter(|&(t, _)| !copied[t]) {
        let channels = observer
            .channels(&tensor.name)
            .ok_or_else(|| Error::NotObserved {
                tensor: tensor.name.clone(),
            })?;
        for (c, channel) in channels.iter().enumerate() {
            let root = classes.root[classes.id(t, c)];
            peaks[root] = peaks[root].max(f64::from(channel.peak));
        }
    }
    // How much of a kernel's range the weights of a channel take.
    let mut weights: BTreeMap<usize, f64> = BTreeMap::new();
    for layer in &net.layers {
        let FloatOp::Conv(conv) = &layer.op else {
            continue;
        };
        let n_group_outputs = conv.bias.len() / conv.groups;
        for (o, kernel) in conv.weights.outer_iter().enumerate() {
            let range = kernel.iter().fold(0f32, |m, w| m.max(w.abs()));
            let first = o / n_group_outputs * conv.weights.dim().1;
            for (i, plane) in kernel.outer_iter().enumerate() {
                let peak = plane.iter().fold(0f32, |m, w| m.max(w.abs()));
                let root = classes.root[classes.id(conv.input, first + i)];
                let share = f64::from(peak) / f64::from(range).max(f64::MIN_POSITIVE);
                let found = weights.entry(root).or_default();
                *found = found.max(share);
            }
        }
    }
    let of_root = |root: usize| match (weights.get(&root), peaks[root]) {
        (Some(&weight), peak) if !classes.is_fixed[root] && peak > 0.0 => {
            let wanted = (peak / weight.max(MIN_WEIGHT)).log2() / 2.0;
            wanted.round().clamp(-MAX_EXPONENT, MAX_EXPONENT) as i32
        }
        _ => 0,
    };
    Ok(classes.root.iter().map(|&root| of_root(root)).collect())
}
