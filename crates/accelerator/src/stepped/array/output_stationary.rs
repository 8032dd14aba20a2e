//! The output-stationary array: address generators, skew registers, the grid of PEs, the drain of
//! each column.
//!
//! Invariant: all operands of a pass are read in one cycle; the skew registers delay row `r` by `r`
//! and column `c` by `c`.

use super::{
    ActivationPort, Half, Tap, halves, initial_value,
    output_stationary_pe::{self, Latest, Operands, signal},
    passes, set,
};
use crate::stepped::{
    Wires,
    line::{Lines, PAST, Rows},
    memory::{Memories, Memory, Write},
    pe::{Drain, FoldEnd, Nibble, Pe, WeightSlot, weighed},
    sums::{LANES, Sums},
};
use crate::{Action, Config, Counts, FaultKind};
use isa::{Input, Kernel, Matmul, Op};
use std::collections::VecDeque;

/// Marks of a pass (see [`signal::MARKS`]).
mod mark {
    /// The activation is an upper half.
    pub const ACTIVATION_HIGH: i32 = 1;
    /// The weight is an upper half.
    pub const WEIGHT_HIGH: i32 = 2;
    /// It has initial values.
    pub const INITIAL: i32 = 4;
    /// It is a fold's last.
    pub const ENDS: i32 = 8;
}

/// The matmul whose operands are being read, and where its reading stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub index: usize,
    pub matmul: Matmul,
    pub input: Input,
    pub kernel: Kernel,
    /// Step of this matmul.
    pub step: u32,
    /// Pass of the step.
    pub pass: u32,
}

impl Stream {
    /// Rows and columns in use, and passes of a step.
    fn shape(&self) -> (u32, u32, u32) {
        let matmul = &self.matmul;
        (
            matmul.rows_minus_1 + 1,
            matmul.cols_minus_1 + 1,
            passes(&self.input),
        )
    }
}

/// A matmul whose end has not come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub index: usize,
    pub is_last: bool,
    /// Cycles until its end.
    pub left: u64,
}

/// Registers of the array.
#[derive(Debug)]
pub(crate) struct OutputStationary {
    pub input: Option<Input>,
    pub kernel: Option<Kernel>,
    pub stream: Option<Stream>,
    pub tap: Tap,
    /// Initial values of the columns in use.
    pub initial: Vec<i32>,
    /// A `last` matmul must be at least this many passes long to start now.
    pub drain_gap: u64,
    pub running: VecDeque<Running>,
    /// The read port of each row in use.
    pub ports: Vec<ActivationPort>,
    /// Nibbles that they read in a pass; unknown until they are set to the tap.
    pub n_reads: Option<u64>,
    /// Skew registers and those of the PEs.
    pub operands: Operands,
    /// Somebody looks at every cycle: the PEs may not be late.
    pub is_observed: bool,
    /// Latest cycles that the PEs have still to do, all at once: nobody has looked at them since.
    pub n_late: usize,
    pub products: Vec<[i32; LANES]>,
    pub accumulators: Sums,
    /// Finished sums that wait for their turn to drain.
    pub shadows: Sums,
    /// Ends of folds on their way through the grid, and how many registers each is behind the first.
    pub ends: VecDeque<(usize, Matmul)>,
    /// One counter a column.
    pub drains: Vec<Option<Drain>>,
    /// Rows that each has drained, while the others move down.
    drained: Vec<[i32; LANES]>,
    /// What the PEs have done, for energy.
    pub counts: Counts,
}

impl OutputStationary {
    pub fn new(config: &Config, is_observed: bool) -> Self {
        let (rows, cols) = (config.rows as usize, config.cols as usize);
        let width = cols.next_multiple_of(LANES);
        Self {
            input: None,
            kernel: None,
            stream: None,
            tap: Tap::default(),
            initial: Vec::new(),
            drain_gap: 0,
            running: VecDeque::new(),
            ports: Vec::new(),
            n_reads: None,
            operands: Operands {
                signals: Lines::new(signal::COUNT, rows + width),
                activations: Lines::new(rows, rows + width),
                weights: Rows::new(rows, width),
                initial: Rows::new(rows, width),
                latest: Latest::default(),
            },
            is_observed,
            n_late: 0,
            products: vec![[0; LANES]; rows * width / LANES],
            accumulators: Sums::new(rows, cols),
            shadows: Sums::new(rows, cols),
            ends: VecDeque::new(),
            drains: vec![None; cols],
            drained: vec![[i32::MAX; LANES]; cols.div_ceil(LANES)],
            counts: Counts::default(),
        }
    }

