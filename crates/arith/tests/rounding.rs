//! Roundings and requantization: every small value, shift and tie against the definition.

use arith::{Requant, Rounding, shift_right_rounding};
use proptest::prelude::*;
use std::cmp::Ordering;

/// The definition: the nearer of the two neighbours of `value / 2^shift`, the rule deciding ties.
fn defined(value: i128, shift: u32, rounding: Rounding) -> i128 {
    let divisor = 1i128 << shift;
    let below = value.div_euclid(divisor);
    if rounding == Rounding::Floor || below * divisor == value {
        return below;
    }
    let (to_below, to_above) = (value - below * divisor, (below + 1) * divisor - value);
    match (to_below.cmp(&to_above), rounding) {
        (Ordering::Less, _) => below,
        (Ordering::Equal, Rounding::HalfAwayFromZero) if value < 0 => below,
        (Ordering::Equal, Rounding::HalfEven) if below % 2 == 0 => below,
        (Ordering::Greater | Ordering::Equal, _) => below + 1,
    }
}

#[track_caller]
fn check(value: i64, shift: u8) {
    for rounding in Rounding::ALL {
        let found = shift_right_rounding(value, shift, rounding);
        let expected = defined(value.into(), shift.into(), rounding);
        assert_eq!(
            i128::from(found),
            expected,
            "{value} >> {shift} {rounding:?}"
        );
    }
}

#[test]
fn every_small_value_and_shift() {
    for value in -5000..=5000 {
        for shift in 0..=16 {
            check(value, shift);
        }
    }
}

#[test]
fn every_shift_around_every_kind_of_tie() {
    for shift in 1..=61u8 {
        let half = 1i64 << (shift - 1);
        for odd in [-5i64, -3, -1, 1, 3, 5] {
            let Some(tie) = half.checked_mul(odd).filter(|t| t.unsigned_abs() < 1 << 62) else {
                continue;
            };
            for value in [tie - 1, tie, tie + 1] {
                if value.unsigned_abs() < 1 << 62 {
                    check(value, shift);
                }
            }
        }
    }
}

#[test]
fn doubles_round_as_integers_do() {
    for shift in 0..=47u8 {
        let unit = 2f64.powi(-i32::from(shift));
        let half = (1i64 << shift) / 2;
        for multiple in [-7i64, -2, -1, 0, 1, 2, 7] {
            for near in -2..=2 {
                let value = half * multiple + near;
                if value.unsigned_abs() >= 1 << 51 {
                    continue;
                }
                for rounding in Rounding::ALL {
                    let real = rounding.integer_of(value as f64 * unit);
                    let integer = shift_right_rounding(value, shift, rounding);
                    assert!(
                        (real - integer as f64).abs() < f64::EPSILON,
                        "{value} >> {shift}, {rounding:?}: {real}, not {integer}"
                    );
                }
            }
        }
    }
}

#[test]
fn ties_as_the_names_say() {
    // 5 / 2 and -5 / 2, by hand.
    let expected = [(3, -2), (3, -3), (2, -2), (2, -3)];
    for (rounding, (positive, negative)) in Rounding::ALL.into_iter().zip(expected) {
        assert_eq!(
            shift_right_rounding(5, 1, rounding),
            positive,
            "{rounding:?}"
        );
        assert_eq!(
            shift_right_rounding(-5, 1, rounding),
            negative,
            "{rounding:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn large_values(value in -(1i64 << 62) + 1..1i64 << 62, shift in 0u8..=62) {
        check(value, shift);
    }

    /// No representable multiplier is nearer, over the whole range of exponents.
    #[test]
    fn nearest_requant_is_nearest(fraction in 1.0f64..2.0, exponent in -47i32..=6) {
        let factor = fraction * 2f64.powi(exponent);
        let found = Requant::nearest(factor).unwrap();
        prop_assert!(found.shift <= Requant::MAX_SHIFT);
        let error = (found.factor() - factor).abs();
        for shift in 0..=Requant::MAX_SHIFT {
            // The best mantissa at this shift is next to the quotient.
            let quotient = (factor * 2f64.powi(shift.into())).floor().min(254.0) as u8;
            for mantissa in [quotient, quotient + 1] {
                let other = Requant { mantissa, shift };
                prop_assert!((other.factor() - factor).abs() >= error, "{found:?} {other:?}");
            }
        }
        if factor >= 2f64.powi(-40) {
            prop_assert!(found.mantissa >= 128);
            // Half a unit of a mantissa of at least 128.
            prop_assert!(error <= factor / 256.0);
        }
    }
}

#[test]
fn representable_requants_are_their_own_nearest() {
    for mantissa in 128..=255 {
        for shift in 0..=Requant::MAX_SHIFT {
            let requant = Requant { mantissa, shift };
            assert_eq!(Requant::nearest(requant.factor()), Some(requant));
        }
    }
    assert_eq!(
        Requant::nearest(1.0),
        Some(Requant {
            mantissa: 128,
            shift: 7
        })
    );
    assert!((Requant::IDENTITY.factor() - 1.0).abs() < f64::EPSILON);
}

#[test]
fn requant_edges() {
    for bad in [
        0.0,
        -0.0,
        -1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        255.5,
        1e300,
    ] {
        assert_eq!(Requant::nearest(bad), None, "{bad}");
    }
    assert_eq!(
        Requant::nearest(255.499),
        Some(Requant {
            mantissa: 255,
            shift: 0
        })
    );
    // Between the largest mantissa and the next power of two.
    assert_eq!(
        Requant::nearest(255.6 / 2.0),
        Some(Requant {
            mantissa: 128,
            shift: 0
        })
    );
    // Just below a power of two, where a logarithm may round up.
    let below_one = Requant::nearest(1.0 - f64::EPSILON / 2.0);
    assert_eq!(
        below_one,
        Some(Requant {
            mantissa: 128,
            shift: 7
        })
    );
    // Under 2^-40 the mantissa shrinks, and at last is zero.
    assert_eq!(
        Requant::nearest(2f64.powi(-47)),
        Some(Requant {
            mantissa: 1,
            shift: 47
        })
    );
    assert_eq!(
        Requant::nearest(2f64.powi(-49)),
        Some(Requant {
            mantissa: 0,
            shift: 47
        })
    );
    assert_eq!(
        Requant::nearest(f64::MIN_POSITIVE),
        Some(Requant {
            mantissa: 0,
            shift: 47
        })
    );
    assert_eq!(
        Requant::nearest(5e-324),
        Some(Requant {
            mantissa: 0,
            shift: 47
        })
    );
}
