//! The network that learns to be integers: float weights and scales, and the integers they mean.
//!
//! Invariant: [`Student::network`] is what the forward pass computes and what training gives out;
//! it passes [`Network::verify`].

use crate::backward::Gradients;
use crate::convolution::Panels;
use crate::error::Error;
use crate::graph::Graph;
use crate::normalization::{Affine, Norm, NormSlots, Slopes, Statistics};
use crate::optimizer::{Parameter, Role};
use crate::scales::{self, Slope};
use arith::{AccumulatorFormat, Format, Scale};
use network::{Network, Tensor};
use quantizer::{FloatLayer, FloatNetwork, Granularity, Options};
use serde::Serialize;

/// How scales learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleRule {
    /// The simulated gradient: compare the errors at half, same and double scale.
    Llsq,
    /// The loss's own gradient (Esser et al., ICLR 2020).
    Lsq,
    /// Activations: the loss's gradient of the clipping level (PACT: Choi et al., 2018). Weights' stay.
    Pact,
    /// They stay.
    Fixed,
}

/// Where a layer's parameters stand.
#[derive(Clone, Copy, Debug)]
struct Slots {
    weights: usize,
    /// Or the normalization's beta.
    bias: usize,
    scale: usize,
    norm: Option<NormSlots>,
}

/// Parameters and what they belong to.
#[derive(Clone, Debug)]
pub(crate) struct Student {
    pub(crate) graph: Graph,
    pub(crate) parameters: Vec<Parameter>,
    options: Options,
    accumulator: AccumulatorFormat,
    rule: ScaleRule,
    power_of_two: bool,
    /// The start's tensors: names, shapes and formats stay.
    tensors: Vec<Tensor>,
    /// By layer.
    slots: Vec<Option<Slots>>,
    /// By tensor: the parameter of its scale, where it is learned.
    scale_of: Vec<Option<usize>>,
    /// By layer: what LSQ's gradient is multiplied by, `1 / sqrt(n · Qp)`.
    damping: Vec<f64>,
    /// By layer: the normalization that [`Student::network`] folded.
    folded: Vec<Option<Affine>>,
}

impl Student {
    /// `start` gives formats and scales: the post-training network of `net` under `options`.
    /// `normalizes`: batch normalization follows every convolution that is no output.
    pub(crate) fn new(
        net: &FloatNetwork,
        start: &Network,
        options: &Options,
        accumulator: AccumulatorFormat,
        rule: ScaleRule,
        power_of_two: bool,
        normalizes: bool,
    ) -> Result<Self, Error> {
        let graph = Graph::new(net)?;
        let mut parameters = Vec::new();
        let mut add = |name: String, role, values| {
            let made = Parameter::new(name, role, values);
            parameters.push(if role == Role::Weight {
                made.in_proportion()
            } else {
                made
            });
            parameters.len() - 1
        };
        let mut slots = vec![None; net.layers.len()];
        for layer in graph.weighted() {
            let (conv, name) = (graph.conv(layer), &net.layers[layer].name);
            let of_start = start.layers[layer].conv();
            let weight_scales = of_start.map_or(&[][..], |conv| &conv.weight_scales);
            let real = weight_scales.iter().map(|s| s.real() as f32).collect();
            let weights = conv.weights.iter().copied().collect();
            let weights = add(format!("{name}.weights"), Role::Weight, weights);
            let bias = add(format!("{name}.bias"), Role::Bias, conv.bias.clone());
            let scale = add(format!("{name}.weight_scale"), Role::Scale, real);
            let is_normed = normalizes && !net.outputs.contains(&net.layers[layer].output);
            let norm =
                is_normed.then(|| NormSlots::add(name, conv.bias.len(), Role::Scale, &mut add));
            slots[layer] = Some(Slots {
                weights,
                bias,
                scale,
                norm,
            });
        }
        // One parameter for all tensors of a group; the input's and wide outputs' scales stay, and
        // so do those of concatenations alone, which have no values of their own to learn from.
        let groups = quantizer::scale_groups(net);
        let mut has_values = vec![false; net.tensors.len()];
        for layer in net.layers.iter().filter(|layer| !layer.op.copies_values()) {
            has_values[groups[layer.output]] = true;
        }
        let mut scale_of = vec![None; net.tensors.len()];
        for tensor in 1..net.tensors.len() {
            let root = groups[tensor];
            if start.tensors[tensor].format.bits > 8 || root == 0 || !has_values[root] {
                continue;
            }
            if scale_of[root].is_none() {
                let name = format!("{}.scale", net.tensors[root].name);
                let real = start.tensors[root].scale.real() as f32;
                scale_of[root] = Some(add(name, Role::Scale, vec![real]));
            }
            scale_of[tensor] = scale_of[root];
        }
        let damping = net.layers.iter().map(|layer| {
            let tensor = &start.tensors[layer.output];
            1.0 / (tensor.shape.len() as f64 * f64::from(tensor.format.q_max())).sqrt()
        });
        Ok(Self {
            folded: vec![None; net.layers.len()],
            damping: damping.collect(),
            options: options.clone(),
            accumulator,
            rule,
            power_of_two,
            tensors: start.tensors.clone(),
            slots,
            scale_of,
            parameters,
            graph,
        })
    }

