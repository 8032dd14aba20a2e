//! Machines and programs made from a seed: legal, free of races, and otherwise as odd as can be.
//! Tests compare the models on them.
//!
//! Invariant: a program waits for every earlier instruction of another unit that it conflicts with,
//! and keeps a fence where the post unit would read what it has just written.

mod stationary;

use crate::{
    Banks, Config, Dataflow, DepthwiseUnit, DramConfig,
    hazards::{Access, accesses, late},
    rules::{PARAMETER_BYTES, Registers, Work},
};
use arith::{AccumulatorFormat, Arithmetic, Overflow, ReductionOrder, Rounding, SplitMix64};
use isa::{
    Depthwise, Destination, Fence, Filter, Input, Instruction, Kernel, LayerInfo, Load, LoadPitch,
    Matmul, Op, Pool, Program, Requantize, Residual, Slope, Source, Store, StorePitch, Unit, Units,
    Window,
};

/// Draws for machines and programs.
#[derive(Clone, Debug)]
pub struct Seed(pub SplitMix64);

impl Seed {
    /// The draws of a seed.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64(seed))
    }

    /// A number in `min..=max`.
    pub fn pick(&mut self, min: u32, max: u32) -> u32 {
        self.0.between(min.into(), max.into()) as u32
    }

    fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.0.one_in(n.into())
    }
}

/// A small machine.
pub fn machine(seed: &mut Seed) -> Config {
    let bytes_per_cycle = 1 << seed.pick(0, 4);
    let rows = seed.pick(1, 6);
    let max_tokens = if seed.one_in(8) { seed.pick(1, 3) } else { 255 };
    let burst_bytes = bytes_per_cycle << seed.pick(0, 3);
    let banks = seed.one_in(2).then(|| banks(seed, burst_bytes));
    let mut config = Config {
        name: "random".to_owned(),
        clock_hz: 1,
        dataflow: Dataflow::OutputStationary,
        rows,
        cols: seed.pick(1, 6),
        shadow: seed.one_in(2),
        arithmetic: Arithmetic {
            accumulator: AccumulatorFormat {
                // Small sums overflow only narrow accumulators.
                width_bits: seed.pick(8, 32).min(seed.pick(8, 32)) as u8,
                overflow: if seed.one_in(2) {
                    Overflow::Saturate
                } else {
                    Overflow::Wrap
                },
            },
            rounding: Rounding::ALL[seed.pick(0, 3) as usize],
            order: ReductionOrder::InOrder,
            depthwise_order: ReductionOrder::InOrder,
        },
        n_blocks: seed.pick(1, 3),
        block_rows: rows,
        lanes: seed.pick(1, 5),
        depthwise: if seed.one_in(2) {
            DepthwiseUnit::Array
        } else {
            DepthwiseUnit::Post
        },
        activation_bytes: seed.pick(64, 1024),
        weight_bytes: seed.pick(32, 512),
        n_parameters: seed.pick(8, 24),
        queue_depth: seed.pick(1, 6),
        max_tokens,
        dram: DramConfig {
            size_bytes: 1 << 16,
            latency_cycles: seed.pick(1, 50),
            bytes_per_cycle,
            burst_bytes,
            max_outstanding: seed.pick(1, 6),
            banks,
        },
    };
    config.block_rows = seed.pick(1, 20);
    let dataflow = match seed.pick(0, 2) {
        0 => Dataflow::OutputStationary,
        1 => Dataflow::WeightStationary,
        _ => Dataflow::InputStationary,
    };
    config.set_array(dataflow, config.rows, config.cols);
    config
}

