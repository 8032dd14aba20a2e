//! The integer network: formats, scales, weights, biases and requantization of every layer.
//!
//! Source: LLSQ (Zhao et al., ICLR 2020), section 3; the floors under a weight scale are ours.
//! Invariant: what is returned depends on the float network, the observer and the options alone.

use crate::arrangement::FloatPart;
use crate::float::{Activation, FloatConv, FloatNetwork, FloatOp, FloatPool, FloatPost};
use crate::guarantee::{self, Bound};
use crate::observer::Histogram;
use crate::scale::{self, Method, Values};
use crate::{Choices, Error, Observer};
use arith::{AccumulatorFormat, Format, Overflow, Requant, Scale};
use ndarray::{ArrayView3, Axis};
use network::{
    Bias, Conv, Layer, Network, Op, Part, Pool, Post, Reduction, Residual, Tensor, TensorId,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What shares a weight scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// The layer.
    PerTensor,
    /// Each output channel alone.
    PerChannel,
}

/// Widths of one layer that differ from the network's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerBits {
    /// Weights, 2 to 8.
    pub weight_bits: Option<u8>,
    /// The layer's output, 2 to 8.
    pub activation_bits: Option<u8>,
}

/// What the integer network should be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Weights, 2 to 8.
    pub weight_bits: u8,
    /// Activations, 2 to 8.
    pub activation_bits: u8,
    /// The network's input, 2 to 8.
    pub input_bits: u8,
    /// Outputs that no layer reads, 2 to 16; above 8 they are signed and keep a factor 2 of
    /// headroom over the calibrated maximum.
    pub output_bits: u8,
    /// Bias mantissas, 2 to 16.
    pub bias_bits: u8,
    /// One bias shift per channel instead of one per layer.
    pub bias_shift_per_channel: bool,
    /// Weight scales.
    pub granularity: Granularity,
    /// How scales are chosen.
    pub method: Method,
    /// The accumulator that biases and (estimated) sums must fit, 8 to 32.
    pub accumulator_bits: u8,
    /// Weights whose sums provably fit the accumulator, whatever the input and the order.
    #[serde(default)]
    pub guarantee: bool,
    /// By layer name.
    pub overrides: BTreeMap<String, LayerBits>,
}

impl Options {
    /// The defaults on accumulators of so many bits: the paper's 8-bit biases on up to 16, and 16-bit
    /// ones on wider accumulators, whose machines have room for them. Products of 8-bit operands need both.
    pub fn for_accumulators(accumulator_bits: u8) -> Self {
        Self {
            bias_bits: if accumulator_bits > 16 { 16 } else { 8 },
            accumulator_bits,
            ..Self::default()
        }
    }

    /// Largest bias of a channel with its own scale, in units of the accumulator. One shift per layer
    /// rounds all biases to the same multiple of the unit, so a channel without weights, whose unit
    /// is tiny, would ruin the others'. Wider mantissas lose less: each bit more than 8 leaves room
    /// for one more.
    pub fn largest_bias(&self, weight_bits: u8) -> f64 {
        let more = |bits: u8, than: u8| i32::from(bits.saturating_sub(than));
        let bits = 10 + more(weight_bits, 4) + more(self.bias_bits, 8);
        2f64.powi(bits.min(i32::from(self.accumulator_bits) - 3))
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            weight_bits: 4,
            activation_bits: 4,
            input_bits: 8,
            output_bits: 16,
            bias_bits: 8,
            bias_shift_per_channel: false,
            granularity: Granularity::PerChannel,
            method: Method::Mse,
            accumulator_bits: 16,
            guarantee: false,
            overrides: BTreeMap::new(),
        }
    }
}

/// Range of an activation that nobody observed (its scale is this over the number of steps).
const UNOBSERVED_RANGE: f64 = 8.0;

/// Scale of weights that are all 0.
const UNIT: Scale = Scale {
    mantissa: 128,
    exponent: -14,
};

