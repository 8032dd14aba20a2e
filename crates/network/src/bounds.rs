//! How far an accumulator can go whatever the input: proofs instead of simulations.
//!
//! Source: the rules are those of A2Q (Colbert et al., ICCV 2023) and its sharper form for unsigned
//! inputs: positive and negative weights bound different ends. Invariant: bounds hold for every
//! order of summation and every partial sum, with the bias or without it, so they hold on every
//! machine.

use crate::{Conv, Network};
use arith::{AccumulatorFormat, Format};

/// The ends that no partial sum of an output channel can pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumBound {
    /// Never below.
    pub min: i64,
    /// Never above.
    pub max: i64,
}

/// What proves that an accumulator cannot overflow, from the least to the most that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SafetyRule {
    /// The widths and the number of steps alone.
    Widths,
    /// The sum of the weights' magnitudes.
    Magnitudes,
    /// The sums of positive and of negative weights, each with the input's end that makes it
    /// largest.
    Signs,
}

impl SumBound {
    /// Of a bias, weights, and inputs of a format.
    pub fn of(bias: i64, weights: impl Iterator<Item = i8>, input: Format) -> Self {
        let (low, high) = (i64::from(input.q_min()), i64::from(input.q_max()));
        // 0 is an input (padding), so each product's range includes it, and partial sums can
        // leave out what would pull them back.
        let (mut min, mut max) = (bias.min(0), bias.max(0));
        for w in weights {
            let ends = [i64::from(w) * low, i64::from(w) * high];
            min += ends[0].min(ends[1]).min(0);
            max += ends[0].max(ends[1]).max(0);
        }
        Self { min, max }
    }

    /// Whether an accumulator holds every partial sum.
    pub fn fits(self, accumulator: AccumulatorFormat) -> bool {
        accumulator.holds(self.min) && accumulator.holds(self.max)
    }

    /// The narrowest accumulator that does.
    pub fn sufficient_bits(self) -> u8 {
        arith::bits_for_range(self.min, self.max)
    }

    /// What is left to the nearer end of an accumulator; negative when it does not fit.
    pub fn slack(self, accumulator: AccumulatorFormat) -> i64 {
        let above = i64::from(accumulator.max()) - self.max;
        above.min(self.min - i64::from(accumulator.min()))
    }
}

/// One bound for each output channel of a convolution.
pub fn sum_bounds(network: &Network, conv: &Conv) -> Vec<SumBound> {
    let input = network.tensor(conv.input).format;
    let kernels = conv.weights.outer_iter();
    kernels
        .zip(&conv.bias)
        .map(|(kernel, bias)| SumBound::of(bias.value(), kernel.iter().copied(), input))
        .collect()
}

/// The first rule that proves an output channel safe, for each channel; `None` where none does.
pub fn safety(
    network: &Network,
    conv: &Conv,
    accumulator: AccumulatorFormat,
) -> Vec<Option<SafetyRule>> {
    let input = network.tensor(conv.input).format;
    let weight = Format {
        bits: conv.weight_bits,
        signed: true,
    };
    let magnitude = |f: Format| i64::from(f.q_max()).max(-i64::from(f.q_min()));
    let limit = i64::from(accumulator.max());
    let widths = conv.reduction_length() as i64 * magnitude(weight) * magnitude(input);
    sum_bounds(network, conv)
        .iter()
        .zip(conv.weights.outer_iter().zip(&conv.bias))
        .map(|(bound, (kernel, bias))| {
            let bias = bias.value().abs();
            let magnitudes: i64 = kernel.iter().map(|&w| i64::from(w).abs()).sum();
            let rules = [
                (SafetyRule::Widths, bias + widths <= limit),
                (
                    SafetyRule::Magnitudes,
                    bias + magnitudes * magnitude(input) <= limit,
                ),
                (SafetyRule::Signs, bound.fits(accumulator)),
            ];
            rules.iter().find(|rule| rule.1).map(|rule| rule.0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::SumBound;
    use arith::Format;

    /// Every order, every input, with the bias first or a fold that starts without it.
    fn extremes(bias: i64, weights: &[i8], input: Format) -> (i64, i64) {
        let values: Vec<i64> = (input.q_min()..=input.q_max()).map(i64::from).collect();
        let mut sums = vec![0, bias];
        // A subset of steps is a prefix of some order; input 0 leaves a step out.
        for &w in weights {
            let more: Vec<i64> = sums
                .iter()
                .flat_map(|s| values.iter().map(move |v| s + v * i64::from(w)))
                .collect();
            sums.extend(more);
            sums.sort_unstable();
            sums.dedup();
        }
        (sums[0], *sums.last().expect("the bias"))
    }

    #[test]
    fn bounds_are_reached_and_never_passed() {
        for signed in [false, true] {
            let input = Format { bits: 2, signed };
            for bias in [-5, 0, 7] {
                for a in -4..4i8 {
                    for b in -4..4i8 {
                        for c in [-2i8, 0, 3] {
                            let bound = SumBound::of(bias, [a, b, c].into_iter(), input);
                            let found = extremes(bias, &[a, b, c], input);
                            assert_eq!((bound.min, bound.max), found, "{bias} {a} {b} {c}");
                        }
                    }
                }
            }
        }
    }
}
