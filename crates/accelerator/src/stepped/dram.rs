//! The DRAM channel: takes one burst a cycle, answers in order on one bus.
//!
//! Invariant: the bus carries at most one word a cycle, and the bursts' words in the order in which
//! the bursts were accepted.

use super::{
    Wires,
    dma::{Burst, Direction},
    memory::{Memories, Memory, Write},
};
use crate::{Config, FaultKind};
use std::collections::VecDeque;

/// Registers of the channel.
#[derive(Debug, Default)]
pub(crate) struct Channel {
    /// The DMA unit whose burst was accepted last.
    pub accepted_last: Option<Direction>,
    /// Accepted bursts whose last word has not passed, oldest first.
    pub in_flight: VecDeque<Accepted>,
    /// Words of the oldest burst that have passed.
    pub beat: u64,
}

/// A burst on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub burst: Burst,
    /// Cycles until its first word may use the bus.
    pub wait: u32,
}

/// What the bus did in a cycle, for the DMA units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passed {
    pub direction: Direction,
}

impl Channel {
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

    /// One cycle. Gives the burst whose last word passed in it.
    pub fn step(
        &mut self,
        granted: Option<Burst>,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) -> Option<Passed> {
        let passed = self.use_bus(config, memories, wires);
        for accepted in &mut self.in_flight {
            accepted.wait = accepted.wait.saturating_sub(1);
        }
        if let Some(burst) = granted {
            self.accepted_last = Some(burst.direction);
            self.in_flight.push_back(Accepted {
                burst,
                wait: config.dram.latency_cycles - 1,
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
            .filter(|accepted| accepted.wait == 0)?
            .burst;
        let word = u64::from(config.dram.bytes_per_cycle);
        let behind = burst.dram_address + burst.length;
        let from = (burst.dram_address / word + self.beat) * word;
        let to = from + word;
        for address in from.max(burst.dram_address)..to.min(behind) {
            match copy(burst, address, memories) {
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

/// The byte of a burst that stands at `address` in DRAM.
fn copy(burst: Burst, address: u64, memories: &Memories<'_>) -> Result<Write, FaultKind> {
    let chip_address = burst.chip_address + (address - burst.dram_address);
    let dram = (Memory::Dram, address);
    let chip = (burst.memory, chip_address);
    let (from, to) = match burst.direction {
        Direction::Load => (dram, chip),
        Direction::Store => (chip, dram),
    };
    let value = memories.byte(from.0, from.1)?;
    memories.check(to.0, to.1)?;
    Ok(Write::Byte {
        memory: to.0,
        address: to.1,
        value,
    })
}
