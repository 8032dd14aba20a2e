//! Cycles and values worked out by hand from `docs/machine.md`.

mod unwatched;

use super::run;
use crate::{Config, Dataflow, DepthwiseUnit, DramConfig, Fault, FaultKind, Run};
use arith::{AccumulatorFormat, Arithmetic, Overflow, ReductionOrder, Rounding};
use isa::{
    Depthwise, Destination, Fence, Filter, Input, Instruction, Kernel, Load, Matmul, Op, Pool,
    Program, Requantize, Source, Store, Unit, Units, Window,
};

fn config(shadow: bool, width_bits: u8, overflow: Overflow) -> Config {
    Config {
        name: "test".into(),
        clock_hz: 1,
        dataflow: Dataflow::OutputStationary,
        rows: 2,
        cols: 3,
        shadow,
        arithmetic: Arithmetic {
            accumulator: AccumulatorFormat {
                width_bits,
                overflow,
            },
            rounding: Rounding::HalfEven,
            order: ReductionOrder::InOrder,
            depthwise_order: ReductionOrder::InOrder,
        },
        n_blocks: 2,
        block_rows: 2,
        lanes: 2,
        depthwise: DepthwiseUnit::Post,
        activation_bytes: 256,
        weight_bytes: 64,
        n_parameters: 8,
        queue_depth: 4,
        max_tokens: 2,
        dram: DramConfig {
            size_bytes: 256,
            latency_cycles: 10,
            bytes_per_cycle: 8,
            burst_bytes: 32,
            max_outstanding: 4,
            banks: None,
        },
    }
}

fn instruction(op: impl Into<Op>, wait: &[Unit], signal: &[Unit]) -> Instruction {
    let units = |list: &[Unit]| list.iter().fold(Units::NONE, |set, &unit| set.with(unit));
    Instruction {
        wait: units(wait),
        signal: units(signal),
        ..Instruction::new(op)
    }
}

fn run_on(config: &Config, dram: &mut [u8], code: &[Instruction]) -> Result<Run, Fault> {
    let program = Program {
        machine: config.fingerprint(),
        dram_bytes: 256,
        n_channels: 3,
        instructions: code.to_vec(),
        layer_of: vec![0; code.len()],
        ..Program::default()
    };
    run(&program, config, dram)
}

fn times(config: &Config, ops: &[Op]) -> Vec<(u64, u64, u64)> {
    let code: Vec<_> = ops.iter().map(|&op| Instruction::new(op)).collect();
    let run = run_on(config, &mut [0; 256], &code).expect("a good program");
    let timing = run.timing;
    (0..ops.len())
        .map(|i| (timing.issue[i], timing.start[i], timing.end[i]))
        .collect()
}

fn machine(shadow: bool) -> Config {
    config(shadow, 16, Overflow::Saturate)
}

fn load(memory: u32, dram_address: u32, row_bytes: u32) -> Op {
    Load {
        memory,
        dram_address,
        chip_address: 0,
        n_rows: 1,
        row_bytes,
    }
    .into()
}

fn store(dram_address: u32, chip_address: u32, row_bytes: u32) -> Op {
    Store {
        dram_address,
        chip_address,
        n_rows: 1,
        row_bytes,
    }
    .into()
}

fn input(wide: u32) -> Op {
    Input {
        address: 0,
        width: 3,
        height: 1,
        pixel_bytes: 1,
        channel: 0,
        n_channels: 1,
        wide_activations: wide & 1,
        signed_activations: 0,
        wide_weights: wide >> 1,
    }
    .into()
}

fn kernel() -> Op {
    Kernel {
        height: 1,
        width: 2,
        stride_y: 1,
        stride_x: 1,
        dilation_y: 1,
        dilation_x: 1,
        pad_top: 0,
        pad_left: 1,
        output_width: 3,
    }
    .into()
}

fn matmul(n_steps: u32, first: u32, last: u32) -> Op {
    Matmul {
        y: 0,
        x: 0,
        rows_minus_1: 1,
        cols_minus_1: 0,
        weight_line: 0,
        block: 0,
        n_steps,
        first,
        last,
        parameter: 0,
        channel: 0,
    }
    .into()
}

fn destination(size: u32, q_min: i16, q_max: i16) -> Op {
    Destination {
        address: 16,
        width: 3,
        pixel_bytes: 4,
        size,
        q_min,
        q_max,
    }
    .into()
}