    /// What the registers of a PE hold.
    pub fn pe(&self, row: usize, column: usize) -> Pe {
        let operands = &self.operands;
        let signal = |signal| operands.signals.register(signal, row + column);
        let marks = signal(signal::MARKS);
        let is_marked = |mark: i32| marks & mark != 0;
        let (rows, columns) = (signal(signal::ROWS), signal(signal::COLUMNS));
        let activation = operands.activations.register(row, row + column);
        let activation = Nibble::of_weighed(activation, is_marked(mark::ACTIVATION_HIGH));
        let nibble = Nibble::of_weighed(
            operands.weights.row(row)[column],
            is_marked(mark::WEIGHT_HIGH),
        );
        let slot = WeightSlot {
            nibble: (column < columns as usize).then_some(nibble),
            is_first_pass: signal(signal::KEEPS) == 0,
            is_last_pass: signal(signal::ADDS) != 0,
            initial: is_marked(mark::INITIAL).then(|| operands.initial.row(row)[column]),
            ends_fold: is_marked(mark::ENDS),
        };
        Pe {
            activation: (row < rows as usize).then_some(activation),
            weight: (rows > 0).then_some(slot),
            product: self.products[row * (operands.weights.row(0).len() / LANES) + column / LANES]
                [column % LANES],
            accumulator: self.accumulators.get(row, column),
            shadow: self.shadows.get(row, column),
        }
    }

