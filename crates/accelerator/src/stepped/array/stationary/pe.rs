//! The PEs of an array whose operands stay, register by register: shift chains, working operands,
//! products, partial sums.
//!
//! Invariant: a partial sum stands in its register for exactly one cycle; whoever is below takes it
//! then.

#![expect(
    clippy::inline_always,
    clippy::needless_range_loop,
    reason = "what is not inlined is not compiled for the processor's registers; lists go in step"
)]

use crate::stepped::{
    line::{Lines, Rows},
    pe::Nibble,
    sums::{Adder, Done, LANES, Sums, at, choose, mask, with_adder},
};
use arith::AccumulatorFormat;

/// An operand that stays, or part of one: its nibbles as they arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub low: Nibble,
    /// Of 8 bits.
    pub high: Option<Nibble>,
}

/// What moves into a column's chain, as marks beside the nibble.
pub(crate) mod mark {
    /// Something comes.
    pub const COMES: i32 = 1;
    /// It is a nibble: row and column are in use.
    pub const IS_USED: i32 = 2;
    /// It is the upper half of the value at the bottom; the chain does not move.
    pub const COMPLETES: i32 = 4;
    /// Nothing of the preload follows.
    pub const IS_LAST: i32 = 8;
}

/// What the PEs see of a pass, signal by signal: PE (row, column) sees register `row + column`. Masks.
pub(crate) mod signal {
    /// Something came.
    pub const COMES: usize = 0;
    /// The lower half of the held operand is met, not the upper.
    pub const MEETS_LOW: usize = 1;
    /// It is not an element's first pass: the product goes on.
    pub const KEEPS: usize = 2;
    /// The chain's value becomes the working one.
    pub const TAKES: usize = 3;
    /// An element's last pass.
    pub const ADDS: usize = 4;
    /// The streaming nibble is an upper half.
    pub const IS_HIGH: usize = 5;
    /// How many there are.
    pub const COUNT: usize = 6;
}

/// Where the sums of a pass go.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pass {
    /// The instruction.
    pub index: usize,
    /// It is an element's last pass: sums come down.
    pub has_sums: bool,
    /// Nothing of the stream follows.
    pub is_last: bool,
    /// Columns in use.
    pub n_columns: u32,
    /// Number of the element.
    pub element: u32,
    pub block: u32,
    pub row: u32,
    /// Adds to the entry, else overwrites it.
    pub accumulate: bool,
    /// Step that an overflow of this add counts for.
    pub last_k: u32,
    /// The first channel's counter, where the reduction ends.
    pub counter: Option<u32>,
}

/// The registers that streaming operands and what comes with them stand in.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    /// See [`signal`].
    pub signals: Lines<i32>,
    /// One line an array row: the nibble, weighed. PE (row, column) holds register `row + column`.
    pub nibbles: Lines<i32>,
    /// As many: a mask, set where the row is in use.
    pub is_used: Lines<i32>,
    /// As many: the step of the reduction.
    pub k: Lines<i32>,
    /// What sums begin with, at the top of each column.
    pub initial: Rows<i32>,
    /// PE (row, column)'s sum is that of register `row + column + 1`.
    pub passes: Lines<Pass>,
}

/// Operands of PEs side by side.
#[derive(Clone, Copy, Debug, Default)]
struct Operands {
    /// Weighed.
    low: [i32; LANES],
    high: [i32; LANES],
    /// Masks.
    is_set: [i32; LANES],
    has_high: [i32; LANES],
}

impl Operands {
    fn held(&self, lane: usize) -> Option<Held> {
        let nibble = |weighed, high| Nibble::of_weighed(weighed, high);
        (self.is_set[lane] != 0).then(|| Held {
            low: nibble(self.low[lane], false),
            high: (self.has_high[lane] != 0).then(|| nibble(self.high[lane], true)),
        })
    }

    /// Other operands where the mask says so.
    #[inline(always)]
    fn merge(&mut self, takes: &[i32; LANES], other: &Self) {
        let before = *self;
        for i in 0..LANES {
            self.low[i] = choose(takes[i], other.low[i], before.low[i]);
            self.high[i] = choose(takes[i], other.high[i], before.high[i]);
            self.is_set[i] = choose(takes[i], other.is_set[i], before.is_set[i]);
            self.has_high[i] = choose(takes[i], other.has_high[i], before.has_high[i]);
        }
    }
}

/// Registers of all PEs, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    /// Places in the columns' chains.
    chain: Vec<Operands>,
    /// The operands in use (with `shadow_operands`, else the chains' are).
    working: Vec<Operands>,
    /// The products of the element so far.
    products: Vec<[i32; LANES]>,
    /// For the PEs below.
    pub sums: Sums,
}

impl Grid {
    pub fn new(rows: usize, columns: usize) -> Self {
        let n = rows * columns.div_ceil(LANES);
        Self {
            chain: vec![Operands::default(); n],
            working: vec![Operands::default(); n],
            products: vec![[0; LANES]; n],
            sums: Sums::new(rows, columns),
        }
    }