/// Few banks and short times between refreshes, so that everything happens in a short program.
fn banks(seed: &mut Seed, burst_bytes: u32) -> Banks {
    let mut cycles = |min: u32, max: u32| u64::from(seed.pick(min, max));
    let (rcd_cycles, rp_cycles, rc_cycles) = (cycles(1, 9), cycles(1, 9), cycles(1, 30));
    let rfc_cycles = rc_cycles + cycles(0, 20);
    Banks {
        rcd_cycles,
        rp_cycles,
        cl_cycles: cycles(1, 9),
        ras_cycles: cycles(1, 20),
        rc_cycles,
        refi_cycles: rp_cycles + rfc_cycles + rcd_cycles + cycles(1, 250),
        rfc_cycles,
        access_picocycles: cycles(1, 4_000) * 1_000_000_000,
        n_banks: 1 << seed.pick(0, 2),
        row_bytes: burst_bytes << seed.pick(0, 4),
        access_bytes: 1 << seed.pick(0, 7),
    }
}

const DRAM_BYTES: u32 = 4096;
/// Overflow counters: more than any column of a machine that programs are made for.
const N_CHANNELS: u32 = 24;

struct Builder<'a> {
    seed: &'a mut Seed,
    config: &'a Config,
    max_residual_shift: u32,
    registers: Registers,
    program: Program,
    touched: Vec<(Unit, Vec<Access>)>,
    /// What the last preload reads, and its index: it has no token, that of its stream must do.
    preloaded: Option<(usize, Vec<Access>)>,
    /// Instructions before this one have ended when the next issues.
    fenced: usize,
    /// `waited[to][from]`: instructions of `from` below this have ended for `to`.
    waited: [[usize; 4]; 4],
}

/// A program of about `length` instructions, with random data, for `config`.
pub fn program(seed: &mut Seed, config: &Config, length: usize) -> Program {
    let mut data: Vec<u8> = (0..DRAM_BYTES).map(|_| seed.next() as u8).collect();
    // In some programs the last bits of an accumulator reach the results; residuals are not shifted then.
    let shows_last_bits = seed.one_in(4);
    let width_bits = config.arithmetic.accumulator.width_bits;
    let table = (config.n_parameters * PARAMETER_BYTES) as usize;
    for entry in data[..table].chunks_exact_mut(PARAMETER_BYTES as usize) {
        let bias = seed.pick(0, 255) as i16 - 128;
        let (mantissa, shift) = if shows_last_bits {
            (seed.pick(0, 3) as u8, seed.pick(0, 2) as u8)
        } else {
            let shift = seed.pick(10, 30).min(seed.pick(10, 30)) as u8;
            (seed.next() as u8, shift)
        };
        entry[..2].copy_from_slice(&bias.to_le_bytes());
        // Some accumulators start at the edge of what they can hold.
        let at_edge = seed.one_in(3);
        let bias_shift = if at_edge { width_bits - 8 } else { 0 };
        entry[2..].copy_from_slice(&[bias_shift, mantissa, shift, 0, 0, 0]);
    }
    let program = Program {
        machine: config.fingerprint(),
        dram_bytes: DRAM_BYTES.into(),
        n_channels: N_CHANNELS,
        instructions: Vec::new(),
        data,
        layers: vec![LayerInfo {
            name: "random".to_owned(),
            n_macs: 0,
            first_channel: 0,
            n_channels: N_CHANNELS,
        }],
        layer_of: Vec::new(),
        tensors: Vec::new(),
    };
    let mut builder = Builder {
        seed,
        config,
        max_residual_shift: if shows_last_bits { 0 } else { 10 },
        registers: Registers::default(),
        program,
        touched: Vec::new(),
        preloaded: None,
        fenced: 0,
        waited: [[0; 4]; 4],
    };
    builder.push(Op::Load(Load {
        memory: 2,
        dram_address: 0,
        chip_address: 0,
        n_rows: 1,
        row_bytes: table as u32,
    }));
    // Mostly, nothing that is read is still 0.
    if !builder.seed.one_in(4) {
        let n_bytes = [config.activation_bytes, config.weight_bytes];
        for (memory, row_bytes) in (0..).zip(n_bytes) {
            let dram_address = builder.seed.pick(0, DRAM_BYTES.saturating_sub(row_bytes));
            builder.push(Op::Load(Load {
                memory,
                dram_address,
                chip_address: 0,
                n_rows: 1,
                row_bytes,
            }));
        }
    }
    let mut tries = 0;
    while builder.program.instructions.len() < length && tries < 100 * length {
        tries += 1;
        let op = builder.op();
        builder.push(op);
    }
    builder.close_fold();
    builder.program
}

