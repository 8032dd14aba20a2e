//! The PEs of an array whose sums stay: what they see of operands, and the pass that they do in a cycle.
//!
//! Invariant: a PE changes its accumulator only in the last pass of a step, once, by the whole product,
//! as [`Accumulator::add`](crate::stepped::pe::Accumulator::add) says.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

use crate::stepped::{
    line::{Lines, Rows},
    sums::{
        Adder, Done, Group, LANES, Registers, Slot, Sums, at, choose, mask, take_wide, with_adder,
    },
};
use arith::AccumulatorFormat;

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
}

/// The pass of all PEs that the operands in the registers are.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn step(
    sums: &mut Sums,
    products: &mut [[i32; LANES]],
    operands: &Operands,
    format: AccumulatorFormat,
) -> Done {
    with_adder!(format, adder => each_row(sums, products, operands, (format, adder)))
}

#[inline(always)]
fn each_row(
    sums: &mut Sums,
    products: &mut [[i32; LANES]],
    operands: &Operands,
    (format, adder): (AccumulatorFormat, impl Adder),
) -> Done {
    let mut done = Done::default();
    let n_groups = sums.n_groups;
    let slots = sums.slots().zip(products);
    for (at, (mut slot, product)) in slots.enumerate() {
        let place = Place {
            operands,
            row: at / n_groups,
            index: at % n_groups,
        };
        let counts = pass(&mut slot, product, &place, (format, adder));
        done.n_multiplied += counts[0] as u64;
        done.n_accumulated += counts[1] as u64;
    }
    done
}

/// What PEs side by side see of the operands.
struct Place<'a> {
    operands: &'a Operands,
    row: usize,
    /// Which group of the row.
    index: usize,
}

impl Place<'_> {
    #[inline(always)]
    fn signal(&self, signal: usize) -> [i32; LANES] {
        let line = self.operands.signals.line(signal);
        at(line, self.row + self.index * LANES)
    }

    #[inline(always)]
    fn column(&self, rows: &Rows<i32>) -> [i32; LANES] {
        at(rows.row(self.row), self.index * LANES)
    }

    #[inline(always)]
    fn activations(&self) -> [i32; LANES] {
        let line = self.operands.activations.line(self.row);
        at(line, self.row + self.index * LANES)
    }
}

/// How many PEs multiplied, and how many accumulated.
#[inline(always)]
fn pass(
    slot: &mut Slot<'_>,
    product: &mut [i32; LANES],
    place: &Place<'_>,
    (format, adder): (AccumulatorFormat, impl Adder),
) -> [i32; 2] {
    let signal = |signal| place.signal(signal);
    let (rows, columns) = (signal(signal::ROWS), signal(signal::COLUMNS));
    let (keeps, adds) = (signal(signal::KEEPS), signal(signal::ADDS));
    let mut begins = signal(signal::BEGINS);
    let (row, column) = (place.row as i32, (place.index * LANES) as i32);
    let (activations, weights) = (place.activations(), place.column(&place.operands.weights));
    let mut done = [0i32; 2];
    let mut now = [0; LANES];
    let mut is_sum = [0; LANES];
    // What the hardware adds up in a PE that is not in use belongs to no output.
    let mut is_nothing = [0; LANES];
    for i in 0..LANES {
        let is_used = mask(rows[i] > row) & mask(columns[i] > column + i as i32);
        is_sum[i] = adds[i] & is_used;
        is_nothing[i] = adds[i] & !is_used;
        begins[i] &= is_sum[i];
        let partial = activations[i].wrapping_mul(weights[i]);
        let sum = (product[i] & keeps[i]).wrapping_add(partial);
        product[i] = choose(is_used, sum, product[i]);
        now[i] = sum & is_sum[i];
        done[0] = done[0].wrapping_sub(is_used);
        done[1] = done[1].wrapping_sub(is_sum[i]);
    }
    let initial = place.column(&place.operands.initial);
    if *slot.is_wide {
        let mut before = slot.registers();
        before.merge(&is_nothing, &Registers::from(&Group::NEW));
        before.merge(&begins, &Registers::from(&Group::starting_at(&initial)));
        let k = signal(signal::K);
        take_wide(slot, &before, &now, (&is_sum, &k), format);
        return done;
    }
    let mut before = *slot.group;
    let mut group = before;
    let mut any = 0;
    for i in 0..LANES {
        let cleared = |initial, nothing, before| {
            choose(begins[i], initial, choose(is_nothing[i], nothing, before))
        };
        before.acc[i] = cleared(initial[i], 0, before.acc[i]);
        before.least[i] = cleared(initial[i], i32::MAX, before.least[i]);
        before.most[i] = cleared(initial[i], i32::MIN, before.most[i]);
        let (sum, overflowed) = adder.add(before.acc[i], now[i]);
        let [least, most] = [before.least[i], before.most[i]];
        group.acc[i] = choose(is_sum[i], sum, before.acc[i]);
        group.least[i] = choose(is_sum[i], least.min(sum), least);
        group.most[i] = choose(is_sum[i], most.max(sum), most);
        any |= overflowed & is_sum[i];
    }
    if any != 0 {
        let k = signal(signal::K);
        let before = Registers::from(&before);
        take_wide(slot, &before, &now, (&is_sum, &k), format);
        return done;
    }
    *slot.group = group;
    done
}
