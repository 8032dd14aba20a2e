//! An output-stationary array at whose registers nobody looks: what it reads, adds and writes, and when.
//!
//! Invariant: memories, overflow records, ends and counts are those of [`OutputStationary`](super::OutputStationary).
//! A cycle may be made up for later, together with others, but before anybody could notice: before one of its
//! operands is overwritten, before its block is read, and before an instruction ends or may start. PEs that are
//! not in use hold nothing of use.

use super::sequencer::{Pass, Sequencer, Stream};
use crate::stepped::{
    Wires,
    array::{
        landing::{Counters, Landing},
        passes,
        reach::Reach,
        steps::Steps,
    },
    memory::{Memories, Memory, Write},
    sums::{FIRST, LANES, Sums, n_lanes, take_steps},
};
use crate::{Action, Config, Counts, FaultKind};
use arith::ChannelOverflow;
use isa::{Matmul, Op};
use std::collections::VecDeque;

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
    /// Finished sums that have not all drained.
    drains: VecDeque<Landing>,
    /// What the PEs have done, for energy.
    pub counts: Counts,
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
            drains: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Whether `op` may start in this cycle.
    pub fn is_ready(&self, op: &Op, config: &Config) -> bool {
        self.sequencer.is_ready(op, config, self.n_behind)
    }

    /// Cycles from now on, while it reads, in which nothing ends and nothing gets ready to start.
    pub fn n_alike(&self) -> u64 {
        if self.is_reading() {
            self.n_at_most - self.n_behind
        } else {
            0
        }
    }

    fn is_reading(&self) -> bool {
        self.sequencer.stream.is_some()
    }

    /// One cycle, for which [`Self::catch_up`] may make up at its end.
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
            self.pass(1, wires);
        }
    }

    /// So many cycles.
    pub fn pass(&mut self, n_cycles: u64, wires: &mut Wires) {
        self.n_behind += n_cycles;
        wires.ended.extend(self.sequencer.ending(self.n_behind));
    }

    /// Whether [`Self::catch_up`] is due before these writes take effect.
    pub fn must_catch_up(&self, writes: &[Write]) -> bool {
        self.n_behind > 0
            && (self.n_behind == self.n_at_most || self.is_reading() && self.reach.meets(writes))
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
                let landing = self.landing(&stream.matmul, read_at, config);
                self.drains.push_back(landing);
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
        let (matmul, input) = (&stream.matmul, &stream.input);
        let n_lines = matmul.n_steps * (1 + input.wide_weights);
        let reach = Reach::default()
            .with_tile(input)
            .with_lines((matmul.weight_line, n_lines), config);
        self.reach = reach.checked(memories)?;
        if self.sequencer.has_initial() {
            let n_groups = self.accumulators.n_groups;
            for (at, mut slot) in self.accumulators.slots().enumerate() {
                let mut initial = [0; LANES];
                let values = self.sequencer.initial.iter().skip(at % n_groups * LANES);
                initial
                    .iter_mut()
                    .zip(values)
                    .for_each(|(to, from)| *to = *from);
                slot.begin(&initial);
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
            let matmul = &stream.matmul;
            let n_used = n_lanes(matmul.cols_minus_1 as usize + 1, index);
            if row > matmul.rows_minus_1 as usize || n_used == 0 {
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

    /// The sums of a fold whose last operands were read in a cycle. PE `(row, column)` sees them
    /// `row + column` cycles after the first PE, which sees them in the cycle after; a column drains, the last
    /// row first, as soon as its last PE has finished.
    fn landing(&self, matmul: &Matmul, read_at: u64, config: &Config) -> Landing {
        Landing {
            block: matmul.block,
            first_row: 0,
            sums: self.accumulators.clone(),
            n_rows: matmul.rows_minus_1 + 1,
            n_columns: matmul.cols_minus_1 + 1,
            first: read_at + 2 * u64::from(config.rows),
            pace: -1,
            adds_at: None,
            counters: Some(Counters::OfColumns(matmul.channel)),
            landed_to: read_at,
        }
    }

    /// Lands what is due in a block.
    pub fn before_reading(
        &mut self,
        block: u32,
        config: &Config,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) {
        if self.drains.iter().any(|landing| landing.block == block) {
            self.drain(config, memories, overflow);
        }
    }

    /// Writes what has drained in the cycles that have passed.
    fn drain(
        &mut self,
        config: &Config,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) {
        let now = self.n_cycles + self.n_behind;
        let format = config.arithmetic.accumulator;
        for landing in &mut self.drains {
            landing.land(now, format, memories, overflow);
        }
        self.drains.retain(|landing| !landing.ends_before(now));
    }
}
