//! When every instruction is issued, starts and ends.
//!
//! Invariant: events are handled in the order of their cycles. An event in cycle `t` can change
//! others only from `t + 1` on, so the order among equals does not matter, except between the two
//! DMA units, whose arbitration is a rule of the machine. Each possible next event (the next issue, a
//! unit's next start, a DMA unit's next burst) has one slot, which is renewed when something that it
//! depends on has changed.

use super::dram::Channel;
use crate::{Config, Fault, FaultKind, RowCounts, Timing, rules, rules::Work, stats, stats::slot};
use arith::Cycles;
use isa::{Instruction, Program, Unit, Units};
use std::collections::VecDeque;

const NEVER: u64 = u64::MAX;
const LOAD: usize = 0;
const ARRAY: usize = 1;
const STORE: usize = 3;
const FRONTEND: usize = 4;

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
    bursts: rules::Bursts,
    next_offer: u64,
    /// Cycles at which accepted bursts leave flight, oldest first.
    in_flight: VecDeque<u64>,
}

/// What the time of an instruction depends on, besides the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    /// Place in tables of units; 4 for the frontend.
    unit: usize,
    wait: Units,
    signal: Units,
    kind: Kind,
    /// Cycles that it keeps its unit from starting the next.
    busy: u64,
    /// Cycles to its end.
    until_end: u64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    /// The last `matmul` of a fold: cycles of its stream.
    Drain(u64),
    Preload,
    /// The first after its `preload`, or not.
    Stream {
        is_fresh: bool,
    },
    Transfer(rules::Bursts),
}

impl Task {
    pub fn new(instruction: &Instruction, work: &Work, config: &Config) -> Self {
        let kind = match work {
            Work::Matmul { matmul, input, .. } if matmul.last == 1 => {
                Kind::Drain(u64::from(matmul.n_steps) * u64::from(rules::Passes::of(input).0))
            }
            Work::Load(l, pitch) => {
                let rows = (l.n_rows, l.row_bytes);
                Kind::Transfer(rules::Bursts::new(l.dram_address, pitch.dram, rows))
            }
            Work::Store(s, pitch) => {
                let rows = (s.n_rows, s.row_bytes);
                Kind::Transfer(rules::Bursts::new(s.dram_address, pitch.dram, rows))
            }
            Work::Preload { .. } => Kind::Preload,
            Work::Stream { held, .. } => Kind::Stream {
                is_fresh: held.is_fresh,
            },
            Work::Setup
            | Work::Matmul { .. }
            | Work::Requantize { .. }
            | Work::Pool { .. }
            | Work::Depthwise { .. } => Kind::Plain,
        };
        let (busy, until_end) = rules::occupancy(work, config).unwrap_or_default();
        Self {
            unit: slot(instruction.op.unit()),
            wait: instruction.wait,
            signal: instruction.signal,
            kind,
            busy,
            until_end,
        }
    }
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
    fn earliest(&self, kind: &Kind) -> u64 {
        match kind {
            Kind::Preload => self.preload,
            Kind::Stream { .. } => self.stream,
            Kind::Plain | Kind::Drain(_) | Kind::Transfer(_) => self.setup,
        }
    }

    /// A `preload` or `stream` has started.
    fn start(&mut self, task: &Task, now: u64, config: &Config) {
        let read = now + task.busy;
        match task.kind {
            Kind::Preload => {
                self.stream = self.stream.max(read);
                self.setup = self.setup.max(read);
            }
            Kind::Stream { is_fresh } => {
                self.stream = read;
                self.setup = self.setup.max(read);
                if !config.shadow {
                    self.preload = now + task.until_end;
                } else if is_fresh {
                    // The wavefront takes the chains' values row by row.
                    self.preload = now + u64::from(config.rows);
                }
            }
            Kind::Plain | Kind::Drain(_) | Kind::Transfer(_) => {}
        }
    }
}

struct Engine<'a> {
    program: &'a Program,
    config: &'a Config,
    tasks: &'a [Task],
    /// The next issue, the next start of each unit, the next burst of each DMA unit.
    issue_at: u64,
    start_at: [u64; 4],
    offer_at: [u64; 2],
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

