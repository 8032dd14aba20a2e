//! Accumulators of every width and rule against 128-bit integers; overflow records.

use arith::{AccumulatorFormat, ChannelOverflow, Overflow, bits_for_range};
use proptest::prelude::*;

fn check(format: AccumulatorFormat, acc: i32, product: i32) {
    let half = 1i128 << (format.width_bits - 1);
    let exact = i128::from(acc) + i128::from(product);
    let fits = (-half..half).contains(&exact);
    let expected = match format.overflow {
        Overflow::Saturate => exact.max(-half).min(half - 1),
        Overflow::Wrap => (exact + half).rem_euclid(2 * half) - half,
    };
    let sum = format.add(acc, product);
    assert_eq!(
        i128::from(sum.acc),
        expected,
        "{format:?} {acc} + {product}"
    );
    assert_eq!(sum.overflowed, !fits, "{format:?} {acc} + {product}");
    assert!(format.holds(sum.acc.into()));
}

fn formats() -> impl Iterator<Item = AccumulatorFormat> {
    (8..=32).flat_map(|width_bits| {
        [Overflow::Saturate, Overflow::Wrap].map(|overflow| AccumulatorFormat {
            width_bits,
            overflow,
        })
    })
}

#[test]
fn limits_of_every_width() {
    for format in formats() {
        let half = 1i64 << (format.width_bits - 1);
        assert_eq!(
            (i64::from(format.min()), i64::from(format.max())),
            (-half, half - 1)
        );
        for (value, fits) in [
            (-half - 1, false),
            (-half, true),
            (half - 1, true),
            (half, false),
        ] {
            assert_eq!(format.holds(value), fits);
        }
        assert!(!format.holds(i64::MAX) && !format.holds(i64::MIN));
    }
}

#[test]
fn every_8_bit_content_and_every_product_of_two_8_bit_operands_range() {
    // Unsigned 8-bit × signed 8-bit: -32640..=32385.
    for overflow in [Overflow::Saturate, Overflow::Wrap] {
        let format = AccumulatorFormat {
            width_bits: 8,
            overflow,
        };
        for acc in format.min()..=format.max() {
            for product in (-32640..=32385).step_by(7).chain(-600..=600) {
                check(format, acc, product);
            }
        }
    }
}

#[test]
fn every_width_near_its_limits() {
    for format in formats() {
        for acc_distance in 0..=20 {
            for product in (-40..=40).chain([i32::MIN, i32::MIN + 1, i32::MAX - 1, i32::MAX]) {
                check(format, format.min() + acc_distance, product);
                check(format, format.max() - acc_distance, product);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_content_and_product(seed: i32, product: i32) {
        for format in formats() {
            // Any content of this width: the low bits, sign-extended.
            let unused = 32 - u32::from(format.width_bits);
            check(format, (seed << unused) >> unused, product);
        }
    }

    #[test]
    fn bits_for_any_range(a: i64, b: i64, shift_a in 0u8..64, shift_b in 0u8..64) {
        let (a, b) = (a >> shift_a, b >> shift_b);
        check_bits(a.min(b), a.max(b));
    }

    #[test]
    fn merging_is_commutative_and_associative(parts in prop::collection::vec(record(), 3)) {
        let merged = |order: [usize; 3]| {
            let mut sum = ChannelOverflow::default();
            for i in order {
                sum.merge(&parts[i]);
            }
            sum
        };
        let all = merged([0, 1, 2]);
        for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            prop_assert_eq!(merged(order), all);
        }
        let mut right = parts[1];
        right.merge(&parts[2]);
        let mut left = parts[0];
        left.merge(&right);
        prop_assert_eq!(left, all);
        prop_assert_eq!(all.n_overflowed, parts.iter().map(|p| p.n_overflowed).sum::<u64>());
        prop_assert_eq!(all.first_k, parts.iter().filter_map(|p| p.first_k).min());
    }
}

fn record() -> impl Strategy<Value = ChannelOverflow> {
    (
        0u64..100,
        0u64..100,
        prop::option::of(0u32..100),
        -1000i64..1000,
        0i64..1000,
    )
        .prop_map(
            |(n_overflowed, n_outputs_touched, first_k, min_partial_sum, above)| ChannelOverflow {
                n_overflowed,
                n_outputs_touched,
                first_k,
                min_partial_sum,
                max_partial_sum: min_partial_sum + above,
            },
        )
}

/// The first width whose two's complement range holds both ends.
fn check_bits(min: i64, max: i64) {
    let expected = (1..=64u8)
        .find(|&bits| {
            let half = 1i128 << (bits - 1);
            -half <= min.into() && i128::from(max) < half
        })
        .unwrap();
    assert_eq!(bits_for_range(min, max), expected, "{min}..={max}");
}

#[test]
fn bits_for_every_small_range_and_every_power_of_two() {
    for min in -300..=300 {
        for max in min..=300 {
            check_bits(min, max);
        }
    }
    for bits in 0..=62 {
        let power = 1i64 << bits;
        for (min, max) in [
            (0, power - 1),
            (0, power),
            (-power, 0),
            (-power - 1, 0),
            (-power, power),
        ] {
            check_bits(min, max);
        }
    }
    check_bits(i64::MIN, i64::MAX);
    check_bits(i64::MIN, 0);
    check_bits(0, i64::MAX);
}

#[test]
fn sufficient_bits_of_a_record() {
    assert_eq!(ChannelOverflow::default().sufficient_bits(), 1);
    let seen = ChannelOverflow {
        min_partial_sum: -32769,
        max_partial_sum: 5,
        ..ChannelOverflow::default()
    };
    assert_eq!(seen.sufficient_bits(), 17);
}