impl Builder<'_> {
    /// Adds the instruction if the machine accepts it, with the tokens that it needs.
    fn push(&mut self, op: Op) -> bool {
        let mut registers = self.registers.clone();
        let Ok(work) = registers.step(&op, &self.program, self.config) else {
            return false;
        };
        if let Work::Store(store, _) = work
            && store.dram_address < self.config.n_parameters * PARAMETER_BYTES
        {
            return false; // the parameters stay legal
        }
        if let (Some((_, k)), Work::Matmul { input, kernel, .. }) = (registers.fold, &work)
            && k >= kernel.height * kernel.width * input.n_channels
        {
            return false; // a fold keeps a step for its last matmul
        }
        let unit = op.unit();
        let mut mine = accesses(&work, self.config);
        if let Some((index, theirs)) = &self.preloaded
            && *index >= self.fenced
            && unit != Unit::Array
            && theirs.iter().any(|a| mine.iter().any(|b| a.conflicts(b)))
        {
            return false; // nobody says when the preload has read it
        }
        self.registers = registers;
        if mine
            .iter()
            .any(|a| mine.iter().any(|b| a.conflicts(b) && late(unit, a, b)))
        {
            return false; // reads what it writes itself
        }
        let late_read = self.touched[self.fenced..].iter().any(|(other, theirs)| {
            *other == unit
                && theirs
                    .iter()
                    .any(|a| mine.iter().any(|b| a.conflicts(b) && late(unit, a, b)))
        });
        if unit == Unit::Frontend || late_read {
            self.emit(Op::Fence(Fence {}), Units::NONE, Vec::new());
            self.fenced = self.program.instructions.len();
            if unit == Unit::Frontend {
                return true;
            }
        }
        let mut wait = Units::NONE;
        for from in Unit::QUEUED {
            if from == unit {
                continue;
            }
            let seen = self.waited[unit.index()][from.index()].max(self.fenced);
            let spurious = self.seed.one_in(10);
            let needed = (seen..self.touched.len()).rev().find(|&index| {
                let (other, theirs) = &self.touched[index];
                *other == from
                    && self.program.instructions[index].op.may_signal()
                    && (spurious || theirs.iter().any(|a| mine.iter().any(|b| a.conflicts(b))))
            });
            if let Some(index) = needed {
                self.waited[unit.index()][from.index()] = index + 1;
                let signal = &mut self.program.instructions[index].signal;
                *signal = signal.with(unit);
                wait = wait.with(from);
            }
        }
        match &work {
            Work::Preload { .. } => {
                self.preloaded = Some((self.program.instructions.len(), mine.clone()));
            }
            Work::Stream { .. } => {
                if let Some((_, theirs)) = self.preloaded.take() {
                    mine.extend(theirs);
                }
            }
            Work::Setup
            | Work::Load(..)
            | Work::Store(..)
            | Work::Matmul { .. }
            | Work::Requantize { .. }
            | Work::Pool { .. }
            | Work::Depthwise { .. } => {}
        }
        self.emit(op, wait, mine);
        true
    }

    fn emit(&mut self, op: Op, wait: Units, touches: Vec<Access>) {
        self.touched.push((op.unit(), touches));
        self.program.instructions.push(Instruction {
            op,
            wait,
            signal: Units::NONE,
        });
        self.program.layer_of.push(0);
    }

    fn close_fold(&mut self) {
        if let Some((open, k)) = self.registers.fold {
            let last = Matmul {
                weight_line: 0,
                n_steps: 1,
                first: 0,
                last: 1,
                ..open
            };
            assert!(
                self.push(Op::Matmul(last)),
                "a fold of {k} steps cannot be closed"
            );
        }
    }

    fn op(&mut self) -> Op {
        let was_array = self
            .touched
            .last()
            .is_some_and(|last| last.0 == Unit::Array);
        match self.config.dataflow {
            Dataflow::OutputStationary => self.any_op(),
            // One after the other, so that they overlap.
            Dataflow::WeightStationary | Dataflow::InputStationary
                if was_array && self.seed.one_in(2) =>
            {
                self.stationary_op()
            }
            Dataflow::WeightStationary | Dataflow::InputStationary => match self.any_op() {
                Op::Matmul(_) => self.stationary_op(),
                other => self.keep_shape(other),
            },
        }
    }

    fn any_op(&mut self) -> Op {
        let config = self.config;
        let seed = &mut *self.seed;
        let bit = |seed: &mut Seed| seed.pick(0, 1);
        if let Some((open, _)) = self.registers.fold {
            let last = bit(seed);
            let n_steps = seed.pick(1, 3);
            let weight_line = seed.pick(0, config.weight_bytes / config.line_bytes());
            return Op::Matmul(Matmul {
                weight_line,
                n_steps,
                first: 0,
                last,
                ..open
            });
        }
        // Some pixels hold a channel of 16 bits for every column.
        let widest = if seed.one_in(3) {
            2 * config.cols + 4
        } else {
            6
        };
        let (address, pixel_bytes) = (seed.pick(0, config.activation_bytes), seed.pick(1, widest));
        let n_choices = match config.depthwise {
            DepthwiseUnit::Array => 39,
            DepthwiseUnit::Post => 59,
        };
        match seed.pick(0, n_choices) {
            0 => Op::Fence(Fence {}),
            1 => Op::LoadPitch(LoadPitch {
                dram_pitch: seed.pick(0, 90),
                chip_pitch: seed.pick(0, 40),
            }),
            2..=5 => Op::Load(Load {
                memory: seed.pick(0, 1),
                dram_address: seed.pick(0, DRAM_BYTES),
                chip_address: seed.pick(0, config.activation_bytes),
                n_rows: seed.pick(1, 4),
                row_bytes: seed.pick(1, 60),
            }),
            6 => Op::StorePitch(StorePitch {
                dram_pitch: seed.pick(0, 90),
                chip_pitch: seed.pick(0, 40),
            }),
            7..=9 => Op::Store(Store {
                dram_address: seed.pick(0, DRAM_BYTES),
                chip_address: seed.pick(0, config.activation_bytes),
                n_rows: seed.pick(1, 4),
                row_bytes: seed.pick(1, 60),
            }),
            10 => Op::Input(Input {
                address,
                width: seed.pick(1, 6),
                height: seed.pick(0, 6),
                pixel_bytes,
                channel: seed.pick(0, 2),
                n_channels: seed.pick(1, 6),
                wide_activations: bit(seed),
                signed_activations: bit(seed),
                wide_weights: bit(seed),
            }),
            11 => Op::Kernel(Kernel {
                height: seed.pick(1, 3),
                width: seed.pick(1, 3),
                stride_y: seed.pick(1, 3),
                stride_x: seed.pick(1, 3),
                dilation_y: seed.pick(1, 2),
                dilation_x: seed.pick(1, 2),
                pad_top: seed.pick(0, 2),
                pad_left: seed.pick(0, 2),
                output_width: seed.pick(1, 6),
            }),
            12..=18 => Op::Matmul(Matmul {
                y: seed.pick(0, 4),
                x: seed.pick(0, 4),
                rows_minus_1: seed.pick(0, config.rows - 1),
                cols_minus_1: seed.pick(0, config.cols - 1),
                weight_line: seed.pick(0, config.weight_bytes / config.line_bytes()),
                block: seed.pick(0, config.n_blocks - 1),
                n_steps: seed.pick(1, 24),
                first: 1,
                last: u32::from(!seed.one_in(4)),
                parameter: seed.pick(0, config.n_parameters - 1),
                channel: seed.pick(0, N_CHANNELS - 1),
            }),
            19 => Op::Source(Source {
                address,
                width: seed.pick(1, 6),
                height: seed.pick(0, 6),
                pixel_bytes,
                wide: bit(seed),
                signed: bit(seed),
            }),
            20 => Op::Window(Window {
                height: seed.pick(1, 3),
                width: seed.pick(1, 3),
                stride_y: seed.pick(1, 3),
                stride_x: seed.pick(1, 3),
                dilation_y: seed.pick(1, 2),
                dilation_x: seed.pick(1, 2),
                pad_top: seed.pick(0, 2),
                pad_left: seed.pick(0, 2),
            }),
            21 => {
                let size = seed.pick(0, 2);
                let (a, b) = (seed.next() as i16, seed.next() as i16);
                let shift = [12, 8, 0][size as usize];
                let (a, b) = (a >> shift, b >> shift);
                Op::Destination(Destination {
                    address,
                    width: seed.pick(1, 6),
                    pixel_bytes,
                    size,
                    q_min: a.min(b),
                    q_max: a.max(b),
                })
            }
            22 => Op::Residual(Residual {
                address,
                width: seed.pick(1, 6),
                pixel_bytes,
                wide: bit(seed),
                signed: bit(seed),
                stride_y: seed.pick(0, 2),
                stride_x: seed.pick(0, 2),
                mantissa: seed.pick(0, 255),
                shift: seed.pick(0, self.max_residual_shift),
                channel: seed.pick(0, 4),
                n_channels: seed.pick(0, 6),
            }),
            23 => Op::Slope(Slope {
                mantissa: seed.pick(0, 255),
                shift: seed.pick(0, 15),
            }),
            24..=29 => {
                let row = if seed.one_in(3) {
                    seed.pick(0, config.block_rows - 1)
                } else {
                    0
                };
                Op::Requantize(Requantize {
                    block: seed.pick(0, config.n_blocks - 1),
                    y: seed.pick(0, 4),
                    x: seed.pick(0, 4),
                    rows_minus_1: seed.pick(0, (config.block_rows - row).min(8) - 1),
                    cols_minus_1: seed.pick(0, config.cols - 1),
                    row,
                    parameter: seed.pick(0, config.n_parameters - 1),
                    channel: seed.pick(0, 4),
                    add_residual: bit(seed),
                    use_slope: bit(seed),
                })
            }
            30..=39 => Op::Pool(Pool {
                y: seed.pick(0, 4),
                x: seed.pick(0, 4),
                n_pixels: seed.pick(1, 12),
                channel: seed.pick(0, 4),
                source_channel: seed.pick(0, 3),
                n_channels: seed.pick(1, 5),
                sum: bit(seed),
                mantissa: seed.pick(0, 255),
                shift: seed.pick(10, 14),
                add_residual: bit(seed),
                use_slope: bit(seed),
            }),
            40..=41 => Op::Filter(Filter {
                weight_address: seed.pick(0, config.weight_bytes / 2),
                wide_weights: bit(seed),
                parameter: seed.pick(0, config.n_parameters / 2),
                counter: seed.pick(0, N_CHANNELS / 2),
            }),
            _ => Op::Depthwise(Depthwise {
                y: seed.pick(0, 4),
                x: seed.pick(0, 4),
                n_pixels: seed.pick(1, 12),
                channel: seed.pick(0, 4),
                source_channel: seed.pick(0, 3),
                n_channels: seed.pick(1, 7),
                add_residual: bit(seed),
                use_slope: bit(seed),
            }),
        }
    }
}
