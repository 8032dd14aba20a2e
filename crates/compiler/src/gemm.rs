//! A matrix product on the array alone: its folds one after the other, operands in place, nothing
//! else at work. For comparison with published formulas of systolic arrays.
//!
//! Invariant: the program is one that the machine takes, and its time is the event model's; no
//! formula stands in here but the corrections of [`ArrayTime::scale_sim_v3`].

use crate::Error;
use accelerator::{Config, Dataflow, event};
use isa::{Input, Instruction, Kernel, Matmul, Op, Preload, Program, Stream};

/// Output pixels of a row: any number, for pixels wrap into the next row.
const OUTPUT_WIDTH: u64 = 4096;

/// `m` output pixels, `n` output channels, a reduction of `k` steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Output pixels.
    pub m: u64,
    /// Output channels.
    pub n: u64,
    /// Steps of the reduction.
    pub k: u64,
}

/// How long the array takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayTime {
    /// Folds, each from its first operand to its last result.
    pub n_folds: u64,
    /// Cycles of all of them, one after the other.
    pub cycles: u64,
    /// What SCALE-Sim v3 leaves out of every fold.
    beyond_scale_sim: u64,
}

impl ArrayTime {
    /// What SCALE-Sim v3 reports for the same work. It has neither our scratchpad read cycle nor, on
    /// an output-stationary array, the `rows` cycles in which results leave through the columns, nor,
    /// on the others, the adder below the column; and it reports the index of the last cycle.
    pub const fn scale_sim_v3(self) -> u64 {
        self.cycles - self.n_folds * self.beyond_scale_sim - 1
    }
}

/// The array of a machine without limits of memory, whose folds do not overlap.
pub fn unlimited(mut config: Config, dataflow: Dataflow, rows: u32, cols: u32) -> Config {
    config.set_array(dataflow, rows, cols);
    config.name = format!("{rows}x{cols} {}, no memory limits", dataflow.name());
    config.shadow = false;
    config.activation_bytes = 1 << 24;
    config.weight_bytes = 1 << 24;
    config.n_parameters = 4096;
    config.queue_depth = 4096;
    if dataflow != Dataflow::OutputStationary {
        config.block_rows = 4096;
    }
    config
}

impl Gemm {
    /// The product's folds as a program for `config`, 4 × 4 bits.
    ///
    /// # Errors
    /// An extent of 0, or one that no instruction can hold.
    pub fn program(self, config: &Config) -> Result<Program, Error> {
        within("m", self.m, 4096 * OUTPUT_WIDTH)?;
        within("n", self.n, 1 << 24)?;
        within("k", self.k, 65_535)?;
        let (rows, cols) = (u64::from(config.rows), u64::from(config.cols));
        let mut ops = vec![
            // One pixel of the tile is there, the others are padding: time does not depend on data.
            Op::Input(Input {
                width: 1,
                height: 1,
                pixel_bytes: self.k.div_ceil(2) as u32,
                n_channels: self.k as u32,
                ..Input::default()
            }),
            Op::Kernel(Kernel {
                height: 1,
                width: 1,
                stride_y: 1,
                stride_x: 1,
                dilation_y: 1,
                dilation_x: 1,
                output_width: OUTPUT_WIDTH as u32,
                ..Kernel::default()
            }),
        ];
        match config.dataflow {
            Dataflow::OutputStationary => {
                for (channel, pixel) in pairs(chunks(self.n, cols), chunks(self.m, rows)) {
                    ops.push(self.matmul(pixel, channel));
                }
            }
            Dataflow::WeightStationary => {
                for (channel, steps) in pairs(chunks(self.n, cols), chunks(self.k, rows)) {
                    ops.push(preload(steps, (0, channel.1)));
                    let streams = chunks(self.m, config.block_rows.into());
                    ops.extend(streams.map(|pixels| self.stream(pixels, channel.1, steps, true)));
                }
            }
            Dataflow::InputStationary => {
                for (pixel, steps) in pairs(chunks(self.m, cols), chunks(self.k, rows)) {
                    ops.push(preload(steps, pixel));
                    let streams = chunks(self.n, config.block_rows.into());
                    ops.extend(
                        streams.map(|channels| self.stream(channels, pixel.1, steps, false)),
                    );
                }
            }
        }
        Ok(Program {
            machine: config.fingerprint(),
            n_channels: 4096,
            layer_of: vec![0; ops.len()],
            layers: vec![isa::LayerInfo {
                name: "gemm".to_owned(),
                n_macs: self.m * self.n * self.k,
                first_channel: 0,
                n_channels: 4096,
            }],
            instructions: ops.into_iter().map(Instruction::new).collect(),
            ..Program::default()
        })
    }

    /// How long the array of a machine takes that [`unlimited`] has made.
    ///
    /// # Errors
    /// As [`Gemm::program`].
    pub fn time(self, config: &Config) -> Result<ArrayTime, Error> {
        let program = self.program(config)?;
        let timing = event::time(&program, config).map_err(|source| Error::Fault {
            layer: "gemm".to_owned(),
            source,
        })?;
        let is_fold =
            |instruction: &&Instruction| matches!(instruction.op, Op::Matmul(_) | Op::Preload(_));
        // `input` and `kernel` come first, and set the array up.
        let began = timing.start.get(2).copied().unwrap_or(0);
        Ok(ArrayTime {
            n_folds: program.instructions.iter().filter(is_fold).count() as u64,
            cycles: timing.total.0 - began,
            beyond_scale_sim: match config.dataflow {
                Dataflow::OutputStationary => 1 + u64::from(config.rows),
                Dataflow::WeightStationary | Dataflow::InputStationary => 2,
            },
        })
    }

