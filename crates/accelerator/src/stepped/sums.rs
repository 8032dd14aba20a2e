//! The accumulators of all PEs, register by register, and one cycle of all PEs at once.
//!
//! Invariant: a PE changes its accumulator only in the last pass of a step, once, by the whole product,
//! as [`Accumulator::add`] says.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

use super::{
    line::{Lines, Rows},
    pe::Accumulator,
};
use arith::{AccumulatorFormat, ChannelOverflow};
use std::ops::{BitAnd, BitXor, BitXorAssign, Neg};

/// PEs of a row that are computed side by side.
pub(crate) const LANES: usize = 16;

/// From here on a sum of one product more may leave 32 bits.
pub(crate) const FIRST_WIDE_BITS: u8 = 31;

/// An expression with the [`Adder`] of a format, one for each kind.
macro_rules! with_adder {
    ($format:expr, $adder:ident => $made:expr) => {
        match ($format.width_bits, $format.overflow) {
            ($crate::stepped::sums::FIRST_WIDE_BITS.., _) => {
                let $adder = $crate::stepped::sums::Wide($format);
                $made
            }
            (_, arith::Overflow::Saturate) => {
                let $adder = $crate::stepped::sums::Saturating($format);
                $made
            }
            (_, arith::Overflow::Wrap) => {
                let $adder = $crate::stepped::sums::Wrapping($format);
                $made
            }
        }
    };
}
pub(crate) use with_adder;

/// The accumulators of PEs side by side, register by register.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Group {
    acc: [i32; LANES],
    exact: [i64; LANES],
    least: [i64; LANES],
    most: [i64; LANES],
    n_overflowed: [i32; LANES],
    /// Bits of a step's number; means nothing before the first overflow.
    first_k: [i32; LANES],
}

impl Group {
    /// All begin with these values.
    #[inline(always)]
    pub fn starting_at(initial: &[i32; LANES]) -> Self {
        let exact = initial.map(i64::from);
        Self {
            acc: *initial,
            exact,
            least: exact,
            most: exact,
            ..Self::NEW
        }
    }

    /// Becomes others, with a product of step `k` more where the mask says so.
    #[inline(always)]
    pub fn take(
        &mut self,
        others: &Self,
        products: &[i32; LANES],
        (is_sum, k): (&[i32; LANES], &[i32; LANES]),
        adder: impl Adder,
    ) {
        let before = *others;
        for i in 0..LANES {
            let now = products[i] & is_sum[i];
            let (sum, overflowed) = adder.add(before.acc[i], now);
            self.acc[i] = sum;
            let is_first = mask(overflowed != 0) & mask(before.n_overflowed[i] == 0);
            self.first_k[i] = choose(is_first, k[i], before.first_k[i]);
            self.n_overflowed[i] = before.n_overflowed[i].wrapping_add(overflowed);
            let sum = before.exact[i].wrapping_add(now.into());
            self.exact[i] = sum;
            self.least[i] = before.least[i].min(sum);
            self.most[i] = before.most[i].max(sum);
        }
    }

    /// None of them is set.
    const NEW: Self = Self {
        acc: [0; LANES],
        exact: [0; LANES],
        least: [i64::MAX; LANES],
        most: [i64::MIN; LANES],
        n_overflowed: [0; LANES],
        first_k: [0; LANES],
    };
}

/// The accumulators of a grid, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    /// Groups of a row.
    pub n_groups: usize,
    pub groups: Vec<Group>,
}

impl Sums {
    /// None of them is set.
    pub fn new(rows: usize, columns: usize) -> Self {
        let n_groups = columns.div_ceil(LANES);
        Self {
            n_groups,
            groups: vec![Group::NEW; rows * n_groups],
        }
    }

    /// One PE's.
    pub fn get(&self, row: usize, column: usize) -> Accumulator {
        let group = &self.groups[row * self.n_groups + column / LANES];
        let lane = column % LANES;
        let n_overflowed = group.n_overflowed[lane];
        Accumulator {
            acc: group.acc[lane],
            exact: group.exact[lane],
            seen: ChannelOverflow {
                n_overflowed: u64::from(n_overflowed as u32),
                n_outputs_touched: (n_overflowed != 0).into(),
                first_k: (n_overflowed != 0).then_some(group.first_k[lane] as u32),
                min_partial_sum: group.least[lane],
                max_partial_sum: group.most[lane],
            },
        }
    }

