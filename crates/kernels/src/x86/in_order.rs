//! Values without counts: sums as far as proofs go, what is left in order, up to 64 columns side by
//! side, where 2 pixels' products of 4 bits come from one register.
//!
//! Invariant: what a tile's columns have in the output are their sums from the bias up to the block
//! that they have reached.

use super::Tile;
use crate::{
    Level,
    pack::{LANES, Lanes, Stretch, Weights},
    portable,
    table::{Register, STRIDE},
    x86::{Hope, SATURATE, SATURATE_ANY},
};
#[allow(
    clippy::wildcard_imports,
    reason = "a dozen intrinsics with one of two prefixes"
)]
use std::arch::x86_64::*;

/// Tiles that laid out weights serve.
const TILES: usize = 16;
/// Most steps whose operands are laid out at a time: with the table they fit a first-level cache.
const PART: usize = 128;
/// Registers of operands that a step loads by activations, and each multiplies or spreads over all
/// columns: as many as leave registers for weights beside the sums.
const SIDE_BY_SIDE: usize = 6;

pub(crate) fn accumulate_values(
    level: Level,
    weights: &Weights,
    patch: &[u8],
    accumulators: &mut [i32],
) {
    assert!(level.is_available(), "{level:?} is not on this processor");
    let n_pixels = accumulators.len() / weights.n_lanes();
    if n_pixels == 0 {
        return;
    }
    let rows = super::tile_rows(level, n_pixels);
    let mut job = Job {
        level,
        weights,
        rows,
        hope: Hope(4),
        room: Room::default(),
    };
    let parts = accumulators.chunks_mut(TILES * rows * weights.n_lanes());
    for (out, patch) in parts.zip(patch.chunks(TILES * rows * weights.n_places)) {
        for group in (0..weights.n_groups).step_by(2 * super::tile_groups(level)) {
            job.columns(group, patch, out);
        }
    }
    if weights.is_orderless() {
        portable::wrap(weights, accumulators);
    }
}

/// Calls a function with a number of registers of operands as a constant.
macro_rules! with_operands {
    ($n:expr, $function:ident::<$w:literal, $rule:ident, $looks_up:literal>$arguments:tt) => {
        match $n {
            1 => $function::<1, $w, $rule, $looks_up> $arguments,
            2 => $function::<2, $w, $rule, $looks_up> $arguments,
            3 => $function::<3, $w, $rule, $looks_up> $arguments,
            4 => $function::<4, $w, $rule, $looks_up> $arguments,
            5 => $function::<5, $w, $rule, $looks_up> $arguments,
            6 => $function::<6, $w, $rule, $looks_up> $arguments,
            n => unreachable!("{n} registers"),
        }
    };
}

struct Job<'a> {
    level: Level,
    weights: &'a Weights,
    /// Pixels of a tile.
    rows: usize,
    /// Whether a look for proofs is worthwhile after the first.
    hope: Hope,
    room: Room,
}

