//! The one list of instructions. Everything else (opcode, encoder, decoder, text, the table in
//! `docs/isa.md`) follows from it.
//!
//! A line of the list: documentation, mnemonic, variant, opcode, unit, then the operand fields in
//! the order of their bits, each with its width. An `i16` field is two's complement. Fields stand
//! from bit 14 upwards, behind the header (opcode 6 bits, wait mask 4, signal mask 4). `min` and
//! `max` narrow what the width allows: 0 where an extent must be at least 1, say.

/// Hands the list to a macro: `$callback! { (doc, mnemonic, Variant, opcode, Unit, { fields }) … }`.
macro_rules! for_each_op {
    ($callback:ident) => {
        $callback! {
            /// Waits until every unit is idle and every queue empty.
            ("fence", Fence, 0, Frontend, {}),
            /// Sets the distances between the rows of following `load`s.
            ("load_pitch", LoadPitch, 1, Load, {
                /// Bytes between row starts in DRAM.
                dram_pitch: u32 = 32,
                /// Bytes between row starts in the on-chip memory.
                chip_pitch: u32 = 24,
            }),
            /// Copies rows of bytes from DRAM into an on-chip memory.
            ("load", Load, 2, Load, {
                /// 0 activation scratchpad, 1 weight scratchpad, 2 parameter table.
                memory: u32 = 2 max 2,
                /// First byte in DRAM.
                dram_address: u32 = 32,
                /// First byte in the on-chip memory.
                chip_address: u32 = 24,
                /// Rows, at least 1.
                n_rows: u32 = 16 min 1,
                /// Bytes of a row, at least 1.
                row_bytes: u32 = 20 min 1,
            }),
            /// Sets the distances between the rows of following `store`s.
            ("store_pitch", StorePitch, 3, Store, {
                /// Bytes between row starts in DRAM.
                dram_pitch: u32 = 32,
                /// Bytes between row starts in the activation scratchpad.
                chip_pitch: u32 = 24,
            }),
            /// Copies rows of bytes from the activation scratchpad to DRAM.
            ("store", Store, 4, Store, {
                /// First byte in DRAM.
                dram_address: u32 = 32,
                /// First byte in the activation scratchpad.
                chip_address: u32 = 24,
                /// Rows, at least 1.
                n_rows: u32 = 16 min 1,
                /// Bytes of a row, at least 1.
                row_bytes: u32 = 20 min 1,
            }),
            /// Where the array finds its activations: a tile of pixels.
            ("input", Input, 5, Array, {
                /// First byte of the tile in the activation scratchpad.
                address: u32 = 24,
                /// Pixels of a row.
                width: u32 = 14,
                /// Rows.
                height: u32 = 14,
                /// Bytes from one pixel to the next.
                pixel_bytes: u32 = 16,
                /// First channel of the group.
                channel: u32 = 16,
                /// Channels of the group, at least 1.
                n_channels: u32 = 16 min 1,
                /// 1: activations of 8 bits, 0: of 4 bits.
                wide_activations: u32 = 1,
                /// 1: activations are two's complement.
                signed_activations: u32 = 1,
                /// 1: weights of 8 bits (two lines a step), 0: of 4 bits.
                wide_weights: u32 = 1,
            }),
            /// The kernel that the array applies.
            ("kernel", Kernel, 6, Array, {
                /// Kernel rows, at least 1.
                height: u32 = 8 min 1,
                /// Kernel columns, at least 1.
                width: u32 = 8 min 1,
                /// Vertical step between outputs.
                stride_y: u32 = 8 min 1,
                /// Horizontal step between outputs.
                stride_x: u32 = 8 min 1,
                /// Vertical step between taps.
                dilation_y: u32 = 8 min 1,
                /// Horizontal step between taps.
                dilation_x: u32 = 8 min 1,
                /// Zero rows above the tile.
                pad_top: u32 = 8,
                /// Zero columns left of the tile.
                pad_left: u32 = 8,
                /// Output pixels of a row: the r-th pixel after `(y, x)` wraps into the next rows.
                output_width: u32 = 14,
            }),
            /// One fold, or a run of steps of one: a block of outputs accumulates in the array.
            ("matmul", Matmul, 7, Array, {
                /// Output row of array row 0.
                y: u32 = 12,
                /// Output column of array row 0.
                x: u32 = 12,
                /// Array rows in use, minus 1.
                rows_minus_1: u32 = 8,
                /// Array columns in use, minus 1.
                cols_minus_1: u32 = 8,
                /// First line in the weight scratchpad.
                weight_line: u32 = 18,
                /// Accumulator block that receives the result.
                block: u32 = 4,
                /// Steps of the reduction, at least 1; they continue where the fold's last stopped.
                n_steps: u32 = 16 min 1,
                /// 1: the accumulators start from the bias.
                first: u32 = 1,
                /// 1: the result drains into the block.
                last: u32 = 1,
                /// Parameter table entry of column 0.
                parameter: u32 = 12,
                /// Overflow counter of column 0.
                channel: u32 = 20,
            }),
            /// Where following `pool`s and `depthwise`s find their input: a tile of pixels.
            ("source", Source, 8, Post, {
                /// First byte of the tile in the activation scratchpad.
                address: u32 = 24,
                /// Pixels of a row.
                width: u32 = 14,
                /// Rows; 0 makes every tap padding.
                height: u32 = 14,
                /// Bytes from one pixel to the next.
                pixel_bytes: u32 = 16,
                /// 1: elements of 8 bits, 0: of 4 bits.
                wide: u32 = 1,
                /// 1: elements are two's complement.
                signed: u32 = 1,
            }),
            /// The window of following `pool`s and `depthwise`s.
            ("window", Window, 9, Post, {
                /// Window rows, at least 1.
                height: u32 = 8 min 1,
                /// Window columns, at least 1.
                width: u32 = 8 min 1,
                /// Vertical step between outputs.
                stride_y: u32 = 8 min 1,
                /// Horizontal step between outputs.
                stride_x: u32 = 8 min 1,
                /// Vertical step between taps.
                dilation_y: u32 = 8 min 1,
                /// Horizontal step between taps.
                dilation_x: u32 = 8 min 1,
                /// Padding rows above the tile.
                pad_top: u32 = 8,
                /// Padding columns left of the tile.
                pad_left: u32 = 8,
            }),
            /// Where following results go, and their clamp.
            ("destination", Destination, 10, Post, {
                /// First byte of the tile in the activation scratchpad.
                address: u32 = 24,
                /// Pixels of a row: outputs run along x and wrap into the next row.
                width: u32 = 14,
                /// Bytes from one pixel to the next.
                pixel_bytes: u32 = 16,
                /// Element size: 0 for 4 bits, 1 for 8, 2 for 16.
                size: u32 = 2 max 2,
                /// Lower clamp.
                q_min: i16 = 16,
                /// Upper clamp.
                q_max: i16 = 16,
            }),
            /// The second operand of following results that ask for it.
            ("residual", Residual, 11, Post, {
                /// First byte of the tile in the activation scratchpad.
                address: u32 = 24,
                /// Pixels of a row.
                width: u32 = 14,
                /// Bytes from one pixel to the next.
                pixel_bytes: u32 = 16,
                /// 1: elements of 8 bits, 0: of 4 bits.
                wide: u32 = 1,
                /// 1: elements are two's complement.
                signed: u32 = 1,
                /// Vertical sub-sampling.
                stride_y: u32 = 4,
                /// Horizontal sub-sampling.
                stride_x: u32 = 4,
                /// Multiplier.
                mantissa: u32 = 8,
                /// Right shift, at most that of the result's channel.
                shift: u32 = 6,
                /// First destination channel that it reaches.
                channel: u32 = 16,
                /// Channels that it reaches.
                n_channels: u32 = 16,
            }),
            /// The multiplier of negative values, for following results that ask for it.
            ("slope", Slope, 12, Post, {
                /// Multiplier.
                mantissa: u32 = 8,
                /// Right shift.
                shift: u32 = 4,
            }),
            /// Requantizes an accumulator block.
            ("requantize", Requantize, 13, Post, {
                /// Accumulator block.
                block: u32 = 4,
                /// Destination row of the first pixel.
                y: u32 = 12,
                /// Destination column of the first pixel.
                x: u32 = 12,
                /// Block rows in use, minus 1: pixels; channels on an input-stationary machine.
                rows_minus_1: u32 = 12,
                /// Block columns in use, minus 1: channels; pixels on an input-stationary machine.
                cols_minus_1: u32 = 8,
                /// First block row.
                row: u32 = 12,
                /// Parameter table entry of the first channel.
                parameter: u32 = 12,
                /// Destination channel of the first channel.
                channel: u32 = 16,
                /// 1: adds the second operand.
                add_residual: u32 = 1,
                /// 1: applies the slope to negative values.
                use_slope: u32 = 1,
            }),
            /// Reduces windows of the source and requantizes the result.
            ("pool", Pool, 14, Post, {
                /// Destination row of the first pixel.
                y: u32 = 12,
                /// Destination column of the first pixel.
                x: u32 = 12,
                /// Pixels, at least 1.
                n_pixels: u32 = 14 min 1,
                /// First destination channel.
                channel: u32 = 16,
                /// First source channel.
                source_channel: u32 = 16,
                /// Channels, at least 1.
                n_channels: u32 = 14 min 1,
                /// 0: largest value, 1: sum.
                sum: u32 = 1,
                /// Multiplier.
                mantissa: u32 = 8,
                /// Right shift.
                shift: u32 = 6,
                /// 1: adds the second operand.
                add_residual: u32 = 1,
                /// 1: applies the slope to negative values.
                use_slope: u32 = 1,
            }),
            /// Fills the PEs of a weight-stationary or input-stationary array with the next steps.
            ("preload", Preload, 15, Array, {
                /// Input-stationary: output row of array column 0. Else 0.
                y: u32 = 12,
                /// Input-stationary: output column of array column 0. Else 0.
                x: u32 = 12,
                /// Steps of the reduction (array rows in use), minus 1.
                rows_minus_1: u32 = 8,
                /// Array columns in use, minus 1.
                cols_minus_1: u32 = 8,
                /// Weight-stationary: line of the first step in the weight scratchpad. Else 0.
                weight_line: u32 = 18,
                /// 1: the reduction begins, its steps count from 0; 0: they go on.
                first: u32 = 1,
            }),
            /// Streams elements through the steps that the PEs hold, into an accumulator block.
            ("stream", Stream, 16, Array, {
                /// Weight-stationary: output row of the first pixel. Else 0.
                y: u32 = 12,
                /// Weight-stationary: output column of the first pixel. Else 0.
                x: u32 = 12,
                /// Elements (pixels; output channels when input-stationary), minus 1.
                n_minus_1: u32 = 12,
                /// Array columns in use, minus 1; as in the `preload`.
                cols_minus_1: u32 = 8,
                /// Input-stationary: first line of element 0 in the weight scratchpad. Else 0.
                weight_line: u32 = 18,
                /// Accumulator block that receives the sums.
                block: u32 = 4,
                /// Block row of element 0.
                row: u32 = 12,
                /// Parameter table entry of column 0; of element 0 when input-stationary.
                parameter: u32 = 12,
                /// Overflow counter of column 0; of element 0 when input-stationary.
                channel: u32 = 20,
                /// 1: sums start from 0 and are added to the block; 0: from the bias, into the block.
                accumulate: u32 = 1,
                /// 1: the reduction ends, its overflow records are counted.
                last: u32 = 1,
            }),
            /// The weights, parameters and overflow counters of following `depthwise`s.
            ("filter", Filter, 17, Post, {
                /// First byte of the weights in the weight scratchpad.
                weight_address: u32 = 24,
                /// 1: weights of 8 bits, 0: of 4 bits.
                wide_weights: u32 = 1,
                /// Parameter table entry of the first channel.
                parameter: u32 = 12,
                /// Overflow counter of the first channel.
                counter: u32 = 20,
            }),
            /// Convolves each channel of the source with a filter of its own and requantizes the sum.
            ("depthwise", Depthwise, 18, Post, {
                /// Destination row of the first pixel.
                y: u32 = 12,
                /// Destination column of the first pixel.
                x: u32 = 12,
                /// Pixels, at least 1.
                n_pixels: u32 = 14 min 1,
                /// First destination channel.
                channel: u32 = 16,
                /// First source channel.
                source_channel: u32 = 16,
                /// Channels, at least 1.
                n_channels: u32 = 14 min 1,
                /// 1: adds the second operand.
                add_residual: u32 = 1,
                /// 1: applies the slope to negative values.
                use_slope: u32 = 1,
            }),
        }
    };
}
pub(crate) use for_each_op;