/// Quantizes a network. Without an observer every activation has the default range ±8 (0 to 8
/// when it cannot be negative): good for latency, which does not depend on values.
///
/// # Errors
/// Options outside their range, tensors that the observer has not seen, and layers whose scales
/// have no integer form.
pub fn quantize(
    net: &FloatNetwork,
    observer: Option<&Observer>,
    options: &Options,
) -> Result<Network, Error> {
    quantize_with(net, observer, options, &Choices::default())
}

/// As [`quantize`], with some decisions taken already.
///
/// # Errors
/// As [`quantize`].
///
/// # Panics
/// Chosen weights without scales, or choices of another network's sizes.
pub fn quantize_with(
    net: &FloatNetwork,
    observer: Option<&Observer>,
    options: &Options,
    choices: &Choices,
) -> Result<Network, Error> {
    check(net, options)?;
    let tensors = tensors(net, observer, options, choices)?;
    integers(Quantizer {
        net,
        observer,
        options,
        choices,
        tensors,
        weight_scales: None,
    })
}

/// As [`quantize`], at scales that are known already (a trainer's): formats and scales of `tensors`,
/// one per tensor, and the weight scales of each layer (empty for layers without weights). Weights
/// round to nearest and biases are not corrected.
///
/// # Errors
/// Options outside their range and layers whose scales have no integer form.
pub fn quantize_at(
    net: &FloatNetwork,
    tensors: Vec<Tensor>,
    weight_scales: &[Vec<Scale>],
    options: &Options,
) -> Result<Network, Error> {
    check(net, options)?;
    integers(Quantizer {
        net,
        observer: None,
        options,
        choices: &Choices::default(),
        tensors,
        weight_scales: Some(weight_scales),
    })
}

/// For each tensor the one whose scale it has: copies (max pooling, concatenation) share a scale with
/// what they copy.
pub fn scale_groups(net: &FloatNetwork) -> Vec<usize> {
    groups(net)
}

fn integers(mut quantizer: Quantizer<'_>) -> Result<Network, Error> {
    let net = quantizer.net;
    let mut layers = Vec::with_capacity(net.layers.len());
    for layer in &net.layers {
        let error = |problem: String| Error::Layer {
            layer: layer.name.clone(),
            problem,
        };
        let op = match &layer.op {
            FloatOp::Conv(conv) => {
                Op::Conv(quantizer.conv(&layer.name, conv, layer.output, &error)?)
            }
            FloatOp::Pool(pool) => Op::Pool(quantizer.pool(pool, layer.output, &error)?),
            FloatOp::Concat(parts) => Op::Concat(quantizer.concat(parts, layer.output, &error)?),
        };
        layers.push(Layer {
            name: layer.name.clone(),
            output: TensorId(layer.output),
            op,
        });
    }
    Ok(Network {
        name: net.name.clone(),
        tensors: quantizer.tensors,
        input: TensorId(0),
        outputs: net.outputs.iter().map(|&t| TensorId(t)).collect(),
        layers,
    })
}

fn check(net: &FloatNetwork, options: &Options) -> Result<(), Error> {
    let within = |name: &str, value: u8, max: u8| {
        let min = if name == "accumulator_bits" { 8 } else { 2 };
        if (min..=max).contains(&value) {
            Ok(())
        } else {
            Err(Error::Options(format!(
                "{name} = {value} is outside {min}..={max}"
            )))
        }
    };
    within("weight_bits", options.weight_bits, 8)?;
    within("activation_bits", options.activation_bits, 8)?;
    within("input_bits", options.input_bits, 8)?;
    within("output_bits", options.output_bits, 16)?;
    within("bias_bits", options.bias_bits, 16)?;
    within("accumulator_bits", options.accumulator_bits, 32)?;
    for (name, bits) in &options.overrides {
        if !net.layers.iter().any(|layer| layer.name == *name) {
            let names = net.layers.iter().map(|layer| layer.name.as_str());
            let nearest = names
                .clone()
                .min_by_key(|known| strsim::damerau_levenshtein(name, known));
            let nearest =
                nearest.map_or(String::new(), |known| format!(", did you mean `{known}`?"));
            let listed: Vec<&str> = names.collect();
            return Err(Error::Options(format!(
                "override: there is no layer `{name}`{nearest} Its layers are {}",
                listed.join(", ")
            )));
        }
        within(
            &format!("override of `{name}`: weight_bits"),
            bits.weight_bits.unwrap_or(8),
            8,
        )?;
        let activation = bits.activation_bits.unwrap_or(8);
        within(
            &format!("override of `{name}`: activation_bits"),
            activation,
            8,
        )?;
    }
    Ok(())
}

