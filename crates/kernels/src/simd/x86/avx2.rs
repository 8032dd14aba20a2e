//! AVX2: 6 pixels × 16 columns a tile.
//!
//! Invariant: accumulators of at most 16 bits stand in 16 lanes of a register, wider ones in two.

use super::Hope;
use crate::{
    pack::{Between, Bounds, LANES, Lanes, Stretch, Weights},
    portable::{self, Cell, SHORT, close, columns},
    simd::tile::{SATURATE, SATURATE_ANY, Tile, WRAP, WRAP_ANY},
};
use arith::{ChannelOverflow, Overflow};
#[allow(
    clippy::wildcard_imports,
    reason = "some forty intrinsics, all with one prefix"
)]
use std::{arch::x86_64::*, hint::black_box};

/// Calls a method with a number as a constant.
macro_rules! with_rows {
    ($n_rows:expr, $self:ident.$method:ident, $arguments:tt, [$($rows:literal)*]) => {
        match $n_rows {
            $($rows => $self.$method::<$rows> $arguments,)*
            rows => unreachable!("{rows} rows"),
        }
    };
}

#[target_feature(enable = "avx2")]
pub(super) fn relative(
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

/// Whether a stretch's proof holds in every row and lane.
#[target_feature(enable = "avx2")]
#[inline]
fn is_proved_wide(acc: &[[__m256i; 2]], bounds: &Bounds) -> bool {
    let lowest = load_halves(&bounds.low_32);
    let highest = load_halves(&bounds.high_32);
    let mut outside = _mm256_setzero_si256();
    for acc in acc {
        for half in 0..2 {
            let below = _mm256_cmpgt_epi32(lowest[half], acc[half]);
            let above = _mm256_cmpgt_epi32(acc[half], highest[half]);
            outside = _mm256_or_si256(outside, _mm256_or_si256(below, above));
        }
    }
    _mm256_testz_si256(outside, outside) == 1
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_halves(lanes: &Lanes<i32>) -> [__m256i; 2] {
    [0, LANES / 2].map(|first| {
        // SAFETY: 8 lanes of 32 bits are 32 bytes.
        unsafe { _mm256_loadu_si256(lanes[first..first + LANES / 2].as_ptr().cast()) }
    })
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_halves(halves: [__m256i; 2]) -> Lanes<i32> {
    let mut lanes = [0; LANES];
    for (lanes, half) in lanes.chunks_exact_mut(LANES / 2).zip(halves) {
        // SAFETY: 8 lanes of 32 bits are 32 bytes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), half) };
    }
    lanes
}

impl Tile<'_> {
    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(&self, n_rows: usize, out: &mut [i32], records: &mut [ChannelOverflow]) {
        with_rows!(n_rows, self.avx2_rows, (out, records), [1 2 3 4 5 6]);
    }

    #[target_feature(enable = "avx2")]
    fn avx2_rows<const ROWS: usize>(&self, out: &mut [i32], records: &mut [ChannelOverflow]) {
        let weights = self.weights;
        let mut acc = [load_lanes(&weights.bias_16[self.group]); ROWS];
        let mut seen: Option<[Lanes<u32>; ROWS]> = None;
        let mut hopes = Hopes {
            run: Hope(4),
            quad: self.can_glance(),
        };
        for (index, &block) in weights.blocks.iter().enumerate() {
            let bounds = self.block_bounds(0, index);
            if failing(&acc, bounds) == 0 {
                self.avx2_dot(self.places(block), bounds, &mut acc);
            } else {
                let seen = seen.get_or_insert([[0; LANES]; ROWS]);
                self.avx2_block(block, &mut acc, seen, records, &mut hopes);
            }
        }
        self.avx2_put(&acc, out);
        if let Some(seen) = &seen {
            close(columns(weights, self.group, records), seen);
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2_advance(&self, n_rows: usize, block: usize, out: &mut [i32]) -> usize {
        with_rows!(n_rows, self.avx2_advance_rows, (block, out), [1 2 3 4 5 6])
    }

    /// Adds the blocks from one on whose values are those of a dot product, to what is in `out`, or
    /// from the first block on to the bias; returns the first block that is not. `out` changes only if
    /// there was any.
    #[target_feature(enable = "avx2")]
    fn avx2_advance_rows<const ROWS: usize>(&self, block: usize, out: &mut [i32]) -> usize {
        let weights = self.weights;
        let first = self.group * LANES;
        let mut acc = [load_lanes(&weights.bias_16[self.group]); ROWS];
        if block > 0 {
            for (acc, out) in acc.iter_mut().zip(out.chunks_exact(weights.n_lanes())) {
                let lanes: Lanes<i32> = out[first..][..LANES].try_into().expect("a group");
                *acc = load_lanes(&lanes.map(|lane| lane as i16));
            }
        }
        let mut reached = block;
        while let Some(&next) = weights.blocks.get(reached) {
            let bounds = self.block_bounds(0, reached);
            if !weights.is_orderless() && failing(&acc, bounds) != 0 {
                break;
            }
            self.avx2_dot(self.places(next), bounds, &mut acc);
            reached += 1;
        }
        if reached > block {
            self.avx2_put(&acc, out);
        }
        reached
    }

    /// A tile's sums into the lanes of its pixels.
    #[target_feature(enable = "avx2")]
    fn avx2_put(&self, acc: &[__m256i], out: &mut [i32]) {
        for (acc, out) in acc.iter().zip(out.chunks_exact_mut(self.weights.n_lanes())) {
            out[self.group * LANES..][..LANES].copy_from_slice(&store_halves(widen(*acc)));
        }
    }

    /// Adds a proved stretch, in 16-bit arithmetic modulo 2^16.
    ///
    /// Quads, because four activations are spread over a register by the load itself, two would need
    /// a shuffle. A column then has two sums, which meet at the end.
    #[target_feature(enable = "avx2")]
    fn avx2_dot<const ROWS: usize>(
        &self,
        places: Stretch,
        bounds: &Bounds,
        acc: &mut [__m256i; ROWS],
    ) {
        let low_half = _mm256_set1_epi8(15);
        let w = self.quads(0, places);
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
        let correction = load_lanes(&bounds.correction);
        for (acc, sum) in acc.iter_mut().zip(&mut sum) {
            // Columns 0..4, 8..12 | 4..8, 12..16, then in order.
            let both = _mm256_hadd_epi16(sum[0], sum[1]);
            let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
            *acc = _mm256_sub_epi16(_mm256_add_epi16(*acc, both), correction);
        }
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
        let mut add = |quad: usize, w: &[i8]| {
            // SAFETY: callers hand over 64 bytes; loads need no alignment.
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
        };
        // Two quads at a time, for less arithmetic of addresses.
        let pairs = w.chunks_exact(8 * LANES);
        let rest = pairs.remainder();
        let n_pairs = pairs.len();
        for (pair, w) in pairs.enumerate() {
            add(2 * pair, &w[..4 * LANES]);
            add(2 * pair + 1, &w[4 * LANES..]);
        }
        if !rest.is_empty() {
            add(2 * n_pairs, rest);
        }
        sum
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2_wide(
        &self,
        n_rows: usize,
        out: &mut [i32],
        records: &mut [ChannelOverflow],
    ) {
        with_rows!(n_rows, self.avx2_wide_rows, (out, records), [1 2 3 4 5 6]);
    }

    /// Accumulators of more than 16 bits: proved blocks by SIMD, the others lane by lane.
    #[target_feature(enable = "avx2")]
    fn avx2_wide_rows<const ROWS: usize>(&self, out: &mut [i32], records: &mut [ChannelOverflow]) {
        let (weights, group) = (self.weights, self.group);
        let mut acc = [load_halves(&weights.bias[group]); ROWS];
        let mut seen: Option<[Lanes<u32>; ROWS]> = None;
        for (index, &block) in weights.blocks.iter().enumerate() {
            let bounds = self.block_bounds(0, index);
            if is_proved_wide(&acc, bounds) {
                self.avx2_wide_dot::<ROWS>(self.places(block), bounds, &mut acc);
                continue;
            }
            let seen = seen.get_or_insert([[0; LANES]; ROWS]);
            for (row, (acc, seen)) in acc.iter_mut().zip(seen).enumerate() {
                let mut cell = Cell {
                    acc: store_halves(*acc),
                    n_overflowed: *seen,
                    records: columns(weights, group, records),
                };
                portable::walk_block(weights, group, self.pixel(row), block, &mut cell);
                *seen = cell.n_overflowed;
                *acc = load_halves(&cell.acc);
            }
        }
        for (acc, out) in acc.iter().zip(out.chunks_exact_mut(weights.n_lanes())) {
            out[group * LANES..][..LANES].copy_from_slice(&store_halves(*acc));
        }
        if let Some(seen) = &seen {
            close(columns(weights, group, records), seen);
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2_wide_advance(&self, n_rows: usize, block: usize, out: &mut [i32]) -> usize {
        with_rows!(n_rows, self.avx2_wide_advance_rows, (block, out), [1 2 3 4 5 6])
    }

    /// As [`Self::avx2_advance_rows`], for accumulators of more than 16 bits.
    #[target_feature(enable = "avx2")]
    fn avx2_wide_advance_rows<const ROWS: usize>(&self, block: usize, out: &mut [i32]) -> usize {
        let (weights, first) = (self.weights, self.group * LANES);
        let mut acc = [load_halves(&weights.bias[self.group]); ROWS];
        if block > 0 {
            for (acc, out) in acc.iter_mut().zip(out.chunks_exact(weights.n_lanes())) {
                let lanes: Lanes<i32> = out[first..][..LANES].try_into().expect("a group");
                *acc = load_halves(&lanes);
            }
        }
        let mut reached = block;
        while let Some(&next) = weights.blocks.get(reached) {
            let bounds = self.block_bounds(0, reached);
            if !weights.is_orderless() && !is_proved_wide(&acc, bounds) {
                break;
            }
            self.avx2_wide_dot::<ROWS>(self.places(next), bounds, &mut acc);
            reached += 1;
        }
        if reached > block {
            for (acc, out) in acc.iter().zip(out.chunks_exact_mut(weights.n_lanes())) {
                out[first..][..LANES].copy_from_slice(&store_halves(*acc));
            }
        }
        reached
    }

    /// Adds a proved stretch in 32-bit arithmetic: columns 0 to 7 and 8 to 15 of every row.
    #[target_feature(enable = "avx2")]
    fn avx2_wide_dot<const ROWS: usize>(
        &self,
        places: Stretch,
        bounds: &Bounds,
        acc: &mut [[__m256i; 2]; ROWS],
    ) {
        let w = self.quads(0, places);
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
        let correction = load_halves(&bounds.correction_32);
        for (acc, sum) in acc.iter_mut().zip(sum) {
            for half in 0..2 {
                let sum = _mm256_sub_epi32(sum[half], correction[half]);
                acc[half] = _mm256_add_epi32(acc[half], sum);
            }
        }
    }

    /// Whether [`Self::glance`] can be: unsigned activations, pairs that fit 16 bits, no chunks.
    fn can_glance(&self) -> bool {
        let weights = self.weights;
        weights.offset() == 0 && !weights.splits && weights.chunk_places == weights.n_places
    }

    /// A run of one row by its sums after every second step: if all of them stay farther from the
    /// accumulator's limits than a product can reach, nothing happened between them either.
    #[target_feature(enable = "avx2")]
    fn glance(&self, row: usize, run: Stretch, acc: __m256i) -> Option<__m256i> {
        let weights = self.weights;
        let margin = weights.product;
        let limit = |value: i32, inwards: i64| {
            let value = (i64::from(value) + inwards) as i16;
            _mm256_set1_epi16(value)
        };
        let lowest = limit(weights.accumulator.min(), margin);
        let highest = limit(weights.accumulator.max(), -margin);
        if margin >= weights.accumulator.max().into() {
            return None;
        }
        let pairs = &weights.group_pairs(self.group)[run.from * LANES..run.to * LANES];
        let pixel = &self.pixel(row)[run.from..run.to];
        let (mut sum, mut least, mut most) = (acc, acc, acc);
        // Opaque, or each becomes two shuffles of constants.
        let spreads = black_box([0, 1].map(|pair| spread(pair)));
        for (a, w) in pixel.chunks_exact(4).zip(pairs.chunks_exact(4 * LANES)) {
            let a = i32::from_le_bytes([a[0], a[1], a[2], a[3]]);
            let a = _mm256_set1_epi32(a);
            for (&spread, w) in spreads.iter().zip(w.chunks_exact(2 * LANES)) {
                // SAFETY: the chunk is 32 bytes long.
                let w = unsafe { _mm256_loadu_si256(w.as_ptr().cast()) };
                let pair = _mm256_maddubs_epi16(_mm256_shuffle_epi8(a, spread), w);
                sum = _mm256_adds_epi16(sum, pair);
                least = _mm256_min_epi16(least, sum);
                most = _mm256_max_epi16(most, sum);
            }
        }
        let outside = _mm256_or_si256(
            _mm256_cmpgt_epi16(lowest, least),
            _mm256_cmpgt_epi16(most, highest),
        );
        (_mm256_testz_si256(outside, outside) == 1).then_some(sum)
    }

    /// A block whose proof failed for some row, run by run.
    #[target_feature(enable = "avx2")]
    fn avx2_block<const ROWS: usize>(
        &self,
        block: Stretch,
        acc: &mut [__m256i; ROWS],
        seen: &mut [Lanes<u32>; ROWS],
        records: &mut [ChannelOverflow],
        hopes: &mut Hopes,
    ) {
        let weights = self.weights;
        for index in block.from..block.to {
            let bounds = &weights.run_bounds[self.group * weights.runs.len() + index];
            let run = weights.runs[index];
            let mut bad = failing(acc, bounds);
            let before = *acc;
            if bad != 0 && hopes.run.is_alive() {
                let n_before = bad.count_ones();
                let mut sums = [_mm256_setzero_si256(); ROWS];
                self.avx2_dot(run, bounds, &mut sums);
                let mut clipped = before;
                for ((acc, clipped), sum) in acc.iter_mut().zip(&mut clipped).zip(sums) {
                    *acc = _mm256_add_epi16(*acc, sum);
                    *clipped = _mm256_adds_epi16(*clipped, sum);
                }
                bad &= failing_between(&before, &clipped, bounds, self.run_between(0, index));
                hopes.run.note(2 * bad.count_ones() < n_before);
            } else if bad.count_ones() < ROWS as u32 {
                self.avx2_dot(run, bounds, acc);
            }
            while hopes.quad && bad != 0 {
                let row = bad.trailing_zeros() as usize;
                match self.glance(row, run, before[row]) {
                    Some(after) => {
                        acc[row] = after;
                        bad &= bad - 1;
                    }
                    // Where there are events, there are mostly more.
                    None => hopes.quad = false,
                }
            }
            if bad == 0 {
                continue;
            }
            let asking = asking(
                columns(weights, self.group, records),
                weights.step_at(run.from),
            );
            // Four rows at a time: one alone would wait for its own adds.
            while bad != 0 {
                let mut rows = [0; WALK];
                let n = WALK.min(bad.count_ones() as usize);
                for row in &mut rows[..n] {
                    *row = bad.trailing_zeros() as usize;
                    bad &= bad - 1;
                }
                let mut walk = Walk {
                    tile: *self,
                    run,
                    before: &before,
                    acc,
                    seen,
                    records,
                    asking,
                };
                walk.rows(&rows[..n]);
            }
        }
    }
}

/// What a tile's runs so far let expect of the next. Says nothing about results.
struct Hopes {
    /// A look at a run's beginning and end is worthwhile.
    run: Hope,
    /// One at its sums on the way is.
    quad: bool,
}

/// Rows that are walked side by side.
const WALK: usize = 3;

/// A run step by step, for the rows whose proof failed.
struct Walk<'a> {
    tile: Tile<'a>,
    run: Stretch,
    /// Accumulators of every row before the run, and after it.
    before: &'a [__m256i],
    acc: &'a mut [__m256i],
    seen: &'a mut [Lanes<u32>],
    records: &'a mut [ChannelOverflow],
    /// Columns whose earliest event may lie in the run.
    asking: u32,
}

/// Columns whose earliest event so far is not before a step, as bits.
fn asking(records: &[ChannelOverflow], step: u32) -> u32 {
    let later = |record: &ChannelOverflow| record.first_k.is_none_or(|k| k > step);
    let bits = records.iter().enumerate();
    bits.fold(0, |bits, (lane, record)| {
        bits | u32::from(later(record)) << lane
    })
}

/// What a walk tells of a row.
#[derive(Clone, Copy)]
struct Steps {
    acc: __m256i,
    /// Adds that fitted.
    n_fit: __m256i,
    /// Adds before the first that did not fit.
    n_before: __m256i,
    n_adds: i16,
}

impl Walk<'_> {
    #[target_feature(enable = "avx2")]
    fn rows(&mut self, rows: &[usize]) {
        match *rows {
            [a] => self.some([a]),
            [a, b] => self.some([a, b]),
            [a, b, c] => self.some([a, b, c]),
            [a, b, c, d] => self.some([a, b, c, d]),
            _ => unreachable!("1 to {WALK} rows"),
        }
    }

    #[target_feature(enable = "avx2")]
    fn some<const N: usize>(&mut self, rows: [usize; N]) {
        let mut asking = [0; N];
        for ((row, steps), asking) in rows
            .into_iter()
            .zip(self.steps::<N, false>(rows))
            .zip(&mut asking)
        {
            self.acc[row] = steps.acc;
            let n_adds = _mm256_set1_epi16(steps.n_adds);
            let n_events = _mm256_sub_epi16(n_adds, steps.n_fit);
            if _mm256_testz_si256(n_events, n_events) == 1 {
                continue;
            }
            for (lanes, n) in self.seen[row]
                .chunks_exact_mut(LANES / 2)
                .zip(widen(n_events))
            {
                let lanes: *mut __m256i = lanes.as_mut_ptr().cast();
                // SAFETY: 8 lanes of 32 bits are 32 bytes; loads and stores need no alignment.
                unsafe {
                    let sum = _mm256_add_epi32(_mm256_loadu_si256(lanes), n);
                    _mm256_storeu_si256(lanes, sum);
                }
            }
            *asking = self.asking_of(n_events);
        }
        if asking.iter().any(|&lanes| lanes != 0) {
            self.find_first(rows, asking);
        }
    }

    /// Lanes with events whose first can be the earliest of its column, as bits.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn asking_of(&self, n_events: __m256i) -> u32 {
        let none = _mm256_cmpeq_epi16(n_events, _mm256_setzero_si256());
        // One bit a lane.
        let none = _mm256_packs_epi16(none, _mm256_setzero_si256());
        let none = _mm256_movemask_epi8(none) as u32;
        !(none & 0xff | none >> 8 & 0xff00) & self.asking
    }

    /// Finds where lanes had their first event: all rows side by side, as one alone would wait for
    /// its own adds.
    #[target_feature(enable = "avx2")]
    #[cold]
    fn find_first<const N: usize>(&mut self, rows: [usize; N], asking: [u32; N]) {
        let (weights, group, run) = (self.tile.weights, self.tile.group, self.run);
        let of = |lanes: u32| (0..LANES).filter(move |lane| lanes >> lane & 1 == 1);
        if run.to <= weights.chunk_places {
            let steps = self.steps::<N, true>(rows);
            let records = columns(weights, group, self.records);
            for (steps, asking) in steps.iter().zip(asking) {
                let n_before = store_lanes(steps.n_before);
                for lane in of(asking) {
                    let k = weights.step_at(run.from + n_before[lane] as usize);
                    let first = &mut records[lane].first_k;
                    *first = Some(first.map_or(k, |first| first.min(k)));
                }
            }
            return;
        }
        for (row, asking) in rows.into_iter().zip(asking) {
            let mut cell = Cell {
                acc: store_lanes(self.before[row]).map(i32::from),
                n_overflowed: [0; LANES],
                records: columns(weights, group, self.records),
            };
            for lane in of(asking) {
                portable::walk_lane(weights, group, self.tile.pixel(row), run, lane, &mut cell);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    fn steps<const N: usize, const FIRST: bool>(&self, rows: [usize; N]) -> [Steps; N] {
        let weights = self.tile.weights;
        match (weights.accumulator.overflow, weights.is_roomy) {
            (Overflow::Saturate, true) => self.steps_by::<SATURATE, N, FIRST>(rows),
            (Overflow::Saturate, false) => self.steps_by::<SATURATE_ANY, N, FIRST>(rows),
            (Overflow::Wrap, true) => self.steps_by::<WRAP, N, FIRST>(rows),
            (Overflow::Wrap, false) => self.steps_by::<WRAP_ANY, N, FIRST>(rows),
        }
    }

    /// Chunks that are not the first are summed from 0 and then added; without chunks a run lies in
    /// the one chunk.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn steps_by<const RULE: u8, const N: usize, const FIRST: bool>(
        &self,
        rows: [usize; N],
    ) -> [Steps; N] {
        let weights = self.tile.weights;
        let adder = Adder::<RULE>::new(weights);
        let mut acc = rows.map(|row| adder.scale(self.before[row]));
        let mut count = Count::<N, FIRST>::new();
        for from in (self.run.from..self.run.to).step_by(weights.chunk_places) {
            let to = (from + weights.chunk_places).min(self.run.to);
            let chunk = Stretch { from, to };
            if from < weights.chunk_places {
                self.chunk(chunk, rows, &adder, &mut acc, &mut count);
                continue;
            }
            let mut sum = [_mm256_setzero_si256(); N];
            self.chunk(chunk, rows, &adder, &mut sum, &mut count);
            let sum = sum.map(|sum| adder.whole(sum));
            count.add(&adder, &mut acc, sum);
            count.n_adds += 1;
        }
        std::array::from_fn(|row| Steps {
            acc: adder.unscale(acc[row]),
            n_fit: count.n_fit[row],
            n_before: count.n_before[row],
            n_adds: count.n_adds,
        })
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn chunk<const RULE: u8, const N: usize, const FIRST: bool>(
        &self,
        chunk: Stretch,
        rows: [usize; N],
        adder: &Adder<RULE>,
        sum: &mut [__m256i; N],
        count: &mut Count<N, FIRST>,
    ) {
        let weights = self.tile.weights;
        let offset = _mm256_set1_epi16(weights.offset() as i16);
        let pairs = &weights.group_pairs(self.tile.group)[chunk.from * LANES..chunk.to * LANES];
        let a: [*const i32; N] = rows.map(|row| {
            let pixel = &self.tile.pixel(row)[chunk.from..chunk.to];
            pixel.as_ptr().cast()
        });
        // Opaque, or each becomes two shuffles of constants.
        let spreads = black_box([0, 1, 2, 3].map(|step| spread(step)));
        let (mut acc, mut counts) = (*sum, *count);
        for (quad, w) in pairs.chunks_exact(4 * LANES).enumerate() {
            let a = a.map(|a| {
                // SAFETY: there are as many quads of activations as of weights.
                let a = _mm_set1_epi32(unsafe { a.add(quad).read_unaligned() });
                _mm256_sub_epi16(_mm256_cvtepu8_epi16(a), offset)
            });
            for (w, spreads) in w.chunks_exact(2 * LANES).zip(spreads.chunks_exact(2)) {
                // SAFETY: the chunk is 32 bytes long.
                let w = unsafe { _mm256_loadu_si256(w.as_ptr().cast()) };
                for (&spread, w) in spreads.iter().zip(adder.weights(w)) {
                    let product = a.map(|a| _mm256_mullo_epi16(_mm256_shuffle_epi8(a, spread), w));
                    counts.add(adder, &mut acc, product);
                }
            }
        }
        (*sum, *count) = (acc, counts);
        count.n_adds += (chunk.to - chunk.from) as i16;
    }
}

/// Spreads one of four numbers of 16 bits over all lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn spread(step: usize) -> __m256i {
    let low = 2 * step as i16;
    _mm256_set1_epi16(low | (low + 1) << 8)
}

/// Adds of some rows, counted.
#[derive(Clone, Copy)]
struct Count<const N: usize, const FIRST: bool> {
    n_fit: [__m256i; N],
    /// Lanes without an event so far, and their adds. Only with `FIRST`.
    unharmed: [__m256i; N],
    n_before: [__m256i; N],
    n_adds: i16,
}

impl<const N: usize, const FIRST: bool> Count<N, FIRST> {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new() -> Self {
        Self {
            n_fit: [_mm256_setzero_si256(); N],
            unharmed: [_mm256_set1_epi16(-1); N],
            n_before: [_mm256_setzero_si256(); N],
            n_adds: 0,
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn add<const RULE: u8>(
        &mut self,
        adder: &Adder<RULE>,
        acc: &mut [__m256i; N],
        product: [__m256i; N],
    ) {
        for row in 0..N {
            let (next, fits) = adder.add(acc[row], product[row]);
            acc[row] = next;
            self.n_fit[row] = _mm256_sub_epi16(self.n_fit[row], fits);
            if FIRST {
                self.unharmed[row] = _mm256_and_si256(self.unharmed[row], fits);
                self.n_before[row] = _mm256_sub_epi16(self.n_before[row], self.unharmed[row]);
            }
        }
    }
}

/// The adder of a narrow accumulator, in 16 lanes.
///
/// Where every product fits the accumulator ([`SATURATE`], [`WRAP`]), numbers stand at the upper end
/// of the lane, so that 16-bit instructions clip and wrap as the accumulator does. Clipping at the top
/// then sets the unused low bits. They stay below one step and carry nothing: products and, after
/// [`Self::whole`], sums of chunks have zeros there.
struct Adder<const RULE: u8> {
    low: __m256i,
    high: __m256i,
    unused_bits: __m128i,
    scale: __m128i,
    weight_shift: __m128i,
    used: __m256i,
}

impl<const RULE: u8> Adder<RULE> {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(weights: &Weights) -> Self {
        let format = weights.accumulator;
        let unused_bits = 16 - i32::from(format.width_bits);
        let is_scaled = RULE == SATURATE || RULE == WRAP;
        let scale = if is_scaled { unused_bits } else { 0 };
        Self {
            low: _mm256_set1_epi16(format.min() as i16),
            high: _mm256_set1_epi16(format.max() as i16),
            unused_bits: _mm_cvtsi32_si128(unused_bits),
            scale: _mm_cvtsi32_si128(scale),
            weight_shift: _mm_cvtsi32_si128(8 - scale),
            used: _mm256_set1_epi16(((-1i32) << scale) as i16),
        }
    }

    /// An accumulator as this adder holds it.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn scale(&self, acc: __m256i) -> __m256i {
        _mm256_sll_epi16(acc, self.scale)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn unscale(&self, acc: __m256i) -> __m256i {
        _mm256_sra_epi16(acc, self.scale)
    }

    /// A sum as an operand.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn whole(&self, sum: __m256i) -> __m256i {
        _mm256_and_si256(sum, self.used)
    }

    /// The weights of a pair of steps, such that products come out scaled.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn weights(&self, pair: __m256i) -> [__m256i; 2] {
        let odd = _mm256_and_si256(pair, _mm256_set1_epi16(-256));
        [_mm256_slli_epi16::<8>(pair), odd].map(|w| _mm256_sra_epi16(w, self.weight_shift))
    }

    /// One add, and in which lanes the exact sum fitted.
    ///
    /// The sum clipped at 16 bits is exact or at a limit of 16 bits. It equals the accumulator's
    /// own result exactly when the sum fitted: an accumulator of fewer bits, if not at the upper
    /// end, never holds those limits, and otherwise the wrapped sum differs from the clipped one.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(&self, acc: __m256i, product: __m256i) -> (__m256i, __m256i) {
        let clipped = _mm256_adds_epi16(acc, product);
        let wrapped = _mm256_add_epi16(acc, product);
        match RULE {
            SATURATE => (clipped, _mm256_cmpeq_epi16(clipped, wrapped)),
            WRAP => (wrapped, _mm256_cmpeq_epi16(clipped, wrapped)),
            SATURATE_ANY => {
                let limited = _mm256_max_epi16(_mm256_min_epi16(clipped, self.high), self.low);
                (limited, _mm256_cmpeq_epi16(limited, clipped))
            }
            _ => {
                let high = _mm256_sll_epi16(wrapped, self.unused_bits);
                let result = _mm256_sra_epi16(high, self.unused_bits);
                (result, _mm256_cmpeq_epi16(result, clipped))
            }
        }
    }
}

/// The rows in which a stretch's proof fails for some lane, as bits.
#[target_feature(enable = "avx2")]
#[inline]
fn failing(acc: &[__m256i], bounds: &Bounds) -> u32 {
    let (lowest, highest) = (load_lanes(&bounds.low), load_lanes(&bounds.high));
    let outside = |acc| {
        _mm256_or_si256(
            _mm256_cmpgt_epi16(lowest, acc),
            _mm256_cmpgt_epi16(acc, highest),
        )
    };
    let none = _mm256_setzero_si256();
    let any = acc
        .iter()
        .fold(none, |any, &acc| _mm256_or_si256(any, outside(acc)));
    // Mostly there is none.
    if _mm256_testz_si256(any, any) == 1 {
        return 0;
    }
    acc.iter().enumerate().fold(0, |rows, (row, &acc)| {
        let outside = outside(acc);
        rows | u32::from(_mm256_testz_si256(outside, outside) == 0) << row
    })
}

/// The rows of a run, as bits, in which there could have been events: some lane has neither a proof by
/// its beginning nor one by its beginning and its end.
#[target_feature(enable = "avx2")]
fn failing_between(
    before: &[__m256i],
    after: &[__m256i],
    bounds: &Bounds,
    between: &Between,
) -> u32 {
    let (low, high) = (load_lanes(&bounds.low), load_lanes(&bounds.high));
    let (lowest, highest) = (load_lanes(&between.low_16), load_lanes(&between.high_16));
    let outside = |least, most, low, high| {
        _mm256_or_si256(
            _mm256_cmpgt_epi16(low, least),
            _mm256_cmpgt_epi16(most, high),
        )
    };
    let rows = before.iter().zip(after).enumerate();
    rows.fold(0, |bad, (row, (&before, &after))| {
        let least = _mm256_min_epi16(before, after);
        let most = _mm256_max_epi16(before, after);
        let by_one = outside(before, before, low, high);
        let by_both = outside(least, most, lowest, highest);
        bad | u32::from(_mm256_testz_si256(by_one, by_both) == 0) << row
    })
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
