//! The array's sequencer, and what leaves the columns for the accumulator blocks.
//!
//! Invariant: as in [`super`].

use super::{Probe, View, control::of};
use crate::Dataflow;
use crate::stepped::{
    array::{Array, OutputStationary, Stationary, Sum, Tap, mark, passes, planes},
    sequencer::Task,
};
use isa::{Op, Unit};

/// Of an array that is there only where nobody looks.
pub(super) const UNWATCHED: &str = "a run that is watched has every register";

/// The pass whose operands are read in a cycle.
struct Reading {
    index: usize,
    /// Step of a matmul, element of a stream.
    step: u32,
    n_steps: u32,
    pass: u32,
    n_passes: u32,
    /// Pixel of row 0, or of the element.
    pixel: (u32, u32),
}

/// The line that a preload reads in a cycle.
struct Line {
    number: u32,
    plane: u32,
    n_planes: u32,
    is_used: bool,
}

/// What a column gives to its block.
struct Landing {
    block: u32,
    row: u32,
    value: i32,
}

impl View<'_> {
    pub(super) fn array(&self, probe: &mut impl Probe) {
        probe.within(format_args!("u_array"), |probe| {
            probe.within(format_args!("u_sequencer"), |probe| {
                match &self.state.array {
                    Array::Sums(array) => self.matmuls(array, probe),
                    Array::UnwatchedSums(_) | Array::UnwatchedOperands(_) => {
                        unreachable!("{UNWATCHED}")
                    }
                    Array::Operands(array) => self.streams(array, probe),
                }
            });
            probe.within(format_args!("u_grid"), |probe| self.grid(probe));
        });
    }

    fn matmuls(&self, array: &OutputStationary, probe: &mut impl Probe) {
        let started = match (self.start(Unit::Array), &array.sequencer.input) {
            (Some((index, Op::Matmul(matmul))), Some(input)) => {
                Some((index, matmul, passes(input)))
            }
            _ => None,
        };
        let running = array.sequencer.stream.as_ref();
        let running = running.map(|s| (s.index, &s.matmul, s.step, s.pass, passes(&s.input)));
        let current = started
            .map(|(index, matmul, n_passes)| (index, matmul, 0, 0, n_passes))
            .or(running);
        let reading = current.map(|(index, matmul, step, pass, n_passes)| Reading {
            index,
            step,
            n_steps: matmul.n_steps,
            pass,
            n_passes,
            pixel: (matmul.y, matmul.x),
        });
        let begins = started.is_some_and(|(_, matmul, _)| matmul.first == 1);
        let tap = if begins {
            Tap::default()
        } else {
            array.sequencer.tap
        };
        let tap = current.map(|_| tap);
        show_reading(probe, reading.as_ref(), tap.as_ref());
        let left = running.map_or(0, |(_, matmul, step, pass, n_passes)| {
            u64::from(matmul.n_steps - step) * u64::from(n_passes) - u64::from(pass)
        });
        // Without shadow accumulators the next matmul waits for the drain too.
        let drains = array
            .sequencer
            .running
            .iter()
            .filter(|matmul| matmul.is_last);
        let drains = drains.map(|matmul| matmul.left).max().unwrap_or(0);
        let busy = if self.config.shadow {
            left
        } else {
            left.max(drains)
        };
        probe.put(format_args!("stream_busy"), 18, busy);
        probe.put(format_args!("drain_gap"), 18, array.sequencer.drain_gap);
    }

    fn streams(&self, array: &Stationary, probe: &mut impl Probe) {
        let started = match (self.start(Unit::Array), &array.input) {
            (Some((index, Op::Stream(stream))), Some(input)) => {
                Some((index, stream, passes(input)))
            }
            _ => None,
        };
        let running = array.streaming.as_ref();
        let running = running.map(|s| (s.index, &s.stream, s.element, s.pass, passes(&s.input)));
        let current = started
            .map(|(index, stream, n_passes)| (index, stream, 0, 0, n_passes))
            .or(running);
        let reading = current.map(|(index, stream, element, pass, n_passes)| Reading {
            index,
            step: element,
            n_steps: stream.n_minus_1 + 1,
            pass,
            n_passes,
            pixel: self.pixel(array, (stream.y, stream.x), element),
        });
        let line = self.line(array);
        let is_first = matches!(self.start(Unit::Array), Some((_, Op::Preload(p))) if p.first == 1);
        let tap = if is_first { Tap::default() } else { array.tap };
        // The second plane of a line is read after its tap was latched.
        let is_latched = |line: &Line| line.plane == 0 && line.is_used;
        let tap = line.as_ref().filter(|line| is_latched(line)).map(|_| tap);
        show_reading(probe, reading.as_ref(), tap.as_ref());
        let left = running.map_or(0, |(_, stream, element, pass, n_passes)| {
            (stream.n_minus_1 + 1 - element) * n_passes - pass
        });
        probe.put(format_args!("stream_busy"), 18, left);
        let loads = array.loading.as_ref().map_or(0, |loading| {
            let n_planes = planes(&loading.input, self.config);
            (self.config.rows - loading.row) * n_planes - loading.plane
        });
        probe.put(format_args!("preload_busy"), 18, loads);
        probe.put(format_args!("chain_full"), 1, array.is_fresh);
        let line = line.as_ref();
        probe.put(format_args!("load_go"), 1, line.is_some());
        probe.put(format_args!("line"), 9, of(line, |l| l.number));
        probe.put(format_args!("plane"), 1, of(line, |l| l.plane));
        probe.put(format_args!("line_in_use"), 1, of(line, |l| l.is_used));
    }

    /// The output pixel of a stream's element; of an input-stationary machine the stream has none.
    fn pixel(&self, array: &Stationary, (y, x): (u32, u32), element: u32) -> (u32, u32) {
        let width = array.kernel.map_or(1, |kernel| kernel.output_width.max(1));
        match self.config.dataflow {
            Dataflow::InputStationary => (y, x),
            Dataflow::WeightStationary | Dataflow::OutputStationary => {
                (y + (x + element) / width, (x + element) % width)
            }
        }
    }

    fn line(&self, array: &Stationary) -> Option<Line> {
        if let (Some((_, Op::Preload(_))), Some(input)) = (self.start(Unit::Array), &array.input) {
            return Some(Line {
                number: 0,
                plane: 0,
                n_planes: planes(input, self.config),
                is_used: true,
            });
        }
        let loading = array.loading.as_ref()?;
        Some(Line {
            number: loading.row,
            plane: loading.plane,
            n_planes: planes(&loading.input, self.config),
            is_used: loading.row <= loading.preload.rows_minus_1,
        })
    }

    /// The `matmul` or `stream` whose last cycle this is.
    pub(super) fn array_ends(&self) -> Option<usize> {
        match &self.state.array {
            Array::Sums(array) => {
                let mut running = array.sequencer.running.iter();
                running
                    .find(|matmul| matmul.left == 1)
                    .map(|matmul| matmul.index)
            }
            Array::UnwatchedSums(_) | Array::UnwatchedOperands(_) => unreachable!("{UNWATCHED}"),
            Array::Operands(array) => {
                let (rows, columns) = (self.config.rows, self.config.cols);
                let sum = array.sum_of(rows as usize, columns as usize - 1)?;
                sum.to.is_last.then_some(sum.to.index)
            }
        }
    }

    /// The `preload` whose last cycle this is.
    pub(super) fn preload_ends(&self) -> Option<usize> {
        let Array::Operands(array) = &self.state.array else {
            return None;
        };
        if self.config.cols > 1 {
            let marks = array.chain_marks.coming(self.config.cols as usize - 1);
            return array
                .preloads
                .front()
                .copied()
                .filter(|_| marks & mark::IS_LAST != 0);
        }
        // A single column takes the last line in the cycle in which it is read.
        let line = self.line(array)?;
        let is_last = line.number + 1 == self.config.rows && line.plane + 1 == line.n_planes;
        let started = self
            .start(Unit::Array)
            .filter(|(_, op)| matches!(op, Op::Preload(_)));
        let running = array.loading.as_ref().map(|loading| loading.index);
        started
            .map(|(index, _)| index)
            .or(running)
            .filter(|_| is_last)
    }

    /// The ports of the accumulator blocks.
    pub(super) fn blocks(&self, probe: &mut impl Probe) {
        let block_rows = self.config.block_rows;
        probe.within(format_args!("u_accumulators"), |probe| {
            let columns = 0..self.config.cols as usize;
            let landings: Vec<_> = columns.map(|column| self.landing(column)).collect();
            // Array by array, so that viewers can show an array of bits as one signal.
            for (column, landing) in landings.iter().enumerate() {
                probe.put(format_args!("write[{column}]"), 1, landing.is_some());
            }
            for (column, landing) in landings.iter().enumerate() {
                let row = of(landing.as_ref(), |l| l.block * block_rows + l.row);
                probe.put(format_args!("row[{column}]"), 16, row);
            }
            for (column, landing) in landings.iter().enumerate() {
                let value = of(landing.as_ref(), |l| l.value);
                probe.put(format_args!("data[{column}]"), 32, value);
            }
            let read = self.state.post.job.and_then(|job| match job.task {
                Task::Requantize(requantize) => {
                    Some(requantize.block * block_rows + requantize.row + job.pixel)
                }
                Task::Pool(..) | Task::Depthwise(..) => None,
            });
            probe.put(format_args!("read"), 1, read.is_some());
            probe.put(format_args!("read_row"), 16, read);
        });
    }

    /// What a column writes into a block in this cycle.
    fn landing(&self, column: usize) -> Option<Landing> {
        match &self.state.array {
            Array::Sums(array) => {
                let drain = array.drains[column]?;
                let bottom = array.pe(self.config.rows as usize - 1, column);
                let row = self.config.rows - 1 - drain.n_drained;
                let sum = if self.config.shadow {
                    bottom.shadow
                } else {
                    bottom.accumulator
                };
                (drain.to.is_used && row < drain.to.rows).then_some(Landing {
                    block: drain.to.block,
                    row,
                    value: sum.acc,
                })
            }
            Array::UnwatchedSums(_) | Array::UnwatchedOperands(_) => unreachable!("{UNWATCHED}"),
            Array::Operands(array) => {
                let sum = array.sum_of(self.config.rows as usize, column)?;
                self.joined(&sum, column)
            }
        }
    }

    /// A stationary column's sum with what its entry holds.
    fn joined(&self, sum: &Sum, column: usize) -> Option<Landing> {
        let to = Some(sum.to).filter(|_| sum.is_used)?;
        let format = self.config.arithmetic.accumulator;
        let value = if to.accumulate {
            let block = self.state.memories.blocks.get(to.block as usize)?;
            let entry = block.get(to.row as usize, column);
            entry.joined(&sum.value, to.last_k, format)
        } else {
            sum.value
        };
        Some(Landing {
            block: to.block,
            row: to.row,
            value: value.acc,
        })
    }
}

fn show_reading(probe: &mut impl Probe, reading: Option<&Reading>, tap: Option<&Tap>) {
    probe.put(format_args!("go"), 1, reading.is_some());
    probe.within(format_args!("running"), |probe| {
        probe.put(format_args!("index"), 32, of(reading, |r| r.index));
    });
    probe.put(format_args!("step"), 16, of(reading, |r| r.step));
    probe.put(format_args!("pass"), 2, of(reading, |r| r.pass));
    let last_pass = of(reading, |r| r.pass + 1 == r.n_passes);
    probe.put(format_args!("last_pass"), 1, last_pass);
    let last_step = of(reading, |r| r.step + 1 == r.n_steps);
    probe.put(format_args!("last_step"), 1, last_step);
    probe.put(format_args!("oy"), 14, of(reading, |r| r.pixel.0));
    probe.put(format_args!("ox"), 14, of(reading, |r| r.pixel.1));
    probe.put(format_args!("k"), 32, of(tap, |t| t.k));
    probe.put(format_args!("dy"), 8, of(tap, |t| t.kernel_y));
    probe.put(format_args!("dx"), 8, of(tap, |t| t.kernel_x));
    probe.put(format_args!("channel"), 16, of(tap, |t| t.channel));
}
