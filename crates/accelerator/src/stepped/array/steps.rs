//! Steps of a reduction, one after the other: their operands, and what all PEs make of them.
//!
//! Invariant: every sum takes its products in the order of steps, each once, as
//! [`Accumulator::add`](crate::stepped::pe::Accumulator::add) says.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

use super::{
    ActivationPort,
    unpack::{bytes_to, nibbles, nibbles_to, word},
};
use crate::stepped::{
    memory::Memories,
    sums::{FIRST, Group, LANES, Slot, Sums, mask, n_lanes, take_steps},
};
use arith::AccumulatorFormat;
use isa::Input;

/// Most steps that are held.
pub(crate) const CAPACITY: usize = 64;

/// From one row's activations to the next row's: vectors may end behind the last step.
const PITCH: usize = CAPACITY + LANES;

/// What sums can move in so many steps.
const REACH: i32 = (CAPACITY as i32) << 16;

/// Operands of some steps, whole.
#[derive(Debug)]
pub(crate) struct Steps {
    /// How many.
    n: usize,
    /// Number of the first in its fold.
    first_k: u32,
    /// Row by row.
    activations: Vec<i32>,
    /// Group of columns by group.
    weights: Vec<[i32; LANES]>,
}

impl Steps {
    /// None, of an array of that size.
    pub fn new(n_rows: usize, n_columns: usize) -> Self {
        Self {
            n: 0,
            first_k: 0,
            activations: vec![0; n_rows * PITCH],
            weights: vec![[0; LANES]; n_columns.div_ceil(LANES) * CAPACITY],
        }
    }

    /// How many more can be held.
    pub fn room(&self) -> u32 {
        (CAPACITY - self.n) as u32
    }

    /// Reads `n` steps more, of which step `k` of the fold is the first: from the ports' pixels the
    /// channels from `channel` on, and `lines` of weights. The caller counts what is read, and has looked
    /// that it exists.
    pub fn read(
        &mut self,
        (ports, input, channel): (&[ActivationPort], &Input, u32),
        (lines, line_bytes): (&[u8], usize),
        (k, n): (u32, u32),
        memories: &Memories<'_>,
    ) {
        if self.n == 0 {
            self.first_k = k;
        }
        read(
            self,
            (ports, input, channel),
            (lines, line_bytes),
            n as usize,
            memories,
        );
        self.n += n as usize;
    }

