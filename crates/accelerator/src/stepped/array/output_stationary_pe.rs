//! The PEs of an array whose sums stay: what they see of operands, and the passes that they do, many of the
//! same kind at once.
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
        Adder, Done, Group, LANES, Registers, Slot, Sums, at, choose, mask, merge, take_wide,
        with_adder,
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
    /// Latest passes, one after the other.
    pub latest: Latest,
}

/// What the latest passes have in common.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Latest {
    /// Rows and columns in use, and passes of a step.
    pub shape: (u32, u32, u32),
    /// A step of it has passed: what is not in use holds nothing.
    is_whole: bool,
    /// Passes of that shape since.
    pub n_alike: usize,
    /// The latest of these without initial values.
    pub n_steady: usize,
}

impl Latest {
    /// One pass more.
    pub fn note(&mut self, shape: (u32, u32, u32), has_initial: bool, is_last_pass: bool) {
        if shape != self.shape {
            *self = Self {
                shape,
                ..Self::default()
            };
        }
        if self.is_whole {
            self.n_alike += 1;
            self.n_steady = if has_initial { 0 } else { self.n_steady + 1 };
        }
        self.is_whole |= is_last_pass;
    }

    /// So many more like the latest, without initial values.
    pub fn note_more(&mut self, n: usize) {
        self.n_alike += n;
        self.n_steady += n;
    }

    /// Rows of which each PE saw so many of its latest passes among the last `n_such`.
    fn n_rows(n_such: usize, n_columns: usize, n_passes: usize) -> usize {
        (n_such + 2).saturating_sub(n_columns + n_passes)
    }
}

/// The latest `n_passes` passes of all PEs of `(rows, columns)`, of which the last is that of the operands
/// in the registers.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn step(
    sums: &mut Sums,
    products: &mut [[i32; LANES]],
    operands: &Operands,
    format: AccumulatorFormat,
    (size, n_passes): ((usize, usize), usize),
) -> Done {
    with_adder!(format, adder => each_row(sums, products, operands, (format, adder), (size, n_passes)))
}

