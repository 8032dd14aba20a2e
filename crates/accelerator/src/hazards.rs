//! Which bytes an instruction reads and writes, for race checks and for programs made at random.
//!
//! Invariant: a range covers every byte that the instruction can touch, perhaps more.

use crate::{
    Config, Dataflow,
    rules::{self, PARAMETER_BYTES, Work, weight_bytes},
};
use isa::{Destination, Input, Residual, Unit};
use std::ops::Range;

/// A memory of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Memory {
    Activations,
    Weights,
    Parameters,
    Blocks,
    Dram,
}

/// Bytes (rows of [`Memory::Blocks`]) that an instruction touches.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub memory: Memory,
    pub range: Range<u64>,
    pub writes: bool,
}

impl Access {
    fn new(memory: Memory, first: u32, length: u64, writes: bool) -> Self {
        let first = u64::from(first);
        Self {
            memory,
            range: first..first + length,
            writes,
        }
    }

    /// Whether the order of the two matters.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.memory == other.memory
            && (self.writes || other.writes)
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

/// What an instruction touches.
pub(crate) fn accesses(work: &Work, config: &Config) -> Vec<Access> {
    let rows = |pitch: u32, n_rows: u32, row_bytes: u32| {
        u64::from(n_rows - 1) * u64::from(pitch) + u64::from(row_bytes)
    };
    match work {
        Work::Setup => Vec::new(),
        Work::Load(load, pitch) => {
            let memory = match load.memory {
                0 => Memory::Activations,
                1 => Memory::Weights,
                _ => Memory::Parameters,
            };
            let chip = rows(pitch.chip, load.n_rows, load.row_bytes);
            let dram = rows(pitch.dram, load.n_rows, load.row_bytes);
            vec![
                Access::new(memory, load.chip_address, chip, true),
                Access::new(Memory::Dram, load.dram_address, dram, false),
            ]
        }
        Work::Store(store, pitch) => {
            let chip = rows(pitch.chip, store.n_rows, store.row_bytes);
            let dram = rows(pitch.dram, store.n_rows, store.row_bytes);
            vec![
                Access::new(Memory::Activations, store.chip_address, chip, false),
                Access::new(Memory::Dram, store.dram_address, dram, true),
            ]
        }
        Work::Matmul { matmul, input, .. } => {
            let lines = matmul.n_steps * (1 + input.wide_weights);
            let mut list = vec![tile(input), weight_lines(matmul.weight_line, lines, config)];
            if matmul.first == 1 {
                list.push(parameters(matmul.parameter, matmul.cols_minus_1));
            }
            if matmul.last == 1 {
                let n_rows = matmul.rows_minus_1 + 1;
                list.push(block_rows((matmul.block, 0), n_rows, config, true));
            }
            list
        }
        Work::Preload { held } => match config.dataflow {
            Dataflow::InputStationary => vec![tile(&held.input)],
            Dataflow::OutputStationary | Dataflow::WeightStationary => {
                let lines = held.n_steps() * (1 + held.input.wide_weights);
                vec![weight_lines(held.preload.weight_line, lines, config)]
            }
        },
        Work::Stream { stream, input, .. } => {
            let n = stream.n_minus_1 + 1;
            let (operands, channels_minus_1) = match config.dataflow {
                Dataflow::InputStationary => {
                    let lines = n * (1 + input.wide_weights);
                    let lines = weight_lines(stream.weight_line, lines, config);
                    (lines, stream.n_minus_1)
                }
                Dataflow::OutputStationary | Dataflow::WeightStationary => {
                    (tile(input), stream.cols_minus_1)
                }
            };
            let to = (stream.block, stream.row);
            let mut list = vec![operands, block_rows(to, n, config, true)];
            if stream.accumulate == 0 {
                list.push(parameters(stream.parameter, channels_minus_1));
            }
            list
        }
        Work::Requantize {
            requantize,
            to,
            residual,
            ..
        } => {
            let (n_pixels, n_channels) = rules::block_extents(requantize, config.dataflow);
            let from = (requantize.block, requantize.row);
            let mut list = vec![
                block_rows(from, requantize.rows_minus_1 + 1, config, false),
                parameters(requantize.parameter, n_channels - 1),
            ];
            results(
                &mut list,
                to,
                residual,
                (requantize.y, requantize.x),
                n_pixels,
            );
            list
        }
        Work::Pool {
            pool,
            source,
            to,
            residual,
            ..
        } => {
            let tile = u64::from(source.width * source.height) * u64::from(source.pixel_bytes);
            let mut list = vec![Access::new(
                Memory::Activations,
                source.address,
                tile,
                false,
            )];
            results(&mut list, to, residual, (pool.y, pool.x), pool.n_pixels);
            list
        }
        Work::Depthwise {
            depthwise: d,
            filter,
            source,
            window,
            to,
            residual,
            ..
        } => {
            let tile = u64::from(source.width * source.height) * u64::from(source.pixel_bytes);
            let weights = weight_bytes(d, filter, window);
            let mut list = vec![
                Access::new(Memory::Activations, source.address, tile, false),
                Access::new(Memory::Weights, filter.weight_address, weights, false),
                parameters(filter.parameter, d.n_channels - 1),
            ];
            results(&mut list, to, residual, (d.y, d.x), d.n_pixels);
            list
        }
    }
}

fn tile(input: &Input) -> Access {
    let bytes = u64::from(input.width * input.height) * u64::from(input.pixel_bytes);
    Access::new(Memory::Activations, input.address, bytes, false)
}

fn weight_lines(first: u32, n_lines: u32, config: &Config) -> Access {
    let line = config.line_bytes();
    let bytes = u64::from(n_lines) * u64::from(line);
    Access::new(Memory::Weights, first * line, bytes, false)
}

fn block_rows((block, row): (u32, u32), n_rows: u32, config: &Config, writes: bool) -> Access {
    let first = block * config.block_rows + row;
    Access::new(Memory::Blocks, first, n_rows.into(), writes)
}

fn parameters(first: u32, cols_minus_1: u32) -> Access {
    let length = u64::from((cols_minus_1 + 1) * PARAMETER_BYTES);
    Access::new(Memory::Parameters, first * PARAMETER_BYTES, length, false)
}

fn results(
    list: &mut Vec<Access>,
    to: &Destination,
    residual: &Residual,
    (y, x): (u32, u32),
    n_pixels: u32,
) {
    let first = to.address + (y * to.width + x) * to.pixel_bytes;
    let length = u64::from(n_pixels) * u64::from(to.pixel_bytes);
    list.push(Access::new(Memory::Activations, first, length, true));
    if residual.n_channels > 0 {
        let last_y = (y + (x + n_pixels - 1) / to.width) * residual.stride_y;
        let last_x = u64::from(to.width - 1) * u64::from(residual.stride_x);
        let pixels = u64::from(last_y) * u64::from(residual.width) + last_x + 1;
        let length = pixels * u64::from(residual.pixel_bytes);
        list.push(Access::new(
            Memory::Activations,
            residual.address,
            length,
            false,
        ));
    }
}

/// Two instructions whose order nothing guarantees.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instructions {first} and {second} touch the same {memory} in overlapping cycles")]
pub struct Race {
    /// The one that starts first.
    pub first: usize,
    /// The one that starts before the first ends.
    pub second: usize,
    /// Where.
    pub memory: String,
}

/// Looks for conflicting accesses of different units whose cycles overlap in this run.
///
/// # Errors
/// The first such pair.
pub fn check_races(
    program: &isa::Program,
    config: &Config,
    timing: &crate::Timing,
) -> Result<(), Race> {
    let Ok(works) = crate::rules::resolve(program, config) else {
        return Ok(());
    };
    let mut order: Vec<usize> = (0..works.len()).collect();
    order.sort_by_key(|&index| timing.start[index]);
    let mut running: Vec<(usize, Vec<Access>)> = Vec::new();
    for second in order {
        let now = timing.start[second];
        running.retain(|&(first, _)| timing.end[first] > now);
        let mine = accesses(&works[second], config);
        let unit = program.instructions[second].op.unit();
        if mine
            .iter()
            .any(|a| mine.iter().any(|b| a.conflicts(b) && late(unit, a, b)))
        {
            return Err(Race {
                first: second,
                second,
                memory: "activations".to_owned(),
            });
        }
        for (first, theirs) in &running {
            let other = program.instructions[*first].op.unit();
            let clash = theirs.iter().find(|a| {
                mine.iter()
                    .any(|b| a.conflicts(b) && (unit != other || late(unit, a, b)))
            });
            if let Some(access) = clash {
                let memory = format!("{:?}", access.memory).to_lowercase();
                return Err(Race {
                    first: *first,
                    second,
                    memory,
                });
            }
        }
        running.push((second, mine));
    }
    Ok(())
}

/// Within a unit effects happen in order, except that the post unit reads four cycles before it
/// writes.
pub(crate) fn late(unit: Unit, earlier: &Access, later: &Access) -> bool {
    unit == Unit::Post && earlier.writes && !later.writes
}
