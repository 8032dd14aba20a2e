//! Accumulation of one fold: in-order sums at the accumulator's width, with their events.
//!
//! Invariant: equal to `AccumulatorFormat::add` step by step. The fast paths only take over where
//! no prefix of the sum can leave the range, or where 16-bit saturating adds are the rule itself.

mod fold;

pub(super) use fold::{Fold, Starts};

use super::Detail;
use arith::{AccumulatorFormat, ChannelOverflow, Overflow};

/// Columns that are computed side by side.
pub(super) const LANES: usize = 16;
/// What 16-bit lanes hold.
const BITS_16: AccumulatorFormat = AccumulatorFormat {
    width_bits: 16,
    overflow: Overflow::Saturate,
};
/// One value per column of a group.
pub(super) type Group = [i32; LANES];

/// What one output pixel has seen in a group of columns.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    /// Accumulators.
    pub acc: Group,
    /// Exact sums; equal to `acc` until the first event.
    pub exact: [i64; LANES],
    /// Smallest exact partial sum.
    pub min: [i64; LANES],
    /// Largest exact partial sum.
    pub max: [i64; LANES],
    /// Events.
    pub n_overflowed: Group,
    /// First step with an event, or `u32::MAX`.
    pub first_k: [u32; LANES],
}

impl Cell {
    /// Nothing was ever added: 0, without a record.
    pub const EMPTY: Self = Self {
        acc: [0; LANES],
        exact: [0; LANES],
        min: [i64::MAX; LANES],
        max: [i64::MIN; LANES],
        n_overflowed: [0; LANES],
        first_k: [u32::MAX; LANES],
    };

    /// An output whose accumulators start at the bias.
    pub fn new(bias: Group) -> Self {
        let exact = bias.map(i64::from);
        Self {
            acc: bias,
            exact,
            min: exact,
            max: exact,
            n_overflowed: [0; LANES],
            first_k: [u32::MAX; LANES],
        }
    }
}

impl Cell {
    /// Takes over the first lanes of another.
    pub fn overwrite(&mut self, other: &Self, n_lanes: usize) {
        if n_lanes == LANES {
            *self = *other;
            return;
        }
        for lane in 0..n_lanes {
            self.acc[lane] = other.acc[lane];
            self.exact[lane] = other.exact[lane];
            self.min[lane] = other.min[lane];
            self.max[lane] = other.max[lane];
            self.n_overflowed[lane] = other.n_overflowed[lane];
            self.first_k[lane] = other.first_k[lane];
        }
    }

    /// Adds a lane's record, one output's, to its channel's.
    pub fn count(&self, lane: usize, detail: Detail, counter: &mut ChannelOverflow) {
        if self.n_overflowed[lane] > 0 {
            counter.n_overflowed += self.n_overflowed[lane] as u64;
            counter.n_outputs_touched += 1;
            let first = self.first_k[lane];
            counter.first_k = Some(counter.first_k.map_or(first, |k| k.min(first)));
        }
        if detail == Detail::Full {
            counter.min_partial_sum = counter.min_partial_sum.min(self.min[lane]);
            counter.max_partial_sum = counter.max_partial_sum.max(self.max[lane]);
        }
    }
}

/// Adds the first lanes of a fold's sums, whose last step is `k`, to those of the folds before, with
/// their records.
pub(super) fn join(
    total: &mut Cell,
    fold: &Cell,
    n_lanes: usize,
    k: u32,
    format: AccumulatorFormat,
) {
    if n_lanes == LANES
        && let Some(sums) = sums(&total.acc, &fold.acc, format)
    {
        total.acc = sums;
        for lane in 0..LANES {
            total.n_overflowed[lane] += fold.n_overflowed[lane];
            total.first_k[lane] = total.first_k[lane].min(fold.first_k[lane]);
        }
        for lane in 0..LANES {
            let exact = total.exact[lane].wrapping_add(fold.exact[lane]);
            total.exact[lane] = exact;
            total.min[lane] = total.min[lane].min(fold.min[lane]).min(exact);
            total.max[lane] = total.max[lane].max(fold.max[lane]).max(exact);
        }
        return;
    }
    for lane in 0..n_lanes {
        let sum = format.add(total.acc[lane], fold.acc[lane]);
        total.acc[lane] = sum.acc;
        total.n_overflowed[lane] += fold.n_overflowed[lane] + i32::from(sum.overflowed);
        total.first_k[lane] = total.first_k[lane].min(fold.first_k[lane]);
        if sum.overflowed {
            total.first_k[lane] = total.first_k[lane].min(k);
        }
        total.exact[lane] += fold.exact[lane];
        let exact = total.exact[lane];
        total.min[lane] = total.min[lane].min(fold.min[lane]).min(exact);
        total.max[lane] = total.max[lane].max(fold.max[lane]).max(exact);
    }
}

