//! What may overflow, step by step: a register holds a tile's 32 columns in one row.
//!
//! Invariant: adds are made in the documented order, chunk by chunk, and every one that does not fit
//! is counted. Columns that are walked although they were proved come out the same, without events.

use super::{Rows, Sums, load, store};
use crate::{
    pack::{LANES, Lanes, MAX_BLOCK, Stretch, Weights},
    portable::{self, Cell, columns},
    simd::tile::{SATURATE, SATURATE_ANY, Tile, WRAP, WRAP_ANY},
};
use arith::{ChannelOverflow, Overflow};
#[allow(
    clippy::wildcard_imports,
    reason = "some forty intrinsics, all with one prefix"
)]
use std::{arch::x86_64::*, hint::black_box};

/// Most steps whose operands are laid out at a time.
const PART: usize = MAX_BLOCK;
/// Rows that are walked side by side: one alone would wait for its own adds.
const SIDE_BY_SIDE: usize = 7;

/// Steps of a tile.
pub(super) struct Walk<'a, const ROWS: usize, const GROUPS: usize> {
    pub tile: Tile<'a>,
    /// A run, or several where a sum has no chunks.
    pub places: Stretch,
    pub before: &'a Sums<ROWS, GROUPS>,
    pub after: &'a mut Sums<ROWS, GROUPS>,
    pub n_overflowed: &'a mut [[Lanes<u32>; ROWS]; GROUPS],
    /// Every column's place of its earliest event so far.
    pub firsts: &'a mut [__m512i; GROUPS],
    /// Lanes with events.
    pub n_seen: u32,
    /// Whether most lanes are expected to have events.
    pub is_storm: bool,
    pub room: &'a mut Room,
    pub records: &'a mut [ChannelOverflow],
}

/// What a walk tells of a row.
#[derive(Clone, Copy)]
struct Steps {
    acc: __m512i,
    n_events: __m512i,
    /// Adds from the first on that did not fit, where that was asked for.
    n_since: __m512i,
}

