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
use isa::{
    Destination, Input, Instruction, Kernel, Load, Matmul, Op, Preload, Program, Requantize, Store,
    Stream,
};

const DRAM_BYTES: u32 = 1 << 17;
const MEMORY_BYTES: u32 = 1 << 14;
/// What tiles and weights reach.
const USED_BYTES: u32 = 1 << 12;
const N_PARAMETERS: u32 = 64;
const BLOCK_ROWS: u32 = 20;
const DATAFLOWS: [Dataflow; 3] = [
    Dataflow::OutputStationary,
    Dataflow::WeightStationary,
    Dataflow::InputStationary,
];
/// Of an input: three parts of 20 rows fit four taps.
const FEWEST_CHANNELS: u32 = 15;

#[test]
fn unwatched_runs_are_as_watched_ones() {
    let (mut n_overflowed, mut n_faults, mut n_races) = (0, 0, 0);
    for number in 0..400 {
        let has_races = number % 2 == 1;
        let seed = &mut Seed::new(number);
        let dataflow = DATAFLOWS[seed.pick(0, 2) as usize];
        let config = wide_machine(seed, dataflow, 1);
        let program = reductions(seed, &config, has_races);
        let mut dram = image(seed, &config);
        let mut of_event_model = dram.clone();
        let run = agree(&format!("{number}"), &program, &config, &mut dram);
        let overflow = event::execute(&program, &config, &mut of_event_model);
        let (Some(run), Ok(overflow)) = (run, overflow) else {
            n_faults += 1;
            assert!(has_races, "{number}: {}", program.to_text());
            continue;
        };
        let is_same = run.overflow == overflow && dram == of_event_model;
        assert!(has_races || is_same, "{number}: the event model differs");
        n_races += u32::from(!is_same);
        n_overflowed += u32::from(overflow.iter().any(|seen| seen.n_overflowed > 0));
    }
    assert!((40..360).contains(&n_overflowed), "{n_overflowed} of 400");
    assert!((1..40).contains(&n_faults), "{n_faults} of 200");
    // The event model does one instruction after the other, so that a race shows.
    assert!((40..200).contains(&n_races), "{n_races} of 200");
}

/// Sums that are read while they land, in every cycle of their landing.
#[test]
fn sums_land_in_their_cycles() {
    let mut n_results = [0; 3];
    for (number, dataflow) in (0..12).zip(DATAFLOWS.into_iter().cycle()) {
        let seed = &mut Seed::new(number);
        let config = wide_machine(seed, dataflow, 8);
        let dram = image(seed, &config);
        let mut start = loads();
        start.extend(setups(seed));
        start.extend(reduction(seed, &config, 1, false));
        start.push(isa::Fence {}.into());
        start.extend(reduction(seed, &config, 1, false));
        let (block, rows) = match start.last() {
            Some(Op::Matmul(matmul)) => (matmul.block, (0, matmul.rows_minus_1)),
            Some(Op::Stream(stream)) => (stream.block, (stream.row, stream.n_minus_1)),
            other => panic!("{other:?}"),
        };
        let after = |delay: u64| {
            let mut code = start.clone();
            code.extend((0..delay).map(|_| Op::from(destination(&config, 0))));
            let address = 2 * result_bytes(&config);
            code.extend(result(&config, (block, rows), address));
            code.extend(results(&config));
            let (program, mut dram) = (program(code, &config), dram.clone());
            let run = agree(&format!("{number}, {delay}"), &program, &config, &mut dram);
            (run.expect("it runs").timing, dram)
        };
        let (timing, _) = after(0);
        let last = start.len() - 1;
        // Setups take a cycle each, so that results begin to be read so many cycles later.
        let latest = timing.end[last] - timing.issue[last];
        let earliest = latest.saturating_sub(100);
        let results = (earliest..latest).map(|delay| after(delay).1);
        let seen: std::collections::BTreeSet<Vec<u8>> = results.collect();
        n_results[dataflow as usize] += seen.len();
    }
    assert!(n_results.iter().all(|&n| n > 20), "{n_results:?}");
}

