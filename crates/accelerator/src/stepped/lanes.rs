//! The multiplier and the accumulator of a post lane, for depthwise convolutions.
//!
//! Invariant: as in a PE, the accumulator changes only in the last pass of a tap, once, by the whole
//! product.

use super::{
    array::initial_value,
    memory::{Element, Memories, Memory, Parameter},
    pe::{Accumulator, Nibble},
    sequencer::Job,
};
use crate::{Action, Config, Counts, FaultKind};
use isa::{Depthwise, Filter, Source};

/// Between the stages read and multiply: one pass of one tap of one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MacOperand {
    pub weight: Nibble,
    pub activation: Nibble,
    /// With an output's first pass: the accumulator's initial value.
    pub initial: Option<i32>,
    pub is_first_pass: bool,
    pub is_last_pass: bool,
    /// Number of the tap.
    pub tap: u32,
    /// Overflow counter.
    pub counter: usize,
}

/// Registers of a lane.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lane {
    /// The product of the tap so far.
    pub product: i32,
    pub accumulator: Accumulator,
}

impl Lane {
    pub fn step(&mut self, operand: &MacOperand, config: &Config, counts: &mut Counts) {
        counts[Action::Multiply] += 1;
        let shift = 4 * (u32::from(operand.weight.high) + u32::from(operand.activation.high));
        let partial = (operand.weight.value * operand.activation.value) << shift;
        self.product = if operand.is_first_pass {
            partial
        } else {
            self.product + partial
        };
        if let Some(initial) = operand.initial {
            self.accumulator = Accumulator::starting_at(initial);
        }
        if operand.is_last_pass {
            counts[Action::Accumulate] += 1;
            let format = config.arithmetic.accumulator;
            self.accumulator.add(self.product, operand.tap, format);
        }
    }
}

/// The read ports of a lane: a nibble of the weight and one of the activation.
#[inline]
pub(crate) fn read(
    job: &Job,
    (depthwise, filter, source): (&Depthwise, &Filter, &Source),
    offset: u32,
    (element, entry): (Option<Element>, Parameter),
    config: &Config,
    memories: &Memories<'_>,
) -> Result<MacOperand, FaultKind> {
    let (_, width) = job.n_taps();
    let tap = job.tap_y * width + job.tap_x;
    // Passes alternate between the halves of the activation; the weight's half changes when both
    // have passed.
    let activation_high = source.wide == 1 && job.pass % 2 == 1;
    let weight_high = filter.wide_weights == 1 && job.pass > source.wide;
    let index = u64::from(tap) * u64::from(depthwise.n_channels) + u64::from(offset);
    let (address, is_upper) = if filter.wide_weights == 1 {
        (index, weight_high)
    } else {
        (index / 2, index % 2 == 1)
    };
    let address = u64::from(filter.weight_address) + address;
    let weight = memories.nibble(Memory::Weight, address, is_upper)?;
    let is_top = weight_high || filter.wide_weights == 0;
    let bits = match element {
        Some(element) => memories.half_element(element, activation_high)?,
        None => 0,
    };
    let is_signed = source.signed == 1 && (activation_high || source.wide == 0);
    let is_first = tap == 0 && job.pass == 0;
    let initial = is_first
        .then(|| initial_value(entry, config.arithmetic.accumulator))
        .transpose()?;
    Ok(MacOperand {
        weight: Nibble::new(weight, weight_high, is_top),
        activation: Nibble::new(bits, activation_high, is_signed),
        initial,
        is_first_pass: job.pass == 0,
        is_last_pass: job.pass + 1 == job.n_passes(),
        tap,
        counter: filter.counter as usize + offset as usize,
    })
}
