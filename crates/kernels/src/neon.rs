//! The kernels for aarch64: up to 4 pixels × 16 columns a tile.
//!
//! A step is one multiplication of 16-bit lanes, which hold every product of 8-bit operands; proved
//! stretches are dot products of four steps an instruction where the processor has them. Wide
//! accumulators whose proof fails are the portable kernels' business.
//!
//! Invariant: between stretches accumulators stand in lanes of 32 bits, whatever their width. Every
//! pointer comes from an array of the length that is read or written.

use crate::{
    Level, Peak,
    pack::{Bounds, LANES, Lanes, Stretch, Weights},
    portable::{self, Cell, SHORT, close, columns},
    tile::{SATURATE, SATURATE_ANY, Tile, WRAP, WRAP_ANY, tile_rows},
};
use arith::{ChannelOverflow, Format, Overflow};
#[allow(
    clippy::wildcard_imports,
    reason = "some thirty intrinsics, all with one prefix"
)]
use std::{
    arch::{aarch64::*, asm},
    array,
};

/// A tile's accumulators.
type Sums<const ROWS: usize> = [Lanes<i32>; ROWS];
/// 16 lanes of 16 bits: the lower and the upper columns.
type Halves = [int16x8_t; 2];

pub(crate) fn accumulate(
    level: Level,
    weights: &Weights,
    patch: &[u8],
    accumulators: &mut [i32],
    records: &mut [ChannelOverflow],
) {
    tiles::<true>(level, weights, patch, accumulators, records);
}

pub(crate) fn accumulate_values(
    level: Level,
    weights: &Weights,
    patch: &[u8],
    accumulators: &mut [i32],
) {
    tiles::<false>(level, weights, patch, accumulators, &mut []);
    if weights.is_orderless() {
        portable::wrap(weights, accumulators);
    }
}

fn tiles<const EVENTS: bool>(
    level: Level,
    weights: &Weights,
    patch: &[u8],
    accumulators: &mut [i32],
    records: &mut [ChannelOverflow],
) {
    assert!(level.is_available(), "{level:?} is not on this processor");
    let n_pixels = accumulators.len() / weights.n_lanes();
    if n_pixels == 0 {
        return;
    }
    let rows = tile_rows(level, n_pixels);
    for group in 0..weights.n_groups {
        let tiles = accumulators.chunks_mut(rows * weights.n_lanes());
        for (out, patch) in tiles.zip(patch.chunks(rows * weights.n_places)) {
            let job = Job {
                tile: Tile {
                    weights,
                    group,
                    patch,
                },
                has_dot: level == Level::NeonDot,
            };
            // SAFETY: the level's instructions are there, as asserted above.
            unsafe {
                match patch.len() / weights.n_places {
                    1 => job.rows::<1, EVENTS>(out, records),
                    2 => job.rows::<2, EVENTS>(out, records),
                    3 => job.rows::<3, EVENTS>(out, records),
                    4 => job.rows::<4, EVENTS>(out, records),
                    rows => unreachable!("{rows} rows"),
                }
            }
        }
    }
}

/// The sums of a stretch with its extremes, for weights whose short sums fit 16 bits.
pub(crate) fn relative(
    level: Level,
    activations: &[u8],
    pairs: &[i8],
    offset: i16,
) -> (Lanes<i32>, Lanes<i32>, Lanes<i32>) {
    assert!(
        level != Level::Portable && level.is_available(),
        "{level:?}"
    );
    // SAFETY: every level but the portable one has NEON, and this processor has the level.
    unsafe { extremes(activations, pairs, offset) }
}

