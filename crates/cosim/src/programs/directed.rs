//! Directed programs: every instruction with every row, column and operand width in use.

use super::{Named, lanes, stationary};
use accelerator::{Config, Dataflow, DepthwiseUnit, random as models};
use isa::{
    Destination, Fence, Input, Instruction, Kernel, LayerInfo, Load, LoadPitch, Matmul, Op, Pool,
    Program, Requantize, Residual, Slope, Source, Store, StorePitch, Unit, Units, Window,
};

pub(super) const TILE: u32 = 0; // input tile: 4 × 4 pixels of 8 bytes
pub(super) const RESULT: u32 = 256; // 16 pixels of 32 bytes
const POOLED: u32 = 768;
const OUT: u32 = 2048;
/// The DRAM behind everything that is not depthwise.
pub(super) const LANES_OUT: u32 = 4096;

/// Instructions in the making.
pub(super) struct List(pub(super) Vec<Instruction>);

impl List {
    pub(super) fn push(&mut self, op: Op, wait: Option<Unit>, signal: Option<Unit>) {
        let set = |unit: Option<Unit>| unit.map_or(Units::NONE, |unit| Units::NONE.with(unit));
        self.0.push(Instruction {
            op,
            wait: set(wait),
            signal: set(signal),
        });
    }
}

/// Every instruction with every row, column and operand width in use.
pub fn directed(config: &Config) -> Vec<Named> {
    (0..8)
        .map(|v| {
            let names = [v & 1, v >> 1 & 1, v >> 2 & 1];
            let name = format!(
                "directed a{} s{} w{}",
                4 + 4 * names[0],
                names[1],
                4 + 4 * names[2]
            );
            let program = one_directed(config, names);
            Named { name, program }
        })
        .collect()
}

