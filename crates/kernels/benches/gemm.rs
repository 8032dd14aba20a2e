//! MACs a second of every level, for the shapes of `ResNet18` and accumulators from wide enough (nearly
//! every block is proved safe) to much too narrow, and values without events where no block is proved,
//! next to the peaks of the instructions themselves.

use arith::{AccumulatorFormat, ChannelOverflow, Format, Overflow, SplitMix64};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::{Level, Peak, Weights, accumulate, accumulate_values, peak};

/// (output pixels, output channels, steps).
const SHAPES: [(usize, usize, usize); 3] = [(3136, 64, 576), (784, 128, 1152), (196, 256, 2304)];

fn gemm(criterion: &mut Criterion) {
    for (name, width_bits) in [("safe", 16), ("some saturate", 12), ("most saturate", 9)] {
        for shape in SHAPES {
            time(criterion, name, shape, (4, width_bits), true);
        }
    }
}

/// Operands of 8 bits are multiplied, products of those of 4 bits are looked up where a processor can.
fn in_order(criterion: &mut Criterion) {
    for (name, bits, width_bits) in [("values, 4 bits", 4, 9), ("values, 8 bits", 8, 16)] {
        for shape in SHAPES {
            time(criterion, name, shape, (bits, width_bits), false);
        }
    }
}

fn time(
    criterion: &mut Criterion,
    name: &str,
    (m, n, k): (usize, usize, usize),
    (bits, width_bits): (u8, u8),
    with_events: bool,
) {
    let activation = Format {
        bits,
        signed: false,
    };
    let accumulator = AccumulatorFormat {
        width_bits,
        overflow: Overflow::Saturate,
    };
    let mut random = SplitMix64(1);
    let limit = 1 << (bits - 1);
    let weights: Vec<i8> = (0..n * k)
        .map(|_| random.between(-limit, limit - 1) as i8)
        .collect();
    let packed = Weights::pack(&weights, &vec![0; n], activation, accumulator, None);
    let patch: Vec<u8> = (0..m * packed.patch_len())
        .map(|_| random.between(0, 2 * limit - 1) as u8)
        .collect();
    let mut out = vec![0; m * packed.n_lanes()];
    let mut records = vec![ChannelOverflow::default(); n];
    let mut group = criterion.benchmark_group(format!("{m}x{n}x{k}/{name}"));
    group
        .throughput(Throughput::Elements((m * n * k) as u64))
        .sample_size(10);
    for level in Level::available() {
        group.bench_function(
            BenchmarkId::from_parameter(format!("{level:?}")),
            |bencher| {
                bencher.iter(|| {
                    if with_events {
                        accumulate(level, &packed, &patch, &mut out, &mut records);
                    } else {
                        accumulate_values(level, &packed, &patch, &mut out);
                    }
                });
            },
        );
    }
    group.finish();
}

/// Instructions alone.
fn peaks(criterion: &mut Criterion) {
    const ROUNDS: usize = 100_000;
    let mut group = criterion.benchmark_group("peak");
    for kind in [Peak::Dot, Peak::Multiply, Peak::LookUp] {
        for level in Level::available() {
            let Some(n_macs) = peak(level, kind, ROUNDS) else {
                continue;
            };
            group.throughput(Throughput::Elements(n_macs));
            group.bench_function(
                BenchmarkId::new(format!("{kind:?}"), format!("{level:?}")),
                |bencher| bencher.iter(|| peak(level, kind, ROUNDS)),
            );
        }
    }
    group.finish();
}

criterion_group!(benches, peaks, gemm, in_order);
criterion_main!(benches);
