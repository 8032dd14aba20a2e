//! The array whose operands stay: sequencers of `preload` and `stream`, skew registers, the grid, an
//! adder below each column.
//!
//! Invariant: all operands of a pass are read in one cycle; the skew registers delay row `r` by `r`
//! and column `c` by `c`, so a wavefront crosses the grid from its first corner to its last.

use super::{
    Tap, halves, initial_value, passes, read_activation, set,
    stationary_pe::{ChainSlot, Held, Pe, StreamSlot, Sum, Target},
};
use crate::stepped::{
    Wires,
    memory::{Memories, Memory, Write},
    pe::{Accumulator, Nibble},
};
use crate::{Action, Config, Counts, Dataflow, FaultKind};
use isa::{Input, Kernel, Op, Preload, Stream};
use std::collections::VecDeque;

/// The preload whose operands are being read, and where its reading stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loading {
    pub index: usize,
    pub preload: Preload,
    pub input: Input,
    pub kernel: Kernel,
    pub row: u32,
    pub plane: u32,
}

/// The stream whose operands are being read, and where its reading stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streaming {
    pub index: usize,
    pub stream: Stream,
    pub input: Input,
    pub kernel: Kernel,
    pub element: u32,
    pub pass: u32,
    /// It is the first after a preload.
    pub takes_chain: bool,
}

/// Taps of the rows in use, for the rows' ports and for the adders.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taps {
    pub rows: Vec<Option<Tap>>,
    /// The last step in use.
    pub last_k: u32,
}

/// Registers of the array.
#[derive(Debug)]
pub(crate) struct Stationary {
    pub input: Option<Input>,
    pub kernel: Option<Kernel>,
    pub loading: Option<Loading>,
    pub streaming: Option<Streaming>,
    /// Where the reduction goes on.
    pub tap: Tap,
    /// Taps of the steps in the chains.
    pub chain_taps: Taps,
    /// Taps of the steps in use (with `shadow_operands`, else the chains' are).
    pub working_taps: Taps,
    /// No stream has taken the chains' values.
    pub is_fresh: bool,
    /// Cycles until the wavefront has taken every chain's values.
    pub chain_gap: u32,
    /// Initial values of the columns in use, when they are the channels.
    pub initial: Vec<i32>,
    /// Preloads and streams that have not ended.
    pub n_open: u32,
    /// Streams among them.
    pub n_streams: u32,
    /// Delay of each column's chain: column `c` has `c` registers.
    pub chain_skew: Vec<VecDeque<Option<ChainSlot>>>,
    /// Delay of each row's operands: row `r` has `r` registers.
    pub row_skew: Vec<VecDeque<Option<StreamSlot>>>,
    /// Delay of each column's first sum: column `c` has `c` registers.
    pub top_skew: Vec<VecDeque<Option<Sum>>>,
    /// What enters each column at the top.
    pub top: Vec<Option<Sum>>,
    /// `pes[row][column]`.
    pub pes: Vec<Vec<Pe>>,
    /// What PEs and adders have done, for energy.
    pub counts: Counts,
}

impl Stationary {
    pub fn new(config: &Config) -> Self {
        let (rows, cols) = (config.rows as usize, config.cols as usize);
        let taps = Taps {
            rows: vec![None; rows],
            last_k: 0,
        };
        Self {
            input: None,
            kernel: None,
            loading: None,
            streaming: None,
            tap: Tap::default(),
            chain_taps: taps.clone(),
            working_taps: taps,
            is_fresh: false,
            chain_gap: 0,
            initial: Vec::new(),
            n_open: 0,
            n_streams: 0,
            chain_skew: (0..cols).map(|column| vec![None; column].into()).collect(),
            row_skew: (0..rows).map(|row| vec![None; row].into()).collect(),
            top_skew: (0..cols).map(|column| vec![None; column].into()).collect(),
            top: vec![None; cols],
            pes: vec![vec![Pe::default(); cols]; rows],
            counts: Counts::default(),
        }
    }

    /// Whether `op` may start in this cycle.
    pub fn is_ready(&self, op: &Op, config: &Config) -> bool {
        let (loads, streams) = (self.loading.is_some(), self.streaming.is_some());
        match op {
            Op::Preload(_) if config.shadow => self.chain_gap == 0,
            Op::Preload(_) => self.n_streams == 0,
            _ => !loads && !streams,
        }
    }

