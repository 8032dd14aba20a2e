//! Layers of the post unit: window reductions, element-wise operations, concatenation.
//!
//! Invariant: every output channel belongs to exactly one part.

use super::{Access, Emitter, Memory, OutputTile};
use crate::job::Part;
use isa::{Pool, Source, Window};

/// Most pixels or channels of a `pool`.
const MAX_POOL: u32 = 0x3fff;

impl Emitter<'_> {
    pub(super) fn pooling(&mut self, parts: &[Part]) {
        for tile in 0..self.plan.n_tiles() {
            let note = self.note(tile, None);
            self.begin(&note);
            let sources: Vec<Option<Access>> = parts
                .iter()
                .enumerate()
                .map(|(operand, part)| {
                    let map = part.source?;
                    self.load_tile(operand, tile, &map, &part.window)
                })
                .collect();
            let output = self.output_tile(tile, None);
            self.set_destination(&output);
            for (part, &source) in parts.iter().zip(&sources) {
                self.set_source(part, tile, source);
                self.pool(part, source, &output);
            }
            self.store(&output);
        }
    }

    fn set_source(&mut self, part: &Part, tile: usize, access: Option<Access>) {
        let [rows, columns] = self.plan.tile(tile);
        let spans = part.source.zip(access).and_then(|(map, access)| {
            let y = part.window.span(0, rows, map.height)?;
            Some((map, access, y, part.window.span(1, columns, map.width)?))
        });
        let (source, pads) = match spans {
            Some((map, access, y, x)) => {
                let source = Source {
                    address: access.from as u32,
                    width: x.len,
                    height: y.len,
                    pixel_bytes: map.pixel_bytes,
                    wide: map.wide(),
                    signed: map.signed.into(),
                };
                (source, [y.pad, x.pad])
            }
            // Without a row every tap is padding.
            None => (
                Source {
                    width: 1,
                    pixel_bytes: 1,
                    ..Source::default()
                },
                [0, 0],
            ),
        };
        if self.registers.source != Some(source) {
            self.registers.source = Some(source);
            self.work(source, Vec::new());
        }
        let window = Window {
            height: part.window.kernel[0],
            width: part.window.kernel[1],
            stride_y: part.window.stride[0],
            stride_x: part.window.stride[1],
            dilation_y: part.window.dilation[0],
            dilation_x: part.window.dilation[1],
            pad_top: pads[0],
            pad_left: pads[1],
        };
        if self.registers.window != Some(window) {
            self.registers.window = Some(window);
            self.work(window, Vec::new());
        }
    }

    fn pool(&mut self, part: &Part, source: Option<Access>, output: &OutputTile) {
        let width = output.width();
        let rows_at_once = (MAX_POOL / width).max(1);
        let n_rows = output.n_pixels() / width;
        let mut accesses = vec![Access::new(
            Memory::Activation,
            true,
            output.address,
            output.len,
        )];
        accesses.extend(source);
        accesses.extend(output.second);
        for y in (0..n_rows).step_by(rows_at_once as usize) {
            for channel in (0..part.n_channels).step_by(MAX_POOL as usize) {
                let pool = Pool {
                    y,
                    x: 0,
                    n_pixels: rows_at_once.min(n_rows - y) * width,
                    channel: part.channel + channel,
                    source_channel: if source.is_some() { channel } else { 0 },
                    n_channels: MAX_POOL.min(part.n_channels - channel),
                    sum: part.sum.into(),
                    mantissa: part.mantissa,
                    shift: part.shift,
                    add_residual: output.second.is_some().into(),
                    use_slope: self.job.slope.is_some().into(),
                };
                self.work(pool, accesses.clone());
            }
        }
    }
}