#[target_feature(enable = "neon")]
fn extremes(activations: &[u8], pairs: &[i8], offset: i16) -> (Lanes<i32>, Lanes<i32>, Lanes<i32>) {
    let (mut sum, mut low, mut high) = ([0i32; LANES], [0i32; LANES], [0i32; LANES]);
    for (a, pairs) in activations.chunks(SHORT).zip(pairs.chunks(SHORT * LANES)) {
        let zero = [vdupq_n_s16(0); 2];
        let (mut short, mut least, mut most) = (zero, zero, zero);
        let operands = Operands {
            pixels: [a],
            pairs,
            offset,
            scale: 0,
        };
        operands.products(|_, product| {
            for half in 0..2 {
                short[half] = vaddq_s16(short[half], product[half]);
                least[half] = vminq_s16(least[half], short[half]);
                most[half] = vmaxq_s16(most[half], short[half]);
            }
        });
        let [short, least, most] = [store(short), store(least), store(most)];
        for lane in 0..LANES {
            low[lane] = low[lane].min(sum[lane].wrapping_add(least[lane].into()));
            high[lane] = high[lane].max(sum[lane].wrapping_add(most[lane].into()));
            sum[lane] = sum[lane].wrapping_add(short[lane].into());
        }
    }
    (sum, low, high)
}

/// Steps of some pixels, whole quads.
struct Operands<'a, const ROWS: usize> {
    pixels: [&'a [u8]; ROWS],
    pairs: &'a [i8],
    /// Of stored activations.
    offset: i16,
    /// Unused bits below a product.
    scale: u32,
}

impl<const ROWS: usize> Operands<'_, ROWS> {
    /// Hands over the products of every step of every row, in order.
    #[target_feature(enable = "neon")]
    #[inline]
    fn products(&self, mut add: impl FnMut(usize, Halves)) {
        let (offset, scale) = (vdupq_n_s16(self.offset), vdupq_n_s16(self.scale as i16));
        let real = |stored: u64| {
            let wide = vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(stored)));
            // Low bits are right, whatever the high ones are, and products fit.
            vshlq_s16(vsubq_s16(wide, offset), scale)
        };
        let (octets, rest) = self.pairs.as_chunks::<{ 8 * LANES }>();
        let pixels = self
            .pixels
            .map(|pixel| &pixel.as_chunks().0[..octets.len()]);
        for (at, w) in octets.iter().enumerate() {
            let a = pixels.map(|pixel| real(u64::from_le_bytes(pixel[at])));
            let (lower, upper) = w.split_at(4 * LANES);
            quad(a.map(|a| vget_low_s16(a)), lower, &mut add);
            quad(a.map(|a| vget_high_s16(a)), upper, &mut add);
        }
        if !rest.is_empty() {
            let a = self.pixels.map(|pixel| {
                let stored = pixel.last_chunk().expect("whole quads");
                vget_low_s16(real(u32::from_le_bytes(*stored).into()))
            });
            quad(a, rest, &mut add);
        }
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn quad<const ROWS: usize>(
    a: [int16x4_t; ROWS],
    pairs: &[i8],
    add: &mut impl FnMut(usize, Halves),
) {
    let [first, second] = [&pairs[..2 * LANES], &pairs[2 * LANES..4 * LANES]];
    // SAFETY: both are 32 bytes long.
    let [first, second] = unsafe { [vld2q_s8(first.as_ptr()), vld2q_s8(second.as_ptr())] };
    step::<0, ROWS>(a, first.0, add);
    step::<1, ROWS>(a, first.1, add);
    step::<2, ROWS>(a, second.0, add);
    step::<3, ROWS>(a, second.1, add);
}

#[target_feature(enable = "neon")]
#[inline]
fn step<const STEP: i32, const ROWS: usize>(
    a: [int16x4_t; ROWS],
    w: int8x16_t,
    add: &mut impl FnMut(usize, Halves),
) {
    let w = [vmovl_s8(vget_low_s8(w)), vmovl_high_s8(w)];
    for (row, a) in a.into_iter().enumerate() {
        add(row, w.map(|w| vmulq_lane_s16::<STEP>(w, a)));
    }
}

/// Some pixels of a group.
struct Job<'a> {
    tile: Tile<'a>,
    /// The processor has dot products.
    has_dot: bool,
}