    fn matmul(self, (pixel, rows): (u64, u64), (_, cols): (u64, u64)) -> Op {
        Op::Matmul(Matmul {
            y: (pixel / OUTPUT_WIDTH) as u32,
            x: (pixel % OUTPUT_WIDTH) as u32,
            rows_minus_1: rows as u32 - 1,
            cols_minus_1: cols as u32 - 1,
            n_steps: self.k as u32,
            first: 1,
            last: 1,
            ..Matmul::default()
        })
    }

    fn stream(self, (first, n): (u64, u64), cols: u64, steps: (u64, u64), of_pixels: bool) -> Op {
        let pixel = if of_pixels { first } else { 0 };
        Op::Stream(Stream {
            y: (pixel / OUTPUT_WIDTH) as u32,
            x: (pixel % OUTPUT_WIDTH) as u32,
            n_minus_1: n as u32 - 1,
            cols_minus_1: cols as u32 - 1,
            accumulate: u32::from(steps.0 > 0),
            last: u32::from(steps.0 + steps.1 == self.k),
            ..Stream::default()
        })
    }
}

fn preload((first, n): (u64, u64), (pixel, cols): (u64, u64)) -> Op {
    Op::Preload(Preload {
        y: (pixel / OUTPUT_WIDTH) as u32,
        x: (pixel % OUTPUT_WIDTH) as u32,
        rows_minus_1: n as u32 - 1,
        cols_minus_1: cols as u32 - 1,
        first: u32::from(first == 0),
        ..Preload::default()
    })
}

fn within(what: &'static str, value: u64, max: u64) -> Result<(), Error> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::Limit {
        layer: "gemm".to_owned(),
        what,
        value: i64::try_from(value).unwrap_or(i64::MAX),
        min: 1,
        max: max as i64,
    })
}

/// `0..extent` in parts of `size`: (first, length).
fn chunks(extent: u64, size: u64) -> impl Iterator<Item = (u64, u64)> + Clone {
    (0..extent.div_ceil(size)).map(move |i| (i * size, size.min(extent - i * size)))
}

fn pairs<A: Copy, B>(
    outer: impl Iterator<Item = A>,
    inner: impl Iterator<Item = B> + Clone,
) -> impl Iterator<Item = (A, B)> {
    outer.flat_map(move |a| inner.clone().map(move |b| (a, b)))
}

#[cfg(test)]
mod tests {
    use super::{Gemm, unlimited};
    use accelerator::{Config, Dataflow, stepped};
    use proptest::prelude::*;

    const DATAFLOWS: [Dataflow; 3] = [
        Dataflow::OutputStationary,
        Dataflow::WeightStationary,
        Dataflow::InputStationary,
    ];

    fn machine(dataflow: Dataflow, rows: u64, cols: u64) -> Config {
        let edge = include_str!("../../../configs/edge-16x16.toml");
        let config = Config::from_toml(edge).expect("the preset");
        unlimited(config, dataflow, rows as u32, cols as u32)
    }

    /// SCALE-Sim v3's own formulas, written down apart from our machine's rules.
    fn scale_sim(gemm: Gemm, dataflow: Dataflow, r: u64, c: u64) -> u64 {
        let Gemm { m, n, k } = gemm;
        match dataflow {
            Dataflow::OutputStationary => m.div_ceil(r) * n.div_ceil(c) * (k + r + c - 2) - 1,
            Dataflow::WeightStationary => k.div_ceil(r) * n.div_ceil(c) * (m + 2 * r + c - 2) - 1,
            Dataflow::InputStationary => k.div_ceil(r) * m.div_ceil(c) * (n + 2 * r + c - 2) - 1,
        }
    }

    #[test]
    fn extents_that_no_instruction_holds_are_refused() {
        let config = machine(Dataflow::OutputStationary, 4, 4);
        let gemm = Gemm {
            m: 1,
            n: 1,
            k: 65_536,
        };
        let error = gemm.program(&config).expect_err("too long");
        assert_eq!(
            error.to_string(),
            "layer gemm: k is 65536, the machine takes 1 to 65535"
        );
        assert!(Gemm { m: 0, n: 1, k: 1 }.program(&config).is_err());
    }

    #[test]
    fn long_streams_go_on_without_a_gap() {
        for dataflow in DATAFLOWS {
            let gemm = Gemm {
                m: 12_544,
                n: 4097,
                k: 40,
            };
            let time = gemm.time(&machine(dataflow, 32, 32)).expect("it runs");
            assert_eq!(
                time.scale_sim_v3(),
                scale_sim(gemm, dataflow, 32, 32),
                "{dataflow:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn array_cycles_are_the_published_ones_after_the_corrections(
            which in 0_usize..3, r in 1_u64..9, c in 1_u64..9,
            m in 1_u64..40, n in 1_u64..40, k in 1_u64..40,
        ) {
            let (gemm, dataflow) = (Gemm { m, n, k }, DATAFLOWS[which]);
            let config = machine(dataflow, r, c);
            let time = gemm.time(&config).expect("it runs");
            prop_assert_eq!(time.scale_sim_v3(), scale_sim(gemm, dataflow, r, c));
            let program = gemm.program(&config).expect("it fits");
            let slow = stepped::run(&program, &config, &mut []).expect("it runs");
            prop_assert_eq!(slow.timing.total.0 - slow.timing.start[2], time.cycles);
        }
    }
}
