//! The DMA units and the DRAM channel.
//!
//! Invariant: as in [`super`].

use super::{Probe, View, bits, control::of};
use crate::stepped::{
    dma::{Burst, Direction, Dma},
    memory::Memory,
};

/// Bursts that the hardware description is built for, of one unit.
const LEAST_OUTSTANDING: u32 = 64;

impl View<'_> {
    pub(super) fn transfers(&self, probe: &mut impl Probe) {
        for (name, dma) in [
            ("u_load_dma", &self.state.load),
            ("u_store_dma", &self.state.store),
        ] {
            probe.within(format_args!("{name}"), |probe| self.dma(dma, probe));
        }
        probe.within(format_args!("u_dram"), |probe| self.channel(probe));
    }

    fn dma(&self, dma: &Dma, probe: &mut impl Probe) {
        let transfer = dma.transfer.as_ref();
        let burst = dma.next_burst(self.config);
        let burst = burst.as_ref();
        let is_accepted = self.granted.is_some_and(|b| b.direction == dma.direction);
        let has_passed = self
            .last_word()
            .is_some_and(|b| b.direction == dma.direction);
        probe.put(format_args!("busy"), 1, transfer.is_some());
        let offers = dma.offer(self.config).is_some();
        probe.put(format_args!("offer"), 1, offers);
        probe.put(format_args!("accept"), 1, is_accepted);
        probe.put(format_args!("burst_done"), 1, has_passed);
        probe.put(format_args!("in_flight"), 13, dma.n_in_flight);
        probe.put(format_args!("index"), 32, of(transfer, |t| t.index));
        probe.put(
            format_args!("memory"),
            2,
            of(transfer, |t| number(t.memory)),
        );
        probe.put(
            format_args!("dram"),
            32,
            of(transfer, |t| t.dram_address + t.done),
        );
        probe.put(
            format_args!("chip"),
            24,
            of(transfer, |t| t.chip_address + t.done),
        );
        probe.put(format_args!("rows_left"), 16, of(transfer, |t| t.rows_left));
        probe.put(
            format_args!("bytes_left"),
            20,
            of(transfer, |t| t.row_bytes - t.done),
        );
        probe.put(format_args!("dram_pitch"), 32, dma.dram_pitch);
        probe.put(format_args!("chip_pitch"), 24, dma.chip_pitch);
        probe.within(format_args!("burst"), |probe| {
            probe.put(format_args!("n_bytes"), 17, of(burst, |b| b.length));
            probe.put(format_args!("is_last"), 1, of(burst, |b| b.is_last));
        });
    }

    fn channel(&self, probe: &mut impl Probe) {
        let channel = &self.state.channel;
        let current = channel.in_flight.front().map(|accepted| accepted.burst);
        let current = current.as_ref();
        let carries = channel.carries();
        let of_each = |burst: Option<Burst>| {
            [Direction::Load, Direction::Store]
                .map(|direction| Some(burst.is_some_and(|b| b.direction == direction)))
        };
        let most = self.config.dram.max_outstanding.max(LEAST_OUTSTANDING);
        let count_bits = (2 * most).next_power_of_two().ilog2() + 1;
        probe.put(format_args!("now"), 32, self.cycle);
        let offers = self.offers.map(|offer| Some(offer.is_some()));
        probe.put(format_args!("offer"), 2, bits(offers));
        probe.put(format_args!("accept"), 2, bits(of_each(self.granted)));
        probe.put(
            format_args!("burst_done"),
            2,
            bits(of_each(self.last_word())),
        );
        let was_load = channel.accepted_last == Some(Direction::Load);
        probe.put(format_args!("last_accepted"), 1, !was_load);
        probe.put(format_args!("count"), count_bits, channel.in_flight.len());
        probe.put(format_args!("moving"), 1, carries.is_some());
        let loads = carries == Some(Direction::Load);
        probe.put(format_args!("load_valid"), 1, loads);
        let is_store = of(current, |b| b.direction == Direction::Store);
        probe.put(format_args!("is_store"), 1, is_store);
        probe.put(format_args!("word"), 16, channel.beat);
        let address = of(current, |b| self.word_address(*b));
        probe.put(format_args!("address"), 32, address);
        probe.within(format_args!("current"), |probe| {
            probe.put(format_args!("index"), 32, of(current, |b| b.index));
            probe.put(format_args!("memory"), 2, of(current, |b| number(b.memory)));
            probe.put(
                format_args!("dram_address"),
                32,
                of(current, |b| b.dram_address),
            );
            probe.put(
                format_args!("chip_address"),
                24,
                of(current, |b| b.chip_address),
            );
            probe.put(format_args!("n_bytes"), 17, of(current, |b| b.length));
            probe.put(format_args!("is_last"), 1, of(current, |b| b.is_last));
        });
    }

    /// Where the oldest burst's next word begins.
    fn word_address(&self, burst: Burst) -> u64 {
        let word = u64::from(self.config.dram.bytes_per_cycle);
        (burst.dram_address / word + self.state.channel.beat) * word
    }

    /// The burst whose last word passes in this cycle.
    fn last_word(&self) -> Option<Burst> {
        let channel = &self.state.channel;
        channel.carries()?;
        let burst = channel.in_flight.front()?.burst;
        let behind = self.word_address(burst) + u64::from(self.config.dram.bytes_per_cycle);
        (behind >= burst.dram_address + burst.length).then_some(burst)
    }

    pub(super) fn transfer_ends(&self, direction: Direction) -> Option<usize> {
        let burst = self.last_word()?;
        (burst.is_last && burst.direction == direction).then_some(burst.index)
    }
}

/// As `load` numbers the memories.
fn number(memory: Memory) -> u32 {
    match memory {
        Memory::Activation => 0,
        Memory::Weight => 1,
        Memory::Parameter | Memory::Dram => 2,
    }
}
