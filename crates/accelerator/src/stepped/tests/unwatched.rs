//! An array at whose registers nobody looks does what it does register by register, and what the event model
//! computes.
//!
//! Invariant: a run that somebody looks at does everything in its cycle.

use crate::{
    Config, Dataflow, event,
    random::{Seed, machine},
    stepped::{run, run_observed},
};
use arith::{AccumulatorFormat, Overflow};
use isa::{Destination, Input, Instruction, Kernel, Load, Matmul, Op, Program, Requantize, Store};

const DRAM_BYTES: u32 = 1 << 17;
const MEMORY_BYTES: u32 = 1 << 14;
const N_PARAMETERS: u32 = 64;

#[test]
fn unwatched_runs_are_as_watched_ones() {
    let (mut n_overflowed, mut n_races) = (0, 0);
    for number in 0..400 {
        let has_races = number % 2 == 1;
        let seed = &mut Seed::new(number);
        let config = wide_machine(seed);
        let program = long_folds(seed, &config, has_races);
        let mut dram = image(seed, &config);
        let mut watched = dram.clone();
        let mut of_event_model = dram.clone();
        let unwatched = run(&program, &config, &mut dram);
        let in_time = run_observed(&program, &config, &mut watched, |_, _| {});
        let (unwatched, in_time) = match (unwatched, in_time) {
            (Ok(unwatched), Ok(in_time)) => (unwatched, in_time),
            (unwatched, in_time) => {
                let faults = (unwatched.err(), in_time.err());
                panic!("{number}: {}: {faults:?}", program.to_text());
            }
        };
        assert!(unwatched.timing == in_time.timing, "{number}: times differ");
        assert_eq!(unwatched.overflow, in_time.overflow, "{number}");
        assert_eq!(unwatched.actions, in_time.actions, "{number}");
        assert!(dram == watched, "{number}: memory differs");
        let overflow = event::execute(&program, &config, &mut of_event_model).expect("it runs");
        let is_same = unwatched.overflow == overflow && dram == of_event_model;
        assert!(has_races || is_same, "{number}: the event model differs");
        n_races += u32::from(!is_same);
        n_overflowed += u32::from(overflow.iter().any(|seen| seen.n_overflowed > 0));
    }
    assert!((40..360).contains(&n_overflowed), "{n_overflowed} of 400");
    // The event model does one instruction after the other, so that a race shows.
    assert!((40..200).contains(&n_races), "{n_races} of 200");
}

/// An output-stationary array of up to 20 × 40.
fn wide_machine(seed: &mut Seed) -> Config {
    let mut config = machine(seed);
    config.block_rows = 20;
    config.set_array(
        Dataflow::OutputStationary,
        seed.pick(1, 20),
        seed.pick(1, 40),
    );
    config.arithmetic.accumulator = AccumulatorFormat {
        width_bits: seed.pick(8, 32).min(seed.pick(10, 24)) as u8,
        overflow: [Overflow::Saturate, Overflow::Wrap][seed.pick(0, 1) as usize],
    };
    config.n_blocks = 2;
    config.activation_bytes = MEMORY_BYTES;
    config.weight_bytes = MEMORY_BYTES;
    config.n_parameters = N_PARAMETERS;
    config.max_tokens = 255;
    config.dram.size_bytes = u64::from(DRAM_BYTES);
    config
}

