//! The stepped model: every register, every cycle, as plain as possible; one file per hardware unit.
//!
//! Invariant: in each cycle every unit decides by the state at the cycle's start. What one unit
//! tells another goes through `Wires` and counts from the next cycle on. Nothing here knows when
//! an instruction will end; an end is noticed when it happens. Only an array at whose registers nobody looks
//! knows, and may make up for a cycle later, before it makes a difference.

mod array;
mod banks;
mod dma;
mod dram;
mod frontend;
mod lanes;
mod line;
mod memory;
mod pe;
mod post;
mod sequencer;
mod sums;
#[cfg(test)]
mod tests;
mod waves;

pub use waves::{Observer, Signal, Value, run_watched};

use crate::{Action, Config, Counts, Fault, FaultKind, RowCounts, RowEvent, Run, Timing};
use arith::{ChannelOverflow, Cycles};
use isa::{Program, Unit};
use memory::{Memories, Write};

/// Everything that changes during a run.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub frontend: frontend::Frontend,
    pub load: dma::Dma,
    pub store: dma::Dma,
    pub channel: dram::Channel,
    pub array: array::Array,
    pub post: post::Post,
    pub memories: Memories<'a>,
    /// Overflow counters.
    pub overflow: Vec<ChannelOverflow>,
}

/// What units tell others in a cycle; visible from the next one on.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    /// Requests of all write ports.
    pub writes: Vec<Write>,
    /// Instructions whose end is the next cycle.
    pub ended: Vec<usize>,
    /// Records for overflow counters.
    pub overflow: Vec<(usize, ChannelOverflow)>,
    /// What bursts of an instruction met in their banks.
    pub rows: Vec<(usize, RowEvent)>,
    faults: Vec<(usize, FaultKind)>,
}

impl Wires {
    /// Stops the run: instruction `index` cannot go on.
    pub fn fault(&mut self, index: usize, kind: FaultKind) {
        self.faults.push((index, kind));
    }
}

/// What happened in a cycle besides what the registers show.
struct Happened {
    issued: Option<usize>,
    starts: frontend::Starts,
    /// Data took the bus.
    bus_used: bool,
    /// Which way the bus carried a word.
    carried: Option<dma::Direction>,
    /// How many cycles did so: more than one where nothing happened but in the array.
    n_cycles: u64,
}

