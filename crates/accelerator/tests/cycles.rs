//! Cycles computed by hand from `docs/machine.md`, for both models.

use accelerator::{Banks, Config, DepthwiseUnit, RowCounts, Timing, event, stepped};
use isa::{
    Depthwise, Destination, Filter, Input, Instruction, Kernel, LayerInfo, Load, Matmul, Op, Pool,
    Program, Requantize, Source, Store, Unit, Units, Window,
};

const R: u64 = 4;
const C: u64 = 3;

fn machine(change: impl FnOnce(&mut Config)) -> Config {
    let edge = include_str!("../../../configs/edge-16x16.toml");
    let mut config = Config::from_toml(edge).expect("the preset");
    config.set_array(config.dataflow, R as u32, C as u32);
    config.lanes = 2;
    change(&mut config);
    config
}

/// Runs both models and compares (issue, start, end) of every instruction.
fn check(config: &Config, instructions: Vec<Instruction>, expected: &[(u64, u64, u64)]) -> Timing {
    let program = Program {
        machine: config.fingerprint(),
        dram_bytes: 4096,
        n_channels: 64,
        layer_of: vec![0; instructions.len()],
        layers: vec![LayerInfo {
            name: "l".into(),
            n_macs: 0,
            first_channel: 0,
            n_channels: 64,
        }],
        instructions,
        data: Vec::new(),
        tensors: Vec::new(),
    };
    let fast = event::time(&program, config).expect("the program runs");
    let slow = stepped::run(&program, config, &mut vec![0; 4096]).expect("the program runs");
    let seen: Vec<_> = (0..expected.len())
        .map(|i| (fast.issue[i], fast.start[i], fast.end[i]))
        .collect();
    assert_eq!(seen, expected, "event model");
    assert_eq!(slow.timing, fast, "stepped model");
    fast
}

fn plain(op: impl Into<Op>) -> Instruction {
    Instruction {
        op: op.into(),
        wait: Units::NONE,
        signal: Units::NONE,
    }
}

fn input(wide_activations: u32, wide_weights: u32) -> Instruction {
    plain(Input {
        address: 0,
        width: 8,
        height: 1,
        pixel_bytes: 8,
        channel: 0,
        n_channels: 8,
        wide_activations,
        signed_activations: 0,
        wide_weights,
    })
}

fn kernel() -> Instruction {
    plain(Kernel {
        height: 1,
        width: 1,
        stride_y: 1,
        stride_x: 1,
        dilation_y: 1,
        dilation_x: 1,
        pad_top: 0,
        pad_left: 0,
        output_width: 8,
    })
}

fn matmul(n_steps: u32, first: u32, last: u32) -> Matmul {
    Matmul {
        y: 0,
        x: 0,
        rows_minus_1: 3,
        cols_minus_1: 2,
        weight_line: 0,
        block: 0,
        n_steps,
        first,
        last,
        parameter: 0,
        channel: 0,
    }
}

fn load(dram_address: u32, row_bytes: u32) -> Load {
    Load {
        memory: 0,
        dram_address,
        chip_address: 0,
        n_rows: 1,
        row_bytes,
    }
}

/// Published for skewed hardware: fill + K + drain = 2R + C + K - 1.
#[test]
fn one_fold_is_fill_steps_and_drain() {
    let end = |steps: u64| 4 + steps + 2 * R + C - 1;
    for (wide_a, wide_w, passes) in [(0, 0, 1), (1, 0, 2), (0, 1, 2), (1, 1, 4)] {
        let fold = plain(matmul(5, 1, 1));
        check(
            &machine(|_| {}),
            vec![input(wide_a, wide_w), kernel(), fold],
            &[(0, 1, 2), (1, 2, 3), (2, 3, end(5 * passes) - 1)],
        );
    }
}

#[test]
fn shadow_accumulators_hide_fill_and_drain() {
    let fold = || plain(matmul(8, 1, 1));
    let tail = 2 * R + C - 1;
    check(
        &machine(|_| {}),
        vec![input(0, 0), kernel(), fold(), fold()],
        &[(0, 1, 2), (1, 2, 3), (2, 3, 11 + tail), (3, 11, 19 + tail)],
    );
    check(
        &machine(|config| config.shadow = false),
        vec![input(0, 0), kernel(), fold(), fold()],
        &[
            (0, 1, 2),
            (1, 2, 3),
            (2, 3, 11 + tail),
            (3, 11 + tail, 19 + 2 * tail),
        ],
    );
}

