//! The passes against slow and obvious ones, on random networks of every kind of layer.

use crate::backward::{Context, backward};
use crate::data::{Augmentation, Data, generator};
use crate::float::Float;
use crate::graph::Graph;
use crate::normalization::{Norm, Slopes, Statistics};
use crate::optimizer::Role;
use crate::{Distillation, Optimizer, ScaleRule, Settings, Trainer};
use arith::{AccumulatorFormat, Arithmetic, Overflow, ReductionOrder, Rounding, SplitMix64};
use ndarray::{Array3, Array4};
use network::{Margin, Network, Reduction, Shape, Window};
use proptest::prelude::*;
use quantizer::{
    Activation, FloatConv, FloatLayer, FloatNetwork, FloatOp, FloatPart, FloatPool, FloatPost,
    FloatTensor, Granularity, Options, View,
};

fn real(rng: &mut SplitMix64) -> f32 {
    rng.between(-1000, 1000) as f32 / 1000.0
}

fn window(rng: &mut SplitMix64, shape: Shape) -> Option<(Window, [usize; 2])> {
    let kernel = [rng.size(1, 3), rng.size(1, 3)];
    let window = Window {
        kernel,
        stride: [rng.size(1, 2), rng.size(1, 2)],
        dilation: [rng.size(1, 2), rng.size(1, 2)],
        pad: kernel.map(|k| k / 2),
    };
    let after = [rng.size(0, 1), rng.size(0, 1)];
    let height = window.output_extent(0, shape.height, after[0].min(window.pad[0]))?;
    let width = window.output_extent(1, shape.width, after[1].min(window.pad[1]))?;
    Some((window, [height, width]))
}

fn activation(rng: &mut SplitMix64) -> Activation {
    match rng.size(0, 3) {
        0 => Activation::None,
        1 => Activation::Leaky { slope: 0.125 },
        2 => Activation::Clamp {
            low: 0.0,
            high: 3.0,
        },
        _ => Activation::Clamp {
            low: 0.0,
            high: f32::INFINITY,
        },
    }
}

struct Builder {
    rng: SplitMix64,
    net: FloatNetwork,
}

impl Builder {
    fn shape(&self, tensor: usize) -> Shape {
        self.net.tensors[tensor].shape
    }

    fn any(&mut self) -> usize {
        self.rng.size(0, self.net.tensors.len() - 1)
    }

    fn push(&mut self, shape: Shape, op: FloatOp) {
        let output = self.net.tensors.len();
        self.net.tensors.push(FloatTensor {
            name: format!("t{output}"),
            shape,
        });
        self.net.layers.push(FloatLayer {
            name: format!("l{output}"),
            output,
            op,
        });
    }

    /// Something to add: a tensor that is large enough, sub-sampled to the shape.
    fn residual(&mut self, shape: Shape) -> Option<View> {
        let tensor = self.any();
        let from = self.shape(tensor);
        let stride = [from.height / shape.height, from.width / shape.width];
        let fits = stride[0] > 0 && stride[1] > 0 && from.channels <= shape.channels;
        let channel_offset = self
            .rng
            .size(0, shape.channels.saturating_sub(from.channels));
        let wanted = fits && self.rng.one_in(2);
        wanted.then_some(View {
            tensor,
            stride,
            channel_offset,
        })
    }

    fn conv(&mut self) {
        let input = self.any();
        let from = self.shape(input);
        let Some((window, [height, width])) = window(&mut self.rng, from) else {
            return;
        };
        let (groups, channels) = match self.rng.size(0, 3) {
            0 => (from.channels, from.channels),
            1 if from.channels.is_multiple_of(2) => (2, 2 * self.rng.size(1, 9)),
            _ => (1, self.rng.size(1, 18)),
        };
        let shape = Shape {
            channels,
            height,
            width,
        };
        let [rows, columns] = window.kernel;
        let rng = &mut self.rng;
        let weights =
            Array4::from_shape_fn((channels, from.channels / groups, rows, columns), |_| {
                real(rng)
            });
        let bias = (0..channels).map(|_| real(rng)).collect();
        let residual = self.residual(shape);
        let post = FloatPost {
            residual,
            activation: activation(&mut self.rng),
        };
        self.push(
            shape,
            FloatOp::Conv(FloatConv {
                input,
                window,
                groups,
                weights,
                bias,
                post,
            }),
        );
    }