    /// Takes over one PE's from another grid of the same size.
    pub fn take(&mut self, from: &Self, row: usize, column: usize) {
        let (place, lane) = (row * self.n_groups + column / LANES, column % LANES);
        let (group, from) = (&mut self.groups[place], &from.groups[place]);
        group.acc[lane] = from.acc[lane];
        group.exact[lane] = from.exact[lane];
        group.least[lane] = from.least[lane];
        group.most[lane] = from.most[lane];
        group.n_overflowed[lane] = from.n_overflowed[lane];
        group.first_k[lane] = from.first_k[lane];
    }

    /// Every column moves down by one PE, from row `from[column]` to the last; what stood there stays
    /// there too.
    pub fn move_down(&mut self, from: &[[i32; LANES]]) {
        move_down(self, from);
    }
}

/// What the PEs see of a pass, signal by signal: PE (row, column) sees register `row + column`.
pub(crate) mod signal {
    /// Array rows in use; 0 when nothing came.
    pub const ROWS: usize = 0;
    /// Array columns in use.
    pub const COLUMNS: usize = 1;
    /// All bits set unless it is a step's first pass: the product goes on.
    pub const KEEPS: usize = 2;
    /// All bits set in a step's last pass.
    pub const ADDS: usize = 3;
    /// All bits set where the accumulator begins anew: in the last pass of a fold's first step.
    pub const BEGINS: usize = 4;
    /// Step of the fold.
    pub const K: usize = 5;
    /// What concerns no PE's arithmetic.
    pub const MARKS: usize = 6;
    /// How many there are.
    pub const COUNT: usize = 7;
}

/// The registers that operands stand in.
#[derive(Clone, Debug)]
pub(crate) struct Operands {
    /// See [`signal`].
    pub signals: Lines<i32>,
    /// One line an array row: the activation's nibble, weighed. PE (row, column) holds register
    /// `row + column`.
    pub activations: Lines<i32>,
    /// The weight's nibble, weighed.
    pub weights: Rows<i32>,
    /// What sums begin with.
    pub initial: Rows<i32>,
    /// Latest passes, one after the other, that need no look at their signals: one to a step, no
    /// fold's first, every row and column in use.
    pub n_plain: usize,
}

/// What PEs have done in a cycle.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub n_multiplied: u64,
    pub n_accumulated: u64,
}

/// One pass of all PEs of `(rows, columns)` with the operands that the registers hold.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn step(
    sums: &mut Sums,
    products: &mut [[i32; LANES]],
    operands: &Operands,
    format: AccumulatorFormat,
    size: (usize, usize),
) -> Done {
    with_adder!(format, adder => each_row(sums, products, operands, adder, size))
}

/// A format's [`AccumulatorFormat::add`].
pub(crate) trait Adder: Copy {
    /// The accumulator after the add, and 1 where the sum did not fit.
    fn add(self, acc: i32, product: i32) -> (i32, i32);
}

#[derive(Clone, Copy)]
pub(crate) struct Wide(pub AccumulatorFormat);