#[test]
fn two_drains_do_not_overlap() {
    let fold = || plain(matmul(1, 1, 1));
    let tail = 2 * R + C - 1;
    check(
        &machine(|_| {}),
        vec![input(0, 0), kernel(), fold(), fold()],
        &[
            (0, 1, 2),
            (1, 2, 3),
            (2, 3, 4 + tail),
            (3, 3 + R, 4 + R + tail),
        ],
    );
}

#[test]
fn a_fold_goes_on_without_a_bubble() {
    let tail = 2 * R + C - 1;
    let parts = [matmul(3, 1, 0), matmul(2, 0, 0), matmul(3, 0, 1)];
    let mut stream = vec![input(0, 0), kernel()];
    stream.extend(parts.map(plain));
    check(
        &machine(|_| {}),
        stream,
        &[
            (0, 1, 2),
            (1, 2, 3),
            (2, 3, 6 + tail),
            (3, 6, 8 + tail),
            (4, 8, 11 + tail),
        ],
    );
}

#[test]
fn post_unit_takes_lanes_a_cycle_and_four_stages() {
    let to = Destination {
        width: 8,
        pixel_bytes: 8,
        q_max: 7,
        ..Destination::default()
    };
    let requantize = Requantize {
        rows_minus_1: 3,
        cols_minus_1: 2,
        ..Requantize::default()
    };
    let source = Source {
        width: 8,
        height: 2,
        pixel_bytes: 8,
        ..Source::default()
    };
    let window = Window {
        height: 2,
        width: 2,
        stride_y: 1,
        stride_x: 1,
        ..Window::default()
    };
    let pool = Pool {
        n_pixels: 3,
        n_channels: 5,
        ..Pool::default()
    };
    check(
        &machine(|_| {}),
        vec![
            plain(to),
            plain(requantize),
            plain(source),
            plain(window),
            plain(pool),
        ],
        &[
            (0, 1, 2),
            (1, 2, 2 + 4 * 2 + 4),
            (2, 10, 11),
            (3, 11, 12),
            (4, 12, 12 + 3 * 3 * 4 + 4),
        ],
    );
}

/// Pixels × groups of lanes × taps × passes, then the four stages.
#[test]
fn depthwise_takes_a_tap_and_pass_a_cycle() {
    let to = Destination {
        width: 8,
        pixel_bytes: 8,
        q_max: 7,
        address: 256,
        ..Destination::default()
    };
    let window = Window {
        height: 3,
        width: 2,
        stride_y: 1,
        stride_x: 1,
        ..Window::default()
    };
    let depthwise = Depthwise {
        n_pixels: 4,
        n_channels: 5,
        ..Depthwise::default()
    };
    for (wide, wide_weights, passes) in [(0, 0, 1), (1, 0, 2), (0, 1, 2), (1, 1, 4)] {
        let source = Source {
            width: 8,
            height: 2,
            pixel_bytes: 8,
            wide,
            ..Source::default()
        };
        let filter = Filter {
            wide_weights,
            ..Filter::default()
        };
        let busy = 4 * 3 * 6 * passes;
        check(
            &machine(|config| config.depthwise = DepthwiseUnit::Post),
            vec![
                plain(to),
                plain(source),
                plain(window),
                plain(filter),
                plain(depthwise),
                plain(depthwise),
            ],
            &[
                (0, 1, 2),
                (1, 2, 3),
                (2, 3, 4),
                (3, 4, 5),
                (4, 5, 5 + busy + 4),
                (5, 5 + busy, 5 + 2 * busy + 4),
            ],
        );
    }
}

#[test]
fn depthwise_needs_lanes_that_multiply() {
    let config = machine(|config| config.depthwise = DepthwiseUnit::Array);
    let program = Program {
        machine: config.fingerprint(),
        instructions: vec![plain(Filter::default())],
        layer_of: vec![0],
        ..Program::default()
    };
    let fault = accelerator::check_program(&program, &config).expect_err("no multipliers");
    assert_eq!(
        fault.to_string(),
        "instruction 0 (filter): this machine does not know it: it needs post.depthwise = \"post\""
    );
}

/// 100 bytes from 60: bursts 60..64, 64..128, 128..160 are 1, 4 and 2 words of 16 bytes.
#[test]
fn bursts_share_the_bus_in_order() {
    let accept = 2; // start 1, first offer 2
    let end = accept + 40 + 1 + 4 + 2;
    check(
        &machine(|_| {}),
        vec![plain(load(60, 100)), plain(load(0, 16))],
        &[(0, 1, end), (1, 5, end + 1)],
    );
}