/// The representative of a tensor's group.
fn find(root: &[usize], mut t: usize) -> usize {
    while root[t] != t {
        t = root[t];
    }
    t
}

/// The tensor whose scale each tensor has: copies share one with what they copy.
fn groups(net: &FloatNetwork) -> Vec<usize> {
    let mut root: Vec<usize> = (0..net.tensors.len()).collect();
    for (output, input) in net.shared_scales() {
        let (a, b) = (find(&root, output), find(&root, input));
        root[a.max(b)] = a.min(b);
    }
    (0..root.len()).map(|t| find(&root, t)).collect()
}

/// Whether each tensor can only be 0 or more.
fn non_negative(net: &FloatNetwork, observer: Option<&Observer>) -> Result<Vec<bool>, Error> {
    let mut known = vec![false; net.tensors.len()];
    if let Some(observer) = observer {
        known[0] = observer.get(&net.tensors[0].name)?.min() >= 0.0;
    }
    for layer in &net.layers {
        let clamped = |post: &FloatPost| matches!(post.activation, Activation::Clamp { low, .. } if low >= 0.0);
        known[layer.output] = match &layer.op {
            FloatOp::Conv(conv) => clamped(&conv.post),
            FloatOp::Pool(pool) => {
                clamped(&pool.post) || layer.op.inputs().iter().all(|&t| known[t])
            }
            FloatOp::Concat(parts) => parts.iter().all(|part| known[part.tensor]),
        };
    }
    Ok(known)
}

/// Format and scale of every tensor.
fn tensors(
    net: &FloatNetwork,
    observer: Option<&Observer>,
    options: &Options,
    choices: &Choices,
) -> Result<Vec<Tensor>, Error> {
    let n = net.tensors.len();
    let groups = groups(net);
    let non_negative = non_negative(net, observer)?;
    let mut is_read = vec![false; n];
    let mut made_by = vec![None; n];
    for layer in &net.layers {
        layer.op.inputs().iter().for_each(|&t| is_read[t] = true);
        made_by[layer.output] = Some(layer);
    }
    let members = |root: usize| (0..n).filter(|&t| groups[t] == root).collect::<Vec<_>>();
    let roots: Vec<usize> = (0..n).filter(|&t| groups[t] == t).collect();
    let chosen: Vec<(Format, Scale)> = roots
        .par_iter()
        .map(|&root| {
            let members = members(root);
            let bits = |&t: &usize| match made_by[t] {
                None => options.input_bits,
                Some(_) if members.len() == 1 && !is_read[t] => options.output_bits,
                Some(layer) => options
                    .overrides
                    .get(&layer.name)
                    .and_then(|o| o.activation_bits)
                    .unwrap_or(options.activation_bits),
            };
            let bits = members
                .iter()
                .map(bits)
                .max()
                .unwrap_or(options.activation_bits);
            let signed = bits > 8 || members.iter().any(|&t| !non_negative[t]);
            let format = Format { bits, signed };
            let scale = match members.iter().find_map(|t| choices.scales.get(t)) {
                Some(&chosen) => chosen,
                None => activation_scale(net, observer, options, &members, format)?,
            };
            Ok((format, scale))
        })
        .collect::<Result<_, Error>>()?;
    let by_root: BTreeMap<usize, (Format, Scale)> = roots.into_iter().zip(chosen).collect();
    let tensor = |t: usize| {
        let (format, scale) = by_root[&groups[t]];
        let (name, shape) = (net.tensors[t].name.clone(), net.tensors[t].shape);
        Tensor {
            name,
            shape,
            format,
            scale,
        }
    };
    Ok((0..n).map(tensor).collect())
}

