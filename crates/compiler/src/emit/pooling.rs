//! Layers of the post unit: window reductions, element-wise operations, concatenation.
//!
//! Invariant: every output channel belongs to exactly one part.

use super::{
    Access, Accesses, Emitter, Memory, Note,
    operands::{OutputTile, on_chip_width},
};
use crate::job::{Map, Part, Window as Reads};
use isa::{Pool, Source, Window};

/// Most pixels or channels of a `pool`.
const MAX_POOL: u32 = 0x3fff;

impl Emitter<'_> {
    pub(super) fn pooling(&mut self, parts: &[Part]) {
        for tile in 0..self.plan.n_tiles() {
            self.note = Note {
                tile: tile as u32,
                group: None,
            };
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
                let map = part.source.unwrap_or_default();
                self.set_source(&map, &part.window, tile, source);
                self.pool(part, tile, source, &output);
            }
            if self.job.store {
                self.store(&output);
            }
        }
    }

    /// `source` and `window`; without an access every tap is padding.
    pub(super) fn set_source(
        &mut self,
        map: &Map,
        reads: &Reads,
        tile: usize,
        access: Option<Access>,
    ) {
        let [rows, columns] = self.plan.tile(tile);
        let spans = access.and_then(|access| {
            let y = reads.span(0, rows, map.height)?;
            Some((access, y, reads.span(1, columns, map.width)?))
        });
        let (source, pads) = match spans {
            Some((access, y, x)) => {
                let source = Source {
                    address: access.from() as u32,
                    width: on_chip_width(map, x),
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
            self.push(source, []);
        }
        let window = Window {
            height: reads.kernel[0],
            width: reads.kernel[1],
            stride_y: reads.stride[0],
            stride_x: reads.stride[1],
            dilation_y: reads.dilation[0],
            dilation_x: reads.dilation[1],
            pad_top: pads[0],
            pad_left: pads[1],
        };
        if self.registers.window != Some(window) {
            self.registers.window = Some(window);
            self.push(window, []);
        }
    }

    fn pool(&mut self, part: &Part, tile: usize, source: Option<Access>, output: &OutputTile) {
        let result = Access::new(Memory::Activation, true, output.address, output.len);
        let mut accesses: Accesses = [result].into_iter().collect();
        accesses.extend(source);
        accesses.extend(output.second);
        for run in self.runs(part, tile, output) {
            let (mantissa, shift) = self.job.multipliers[run.multiplier];
            for channel in (0..part.n_channels).step_by(MAX_POOL as usize) {
                let pool = Pool {
                    y: run.pixel / output.width(),
                    x: run.pixel % output.width(),
                    n_pixels: run.n_pixels,
                    channel: part.channel + channel,
                    source_channel: if source.is_some() {
                        part.source_channel + channel
                    } else {
                        0
                    },
                    n_channels: MAX_POOL.min(part.n_channels - channel),
                    sum: part.sum.into(),
                    mantissa,
                    shift,
                    add_residual: output.second.is_some().into(),
                    use_slope: self.job.slope.is_some().into(),
                };
                self.push(pool, accesses.clone());
            }
        }
    }

    /// The tile's pixels in order, cut where the multiplier changes and to what one `pool` does.
    fn runs(&self, part: &Part, tile: usize, output: &OutputTile) -> Vec<Run> {
        let width = output.width();
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |pixel: u32, n_pixels: u32, multiplier: usize| match runs.last_mut() {
            Some(last) if last.multiplier == multiplier && last.n_pixels + n_pixels <= MAX_POOL => {
                last.n_pixels += n_pixels;
            }
            _ => runs.push(Run {
                pixel,
                n_pixels,
                multiplier,
            }),
        };
        let Some(margin) = part.margin else {
            // A tile's row is never longer than a `pool`.
            for y in 0..output.n_pixels() / width {
                add(y * width, width, part.multiplier);
            }
            return runs;
        };
        let [rows, columns] = self.plan.tile(tile);
        let counts = |axis: usize, (from, to): (u32, u32)| -> Vec<u32> {
            (from..to)
                .map(|index| margin.n_counted(axis, index))
                .collect()
        };
        let (of_rows, of_columns) = (counts(0, rows), counts(1, columns));
        let pixels = of_rows
            .iter()
            .flat_map(|&y| of_columns.iter().map(move |&x| y * x));
        for (pixel, n_counted) in (0..).zip(pixels) {
            add(pixel, 1, part.multiplier + n_counted as usize - 1);
        }
        runs
    }
}

/// Pixels with one multiplier, one behind the other.
struct Run {
    pixel: u32,
    n_pixels: u32,
    /// Position in the job's.
    multiplier: usize,
}
