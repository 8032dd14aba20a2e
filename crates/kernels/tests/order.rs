//! Every level against `AccumulatorFormat::add`, step by step.

use arith::{AccumulatorFormat, ChannelOverflow, Format, Overflow, SplitMix64};
use kernels::{Level, Weights, accumulate, accumulate_values, extremes};
use proptest::prelude::*;

#[derive(Debug)]
struct Case {
    weights: Vec<Vec<i8>>,
    bias: Vec<i32>,
    pixels: Vec<Vec<i32>>,
    activation: Format,
    accumulator: AccumulatorFormat,
    chunk: Option<u32>,
}

/// The documented order, one add after the other.
fn slow(case: &Case) -> (Vec<Vec<i32>>, Vec<ChannelOverflow>) {
    let mut records = vec![ChannelOverflow::default(); case.bias.len()];
    let outputs = case
        .pixels
        .iter()
        .map(|pixel| {
            let column = |c: usize| slow_output(case, pixel, c, &mut records[c]);
            (0..case.bias.len()).map(column).collect()
        })
        .collect();
    (outputs, records)
}

fn slow_output(case: &Case, pixel: &[i32], c: usize, record: &mut ChannelOverflow) -> i32 {
    let format = case.accumulator;
    let chunk = case.chunk.map_or(usize::MAX, |n| n as usize);
    let mut seen = ChannelOverflow::default();
    let mut touch = |k: usize, overflowed: bool, exact: i64| {
        if overflowed {
            seen.n_overflowed += 1;
            seen.n_outputs_touched = 1;
            seen.first_k = seen.first_k.or(Some(k as u32));
        }
        seen.min_partial_sum = seen.min_partial_sum.min(exact);
        seen.max_partial_sum = seen.max_partial_sum.max(exact);
    };
    let (mut acc, mut exact) = (case.bias[c], i64::from(case.bias[c]));
    let (mut sum, mut exact_sum) = (0, 0);
    touch(0, false, exact);
    for (k, &a) in pixel.iter().enumerate() {
        let product = i32::from(case.weights[c][k]) * a;
        if k < chunk {
            let next = format.add(acc, product);
            acc = next.acc;
            exact += i64::from(product);
            touch(k, next.overflowed, exact);
            continue;
        }
        if k % chunk == 0 {
            (sum, exact_sum) = (0, 0);
            touch(k, false, 0);
        }
        let next = format.add(sum, product);
        sum = next.acc;
        exact_sum += i64::from(product);
        touch(k, next.overflowed, exact_sum);
        if k % chunk == chunk - 1 || k + 1 == pixel.len() {
            let next = format.add(acc, sum);
            acc = next.acc;
            exact += exact_sum;
            touch(k, next.overflowed, exact);
        }
    }
    record.merge(&seen);
    acc
}