fn activation_scale(
    net: &FloatNetwork,
    observer: Option<&Observer>,
    options: &Options,
    members: &[usize],
    format: Format,
) -> Result<Scale, Error> {
    let steps = 2f64.powi(i32::from(format.bits) - i32::from(format.signed));
    let Some(observer) = observer else {
        return Ok(Scale::nearest(UNOBSERVED_RANGE / steps).unwrap_or(UNIT));
    };
    let copied = net.copied();
    let mut all = Histogram::new();
    for &t in members.iter().filter(|&&t| !copied[t]) {
        all.merge(observer.get(&net.tensors[t].name)?);
    }
    if format.bits > 8 {
        // Headroom costs one bit of many; a clipped logit would cost the answer.
        return Ok(Scale::nearest(2.0 * all.peak() / steps).unwrap_or(UNIT));
    }
    Ok(all.search(format, options.method).unwrap_or(UNIT))
}

struct Quantizer<'a> {
    net: &'a FloatNetwork,
    observer: Option<&'a Observer>,
    options: &'a Options,
    choices: &'a Choices,
    tensors: Vec<Tensor>,
    /// By layer, where they are given.
    weight_scales: Option<&'a [Vec<Scale>]>,
}

impl Quantizer<'_> {
    fn conv(
        &mut self,
        name: &str,
        conv: &FloatConv,
        output: usize,
        error: &dyn Fn(String) -> Error,
    ) -> Result<Conv, Error> {
        let over = self.options.overrides.get(name);
        let weight_bits = over
            .and_then(|o| o.weight_bits)
            .unwrap_or(self.options.weight_bits);
        let s_a = self.tensors[conv.input].scale.real();
        if self.net.shapes_only {
            return self.conv_of_shape(conv, weight_bits, output, error);
        }
        let choice = self.choices.layers.get(&output);
        let chosen = choice.and_then(|c| c.weight_scales.clone());
        let given = self.given(output).map(<[Scale]>::to_vec);
        let weight_scales = chosen.or(given).unwrap_or_else(|| {
            let found = self.weight_scales(conv, weight_bits, s_a);
            if self.options.guarantee {
                guarantee::scales(conv, &found, weight_bits, s_a, self.bound(conv.input))
            } else {
                found
            }
        });
        let scale_of = |c: usize| weight_scales[if weight_scales.len() == 1 { 0 } else { c }];
        let format = Format {
            bits: weight_bits,
            signed: true,
        };
        let mut weights = ndarray::Array4::<i8>::zeros(conv.weights.raw_dim());
        for (c, (mut q, w)) in weights
            .axis_iter_mut(Axis(0))
            .zip(conv.weights.axis_iter(Axis(0)))
            .enumerate()
        {
            let s = scale_of(c).real();
            q.zip_mut_with(&w, |q, &w| *q = round_to(f64::from(w) / s, format) as i8);
        }
        if let Some(chosen) = choice.and_then(|c| c.weights.as_ref()) {
            assert!(
                choice.is_some_and(|c| c.weight_scales.is_some()),
                "weights are chosen in units of chosen scales"
            );
            weights.assign(chosen);
        }
        let units: Vec<f64> = (0..conv.bias.len())
            .map(|c| scale_of(c).real() * s_a)
            .collect();
        let fixed = choice.and_then(|c| c.bias.as_deref());
        let mut bias = self.fitting_bias(conv, &weights, &units, s_a, fixed);
        if self.options.guarantee {
            let bound = self.bound(conv.input);
            for _ in 0..guarantee::MAX_ROUNDS {
                let values = self.bias(&bias, &units).map_err(error)?;
                let wanted = |c: usize, w: f32| f64::from(w) / (units[c] / s_a);
                if !guarantee::enforce(&mut weights, &conv.weights, wanted, &values, bound) {
                    break;
                }
                bias = self.fitting_bias(conv, &weights, &units, s_a, fixed);
            }
        }
        let bias = self.bias(&bias, &units).map_err(error)?;
        if self.options.guarantee {
            guarantee::check(&weights, &bias, self.bound(conv.input)).map_err(error)?;
        }
        let units = if weight_scales.len() == 1 {
            vec![units[0]]
        } else {
            units
        };
        let post = self.post(&units, &conv.post, output, error)?;
        Ok(Conv {
            input: TensorId(conv.input),
            window: conv.window,
            groups: conv.groups,
            weight_bits,
            weights,
            weight_scales,
            bias,
            post,
        })
    }

    /// The bias that was chosen, else the layer's own with its correction.
    fn fitting_bias(
        &self,
        conv: &FloatConv,
        weights: &ndarray::Array4<i8>,
        units: &[f64],
        s_a: f64,
        chosen: Option<&[f32]>,
    ) -> Vec<f32> {
        if let Some(chosen) = chosen {
            return chosen.to_vec();
        }
        let means = self.input_means(conv);
        let kernels = weights
            .axis_iter(Axis(0))
            .zip(conv.weights.axis_iter(Axis(0)));
        kernels
            .enumerate()
            .map(|(c, kernel)| {
                conv.bias[c] - added_by_rounding(conv, c, kernel, units[c] / s_a, means.as_deref())
            })
            .collect()
    }

    /// What the sums of a convolution of this tensor have to keep to.
    fn bound(&self, input: usize) -> Bound {
        Bound {
            input: self.tensors[input].format,
            accumulator: AccumulatorFormat {
                width_bits: self.options.accumulator_bits,
                overflow: Overflow::Saturate,
            },
        }
    }

    /// A convolution of which only the shape is known: its weights and biases are 0, its scale is that
    /// of weights as they are usually initialised.
    fn conv_of_shape(
        &mut self,
        conv: &FloatConv,
        weight_bits: u8,
        output: usize,
        error: &dyn Fn(String) -> Error,
    ) -> Result<Conv, Error> {
        let (n_out, n_in, height, width) = conv.weights.dim();
        let spread = (6.0 / (n_in * height * width).max(1) as f64).sqrt();
        let step = spread / 2f64.powi(i32::from(weight_bits) - 1);
        let scale = Scale::nearest(step).unwrap_or(UNIT);
        let unit = scale.real() * self.tensors[conv.input].scale.real();
        let post = self.post(&[unit], &conv.post, output, error)?;
        let bias = Bias {
            mantissa: 0,
            shift: 0,
        };
        Ok(Conv {
            input: TensorId(conv.input),
            window: conv.window,
            groups: conv.groups,
            weight_bits,
            weights: ndarray::Array4::zeros((n_out, n_in, height, width)),
            weight_scales: vec![scale],
            bias: vec![bias; n_out],
            post,
        })
    }

    fn given(&self, output: usize) -> Option<&[Scale]> {
        let layer = self.net.layers.iter().position(|l| l.output == output)?;
        Some(&self.weight_scales?[layer])
    }

    /// The means of the input's channels over the calibration images, at which the bias takes back
    /// what rounding has added to the weights (bias correction: Nagel et al., Data-Free Quantization,
    /// ICCV 2019, section 4.2). `None`, and so no correction, for min-max and without calibration.
    fn input_means(&self, conv: &FloatConv) -> Option<Vec<f64>> {
        if self.options.method == Method::MinMax {
            return None;
        }
        let channels = self
            .observer?
            .channels(&self.net.tensors[conv.input].name)?;
        Some(channels.iter().map(|channel| channel.mean()).collect())
    }

    /// Scales by the method, raised to two floors. Per channel, a bias may not exceed
    /// [`Options::largest_bias`], so that dead channels do not ruin the others' biases. And the bias plus the larger half (positive or negative) of the weights, all at
    /// the input's root mean square, must fit the accumulator: wide operands give up precision
    /// rather than saturate.
    fn weight_scales(&self, conv: &FloatConv, bits: u8, s_a: f64) -> Vec<Scale> {
        let per_channel = self.options.granularity == Granularity::PerChannel;
        let format = Format { bits, signed: true };
        let of = |values: &[f32]| {
            let peak = f64::from(values.iter().fold(0f32, |m, w| m.max(w.abs())));
            // Without calibration only the timing counts, which no scale changes.
            let method = self
                .observer
                .map_or(Method::MinMax, |_| self.options.method);
            scale::search(Values::Exact(values), peak, format, method)
        };
        let all = conv.weights.as_standard_layout();
        let all = all.as_slice().unwrap_or_default();
        let k = all.len() / conv.bias.len();
        let acc_bits = i32::from(self.options.accumulator_bits);
        let dead = self.options.largest_bias(bits);
        let rms = match self
            .observer
            .map(|o| o.get(&self.net.tensors[conv.input].name))
        {
            Some(Ok(histogram)) => histogram.rms(),
            _ => 0.0,
        };
        let floor = |(c, kernel): (usize, &[f32])| {
            let bias = f64::from(conv.bias[c].abs());
            let sum =
                |sign: f32| -> f64 { kernel.iter().map(|&w| f64::from((w * sign).max(0.0))).sum() };
            let peak = bias + sum(1.0).max(sum(-1.0)) * rms;
            let fits = peak / (s_a * (2f64.powi(acc_bits - 1) - 1.0));
            if per_channel {
                fits.max(bias / (s_a * dead))
            } else {
                fits
            }
        };
        let raise = |found: Scale, floor: f64| match scale::at_least(floor) {
            Some(least) if least.real() > found.real() => least,
            _ => found,
        };
        let floors: Vec<f64> = all.par_chunks(k).enumerate().map(floor).collect();
        if !per_channel {
            let floor = floors.iter().fold(0.0, |m: f64, &f| m.max(f));
            return vec![raise(of(all).unwrap_or(UNIT), floor)];
        }
        let found: Vec<Option<Scale>> = all.par_chunks(k).map(of).collect();
        let largest = found
            .iter()
            .flatten()
            .copied()
            .max_by(|a, b| a.real().total_cmp(&b.real()));
        // A channel without weights takes part in the layer's usual range.
        let default = largest.unwrap_or(UNIT);
        found
            .into_iter()
            .zip(floors)
            .map(|(s, f)| raise(s.unwrap_or(default), f))
            .collect()
    }

    /// Mantissas and the smallest shift that fits the layer's (or channel's) largest bias.
    fn bias(&self, bias: &[f32], units: &[f64]) -> Result<Vec<Bias>, String> {
        let format = Format {
            bits: self.options.bias_bits,
            signed: true,
        };
        let width_bits = self.options.accumulator_bits;
        let accumulator = AccumulatorFormat {
            width_bits,
            overflow: Overflow::Saturate,
        };
        let wanted: Vec<f64> = bias
            .iter()
            .zip(units)
            .map(|(&b, unit)| f64::from(b) / unit)
            .collect();
        let fit = |values: &[f64]| {
            (0u8..32).find(|&e| {
                values.iter().all(|v| {
                    let q = (v / 2f64.powi(i32::from(e))).round_ties_even();
                    q >= f64::from(format.q_min()) && q <= f64::from(format.q_max())
                })
            })
        };
        let of_layer = if self.options.bias_shift_per_channel {
            None
        } else {
            fit(&wanted)
        };
        let one = |(c, v): (usize, &f64)| {
            let shift = of_layer.or_else(|| fit(&[*v]));
            let mantissa = |e: u8| round_to(v / 2f64.powi(i32::from(e)), format);
            match shift.map(|e| Bias {
                mantissa: mantissa(e) as i16,
                shift: e,
            }) {
                Some(b) if accumulator.holds(i64::from(b.mantissa) << b.shift) => Ok(b),
                _ => Err(format!(
                    "channel {c}: bias {v:.0} (in units of the accumulator) does not fit {} bits",
                    accumulator.width_bits
                )),
            }
        };
        wanted.iter().enumerate().map(one).collect()
    }

    fn pool(
        &mut self,
        pool: &FloatPool,
        output: usize,
        error: &dyn Fn(String) -> Error,
    ) -> Result<Pool, Error> {
        let mut pool = pool.clone();
        if pool.reduction == Reduction::Max {
            let post = self.identity(&pool.post, output);
            return Ok(integer_pool(&pool, post));
        }
        // The operand with the larger shift comes first (its shift is the sum's).
        if let Some(view) = &mut pool.post.residual
            && self.tensors[pool.input].scale.real() > self.tensors[view.tensor].scale.real()
        {
            std::mem::swap(&mut pool.input, &mut view.tensor);
            std::mem::swap(&mut pool.channel_offset, &mut view.channel_offset);
            std::mem::swap(&mut pool.window.stride, &mut view.stride);
        }
        let unit = self.tensors[pool.input].scale.real();
        let n_taps = pool.window.n_taps();
        let units: Vec<f64> = match pool.margin {
            None => vec![unit / pool.divisor as f64],
            Some(_) => (1..=n_taps).map(|n| unit / n as f64).collect(),
        };
        let post = self.post(&units, &pool.post, output, error)?;
        Ok(integer_pool(&pool, post))
    }

    /// Each part goes from its tensor's scale to the output's.
    fn concat(
        &self,
        parts: &[FloatPart],
        output: usize,
        error: &dyn Fn(String) -> Error,
    ) -> Result<Vec<Part>, Error> {
        let s_o = self.tensors[output].scale;
        let integer = |part: &FloatPart| {
            let from = &self.tensors[part.tensor];
            let requant = if from.scale == s_o {
                Requant::IDENTITY
            } else {
                let factor = from.scale.real() / s_o.real();
                Requant::nearest(factor).ok_or_else(|| {
                    error(format!(
                        "`{}` is {factor} times as coarse as what it is joined to: at most 255.5",
                        from.name
                    ))
                })?
            };
            Ok(Part {
                tensor: TensorId(part.tensor),
                channel: part.channel,
                n_channels: part.n_channels,
                stride: part.stride,
                offset: part.offset,
                requant,
            })
        };
        parts.iter().map(integer).collect()
    }

    /// What follows a maximum: the input's unit stays.
    fn identity(&self, post: &FloatPost, output: usize) -> Post {
        let (q_min, q_max, negative_slope) = clamp(&self.tensors[output], post.activation);
        let requant = vec![Requant::IDENTITY];
        Post {
            requant,
            residual: None,
            negative_slope,
            q_min,
            q_max,
        }
    }

    fn post(
        &mut self,
        units: &[f64],
        post: &FloatPost,
        output: usize,
        error: &dyn Fn(String) -> Error,
    ) -> Result<Post, Error> {
        let residual_unit = post
            .residual
            .map(|view| self.tensors[view.tensor].scale.real());
        if self.tensors[output].format.bits > 8 {
            // Nobody reads a wide output, so its unit may grow until the multipliers fit.
            let largest = units
                .iter()
                .copied()
                .chain(residual_unit)
                .fold(0.0, f64::max);
            if let Some(least) = scale::at_least(largest / 128.0)
                && least.real() > self.tensors[output].scale.real()
            {
                self.tensors[output].scale = least;
            }
        }
        let s_o = self.tensors[output].scale.real();
        let nearest = |unit: f64| {
            Requant::nearest(unit / s_o).ok_or_else(|| {
                error(format!(
                    "requantization factor {} is outside 0..255.5: its scales are too far apart",
                    unit / s_o
                ))
            })
        };
        let requant: Vec<Requant> = units
            .iter()
            .map(|&unit| nearest(unit))
            .collect::<Result<_, _>>()?;
        let least_shift = requant.iter().map(|r| r.shift).min().unwrap_or(0);
        let residual = match (post.residual, residual_unit) {
            (Some(view), Some(unit)) => {
                let mut second = nearest(unit)?;
                if second.shift > least_shift {
                    let mantissa = unit / s_o * 2f64.powi(i32::from(least_shift));
                    let mantissa = mantissa.round_ties_even() as u8;
                    second = Requant {
                        mantissa,
                        shift: least_shift,
                    };
                }
                Some(Residual {
                    tensor: TensorId(view.tensor),
                    stride: view.stride,
                    channel_offset: view.channel_offset,
                    requant: second,
                })
            }
            _ => None,
        };
        let (q_min, q_max, negative_slope) = clamp(&self.tensors[output], post.activation);
        Ok(Post {
            requant,
            residual,
            negative_slope,
            q_min,
            q_max,
        })
    }
}

