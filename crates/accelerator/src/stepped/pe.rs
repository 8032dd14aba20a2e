//! What PEs hold: nibbles, accumulators and their records; and the drain chain of a column.
//!
//! Invariant: an accumulator's record tells all that was added to it.

use arith::{AccumulatorFormat, ChannelOverflow};

/// A nibble of an operand on its way through the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nibble {
    /// Its value; negative only in the top nibble of a signed operand.
    pub value: i32,
    /// The upper half of 8 bits: weighs 16 times as much.
    pub high: bool,
}

impl Nibble {
    /// Half of an operand's bits. The top half carries the sign; the lower half of two never does.
    pub fn new(bits: u8, high: bool, signed_top: bool) -> Self {
        let bits = i32::from(bits & 15);
        Self {
            value: if signed_top && bits >= 8 {
                bits - 16
            } else {
                bits
            },
            high,
        }
    }

    /// The nibble that stands for `weighed`.
    pub fn of_weighed(weighed: i32, high: bool) -> Self {
        Self {
            value: weighed >> (4 * u32::from(high)),
            high,
        }
    }
}

/// What the lowest four bits stand for in their operand: see [`Nibble::new`].
#[inline]
pub(crate) fn weighed(bits: u8, high: bool, signed_top: bool) -> i32 {
    let sign = 8 * i32::from(signed_top);
    ((i32::from(bits & 15) ^ sign) - sign) << (4 * u32::from(high))
}

/// What comes down a column: the weight, and what the PE is to do with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightSlot {
    /// `None` in a column that is not in use.
    pub nibble: Option<Nibble>,
    /// First pass of its step.
    pub is_first_pass: bool,
    /// Last pass of its step.
    pub is_last_pass: bool,
    /// With a fold's first step: the accumulator's initial value.
    pub initial: Option<i32>,
    /// A fold's last pass: the sum is finished.
    pub ends_fold: bool,
}

/// Where a column of results goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoldEnd {
    /// Accumulator block.
    pub block: u32,
    /// Array rows in use.
    pub rows: u32,
    /// The column is in use; others drain too, and nobody takes what they hold.
    pub is_used: bool,
    /// Overflow counter.
    pub channel: u32,
}

/// An accumulator with what was seen of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accumulator {
    /// The register.
    pub acc: i32,
    /// What it would hold if it had 64 bits.
    pub exact: i64,
    /// Overflows of this output.
    pub seen: ChannelOverflow,
}

impl Accumulator {
    /// Whether it holds the sum of an output.
    pub fn is_set(&self) -> bool {
        self.seen.min_partial_sum <= self.seen.max_partial_sum
    }

    pub fn starting_at(initial: i32) -> Self {
        let exact = i64::from(initial);
        let seen = ChannelOverflow {
            min_partial_sum: exact,
            max_partial_sum: exact,
            ..ChannelOverflow::default()
        };
        Self {
            acc: initial,
            exact,
            seen,
        }
    }

    pub fn add(&mut self, product: i32, k: u32, format: AccumulatorFormat) {
        let sum = format.add(self.acc, product);
        self.acc = sum.acc;
        self.exact += i64::from(product);
        self.seen.min_partial_sum = self.seen.min_partial_sum.min(self.exact);
        self.seen.max_partial_sum = self.seen.max_partial_sum.max(self.exact);
        if sum.overflowed {
            self.seen.n_overflowed += 1;
            self.seen.n_outputs_touched = 1;
            self.seen.first_k = self.seen.first_k.or(Some(k));
        }
    }
}

impl Accumulator {
    /// This sum and another of the same output, whose last step is `k`.
    pub fn joined(&self, other: &Self, k: u32, format: AccumulatorFormat) -> Self {
        let sum = format.add(self.acc, other.acc);
        let exact = self.exact + other.exact;
        let mut seen = self.seen;
        seen.merge(&other.seen);
        seen.merge(&ChannelOverflow {
            n_overflowed: sum.overflowed.into(),
            n_outputs_touched: 0,
            first_k: sum.overflowed.then_some(k),
            min_partial_sum: exact,
            max_partial_sum: exact,
        });
        // All of it is one output.
        seen.n_outputs_touched = u64::from(seen.n_overflowed > 0);
        Self {
            acc: sum.acc,
            exact,
            seen,
        }
    }
}

/// What the registers of one PE hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pe {
    /// Activation nibble from the left; `None` when nothing came or the row is not in use.
    pub activation: Option<Nibble>,
    /// Weight nibble from above.
    pub weight: Option<WeightSlot>,
    /// The product of the step so far.
    pub product: i32,
    /// Where products are summed.
    pub accumulator: Accumulator,
    /// A finished sum that waits for its turn to drain.
    pub shadow: Accumulator,
}

/// The drain counter of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    /// Rows that have left.
    pub n_drained: u32,
    /// Where they go.
    pub to: FoldEnd,
}