impl Job<'_> {
    /// The columns of two tiles side by side, of all pixels.
    fn columns(&mut self, first: usize, patch: &[u8], out: &mut [i32]) {
        let n_blocks = self.weights.blocks.len();
        let n_rows = patch.len() / self.weights.n_places;
        let n_groups = super::tile_groups(self.level);
        let n_sides = (self.weights.n_groups - first).div_ceil(n_groups).min(2);
        // The block that each side of each tile has reached.
        let mut reached = [[n_blocks; 2]; TILES];
        for tile in reached.iter_mut().take(n_rows.div_ceil(self.rows)) {
            tile[..n_sides].fill(0);
        }
        for block in 0..n_blocks {
            for (tile, reached) in reached.iter_mut().enumerate() {
                for (side, reached) in reached.iter_mut().enumerate() {
                    if *reached == block && (block == 0 || self.hope.is_alive()) {
                        let group = first + side * n_groups;
                        *reached = self.advance(block, group, tile, patch, out);
                        self.hope.note(*reached > block);
                    }
                }
            }
            let end = if self.hope.is_alive() {
                block + 1
            } else {
                n_blocks
            };
            for sides in [[true, true], [true, false], [false, true]] {
                let mut rows = Vec::new();
                for (tile, reached) in reached.iter_mut().enumerate() {
                    if reached.map(|reached| reached == block) == sides {
                        rows.extend(tile * self.rows..n_rows.min((tile + 1) * self.rows));
                        // Sides that are asked for here and in no other list.
                        reached
                            .iter_mut()
                            .filter(|reached| **reached == block)
                            .for_each(|reached| *reached = end);
                    }
                }
                if !rows.is_empty() {
                    let groups = |side: usize| {
                        let from = first + side * n_groups;
                        from..(from + n_groups).min(self.weights.n_groups)
                    };
                    let groups = match sides {
                        [true, true] => first..groups(1).end,
                        [true, false] => groups(0),
                        _ => groups(1),
                    };
                    let runs = self.weights.blocks[block].from..self.weights.blocks[end - 1].to;
                    let places = Stretch {
                        from: self.weights.runs[runs.start].from,
                        to: self.weights.runs[runs.end - 1].to,
                    };
                    self.in_order(groups, &rows, places, patch, out);
                }
            }
        }
    }

    /// Adds the blocks of a tile from one on as far as they are proved; returns the first that is not.
    fn advance(
        &self,
        block: usize,
        group: usize,
        tile: usize,
        patch: &[u8],
        out: &mut [i32],
    ) -> usize {
        let weights = self.weights;
        let first = tile * self.rows;
        let n_rows = self.rows.min(patch.len() / weights.n_places - first);
        let out = &mut out[first * weights.n_lanes()..][..n_rows * weights.n_lanes()];
        let tile = Tile {
            weights,
            group,
            patch: &patch[first * weights.n_places..][..n_rows * weights.n_places],
        };
        let both = group + 1 < weights.n_groups;
        // SAFETY: the level's instructions are there, as `accumulate_values` asserts.
        unsafe {
            match self.level {
                Level::Avx512Vnni => tile.avx512_advance::<true>(n_rows, both, block, out),
                Level::Avx512Bw => tile.avx512_advance::<false>(n_rows, both, block, out),
                _ if weights.is_narrow() => tile.avx2_advance(n_rows, block, out),
                _ => tile.avx2_wide_advance(n_rows, block, out),
            }
        }
    }

    /// Adds a stretch to the sums of some groups of some rows.
    fn in_order(
        &mut self,
        groups: std::ops::Range<usize>,
        rows: &[usize],
        places: Stretch,
        patch: &[u8],
        out: &mut [i32],
    ) {
        let weights = self.weights;
        if weights.is_narrow() {
            let mut slots: Vec<usize> = groups.clone().collect();
            if self.level != Level::Avx2 && slots.len() % 2 == 1 {
                // A register has two groups; what comes out of the second is not looked at twice.
                slots.push(groups.end - 1);
            }
            let sums = InOrder {
                weights,
                is_512: self.level != Level::Avx2,
                slots: &slots,
                patch,
                room: &mut self.room,
            };
            return sums.add(rows, places, out);
        }
        for &row in rows {
            let pixel = &patch[row * weights.n_places..][..weights.n_places];
            for group in groups.clone() {
                let out = &mut out[row * weights.n_lanes() + group * LANES..][..LANES];
                let acc = out.try_into().expect("a group");
                portable::in_order(weights, group, pixel, places, acc);
            }
        }
    }
}

/// Operands as the steps read them, and sums.
#[derive(Default)]
struct Room {
    /// `[step][slot]`, for products from tables once more with the places of the second pixel's.
    weights: Vec<Register>,
    /// `[register][PART]`: where the table's entry begins.
    entries: Vec<u16>,
    /// `[row][slot]`
    sums: Vec<Register>,
    totals: Vec<Register>,
}

/// Sums of an accumulator of at most 16 bits, in order.
struct InOrder<'a> {
    weights: &'a Weights,
    is_512: bool,
    /// Groups of a row's registers.
    slots: &'a [usize],
    patch: &'a [u8],
    room: &'a mut Room,
}