/// Loads, then folds of one to three matmuls; where there may be races, with loads and results beside them
/// that nobody waits for: what they read or overwrite is older or newer, as it comes.
fn long_folds(seed: &mut Seed, config: &Config, has_races: bool) -> Program {
    let mut code: Vec<Op> = vec![isa::Fence {}.into()];
    let whole = |memory: u32, row_bytes: u32| Load {
        memory,
        dram_address: memory * MEMORY_BYTES,
        chip_address: 0,
        n_rows: 1,
        row_bytes,
    };
    for (memory, bytes) in [(0, MEMORY_BYTES), (1, MEMORY_BYTES), (2, 8 * N_PARAMETERS)] {
        code.push(whole(memory, bytes).into());
    }
    for _ in 0..seed.pick(1, 3) {
        code.push(isa::Fence {}.into());
        let (rows, cols) = (seed.pick(1, config.rows), seed.pick(1, config.cols));
        let (input, kernel) = window(seed);
        code.push(input.into());
        code.push(kernel.into());
        let (n_matmuls, block) = (seed.pick(1, 3), seed.pick(0, 1));
        for index in 0..n_matmuls {
            code.push(
                Matmul {
                    y: 0,
                    x: 0,
                    rows_minus_1: rows - 1,
                    cols_minus_1: cols - 1,
                    weight_line: seed.pick(0, 4),
                    block,
                    n_steps: seed.pick(1, 4 * input.n_channels / n_matmuls),
                    first: u32::from(index == 0),
                    last: u32::from(index + 1 == n_matmuls),
                    parameter: 0,
                    channel: 0,
                }
                .into(),
            );
            if has_races && seed.pick(0, 1) == 0 {
                let beside = Load {
                    dram_address: seed.pick(0, MEMORY_BYTES),
                    chip_address: seed.pick(0, 1000),
                    ..whole(seed.pick(0, 1), seed.pick(1, 500))
                };
                code.push(beside.into());
            }
            if has_races && seed.pick(0, 1) == 0 {
                let address = seed.pick(0, 1000);
                code.extend(result(config, seed.pick(0, 1), address));
            }
        }
    }
    code.push(isa::Fence {}.into());
    code.extend(results(config));
    Program {
        machine: config.fingerprint(),
        dram_bytes: u64::from(DRAM_BYTES),
        n_channels: 40,
        layer_of: vec![0; code.len()],
        instructions: code.into_iter().map(Instruction::new).collect(),
        ..Program::default()
    }
}

/// Pixels of many channels, and a window that leaves their tile.
fn window(seed: &mut Seed) -> (Input, Kernel) {
    let wide = seed.pick(0, 7);
    let input = Input {
        address: seed.pick(0, 100),
        width: seed.pick(2, 6),
        height: seed.pick(1, 5),
        pixel_bytes: 100,
        channel: seed.pick(0, 3),
        n_channels: seed.pick(1, 90).max(seed.pick(1, 90)),
        wide_activations: u32::from(wide == 1 || wide == 3),
        signed_activations: seed.pick(0, 1),
        wide_weights: u32::from(wide == 2 || wide == 3),
    };
    let kernel = Kernel {
        height: 2,
        width: 2,
        stride_y: 1,
        stride_x: 1,
        dilation_y: 1,
        dilation_x: 1,
        pad_top: seed.pick(0, 1),
        pad_left: seed.pick(0, 1),
        output_width: seed.pick(1, 6),
    };
    (input, kernel)
}

/// Both blocks, and where they are stored.
fn results(config: &Config) -> Vec<Op> {
    let bytes = 2 * config.cols * config.rows;
    let mut code = Vec::new();
    for block in 0..2 {
        code.extend(result(config, block, block * bytes));
    }
    code.push(isa::Fence {}.into());
    code.push(
        Store {
            dram_address: 4 * MEMORY_BYTES,
            chip_address: 0,
            n_rows: 1,
            row_bytes: 2 * bytes,
        }
        .into(),
    );
    code
}

/// A block, and where it is put.
fn result(config: &Config, block: u32, address: u32) -> [Op; 2] {
    let to = Destination {
        address,
        width: 20,
        pixel_bytes: 2 * config.cols,
        size: 2,
        q_min: i16::MIN,
        q_max: i16::MAX,
    };
    let requantize = Requantize {
        block,
        y: 0,
        x: 0,
        rows_minus_1: config.rows - 1,
        cols_minus_1: config.cols - 1,
        row: 0,
        parameter: 0,
        channel: 0,
        add_residual: 0,
        use_slope: 0,
    };
    [to.into(), requantize.into()]
}

/// Random bytes, but parameters that the accumulator holds.
fn image(seed: &mut Seed, config: &Config) -> Vec<u8> {
    let mut dram: Vec<u8> = (0..DRAM_BYTES).map(|_| seed.pick(0, 255) as u8).collect();
    let limit = u32::min(config.arithmetic.accumulator.max() as u32, 1000);
    let from = 2 * MEMORY_BYTES as usize;
    for entry in dram[from..].chunks_exact_mut(8).take(N_PARAMETERS as usize) {
        let bias = seed.pick(0, 2 * limit) as i32 - limit as i32;
        entry[..2].copy_from_slice(&(bias as i16).to_le_bytes());
        entry[2..5].copy_from_slice(&[0, seed.pick(1, 255) as u8, seed.pick(4, 12) as u8]);
    }
    dram
}
