//! The end of a directed program on a machine whose lanes convolve depthwise.
//!
//! Invariant: it begins and ends behind a fence, and writes DRAM that nothing else writes.

use super::directed::{LANES_OUT, List, RESULT};
use isa::{Depthwise, Destination, Fence, Filter, Op, Store, StorePitch};

/// Overflow counters behind those of the array, so that a difference names who counted.
const FIRST_COUNTER: u32 = 20;

/// Two depthwise convolutions of the input tile, with the window that the pools have left: one
/// shows whole sums, the other adds the residual and goes through the slope.
pub(super) fn depthwise_work(list: &mut List, wide_weights: u32) {
    let mut push = |op| list.push(op, None, None);
    let to = |address, size, (q_min, q_max)| Destination {
        address,
        width: 4,
        pixel_bytes: 32,
        size,
        q_min,
        q_max,
    };
    let depthwise = Depthwise {
        y: 0,
        x: 1,
        n_pixels: 7,
        channel: 1,
        source_channel: 2,
        n_channels: 5,
        add_residual: 0,
        use_slope: 0,
    };
    push(Op::Filter(Filter {
        weight_address: 3,
        wide_weights,
        parameter: 0,
        counter: FIRST_COUNTER,
    }));
    push(Op::Destination(to(RESULT, 2, (-30000, 30000))));
    push(Op::Depthwise(depthwise));
    push(Op::Filter(Filter {
        weight_address: 100,
        wide_weights,
        parameter: 1,
        counter: FIRST_COUNTER + 6,
    }));
    push(Op::Destination(to(RESULT + 256, 1, (-100, 100))));
    push(Op::Depthwise(Depthwise {
        n_channels: 4,
        add_residual: 1,
        use_slope: 1,
        ..depthwise
    }));
    push(Op::Fence(Fence {}));
    push(Op::StorePitch(StorePitch {
        dram_pitch: 256,
        chip_pitch: 256,
    }));
    push(Op::Store(Store {
        dram_address: LANES_OUT,
        chip_address: RESULT,
        n_rows: 2,
        row_bytes: 256,
    }));
    push(Op::Fence(Fence {}));
}