impl InOrder<'_> {
    /// Rows whose operands a register has.
    fn pixels(&self) -> usize {
        if self.is_512 && self.weights.is_nibbles {
            2
        } else {
            1
        }
    }

    fn add(mut self, rows: &[usize], places: Stretch, out: &mut [i32]) {
        let weights = self.weights;
        let n_slots = self.slots.len();
        let (pixels, n_lanes) = (self.pixels(), weights.n_lanes());
        let n_tiles = rows.len().div_ceil(SIDE_BY_SIDE * pixels);
        let tile = rows.len().div_ceil(n_tiles).next_multiple_of(pixels);
        // The last register's second row may be nobody's.
        let n_sums = rows.len().next_multiple_of(pixels) * n_slots;
        let scale = weights.scale();
        let mut totals = std::mem::take(&mut self.room.totals);
        totals.resize(n_sums.div_ceil(2), Register([[0; LANES]; 2]));
        for (lanes, &row) in halves_mut(&mut totals).chunks_mut(n_slots).zip(rows) {
            for (lanes, &slot) in lanes.iter_mut().zip(self.slots) {
                let out = &out[row * n_lanes + slot * LANES..][..LANES];
                for (lane, &out) in lanes.iter_mut().zip(out) {
                    *lane = (out << scale) as i16;
                }
            }
        }
        for from in (places.from..places.to).step_by(weights.chunk_places) {
            let to = (from + weights.chunk_places).min(places.to);
            let chunk = Stretch { from, to };
            if from < weights.chunk_places {
                self.chunk(chunk, rows, tile, &mut totals);
                continue;
            }
            let mut sums = std::mem::take(&mut self.room.sums);
            sums.clear();
            sums.resize(totals.len(), Register([[0; LANES]; 2]));
            self.chunk(chunk, rows, tile, &mut sums);
            self.merge(&mut totals, &sums);
            self.room.sums = sums;
        }
        for (lanes, &row) in halves(&totals).chunks(n_slots).zip(rows) {
            for (lanes, &slot) in lanes.iter().zip(self.slots) {
                let out = &mut out[row * n_lanes + slot * LANES..][..LANES];
                for (&lane, out) in lanes.iter().zip(out) {
                    *out = i32::from(lane >> scale);
                }
            }
        }
        self.room.totals = totals;
    }

    /// Accumulators' limits as lanes of 16 bits have them.
    fn limits(&self) -> (i16, i16) {
        if self.weights.is_roomy {
            return (i16::MIN, i16::MAX);
        }
        let accumulator = self.weights.accumulator;
        (accumulator.min() as i16, accumulator.max() as i16)
    }

    /// Adds chunks' sums to what was there before them.
    fn merge(&self, totals: &mut [Register], sums: &[Register]) {
        let (low, high) = self.limits();
        // What clipping left in unused bits is no part of an operand.
        let used = -1i16 << self.weights.scale();
        for (total, sum) in totals.iter_mut().zip(sums) {
            for (total, sum) in total.0.iter_mut().flatten().zip(sum.0.iter().flatten()) {
                *total = total.saturating_add(sum & used).max(low).min(high);
            }
        }
    }

    /// Adds a chunk, or a part of the first, to the sums of all rows, a tile after the other.
    fn chunk(&mut self, chunk: Stretch, rows: &[usize], tile: usize, sums: &mut [Register]) {
        let (pixels, n_slots) = (self.pixels(), self.slots.len());
        for from in (chunk.from..chunk.to).step_by(PART) {
            let part = Stretch {
                from,
                to: chunk.to.min(from + PART),
            };
            self.lay_out_weights(part);
            let sums = halves_mut(sums).chunks_mut(tile * n_slots);
            for (rows, sums) in rows.chunks(tile).zip(sums) {
                self.lay_out_entries(rows, part);
                self.steps(rows.len().div_ceil(pixels), part.to - part.from, sums);
            }
        }
    }

    fn lay_out_weights(&mut self, part: Stretch) {
        let looks_up = self.pixels() == 2;
        let step = self.slots.len() * self.pixels();
        let n = (part.to - part.from) * step;
        let room = &mut self.room.weights;
        if room.len() < n.div_ceil(2) {
            room.resize(n.div_ceil(2), Register([[0; LANES]; 2]));
        }
        let pairs_of_steps = halves_mut(room)[..n].chunks_exact_mut(2 * step);
        for (place, pair_of_steps) in (part.from..part.to).step_by(2).zip(pairs_of_steps) {
            for (index, &slot) in self.slots.iter().enumerate() {
                let pair = &self.weights.group_pairs(slot)[place * LANES..][..2 * LANES];
                let steps = pair_of_steps.chunks_exact_mut(step);
                for (lanes, w) in steps.zip(portable::halves(pair)) {
                    if looks_up {
                        let places = w.map(|w| w & 15);
                        lanes[index] = places;
                        lanes[self.slots.len() + index] = places.map(|place| place | 16);
                    } else {
                        lanes[index] = w;
                    }
                }
            }
        }
    }

    fn lay_out_entries(&mut self, rows: &[usize], part: Stretch) {
        let pixels = self.pixels();
        let room = &mut self.room.entries;
        room.resize(SIDE_BY_SIDE * PART, 0);
        let n_places = self.weights.n_places;
        let pixel = |row: usize| &self.patch[row * n_places..][part.from..part.to];
        for (rows, entries) in rows.chunks(pixels).zip(room.chunks_exact_mut(PART)) {
            let (a, b) = (pixel(rows[0]), pixel(rows[rows.len() - 1]));
            for ((entry, &a), &b) in entries.iter_mut().zip(a).zip(b) {
                let byte = if pixels == 2 { a << 4 | b } else { a };
                *entry = u16::from(byte) * STRIDE;
            }
        }
    }

    /// Adds the laid out steps to the sums of `n` registers' pixels.
    fn steps(&self, n: usize, n_steps: usize, sums: &mut [Lanes<i16>]) {
        let table = self.weights.table();
        let looks_up = self.pixels() == 2;
        let steps = Steps {
            weights: halves(&self.room.weights),
            entries: &self.room.entries,
            table: match &table.products {
                Some(products) if looks_up => products,
                _ => &table.factors,
            },
            n: n_steps,
            limits: self.limits(),
        };
        if self.weights.is_roomy {
            self.by_rule::<SATURATE>(n, &steps, sums);
        } else {
            self.by_rule::<SATURATE_ANY>(n, &steps, sums);
        }
    }

    fn by_rule<const RULE: u8>(&self, n: usize, steps: &Steps<'_>, sums: &mut [Lanes<i16>]) {
        // SAFETY: the level's instructions are there, as `accumulate_values` asserts.
        unsafe {
            match (self.is_512, self.pixels(), self.slots.len()) {
                (true, 2, 4) => with_operands!(n, steps_512::<4, RULE, true>(steps, sums)),
                (true, 2, 2) => with_operands!(n, steps_512::<2, RULE, true>(steps, sums)),
                (true, 1, 4) => with_operands!(n, steps_512::<2, RULE, false>(steps, sums)),
                (true, 1, 2) => with_operands!(n, steps_512::<1, RULE, false>(steps, sums)),
                (false, 1, 2) => with_operands!(n, steps_256::<2, RULE, false>(steps, sums)),
                (false, 1, 1) => with_operands!(n, steps_256::<1, RULE, false>(steps, sums)),
                shape => unreachable!("{shape:?}"),
            }
        }
    }
}