fn requantize(cols: u32) -> Op {
    Requantize {
        block: 0,
        y: 0,
        x: 0,
        rows_minus_1: 1,
        cols_minus_1: cols - 1,
        row: 0,
        parameter: 0,
        channel: 0,
        add_residual: 0,
        use_slope: 0,
    }
    .into()
}

#[test]
fn setup_takes_a_cycle() {
    assert_eq!(
        times(&machine(true), &[input(0), kernel()]),
        [(0, 1, 2), (1, 2, 3)]
    );
}

#[test]
fn a_load_is_split_at_bursts_and_words() {
    // Two bursts of four words, accepted in 2 and 3; the second waits for the bus.
    assert_eq!(times(&machine(true), &[load(0, 0, 64)]), [(0, 1, 20)]);
    // Four bytes across a boundary: two bursts of one word.
    assert_eq!(times(&machine(true), &[load(0, 30, 4)]), [(0, 1, 14)]);
    // The next transfer starts one after the last acceptance (3), and is first accepted in 5.
    assert_eq!(
        times(&machine(true), &[load(0, 0, 64), load(0, 0, 8)]),
        [(0, 1, 20), (1, 4, 21)]
    );
}

#[test]
fn dma_units_alternate() {
    // Accepted: load 2, store 3, load 4, store 5; four words each, one after the other from 12.
    let times = times(&machine(true), &[load(0, 0, 64), store(64, 64, 64)]);
    assert_eq!(times, [(0, 1, 24), (1, 2, 28)]);
}

#[test]
fn bursts_in_flight_are_limited() {
    let mut config = machine(true);
    config.dram.max_outstanding = 1;
    // Accepted in 2, bus 12 to 15; the second is accepted in 16, bus 26 to 29.
    assert_eq!(times(&config, &[load(0, 0, 64)]), [(0, 1, 30)]);
}

#[test]
fn passes_lengthen_a_fold() {
    for (wide, n_passes) in [(0, 1), (1, 2), (2, 2), (3, 4)] {
        let times = times(&machine(true), &[input(wide), kernel(), matmul(2, 1, 1)]);
        assert_eq!(times[2], (2, 3, 3 + 2 * n_passes + 6), "wide = {wide}");
    }
}

#[test]
fn drains_do_not_overlap() {
    let ops = [input(0), kernel(), matmul(1, 1, 1), matmul(1, 1, 1)];
    // 3 + 1 + 2 - 1 = 5 with shadow accumulators, else the end of the one before.
    assert_eq!(times(&machine(true), &ops)[2..], [(2, 3, 10), (3, 5, 12)]);
    assert_eq!(times(&machine(false), &ops)[2..], [(2, 3, 10), (3, 10, 17)]);
    let parts = [input(0), kernel(), matmul(1, 1, 0), matmul(1, 0, 1)];
    for shadow in [true, false] {
        assert_eq!(
            times(&machine(shadow), &parts)[2..],
            [(2, 3, 10), (3, 4, 11)]
        );
    }
}

#[test]
fn post_unit_takes_lanes() {
    // Two rows, three columns in groups of two lanes: four reads.
    let ops = [destination(1, 0, 255), requantize(3), requantize(1)];
    assert_eq!(
        times(&machine(true), &ops),
        [(0, 1, 2), (1, 2, 10), (2, 6, 12)]
    );
}

#[test]
fn fence_waits_for_every_end() {
    let ops = [load(0, 0, 8), Fence {}.into(), input(0)];
    assert_eq!(
        times(&machine(true), &ops),
        [(0, 1, 13), (13, 13, 14), (14, 15, 16)]
    );
}

#[test]
fn queue_depth_holds_the_frontend() {
    let mut config = machine(true);
    config.queue_depth = 1;
    // The slot that the first leaves in 1 is free from 2 on.
    assert_eq!(
        times(&config, &[input(0), kernel(), input(0)]),
        [(0, 1, 2), (2, 3, 4), (4, 5, 6)]
    );
}

#[test]
fn deadlock_names_the_oldest_that_waits() {
    let code = [
        instruction(input(0), &[Unit::Load], &[]),
        instruction(load(0, 0, 1), &[], &[]),
    ];
    let fault = run_on(&machine(true), &mut [0; 256], &code).expect_err("no token comes");
    assert_eq!(
        (fault.index, fault.kind),
        (
            0,
            FaultKind::Deadlock {
                missing: vec![Unit::Load]
            }
        )
    );
}