impl Job<'_> {
    #[target_feature(enable = "neon")]
    fn rows<const ROWS: usize, const EVENTS: bool>(
        &self,
        out: &mut [i32],
        records: &mut [ChannelOverflow],
    ) {
        let Tile { weights, group, .. } = self.tile;
        let mut acc = [weights.bias[group]; ROWS];
        let mut seen: Option<[Lanes<u32>; ROWS]> = None;
        for (index, &block) in weights.blocks.iter().enumerate() {
            let has_order = EVENTS || !weights.is_orderless();
            if !has_order || is_proved(&acc, self.tile.block_bounds(0, index)) {
                self.dot(self.tile.places(block), &mut acc);
            } else if EVENTS {
                let seen = seen.get_or_insert([[0; LANES]; ROWS]);
                self.block(block, &mut acc, seen, columns(weights, group, records));
            } else {
                self.block_values(block, &mut acc);
            }
        }
        for (acc, out) in acc.iter().zip(out.chunks_exact_mut(weights.n_lanes())) {
            out[group * LANES..][..LANES].copy_from_slice(acc);
        }
        if let Some(seen) = &seen {
            close(columns(weights, group, records), seen);
        }
    }

    /// A block whose proof failed for some row, with events.
    #[target_feature(enable = "neon")]
    fn block<const ROWS: usize>(
        &self,
        block: Stretch,
        acc: &mut Sums<ROWS>,
        seen: &mut [Lanes<u32>; ROWS],
        records: &mut [ChannelOverflow],
    ) {
        let Tile { weights, group, .. } = self.tile;
        if weights.is_narrow() {
            for run in block.from..block.to {
                if is_proved(acc, self.tile.run_bounds(0, run)) {
                    self.dot(weights.runs[run], acc);
                } else {
                    self.walk(weights.runs[run], acc, seen, records);
                }
            }
            return;
        }
        for (row, (acc, seen)) in acc.iter_mut().zip(seen).enumerate() {
            let mut cell = Cell {
                acc: *acc,
                n_overflowed: *seen,
                records,
            };
            portable::walk_block(weights, group, self.tile.pixel(row), block, &mut cell);
            (*acc, *seen) = (cell.acc, cell.n_overflowed);
        }
    }

    /// The same for saturating accumulators, without events.
    #[target_feature(enable = "neon")]
    fn block_values<const ROWS: usize>(&self, block: Stretch, acc: &mut Sums<ROWS>) {
        let Tile { weights, group, .. } = self.tile;
        if weights.is_narrow() {
            for run in block.from..block.to {
                if is_proved(acc, self.tile.run_bounds(0, run)) {
                    self.dot(weights.runs[run], acc);
                } else {
                    *acc = self.steps::<ROWS, VALUES>(weights.runs[run], acc).acc;
                }
            }
            return;
        }
        let places = self.tile.places(block);
        for (row, acc) in acc.iter_mut().enumerate() {
            portable::in_order(weights, group, self.tile.pixel(row), places, acc);
        }
    }

    /// A run in order. Rows that are walked although they were proved come out the same, without
    /// events.
    #[target_feature(enable = "neon")]
    fn walk<const ROWS: usize>(
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
            *asking = u16::from(record.first_k.is_none_or(|k| k > from));
        }
        let mut is_asked = 0;
        for (seen, n_events) in seen.iter_mut().zip(&steps.n_events) {
            for lane in 0..LANES {
                seen[lane] += u32::from(n_events[lane]);
                is_asked |= n_events[lane] * asking[lane];
            }
        }
        if is_asked != 0 {
            self.find_first(run, acc, records);
        }
        *acc = steps.acc;
    }

    /// Finds where a run's lanes had their first event.
    #[target_feature(enable = "neon")]
    #[cold]
    fn find_first<const ROWS: usize>(
        &self,
        run: Stretch,
        before: &Sums<ROWS>,
        records: &mut [ChannelOverflow],
    ) {
        let Tile { weights, group, .. } = self.tile;
        if run.to <= weights.chunk_places {
            let steps = self.steps::<ROWS, FIRST>(run, before);
            for (n_events, n_before) in steps.n_events.iter().zip(&steps.n_before) {
                for (lane, record) in records.iter_mut().enumerate() {
                    if n_events[lane] > 0 {
                        let k = weights.step_at(run.from + usize::from(n_before[lane]));
                        record.first_k = Some(record.first_k.map_or(k, |first| first.min(k)));
                    }
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
            portable::walk(weights, group, self.tile.pixel(row), run, &mut cell);
        }
    }

    #[target_feature(enable = "neon")]
    fn steps<const ROWS: usize, const WHAT: u8>(
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
        let mut acc = acc.map(|acc| load(&acc.map(|lane| (lane << scale) as i16)));
        let mut count = Count::<ROWS, WHAT>::new();
        let mut n_adds = 0;
        for from in (run.from..run.to).step_by(weights.chunk_places) {
            let to = (from + weights.chunk_places).min(run.to);
            let operands = self.operands::<ROWS>(Stretch { from, to }, scale);
            n_adds += (to - from) as u16;
            if from < weights.chunk_places {
                operands.products(|row, product| count.add(&adder, row, &mut acc[row], product));
                continue;
            }
            let mut sum = [[vdupq_n_s16(0); 2]; ROWS];
            operands.products(|row, product| count.add(&adder, row, &mut sum[row], product));
            n_adds += 1;
            for (row, sum) in sum.into_iter().enumerate() {
                count.add(&adder, row, &mut acc[row], adder.whole(sum));
            }
        }
        Steps {
            acc: acc.map(|acc| store(acc).map(|lane| i32::from(lane >> scale))),
            n_events: count
                .n_fit
                .map(|n| store(n).map(|n| n_adds.wrapping_sub(n as u16))),
            n_before: count.n_before.map(|n| store(n).map(|n| n as u16)),
        }
    }

    #[inline]
    fn operands<const ROWS: usize>(&self, places: Stretch, scale: u32) -> Operands<'_, ROWS> {
        let Tile { weights, group, .. } = self.tile;
        Operands {
            pixels: self.pixels(places),
            pairs: &weights.group_pairs(group)[places.from * LANES..places.to * LANES],
            offset: weights.offset() as i16,
            scale,
        }
    }

    #[inline]
    fn pixels<const ROWS: usize>(&self, places: Stretch) -> [&[u8]; ROWS] {
        array::from_fn(|row| &self.tile.pixel(row)[places.from..places.to])
    }

    /// Adds a proved stretch.
    #[target_feature(enable = "neon")]
    fn dot<const ROWS: usize>(&self, places: Stretch, acc: &mut Sums<ROWS>) {
        let weights = self.tile.weights;
        if self.has_dot {
            // 8 bits without a sign are too many for a product with signs.
            let is_unsigned = weights.activation
                == Format {
                    bits: 8,
                    signed: false,
                };
            // SAFETY: whoever says that there are dot products has asked the processor.
            unsafe {
                if is_unsigned {
                    self.dot_quads::<ROWS, true>(places, acc);
                } else {
                    self.dot_quads::<ROWS, false>(places, acc);
                }
            }
        } else if weights.is_narrow() {
            self.dot_16(places, acc, |acc, sum| {
                (acc as i16).wrapping_add(sum).into()
            });
        } else if weights.is_small {
            for from in (places.from..places.to).step_by(SHORT) {
                let to = places.to.min(from + SHORT);
                let add = |acc: i32, sum: i16| acc.wrapping_add(sum.into());
                self.dot_16(Stretch { from, to }, acc, add);
            }
        } else {
            self.dot_32(places, acc);
        }
    }

    /// Sums modulo 2^16, and then `add` of each.
    #[target_feature(enable = "neon")]
    fn dot_16<const ROWS: usize>(
        &self,
        places: Stretch,
        acc: &mut Sums<ROWS>,
        add: impl Fn(i32, i16) -> i32,
    ) {
        let mut sum = [[vdupq_n_s16(0); 2]; ROWS];
        self.operands::<ROWS>(places, 0)
            .products(|row, product: Halves| {
                for (sum, product) in sum[row].iter_mut().zip(product) {
                    *sum = vaddq_s16(*sum, product);
                }
            });
        for (acc, sum) in acc.iter_mut().zip(sum) {
            for (acc, sum) in acc.iter_mut().zip(store(sum)) {
                *acc = add(*acc, sum);
            }
        }
    }

    #[target_feature(enable = "neon")]
    fn dot_32<const ROWS: usize>(&self, places: Stretch, acc: &mut Sums<ROWS>) {
        let mut sum = acc.each_ref().map(|acc| load_32(acc));
        self.operands::<ROWS>(places, 0)
            .products(|row, [lower, upper]| {
                let [a, b, c, d] = sum[row];
                sum[row] = [
                    vaddw_s16(a, vget_low_s16(lower)),
                    vaddw_high_s16(b, lower),
                    vaddw_s16(c, vget_low_s16(upper)),
                    vaddw_high_s16(d, upper),
                ];
            });
        *acc = sum.map(|sum| store_32(sum));
    }

    /// Four steps an instruction.
    #[target_feature(enable = "neon,dotprod")]
    fn dot_quads<const ROWS: usize, const IS_UNSIGNED: bool>(
        &self,
        places: Stretch,
        acc: &mut Sums<ROWS>,
    ) {
        let offset = if IS_UNSIGNED {
            128
        } else {
            self.tile.weights.offset()
        };
        let offset = vdupq_n_u8(offset as u8);
        let real = |stored: uint8x16_t| vreinterpretq_s8_u8(vsubq_u8(stored, offset));
        let mut dots = Dots::<ROWS, IS_UNSIGNED> {
            sum: acc.each_ref().map(|acc| load_32(acc)),
            moved: [vdupq_n_s32(0); 4],
        };
        let pixels: [&[u8]; ROWS] = self.pixels(places);
        let (quads, _) = self.tile.quads(0, places).as_chunks::<{ 4 * LANES }>();
        let (fours, rest) = quads.as_chunks::<4>();
        let whole = pixels.map(|pixel| &pixel.as_chunks::<16>().0[..fours.len()]);
        for (at, w) in fours.iter().enumerate() {
            // SAFETY: a chunk is 16 bytes long.
            let a = whole.map(|pixel| real(unsafe { vld1q_u8(pixel[at].as_ptr()) }));
            dots.add::<0>(a, &w[0]);
            dots.add::<1>(a, &w[1]);
            dots.add::<2>(a, &w[2]);
            dots.add::<3>(a, &w[3]);
        }
        let last = pixels.map(|pixel| pixel.as_chunks::<16>().1.as_chunks().0);
        for (at, w) in rest.iter().enumerate() {
            let quad = |pixel: &[[u8; 4]]| vdupq_n_u32(u32::from_le_bytes(pixel[at]));
            dots.add::<0>(last.map(|pixel| real(vreinterpretq_u8_u32(quad(pixel)))), w);
        }
        for (acc, sum) in acc.iter_mut().zip(dots.sum) {
            *acc = store_32(array::from_fn(|i| vsubq_s32(sum[i], dots.moved[i])));
        }
    }
}

