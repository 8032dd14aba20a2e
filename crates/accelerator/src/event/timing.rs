//! When every instruction is issued, starts and ends.
//!
//! Invariant: events are handled in the order of their cycles. An event in cycle `t` can change
//! others only from `t + 1` on, so the order among equals does not matter, except between the two
//! DMA units, whose arbitration is a rule of the machine.

use super::dram::Channel;
use crate::{Config, Fault, FaultKind, RowCounts, Timing, rules, rules::Work, stats, stats::slot};
use arith::Cycles;
use isa::{Program, Unit};
use std::collections::VecDeque;

const NEVER: u64 = u64::MAX;
const LOAD: usize = 0;
const ARRAY: usize = 1;
const STORE: usize = 3;

/// One queued unit.
#[derive(Default)]
struct Queue {
    /// Its instructions, in program order; `n_issued` and `n_started` of them have gone on.
    instructions: Vec<u32>,
    n_issued: usize,
    n_started: usize,
    /// Earliest cycle of the next start.
    ready: u64,
}

/// One DMA unit: the bursts it has still to offer and those in flight.
#[derive(Default)]
struct Dma {
    /// Instruction in work.
    index: usize,
    bursts: VecDeque<rules::Burst>,
    next_offer: u64,
    /// Cycles at which accepted bursts leave flight, oldest first.
    in_flight: VecDeque<u64>,
}

/// Earliest starts on an array whose operands stay. `preload` and `stream` have sequencers of their
/// own, so what one reads does not keep the other from starting.
#[derive(Default)]
struct Stationary {
    /// The next preload: the chains are free.
    preload: u64,
    /// The next stream: the stream before has been read and the chains are full.
    stream: u64,
    /// The next setup: nothing reads.
    setup: u64,
}

impl Stationary {
    fn earliest(&self, work: &Work) -> u64 {
        match work {
            Work::Preload { .. } => self.preload,
            Work::Stream { .. } => self.stream,
            Work::Setup
            | Work::Load(..)
            | Work::Store(..)
            | Work::Matmul { .. }
            | Work::Requantize { .. }
            | Work::Pool { .. }
            | Work::Depthwise { .. } => self.setup,
        }
    }

    /// A `preload` or `stream` has started.
    fn start(&mut self, work: &Work, now: u64, (busy, until_end): (u64, u64), config: &Config) {
        let read = now + busy;
        match work {
            Work::Preload { .. } => {
                self.stream = self.stream.max(read);
                self.setup = self.setup.max(read);
            }
            Work::Stream { held, .. } => {
                self.stream = read;
                self.setup = self.setup.max(read);
                if !config.shadow {
                    self.preload = now + until_end;
                } else if held.is_fresh {
                    // The wavefront takes the chains' values row by row.
                    self.preload = now + u64::from(config.rows);
                }
            }
            Work::Setup
            | Work::Load(..)
            | Work::Store(..)
            | Work::Matmul { .. }
            | Work::Requantize { .. }
            | Work::Pool { .. }
            | Work::Depthwise { .. } => {}
        }
    }
}

struct Engine<'a> {
    program: &'a Program,
    config: &'a Config,
    works: &'a [Work],
    timing: Timing,
    queues: [Queue; 4],
    dmas: [Dma; 2],
    channel: Channel,
    /// The channel accepts its next burst no earlier.
    channel_ready: u64,
    /// DMA unit whose burst was accepted last.
    last_accepted: usize,
    next_issue: usize,
    earliest_issue: u64,
    /// Ends of the pushes `[from][to]` so far, and the starts of their pops.
    pushes: [[Vec<(u64, u32)>; 4]; 4],
    pops: [[Vec<u64>; 4]; 4],
    /// The last drain: cycle at which its stream ended.
    drain: Option<u64>,
    stationary: Stationary,
    last_end: u64,
    n_ended: usize,
}

pub(super) fn time(program: &Program, config: &Config, works: &[Work]) -> Result<Timing, Fault> {
    let n = works.len();
    let mut queues: [Queue; 4] = Default::default();
    for (index, instruction) in program.instructions.iter().enumerate() {
        if instruction.op.unit() != Unit::Frontend {
            queues[slot(instruction.op.unit())]
                .instructions
                .push(index as u32);
        }
    }
    let timing = Timing {
        issue: vec![0; n],
        start: vec![0; n],
        end: vec![NEVER; n],
        rows: vec![RowCounts::default(); config.dram.banks.map_or(0, |_| n)],
        total: Cycles(0),
        bus: Vec::new(),
    };
    let mut engine = Engine {
        program,
        config,
        works,
        timing,
        queues,
        dmas: Default::default(),
        channel: Channel::new(config),
        channel_ready: 0,
        last_accepted: 1,
        next_issue: 0,
        earliest_issue: 0,
        pushes: Default::default(),
        pops: Default::default(),
        drain: None,
        stationary: Stationary::default(),
        last_end: 0,
        n_ended: 0,
    };
    let finished = engine.run();
    engine.check_token_limits()?;
    if !finished {
        return Err(engine.deadlock());
    }
    engine.timing.total = Cycles(engine.last_end);
    Ok(engine.timing)
}