impl<const ROWS: usize, const GROUPS: usize> Walk<'_, ROWS, GROUPS> {
    /// Walks some rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    pub fn rows(&mut self, rows: u32) {
        let weights = self.tile.weights;
        let mut rows = Rows(rows);
        if !weights.is_narrow() {
            while rows.len() > 0 {
                let [row] = rows.take();
                for group in 0..GROUPS {
                    self.lane_by_lane(group, row);
                }
            }
            return;
        }
        match (weights.accumulator.overflow, weights.is_roomy) {
            (Overflow::Saturate, true) => self.by_rule::<SATURATE>(rows),
            (Overflow::Saturate, false) => self.by_rule::<SATURATE_ANY>(rows),
            (Overflow::Wrap, true) => self.by_rule::<WRAP>(rows),
            (Overflow::Wrap, false) => self.by_rule::<WRAP_ANY>(rows),
        }
    }

    /// A row of an accumulator of more than 16 bits.
    #[target_feature(enable = "avx512f")]
    fn lane_by_lane(&mut self, group: usize, row: usize) {
        let Tile { weights, .. } = self.tile;
        let at = self.tile.group + group;
        let mut cell = Cell {
            acc: store(self.before[group][row]),
            n_overflowed: self.n_overflowed[group][row],
            records: columns(weights, at, self.records),
        };
        portable::walk(weights, at, self.tile.pixel(row), self.places, &mut cell);
        self.n_overflowed[group][row] = cell.n_overflowed;
        self.after[group][row] = load(&cell.acc);
        self.n_seen += 1;
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn by_rule<const RULE: u8>(&mut self, mut rows: Rows) {
        let adder = Adder::<RULE>::new(self.tile.weights);
        while rows.len() > 0 {
            match rows.len() {
                1 => self.some::<RULE, 1>(&adder, &mut rows),
                2 => self.some::<RULE, 2>(&adder, &mut rows),
                3..=4 => self.some::<RULE, 4>(&adder, &mut rows),
                5..=6 => self.some::<RULE, 6>(&adder, &mut rows),
                _ => self.some::<RULE, SIDE_BY_SIDE>(&adder, &mut rows),
            }
        }
    }

    /// The next `N` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn some<const RULE: u8, const N: usize>(&mut self, adder: &Adder<RULE>, rows: &mut Rows) {
        let n_rows = rows.len().min(N);
        let rows: [usize; N] = rows.take();
        // Lanes in which a first event can be the earliest of its column.
        let from = _mm512_set1_epi32(self.places.from as i32);
        let mut asking = [0; GROUPS];
        for (asking, &first) in asking.iter_mut().zip(&*self.firsts) {
            *asking = _mm512_cmpgt_epi32_mask(first, from);
        }
        let is_one_chunk = self.places.to <= self.tile.weights.chunk_places;
        let looks = is_one_chunk && self.is_storm && asking.iter().any(|&lanes| lanes != 0);
        let mut steps = if looks {
            self.steps::<RULE, N, true>(adder, rows)
        } else {
            self.steps::<RULE, N, false>(adder, rows)
        };
        let mut asked = [[0; GROUPS]; N];
        let mut is_asked = false;
        for (index, &row) in rows[..n_rows].iter().enumerate() {
            let (acc, n_events) = (halves(steps[index].acc), halves(steps[index].n_events));
            for group in 0..GROUPS {
                self.after[group][row] = acc[group];
                let lanes = _mm512_test_epi32_mask(n_events[group], n_events[group]);
                if lanes == 0 {
                    continue;
                }
                self.n_seen += lanes.count_ones();
                let seen = &mut self.n_overflowed[group][row];
                let sum = _mm512_add_epi32(load(&seen.map(u32::cast_signed)), n_events[group]);
                *seen = store(sum).map(i32::cast_unsigned);
                asked[index][group] = lanes & asking[group];
                is_asked |= asked[index][group] != 0;
            }
        }
        if !is_asked {
            return;
        }
        if is_one_chunk && !looks {
            steps = self.steps::<RULE, N, true>(adder, rows);
        }
        let end = _mm512_set1_epi32(self.places.to as i32);
        for (index, &row) in rows[..n_rows].iter().enumerate() {
            let n_since = halves(steps[index].n_since);
            for group in 0..GROUPS {
                let lanes = asked[index][group];
                if is_one_chunk {
                    let place = _mm512_sub_epi32(end, n_since[group]);
                    let first = self.firsts[group];
                    self.firsts[group] = _mm512_mask_min_epi32(first, lanes, first, place);
                } else if lanes != 0 {
                    self.find_first(group, row, lanes);
                }
            }
        }
    }

    /// Finds the first events of lanes in a run of several chunks.
    #[target_feature(enable = "avx512f")]
    #[cold]
    fn find_first(&mut self, group: usize, row: usize, lanes: u16) {
        let Tile { weights, .. } = self.tile;
        let at = self.tile.group + group;
        let mut cell = Cell {
            acc: store(self.before[group][row]),
            n_overflowed: [0; LANES],
            records: columns(weights, at, self.records),
        };
        for lane in (0..LANES).filter(|lane| lanes >> lane & 1 == 1) {
            let pixel = self.tile.pixel(row);
            portable::walk_lane(weights, at, pixel, self.places, lane, &mut cell);
        }
    }

    /// Chunks that are not the first are summed from 0 and then added; without chunks a stretch lies
    /// in the one chunk.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn steps<const RULE: u8, const N: usize, const FIRST: bool>(
        &mut self,
        adder: &Adder<RULE>,
        rows: [usize; N],
    ) -> [Steps; N] {
        let chunk_places = self.tile.weights.chunk_places;
        let mut acc = [_mm512_setzero_si512(); N];
        for (acc, row) in acc.iter_mut().zip(rows) {
            let low = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(self.before[0][row]));
            let high = _mm512_cvtepi32_epi16(self.before[GROUPS - 1][row]);
            *acc = adder.scale(_mm512_inserti64x4::<1>(low, high));
        }
        let mut count = Count::<N, FIRST>::new();
        for from in (self.places.from..self.places.to).step_by(chunk_places) {
            let to = (from + chunk_places).min(self.places.to);
            let is_first = from < chunk_places;
            let mut sum = if is_first {
                acc
            } else {
                [_mm512_setzero_si512(); N]
            };
            self.chunk(Stretch { from, to }, rows, adder, &mut sum, &mut count);
            if is_first {
                acc = sum;
                continue;
            }
            for sum in &mut sum {
                *sum = adder.whole(*sum);
            }
            count.add(adder, &mut acc, sum);
        }
        std::array::from_fn(|row| Steps {
            acc: adder.unscale(acc[row]),
            n_events: count.n_events[row],
            n_since: count.n_since[row],
        })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline]
    fn chunk<const RULE: u8, const N: usize, const FIRST: bool>(
        &mut self,
        chunk: Stretch,
        rows: [usize; N],
        adder: &Adder<RULE>,
        sum: &mut [__m512i; N],
        count: &mut Count<N, FIRST>,
    ) {
        let offset = self.tile.weights.offset() as i16;
        let (mut acc, mut counts) = (*sum, *count);
        for from in (chunk.from..chunk.to).step_by(PART) {
            let to = (from + PART).min(chunk.to);
            self.lay_out_weights(adder, Stretch { from, to });
            for (a, row) in self.room.activations.iter_mut().zip(rows) {
                lay_out_activations(&self.tile.pixel(row)[from..to], offset, a);
            }
            let n = to - from;
            let a: [&[i32]; N] = std::array::from_fn(|row| &self.room.activations[row][..n]);
            for (step, w) in self.room.weights[..n].iter().enumerate() {
                // SAFETY: 32 lanes of 16 bits are 64 bytes.
                let w = unsafe { _mm512_loadu_si512(w.0.as_ptr().cast()) };
                let mut product = [_mm512_setzero_si512(); N];
                for (product, a) in product.iter_mut().zip(&a) {
                    *product = _mm512_mullo_epi16(_mm512_set1_epi32(a[step]), w);
                }
                counts.add(adder, &mut acc, product);
            }
        }
        (*sum, *count) = (acc, counts);
    }

    /// Weights as the adder wants them: 32 columns, step by step.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn lay_out_weights<const RULE: u8>(&mut self, adder: &Adder<RULE>, part: Stretch) {
        let Tile { weights, group, .. } = self.tile;
        if self.room.holds == Some((group, part)) {
            return;
        }
        self.room.holds = Some((group, part));
        let of = |second| &weights.group_pairs(group + second)[part.from * LANES..part.to * LANES];
        let low = of(0).chunks_exact(2 * LANES);
        let high = of(GROUPS - 1).chunks_exact(2 * LANES);
        for ((low, high), to) in low.zip(high).zip(self.room.weights.chunks_exact_mut(2)) {
            // SAFETY: the chunks are 32 bytes long.
            let (low, high) = unsafe {
                (
                    _mm256_loadu_si256(low.as_ptr().cast()),
                    _mm256_loadu_si256(high.as_ptr().cast()),
                )
            };
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            for (w, to) in adder.weights(both).into_iter().zip(to) {
                // SAFETY: 32 lanes of 16 bits are 64 bytes.
                unsafe { _mm512_storeu_si512(to.0.as_mut_ptr().cast(), w) };
            }
        }
    }
}

