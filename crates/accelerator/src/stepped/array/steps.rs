//! Steps of a reduction, one after the other: their operands, and what all PEs make of them.
//!
//! Invariant: every sum takes its products in the order of steps, each once, as
//! [`Accumulator::add`](crate::stepped::pe::Accumulator::add) says.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

use super::ActivationPort;
use crate::stepped::{
    memory::Memories,
    pe::weighed,
    sums::{Group, LANES, Slot, Sums, mask, take_steps},
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

/// The first bytes, the lowest first; 0 where there are none.
#[inline(always)]
fn word(bytes: &[u8]) -> u64 {
    if let Some(first) = bytes.first_chunk() {
        return u64::from_le_bytes(*first);
    }
    let mut held = [0; 8];
    held[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(held)
}

/// What bytes stand for.
#[inline(always)]
fn bytes_to(to: &mut [i32], bytes: &[u8], is_signed: bool) {
    let sign = if is_signed { 128 } else { 0 };
    for (at, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let bytes = bytes.get(at * LANES..).unwrap_or_default();
        let mut held = [0; LANES];
        if let Some(first) = bytes.first_chunk() {
            held = *first;
        } else {
            held[..bytes.len()].copy_from_slice(bytes);
        }
        for i in 0..LANES {
            to[i] = (i32::from(held[i]) ^ sign) - sign;
        }
    }
}

/// What nibbles stand for, from the first or the first upper one on.
#[inline(always)]
fn nibbles_to(to: &mut [i32], bytes: &[u8], from_upper: bool, is_signed: bool) {
    for (at, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let bytes = bytes.get(at * LANES / 2..).unwrap_or_default();
        let mut nibble = word(bytes);
        if from_upper {
            let next = bytes.get(8).copied().unwrap_or_default();
            nibble = nibble >> 4 | u64::from(next) << 60;
        }
        *to = nibbles(nibble, is_signed);
    }
}

/// What the nibbles of a word stand for, the lowest first.
#[inline(always)]
fn nibbles(word: u64, is_signed: bool) -> [i32; LANES] {
    let mut values = [0; LANES];
    for (at, value) in values.iter_mut().enumerate() {
        *value = weighed((word >> (4 * at)) as u8, false, is_signed);
    }
    values
}

/// Masks of the first lanes, by their number.
pub(crate) static FIRST: [[i32; LANES]; LANES + 1] = {
    let mut masks = [[0; LANES]; LANES + 1];
    let mut n = 0;
    while n <= LANES {
        let mut lane = 0;
        while lane < n {
            masks[n][lane] = -1;
            lane += 1;
        }
        n += 1;
    }
    masks
};

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
        let n_used = n_columns.saturating_sub(index * LANES).min(LANES);
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
fn is_done(
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