/// A run that nobody looks at, after the same watched; `None` where both find the same fault.
fn agree(name: &str, program: &Program, config: &Config, dram: &mut [u8]) -> Option<crate::Run> {
    let mut watched = dram.to_vec();
    let unwatched = run(program, config, dram);
    let in_time = run_observed(program, config, &mut watched, |_, _| {});
    match (unwatched, in_time) {
        (Ok(unwatched), Ok(in_time)) => {
            assert!(unwatched.timing == in_time.timing, "{name}: times differ");
            assert_eq!(unwatched.overflow, in_time.overflow, "{name}");
            assert_eq!(unwatched.actions, in_time.actions, "{name}");
            assert!(dram == watched, "{name}: memory differs");
            Some(unwatched)
        }
        (unwatched, in_time) => {
            let (unwatched, in_time) = (unwatched.err(), in_time.err());
            assert_eq!(unwatched, in_time, "{name}: {}", program.to_text());
            None
        }
    }
}

/// An array of up to 20 × 40, with at least so many rows and columns.
fn wide_machine(seed: &mut Seed, dataflow: Dataflow, least: u32) -> Config {
    let mut config = machine(seed);
    config.set_array(dataflow, seed.pick(least, 20), seed.pick(least, 40));
    if dataflow != Dataflow::OutputStationary {
        config.block_rows = BLOCK_ROWS;
    }
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

/// Loads, then reductions; where there may be races, with loads and results beside them that nobody waits
/// for: what they read or overwrite is older or newer, as it comes.
fn reductions(seed: &mut Seed, config: &Config, has_races: bool) -> Program {
    let mut code = loads();
    for _ in 0..seed.pick(1, 3) {
        code.push(isa::Fence {}.into());
        code.extend(setups(seed));
        let n_parts = seed.pick(1, 3);
        code.extend(reduction(seed, config, n_parts, has_races));
    }
    code.extend(results(config));
    program(code, config)
}

fn program(code: Vec<Op>, config: &Config) -> Program {
    Program {
        machine: config.fingerprint(),
        dram_bytes: u64::from(DRAM_BYTES),
        n_channels: 40,
        layer_of: vec![0; code.len()],
        instructions: code.into_iter().map(Instruction::new).collect(),
        ..Program::default()
    }
}

/// A memory's content.
fn whole(memory: u32, row_bytes: u32) -> Load {
    Load {
        memory,
        dram_address: memory * MEMORY_BYTES,
        chip_address: 0,
        n_rows: 1,
        row_bytes,
    }
}

fn loads() -> Vec<Op> {
    let all = [(0, USED_BYTES), (1, USED_BYTES), (2, 8 * N_PARAMETERS)];
    let loads = all.map(|(memory, bytes)| Op::from(whole(memory, bytes)));
    let fence = isa::Fence {};
    [fence.into()]
        .into_iter()
        .chain(loads)
        .chain([fence.into()])
        .collect()
}

fn setups(seed: &mut Seed) -> [Op; 2] {
    let (input, kernel) = window(seed);
    [input.into(), kernel.into()]
}

/// One reduction in so many parts, each a matmul or a preload with its streams, for the setups that come before.
fn reduction(seed: &mut Seed, config: &Config, n_parts: u32, has_races: bool) -> Vec<Op> {
    let mut code = Vec::new();
    let (rows, cols) = (seed.pick(1, config.rows), seed.pick(1, config.cols));
    let (block, row) = (seed.pick(0, 1), seed.pick(0, config.block_rows - 1));
    for index in 0..n_parts {
        let is_first = u32::from(index == 0);
        let is_last = u32::from(index + 1 == n_parts);
        if config.dataflow == Dataflow::OutputStationary {
            let matmul = Matmul {
                y: 0,
                x: 0,
                rows_minus_1: rows - 1,
                cols_minus_1: cols - 1,
                weight_line: seed.pick(0, 4),
                block,
                n_steps: seed.pick(1, 4 * FEWEST_CHANNELS / n_parts),
                first: is_first,
                last: is_last,
                parameter: 0,
                channel: 0,
            };
            code.push(matmul.into());
        } else {
            let stays = config.dataflow == Dataflow::WeightStationary;
            let only = |is: bool, value: u32| if is { value } else { 0 };
            let preload = Preload {
                y: only(!stays, seed.pick(0, 2)),
                x: 0,
                rows_minus_1: rows - 1,
                cols_minus_1: cols - 1,
                weight_line: only(stays, seed.pick(0, 4)),
                first: is_first,
            };
            code.push(preload.into());
            for _ in 0..seed.pick(1, 2) {
                let stream = Stream {
                    y: only(stays, seed.pick(0, 2)),
                    x: 0,
                    n_minus_1: seed.pick(0, config.block_rows - row - 1),
                    cols_minus_1: cols - 1,
                    weight_line: only(!stays, seed.pick(0, 4)),
                    block,
                    row,
                    parameter: 0,
                    channel: 0,
                    accumulate: 1 - is_first,
                    last: is_last,
                };
                code.push(stream.into());
            }
        }
        if has_races && seed.pick(0, 1) == 0 {
            let mut beside = whole(seed.pick(0, 2), seed.pick(1, 500));
            if beside.memory == 2 {
                // Other entries, hardly ever such as accumulators do not hold.
                beside.row_bytes = 8 * seed.pick(1, N_PARAMETERS / 2);
                beside.dram_address += 8 * seed.pick(0, N_PARAMETERS / 2 + 8);
            } else {
                beside.dram_address = seed.pick(0, MEMORY_BYTES);
                beside.chip_address = seed.pick(0, 1000);
            }
            code.push(beside.into());
        }
        if has_races && seed.pick(0, 1) == 0 {
            let address = seed.pick(0, 1000);
            let rows = (0, config.block_rows - 1);
            code.extend(result(config, (seed.pick(0, 1), rows), address));
        }
    }
    code
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
        n_channels: seed.pick(FEWEST_CHANNELS, 90),
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

/// Both blocks, and where they are stored, with as much behind them.
fn results(config: &Config) -> Vec<Op> {
    let bytes = result_bytes(config);
    let mut code = vec![isa::Fence {}.into()];
    for block in 0..2 {
        let rows = (0, config.block_rows - 1);
        code.extend(result(config, (block, rows), block * bytes));
    }
    code.push(isa::Fence {}.into());
    let store = Store {
        dram_address: 4 * MEMORY_BYTES,
        chip_address: 0,
        n_rows: 1,
        row_bytes: 4 * bytes,
    };
    code.push(store.into());
    code
}

/// Of a block's results.
fn result_bytes(config: &Config) -> u32 {
    pixel_bytes(config) * BLOCK_ROWS.max(config.cols)
}

/// Of results of 16 bits, whichever of a block's sides are the channels.
fn pixel_bytes(config: &Config) -> u32 {
    2 * BLOCK_ROWS.max(config.cols)
}

fn destination(config: &Config, address: u32) -> Destination {
    Destination {
        address,
        width: 20,
        pixel_bytes: pixel_bytes(config),
        size: 2,
        q_min: i16::MIN,
        q_max: i16::MAX,
    }
}

/// Rows of a block, and where they are put.
fn result(
    config: &Config,
    (block, (row, rows_minus_1)): (u32, (u32, u32)),
    address: u32,
) -> [Op; 2] {
    let requantize = Requantize {
        block,
        y: 0,
        x: 0,
        rows_minus_1,
        cols_minus_1: config.cols - 1,
        row,
        parameter: 0,
        channel: 0,
        add_residual: 0,
        use_slope: 0,
    };
    [destination(config, address).into(), requantize.into()]
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
