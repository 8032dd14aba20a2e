//! The kernels for x86-64. The only unsafe code of the workspace.
//!
//! Invariant: the public function checks lengths and the processor; inside, a function that needs
//! instructions says so (`target_feature`), and every pointer comes from a slice whose length the
//! loop's bounds respect.

use crate::{
    Level,
    pack::{Bounds, LANES, Lanes, Stretch, Weights},
    portable::{self, Cell, SHORT, columns},
};
use arith::{ChannelOverflow, Overflow};
#[allow(
    clippy::wildcard_imports,
    reason = "some forty intrinsics, all with one prefix"
)]
use std::arch::x86_64::*;

/// Pixels side by side: with two groups they fill AVX2's 16 registers.
const ROWS: usize = 6;
/// The same for AVX-512's 32 registers.
const ROWS_512: usize = 12;

pub(crate) fn accumulate(
    level: Level,
    weights: &Weights,
    patch: &[u8],
    accumulators: &mut [i32],
    records: &mut [ChannelOverflow],
) {
    assert!(
        Level::available().contains(&level),
        "{level:?} is not on this processor"
    );
    let rows = if level == Level::Avx2 { ROWS } else { ROWS_512 };
    for group in (0..weights.n_groups).step_by(2) {
        let both = group + 1 < weights.n_groups;
        let tiles = accumulators.chunks_mut(rows * weights.n_lanes());
        for (out, patch) in tiles.zip(patch.chunks(rows * weights.n_places)) {
            let n_rows = patch.len() / weights.n_places;
            let tile = Tile {
                weights,
                group,
                patch,
            };
            // SAFETY: the level's instructions are there, as asserted above.
            unsafe {
                if level == Level::Avx2 && weights.is_narrow() {
                    tile.avx2(n_rows, both, out, records);
                } else if level == Level::Avx2 {
                    tile.avx2_wide(n_rows, both, out, records);
                } else {
                    tile.avx512(n_rows, both, out, records);
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
        level != Level::Portable && Level::available().contains(&level),
        "{level:?}"
    );
    // SAFETY: every level but the portable one has AVX2, and this processor has the level.
    unsafe { avx2_relative(activations, pairs, offset) }
}

#[target_feature(enable = "avx2")]
fn avx2_relative(
    activations: &[u8],
    pairs: &[i8],
    offset: i16,
) -> (Lanes<i32>, Lanes<i32>, Lanes<i32>) {
    let zero = _mm256_setzero_si256();
    let (mut sum, mut low, mut high) = ([zero; 2], [zero; 2], [zero; 2]);
    for (a, w) in activations.chunks(SHORT).zip(pairs.chunks(SHORT * LANES)) {
        let (mut short, mut least, mut most) = (zero, zero, zero);
        for (a, w) in a.chunks_exact(2).zip(w.chunks_exact(2 * LANES)) {
            // SAFETY: the chunk is 32 bytes long.
            let w = unsafe { _mm256_loadu_si256(w.as_ptr().cast()) };
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
            for (&a, w) in a.iter().zip([even, _mm256_srai_epi16::<8>(w)]) {
                let a = _mm256_set1_epi16(i16::from(a) - offset);
                short = _mm256_add_epi16(short, _mm256_mullo_epi16(a, w));
                least = _mm256_min_epi16(least, short);
                most = _mm256_max_epi16(most, short);
            }
        }
        let [short, least, most] = [widen(short), widen(least), widen(most)];
        for half in 0..2 {
            low[half] = _mm256_min_epi32(low[half], _mm256_add_epi32(sum[half], least[half]));
            high[half] = _mm256_max_epi32(high[half], _mm256_add_epi32(sum[half], most[half]));
            sum[half] = _mm256_add_epi32(sum[half], short[half]);
        }
    }
    (store_halves(sum), store_halves(low), store_halves(high))
}

/// 16 lanes of 16 bits as twice 8 of 32.
#[target_feature(enable = "avx2")]
fn widen(lanes: __m256i) -> [__m256i; 2] {
    [
        _mm256_cvtepi16_epi32(_mm256_castsi256_si128(lanes)),
        _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(lanes)),
    ]
}

#[target_feature(enable = "avx2")]
fn store_halves(halves: [__m256i; 2]) -> Lanes<i32> {
    let mut lanes = [0; LANES];
    for (lanes, half) in lanes.chunks_exact_mut(LANES / 2).zip(halves) {
        // SAFETY: 8 lanes of 32 bits are 32 bytes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), half) };
    }
    lanes
}

/// Some pixels of one or two groups.
#[derive(Clone, Copy)]
struct Tile<'a> {
    weights: &'a Weights,
    group: usize,
    /// Of all its pixels.
    patch: &'a [u8],
}

/// Calls a method with the number of rows and groups as constants.
macro_rules! with_rows {
    ($n_rows:expr, $both:expr, $self:ident.$method:ident, $arguments:tt, [$($rows:literal)*]) => {
        match ($n_rows, $both) {
            $(($rows, true) => $self.$method::<$rows, 2> $arguments,
            ($rows, false) => $self.$method::<$rows, 1> $arguments,)*
            (rows, _) => unreachable!("{rows} rows"),
        }
    };
}

impl Tile<'_> {
    fn pixel(&self, row: usize) -> &[u8] {
        &self.patch[row * self.weights.n_places..][..self.weights.n_places]
    }

    fn block_bounds(&self, lane_group: usize, block: usize) -> &Bounds {
        &self.weights.block_bounds[(self.group + lane_group) * self.weights.blocks.len() + block]
    }

    /// Positions of a block.
    fn places(&self, block: Stretch) -> Stretch {
        let runs = &self.weights.runs;
        Stretch {
            from: runs[block.from].from,
            to: runs[block.to - 1].to,
        }
    }

    #[target_feature(enable = "avx2")]
    fn avx2(&self, n_rows: usize, both: bool, out: &mut [i32], records: &mut [ChannelOverflow]) {
        with_rows!(n_rows, both, self.avx2_rows, (out, records), [1 2 3 4 5 6]);
    }

    #[target_feature(enable = "avx2")]
    fn avx2_rows<const ROWS: usize, const GROUPS: usize>(
        &self,
        out: &mut [i32],
        records: &mut [ChannelOverflow],
    ) {
        let weights = self.weights;
        let mut acc = [[_mm256_setzero_si256(); GROUPS]; ROWS];
        for row in &mut acc {
            for (group, acc) in row.iter_mut().enumerate() {
                *acc = load_lanes(&weights.bias[self.group + group].map(|value| value as i16));
            }
        }
        let mut seen: Option<[[Lanes<u32>; GROUPS]; ROWS]> = None;
        for (index, &block) in weights.blocks.iter().enumerate() {
            let mut bad = _mm256_setzero_si256();
            for group in 0..GROUPS {
                let bounds = self.block_bounds(group, index);
                for row in &acc {
                    bad = _mm256_or_si256(bad, outside(row[group], bounds));
                }
            }
            if _mm256_testz_si256(bad, bad) == 1 {
                self.avx2_dot(self.places(block), &mut acc);
                for group in 0..GROUPS {
                    let correction = load_lanes(&self.block_bounds(group, index).correction);
                    for row in &mut acc {
                        row[group] = _mm256_sub_epi16(row[group], correction);
                    }
                }
                continue;
            }
            let seen = seen.get_or_insert([[[0; LANES]; GROUPS]; ROWS]);
            for row in 0..ROWS {
                for group in 0..GROUPS {
                    let one = Tile {
                        group: self.group + group,
                        patch: self.pixel(row),
                        ..*self
                    };
                    let cell = &mut seen[row][group];
                    acc[row][group] = one.avx2_block(index, acc[row][group], cell, records);
                }
            }
        }
        for (row, out) in out.chunks_exact_mut(weights.n_lanes()).enumerate() {
            for group in 0..GROUPS {
                let lanes = store_lanes(acc[row][group]).map(i32::from);
                out[(self.group + group) * LANES..][..LANES].copy_from_slice(&lanes);
                if let Some(seen) = &seen {
                    let n_overflowed = seen[row][group];
                    let records = columns(weights, self.group + group, records);
                    Cell {
                        acc: lanes,
                        n_overflowed,
                        records,
                    }
                    .close();
                }
            }
        }
    }

    /// A proved stretch, in 16-bit arithmetic modulo 2^16; the offset's part is still in it.
    ///
    /// Quads, because four activations are spread over a register by the load itself, two would need
    /// a shuffle. A column then has two sums, which meet at the end.
    #[target_feature(enable = "avx2")]
    fn avx2_dot<const ROWS: usize, const GROUPS: usize>(
        &self,
        places: Stretch,
        acc: &mut [[__m256i; GROUPS]; ROWS],
    ) {
        let low_half = _mm256_set1_epi8(15);
        for group in 0..GROUPS {
            let w = self.quads(group, places);
            let mut sum = if self.weights.splits {
                let low = self.avx2_quads::<ROWS>(places, w, |a| _mm256_and_si256(a, low_half));
                let mut sum = self.avx2_quads::<ROWS>(places, w, |a| {
                    _mm256_and_si256(_mm256_srli_epi16::<4>(a), low_half)
                });
                for (sum, low) in sum.iter_mut().flatten().zip(low.iter().flatten()) {
                    *sum = _mm256_add_epi16(_mm256_slli_epi16::<4>(*sum), *low);
                }
                sum
            } else {
                self.avx2_quads::<ROWS>(places, w, |a| a)
            };
            for (row, sum) in acc.iter_mut().zip(&mut sum) {
                // Columns 0..4, 8..12 | 4..8, 12..16, then in order.
                let both = _mm256_hadd_epi16(sum[0], sum[1]);
                let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                row[group] = _mm256_add_epi16(row[group], both);
            }
        }
    }

    /// A group's quads of a stretch.
    fn quads(&self, lane_group: usize, places: Stretch) -> &[i8] {
        let quads = self.weights.group_quads(self.group + lane_group);
        &quads[places.from * LANES..places.to * LANES]
    }

    /// Sums of products of a group's quads: for each row columns 0 to 7 and 8 to 15, two sums each.
    /// `part` picks of every activation what is multiplied.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn avx2_quads<const ROWS: usize>(
        &self,
        places: Stretch,
        w: &[i8],
        part: impl Fn(__m256i) -> __m256i,
    ) -> [[__m256i; 2]; ROWS] {
        let mut a = [std::ptr::null::<i32>(); ROWS];
        for (row, pointer) in a.iter_mut().enumerate() {
            *pointer = self.pixel(row)[places.from..places.to].as_ptr().cast();
        }
        let mut sum = [[_mm256_setzero_si256(); 2]; ROWS];
        for (quad, w) in w.chunks_exact(4 * LANES).enumerate() {
            // SAFETY: the chunk is 64 bytes long; loads need no alignment.
            let (w0, w1) = unsafe {
                (
                    _mm256_loadu_si256(w.as_ptr().cast()),
                    _mm256_loadu_si256(w[2 * LANES..].as_ptr().cast()),
                )
            };
            for row in 0..ROWS {
                // SAFETY: there are as many quads of activations as of weights.
                let a = unsafe { a[row].add(quad).read_unaligned() };
                let a = part(_mm256_set1_epi32(a));
                sum[row][0] = _mm256_add_epi16(sum[row][0], _mm256_maddubs_epi16(a, w0));
                sum[row][1] = _mm256_add_epi16(sum[row][1], _mm256_maddubs_epi16(a, w1));
            }
        }
        sum
    }

    #[target_feature(enable = "avx2")]
    fn avx2_wide(
        &self,
        n_rows: usize,
        both: bool,
        out: &mut [i32],
        records: &mut [ChannelOverflow],
    ) {
        with_rows!(n_rows, both, self.avx2_wide_rows, (out, records), [1 2 3 4 5 6]);
    }

    /// Accumulators of more than 16 bits: proved blocks by SIMD, the others lane by lane.
    #[target_feature(enable = "avx2")]
    fn avx2_wide_rows<const ROWS: usize, const GROUPS: usize>(
        &self,
        out: &mut [i32],
        records: &mut [ChannelOverflow],
    ) {
        let weights = self.weights;
        for lane_group in 0..GROUPS {
            let group = self.group + lane_group;
            let mut acc = [weights.bias[group]; ROWS];
            let mut seen = [[0; LANES]; ROWS];
            for (index, &block) in weights.blocks.iter().enumerate() {
                let bounds = self.block_bounds(lane_group, index);
                if acc.iter().all(|acc| portable::holds(bounds, acc)) {
                    let places = self.places(block);
                    let sums = self.avx2_wide_dot::<ROWS>(places, self.quads(lane_group, places));
                    for (acc, sum) in acc.iter_mut().zip(sums) {
                        for ((acc, sum), correction) in acc
                            .iter_mut()
                            .zip(store_halves(sum))
                            .zip(bounds.correction_32)
                        {
                            *acc = acc.wrapping_add(sum).wrapping_sub(correction);
                        }
                    }
                    continue;
                }
                for row in 0..ROWS {
                    let mut cell = Cell {
                        acc: acc[row],
                        n_overflowed: seen[row],
                        records: columns(weights, group, records),
                    };
                    portable::walk_block(weights, group, self.pixel(row), block, &mut cell);
                    (acc[row], seen[row]) = (cell.acc, cell.n_overflowed);
                }
            }
            for (row, out) in out.chunks_exact_mut(weights.n_lanes()).enumerate() {
                out[group * LANES..][..LANES].copy_from_slice(&acc[row]);
                Cell {
                    acc: acc[row],
                    n_overflowed: seen[row],
                    records: columns(weights, group, records),
                }
                .close();
            }
        }
    }

    /// A proved stretch of a group in 32-bit arithmetic: columns 0 to 7 and 8 to 15 of every row.
    #[target_feature(enable = "avx2")]
    fn avx2_wide_dot<const ROWS: usize>(&self, places: Stretch, w: &[i8]) -> [[__m256i; 2]; ROWS] {
        let mut a = [std::ptr::null::<i32>(); ROWS];
        for (row, pointer) in a.iter_mut().enumerate() {
            *pointer = self.pixel(row)[places.from..places.to].as_ptr().cast();
        }
        let even = _mm256_set1_epi16(255);
        let mut sum = [[_mm256_setzero_si256(); 2]; ROWS];
        for (quad, w) in w.chunks_exact(4 * LANES).enumerate() {
            // SAFETY: the chunk is 64 bytes long; loads need no alignment.
            let w = unsafe {
                [
                    _mm256_loadu_si256(w.as_ptr().cast()),
                    _mm256_loadu_si256(w[2 * LANES..].as_ptr().cast()),
                ]
            };
            // Steps 0 and 2 of a quad, then 1 and 3, as 16 bits each.
            let w_even = w.map(|w| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)));
            let w_odd = w.map(|w| _mm256_srai_epi16::<8>(w));
            for row in 0..ROWS {
                // SAFETY: there are as many quads of activations as of weights.
                let a = _mm256_set1_epi32(unsafe { a[row].add(quad).read_unaligned() });
                let a_even = _mm256_and_si256(a, even);
                let a_odd = _mm256_srli_epi16::<8>(a);
                for half in 0..2 {
                    let products = _mm256_add_epi32(
                        _mm256_madd_epi16(a_even, w_even[half]),
                        _mm256_madd_epi16(a_odd, w_odd[half]),
                    );
                    sum[row][half] = _mm256_add_epi32(sum[row][half], products);
                }
            }
        }
        sum
    }

    /// A block of one pixel and group, run by run.
    #[target_feature(enable = "avx2")]
    fn avx2_block(
        &self,
        block: usize,
        acc: __m256i,
        n_overflowed: &mut Lanes<u32>,
        records: &mut [ChannelOverflow],
    ) -> __m256i {
        let weights = self.weights;
        let mut acc = acc;
        let block = weights.blocks[block];
        for index in block.from..block.to {
            let bounds = &weights.run_bounds[self.group * weights.runs.len() + index];
            let bad = outside(acc, bounds);
            let run = weights.runs[index];
            if _mm256_testz_si256(bad, bad) == 1 {
                let mut one = [[acc]];
                self.avx2_dot(run, &mut one);
                acc = _mm256_sub_epi16(one[0][0], load_lanes(&bounds.correction));
            } else {
                let (next, n_equal, n_adds) =
                    match (weights.accumulator.overflow, weights.accumulator.width_bits) {
                        (Overflow::Saturate, 16) => self.avx2_walk::<SATURATE_16>(run, acc),
                        (Overflow::Saturate, _) => self.avx2_walk::<SATURATE>(run, acc),
                        (Overflow::Wrap, _) => self.avx2_walk::<WRAP>(run, acc),
                    };
                let all = _mm256_cmpeq_epi16(n_equal, _mm256_set1_epi16(n_adds));
                if _mm256_movemask_epi8(all) != -1 {
                    let n_equal = store_lanes(n_equal);
                    self.count(
                        run,
                        acc,
                        &n_equal.map(|n| n_adds - n),
                        n_overflowed,
                        records,
                    );
                }
                acc = next;
            }
        }
        acc
    }

    /// Takes note of a run's events.
    #[target_feature(enable = "avx2")]
    fn count(
        &self,
        run: Stretch,
        before: __m256i,
        events: &Lanes<i16>,
        n_overflowed: &mut Lanes<u32>,
        records: &mut [ChannelOverflow],
    ) {
        let before = store_lanes(before).map(i32::from);
        let records = columns(self.weights, self.group, records);
        for lane in 0..records.len() {
            n_overflowed[lane] += events[lane] as u32;
            let may_be_first = records[lane]
                .first_k
                .is_none_or(|k| k > self.weights.step_at(run.from));
            if events[lane] > 0 && may_be_first {
                let mut cell = Cell {
                    acc: before,
                    n_overflowed: [0; LANES],
                    records,
                };
                portable::walk_lane(
                    self.weights,
                    self.group,
                    self.pixel(0),
                    run,
                    lane,
                    &mut cell,
                );
            }
        }
    }

    /// A run step by step: the accumulators, in how many adds a lane fitted, and all adds.
    #[target_feature(enable = "avx2")]
    fn avx2_walk<const RULE: u8>(&self, run: Stretch, acc: __m256i) -> (__m256i, __m256i, i16) {
        let weights = self.weights;
        let adder = Adder::<RULE>::new(weights);
        let offset = weights.offset() as i16;
        let mut acc = acc;
        let mut n_equal = _mm256_setzero_si256();
        let mut n_adds = (run.to - run.from) as i16;
        for from in (run.from..run.to).step_by(weights.chunk_places) {
            // Without chunks a run is a part of the one chunk.
            let to = (from + weights.chunk_places).min(run.to);
            let is_first = from < weights.chunk_places;
            let mut sum = if is_first {
                acc
            } else {
                _mm256_setzero_si256()
            };
            let pairs = &weights.group_pairs(self.group)[from * LANES..to * LANES];
            let pixel = &self.pixel(0)[from..to];
            for (a, w) in pixel.chunks_exact(2).zip(pairs.chunks_exact(2 * LANES)) {
                // SAFETY: the chunk is 32 bytes long.
                let w = unsafe { _mm256_loadu_si256(w.as_ptr().cast()) };
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w));
                let odd = _mm256_srai_epi16::<8>(w);
                let a = [a[0], a[1]].map(|a| _mm256_set1_epi16(i16::from(a) - offset));
                sum = adder.add(sum, _mm256_mullo_epi16(a[0], even), &mut n_equal);
                sum = adder.add(sum, _mm256_mullo_epi16(a[1], odd), &mut n_equal);
            }
            acc = if is_first {
                sum
            } else {
                n_adds += 1;
                adder.add(acc, sum, &mut n_equal)
            };
        }
        (acc, n_equal, n_adds)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
    fn avx512(&self, n_rows: usize, both: bool, out: &mut [i32], records: &mut [ChannelOverflow]) {
        with_rows!(n_rows, both, self.avx512_rows, (out, records), [1 2 3 4 5 6 7 8 9 10 11 12]);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
    fn avx512_rows<const ROWS: usize, const GROUPS: usize>(
        &self,
        out: &mut [i32],
        records: &mut [ChannelOverflow],
    ) {
        let weights = self.weights;
        let mut acc = [[_mm512_setzero_si512(); GROUPS]; ROWS];
        for row in &mut acc {
            for (group, acc) in row.iter_mut().enumerate() {
                *acc = load_lanes_32(&weights.bias[self.group + group]);
            }
        }
        let mut seen: Option<[[Lanes<u32>; GROUPS]; ROWS]> = None;
        for (index, &block) in weights.blocks.iter().enumerate() {
            let mut bad = 0;
            for group in 0..GROUPS {
                let bounds = self.block_bounds(group, index);
                let low = load_lanes_32(&bounds.low_32);
                let high = load_lanes_32(&bounds.high_32);
                for row in &acc {
                    bad |= _mm512_cmplt_epi32_mask(row[group], low);
                    bad |= _mm512_cmpgt_epi32_mask(row[group], high);
                }
            }
            if bad == 0 {
                self.avx512_dot(self.places(block), &mut acc);
                for group in 0..GROUPS {
                    let correction = load_lanes_32(&self.block_bounds(group, index).correction_32);
                    for row in &mut acc {
                        row[group] = _mm512_sub_epi32(row[group], correction);
                    }
                }
                continue;
            }
            let seen = seen.get_or_insert([[[0; LANES]; GROUPS]; ROWS]);
            for row in 0..ROWS {
                for group in 0..GROUPS {
                    let one = Tile {
                        group: self.group + group,
                        patch: self.pixel(row),
                        ..*self
                    };
                    let cell = &mut seen[row][group];
                    acc[row][group] = one.avx512_block(index, acc[row][group], cell, records);
                }
            }
        }
        for (row, out) in out.chunks_exact_mut(weights.n_lanes()).enumerate() {
            for group in 0..GROUPS {
                let lanes = store_lanes_32(acc[row][group]);
                out[(self.group + group) * LANES..][..LANES].copy_from_slice(&lanes);
                if let Some(seen) = &seen {
                    let n_overflowed = seen[row][group];
                    let records = columns(weights, self.group + group, records);
                    Cell {
                        acc: lanes,
                        n_overflowed,
                        records,
                    }
                    .close();
                }
            }
        }
    }

    /// A block whose proof failed: accumulators of 16 bits go the way of AVX2, wider ones lane by
    /// lane.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
    fn avx512_block(
        &self,
        block: usize,
        acc: __m512i,
        n_overflowed: &mut Lanes<u32>,
        records: &mut [ChannelOverflow],
    ) -> __m512i {
        if self.weights.is_narrow() {
            let acc = self.avx2_block(block, _mm512_cvtepi32_epi16(acc), n_overflowed, records);
            return _mm512_cvtepi16_epi32(acc);
        }
        let mut cell = Cell {
            acc: store_lanes_32(acc),
            n_overflowed: *n_overflowed,
            records: columns(self.weights, self.group, records),
        };
        let block = self.weights.blocks[block];
        portable::walk_block(self.weights, self.group, self.pixel(0), block, &mut cell);
        *n_overflowed = cell.n_overflowed;
        load_lanes_32(&cell.acc)
    }

    /// A proved stretch; the offset's part is still in it.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2")]
    fn avx512_dot<const ROWS: usize, const GROUPS: usize>(
        &self,
        places: Stretch,
        acc: &mut [[__m512i; GROUPS]; ROWS],
    ) {
        let mut w = [std::ptr::null::<__m512i>(); GROUPS];
        for (group, pointer) in w.iter_mut().enumerate() {
            let quads = self.weights.group_quads(self.group + group);
            *pointer = quads[places.from * LANES..places.to * LANES]
                .as_ptr()
                .cast();
        }
        let mut a = [std::ptr::null::<i32>(); ROWS];
        for (row, pointer) in a.iter_mut().enumerate() {
            *pointer = self.pixel(row)[places.from..places.to].as_ptr().cast();
        }
        let mut sum = *acc;
        for quad in 0..(places.to - places.from) / 4 {
            // SAFETY: `quad` counts the quads of the slices that the pointers come from: 64 bytes
            // of weights and 4 of activations each. Loads need no alignment.
            let w = w.map(|w| unsafe { _mm512_loadu_si512(w.add(quad)) });
            for row in 0..ROWS {
                // SAFETY: as above.
                let a = _mm512_set1_epi32(unsafe { a[row].add(quad).read_unaligned() });
                for group in 0..GROUPS {
                    sum[row][group] = _mm512_dpbusd_epi32(sum[row][group], a, w[group]);
                }
            }
        }
        *acc = sum;
    }
}

