//! The search for a tensor's scale, on the grid of scales that the machine can store.
//!
//! Source: LLSQ (Zhao et al., ICLR 2020), section 3.1: `E(s) = mean (x - s · clamp(round(x / s)))²`.
//! Invariant: the result is a function of the values alone, not of threads or order; searching a
//! grid keeps rounding noise between exporters' variants of one model out of it.

use crate::divergence::divergence;
use arith::{Format, Scale};
use serde::{Deserialize, Serialize};

/// How a scale is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// `max|x| / 2^(b-1)`, unsigned `max|x| / 2^b`.
    MinMax,
    /// Least mean squared error.
    Mse,
    /// The paper's comparison of `E(s/2)`, `E(s)`, `E(2s)`, iterated with a factor that shrinks
    /// from 2 to 1.
    Llsq,
    /// The largest magnitudes are clipped: this share of a million values is not. Weights, of which
    /// there are few, keep their largest value unless the share says otherwise.
    Percentile {
        /// Of the magnitudes, how many in a million lie inside the range.
        inside_ppm: u32,
    },
    /// Activations: least Kullback–Leibler divergence; weights: least mean squared error.
    Kl,
}

/// Grid points per factor of 2.
const POINTS: i32 = 128;

/// Doubles of this size are integers.
const ROUND: f64 = 6_755_399_441_055_744.0;

fn point(index: i32) -> Scale {
    let exponent = index.div_euclid(POINTS) as i16;
    Scale {
        mantissa: (POINTS + index.rem_euclid(POINTS)) as u8,
        exponent,
    }
}

fn index(scale: Scale) -> i32 {
    i32::from(scale.exponent) * POINTS + i32::from(scale.mantissa) - POINTS
}

/// The smallest stored scale that is at least `real`.
pub(crate) fn at_least(real: f64) -> Option<Scale> {
    let near = Scale::nearest(real)?;
    Some(if near.real() < real {
        point(index(near) + 1)
    } else {
        near
    })
}

/// Values with weights (how often each occurs).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    Exact(&'a [f32]),
    Counted(&'a [(f64, f64)]),
}

impl Values<'_> {
    fn len(self) -> usize {
        match self {
            Self::Exact(v) => v.len(),
            Self::Counted(v) => v.len(),
        }
    }

    /// The magnitude that so many in a million do not exceed. Zeros that were not counted are left
    /// out.
    fn percentile(self, inside_ppm: u32) -> f64 {
        let mut magnitudes: Vec<(f64, f64)> = match self {
            Self::Exact(v) => v.iter().map(|&x| (f64::from(x).abs(), 1.0)).collect(),
            Self::Counted(v) => v.iter().map(|&(x, n)| (x.abs(), n)).collect(),
        };
        magnitudes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total: f64 = magnitudes.iter().map(|m| m.1).sum();
        let wanted = total * f64::from(inside_ppm) / 1e6;
        let mut seen = 0.0;
        for &(magnitude, n) in &magnitudes {
            seen += n;
            if seen >= wanted {
                return magnitude;
            }
        }
        magnitudes.last().map_or(0.0, |m| m.0)
    }

    /// Sum of squared errors at scale `s`.
    fn error(self, s: f64, format: Format) -> f64 {
        let (low, high) = (f64::from(format.q_min()), f64::from(format.q_max()));
        let inverse = 1.0 / s;
        let square = |x: f64| {
            // Clipping first is the same, because the bounds are integers; then adding and
            // taking away 1.5 · 2^52 rounds a tie to even without a call.
            let clipped = (x * inverse).max(low).min(high);
            let error = x - s * ((clipped + ROUND) - ROUND);
            error * error
        };
        match self {
            Self::Exact(v) => v.iter().map(|&x| square(f64::from(x))).sum(),
            Self::Counted(v) => v.iter().map(|&(x, n)| n * square(x)).sum(),
        }
    }
}

/// The scale of `values`, whose largest magnitude is `peak`; `None` when `peak` is 0 or too small
/// for a scale.
pub(crate) fn search(
    values: Values<'_>,
    peak: f64,
    format: Format,
    method: Method,
) -> Option<Scale> {
    let steps = if format.signed {
        format.bits - 1
    } else {
        format.bits
    };
    let start = peak / 2f64.powi(i32::from(steps));
    let rule = Scale::nearest(start)?;
    match method {
        Method::MinMax => Some(rule),
        Method::Mse => {
            let low = index(Scale::nearest(start / 16.0)?);
            let high = index(Scale::nearest(start * 1.1)?);
            Some(least_error(values, format, low, high))
        }
        Method::Llsq => llsq(values, format, rule),
        Method::Percentile { inside_ppm } => {
            let range = values.percentile(inside_ppm);
            Scale::nearest(range / 2f64.powi(i32::from(steps))).or(Some(rule))
        }
        Method::Kl => {
            let low = index(Scale::nearest(start / 16.0)?);
            let high = index(Scale::nearest(start * 1.1)?);
            match values {
                Values::Exact(_) => Some(least_error(values, format, low, high)),
                Values::Counted(bins) => Some(least_divergence(bins, format, low, high)),
            }
        }
    }
}

fn least_divergence(bins: &[(f64, f64)], format: Format, low: i32, high: i32) -> Scale {
    let mut best = (f64::INFINITY, high);
    for index in (low..=high).rev().step_by(4) {
        let divergence = divergence(bins, point(index).real(), format);
        if divergence < best.0 {
            best = (divergence, index);
        }
    }
    point(best.1)
}