    /// One cycle.
    pub fn step(
        &mut self,
        start: Option<(usize, Op)>,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) {
        if let Some((index, op)) = start
            && let Err(kind) = self.start(index, &op, config, memories, wires)
        {
            wires.fault(index, kind);
            return;
        }
        if self.n_open == 0 {
            // Nothing is in any register.
            return;
        }
        // From the bottom to the top, then the operands from the far corner: so each register is
        // read before it is written, as on a clock edge.
        for column in 0..self.top.len() {
            self.add_below(column, config, memories, wires);
        }
        self.compute(config);
        self.shift_operands();
        self.feed_stream(config, memories, wires);
        self.feed_chains(config, memories, wires);
        self.chain_gap = self.chain_gap.saturating_sub(1);
    }

    fn start(
        &mut self,
        index: usize,
        op: &Op,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) -> Result<(), FaultKind> {
        match *op {
            Op::Input(input) => self.input = Some(input),
            Op::Kernel(kernel) => self.kernel = Some(kernel),
            Op::Preload(preload) => return self.start_preload(index, preload),
            Op::Stream(stream) => return self.start_stream(index, stream, config, memories),
            ref other => unreachable!("{} is not for this array", other.mnemonic()),
        }
        wires.ended.push(index);
        Ok(())
    }

    fn start_preload(&mut self, index: usize, preload: Preload) -> Result<(), FaultKind> {
        if preload.first == 1 {
            self.tap = Tap::default();
        }
        self.loading = Some(Loading {
            index,
            preload,
            input: set("input", self.input)?,
            kernel: set("kernel", self.kernel)?,
            row: 0,
            plane: 0,
        });
        self.is_fresh = true;
        self.n_open += 1;
        Ok(())
    }

    fn start_stream(
        &mut self,
        index: usize,
        stream: Stream,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        self.initial.clear();
        if stream.accumulate == 0 && config.dataflow == Dataflow::WeightStationary {
            for column in 0..=stream.cols_minus_1 {
                let entry = memories.parameter(u64::from(stream.parameter + column))?;
                self.initial
                    .push(initial_value(entry, config.arithmetic.accumulator)?);
            }
        }
        if self.is_fresh {
            self.chain_gap = config.rows;
            if config.shadow {
                self.working_taps = self.chain_taps.clone();
            }
        }
        self.streaming = Some(Streaming {
            index,
            stream,
            input: set("input", self.input)?,
            kernel: set("kernel", self.kernel)?,
            element: 0,
            pass: 0,
            takes_chain: std::mem::take(&mut self.is_fresh),
        });
        self.n_open += 1;
        self.n_streams += 1;
        Ok(())
    }

    /// The adder below a column: its sum goes into the block.
    fn add_below(
        &mut self,
        column: usize,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) {
        let Some(sum) = self.pes.last().and_then(|bottom| bottom[column].sum) else {
            return;
        };
        if let Some(to) = sum.to {
            let mut value = sum.value;
            if to.accumulate {
                match memories.entry(to.block, to.row, column as u32) {
                    Ok(entry) => {
                        let format = config.arithmetic.accumulator;
                        self.counts[Action::Accumulate] += 1;
                        value = entry.joined(&sum.value, to.last_k, format);
                    }
                    Err(kind) => wires.fault(sum.index, kind),
                }
            }
            wires.writes.push(Write::Block {
                block: to.block as usize,
                row: to.row as usize,
                column,
                value,
            });
            if let Some(counter) = to.counter {
                wires.overflow.push((counter as usize, value.seen));
            }
        }
        if sum.is_last && column + 1 == self.top.len() {
            wires.ended.push(sum.index);
            self.n_open -= 1;
            self.n_streams -= 1;
        }
    }

    fn compute(&mut self, config: &Config) {
        for row in (0..self.pes.len()).rev() {
            for column in 0..self.top.len() {
                let above = match row.checked_sub(1) {
                    Some(above) => self.pes[above][column].sum,
                    None => self.top[column],
                };
                let format = config.arithmetic.accumulator;
                self.pes[row][column].step(above, config.shadow, format, &mut self.counts);
            }
        }
    }

    /// Operands inside the grid move one PE on; the edge is filled by [`Self::feed_stream`].
    fn shift_operands(&mut self) {
        for row in &mut self.pes {
            for column in (1..row.len()).rev() {
                row[column].slot = row[column - 1].slot;
            }
        }
    }

