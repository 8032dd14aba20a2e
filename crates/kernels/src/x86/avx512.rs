//! AVX-512BW, with VNNI or without: 14 pixels × 32 columns a tile.
//!
//! Invariant: accumulators stand in 16 lanes of 32 bits, whatever their width, but for the walk of an
//! accumulator of at most 16 bits: there a register holds the same 16 columns of two pixels.

use super::{SATURATE, SATURATE_ANY, Tile, WRAP, WRAP_ANY};
use crate::{
    pack::{Bounds, LANES, Lanes, MAX_BLOCK, Stretch, Weights},
    portable::{self, Cell, columns},
};
use arith::{ChannelOverflow, Overflow};
#[allow(
    clippy::wildcard_imports,
    reason = "some forty intrinsics, all with one prefix"
)]
use std::{
    arch::{asm, x86_64::*},
    hint::black_box,
    ops::Range,
};

/// Most steps that a storm takes at a time.
const STORM: usize = MAX_BLOCK;
/// Rows that it takes side by side.
const AT_A_TIME: usize = 7;

/// Accumulators of a tile.
type Sums<const ROWS: usize, const GROUPS: usize> = [[__m512i; ROWS]; GROUPS];

/// Rows that are glanced at side by side: three registers each.
const GLANCE: usize = 8;
/// Blocks that are glanced at once most runs of one had no proof.
const GLANCES: u32 = 16;

/// Calls a method with a number of rows and one or two groups as constants.
macro_rules! with_rows_and_groups {
    ($n_rows:expr, $both:expr, $self:ident.$method:ident::<$vnni:ident>, $arguments:tt, [$($rows:literal)*]) => {
        match ($n_rows, $both) {
            $(($rows, true) => $self.$method::<$rows, 2, $vnni> $arguments,
            ($rows, false) => $self.$method::<$rows, 1, $vnni> $arguments,)*
            (rows, _) => unreachable!("{rows} rows"),
        }
    };
}

/// Adds a proved stretch to the sums of a tile; a macro, as they stay in registers.
macro_rules! dot {
    ($tile:expr, $places:expr, $sum:ident, $bounds:expr) => {{
        let (tile, places): (&Tile, Stretch) = ($tile, $places);
        let mut w = [std::ptr::null::<__m512i>(); GROUPS];
        for (group, pointer) in w.iter_mut().enumerate() {
            *pointer = tile.quads(group, places).as_ptr().cast();
        }
        let mut a = [std::ptr::null::<i32>(); ROWS];
        for (row, pointer) in a.iter_mut().enumerate() {
            *pointer = tile.pixel(row)[places.from..places.to].as_ptr().cast();
        }
        let splits = tile.weights.splits;
        for quad_index in 0..(places.to - places.from) / 4 {
            // SAFETY: `quad_index` counts the quads of the slices that the pointers come from: 64 bytes
            // of weights and 4 of activations each. Loads need no alignment.
            let w = w.map(|w| unsafe { _mm512_loadu_si512(w.add(quad_index)) });
            for row in 0..ROWS {
                // SAFETY: as above.
                let a = _mm512_set1_epi32(unsafe { a[row].add(quad_index).read_unaligned() });
                for group in 0..GROUPS {
                    $sum[group][row] = quad::<VNNI>(splits, $sum[group][row], a, w[group]);
                }
            }
        }
        if tile.weights.offset() != 0 {
            for (sum, bounds) in $sum.iter_mut().zip($bounds) {
                let correction = load(&bounds.correction_32);
                for sum in sum {
                    *sum = _mm512_sub_epi32(*sum, correction);
                }
            }
        }
    }};
}

/// Adds a stretch to the sums of some rows of a group; says in which there could have been events all
/// the same. A macro, as sums stay in registers.
macro_rules! glance {
    ($tile:expr, $places:expr, $rows:expr, $sum:ident) => {{
        let (tile, places, rows): (Tile, Stretch, [usize; N]) = ($tile, $places, $rows);
        let mut a = [std::ptr::null::<i32>(); N];
        for (a, row) in a.iter_mut().zip(rows) {
            *a = tile.pixel(row)[places.from..places.to].as_ptr().cast();
        }
        let (mut least, mut most) = ($sum, $sum);
        let offset = _mm512_set1_epi8(tile.weights.offset() as i8);
        let splits = tile.weights.splits;
        let quads = tile.quads(0, places).chunks_exact(4 * LANES);
        for (index_of_quad, w) in quads.enumerate() {
            // SAFETY: the chunk is 64 bytes long; there are as many quads of activations.
            let w = unsafe { _mm512_loadu_si512(w.as_ptr().cast()) };
            let correction = quad::<VNNI>(splits, _mm512_setzero_si512(), offset, w);
            for index in 0..N {
                // SAFETY: as above.
                let a = _mm512_set1_epi32(unsafe { a[index].add(index_of_quad).read_unaligned() });
                let next = _mm512_sub_epi32($sum[index], correction);
                $sum[index] = quad::<VNNI>(splits, next, a, w);
                least[index] = _mm512_min_epi32(least[index], $sum[index]);
                most[index] = _mm512_max_epi32(most[index], $sum[index]);
            }
        }
        let format = tile.weights.accumulator;
        let margin = 3 * tile.weights.product as i32;
        let lowest = _mm512_set1_epi32(format.min() + margin);
        let highest = _mm512_set1_epi32(format.max() - margin);
        let mut bad = [false; N];
        for index in 0..N {
            let outside = _mm512_cmplt_epi32_mask(least[index], lowest)
                | _mm512_cmpgt_epi32_mask(most[index], highest);
            bad[index] = outside != 0;
        }
        bad
    }};
}