fn one_directed(config: &Config, [wide_a, signed, wide_w]: [u32; 3]) -> Program {
    let mut seed = models::Seed::new(u64::from(wide_a + 2 * signed + 4 * wide_w));
    let mut data: Vec<u8> = (0..1024).map(|_| seed.pick(0, 255) as u8).collect();
    // Every fourth column's results show the accumulator's last bits, with ties to round; half of the
    // columns start near the edge of what the accumulator holds.
    let edge = config.arithmetic.accumulator.width_bits - 8;
    for (column, entry) in data[..192].chunks_exact_mut(8).enumerate() {
        let mut bias = seed.pick(0, 200) as i16 - 100;
        if column % 4 == 0 {
            // Both edges, each in its programs.
            bias = if signed == 1 { -100 } else { 100 };
        }
        let bias = bias.to_le_bytes();
        let bias_shift = if column % 4 % 3 == 0 {
            edge
        } else {
            edge.min(1)
        };
        let (mantissa, shift) = if column % 4 == 0 {
            (1, 1)
        } else {
            (entry[3], seed.pick(8, 12) as u8)
        };
        entry.copy_from_slice(&[bias[0], bias[1], bias_shift, mantissa, shift, 0, 0, 0]);
    }
    let (rows, cols) = (config.rows, config.cols);
    let mut list = List(Vec::new());
    let mut push = |op, wait, signal| list.push(op, wait, signal);
    let load = |memory, dram_address, chip_address, n_rows, row_bytes| {
        Op::Load(Load {
            memory,
            dram_address,
            chip_address,
            n_rows,
            row_bytes,
        })
    };
    push(load(2, 0, 0, 1, 192), None, None);
    push(
        Op::LoadPitch(LoadPitch {
            dram_pitch: 37,
            chip_pitch: 32,
        }),
        None,
        None,
    );
    push(load(0, 301, TILE, 4, 32), None, None);
    push(load(1, 500, 0, 1, 512), None, Some(Unit::Array));
    let input = Input {
        address: TILE,
        width: 4,
        height: 4,
        pixel_bytes: 8,
        channel: 1,
        n_channels: 3,
        wide_activations: wide_a,
        signed_activations: signed,
        wide_weights: wide_w,
    };
    push(Op::Input(input), Some(Unit::Load), None);
    let kernel = Kernel {
        height: 2,
        width: 3,
        stride_y: 1,
        stride_x: 1,
        dilation_y: 2,
        dilation_x: 1,
        pad_top: 1,
        pad_left: 1,
        output_width: 4,
    };
    push(Op::Kernel(kernel), None, None);
    let block = config.n_blocks - 1;
    let (n_rows, last_row) = match config.dataflow {
        Dataflow::OutputStationary => {
            matmuls(&mut list, config);
            (rows, 0)
        }
        Dataflow::WeightStationary | Dataflow::InputStationary => {
            stationary::array_work(&mut list, config);
            let n = stationary::n_elements(config);
            (n, config.block_rows - n)
        }
    };
    if config.n_blocks == 1 {
        // Of a block's results the last are meant.
        list.push(Op::Fence(Fence {}), None, None);
    }
    let mut push = |op, wait, signal| list.push(op, wait, signal);
    let to = |address, size, pixel_bytes, (q_min, q_max)| {
        Op::Destination(Destination {
            address,
            width: 4,
            pixel_bytes,
            size,
            q_min,
            q_max,
        })
    };
    let requantize = Requantize {
        block: 0,
        y: 0,
        x: 0,
        rows_minus_1: n_rows - 1,
        cols_minus_1: cols - 1,
        row: 0,
        parameter: 0,
        channel: 0,
        add_residual: 0,
        use_slope: 0,
    };
    let residual = Residual {
        address: TILE,
        width: 4,
        pixel_bytes: 8,
        wide: wide_a,
        signed,
        stride_y: 1,
        stride_x: 1,
        mantissa: 177,
        shift: 6,
        channel: 1,
        n_channels: 3,
    };
    push(
        Op::Slope(Slope {
            mantissa: 13,
            shift: 5,
        }),
        None,
        None,
    );
    push(Op::Residual(residual), None, None);
    push(to(RESULT, 2, 32, (-30000, 30000)), Some(Unit::Array), None);
    push(Op::Requantize(requantize), Some(Unit::Array), None);
    let store = |address: u32, chip_address, row_bytes| {
        Op::Store(Store {
            dram_address: address,
            chip_address,
            n_rows: 2,
            row_bytes,
        })
    };
    push(
        Op::StorePitch(StorePitch {
            dram_pitch: 600,
            chip_pitch: 256,
        }),
        None,
        None,
    );
    push(Op::Fence(Fence {}), None, None);
    push(store(OUT, RESULT, 255), None, Some(Unit::Post));
    push(to(RESULT, 1, 16, (-100, 100)), Some(Unit::Store), None);
    let with_residual = Requantize {
        add_residual: 1,
        use_slope: 1,
        block,
        row: last_row,
        ..requantize
    };
    push(
        Op::Requantize(with_residual),
        Some(Unit::Array),
        Some(Unit::Store),
    );
    push(
        store(OUT + 300, RESULT + 3, 250),
        Some(Unit::Post),
        Some(Unit::Post),
    );
    push(to(RESULT, 0, 9, (-8, 7)), Some(Unit::Store), None);
    let nibbles = Requantize {
        use_slope: 1,
        channel: 1,
        ..requantize
    };
    push(Op::Requantize(nibbles), None, None);
    push(Op::Fence(Fence {}), None, None);
    let source = Source {
        address: TILE,
        width: 4,
        height: 4,
        pixel_bytes: 8,
        wide: wide_a,
        signed,
    };
    push(Op::Source(source), None, None);
    let window = Window {
        height: 3,
        width: 2,
        stride_y: 2,
        stride_x: 1,
        dilation_y: 1,
        dilation_x: 2,
        pad_top: 1,
        pad_left: 1,
    };
    push(Op::Window(window), None, None);
    push(to(POOLED, 1, 8, (-128, 127)), None, None);
    for sum in 0..2 {
        let pool = Pool {
            y: 2 * sum,
            x: 1,
            n_pixels: 7,
            channel: 1,
            source_channel: 2,
            n_channels: 5,
            sum,
            mantissa: 201,
            shift: 8,
            add_residual: sum,
            use_slope: 1 - sum,
        };
        push(Op::Pool(pool), None, (sum == 1).then_some(Unit::Store));
    }
    push(store(OUT + 700, RESULT, 250), Some(Unit::Post), None);
    push(store(OUT + 1190, POOLED - 256, 256), None, None);
    push(Op::Fence(Fence {}), None, None);
    let mut dram_bytes = u64::from(LANES_OUT);
    if config.depthwise == DepthwiseUnit::Post {
        lanes::depthwise_work(&mut list, wide_w);
        dram_bytes *= 2;
    }
    let List(instructions) = list;
    Program {
        machine: config.fingerprint(),
        dram_bytes,
        n_channels: 32,
        layer_of: vec![0; instructions.len()],
        instructions,
        data,
        layers: vec![LayerInfo {
            name: "directed".to_owned(),
            n_macs: 0,
            first_channel: 0,
            n_channels: 32,
        }],
        tensors: Vec::new(),
    }
}

/// A fold in two matmuls, one into the last block, and one that uses a part of the array.
fn matmuls(list: &mut List, config: &Config) {
    let mut push = |op, wait, signal| list.push(op, wait, signal);
    let matmul = Matmul {
        y: 0,
        x: 1,
        rows_minus_1: config.rows - 1,
        cols_minus_1: config.cols - 1,
        weight_line: 0,
        block: 0,
        n_steps: 11,
        first: 1,
        last: 0,
        parameter: 0,
        channel: 0,
    };
    push(Op::Matmul(matmul), None, None);
    let rest = Matmul {
        weight_line: 22,
        n_steps: 7,
        first: 0,
        last: 1,
        ..matmul
    };
    push(Op::Matmul(rest), None, Some(Unit::Post));
    let block = config.n_blocks - 1;
    let second = Matmul {
        block,
        n_steps: 5,
        last: 1,
        channel: 3,
        ..matmul
    };
    push(Op::Matmul(second), None, Some(Unit::Post));
    let short = Matmul {
        n_steps: 1,
        last: 1,
        rows_minus_1: config.rows / 2,
        cols_minus_1: 0,
        ..second
    };
    push(Op::Matmul(short), None, Some(Unit::Post));
}