/// Runs a program on a DRAM image, cycle by cycle.
///
/// `dram` holds what the program and its host have put there (at least `program.dram_bytes`), and
/// afterwards the results.
///
/// # Errors
/// The first fault, in order of cycles; of several in one cycle, the earliest instruction's.
pub fn run(program: &Program, config: &Config, dram: &mut [u8]) -> Result<Run, Fault> {
    run_through(program, config, dram, None::<fn(u64, &State<'_>)>)
}

/// [`run`], with a look at every register at the start of every cycle.
pub(crate) fn run_observed(
    program: &Program,
    config: &Config,
    dram: &mut [u8],
    observe: impl FnMut(u64, &State<'_>),
) -> Result<Run, Fault> {
    run_through(program, config, dram, Some(observe))
}

fn run_through(
    program: &Program,
    config: &Config,
    dram: &mut [u8],
    mut observe: Option<impl FnMut(u64, &State<'_>)>,
) -> Result<Run, Fault> {
    crate::check_program(program, config)?;
    let n_instructions = program.instructions.len();
    let mut timing = Timing {
        issue: vec![0; n_instructions],
        start: vec![0; n_instructions],
        end: vec![0; n_instructions],
        rows: vec![RowCounts::default(); config.dram.banks.map_or(0, |_| n_instructions)],
        total: Cycles(0),
        bus: Vec::new(),
    };
    let mut counts = Counts::default();
    let mut state = State::new(program, config, dram, observe.is_some());
    let mut wires = Wires::default();
    let mut cycle = 0;
    while !state.frontend.is_done(program) {
        if let Some(observe) = &mut observe {
            observe(cycle, &state);
        }
        let happened = state.step(program, config, &mut wires);
        if let Some((index, kind)) = wires.faults.drain(..).min_by_key(|(index, _)| *index) {
            return Err(fault(program, index, kind));
        }
        if let Some(index) = happened.issued {
            timing.issue[index] = cycle;
            if program.instructions[index].op.unit() == Unit::Frontend {
                timing.start[index] = cycle;
            }
        }
        for index in happened.starts.into_iter().flatten() {
            timing.start[index] = cycle;
        }
        if happened.bus_used {
            crate::stats::append(&mut timing.bus, cycle, cycle + 1);
        }
        if let Some(direction) = happened.carried {
            let action = match direction {
                dma::Direction::Load => Action::DramRead,
                dma::Direction::Store => Action::DramWrite,
            };
            counts[action] += u64::from(config.dram.bytes_per_cycle);
        }
        counts[Action::Instruction] += u64::from(happened.issued.is_some());
        cycle += happened.n_cycles;
        for index in wires.ended.drain(..) {
            timing.end[index] = cycle;
        }
        for (index, event) in wires.rows.drain(..) {
            timing.rows[index].count(event);
        }
    }
    timing.total = Cycles(timing.end.iter().copied().max().unwrap_or(0));
    Ok(Run {
        timing,
        overflow: state.overflow,
        actions: counts + state.memories.counts() + state.array.counts() + state.post.counts,
    })
}

fn fault(program: &Program, index: usize, kind: FaultKind) -> Fault {
    let mnemonic = program
        .instructions
        .get(index)
        .map_or("program", |i| i.op.mnemonic());
    Fault {
        index,
        mnemonic,
        kind,
    }
}

impl<'a> State<'a> {
    /// `is_observed`: somebody looks at every cycle.
    fn new(program: &Program, config: &Config, dram: &'a mut [u8], is_observed: bool) -> Self {
        Self {
            frontend: frontend::Frontend::default(),
            load: dma::Dma::new(dma::Direction::Load),
            store: dma::Dma::new(dma::Direction::Store),
            channel: dram::Channel::new(config),
            array: array::Array::new(config, is_observed),
            post: post::Post::new(config),
            memories: Memories::new(config, dram),
            overflow: vec![ChannelOverflow::default(); program.n_channels as usize],
        }
    }

    /// One cycle: decide by the old state, step every unit, then the clock edge.
    fn step(&mut self, program: &Program, config: &Config, wires: &mut Wires) -> Happened {
        let issued = self.frontend.issues(program, config);
        let starts = Unit::QUEUED.map(|unit| self.starts(unit, program, config));
        if issued.is_none() && starts == [None; 4] {
            if self.post.is_idle() && self.is_still_outside() {
                let n_cycles = self.array.n_alike();
                if n_cycles > 0 {
                    return self.step_array(n_cycles, program, config, wires);
                }
            }
            if self.is_quiet() {
                self.deadlock(program, wires);
            }
        }

        let op =
            |unit: Unit| starts[unit.index()].map(|index| (index, program.instructions[index].op));
        if let Some(block) = self.post.block() {
            let (memories, overflow) = (&mut self.memories, &mut self.overflow);
            let ready = self.array.before_reading(block, config, memories, overflow);
            if let Err((index, kind)) = ready {
                wires.fault(index, kind);
            }
        }
        // Units without anything to do have nothing to tell.
        let moves = !self.is_still_outside();
        let (mut bus_used, mut carried) = (false, None);
        if moves || op(Unit::Load).is_some() || op(Unit::Store).is_some() {
            (bus_used, carried) = (self.channel.uses_bus(), self.channel.carries());
            self.transfer([op(Unit::Load), op(Unit::Store)], config, wires);
        }
        self.array
            .step(op(Unit::Array), config, &self.memories, wires);
        if !self.post.is_idle() || op(Unit::Post).is_some() {
            self.post
                .step(op(Unit::Post), config, &self.memories, wires);
        }
        self.frontend.step(issued, &starts, program, config, wires);
        self.clock_edge(config, wires);
        Happened {
            issued,
            starts,
            bus_used,
            carried,
            n_cycles: 1,
        }
    }

    /// Whether nothing is transferred.
    fn is_still_outside(&self) -> bool {
        self.load.is_idle() && self.store.is_idle() && self.channel.is_idle()
    }

    /// One cycle of the channel and of the DMA units, load and store, with what they start.
    fn transfer(
        &mut self,
        starts: [Option<(usize, isa::Op)>; 2],
        config: &Config,
        wires: &mut Wires,
    ) {
        let offers = (self.load.offer(config), self.store.offer(config));
        let granted = self.channel.grant(offers.0, offers.1);
        let passed = self.channel.step(granted, config, &self.memories, wires);
        for (dma, start) in [&mut self.load, &mut self.store].into_iter().zip(starts) {
            let accepted = granted.filter(|burst| burst.direction == dma.direction);
            let has_passed = passed.is_some_and(|passed| passed.direction == dma.direction);
            dma.step(start, accepted, has_passed, wires);
        }
    }

    /// Cycles of the only unit that has anything to do, until it has something to tell.
    fn step_array(
        &mut self,
        n_cycles: u64,
        program: &Program,
        config: &Config,
        wires: &mut Wires,
    ) -> Happened {
        self.array.pass(n_cycles, wires);
        self.frontend.step(None, &[None; 4], program, config, wires);
        self.clock_edge(config, wires);
        Happened {
            issued: None,
            starts: [None; 4],
            bus_used: false,
            carried: None,
            n_cycles,
        }
    }

    /// What units have written and counted.
    fn clock_edge(&mut self, config: &Config, wires: &mut Wires) {
        let (memories, overflow) = (&mut self.memories, &mut self.overflow);
        let done = self
            .array
            .before_writing(&wires.writes, config, memories, overflow);
        if let Err((index, kind)) = done {
            wires.fault(index, kind);
        }
        memories.commit(&mut wires.writes);
        for (channel, seen) in wires.overflow.drain(..) {
            // The rules keep every counter inside the program's number.
            if let Some(counter) = overflow.get_mut(channel) {
                counter.merge(&seen);
            }
        }
    }

    /// The instruction that a unit takes from its queue in this cycle.
    fn starts(&self, unit: Unit, program: &Program, config: &Config) -> Option<usize> {
        let &index = self.frontend.queues[unit.index()].front()?;
        let instruction = &program.instructions[index];
        let is_ready = match unit {
            Unit::Load => self.load.is_ready(),
            Unit::Array => self.array.is_ready(&instruction.op, config),
            Unit::Post => self.post.is_ready(config),
            Unit::Store => self.store.is_ready(),
            Unit::Frontend => false,
        };
        (is_ready && self.frontend.missing(instruction).next().is_none()).then_some(index)
    }

    /// Whether no unit has anything to do: all that is open waits in a queue.
    fn is_quiet(&self) -> bool {
        let n_queued: usize = self
            .frontend
            .queues
            .iter()
            .map(std::collections::VecDeque::len)
            .sum();
        self.frontend.n_open == n_queued
    }

    fn deadlock(&self, program: &Program, wires: &mut Wires) {
        let heads = self
            .frontend
            .queues
            .iter()
            .filter_map(|queue| queue.front());
        let index = heads.copied().min().unwrap_or(self.frontend.next);
        let missing = program
            .instructions
            .get(index)
            .map_or(Vec::new(), |i| self.frontend.missing(i).collect());
        wires.fault(index, FaultKind::Deadlock { missing });
    }
}