pub(super) fn time(program: &Program, config: &Config, tasks: &[Task]) -> Result<Timing, Fault> {
    let n = tasks.len();
    let mut queues: [Queue; 4] = Default::default();
    for (index, task) in tasks.iter().enumerate() {
        if task.unit != FRONTEND {
            queues[task.unit].instructions.push(index as u32);
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
        tasks,
        issue_at: NEVER,
        start_at: [NEVER; 4],
        offer_at: [NEVER; 2],
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
        self.issue_at = self.issue_candidate();
        loop {
            let offer_at = self.offer_at[0].min(self.offer_at[1]);
            let [load, array, post, store] = self.start_at;
            let start_at = load.min(array).min(post.min(store));
            let next = self.issue_at.min(start_at).min(offer_at);
            if next == NEVER {
                return self.n_ended == self.tasks.len();
            }
            if self.issue_at == next {
                self.issue(next);
            }
            if start_at == next {
                for unit in 0..4 {
                    if self.start_at[unit] == next {
                        self.start(unit, next);
                    }
                }
            }
            if offer_at == next {
                let which = match self.offer_at.map(|offer| offer == next) {
                    [true, true] => 1 - self.last_accepted,
                    [first, _] => usize::from(!first),
                };
                // Until something else happens, this DMA unit is alone.
                let [load, array, post, store] = self.start_at;
                let others = load.min(array).min(post.min(store)).min(self.issue_at);
                self.accept(which, next, others.min(self.offer_at[1 - which]));
            }
        }
    }

    fn issue_candidate(&self) -> u64 {
        let Some(task) = self.tasks.get(self.next_issue) else {
            return NEVER;
        };
        if task.unit == FRONTEND {
            if self.n_ended < self.next_issue {
                return NEVER;
            }
            return self.earliest_issue.max(self.last_end);
        }
        let queue = &self.queues[task.unit];
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
        let unit = self.tasks[index].unit;
        if unit == FRONTEND {
            self.timing.start[index] = now;
            self.end(index, now + 1);
        } else {
            self.queues[unit].n_issued += 1;
            self.start_at[unit] = self.start_candidate(unit);
        }
        self.issue_at = self.issue_candidate();
    }

    fn start_candidate(&self, unit: usize) -> u64 {
        let queue = &self.queues[unit];
        if queue.n_started == queue.n_issued {
            return NEVER;
        }
        let index = queue.instructions[queue.n_started] as usize;
        let task = &self.tasks[index];
        let mut at = queue.ready.max(self.timing.issue[index] + 1);
        // A DMA unit that still offers bursts is not ready.
        let offers = match unit {
            LOAD => !self.dmas[0].bursts.is_done(),
            STORE => !self.dmas[1].bursts.is_done(),
            _ => false,
        };
        if offers {
            return NEVER;
        }
        if !task.wait.is_empty() {
            for from in task.wait.iter() {
                let from = slot(from);
                let n_popped = self.pops[from][unit].len();
                match self.pushes[from][unit].get(n_popped) {
                    Some(&(end, _)) => at = at.max(end),
                    None => return NEVER,
                }
            }
        }
        if unit == ARRAY {
            at = at.max(self.stationary.earliest(&task.kind));
        }
        if let (Kind::Drain(stream), Some(drain)) = (task.kind, self.drain) {
            // Two drains share each column's chain: the second begins when the first is through.
            at = at.max((drain + u64::from(self.config.rows)).saturating_sub(stream));
        }
        at
    }

    fn start(&mut self, unit: usize, now: u64) {
        let queue = &mut self.queues[unit];
        let index = queue.instructions[queue.n_started] as usize;
        let task = &self.tasks[index];
        queue.n_started += 1;
        queue.ready = now + task.busy;
        self.timing.start[index] = now;
        if !task.wait.is_empty() {
            for from in task.wait.iter() {
                self.pops[slot(from)][unit].push(now);
            }
        }
        match task.kind {
            Kind::Plain => self.end(index, now + task.until_end),
            Kind::Drain(stream) => {
                self.drain = Some(now + stream);
                self.end(index, now + task.until_end);
            }
            Kind::Preload | Kind::Stream { .. } => {
                self.stationary.start(task, now, self.config);
                self.queues[unit].ready = now + 1;
                self.end(index, now + task.until_end);
            }
            Kind::Transfer(bursts) => {
                let which = usize::from(unit == STORE);
                let dma = &mut self.dmas[which];
                dma.index = index;
                dma.bursts = bursts;
                dma.next_offer = now + 1;
                self.offer_at[which] = self.offer_candidate(which);
            }
        }
        self.start_at[unit] = self.start_candidate(unit);
        if self.issue_at == NEVER {
            self.issue_at = self.issue_candidate();
        }
    }

    fn offer_candidate(&self, dma: usize) -> u64 {
        let dma = &self.dmas[dma];
        if dma.bursts.is_done() {
            return NEVER;
        }
        let limit = self.config.dram.max_outstanding as usize;
        let earliest = dma.next_offer.max(self.channel_ready);
        match dma.in_flight.len().checked_sub(limit) {
            None => earliest,
            Some(oldest) => earliest.max(dma.in_flight[oldest]),
        }
    }

    /// Accepts a burst in cycle `now`, and the unit's further bursts as long as they come before
    /// `until`, the next event of anyone else.
    fn accept(&mut self, which: usize, mut now: u64, until: u64) {
        self.last_accepted = which;
        let limit = self.config.dram.max_outstanding as usize;
        let dma = &mut self.dmas[which];
        loop {
            let burst = dma.bursts.next(&self.config.dram);
            let (end, event) = self.channel.accept(now, &burst, self.config);
            stats::append(&mut self.timing.bus, end - burst.bus_cycles, end);
            if let Some(event) = event {
                self.timing.rows[dma.index].count(event);
            }
            let mut next = now + 1;
            dma.in_flight.push_back(end);
            if dma.in_flight.len() > limit {
                dma.in_flight.pop_front();
            }
            if dma.in_flight.len() == limit {
                next = next.max(dma.in_flight[0]);
            }
            if dma.bursts.is_done() {
                let unit = if which == 0 { LOAD } else { STORE };
                let index = dma.index;
                self.queues[unit].ready = now + 1;
                self.end(index, end);
                self.start_at[unit] = self.start_candidate(unit);
                break;
            }
            if next >= until {
                break;
            }
            now = next;
        }
        self.channel_ready = now + 1;
        self.offer_at = [self.offer_candidate(0), self.offer_candidate(1)];
    }

    fn end(&mut self, index: usize, at: u64) {
        self.timing.end[index] = at;
        self.last_end = self.last_end.max(at);
        self.n_ended += 1;
        let task = &self.tasks[index];
        if !task.signal.is_empty() {
            for to in task.signal.iter() {
                let to = slot(to);
                self.pushes[task.unit][to].push((at, index as u32));
                if self.start_at[to] == NEVER {
                    self.start_at[to] = self.start_candidate(to);
                }
            }
        }
        // Only a fence waits for ends; another instruction's slot does not change.
        if self.issue_at == NEVER {
            self.issue_at = self.issue_candidate();
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
            .min(self.tasks.len() - 1);
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
