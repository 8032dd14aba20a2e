//! The DRAM controller's banks: opens and closes rows, gives column commands, refreshes.
//!
//! Invariant: column commands are given in the order of the bursts, each so early that its data find
//! the bus free; rows are opened and closed for the oldest burst of each bank.

use super::{Wires, dram::Accepted};
use crate::{Banks, Config, RowEvent};
use std::collections::VecDeque;

/// Registers of one bank: the open row, and what has still to pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bank {
    pub open: Option<u64>,
    /// Cycles until a column command.
    pub rcd: u64,
    /// Cycles until the row may be closed.
    pub ras: u64,
    /// Cycles until a row may be opened, since the last was closed.
    pub rp: u64,
    /// Cycles until a row may be opened, since the last was opened.
    pub rc: u64,
}

/// Registers of the controller.
#[derive(Debug)]
pub(crate) struct Controller {
    timing: Banks,
    pub banks: Vec<Bank>,
    /// Cycles until the next refresh begins.
    pub until_refresh: u64,
    /// Cycles until the refresh is over.
    pub refreshing: u64,
    /// Cycles until the data of every column command have passed.
    pub bus_taken: u64,
}

impl Controller {
    pub fn new(timing: Banks) -> Self {
        Self {
            timing,
            banks: vec![Bank::default(); timing.n_banks as usize],
            until_refresh: timing.refi_cycles,
            refreshing: 0,
            bus_taken: 0,
        }
    }

    /// One cycle: refresh, then one command for each bank that needs one, then the column command.
    pub fn step(&mut self, bursts: &mut VecDeque<Accepted>, config: &Config, wires: &mut Wires) {
        if self.until_refresh == 0 {
            self.begin_refresh(bursts);
        }
        if self.refreshing == 0 {
            for index in 0..self.banks.len() {
                self.open_or_close(index, bursts);
            }
            self.give_column_command(bursts, config, wires);
        }
        self.until_refresh -= 1;
        self.refreshing = self.refreshing.saturating_sub(1);
        self.bus_taken = self.bus_taken.saturating_sub(1);
        for bank in &mut self.banks {
            for timer in [&mut bank.rcd, &mut bank.ras, &mut bank.rp, &mut bank.rc] {
                *timer = timer.saturating_sub(1);
            }
        }
    }

    /// Every row is closed, whatever it was opened for.
    fn begin_refresh(&mut self, bursts: &mut VecDeque<Accepted>) {
        self.until_refresh = self.timing.refi_cycles;
        self.refreshing = self.timing.rp_cycles + self.timing.rfc_cycles;
        self.banks.fill(Bank::default());
        for burst in bursts.iter_mut().filter(|burst| !burst.is_sent) {
            burst.event = RowEvent::Hit;
        }
    }

    /// Serves the oldest burst of a bank that has arrived and waits for its column command.
    fn open_or_close(&mut self, index: usize, bursts: &mut VecDeque<Accepted>) {
        let timing = self.timing;
        let is_here = |a: &Accepted| timing.place(a.burst.dram_address).0 == index;
        let has_data = bursts.iter().any(|a| a.is_sent && is_here(a));
        let next = bursts.iter_mut().find(|a| !a.is_sent && is_here(a));
        let Some(next) = next.filter(|a| a.wait == 0) else {
            return;
        };
        let row = timing.place(next.burst.dram_address).1;
        let bank = &mut self.banks[index];
        match bank.open {
            Some(open) if open == row => {}
            Some(_) if bank.ras == 0 && !has_data => {
                bank.open = None;
                bank.rp = timing.rp_cycles;
                next.event = RowEvent::Conflict;
            }
            None if bank.rp == 0 && bank.rc == 0 => {
                bank.open = Some(row);
                bank.rcd = timing.rcd_cycles;
                bank.ras = timing.ras_cycles;
                bank.rc = timing.rc_cycles;
                if next.event == RowEvent::Hit {
                    next.event = RowEvent::Miss;
                }
            }
            Some(_) | None => {}
        }
    }

    fn give_column_command(
        &mut self,
        bursts: &mut VecDeque<Accepted>,
        config: &Config,
        wires: &mut Wires,
    ) {
        let next = bursts.iter_mut().find(|burst| !burst.is_sent);
        let Some(next) = next.filter(|burst| burst.wait == 0) else {
            return;
        };
        let (address, length) = (next.burst.dram_address, next.burst.length);
        let (index, row) = self.timing.place(address);
        let bank = &self.banks[index];
        let is_open = bank.open == Some(row) && bank.rcd == 0;
        if !is_open || self.bus_taken > self.timing.cl_cycles {
            return;
        }
        let taken = config.dram.bus_cycles(address, length);
        // The words pass in the last cycles of the burst's time.
        let word = u64::from(config.dram.bytes_per_cycle);
        let n_words = (address + length - 1) / word - address / word + 1;
        next.is_sent = true;
        next.lead = taken - n_words;
        next.wait = self.timing.cl_cycles + next.lead;
        self.bus_taken = self.timing.cl_cycles + taken;
        wires.rows.push((next.burst.index, next.event));
    }
}