/// Dot products with signs. Activations of 8 bits without one (`IS_UNSIGNED`) are 128 too small here,
/// so 128 times all weights is missing.
struct Dots<const ROWS: usize, const IS_UNSIGNED: bool> {
    sum: [[int32x4_t; 4]; ROWS],
    /// What is too much: -128 times the weights.
    moved: [int32x4_t; 4],
}

impl<const ROWS: usize, const IS_UNSIGNED: bool> Dots<ROWS, IS_UNSIGNED> {
    /// Adds a quad, of whose activations `QUAD` says the place in `a`.
    #[target_feature(enable = "neon,dotprod")]
    #[inline]
    fn add<const QUAD: i32>(&mut self, a: [int8x16_t; ROWS], w: &[i8; 4 * LANES]) {
        let (columns, _) = w.as_chunks::<16>();
        for (index, w) in columns.iter().enumerate() {
            // SAFETY: `w` is 16 bytes long.
            let w = unsafe { vld1q_s8(w.as_ptr()) };
            for (sum, &a) in self.sum.iter_mut().zip(&a) {
                sum[index] = dot::<QUAD>(sum[index], w, a);
            }
            if IS_UNSIGNED {
                self.moved[index] = dot::<0>(self.moved[index], w, vdupq_n_s8(-128));
            }
        }
    }
}

