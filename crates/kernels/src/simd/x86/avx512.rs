//! AVX-512BW, with VNNI or without: 14 pixels × 32 columns a tile.
//!
//! Invariant: accumulators stand in 16 lanes of 32 bits, whatever their width, but in a walk.

mod walk;

use super::Hope;
use crate::{
    pack::{Between, Bounds, LANES, Lanes, Stretch, Weights},
    portable::columns,
    simd::tile::Tile,
};
use arith::ChannelOverflow;
#[allow(
    clippy::wildcard_imports,
    reason = "some forty intrinsics, all with one prefix"
)]
use std::arch::{asm, x86_64::*};
use walk::{Room, Walk};

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

/// What the tiles so far let expect of the next. Says nothing about results.
pub(super) struct Outlook {
    /// Blocks that are glanced at before a proof is tried again.
    n_glances: u32,
    /// Whether a look at a run's beginning and end is worthwhile.
    run: Hope,
    /// Whether one at its quads is.
    quad: Hope,
    /// Whether most lanes of a tile had events in the last walk.
    is_storm: bool,
    /// Room for [`Walk`], which it finds as the last one left it.
    room: Option<Box<Room>>,
}

impl Outlook {
    pub(super) const NEW: Self = Self {
        n_glances: 0,
        run: Hope(4),
        quad: Hope(4),
        is_storm: false,
        room: None,
    };
}