    fn pool(&mut self) {
        let input = self.any();
        let from = self.shape(input);
        let Some((mut window, [height, width])) = window(&mut self.rng, from) else {
            return;
        };
        window.dilation = [1, 1];
        let height = window.output_extent(0, from.height, 0).unwrap_or(height);
        let width = window.output_extent(1, from.width, 0).unwrap_or(width);
        let shape = Shape {
            channels: from.channels,
            height,
            width,
        };
        let reduction = if self.rng.one_in(2) {
            Reduction::Max
        } else {
            Reduction::Sum
        };
        let divisor = if reduction == Reduction::Sum {
            window.n_taps()
        } else {
            1
        };
        let post = FloatPost {
            residual: None,
            activation: Activation::None,
        };
        // No padding is counted: each pixel has its own divisor.
        let inside = |axis, n: usize, extent| {
            (0..n).all(|i| Margin::default().n_counted(window, axis, i, extent) > 0)
        };
        let has_margin = reduction == Reduction::Sum
            && self.rng.one_in(2)
            && inside(0, height, from.height)
            && inside(1, width, from.width);
        self.push(
            shape,
            FloatOp::Pool(FloatPool {
                input,
                channel_offset: 0,
                window,
                reduction,
                divisor,
                margin: has_margin.then(Margin::default),
                post,
            }),
        );
    }

    fn add(&mut self) {
        let input = self.any();
        let shape = self.shape(input);
        let Some(view) = self.residual(shape) else {
            return;
        };
        if view.stride != [1, 1] {
            return;
        }
        let post = FloatPost {
            residual: Some(view),
            activation: activation(&mut self.rng),
        };
        let pool = FloatPool {
            input,
            channel_offset: 0,
            window: Window::UNIT,
            reduction: Reduction::Sum,
            divisor: 1,
            margin: None,
            post,
        };
        self.push(shape, FloatOp::Pool(pool));
    }

    /// Rows and columns to channels, and a part of the channels once more.
    fn views(&mut self) {
        let tensor = self.any();
        let from = self.shape(tensor);
        if tensor == 0 || from.height < 2 || from.width < 2 || from.channels > 4 {
            return;
        }
        let mut parts: Vec<FloatPart> = (0..4)
            .map(|at| FloatPart {
                stride: [2, 2],
                offset: [at / 2, at % 2],
                ..FloatPart::whole(tensor, from.channels)
            })
            .collect();
        parts.push(FloatPart {
            channel: from.channels - 1,
            n_channels: 1,
            ..parts[2]
        });
        let shape = Shape {
            channels: 4 * from.channels + 1,
            height: from.height / 2,
            width: from.width / 2,
        };
        self.push(shape, FloatOp::Concat(parts));
    }

    fn concat(&mut self) {
        let (a, b) = (self.any(), self.any());
        let (first, second) = (self.shape(a), self.shape(b));
        if first.extent() == second.extent()
            && a != 0
            && b != 0
            && first.channels + second.channels < 24
        {
            let shape = Shape {
                channels: first.channels + second.channels,
                ..first
            };
            let (whole, part) = (
                FloatPart::whole(a, first.channels),
                FloatPart::whole(b, second.channels),
            );
            self.push(shape, FloatOp::Concat(vec![whole, part]));
        }
    }
}

/// Random layers, and a fully connected one that reads the last.
fn network(seed: u64) -> FloatNetwork {
    let mut rng = SplitMix64(seed);
    let shape = Shape {
        channels: rng.size(1, 5),
        height: rng.size(3, 9),
        width: rng.size(3, 9),
    };
    let net = FloatNetwork {
        name: "random".into(),
        tensors: vec![FloatTensor {
            name: "input".into(),
            shape,
        }],
        outputs: Vec::new(),
        layers: Vec::new(),
        shapes_only: false,
    };
    let mut builder = Builder { rng, net };
    builder.conv();
    for _ in 0..builder.rng.size(1, 6) {
        match builder.rng.size(0, 6) {
            0..=2 => builder.conv(),
            3 => builder.pool(),
            4 => builder.add(),
            5 => builder.views(),
            _ => builder.concat(),
        }
    }
    let input = builder.net.tensors.len() - 1;
    let from = builder.shape(input);
    let rng = &mut builder.rng;
    let weights = Array4::from_shape_fn((5, from.channels, from.height, from.width), |_| real(rng));
    let bias = (0..5).map(|_| real(rng)).collect();
    let window = Window {
        kernel: from.extent(),
        ..Window::UNIT
    };
    let logits = FloatConv {
        input,
        window,
        groups: 1,
        weights,
        bias,
        post: FloatPost::NONE,
    };
    builder.push(
        Shape {
            channels: 5,
            height: 1,
            width: 1,
        },
        FloatOp::Conv(logits),
    );
    builder.net.outputs = vec![builder.net.tensors.len() - 1];
    builder.net
}

