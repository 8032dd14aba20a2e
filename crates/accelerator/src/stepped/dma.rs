//! A DMA unit: walks over a transfer's rows and offers one burst after another.
//!
//! Invariant: it never has more than `max_outstanding` bursts in flight.

use super::{Wires, memory::Memory};
use crate::{Config, FaultKind};
use isa::{Load, Op, Store};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// DRAM to chip.
    Load,
    /// Chip to DRAM.
    Store,
}

/// A piece of a row that the channel carries at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Burst {
    /// The instruction.
    pub index: usize,
    pub direction: Direction,
    /// The on-chip memory.
    pub memory: Memory,
    pub dram_address: u64,
    pub chip_address: u64,
    /// Bytes, at least 1.
    pub length: u64,
    /// Nothing of the instruction follows.
    pub is_last: bool,
}

/// The transfer whose bursts are being offered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub index: usize,
    pub memory: Memory,
    pub dram_address: u64,
    pub chip_address: u64,
    pub row_bytes: u64,
    pub rows_left: u32,
    /// Bytes of the row that have been accepted.
    pub done: u64,
}

/// Registers of one DMA unit.
#[derive(Debug)]
pub(crate) struct Dma {
    pub direction: Direction,
    pub dram_pitch: u64,
    pub chip_pitch: u64,
    pub transfer: Option<Transfer>,
    pub n_in_flight: u32,
}

impl Dma {
    pub fn new(direction: Direction) -> Self {
        Self {
            direction,
            dram_pitch: 0,
            chip_pitch: 0,
            transfer: None,
            n_in_flight: 0,
        }
    }

    /// Whether an instruction may start in this cycle.
    pub fn is_ready(&self) -> bool {
        self.transfer.is_none()
    }

    /// Whether there is nothing to transfer.
    pub fn is_idle(&self) -> bool {
        self.transfer.is_none() && self.n_in_flight == 0
    }

    /// The burst that is offered in this cycle.
    pub fn offer(&self, config: &Config) -> Option<Burst> {
        self.next_burst(config)
            .filter(|_| self.n_in_flight < config.dram.max_outstanding)
    }

    /// The burst that is offered as soon as there is room in flight.
    pub fn next_burst(&self, config: &Config) -> Option<Burst> {
        let transfer = self.transfer?;
        let burst_bytes = u64::from(config.dram.burst_bytes);
        let dram_address = transfer.dram_address + transfer.done;
        let rest = transfer.row_bytes - transfer.done;
        // A power of two.
        let length = rest.min(burst_bytes - (dram_address & (burst_bytes - 1)));
        Some(Burst {
            index: transfer.index,
            direction: self.direction,
            memory: transfer.memory,
            dram_address,
            chip_address: transfer.chip_address + transfer.done,
            length,
            is_last: length == rest && transfer.rows_left == 1,
        })
    }

    /// One cycle: what the channel did, then what starts.
    pub fn step(
        &mut self,
        start: Option<(usize, Op)>,
        accepted: Option<Burst>,
        passed: bool,
        wires: &mut Wires,
    ) {
        if passed {
            self.n_in_flight -= 1;
        }
        if let Some(burst) = accepted {
            self.n_in_flight += 1;
            self.advance(burst);
        }
        let Some((index, op)) = start else { return };
        match op {
            Op::LoadPitch(pitch) => {
                self.dram_pitch = u64::from(pitch.dram_pitch);
                self.chip_pitch = u64::from(pitch.chip_pitch);
                wires.ended.push(index);
            }
            Op::StorePitch(pitch) => {
                self.dram_pitch = u64::from(pitch.dram_pitch);
                self.chip_pitch = u64::from(pitch.chip_pitch);
                wires.ended.push(index);
            }
            Op::Load(load) => match transfer_of_load(index, load) {
                Ok(transfer) => self.transfer = Some(transfer),
                Err(kind) => wires.fault(index, kind),
            },
            Op::Store(store) => match transfer_of_store(index, store) {
                Ok(transfer) => self.transfer = Some(transfer),
                Err(kind) => wires.fault(index, kind),
            },
            other => unreachable!("{} is not for a DMA unit", other.mnemonic()),
        }
    }

    fn advance(&mut self, burst: Burst) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        transfer.done += burst.length;
        if transfer.done < transfer.row_bytes {
            return;
        }
        transfer.done = 0;
        transfer.rows_left -= 1;
        transfer.dram_address += self.dram_pitch;
        transfer.chip_address += self.chip_pitch;
        if transfer.rows_left == 0 {
            self.transfer = None;
        }
    }
}

fn transfer_of_load(index: usize, load: Load) -> Result<Transfer, FaultKind> {
    let memory = match load.memory {
        0 => Memory::Activation,
        1 => Memory::Weight,
        2 => Memory::Parameter,
        other => {
            let rule = "must be 0, 1 or 2";
            return Err(FaultKind::Operand {
                field: "memory",
                value: i64::from(other),
                rule,
            });
        }
    };
    positive("n_rows", load.n_rows)?;
    positive("row_bytes", load.row_bytes)?;
    Ok(Transfer {
        index,
        memory,
        dram_address: u64::from(load.dram_address),
        chip_address: u64::from(load.chip_address),
        row_bytes: u64::from(load.row_bytes),
        rows_left: load.n_rows,
        done: 0,
    })
}

fn transfer_of_store(index: usize, store: Store) -> Result<Transfer, FaultKind> {
    positive("n_rows", store.n_rows)?;
    positive("row_bytes", store.row_bytes)?;
    Ok(Transfer {
        index,
        memory: Memory::Activation,
        dram_address: u64::from(store.dram_address),
        chip_address: u64::from(store.chip_address),
        row_bytes: u64::from(store.row_bytes),
        rows_left: store.n_rows,
        done: 0,
    })
}

fn positive(field: &'static str, value: u32) -> Result<(), FaultKind> {
    if value == 0 {
        return Err(FaultKind::Operand {
            field,
            value: 0,
            rule: "must be at least 1",
        });
    }
    Ok(())
}
