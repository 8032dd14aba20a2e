//! Sums on their way into an accumulator block: which of them have arrived by when.
//!
//! Invariant: every sum lands once, in its cycle or later, and sums for the same entry in the order of their
//! landings, if those are told in that order.

use crate::stepped::{
    memory::Memories,
    sums::{FIRST, Group, LANES, Sums, n_lanes},
};
use arith::{AccumulatorFormat, ChannelOverflow};

/// Whose overflow counter a sum's record is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counters {
    /// The column's, counted from this one on.
    OfColumns(u32),
    /// The row's.
    OfRows(u32),
}

impl Counters {
    fn counter(self, row: usize, column: usize) -> usize {
        match self {
            Self::OfColumns(first) => first as usize + column,
            Self::OfRows(first) => first as usize + row,
        }
    }
}

/// Sums of some rows, from left to right and in the order of rows or against it.
#[derive(Debug)]
pub(crate) struct Landing {
    pub block: u32,
    /// Of the block.
    pub first_row: u32,
    pub sums: Sums,
    pub n_rows: u32,
    pub n_columns: u32,
    /// Cycle in which the first column of the first row lands. The next column lands one cycle later.
    pub first: u64,
    /// Cycles from a row to the next.
    pub pace: i64,
    /// The step of the reduction that overflows of the adds to the entries count for; where nothing is added,
    /// entries are overwritten.
    pub adds_at: Option<u32>,
    /// Where the reduction ends.
    pub counters: Option<Counters>,
    /// What is due before this cycle has landed.
    pub landed_to: u64,
}

impl Landing {
    /// Whether all is due before cycle `now`.
    pub fn ends_before(&self, now: u64) -> bool {
        let last = self.due(0).max(self.due(self.n_rows - 1));
        last + u64::from(self.n_columns) <= now
    }

    /// When the first column of a row lands.
    fn due(&self, row: u32) -> u64 {
        self.first.wrapping_add_signed(i64::from(row) * self.pace)
    }

    /// What lands before cycle `now`, and has not yet; how many of the sums.
    pub fn land(
        &mut self,
        now: u64,
        format: AccumulatorFormat,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) -> u64 {
        let window = (self.landed_to, now);
        self.landed_to = now;
        let block = &mut memories.blocks[self.block as usize];
        let mut n_landed = 0;
        for index in 0..(self.n_columns as usize).div_ceil(LANES) {
            n_landed += land_group(self, index, window, format, block, overflow);
        }
        memories.count_entries(n_landed * (1 + u64::from(self.adds_at.is_some())));
        n_landed
    }
}

/// What lands in a group of columns from one cycle on and before another; how many of the sums.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn land_group(
    landing: &Landing,
    index: usize,
    (from, to): (u64, u64),
    format: AccumulatorFormat,
    block: &mut Sums,
    overflow: &mut [ChannelOverflow],
) -> u64 {
    let mut count = |counter: usize, seen: &ChannelOverflow| {
        // The rules keep every counter inside the program's number.
        if let Some(counter) = overflow.get_mut(counter) {
            counter.merge(seen);
        }
    };
    let first = index * LANES;
    let n_columns = n_lanes(landing.n_columns as usize, index);
    let n_groups = block.n_groups;
    let mut n_landed = 0;
    // Extremes of the columns' records, or of those of a row.
    let mut seen = Group::NEW;
    for row in 0..landing.n_rows {
        let due = landing.due(row) + first as u64;
        let until = |cycle: u64| (cycle.saturating_sub(due) as usize).min(n_columns);
        let (done, end) = (until(from), until(to));
        if done >= end {
            continue;
        }
        n_landed += (end - done) as u64;
        let mut lands = FIRST[end];
        for (lands, done) in lands.iter_mut().zip(&FIRST[done]) {
            *lands &= !done;
        }
        let (row, block_row) = (row as usize, (landing.first_row + row) as usize);
        let (at, place) = (row * n_groups + index, block_row * n_groups + index);
        match landing.adds_at {
            Some(k) => block.add(place, (&landing.sums, at), &lands, (format, k)),
            None => block.take(place, (&landing.sums, at), &lands),
        }
        let Some(counters) = landing.counters else {
            continue;
        };
        if !block.see(place, &lands, &mut seen) {
            for lane in done..end {
                let value = block.get(block_row, first + lane);
                count(counters.counter(row, first + lane), &value.seen);
            }
        }
        if let Counters::OfRows(_) = counters {
            for (lane, seen) in seen.each_seen() {
                count(counters.counter(row, first + lane), &seen);
            }
            seen = Group::NEW;
        }
    }
    if let Some(counters @ Counters::OfColumns(_)) = landing.counters {
        for (lane, seen) in seen.each_seen() {
            count(counters.counter(0, first + lane), &seen);
        }
    }
    n_landed
}