    /// Reads this cycle's streaming operands into the skew registers, whose other ends feed the
    /// grid's edges.
    fn feed_stream(&mut self, config: &Config, memories: &Memories<'_>, wires: &mut Wires) {
        for row in 0..self.pes.len() {
            let slot = self.streaming.and_then(|streaming| {
                let slot = self.read_operand(row, &streaming, config, memories);
                checked(slot, streaming.index, wires)
            });
            self.row_skew[row].push_back(slot);
            self.pes[row][0].slot = self.row_skew[row].pop_front().flatten();
        }
        for column in 0..self.top.len() {
            let sum = self.streaming.and_then(|streaming| {
                let sum = self.first_sum(column, &streaming, config, memories);
                checked(sum, streaming.index, wires).flatten()
            });
            self.top_skew[column].push_back(sum);
            self.top[column] = self.top_skew[column].pop_front().flatten();
        }
        if let Some(streaming) = &mut self.streaming {
            streaming.pass += 1;
            if streaming.pass == passes(&streaming.input) {
                streaming.pass = 0;
                streaming.element += 1;
            }
            if streaming.element > streaming.stream.n_minus_1 {
                self.streaming = None;
            }
        }
    }

    fn taps(&self, config: &Config) -> &Taps {
        if config.shadow {
            &self.working_taps
        } else {
            &self.chain_taps
        }
    }