/// What the tiles so far let expect of the next. Says nothing about results.
pub(super) struct Outlook {
    /// Blocks that are glanced at before a proof is tried again.
    n_glances: u32,
    /// Whether a glance at a run's rows is worthwhile.
    run: Hope,
    /// Whether most lanes of a tile had events in the last walk.
    is_storm: bool,
    /// Room for [`Storm`], which it finds as the last one left it.
    room: Option<Box<Room>>,
}

impl Outlook {
    pub(super) const NEW: Self = Self {
        n_glances: 0,
        run: Hope(4),
        is_storm: false,
        room: None,
    };
}

/// Above 0 as long as most of the last tries succeeded.
struct Hope(i32);

impl Hope {
    fn is_alive(&self) -> bool {
        self.0 > 0
    }

    fn note(&mut self, is_success: bool) {
        self.0 = (self.0 + if is_success { 1 } else { -4 }).clamp(-8, 4);
    }
}

/// What a tile has seen of events.
struct Events<'a, const ROWS: usize, const GROUPS: usize> {
    n_overflowed: [[Lanes<u32>; ROWS]; GROUPS],
    /// Every column's place of its earliest event, the image's so far.
    first: Option<[__m512i; GROUPS]>,
    is_any: bool,
    outlook: &'a mut Outlook,
    records: &'a mut [ChannelOverflow],
}

impl<const ROWS: usize, const GROUPS: usize> Events<'_, ROWS, GROUPS> {
    /// Whether every column's earliest event is before a place or there.
    #[target_feature(enable = "avx512f")]
    fn knows_first(&self, place: usize) -> bool {
        let place = _mm512_set1_epi32(place as i32);
        let mut later = 0;
        for &first in self.first.iter().flatten() {
            later |= _mm512_cmpgt_epi32_mask(first, place);
        }
        self.first.is_some() && later == 0
    }

    /// Notes a walk's results.
    #[target_feature(enable = "avx512f")]
    fn end_walk(&mut self, firsts: [__m512i; GROUPS], n_seen: u32) {
        self.first = Some(firsts);
        self.is_any |= n_seen > 0;
        self.outlook.is_storm = 2 * n_seen as usize > ROWS * GROUPS * LANES;
    }
}

