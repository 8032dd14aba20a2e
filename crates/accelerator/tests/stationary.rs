//! `preload` and `stream`: cycles and values computed by hand from `docs/machine.md`, for both models.

use accelerator::{Config, Dataflow, event, stepped};
use arith::{ChannelOverflow, Overflow};
use isa::{
    Destination, Fence, Input, Instruction, Kernel, LayerInfo, Load, Matmul, Op, Preload, Program,
    Requantize, Store, Stream, Unit, Units,
};

const R: u64 = 4;
const C: u64 = 3;
const STATIONARY: [Dataflow; 2] = [Dataflow::WeightStationary, Dataflow::InputStationary];

fn machine(dataflow: Dataflow, shadow: bool) -> Config {
    let edge = include_str!("../../../configs/edge-16x16.toml");
    let mut config = Config::from_toml(edge).expect("the preset");
    config.set_array(dataflow, R as u32, C as u32);
    config.shadow = shadow;
    config
}

fn program(config: &Config, instructions: Vec<Instruction>) -> Program {
    Program {
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
    }
}

/// Runs both models and compares (start, end) of every instruction.
fn check(config: &Config, ops: &[Op], expected: &[(u64, u64)]) {
    let instructions = ops.iter().map(|&op| Instruction::new(op)).collect();
    let program = program(config, instructions);
    let fast = event::time(&program, config).expect("the program runs");
    let slow = stepped::run(&program, config, &mut vec![0; 4096]).expect("the program runs");
    let seen: Vec<_> = (0..ops.len())
        .map(|i| (fast.start[i], fast.end[i]))
        .collect();
    assert_eq!(seen, expected, "event model");
    assert_eq!(slow.timing, fast, "stepped model");
}

fn input(wide_activations: u32, wide_weights: u32) -> Op {
    Op::Input(Input {
        width: 8,
        height: 1,
        pixel_bytes: 16,
        n_channels: 16,
        wide_activations,
        wide_weights,
        ..Input::default()
    })
}

fn kernel() -> Op {
    Op::Kernel(Kernel {
        height: 1,
        width: 1,
        stride_y: 1,
        stride_x: 1,
        dilation_y: 1,
        dilation_x: 1,
        output_width: 8,
        ..Kernel::default()
    })
}

fn preload(first: u32) -> Op {
    Op::Preload(Preload {
        rows_minus_1: R as u32 - 1,
        cols_minus_1: C as u32 - 1,
        first,
        ..Preload::default()
    })
}

fn stream(n: u32) -> Op {
    Op::Stream(Stream {
        n_minus_1: n - 1,
        cols_minus_1: C as u32 - 1,
        ..Stream::default()
    })
}

/// Published for skewed hardware: load R, stream n, fill and drain R + C - 1; then the adder.
#[test]
fn one_fold_is_load_stream_fill_and_drain() {
    for dataflow in STATIONARY {
        for (wide_a, wide_w, passes) in [(0, 0, 1), (1, 0, 2), (0, 1, 2), (1, 1, 4)] {
            let stays = match dataflow {
                Dataflow::InputStationary => wide_a,
                Dataflow::WeightStationary | Dataflow::OutputStationary => wide_w,
            };
            let loaded = 3 + R * u64::from(1 + stays);
            check(
                &machine(dataflow, true),
                &[input(wide_a, wide_w), kernel(), preload(1), stream(5)],
                &[
                    (1, 2),
                    (2, 3),
                    (3, loaded + C - 1),
                    (loaded, loaded + 5 * passes + R + C),
                ],
            );
        }
    }
}

/// The chains are free when the wavefront has taken their values, however short the stream.
#[test]
fn shadow_operands_are_loaded_while_a_stream_is_read() {
    let tail = R + C;
    for dataflow in STATIONARY {
        check(
            &machine(dataflow, true),
            &[
                input(0, 0),
                kernel(),
                preload(1),
                stream(10),
                preload(0),
                stream(2),
                preload(0),
                stream(1),
            ],
            &[
                (1, 2),
                (2, 3),
                (3, 3 + R + C - 1),
                (7, 17 + tail),
                (7 + R, 11 + R + C - 1),
                // Not before the stream before has been read.
                (17, 19 + tail),
                // Longer than that stream.
                (17 + R, 21 + R + C - 1),
                (21 + R, 26 + tail),
            ],
        );
    }
}