#[test]
fn a_third_token_is_too_many() {
    let code = [instruction(load(0, 0, 1), &[], &[Unit::Array]); 3];
    let fault = run_on(&machine(true), &mut [0; 256], &code).expect_err("two is the limit");
    let kind = FaultKind::TokenOverflow {
        from: Unit::Load,
        to: Unit::Array,
        limit: 2,
    };
    assert_eq!((fault.index, fault.kind), (2, kind));
}

/// Activations 200, 3, 7 under the kernel (-100, 5) with one column of padding; bias 3 << 2,
/// multiplier 1, shift 3. Gives the two outputs and the counter.
fn convolve(config: &Config) -> ([i16; 2], arith::ChannelOverflow) {
    let mut dram = [0; 256];
    dram[..8].copy_from_slice(&[0x0C, 0, 0x09, 0, 0x05, 0, 0, 0]);
    dram[8..16].copy_from_slice(&[3, 0, 2, 1, 3, 0, 0, 0]);
    dram[16..19].copy_from_slice(&[200, 3, 7]);
    let code = [
        instruction(load(1, 0, 8), &[], &[]),
        instruction(load(2, 8, 8), &[], &[]),
        instruction(load(0, 16, 3), &[], &[Unit::Array]),
        instruction(input(3), &[Unit::Load], &[]),
        instruction(kernel(), &[], &[]),
        instruction(matmul(2, 1, 1), &[], &[Unit::Post]),
        instruction(destination(2, i16::MIN, i16::MAX), &[], &[]),
        instruction(requantize(1), &[Unit::Array], &[Unit::Store]),
        instruction(store(32, 16, 8), &[Unit::Post], &[]),
    ];
    let run = run_on(config, &mut dram, &code).expect("a good program");
    let output = |at: usize| i16::from_le_bytes([dram[at], dram[at + 1]]);
    ([output(32), output(36)], run.overflow[0])
}

#[test]
fn convolution_by_hand() {
    // 12 + 5·200 = 1012 and 12 - 100·200 + 5·3 = -19973; eighths, ties to even.
    for shadow in [true, false] {
        let (outputs, seen) = convolve(&machine(shadow));
        assert_eq!(outputs, [126, -2497]);
        assert_eq!((seen.n_overflowed, seen.first_k), (0, None));
        assert_eq!(
            (seen.min_partial_sum, seen.max_partial_sum),
            (-19_988, 1012)
        );
    }
}

#[test]
fn overflow_by_hand() {
    // 12 bits: -19988 becomes -2048 or 492; 15 more; eighths.
    for (overflow, output) in [(Overflow::Saturate, -254), (Overflow::Wrap, 63)] {
        let (outputs, seen) = convolve(&config(true, 12, overflow));
        assert_eq!(outputs, [126, output]);
        assert_eq!(
            (seen.n_overflowed, seen.n_outputs_touched, seen.first_k),
            (1, 1, Some(0))
        );
        assert_eq!(seen.min_partial_sum, -19_988, "partial sums are exact");
    }
}

#[test]
fn roundings_by_hand() {
    // 1012 / 8 = 126.5 and -19973 / 8 = -2496.625.
    for (rounding, outputs) in [
        (Rounding::HalfUp, [127, -2497]),
        (Rounding::HalfAwayFromZero, [127, -2497]),
        (Rounding::HalfEven, [126, -2497]),
        (Rounding::Floor, [126, -2497]),
    ] {
        let mut config = machine(true);
        config.arithmetic.rounding = rounding;
        assert_eq!(convolve(&config).0, outputs, "{rounding:?}");
    }
}

