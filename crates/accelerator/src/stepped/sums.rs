//! The accumulators of all PEs, register by register.
//!
//! Invariant: a PE changes its accumulator only in the last pass of a step, once, by the whole product,
//! as [`Accumulator::add`] says.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

use super::pe::Accumulator;
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

/// Masks of the first lanes, by their number.
pub(crate) static FIRST: [[i32; LANES]; LANES + 1] = {
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

/// How many of `n_columns` stand in a group of a row.
#[inline(always)]
pub(crate) fn n_lanes(n_columns: usize, group: usize) -> usize {
    n_columns.saturating_sub(group * LANES).min(LANES)
}

/// The accumulators of PEs side by side, none of which has overflowed: what they hold is the exact sum.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Group {
    pub acc: [i32; LANES],
    /// Extremes; the least is above the most where no sum is set.
    pub least: [i32; LANES],
    pub most: [i32; LANES],
}

impl Group {
    /// None of them is set.
    pub const NEW: Self = Self {
        acc: [0; LANES],
        least: [i32::MAX; LANES],
        most: [i32::MIN; LANES],
    };

    /// All begin with these values.
    #[inline(always)]
    pub fn starting_at(initial: &[i32; LANES]) -> Self {
        Self {
            acc: *initial,
            least: *initial,
            most: *initial,
        }
    }

    /// The records of those that are set, by lane.
    pub fn each_seen(&self) -> impl Iterator<Item = (usize, ChannelOverflow)> {
        let extremes = self.least.iter().zip(&self.most).enumerate();
        let set = extremes.filter(|(_, (least, most))| least <= most);
        set.map(|(lane, (&least, &most))| {
            let seen = ChannelOverflow {
                min_partial_sum: least.into(),
                max_partial_sum: most.into(),
                ..ChannelOverflow::default()
            };
            (lane, seen)
        })
    }
}

/// The accumulators of PEs side by side, register by register.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Registers {
    acc: [i32; LANES],
    exact: [i64; LANES],
    least: [i64; LANES],
    most: [i64; LANES],
    n_overflowed: [i32; LANES],
    /// Bits of a step's number; means nothing before the first overflow.
    first_k: [i32; LANES],
}

impl From<&Group> for Registers {
    fn from(group: &Group) -> Self {
        let mut registers = Self {
            acc: group.acc,
            exact: group.acc.map(i64::from),
            least: group.least.map(i64::from),
            most: group.most.map(i64::from),
            n_overflowed: [0; LANES],
            first_k: [0; LANES],
        };
        for lane in 0..LANES {
            if group.least[lane] > group.most[lane] {
                (registers.least[lane], registers.most[lane]) = (i64::MAX, i64::MIN);
            }
        }
        registers
    }
}

impl Registers {
    /// Themselves as a group, unless one has overflowed.
    fn narrow(&self) -> Option<Group> {
        // Without overflow exact sums are what accumulators hold; what means that none is set
        // becomes what means so in a group.
        (self.n_overflowed == [0; LANES]).then(|| Group {
            acc: self.acc,
            least: self.least.map(|least| least.min(i32::MAX.into()) as i32),
            most: self.most.map(|most| most.max(i32::MIN.into()) as i32),
        })
    }

    fn get(&self, lane: usize) -> Accumulator {
        let n_overflowed = self.n_overflowed[lane];
        Accumulator {
            acc: self.acc[lane],
            exact: self.exact[lane],
            seen: ChannelOverflow {
                n_overflowed: u64::from(n_overflowed as u32),
                n_outputs_touched: (n_overflowed != 0).into(),
                first_k: (n_overflowed != 0).then_some(self.first_k[lane] as u32),
                min_partial_sum: self.least[lane],
                max_partial_sum: self.most[lane],
            },
        }
    }

    fn set(&mut self, lane: usize, value: &Accumulator) {
        let seen = &value.seen;
        self.acc[lane] = value.acc;
        self.exact[lane] = value.exact;
        self.least[lane] = seen.min_partial_sum;
        self.most[lane] = seen.max_partial_sum;
        self.n_overflowed[lane] = seen.n_overflowed as i32;
        self.first_k[lane] = seen.first_k.unwrap_or_default() as i32;
    }

