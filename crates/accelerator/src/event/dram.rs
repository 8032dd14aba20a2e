//! When a burst's data pass: the flat channel, or rows and banks.
//!
//! Invariant: bursts come in the order in which the channel accepts them, and their data pass in
//! that order; so everything about a burst is known when it is accepted.

use crate::{Config, config::Banks, rules::Burst, stats::RowEvent};

/// One bank.
#[derive(Clone, Copy, Debug, Default)]
struct Bank {
    open: Option<u64>,
    /// Earliest column command to the open row.
    column_ready: u64,
    /// Earliest closing of the open row.
    close_ready: u64,
    /// Earliest opening of a row.
    open_ready: u64,
    /// The last data of the bank have passed.
    data_end: u64,
}

/// A DMA unit's accepted bursts, as many as may be in flight: when each leaves.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// In a ring, less what all have moved since.
    ends: Vec<u64>,
    oldest: usize,
    newest: Option<u64>,
    moved: u64,
    /// Most that there may be.
    limit: usize,
}

impl InFlight {
    pub fn new(limit: u32) -> Self {
        Self {
            ends: Vec::with_capacity(limit as usize),
            limit: limit as usize,
            ..Self::default()
        }
    }

    /// When the oldest leaves, if no other may follow before.
    #[inline]
    pub fn oldest(&self) -> Option<u64> {
        (self.ends.len() == self.limit).then(|| self.ends[self.oldest] + self.moved)
    }

    pub fn newest(&self) -> Option<u64> {
        Some(self.newest? + self.moved)
    }

    /// Another, which leaves last.
    #[inline]
    pub fn push(&mut self, end: u64) {
        let end = end - self.moved;
        self.newest = Some(end);
        if self.ends.len() < self.limit {
            self.ends.push(end);
            return;
        }
        self.ends[self.oldest] = end;
        self.oldest += 1;
        if self.oldest == self.limit {
            self.oldest = 0;
        }
    }

    /// As many as there are have been followed by others, each so much later.
    pub fn pass(&mut self, cycles: u64) {
        // What was accepted before all moves lies before `moved`, but no longer counts.
        self.moved += cycles;
    }
}

/// The channel behind the arbiter.
#[derive(Debug, Default)]
pub(super) struct Channel {
    /// The data bus is free from here on.
    bus_free: u64,
    banks: Vec<Bank>,
    /// Number of the first refresh that no burst has met.
    next_refresh: u64,
    /// Bus cycles of a burst of full size.
    pub period: u64,
}

impl Channel {
    pub fn new(config: &Config) -> Self {
        Self {
            bus_free: 0,
            banks: vec![Bank::default(); config.dram.banks.map_or(0, |b| b.n_banks as usize)],
            next_refresh: 1,
            period: config.dram.bus_cycles(0, config.dram.burst_bytes.into()),
        }
    }

    /// Whether bursts of full size, accepted from cycle `next` on each as soon as the oldest leaves
    /// flight, find the bus busy, so that each comes one bus time after the one before, if those in
    /// flight do. Only of the flat channel.
    #[inline]
    pub fn is_bound(&self, next: u64, in_flight: &InFlight, config: &Config) -> bool {
        config.dram.banks.is_none()
            && in_flight.oldest() == Some(next)
            && in_flight.newest() == Some(self.bus_free)
            && next + u64::from(config.dram.latency_cycles) <= self.bus_free
    }

    /// The last burst's end.
    pub fn end(&self) -> u64 {
        self.bus_free
    }

    /// Data pass without a gap.
    pub fn pass(&mut self, cycles: u64) {
        self.bus_free += cycles;
    }

    /// The burst's end when it is accepted in cycle `now`, and what it met.
    #[inline]
    pub fn accept(&mut self, now: u64, burst: &Burst, config: &Config) -> (u64, Option<RowEvent>) {
        let arrival = now + u64::from(config.dram.latency_cycles);
        let Some(banks) = &config.dram.banks else {
            self.bus_free = self.bus_free.max(arrival) + burst.bus_cycles;
            return (self.bus_free, None);
        };
        let (index, row) = banks.place(burst.address);
        let (column, event) = self.column_command(arrival, index, row, banks);
        self.bus_free = column + banks.cl_cycles + burst.bus_cycles;
        self.banks[index].data_end = self.bus_free;
        (self.bus_free, Some(event))
    }

    /// When the column command is given; opens the row for it.
    fn column_command(
        &mut self,
        arrival: u64,
        index: usize,
        row: u64,
        banks: &Banks,
    ) -> (u64, RowEvent) {
        // The data must find the bus free.
        let earliest = arrival.max(self.bus_free.saturating_sub(banks.cl_cycles));
        // Of the refreshes that lie behind in any case only the last matters.
        let passed = earliest / banks.refi_cycles;
        if passed >= self.next_refresh {
            self.refresh(passed, banks);
        }
        loop {
            let mut bank = self.banks[index];
            let mut event = RowEvent::Hit;
            let mut at = arrival;
            if bank.open.is_some_and(|open| open != row) {
                event = RowEvent::Conflict;
                at = at.max(bank.close_ready).max(bank.data_end);
                bank.open = None;
                bank.open_ready = bank.open_ready.max(at + banks.rp_cycles);
            }
            if bank.open.is_none() {
                if event == RowEvent::Hit {
                    event = RowEvent::Miss;
                }
                at = at.max(bank.open_ready);
                bank.open = Some(row);
                bank.column_ready = at + banks.rcd_cycles;
                bank.close_ready = at + banks.ras_cycles;
                bank.open_ready = at + banks.rc_cycles;
            }
            let column = earliest.max(bank.column_ready);
            if column < self.next_refresh * banks.refi_cycles {
                self.banks[index] = bank;
                return (column, event);
            }
            // The refresh comes first and closes what has been opened for this burst.
            self.refresh(self.next_refresh, banks);
        }
    }

    /// Closes every row for refresh `number`; none is opened before it is over.
    fn refresh(&mut self, number: u64, banks: &Banks) {
        let after = number * banks.refi_cycles + banks.refresh_cycles();
        for bank in &mut self.banks {
            *bank = Bank {
                open_ready: after,
                data_end: bank.data_end,
                ..Bank::default()
            };
        }
        self.next_refresh = number + 1;
    }
}