/// Laid out steps.
struct Steps<'a> {
    weights: &'a [Lanes<i16>],
    entries: &'a [u16],
    table: &'a [Register; 256],
    n: usize,
    limits: (i16, i16),
}

/// Steps of `N` registers of operands with `W` of weights each; sums stay in registers.
macro_rules! steps {
    ($name:ident, $features:literal, $register:ty, $product:ident, $limit:ident, $n_groups:literal,
        [$load:ident $store:ident $zero:ident $adds:ident]) => {
        #[target_feature(enable = $features)]
        #[inline(never)]
        fn $name<const N: usize, const W: usize, const RULE: u8, const LOOKS_UP: bool>(
            steps: &Steps<'_>,
            sums: &mut [Lanes<i16>],
        ) {
            assert!(steps.n <= PART && steps.entries.len() >= N * PART, "laid out");
            assert!(steps.weights.len() >= steps.n * W * $n_groups, "laid out");
            let sums = &mut sums[..N * W * $n_groups];
            let mut sum = [[$zero(); W]; N];
            for (sum, from) in sum.iter_mut().flatten().zip(sums.chunks_exact($n_groups)) {
                // SAFETY: the chunk is as long as the register.
                *sum = unsafe { $load(from.as_ptr().cast()) };
            }
            let weights: *const $register = steps.weights.as_ptr().cast();
            let table: *const u8 = steps.table.as_ptr().cast();
            for step in 0..steps.n {
                let mut w = [$zero(); W];
                for (index, w) in w.iter_mut().enumerate() {
                    // SAFETY: as asserted above there are `W` registers a step.
                    *w = unsafe { $load(weights.add(step * W + index).cast()) };
                }
                for index in 0..N {
                    // SAFETY: as asserted above there are `PART` entries a register, and `step` is less;
                    // an entry is the place of one of the table's registers.
                    let operand = unsafe {
                        let entry = *steps.entries.as_ptr().add(index * PART + step);
                        $load(table.add(usize::from(entry)).cast())
                    };
                    for (sum, &w) in sum[index].iter_mut().zip(&w) {
                        *sum = $adds(*sum, $product::<LOOKS_UP>(operand, w));
                        if RULE == SATURATE_ANY {
                            *sum = $limit(*sum, steps.limits);
                        }
                    }
                }
            }
            for (sum, to) in sum.iter().flatten().zip(sums.chunks_exact_mut($n_groups)) {
                // SAFETY: the chunk is as long as the register.
                unsafe { $store(to.as_mut_ptr().cast(), *sum) };
            }
        }
    };
}