/// A preload follows in order, so a stream that does not take the chains holds it back too.
#[test]
fn a_second_stream_of_the_same_operands() {
    let tail = R + C;
    check(
        &machine(Dataflow::WeightStationary, true),
        &[
            input(0, 0),
            kernel(),
            preload(1),
            stream(6),
            stream(6),
            preload(0),
        ],
        &[
            (1, 2),
            (2, 3),
            (3, 3 + R + C - 1),
            (7, 13 + tail),
            (13, 19 + tail),
            (14, 14 + R + C - 1),
        ],
    );
}

#[test]
fn without_shadow_a_preload_waits_for_the_end() {
    let tail = R + C;
    for dataflow in STATIONARY {
        let second = 17 + tail;
        check(
            &machine(dataflow, false),
            &[
                input(0, 0),
                kernel(),
                preload(1),
                stream(10),
                preload(0),
                stream(10),
            ],
            &[
                (1, 2),
                (2, 3),
                (3, 3 + R + C - 1),
                (7, 17 + tail),
                (second, second + R + C - 1),
                (second + R, second + R + 10 + tail),
            ],
        );
    }
}

#[test]
fn setups_wait_until_nothing_is_read() {
    let tail = R + C;
    check(
        &machine(Dataflow::WeightStationary, true),
        &[
            input(0, 0),
            kernel(),
            preload(1),
            input(0, 0),
            stream(6),
            kernel(),
            preload(0),
            Op::Fence(Fence {}),
        ],
        &[
            (1, 2),
            (2, 3),
            (3, 3 + R + C - 1),
            (7, 8),
            (8, 14 + tail),
            (14, 15),
            (15, 15 + R + C - 1),
            // The preload ends with its last read in the last column, the stream after it.
            (14 + tail, 15 + tail),
        ],
    );
}

#[test]
fn each_array_has_its_own_instructions() {
    for dataflow in STATIONARY {
        let config = machine(dataflow, true);
        let matmul = Matmul {
            n_steps: 1,
            first: 1,
            last: 1,
            ..Matmul::default()
        };
        let fault = refused(&config, &[input(0, 0), kernel(), matmul.into()]);
        let needs =
            "this machine does not know it: it needs array.dataflow = \"output-stationary\"";
        assert_eq!(fault, format!("instruction 2 (matmul): {needs}"));
    }
    let config = machine(Dataflow::OutputStationary, true);
    let fault = refused(&config, &[input(0, 0), kernel(), preload(1)]);
    let needs = "array.dataflow = \"weight-stationary\" or \"input-stationary\"";
    let text = format!("instruction 2 (preload): this machine does not know it: it needs {needs}");
    assert_eq!(fault, text);
}

#[test]
fn reductions_are_well_formed() {
    let config = machine(Dataflow::WeightStationary, true);
    let fold = "the fold is not well formed";
    for (ops, answer) in [
        (
            vec![stream(1)],
            format!("instruction 2 (stream): {fold}: a stream needs a preload"),
        ),
        (
            vec![preload(0)],
            format!("instruction 2 (preload): {fold}: it must begin with first = 1"),
        ),
        (
            vec![preload(1), preload(0)],
            format!("instruction 3 (preload): {fold}: a preload needs a stream before the next"),
        ),
        (
            vec![preload(1), input(1, 0), stream(1)],
            format!(
                "instruction 4 (stream): {fold}: channels, widths, signs and kernel must stay during \
                 a reduction"
            ),
        ),
        (
            [preload(1), stream(1), preload(0), stream(1)].repeat(3),
            // 16 channels are four folds of four steps; the third preload begins again.
            String::new(),
        ),
        (
            [
                vec![preload(1), stream(1)],
                [preload(0), stream(1)].repeat(4),
            ]
            .concat(),
            "instruction 10 (preload): rows_minus_1 = 3: more steps than kernel taps times channels"
                .to_owned(),
        ),
    ] {
        let ops = [vec![input(0, 0), kernel()], ops].concat();
        let program = program(&config, ops.into_iter().map(Instruction::new).collect());
        let found = accelerator::check_program(&program, &config);
        assert_eq!(found.map_or_else(|fault| fault.to_string(), |()| String::new()), answer);
    }
}

fn refused(config: &Config, ops: &[Op]) -> String {
    let instructions = ops.iter().map(|&op| Instruction::new(op)).collect();
    let program = program(config, instructions);
    let fault = event::time(&program, config).expect_err("not for this machine");
    fault.to_string()
}