    /// The stored scale of a learned one.
    fn stored(&self, real: f32) -> Result<Scale, Error> {
        let real = f64::from(real);
        let near = if self.power_of_two {
            Scale::nearest(real.log2().round().exp2())
        } else {
            Scale::nearest(real)
        };
        near.ok_or_else(|| Error::Setting {
            name: "a learned scale",
            value: real.to_string(),
            needed: "a positive number: the learning rate is too high".into(),
        })
    }

    /// The integers of the moment, normalizations folded by their running statistics. The float network
    /// inside takes on the learned weights, folded.
    pub(crate) fn network(&mut self) -> Result<Network, Error> {
        self.network_by(&vec![None; self.slots.len()])
    }

    /// As [`Student::network`]; layers that have statistics here are normalized by them.
    pub(crate) fn network_by(&mut self, batch: &[Option<Statistics>]) -> Result<Network, Error> {
        let mut tensors = self.tensors.clone();
        for (tensor, parameter) in tensors.iter_mut().zip(&self.scale_of) {
            if let Some(parameter) = parameter {
                tensor.scale = self.stored(self.parameters[*parameter].values[0])?;
            } else if self.power_of_two {
                tensor.scale = self.stored(tensor.scale.real() as f32)?;
            }
        }
        let mut weight_scales = vec![Vec::new(); self.slots.len()];
        for (layer, of_layer) in weight_scales.iter_mut().enumerate() {
            let Some(slots) = self.slots[layer] else {
                continue;
            };
            self.plain(layer, slots);
            self.folded[layer] = slots.norm.map(|norm| {
                let norm = norm.norm(&self.parameters, slots.bias);
                norm.affine(batch[layer].as_ref().unwrap_or(&norm.running))
            });
            let conv = self.graph.conv_mut(layer);
            if let Some(affine) = &self.folded[layer] {
                affine.fold(conv);
            }
            let s_a = tensors[conv.input].scale.real();
            self.raise(layer, slots, s_a);
            let scales = &self.parameters[slots.scale].values;
            *of_layer = scales
                .iter()
                .map(|&s| self.stored(s))
                .collect::<Result<_, _>>()?;
        }
        let network =
            quantizer::quantize_at(&self.graph.net, tensors, &weight_scales, &self.options)?;
        network.verify()?;
        Ok(network)
    }

    /// The learned weights of a layer, before any folding, into the float network inside.
    fn plain(&mut self, layer: usize, slots: Slots) {
        let [weights, bias] = [slots.weights, slots.bias].map(|slot| &self.parameters[slot].values);
        self.graph.set(layer, weights, bias);
    }

    /// The float network of the moment, normalizations apart, and these, one per layer.
    pub(crate) fn unfolded(&mut self) -> (&Graph, Vec<Option<Norm>>) {
        let mut norms = vec![None; self.slots.len()];
        for (layer, norm) in norms.iter_mut().enumerate() {
            let Some(slots) = self.slots[layer] else {
                continue;
            };
            self.plain(layer, slots);
            *norm = slots
                .norm
                .map(|norm| norm.norm(&self.parameters, slots.bias));
        }
        (&self.graph, norms)
    }