/// Clips at 16 bits.
const SATURATE_16: u8 = 0;
/// Clips at fewer bits.
const SATURATE: u8 = 1;
/// Drops high bits.
const WRAP: u8 = 2;

/// The adder of a narrow accumulator, in 16 lanes.
struct Adder<const RULE: u8> {
    low: __m256i,
    high: __m256i,
    unused_bits: __m128i,
}

impl<const RULE: u8> Adder<RULE> {
    #[target_feature(enable = "avx2")]
    fn new(weights: &Weights) -> Self {
        let format = weights.accumulator;
        Self {
            low: _mm256_set1_epi16(format.min() as i16),
            high: _mm256_set1_epi16(format.max() as i16),
            unused_bits: _mm_cvtsi32_si128(16 - i32::from(format.width_bits)),
        }
    }

    /// One add; lanes in which the exact sum fitted count one more in `n_equal`.
    ///
    /// The sum clipped at 16 bits is exact or at a limit of 16 bits. It equals the accumulator's
    /// own result exactly when the sum fitted: a narrower accumulator never holds those limits, and
    /// at 16 bits the wrapped sum differs from the clipped one.
    #[target_feature(enable = "avx2")]
    fn add(&self, acc: __m256i, product: __m256i, n_equal: &mut __m256i) -> __m256i {
        let clipped = _mm256_adds_epi16(acc, product);
        let wrapped = _mm256_add_epi16(acc, product);
        let (result, same) = match RULE {
            SATURATE_16 => (clipped, _mm256_cmpeq_epi16(clipped, wrapped)),
            SATURATE => {
                let limited = _mm256_max_epi16(_mm256_min_epi16(clipped, self.high), self.low);
                (limited, _mm256_cmpeq_epi16(limited, clipped))
            }
            _ => {
                let high = _mm256_sll_epi16(wrapped, self.unused_bits);
                let result = _mm256_sra_epi16(high, self.unused_bits);
                (result, _mm256_cmpeq_epi16(result, clipped))
            }
        };
        *n_equal = _mm256_sub_epi16(*n_equal, same);
        result
    }
}

/// Lanes in which a stretch's proof fails.
#[target_feature(enable = "avx2")]
fn outside(acc: __m256i, bounds: &Bounds) -> __m256i {
    let low = _mm256_cmpgt_epi16(load_lanes(&bounds.low), acc);
    let high = _mm256_cmpgt_epi16(acc, load_lanes(&bounds.high));
    _mm256_or_si256(low, high)
}

#[target_feature(enable = "avx2")]
fn load_lanes(lanes: &Lanes<i16>) -> __m256i {
    // SAFETY: 16 lanes of 16 bits are 32 bytes.
    unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store_lanes(vector: __m256i) -> Lanes<i16> {
    let mut lanes = [0; LANES];
    // SAFETY: 16 lanes of 16 bits are 32 bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) };
    lanes
}

#[target_feature(enable = "avx512f")]
fn load_lanes_32(lanes: &Lanes<i32>) -> __m512i {
    // SAFETY: 16 lanes of 32 bits are 64 bytes.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
fn store_lanes_32(vector: __m512i) -> Lanes<i32> {
    let mut lanes = [0; LANES];
    // SAFETY: 16 lanes of 32 bits are 64 bytes.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), vector) };
    lanes
}