impl Engine<'_> {
    /// True when every instruction has ended.
    fn run(&mut self) -> bool {
        loop {
            let issue_at = self.issue_candidate();
            let mut next = issue_at;
            let mut starts = [NEVER; 4];
            for (unit, start) in starts.iter_mut().enumerate() {
                *start = self.start_candidate(unit);
                next = next.min(*start);
            }
            let offers = [self.offer_candidate(0), self.offer_candidate(1)];
            next = next.min(offers[0]).min(offers[1]);
            if next == NEVER {
                return self.n_ended == self.works.len();
            }
            if issue_at == next {
                self.issue(next);
            }
            for (unit, &start) in starts.iter().enumerate() {
                if start == next {
                    self.start(unit, next);
                }
            }
            match [offers[0] == next, offers[1] == next] {
                [true, true] => self.accept(1 - self.last_accepted, next),
                [true, false] => self.accept(0, next),
                [false, true] => self.accept(1, next),
                [false, false] => {}
            }
        }
    }

    fn issue_candidate(&self) -> u64 {
        let Some(instruction) = self.program.instructions.get(self.next_issue) else {
            return NEVER;
        };
        if instruction.op.unit() == Unit::Frontend {
            if self.n_ended < self.next_issue {
                return NEVER;
            }
            return self.earliest_issue.max(self.last_end);
        }
        let queue = &self.queues[slot(instruction.op.unit())];
        let depth = self.config.queue_depth as usize;
        if queue.n_issued < depth {
            return self.earliest_issue;
        }
        let blocker = queue.n_issued - depth;
        if blocker >= queue.n_started {
            return NEVER;
        }
        let freed = self.timing.start[queue.instructions[blocker] as usize] + 1;
        self.earliest_issue.max(freed)
    }

    fn issue(&mut self, now: u64) {
        let index = self.next_issue;
        self.timing.issue[index] = now;
        self.next_issue += 1;
        self.earliest_issue = now + 1;
        let unit = self.program.instructions[index].op.unit();
        if unit == Unit::Frontend {
            self.timing.start[index] = now;
            self.end(index, now + 1);
        } else {
            self.queues[slot(unit)].n_issued += 1;
        }
    }

    fn start_candidate(&self, unit: usize) -> u64 {
        let queue = &self.queues[unit];
        if queue.n_started == queue.n_issued {
            return NEVER;
        }
        let index = queue.instructions[queue.n_started] as usize;
        let mut at = queue.ready.max(self.timing.issue[index] + 1);
        // A DMA unit that still offers bursts is not ready.
        let offers = match unit {
            LOAD => !self.dmas[0].bursts.is_empty(),
            STORE => !self.dmas[1].bursts.is_empty(),
            _ => false,
        };
        if offers {
            return NEVER;
        }
        for from in self.program.instructions[index].wait.iter() {
            let from = slot(from);
            let n_popped = self.pops[from][unit].len();
            match self.pushes[from][unit].get(n_popped) {
                Some(&(end, _)) => at = at.max(end),
                None => return NEVER,
            }
        }
        if unit == ARRAY {
            at = at.max(self.stationary.earliest(&self.works[index]));
        }
        if let (Work::Matmul { matmul, input, .. }, Some(drain)) = (&self.works[index], self.drain)
            && matmul.last == 1
        {
            // Two drains share each column's chain: the second begins when the first is through.
            let stream = u64::from(matmul.n_steps) * u64::from(rules::Passes::of(input).0);
            at = at.max((drain + u64::from(self.config.rows)).saturating_sub(stream));
        }
        at
    }

    fn start(&mut self, unit: usize, now: u64) {
        let index = self.queues[unit].instructions[self.queues[unit].n_started] as usize;
        self.queues[unit].n_started += 1;
        self.timing.start[index] = now;
        for from in self.program.instructions[index].wait.iter() {
            self.pops[slot(from)][unit].push(now);
        }
        let work = &self.works[index];
        if let Some((busy, until_end)) = rules::occupancy(work, self.config) {
            if let Work::Matmul { matmul, input, .. } = work
                && matmul.last == 1
            {
                let stream = u64::from(matmul.n_steps) * u64::from(rules::Passes::of(input).0);
                self.drain = Some(now + stream);
            }
            self.queues[unit].ready = now + busy;
            if matches!(work, Work::Preload { .. } | Work::Stream { .. }) {
                self.stationary
                    .start(work, now, (busy, until_end), self.config);
                self.queues[unit].ready = now + 1;
            }
            self.end(index, now + until_end);
            return;
        }
        let (first, pitch, n_rows, row_bytes) = match work {
            Work::Load(l, pitch) => (l.dram_address, pitch.dram, l.n_rows, l.row_bytes),
            Work::Store(s, pitch) => (s.dram_address, pitch.dram, s.n_rows, s.row_bytes),
            other => unreachable!("only DMA has no fixed time: {other:?}"),
        };
        let dma = &mut self.dmas[usize::from(unit == STORE)];
        dma.index = index;
        dma.bursts
            .extend(rules::bursts(first, pitch, n_rows, row_bytes, self.config));
        dma.next_offer = now + 1;
    }

    fn offer_candidate(&self, dma: usize) -> u64 {
        let dma = &self.dmas[dma];
        if dma.bursts.is_empty() {
            return NEVER;
        }
        let limit = self.config.dram.max_outstanding as usize;
        let earliest = dma.next_offer.max(self.channel_ready);
        match dma.in_flight.len().checked_sub(limit) {
            None => earliest,
            Some(oldest) => earliest.max(dma.in_flight[oldest]),
        }
    }

    fn accept(&mut self, which: usize, now: u64) {
        self.last_accepted = which;
        self.channel_ready = now + 1;
        let limit = self.config.dram.max_outstanding as usize;
        let dma = &mut self.dmas[which];
        let Some(burst) = dma.bursts.pop_front() else {
            return;
        };
        let (end, event) = self.channel.accept(now, &burst, self.config);
        stats::append(&mut self.timing.bus, end - burst.bus_cycles, end);
        if let Some(event) = event {
            self.timing.rows[dma.index].count(event);
        }
        dma.in_flight.push_back(end);
        if dma.in_flight.len() > limit {
            dma.in_flight.pop_front();
        }
        if dma.bursts.is_empty() {
            let unit = if which == 0 { LOAD } else { STORE };
            let index = dma.index;
            self.queues[unit].ready = now + 1;
            self.end(index, end);
        }
    }

    fn end(&mut self, index: usize, at: u64) {
        self.timing.end[index] = at;
        self.last_end = self.last_end.max(at);
        self.n_ended += 1;
        let instruction = &self.program.instructions[index];
        if instruction.signal.is_empty() {
            return;
        }
        let from = slot(instruction.op.unit());
        for to in instruction.signal.iter() {
            self.pushes[from][slot(to)].push((at, index as u32));
        }
    }

    fn fault(&self, index: usize, kind: FaultKind) -> Fault {
        Fault {
            index,
            mnemonic: self.program.instructions[index].op.mnemonic(),
            kind,
        }
    }

    /// The first push that found its counter full.
    fn check_token_limits(&self) -> Result<(), Fault> {
        let limit = self.config.max_tokens;
        let mut first: Option<(u64, u32, Unit, Unit)> = None;
        for from in Unit::QUEUED {
            for to in Unit::QUEUED {
                let pops = &self.pops[slot(from)][slot(to)];
                for (k, &(end, index)) in self.pushes[slot(from)][slot(to)].iter().enumerate() {
                    let Some(k_pop) = k.checked_sub(limit as usize) else {
                        continue;
                    };
                    if pops.get(k_pop).is_none_or(|&start| start >= end)
                        && first.is_none_or(|(e, i, ..)| (end, index) < (e, i))
                    {
                        first = Some((end, index, from, to));
                    }
                }
            }
        }
        match first {
            None => Ok(()),
            Some((_, index, from, to)) => {
                Err(self.fault(index as usize, FaultKind::TokenOverflow { from, to, limit }))
            }
        }
    }

    /// Nothing can happen any more: the oldest instruction that waits.
    fn deadlock(&self) -> Fault {
        let waiting = (0..4)
            .filter_map(|unit| {
                self.queues[unit]
                    .instructions
                    .get(self.queues[unit].n_started)
            })
            .min()
            .map_or(self.next_issue, |&index| index as usize)
            .min(self.works.len() - 1);
        let instruction = &self.program.instructions[waiting];
        let to = instruction.op.unit();
        let missing = instruction
            .wait
            .iter()
            .filter(|&from| {
                let (from, to) = (slot(from), slot(to));
                self.pushes[from][to].len() <= self.pops[from][to].len()
            })
            .collect();
        self.fault(waiting, FaultKind::Deadlock { missing })
    }
}