/// Adds to each of 4 columns the products of its 4 weights with a quad of `a`. The intrinsic is not
/// stable yet.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot<const QUAD: i32>(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: registers only, of an instruction that is there.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {a:v}.4b[{quad}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            a = in(vreg) a,
            quad = const QUAD,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// What a walk is asked for: values.
const VALUES: u8 = 0;
/// Numbers of events too.
const COUNTS: u8 = 1;
/// And numbers of adds before the first event.
const FIRST: u8 = 2;

/// What a walk tells.
struct Steps<const ROWS: usize> {
    acc: Sums<ROWS>,
    n_events: [Lanes<u16>; ROWS],
    n_before: [Lanes<u16>; ROWS],
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

/// Whether a stretch's proof holds in every row and lane. Without a branch a lane, for the compiler's
/// vectors.
fn is_proved<const ROWS: usize>(acc: &Sums<ROWS>, bounds: &Bounds) -> bool {
    let mut is_outside = false;
    for acc in acc {
        for ((acc, low), high) in acc.iter().zip(&bounds.low_32).zip(&bounds.high_32) {
            is_outside |= acc < low;
            is_outside |= acc > high;
        }
    }
    !is_outside
}

#[target_feature(enable = "neon")]
#[inline]
fn load(lanes: &Lanes<i16>) -> Halves {
    let (halves, _) = lanes.as_chunks::<8>();
    // SAFETY: each is 8 lanes long.
    array::from_fn(|i| unsafe { vld1q_s16(halves[i].as_ptr()) })
}

#[target_feature(enable = "neon")]
#[inline]
fn store(halves: Halves) -> Lanes<i16> {
    let mut lanes = [0; LANES];
    for (lanes, half) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(halves) {
        // SAFETY: `lanes` is 8 lanes long.
        unsafe { vst1q_s16(lanes.as_mut_ptr(), half) };
    }
    lanes
}

#[target_feature(enable = "neon")]
#[inline]
fn load_32(lanes: &Lanes<i32>) -> [int32x4_t; 4] {
    let (quarters, _) = lanes.as_chunks::<4>();
    // SAFETY: each is 4 lanes long.
    array::from_fn(|i| unsafe { vld1q_s32(quarters[i].as_ptr()) })
}

#[target_feature(enable = "neon")]
#[inline]
fn store_32(quarters: [int32x4_t; 4]) -> Lanes<i32> {
    let mut lanes = [0; LANES];
    for (lanes, quarter) in lanes.as_chunks_mut::<4>().0.iter_mut().zip(quarters) {
        // SAFETY: `lanes` is 4 lanes long.
        unsafe { vst1q_s32(lanes.as_mut_ptr(), quarter) };
    }
    lanes
}

/// Instructions of one kind and nothing else, in registers: returns their MACs.
pub(crate) fn peak(level: Level, peak: Peak, n_rounds: usize) -> Option<u64> {
    assert!(
        level != Level::Portable && level.is_available(),
        "{level:?}"
    );
    // SAFETY: the level's instructions are there, as asserted above.
    let n_macs = unsafe {
        match (level, peak) {
            (Level::NeonDot, Peak::Dot) => dot_peak(n_rounds),
            (_, Peak::Dot) => add_peak(n_rounds),
            (_, Peak::Multiply) => multiply_peak(n_rounds),
            (_, Peak::LookUp) => return None,
        }
    };
    Some(n_macs)
}

/// Sums side by side, enough to hide latency.
const PEAK_SUMS: usize = 12;

macro_rules! peak {
    ($name:ident, $features:literal, $instructions:literal, $n_macs:literal) => {
        #[target_feature(enable = $features)]
        fn $name(n_rounds: usize) -> u64 {
            let mut sum = [vdupq_n_s16(0); PEAK_SUMS];
            for _ in 0..n_rounds {
                for sum in &mut sum {
                    // SAFETY: registers only, of instructions that are there.
                    unsafe {
                        asm!(
                            $instructions,
                            sum = inout(vreg) *sum,
                            out("v31") _,
                            a = in(vreg) vdupq_n_s16(3),
                            w = in(vreg) vdupq_n_s16(-7),
                            options(nomem, nostack, preserves_flags)
                        );
                    }
                }
            }
            (n_rounds * PEAK_SUMS * $n_macs) as u64
        }
    };
}

peak!(
    dot_peak,
    "neon,dotprod",
    "sdot {sum:v}.4s, {w:v}.16b, {a:v}.16b",
    16
);
peak!(add_peak, "neon", "mla {sum:v}.8h, {a:v}.8h, {w:v}.8h", 8);
peak!(
    multiply_peak,
    "neon",
    "mul v31.8h, {a:v}.8h, {w:v}.8h\nsqadd {sum:v}.8h, {sum:v}.8h, v31.8h",
    8
);