    /// Makes these the running statistics; the function stays. Layers without normalization skip theirs.
    pub(crate) fn begin_norms(&mut self, seen: Vec<Option<Statistics>>) {
        for (slots, seen) in self.slots.iter().zip(seen) {
            if let (Some(slots), Some(seen)) = (slots, seen)
                && let Some(norm) = slots.norm
            {
                norm.begin(&mut self.parameters, slots.bias, seen);
            }
        }
    }

    /// Takes a batch's statistics into the running ones.
    pub(crate) fn follow(&mut self, batch: &[Option<Statistics>]) {
        for (slots, seen) in self.slots.iter().zip(batch) {
            if let (Some(slots), Some(seen)) = (slots, seen)
                && let Some(norm) = slots.norm
            {
                norm.follow(&mut self.parameters, seen, 1.0);
            }
        }
    }

    /// Keeps biases inside the accumulator, and those of channels without weights from ruining the
    /// layer's bias shift (the quantizer's floors).
    fn raise(&mut self, layer: usize, slots: Slots, s_a: f64) {
        let accumulator = f64::from(self.accumulator.max()) / 2.0;
        let dead = self.options.largest_bias(self.options.weight_bits);
        let is_per_channel = self.options.granularity == Granularity::PerChannel;
        let bias = &self.graph.conv(layer).bias;
        let floor = |b: f32| {
            let limit = if is_per_channel {
                accumulator.min(dead)
            } else {
                accumulator
            };
            (f64::from(b.abs()) / (s_a * limit)) as f32
        };
        let floors: Vec<f32> = bias.iter().map(|&b| floor(b)).collect();
        let scales = &mut self.parameters[slots.scale].values;
        if scales.len() == 1 {
            scales[0] = floors.iter().fold(scales[0], |m, &f| m.max(f));
        } else {
            scales
                .iter_mut()
                .zip(floors)
                .for_each(|(s, f)| *s = s.max(f));
        }
    }

    /// Panels for the backward pass: the weights that the integers mean.
    pub(crate) fn panels_back(&self, network: &Network) -> Vec<Option<Panels>> {
        let of = |layer: usize| {
            let (geometry, conv) = (
                self.graph.convs[layer].as_ref()?,
                network.layers[layer].conv()?,
            );
            let scale = |o: usize| {
                let index = if conv.weight_scales.len() == 1 { 0 } else { o };
                conv.weight_scales[index].real() as f32
            };
            let scales: Vec<f32> = (0..conv.n_output_channels()).map(scale).collect();
            let float = self.graph.conv(layer);
            Some(geometry.panels_back(float, |at| f32::from(conv.weights[at]) * scales[at[0]]))
        };
        (0..self.slots.len()).map(of).collect()
    }

    /// For each layer how the loss moves its output's scale, if it does.
    pub(crate) fn learned(&self) -> Vec<Option<Slope>> {
        let of: fn(f32, f32, Format) -> f32 = match self.rule {
            ScaleRule::Lsq => scales::lsq,
            ScaleRule::Pact => scales::pact,
            ScaleRule::Llsq | ScaleRule::Fixed => return vec![None; self.slots.len()],
        };
        let slope = |layer: &FloatLayer| {
            let learns = self.scale_of[layer.output].is_some() && !layer.op.copies_values();
            let format = self.tensors[layer.output].format;
            learns.then_some(Slope { format, of })
        };
        self.graph.net.layers.iter().map(slope).collect()
    }

