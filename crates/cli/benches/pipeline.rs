//! The stages on the embedded digits network: `cargo bench -p systole`.
//!
//! Wall-clock figures of one machine; compare ratios within one run.

use accelerator::{Config, event};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use network::Network;
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

criterion_group!(benches, stages);
criterion_main!(benches);
