//! Folds: what the array computes between two visits of the post unit.
//!
//! Invariant: the instructions of a fold follow each other in the array's queue, and each piece of
//! weights is loaded before the first of them that reads it.

use super::{Access, Accesses, Emitter, Memory, Slots, operands::OutputTile};
use crate::{
    job::Conv,
    weights::{WeightPlan, line_bytes, unit_bytes},
};
use accelerator::Dataflow;
use isa::{Input, Matmul, Preload, Requantize, Stream};

/// A block of outputs: pixels of one tile × channels of one column tile.
pub(super) struct Fold {
    /// First pixel, counted within the tile.
    pub pixel: u32,
    pub n_pixels: u32,
    /// Column tile.
    pub index: usize,
    pub channel: u32,
    pub n_channels: u32,
    /// Parameter table entry of the first channel.
    pub parameter: u32,
    /// No tap of the tile lies inside the input.
    pub all_padding: bool,
}

/// Steps of a fold, and where their weights lie.
#[derive(Clone, Copy)]
struct Steps {
    from: u32,
    n: u32,
    /// First byte in the weight scratchpad.
    address: u32,
    bytes: u32,
}

/// The input tile that array instructions read.
fn input_access(conv: &Conv, fold: &Fold, input: &Input) -> Option<Access> {
    let pixels = u64::from(input.width) * u64::from(input.height);
    let bytes = pixels * u64::from(conv.input.pixel_bytes);
    (!fold.all_padding).then(|| Access::new(Memory::Activation, false, input.address, bytes))
}

