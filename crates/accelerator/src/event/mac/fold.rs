//! Folds of arrays whose operands stay: many elements meet the same steps.
//!
//! Invariant: equal to `accumulate` and [`join`] element by element. The fast path computes an element
//! as if nothing overflowed and finds out whether that was so; where it was not, the element is
//! computed again step by step.

use super::{Bound, Cell, Group, LANES, Weights, accumulate_bounded, join, plain, plain_16, sums};
use arith::AccumulatorFormat;

/// A stream through one group of columns.
pub(in crate::event) struct Fold<'a> {
    /// What stays.
    pub held: &'a Weights,
    /// What streams: the operands of each element, step by step.
    pub elements: &'a [i16],
    /// First step.
    pub k: u32,
    /// Bounds of what streams, zero included.
    pub range: (i64, i64),
    /// The accumulators' rule.
    pub format: AccumulatorFormat,
    /// Keep partial sums.
    pub extremes: bool,
    /// Columns in use.
    pub n_lanes: usize,
    /// Add to the entries, else overwrite them.
    pub accumulate: bool,
}

/// First values of the sums.
#[derive(Clone, Copy)]
pub(in crate::event) enum Starts<'a> {
    /// Each column has its own.
    Columns(Group),
    /// Each element has its own.
    Elements(&'a [i32]),
}

impl Starts<'_> {
    fn of(self, element: usize) -> Group {
        match self {
            Self::Columns(group) => group,
            Self::Elements(biases) => [biases[element]; LANES],
        }
    }
}

impl Fold<'_> {
    /// Adds every element's sum to its entry; `entries` are those of the elements, in their order.
    pub fn run<'e>(&self, entries: impl Iterator<Item = &'e mut Cell>, starts: Starts<'_>) {
        let n_steps = self.held.steps.len();
        let bound = self.bound(starts);
        let elements = self.elements.chunks_exact(n_steps);
        for (index, (entry, element)) in entries.zip(elements).enumerate() {
            let start = starts.of(index);
            if !self.extremes && self.try_fast(entry, element, start, bound) {
                continue;
            }
            let mut sum = Cell::new(start);
            let (k, format) = (self.k, self.format);
            accumulate_bounded(
                &mut sum,
                element,
                self.held,
                k,
                bound,
                format,
                self.extremes,
            );
            if self.accumulate {
                join(entry, &sum, self.n_lanes, k + n_steps as u32 - 1, format);
            } else {
                entry.overwrite(&sum, self.n_lanes);
            }
        }
    }

    /// What holds for all elements.
    fn bound(&self, starts: Starts<'_>) -> Bound {
        let is_safe = |format| match starts {
            Starts::Columns(start) => self.held.is_safe(&start, self.range, format),
            // What holds for the smallest and the largest start holds for those between.
            Starts::Elements(biases) => [biases.iter().min(), biases.iter().max()]
                .into_iter()
                .flatten()
                .all(|&bias| self.held.is_safe(&[bias; LANES], self.range, format)),
        };
        Bound::of(is_safe, self.format)
    }

    /// False when something overflowed and nothing was changed.
    fn try_fast(&self, entry: &mut Cell, element: &[i16], start: Group, bound: Bound) -> bool {
        let steps = &self.held.steps;
        let mut sum = start;
        let fits = match bound {
            Bound::Bits16 => {
                plain_16(&mut sum, element, steps);
                true
            }
            Bound::Range => {
                plain(&mut sum, element, steps);
                true
            }
            Bound::None if self.format.width_bits == 16 => width_16(&mut sum, element, steps),
            Bound::None => {
                let limits = (self.format.min(), self.format.max());
                any_width(&mut sum, element, steps, limits)
            }
        };
        if !fits {
            return false;
        }
        if self.accumulate {
            let Some(total) = sums(&entry.acc, &sum, self.format) else {
                return false;
            };
            // Columns that are not in use add 0.
            entry.acc = total;
        } else if self.n_lanes == LANES {
            entry.acc = sum;
            entry.n_overflowed = [0; LANES];
            entry.first_k = [u32::MAX; LANES];
        } else {
            entry.acc[..self.n_lanes].copy_from_slice(&sum[..self.n_lanes]);
            entry.n_overflowed[..self.n_lanes].fill(0);
            entry.first_k[..self.n_lanes].fill(u32::MAX);
        }
        true
    }
}