#[inline(always)]
fn each_row(
    sums: &mut Sums,
    products: &mut [[i32; LANES]],
    operands: &Operands,
    (format, adder): (AccumulatorFormat, impl Adder),
    ((n_rows, n_columns), n_passes): ((usize, usize), usize),
) -> Done {
    let mut done = Done::default();
    let n_groups = sums.n_groups;
    let latest = &operands.latest;
    let (rows_used, columns_used, passes) = latest.shape;
    let n_alike_rows = Latest::n_rows(latest.n_alike, n_columns, n_passes).min(n_rows);
    let n_steady_rows = Latest::n_rows(latest.n_steady, n_columns, n_passes);
    let Sums {
        groups,
        is_wide,
        wide,
        ..
    } = sums;
    let slots = groups.iter_mut().zip(is_wide).zip(wide);
    let mut slots = slots.map(|((group, is_wide), wide)| Slot {
        group,
        is_wide,
        wide,
    });
    for (row, products) in products.chunks_exact_mut(n_groups).enumerate() {
        let is_alike = row < n_alike_rows;
        let is_used = row < rows_used as usize;
        for (index, (product, mut slot)) in products.iter_mut().zip(&mut slots).enumerate() {
            let place = Place {
                operands,
                row,
                index,
            };
            if is_alike {
                if !is_used {
                    continue;
                }
                let n_used = columns_used.saturating_sub((index * LANES) as u32);
                let job = (format, adder, n_passes, n_used);
                let counts = match (passes, row < n_steady_rows) {
                    (1, true) => alike::<false, false>(&mut slot, product, &place, job),
                    (1, false) => alike::<false, true>(&mut slot, product, &place, job),
                    (_, true) => alike::<true, false>(&mut slot, product, &place, job),
                    (_, false) => alike::<true, true>(&mut slot, product, &place, job),
                };
                done.n_multiplied += counts[0] as u64;
                done.n_accumulated += counts[1] as u64;
                continue;
            }
            for n_shifts in (0..n_passes).rev() {
                let counts = masked(&mut slot, product, &place, n_shifts, (format, adder));
                done.n_multiplied += counts[0] as u64;
                done.n_accumulated += counts[1] as u64;
            }
        }
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
    fn signal(&self, signal: usize, n_shifts: usize) -> [i32; LANES] {
        let line = self.operands.signals.line_before(signal, n_shifts);
        at(line, self.row + self.index * LANES)
    }

    #[inline(always)]
    fn weights(&self, rows: &Rows<i32>, n_shifts: usize) -> [i32; LANES] {
        at(rows.row_before(self.row, n_shifts), self.index * LANES)
    }

    /// Activations and weights of the latest passes, oldest first.
    #[inline(always)]
    fn factors_of(&self, n: usize) -> impl Iterator<Item = (&[i32; LANES], &[i32; LANES])> {
        let column = self.index * LANES;
        let activations = (self.row, self.row + column);
        let activations = self.operands.activations.history(activations, n);
        activations.zip(self.operands.weights.history((self.row, column), n))
    }

    /// Activations and weights of a pass.
    #[inline(always)]
    fn factors(&self, n_shifts: usize) -> ([i32; LANES], [i32; LANES]) {
        let line = self.operands.activations.line_before(self.row, n_shifts);
        (
            at(line, self.row + self.index * LANES),
            self.weights(&self.operands.weights, n_shifts),
        )
    }
}

/// Masks of the first lanes, by their number.
static FIRST: [[i32; LANES]; LANES + 1] = {
    let mut masks = [[0; LANES]; LANES + 1];
    let mut n = 0;
    while n <= LANES {
        let mut lane = 0;
        while lane < n {
            masks[n][lane] = -1;
            lane += 1;
        }
        n += 1;
    }
    masks
};

/// Passes of one shape: of steps that take several, or with initial values among them, where the constants
/// say so. How many PEs multiplied, and how many accumulated.
#[inline(always)]
fn alike<const MULTI: bool, const BEGINS: bool>(
    slot: &mut Slot<'_>,
    product: &mut [i32; LANES],
    place: &Place<'_>,
    (format, adder, n_passes, n_used): (AccumulatorFormat, impl Adder, usize, u32),
) -> [i32; 2] {
    let is_used = &FIRST[LANES.min(n_used as usize)];
    let mut group = *slot.group;
    let mut now = *product;
    let mut any = [0; LANES];
    let mut n_adds = [0; LANES];
    let mut n_shifts = n_passes;
    for (activations, weights) in place.factors_of(n_passes) {
        n_shifts -= 1;
        let mut partial = [0; LANES];
        for i in 0..LANES {
            partial[i] = activations[i].wrapping_mul(weights[i]);
        }
        let mut adds = [-1; LANES];
        if MULTI {
            let keeps = place.signal(signal::KEEPS, n_shifts);
            adds = place.signal(signal::ADDS, n_shifts);
            for i in 0..LANES {
                partial[i] = (now[i] & keeps[i]).wrapping_add(partial[i]);
                n_adds[i] = i32::wrapping_sub(n_adds[i], adds[i]);
            }
        }
        now = partial;
        if BEGINS {
            let initial = place.weights(&place.operands.initial, n_shifts);
            let begins = place.signal(signal::BEGINS, n_shifts);
            merge(&begins, &initial, &mut group.acc);
            merge(&begins, &initial, &mut group.least);
            merge(&begins, &initial, &mut group.most);
        }
        let before = group;
        for i in 0..LANES {
            let (sum, overflowed) = adder.add(group.acc[i], now[i]);
            group.acc[i] = sum;
            group.least[i] = group.least[i].min(sum);
            group.most[i] = group.most[i].max(sum);
            any[i] |= overflowed & adds[i];
        }
        if MULTI {
            let mut keeps = [0; LANES];
            for i in 0..LANES {
                keeps[i] = !adds[i];
            }
            // Passes that add nothing are no sums.
            merge(&keeps, &before.acc, &mut group.acc);
            merge(&keeps, &before.least, &mut group.least);
            merge(&keeps, &before.most, &mut group.most);
        }
    }
    let mut is_any = 0;
    for i in 0..LANES {
        is_any |= any[i] & is_used[i];
    }
    if *slot.is_wide || is_any != 0 {
        let mut done = [0; 2];
        for n_shifts in (0..n_passes).rev() {
            let counts = masked(slot, product, place, n_shifts, (format, adder));
            done = [done[0] + counts[0], done[1] + counts[1]];
        }
        return done;
    }
    if n_used >= LANES as u32 {
        *product = now;
        *slot.group = group;
    } else {
        merge(is_used, &now, product);
        merge(is_used, &group.acc, &mut slot.group.acc);
        merge(is_used, &group.least, &mut slot.group.least);
        merge(is_used, &group.most, &mut slot.group.most);
    }
    let n_multiplied = n_passes as i32 * n_used.min(LANES as u32) as i32;
    if !MULTI {
        return [n_multiplied; 2];
    }
    let mut n_accumulated = 0;
    for i in 0..LANES {
        n_accumulated += n_adds[i] & is_used[i];
    }
    [n_multiplied, n_accumulated]
}

/// Any pass. How many PEs multiplied, and how many accumulated.
#[inline(always)]
fn masked(
    slot: &mut Slot<'_>,
    product: &mut [i32; LANES],
    place: &Place<'_>,
    n_shifts: usize,
    (format, adder): (AccumulatorFormat, impl Adder),
) -> [i32; 2] {
    let signal = |signal| place.signal(signal, n_shifts);
    let (rows, columns) = (signal(signal::ROWS), signal(signal::COLUMNS));
    let (keeps, adds) = (signal(signal::KEEPS), signal(signal::ADDS));
    let mut begins = signal(signal::BEGINS);
    let (row, column) = (place.row as i32, (place.index * LANES) as i32);
    let (activations, weights) = place.factors(n_shifts);
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
    let initial = place.weights(&place.operands.initial, n_shifts);
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