impl Emitter<'_> {
    /// One fold and its `requantize`.
    pub(super) fn fold(
        &mut self,
        conv: &Conv,
        plan: &WeightPlan,
        fold: &Fold,
        slots: &mut Slots,
        output: &OutputTile,
    ) {
        let block = self.next_block;
        self.next_block = (block + 1) % self.config.n_blocks;
        let unit_bytes = unit_bytes(conv, &plan.tiles[fold.index], self.config);
        for chunk in 0..plan.n_chunks() {
            let piece = plan.piece(conv, fold.index, chunk, self.config);
            let (address, missing) = slots.take(piece.index);
            if missing {
                let dram = u64::from(conv.weights) + piece.offset;
                let access = Access::new(Memory::Weight, true, address, piece.bytes.into());
                self.load_run(1, (dram, address), piece.bytes.into(), access);
            }
            let units = chunk * plan.chunk_units..plan.n_units.min((chunk + 1) * plan.chunk_units);
            let from = units.start * plan.unit_steps;
            let chunk = Steps {
                from,
                n: conv.n_steps().min(units.end * plan.unit_steps) - from,
                address: address + piece.inner,
                bytes: units.len() as u32 * unit_bytes,
            };
            match self.config.dataflow {
                Dataflow::OutputStationary => self.matmul(conv, fold, &chunk, block),
                Dataflow::WeightStationary | Dataflow::InputStationary => {
                    for unit in units.clone() {
                        let from = unit * plan.unit_steps;
                        let before = (unit - units.start) * unit_bytes;
                        let n = plan.unit_steps.min(conv.n_steps() - from);
                        let steps = Steps {
                            from,
                            n,
                            address: chunk.address + before,
                            bytes: match self.config.dataflow {
                                // The last unit may have fewer lines.
                                Dataflow::WeightStationary => n * line_bytes(conv, self.config),
                                _ => unit_bytes,
                            },
                        };
                        self.stationary(conv, fold, &steps, block);
                    }
                }
            }
        }
        self.requantize(fold, output, block);
    }

    fn requantize(&mut self, fold: &Fold, output: &OutputTile, block: u32) {
        let (y, x) = (fold.pixel / output.width(), fold.pixel % output.width());
        let (rows, cols) = match self.config.dataflow {
            Dataflow::OutputStationary | Dataflow::WeightStationary => {
                (fold.n_pixels, fold.n_channels)
            }
            Dataflow::InputStationary => (fold.n_channels, fold.n_pixels),
        };
        let requantize = Requantize {
            block,
            y,
            x,
            rows_minus_1: rows - 1,
            cols_minus_1: cols - 1,
            row: 0,
            parameter: fold.parameter,
            channel: fold.channel - output.channel,
            add_residual: output.second.is_some().into(),
            use_slope: self.job.slope.is_some().into(),
        };
        let mut accesses: Accesses = [
            Access::new(
                Memory::Block,
                false,
                block * self.config.block_rows,
                rows.into(),
            ),
            Access::new(
                Memory::Parameter,
                false,
                fold.parameter,
                fold.n_channels.into(),
            ),
            Access::new(Memory::Activation, true, output.address, output.len),
        ]
        .into_iter()
        .collect();
        accesses.extend(output.second);
        self.push(requantize, accesses);
    }

    /// First output pixel of a fold; where everything is padding it lies below the one row of input
    /// that is described.
    fn first_pixel(&self, fold: &Fold) -> (u32, u32) {
        let width = self
            .registers
            .kernel
            .map_or(1, |kernel| kernel.output_width);
        (
            fold.pixel / width + u32::from(fold.all_padding),
            fold.pixel % width,
        )
    }

    fn matmul(&mut self, conv: &Conv, fold: &Fold, steps: &Steps, block: u32) {
        let Some(input) = self.registers.input else {
            return;
        };
        let (y, x) = self.first_pixel(fold);
        let (first, last) = (steps.from == 0, steps.from + steps.n == conv.n_steps());
        let matmul = Matmul {
            y,
            x,
            rows_minus_1: fold.n_pixels - 1,
            cols_minus_1: fold.n_channels - 1,
            weight_line: steps.address / self.config.line_bytes(),
            block,
            n_steps: steps.n,
            first: first.into(),
            last: last.into(),
            parameter: fold.parameter,
            channel: conv.counter + fold.channel,
        };
        let weights = Access::new(Memory::Weight, false, steps.address, steps.bytes.into());
        let mut accesses: Accesses = [weights].into_iter().collect();
        accesses.extend(input_access(conv, fold, &input));
        if first {
            let n = fold.n_channels.into();
            accesses.push(Access::new(Memory::Parameter, false, fold.parameter, n));
        }
        if last {
            let first_row = block * self.config.block_rows;
            accesses.push(Access::new(
                Memory::Block,
                true,
                first_row,
                fold.n_pixels.into(),
            ));
        }
        self.push(matmul, accesses);
    }

    /// A `preload` of steps and the `stream` through them.
    fn stationary(&mut self, conv: &Conv, fold: &Fold, steps: &Steps, block: u32) {
        let Some(input) = self.registers.input else {
            return;
        };
        let weight_stationary = self.config.dataflow == Dataflow::WeightStationary;
        let (y, x) = self.first_pixel(fold);
        let (first, last) = (steps.from == 0, steps.from + steps.n == conv.n_steps());
        let weight_line = steps.address / self.config.line_bytes();
        let (n, cols) = if weight_stationary {
            (fold.n_pixels, fold.n_channels)
        } else {
            (fold.n_channels, fold.n_pixels)
        };
        let for_preload = |wanted: bool, value| if wanted { value } else { 0 };
        let preload = Preload {
            y: for_preload(!weight_stationary, y),
            x: for_preload(!weight_stationary, x),
            rows_minus_1: steps.n - 1,
            cols_minus_1: cols - 1,
            weight_line: for_preload(weight_stationary, weight_line),
            first: first.into(),
        };
        let stream = Stream {
            y: y - preload.y,
            x: x - preload.x,
            n_minus_1: n - 1,
            cols_minus_1: cols - 1,
            weight_line: weight_line - preload.weight_line,
            block,
            row: 0,
            parameter: fold.parameter,
            channel: conv.counter + fold.channel,
            accumulate: (!first).into(),
            last: last.into(),
        };
        let weights = Access::new(Memory::Weight, false, steps.address, steps.bytes.into());
        let activations = input_access(conv, fold, &input);
        let sums = Access::new(
            Memory::Block,
            true,
            block * self.config.block_rows,
            n.into(),
        );
        // A `preload` gives no token: what it reads is free when its `stream` has ended.
        let mut accesses: Accesses = [sums, weights].into_iter().collect();
        accesses.extend(activations);
        if first {
            let n = fold.n_channels.into();
            accesses.push(Access::new(Memory::Parameter, false, fold.parameter, n));
        }
        if weight_stationary {
            self.push(preload, [weights]);
        } else {
            self.push(preload, activations);
        }
        self.push(stream, accesses);
    }
}