/// Every activation of a stretch twice, in 16 bits each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn lay_out_activations(pixel: &[u8], offset: i16, to: &mut [i32; PART]) {
    let offset = _mm512_set1_epi32(offset.into());
    let low = _mm512_set1_epi32(0xffff);
    for (pixel, to) in pixel.chunks(LANES).zip(to.as_chunks_mut::<LANES>().0) {
        let mut bytes = [0u8; LANES];
        bytes[..pixel.len()].copy_from_slice(pixel);
        // SAFETY: 16 bytes.
        let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        let a = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), offset);
        let twice = _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32::<16>(a));
        *to = store(twice);
    }
}

/// 32 columns.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Columns([i16; 2 * LANES]);

/// Operands as the steps of a walk read them.
pub(super) struct Room {
    weights: [Columns; PART],
    /// First group and stretch of the weights.
    holds: Option<(usize, Stretch)>,
    activations: [[i32; PART]; SIDE_BY_SIDE],
}

impl Default for Room {
    fn default() -> Self {
        Self {
            weights: [Columns([0; 2 * LANES]); PART],
            holds: None,
            activations: [[0; PART]; SIDE_BY_SIDE],
        }
    }
}

/// Adds of some rows, counted.
#[derive(Clone, Copy)]
struct Count<const N: usize, const FIRST: bool> {
    n_events: [__m512i; N],
    /// Adds from the first event on. Only with `FIRST`.
    n_since: [__m512i; N],
}

