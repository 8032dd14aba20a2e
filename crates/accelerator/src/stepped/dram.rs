//! The DRAM channel: takes one burst a cycle, answers in order on one bus.
//!
//! Invariant: the bus carries at most one word a cycle, and the bursts' words in the order in which
//! the bursts were accepted.

use super::{
    Wires,
    banks::Controller,
    dma::{Burst, Direction},
    memory::{Memories, Memory, WIDEST, Write},
};
use crate::{Config, FaultKind, RowEvent};
use std::collections::VecDeque;

/// Registers of the channel.
#[derive(Debug)]
pub(crate) struct Channel {
    /// The DMA unit whose burst was accepted last.
    pub accepted_last: Option<Direction>,
    /// Accepted bursts whose last word has not passed, oldest first.
    pub in_flight: VecDeque<Accepted>,
    /// Words of the oldest burst that have passed.
    pub beat: u64,
    /// Rows and banks, on a machine that has them.
    pub controller: Option<Controller>,
}

/// A burst on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub burst: Burst,
    /// Cycles until its first word may use the bus; with banks, until its command may be given, and
    /// once it has been given, until its first word passes.
    pub wait: u64,
    /// The last cycles of `wait`, once the command has been given, in which its data already take the
    /// bus: the devices are slower than the bus.
    pub lead: u64,
    /// With banks: the column command has been given.
    pub is_sent: bool,
    /// With banks: what it has met so far.
    pub event: RowEvent,
}

/// What the bus did in a cycle, for the DMA units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passed {
    pub direction: Direction,
}

impl Channel {
    pub fn new(config: &Config) -> Self {
        Self {
            accepted_last: None,
            in_flight: VecDeque::new(),
            beat: 0,
            controller: config.dram.banks.map(Controller::new),
        }
    }

    /// The arbiter: which of the offers is accepted in this cycle.
    pub fn grant(&self, load: Option<Burst>, store: Option<Burst>) -> Option<Burst> {
        match (load, store) {
            (Some(load), Some(store)) => Some(if self.accepted_last == Some(Direction::Load) {
                store
            } else {
                load
            }),
            (load, store) => load.or(store),
        }
    }

    /// Whether nothing passes; banks have always something to count.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.controller.is_none()
    }

    /// Whether data take the bus in this cycle.
    pub fn uses_bus(&self) -> bool {
        self.in_flight
            .front()
            .is_some_and(|accepted| accepted.is_sent && accepted.wait <= accepted.lead)
    }

    /// Which way a word passes in this cycle.
    pub fn carries(&self) -> Option<Direction> {
        let accepted = self.in_flight.front()?;
        (accepted.is_sent && accepted.wait == 0).then_some(accepted.burst.direction)
    }

    /// One cycle. Gives the burst whose last word passed in it.
    pub fn step(
        &mut self,
        granted: Option<Burst>,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) -> Option<Passed> {
        if let Some(controller) = &mut self.controller {
            controller.step(&mut self.in_flight, config, wires);
        }
        let passed = self.use_bus(config, memories, wires);
        for accepted in &mut self.in_flight {
            accepted.wait = accepted.wait.saturating_sub(1);
        }
        if let Some(burst) = granted {
            self.accepted_last = Some(burst.direction);
            self.in_flight.push_back(Accepted {
                burst,
                wait: u64::from(config.dram.latency_cycles) - 1,
                lead: 0,
                is_sent: self.controller.is_none(),
                event: RowEvent::Hit,
            });
        }
        passed
    }

    fn use_bus(
        &mut self,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) -> Option<Passed> {
        let burst = self
            .in_flight
            .front()
            .filter(|accepted| accepted.wait == 0 && accepted.is_sent)?
            .burst;
        let word = u64::from(config.dram.bytes_per_cycle);
        let behind = burst.dram_address + burst.length;
        // A power of two.
        let from = (burst.dram_address & !(word - 1)) + self.beat * word;
        let to = from + word;
        let (first, end) = (from.max(burst.dram_address), to.min(behind));
        for address in (first..end).step_by(WIDEST) {
            let n = (end - address).min(WIDEST as u64) as usize;
            match copy(burst, address, n, memories) {
                Ok(write) => wires.writes.push(write),
                Err(kind) => wires.fault(burst.index, kind),
            }
        }
        self.beat += 1;
        if to < behind {
            return None;
        }
        self.beat = 0;
        self.in_flight.pop_front();
        if burst.is_last {
            wires.ended.push(burst.index);
        }
        Some(Passed {
            direction: burst.direction,
        })
    }
}

/// The bytes of a burst that stand from `address` on in DRAM.
fn copy(burst: Burst, address: u64, n: usize, memories: &Memories<'_>) -> Result<Write, FaultKind> {
    let chip_address = burst.chip_address + (address - burst.dram_address);
    let dram = (Memory::Dram, address);
    let chip = (burst.memory, chip_address);
    let (from, to) = match burst.direction {
        Direction::Load => (dram, chip),
        Direction::Store => (chip, dram),
    };
    let mut values = [0; WIDEST];
    memories.read(from.0, from.1, &mut values[..n])?;
    memories.check(to.0, to.1, n)?;
    Ok(Write::Bytes {
        memory: to.0,
        address: to.1,
        values,
        n,
    })
}