impl Tile<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    pub(super) fn avx512<const VNNI: bool>(
        &self,
        n_rows: usize,
        both: bool,
        out: &mut [i32],
        records: &mut [ChannelOverflow],
        outlook: &mut Outlook,
    ) {
        with_rows_and_groups!(n_rows, both, self.avx512_rows::<VNNI>, (out, records, outlook), [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn avx512_rows<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        out: &mut [i32],
        records: &mut [ChannelOverflow],
        outlook: &mut Outlook,
    ) {
        let weights = self.weights;
        let mut acc = [[_mm512_setzero_si512(); ROWS]; GROUPS];
        for (group, acc) in acc.iter_mut().enumerate() {
            *acc = [load(&weights.bias[self.group + group]); ROWS];
        }
        let mut events = Events {
            n_overflowed: [[[0; LANES]; ROWS]; GROUPS],
            first: None,
            is_any: false,
            outlook,
            records,
        };
        for (index, &block) in weights.blocks.iter().enumerate() {
            let places = self.places(block);
            let rest = std::array::from_fn(|group| self.rest_bounds(group, index));
            if hold(&acc, rest) {
                let places = Stretch {
                    to: weights.n_places,
                    ..places
                };
                self.avx512_dot::<ROWS, GROUPS, VNNI>(places, &mut acc, rest);
                break;
            }
            let bounds = std::array::from_fn(|group| self.block_bounds(group, index));
            if hold(&acc, bounds) {
                self.avx512_dot::<ROWS, GROUPS, VNNI>(places, &mut acc, bounds);
            } else {
                self.avx512_runs::<ROWS, GROUPS, VNNI>(block, &mut acc, &mut events);
            }
        }
        for (row, out) in out.chunks_exact_mut(weights.n_lanes()).enumerate() {
            let out = &mut out[self.group * LANES..][..GROUPS * LANES];
            for (acc, out) in acc.iter().zip(out.chunks_exact_mut(LANES)) {
                out.copy_from_slice(&store(acc[row]));
            }
        }
        if events.is_any {
            for (group, seen) in events.n_overflowed.iter().enumerate() {
                let records = columns(weights, self.group + group, events.records);
                close(records, seen);
                if let Some(first) = events.first {
                    set_first(weights, records, first[group]);
                }
            }
        }
    }

    /// A block without a proof, run by run.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline(never)]
    fn avx512_runs<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        block: Stretch,
        acc: &mut Sums<ROWS, GROUPS>,
        events: &mut Events<'_, ROWS, GROUPS>,
    ) {
        let outlook = &mut *events.outlook;
        if outlook.n_glances > 0 && !outlook.is_storm {
            outlook.n_glances -= 1;
            self.avx512_glances::<ROWS, GROUPS, VNNI>(block, acc, events);
            return;
        }
        // Copies stay in registers, where `acc` itself, which others know by address, would not.
        let mut sum = *acc;
        let mut n_failed = 0;
        for index in block.from..block.to {
            let bounds = std::array::from_fn(|group| self.run_bounds(group, index));
            if hold(&sum, bounds) {
                dot!(self, self.weights.runs[index], sum, bounds);
                continue;
            }
            let mut copy = sum;
            if events.outlook.is_storm && self.weights.can_storm() {
                // Only the earliest events of the columns have to be found.
                if events.knows_first(self.weights.runs[index].from) {
                    self.avx512_storm::<ROWS, GROUPS, false>(index..block.to, &mut copy, events);
                    sum = copy;
                    break;
                }
                self.avx512_storm::<ROWS, GROUPS, true>(index..index + 1, &mut copy, events);
                sum = copy;
                continue;
            }
            self.avx512_run::<ROWS, GROUPS, VNNI>(index, &mut copy, events);
            sum = copy;
            n_failed += 1;
        }
        *acc = sum;
        // Where most runs have no proof, trying to find one is not worthwhile for a while.
        if 2 * n_failed > block.to - block.from && self.weights.can_glance() {
            events.outlook.n_glances = GLANCES;
        }
    }

    /// A block by its sums on the way, run by run.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline(never)]
    fn avx512_glances<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        block: Stretch,
        acc: &mut Sums<ROWS, GROUPS>,
        events: &mut Events<'_, ROWS, GROUPS>,
    ) {
        let mut firsts = self.firsts(events);
        let mut n_seen = 0;
        for group in 0..GROUPS {
            let mut walk = Walk {
                tile: self.of_group(group),
                n_overflowed: &mut events.n_overflowed[group],
                first: &mut firsts[group],
                n_seen: &mut n_seen,
                is_storm: false,
                records: columns(self.weights, self.group + group, events.records),
            };
            let mut rows = Rows((1 << ROWS) - 1);
            while rows.len() > 0 {
                match rows.len() {
                    1..=2 => walk.block::<2, VNNI>(block, &mut rows, &mut acc[group]),
                    3..=4 => walk.block::<4, VNNI>(block, &mut rows, &mut acc[group]),
                    5..=6 => walk.block::<6, VNNI>(block, &mut rows, &mut acc[group]),
                    _ => walk.block::<GLANCE, VNNI>(block, &mut rows, &mut acc[group]),
                }
            }
        }
        events.end_walk(firsts, n_seen);
    }

    /// A run without a proof for some row and lane.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline(never)]
    fn avx512_run<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        index: usize,
        acc: &mut Sums<ROWS, GROUPS>,
        events: &mut Events<'_, ROWS, GROUPS>,
    ) {
        let run = self.weights.runs[index];
        let bounds = std::array::from_fn(|group| self.run_bounds(group, index));
        let before = *acc;
        let mut bad = [0; GROUPS];
        for group in 0..GROUPS {
            bad[group] = failing(&before[group], bounds[group]);
        }
        let n_bad: u32 = bad.iter().map(|rows| rows.count_ones()).sum();
        let glances = events.outlook.run.is_alive() && self.weights.can_glance();
        if glances && 2 * n_bad as usize > ROWS * GROUPS {
            // Not worthwhile to sort them out.
            bad = [(1 << ROWS) - 1; GROUPS];
        } else {
            self.avx512_dot::<ROWS, GROUPS, VNNI>(run, acc, bounds);
        }
        let mut firsts = self.firsts(events);
        let mut n_seen = 0;
        for group in 0..GROUPS {
            let tile = self.of_group(group);
            let mut bad = bad[group];
            if glances && bad != 0 {
                let n_before = bad.count_ones();
                bad = tile.glance_rows::<ROWS, VNNI>(run, bad, &before[group], &mut acc[group]);
                events.outlook.run.note(2 * bad.count_ones() < n_before);
            }
            let mut walk = Walk {
                tile,
                n_overflowed: &mut events.n_overflowed[group],
                first: &mut firsts[group],
                n_seen: &mut n_seen,
                is_storm: events.outlook.is_storm,
                records: columns(self.weights, tile.group, events.records),
            };
            walk.rows(run, bad, &before[group], &mut acc[group]);
        }
        events.end_walk(firsts, n_seen);
    }

    /// Runs in which nearly everything overflows, in one go: all rows and columns step by step.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline(never)]
    fn avx512_storm<const ROWS: usize, const GROUPS: usize, const FIRST: bool>(
        &self,
        runs: Range<usize>,
        acc: &mut Sums<ROWS, GROUPS>,
        events: &mut Events<'_, ROWS, GROUPS>,
    ) {
        let weights = self.weights;
        let places = self.places(Stretch {
            from: runs.start,
            to: runs.end,
        });
        let mut firsts = self.firsts(events);
        let mut n_seen = 0;
        let mut storm = Storm {
            tile: *self,
            places,
            acc,
            n_overflowed: &mut events.n_overflowed,
            firsts: &mut firsts,
            n_seen: &mut n_seen,
            room: events.outlook.room.get_or_insert_default(),
        };
        match (weights.accumulator.overflow, weights.is_roomy) {
            (Overflow::Saturate, true) => storm.all::<SATURATE, FIRST>(),
            (Overflow::Saturate, false) => storm.all::<SATURATE_ANY, FIRST>(),
            (Overflow::Wrap, true) => storm.all::<WRAP, FIRST>(),
            (Overflow::Wrap, false) => storm.all::<WRAP_ANY, FIRST>(),
        }
        events.end_walk(firsts, n_seen);
    }

    /// Adds a stretch to some rows of a group; says in which there could have been events all the same.
    ///
    /// The sums after every fourth step are looked at: if all of them stay farther from the limits than
    /// three products can reach, nothing happened between them either.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn glance_rows<const ROWS: usize, const VNNI: bool>(
        &self,
        places: Stretch,
        rows: u32,
        before: &[__m512i; ROWS],
        after: &mut [__m512i; ROWS],
    ) -> u32 {
        let mut rows = Rows(rows);
        let mut bad = 0;
        while rows.len() > 0 {
            bad |= match rows.len() {
                1..=2 => self.glance_at::<2, ROWS, VNNI>(places, &mut rows, before, after),
                3..=4 => self.glance_at::<4, ROWS, VNNI>(places, &mut rows, before, after),
                5..=6 => self.glance_at::<6, ROWS, VNNI>(places, &mut rows, before, after),
                _ => self.glance_at::<GLANCE, ROWS, VNNI>(places, &mut rows, before, after),
            };
        }
        bad
    }

    /// The next `N` of some rows; places that are left over repeat the last.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn glance_at<const N: usize, const ROWS: usize, const VNNI: bool>(
        &self,
        places: Stretch,
        rows: &mut Rows,
        before: &[__m512i; ROWS],
        after: &mut [__m512i; ROWS],
    ) -> u32 {
        let rows = rows.take::<N>();
        let mut sum = [_mm512_setzero_si512(); N];
        for (sum, row) in sum.iter_mut().zip(rows) {
            *sum = before[row];
        }
        let bad = glance!(*self, places, rows, sum);
        let mut bad_rows = 0;
        for (index, row) in rows.into_iter().enumerate() {
            after[row] = sum[index];
            bad_rows |= u32::from(bad[index]) << row;
        }
        bad_rows
    }

    /// One group of the tile.
    #[inline]
    fn of_group(&self, group: usize) -> Self {
        Self {
            group: self.group + group,
            ..*self
        }
    }

    /// The places of the columns' earliest events; those without are behind all places.
    #[target_feature(enable = "avx512f")]
    fn firsts<const ROWS: usize, const GROUPS: usize>(
        &self,
        events: &mut Events<'_, ROWS, GROUPS>,
    ) -> [__m512i; GROUPS] {
        if let Some(firsts) = events.first {
            return firsts;
        }
        let mut firsts = [_mm512_set1_epi32(i32::MAX); GROUPS];
        for (group, first) in firsts.iter_mut().enumerate() {
            let mut places = [i32::MAX; LANES];
            let records = columns(self.weights, self.group + group, events.records);
            for (place, record) in places.iter_mut().zip(records) {
                if let Some(k) = record.first_k {
                    *place = self.weights.place(k as usize) as i32;
                }
            }
            *first = load(&places);
        }
        firsts
    }

    /// Adds a proved stretch.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn avx512_dot<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        places: Stretch,
        acc: &mut Sums<ROWS, GROUPS>,
        bounds: [&Bounds; GROUPS],
    ) {
        let mut sum = *acc;
        dot!(self, places, sum, bounds);
        *acc = sum;
    }
}

