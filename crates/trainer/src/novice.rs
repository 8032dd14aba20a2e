//! The float network that learns: from where it stands, or from random weights with batch
//! normalization after every convolution that is no output.
//!
//! Invariant: what it gives out is folded: the same layers as the network that it began with.

use crate::backward::Gradients;
use crate::data::{generator, unit};
use crate::error::Error;
use crate::graph::Graph;
use crate::normalization::{Norm, NormSlots, Normalized};
use crate::optimizer::{Parameter, Role};
use quantizer::FloatNetwork;

/// Where a layer's parameters stand.
#[derive(Clone, Copy, Debug)]
struct Slots {
    weights: usize,
    /// Or the normalization's beta.
    bias: usize,
    norm: Option<NormSlots>,
}

/// Parameters and what they belong to.
#[derive(Clone, Debug)]
pub(crate) struct Novice {
    pub(crate) graph: Graph,
    pub(crate) parameters: Vec<Parameter>,
    /// By layer.
    slots: Vec<Option<Slots>>,
}

impl Novice {
    /// `from_scratch`: the weights are drawn anew from this seed.
    pub(crate) fn new(net: &FloatNetwork, from_scratch: Option<u64>) -> Result<Self, Error> {
        let mut graph = Graph::new(net)?;
        let layers: Vec<usize> = graph.weighted().collect();
        let mut parameters = Vec::new();
        let mut add = |name: String, role, values| {
            parameters.push(Parameter::new(name, role, values));
            parameters.len() - 1
        };
        let mut slots = vec![None; net.layers.len()];
        for layer in layers {
            let name = &net.layers[layer].name;
            let is_normed =
                from_scratch.is_some() && !net.outputs.contains(&net.layers[layer].output);
            if let Some(seed) = from_scratch {
                draw(&mut graph, layer, seed, is_normed);
            }
            let conv = graph.conv(layer);
            let n = conv.bias.len();
            let weights = conv.weights.iter().copied().collect();
            let bias = conv.bias.clone();
            let weights = add(format!("{name}.weights"), Role::Weight, weights);
            let bias = add(format!("{name}.bias"), Role::Bias, bias);
            let norm = is_normed.then(|| NormSlots::add(name, n, Role::Bias, &mut add));
            slots[layer] = Some(Slots {
                weights,
                bias,
                norm,
            });
        }
        Ok(Self {
            graph,
            parameters,
            slots,
        })
    }

    /// The weights of the moment into the network inside.
    pub(crate) fn refresh(&mut self) {
        for (layer, slots) in self.slots.iter().enumerate() {
            let Some(slots) = slots else { continue };
            let [weights, bias] =
                [slots.weights, slots.bias].map(|slot| &self.parameters[slot].values);
            self.graph.set(layer, weights, bias);
        }
    }

    /// One per layer.
    pub(crate) fn norms(&self) -> Vec<Option<Norm>> {
        let of = |slots: &Option<Slots>| {
            let slots = slots.as_ref()?;
            Some(slots.norm?.norm(&self.parameters, slots.bias))
        };
        self.slots.iter().map(of).collect()
    }

    /// The network of the moment, normalizations folded by their running statistics.
    pub(crate) fn folded(&mut self) -> FloatNetwork {
        self.refresh();
        let mut folded = self.graph.clone();
        for (layer, norm) in self.norms().iter().enumerate() {
            let Some(norm) = norm else { continue };
            norm.affine(&norm.running).fold(folded.conv_mut(layer));
        }
        folded.net
    }

    /// One gradient per parameter, in order.
    pub(crate) fn gradients(&self, gradients: &Gradients) -> Vec<Vec<f32>> {
        let zeros = self.parameters.iter().map(|p| vec![0.0; p.values.len()]);
        let mut all: Vec<Vec<f32>> = zeros.collect();
        for (layer, slots) in self.slots.iter().enumerate() {
            let Some(slots) = slots else { continue };
            all[slots.weights] = self
                .graph
                .in_order(layer, gradients.weights[layer].as_ref());
            all[slots.bias].clone_from(&gradients.bias[layer]);
            if let Some(norm) = slots.norm {
                all[norm.gamma()].clone_from(&gradients.gamma[layer]);
            }
        }
        all
    }

    /// Takes a pass's statistics into the running ones.
    pub(crate) fn observe(&mut self, normalized: &[Option<Normalized>], share: f32) {
        for (slots, normalized) in self.slots.iter().zip(normalized) {
            let (Some(slots), Some(seen)) = (slots, normalized) else {
                continue;
            };
            if let Some(norm) = slots.norm {
                norm.follow(&mut self.parameters, &seen.statistics, share);
            }
        }
    }
}

/// Draws a layer's weights: normal, spread as `sqrt(2 / fan_in)` (He et al., ICCV 2015) where an
/// activation function follows, else as `sqrt(1 / fan_in)`.
fn draw(graph: &mut Graph, layer: usize, seed: u64, is_hidden: bool) {
    let mut rng = generator(seed, u64::MAX, layer as u64);
    let conv = graph.conv_mut(layer);
    let fan_in = conv.weights.len() / conv.bias.len();
    let spread = (if is_hidden { 2.0 } else { 1.0 } / fan_in as f64).sqrt();
    for w in &mut conv.weights {
        // The sum of twelve has a variance of 1 and needs no function that platforms round apart.
        let normal = (0..12).map(|_| unit(&mut rng)).sum::<f64>() - 6.0;
        *w = (normal * spread) as f32;
    }
    conv.bias.fill(0.0);
}