/// The sums of two groups, if all of them fit.
#[inline]
fn sums(left: &Group, right: &Group, format: AccumulatorFormat) -> Option<Group> {
    let (min, max) = (format.min(), format.max());
    let (mut sums, mut misfits) = ([0; LANES], [0; LANES]);
    for c in 0..LANES {
        let sum = left[c].wrapping_add(right[c]);
        // Outside 32 bits the sign is not that of both parts.
        let wraps = (left[c] ^ sum) & (right[c] ^ sum);
        sums[c] = sum;
        misfits[c] = wraps >> 31 | i32::from(sum < min) | i32::from(sum > max);
    }
    (misfits == [0; LANES]).then_some(sums)
}

/// Weights of a group of columns for a run of steps, and what they can add up to.
pub(super) struct Weights {
    /// One row of columns per step.
    pub steps: Vec<[i16; LANES]>,
    /// Sum of the positive weights, per column.
    positive: [i64; LANES],
    /// Sum of the negative weights, per column.
    negative: [i64; LANES],
}

impl Weights {
    /// Takes the weights of `steps` consecutive steps.
    pub fn new(steps: Vec<[i16; LANES]>) -> Self {
        let mut positive = [0i32; LANES];
        let mut negative = [0i32; LANES];
        for step in &steps {
            for c in 0..LANES {
                positive[c] += i32::from(step[c].max(0));
                negative[c] += i32::from(step[c].min(0));
            }
        }
        Self {
            steps,
            positive: positive.map(i64::from),
            negative: negative.map(i64::from),
        }
    }

    /// Whether no prefix of `acc + Σ weight · activation` can leave the range.
    fn is_safe(&self, acc: &Group, (a_min, a_max): (i64, i64), format: AccumulatorFormat) -> bool {
        (0..LANES).all(|c| {
            let up = self.positive[c] * a_max + self.negative[c] * a_min;
            let down = self.negative[c] * a_max + self.positive[c] * a_min;
            format.holds(i64::from(acc[c]) + up) && format.holds(i64::from(acc[c]) + down)
        })
    }
}

/// What is known of a run of steps before it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// No prefix can leave the accumulator's range, nor 16 bits.
    Bits16,
    /// No prefix can leave the accumulator's range.
    Range,
    /// Nothing.
    None,
}

impl Bound {
    fn of(is_safe: impl Fn(AccumulatorFormat) -> bool, format: AccumulatorFormat) -> Self {
        match is_safe(format) {
            true if is_safe(BITS_16) => Self::Bits16,
            true => Self::Range,
            false => Self::None,
        }
    }
}

/// Adds `activations[j] · weights[j]` in order to every column, step `j` being step `k + j` of the
/// fold. `range` bounds the activations, zero included. Partial sums are kept when `extremes`.
pub(super) fn accumulate(
    cell: &mut Cell,
    activations: &[i16],
    weights: &Weights,
    k: u32,
    range: (i64, i64),
    format: AccumulatorFormat,
    extremes: bool,
) {
    let bound = Bound::of(|format| weights.is_safe(&cell.acc, range, format), format);
    accumulate_bounded(cell, activations, weights, k, bound, format, extremes);
}

fn accumulate_bounded(
    cell: &mut Cell,
    activations: &[i16],
    weights: &Weights,
    k: u32,
    bound: Bound,
    format: AccumulatorFormat,
    extremes: bool,
) {
    if extremes {
        exact_walk(cell, activations, weights);
    }
    match bound {
        Bound::Bits16 => plain_16(&mut cell.acc, activations, &weights.steps),
        Bound::Range => plain(&mut cell.acc, activations, &weights.steps),
        Bound::None if format.width_bits == 16 && format.overflow == Overflow::Saturate => {
            saturating_16(cell, activations, &weights.steps, k);
        }
        Bound::None => in_order(cell, activations, &weights.steps, k, format),
    }
}

/// No step can overflow: any way of adding gives the same bits.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn plain(acc: &mut Group, activations: &[i16], steps: &[[i16; LANES]]) {
    let mut sum = *acc;
    for (&a, w) in activations.iter().zip(steps) {
        for c in 0..LANES {
            sum[c] = sum[c].wrapping_add(i32::from(a) * i32::from(w[c]));
        }
    }
    *acc = sum;
}

