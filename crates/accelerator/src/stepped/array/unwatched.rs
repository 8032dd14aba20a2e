//! An output-stationary array at whose registers nobody looks: what it reads, adds and writes, and when.
//!
//! Invariant: memories, overflow records, ends and counts are those of [`OutputStationary`](super::OutputStationary).
//! A cycle may be made up for later, together with others, but before anybody could notice: before one of its
//! operands is overwritten, before its block is read, and before an instruction ends or may start. PEs that are
//! not in use hold nothing of use.

use super::{
    passes,
    sequencer::{Pass, Sequencer, Stream},
    steps::{FIRST, Steps},
};
use crate::stepped::{
    Wires,
    memory::{Memories, Memory, Write},
    sums::{Group, LANES, Sums, take_steps},
};
use crate::{Action, Config, Counts, FaultKind};
use arith::ChannelOverflow;
use isa::{Matmul, Op};
use std::{collections::VecDeque, ops::Range};

/// What the array is, and what it does.
#[derive(Debug)]
pub(crate) struct Unwatched {
    /// As of the last cycle that has been made up for.
    sequencer: Sequencer,
    /// Cycles since.
    n_behind: u64,
    /// When so many are behind, they must be made up for.
    n_at_most: u64,
    /// Cycles that have been made up for.
    n_cycles: u64,
    /// What the matmul that is read looks at.
    reach: Reach,
    /// One pass, where it is read alone; and the step's products so far.
    pass: Pass,
    products: Vec<[i32; LANES]>,
    steps: Steps,
    /// After all steps that have been read, whether the PEs have seen them or not.
    accumulators: Sums,
    finished: VecDeque<Finished>,
    /// What the PEs have done, for energy.
    pub counts: Counts,
}

/// Bytes of two memories.
#[derive(Clone, Debug, Default)]
struct Reach {
    activations: Range<u64>,
    weights: Range<u64>,
}

/// Sums of a fold that have not all drained.
#[derive(Debug)]
struct Finished {
    matmul: Matmul,
    /// The cycle in which the last operands were read.
    read_at: u64,
    sums: Sums,
    /// Cycles before this one have drained.
    drained_to: u64,
}

