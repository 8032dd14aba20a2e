//! Tiles of operands and results, and the registers that describe them.
//!
//! Invariant: a tile that is on chip already is never loaded again, and a register is set only when
//! its value changes.

use super::{Access, Emitter, Memory, dma::Transfer};
use crate::{
    job::{Conv, Map, Second, Span, Window},
    weights::Group,
};
use isa::{Destination, Input, Kernel, Residual, Slope};

/// The output tile at work.
#[derive(Clone, Copy)]
pub(super) struct OutputTile {
    pub rows: (u32, u32),
    pub columns: (u32, u32),
    /// Channels that it holds.
    pub channel: u32,
    pub n_channels: u32,
    pub address: u32,
    pub pixel_bytes: u32,
    /// Bytes of the tile.
    pub len: u64,
    /// The second operand's tile.
    pub second: Option<Access>,
}

impl OutputTile {
    pub fn width(&self) -> u32 {
        self.columns.1 - self.columns.0
    }

    pub fn n_pixels(&self) -> u32 {
        (self.rows.1 - self.rows.0) * self.width()
    }
}

impl Emitter<'_> {
    /// An input tile on chip; `None` when the outputs read only padding.
    pub(super) fn load_tile(
        &mut self,
        operand: usize,
        tile: usize,
        map: &Map,
        window: &Window,
    ) -> Option<Access> {
        let [rows, columns] = self.plan.tile(tile);
        let y = window.span(0, rows, map.height)?;
        if let Some(chip) = map.chip {
            // Tiles of tensors that stay on chip are rows of the tensor, from the first column that
            // is read: at most the second.
            let x = window.span(1, columns, map.width)?;
            let first = chip + y.start * map.row_bytes() + x.start * map.pixel_bytes;
            let len = u64::from(y.len) * u64::from(map.row_bytes());
            return Some(Access::new(Memory::Activation, false, first, len));
        }
        let x = window.span(1, columns, map.width)?;
        let (chip, missing) = self.inputs[operand].take(tile);
        let row_bytes = x.len * map.pixel_bytes;
        let mut access = Access::new(
            Memory::Activation,
            true,
            chip,
            u64::from(row_bytes) * u64::from(y.len),
        );
        if missing {
            let transfer = Transfer {
                dram: pixel_address(map, y.start, x.start),
                chip,
                dram_pitch: map.width * map.pixel_bytes,
                chip_pitch: row_bytes,
                n_rows: y.len,
                row_bytes,
            };
            self.load_rows(transfer, access);
        }
        access.write = false;
        Some(access)
    }

    pub(super) fn output_tile(
        &mut self,
        tile: usize,
        slice: Option<(usize, &Group)>,
    ) -> OutputTile {
        let [rows, columns] = self.plan.tile(tile);
        let n_tiles = self.plan.n_tiles();
        let map = &self.job.output;
        let (key, channel, n_channels, pixel_bytes) = match slice {
            None => (tile, 0, map.channels, map.pixel_bytes),
            Some((index, group)) => {
                let bytes = (group.n_channels * map.bits).div_ceil(8);
                (
                    index * n_tiles + tile,
                    group.channel,
                    group.n_channels,
                    bytes,
                )
            }
        };
        let address = match map.chip {
            Some(chip) => chip + rows.0 * map.row_bytes(),
            None => self.output.take(key).0,
        };
        let mut output = OutputTile {
            rows,
            columns,
            channel,
            n_channels,
            address,
            pixel_bytes,
            len: 0,
            second: None,
        };
        output.len = u64::from(output.n_pixels()) * u64::from(pixel_bytes);
        if let Some(second) = self.job.second
            && reaches(&second, &output)
        {
            output.second = Some(self.load_second(&second, tile));
        }
        output
    }

    /// Loads the rows that the second operand's stride keeps, all columns between them.
    fn load_second(&mut self, second: &Second, tile: usize) -> Access {
        let [rows, columns] = self.plan.tile(tile);
        let map = &second.map;
        let n_rows = rows.1 - rows.0;
        if let Some(chip) = map.chip {
            let first = chip + rows.0 * second.stride[0] * map.row_bytes();
            let n_rows = (n_rows - 1) * second.stride[0] + 1;
            let len = u64::from(n_rows) * u64::from(map.row_bytes());
            return Access::new(Memory::Activation, false, first, len);
        }
        let (chip, missing) = self.second.take(tile);
        let row_bytes = second_width(second, columns) * map.pixel_bytes;
        let mut access = Access::new(
            Memory::Activation,
            true,
            chip,
            u64::from(row_bytes) * u64::from(n_rows),
        );
        if missing {
            let transfer = Transfer {
                dram: pixel_address(map, rows.0 * second.stride[0], columns.0 * second.stride[1]),
                chip,
                // The stride of a single row may be larger than the tensor.
                dram_pitch: if n_rows == 1 {
                    row_bytes
                } else {
                    second.stride[0] * map.width * map.pixel_bytes
                },
                chip_pitch: row_bytes,
                n_rows,
                row_bytes,
            };
            self.load_rows(transfer, access);
        }
        access.write = false;
        access
    }

    /// The `kernel`, and the part of the `input` that all groups share.
    pub(super) fn set_input(
        &mut self,
        conv: &Conv,
        tile: usize,
        group: &Group,
        input: Option<Access>,
    ) {
        let [rows, columns] = self.plan.tile(tile);
        let window = &conv.window;
        let spans = input.and_then(|_| {
            let y = window.span(0, rows, conv.input.height)?;
            Some((y, window.span(1, columns, conv.input.width)?))
        });
        // Where everything is padding, one pixel is described and the folds start a row below it.
        let (height, width, pad_top, pad_left) = spans.map_or((1, 1, 0, 0), |(y, x)| {
            (y.len, on_chip_width(&conv.input, x), y.pad, x.pad)
        });
        let kernel = Kernel {
            height: window.kernel[0],
            width: window.kernel[1],
            stride_y: window.stride[0],
            stride_x: window.stride[1],
            dilation_y: window.dilation[0],
            dilation_x: window.dilation[1],
            pad_top,
            pad_left,
            output_width: columns.1 - columns.0,
        };
        if self.registers.kernel != Some(kernel) {
            self.registers.kernel = Some(kernel);
            self.push(kernel, []);
        }
        let input = Input {
            address: input.map_or(self.plan.inputs[0].base, |access| access.from() as u32),
            width,
            height,
            pixel_bytes: conv.input.pixel_bytes,
            channel: group.channel / conv.group_out * conv.group_in,
            n_channels: conv.group_in,
            wide_activations: conv.input.wide(),
            signed_activations: conv.input.signed.into(),
            wide_weights: conv.wide_weights.into(),
        };
        if self.registers.input != Some(input) {
            self.registers.input = Some(input);
            self.push(input, []);
        }
    }

    /// Moves the `input` to the channels that an output channel reads.
    pub(super) fn set_group(&mut self, conv: &Conv, channel: u32) {
        let Some(mut input) = self.registers.input else {
            return;
        };
        let first = channel / conv.group_out * conv.group_in;
        if input.channel != first {
            input.channel = first;
            self.registers.input = Some(input);
            self.push(input, []);
        }
    }

    /// `destination`, `residual` and `slope`.
    pub(super) fn set_destination(&mut self, output: &OutputTile) {
        let destination = Destination {
            address: output.address,
            width: output.width(),
            pixel_bytes: output.pixel_bytes,
            size: match self.job.output.bits {
                4 => 0,
                8 => 1,
                _ => 2,
            },
            q_min: self.job.q_min,
            q_max: self.job.q_max,
        };
        if self.registers.destination != Some(destination) {
            self.registers.destination = Some(destination);
            self.push(destination, []);
        }
        if let (Some(second), Some(access)) = (&self.job.second, output.second) {
            let skipped = output.channel.saturating_sub(second.channel);
            // A tile that was loaded has only the rows that the stride keeps.
            let (width, stride_y) = match second.map.chip {
                Some(_) => (second.map.width, second.stride[0]),
                None => (second_width(second, output.columns), 1),
            };
            let residual = Residual {
                address: access.from() as u32 + skipped * second.map.bits / 8,
                width,
                pixel_bytes: second.map.pixel_bytes,
                wide: second.map.wide(),
                signed: second.map.signed.into(),
                stride_y: if output.rows.1 - output.rows.0 == 1 {
                    1
                } else {
                    stride_y
                },
                stride_x: if output.width() == 1 {
                    1
                } else {
                    second.stride[1]
                },
                mantissa: second.mantissa,
                shift: second.shift,
                channel: second.channel.saturating_sub(output.channel),
                n_channels: second.map.channels - skipped,
            };
            if self.registers.residual != Some(residual) {
                self.registers.residual = Some(residual);
                self.push(residual, []);
            }
        }
        if let Some((mantissa, shift)) = self.job.slope {
            let slope = Slope { mantissa, shift };
            if self.registers.slope != Some(slope) {
                self.registers.slope = Some(slope);
                self.push(slope, []);
            }
        }
    }
}

/// Pixels of a row of an input tile: a tensor that stays on chip has all of them.
pub(super) fn on_chip_width(map: &Map, span: Span) -> u32 {
    if map.chip.is_some() {
        map.width
    } else {
        span.len
    }
}

pub(super) fn pixel_address(map: &Map, y: u32, x: u32) -> u64 {
    let index = u64::from(y) * u64::from(map.width) + u64::from(x);
    u64::from(map.address) + index * u64::from(map.pixel_bytes)
}

/// Columns of the second operand that a run of output columns spans.
fn second_width(second: &Second, columns: (u32, u32)) -> u32 {
    (columns.1 - 1 - columns.0) * second.stride[1] + 1
}

/// Whether the second operand has channels in the tile.
fn reaches(second: &Second, output: &OutputTile) -> bool {
    second.channel < output.channel + output.n_channels
        && output.channel < second.channel + second.map.channels
}
