//! The rules of `preload` and `stream`: what a weight-stationary or input-stationary array accepts.
//!
//! Invariant: a stream finds the steps of exactly one preload, and reads them the way they were
//! loaded.

use super::{Registers, Work, below, inside, operand, parameters, set};
use crate::{Config, Dataflow, FaultKind};
use isa::{Input, Kernel, Preload, Program, Stream};

const NEEDS_STATIONARY: FaultKind = FaultKind::NotOnThisMachine {
    needs: "array.dataflow = \"weight-stationary\" or \"input-stationary\"",
};

/// The steps that the PEs hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub preload: Preload,
    /// Registers at the preload.
    pub input: Input,
    pub kernel: Kernel,
    /// First step.
    pub k: u32,
    /// No stream has taken them yet.
    pub is_fresh: bool,
}

impl Held {
    /// Steps in use.
    pub fn n_steps(&self) -> u32 {
        self.preload.rows_minus_1 + 1
    }

    /// What tells step `k` its tap and channel, and how operands are read.
    fn shape(input: &Input, kernel: &Kernel) -> [u32; 6] {
        [
            input.n_channels,
            input.wide_activations,
            input.signed_activations,
            input.wide_weights,
            kernel.height,
            kernel.width,
        ]
    }

    fn check_shape(&self, input: &Input, kernel: &Kernel) -> Result<(), FaultKind> {
        if Self::shape(&self.input, &self.kernel) == Self::shape(input, kernel) {
            return Ok(());
        }
        let rule = "channels, widths, signs and kernel must stay during a reduction";
        Err(FaultKind::Fold { rule })
    }
}

impl Registers {
    pub(super) fn preload(&mut self, preload: Preload, config: &Config) -> Result<Work, FaultKind> {
        let input = set("input", self.input.as_ref())?;
        let kernel = set("kernel", self.kernel.as_ref())?;
        let k = match &self.held {
            Some(held) if held.is_fresh => {
                let rule = "a preload needs a stream before the next";
                return Err(FaultKind::Fold { rule });
            }
            _ if preload.first == 1 => 0,
            Some(held) => {
                held.check_shape(input, kernel)?;
                held.k + held.n_steps()
            }
            None => {
                let rule = "it must begin with first = 1";
                return Err(FaultKind::Fold { rule });
            }
        };
        below("rows_minus_1", preload.rows_minus_1, config.rows)?;
        below("cols_minus_1", preload.cols_minus_1, config.cols)?;
        let held = Held {
            preload,
            input: *input,
            kernel: *kernel,
            k,
            is_fresh: true,
        };
        let window = u64::from(kernel.height * kernel.width) * u64::from(input.n_channels);
        if u64::from(k + held.n_steps()) > window {
            let rule = "more steps than kernel taps times channels";
            return Err(operand("rows_minus_1", preload.rows_minus_1, rule));
        }
        match config.dataflow {
            Dataflow::WeightStationary => {
                zero("y", preload.y)?;
                zero("x", preload.x)?;
                let lines = held.n_steps() * (1 + input.wide_weights);
                weight_lines(preload.weight_line, lines, config)?;
            }
            Dataflow::InputStationary => {
                zero("weight_line", preload.weight_line)?;
                below("x", preload.x, kernel.output_width)?;
            }
            Dataflow::OutputStationary => return Err(NEEDS_STATIONARY),
        }
        self.held = Some(held);
        Ok(Work::Preload { held })
    }

    pub(super) fn stream(
        &mut self,
        stream: Stream,
        program: &Program,
        config: &Config,
    ) -> Result<Work, FaultKind> {
        let input = set("input", self.input.as_ref())?;
        let kernel = set("kernel", self.kernel.as_ref())?;
        let Some(held) = self.held else {
            let rule = "a stream needs a preload";
            return Err(FaultKind::Fold { rule });
        };
        held.check_shape(input, kernel)?;
        if stream.cols_minus_1 != held.preload.cols_minus_1 {
            let rule = "must be as in the preload";
            return Err(operand("cols_minus_1", stream.cols_minus_1, rule));
        }
        below("block", stream.block, config.n_blocks)?;
        let n = stream.n_minus_1 + 1;
        inside(
            u64::from(stream.row + n),
            "the accumulator block (rows)",
            config.block_rows.into(),
        )?;
        // The other of rows and columns are output channels, each with parameters and a counter.
        let channels_minus_1 = match config.dataflow {
            Dataflow::WeightStationary => {
                zero("weight_line", stream.weight_line)?;
                below("x", stream.x, kernel.output_width)?;
                stream.cols_minus_1
            }
            Dataflow::InputStationary => {
                zero("y", stream.y)?;
                zero("x", stream.x)?;
                weight_lines(stream.weight_line, n * (1 + input.wide_weights), config)?;
                stream.n_minus_1
            }
            Dataflow::OutputStationary => return Err(NEEDS_STATIONARY),
        };
        parameters(stream.parameter, channels_minus_1, config)?;
        inside(
            u64::from(stream.channel + channels_minus_1) + 1,
            "the overflow counters",
            program.n_channels.into(),
        )?;
        self.held = Some(Held {
            is_fresh: false,
            ..held
        });
        Ok(Work::Stream {
            stream,
            input: *input,
            kernel: *kernel,
            held,
        })
    }
}

fn zero(field: &'static str, value: u32) -> Result<(), FaultKind> {
    if value == 0 {
        Ok(())
    } else {
        Err(operand(field, value, "must be 0 on this machine"))
    }
}

fn weight_lines(first: u32, n_lines: u32, config: &Config) -> Result<(), FaultKind> {
    inside(
        u64::from(first) + u64::from(n_lines),
        "the weight scratchpad (lines)",
        u64::from(config.weight_bytes / config.line_bytes()),
    )
}