/// Adds the products of four steps, in 16 lanes: unsigned activations, signed weights. Without
/// [`VNNI`](Level::Avx512Vnni) two products are added in 16 bits first; where those do not hold them
/// (`splits`), activations go in halves.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn quad<const VNNI: bool>(splits: bool, sum: __m512i, a: __m512i, w: __m512i) -> __m512i {
    if VNNI {
        let mut sum = sum;
        // SAFETY: only the level whose processors have the instruction comes here. It is written
        // out because what enables the intrinsic would let the compiler use VNNI everywhere.
        unsafe {
            asm!(
                "vpdpbusd {sum}, {a}, {w}",
                sum = inout(zmm_reg) sum,
                a = in(zmm_reg) a,
                w = in(zmm_reg) w,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        return sum;
    }
    let one = _mm512_set1_epi16(1);
    let fours = |a| _mm512_madd_epi16(_mm512_maddubs_epi16(a, w), one);
    if !splits {
        return _mm512_add_epi32(sum, fours(a));
    }
    let low_half = _mm512_set1_epi8(15);
    let low = _mm512_and_si512(a, low_half);
    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(a), low_half);
    let high = _mm512_slli_epi32::<4>(fours(high));
    _mm512_add_epi32(_mm512_add_epi32(sum, fours(low)), high)
}