fn check(case: &Case) {
    let packed = Weights::pack(
        &case.weights.concat(),
        &case.bias,
        case.activation,
        case.accumulator,
        case.chunk,
    );
    let mut patch = vec![0; case.pixels.len() * packed.patch_len()];
    for (pixel, patch) in case
        .pixels
        .iter()
        .zip(patch.chunks_exact_mut(packed.patch_len()))
    {
        for (k, &a) in pixel.iter().enumerate() {
            patch[packed.place(k)] = packed.stored(a);
        }
    }
    let (outputs, records) = slow(case);
    for level in Level::available() {
        let mut found = vec![0; case.pixels.len() * packed.n_lanes()];
        let mut seen = vec![ChannelOverflow::default(); case.bias.len()];
        accumulate(level, &packed, &patch, &mut found, &mut seen);
        extremes(level, &packed, &patch, &mut seen);
        for (found, expected) in found.chunks_exact(packed.n_lanes()).zip(&outputs) {
            assert_eq!(&found[..expected.len()], expected, "{level:?}");
        }
        assert_eq!(seen, records, "{level:?}");
        let mut values = vec![-1; found.len()];
        accumulate_values(level, &packed, &patch, &mut values);
        for (found, expected) in values.chunks_exact(packed.n_lanes()).zip(&outputs) {
            assert_eq!(&found[..expected.len()], expected, "{level:?}, values");
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let formats = (8u8..=32, any::<bool>(), 2u8..=8, any::<bool>(), 2u32..=8);
    let extents = (
        // Mostly short; long ones have several blocks.
        prop_oneof![3 => 1usize..200, 1 => 200usize..900],
        1usize..50,
        // A few of more tiles than share operands.
        prop_oneof![9 => 1usize..30, 1 => 200usize..260],
        prop::option::of(prop_oneof![4 => 1u32..40, 1 => 40u32..400]),
    );
    (formats, extents, any::<u64>(), 0i32..4).prop_map(|(formats, extents, seed, quiet)| {
        let (width_bits, wraps, a_bits, signed, w_bits) = formats;
        let (n_steps, n_columns, n_pixels, chunk) = extents;
        let overflow = if wraps {
            Overflow::Wrap
        } else {
            Overflow::Saturate
        };
        let accumulator = AccumulatorFormat {
            width_bits,
            overflow,
        };
        let activation = Format {
            bits: a_bits,
            signed,
        };
        let mut random = SplitMix64(seed);
        let mut between = |low: i32, high: i32| random.between(low.into(), high.into()) as i32;
        let limit = (1i32 << (w_bits - 1)) >> quiet;
        let weights = (0..n_columns)
            .map(|column| {
                // Of some groups of columns more is proved than of others.
                let limit = limit >> (column / 16 % 3);
                (0..n_steps)
                    .map(|_| between(-limit, (limit - 1).max(0)) as i8)
                    .collect()
            })
            .collect();
        let bias_limit = accumulator.max().min(4000);
        let bias = (0..n_columns)
            .map(|_| between(-bias_limit, bias_limit))
            .collect();
        let pixels = (0..n_pixels)
            .map(|_| {
                (0..n_steps)
                    .map(|_| between(activation.q_min(), activation.q_max()))
                    .collect()
            })
            .collect();
        Case {
            weights,
            bias,
            pixels,
            activation,
            accumulator,
            chunk,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SYSTOLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
    ))]

    #[test]
    fn every_level_equals_the_documented_order(case in cases()) {
        check(&case);
    }
}

/// The largest products there are, all of one sign: every lane of every pair at its limit.
#[test]
fn extreme_operands() {
    for (bits, signed) in [(8, false), (8, true), (4, false), (4, true)] {
        for width_bits in [8, 12, 15, 16, 17, 24, 32] {
            for overflow in [Overflow::Saturate, Overflow::Wrap] {
                for weight in [-128i8, 127, -8, 7] {
                    for high in [true, false] {
                        let activation = Format { bits, signed };
                        let a = if high {
                            activation.q_max()
                        } else {
                            activation.q_min()
                        };
                        check(&Case {
                            weights: vec![vec![weight; 40]; 17],
                            bias: vec![-100; 17],
                            pixels: vec![vec![a; 40]; 7],
                            activation,
                            accumulator: AccumulatorFormat {
                                width_bits,
                                overflow,
                            },
                            chunk: None,
                        });
                    }
                }
            }
        }
    }
}

/// One column's sum is proved by its beginning alone and adds more than 16 bits hold; the others' are
/// proved by their beginnings and ends.
#[test]
fn two_proofs_in_one_row() {
    for first in [200, 255] {
        let mut weights = vec![vec![-100i8, 100, 0, 0]; 17];
        weights[0] = vec![127, 127, 0, 0];
        let mut bias = vec![20_000; 17];
        bias[0] = -32_768;
        for overflow in [Overflow::Saturate, Overflow::Wrap] {
            check(&Case {
                weights: weights.clone(),
                bias: bias.clone(),
                pixels: vec![vec![first, 210, 0, 0]; 15],
                activation: Format {
                    bits: 8,
                    signed: false,
                },
                accumulator: AccumulatorFormat {
                    width_bits: 16,
                    overflow,
                },
                chunk: None,
            });
        }
    }
}

/// Every column begins at one end of the accumulator and stops near the other: proved by its beginning,
/// and what it adds is more than a signed number of 16 bits.
#[test]
fn a_proved_sum_of_seventeen_bits() {
    for (bias, weight) in [(-32_768, 127), (32_767, -127)] {
        check(&Case {
            weights: vec![vec![weight, weight, 0, 0]; 17],
            bias: vec![bias; 17],
            pixels: vec![vec![255, 254, 0, 0]; 5],
            activation: Format {
                bits: 8,
                signed: false,
            },
            accumulator: AccumulatorFormat {
                width_bits: 16,
                overflow: Overflow::Saturate,
            },
            chunk: None,
        });
    }
}

/// The first block of some columns overflows, all their others are proved; other columns are proved
/// throughout, in so many tiles that proofs are looked for after the first has failed.
#[test]
fn proofs_after_sums_in_order() {
    for (bits, width_bits, first, later) in [(4, 12, 7, -1), (8, 18, 127, -2)] {
        let column = |column: usize| {
            let weight = |k: usize| if k < 256 { first } else { later };
            let is_small = column >= 16;
            (0..600)
                .map(|k| {
                    if is_small {
                        i8::from(k % 64 == 0)
                    } else {
                        weight(k)
                    }
                })
                .collect()
        };
        let mut random = SplitMix64(1);
        let q_max = (1 << bits) - 1;
        let mut pixel = || (0..600).map(|_| random.between(0, q_max) as i32).collect();
        check(&Case {
            weights: (0..48).map(column).collect(),
            bias: vec![1; 48],
            pixels: (0..200).map(|_| pixel()).collect(),
            activation: Format {
                bits,
                signed: false,
            },
            accumulator: AccumulatorFormat {
                width_bits,
                overflow: Overflow::Saturate,
            },
            chunk: None,
        });
    }
}
