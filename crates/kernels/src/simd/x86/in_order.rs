//! Values without counts: dot products as far as proofs go, what is left in order.
//!
//! Lanes are columns, four groups side by side. A step of a row loads a register from a table by its
//! activation, as there is no cheap way to spread 16 bits over lanes: either the activation in every
//! lane, to be multiplied by weights; or, for operands of at most 4 bits, all its products, among which
//! weights choose (`vpermw`), which leaves the multipliers' ports to the saturating adds that share them.
//! With 16 weights a register has room for the products of two rows, so one load serves two rows.
//!
//! Invariant: what a tile's columns have in the output are their sums up to the block that they have
//! reached, or anything before the first.

use super::Hope;
use crate::{
    Level,
    pack::{LANES, Lanes, Stretch, Weights},
    portable,
    simd::tile::{SATURATE, SATURATE_ANY, Tile, tile_rows},
    table::{Register, STRIDE},
};
#[allow(
    clippy::wildcard_imports,
    reason = "a dozen intrinsics with one of two prefixes"
)]
use std::{arch::x86_64::*, ops::Range};

/// Tiles that laid out weights serve.
const TILES: usize = 16;
/// Most steps whose operands are laid out at a time: with the table they fit a first-level cache.
const PART: usize = 144;
/// Most rows of a tile.
const SIDE_BY_SIDE: usize = 12;

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
    let rows = tile_rows(level, n_pixels);
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
    ($n:expr, [$($number:literal)*], $function:ident::<$w:literal, $rule:ident, $looks_up:literal>$arguments:tt) => {
        match $n {
            $($number => $function::<$number, $w, $rule, $looks_up> $arguments,)*
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
            for side in 0..n_sides {
                for (tile, reached) in reached.iter_mut().enumerate() {
                    let reached = &mut reached[side];
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
                    if reached.map(|reached| reached == block) != sides {
                        continue;
                    }
                    rows.extend(tile * self.rows..n_rows.min((tile + 1) * self.rows));
                    for (reached, &is_asked) in reached.iter_mut().zip(&sides) {
                        if is_asked {
                            *reached = end;
                        }
                    }
                }
                if rows.is_empty() {
                    continue;
                }
                let from = if sides[0] { first } else { first + n_groups };
                let last = if sides[1] { 2 } else { 1 };
                let to = (first + last * n_groups).min(self.weights.n_groups);
                let (runs, blocks) = (&self.weights.runs, &self.weights.blocks);
                let places = Stretch {
                    from: runs[blocks[block].from].from,
                    to: runs[blocks[end - 1].to - 1].to,
                };
                self.in_order(from..to, &rows, places, patch, out);
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
        groups: Range<usize>,
        rows: &[usize],
        places: Stretch,
        patch: &[u8],
        out: &mut [i32],
    ) {
        let weights = self.weights;
        if weights.is_narrow() {
            let mut slots: Vec<usize> = groups.clone().collect();
            if self.level != Level::Avx2 && slots.len() % 2 == 1 {
                // A register has two groups: the same twice gives the same twice.
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
                let groups = out[row * weights.n_lanes()..].as_chunks_mut().0;
                if places.from == 0 {
                    groups[group] = weights.bias[group];
                }
                portable::in_order(weights, group, pixel, places, &mut groups[group]);
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
        let has_products = self.weights.table().products.is_some();
        if self.is_512 && has_products { 2 } else { 1 }
    }

    /// Rows of a tile, at most: as many as leave registers for weights beside the sums.
    fn most_rows(&self) -> usize {
        if self.is_512 { SIDE_BY_SIDE } else { 6 }
    }

    fn add(mut self, rows: &[usize], places: Stretch, out: &mut [i32]) {
        let weights = self.weights;
        let n_slots = self.slots.len();
        let (pixels, n_lanes) = (self.pixels(), weights.n_lanes());
        let n_tiles = rows.len().div_ceil(self.most_rows());
        let tile = rows.len().div_ceil(n_tiles).next_multiple_of(pixels);
        // The last register's second row may be nobody's.
        let n_sums = rows.len().next_multiple_of(pixels) * n_slots;
        let scale = weights.scale();
        let mut totals = std::mem::take(&mut self.room.totals);
        totals.resize(n_sums.div_ceil(2), Register([[0; LANES]; 2]));
        let rows_of_totals = halves_mut(&mut totals).chunks_exact_mut(n_slots).zip(rows);
        if places.from == 0 {
            for (totals, _) in rows_of_totals {
                enter(&weights.bias, self.slots, scale, totals);
            }
        } else {
            for (totals, &row) in rows_of_totals {
                enter(
                    out[row * n_lanes..].as_chunks().0,
                    self.slots,
                    scale,
                    totals,
                );
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
        for (totals, &row) in halves(&totals).chunks_exact(n_slots).zip(rows) {
            leave(
                totals,
                self.slots,
                scale,
                out[row * n_lanes..].as_chunks_mut().0,
            );
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
        // Parts of equal size, in whole quads as a chunk is.
        let n_parts = (chunk.to - chunk.from).div_ceil(PART);
        let length = (chunk.to - chunk.from).div_ceil(4 * n_parts) * 4;
        for from in (chunk.from..chunk.to).step_by(length) {
            let part = Stretch {
                from,
                to: chunk.to.min(from + length),
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
        let (n_slots, pixels) = (self.slots.len(), self.pixels());
        let n = (part.to - part.from) * n_slots * pixels;
        let room = &mut self.room.weights;
        if room.len() < n.div_ceil(2) {
            room.resize(n.div_ceil(2), Register([[0; LANES]; 2]));
        }
        for (index, &slot) in self.slots.iter().enumerate() {
            let pairs = &self.weights.group_pairs(slot)[part.from * LANES..part.to * LANES];
            let to = &mut halves_mut(room)[..n];
            match (n_slots, pixels) {
                (4, 2) => spread::<4, 2>(pairs, index, to),
                (4, _) => spread::<4, 1>(pairs, index, to),
                (2, 2) => spread::<2, 2>(pairs, index, to),
                (2, _) => spread::<2, 1>(pairs, index, to),
                _ => spread::<1, 1>(pairs, index, to),
            }
        }
    }

    fn lay_out_entries(&mut self, rows: &[usize], part: Stretch) {
        let (n_places, pixels) = (self.weights.n_places, self.pixels());
        let room = &mut self.room.entries;
        room.resize(SIDE_BY_SIDE * PART, 0);
        let patch = &self.patch[part.from..];
        let n = part.to - part.from;
        if pixels == 2 {
            entries::<2>(patch, n_places, rows, n, room);
        } else {
            entries::<1>(patch, n_places, rows, n, room);
        }
    }

    /// Adds the laid out steps to the sums of `n` registers' rows.
    fn steps(&self, n: usize, n_steps: usize, sums: &mut [Lanes<i16>]) {
        let table = self.weights.table();
        let steps = Steps {
            weights: halves(&self.room.weights),
            entries: &self.room.entries,
            table: match &table.products {
                Some(products) if self.is_512 => products,
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
                (true, 2, 4) => {
                    with_operands!(n, [1 2 3 4 5 6], steps_512::<4, RULE, true>(steps, sums));
                }
                (true, 2, 2) => {
                    with_operands!(n, [1 2 3 4 5 6], steps_512::<2, RULE, true>(steps, sums));
                }
                (true, 1, 4) => {
                    with_operands!(n, [1 2 3 4 5 6 7 8 9 10 11 12], steps_512::<2, RULE, false>(steps, sums));
                }
                (true, 1, 2) => {
                    with_operands!(n, [1 2 3 4 5 6 7 8 9 10 11 12], steps_512::<1, RULE, false>(steps, sums));
                }
                (false, 1, 2) => {
                    with_operands!(n, [1 2 3 4 5 6], steps_256::<2, RULE, false>(steps, sums));
                }
                (false, 1, 1) => {
                    with_operands!(n, [1 2 3 4 5 6], steps_256::<1, RULE, false>(steps, sums));
                }
                shape => unreachable!("{shape:?}"),
            }
        }
    }
}

/// A row's accumulators as sums.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn enter(groups: &[Lanes<i32>], slots: &[usize], scale: u32, sums: &mut [Lanes<i16>]) {
    for (sums, &slot) in sums.iter_mut().zip(slots) {
        for (sum, &acc) in sums.iter_mut().zip(&groups[slot]) {
            *sum = acc.wrapping_shl(scale) as i16;
        }
    }
}

/// The opposite of [`enter`].
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn leave(sums: &[Lanes<i16>], slots: &[usize], scale: u32, groups: &mut [Lanes<i32>]) {
    for (sums, &slot) in sums.iter().zip(slots) {
        for (&sum, acc) in sums.iter().zip(&mut groups[slot]) {
            *acc = i32::from(sum.wrapping_shr(scale));
        }
    }
}

/// A group's pairs as every step's slot `index` of `SLOTS`: weights, or for two pixels their places
/// among the first's products and among the second's.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn spread<const SLOTS: usize, const PIXELS: usize>(
    pairs: &[i8],
    index: usize,
    to: &mut [Lanes<i16>],
) {
    let steps = to.chunks_exact_mut(2 * PIXELS * SLOTS);
    for (pair, to) in pairs.as_chunks::<{ 2 * LANES }>().0.iter().zip(steps) {
        let mut w = [[0; LANES]; 2];
        for lane in 0..LANES {
            let both = i16::from_le_bytes([pair[2 * lane] as u8, pair[2 * lane + 1] as u8]);
            w[0][lane] = if PIXELS == 2 {
                both & 15
            } else {
                both << 8 >> 8
            };
            w[1][lane] = if PIXELS == 2 {
                both >> 8 & 15
            } else {
                both >> 8
            };
        }
        for step in 0..2 {
            let to = &mut to[step * PIXELS * SLOTS..][..PIXELS * SLOTS];
            to[index] = w[step];
            if PIXELS == 2 {
                for lane in 0..LANES {
                    to[SLOTS + index][lane] = w[step][lane] | 16;
                }
            }
        }
    }
}

/// Where the table's entries of some rows' `n` next activations begin.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn entries<const PIXELS: usize>(
    patch: &[u8],
    n_places: usize,
    rows: &[usize],
    n: usize,
    to: &mut [u16],
) {
    for (rows, to) in rows.chunks(PIXELS).zip(to.chunks_exact_mut(PART)) {
        let first = &patch[rows[0] * n_places..][..n];
        let second = &patch[rows[rows.len() - 1] * n_places..][..n];
        for ((to, &first), &second) in to.iter_mut().zip(first).zip(second) {
            let byte = if PIXELS == 2 {
                first << 4 | second
            } else {
                first
            };
            *to = u16::from(byte) * STRIDE;
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
            assert!(
                steps.n <= PART && steps.entries.len() >= N * PART,
                "laid out"
            );
            assert!(steps.weights.len() >= steps.n * W * $n_groups, "laid out");
            let from: *mut $register = sums[..N * W * $n_groups].as_mut_ptr().cast();
            let mut sum = [[$zero(); W]; N];
            for index in 0..N * W {
                // SAFETY: `sums` is as long as `N * W` registers.
                sum[index / W][index % W] = unsafe { $load(from.add(index).cast()) };
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
            for index in 0..N * W {
                // SAFETY: as above.
                unsafe { $store(from.add(index).cast(), sum[index / W][index % W]) };
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
