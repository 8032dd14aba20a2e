//! Weights whose sums provably fit the accumulator, with the least error that this costs.
//!
//! Source: the bound is A2Q's (Colbert et al., ICCV 2023), for positive and negative weights apart;
//! see `network::SumBound`. Invariant: after [`enforce`] has changed nothing, every channel's bound
//! fits.

use crate::float::FloatConv;
use crate::quantize::round_to;
use crate::scale;
use arith::{AccumulatorFormat, Format, Scale};
use ndarray::{Array4, Axis};
use network::{Bias, SumBound};
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Times that weights are brought under the bound and biases follow them.
pub(crate) const MAX_ROUNDS: usize = 32;

/// What sums are made of, and what they must fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) input: Format,
    pub(crate) accumulator: AccumulatorFormat,
}

/// A weight that may move one step towards 0, at what cost.
#[derive(Debug, PartialEq)]
struct Candidate {
    cost: f64,
    place: usize,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.cost
            .total_cmp(&other.cost)
            .then(self.place.cmp(&other.place))
    }
}

/// Moves a channel's weights towards 0, one step at a time, each time the one whose squared distance
/// to what is `wanted` (in the weights' units) grows least, until the bound fits. Steps of one weight
/// cost more and more, so no other set of steps of the same number is better. Returns whether
/// anything moved.
pub(crate) fn shrink(weights: &mut [i8], wanted: &[f64], bias: i64, bound: Bound) -> bool {
    let (min, max) = (
        i64::from(bound.accumulator.min()),
        i64::from(bound.accumulator.max()),
    );
    let (low, high) = (
        i64::from(bound.input.q_min()),
        i64::from(bound.input.q_max()),
    );
    let mut sums = SumBound::of(bias, weights.iter().copied(), bound.input);
    let mut moved = false;
    // First what passes above, then what still passes below.
    for above in [true, false] {
        // What a step of this weight takes off the end in question.
        let gain = |q: i8| {
            let up = if q > 0 { high } else { -low };
            let down = if q > 0 { -low } else { high };
            if above { up } else { down }
        };
        let cost = |q: i8, k: usize| {
            let sign = f64::from(q.signum());
            1.0 - 2.0 * sign * (f64::from(q) - wanted[k])
        };
        let mut heap: BinaryHeap<Reverse<Candidate>> = weights
            .iter()
            .enumerate()
            .filter(|&(_, &q)| q != 0 && gain(q) > 0)
            .map(|(place, &q)| {
                let cost = cost(q, place);
                Reverse(Candidate { cost, place })
            })
            .collect();
        while if above {
            sums.max > max
        } else {
            sums.min < min
        } {
            let Some(Reverse(Candidate { place, .. })) = heap.pop() else {
                break;
            };
            let q = weights[place];
            let (up, down) = if q > 0 { (high, low) } else { (-low, -high) };
            sums.max -= up;
            sums.min -= down;
            weights[place] = q - q.signum();
            moved = true;
            if weights[place] != 0 {
                let cost = cost(weights[place], place);
                heap.push(Reverse(Candidate { cost, place }));
            }
        }
    }
    moved
}

/// Brings every channel's weights under the bound; whether any moved.
pub(crate) fn enforce(
    weights: &mut Array4<i8>,
    exact: &Array4<f32>,
    wanted: impl Fn(usize, f32) -> f64 + Sync,
    bias: &[Bias],
    bound: Bound,
) -> bool {
    let kernels: Vec<_> = weights
        .axis_iter_mut(Axis(0))
        .zip(exact.axis_iter(Axis(0)))
        .zip(bias)
        .enumerate()
        .collect();
    let moved: Vec<bool> = kernels
        .into_par_iter()
        .map(|(c, ((mut q, w), bias))| {
            let wanted: Vec<f64> = w.iter().map(|&w| wanted(c, w)).collect();
            let mut kernel: Vec<i8> = q.iter().copied().collect();
            let moved = shrink(&mut kernel, &wanted, bias.value(), bound);
            q.iter_mut().zip(kernel).for_each(|(q, new)| *q = new);
            moved
        })
        .collect();
    moved.contains(&true)
}

/// Refuses weights that are not under the bound, which biases as large as the accumulator can cause.
pub(crate) fn check(weights: &Array4<i8>, bias: &[Bias], bound: Bound) -> Result<(), String> {
    for (c, (kernel, bias)) in weights.outer_iter().zip(bias).enumerate() {
        let sums = SumBound::of(bias.value(), kernel.iter().copied(), bound.input);
        if !sums.fits(bound.accumulator) {
            return Err(format!(
                "channel {c}: sums from {} to {} cannot be brought into {} bits",
                sums.min, sums.max, bound.accumulator.width_bits
            ));
        }
    }
    Ok(())
}

