//! The array whose operands stay: sequencers of `preload` and `stream`, skew registers, the grid, an
//! adder below each column.
//!
//! Invariant: all operands of a pass are read in one cycle; the skew registers delay row `r` by `r`
//! and column `c` by `c`, so a wavefront crosses the grid from its first corner to its last.

mod elements;
mod pe;
mod unwatched;

use super::{ActivationPort, Half, Tap, halves, initial_value, passes, read_activation, set};
use crate::stepped::{
    Wires,
    line::{Lines, Rows},
    memory::{Memories, Memory, Write},
    pe::{Accumulator, Nibble, weighed},
    sums::LANES,
};
use crate::{Action, Config, Counts, Dataflow, FaultKind};
use isa::{Input, Kernel, Op, Preload, Stream};
use pe::{Grid, Pass, Streams, signal};
pub(crate) use pe::{Held, mark};
use std::collections::VecDeque;
pub(crate) use unwatched::Unwatched;

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
    /// Preloads that have not ended, in order.
    pub preloads: VecDeque<usize>,
    /// Delay of each column's chain: column `c` has `c` registers. Nibbles, weighed.
    pub chain_nibbles: Rows<i32>,
    /// See [`mark`].
    pub chain_marks: Rows<i32>,
    /// Skew registers and those of the PEs.
    pub streams: Streams,
    pub grid: Grid,
    /// What PEs and adders have done, for energy.
    pub counts: Counts,
}

/// What the registers of a PE hold.
pub(crate) struct PeView {
    pub chain: Option<Held>,
    pub working: Option<Held>,
    pub slot: Option<StreamSlot>,
    pub product: i32,
    pub sum: Option<Sum>,
}

/// What travels along a row: half of a streaming operand, and what the PEs are to do with it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one wire of the hardware"
)]
pub(crate) struct StreamSlot {
    /// `None` in a row that is not in use.
    pub nibble: Option<Nibble>,
    /// Which half of the held operand it meets.
    pub held_high: bool,
    pub is_first_pass: bool,
    pub is_last_pass: bool,
    /// The chain's value becomes the working one.
    pub takes_chain: bool,
}

/// What travels down a column: a partial sum, and where it goes.
pub(crate) struct Sum {
    pub value: Accumulator,
    /// The column is in use.
    pub is_used: bool,
    pub to: Pass,
}