/// Whether a stretch's proof holds in every row and lane.
#[target_feature(enable = "avx512f")]
#[inline]
fn hold<const ROWS: usize, const GROUPS: usize>(
    acc: &Sums<ROWS, GROUPS>,
    bounds: [&Bounds; GROUPS],
) -> bool {
    let mut outside = 0;
    for (acc, bounds) in acc.iter().zip(bounds) {
        let (mut least, mut most) = (acc[0], acc[0]);
        for &acc in &acc[1..] {
            least = _mm512_min_epi32(least, acc);
            most = _mm512_max_epi32(most, acc);
        }
        outside |= _mm512_cmplt_epi32_mask(least, load(&bounds.low_32));
        outside |= _mm512_cmpgt_epi32_mask(most, load(&bounds.high_32));
    }
    outside == 0
}

/// The rows in which a stretch's proof fails, as bits.
#[target_feature(enable = "avx512f")]
fn failing(acc: &[__m512i], bounds: &Bounds) -> u32 {
    let (low, high) = (load(&bounds.low_32), load(&bounds.high_32));
    acc.iter().enumerate().fold(0, |bad, (row, &acc)| {
        let outside = _mm512_cmplt_epi32_mask(acc, low) | _mm512_cmpgt_epi32_mask(acc, high);
        bad | u32::from(outside != 0) << row
    })
}

/// Adds what some pixels have seen to the records of a group's columns.
#[target_feature(enable = "avx512f")]
fn close(records: &mut [ChannelOverflow], pixels: &[Lanes<u32>]) {
    let mut n_overflowed = _mm512_setzero_si512();
    let mut n_touched = _mm512_setzero_si512();
    let one = _mm512_set1_epi32(1);
    for pixel in pixels {
        let n = load(&pixel.map(u32::cast_signed));
        let touched = _mm512_test_epi32_mask(n, n);
        n_overflowed = _mm512_add_epi32(n_overflowed, n);
        n_touched = _mm512_mask_add_epi32(n_touched, touched, n_touched, one);
    }
    let both = store(n_overflowed).into_iter().zip(store(n_touched));
    for (record, (n_overflowed, n_touched)) in records.iter_mut().zip(both) {
        record.n_overflowed += u64::from(n_overflowed.cast_unsigned());
        record.n_outputs_touched += u64::from(n_touched.cast_unsigned());
    }
}

/// The opposite of [`Tile::firsts`].
#[target_feature(enable = "avx512f")]
fn set_first(weights: &Weights, records: &mut [ChannelOverflow], places: __m512i) {
    for (record, place) in records.iter_mut().zip(store(places)) {
        if place != i32::MAX {
            let k = weights.step_at(place as usize);
            record.first_k = Some(record.first_k.map_or(k, |first| first.min(k)));
        }
    }
}

/// Steps of all columns of a tile: a register holds 32 columns of a row.
struct Storm<'a, const ROWS: usize, const GROUPS: usize> {
    tile: Tile<'a>,
    /// At most [`STORM`].
    places: Stretch,
    acc: &'a mut Sums<ROWS, GROUPS>,
    n_overflowed: &'a mut [[Lanes<u32>; ROWS]; GROUPS],
    firsts: &'a mut [__m512i; GROUPS],
    /// Lanes with events.
    n_seen: &'a mut u32,
    room: &'a mut Room,
}

