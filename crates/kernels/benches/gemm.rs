//! MACs a second of every level, for the shapes of `ResNet18` and accumulators from wide enough (nearly
//! every block is proved safe) to much too narrow, next to the peak of the instructions themselves.

use arith::{AccumulatorFormat, ChannelOverflow, Format, Overflow, SplitMix64};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kernels::{Level, Weights, accumulate};

/// (output pixels, output channels, steps).
const SHAPES: [(usize, usize, usize); 3] = [(3136, 64, 576), (784, 128, 1152), (196, 256, 2304)];

fn gemm(criterion: &mut Criterion) {
    let activation = Format {
        bits: 4,
        signed: false,
    };
    for (m, n, k) in SHAPES {
        for (name, width_bits) in [("safe", 16), ("some saturate", 12), ("most saturate", 9)] {
            let accumulator = AccumulatorFormat {
                width_bits,
                overflow: Overflow::Saturate,
            };
            let mut random = SplitMix64(1);
            let weights: Vec<i8> = (0..n * k).map(|_| random.between(-8, 7) as i8).collect();
            let packed = Weights::pack(&weights, &vec![0; n], activation, accumulator, None);
            let patch: Vec<u8> = (0..m * packed.patch_len())
                .map(|_| random.between(0, 15) as u8)
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
                        bencher.iter(|| accumulate(level, &packed, &patch, &mut out, &mut records));
                    },
                );
            }
            group.finish();
        }
    }
}

/// The dot product instruction alone.
fn peak(criterion: &mut Criterion) {
    const ROUNDS: usize = 100_000;
    let mut group = criterion.benchmark_group("peak");
    for level in Level::available() {
        let Some(n_macs) = kernels::peak(level, ROUNDS) else {
            continue;
        };
        group.throughput(Throughput::Elements(n_macs));
        group.bench_function(
            BenchmarkId::from_parameter(format!("{level:?}")),
            |bencher| bencher.iter(|| kernels::peak(level, ROUNDS)),
        );
    }
    group.finish();
}

criterion_group!(benches, peak, gemm);
criterion_main!(benches);