fn data(net: &FloatNetwork, n: usize, seed: u64) -> Data {
    let shape = net.tensors[0].shape;
    let mut rng = SplitMix64(seed);
    let images: Vec<Array3<f32>> = (0..n)
        .map(|_| Array3::from_shape_fn(shape.dim(), |_| 2.0 * real(&mut rng)))
        .collect();
    let labels = (0..n).map(|i| i % 5).collect();
    Data::new(
        shape,
        images.into_iter(),
        Some(labels),
        vec![0.0; shape.channels],
    )
    .expect("sound")
}

fn settings(options: Options, arithmetic: Arithmetic) -> Settings {
    Settings {
        quantizer: options,
        arithmetic,
        scales: ScaleRule::Llsq,
        power_of_two: false,
        epochs: 2,
        norm_epochs: 0,
        batch: 6,
        optimizer: Optimizer::AdamW,
        rate: 1e-3,
        warmup_epochs: 0.5,
        weight_decay: 1e-4,
        label_smoothing: 0.1,
        distillation: Some(Distillation {
            weight: 0.5,
            temperature: 2.0,
        }),
        augmentation: Augmentation {
            crop: 1,
            flip: true,
            mix: 0.25,
        },
        average: None,
        keep_best: false,
        seed: 3,
    }
}

const USUAL: Arithmetic = Arithmetic {
    accumulator: AccumulatorFormat {
        width_bits: 16,
        overflow: Overflow::Saturate,
    },
    rounding: Rounding::HalfEven,
    order: ReductionOrder::InOrder,
    depthwise_order: ReductionOrder::InOrder,
};