impl<const ROWS: usize, const GROUPS: usize> Storm<'_, ROWS, GROUPS> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn all<const RULE: u8, const FIRST: bool>(&mut self) {
        let adder = Adder::<RULE>::new(self.tile.weights);
        self.weights(&adder);
        let mut rows = Rows((1 << ROWS) - 1);
        while rows.len() > 0 {
            match rows.len() {
                1 => self.some::<RULE, 1, FIRST>(&adder, &mut rows),
                2 => self.some::<RULE, 2, FIRST>(&adder, &mut rows),
                3..=4 => self.some::<RULE, 4, FIRST>(&adder, &mut rows),
                5..=6 => self.some::<RULE, 6, FIRST>(&adder, &mut rows),
                _ => self.some::<RULE, AT_A_TIME, FIRST>(&adder, &mut rows),
            }
        }
    }

    /// The next `N` rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn some<const RULE: u8, const N: usize, const FIRST: bool>(
        &mut self,
        adder: &Adder<RULE>,
        rows: &mut Rows,
    ) {
        let n_rows = rows.len().min(N);
        let rows: [usize; N] = rows.take();
        let weights = self.tile.weights;
        let n_steps = self.places.to - self.places.from;
        for (a, row) in self.room.activations.iter_mut().zip(rows) {
            let pixel = &self.tile.pixel(row)[self.places.from..self.places.to];
            activations(pixel, weights.offset() as i16, a);
        }
        let mut acc = [_mm512_setzero_si512(); N];
        for (acc, row) in acc.iter_mut().zip(rows) {
            let low = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(self.acc[0][row]));
            let high = _mm512_cvtepi32_epi16(self.acc[GROUPS - 1][row]);
            *acc = adder.scale(_mm512_inserti64x4::<1>(low, high));
        }
        let mut count = Count::<N, FIRST>::new();
        let a: [&[i32]; N] = std::array::from_fn(|row| &self.room.activations[row][..n_steps]);
        for (step, w) in self.room.weights[..n_steps].iter().enumerate() {
            // SAFETY: 32 lanes of 16 bits are 64 bytes.
            let w = unsafe { _mm512_loadu_si512(w.0.as_ptr().cast()) };
            let mut product = [_mm512_setzero_si512(); N];
            for (product, a) in product.iter_mut().zip(&a) {
                *product = _mm512_mullo_epi16(_mm512_set1_epi32(a[step]), w);
            }
            count.add(adder, &mut acc, product);
        }
        let end = _mm512_set1_epi32(self.places.to as i32);
        for (index, &row) in rows[..n_rows].iter().enumerate() {
            let acc = halves(adder.unscale(acc[index]));
            let n_events = halves(count.n_events[index]);
            let n_since = halves(count.n_since[index]);
            for group in 0..GROUPS {
                self.acc[group][row] = acc[group];
                let lanes = _mm512_test_epi32_mask(n_events[group], n_events[group]);
                *self.n_seen += lanes.count_ones();
                let seen = &mut self.n_overflowed[group][row];
                let sum = _mm512_add_epi32(load(&seen.map(u32::cast_signed)), n_events[group]);
                *seen = store(sum).map(i32::cast_unsigned);
                if FIRST {
                    let place = _mm512_sub_epi32(end, n_since[group]);
                    let first = self.firsts[group];
                    self.firsts[group] = _mm512_mask_min_epi32(first, lanes, first, place);
                }
            }
        }
    }

    /// Weights as the adder wants them: 32 columns, step by step.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn weights<const RULE: u8>(&mut self, adder: &Adder<RULE>) {
        let Tile { weights, group, .. } = self.tile;
        let places = self.places.from * LANES..self.places.to * LANES;
        let [low, high] =
            [0, GROUPS - 1].map(|second| &weights.group_pairs(group + second)[places.clone()]);
        let pairs = low
            .chunks_exact(2 * LANES)
            .zip(high.chunks_exact(2 * LANES));
        for ((low, high), to) in pairs.zip(self.room.weights.chunks_exact_mut(2)) {
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
fn activations(pixel: &[u8], offset: i16, to: &mut [i32; STORM]) {
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
struct Row([i16; 2 * LANES]);

/// The operands of a storm, as its steps read them.
struct Room {
    weights: [Row; STORM],
    activations: [[i32; STORM]; AT_A_TIME],
}

impl Default for Room {
    fn default() -> Self {
        Self {
            weights: [Row([0; 2 * LANES]); STORM],
            activations: [[0; STORM]; AT_A_TIME],
        }
    }
}

/// Steps of one group.
struct Walk<'a, const ROWS: usize> {
    tile: Tile<'a>,
    n_overflowed: &'a mut [Lanes<u32>; ROWS],
    first: &'a mut __m512i,
    /// Lanes with events.
    n_seen: &'a mut u32,
    is_storm: bool,
    /// Of the group's columns.
    records: &'a mut [ChannelOverflow],
}

/// What a walk tells of two rows: 16 columns of one, then of the other.
#[derive(Clone, Copy)]
struct Steps {
    acc: __m512i,
    n_events: __m512i,
    /// Adds from the first on that did not fit. Only with `FIRST`.
    n_since: __m512i,
}

impl<const ROWS: usize> Walk<'_, ROWS> {
    /// The next `N` rows of a block: runs whose sums on the way come near the limits are walked.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn block<const N: usize, const VNNI: bool>(
        &mut self,
        block: Stretch,
        rows: &mut Rows,
        acc: &mut [__m512i; ROWS],
    ) {
        let rows = rows.take::<N>();
        let mut sum = [_mm512_setzero_si512(); N];
        for (sum, row) in sum.iter_mut().zip(rows) {
            *sum = acc[row];
        }
        for index in block.from..block.to {
            let run = self.tile.weights.runs[index];
            let before = *acc;
            let bad = glance!(self.tile, run, rows, sum);
            for (&sum, row) in sum.iter().zip(rows) {
                acc[row] = sum;
            }
            let mut bad_rows = 0;
            for (index, row) in rows.into_iter().enumerate() {
                bad_rows |= u32::from(bad[index]) << row;
            }
            if bad_rows != 0 {
                self.rows(run, bad_rows, &before, acc);
                for (sum, row) in sum.iter_mut().zip(rows) {
                    *sum = acc[row];
                }
            }
        }
    }

    /// Some rows of a run step by step.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn rows(
        &mut self,
        run: Stretch,
        rows: u32,
        before: &[__m512i; ROWS],
        after: &mut [__m512i; ROWS],
    ) {
        let mut rows = Rows(rows);
        if !self.tile.weights.is_narrow() {
            while rows.len() > 0 {
                let [row] = rows.take();
                after[row] = self.lane_by_lane(run, row, before[row]);
            }
            return;
        }
        while rows.len() > 0 {
            match rows.len() {
                1..=2 => self.some::<1>(run, &mut rows, before, after),
                3..=4 => self.some::<2>(run, &mut rows, before, after),
                5..=6 => self.some::<3>(run, &mut rows, before, after),
                _ => self.some::<4>(run, &mut rows, before, after),
            }
        }
    }

    /// A row of an accumulator of more than 16 bits.
    #[target_feature(enable = "avx512f")]
    fn lane_by_lane(&mut self, run: Stretch, row: usize, before: __m512i) -> __m512i {
        let Tile { weights, group, .. } = self.tile;
        let mut cell = Cell {
            acc: store(before),
            n_overflowed: self.n_overflowed[row],
            records: self.records,
        };
        portable::walk(weights, group, self.tile.pixel(row), run, &mut cell);
        self.n_overflowed[row] = cell.n_overflowed;
        *self.n_seen += 1;
        load(&cell.acc)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn some<const N: usize>(
        &mut self,
        run: Stretch,
        rows: &mut Rows,
        before: &[__m512i; ROWS],
        after: &mut [__m512i; ROWS],
    ) {
        // An odd row goes with itself.
        let pairs: [[usize; 2]; N] = std::array::from_fn(|_| rows.take());
        let weights = self.tile.weights;
        // Lanes in which a first event can be the earliest of its column.
        let from = _mm512_set1_epi32(run.from as i32);
        let end = _mm512_set1_epi32(run.to as i32);
        let asking = _mm512_cmpgt_epi32_mask(*self.first, from);
        let is_one_chunk = run.to <= weights.chunk_places;
        let mut steps = if asking != 0 && is_one_chunk && self.is_storm {
            self.steps::<N, true>(run, pairs, before)
        } else {
            self.steps::<N, false>(run, pairs, before)
        };
        let mut is_asked = false;
        let mut seen = [[0; 2]; N];
        for ((pair, steps), seen) in pairs.into_iter().zip(&steps).zip(&mut seen) {
            let (acc, n_events) = (halves(steps.acc), halves(steps.n_events));
            let n_rows = if pair[0] == pair[1] { 1 } else { 2 };
            for half in 0..n_rows {
                let row = pair[half];
                after[row] = acc[half];
                let lanes = _mm512_test_epi32_mask(n_events[half], n_events[half]);
                *self.n_seen += lanes.count_ones();
                is_asked |= lanes & asking != 0;
                seen[half] = lanes & asking;
                if lanes != 0 {
                    let seen_before = load(&self.n_overflowed[row].map(u32::cast_signed));
                    let sum = _mm512_add_epi32(seen_before, n_events[half]);
                    self.n_overflowed[row] = store(sum).map(i32::cast_unsigned);
                }
            }
        }
        if !is_asked {
            return;
        }
        if is_one_chunk && !self.is_storm {
            steps = self.steps::<N, true>(run, pairs, before);
        }
        for ((pair, steps), lanes) in pairs.into_iter().zip(&steps).zip(seen) {
            let n_since = halves(steps.n_since);
            for half in 0..2 {
                if lanes[half] != 0 && is_one_chunk {
                    let place = _mm512_sub_epi32(end, n_since[half]);
                    let first = *self.first;
                    *self.first = _mm512_mask_min_epi32(first, lanes[half], first, place);
                } else if lanes[half] != 0 {
                    self.find_first(run, pair[half], lanes[half], before[pair[half]]);
                }
            }
        }
    }

    /// Finds the first events of lanes in a run of several chunks, by a walk.
    #[target_feature(enable = "avx512f")]
    #[cold]
    fn find_first(&mut self, run: Stretch, row: usize, lanes: u16, before: __m512i) {
        let Tile { weights, group, .. } = self.tile;
        let mut cell = Cell {
            acc: store(before),
            n_overflowed: [0; LANES],
            records: self.records,
        };
        for lane in (0..LANES).filter(|lane| lanes >> lane & 1 == 1) {
            portable::walk_lane(weights, group, self.tile.pixel(row), run, lane, &mut cell);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn steps<const N: usize, const FIRST: bool>(
        &self,
        run: Stretch,
        pairs: [[usize; 2]; N],
        before: &[__m512i; ROWS],
    ) -> [Steps; N] {
        let weights = self.tile.weights;
        match (weights.accumulator.overflow, weights.is_roomy) {
            (Overflow::Saturate, true) => self.steps_by::<SATURATE, N, FIRST>(run, pairs, before),
            (Overflow::Saturate, false) => {
                self.steps_by::<SATURATE_ANY, N, FIRST>(run, pairs, before)
            }
            (Overflow::Wrap, true) => self.steps_by::<WRAP, N, FIRST>(run, pairs, before),
            (Overflow::Wrap, false) => self.steps_by::<WRAP_ANY, N, FIRST>(run, pairs, before),
        }
    }

    /// Chunks that are not the first are summed from 0 and then added; without chunks a run lies in
    /// the one chunk.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline]
    fn steps_by<const RULE: u8, const N: usize, const FIRST: bool>(
        &self,
        run: Stretch,
        pairs: [[usize; 2]; N],
        before: &[__m512i; ROWS],
    ) -> [Steps; N] {
        let weights = self.tile.weights;
        let adder = Adder::<RULE>::new(weights);
        let mut acc = [_mm512_setzero_si512(); N];
        for (acc, [a, b]) in acc.iter_mut().zip(pairs) {
            let a = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(before[a]));
            let b = _mm512_cvtepi32_epi16(before[b]);
            *acc = adder.scale(_mm512_inserti64x4::<1>(a, b));
        }
        let mut count = Count::<N, FIRST>::new();
        for from in (run.from..run.to).step_by(weights.chunk_places) {
            let to = (from + weights.chunk_places).min(run.to);
            let chunk = Stretch { from, to };
            if from < weights.chunk_places {
                self.chunk(chunk, pairs, &adder, &mut acc, &mut count);
                continue;
            }
            let mut sum = [_mm512_setzero_si512(); N];
            self.chunk(chunk, pairs, &adder, &mut sum, &mut count);
            let sum = sum.map(|sum| adder.whole(sum));
            count.add(&adder, &mut acc, sum);
        }
        std::array::from_fn(|pair| Steps {
            acc: adder.unscale(acc[pair]),
            n_events: count.n_events[pair],
            n_since: count.n_since[pair],
        })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline]
    fn chunk<const RULE: u8, const N: usize, const FIRST: bool>(
        &self,
        chunk: Stretch,
        pairs: [[usize; 2]; N],
        adder: &Adder<RULE>,
        sum: &mut [__m512i; N],
        count: &mut Count<N, FIRST>,
    ) {
        let Tile { weights, group, .. } = self.tile;
        let offset = _mm512_set1_epi16(weights.offset() as i16);
        let w = &weights.group_pairs(group)[chunk.from * LANES..chunk.to * LANES];
        let mut a = [[std::ptr::null::<i32>(); 2]; N];
        for (a, rows) in a.as_flattened_mut().iter_mut().zip(pairs.as_flattened()) {
            *a = self.tile.pixel(*rows)[chunk.from..chunk.to].as_ptr().cast();
        }
        // Opaque, or each becomes two shuffles of constants.
        let spreads = black_box([0, 1, 2, 3].map(|step| spread(step)));
        let (mut acc, mut counts) = (*sum, *count);
        for (quad, w) in w.chunks_exact(4 * LANES).enumerate() {
            let mut four = [_mm512_setzero_si512(); N];
            for (four, [a, b]) in four.iter_mut().zip(a) {
                // SAFETY: there are as many quads of activations as of weights.
                let [a, b] =
                    unsafe { [a.add(quad).read_unaligned(), b.add(quad).read_unaligned()] };
                let both = _mm256_mask_set1_epi32(_mm256_set1_epi32(a), 0xf0, b);
                *four = _mm512_sub_epi16(_mm512_cvtepu8_epi16(both), offset);
            }
            for (w, spreads) in w.chunks_exact(2 * LANES).zip(spreads.chunks_exact(2)) {
                // SAFETY: the chunk is 32 bytes long.
                let w = unsafe { _mm256_loadu_si256(w.as_ptr().cast()) };
                let w = _mm512_broadcast_i64x4(w);
                for (&spread, w) in spreads.iter().zip(adder.weights(w)) {
                    let mut product = four;
                    for product in &mut product {
                        *product = _mm512_mullo_epi16(_mm512_shuffle_epi8(*product, spread), w);
                    }
                    counts.add(adder, &mut acc, product);
                }
            }
        }
        (*sum, *count) = (acc, counts);
    }
}

/// Rows of a tile, as bits.
#[derive(Clone, Copy)]
struct Rows(u32);

impl Rows {
    #[inline]
    fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Takes the first `N` away, of at least one; places that are left over repeat the last.
    #[inline]
    fn take<const N: usize>(&mut self) -> [usize; N] {
        let mut last = 0;
        std::array::from_fn(|_| {
            if self.0 != 0 {
                last = self.0.trailing_zeros() as usize;
                self.0 &= self.0 - 1;
            }
            last
        })
    }
}

/// Spreads one of four numbers of 16 bits over all lanes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn spread(step: usize) -> __m512i {
    let low = 2 * step as i16;
    _mm512_set1_epi16(low | (low + 1) << 8)
}

/// Adds of some pairs of rows, counted.
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
        for pair in 0..N {
            let (next, excess) = adder.add(acc[pair], product[pair]);
            acc[pair] = next;
            let n_events = &mut self.n_events[pair];
            *n_events = _mm512_add_epi16(*n_events, _mm512_min_epu16(excess, one));
            if FIRST {
                let since = _mm512_min_epu16(*n_events, one);
                self.n_since[pair] = _mm512_add_epi16(self.n_since[pair], since);
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

#[target_feature(enable = "avx512f")]
#[inline]
fn load(lanes: &Lanes<i32>) -> __m512i {
    // SAFETY: 16 lanes of 32 bits are 64 bytes.
    unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(vector: __m512i) -> Lanes<i32> {
    let mut lanes = [0; LANES];
    // SAFETY: 16 lanes of 32 bits are 64 bytes.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), vector) };
    lanes
}
