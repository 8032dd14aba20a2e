//! How scales learn: the simulated gradient of LLSQ, and the loss's gradient as LSQ and PACT have it.
//!
//! Sources: Zhao et al., LLSQ, ICLR 2020, section 3.1; Esser et al., LSQ, ICLR 2020, section 2; Choi et
//! al., PACT, arXiv 1805.06085, section 3.
//! Invariant: errors are sums in one order.

use arith::Format;

/// Sums of `(x - x̂)²` at half the scale, the scale and twice the scale, in squares of the scale.
/// `values` are in units of the scale; the activation function's clamp comes before the error.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
pub(crate) fn errors(values: &[f32], [low, high]: [f32; 2], format: Format) -> [f64; 3] {
    let (q_min, q_max) = (format.q_min() as f32, format.q_max() as f32);
    let mut totals = [0f64; 3];
    for chunk in values.chunks(1024) {
        let mut sums = [[0f32; 16]; 3];
        for lanes in chunk.chunks(16) {
            for (lane, &value) in lanes.iter().enumerate() {
                let x = value.max(low).min(high);
                for (sums, factor) in sums.iter_mut().zip([2.0, 1.0, 0.5f32]) {
                    let x = x * factor;
                    let error = x - x.max(q_min).min(q_max).round_ties_even();
                    sums[lane] += error * error;
                }
            }
        }
        for (total, sums) in totals.iter_mut().zip(&sums) {
            *total += sums.iter().map(|&s| f64::from(s)).sum::<f64>();
        }
    }
    [totals[0] / 4.0, totals[1], totals[2] * 4.0]
}

/// The simulated gradient at scale `s`: its sign says where the error falls, its size makes the
/// step follow the scale.
pub(crate) fn simulated_gradient([half, same, double]: [f64; 3], s: f64) -> f64 {
    let (a1, a2) = (same - half, double - same);
    match (a1 >= 0.0, a2 > 0.0, a1 + a2 >= 0.0) {
        (false, true, _) => 0.0,
        (false, false, _) | (true, false, false) => -s * s,
        (true, false, true) | (true, true, _) => s * s,
    }
}

/// What one value contributes to LSQ's gradient, for a gradient of 1 of the quantized value;
/// `value` is in units of the scale, `q` its integer.
pub(crate) fn lsq(value: f32, q: f32, format: Format) -> f32 {
    clipped(value, format).unwrap_or(q - value)
}

/// The same for a clipping level that is learned (PACT: Choi et al., 2018, section 3): only values at or
/// beyond it move it.
pub(crate) fn pact(value: f32, _q: f32, format: Format) -> f32 {
    clipped(value, format).unwrap_or(0.0)
}

/// The integer of a value at or beyond an end of the format.
fn clipped(value: f32, format: Format) -> Option<f32> {
    let (low, high) = (format.q_min() as f32, format.q_max() as f32);
    if value <= low {
        Some(low)
    } else {
        (value >= high).then_some(high)
    }
}

/// How a loss moves the scale of an activation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slope {
    /// Of the activation.
    pub(crate) format: Format,
    /// What one value contributes, see [`lsq`].
    pub(crate) of: fn(f32, f32, Format) -> f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of moves, line by line.
    #[test]
    fn moves_follow_the_table() {
        let s = 0.5;
        for (errors, sign) in [
            ([2.0, 1.0, 0.5], -1.0),
            ([2.0, 1.0, 1.0], -1.0),
            ([2.0, 1.0, 2.0], 0.0),
            ([1.0, 1.0, 0.5], -1.0),
            ([1.0, 2.0, 1.5], 1.0),
            ([1.0, 2.0, 3.0], 1.0),
            ([1.0, 1.0, 1.0], 1.0),
        ] {
            let found = simulated_gradient(errors, s);
            assert!((found - sign * s * s).abs() < 1e-12, "{errors:?}: {found}");
        }
    }

    #[test]
    fn errors_are_those_of_the_definition() {
        let format = Format {
            bits: 3,
            signed: true,
        };
        let values: Vec<f32> = (0..2500u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) % 2000) as f32 / 150.0 - 6.0)
            .collect();
        for (found, factor) in errors(&values, [-2.5, 5.0], format)
            .into_iter()
            .zip([0.5, 1.0, 2.0])
        {
            let exact: f64 = values
                .iter()
                .map(|&x| {
                    let x = f64::from(x.clamp(-2.5, 5.0));
                    let q = (x / factor).round_ties_even().clamp(-4.0, 3.0);
                    (x - q * factor).powi(2)
                })
                .sum();
            assert!((found - exact).abs() <= 1e-5 * exact, "{found} {exact}");
        }
    }
}
