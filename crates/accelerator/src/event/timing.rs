//! When every instruction is issued, starts and ends.
//!
//! Nothing is walked through in the order of cycles. The times of an instruction are sums and maxima of
//! times before it: when it was issued, when its unit was free, when its tokens were given. So each is
//! computed as soon as those are known, in whatever order. Only the bursts of the two DMA units meet
//! each other, at the channel's arbiter; they are taken in the order of their cycles, and only when
//! nothing else can be known: then whatever is still unknown follows the transfers at work.
//!
//! Invariant: the times do not depend on the order in which they become known.

use super::dram::{Channel, InFlight};
use crate::{Config, Fault, FaultKind, RowCounts, Timing, rules, rules::Work, stats, stats::slot};
use arith::Cycles;
use isa::{Instruction, Program, Unit, Units};

const NEVER: u64 = u64::MAX;
const LOAD: usize = 0;
const ARRAY: usize = 1;
const STORE: usize = 3;

/// One queued unit.
struct Queue<'a> {
    /// Its instructions, in program order; so many of them have been issued.
    instructions: &'a [u32],
    n_issued: usize,
    /// So many of these have started.
    n_started: usize,
    /// Earliest cycle of the next start.
    ready: u64,
}

/// Tokens from one unit to another.
struct Tokens {
    /// End of each instruction that gives one, in program order, as far as they are known.
    given: Vec<u64>,
    n_given: usize,
    /// Start of each that takes one: the k-th takes the k-th.
    taken: Vec<u64>,
    n_taken: usize,
}

impl Tokens {
    fn new(n: usize) -> Self {
        Self {
            given: vec![0; n],
            n_given: 0,
            taken: vec![0; n],
            n_taken: 0,
        }
    }

    fn given(&self) -> &[u64] {
        &self.given[..self.n_given]
    }

    fn taken(&self) -> &[u64] {
        &self.taken[..self.n_taken]
    }
}

/// One DMA unit: the bursts it has still to offer and those in flight.
#[derive(Default)]
struct Dma {
    /// Instruction in work.
    index: usize,
    bursts: rules::Bursts,
    /// Earliest cycle of the first.
    next_offer: u64,
    in_flight: InFlight,
}

/// What the time of an instruction depends on, besides the others.
#[derive(Clone, Copy, Debug)]
struct Task {
    /// Cycles that it keeps its unit from starting the next.
    busy: u64,
    /// Cycles to its end.
    until_end: u64,
    kind: Kind,
    /// Place in tables of units; 4 for the frontend.
    unit: u8,
    wait: Units,
    signal: Units,
}

/// The instructions of a program that keeps the machine's rules, as far as their time goes.
#[derive(Debug)]
pub struct Tasks<'a> {
    program: &'a Program,
    config: &'a Config,
    all: Vec<Task>,
    /// What the transfers move.
    transfers: Vec<rules::Bursts>,
    /// Each queued unit's instructions.
    of_unit: [Vec<u32>; 4],
    /// Tokens given, `[from][to]`.
    n_tokens: [[usize; 4]; 4],
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Plain,
    /// The last `matmul` of a fold.
    Drain,
    Preload,
    /// The first after its `preload`, or not.
    Stream {
        is_fresh: bool,
    },
    /// Its place among the transfers.
    Transfer(u32),
}

impl<'a> Tasks<'a> {
    /// Checks a program.
    ///
    /// # Errors
    /// The first broken rule of `docs/machine.md`.
    pub fn of(program: &'a Program, config: &'a Config) -> Result<Self, Fault> {
        let mut tasks = Self::none(program, config);
        rules::for_each_work(program, config, |index, work| {
            tasks.push(&program.instructions[index], work);
        })?;
        Ok(tasks)
    }

    /// When everything happens.
    ///
    /// # Errors
    /// A deadlock or token overflow.
    pub fn time(&self) -> Result<Timing, Fault> {
        time(self)
    }

    pub(super) fn none(program: &'a Program, config: &'a Config) -> Self {
        Self {
            program,
            config,
            all: Vec::with_capacity(program.instructions.len()),
            transfers: Vec::new(),
            of_unit: Default::default(),
            n_tokens: Default::default(),
        }
    }

