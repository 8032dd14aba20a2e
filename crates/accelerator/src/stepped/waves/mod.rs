//! Waveforms of the stepped model: every signal by name, with its value in every cycle of a window.
//!
//! Invariant: a signal that is named like one of the hardware description (`crates/cosim/rtl`, below
//! its module `systole`) has that signal's value in the same cycle, or is unknown: the machine never
//! looks at it then. The list of signals depends on the machine and the program, not on the run.

mod array;
mod control;
mod grid;
mod post;
mod transfer;

use super::{State, dma::Burst, frontend::Starts, run_observed};
use crate::{Config, Fault, Run};
use isa::{Op, Program, Unit};
use std::{
    fmt::{Arguments, Write as _},
    ops::Range,
};

/// One signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Scopes and name, outermost first, between dots: `systole.u_frontend.pc`.
    pub name: String,
    /// Bits, 1 to 64.
    pub width: u32,
}

/// A signal's value in one cycle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Value {
    /// The bits, two's complement; 0 where they are not known and above the width.
    pub bits: u64,
    /// Which of them are known. The others mean nothing in this cycle.
    pub known: u64,
}

impl Value {
    const UNKNOWN: Self = Self { bits: 0, known: 0 };

    /// The value within a width.
    fn cut(self, width: u32) -> Self {
        let mask = u64::MAX >> (64 - width);
        let known = self.known & mask;
        Self {
            bits: self.bits & known,
            known,
        }
    }

    /// This value if it means something now.
    fn when(self, known: bool) -> Self {
        if known { self } else { Self::UNKNOWN }
    }
}

impl From<u64> for Value {
    fn from(bits: u64) -> Self {
        let known = u64::MAX;
        Self { bits, known }
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        (value as u64).into()
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        i64::from(value).into()
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        u64::from(value).into()
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        (value as u64).into()
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        u64::from(value).into()
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::UNKNOWN, Into::into)
    }
}

/// Bits side by side, the first lowest.
fn bits<const N: usize>(each: [Option<bool>; N]) -> Value {
    let mut value = Value::UNKNOWN;
    for (place, bit) in each.into_iter().enumerate() {
        value.bits |= u64::from(bit == Some(true)) << place;
        value.known |= u64::from(bit.is_some()) << place;
    }
    value
}

/// Who wants to see the signals.
pub trait Observer {
    /// Once, before the first cycle of the window.
    fn signals(&mut self, signals: &[Signal]);

    /// The signals' values in a cycle, in the order of the list.
    fn cycle(&mut self, cycle: u64, values: &[Value]);
}

/// As [`super::run`], and shows an observer every signal in the cycles of `window`. After a fault the
/// observer has seen the cycles up to it.
///
/// # Errors
/// As [`super::run`].
pub fn run_watched(
    program: &Program,
    config: &Config,
    dram: &mut [u8],
    window: Range<u64>,
    observer: &mut impl Observer,
) -> Result<Run, Fault> {
    let mut values = Vec::new();
    let mut is_named = false;
    run_observed(program, config, dram, |cycle, state| {
        if !window.contains(&cycle) {
            return;
        }
        let view = View::new(cycle, state, program, config);
        if !is_named {
            is_named = true;
            let mut names = Names::default();
            view.show(&mut names);
            observer.signals(&names.signals);
        }
        values.clear();
        view.show(&mut Values(&mut values));
        observer.cycle(cycle, &values);
    })
}

/// Where signals go. Names are only made when somebody wants them.
trait Probe {
    /// Signals inside a scope.
    fn within(&mut self, scope: Arguments<'_>, show: impl FnOnce(&mut Self));
    /// A signal.
    fn put(&mut self, name: Arguments<'_>, width: u32, value: impl Into<Value>);
}

/// Collects the list of signals.
#[derive(Default)]
struct Names {
    scope: String,
    signals: Vec<Signal>,
}

impl Probe for Names {
    fn within(&mut self, scope: Arguments<'_>, show: impl FnOnce(&mut Self)) {
        let outside = self.scope.len();
        let _ = write!(self.scope, "{scope}.");
        show(self);
        self.scope.truncate(outside);
    }

    fn put(&mut self, name: Arguments<'_>, width: u32, _: impl Into<Value>) {
        let name = format!("{}{name}", self.scope);
        self.signals.push(Signal { name, width });
    }
}

/// Collects the values of a cycle.
struct Values<'a>(&'a mut Vec<Value>);

impl Probe for Values<'_> {
    fn within(&mut self, _: Arguments<'_>, show: impl FnOnce(&mut Self)) {
        show(self);
    }

    fn put(&mut self, _: Arguments<'_>, width: u32, value: impl Into<Value>) {
        self.0.push(value.into().cut(width));
    }
}

/// A cycle: the registers at its start, and what follows from them without a clock.
struct View<'a> {
    cycle: u64,
    state: &'a State<'a>,
    program: &'a Program,
    config: &'a Config,
    issued: Option<usize>,
    starts: Starts,
    offers: [Option<Burst>; 2],
    granted: Option<Burst>,
}

impl<'a> View<'a> {
    fn new(cycle: u64, state: &'a State<'a>, program: &'a Program, config: &'a Config) -> Self {
        let offers = [state.load.offer(config), state.store.offer(config)];
        Self {
            cycle,
            state,
            program,
            config,
            issued: state.frontend.issues(program, config),
            starts: Unit::QUEUED.map(|unit| state.starts(unit, program, config)),
            granted: state.channel.grant(offers[0], offers[1]),
            offers,
        }
    }

    /// What a unit starts in this cycle.
    fn start(&self, unit: Unit) -> Option<(usize, &'a Op)> {
        let index = self.starts[unit.index()]?;
        Some((index, &self.program.instructions[index].op))
    }

    fn show(&self, probe: &mut impl Probe) {
        probe.within(format_args!("systole"), |probe| {
            self.control(probe);
            self.transfers(probe);
            self.array(probe);
            self.blocks(probe);
            self.post(probe);
            probe.within(format_args!("u_overflow_counters"), |probe| {
                for (channel, counter) in self.state.overflow.iter().enumerate() {
                    let name = format_args!("n_overflowed[{channel}]");
                    probe.put(name, 64, counter.n_overflowed);
                }
            });
        });
    }
}
