//! The walk through the layers: each convolution learns its rounding against the integers that the
//! layers before it, already rounded, really give it.
//!
//! Invariant: a layer sees the integers of the functional engine, saturation included; its target
//! is the float network's value.

use crate::problem::{Plane, problems};
use crate::{Error, Guarantee, Progress, Rounded, RoundingSettings, Subject, learn};
use arith::AccumulatorFormat;
use functional::{Detail, Engine, Level, Threads, Values};
use ndarray::{Array2, Array4, ArrayView4, Axis};
use network::{Conv, Network};
use quantizer::{Choices, FloatConv, FloatOp};
use rayon::prelude::*;

/// How [`adaround`] works.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Of each layer; the seed is mixed with the layer's number.
    pub rounding: RoundingSettings,
}

/// What learning did to a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerFit {
    /// Layer name.
    pub layer: String,
    /// Mean squared error of its output, rounding to nearest.
    pub nearest_error: f64,
    /// The same of the learned rounding.
    pub error: f64,
}

/// The learned network.
#[derive(Clone, Debug)]
pub struct Fit {
    /// What was decided.
    pub choices: Choices,
    /// Convolutions in execution order.
    pub layers: Vec<LayerFit>,
}

/// Learns the rounding of every convolution. `start` may hold scales; those that it lacks are the
/// quantizer's.
///
/// # Errors
/// A layer that has no integer form.
pub fn adaround(
    subject: &Subject<'_>,
    start: &Choices,
    settings: &Settings,
    progress: &mut Progress<'_>,
) -> Result<Fit, Error> {
    let first = subject.quantize(start)?;
    let mut choices = start.clone();
    let found = Choices::scales_of(&first);
    for (tensor, scale) in found.scales {
        choices.scales.entry(tensor).or_insert(scale);
    }
    for (tensor, layer) in found.layers {
        let choice = choices.layers.entry(tensor).or_default();
        choice.weight_scales = choice.weight_scales.take().or(layer.weight_scales);
    }
    let mut network = subject.quantize(&choices)?;
    let mut walk = Walk::new(subject, &network)?;
    let mut layers = Vec::new();
    let n_layers = network.layers.len();
    for index in 0..n_layers {
        let name = network.layers[index].name.clone();
        progress(&name, index, n_layers);
        let output = network.layers[index].output.index();
        if let (Some(conv), Some(float)) =
            (network.layers[index].conv(), float_conv(subject, output))
        {
            let fit = fit_layer(subject, &walk, &network, conv, float, output, settings);
            let units = units(&network, conv);
            let choice = choices.layers.entry(output).or_default();
            choice.weights = Some(fit.weights);
            choice.bias = Some(
                fit.bias
                    .iter()
                    .zip(&units)
                    .map(|(b, unit)| (f64::from(*b) * unit) as f32)
                    .collect(),
            );
            layers.push(LayerFit {
                layer: name,
                nearest_error: fit.nearest_error,
                error: fit.error,
            });
            network = subject.quantize(&choices)?;
        }
        walk.advance(subject, &network, index)?;
    }
    progress("", n_layers, n_layers);
    Ok(Fit { choices, layers })
}

pub(crate) fn float_conv<'a>(subject: &Subject<'a>, output: usize) -> Option<&'a FloatConv> {
    subject
        .float
        .layers
        .iter()
        .find_map(|layer| match &layer.op {
            FloatOp::Conv(conv) if layer.output == output => Some(conv),
            _ => None,
        })
}

/// Real value of a unit of each channel's sum, as the weights' and the input's scales say it.
fn units(network: &Network, conv: &Conv) -> Vec<f64> {
    let s_a = network.tensor(conv.input).scale.real();
    let scale = |c: usize| conv.weight_scales[if conv.weight_scales.len() == 1 { 0 } else { c }];
    (0..conv.n_output_channels())
        .map(|c| scale(c).real() * s_a)
        .collect()
}

/// The calibration images' integers, as far as the walk has come.
struct Walk {
    images: Vec<Vec<Values>>,
}

impl Walk {
    fn new(subject: &Subject<'_>, network: &Network) -> Result<Self, Error> {
        let engine = Engine::new(network, subject.arithmetic, Level::best())?;
        let input = network.tensor(network.input);
        let images = (0..subject.targets.n_fit())
            .into_par_iter()
            .map(|index| engine.begin(&(subject.images)(index, input)))
            .collect::<Result<_, _>>()?;
        Ok(Self { images })
    }