    /// Sums of the same outputs more: see [`Accumulator::joined`].
    fn join(&mut self, other: &Self, k: u32, adder: impl Adder) {
        for i in 0..LANES {
            let (sum, overflowed) = adder.add(self.acc[i], other.acc[i]);
            let first = |registers: &Self| match registers.n_overflowed[i] {
                0 => u32::MAX,
                _ => registers.first_k[i] as u32,
            };
            let is_over = overflowed != 0;
            let now = if is_over { k } else { u32::MAX };
            self.first_k[i] = first(self).min(first(other)).min(now) as i32;
            self.n_overflowed[i] += other.n_overflowed[i] + i32::from(is_over);
            let exact = self.exact[i].wrapping_add(other.exact[i]);
            self.acc[i] = sum;
            self.exact[i] = exact;
            self.least[i] = self.least[i].min(other.least[i]).min(exact);
            self.most[i] = self.most[i].max(other.most[i]).max(exact);
        }
    }

    /// Become others, with a product of step `k` more where the mask says so.
    #[inline(always)]
    fn take(
        &mut self,
        before: &Self,
        products: &[i32; LANES],
        (is_sum, k): (&[i32; LANES], &[i32; LANES]),
        adder: impl Adder,
    ) {
        for i in 0..LANES {
            let now = products[i] & is_sum[i];
            let (sum, overflowed) = adder.add(before.acc[i], now);
            self.acc[i] = sum;
            let overflowed = mask(overflowed != 0);
            let is_first = overflowed & mask(before.n_overflowed[i] == 0);
            self.first_k[i] = choose(is_first, k[i], before.first_k[i]);
            self.n_overflowed[i] = before.n_overflowed[i].wrapping_sub(overflowed);
            let sum = before.exact[i].wrapping_add(now.into());
            self.exact[i] = sum;
            self.least[i] = before.least[i].min(sum);
            self.most[i] = before.most[i].max(sum);
        }
    }

    /// What comes from others, where the mask says so.
    #[inline(always)]
    pub fn merge(&mut self, mask: &[i32; LANES], from: &Self) {
        merge(mask, &from.acc, &mut self.acc);
        merge(mask, &from.exact, &mut self.exact);
        merge(mask, &from.least, &mut self.least);
        merge(mask, &from.most, &mut self.most);
        merge(mask, &from.n_overflowed, &mut self.n_overflowed);
        merge(mask, &from.first_k, &mut self.first_k);
    }
}

/// The accumulators of a grid, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    n_rows: usize,
    /// Groups of a row.
    pub n_groups: usize,
    /// What they hold, as long as none of the group has overflowed.
    pub groups: Vec<Group>,
    /// As many: whether one has.
    pub is_wide: Vec<bool>,
    /// As many: what they hold then.
    pub wide: Vec<Registers>,
}

impl Sums {
    /// None of them is set.
    pub fn new(rows: usize, columns: usize) -> Self {
        let n_groups = columns.div_ceil(LANES);
        let n = rows * n_groups;
        Self {
            n_rows: rows,
            n_groups,
            groups: vec![Group::NEW; n],
            is_wide: vec![false; n],
            wide: vec![Registers::from(&Group::NEW); n],
        }
    }

    /// One PE's.
    pub fn get(&self, row: usize, column: usize) -> Accumulator {
        let (place, lane) = (row * self.n_groups + column / LANES, column % LANES);
        if self.is_wide[place] {
            return self.wide[place].get(lane);
        }
        let group = &self.groups[place];
        let (acc, least, most) = (group.acc[lane], group.least[lane], group.most[lane]);
        Accumulator {
            seen: ChannelOverflow {
                min_partial_sum: if least > most { i64::MAX } else { least.into() },
                max_partial_sum: if least > most { i64::MIN } else { most.into() },
                ..ChannelOverflow::default()
            },
            ..Accumulator::starting_at(acc)
        }
    }

    /// One PE's register.
    #[inline]
    pub fn acc(&self, row: usize, column: usize) -> i32 {
        let (place, lane) = (row * self.n_groups + column / LANES, column % LANES);
        if self.is_wide[place] {
            self.wide[place].acc[lane]
        } else {
            self.groups[place].acc[lane]
        }
    }