    /// The next instruction, with what it finds.
    pub(super) fn push(&mut self, instruction: &Instruction, work: &Work) {
        let config = self.config;
        let mut transfer = |address: u32, pitch: u32, rows: (u32, u32)| {
            let bursts = rules::Bursts::new(address, pitch, rows, &config.dram);
            self.transfers.push(bursts);
            Kind::Transfer(self.transfers.len() as u32 - 1)
        };
        let kind = match work {
            Work::Matmul { matmul, .. } if matmul.last == 1 => Kind::Drain,
            Work::Load(l, pitch) => transfer(l.dram_address, pitch.dram, (l.n_rows, l.row_bytes)),
            Work::Store(s, pitch) => transfer(s.dram_address, pitch.dram, (s.n_rows, s.row_bytes)),
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
        let unit = slot(instruction.op.unit());
        if let Some(indices) = self.of_unit.get_mut(unit) {
            indices.push(self.all.len() as u32);
            for to in slots(instruction.signal) {
                self.n_tokens[unit][to] += 1;
            }
        }
        self.all.push(Task {
            busy,
            until_end,
            kind,
            unit: unit as u8,
            wait: instruction.wait,
            signal: instruction.signal,
        });
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
    fn earliest(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Preload => self.preload,
            Kind::Stream { .. } => self.stream,
            Kind::Plain | Kind::Drain | Kind::Transfer(_) => self.setup,
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
            Kind::Plain | Kind::Drain | Kind::Transfer(_) => {}
        }
    }
}

struct Engine<'a> {
    program: &'a Program,
    config: &'a Config,
    tasks: &'a [Task],
    transfers: &'a [rules::Bursts],
    timing: Timing,
    queues: [Queue<'a>; 4],
    /// Units whose next start may have become known, as a mask.
    renewed: u8,
    dmas: [Dma; 2],
    channel: Channel,
    /// The channel accepts its next burst no earlier.
    channel_ready: u64,
    /// DMA unit whose burst was accepted last.
    last_accepted: usize,
    next_issue: usize,
    earliest_issue: u64,
    /// `[from][to]`.
    tokens: [[Tokens; 4]; 4],
    /// The end of a matmul's stream lies so many cycles before its end.
    matmul_tail: u64,
    /// Earliest end of the stream of a fold's last matmul, as the drain before is through then.
    drain: u64,
    stationary: Stationary,
    last_end: u64,
    n_ended: usize,
}

fn time(tasks: &Tasks<'_>) -> Result<Timing, Fault> {
    let (program, config) = (tasks.program, tasks.config);
    let n = tasks.all.len();
    let queues = [0, 1, 2, 3].map(|unit| {
        let instructions = &tasks.of_unit[unit];
        Queue {
            instructions,
            n_issued: 0,
            n_started: 0,
            ready: 0,
        }
    });
    let tokens = tasks.n_tokens.map(|of_unit| of_unit.map(Tokens::new));
    let timing = Timing {
        issue: vec![0; n],
        start: vec![0; n],
        end: vec![0; n],
        rows: vec![RowCounts::default(); config.dram.banks.map_or(0, |_| n)],
        total: Cycles(0),
        bus: Vec::new(),
    };
    let mut engine = Engine {
        program,
        config,
        tasks: &tasks.all,
        transfers: &tasks.transfers,
        timing,
        queues,
        renewed: 0,
        dmas: [0, 1].map(|_| Dma {
            in_flight: InFlight::new(config.dram.max_outstanding),
            ..Dma::default()
        }),
        channel: Channel::new(config),
        channel_ready: 0,
        last_accepted: 1,
        next_issue: 0,
        earliest_issue: 0,
        tokens,
        matmul_tail: rules::matmul_tail(config),
        drain: 0,
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

/// The places of a set of units in tables of queued units.
fn slots(units: Units) -> impl Iterator<Item = usize> {
    let mut left = units.bits();
    std::iter::from_fn(move || {
        let unit = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (unit < 4).then_some(unit)
    })
}

impl Engine<'_> {
    /// True when every instruction has ended.
    fn run(&mut self) -> bool {
        loop {
            loop {
                while self.issue() {}
                if self.renewed == 0 {
                    break;
                }
                let unit = self.renewed.trailing_zeros() as usize;
                self.renewed &= self.renewed - 1;
                while self.start(unit) {}
            }
            if !self.transfer() {
                return self.n_ended == self.tasks.len();
            }
        }
    }

    /// Issues the next instruction, if it is known when.
    fn issue(&mut self) -> bool {
        let index = self.next_issue;
        let Some(task) = self.tasks.get(index) else {
            return false;
        };
        let unit = usize::from(task.unit);
        let now = if let Some(queue) = self.queues.get_mut(unit) {
            let depth = self.config.queue_depth as usize;
            let now = match queue.n_issued.checked_sub(depth) {
                None => self.earliest_issue,
                Some(blocker) if blocker < queue.n_started => {
                    let start = self.timing.start[queue.instructions[blocker] as usize];
                    self.earliest_issue.max(start + 1)
                }
                Some(_) => return false,
            };
            queue.n_issued += 1;
            self.renewed |= 1 << unit;
            now
        } else {
            // A fence waits for all that were issued.
            if self.n_ended < index {
                return false;
            }
            let now = self.earliest_issue.max(self.last_end);
            self.timing.start[index] = now;
            self.timing.end[index] = now + 1;
            self.last_end = now + 1;
            self.n_ended += 1;
            now
        };
        self.timing.issue[index] = now;
        self.next_issue = index + 1;
        self.earliest_issue = now + 1;
        true
    }

    /// Starts a unit's next instruction, if it is known when.
    #[inline]
    fn start(&mut self, unit: usize) -> bool {
        let queue = &mut self.queues[unit];
        let at = queue.n_started;
        if at == queue.n_issued {
            return false;
        }
        let index = queue.instructions[at] as usize;
        let task = &self.tasks[index];
        let mut now = queue.ready.max(self.timing.issue[index] + 1);
        // A DMA unit that still offers bursts is not ready.
        let offers = match unit {
            LOAD => !self.dmas[0].bursts.is_done(),
            STORE => !self.dmas[1].bursts.is_done(),
            _ => false,
        };
        if offers {
            return false;
        }
        for from in slots(task.wait) {
            let tokens = &self.tokens[from][unit];
            if tokens.n_taken == tokens.n_given {
                return false;
            }
            now = now.max(tokens.given[tokens.n_taken]);
        }
        if unit == ARRAY {
            now = now.max(self.stationary.earliest(task.kind));
        }
        if let Kind::Drain = task.kind {
            // Two drains share each column's chain: the second begins when the first is through.
            let stream = task.until_end - self.matmul_tail;
            now = now.max(self.drain.saturating_sub(stream));
        }
        queue.n_started += 1;
        queue.ready = now + task.busy;
        self.timing.start[index] = now;
        for from in slots(task.wait) {
            let tokens = &mut self.tokens[from][unit];
            tokens.taken[tokens.n_taken] = now;
            tokens.n_taken += 1;
        }
        match task.kind {
            Kind::Plain => self.end(index, now + task.until_end),
            Kind::Drain => {
                let stream = task.until_end - self.matmul_tail;
                self.drain = now + stream + u64::from(self.config.rows);
                self.end(index, now + task.until_end);
            }
            Kind::Preload | Kind::Stream { .. } => {
                self.stationary.start(task, now, self.config);
                queue.ready = now + 1;
                self.end(index, now + task.until_end);
            }
            Kind::Transfer(transfer) => {
                let dma = &mut self.dmas[usize::from(unit == STORE)];
                dma.index = index;
                dma.bursts = self.transfers[transfer as usize];
                dma.next_offer = now + 1;
            }
        }
        true
    }

    /// Offers bursts until a transfer is through; false when there is none.
    fn transfer(&mut self) -> bool {
        loop {
            let offers = [self.offer(0), self.offer(1)];
            let now = offers[0].min(offers[1]);
            if now == NEVER {
                return false;
            }
            let which = match offers.map(|offer| offer == now) {
                [true, true] => 1 - self.last_accepted,
                [first, _] => usize::from(!first),
            };
            // Where the other has nothing to offer, its next start follows this transfer.
            if self.accept(which, now, offers[1 - which]) {
                return true;
            }
        }
    }

    /// When a DMA unit offers its next burst.
    fn offer(&self, dma: usize) -> u64 {
        let dma = &self.dmas[dma];
        if dma.bursts.is_done() {
            return NEVER;
        }
        let earliest = dma.next_offer.max(self.channel_ready);
        earliest.max(dma.in_flight.oldest().unwrap_or(0))
    }

    /// Accepts a burst in cycle `now`, and the unit's further bursts as long as they come before
    /// `until`, the other's next offer. True when the transfer is through.
    fn accept(&mut self, which: usize, mut now: u64, until: u64) -> bool {
        self.last_accepted = which;
        let dram = &self.config.dram;
        let dma = &mut self.dmas[which];
        // In a register, as the loop knows them alone.
        let mut bursts = dma.bursts;
        let is_done = loop {
            let burst = bursts.next(dram);
            let (end, event) = self.channel.accept(now, &burst, self.config);
            stats::append(&mut self.timing.bus, end - burst.bus_cycles, end);
            if let Some(event) = event {
                self.timing.rows[dma.index].count(event);
            }
            dma.in_flight.push(end);
            if bursts.is_done() {
                break true;
            }
            // Where the bus is what is waited for, all that is left of a row moves at once.
            let n_whole = bursts.n_whole(dram).saturating_sub(1);
            if n_whole > 0 && self.channel.is_flat() {
                let (n, last) = dma.in_flight.follow(n_whole, (now, until), &self.channel);
                let passed = n * self.channel.period;
                self.channel.pass(passed);
                stats::append(&mut self.timing.bus, end, end + passed);
                bursts.skip(n, dram);
                now = last;
            }
            let next = (now + 1).max(dma.in_flight.oldest().unwrap_or(0));
            if next >= until {
                break false;
            }
            now = next;
        };
        dma.bursts = bursts;
        self.channel_ready = now + 1;
        if is_done {
            let (index, end) = (dma.index, self.channel.end());
            let unit = if which == 0 { LOAD } else { STORE };
            self.queues[unit].ready = now + 1;
            self.renewed |= 1 << unit;
            self.end(index, end);
        }
        is_done
    }

    #[inline]
    fn end(&mut self, index: usize, at: u64) {
        self.timing.end[index] = at;
        self.last_end = self.last_end.max(at);
        self.n_ended += 1;
        let task = &self.tasks[index];
        for to in slots(task.signal) {
            let tokens = &mut self.tokens[usize::from(task.unit)][to];
            tokens.given[tokens.n_given] = at;
            tokens.n_given += 1;
        }
        self.renewed |= task.signal.bits();
    }

    fn fault(&self, index: usize, kind: FaultKind) -> Fault {
        Fault {
            index,
            mnemonic: self.program.instructions[index].op.mnemonic(),
            kind,
        }
    }

    /// The first token that found its counter full.
    fn check_token_limits(&self) -> Result<(), Fault> {
        let limit = self.config.max_tokens;
        let mut first: Option<(u64, u32, Unit, Unit)> = None;
        for from in Unit::QUEUED {
            for to in Unit::QUEUED {
                let tokens = &self.tokens[slot(from)][slot(to)];
                let (given, taken) = (tokens.given(), tokens.taken());
                let late = given.get(limit as usize..).unwrap_or_default();
                let is_full = |(&end, start): (&u64, Option<&u64>)| start.is_none_or(|&s| s >= end);
                let mut starts = taken.iter();
                if !late.iter().any(|end| is_full((end, starts.next()))) {
                    continue;
                }
                // The k-th that gave one is the k-th of the unit's that give any there.
                let instructions = self.queues[slot(from)].instructions.iter();
                let givers = instructions.filter(|&&index| {
                    let mut given = self.tasks[index as usize].signal.iter();
                    given.any(|unit| unit == to)
                });
                let late = late.iter().zip(givers.skip(limit as usize)).enumerate();
                for (k, (&end, &index)) in late {
                    if is_full((&end, taken.get(k)))
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
                let queue = &self.queues[unit];
                queue.instructions.get(queue.n_started)
            })
            .min()
            .map_or(self.next_issue, |&index| index as usize)
            .min(self.tasks.len() - 1);
        let instruction = &self.program.instructions[waiting];
        let to = slot(instruction.op.unit());
        let missing = instruction
            .wait
            .iter()
            .filter(|&from| {
                let tokens = &self.tokens[slot(from)][to];
                tokens.n_given <= tokens.n_taken
            })
            .collect();
        self.fault(waiting, FaultKind::Deadlock { missing })
    }
}
