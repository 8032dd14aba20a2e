//! The array's part of a directed program on a weight- or input-stationary machine.
//!
//! Invariant: three streams signal the post unit, as three matmuls do on an output-stationary one.

use super::directed::List;
use accelerator::{Config, Dataflow};
use isa::{Op, Preload, Stream, Unit};

/// Elements of the streams that fill a block: a small one whole, of a large one no more than the
/// results have room for.
pub(super) fn n_elements(config: &Config) -> u32 {
    config.block_rows.min(16)
}

/// A reduction of two folds into block 0; between them the first fold's operands stream once more,
/// into the end of the last block; there an array that is in use by half adds in column 0 alone.
pub(super) fn array_work(list: &mut List, config: &Config) {
    let n = n_elements(config);
    let weights_stay = config.dataflow == Dataflow::WeightStationary;
    // A field that only one of the two dataflows has.
    let of_weights = |value: u32| if weights_stay { value } else { 0 };
    let of_inputs = |value: u32| if weights_stay { 0 } else { value };
    let preload = |n_steps: u32, cols_minus_1, weight_line, first| Preload {
        y: 0,
        x: of_inputs(1),
        rows_minus_1: n_steps.min(config.rows) - 1,
        cols_minus_1,
        weight_line: of_weights(weight_line),
        first,
    };
    let stream = Stream {
        y: 0,
        x: of_weights(1),
        n_minus_1: n - 1,
        cols_minus_1: config.cols - 1,
        weight_line: of_inputs(3),
        block: 0,
        row: 0,
        parameter: 0,
        channel: 0,
        accumulate: 0,
        last: 0,
    };
    let again = Stream {
        weight_line: of_inputs(20),
        block: config.n_blocks - 1,
        row: config.block_rows - n,
        channel: 3,
        last: 1,
        ..stream
    };
    let rest = Stream {
        accumulate: 1,
        last: 1,
        ..stream
    };
    let short = Stream {
        n_minus_1: 0,
        cols_minus_1: 0,
        row: config.block_rows - 1,
        accumulate: 1,
        ..again
    };
    let mut push = |op, signal| list.push(op, None, signal);
    push(Op::Preload(preload(11, config.cols - 1, 0, 1)), None);
    push(Op::Stream(stream), None);
    push(Op::Stream(again), Some(Unit::Post));
    push(Op::Preload(preload(7, config.cols - 1, 22, 0)), None);
    push(Op::Stream(rest), Some(Unit::Post));
    push(Op::Preload(preload(config.rows / 2, 0, 5, 1)), None);
    push(Op::Stream(short), Some(Unit::Post));
}
