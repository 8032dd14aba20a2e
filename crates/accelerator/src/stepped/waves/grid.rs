//! The PEs: operands, products, partial sums.
//!
//! Invariant: as in [`super`].

use super::{Probe, Value, View, array::UNWATCHED, control::of};
use crate::stepped::{
    array::{Array, Held, PeView, Sum},
    pe::{Accumulator, Nibble, Pe},
};

impl View<'_> {
    pub(super) fn grid(&self, probe: &mut impl Probe) {
        for row in 0..self.config.rows as usize {
            probe.within(format_args!("row[{row}]"), |probe| {
                for column in 0..self.config.cols as usize {
                    let scope = format_args!("column[{column}].u_pe");
                    probe.within(scope, |probe| self.pe(row, column, probe));
                }
            });
        }
    }

    fn pe(&self, row: usize, column: usize, probe: &mut impl Probe) {
        match &self.state.array {
            Array::Sums(array) => self.summing_pe(&array.pe(row, column), probe),
            Array::UnwatchedSums(_) | Array::UnwatchedOperands(_) => unreachable!("{UNWATCHED}"),
            Array::Operands(array) => {
                let above = array.sum_of(row, column);
                self.holding_pe(&array.pe(row, column), above.as_ref(), probe);
            }
        }
    }

    fn summing_pe(&self, pe: &Pe, probe: &mut impl Probe) {
        let slot = pe.weight.as_ref();
        let weight = slot.and_then(|slot| slot.nibble);
        let operands = weight.zip(pe.activation);
        nibble(probe, "left", pe.activation);
        nibble(probe, "upper", weight);
        probe.within(format_args!("pass"), |probe| {
            probe.put(format_args!("valid"), 1, slot.is_some());
            probe.put(format_args!("first"), 1, of(slot, |s| s.is_first_pass));
            probe.put(format_args!("last"), 1, of(slot, |s| s.is_last_pass));
            let is_used = of(slot, |s| s.initial.is_some()).when(weight.is_some());
            probe.put(format_args!("init"), 1, is_used);
            probe.put(format_args!("fold_last"), 1, of(slot, |s| s.ends_fold));
        });
        let product = slot.zip(operands).map(|(slot, (weight, activation))| {
            let before = if slot.is_first_pass { 0 } else { pe.product };
            before + partial(weight, activation)
        });
        let adds = slot.filter(|slot| slot.is_last_pass).zip(product);
        let sum = adds.map(|(slot, product)| {
            let addend = slot.initial.unwrap_or(pe.accumulator.acc);
            self.config.arithmetic.accumulator.add(addend, product)
        });
        probe.put(format_args!("product"), 18, product);
        probe.put(
            format_args!("overflowed"),
            1,
            of(sum.as_ref(), |s| s.overflowed),
        );
        probe.put(format_args!("acc"), 32, held(&pe.accumulator));
        if self.config.shadow {
            probe.put(format_args!("shadow_acc"), 32, held(&pe.shadow));
        }
    }

    fn holding_pe(&self, pe: &PeView, above: Option<&Sum>, probe: &mut impl Probe) {
        let slot = pe.slot.as_ref();
        let streaming = slot.and_then(|slot| slot.nibble);
        nibble(probe, "left", streaming);
        probe.put(format_args!("chain"), 10, operand(pe.chain.as_ref()));
        let takes = slot.is_some_and(|slot| slot.takes_chain);
        let working = if self.config.shadow && !takes {
            pe.working
        } else {
            pe.chain
        };
        probe.put(format_args!("operand"), 10, operand(working.as_ref()));
        probe.within(format_args!("upper"), |probe| {
            probe.put(format_args!("high"), 1, of(slot, |s| s.held_high));
        });
        probe.within(format_args!("pass"), |probe| {
            probe.put(format_args!("valid"), 1, slot.is_some());
            probe.put(format_args!("first"), 1, of(slot, |s| s.is_first_pass));
            probe.put(format_args!("last"), 1, of(slot, |s| s.is_last_pass));
            probe.put(format_args!("take"), 1, of(slot, |s| s.takes_chain));
        });
        let product = slot
            .zip(streaming)
            .zip(working)
            .map(|((slot, nibble), held)| {
                let half = if slot.held_high {
                    held.high
                } else {
                    Some(held.low)
                };
                let before = if slot.is_first_pass { 0 } else { pe.product };
                before + half.map_or(0, |half| partial(half, nibble))
            });
        probe.put(format_args!("product"), 18, product);
        let above = above.filter(|sum| sum.is_used);
        let adds = slot
            .filter(|slot| slot.is_last_pass)
            .and(product)
            .zip(above);
        let format = self.config.arithmetic.accumulator;
        let sum = adds.map(|(product, above)| format.add(above.value.acc, product));
        probe.put(
            format_args!("overflowed"),
            1,
            of(sum.as_ref(), |s| s.overflowed),
        );
        let acc = pe.sum.as_ref().filter(|sum| sum.is_used);
        probe.put(format_args!("acc"), 32, of(acc, |sum| sum.value.acc));
    }
}

/// The product of two nibbles, weighed.
fn partial(a: Nibble, b: Nibble) -> i32 {
    (a.value * b.value) << (4 * (u32::from(a.high) + u32::from(b.high)))
}

pub(super) fn nibble(probe: &mut impl Probe, name: &str, nibble: Option<Nibble>) {
    let nibble = nibble.as_ref();
    probe.within(format_args!("{name}"), |probe| {
        probe.put(format_args!("value"), 5, of(nibble, |n| n.value));
        probe.put(format_args!("high"), 1, of(nibble, |n| n.high));
    });
}

/// A sum, when it is an output's.
fn held(sum: &Accumulator) -> Value {
    Value::from(sum.acc).when(sum.is_set())
}

/// Both nibbles of an operand that stays, the high one above.
fn operand(held: Option<&Held>) -> Value {
    let Some(held) = held else {
        return Value::UNKNOWN;
    };
    let low = Value::from(held.low.value).cut(5);
    let high = held
        .high
        .map_or(Value::UNKNOWN, |high| Value::from(high.value).cut(5));
    Value {
        bits: low.bits | high.bits << 5,
        known: low.known | high.known << 5,
    }
}