/// Four products, 100, 100, -100, -100, into a saturating accumulator of 8 bits: one after the other
/// 100, 127, 27, -73; in folds of two 100, 127 and -100, -128, together -1.
#[test]
fn folds_saturate_in_their_own_order() {
    let record = |n, first_k, min, max| ChannelOverflow {
        n_overflowed: n,
        n_outputs_touched: 1,
        first_k: Some(first_k),
        min_partial_sum: min,
        max_partial_sum: max,
    };
    let in_folds = (-1, record(2, 1, -200, 200));
    for (dataflow, expected) in [
        (Dataflow::OutputStationary, (-73, record(1, 1, 0, 200))),
        (Dataflow::WeightStationary, in_folds),
        (Dataflow::InputStationary, in_folds),
    ] {
        let edge = include_str!("../../../configs/edge-16x16.toml");
        let mut config = Config::from_toml(edge).expect("the preset");
        config.set_array(dataflow, 2, 2);
        config.arithmetic.accumulator.width_bits = 8;
        config.arithmetic.accumulator.overflow = Overflow::Saturate;
        let mut program = program(&config, saturating_program(dataflow));
        // A table entry without bias and M = 1, the activations, lines of the weight 1: a step each,
        // or a channel's two steps in one.
        let ones = if dataflow == Dataflow::InputStationary {
            0x11
        } else {
            1
        };
        program.data = vec![0, 0, 0, 1, 0, 0, 0, 0, 100, 100, 156, 156];
        program.data.extend([ones; 4]);
        let image = || {
            let mut dram = program.data.clone();
            dram.resize(4096, 0);
            dram
        };
        let (mut fast, mut slow) = (image(), image());
        let events = event::execute(&program, &config, &mut fast).expect("the program runs");
        let run = stepped::run(&program, &config, &mut slow).expect("the program runs");
        assert_eq!((fast[64] as i8, events[0]), expected, "{dataflow:?}");
        assert_eq!((slow[64] as i8, run.overflow[0]), expected, "{dataflow:?}");
    }
}

fn saturating_program(dataflow: Dataflow) -> Vec<Instruction> {
    let load = |memory, dram_address, row_bytes| Load {
        memory,
        dram_address,
        chip_address: 0,
        n_rows: 1,
        row_bytes,
    };
    let mut program: Vec<Instruction> = [load(2, 0, 8), load(0, 8, 4), load(1, 12, 4)]
        .map(Instruction::new)
        .into();
    program.push(Instruction::new(Fence {}));
    program.push(Instruction::new(Input {
        width: 1,
        height: 1,
        pixel_bytes: 4,
        n_channels: 4,
        wide_activations: 1,
        signed_activations: 1,
        ..Input::default()
    }));
    program.push(Instruction::new(Kernel {
        output_width: 1,
        ..match kernel() {
            Op::Kernel(kernel) => kernel,
            other => unreachable!("{other:?}"),
        }
    }));
    let weights_stay = dataflow == Dataflow::WeightStationary;
    if dataflow == Dataflow::OutputStationary {
        program.push(Instruction::new(Matmul {
            n_steps: 4,
            first: 1,
            last: 1,
            ..Matmul::default()
        }));
    } else {
        for fold in 0..2 {
            program.push(Instruction::new(Preload {
                rows_minus_1: 1,
                weight_line: if weights_stay { 2 * fold } else { 0 },
                first: 1 - fold,
                ..Preload::default()
            }));
            program.push(Instruction::new(Stream {
                weight_line: if weights_stay { 0 } else { fold },
                accumulate: fold,
                last: fold,
                ..Stream::default()
            }));
        }
    }
    let to_post = program.last_mut().expect("the array's last");
    to_post.signal = Units::NONE.with(Unit::Post);
    program.push(Instruction::new(Destination {
        address: 16,
        width: 1,
        pixel_bytes: 1,
        size: 1,
        q_min: -128,
        q_max: 127,
    }));
    let mut requantize = Instruction::new(Requantize::default());
    requantize.wait = Units::NONE.with(Unit::Array);
    requantize.signal = Units::NONE.with(Unit::Store);
    program.push(requantize);
    let mut store = Instruction::new(Store {
        dram_address: 64,
        chip_address: 16,
        n_rows: 1,
        row_bytes: 1,
    });
    store.wait = Units::NONE.with(Unit::Post);
    program.push(store);
    program
}