    /// Every group's place, row by row.
    #[inline(always)]
    pub fn slots(&mut self) -> impl Iterator<Item = Slot<'_>> {
        let places = self.groups.iter_mut().zip(&mut self.is_wide);
        let places = places.zip(&mut self.wide);
        places.map(|((group, is_wide), wide)| Slot {
            group,
            is_wide,
            wide,
        })
    }

    /// A group's place.
    #[inline(always)]
    fn slot(&mut self, place: usize) -> Slot<'_> {
        Slot {
            group: &mut self.groups[place],
            is_wide: &mut self.is_wide[place],
            wide: &mut self.wide[place],
        }
    }

    /// A group's registers.
    fn registers(&self, place: usize) -> Registers {
        if self.is_wide[place] {
            self.wide[place]
        } else {
            Registers::from(&self.groups[place])
        }
    }

    /// A group takes over another grid's where the mask says so.
    #[inline(always)]
    pub fn take(&mut self, place: usize, (from, at): (&Self, usize), mask: &[i32; LANES]) {
        if self.is_wide[place] | from.is_wide[at] {
            let mut registers = self.registers(place);
            registers.merge(mask, &from.registers(at));
            self.slot(place).set(&registers);
            return;
        }
        let (group, from) = (&mut self.groups[place], &from.groups[at]);
        merge(mask, &from.acc, &mut group.acc);
        merge(mask, &from.least, &mut group.least);
        merge(mask, &from.most, &mut group.most);
    }

    /// Sums of the same outputs more where the mask says so; an overflow of the adds counts for step `k`.
    #[inline(always)]
    pub fn add(
        &mut self,
        place: usize,
        (from, at): (&Self, usize),
        mask: &[i32; LANES],
        (format, k): (AccumulatorFormat, u32),
    ) {
        let (group, other) = (&self.groups[place], &from.groups[at]);
        let mut sum = *group;
        let mut any = 0;
        with_adder!(format, adder => for (i, mask) in mask.iter().enumerate() {
            let (acc, overflowed) = adder.add(group.acc[i], other.acc[i]);
            sum.acc[i] = acc;
            sum.least[i] = group.least[i].min(other.least[i]).min(acc);
            sum.most[i] = group.most[i].max(other.most[i]).max(acc);
            any |= overflowed & mask;
        });
        if any != 0 || self.is_wide[place] || from.is_wide[at] {
            let mut registers = self.registers(place);
            let mut joined = registers;
            with_adder!(format, adder => joined.join(&from.registers(at), k, adder));
            registers.merge(mask, &joined);
            self.slot(place).set(&registers);
            return;
        }
        let group = &mut self.groups[place];
        merge(mask, &sum.acc, &mut group.acc);
        merge(mask, &sum.least, &mut group.least);
        merge(mask, &sum.most, &mut group.most);
    }

    /// What a group's records say of extremes, where the mask says so; `false` where one has overflowed.
    #[inline(always)]
    pub fn see(&self, place: usize, mask: &[i32; LANES], seen: &mut Group) -> bool {
        if self.is_wide[place] {
            return false;
        }
        let group = &self.groups[place];
        for (i, &mask) in mask.iter().enumerate() {
            seen.least[i] = seen.least[i].min(choose(mask, group.least[i], i32::MAX));
            seen.most[i] = seen.most[i].max(choose(mask, group.most[i], i32::MIN));
        }
        true
    }

    /// One PE's becomes another.
    pub fn set(&mut self, row: usize, column: usize, value: &Accumulator) {
        let place = row * self.n_groups + column / LANES;
        let mut registers = self.registers(place);
        registers.set(column % LANES, value);
        self.slot(place).set(&registers);
    }

    /// Rows of the grid.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Every column moves down by one PE, from row `from[column]` to the last; what stood there stays
    /// there too.
    pub fn move_down(&mut self, from: &[[i32; LANES]]) {
        move_down(self, from);
    }

    /// A group becomes the one above it (at the top: sums that begin with `top`), with a product of
    /// step `k` more where the mask says so.
    #[inline(always)]
    pub fn take_from_above(
        &mut self,
        place: usize,
        top: &[i32; LANES],
        products: &[i32; LANES],
        (is_sum, k): (&[i32; LANES], &[i32; LANES]),
        adder: impl Adder,
    ) {
        let above = place.checked_sub(self.n_groups);
        let before = match above {
            Some(above) => self.groups[above],
            None => Group::starting_at(top),
        };
        let is_wide = above.is_some_and(|above| self.is_wide[above]);
        let mut group = before;
        let mut any = 0;
        for i in 0..LANES {
            let (sum, overflowed) = adder.add(before.acc[i], products[i] & is_sum[i]);
            group.acc[i] = sum;
            group.least[i] = before.least[i].min(sum);
            group.most[i] = before.most[i].max(sum);
            any |= overflowed;
        }
        if is_wide || any != 0 {
            let before = match above {
                Some(above) => self.registers(above),
                None => Registers::from(&before),
            };
            let mut registers = before;
            registers.take(&before, products, (is_sum, k), adder);
            self.slot(place).set(&registers);
            return;
        }
        self.is_wide[place] = false;
        self.groups[place] = group;
    }
}

