//! The stages on the embedded digits network, and compiling and timing on the convolutions of `ResNet18`:
//! `cargo bench -p systole`.
//!
//! Wall-clock figures of one machine; compare ratios within one run.

use accelerator::{Config, event, stepped};
use arith::{Format, Requant, Scale};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ndarray::Array4;
use network::{Bias, Conv, Layer, Network, Op, Post, Shape, Tensor, TensorId, Window};
use std::{hint::black_box, io};

const MODEL: &[u8] = include_bytes!("../assets/digits.onnx");
const MACHINE: &str = include_str!("../../../configs/edge-16x16.toml");

fn import() -> quantizer::Import {
    let absent = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
    quantizer::import(MODEL, &absent, None).expect("the embedded model")
}

fn quantize(import: &quantizer::Import) -> Network {
    quantizer::quantize(&import.network, None, &quantizer::Options::default())
        .expect("the embedded model")
}

fn stages(criterion: &mut Criterion) {
    let config = Config::from_toml(MACHINE).expect("the embedded machine");
    let float = import();
    let network = quantize(&float);
    let program = compiler::compile(&network, &config)
        .expect("it fits")
        .program;
    let plan = event::Plan::new(&program, &config).expect("it runs");
    let mut dram = program.data.clone();
    dram.resize(program.dram_bytes as usize, 0);

    let mut group = criterion.benchmark_group("digits");
    group.bench_function("import", |b| b.iter(|| black_box(import())));
    group.bench_function("quantize", |b| b.iter(|| black_box(quantize(&float))));
    group.bench_function("compile", |b| {
        b.iter(|| black_box(compiler::compile(&network, &config).expect("it fits")));
    });
    group.throughput(Throughput::Elements(program.instructions.len() as u64));
    group.bench_function("latency (instructions)", |b| {
        b.iter(|| black_box(event::time(&program, &config).expect("it runs")));
    });
    let n_cycles = event::time(&program, &config).expect("it runs").total.0;
    group.throughput(Throughput::Elements(n_cycles));
    group.bench_function("stepped (array cycles)", |b| {
        b.iter(|| black_box(stepped::run(&program, &config, &mut dram).expect("it runs")));
    });
    group.throughput(Throughput::Elements(network.n_macs()));
    for (name, detail) in [
        ("run (MACs)", event::Detail::Counts),
        ("overflow (MACs)", event::Detail::Full),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| black_box(plan.execute(&mut dram, detail).expect("it runs")));
        });
    }
    group.finish();
}

/// Channels, stride and kernel of `ResNet18`'s convolutions, one behind the other.
const RESNET18: [(usize, usize, usize); 17] = [
    (64, 2, 7),
    (64, 2, 3),
    (64, 1, 3),
    (64, 1, 3),
    (64, 1, 3),
    (128, 2, 3),
    (128, 1, 3),
    (128, 1, 3),
    (128, 1, 3),
    (256, 2, 3),
    (256, 1, 3),
    (256, 1, 3),
    (256, 1, 3),
    (512, 2, 3),
    (512, 1, 3),
    (512, 1, 3),
    (512, 1, 3),
];

/// These convolutions on an image of 224 × 224 pixels, with weights of 0.
fn convolutions() -> Network {
    let scale = Scale {
        mantissa: 128,
        exponent: -7,
    };
    let tensor = |index: usize, [channels, extent]: [usize; 2]| Tensor {
        name: format!("t{index}"),
        shape: Shape {
            channels,
            height: extent,
            width: extent,
        },
        format: Format {
            bits: 4,
            signed: false,
        },
        scale,
    };
    let mut now = [3, 224];
    let mut tensors = vec![tensor(0, now)];
    let mut layers = Vec::new();
    for (index, (channels, stride, kernel)) in RESNET18.into_iter().enumerate() {
        let weights = Array4::zeros((channels, now[0], kernel, kernel));
        now = [channels, now[1].div_ceil(stride)];
        tensors.push(tensor(index + 1, now));
        let conv = Conv {
            input: TensorId(index),
            window: Window {
                kernel: [kernel; 2],
                stride: [stride; 2],
                pad: [kernel / 2; 2],
                ..Window::UNIT
            },
            groups: 1,
            weight_bits: 4,
            weights,
            weight_scales: vec![scale],
            bias: vec![
                Bias {
                    mantissa: 0,
                    shift: 0
                };
                channels
            ],
            post: Post {
                requant: vec![Requant::IDENTITY],
                residual: None,
                negative_slope: None,
                q_min: 0,
                q_max: 15,
            },
        };
        layers.push(Layer {
            name: format!("conv{index}"),
            output: TensorId(index + 1),
            op: Op::Conv(conv),
        });
    }
    Network {
        name: "convolutions".into(),
        input: TensorId(0),
        outputs: vec![TensorId(layers.len())],
        tensors,
        layers,
    }
}

fn timing(criterion: &mut Criterion) {
    let network = convolutions();
    let options = compiler::Options {
        without_data: true,
        ..compiler::Options::default()
    };
    let mut group = criterion.benchmark_group("resnet18");
    group.sample_size(10);
    for name in ["paper-16x16-os", "paper-16x16-ws", "paper-16x16-is"] {
        let preset = accelerator::presets::find(name).expect("a preset");
        let config = Config::from_toml(preset.text).expect("a preset is a machine");
        let compile = || compiler::compile_with(&network, &config, options).expect("it fits");
        group.throughput(Throughput::Elements(network.layers.len() as u64));
        group.bench_function(format!("{name}: compile (layers)"), |b| {
            b.iter(|| black_box(compile()));
        });
        let program = compile().program;
        group.throughput(Throughput::Elements(program.instructions.len() as u64));
        group.bench_function(format!("{name}: latency (instructions)"), |b| {
            b.iter(|| black_box(event::time(&program, &config).expect("it runs")));
        });
        // The stepped model needs the weights, zeros as they are.
        let program = compiler::compile(&network, &config)
            .expect("it fits")
            .program;
        let n_cycles = event::time(&program, &config).expect("it runs").total.0;
        let mut dram = program.data.clone();
        dram.resize(program.dram_bytes as usize, 0);
        group.throughput(Throughput::Elements(n_cycles));
        group.bench_function(format!("{name}: stepped (array cycles)"), |b| {
            b.iter(|| black_box(stepped::run(&program, &config, &mut dram).expect("it runs")));
        });
    }
    group.finish();
}

criterion_group!(benches, stages, timing);
criterion_main!(benches);