    /// Runs one layer on every image; tensors that no later layer reads are given up.
    fn advance(
        &mut self,
        subject: &Subject<'_>,
        network: &Network,
        index: usize,
    ) -> Result<(), Error> {
        let engine = Engine::new(network, subject.arithmetic, Level::best())?;
        let done: Vec<usize> = network.layers[index]
            .inputs()
            .into_iter()
            .filter(|&t| network.consumers(t).last() == Some(&index))
            .map(network::TensorId::index)
            .collect();
        self.images.par_iter_mut().for_each(|tensors| {
            engine.advance(index..index + 1, tensors, Detail::Values, Threads::One);
            for &t in &done {
                tensors[t] = Values::empty(&network.tensors[t]);
            }
        });
        Ok(())
    }

    fn planes(&self, tensor: usize) -> Vec<Plane> {
        self.images
            .par_iter()
            .map(|tensors| Plane::of(&tensors[tensor]))
            .collect()
    }
}

/// How far rounding to a mantissa may move a bias, about.
fn bias_step(bias: &[f32], bits: u8) -> i64 {
    let peak = bias.iter().fold(0f32, |m, b| m.max(b.abs()));
    (f64::from(peak) / (2f64.powi(i32::from(bits) - 1) - 1.0)).ceil() as i64
}

struct Fitted {
    weights: Array4<i8>,
    bias: Vec<f32>,
    nearest_error: f64,
    error: f64,
}

fn fit_layer(
    subject: &Subject<'_>,
    walk: &Walk,
    network: &Network,
    conv: &Conv,
    float: &FloatConv,
    output: usize,
    settings: &Settings,
) -> Fitted {
    let input = walk.planes(conv.input.index());
    let residual = conv.post.residual.map(|r| walk.planes(r.tensor.index()));
    let sample = subject.targets.sample(output);
    let bias: Vec<f32> = (conv.bias.iter()).map(|b| b.value() as f32).collect();
    let guarantee = subject.options.guarantee.then(|| Guarantee {
        input: network.tensor(conv.input).format,
        accumulator: AccumulatorFormat {
            width_bits: subject.options.accumulator_bits,
            ..subject.arithmetic.accumulator
        },
        margin: bias_step(&bias, subject.options.bias_bits),
    });
    let problems = problems(
        network,
        conv,
        output,
        sample,
        &input,
        residual.as_deref(),
        guarantee,
    );
    drop((input, residual));
    let units = units(network, conv);
    let format = arith::Format {
        bits: conv.weight_bits,
        signed: true,
    };
    let limits = [format.q_min() as i8, format.q_max() as i8];
    let per_group = conv.n_output_channels() / conv.groups;
    let s_a = network.tensor(conv.input).scale.real();
    let fits: Vec<Rounded> = problems
        .par_iter()
        .enumerate()
        .map(|(group, problem)| {
            let channels = group * per_group..(group + 1) * per_group;
            let mut weights = Array2::zeros((per_group, conv.reduction_length()));
            for (c, mut row) in channels.clone().zip(weights.axis_iter_mut(Axis(0))) {
                let scale = units[c] / s_a;
                let kernel = float.weights.index_axis(Axis(0), c);
                let steps = kernel.permuted_axes([1, 2, 0]);
                for (place, &w) in row.iter_mut().zip(steps) {
                    *place = (f64::from(w) / scale) as f32;
                }
            }
            let mixed = settings.rounding.seed ^ ((output as u64) << 32) ^ group as u64;
            let rounding = RoundingSettings {
                seed: mixed,
                ..settings.rounding.clone()
            };
            learn(problem, &weights, &bias[channels], limits, &rounding)
        })
        .collect();
    let (_, n, kernel_height, kernel_width) = conv.weights.dim();
    let mut weights = Array4::zeros(conv.weights.raw_dim());
    for (group, fit) in fits.iter().enumerate() {
        for (c, row) in fit.weights.outer_iter().enumerate() {
            let row = row.as_slice().expect("rows are contiguous");
            let steps = ArrayView4::from_shape((1, kernel_height, kernel_width, n), row)
                .expect("a weight for every step");
            let kernel = steps.permuted_axes([0, 3, 1, 2]);
            weights
                .index_axis_mut(Axis(0), group * per_group + c)
                .assign(&kernel.index_axis(Axis(0), 0));
        }
    }
    Fitted {
        weights,
        bias: fits.iter().flat_map(|fit| fit.bias.clone()).collect(),
        nearest_error: fits.iter().map(|fit| fit.nearest_error).sum(),
        error: fits.iter().map(|fit| fit.error).sum(),
    }
}
