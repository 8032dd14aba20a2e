//! One PE of an array whose operands stay: its shift chain, its working operand, its partial sum.
//!
//! Invariant: a partial sum stands in its register for exactly one cycle; whoever is below takes it
//! then.

use crate::{
    Action, Counts,
    stepped::pe::{Accumulator, Nibble},
};
use arith::AccumulatorFormat;

/// An operand that stays, or part of one: its nibbles as they arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub low: Nibble,
    /// Of 8 bits.
    pub high: Option<Nibble>,
}

/// What moves into a column's chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChainSlot {
    /// `None` in a row or column that is not in use.
    pub nibble: Option<Nibble>,
    /// The upper half of the value at the bottom; the chain does not move.
    pub completes: bool,
    /// Nothing of the preload follows.
    pub is_last: bool,
    /// The instruction.
    pub index: usize,
}

/// What travels along a row: half of a streaming operand, and what the PEs are to do with it.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one wire of the hardware"
)]
pub(crate) struct StreamSlot {
    /// `None` in a row that is not in use.
    pub nibble: Option<Nibble>,
    /// Which half of the held operand it meets.
    pub held_high: bool,
    /// Step of the reduction.
    pub k: u32,
    /// First pass of its element.
    pub is_first_pass: bool,
    /// Last pass of its element.
    pub is_last_pass: bool,
    /// The chain's value becomes the working one.
    pub takes_chain: bool,
}

/// What travels down a column: a partial sum, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    pub value: Accumulator,
    /// `None` in a column that is not in use.
    pub to: Option<Target>,
    /// Nothing of the stream follows in this column.
    pub is_last: bool,
    /// The instruction.
    pub index: usize,
}

/// An entry of an accumulator block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub block: u32,
    pub row: u32,
    /// Adds to the entry, else overwrites it.
    pub accumulate: bool,
    /// Step that an overflow of this add counts for.
    pub last_k: u32,
    /// Where the entry's record goes, when the reduction ends.
    pub counter: Option<u32>,
}

/// Registers of one PE.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pe {
    /// Its place in the column's chain; `None` when the row or column is not in use.
    pub chain: Option<Held>,
    /// The operand in use (with `shadow_operands`, else the chain's is).
    pub working: Option<Held>,
    /// From the left.
    pub slot: Option<StreamSlot>,
    /// The product of the element so far.
    pub product: i32,
    /// For the PE below.
    pub sum: Option<Sum>,
}

impl Pe {
    /// One pass with what the registers hold; `above` is the sum that comes down.
    pub fn step(
        &mut self,
        above: Option<Sum>,
        shadow: bool,
        format: AccumulatorFormat,
        counts: &mut Counts,
    ) {
        self.sum = None;
        let Some(slot) = self.slot else { return };
        if slot.takes_chain && shadow {
            self.working = self.chain;
        }
        let held = if shadow { self.working } else { self.chain };
        let product = held.zip(slot.nibble).map(|(held, nibble)| {
            let half = if slot.held_high {
                held.high
            } else {
                Some(held.low)
            };
            let half = half.expect("an operand of 8 bits has an upper half");
            let shift = 4 * (u32::from(half.high) + u32::from(nibble.high));
            (half.value * nibble.value) << shift
        });
        counts[Action::Multiply] += u64::from(product.is_some());
        let before = if slot.is_first_pass { 0 } else { self.product };
        self.product = before + product.unwrap_or(0);
        if !slot.is_last_pass {
            return;
        }
        let mut sum = above.expect("a sum comes down with every last pass");
        if product.is_some() {
            counts[Action::Accumulate] += 1;
            sum.value.add(self.product, slot.k, format);
        }
        self.sum = Some(sum);
    }
}