    /// Places in the chain and in use, and the product.
    pub fn operands(&self, row: usize, column: usize) -> (Option<Held>, Option<Held>, i32) {
        let (place, lane) = (row * self.sums.n_groups + column / LANES, column % LANES);
        (
            self.chain[place].held(lane),
            self.working[place].held(lane),
            self.products[place][lane],
        )
    }

    /// One pass of all PEs with what the registers hold.
    pub fn step(&mut self, streams: &Streams, shadow: bool, format: AccumulatorFormat) -> Done {
        step_all(self, streams, shadow, format)
    }

    /// What comes moves into the chains, or completes the values at their ends.
    pub fn move_chains(&mut self, nibbles: &[i32], marks: &[i32]) {
        let n_groups = self.sums.n_groups;
        move_chains(&mut self.chain, n_groups, nibbles, marks);
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn move_chains(chain: &mut [Operands], n_groups: usize, nibbles: &[i32], marks: &[i32]) {
    let n_rows = chain.len() / n_groups;
    let marks = marks.as_chunks::<LANES>().0;
    let groups = nibbles.as_chunks::<LANES>().0.iter().zip(marks);
    for (group, (nibbles, marks)) in groups.enumerate() {
        let mut masks = [[0; LANES]; 3];
        for i in 0..LANES {
            let completes = mask(marks[i] & mark::COMPLETES != 0);
            masks[0][i] = mask(marks[i] & mark::COMES != 0) & !completes;
            masks[1][i] = completes;
            masks[2][i] = mask(marks[i] & mark::IS_USED != 0);
        }
        let [moves, completes, is_used] = masks;
        if moves != [0; LANES] {
            for row in 1..n_rows {
                let below = chain[row * n_groups + group];
                chain[(row - 1) * n_groups + group].merge(&moves, &below);
            }
        }
        let bottom = &mut chain[(n_rows - 1) * n_groups + group];
        let new = Operands {
            low: *nibbles,
            is_set: is_used,
            ..Operands::default()
        };
        bottom.merge(&moves, &new);
        let completed = Operands {
            high: *nibbles,
            has_high: is_used,
            ..*bottom
        };
        bottom.merge(&completes, &completed);
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn step_all(grid: &mut Grid, streams: &Streams, shadow: bool, format: AccumulatorFormat) -> Done {
    with_adder!(format, adder => each_row(grid, streams, shadow, adder))
}

#[inline(always)]
fn each_row(grid: &mut Grid, streams: &Streams, shadow: bool, adder: impl Adder) -> Done {
    let mut done = Done::default();
    let n_groups = grid.sums.n_groups;
    let signals: [&[i32]; signal::COUNT] = std::array::from_fn(|i| streams.signals.line(i));
    // From the bottom to the top: each takes the sum that the one above had.
    for row in (0..grid.chain.len() / n_groups).rev() {
        let (nibbles, k) = (streams.nibbles.line(row), streams.k.line(row));
        let is_used = streams.is_used.line(row);
        for group in 0..n_groups {
            let first = row + group * LANES;
            let signal = |signal: usize| at(signals[signal], first);
            let (comes, keeps) = (signal(signal::COMES), signal(signal::KEEPS));
            let (meets_low, adds) = (signal(signal::MEETS_LOW), signal(signal::ADDS));
            let place = row * n_groups + group;
            let takes = signal(signal::TAKES);
            if shadow && takes != [0; LANES] {
                let chain = grid.chain[place];
                grid.working[place].merge(&takes, &chain);
            }
            let held = if shadow {
                &grid.working[place]
            } else {
                &grid.chain[place]
            };
            let (nibbles, is_used) = (at(nibbles, first), at(is_used, first));
            let before = grid.products[place];
            let held = *held;
            let mut now = [0; LANES];
            let mut is_sum = [0; LANES];
            let mut counts = [0i32; 2];
            for i in 0..LANES {
                let is_product = held.is_set[i] & is_used[i] & comes[i];
                let half = choose(meets_low[i], held.low[i], held.high[i]);
                let partial = half.wrapping_mul(nibbles[i]) & is_product;
                let after = (before[i] & keeps[i]).wrapping_add(partial);
                now[i] = choose(comes[i], after, before[i]);
                is_sum[i] = is_product & adds[i];
                counts[0] = counts[0].wrapping_sub(is_product);
                counts[1] = counts[1].wrapping_sub(is_sum[i]);
            }
            grid.products[place] = now;
            done.n_multiplied += counts[0] as u64;
            done.n_accumulated += counts[1] as u64;
            let top = &streams.initial.row(0).as_chunks().0[group];
            let step = (&is_sum, &at(k, first));
            grid.sums.take_from_above(place, top, &now, step, adder);
        }
    }
    done
}