impl Unwatched {
    pub fn new(config: &Config) -> Self {
        let (rows, cols) = (config.rows as usize, config.cols as usize);
        Self {
            sequencer: Sequencer::default(),
            n_behind: 0,
            n_at_most: 0,
            n_cycles: 0,
            reach: Reach::default(),
            pass: Pass::default(),
            products: vec![[0; LANES]; rows * cols.div_ceil(LANES)],
            steps: Steps::new(rows, cols),
            accumulators: Sums::new(rows, cols),
            finished: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Whether `op` may start in this cycle.
    pub fn is_ready(&self, op: &Op, config: &Config) -> bool {
        self.sequencer.is_ready(op, config, self.n_behind)
    }

    /// Whether operands remain to be read, so that it takes no instruction.
    pub fn is_reading(&self) -> bool {
        self.sequencer.stream.is_some()
    }

    /// One cycle, for which [`Self::catch_up`] may have to make up at its end.
    pub fn step(
        &mut self,
        start: Option<(usize, Op)>,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) {
        if let Some((index, op)) = start {
            // Nothing was read in the cycles before.
            self.count_down();
            let started = self.sequencer.start(index, &op, config, memories, wires);
            if let Err(kind) = started.and_then(|()| self.begin(config, memories)) {
                wires.fault(index, kind);
                return;
            }
            self.look_ahead();
        }
        if !self.sequencer.running.is_empty() {
            self.pass_cycles(1, wires);
        }
    }

    /// The cycles until it must be caught up, all at once; how many.
    pub fn skip(&mut self, wires: &mut Wires) -> u64 {
        let n = self.n_at_most - self.n_behind;
        self.pass_cycles(n, wires);
        n
    }

    fn pass_cycles(&mut self, n: u64, wires: &mut Wires) {
        self.n_behind += n;
        wires.ended.extend(self.sequencer.ending(self.n_behind));
    }

    /// Whether [`Self::catch_up`] is due before these writes take effect.
    pub fn must_catch_up(&self, writes: &[Write]) -> bool {
        self.n_behind > 0
            && (self.n_behind == self.n_at_most
                || self.is_reading() && writes.iter().any(|write| self.looks_at(write)))
    }

    /// Whether what is read may be what is written.
    fn looks_at(&self, write: &Write) -> bool {
        let (memory, bytes) = match *write {
            Write::Bytes {
                memory, address, n, ..
            } => (memory, address..address + n as u64),
            Write::Nibble { address, .. } => (Memory::Activation, address..address + 1),
            Write::Block { .. } => return false,
        };
        let meets = |range: &Range<u64>| bytes.start < range.end && range.start < bytes.end;
        match memory {
            Memory::Activation => meets(&self.reach.activations),
            Memory::Weight => meets(&self.reach.weights),
            Memory::Parameter | Memory::Dram => false,
        }
    }

    /// Makes up for all cycles that have passed.
    ///
    /// # Errors
    /// The matmul that cannot go on.
    pub fn catch_up(
        &mut self,
        config: &Config,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) -> Result<(), (usize, FaultKind)> {
        if let Some(stream) = self.sequencer.stream {
            self.read(self.n_behind, config, memories)
                .map_err(|kind| (stream.index, kind))?;
            if self.sequencer.stream.is_none() && stream.matmul.last == 1 {
                let read_at = self.n_cycles + self.n_behind - 1;
                self.finished.push_back(Finished {
                    matmul: stream.matmul,
                    read_at,
                    sums: self.accumulators.clone(),
                    drained_to: read_at,
                });
            }
        }
        let n_running = self.sequencer.running.len();
        self.count_down();
        if self.sequencer.running.len() < n_running {
            self.drain(config, memories, overflow);
        }
        self.look_ahead();
        Ok(())
    }

    fn count_down(&mut self) {
        self.n_cycles += self.n_behind;
        self.sequencer.count_down(self.n_behind);
        self.n_behind = 0;
    }

    fn look_ahead(&mut self) {
        let running = self.sequencer.running.iter();
        let until_end = running.map(|matmul| matmul.left).min().unwrap_or(0);
        let stream = self.sequencer.stream.as_ref();
        self.n_at_most = stream.map_or(until_end, |stream| until_end.min(stream.n_left()));
    }

    /// Where a matmul has started: finds out what it looks at, and lets sums begin anew.
    fn begin(&mut self, config: &Config, memories: &Memories<'_>) -> Result<(), FaultKind> {
        let Some(stream) = &self.sequencer.stream else {
            return Ok(());
        };
        self.reach = Reach::new(stream, config);
        self.reach.check(memories)?;
        if self.sequencer.has_initial() {
            let n_groups = self.accumulators.n_groups;
            for (at, slot) in self.accumulators.slots().enumerate() {
                let mut initial = [0; LANES];
                let values = self.sequencer.initial.iter().skip(at % n_groups * LANES);
                initial
                    .iter_mut()
                    .zip(values)
                    .for_each(|(to, from)| *to = *from);
                *slot.group = Group::starting_at(&initial);
                *slot.is_wide = false;
            }
        }
        Ok(())
    }

    /// The next passes.
    fn read(
        &mut self,
        mut n_passes: u64,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        while n_passes > 0 {
            let Some(stream) = self.sequencer.stream else {
                break;
            };
            let passes = u64::from(passes(&stream.input));
            let n_steps = n_passes / passes;
            if stream.pass == 0 && n_steps > 0 {
                self.read_steps(&stream, n_steps as u32, config, memories);
                n_passes -= n_steps * passes;
            } else {
                self.read_pass(&stream, config, memories)?;
                n_passes -= 1;
            }
        }
        Ok(())
    }

    /// Whole steps.
    fn read_steps(
        &mut self,
        stream: &Stream,
        n_steps: u32,
        config: &Config,
        memories: &Memories<'_>,
    ) {
        let (matmul, input) = (&stream.matmul, &stream.input);
        let (rows, columns) = (matmul.rows_minus_1 + 1, matmul.cols_minus_1 + 1);
        let line_bytes = config.line_bytes() as usize;
        let step_bytes = line_bytes * (1 + input.wide_weights as usize);
        let first = matmul.weight_line as usize * line_bytes + stream.step as usize * step_bytes;
        let mut lines = &memories.weights[first..][..n_steps as usize * step_bytes];
        let passes = u64::from(passes(input));
        let mut left = n_steps;
        while left > 0 {
            let n_reads = self.sequencer.set_ports();
            let tap = &self.sequencer.tap;
            let n = left
                .min(input.n_channels - tap.channel)
                .min(self.steps.room());
            let now;
            (now, lines) = lines.split_at(n as usize * step_bytes);
            let operands = (&self.sequencer.ports[..], input, tap.channel);
            self.steps
                .read(operands, (now, line_bytes), (tap.k, n), memories);
            memories.count_nibbles(Memory::Activation, n_reads * passes * u64::from(n));
            self.sequencer.advance_by(n);
            left -= n;
            if left == 0 || self.steps.room() == 0 {
                self.steps.accumulate(
                    &mut self.accumulators,
                    (rows as usize, columns as usize),
                    config.arithmetic.accumulator,
                );
            }
        }
        let n_steps = u64::from(n_steps);
        memories.count_nibbles(Memory::Weight, u64::from(columns) * passes * n_steps);
        let n_products = u64::from(rows) * u64::from(columns) * n_steps;
        self.counts[Action::Multiply] += n_products * passes;
        self.counts[Action::Accumulate] += n_products;
    }

    /// One pass, of a step that is not read as a whole.
    fn read_pass(
        &mut self,
        stream: &Stream,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let k = self.sequencer.tap.k;
        self.sequencer.read(config, memories, &mut self.pass)?;
        self.sequencer.advance();
        let adds = stream.pass + 1 == passes(&stream.input);
        let n_groups = self.accumulators.n_groups;
        let slots = self.accumulators.slots().zip(&mut self.products);
        for (at, (mut slot, product)) in slots.enumerate() {
            let (row, index) = (at / n_groups, at % n_groups);
            let n_used = n_used(&stream.matmul, row, index);
            if n_used == 0 {
                continue;
            }
            let activation = self.pass.activations[row];
            let weights = &self.pass.weights[index * LANES..][..n_used];
            if stream.pass == 0 {
                *product = [0; LANES];
            }
            for (product, weight) in product.iter_mut().zip(weights) {
                *product += activation * weight;
            }
            self.counts[Action::Multiply] += n_used as u64;
            if adds {
                let step = (&[1][..], std::slice::from_ref(&*product), k);
                take_steps(
                    &mut slot,
                    step,
                    &FIRST[n_used],
                    config.arithmetic.accumulator,
                );
                self.counts[Action::Accumulate] += n_used as u64;
            }
        }
        Ok(())
    }

    /// Whether sums are on their way to a block.
    pub fn drains_to(&self, block: u32) -> bool {
        self.finished
            .iter()
            .any(|finished| finished.matmul.block == block)
    }

    /// Writes what has drained in the cycles that have passed.
    pub fn drain(
        &mut self,
        config: &Config,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) {
        let now = self.n_cycles + self.n_behind;
        let (n_rows, n_columns) = (u64::from(config.rows), u64::from(config.cols));
        for finished in &mut self.finished {
            finished.drain(now, n_rows, memories, overflow);
        }
        let last = 2 * n_rows + n_columns;
        self.finished
            .retain(|finished| now < finished.read_at + last);
    }
}

impl Reach {
    fn new(stream: &Stream, config: &Config) -> Self {
        let (matmul, input) = (&stream.matmul, &stream.input);
        let n_pixels = u64::from(input.height) * u64::from(input.width);
        let first = u64::from(input.address);
        let line_bytes = u64::from(config.line_bytes());
        let first_line = u64::from(matmul.weight_line);
        let n_lines = u64::from(matmul.n_steps) * u64::from(1 + input.wide_weights);
        Self {
            activations: first..first + n_pixels * u64::from(input.pixel_bytes),
            weights: first_line * line_bytes..(first_line + n_lines) * line_bytes,
        }
    }

    fn check(&self, memories: &Memories<'_>) -> Result<(), FaultKind> {
        for (memory, bytes) in [
            (Memory::Activation, &self.activations),
            (Memory::Weight, &self.weights),
        ] {
            let n = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
            memories.check(memory, bytes.start, n)?;
        }
        Ok(())
    }
}

impl Finished {
    /// Writes what has drained before a cycle. PE `(row, column)` sees the last operands `row + column`
    /// cycles after the first PE, which sees them in the cycle after they were read; a column drains, the last
    /// row first, as soon as its last PE has finished.
    fn drain(
        &mut self,
        now: u64,
        n_rows: u64,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) {
        let matmul = &self.matmul;
        for row in 0..=matmul.rows_minus_1 {
            for column in 0..=matmul.cols_minus_1 {
                let at = self.read_at + 2 * n_rows + u64::from(column) - u64::from(row);
                if !(self.drained_to..now).contains(&at) {
                    continue;
                }
                let value = self.sums.get(row as usize, column as usize);
                let place = (row as usize, column as usize);
                memories.put_block(matmul.block as usize, place, value);
                // The rules keep every counter inside the program's number.
                if let Some(counter) = overflow.get_mut((matmul.channel + column) as usize) {
                    counter.merge(&value.seen);
                }
            }
        }
        self.drained_to = now;
    }
}

/// PEs in use of a group of a row.
fn n_used(matmul: &Matmul, row: usize, index: usize) -> usize {
    if row > matmul.rows_minus_1 as usize {
        return 0;
    }
    let n_columns = matmul.cols_minus_1 as usize + 1;
    n_columns.saturating_sub(index * LANES).min(LANES)
}