/// What rounding the weights of output channel `c` adds to its sums where every input channel has
/// its mean.
fn added_by_rounding(
    conv: &FloatConv,
    c: usize,
    (q, w): (ArrayView3<'_, i8>, ArrayView3<'_, f32>),
    scale: f64,
    means: Option<&[f64]>,
) -> f32 {
    let Some(means) = means else { return 0.0 };
    let n_group_outputs = conv.bias.len() / conv.groups;
    let first = c / n_group_outputs * conv.weights.dim().1;
    let kernels = q.outer_iter().zip(w.outer_iter());
    let added = kernels.zip(&means[first..]).map(|((q, w), mean)| {
        let rounded: f64 = q.iter().map(|&q| f64::from(q)).sum::<f64>() * scale;
        let exact: f64 = w.iter().map(|&w| f64::from(w)).sum();
        mean * (rounded - exact)
    });
    added.sum::<f64>() as f32
}

fn integer_pool(pool: &FloatPool, post: Post) -> Pool {
    Pool {
        input: TensorId(pool.input),
        channel_offset: pool.channel_offset,
        window: pool.window,
        reduction: pool.reduction,
        margin: pool.margin,
        post,
    }
}

/// `clamp(round(x), format)`, a tie to even.
pub(crate) fn round_to(x: f64, format: Format) -> i32 {
    x.round_ties_even()
        .clamp(f64::from(format.q_min()), f64::from(format.q_max())) as i32
}

/// An activation function as clamp and negative slope.
fn clamp(output: &Tensor, activation: Activation) -> (i32, i32, Option<Requant>) {
    let (format, s) = (output.format, output.scale.real());
    match activation {
        Activation::None => (format.q_min(), format.q_max(), None),
        Activation::Clamp { low, high } => {
            let q_min = round_to(f64::from(low) / s, format);
            (
                q_min,
                round_to(f64::from(high) / s, format).max(q_min),
                None,
            )
        }
        Activation::Leaky { slope } => {
            let slope = f64::from(slope);
            let fine = Requant::nearest(slope).filter(|r| r.shift <= 15);
            let coarse = Requant {
                mantissa: (slope * 32768.0).round_ties_even() as u8,
                shift: 15,
            };
            (format.q_min(), format.q_max(), Some(fine.unwrap_or(coarse)))
        }
    }
}
