//! The output-stationary array, register by register: skew registers, the grid of PEs, the drain of each
//! column.
//!
//! Invariant: all operands of a pass are read in one cycle; the skew registers delay row `r` by `r`
//! and column `c` by `c`.

mod pe;
mod sequencer;
mod unwatched;

use super::{halves, passes};
use crate::stepped::{
    Wires,
    line::{Lines, Rows},
    memory::{Memories, Write},
    pe::{Drain, FoldEnd, Nibble, Pe, WeightSlot},
    sums::{LANES, Sums},
};
use crate::{Action, Config, Counts, FaultKind};
use isa::{Matmul, Op};
use pe::{Operands, signal};
use sequencer::{Pass, Sequencer};
use std::collections::VecDeque;
pub(crate) use unwatched::Unwatched;

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

/// Registers of the array.
#[derive(Debug)]
pub(crate) struct OutputStationary {
    pub sequencer: Sequencer,
    /// What it reads in this cycle.
    pass: Pass,
    /// Skew registers and those of the PEs.
    pub operands: Operands,
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
    pub fn new(config: &Config) -> Self {
        let (rows, cols) = (config.rows as usize, config.cols as usize);
        let width = cols.next_multiple_of(LANES);
        Self {
            sequencer: Sequencer::default(),
            pass: Pass::default(),
            operands: Operands {
                signals: Lines::new(signal::COUNT, rows + width),
                activations: Lines::new(rows, rows + width),
                weights: Rows::new(rows, width),
                initial: Rows::new(rows, width),
            },
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

    /// One cycle.
    pub fn step(
        &mut self,
        start: Option<(usize, Op)>,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) {
        if let Some((index, op)) = start
            && let Err(kind) = self.sequencer.start(index, &op, config, memories, wires)
        {
            wires.fault(index, kind);
            return;
        }
        if self.sequencer.running.is_empty() {
            // Nothing is in any register.
            return;
        }
        // The drain first and then the grid from its far corner: so each register is read before it
        // is written, as on a clock edge.
        self.drain(config, wires);
        self.compute(config);
        self.shift_operands();
        if let Err(kind) = self.feed(config, memories) {
            let stream = self.sequencer.stream;
            wires.fault(stream.map_or(0, |stream| stream.index), kind);
        }
        self.sequencer.advance();
        wires.ended.extend(self.sequencer.ending(1));
        self.sequencer.count_down(1);
    }

    /// The bottom value of every draining column goes to its block; those above move down. Rows that
    /// the drained ones have left free do not move: the next fold's sums may already stand there.
    fn drain(&mut self, config: &Config, wires: &mut Wires) {
        if self.drains.iter().all(Option::is_none) {
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
        let (n_rows, n_columns) = (config.rows as usize, config.cols as usize);
        let done = pe::step(
            &mut self.accumulators,
            &mut self.products,
            &self.operands,
            config.arithmetic.accumulator,
        );
        self.counts[Action::Multiply] += done.n_multiplied;
        self.counts[Action::Accumulate] += done.n_accumulated;
        for &(age, matmul) in &self.ends {
            let first = (age + 1).saturating_sub(n_columns);
            for row in first..=age.min(n_rows - 1) {
                let column = age - row;
                let place = row * self.shadows.n_groups + column / LANES;
                let mut is_it = [0; LANES];
                is_it[column % LANES] = -1;
                self.shadows
                    .take(place, (&self.accumulators, place), &is_it);
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
        let Some(stream) = &self.sequencer.stream else {
            operands.signals.put(signal::ROWS, 0);
            operands.signals.put(signal::COLUMNS, 0);
            operands.signals.put(signal::ADDS, 0);
            return Ok(());
        };
        let (matmul, input, pass) = (&stream.matmul, &stream.input, stream.pass);
        let (activation_high, weight_high) = halves(input, pass);
        let is_last_pass = pass + 1 == passes(input);
        let has_initial = self.sequencer.has_initial();
        let ends = is_last_pass && stream.ends_fold();
        let all = |is: bool| if is { -1 } else { 0 };
        let marks = [
            (activation_high, mark::ACTIVATION_HIGH),
            (weight_high, mark::WEIGHT_HIGH),
            (has_initial, mark::INITIAL),
            (ends, mark::ENDS),
        ];
        let marks = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| mark);
        let mut signals = [0; signal::COUNT];
        signals[signal::ROWS] = matmul.rows_minus_1 as i32 + 1;
        signals[signal::COLUMNS] = matmul.cols_minus_1 as i32 + 1;
        signals[signal::KEEPS] = all(pass > 0);
        signals[signal::ADDS] = all(is_last_pass);
        signals[signal::BEGINS] = all(is_last_pass && has_initial);
        signals[signal::K] = self.sequencer.tap.k as i32;
        signals[signal::MARKS] = marks.sum();
        operands.signals.put_all(signals);
        if ends {
            self.ends.push_back((0, *matmul));
        }
        if has_initial {
            let initial = self.sequencer.initial.iter().copied();
            operands.initial.put_all(initial);
        }
        self.sequencer.read(config, memories, &mut self.pass)?;
        let Pass {
            activations,
            weights,
        } = &self.pass;
        operands.activations.put_all(activations.iter().copied());
        operands.weights.put_all(weights.iter().copied());
        Ok(())
    }
}