#[test]
fn pool_takes_the_largest_and_ignores_padding() {
    let mut dram = [0; 256];
    // Three pixels of two signed nibbles: (-1, 3), (-2, 4), (-3, -8).
    dram[..3].copy_from_slice(&[0x3F, 0x4E, 0x8D]);
    let source = Source {
        address: 0,
        width: 3,
        height: 1,
        pixel_bytes: 1,
        wide: 0,
        signed: 1,
    };
    let window = Window {
        height: 1,
        width: 3,
        stride_y: 1,
        stride_x: 2,
        dilation_y: 1,
        dilation_x: 1,
        pad_top: 0,
        pad_left: 1,
    };
    let pool = Pool {
        y: 0,
        x: 0,
        n_pixels: 2,
        channel: 0,
        source_channel: 0,
        n_channels: 2,
        sum: 0,
        mantissa: 1,
        shift: 0,
        add_residual: 0,
        use_slope: 0,
    };
    let code = [
        instruction(load(0, 0, 3), &[], &[Unit::Post]),
        instruction(source, &[Unit::Load], &[]),
        instruction(window, &[], &[]),
        instruction(destination(0, -8, 7), &[], &[]),
        instruction(pool, &[], &[Unit::Store]),
        instruction(store(32, 16, 8), &[Unit::Post], &[]),
    ];
    let run = run_on(&machine(true), &mut dram, &code).expect("a good program");
    assert_eq!((dram[32], dram[36]), (0x4F, 0x4E));
    // Load: 12 + 1. Setup 13, 14, 15. Two pixels, one group, three taps: 16 + 6 + 4.
    assert_eq!((run.timing.start[4], run.timing.end[4]), (16, 26));
}

/// Two channels of 8 bits with 4-bit weights (3, -2) and (7, -8) over a row of three pixels, one
/// column of padding; the first channel's bias is 100. Gives the outputs and the counters.
fn depthwise_row(overflow: Overflow) -> ([i16; 6], Vec<arith::ChannelOverflow>) {
    let mut dram = [0; 256];
    dram[..16].copy_from_slice(&[100, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    dram[16..18].copy_from_slice(&[0x73, 0x8E]);
    dram[20..26].copy_from_slice(&[10, 200, 20, 100, 30, 50]);
    let source = Source {
        address: 0,
        width: 3,
        height: 1,
        pixel_bytes: 2,
        wide: 1,
        signed: 0,
    };
    let window = Window {
        height: 1,
        width: 2,
        stride_y: 1,
        stride_x: 1,
        dilation_y: 1,
        dilation_x: 1,
        pad_top: 0,
        pad_left: 1,
    };
    let filter = Filter {
        weight_address: 0,
        wide_weights: 0,
        parameter: 0,
        counter: 1,
    };
    let depthwise = Depthwise {
        y: 0,
        x: 0,
        n_pixels: 3,
        channel: 0,
        source_channel: 0,
        n_channels: 2,
        add_residual: 0,
        use_slope: 0,
    };
    let code = [
        instruction(load(2, 0, 16), &[], &[]),
        instruction(load(1, 16, 2), &[], &[]),
        instruction(load(0, 20, 6), &[], &[Unit::Post]),
        instruction(source, &[Unit::Load], &[]),
        instruction(window, &[], &[]),
        instruction(filter, &[], &[]),
        instruction(destination(2, i16::MIN, i16::MAX), &[], &[]),
        instruction(depthwise, &[], &[Unit::Store]),
        instruction(store(32, 16, 12), &[Unit::Post], &[]),
    ];
    let config = config(true, 11, overflow);
    let run = run_on(&config, &mut dram, &code).expect("a good program");
    let outputs = std::array::from_fn(|i| i16::from_le_bytes([dram[32 + 2 * i], dram[33 + 2 * i]]));
    (outputs, run.overflow)
}

#[test]
fn depthwise_by_hand() {
    // Channel 0: 100 + 3·(0, 10, 20) - 2·(10, 20, 30); channel 1: 7·(0, 200, 100) - 8·(200, 100, 50).
    // 11 bits hold -1024 to 1023: -1600 is clipped, and 1400 before 800 is taken away.
    for (overflow, first, second) in [
        (Overflow::Saturate, -1024, 1023 - 800),
        (Overflow::Wrap, -1600 + 2048, 1400 - 2048 - 800 + 2048),
    ] {
        let (outputs, seen) = depthwise_row(overflow);
        assert_eq!(outputs, [80, first, 90, second, 100, 300]);
        assert_eq!((seen[1].n_overflowed, seen[1].first_k), (0, None));
        assert_eq!(
            (seen[1].min_partial_sum, seen[1].max_partial_sum),
            (80, 160)
        );
        let n = if overflow == Overflow::Wrap { 3 } else { 2 };
        assert_eq!((seen[2].n_overflowed, seen[2].n_outputs_touched), (n, 2));
        assert_eq!((seen[2].first_k, seen[2].min_partial_sum), (Some(0), -1600));
        assert_eq!(seen[2].max_partial_sum, 1400);
        assert_eq!(seen[0], arith::ChannelOverflow::default());
    }
}
