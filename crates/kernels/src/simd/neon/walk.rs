//! Runs of narrow accumulators step by step.
//!
//! Invariant: adds are made in the documented order, chunk by chunk, and every one that does not fit
//! is counted. Rows that are walked although they were proved come out the same, without events.

use super::{Halves, Job, Sums, load, store};
use crate::{
    pack::{LANES, Lanes, Stretch, Weights},
    portable::{self, Cell},
    simd::tile::{SATURATE, SATURATE_ANY, Tile, WRAP, WRAP_ANY},
};
use arith::{ChannelOverflow, Overflow};
#[allow(
    clippy::wildcard_imports,
    reason = "a dozen intrinsics, all with one prefix"
)]
use std::arch::aarch64::*;

/// What a walk is asked for: values.
pub(super) const VALUES: u8 = 0;
/// Numbers of events too.
const COUNTS: u8 = 1;
/// And numbers of adds before the first event.
const FIRST: u8 = 2;

/// What a walk tells.
pub(super) struct Steps<const ROWS: usize> {
    pub acc: Sums<ROWS>,
    /// Events, if they are asked for, and adds before the first.
    n_events: [Lanes<u16>; ROWS],
    n_before: [Lanes<u16>; ROWS],
}

impl Job<'_> {
    /// Adds a run to all rows, with events.
    #[target_feature(enable = "neon")]
    pub(super) fn walk<const ROWS: usize>(
        &self,
        run: Stretch,
        acc: &mut Sums<ROWS>,
        seen: &mut [Lanes<u32>; ROWS],
        records: &mut [ChannelOverflow],
    ) {
        let steps = self.steps::<ROWS, COUNTS>(run, acc);
        let from = self.tile.weights.step_at(run.from);
        // Columns whose earliest event may lie in the run.
        let mut asking = [0u16; LANES];
        for (asking, record) in asking.iter_mut().zip(&*records) {
            *asking = u16::from(record.first_k.is_none_or(|k| k > from)).wrapping_neg();
        }
        let mut asked = steps.n_events;
        let mut is_asked = 0;
        for (seen, asked) in seen.iter_mut().zip(&mut asked) {
            for lane in 0..LANES {
                seen[lane] = seen[lane].wrapping_add(asked[lane].into());
                asked[lane] &= asking[lane];
                is_asked |= asked[lane];
            }
        }
        if is_asked != 0 {
            self.find_first(run, acc, &asked, records);
        }
        *acc = steps.acc;
    }

    /// Finds where a run's lanes had their first event, if `asked` is not 0.
    #[target_feature(enable = "neon")]
    #[cold]
    fn find_first<const ROWS: usize>(
        &self,
        run: Stretch,
        before: &Sums<ROWS>,
        asked: &[Lanes<u16>; ROWS],
        records: &mut [ChannelOverflow],
    ) {
        let Tile { weights, group, .. } = self.tile;
        let of = |row: usize| (0..LANES).filter(move |&lane| asked[row][lane] != 0);
        if run.to <= weights.chunk_places {
            let n_before = self.steps::<ROWS, FIRST>(run, before).n_before;
            for (row, n_before) in n_before.iter().enumerate() {
                for lane in of(row) {
                    let k = weights.step_at(run.from + usize::from(n_before[lane]));
                    let first = &mut records[lane].first_k;
                    *first = Some(first.map_or(k, |first| first.min(k)));
                }
            }
            return;
        }
        for (row, &acc) in before.iter().enumerate() {
            let mut cell = Cell {
                acc,
                n_overflowed: [0; LANES],
                records,
            };
            for lane in of(row) {
                portable::walk_lane(weights, group, self.tile.pixel(row), run, lane, &mut cell);
            }
        }
    }

    #[target_feature(enable = "neon")]
    pub(super) fn steps<const ROWS: usize, const WHAT: u8>(
        &self,
        run: Stretch,
        acc: &Sums<ROWS>,
    ) -> Steps<ROWS> {
        let weights = self.tile.weights;
        match (weights.accumulator.overflow, weights.is_roomy) {
            (Overflow::Saturate, true) => self.steps_by::<ROWS, WHAT, SATURATE>(run, acc),
            (Overflow::Saturate, false) => self.steps_by::<ROWS, WHAT, SATURATE_ANY>(run, acc),
            (Overflow::Wrap, true) => self.steps_by::<ROWS, WHAT, WRAP>(run, acc),
            (Overflow::Wrap, false) => self.steps_by::<ROWS, WHAT, WRAP_ANY>(run, acc),
        }
    }

    /// Chunks that are not the first are summed from 0 and then added; without chunks a run lies in
    /// the one chunk.
    #[target_feature(enable = "neon")]
    fn steps_by<const ROWS: usize, const WHAT: u8, const RULE: u8>(
        &self,
        run: Stretch,
        acc: &Sums<ROWS>,
    ) -> Steps<ROWS> {
        let weights = self.tile.weights;
        let adder = Adder::<RULE>::new(weights);
        let scale = weights.scale();
        let factor = 1i16.wrapping_shl(scale);
        let mut acc = acc.map(|acc| load(acc.map(|lane| lane.wrapping_shl(scale) as i16)));
        let mut count = Count::<ROWS, WHAT>::new();
        let mut n_adds = 0;
        for from in (run.from..run.to).step_by(weights.chunk_places) {
            let to = (from + weights.chunk_places).min(run.to);
            let operands = self.operands::<ROWS>(Stretch { from, to });
            n_adds += (to - from) as u16;
            if from < weights.chunk_places {
                operands.products(factor, |row, product| {
                    count.add(&adder, row, &mut acc[row], product);
                });
                continue;
            }
            let mut sum = [[vdupq_n_s16(0); 2]; ROWS];
            operands.products(factor, |row, product| {
                count.add(&adder, row, &mut sum[row], product);
            });
            n_adds += 1;
            for (row, sum) in sum.into_iter().enumerate() {
                count.add(&adder, row, &mut acc[row], adder.whole(sum));
            }
        }
        Steps {
            acc: acc.map(|acc| store(acc).map(|lane| i32::from(lane.wrapping_shr(scale)))),
            n_events: count
                .n_fit
                .map(|n| store(n).map(|n| n_adds.wrapping_sub(n as u16))),
            n_before: count.n_before.map(|n| store(n).map(|n| n as u16)),
        }
    }
}