/// Steps of a quarter octave that scales may grow by.
const N_GROWN: i32 = 20;

/// Scales from those found upwards: coarser weights lose less under a tight bound, and where it is
/// not tight the first is the best.
pub(crate) fn scales(
    conv: &FloatConv,
    found: &[Scale],
    bits: u8,
    s_a: f64,
    bound: Bound,
) -> Vec<Scale> {
    let format = Format { bits, signed: true };
    let grown =
        |s: Scale, i: i32| scale::at_least(s.real() * 2f64.powf(f64::from(i) / 4.0)).unwrap_or(s);
    let n_channels = conv.bias.len();
    let errors: Vec<Vec<f64>> = (0..n_channels)
        .into_par_iter()
        .map(|c| {
            let start = found[if found.len() == 1 { 0 } else { c }];
            let kernel = conv.weights.index_axis(Axis(0), c);
            let error = |i: i32| {
                let s = if i == 0 { start } else { grown(start, i) }.real();
                let wanted: Vec<f64> = kernel.iter().map(|&w| f64::from(w) / s).collect();
                let mut q: Vec<i8> = wanted.iter().map(|&v| round_to(v, format) as i8).collect();
                let bias = (f64::from(conv.bias[c]) / (s * s_a)).round() as i64;
                shrink(&mut q, &wanted, bias, bound);
                let squares = q
                    .iter()
                    .zip(&wanted)
                    .map(|(&q, v)| (f64::from(q) - v).powi(2));
                squares.sum::<f64>() * s * s
            };
            (0..=N_GROWN).map(error).collect()
        })
        .collect();
    let least = |errors: &dyn Fn(usize) -> f64| {
        let mut best = 0;
        for i in 1..=N_GROWN as usize {
            if errors(i) < errors(best) {
                best = i;
            }
        }
        best as i32
    };
    let take = |s: Scale, i: i32| if i == 0 { s } else { grown(s, i) };
    if found.len() == 1 {
        let i = least(&|i| errors.iter().map(|e| e[i]).sum());
        return vec![take(found[0], i)];
    }
    found
        .iter()
        .enumerate()
        .map(|(c, &s)| take(s, least(&|i| errors[c][i])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arith::Overflow;

    fn bound(width_bits: u8, signed: bool) -> Bound {
        Bound {
            input: Format { bits: 2, signed },
            accumulator: AccumulatorFormat {
                width_bits,
                overflow: Overflow::Wrap,
            },
        }
    }

    /// Every set of smaller weights: the least squared distance among those that fit.
    fn best(q: &[i8], wanted: &[f64], bias: i64, bound: Bound) -> f64 {
        let ranges = q.iter().map(|&q| if q < 0 { q..=0 } else { 0..=q });
        let mut all: Vec<Vec<i8>> = vec![vec![]];
        for range in ranges {
            all = all
                .iter()
                .flat_map(|head| range.clone().map(move |w| [head.as_slice(), &[w]].concat()))
                .collect();
        }
        all.iter()
            .filter(|w| SumBound::of(bias, w.iter().copied(), bound.input).fits(bound.accumulator))
            .map(|w| distance(w, wanted))
            .fold(f64::INFINITY, f64::min)
    }

    fn distance(q: &[i8], wanted: &[f64]) -> f64 {
        q.iter()
            .zip(wanted)
            .map(|(&q, v)| (f64::from(q) - v).powi(2))
            .sum()
    }

    #[test]
    fn shrinking_fits_and_is_the_best_for_unsigned_inputs() {
        let mut random = arith::SplitMix64(3);
        for round in 0..300 {
            let wanted: Vec<f64> = (0..5)
                .map(|_| random.between(-7000, 7000) as f64 / 1000.0)
                .collect();
            let q: Vec<i8> = wanted.iter().map(|v| v.round() as i8).collect();
            let bias = random.between(-20, 20);
            let bound = bound(6, round % 2 == 1);
            let mut shrunk = q.clone();
            shrink(&mut shrunk, &wanted, bias, bound);
            let sums = SumBound::of(bias, shrunk.iter().copied(), bound.input);
            assert!(sums.fits(bound.accumulator), "{q:?} became {shrunk:?}");
            if !bound.input.signed {
                let (got, best) = (distance(&shrunk, &wanted), best(&q, &wanted, bias, bound));
                assert!(got <= best + 1e-9, "{q:?} became {shrunk:?}: {got}, {best}");
            }
        }
    }

    #[test]
    fn what_fits_stays() {
        let mut q = [3, -2, 1];
        assert!(!shrink(&mut q, &[3.2, -2.1, 0.9], 4, bound(8, true)));
        assert_eq!(q, [3, -2, 1]);
    }
}