    /// One gradient per parameter, in order. `errors`: those of each layer's output.
    pub(crate) fn gradients(
        &self,
        network: &Network,
        gradients: &Gradients,
        errors: &[[f64; 3]],
    ) -> Vec<Vec<f32>> {
        let mut all: Vec<Vec<f32>> = self
            .parameters
            .iter()
            .map(|p| vec![0.0; p.values.len()])
            .collect();
        for (layer, slots) in self.slots.iter().enumerate() {
            let Some(slots) = slots else { continue };
            all[slots.bias].clone_from(&gradients.bias[layer]);
            let mut of_weights = self
                .graph
                .in_order(layer, gradients.weights[layer].as_ref());
            all[slots.scale] = self.weight_scale_gradient(network, layer, *slots, &mut of_weights);
            if let (Some(norm), Some(affine)) = (slots.norm, &self.folded[layer]) {
                let weights = &self.parameters[slots.weights].values;
                all[norm.gamma()] =
                    affine.backward(weights, &mut of_weights, &gradients.bias[layer]);
            }
            all[slots.weights] = of_weights;
        }
        let mut group_errors = vec![[0f64; 3]; self.parameters.len()];
        for (index, layer) in self.graph.net.layers.iter().enumerate() {
            let Some(parameter) = self.scale_of[layer.output] else {
                continue;
            };
            if layer.op.copies_values() {
                continue;
            }
            if self.rule != ScaleRule::Llsq {
                all[parameter][0] += (gradients.scales[index] * self.damping[index]) as f32;
            }
            let sums = group_errors[parameter].iter_mut().zip(errors[index]);
            sums.for_each(|(sum, e)| *sum += e);
        }
        if self.rule == ScaleRule::Llsq {
            for parameter in self.scale_of.iter().flatten() {
                let s = f64::from(self.parameters[*parameter].values[0]);
                all[*parameter][0] = scales::simulated_gradient(group_errors[*parameter], s) as f32;
            }
        }
        all
    }

    /// For each normalized layer, how the loss moves the statistics that were folded.
    pub(crate) fn slopes(&self, gradients: &[Vec<f32>]) -> Vec<Option<Slopes>> {
        let of = |(slots, affine): (&Option<Slots>, &Option<Affine>)| {
            let (slots, affine) = (slots.as_ref()?, affine.as_ref()?);
            let gamma = &gradients[slots.norm?.gamma()];
            Some(affine.slopes(gamma, &gradients[slots.bias]))
        };
        self.slots.iter().zip(&self.folded).map(of).collect()
    }

    /// Adds gradients of the unfolded network's weights, betas and gammas.
    pub(crate) fn add(&self, more: &Gradients, gradients: &mut [Vec<f32>]) {
        let mut add = |parameter: usize, more: &[f32]| {
            let sums = gradients[parameter].iter_mut().zip(more);
            sums.for_each(|(sum, more)| *sum += more);
        };
        for (layer, (slots, affine)) in self.slots.iter().zip(&self.folded).enumerate() {
            let Some(slots) = slots else { continue };
            let weights = self.graph.in_order(layer, more.weights[layer].as_ref());
            add(slots.weights, &weights);
            add(slots.bias, &more.bias[layer]);
            if let (Some(norm), Some(affine)) = (slots.norm, affine) {
                add(norm.gamma(), &affine.of_gamma(&more.gamma[layer]));
            }
        }
    }

    fn weight_scale_gradient(
        &self,
        network: &Network,
        layer: usize,
        slots: Slots,
        of_weights: &mut [f32],
    ) -> Vec<f32> {
        let values: Vec<f32> = self.graph.conv(layer).weights.iter().copied().collect();
        let learned = &self.parameters[slots.scale].values;
        let Some(conv) = network.layers[layer].conv() else {
            return vec![0.0; learned.len()];
        };
        let format = Format {
            bits: conv.weight_bits,
            signed: true,
        };
        let n = values.len() / learned.len();
        let open = [f32::NEG_INFINITY, f32::INFINITY];
        let parts = values.chunks_exact(n).zip(of_weights.chunks_exact_mut(n));
        let of_part = |(index, (values, gradients)): (usize, (&[f32], &mut [f32]))| {
            let unit = conv.weight_scales[index].real() as f32;
            let scaled: Vec<f32> = values.iter().map(|w| w / unit).collect();
            match self.rule {
                ScaleRule::Fixed | ScaleRule::Pact => 0.0,
                ScaleRule::Llsq => {
                    let errors = scales::errors(&scaled, open, format);
                    scales::simulated_gradient(errors, learned[index].into()) as f32
                }
                ScaleRule::Lsq => {
                    let (low, high) = (format.q_min() as f32, format.q_max() as f32);
                    let mut sum = 0f64;
                    for (g, &x) in gradients.iter_mut().zip(&scaled) {
                        let q = x.max(low).min(high).round_ties_even();
                        sum += f64::from(*g * scales::lsq(x, q, format));
                        // LSQ lets nothing through where the weight is clipped.
                        if x < low || x > high {
                            *g = 0.0;
                        }
                    }
                    (sum / (n as f64 * f64::from(high)).sqrt()) as f32
                }
            }
        };
        parts.enumerate().map(of_part).collect()
    }
}