    /// Accumulates all that are held, in the PEs of the first `(rows, columns)`.
    pub fn accumulate(&mut self, sums: &mut Sums, used: (usize, usize), format: AccumulatorFormat) {
        accumulate(sums, self, used, format);
        self.n = 0;
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn read(
    steps: &mut Steps,
    (ports, input, channel): (&[ActivationPort], &Input, u32),
    (lines, line_bytes): (&[u8], usize),
    n: usize,
    memories: &Memories<'_>,
) {
    let is_signed = input.signed_activations == 1;
    let first = u64::from(input.channel) + u64::from(channel);
    let rows = steps.activations.chunks_exact_mut(PITCH);
    for (row, port) in rows.zip(ports) {
        let to = &mut row[steps.n..][..n.next_multiple_of(LANES)];
        let Some(pixel) = port.pixel else {
            to.fill(0);
            continue;
        };
        if input.wide_activations == 1 {
            bytes_to(
                to,
                &memories.activations[(pixel + first) as usize..],
                is_signed,
            );
        } else {
            let bytes = &memories.activations[(pixel + first / 2) as usize..];
            nibbles_to(to, bytes, first % 2 == 1, is_signed);
        }
    }
    for (index, group) in steps.weights.chunks_exact_mut(CAPACITY).enumerate() {
        let from = (index * LANES / 2).min(line_bytes);
        let to = group[steps.n..].iter_mut();
        if input.wide_weights == 1 {
            for (weights, lines) in to.zip(lines.chunks_exact(2 * line_bytes)) {
                let (low, high) = lines.split_at(line_bytes);
                let low = nibbles(word(&low[from..]), false);
                let high = nibbles(word(&high[from..]), true);
                for i in 0..LANES {
                    weights[i] = low[i] + (high[i] << 4);
                }
            }
        } else {
            for (weights, line) in to.zip(lines.chunks_exact(line_bytes)) {
                *weights = nibbles(word(&line[from..]), true);
            }
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn accumulate(
    sums: &mut Sums,
    steps: &Steps,
    (n_rows, n_columns): (usize, usize),
    format: AccumulatorFormat,
) {
    let n_groups = sums.n_groups;
    for (at, mut slot) in sums.slots().take(n_rows * n_groups).enumerate() {
        let (row, index) = (at / n_groups, at % n_groups);
        let n_used = n_lanes(n_columns, index);
        let activations = &steps.activations[row * PITCH..][..steps.n];
        let weights = &steps.weights[index * CAPACITY..][..steps.n];
        if n_used > 0 && !is_done(&mut slot, activations, weights, (format, n_used)) {
            let steps = (activations, weights, steps.first_k);
            take_steps(&mut slot, steps, &FIRST[n_used], format);
        }
    }
}

/// Sums of which none overflows on the way; `false` where one does, or did before, and nothing has changed.
#[inline(always)]
pub(super) fn is_done(
    slot: &mut Slot<'_>,
    activations: &[i32],
    weights: &[[i32; LANES]],
    (format, n_used): (AccumulatorFormat, usize),
) -> bool {
    if *slot.is_wide {
        return false;
    }
    let Group {
        mut acc,
        mut least,
        mut most,
    } = *slot.group;
    for (activation, weights) in activations.iter().zip(weights) {
        for i in 0..LANES {
            acc[i] = acc[i].wrapping_add(activation.wrapping_mul(weights[i]));
            least[i] = least[i].min(acc[i]);
            most[i] = most[i].max(acc[i]);
        }
    }
    // As long as nothing overflows, accumulators hold the exact sums: the first that leaves the range
    // is seen as such, unless 32 bits could not hold it.
    let is_used = &FIRST[n_used];
    let before = &slot.group.acc;
    let mut any = 0;
    for i in 0..LANES {
        let leaves = mask(least[i] < format.min()) | mask(most[i] > format.max());
        let may_wrap = mask(before[i].wrapping_add(REACH) < before[i])
            | mask(before[i].wrapping_sub(REACH) > before[i]);
        any |= (leaves | may_wrap) & is_used[i];
    }
    if any != 0 {
        return false;
    }
    *slot.group = Group { acc, least, most };
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Seed;
    use crate::stepped::pe::Accumulator;
    use arith::Overflow;

    /// Sums that hardly leave their accumulators, and by 1 where they do.
    #[test]
    fn sums_are_those_of_single_adds() {
        let mut n_overflowed = 0;
        for number in 0..2_000 {
            let seed = &mut Seed::new(number);
            let format = AccumulatorFormat {
                width_bits: [seed.pick(3, 6), seed.pick(30, 32)][number as usize % 2] as u8,
                overflow: [Overflow::Saturate, Overflow::Wrap][seed.pick(0, 1) as usize],
            };
            let (n_rows, n_columns) = (seed.pick(1, 3) as usize, seed.pick(1, 20) as usize);
            let mut steps = Steps::new(n_rows, n_columns);
            let mut sums = Sums::new(n_rows, n_columns);
            let initial = [0, format.max() - 3, format.min() + 3][seed.pick(0, 2) as usize];
            let mut expected = vec![Accumulator::starting_at(initial); n_rows * n_columns];
            sums.slots()
                .for_each(|mut slot| slot.begin(&[initial; LANES]));
            let mut k = 0;
            for _ in 0..2 {
                steps.n = seed.pick(1, CAPACITY as u32) as usize;
                steps.first_k = k;
                let mut operand = || seed.pick(0, 2) as i32 - 1;
                steps.activations.fill_with(&mut operand);
                steps
                    .weights
                    .fill_with(|| std::array::from_fn(|_| operand()));
                for step in 0..steps.n {
                    for (at, sum) in expected.iter_mut().enumerate() {
                        let (row, column) = (at / n_columns, at % n_columns);
                        let weights = &steps.weights[column / LANES * CAPACITY + step];
                        let activation = steps.activations[row * PITCH + step];
                        sum.add(activation * weights[column % LANES], k, format);
                    }
                    k += 1;
                }
                steps.accumulate(&mut sums, (n_rows, n_columns), format);
            }
            for (at, expected) in expected.iter().enumerate() {
                let sum = sums.get(at / n_columns, at % n_columns);
                assert_eq!(sum, *expected, "{number}");
                n_overflowed += u32::from(sum.seen.n_overflowed > 0);
            }
        }
        assert!(n_overflowed > 1_000, "{n_overflowed}");
    }
}