impl Adder for Wide {
    #[inline(always)]
    fn add(self, acc: i32, product: i32) -> (i32, i32) {
        let sum = self.0.add(acc, product);
        (sum.acc, sum.overflowed.into())
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Saturating(pub AccumulatorFormat);

impl Adder for Saturating {
    #[inline(always)]
    fn add(self, acc: i32, product: i32) -> (i32, i32) {
        let sum = acc.wrapping_add(product);
        let kept = sum.max(self.0.min()).min(self.0.max());
        (kept, (kept != sum).into())
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Wrapping(pub AccumulatorFormat);

impl Adder for Wrapping {
    #[inline(always)]
    fn add(self, acc: i32, product: i32) -> (i32, i32) {
        let sum = acc.wrapping_add(product);
        let unused = 32 - u32::from(self.0.width_bits);
        let kept = (sum << unused) >> unused;
        (kept, (kept != sum).into())
    }
}

#[inline(always)]
fn each_row(
    sums: &mut Sums,
    products: &mut [[i32; LANES]],
    operands: &Operands,
    adder: impl Adder,
    (n_rows, n_columns): (usize, usize),
) -> Done {
    let mut done = Done::default();
    let n_groups = sums.n_groups;
    let signals: [&[i32]; signal::COUNT] = std::array::from_fn(|i| operands.signals.line(i));
    let rows = sums.groups.chunks_exact_mut(n_groups);
    let rows = rows.zip(products.chunks_exact_mut(n_groups));
    for (row, (groups, products)) in rows.enumerate().take(n_rows) {
        let activations = operands.activations.line(row)[row..].as_chunks().0;
        let weights = operands.weights.row(row).as_chunks().0;
        let lanes = groups.iter_mut().zip(products);
        let lanes = lanes.zip(activations.iter().zip(weights)).enumerate();
        if operands.n_plain >= row + n_columns {
            done.n_multiplied += n_columns as u64;
            done.n_accumulated += n_columns as u64;
            for (index, ((group, product), (activations, weights))) in lanes {
                let k = || at(signals[signal::K], row + index * LANES);
                plain(group, product, (activations, weights), k, adder);
            }
            continue;
        }
        let initial: &[[i32; LANES]] = operands.initial.row(row).as_chunks().0;
        for (index, ((group, product), (activations, weights))) in lanes {
            let signal = |signal: usize| at(signals[signal], row + index * LANES);
            let signals = Signals {
                rows: signal(signal::ROWS),
                columns: signal(signal::COLUMNS),
                keeps: signal(signal::KEEPS),
                adds: signal(signal::ADDS),
                begins: signal(signal::BEGINS),
                k: signal(signal::K),
                initial: initial[index],
            };
            let position = (row as i32, (index * LANES) as i32);
            let operands = (activations, weights);
            let of_group = masked(group, product, operands, &signals, position, adder);
            done.n_multiplied += of_group[0] as u64;
            done.n_accumulated += of_group[1] as u64;
        }
    }
    done
}

/// The registers of a line that PEs side by side see, the first of which sees register `from`.
#[inline(always)]
pub(crate) fn at(line: &[i32], from: usize) -> [i32; LANES] {
    *line[from..]
        .first_chunk()
        .expect("a line reaches the last PE")
}

/// At PEs side by side: see [`signal`].
struct Signals {
    rows: [i32; LANES],
    columns: [i32; LANES],
    keeps: [i32; LANES],
    adds: [i32; LANES],
    begins: [i32; LANES],
    k: [i32; LANES],
    initial: [i32; LANES],
}

/// The only pass of a step that is no fold's first, where every PE is in use.
#[inline(always)]
fn plain(
    group: &mut Group,
    product: &mut [i32; LANES],
    (activations, weights): (&[i32; LANES], &[i32; LANES]),
    k: impl FnOnce() -> [i32; LANES],
    adder: impl Adder,
) {
    let mut now = [0; LANES];
    let mut overflows = [0; LANES];
    let mut any = 0;
    for i in 0..LANES {
        now[i] = activations[i].wrapping_mul(weights[i]);
        let (sum, overflowed) = adder.add(group.acc[i], now[i]);
        group.acc[i] = sum;
        overflows[i] = overflowed;
        any |= overflowed;
        let sum = group.exact[i].wrapping_add(now[i].into());
        group.exact[i] = sum;
        group.least[i] = group.least[i].min(sum);
        group.most[i] = group.most[i].max(sum);
    }
    *product = now;
    if any != 0 {
        let k = k();
        for i in 0..LANES {
            let is_first = mask(overflows[i] != 0) & mask(group.n_overflowed[i] == 0);
            group.first_k[i] = choose(is_first, k[i], group.first_k[i]);
            group.n_overflowed[i] = group.n_overflowed[i].wrapping_add(overflows[i]);
        }
    }
}

/// Any pass. How many PEs multiplied, and how many accumulated.
#[inline(always)]
fn masked(
    group: &mut Group,
    product: &mut [i32; LANES],
    (activations, weights): (&[i32; LANES], &[i32; LANES]),
    signals: &Signals,
    (row, column): (i32, i32),
    adder: impl Adder,
) -> [i32; 2] {
    let mut done = [0i32; 2];
    for i in 0..LANES {
        let is_used = mask(signals.rows[i] > row) & mask(signals.columns[i] > column + i as i32);
        let (adds, begins) = (signals.adds[i], signals.begins[i]);
        let is_sum = adds & is_used;
        // What the hardware adds up in a PE that is not in use belongs to no output.
        let is_nothing = adds & !is_used;
        let partial = activations[i].wrapping_mul(weights[i]);
        let now = (product[i] & signals.keeps[i]).wrapping_add(partial);
        product[i] = choose(is_used, now, product[i]);
        let now = now & is_sum;

        let initial = signals.initial[i];
        let stays = group.acc[i] & !is_nothing;
        let (sum, overflowed) = adder.add(choose(begins, initial, group.acc[i]), now);
        group.acc[i] = choose(is_sum, sum, stays);
        let is_new = is_nothing | (is_sum & begins);
        let n_before = group.n_overflowed[i] & !is_new;
        let overflowed = overflowed & is_sum;
        let is_first = mask(overflowed != 0) & mask(n_before == 0);
        group.first_k[i] = choose(is_first, signals.k[i], group.first_k[i]);
        group.n_overflowed[i] = n_before.wrapping_add(overflowed);
        done[0] = done[0].wrapping_sub(is_used);
        done[1] = done[1].wrapping_sub(is_sum);

        let wide = |mask: i32| i64::from(mask);
        let (begins, is_sum, is_nothing) = (wide(begins), wide(is_sum), wide(is_nothing));
        let initial = i64::from(initial);
        let sum = choose_wide(begins, initial, group.exact[i]).wrapping_add(now.into());
        let stays = group.exact[i] & !is_nothing;
        let least = choose_wide(begins, initial, group.least[i]).min(sum);
        let most = choose_wide(begins, initial, group.most[i]).max(sum);
        group.exact[i] = choose_wide(is_sum, sum, stays);
        let stays = choose_wide(is_nothing, i64::MAX, group.least[i]);
        group.least[i] = choose_wide(is_sum, least, stays);
        let stays = choose_wide(is_nothing, i64::MIN, group.most[i]);
        group.most[i] = choose_wide(is_sum, most, stays);
    }
    done
}

/// All bits set where something holds. Conditions are masks, because the compiler would make branches
/// of them.
#[inline(always)]
pub(crate) fn mask(holds: bool) -> i32 {
    -i32::from(holds)
}

#[inline(always)]
pub(crate) fn choose(mask: i32, yes: i32, no: i32) -> i32 {
    no ^ ((no ^ yes) & mask)
}

#[inline(always)]
fn choose_wide(mask: i64, yes: i64, no: i64) -> i64 {
    no ^ ((no ^ yes) & mask)
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn move_down(sums: &mut Sums, from: &[[i32; LANES]]) {
    let n_groups = sums.n_groups;
    let n_rows = sums.groups.len() / n_groups;
    for row in (1..n_rows).rev() {
        let (above, below) = sums.groups.split_at_mut(row * n_groups);
        let above = &above[(row - 1) * n_groups..];
        for ((above, below), from) in above.iter().zip(below).zip(from) {
            let moves = from.map(|from| mask(row as i32 > from));
            merge(&moves, &above.acc, &mut below.acc);
            merge(&moves, &above.exact, &mut below.exact);
            merge(&moves, &above.least, &mut below.least);
            merge(&moves, &above.most, &mut below.most);
            merge(&moves, &above.n_overflowed, &mut below.n_overflowed);
            merge(&moves, &above.first_k, &mut below.first_k);
        }
    }
}

/// What comes from above, where the mask says so.
#[inline(always)]
fn merge<T>(mask: &[i32; LANES], from: &[T; LANES], to: &mut [T; LANES])
where
    T: Copy + From<bool> + BitAnd<Output = T> + BitXor<Output = T> + BitXorAssign + Neg<Output = T>,
{
    for i in 0..LANES {
        let mask = -T::from(mask[i] != 0);
        to[i] ^= (to[i] ^ from[i]) & mask;
    }
}