fn arithmetic() -> impl Strategy<Value = Arithmetic> {
    let order = prop_oneof![
        Just(ReductionOrder::InOrder),
        (1u32..20).prop_map(|n_steps| ReductionOrder::Folds { n_steps }),
    ];
    let overflow = prop_oneof![Just(Overflow::Saturate), Just(Overflow::Wrap)];
    let rounding = prop::sample::select(Rounding::ALL.to_vec());
    let width = prop_oneof![Just(16u8), 12u8..=20, Just(32)];
    (width, overflow, rounding, order).prop_map(|(width_bits, overflow, rounding, order)| {
        Arithmetic {
            accumulator: AccumulatorFormat {
                width_bits,
                overflow,
            },
            rounding,
            order,
            depthwise_order: ReductionOrder::InOrder,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The training pass is the machine: every value of every tensor, after steps that moved
    /// weights and scales, whatever the accumulators do.
    #[test]
    fn forward_is_the_oracle(
        seed: u64,
        (weight_bits, activation_bits, input_bits) in (2u8..=8, 2u8..=8, 2u8..=8),
        (per_tensor, power_of_two, normalizes) in any::<(bool, bool, bool)>(),
        arithmetic in arithmetic(),
    ) {
        let net = network(seed);
        let options = Options {
            weight_bits,
            activation_bits,
            input_bits,
            accumulator_bits: arithmetic.accumulator.width_bits,
            granularity: if per_tensor { Granularity::PerTensor } else { Granularity::PerChannel },
            ..Options::default()
        };
        // Some random networks have no integer form: scales too far apart, a bias too large.
        let Ok(start) = quantizer::quantize(&net, None, &options) else { return Ok(()) };
        let norm_epochs = u64::from(normalizes);
        let settings = Settings { power_of_two, norm_epochs, ..settings(options, arithmetic) };
        let data = data(&net, 6, seed ^ 1);
        let mut trainer = Trainer::new(&net, &start, settings).expect("sound");
        if trainer.step(&data, None).is_err() || trainer.network().is_err() {
            return Ok(());
        }
        let network = trainer.network().expect("it was a moment ago").expect("integers");
        let input = network.tensor(network.input);
        for image in 0..2 {
            let found = trainer.evaluate(&data, image).expect("sound");
            let shape = input.shape;
            let integers = Array3::from_shape_fn(shape.dim(), |(c, y, x)| {
                found[0][(y * shape.width + x) * shape.channels + c]
            });
            let oracle = network::evaluate(&network, arithmetic, &integers).expect("sound");
            for (tensor, (found, expected)) in found.iter().zip(&oracle.tensors).enumerate() {
                let expected: Vec<i32> = expected.view().permuted_axes([1, 2, 0]).iter().copied().collect();
                prop_assert_eq!(found, &expected, "tensor {}", tensor);
            }
        }
    }

    /// Gradients of every weight and bias against differences of the loss, in float arithmetic. With
    /// normalization, the loss is also one of every layer's statistics.
    #[test]
    fn backward_is_the_slope(seed: u64, normalized: bool) {
        let net = network(seed);
        let graph = Graph::new(&net).expect("small");
        let data = data(&net, 3, seed);
        let images: Vec<f32> = (0..3).flat_map(|i| data.image(i).to_vec()).collect();
        let output = net.outputs[0];
        let mut norms: Vec<Option<Norm>> = vec![None; net.layers.len()];
        if normalized {
            for layer in graph.weighted().filter(|&l| net.layers[l].output != output) {
                let mut rng = generator(seed, 0, layer as u64);
                let mut norm = Norm::new(graph.conv(layer).bias.len());
                norm.gamma.iter_mut().chain(&mut norm.beta).for_each(|v| *v += real(&mut rng) / 2.0);
                norms[layer] = Some(norm);
            }
        }
        let slope: Vec<f32> = (0..15).map(|i| (i as f32 * 1.7).sin()).collect();
        let loss = |graph: &Graph, norms: &[Option<Norm>]| -> f64 {
            let tape = Float::new(graph, norms).run(images.clone());
            let of_outputs: f64 = tape.values[output].iter().zip(&slope).map(|(v, s)| f64::from(v * s)).sum();
            let statistics = tape.normalized.iter().flatten().map(|normalized| {
                let Statistics { mean, variance } = &normalized.statistics;
                let slopes = slopes_of(mean.len());
                let pairs = mean.iter().zip(&slopes.mean).chain(variance.iter().zip(&slopes.variance));
                pairs.map(|(x, s)| f64::from(x * s)).sum::<f64>()
            });
            of_outputs + statistics.sum::<f64>()
        };
        let panels = graph.panels_back();
        let learned = vec![None; net.layers.len()];
        let tape = Float::new(&graph, &norms).run(images.clone());
        let sums: Vec<Option<Vec<f32>>> = tape.normalized.iter().enumerate().map(|(layer, normalized)| {
            let normalized = normalized.as_ref()?;
            let shape = graph.shape(net.layers[layer].output);
            let slopes = slopes_of(shape.channels);
            Some(normalized.spread(&normalized.statistics, &slopes, 3 * shape.height * shape.width))
        }).collect();
        let context = Context { graph: &graph, panels: &panels, learned: &learned, norms: &norms, sums: &sums };
        let found = backward(context, &tape, vec![(output, slope.clone())]);
        let mut rng = SplitMix64(seed);
        for layer in graph.weighted().collect::<Vec<_>>() {
            let conv = graph.conv(layer);
            let dim = conv.weights.dim();
            let at = [rng.size(0, dim.0 - 1), rng.size(0, dim.1 - 1), rng.size(0, dim.2 - 1), rng.size(0, dim.3 - 1)];
            let k = (at[2] * dim.3 + at[3]) * dim.1 + at[1];
            let geometry = &graph.convs[layer].as_ref().expect("weighted").forward;
            let of_weight = found.weights[layer].as_ref().expect("weighted").get(geometry, at[0], k);
            let change = |h: f32| {
                let mut moved = graph.clone();
                moved.conv_mut(layer).weights[at] += h;
                loss(&moved, &norms)
            };
            close(of_weight, change)?;
            let of_bias = found.bias[layer][at[0]];
            let change = |h: f32| {
                let (mut moved, mut norms) = (graph.clone(), norms.clone());
                match &mut norms[layer] {
                    Some(norm) => norm.beta[at[0]] += h,
                    None => moved.conv_mut(layer).bias[at[0]] += h,
                }
                loss(&moved, &norms)
            };
            close(of_bias, change)?;
            if norms[layer].is_some() {
                let change = |h: f32| {
                    let mut norms = norms.clone();
                    if let Some(norm) = &mut norms[layer] {
                        norm.gamma[at[0]] += h;
                    }
                    loss(&graph, &norms)
                };
                close(found.gamma[layer][at[0]], change)?;
            }
        }
    }
}

/// Some slopes of the statistics of a layer.
fn slopes_of(n_channels: usize) -> Slopes {
    let list = |by: f32| (0..n_channels).map(|c| (c as f32 * by).cos()).collect();
    Slopes {
        mean: list(1.3),
        variance: list(2.1),
    }
}

/// Whether a gradient lies between the slopes to both sides (kinks make them differ), give or take
/// float32's noise. Two kinks on one side may leave it outside of both: closer by it is not.
fn close(gradient: f32, loss: impl Fn(f32) -> f64) -> Result<(), TestCaseError> {
    let gradient = f64::from(gradient);
    let here = loss(0.0);
    let mut bounds = Vec::new();
    for h in [1.0 / 1024.0, 1.0 / 8192.0] {
        let (below, above) = (loss(-h), loss(h));
        let (left, right) = ((here - below) / f64::from(h), (above - here) / f64::from(h));
        let noise = 1e-6 * here.abs().max(10.0) / f64::from(h) + 0.02 * left.abs().max(right.abs());
        let (low, high) = (left.min(right) - noise, left.max(right) + noise);
        if (low..=high).contains(&gradient) {
            return Ok(());
        }
        bounds.push((low, high));
    }
    prop_assert!(false, "{gradient} is outside {bounds:?}");
    Ok(())
}

fn trainer(rule: ScaleRule) -> (Trainer, Data) {
    let net = network(12);
    let options = Options::default();
    let start = quantizer::quantize(&net, None, &options).expect("sound");
    let settings = Settings {
        scales: rule,
        average: (rule == ScaleRule::Lsq).then_some(0.5),
        norm_epochs: u64::from(rule != ScaleRule::Pact),
        keep_best: rule != ScaleRule::Pact,
        ..settings(options, USUAL)
    };
    (
        Trainer::new(&net, &start, settings).expect("sound"),
        data(&net, 20, 5),
    )
}

/// Stopped anywhere, a run that goes on has the same state as one that was never stopped; and
/// threads do not show.
#[test]
fn resuming_and_threads_do_not_show() {
    for rule in [ScaleRule::Llsq, ScaleRule::Lsq, ScaleRule::Pact] {
        let (mut whole, data) = trainer(rule);
        let mut states = vec![whole.to_bytes()];
        while !whole.is_done(&data) {
            whole.step(&data, Some(&data)).expect("sound");
            states.push(whole.to_bytes());
        }
        assert_eq!(states.len(), 9);
        for (stop, state) in states.iter().enumerate() {
            let (mut again, _) = trainer(rule);
            again.resume(state).expect("own bytes");
            assert_eq!(again.to_bytes(), *state, "{stop}");
            let one = rayon::ThreadPoolBuilder::new()
                .num_threads(1 + stop % 3)
                .build()
                .expect("threads");
            one.install(|| {
                while !again.is_done(&data) {
                    again.step(&data, Some(&data)).expect("sound");
                }
            });
            assert_eq!(again.to_bytes(), states[8], "{stop}");
            assert_eq!(again.history(), whole.history());
        }
    }
}

/// What is given out is the best epoch, of equals the latest; and an average that remembers nothing is
/// the last step.
#[test]
fn the_best_epoch_and_the_average_are_given_out() {
    let run = |average, keep_best| {
        let net = network(12);
        let start = quantizer::quantize(&net, None, &Options::default()).expect("sound");
        let settings = Settings {
            average,
            keep_best,
            epochs: 6,
            rate: 0.02,
            ..settings(Options::default(), USUAL)
        };
        let mut trainer = Trainer::new(&net, &start, settings).expect("sound");
        let (data, validation) = (data(&net, 20, 5), data(&net, 30, 10));
        while !trainer.is_done(&data) {
            trainer.step(&data, Some(&validation)).expect("sound");
        }
        let rates: Vec<f64> = trainer
            .history()
            .iter()
            .filter_map(|e| e.validation_top1)
            .collect();
        let top1 = trainer.top1(&validation).expect("labels");
        let network = trainer.network().expect("sound").expect("integers");
        (rates, top1, trainer.kept_epoch(), network)
    };
    let (rates, top1, epoch, last) = run(None, false);
    assert_eq!((rates.last(), epoch), (Some(&top1), None));
    let (same, top1, epoch, _) = run(None, true);
    assert_eq!(same, rates);
    let best = rates.iter().copied().fold(0.0, f64::max);
    let latest = rates
        .iter()
        .rposition(|rate| rate.total_cmp(&best).is_eq())
        .map(|at| at as u64 + 1);
    assert_eq!((top1, epoch), (best, latest));
    assert!(
        best > rates[5],
        "choose data on which the last is not the best: {rates:?}"
    );
    assert_eq!(run(Some(0.0), false).3, last);
    assert_ne!(run(Some(0.9), false).3, last);
}

#[test]
fn foreign_states_are_refused() {
    let (mut trainer, data) = trainer(ScaleRule::Llsq);
    trainer.step(&data, None).expect("sound");
    let bytes = trainer.to_bytes();
    let (mut other, _) = self::trainer(ScaleRule::Lsq);
    let error = other.resume(&bytes).expect_err("another rule").to_string();
    assert_eq!(
        error,
        "checkpoint: it is of a run with scales = \"llsq\", asked for is \"lsq\""
    );
    for n in [0, 7, 8, 100, bytes.len() - 1] {
        assert!(trainer.resume(&bytes[..n]).is_err(), "{n}");
    }
    trainer.resume(&bytes).expect("own bytes");
}

/// From random weights, through batch normalization, to a folded network that knows its labels.
#[test]
fn float_networks_learn_from_scratch() {
    let net = network(12);
    let settings = Settings {
        rate: 0.02,
        epochs: 80,
        batch: 20,
        label_smoothing: 0.0,
        distillation: None,
        augmentation: Augmentation::default(),
        ..settings(Options::default(), USUAL)
    };
    let data = data(&net, 20, 5);
    let mut trainer = Trainer::float(&net, settings.clone(), true).expect("sound");
    while !trainer.is_done(&data) {
        trainer.step(&data, None).expect("sound");
    }
    let top1 = trainer.top1(&data).expect("labels");
    assert!(top1 >= 0.9, "{top1}");
    let folded = trainer.float_network().expect("float");
    assert_eq!(
        (&folded.tensors, &folded.outputs),
        (&net.tensors, &net.outputs)
    );
    // The folded network by itself says the same; training it further needs no normalization.
    let mut again = Trainer::float(&folded, settings, false).expect("sound");
    assert!((again.top1(&data).expect("labels") - top1).abs() < 1e-9);
}

/// A network learns its labels: the loss falls, and the integers get better.
#[test]
fn training_helps() {
    for (rule, optimizer, rate, norm_epochs) in [
        (ScaleRule::Llsq, Optimizer::AdamW, 0.01, 0),
        (ScaleRule::Lsq, Optimizer::AdamW, 0.01, 0),
        (ScaleRule::Pact, Optimizer::AdamW, 0.01, 0),
        (ScaleRule::Llsq, Optimizer::Sgd, 0.02, 0),
        (ScaleRule::Llsq, Optimizer::AdamW, 0.01, 30),
        (ScaleRule::Lsq, Optimizer::AdamW, 0.01, 60),
    ] {
        let net = network(5);
        let start = quantizer::quantize(&net, None, &Options::default()).expect("sound");
        let settings = Settings {
            scales: rule,
            optimizer,
            rate,
            epochs: 60,
            norm_epochs,
            batch: 10,
            label_smoothing: 0.0,
            distillation: None,
            augmentation: Augmentation::default(),
            ..settings(Options::default(), USUAL)
        };
        let data = data(&net, 20, 5);
        let mut trainer = Trainer::new(&net, &start, settings).expect("sound");
        let before = trainer.top1(&data).expect("labels");
        while !trainer.is_done(&data) {
            trainer.step(&data, None).expect("sound");
        }
        let history = trainer.history();
        let (first, last) = (history[0].loss, history[59].loss);
        assert!(last < 0.5 * first, "{rule:?} {optimizer:?}: {first} {last}");
        assert!(trainer.top1(&data).expect("labels") > before);
    }
}

/// A teacher that sees twice the values through weights of half the size says what the float network says;
/// one with other weights does not.
#[test]
fn a_teacher_sees_through_its_lens() {
    let reads_image = |op: &FloatOp| op.inputs().contains(&0);
    let is_plain = |net: &FloatNetwork| {
        let mut readers = net.layers.iter().filter(|layer| reads_image(&layer.op));
        readers
            .all(|layer| matches!(&layer.op, FloatOp::Conv(conv) if conv.post.residual.is_none()))
    };
    let net = (0..100).map(network).find(is_plain).expect("one of many");
    let start = quantizer::quantize(&net, None, &Options::default()).expect("sound");
    let data = data(&net, 20, 5);
    let channels = net.tensors[0].shape.channels;
    let trained = |weight_factor: Option<f32>| {
        let settings = settings(Options::default(), USUAL);
        let mut trainer = Trainer::new(&net, &start, settings).expect("sound");
        if let Some(factor) = weight_factor {
            let mut other = net.clone();
            for layer in other.layers.iter_mut().filter(|l| reads_image(&l.op)) {
                let FloatOp::Conv(conv) = &mut layer.op else {
                    unreachable!("convolutions alone read the image");
                };
                conv.weights.mapv_inplace(|w| w * factor);
            }
            let lens = vec![(2.0, 0.0); channels];
            trainer = trainer.taught_by(&other, lens).expect("it fits");
        }
        while !trainer.is_done(&data) {
            trainer.step(&data, None).expect("sound");
        }
        trainer.network().expect("sound")
    };
    let by_itself = trained(None);
    assert!(trained(Some(0.5)) == by_itself);
    assert!(trained(Some(1.0)) != by_itself);
}

/// Normalization begins as it is on the first images: it changes no integer. Then every batch moves the
/// running statistics, until they are frozen.
#[test]
fn normalization_begins_with_no_change_and_is_frozen_in_time() {
    let net = network(12);
    let start = quantizer::quantize(&net, None, &Options::default()).expect("sound");
    let run = |norm_epochs| {
        let settings = Settings {
            norm_epochs,
            epochs: 3,
            // So little that no parameter moves.
            rate: 1e-30,
            ..settings(Options::default(), USUAL)
        };
        let mut trainer = Trainer::new(&net, &start, settings).expect("sound");
        let data = data(&net, 20, 5);
        let mut networks = Vec::new();
        let mut statistics = Vec::new();
        while !trainer.is_done(&data) {
            trainer.step(&data, None).expect("sound");
            networks.push(trainer.network().expect("sound").expect("integers"));
            let parameters = trainer.parameters().iter();
            let running = parameters.filter(|p| p.role == Role::Statistic);
            statistics.push(running.map(|p| p.values.clone()).collect::<Vec<_>>());
        }
        (networks, statistics)
    };
    let (plain, none) = run(0);
    assert!(none.iter().all(Vec::is_empty));
    let (normalized, statistics) = run(1);
    assert_eq!(plain[0], plain[11]);
    // Four steps an epoch.
    assert!(statistics[..4].windows(2).all(|pair| pair[0] != pair[1]));
    assert!(statistics[3..].windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(normalized[3], normalized[11]);
    // What one batch of augmented images moves is little.
    let apart = |a: &Network, b: &Network| {
        let weights = |net: &Network| -> Vec<i8> {
            let convs = net.layers.iter().filter_map(network::Layer::conv);
            convs
                .flat_map(|conv| conv.weights.iter().copied())
                .collect()
        };
        let (a, b) = (weights(a), weights(b));
        let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        differ as f64 / a.len() as f64
    };
    let moved = apart(&plain[0], &normalized[0]);
    assert!(moved < 0.1, "{moved}");
}
