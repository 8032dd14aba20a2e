//! The kernels for aarch64: up to 4 pixels × 16 columns a tile.
//!
//! A step is one multiplication of 16-bit lanes, which hold every product of 8-bit operands; proved
//! stretches are dot products of four steps an instruction where the processor has them. Wide
//! accumulators whose proof fails are the portable kernels' business.
//!
//! Invariant: between stretches accumulators stand in lanes of 32 bits, whatever their width. Every
//! pointer comes from an array of the length that is read.

mod peak;
mod walk;

pub(crate) use peak::peak;

use crate::{
    Level,
    pack::{Bounds, LANES, Lanes, Stretch, Weights},
    portable::{self, Cell, SHORT, close, columns},
    simd::tile::{Tile, tile_rows},
};
use arith::ChannelOverflow;
#[allow(
    clippy::wildcard_imports,
    reason = "some twenty intrinsics, all with one prefix"
)]
use std::{
    arch::{aarch64::*, asm},
    array,
    mem::transmute,
};
use walk::VALUES;

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
            offset: offset as u8,
        };
        operands.products(1, |_, product| {
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
    offset: u8,
}

impl<const ROWS: usize> Operands<'_, ROWS> {
    /// Hands over the products of every step of every row, `factor` times, in order.
    #[target_feature(enable = "neon")]
    #[inline]
    fn products(&self, factor: i16, mut add: impl FnMut(usize, Halves)) {
        let offset = vdup_n_u8(self.offset);
        let real = |stored: [u8; 4]| {
            let stored = vreinterpret_u8_u32(vdup_n_u32(u32::from_le_bytes(stored)));
            let real = vget_low_s16(vreinterpretq_s16_u16(vsubl_u8(stored, offset)));
            // Low bits are right, whatever the high ones are, and products fit.
            vmul_n_s16(real, factor)
        };
        let (quads, _) = self.pairs.as_chunks::<{ 4 * LANES }>();
        let pixels = self.pixels.map(|pixel| &pixel.as_chunks().0[..quads.len()]);
        for (at, w) in quads.iter().enumerate() {
            // SAFETY: each half is 32 bytes long.
            let w = [0, 2 * LANES].map(|from| unsafe { vld2q_s8(w[from..].as_ptr()) });
            let a = pixels.map(|pixel| real(pixel[at]));
            step::<0, ROWS>(a, w[0].0, &mut add);
            step::<1, ROWS>(a, w[0].1, &mut add);
            step::<2, ROWS>(a, w[1].0, &mut add);
            step::<3, ROWS>(a, w[1].1, &mut add);
        }
    }
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
        let records = if EVENTS {
            columns(weights, group, records)
        } else {
            records
        };
        let mut acc = [weights.bias[group]; ROWS];
        let mut seen = [[0; LANES]; ROWS];
        let mut is_proved_throughout = true;
        for (index, &block) in weights.blocks.iter().enumerate() {
            let has_order = EVENTS || !weights.is_orderless();
            if !has_order || is_proved(&acc, self.tile.block_bounds(0, index)) {
                self.dot(self.tile.places(block), &mut acc);
                continue;
            }
            is_proved_throughout = false;
            if weights.is_narrow() {
                self.block::<ROWS, EVENTS>(block, &mut acc, &mut seen, records);
            } else {
                self.wide_block::<ROWS, EVENTS>(block, &mut acc, &mut seen, records);
            }
        }
        for (acc, out) in acc.iter().zip(out.chunks_exact_mut(weights.n_lanes())) {
            out[group * LANES..][..LANES].copy_from_slice(acc);
        }
        if EVENTS && !is_proved_throughout {
            close(records, &seen);
        }
    }

    /// A block whose proof failed for some row, run by run.
    #[target_feature(enable = "neon")]
    fn block<const ROWS: usize, const EVENTS: bool>(
        &self,
        block: Stretch,
        acc: &mut Sums<ROWS>,
        seen: &mut [Lanes<u32>; ROWS],
        records: &mut [ChannelOverflow],
    ) {
        for index in block.from..block.to {
            let run = self.tile.weights.runs[index];
            if is_proved(acc, self.tile.run_bounds(0, index)) {
                self.dot(run, acc);
            } else if EVENTS {
                self.walk(run, acc, seen, records);
            } else {
                *acc = self.steps::<ROWS, VALUES>(run, acc).acc;
            }
        }
    }

    /// The same for accumulators of more than 16 bits, row by row.
    fn wide_block<const ROWS: usize, const EVENTS: bool>(
        &self,
        block: Stretch,
        acc: &mut Sums<ROWS>,
        seen: &mut [Lanes<u32>; ROWS],
        records: &mut [ChannelOverflow],
    ) {
        let Tile { weights, group, .. } = self.tile;
        for (row, (acc, seen)) in acc.iter_mut().zip(seen).enumerate() {
            let pixel = self.tile.pixel(row);
            if EVENTS {
                let mut cell = Cell {
                    acc: *acc,
                    n_overflowed: *seen,
                    records,
                };
                portable::walk_block(weights, group, pixel, block, &mut cell);
                (*acc, *seen) = (cell.acc, cell.n_overflowed);
            } else {
                portable::in_order(weights, group, pixel, self.tile.places(block), acc);
            }
        }
    }

    #[inline]
    fn operands<const ROWS: usize>(&self, places: Stretch) -> Operands<'_, ROWS> {
        let Tile { weights, group, .. } = self.tile;
        Operands {
            pixels: self.pixels(places),
            pairs: &weights.group_pairs(group)[places.from * LANES..places.to * LANES],
            offset: weights.offset() as u8,
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
            // Too much for a product with signs.
            let is_unsigned = weights.activation.q_max() > i8::MAX.into();
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
        self.operands::<ROWS>(places)
            .products(1, |row, product: Halves| {
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
        let mut sum = acc.map(load_32);
        self.operands::<ROWS>(places)
            .products(1, |row, [lower, upper]| {
                let [a, b, c, d] = sum[row];
                sum[row] = [
                    vaddw_s16(a, vget_low_s16(lower)),
                    vaddw_high_s16(b, lower),
                    vaddw_s16(c, vget_low_s16(upper)),
                    vaddw_high_s16(d, upper),
                ];
            });
        *acc = sum.map(store_32);
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
            sum: acc.map(load_32),
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

/// Dot products with signs. Activations of 8 bits without one (`IS_UNSIGNED`) are 128 too small here:
/// 128 times the weights is missing.
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

/// Whether a stretch's proof holds in every row and lane.
#[target_feature(enable = "neon")]
fn is_proved<const ROWS: usize>(acc: &Sums<ROWS>, bounds: &Bounds) -> bool {
    let (low, high) = (load_32(bounds.low_32), load_32(bounds.high_32));
    let mut outside = vdupq_n_u32(0);
    for &acc in acc {
        for (index, &acc) in load_32(acc).iter().enumerate() {
            outside = vorrq_u32(outside, vcltq_s32(acc, low[index]));
            outside = vorrq_u32(outside, vcgtq_s32(acc, high[index]));
        }
    }
    vmaxvq_u32(outside) == 0
}

fn load(lanes: Lanes<i16>) -> Halves {
    // SAFETY: the same bytes in the same order, and all of them have a meaning.
    unsafe { transmute(lanes) }
}

fn store(halves: Halves) -> Lanes<i16> {
    // SAFETY: as above.
    unsafe { transmute(halves) }
}

fn load_32(lanes: Lanes<i32>) -> [int32x4_t; 4] {
    // SAFETY: as above.
    unsafe { transmute(lanes) }
}

fn store_32(quarters: [int32x4_t; 4]) -> Lanes<i32> {
    // SAFETY: as above.
    unsafe { transmute(quarters) }
}