    /// The read port of a row: a pixel's activation, or a channel's weight.
    fn read_operand(
        &self,
        row: usize,
        streaming: &Streaming,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<StreamSlot, FaultKind> {
        let Streaming {
            stream,
            input,
            pass,
            ..
        } = streaming;
        let (activation_high, weight_high) = halves(input, *pass);
        let tap = self.taps(config).rows[row];
        let is_weight = config.dataflow == Dataflow::InputStationary;
        let nibble = match &tap {
            None => None,
            Some(_) if is_weight => {
                let line = u64::from(stream.weight_line)
                    + u64::from(streaming.element) * u64::from(1 + input.wide_weights);
                let is_wide = input.wide_weights == 1;
                Some(read_weight(
                    (line + u64::from(weight_high), row),
                    (is_wide, weight_high),
                    config,
                    memories,
                )?)
            }
            Some(tap) => {
                let pixel = (stream.y, u64::from(stream.x + streaming.element));
                let kernel = &streaming.kernel;
                Some(read_activation(
                    input,
                    kernel,
                    pixel,
                    tap,
                    activation_high,
                    memories,
                )?)
            }
        };
        Ok(StreamSlot {
            nibble,
            held_high: if is_weight {
                activation_high
            } else {
                weight_high
            },
            k: tap.map_or(0, |tap| tap.k),
            is_first_pass: *pass == 0,
            is_last_pass: pass + 1 == passes(input),
            takes_chain: streaming.takes_chain && streaming.element == 0 && *pass == 0,
        })
    }

    /// What enters a column at the top, with the last pass of an element.
    fn first_sum(
        &self,
        column: usize,
        streaming: &Streaming,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<Option<Sum>, FaultKind> {
        let Streaming {
            index,
            stream,
            element,
            ..
        } = *streaming;
        if streaming.pass + 1 < passes(&streaming.input) {
            return Ok(None);
        }
        let format = config.arithmetic.accumulator;
        let is_used = column <= stream.cols_minus_1 as usize;
        let (initial, channel) = match config.dataflow {
            Dataflow::InputStationary if stream.accumulate == 0 => {
                // One read serves every column.
                let entry = u64::from(stream.parameter + element);
                let entry = if column == 0 {
                    memories.parameter(entry)?
                } else {
                    memories.held_parameter(entry)?
                };
                (Some(initial_value(entry, format)?), element)
            }
            Dataflow::InputStationary => (None, element),
            Dataflow::WeightStationary | Dataflow::OutputStationary => {
                (self.initial.get(column).copied(), column as u32)
            }
        };
        let to = is_used.then(|| Target {
            block: stream.block,
            row: stream.row + element,
            accumulate: stream.accumulate == 1,
            last_k: self.taps(config).last_k,
            counter: (stream.last == 1).then_some(stream.channel + channel),
        });
        Ok(Some(Sum {
            value: Accumulator::starting_at(initial.unwrap_or(0)),
            to,
            is_last: element == stream.n_minus_1,
            index,
        }))
    }

    /// Reads this cycle's operands for the chains; each column's moves when they arrive.
    fn feed_chains(&mut self, config: &Config, memories: &Memories<'_>, wires: &mut Wires) {
        if let Some(loading) = self.loading
            && loading.plane == 0
        {
            self.latch_tap(&loading);
        }
        for column in 0..self.top.len() {
            let slot = self.loading.and_then(|loading| {
                let slot = self.read_held(column, &loading, config, memories);
                checked(slot, loading.index, wires)
            });
            self.chain_skew[column].push_back(slot);
            if let Some(slot) = self.chain_skew[column].pop_front().flatten() {
                self.move_chain(column, slot);
                if slot.is_last && column + 1 == self.top.len() {
                    let index = slot.index;
                    wires.ended.push(index);
                    self.n_open -= 1;
                }
            }
        }
        if let Some(loading) = &mut self.loading {
            loading.plane += 1;
            if loading.plane == planes(&loading.input, config) {
                loading.plane = 0;
                loading.row += 1;
            }
            if loading.row == config.rows {
                self.loading = None;
            }
        }
    }

    /// The rows' taps move up with the chain of column 0.
    fn latch_tap(&mut self, loading: &Loading) {
        let is_used = loading.row <= loading.preload.rows_minus_1;
        self.chain_taps.rows.remove(0);
        self.chain_taps.rows.push(is_used.then_some(self.tap));
        if is_used {
            self.chain_taps.last_k = self.tap.k;
            self.tap.advance(&loading.input, &loading.kernel);
        }
    }

    fn move_chain(&mut self, column: usize, slot: ChainSlot) {
        let bottom = self.pes.len() - 1;
        if slot.completes {
            if let Some(held) = &mut self.pes[bottom][column].chain {
                held.high = slot.nibble;
            }
            return;
        }
        for row in 0..bottom {
            self.pes[row][column].chain = self.pes[row + 1][column].chain;
        }
        self.pes[bottom][column].chain = slot.nibble.map(|low| Held { low, high: None });
    }

    /// The read port of a column: a channel's weight, or a pixel's activation.
    fn read_held(
        &self,
        column: usize,
        loading: &Loading,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<ChainSlot, FaultKind> {
        let Loading {
            preload,
            input,
            row,
            plane,
            ..
        } = loading;
        let (high, n_planes) = (*plane == 1, planes(input, config));
        let is_used = *row <= preload.rows_minus_1 && column <= preload.cols_minus_1 as usize;
        let tap = self.chain_taps.rows.last().copied().flatten();
        let nibble = match (is_used, &tap) {
            (true, Some(tap)) if config.dataflow == Dataflow::InputStationary => {
                let pixel = (preload.y, u64::from(preload.x) + column as u64);
                let kernel = &loading.kernel;
                Some(read_activation(input, kernel, pixel, tap, high, memories)?)
            }
            (true, Some(_)) => {
                let line = preload.weight_line + row * n_planes + plane;
                let place = (u64::from(line), column);
                Some(read_weight(place, (n_planes == 2, high), config, memories)?)
            }
            _ => None,
        };
        Ok(ChainSlot {
            nibble,
            completes: high,
            is_last: row + 1 == config.rows && plane + 1 == n_planes,
            index: loading.index,
        })
    }
}

/// Nibbles of the operand that stays.
pub(crate) fn planes(input: &Input, config: &Config) -> u32 {
    match config.dataflow {
        Dataflow::InputStationary => 1 + input.wide_activations,
        Dataflow::WeightStationary | Dataflow::OutputStationary => 1 + input.wide_weights,
    }
}

/// A nibble of a line of the weight scratchpad.
fn read_weight(
    (line, place): (u64, usize),
    (is_wide, high): (bool, bool),
    config: &Config,
    memories: &Memories<'_>,
) -> Result<Nibble, FaultKind> {
    let address = line * u64::from(config.line_bytes()) + place as u64 / 2;
    let bits = memories.nibble(Memory::Weight, address, place % 2 == 1)?;
    Ok(Nibble::new(bits, high, high || !is_wide))
}

fn checked<T>(read: Result<T, FaultKind>, index: usize, wires: &mut Wires) -> Option<T> {
    read.map_err(|kind| wires.fault(index, kind)).ok()
}
