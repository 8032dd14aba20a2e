//! Rounding under the condition that no sum can overflow: where to start, what pushes back, how to
//! repair, and how far the bias may go.
//!
//! Invariant: after [`Guarantee::repair`] and [`Guarantee::clamp_bias`] the bound of every channel
//! fits (`network::SumBound`), with a margin for the bias's own rounding.

use arith::{AccumulatorFormat, Format};
use ndarray::{Array2, Axis};
use rayon::prelude::*;

/// What every partial sum has to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarantee {
    /// Of the integers that the kernel reads.
    pub input: Format,
    /// What holds the sums.
    pub accumulator: AccumulatorFormat,
    /// Kept free at both ends, for the rounding of biases.
    pub margin: i64,
}

/// An end of the accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Max,
    Min,
}

const ENDS: [End; 2] = [End::Max, End::Min];

impl Guarantee {
    /// What a unit of a weight of this sign adds at most towards an end.
    fn reach(self, is_positive: bool, end: End) -> f64 {
        let (low, high) = (self.input.q_min(), self.input.q_max());
        let reach = if is_positive == (end == End::Max) {
            high
        } else {
            -low
        };
        f64::from(reach.max(0))
    }

    /// What the weights may reach towards an end beside a bias.
    fn budget(self, bias: f32, end: End) -> f64 {
        let (limit, bias) = match end {
            End::Max => (i64::from(self.accumulator.max()), bias),
            End::Min => (-i64::from(self.accumulator.min()), -bias),
        };
        ((limit - self.margin) as f64 - f64::from(bias.max(0.0))).max(0.0)
    }

    fn reached(self, weights: impl Iterator<Item = f32>, end: End) -> f64 {
        weights
            .map(|w| f64::from(w.abs()) * self.reach(w > 0.0, end))
            .sum()
    }

    /// The nearest real-valued weights under the bound: magnitudes on the side that is too large
    /// all lose the same (Euclidean projection on an L1 ball, Duchi et al., ICML 2008).
    pub(crate) fn shrunk(self, weights: &Array2<f32>, bias: &[f32]) -> Array2<f32> {
        let mut weights = weights.clone();
        for (c, mut row) in weights.axis_iter_mut(Axis(0)).enumerate() {
            for end in ENDS {
                let budget = self.budget(bias[c], end);
                let cut = |w: f32, less: f64| {
                    if self.reach(w > 0.0, end) > 0.0 {
                        (f64::from(w.abs()) - less).max(0.0) as f32 * w.signum()
                    } else {
                        w
                    }
                };
                let fits =
                    |less: f64| self.reached(row.iter().map(|&w| cut(w, less)), end) <= budget;
                if fits(0.0) {
                    continue;
                }
                let (mut too_little, mut enough) = (0.0, 256.0);
                for _ in 0..40 {
                    let middle = f64::midpoint(too_little, enough);
                    if fits(middle) {
                        enough = middle;
                    } else {
                        too_little = middle;
                    }
                }
                row.mapv_inplace(|w| cut(w, enough));
            }
        }
        weights
    }

    /// Adds to the gradient of channels that pass the bound a push towards 0.
    pub(crate) fn push_back(
        self,
        weights: &Array2<f32>,
        bias: &[f32],
        push: f32,
        gradient: &mut Array2<f32>,
    ) {
        let rows = gradient.axis_iter_mut(Axis(0)).zip(weights.outer_iter());
        for ((mut gradient, weights), &bias) in rows.zip(bias) {
            for end in ENDS {
                let reached = self.reached(weights.iter().copied(), end);
                if reached <= self.budget(bias, end) {
                    continue;
                }
                for (g, &w) in gradient.iter_mut().zip(&weights) {
                    if w != 0.0 && self.reach(w > 0.0, end) > 0.0 {
                        *g += push * w.signum();
                    }
                }
            }
        }
    }

    /// Moves integer weights towards 0 until the bound fits: each time the step that by the Gram
    /// matrix brings the sums least away from those of the float weights.
    pub(crate) fn repair(
        self,
        weights: &mut Array2<f32>,
        float: &Array2<f32>,
        bias: &[f32],
        gram: &Array2<f32>,
    ) {
        let rows: Vec<_> = weights
            .axis_iter_mut(Axis(0))
            .zip(float.outer_iter())
            .zip(bias)
            .collect();
        rows.into_par_iter().for_each(|((mut row, float), &bias)| {
            // Half the derivative of the squared error by each weight.
            let mut slope = gram.dot(&(&row - &float));
            for end in ENDS {
                let budget = self.budget(bias, end);
                let mut reached = self.reached(row.iter().copied(), end);
                while reached > budget {
                    let cost = |k: usize, w: f32| {
                        let reach = self.reach(w > 0.0, end);
                        (w != 0.0 && reach > 0.0)
                            .then(|| gram[[k, k]] - 2.0 * w.signum() * slope[k])
                    };
                    let mut best: Option<(f32, usize)> = None;
                    for (k, &w) in row.iter().enumerate() {
                        if let Some(cost) = cost(k, w)
                            && best.is_none_or(|(least, _)| cost < least)
                        {
                            best = Some((cost, k));
                        }
                    }
                    let Some((_, k)) = best else { break };
                    let sign = row[k].signum();
                    reached -= self.reach(row[k] > 0.0, end);
                    row[k] -= sign;
                    slope.scaled_add(-sign, &gram.row(k));
                }
            }
        });
    }

    /// Keeps biases where the bound fits the weights as they are.
    pub(crate) fn clamp_bias(self, weights: &Array2<f32>, bias: &mut [f32]) {
        for (row, bias) in weights.outer_iter().zip(bias) {
            let room = |end: End| {
                let reached = self.reached(row.iter().copied(), end);
                (self.budget(0.0, end) - reached).max(0.0).floor() as f32
            };
            *bias = bias.min(room(End::Max)).max(-room(End::Min));
        }
    }
}