#[test]
fn a_full_flight_waits_for_the_oldest_burst() {
    // One burst in flight: the second is offered when the first has left, at 2 + 40 + 4.
    check(
        &machine(|config| config.dram.max_outstanding = 1),
        vec![plain(load(0, 128))],
        &[(0, 1, 46 + 40 + 4)],
    );
}

#[test]
fn load_and_store_take_turns() {
    let store = Store {
        dram_address: 1024,
        chip_address: 256,
        n_rows: 1,
        row_bytes: 128,
    };
    // Offers: load 2, 3; store from 3. Accepted: load 2, store 3, load 4, store 5.
    check(
        &machine(|_| {}),
        vec![plain(load(0, 128)), plain(store)],
        &[(0, 1, 2 + 40 + 4 + 4 + 4), (1, 2, 2 + 40 + 4 * 4)],
    );
}

/// Rows of 64 bytes in two banks; an access of 64 bytes takes two cycles.
fn banked(latency_cycles: u32, refi_cycles: u64) -> Config {
    machine(|config| {
        config.dram.latency_cycles = latency_cycles;
        config.dram.banks = Some(Banks {
            n_banks: 2,
            row_bytes: 64,
            access_bytes: 64,
            access_picocycles: 2_000_000_000_000,
            rcd_cycles: 3,
            rp_cycles: 4,
            cl_cycles: 5,
            ras_cycles: 20,
            rc_cycles: 30,
            refi_cycles,
            rfc_cycles: 30,
        });
    })
}

#[test]
fn rows_hit_miss_and_conflict() {
    let loads = [load(0, 16), load(16, 16), load(128, 16), load(64, 16)];
    let timing = check(
        &banked(10, 1000),
        loads.map(plain).to_vec(),
        &[
            // Accepted 2, arrives 12: opens, column 15, data 20 and 21.
            (0, 1, 22),
            // Arrives 14: the row is open, but the bus is free only from 22 on.
            (1, 3, 24),
            // Arrives 16: the row opened in 12 closes in 32, the next opens in 12 + 30, column 45.
            (2, 5, 52),
            // Bank 1 opens in 18; the bus is free from 52 on.
            (3, 7, 54),
        ],
    );
    let met = |hits, misses, conflicts| RowCounts {
        hits,
        misses,
        conflicts,
    };
    let rows = [met(0, 1, 0), met(1, 0, 0), met(0, 0, 1), met(0, 1, 0)];
    assert_eq!(timing.rows, rows);
}

#[test]
fn a_refresh_lets_commands_before_it_pass_and_no_other() {
    // Arrives 46: column 49, just before the refresh of cycle 50.
    let before = check(
        &banked(44, 50),
        vec![plain(load(0, 16))],
        &[(0, 1, 49 + 5 + 2)],
    );
    // Arrives 47: column 50 would be in the refresh; the row opens again in 50 + 4 + 30.
    let after = check(
        &banked(45, 50),
        vec![plain(load(0, 16))],
        &[(0, 1, 84 + 3 + 5 + 2)],
    );
    assert_eq!((before.rows[0].misses, after.rows[0].misses), (1, 1));
}

#[test]
fn a_refresh_closes_rows() {
    // The second would hit, but there were refreshes in 50 and, while nothing happened, in 100.
    let fence = plain(isa::Fence {});
    let timing = check(
        &banked(44, 50),
        vec![plain(load(0, 16)), fence, plain(load(16, 16))],
        &[(0, 1, 56), (56, 56, 57), (57, 58, 134 + 3 + 5 + 2)],
    );
    assert_eq!(timing.rows[2].misses, 1);
}

#[test]
fn tokens_and_queues_hold_instructions_back() {
    let signalling = Instruction {
        signal: Units::NONE.with(Unit::Array),
        ..plain(load(0, 16))
    };
    let waiting = Instruction {
        wait: Units::NONE.with(Unit::Load),
        ..input(0, 0)
    };
    let loaded = 2 + 40 + 1;
    check(
        &machine(|config| config.queue_depth = 1),
        vec![signalling, waiting, kernel(), plain(isa::Fence {})],
        &[
            (0, 1, loaded),
            (1, loaded, loaded + 1),
            (loaded + 1, loaded + 2, loaded + 3),
            (loaded + 3, loaded + 3, loaded + 4),
        ],
    );
}