/// Where the accumulators of PEs side by side stand.
pub(crate) struct Slot<'a> {
    pub group: &'a mut Group,
    pub is_wide: &'a mut bool,
    pub wide: &'a mut Registers,
}

impl Slot<'_> {
    /// All begin anew.
    #[inline(always)]
    pub fn begin(&mut self, initial: &[i32; LANES]) {
        *self.group = Group::starting_at(initial);
        *self.is_wide = false;
    }

    #[inline(always)]
    pub fn registers(&self) -> Registers {
        if *self.is_wide {
            *self.wide
        } else {
            Registers::from(&*self.group)
        }
    }

    #[inline(always)]
    fn set(&mut self, registers: &Registers) {
        let group = registers.narrow();
        *self.is_wide = group.is_none();
        match group {
            Some(group) => *self.group = group,
            None => *self.wide = *registers,
        }
    }
}

/// What PEs have done in a cycle.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub n_multiplied: u64,
    pub n_accumulated: u64,
}

/// A format's [`AccumulatorFormat::add`].
pub(crate) trait Adder: Copy {
    /// The accumulator after the add, and 0 where the sum fits.
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
        (kept, kept ^ sum)
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
        (kept, kept ^ sum)
    }
}

/// The registers of a line that PEs side by side see, the first of which sees register `from`.
#[inline(always)]
pub(crate) fn at(line: &[i32], from: usize) -> [i32; LANES] {
    *line[from..]
        .first_chunk()
        .expect("a line reaches the last PE")
}

/// Where sums have overflowed: products of step `k` more where the mask says so.
#[cold]
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn take_wide(
    slot: &mut Slot<'_>,
    before: &Registers,
    products: &[i32; LANES],
    (is_sum, k): (&[i32; LANES], &[i32; LANES]),
    format: AccumulatorFormat,
) {
    let mut after = *before;
    with_adder!(format, adder => after.take(before, products, (is_sum, k), adder));
    let mut registers = *before;
    registers.merge(is_sum, &after);
    slot.set(&registers);
}

/// Where sums have overflowed, or may: the products of some steps, of which the first has that number in its
/// fold, where the mask says so.
#[cold]
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn take_steps(
    slot: &mut Slot<'_>,
    (activations, weights, first_k): (&[i32], &[[i32; LANES]], u32),
    is_used: &[i32; LANES],
    format: AccumulatorFormat,
) {
    let mut registers = slot.registers();
    let steps = activations.iter().zip(weights).zip(first_k..);
    with_adder!(format, adder => for ((activation, weights), k) in steps {
        let mut products = [0; LANES];
        for i in 0..LANES {
            products[i] = activation.wrapping_mul(weights[i]);
        }
        let before = registers;
        let mut after = before;
        after.take(&before, &products, (is_used, &[k as i32; LANES]), adder);
        registers.merge(is_used, &after);
    });
    slot.set(&registers);
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

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn move_down(sums: &mut Sums, from: &[[i32; LANES]]) {
    let n_groups = sums.n_groups;
    for below in (n_groups..sums.groups.len()).rev() {
        let (row, above) = ((below / n_groups) as i32, below - n_groups);
        let mut moves = [0; LANES];
        let mut any = 0;
        for (moves, from) in moves.iter_mut().zip(&from[below % n_groups]) {
            *moves = mask(row > *from);
            any |= *moves;
        }
        if any == 0 {
            continue;
        }
        if sums.is_wide[above] | sums.is_wide[below] {
            let mut registers = sums.registers(below);
            registers.merge(&moves, &sums.registers(above));
            sums.slot(below).set(&registers);
            continue;
        }
        let [above, below] = sums
            .groups
            .get_disjoint_mut([above, below])
            .expect("two groups");
        merge(&moves, &above.acc, &mut below.acc);
        merge(&moves, &above.least, &mut below.least);
        merge(&moves, &above.most, &mut below.most);
    }
}

/// What comes from elsewhere, where the mask says so.
#[inline(always)]
pub(crate) fn merge<T>(mask: &[i32; LANES], from: &[T; LANES], to: &mut [T; LANES])
where
    T: Copy + From<bool> + BitAnd<Output = T> + BitXor<Output = T> + BitXorAssign + Neg<Output = T>,
{
    for i in 0..LANES {
        let mask = -T::from(mask[i] != 0);
        to[i] ^= (to[i] ^ from[i]) & mask;
    }
}