/// As [`plain`], where every prefix fits 16 bits. Saturating adds then change nothing, but keep the
/// compiler from summing steps side by side instead of columns.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn plain_16(acc: &mut Group, activations: &[i16], steps: &[[i16; LANES]]) {
    let mut sum = [0i16; LANES];
    for c in 0..LANES {
        sum[c] = acc[c] as i16;
    }
    for (&a, w) in activations.iter().zip(steps) {
        for c in 0..LANES {
            sum[c] = sum[c].saturating_add(a.wrapping_mul(w[c]));
        }
    }
    for c in 0..LANES {
        acc[c] = i32::from(sum[c]);
    }
}

/// The default accumulator: 16 bits, saturating. An event is where the clipped and the wrapped sum
/// differ.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn saturating_walk(
    acc: &mut [i16; LANES],
    activations: &[i16],
    steps: &[[i16; LANES]],
) -> [i16; LANES] {
    let mut sum = *acc;
    let mut events = [0i16; LANES];
    for (&a, w) in activations.iter().zip(steps) {
        for c in 0..LANES {
            // An 8-bit by 8-bit product always fits 16 bits.
            let product = a.wrapping_mul(w[c]);
            let clipped = sum[c].saturating_add(product);
            events[c] = events[c].wrapping_add(i16::from(clipped != sum[c].wrapping_add(product)));
            sum[c] = clipped;
        }
    }
    *acc = sum;
    events
}

fn saturating_16(cell: &mut Cell, activations: &[i16], steps: &[[i16; LANES]], k: u32) {
    // Event counters of 16 bits are enough for a run of this length.
    const RUN: usize = 16_384;
    let mut acc = cell.acc.map(|value| value as i16);
    for (run, (a, w)) in activations.chunks(RUN).zip(steps.chunks(RUN)).enumerate() {
        let before = acc;
        let events = saturating_walk(&mut acc, a, w);
        for c in 0..LANES {
            if events[c] == 0 {
                continue;
            }
            cell.n_overflowed[c] += i32::from(events[c]);
            if cell.first_k[c] == u32::MAX {
                let mut sum = before[c];
                let first = a.iter().zip(w).position(|(&a, w)| {
                    let product = a.wrapping_mul(w[c]);
                    let clipped = sum.checked_add(product).is_none();
                    sum = sum.saturating_add(product);
                    clipped
                });
                let first = first.expect("an event was counted in this run");
                cell.first_k[c] = k + (run * RUN + first) as u32;
            }
        }
    }
    cell.acc = acc.map(i32::from);
}

/// Any width and rule, one step after the other.
fn in_order(
    cell: &mut Cell,
    activations: &[i16],
    steps: &[[i16; LANES]],
    k: u32,
    format: AccumulatorFormat,
) {
    for (j, (&a, w)) in activations.iter().zip(steps).enumerate() {
        for (c, &weight) in w.iter().enumerate() {
            let sum = format.add(cell.acc[c], i32::from(a) * i32::from(weight));
            cell.acc[c] = sum.acc;
            if sum.overflowed {
                cell.n_overflowed[c] += 1;
                cell.first_k[c] = cell.first_k[c].min(k + j as u32);
            }
        }
    }
}