/// False when a prefix leaves 16 bits.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn width_16(group: &mut Group, element: &[i16], steps: &[[i16; LANES]]) -> bool {
    let (mut sum, mut events) = ([0i16; LANES], [0i16; LANES]);
    for c in 0..LANES {
        sum[c] = group[c] as i16;
    }
    for (&a, w) in element.iter().zip(steps) {
        for c in 0..LANES {
            // An 8-bit by 8-bit product always fits 16 bits.
            let product = a.wrapping_mul(w[c]);
            let clipped = sum[c].saturating_add(product);
            events[c] |= clipped ^ sum[c].wrapping_add(product);
            sum[c] = clipped;
        }
    }
    for c in 0..LANES {
        group[c] = i32::from(sum[c]);
    }
    events == [0; LANES]
}

/// False when a prefix leaves the limits.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn any_width(
    group: &mut Group,
    element: &[i16],
    steps: &[[i16; LANES]],
    (min, max): (i32, i32),
) -> bool {
    let (mut sum, mut misfits) = (*group, [0i32; LANES]);
    for (&a, w) in element.iter().zip(steps) {
        for c in 0..LANES {
            let product = i32::from(a) * i32::from(w[c]);
            let next = sum[c].wrapping_add(product);
            // Outside 32 bits the sign is not that of both parts.
            let wraps = (sum[c] ^ next) & (product ^ next);
            misfits[c] |= wraps >> 31 | i32::from(next < min) | i32::from(next > max);
            sum[c] = next;
        }
    }
    *group = sum;
    misfits == [0; LANES]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::mac::accumulate;
    use arith::Overflow;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn streams_equal_elements(
            width_bits in 8u8..=32,
            near in any::<bool>(),
            wraps in any::<bool>(),
            shape in (1usize..12, 1usize..20, 1usize..=LANES),
            bits in (2u32..=8, 2u32..=8),
            flags in (any::<bool>(), any::<bool>(), any::<bool>()),
            seed in any::<u64>(),
        ) {
            let overflow = if wraps { Overflow::Wrap } else { Overflow::Saturate };
            let format = AccumulatorFormat { width_bits, overflow };
            let (n_elements, n_steps, n_lanes) = shape;
            let (by_element, accumulate_entries, extremes) = flags;
            let mut random = arith::SplitMix64(seed);
            let mut signed = |bits: u32| {
                random.between(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
            };
            let steps: Vec<[i16; LANES]> = (0..n_steps)
                .map(|_| {
                    std::array::from_fn(|c| if c < n_lanes { signed(bits.0) as i16 } else { 0 })
                })
                .collect();
            let elements: Vec<i16> =
                (0..n_elements * n_steps).map(|_| signed(bits.1) as i16).collect();
            // Far from the limits nothing happens; starts near them test every path.
            let bias = |value: i64| {
                let value = if near { i64::from(format.max()) - value.abs() } else { value };
                value as i32
            };
            let biases: Vec<i32> = (0..n_elements).map(|_| bias(signed(8) / 2)).collect();
            let entry = Cell::new(std::array::from_fn(|_| bias(signed(8) / 2)));
            let column: Group =
                std::array::from_fn(|c| if c < n_lanes { bias(signed(8) / 2) } else { 0 });
            let starts = match (accumulate_entries, by_element) {
                (true, _) => Starts::Columns([0; LANES]),
                (false, true) => Starts::Elements(&biases),
                (false, false) => Starts::Columns(column),
            };
            let range = (-(1 << (bits.1 - 1)), (1 << (bits.1 - 1)) - 1);
            let held = Weights::new(steps);
            let fold = Fold {
                held: &held,
                elements: &elements,
                k: 5,
                range,
                format,
                extremes,
                n_lanes,
                accumulate: accumulate_entries,
            };
            let mut fast = vec![entry; n_elements];
            fold.run(fast.iter_mut(), starts);
            for (index, element) in elements.chunks_exact(n_steps).enumerate() {
                let mut expected = entry;
                let mut sum = Cell::new(starts.of(index));
                accumulate(&mut sum, element, &held, 5, range, format, extremes);
                if accumulate_entries {
                    join(&mut expected, &sum, n_lanes, 4 + n_steps as u32, format);
                } else {
                    expected.overwrite(&sum, n_lanes);
                }
                prop_assert_eq!(fast[index].acc, expected.acc);
                prop_assert_eq!(fast[index].n_overflowed, expected.n_overflowed);
                prop_assert_eq!(fast[index].first_k, expected.first_k);
                if extremes {
                    prop_assert_eq!(fast[index].exact, expected.exact);
                    prop_assert_eq!(fast[index].min, expected.min);
                    prop_assert_eq!(fast[index].max, expected.max);
                }
            }
        }
    }
}