    /// Whether `op` may start in this cycle.
    pub fn is_ready(&self, op: &Op, config: &Config) -> bool {
        let sums_are_kept = config.shadow || !self.running.iter().any(|matmul| matmul.is_last);
        let chain_is_free = match (op, &self.input) {
            (Op::Matmul(matmul), Some(input)) if matmul.last == 1 => {
                u64::from(matmul.n_steps) * u64::from(passes(input)) >= self.drain_gap
            }
            _ => true,
        };
        self.stream.is_none() && sums_are_kept && chain_is_free
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
        if self.running.is_empty() {
            // Nothing is in any register.
            return;
        }
        // The drain first and then the grid from its far corner: so each register is read before it
        // is written, as on a clock edge.
        self.drain(config, wires);
        self.compute(config);
        self.shift_operands();
        if let Err(kind) = self.feed(config, memories) {
            wires.fault(self.stream.map_or(0, |stream| stream.index), kind);
        }
        self.advance();
        self.drain_gap = self.drain_gap.saturating_sub(1);
        for matmul in &mut self.running {
            matmul.left -= 1;
            if matmul.left == 0 {
                wires.ended.push(matmul.index);
            }
        }
        self.running.retain(|matmul| matmul.left > 0);
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
            Op::Matmul(matmul) => return self.start_matmul(index, matmul, config, memories),
            ref other => unreachable!("{} is not for the array", other.mnemonic()),
        }
        wires.ended.push(index);
        Ok(())
    }

    fn start_matmul(
        &mut self,
        index: usize,
        matmul: Matmul,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let input = set("input", self.input)?;
        let kernel = set("kernel", self.kernel)?;
        if matmul.n_steps == 0 {
            let rule = "must be at least 1";
            return Err(FaultKind::Operand {
                field: "n_steps",
                value: 0,
                rule,
            });
        }
        if matmul.first == 1 {
            self.tap = Tap::default();
            self.initial.clear();
            for column in 0..=matmul.cols_minus_1 {
                let entry = memories.parameter(u64::from(matmul.parameter) + u64::from(column))?;
                self.initial
                    .push(initial_value(entry, config.arithmetic.accumulator)?);
            }
        }
        let rows_in_use = 0..=u64::from(matmul.rows_minus_1);
        let pixel = |row| (matmul.y, u64::from(matmul.x) + row);
        self.ports.clear();
        self.ports
            .extend(rows_in_use.map(|row| ActivationPort::new(&kernel, pixel(row))));
        self.n_reads = None;
        let stream = u64::from(matmul.n_steps) * u64::from(passes(&input));
        let (rows, cols) = (u64::from(config.rows), u64::from(config.cols));
        let is_last = matmul.last == 1;
        self.running.push_back(Running {
            index,
            is_last,
            left: stream + 2 * rows + cols - 1,
        });
        if is_last {
            self.drain_gap = stream + rows;
        }
        self.stream = Some(Stream {
            index,
            matmul,
            input,
            kernel,
            step: 0,
            pass: 0,
        });
        Ok(())
    }

    /// The bottom value of every draining column goes to its block; those above move down. Rows that
    /// the drained ones have left free do not move: the next fold's sums may already stand there.
    fn drain(&mut self, config: &Config, wires: &mut Wires) {
        if self.is_drained() {
            return;
        }
        let n_rows = config.rows as usize;
        let sums = if config.shadow {
            &mut self.shadows
        } else {
            &mut self.accumulators
        };
        let free = &mut self.drained;
        free.fill([i32::MAX; LANES]);
        for (column, counter) in self.drains.iter_mut().enumerate() {
            let Some(drain) = counter else { continue };
            let n_drained = drain.n_drained as usize;
            let row = n_rows - 1 - n_drained;
            if drain.to.is_used && row < drain.to.rows as usize {
                let value = sums.get(n_rows - 1, column);
                let block = drain.to.block as usize;
                wires.writes.push(Write::Block {
                    block,
                    row,
                    column,
                    value,
                });
                wires.overflow.push((drain.to.channel as usize, value.seen));
            }
            free[column / LANES][column % LANES] = n_drained as i32;
            drain.n_drained += 1;
            if n_drained + 1 == n_rows {
                *counter = None;
            }
        }
        sums.move_down(free);
    }

    fn compute(&mut self, config: &Config) {
        let can_be_late = self.can_be_late(config);
        self.n_late += 1;
        if can_be_late {
            return;
        }
        let (n_rows, n_columns) = (config.rows as usize, config.cols as usize);
        let done = output_stationary_pe::step(
            &mut self.accumulators,
            &mut self.products,
            &self.operands,
            config.arithmetic.accumulator,
            ((n_rows, n_columns), std::mem::take(&mut self.n_late)),
        );
        self.counts[Action::Multiply] += done.n_multiplied;
        self.counts[Action::Accumulate] += done.n_accumulated;
        for &(age, matmul) in &self.ends {
            let first = (age + 1).saturating_sub(n_columns);
            for row in first..=age.min(n_rows - 1) {
                let column = age - row;
                self.shadows.take(&self.accumulators, row, column);
                if row + 1 == n_rows {
                    // The drain begins in the next cycle.
                    let to = FoldEnd {
                        block: matmul.block,
                        rows: matmul.rows_minus_1 + 1,
                        is_used: column <= matmul.cols_minus_1 as usize,
                        channel: matmul.channel + column as u32,
                    };
                    self.drains[column] = Some(Drain { n_drained: 0, to });
                }
            }
        }
    }

    /// Whether PEs may have one cycle more to do: nobody looks at them in the next, and all see passes of
    /// the same kind until then.
    pub(super) fn can_be_late(&self, config: &Config) -> bool {
        let n_pes = (config.rows + config.cols - 1) as usize;
        !self.is_observed
            && self.n_late + 1 < PAST
            && self.operands.latest.n_steady >= n_pes + self.n_late
            && self.ends.is_empty()
            && self.is_steady()
            && (config.shadow || self.is_drained())
    }

    /// Whether no column drains.
    pub(super) fn is_drained(&self) -> bool {
        self.drains.iter().all(Option::is_none)
    }

    /// Whether the pass that is read next is as the latest, without initial values.
    fn is_steady(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| {
            stream.shape() == self.operands.latest.shape
                && (self.tap.k > 0 || self.initial.is_empty())
        })
    }

    /// Operands move one register on; the first are filled by [`Self::feed`].
    fn shift_operands(&mut self) {
        self.operands.signals.shift();
        self.operands.activations.shift();
        self.operands.weights.shift();
        self.operands.initial.shift();
        self.ends.iter_mut().for_each(|(age, _)| *age += 1);
        let last = self.n_diagonals();
        self.ends.retain(|&(age, _)| age < last);
    }

    /// Distances that a PE can have from the first.
    fn n_diagonals(&self) -> usize {
        self.drains.len() + self.products.len() * LANES / self.operands.weights.row(0).len() - 1
    }

    /// Reads this cycle's operands into the first registers.
    fn feed(&mut self, config: &Config, memories: &Memories<'_>) -> Result<(), FaultKind> {
        let operands = &mut self.operands;
        let Some(stream) = &self.stream else {
            operands.signals.put(signal::ROWS, 0);
            operands.signals.put(signal::COLUMNS, 0);
            operands.signals.put(signal::ADDS, 0);
            operands.latest = Latest::default();
            return Ok(());
        };
        let (matmul, input, pass) = (&stream.matmul, &stream.input, stream.pass);
        let (activation_high, weight_high) = halves(input, pass);
        let is_first_pass = pass == 0;
        let is_last_pass = pass + 1 == passes(input);
        let has_initial = self.tap.k == 0 && !self.initial.is_empty();
        let ends = is_last_pass && matmul.last == 1 && stream.step + 1 == matmul.n_steps;
        let (n_rows, n_columns) = (matmul.rows_minus_1 + 1, matmul.cols_minus_1 + 1);
        let all = |is: bool| if is { -1 } else { 0 };
        let marks = [
            (activation_high, mark::ACTIVATION_HIGH),
            (weight_high, mark::WEIGHT_HIGH),
            (has_initial, mark::INITIAL),
            (ends, mark::ENDS),
        ];
        let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| mark);
        let mut signals = [0; signal::COUNT];
        signals[signal::ROWS] = n_rows as i32;
        signals[signal::COLUMNS] = n_columns as i32;
        signals[signal::KEEPS] = all(!is_first_pass);
        signals[signal::ADDS] = all(is_last_pass);
        signals[signal::BEGINS] = all(is_last_pass && has_initial);
        signals[signal::K] = self.tap.k as i32;
        signals[signal::MARKS] = marks.sum();
        operands.signals.put_all(signals);
        operands
            .latest
            .note(stream.shape(), has_initial, is_last_pass);
        if ends {
            self.ends.push_back((0, *matmul));
        }
        if has_initial {
            operands.initial.put_from(0, self.initial.iter().copied());
        }

        let (ports, tap) = (&mut self.ports, &self.tap);
        let n_reads = *self.n_reads.get_or_insert_with(|| {
            for port in ports.iter_mut() {
                port.set(input, &stream.kernel, tap);
            }
            ports.iter().map(ActivationPort::n_reads).sum()
        });
        memories.count_nibbles(Memory::Activation, n_reads);
        let half = Half::new(input, self.tap.channel, activation_high);
        let mut fault = None;
        operands.activations.put_all(ports.iter().map(|port| {
            let nibble = half.under(port, memories);
            nibble.unwrap_or_else(|kind| {
                fault.get_or_insert(kind);
                0
            })
        }));
        if let Some(kind) = fault {
            return Err(kind);
        }
        let is_wide = input.wide_weights == 1;
        let line = u64::from(matmul.weight_line)
            + u64::from(stream.step) * u64::from(1 + input.wide_weights)
            + u64::from(weight_high);
        let address = line * u64::from(config.line_bytes());
        let is_top = weight_high || !is_wide;
        let bytes = memories.weights(address, u64::from(n_columns).div_ceil(2))?;
        memories.count_nibbles(Memory::Weight, n_columns.into());
        let halves = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
        let weighed = halves.map(|bits| weighed(bits, weight_high, is_top));
        operands
            .weights
            .put_from(0, weighed.take(n_columns as usize));
        Ok(())
    }

    /// The counters of pass, step and tap, channel fastest.
    pub(super) fn advance(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        stream.pass += 1;
        if stream.pass < passes(&stream.input) {
            return;
        }
        stream.pass = 0;
        stream.step += 1;
        self.tap.advance(&stream.input, &stream.kernel);
        if self.tap.channel == 0 {
            // Along a pixel's channels the ports stay.
            self.n_reads = None;
        }
        if stream.step == stream.matmul.n_steps {
            self.stream = None;
        }
    }
}
