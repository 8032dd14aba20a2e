//! The output-stationary array: address generators, skew registers, the grid of PEs, the drain of
//! each column.
//!
//! Invariant: all operands of a pass are read in one cycle; the skew registers delay row `r` by `r`
//! and column `c` by `c`.

use super::{Tap, halves, initial_value, passes, read_activation, set};
use crate::stepped::{
    Wires,
    memory::{Memories, Memory, Write},
    pe::{Drain, FoldEnd, Nibble, Pe, WeightSlot},
};
use crate::{Config, Counts, FaultKind};
use arith::AccumulatorFormat;
use isa::{Input, Kernel, Matmul, Op};
use std::collections::VecDeque;

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
    /// Delay of each row's activations: row `r` has `r` registers.
    pub row_skew: Vec<VecDeque<Option<Nibble>>>,
    /// Delay of each column's weights: column `c` has `c` registers.
    pub column_skew: Vec<VecDeque<Option<WeightSlot>>>,
    /// `pes[row][column]`.
    pub pes: Vec<Vec<Pe>>,
    /// One counter a column.
    pub drains: Vec<Option<Drain>>,
    /// What the PEs have done, for energy.
    pub counts: Counts,
}

impl OutputStationary {
    pub fn new(config: &Config) -> Self {
        let (rows, cols) = (config.rows as usize, config.cols as usize);
        Self {
            input: None,
            kernel: None,
            stream: None,
            tap: Tap::default(),
            initial: Vec::new(),
            drain_gap: 0,
            running: VecDeque::new(),
            row_skew: (0..rows).map(|row| vec![None; row].into()).collect(),
            column_skew: (0..cols).map(|column| vec![None; column].into()).collect(),
            pes: vec![vec![Pe::default(); cols]; rows],
            drains: vec![None; cols],
            counts: Counts::default(),
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
        for column in 0..self.drains.len() {
            self.drain(column, config, wires);
        }
        self.compute(config.arithmetic.accumulator);
        self.shift_operands();
        self.feed(config, memories, wires);
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

    /// The bottom value of a column's chain goes to its block; those above move down.
    fn drain(&mut self, column: usize, config: &Config, wires: &mut Wires) {
        let Some(drain) = self.drains[column] else {
            return;
        };
        let n_rows = self.pes.len();
        let shadow = config.shadow;
        let n_drained = drain.n_drained as usize;
        let row = n_rows - 1 - n_drained;
        let bottom = &self.pes[n_rows - 1][column];
        let value = if shadow {
            bottom.shadow
        } else {
            bottom.accumulator
        };
        if drain.to.is_used && row < drain.to.rows as usize {
            let block = drain.to.block as usize;
            wires.writes.push(Write::Block {
                block,
                row,
                column,
                value,
            });
            wires.overflow.push((drain.to.channel as usize, value.seen));
        }
        // Rows that the drained ones have left free do not move: the next fold's sums may already
        // stand there.
        for row in (n_drained + 1..n_rows).rev() {
            let above = self.pes[row - 1][column];
            let pe = &mut self.pes[row][column];
            if shadow {
                pe.shadow = above.shadow;
            } else {
                pe.accumulator = above.accumulator;
            }
        }
        let n_drained = drain.n_drained + 1;
        let is_over = n_drained as usize == n_rows;
        self.drains[column] = (!is_over).then_some(Drain { n_drained, ..drain });
    }

    fn compute(&mut self, format: AccumulatorFormat) {
        for pe in self.pes.iter_mut().flatten() {
            pe.step(format, &mut self.counts);
        }
        // A fold's last pass in the bottom row lets the drain begin in the next cycle.
        let Some(bottom) = self.pes.last() else {
            return;
        };
        for (drain, pe) in self.drains.iter_mut().zip(bottom) {
            if let Some(to) = pe.weight.and_then(|slot| slot.fold_end) {
                *drain = Some(Drain { n_drained: 0, to });
            }
        }
    }

    /// Operands inside the grid move one PE on; the edge is filled by [`Self::feed`].
    fn shift_operands(&mut self) {
        for row in (0..self.pes.len()).rev() {
            for column in (0..self.drains.len()).rev() {
                if column > 0 {
                    self.pes[row][column].activation = self.pes[row][column - 1].activation;
                }
                if row > 0 {
                    self.pes[row][column].weight = self.pes[row - 1][column].weight;
                }
            }
        }
    }

    /// Reads this cycle's operands into the skew registers, whose other ends feed the grid's edge.
    fn feed(&mut self, config: &Config, memories: &Memories<'_>, wires: &mut Wires) {
        for row in 0..self.pes.len() {
            let nibble = self.checked(wires, |array| array.read_activation(row, memories));
            self.row_skew[row].push_back(nibble);
            self.pes[row][0].activation = self.row_skew[row].pop_front().flatten();
        }
        for column in 0..self.drains.len() {
            let slot = self.checked(wires, |array| array.read_weight(column, config, memories));
            self.column_skew[column].push_back(slot);
            self.pes[0][column].weight = self.column_skew[column].pop_front().flatten();
        }
        self.advance();
    }

    fn checked<T>(
        &self,
        wires: &mut Wires,
        read: impl FnOnce(&Self) -> Result<Option<T>, FaultKind>,
    ) -> Option<T> {
        read(self).unwrap_or_else(|kind| {
            wires.fault(self.stream.map_or(0, |stream| stream.index), kind);
            None
        })
    }

    /// The read port of an array row.
    fn read_activation(
        &self,
        row: usize,
        memories: &Memories<'_>,
    ) -> Result<Option<Nibble>, FaultKind> {
        let Some(stream) = self.stream else {
            return Ok(None);
        };
        let Stream { matmul, pass, .. } = stream;
        if row > matmul.rows_minus_1 as usize {
            return Ok(None);
        }
        let (high, _) = halves(&stream.input, pass);
        let pixel = (matmul.y, u64::from(matmul.x) + row as u64);
        read_activation(
            &stream.input,
            &stream.kernel,
            pixel,
            &self.tap,
            high,
            memories,
        )
        .map(Some)
    }

    /// The weight of a column, with what the column's PEs are to do with it.
    fn read_weight(
        &self,
        column: usize,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<Option<WeightSlot>, FaultKind> {
        let Some(Stream {
            matmul,
            input,
            step,
            pass,
            ..
        }) = self.stream
        else {
            return Ok(None);
        };
        let is_used = column <= matmul.cols_minus_1 as usize;
        let is_wide = input.wide_weights == 1;
        let (_, high) = halves(&input, pass);
        let line = u64::from(matmul.weight_line)
            + u64::from(step) * u64::from(1 + input.wide_weights)
            + u64::from(high);
        let nibble = if is_used {
            let address = line * u64::from(config.line_bytes()) + column as u64 / 2;
            let bits = memories.nibble(Memory::Weight, address, column % 2 == 1)?;
            Some(Nibble::new(bits, high, high || !is_wide))
        } else {
            None
        };
        let is_last_pass = pass + 1 == passes(&input);
        let ends = is_last_pass && matmul.last == 1 && step + 1 == matmul.n_steps;
        Ok(Some(WeightSlot {
            nibble,
            k: self.tap.k,
            is_first_pass: pass == 0,
            is_last_pass,
            initial: if self.tap.k == 0 {
                self.initial.get(column).copied()
            } else {
                None
            },
            fold_end: ends.then_some(FoldEnd {
                block: matmul.block,
                rows: matmul.rows_minus_1 + 1,
                is_used,
                channel: matmul.channel + column as u32,
            }),
        }))
    }

    /// The counters of pass, step and tap, channel fastest.
    fn advance(&mut self) {
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
        if stream.step == stream.matmul.n_steps {
            self.stream = None;
        }
    }
}