/// Follows the sums that an unlimited accumulator would hold.
fn exact_walk(cell: &mut Cell, activations: &[i16], weights: &Weights) {
    // 2^15 products of at most 2^15 stay inside 31 bits, relative to the run's start.
    const RUN: usize = 32_768;
    for (a, w) in activations.chunks(RUN).zip(weights.steps.chunks(RUN)) {
        let (sum, min, max) = relative_walk(a, w);
        for c in 0..LANES {
            cell.min[c] = cell.min[c].min(cell.exact[c] + i64::from(min[c]));
            cell.max[c] = cell.max[c].max(cell.exact[c] + i64::from(max[c]));
            cell.exact[c] += i64::from(sum[c]);
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn relative_walk(activations: &[i16], steps: &[[i16; LANES]]) -> (Group, Group, Group) {
    let (mut sum, mut min, mut max) = ([0i32; LANES], [0i32; LANES], [0i32; LANES]);
    for (&a, w) in activations.iter().zip(steps) {
        for c in 0..LANES {
            sum[c] = sum[c].wrapping_add(i32::from(a) * i32::from(w[c]));
            min[c] = min[c].min(sum[c]);
            max[c] = max[c].max(sum[c]);
        }
    }
    (sum, min, max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(
        bias: i32,
        products: &[i32],
        format: AccumulatorFormat,
    ) -> (i32, i32, Option<u32>, i64, i64) {
        let (mut acc, mut n, mut first) = (bias, 0, None);
        let mut exact = i64::from(bias);
        let (mut min, mut max) = (exact, exact);
        for (k, &product) in products.iter().enumerate() {
            let sum = format.add(acc, product);
            acc = sum.acc;
            if sum.overflowed {
                n += 1;
                first = first.or(Some(k as u32));
            }
            exact += i64::from(product);
            min = min.min(exact);
            max = max.max(exact);
        }
        (acc, n, first, min, max)
    }

    proptest! {
        #[test]
        fn every_path_equals_the_scalar_order(
            width_bits in 8u8..=32,
            wraps in any::<bool>(),
            weight_limit in 1i16..=128,
            activations in prop::collection::vec(0i16..256, 1..300),
            seed in any::<u64>(),
            bias in -128i32..128,
            cut in 0usize..300,
        ) {
            let overflow = if wraps { Overflow::Wrap } else { Overflow::Saturate };
            let format = AccumulatorFormat { width_bits, overflow };
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                ((state >> 33) % (2 * weight_limit as u64)) as i16 - weight_limit
            };
            let steps: Vec<[i16; LANES]> =
                activations.iter().map(|_| std::array::from_fn(|_| next())).collect();
            let mut cell = Cell::new([bias; LANES]);
            let cut = cut.min(activations.len());
            for (from, to) in [(0, cut), (cut, activations.len())] {
                let weights = Weights::new(steps[from..to].to_vec());
                let part = &activations[from..to];
                accumulate(&mut cell, part, &weights, from as u32, (0, 255), format, true);
            }
            for c in 0..LANES {
                let products: Vec<i32> = activations
                    .iter()
                    .zip(&steps)
                    .map(|(&a, w)| i32::from(a) * i32::from(w[c]))
                    .collect();
                let first_k = (cell.first_k[c] != u32::MAX).then_some(cell.first_k[c]);
                let fast = (cell.acc[c], cell.n_overflowed[c], first_k, cell.min[c], cell.max[c]);
                prop_assert_eq!(fast, slow(bias, &products, format));
            }
        }

        #[test]
        fn folds_equal_the_scalar_order(
            width_bits in 8u8..=16,
            wraps in any::<bool>(),
            activations in prop::collection::vec(0i16..256, 1..60),
            seed in any::<u64>(),
            bias in -128i32..128,
            fold_steps in 1usize..20,
        ) {
            let overflow = if wraps { Overflow::Wrap } else { Overflow::Saturate };
            let format = AccumulatorFormat { width_bits, overflow };
            let mut random = arith::SplitMix64(seed);
            let steps: Vec<[i16; LANES]> = activations
                .iter()
                .map(|_| std::array::from_fn(|_| random.between(-8, 7) as i16))
                .collect();
            let mut total = Cell::EMPTY;
            for (i, (a, w)) in activations.chunks(fold_steps).zip(steps.chunks(fold_steps)).enumerate() {
                let k = (i * fold_steps) as u32;
                let start = if i == 0 { bias } else { 0 };
                let mut fold = Cell::new([start; LANES]);
                accumulate(&mut fold, a, &Weights::new(w.to_vec()), k, (0, 255), format, true);
                if i == 0 {
                    total.overwrite(&fold, LANES - 1);
                } else {
                    join(&mut total, &fold, LANES - 1, k + a.len() as u32 - 1, format);
                }
            }
            for c in 0..LANES - 1 {
                let (mut acc, mut n, mut first) = (0, 0, u32::MAX);
                let (mut exact, mut min, mut max) = (0, i64::MAX, i64::MIN);
                for (i, (a, w)) in activations.chunks(fold_steps).zip(steps.chunks(fold_steps)).enumerate() {
                    let products: Vec<i32> =
                        a.iter().zip(w).map(|(&a, w)| i32::from(a) * i32::from(w[c])).collect();
                    let k = (i * fold_steps) as u32;
                    let start = if i == 0 { bias } else { 0 };
                    let (sum, events, event, low, high) = slow(start, &products, format);
                    n += events;
                    first = first.min(event.map_or(u32::MAX, |event| k + event));
                    exact += i64::from(start + products.iter().sum::<i32>());
                    min = min.min(low).min(exact);
                    max = max.max(high).max(exact);
                    if i == 0 {
                        acc = sum;
                    } else {
                        let joined = format.add(acc, sum);
                        acc = joined.acc;
                        if joined.overflowed {
                            n += 1;
                            first = first.min(k + a.len() as u32 - 1);
                        }
                    }
                }
                prop_assert_eq!(
                    (total.acc[c], total.n_overflowed[c], total.first_k[c]),
                    (acc, n, first)
                );
                prop_assert_eq!((total.exact[c], total.min[c], total.max[c]), (exact, min, max));
            }
            prop_assert_eq!(total.acc[LANES - 1], 0);
        }
    }
}
