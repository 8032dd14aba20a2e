//! Draws of `preload` and `stream`, and of setups that keep a reduction going.

use super::{Builder, N_CHANNELS, Seed};
use crate::{Config, Dataflow};
use isa::{Input, Kernel, Op, Preload, Stream};

impl Builder<'_> {
    /// The array's next work: a preload where the PEs have been used, a stream, several of them.
    pub(super) fn stationary_op(&mut self) -> Op {
        let config = self.config;
        let seed = &mut *self.seed;
        let lines = config.weight_bytes / config.line_bytes();
        let (weights_stay, coordinates) = match config.dataflow {
            Dataflow::InputStationary => (false, [seed.pick(0, 3), seed.pick(0, 5)]),
            Dataflow::WeightStationary | Dataflow::OutputStationary => (true, [0, 0]),
        };
        let Some(held) = self.registers.held else {
            return preload(seed, config, weights_stay, lines, coordinates, 1);
        };
        if !held.is_fresh && seed.one_in(2) {
            let first = seed.pick(0, 2) / 2;
            return preload(seed, config, weights_stay, lines, coordinates, first);
        }
        // Entries are met again often, so that sums grow over several folds.
        let row = if seed.one_in(3) {
            seed.pick(0, config.block_rows - 1)
        } else {
            0
        };
        let n_max = (config.block_rows - row).min(9);
        let n_max = if weights_stay { n_max } else { n_max.min(6) };
        Op::Stream(Stream {
            y: if weights_stay { seed.pick(0, 3) } else { 0 },
            x: if weights_stay { seed.pick(0, 5) } else { 0 },
            n_minus_1: seed.pick(0, n_max - 1),
            cols_minus_1: held.preload.cols_minus_1,
            weight_line: if weights_stay { 0 } else { seed.pick(0, lines) },
            block: seed.pick(0, config.n_blocks - 1),
            row,
            parameter: seed.pick(0, config.n_parameters / 2),
            channel: seed.pick(0, N_CHANNELS / 2),
            accumulate: u32::from(!seed.one_in(3)),
            last: seed.pick(0, 1),
        })
    }

    /// A setup between a preload and its stream keeps what the steps mean.
    pub(super) fn keep_shape(&self, op: Op) -> Op {
        let Some(held) = self.registers.held.filter(|held| held.is_fresh) else {
            return op;
        };
        match op {
            Op::Input(input) => Op::Input(Input {
                n_channels: held.input.n_channels,
                wide_activations: held.input.wide_activations,
                signed_activations: held.input.signed_activations,
                wide_weights: held.input.wide_weights,
                ..input
            }),
            Op::Kernel(kernel) => Op::Kernel(Kernel {
                height: held.kernel.height,
                width: held.kernel.width,
                ..kernel
            }),
            other => other,
        }
    }
}

fn preload(
    seed: &mut Seed,
    config: &Config,
    weights_stay: bool,
    lines: u32,
    [y, x]: [u32; 2],
    first: u32,
) -> Op {
    Op::Preload(Preload {
        y,
        x,
        rows_minus_1: if seed.one_in(2) {
            config.rows - 1
        } else {
            seed.pick(0, config.rows - 1)
        },
        cols_minus_1: seed.pick(0, config.cols - 1),
        weight_line: if weights_stay { seed.pick(0, lines) } else { 0 },
        first,
    })
}