steps!(steps_512, "avx512f,avx512bw,avx512vl,avx2", __m512i, product_512, limit_512, 2,
    [_mm512_loadu_si512 _mm512_storeu_si512 _mm512_setzero_si512 _mm512_adds_epi16]);
steps!(steps_256, "avx2", __m256i, product_256, limit_256, 1,
    [_mm256_loadu_si256 _mm256_storeu_si256 _mm256_setzero_si256 _mm256_adds_epi16]);

/// A multiplication, or 32 products of 16 bits that are there already.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn product_512<const LOOKS_UP: bool>(operand: __m512i, w: __m512i) -> __m512i {
    if LOOKS_UP {
        _mm512_permutexvar_epi16(w, operand)
    } else {
        _mm512_mullo_epi16(w, operand)
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn product_256<const LOOKS_UP: bool>(operand: __m256i, w: __m256i) -> __m256i {
    const { assert!(!LOOKS_UP, "AVX2 looks up no words") };
    _mm256_mullo_epi16(w, operand)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn limit_512(sum: __m512i, (low, high): (i16, i16)) -> __m512i {
    let sum = _mm512_min_epi16(sum, _mm512_set1_epi16(high));
    _mm512_max_epi16(sum, _mm512_set1_epi16(low))
}

#[target_feature(enable = "avx2")]
#[inline]
fn limit_256(sum: __m256i, (low, high): (i16, i16)) -> __m256i {
    let sum = _mm256_min_epi16(sum, _mm256_set1_epi16(high));
    _mm256_max_epi16(sum, _mm256_set1_epi16(low))
}

/// Registers' halves, one after the other.
fn halves(registers: &[Register]) -> &[Lanes<i16>] {
    // SAFETY: a register is its two halves, and needs more alignment than they.
    unsafe { std::slice::from_raw_parts(registers.as_ptr().cast(), 2 * registers.len()) }
}

fn halves_mut(registers: &mut [Register]) -> &mut [Lanes<i16>] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(registers.as_mut_ptr().cast(), 2 * registers.len()) }
}