/// Exhaustive for few values; for many a coarse grid, then finer ones around its best point.
fn least_error(values: Values<'_>, format: Format, low: i32, high: i32) -> Scale {
    let best_of = |low: i32, high: i32, step: i32| {
        let mut best = (f64::INFINITY, high);
        for index in (low..=high).rev().step_by(step as usize) {
            let error = values.error(point(index).real(), format);
            if error < best.0 {
                best = (error, index);
            }
        }
        best.1
    };
    if values.len() <= 1 << 10 {
        return point(best_of(low, high, 1));
    }
    let mut best = best_of(low, high, 8);
    for step in [2, 1] {
        let reach = step * 4;
        best = best_of((best - reach).max(low), (best + reach).min(high), step);
    }
    point(best)
}

fn llsq(values: Values<'_>, format: Format, start: Scale) -> Option<Scale> {
    let error = |scale: Scale| values.error(scale.real(), format);
    let mut scale = start;
    let mut factor = 2.0;
    // One grid step is at most 1/128.
    while factor > 1.0 + 1.0 / 256.0 {
        // The error never grows, so the moves end; the bound covers plateaus.
        for _ in 0..64 {
            let half = Scale::nearest(scale.real() / factor)?;
            let double = Scale::nearest(scale.real() * factor)?;
            let (e_half, e, e_double) = (error(half), error(scale), error(double));
            let (a1, a2) = (e - e_half, e_double - e);
            scale = match (a1 >= 0.0, a2 > 0.0, a1 + a2 >= 0.0) {
                (false, true, _) => break,
                (false, false, _) | (true, false, false) => double,
                (true, false, true) | (true, true, _) => half,
            };
            if a1 == 0.0 && a2 == 0.0 {
                break;
            }
        }
        factor = f64::sqrt(factor);
    }
    Some(scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(values: &[f32], scale: Scale, format: Format) -> f64 {
        let s = scale.real();
        let all = values.iter().map(|&x| {
            let q = (f64::from(x) / s).round_ties_even();
            let q = q
                .max(f64::from(format.q_min()))
                .min(f64::from(format.q_max()));
            (f64::from(x) - q * s).powi(2)
        });
        all.sum()
    }

    #[test]
    fn grid_is_ordered() {
        for i in -3000..3000 {
            assert_eq!(index(point(i)), i);
            assert!(point(i).real() < point(i + 1).real());
        }
    }

    #[test]
    fn percentiles_clip_the_tail() {
        let values: Vec<f32> = (1..=1000i16).map(f32::from).collect();
        let format = Format {
            bits: 4,
            signed: false,
        };
        let of = |inside_ppm| {
            let method = Method::Percentile { inside_ppm };
            search(Values::Exact(&values), 1000.0, format, method).map(Scale::real)
        };
        assert_eq!(of(1_000_000), Some(1000.0 / 16.0));
        assert_eq!(of(900_000), Some(56.25));
        assert_eq!(of(512_000), Some(32.0));
    }

    #[test]
    fn divergence_clips_an_outlier_that_the_largest_value_would_not() {
        let mut bins: Vec<(f64, f64)> = (1..200)
            .map(|i| (f64::from(i) * 0.01, f64::from(200 - i)))
            .collect();
        bins.push((20.0, 1.0));
        let format = Format {
            bits: 4,
            signed: false,
        };
        let s = search(Values::Counted(&bins), 20.0, format, Method::Kl).unwrap();
        assert!((0.05..0.2).contains(&s.real()), "{}", s.real());
    }

    proptest! {
        #[test]
        fn mse_is_the_best_grid_point(
            values in prop::collection::vec(-4f32..4.0, 1..60), bits in 2u8..=8, signed: bool,
        ) {
            let values: Vec<f32> =
                values.into_iter().map(|v| if signed { v } else { v.abs() }).collect();
            let format = Format { bits, signed };
            let peak = f64::from(values.iter().fold(0f32, |m, v| m.max(v.abs())));
            prop_assume!(peak > 1e-3);
            let found = search(Values::Exact(&values), peak, format, Method::Mse).unwrap();
            let start = peak / 2f64.powi(i32::from(bits) - i32::from(signed));
            let mut s = Scale::nearest(start / 16.0).unwrap();
            let mut best = f64::INFINITY;
            while s.real() <= start * 1.09 {
                best = best.min(error(&values, s, format));
                s = at_least(s.real() * 1.0001).unwrap();
            }
            let got = error(&values, found, format);
            prop_assert!(got <= best * (1.0 + 1e-9) + 1e-12, "{got} > {best}");
        }

        #[test]
        fn llsq_is_no_worse_than_the_max_rule(
            values in prop::collection::vec(-4f32..4.0, 1..60), bits in 2u8..=8,
        ) {
            let format = Format { bits, signed: true };
            let peak = f64::from(values.iter().fold(0f32, |m, v| m.max(v.abs())));
            prop_assume!(peak > 1e-3);
            let of = |method| {
                let s = search(Values::Exact(&values), peak, format, method).unwrap();
                error(&values, s, format)
            };
            prop_assert!(of(Method::Llsq) <= of(Method::MinMax) * (1.0 + 1e-9) + 1e-12);
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn coarse_search_finds_a_good_scale(seed in 0u32..1000, bits in 2u8..=8) {
            let values: Vec<f32> = (0..10_000u32)
                .map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) % 1009) as f32 / 1009.0)
                .map(|u| (u - 0.5).powi(3))
                .collect();
            let format = Format { bits, signed: true };
            let s = search(Values::Exact(&values), 0.125, format, Method::Mse).unwrap();
            let low = index(Scale::nearest(0.125 / 2f64.powi(i32::from(bits) + 3)).unwrap());
            let best = (low..low + 560)
                .map(|i| error(&values, point(i), format))
                .fold(f64::INFINITY, f64::min);
            prop_assert!(error(&values, s, format) <= best * 1.03);
        }
    }
}
