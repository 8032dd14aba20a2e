//! Formats and scales: every width; the nearest scale over the whole range of floats.

use arith::{Bytes, Cycle, Cycles, Format, OutOfRange, Scale};
use proptest::prelude::*;

#[test]
fn every_format_holds_exactly_its_integers() {
    for bits in 2..=16u8 {
        for signed in [false, true] {
            let format = Format { bits, signed };
            let n_values = i64::from(format.q_max()) - i64::from(format.q_min()) + 1;
            assert_eq!(n_values, 1 << bits);
            assert_eq!(format.q_min() < 0, signed);
            for value in -70_000..=70_000 {
                let inside = (format.q_min()..=format.q_max()).contains(&(value as i32));
                assert_eq!(format.check(value).is_ok(), inside);
            }
            assert!(format.check(i64::MIN).is_err() && format.check(i64::MAX).is_err());
            let storage = format.storage_bits();
            assert!([4, 8, 16].contains(&storage) && storage >= bits);
            assert!(
                storage == 4 || storage / 2 < bits,
                "{bits} bits fit a smaller slot"
            );
        }
    }
    let error = Format {
        bits: 4,
        signed: true,
    }
    .check(8)
    .unwrap_err();
    assert_eq!(
        error,
        OutOfRange {
            value: 8,
            min: -8,
            max: 7
        }
    );
    assert_eq!(error.to_string(), "8 is outside -8..=7");
}

#[test]
fn representable_scales_are_their_own_nearest() {
    for mantissa in 128..=255 {
        for exponent in -1000..=1000 {
            let scale = Scale { mantissa, exponent };
            assert_eq!(Scale::nearest(scale.real()), Some(scale));
        }
    }
    assert_eq!(
        Scale::nearest(1.0),
        Some(Scale {
            mantissa: 128,
            exponent: -7
        })
    );
}

#[test]
fn scale_edges() {
    for bad in [
        0.0,
        -1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MIN_POSITIVE,
    ] {
        assert_eq!(Scale::nearest(bad), None, "{bad}");
    }
    for exponent in -900..=900 {
        let power = 2f64.powi(exponent);
        let exact = Some(Scale {
            mantissa: 128,
            exponent: exponent as i16 - 7,
        });
        // A neighbour of a power of two, where a logarithm may round to either side.
        for real in [power, power.next_down(), power.next_up()] {
            assert_eq!(Scale::nearest(real), exact, "2^{exponent}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn nearest_scale_is_nearest(fraction in 1.0f64..2.0, exponent in -990i32..=1000) {
        let real = fraction * 2f64.powi(exponent);
        let found = Scale::nearest(real).unwrap();
        prop_assert!(found.mantissa >= 128);
        let error = (found.real() - real).abs();
        prop_assert!(error <= real / 256.0);
        for other_exponent in [found.exponent - 1, found.exponent, found.exponent + 1] {
            for mantissa in 128..=255 {
                let other = Scale { mantissa, exponent: other_exponent };
                prop_assert!((other.real() - real).abs() >= error, "{found:?} {other:?}");
            }
        }
    }
}

#[test]
fn moments_and_lengths() {
    assert_eq!(Cycle(40) + Cycles(7), Cycle(47));
    assert_eq!(Cycle(47) - Cycle(40), Cycles(7));
    assert_eq!([Bytes(1), Bytes(2)].into_iter().sum::<Bytes>(), Bytes(3));
    assert_eq!(Bytes(5).to_string(), "5 bytes");
    assert_eq!(Cycles(5).to_string(), "5 cycles");
}
