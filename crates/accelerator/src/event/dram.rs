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
    /// In a ring.
    ends: Vec<u64>,
    oldest: usize,
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
        (self.ends.len() == self.limit).then(|| self.ends[self.oldest])
    }

    /// Another, which leaves last.
    #[inline]
    pub fn push(&mut self, end: u64) {
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

    /// Up to `n` bursts of full size after one that was accepted in cycle `now` and whose data are the last on
    /// the bus: as many as are accepted before `until` and find the bus busy, so that their data follow without
    /// a gap. How many, and when the last of them is accepted.
    #[inline]
    pub fn follow(
        &mut self,
        n: u64,
        (mut now, until): (u64, u64),
        channel: &Channel,
    ) -> (u64, u64) {
        let (period, mut newest) = (channel.period, channel.bus_free);
        if self.ends.len() < self.limit {
            return (0, now);
        }
        let mut n_done = 0;
        let n_others = n.min(self.limit as u64);
        while n_done < n_others {
            let next = (now + 1).max(self.ends[self.oldest]);
            if next >= until || next + channel.latency > newest {
                return (n_done, now);
            }
            now = next;
            newest += period;
            self.push(newest);
            n_done += 1;
        }
        // Now all in flight are of these, and the bus stays busy: the last was accepted no sooner than the
        // first burst of all left. In step with them further ones are accepted if the last was in time.
        let oldest = self.ends[self.oldest];
        if n_done == n || now >= oldest || oldest >= until {
            return (n_done, now);
        }
        let n_rest = (n - n_done).min((until - 1 - oldest) / period + 1);
        let passed = n_rest * period;
        self.ends.iter_mut().for_each(|end| *end += passed);
        (n_done + n_rest, oldest + passed - period)
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
    /// From a burst's acceptance to its data, at least.
    latency: u64,
}

impl Channel {
    pub fn new(config: &Config) -> Self {
        Self {
            bus_free: 0,
            banks: vec![Bank::default(); config.dram.banks.map_or(0, |b| b.n_banks as usize)],
            next_refresh: 1,
            period: config.dram.bus_cycles(0, config.dram.burst_bytes.into()),
            latency: config.dram.latency_cycles.into(),
        }
    }

    /// Whether there are no banks.
    #[inline]
    pub fn is_flat(&self) -> bool {
        self.banks.is_empty()
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
        let arrival = now + self.latency;
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