/// Adds, counted.
struct Count<const ROWS: usize, const WHAT: u8> {
    n_fit: [Halves; ROWS],
    /// Lanes without an event so far, and their adds.
    unharmed: [Halves; ROWS],
    n_before: [Halves; ROWS],
}

impl<const ROWS: usize, const WHAT: u8> Count<ROWS, WHAT> {
    #[target_feature(enable = "neon")]
    fn new() -> Self {
        Self {
            n_fit: [[vdupq_n_s16(0); 2]; ROWS],
            unharmed: [[vdupq_n_s16(-1); 2]; ROWS],
            n_before: [[vdupq_n_s16(0); 2]; ROWS],
        }
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn add<const RULE: u8>(
        &mut self,
        adder: &Adder<RULE>,
        row: usize,
        acc: &mut Halves,
        product: Halves,
    ) {
        for half in 0..2 {
            let (next, fits) = adder.add(acc[half], product[half]);
            acc[half] = next;
            if WHAT == VALUES {
                continue;
            }
            // True is -1.
            let n_fit = &mut self.n_fit[row][half];
            *n_fit = vsubq_s16(*n_fit, fits);
            if WHAT == FIRST {
                let unharmed = &mut self.unharmed[row][half];
                *unharmed = vandq_s16(*unharmed, fits);
                let n_before = &mut self.n_before[row][half];
                *n_before = vsubq_s16(*n_before, *unharmed);
            }
        }
    }
}

/// The adder of a narrow accumulator.
///
/// Where every product fits the accumulator ([`SATURATE`], [`WRAP`]), numbers stand at the upper end
/// of the lane, so that 16-bit instructions clip and wrap as the accumulator does. Clipping at the top
/// then sets the unused low bits. They stay below one step and carry nothing: products and, after
/// [`Self::whole`], sums of chunks have zeros there.
struct Adder<const RULE: u8> {
    low: int16x8_t,
    high: int16x8_t,
    unused_bits: int16x8_t,
    used: int16x8_t,
}

impl<const RULE: u8> Adder<RULE> {
    #[target_feature(enable = "neon")]
    fn new(weights: &Weights) -> Self {
        let format = weights.accumulator;
        Self {
            low: vdupq_n_s16(format.min() as i16),
            high: vdupq_n_s16(format.max() as i16),
            unused_bits: vdupq_n_s16(16 - i16::from(format.width_bits)),
            used: vdupq_n_s16(-1 << weights.scale()),
        }
    }

    /// A sum as an operand.
    #[target_feature(enable = "neon")]
    #[inline]
    fn whole(&self, sum: Halves) -> Halves {
        sum.map(|sum| vandq_s16(sum, self.used))
    }

    /// One add, and in which lanes the exact sum fitted.
    ///
    /// The sum clipped at 16 bits is exact or at a limit of 16 bits. It equals the accumulator's
    /// own result exactly when the sum fitted: an accumulator of fewer bits, if not at the upper
    /// end, never holds those limits, and otherwise the wrapped sum differs from the clipped one.
    #[target_feature(enable = "neon")]
    #[inline]
    fn add(&self, acc: int16x8_t, product: int16x8_t) -> (int16x8_t, int16x8_t) {
        let clipped = vqaddq_s16(acc, product);
        let wrapped = vaddq_s16(acc, product);
        let (result, other) = match RULE {
            SATURATE => (clipped, wrapped),
            WRAP => (wrapped, clipped),
            SATURATE_ANY => (vmaxq_s16(vminq_s16(clipped, self.high), self.low), clipped),
            _ => {
                let high = vshlq_s16(wrapped, self.unused_bits);
                (vshlq_s16(high, vnegq_s16(self.unused_bits)), clipped)
            }
        };
        (result, vreinterpretq_s16_u16(vceqq_s16(result, other)))
    }
}