/// What a tile has seen of events.
struct Events<'a, const ROWS: usize, const GROUPS: usize> {
    /// Nothing before the first walk: most tiles have none.
    n_overflowed: Option<[[Lanes<u32>; ROWS]; GROUPS]>,
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
        let mut start = [[_mm512_setzero_si512(); 1]; GROUPS];
        for (group, start) in start.iter_mut().enumerate() {
            *start = [load(&weights.bias[self.group + group])];
        }
        let all = std::array::from_fn(|group| self.rest_bounds(group, 0));
        if hold(&start, all) {
            return self.avx512_proved::<ROWS, GROUPS, VNNI>(start, all, out);
        }
        let mut acc = start.map(|[bias]| [bias; ROWS]);
        let mut events = Events {
            n_overflowed: None,
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
        self.put(&acc, out);
        if events.is_any {
            for (group, seen) in events.n_overflowed.iter().flatten().enumerate() {
                let records = columns(weights, self.group + group, events.records);
                close(records, seen);
                if let Some(first) = events.first {
                    set_first(weights, records, first[group]);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    pub(super) fn avx512_advance<const VNNI: bool>(
        &self,
        n_rows: usize,
        both: bool,
        block: usize,
        out: &mut [i32],
    ) -> usize {
        with_rows_and_groups!(n_rows, both, self.avx512_advance_rows::<VNNI>, (block, out), [1 2 3 4 5 6 7 8 9 10 11 12 13 14])
    }

    /// Adds the blocks from one on whose values are those of a dot product, to what is in `out`, or
    /// from the first block on to the bias; returns the first block that is not. `out` changes only if
    /// there was any.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn avx512_advance_rows<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        block: usize,
        out: &mut [i32],
    ) -> usize {
        let weights = self.weights;
        let n_blocks = weights.blocks.len();
        let mut acc = [[_mm512_setzero_si512(); ROWS]; GROUPS];
        if block == 0 {
            let mut start = [[_mm512_setzero_si512(); 1]; GROUPS];
            for (group, start) in start.iter_mut().enumerate() {
                *start = [load(&weights.bias[self.group + group])];
            }
            let all = std::array::from_fn(|group| self.rest_bounds(group, 0));
            if weights.is_orderless() || hold(&start, all) {
                self.avx512_proved::<ROWS, GROUPS, VNNI>(start, all, out);
                return n_blocks;
            }
            let first = std::array::from_fn(|group| self.block_bounds(group, 0));
            if !hold(&start, first) {
                return 0;
            }
            acc = start.map(|[bias]| [bias; ROWS]);
        } else {
            self.take(&mut acc, out);
        }
        let mut reached = block;
        while let Some(&next) = weights.blocks.get(reached) {
            let places = self.places(next);
            let rest = std::array::from_fn(|group| self.rest_bounds(group, reached));
            if hold(&acc, rest) {
                let places = Stretch {
                    to: weights.n_places,
                    ..places
                };
                self.avx512_dot::<ROWS, GROUPS, VNNI>(places, &mut acc, rest);
                reached = n_blocks;
                break;
            }
            let bounds = std::array::from_fn(|group| self.block_bounds(group, reached));
            if !hold(&acc, bounds) {
                break;
            }
            self.avx512_dot::<ROWS, GROUPS, VNNI>(places, &mut acc, bounds);
            reached += 1;
        }
        if reached > block {
            self.put(&acc, out);
        }
        reached
    }

    /// Sums that no input brings out of range: nothing has to be looked at on the way.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline(never)]
    fn avx512_proved<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        start: Sums<1, GROUPS>,
        bounds: [&Bounds; GROUPS],
        out: &mut [i32],
    ) {
        let places = Stretch {
            from: 0,
            to: self.weights.n_places,
        };
        let mut sum = start.map(|[bias]| [bias; ROWS]);
        dot!(self, places, sum, bounds);
        // A copy, as above.
        let acc = sum;
        self.put(&acc, out);
    }

    /// A tile's sums into the lanes of its pixels.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn put<const ROWS: usize, const GROUPS: usize>(
        &self,
        acc: &Sums<ROWS, GROUPS>,
        out: &mut [i32],
    ) {
        for (row, out) in out.chunks_exact_mut(self.weights.n_lanes()).enumerate() {
            let out = &mut out[self.group * LANES..][..GROUPS * LANES];
            for (acc, out) in acc.iter().zip(out.chunks_exact_mut(LANES)) {
                out.copy_from_slice(&store(acc[row]));
            }
        }
    }

    /// The opposite of [`Self::put`].
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn take<const ROWS: usize, const GROUPS: usize>(
        &self,
        acc: &mut Sums<ROWS, GROUPS>,
        out: &[i32],
    ) {
        for (row, out) in out.chunks_exact(self.weights.n_lanes()).enumerate() {
            let out = out[self.group * LANES..].as_chunks::<LANES>().0;
            for (acc, out) in acc.iter_mut().zip(out) {
                acc[row] = load(out);
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
            if events.outlook.is_storm && self.weights.can_join_runs() {
                // As nearly everything overflows: all rows, and all runs but those whose events may be
                // their columns' earliest.
                let run = self.weights.runs[index];
                let is_known = events.knows_first(run.from);
                let last = if is_known { block.to - 1 } else { index };
                let to = self.weights.runs[last].to;
                let before = sum;
                self.avx512_walk(
                    Stretch { to, ..run },
                    all_rows(ROWS),
                    &before,
                    &mut copy,
                    events,
                );
                sum = copy;
                if is_known {
                    break;
                }
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
        let mut other = *acc;
        let (mut before, mut after) = (&mut *acc, &mut other);
        for index in block.from..block.to {
            self.avx512_between::<ROWS, GROUPS, VNNI>(index, before, after, events);
            std::mem::swap(&mut before, &mut after);
        }
        if (block.to - block.from) % 2 == 1 {
            *acc = other;
        }
    }

    /// A run by its beginning and its end, where that is worthwhile.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn avx512_between<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        index: usize,
        before: &Sums<ROWS, GROUPS>,
        after: &mut Sums<ROWS, GROUPS>,
        events: &mut Events<'_, ROWS, GROUPS>,
    ) {
        let mut bad = [all_rows(ROWS); GROUPS];
        if events.outlook.run.is_alive() {
            if self.avx512_proves::<ROWS, GROUPS, VNNI>(index, before, after) {
                events.outlook.run.note(true);
                return;
            }
            for group in 0..GROUPS {
                let (bounds, between) = (
                    self.run_bounds(group, index),
                    self.run_between(group, index),
                );
                bad[group] = failing(&before[group], &after[group], bounds, between);
            }
            let n_bad: u32 = bad.iter().map(|rows| rows.count_ones()).sum();
            let is_success = 2 * (n_bad as usize) < ROWS * GROUPS;
            events.outlook.run.note(is_success);
        } else {
            *after = *before;
        }
        self.avx512_bad::<ROWS, GROUPS, VNNI>(index, bad, before, after, events);
    }

    /// Adds a run; says whether all beginnings and ends prove that there was no event.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn avx512_proves<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        index: usize,
        before: &Sums<ROWS, GROUPS>,
        after: &mut Sums<ROWS, GROUPS>,
    ) -> bool {
        let bounds: [&Bounds; GROUPS] = std::array::from_fn(|group| self.run_bounds(group, index));
        let mut sum = *before;
        dot!(self, self.weights.runs[index], sum, bounds);
        let mut outside = 0;
        for group in 0..GROUPS {
            let between = self.run_between(group, index);
            let (mut least, mut most) = (sum[group][0], sum[group][0]);
            for row in 0..ROWS {
                let (before, after) = (before[group][row], sum[group][row]);
                least = _mm512_min_epi32(_mm512_min_epi32(least, before), after);
                most = _mm512_max_epi32(_mm512_max_epi32(most, before), after);
            }
            outside |= _mm512_cmplt_epi32_mask(least, load(&between.low));
            outside |= _mm512_cmpgt_epi32_mask(most, load(&between.high));
        }
        *after = sum;
        outside == 0
    }

    /// Rows of a run whose beginning and end leave open what happened between them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn avx512_bad<const ROWS: usize, const GROUPS: usize, const VNNI: bool>(
        &self,
        index: usize,
        mut bad: [u32; GROUPS],
        before: &Sums<ROWS, GROUPS>,
        acc: &mut Sums<ROWS, GROUPS>,
        events: &mut Events<'_, ROWS, GROUPS>,
    ) {
        // Where a run's ends say nothing of most rows, its quads do.
        let is_all = bad == [all_rows(ROWS); GROUPS];
        if self.weights.can_glance() && (is_all || events.outlook.quad.is_alive()) {
            for group in 0..GROUPS {
                let n_before = bad[group].count_ones();
                if n_before == 0 {
                    continue;
                }
                let tile = self.of_group(group);
                let (before, acc) = (&before[group], &mut acc[group]);
                bad[group] = tile.glance_rows::<ROWS, VNNI>(index, bad[group], before, acc);
                let n_after = bad[group].count_ones();
                if !is_all {
                    events.outlook.quad.note(2 * n_after < n_before);
                }
            }
        }
        let bad = bad.iter().fold(0, |all, rows| all | rows);
        if bad != 0 {
            self.avx512_walk(self.weights.runs[index], bad, before, acc, events);
        }
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
        if events.outlook.run.is_alive() {
            self.avx512_between::<ROWS, GROUPS, VNNI>(index, &before, acc, events);
            return;
        }
        let mut bad = [0; GROUPS];
        for group in 0..GROUPS {
            bad[group] = failing_before(&before[group], bounds[group]);
        }
        let n_bad: u32 = bad.iter().map(|rows| rows.count_ones()).sum();
        let glances = self.weights.can_glance() && events.outlook.quad.is_alive();
        if glances && 2 * n_bad as usize > ROWS * GROUPS {
            // Not worthwhile to sort them out.
            bad = [all_rows(ROWS); GROUPS];
        } else {
            self.avx512_dot::<ROWS, GROUPS, VNNI>(run, acc, bounds);
        }
        self.avx512_bad::<ROWS, GROUPS, VNNI>(index, bad, &before, acc, events);
    }

    /// Some rows step by step, in all columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    #[inline(never)]
    fn avx512_walk<const ROWS: usize, const GROUPS: usize>(
        &self,
        places: Stretch,
        rows: u32,
        before: &Sums<ROWS, GROUPS>,
        after: &mut Sums<ROWS, GROUPS>,
        events: &mut Events<'_, ROWS, GROUPS>,
    ) {
        let mut firsts = self.firsts(events);
        let mut walk = Walk {
            tile: *self,
            places,
            before,
            after,
            n_overflowed: (events.n_overflowed).get_or_insert([[[0; LANES]; ROWS]; GROUPS]),
            firsts: &mut firsts,
            n_seen: 0,
            is_storm: events.outlook.is_storm,
            room: events.outlook.room.get_or_insert_default(),
            records: events.records,
        };
        walk.rows(rows);
        let n_seen = walk.n_seen;
        events.end_walk(firsts, n_seen);
    }

    /// Adds a stretch to some rows of a group; says in which there could have been events all the same.
    ///
    /// The sums after every fourth step are looked at: if all of them stay farther from the limits than
    /// the steps between them can reach, nothing happened there either.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn glance_rows<const ROWS: usize, const VNNI: bool>(
        &self,
        run: usize,
        rows: u32,
        before: &[__m512i; ROWS],
        after: &mut [__m512i; ROWS],
    ) -> u32 {
        let mut rows = Rows(rows);
        let mut bad = 0;
        while rows.len() > 0 {
            bad |= match rows.len() {
                1..=2 => self.glance_at::<2, ROWS, VNNI>(run, &mut rows, before, after),
                3..=4 => self.glance_at::<4, ROWS, VNNI>(run, &mut rows, before, after),
                5..=6 => self.glance_at::<6, ROWS, VNNI>(run, &mut rows, before, after),
                _ => self.glance_at::<GLANCE, ROWS, VNNI>(run, &mut rows, before, after),
            };
        }
        bad
    }

    /// The next `N` of some rows; places that are left over repeat the last.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
    fn glance_at<const N: usize, const ROWS: usize, const VNNI: bool>(
        &self,
        run: usize,
        rows: &mut Rows,
        before: &[__m512i; ROWS],
        after: &mut [__m512i; ROWS],
    ) -> u32 {
        let places = self.weights.runs[run];
        let rows = rows.take::<N>();
        let mut sum = [_mm512_setzero_si512(); N];
        for (sum, row) in sum.iter_mut().zip(rows) {
            *sum = before[row];
        }
        let mut a = [std::ptr::null::<i32>(); N];
        for (a, row) in a.iter_mut().zip(rows) {
            *a = self.pixel(row)[places.from..places.to].as_ptr().cast();
        }
        let (mut least, mut most) = (sum, sum);
        let offset = _mm512_set1_epi8(self.weights.offset() as i8);
        let splits = self.weights.splits;
        let quads = self.quads(0, places).chunks_exact(4 * LANES);
        for (index_of_quad, w) in quads.enumerate() {
            // SAFETY: the chunk is 64 bytes long; there are as many quads of activations.
            let w = unsafe { _mm512_loadu_si512(w.as_ptr().cast()) };
            let correction = quad::<VNNI>(splits, _mm512_setzero_si512(), offset, w);
            for index in 0..N {
                // SAFETY: as above.
                let a = _mm512_set1_epi32(unsafe { a[index].add(index_of_quad).read_unaligned() });
                let next = _mm512_sub_epi32(sum[index], correction);
                sum[index] = quad::<VNNI>(splits, next, a, w);
                least[index] = _mm512_min_epi32(least[index], sum[index]);
                most[index] = _mm512_max_epi32(most[index], sum[index]);
            }
        }
        let between = self.run_between(0, run);
        let (lowest, highest) = (load(&between.quad_low), load(&between.quad_high));
        let mut bad = 0;
        for (index, row) in rows.into_iter().enumerate() {
            after[row] = sum[index];
            let outside = _mm512_cmplt_epi32_mask(least[index], lowest)
                | _mm512_cmpgt_epi32_mask(most[index], highest);
            bad |= u32::from(outside != 0) << row;
        }
        bad
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
        let mut firsts = [_mm512_setzero_si512(); GROUPS];
        for (group, first) in firsts.iter_mut().enumerate() {
            // Nobody asks for those of lanes without a column.
            let mut places = [0; LANES];
            let records = columns(self.weights, self.group + group, events.records);
            for (place, record) in places.iter_mut().zip(records) {
                let at = |k| self.weights.place(k as usize) as i32;
                *place = record.first_k.map_or(i32::MAX, at);
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

/// The rows of a run, as bits, in which there could have been events: some lane has neither a proof by
/// its beginning nor one by its beginning and its end.
#[target_feature(enable = "avx512f")]
fn failing(before: &[__m512i], after: &[__m512i], bounds: &Bounds, between: &Between) -> u32 {
    let (low, high) = (load(&bounds.low_32), load(&bounds.high_32));
    let (lowest, highest) = (load(&between.low), load(&between.high));
    let rows = before.iter().zip(after).enumerate();
    rows.fold(0, |bad, (row, (&before, &after))| {
        let (least, most) = (
            _mm512_min_epi32(before, after),
            _mm512_max_epi32(before, after),
        );
        let by_both =
            _mm512_cmplt_epi32_mask(least, lowest) | _mm512_cmpgt_epi32_mask(most, highest);
        let by_one = _mm512_cmplt_epi32_mask(before, low) | _mm512_cmpgt_epi32_mask(before, high);
        bad | u32::from(by_both & by_one != 0) << row
    })
}

/// The rows in which a run's proof by its beginning fails, as bits.
#[target_feature(enable = "avx512f")]
fn failing_before(before: &[__m512i], bounds: &Bounds) -> u32 {
    let (low, high) = (load(&bounds.low_32), load(&bounds.high_32));
    before.iter().enumerate().fold(0, |bad, (row, &before)| {
        let outside = _mm512_cmplt_epi32_mask(before, low) | _mm512_cmpgt_epi32_mask(before, high);
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

/// As many rows, as bits.
fn all_rows(n: usize) -> u32 {
    (1 << n) - 1
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