impl Stationary {
    pub fn new(config: &Config) -> Self {
        let (rows, cols) = (config.rows as usize, config.cols as usize);
        let width = cols.next_multiple_of(LANES);
        let depth = rows + width + 1;
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
            preloads: VecDeque::new(),
            chain_nibbles: Rows::new(1, width),
            chain_marks: Rows::new(1, width),
            streams: Streams {
                signals: Lines::new(signal::COUNT, depth),
                nibbles: Lines::new(rows, depth),
                is_used: Lines::new(rows, depth),
                k: Lines::new(rows, depth),
                initial: Rows::new(1, width),
                passes: Lines::new(1, depth),
            },
            grid: Grid::new(rows, cols),
            counts: Counts::default(),
        }
    }

    /// What the registers of a PE hold.
    pub fn pe(&self, row: usize, column: usize) -> PeView {
        let (chain, working, product) = self.grid.operands(row, column);
        let streams = &self.streams;
        let is = |signal| streams.signals.register(signal, row + column) != 0;
        let is_high = is(signal::IS_HIGH);
        let nibble = streams.nibbles.register(row, row + column);
        let is_used = streams.is_used.register(row, row + column) != 0;
        let slot = StreamSlot {
            nibble: is_used.then(|| Nibble::of_weighed(nibble, is_high)),
            held_high: !is(signal::MEETS_LOW),
            is_first_pass: !is(signal::KEEPS),
            is_last_pass: is(signal::ADDS),
            takes_chain: is(signal::TAKES),
        };
        PeView {
            chain,
            working,
            slot: is(signal::COMES).then_some(slot),
            product,
            sum: self.sum_of(row + 1, column),
        }
    }

    /// What comes into row `row` from above.
    pub fn sum_of(&self, row: usize, column: usize) -> Option<Sum> {
        let to = self.streams.passes.register(0, row + column);
        let value = match row.checked_sub(1) {
            Some(above) => self.grid.sums.get(above, column),
            None => Accumulator::starting_at(self.streams.initial.row(0)[column]),
        };
        to.has_sums.then_some(Sum {
            value,
            is_used: column < to.n_columns as usize,
            to,
        })
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
        for column in 0..config.cols as usize {
            self.add_below(column, config, memories, wires);
        }
        self.compute(config);
        self.shift_operands();
        if let Some(streaming) = self.streaming
            && let Err(kind) = self.feed_stream(&streaming, config, memories)
        {
            wires.fault(streaming.index, kind);
        }
        self.advance_stream();
        if let Some(loading) = self.loading
            && let Err(kind) = self.feed_chains(&loading, config, memories)
        {
            wires.fault(loading.index, kind);
        }
        self.move_chains(config, wires);
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
        self.preloads.push_back(index);
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
        let n_rows = config.rows as usize;
        let to = self.streams.passes.register(0, n_rows + column);
        if !to.has_sums {
            return;
        }
        if column < to.n_columns as usize {
            let sum = self.grid.sums.get(n_rows - 1, column);
            let mut value = sum;
            if to.accumulate {
                match memories.entry(to.block, to.row, column as u32) {
                    Ok(entry) => {
                        let format = config.arithmetic.accumulator;
                        self.counts[Action::Accumulate] += 1;
                        value = entry.joined(&sum, to.last_k, format);
                    }
                    Err(kind) => wires.fault(to.index, kind),
                }
            }
            wires.writes.push(Write::Block {
                block: to.block as usize,
                row: to.row as usize,
                column,
                value,
            });
            if let Some(counter) = to.counter {
                let channel = match config.dataflow {
                    Dataflow::InputStationary => to.element,
                    Dataflow::WeightStationary | Dataflow::OutputStationary => column as u32,
                };
                wires
                    .overflow
                    .push(((counter + channel) as usize, value.seen));
            }
        }
        if to.is_last && column + 1 == config.cols as usize {
            wires.ended.push(to.index);
            self.n_open -= 1;
            self.n_streams -= 1;
        }
    }

    fn compute(&mut self, config: &Config) {
        let format = config.arithmetic.accumulator;
        let done = self.grid.step(&self.streams, config.shadow, format);
        self.counts[Action::Multiply] += done.n_multiplied;
        self.counts[Action::Accumulate] += done.n_accumulated;
    }

    /// Operands move one register on; the first are filled by [`Self::feed_stream`].
    fn shift_operands(&mut self) {
        let streams = &mut self.streams;
        streams.signals.shift();
        streams.nibbles.shift();
        streams.is_used.shift();
        streams.k.shift();
        streams.initial.shift();
        streams.passes.shift();
        streams.passes.put(0, Pass::default());
        for signal in 0..signal::COUNT {
            streams.signals.put(signal, 0);
        }
    }

    /// Reads this cycle's streaming operands into the first registers.
    fn feed_stream(
        &mut self,
        streaming: &Streaming,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let Streaming {
            stream,
            input,
            pass,
            element,
            ..
        } = streaming;
        let (activation_high, weight_high) = halves(input, *pass);
        let is_weight = config.dataflow == Dataflow::InputStationary;
        let (is_high, held_high) = if is_weight {
            (weight_high, activation_high)
        } else {
            (activation_high, weight_high)
        };
        let is_last_pass = pass + 1 == passes(input);
        let takes = streaming.takes_chain && *element == 0 && *pass == 0;
        for (signal, is) in [
            (signal::COMES, true),
            (signal::MEETS_LOW, !held_high),
            (signal::KEEPS, *pass > 0),
            (signal::TAKES, takes),
            (signal::ADDS, is_last_pass),
            (signal::IS_HIGH, is_high),
        ] {
            self.streams.signals.put(signal, if is { -1 } else { 0 });
        }
        self.read_operands(streaming, is_high, config, memories)?;
        if !is_last_pass {
            return Ok(());
        }
        let format = config.arithmetic.accumulator;
        let is_new = stream.accumulate == 0;
        if is_weight {
            // One read serves every column.
            let entry = u64::from(stream.parameter + element);
            let initial = if is_new {
                initial_value(memories.parameter(entry)?, format)?
            } else {
                0
            };
            for column in 0..config.cols as usize {
                self.streams.initial.put(column, initial);
            }
        } else {
            for column in 0..config.cols as usize {
                let initial = self.initial.get(column).copied().unwrap_or(0);
                self.streams.initial.put(column, initial);
            }
        }
        let to = Pass {
            index: streaming.index,
            has_sums: true,
            is_last: *element == stream.n_minus_1,
            n_columns: stream.cols_minus_1 + 1,
            element: *element,
            block: stream.block,
            row: stream.row + element,
            accumulate: !is_new,
            last_k: self.taps(config).last_k,
            counter: (stream.last == 1).then_some(stream.channel),
        };
        self.streams.passes.put(0, to);
        Ok(())
    }

    /// The counters of pass and element.
    fn advance_stream(&mut self) {
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

    /// The read ports of the rows: a pixel's activations, or a channel's weights.
    fn read_operands(
        &mut self,
        streaming: &Streaming,
        is_high: bool,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let Streaming {
            stream,
            input,
            kernel,
            element,
            ..
        } = streaming;
        let is_weight = config.dataflow == Dataflow::InputStationary;
        let is_wide = input.wide_weights == 1;
        let line = u64::from(stream.weight_line)
            + u64::from(*element) * u64::from(1 + input.wide_weights)
            + u64::from(is_high);
        let pixel = (stream.y, u64::from(stream.x + element));
        let mut port = ActivationPort::new(kernel, pixel);
        let mut n_reads = 0;
        let taps = if config.shadow {
            &self.working_taps
        } else {
            &self.chain_taps
        };
        for (row, tap) in taps.rows.iter().enumerate() {
            let Some(tap) = tap else {
                self.streams.is_used.put(row, 0);
                self.streams.k.put(row, 0);
                continue;
            };
            let nibble = if is_weight {
                read_weight((line, row), (is_wide, is_high), config, memories)?
            } else {
                port.set(input, kernel, tap);
                n_reads += port.n_reads();
                Half::new(input, tap.channel, is_high).under(&port, memories)?
            };
            self.streams.nibbles.put(row, nibble);
            self.streams.is_used.put(row, -1);
            self.streams.k.put(row, tap.k as i32);
        }
        memories.count_nibbles(Memory::Activation, n_reads);
        Ok(())
    }

    /// Reads this cycle's operands for the chains.
    fn feed_chains(
        &mut self,
        loading: &Loading,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        if loading.plane == 0 {
            self.latch_tap(loading);
        }
        self.chain_nibbles.shift();
        self.chain_marks.shift();
        let is_high = loading.plane == 1;
        let ends =
            loading.row + 1 == config.rows && loading.plane + 1 == planes(&loading.input, config);
        for column in 0..config.cols as usize {
            let nibble = self.read_held(column, loading, config, memories)?;
            let mut marks = mark::COMES;
            for (is, mark) in [
                (nibble.is_some(), mark::IS_USED),
                (is_high, mark::COMPLETES),
                (ends, mark::IS_LAST),
            ] {
                marks |= if is { mark } else { 0 };
            }
            let nibble = nibble.unwrap_or(0);
            self.chain_nibbles.put(column, nibble);
            self.chain_marks.put(column, marks);
        }
        Ok(())
    }

    /// Each column's chain moves when its operand arrives.
    fn move_chains(&mut self, config: &Config, wires: &mut Wires) {
        if let Some(loading) = &mut self.loading {
            loading.plane += 1;
            if loading.plane == planes(&loading.input, config) {
                loading.plane = 0;
                loading.row += 1;
            }
            if loading.row == config.rows {
                self.loading = None;
            }
        } else if self.preloads.is_empty() {
            return;
        } else {
            self.chain_nibbles.shift();
            self.chain_marks.shift();
            for column in 0..config.cols as usize {
                self.chain_marks.put(column, 0);
            }
        }
        let (nibbles, marks) = (self.chain_nibbles.row(0), self.chain_marks.row(0));
        self.grid.move_chains(nibbles, marks);
        if marks[config.cols as usize - 1] & mark::IS_LAST != 0 {
            wires.ended.extend(self.preloads.pop_front());
            self.n_open -= 1;
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

    /// The read port of a column: a channel's weight, or a pixel's activation.
    fn read_held(
        &self,
        column: usize,
        loading: &Loading,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<Option<i32>, FaultKind> {
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
        Ok(match (is_used, &tap) {
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

/// A nibble of a line of the weight scratchpad, weighed.
fn read_weight(
    (line, place): (u64, usize),
    (is_wide, high): (bool, bool),
    config: &Config,
    memories: &Memories<'_>,
) -> Result<i32, FaultKind> {
    let address = line * u64::from(config.line_bytes()) + place as u64 / 2;
    let bits = memories.nibble(Memory::Weight, address, place % 2 == 1)?;
    Ok(weighed(bits, high, high || !is_wide))
}