impl<const N: usize, const FIRST: bool> Count<N, FIRST> {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn new() -> Self {
        Self {
            n_events: [_mm512_setzero_si512(); N],
            n_since: [_mm512_setzero_si512(); N],
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn add<const RULE: u8>(
        &mut self,
        adder: &Adder<RULE>,
        acc: &mut [__m512i; N],
        product: [__m512i; N],
    ) {
        let one = adder.one;
        for row in 0..N {
            let (next, excess) = adder.add(acc[row], product[row]);
            acc[row] = next;
            let n_events = &mut self.n_events[row];
            *n_events = _mm512_add_epi16(*n_events, _mm512_min_epu16(excess, one));
            if FIRST {
                let since = _mm512_min_epu16(*n_events, one);
                self.n_since[row] = _mm512_add_epi16(self.n_since[row], since);
            }
        }
    }
}

/// The adder of a narrow accumulator, in 32 lanes: what the one of AVX2 does, and for its reasons.
struct Adder<const RULE: u8> {
    low: __m512i,
    high: __m512i,
    unused_bits: __m128i,
    scale: __m128i,
    weight_shift: __m128i,
    used: __m512i,
    /// 1, but the compiler does not know: it would compare instead of taking a minimum, and what goes
    /// through mask registers has fewer ports.
    one: __m512i,
}

impl<const RULE: u8> Adder<RULE> {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn new(weights: &Weights) -> Self {
        let format = weights.accumulator;
        let unused_bits = 16 - i32::from(format.width_bits);
        let is_scaled = RULE == SATURATE || RULE == WRAP;
        let scale = if is_scaled { unused_bits } else { 0 };
        Self {
            low: _mm512_set1_epi16(format.min() as i16),
            high: _mm512_set1_epi16(format.max() as i16),
            unused_bits: _mm_cvtsi32_si128(unused_bits),
            scale: _mm_cvtsi32_si128(scale),
            weight_shift: _mm_cvtsi32_si128(8 - scale),
            used: _mm512_set1_epi16(((-1i32) << scale) as i16),
            one: black_box(_mm512_set1_epi16(1)),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn scale(&self, acc: __m512i) -> __m512i {
        _mm512_sll_epi16(acc, self.scale)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn unscale(&self, acc: __m512i) -> __m512i {
        _mm512_sra_epi16(acc, self.scale)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn whole(&self, sum: __m512i) -> __m512i {
        _mm512_and_si512(sum, self.used)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn weights(&self, pair: __m512i) -> [__m512i; 2] {
        let odd = _mm512_and_si512(pair, _mm512_set1_epi16(-256));
        [_mm512_slli_epi16::<8>(pair), odd].map(|w| _mm512_sra_epi16(w, self.weight_shift))
    }

    /// One add, and what is not 0 in the lanes in which the exact sum did not fit.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn add(&self, acc: __m512i, product: __m512i) -> (__m512i, __m512i) {
        let clipped = _mm512_adds_epi16(acc, product);
        let wrapped = _mm512_add_epi16(acc, product);
        match RULE {
            SATURATE => (clipped, _mm512_sub_epi16(clipped, wrapped)),
            WRAP => (wrapped, _mm512_sub_epi16(clipped, wrapped)),
            SATURATE_ANY => {
                let limited = _mm512_max_epi16(_mm512_min_epi16(clipped, self.high), self.low);
                (limited, _mm512_sub_epi16(limited, clipped))
            }
            _ => {
                let high = _mm512_sll_epi16(wrapped, self.unused_bits);
                let result = _mm512_sra_epi16(high, self.unused_bits);
                (result, _mm512_sub_epi16(result, clipped))
            }
        }
    }
}

/// Twice 16 lanes of 16 bits as 32 bits each.
#[target_feature(enable = "avx512f")]
#[inline]
fn halves(lanes: __m512i) -> [__m512i; 2] {
    [
        _mm512_cvtepi16_epi32(_mm512_castsi512_si256(lanes)),
        _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64::<1>(lanes)),
    ]
}
