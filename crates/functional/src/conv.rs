//! Convolutions: patches of some pixels, accumulated by the kernels, then finished.
//!
//! Invariant: blocks of pixels are independent; their records merge in any order.

use crate::{
    Context, Detail, Threads,
    finish::{Finish, Reduced},
    taps::Taps,
    tensor::{Elements, Pixels, Values},
};
use arith::{Arithmetic, ChannelOverflow};
use kernels::Weights;
use network::{Conv, Layer, Network, TensorId, Window};
use rayon::prelude::*;

/// Tiles of a block: so many that the weights of a group are read from a near cache.
const TILES: usize = 4;
/// Least pixels that a tile counts as: what a thread takes at a time should not be too little.
const MIN_TILE: usize = 12;

#[derive(Debug)]
pub(crate) struct Prepared {
    input: TensorId,
    window: Window,
    taps: Taps,
    /// Input channels of a group.
    group_channels: usize,
    groups: Vec<Weights>,
    finish: Finish,
    /// A patch is a pixel of the input as it lies in memory.
    is_direct: bool,
}

/// What a thread needs for its blocks.
#[derive(Default)]
struct Scratch {
    patch: Vec<u8>,
    accumulators: Vec<i32>,
    seconds: Vec<i32>,
}

/// The largest accumulator that a layer can make.
pub(crate) fn limit_of(arithmetic: Arithmetic) -> i64 {
    1 << (arithmetic.accumulator.width_bits - 1)
}

/// Finishes the output of a convolution.
pub(crate) fn finish_of(
    network: &Network,
    layer: &Layer,
    conv: &Conv,
    arithmetic: Arithmetic,
) -> Finish {
    let output = network.output_of(layer);
    let requants: Vec<_> = (0..output.shape.channels)
        .map(|c| conv.post.requant_of(c))
        .collect();
    Finish::new(
        &conv.post,
        &requants,
        |residual| {
            let tensor = network.tensor(residual.tensor);
            (tensor.shape.channels, tensor.format)
        },
        limit_of(arithmetic),
        output.format,
        arithmetic.rounding,
    )
}

impl Prepared {
    pub fn new(network: &Network, layer: &Layer, conv: &Conv, arithmetic: Arithmetic) -> Self {
        let group_channels = conv.n_group_channels();
        let per_group = conv.n_output_channels() / conv.groups;
        let order = network::order_of(conv, arithmetic);
        let fold = match order {
            arith::ReductionOrder::InOrder => None,
            arith::ReductionOrder::Folds { n_steps } => Some(n_steps),
        };
        // Steps are taps, then channels (docs/numerics.md).
        let weights = conv.weights.view().permuted_axes([0, 2, 3, 1]);
        let weights = weights.as_standard_layout();
        let weights = weights.as_slice().expect("standard layout");
        let n = per_group * conv.reduction_length();
        let groups: Vec<Weights> = weights
            .par_chunks_exact(n)
            .zip(conv.bias.par_chunks_exact(per_group))
            .map(|(weights, bias)| {
                let bias: Vec<i32> = bias.iter().map(|bias| bias.value() as i32).collect();
                Weights::pack(
                    weights,
                    &bias,
                    network.tensor(conv.input).format,
                    arithmetic.accumulator,
                    fold,
                )
            })
            .collect();
        let window = conv.window;
        let is_pointwise = window
            == Window {
                stride: window.stride,
                ..Window::UNIT
            };
        let is_direct = is_pointwise
            && window.stride == [1, 1]
            && conv.groups == 1
            && groups[0].is_dense()
            && groups[0].patch_len() == group_channels;
        Self {
            input: conv.input,
            window,
            taps: Taps::new(
                window,
                network.tensor(conv.input).shape,
                network.output_of(layer).shape,
            ),
            group_channels,
            groups,
            finish: finish_of(network, layer, conv, arithmetic),
            is_direct,
        }
    }

    pub fn run(&self, context: Context<'_>, output: &mut Values) -> Vec<ChannelOverflow> {
        let shape = output.shape();
        let n_pixels = shape.height * shape.width;
        // Blocks of equal size, as a small last one would read all weights for little.
        let most = TILES * context.level.tile_pixels().max(MIN_TILE);
        let block = n_pixels.div_ceil(n_pixels.div_ceil(most));
        let n = block * shape.channels;
        let work = |scratch: &mut Scratch, records: &mut Vec<ChannelOverflow>, index, pixels| {
            self.block(
                context,
                shape.width,
                index * block,
                scratch,
                records,
                pixels,
            );
        };
        let none = || vec![ChannelOverflow::default(); shape.channels];
        let merge = |mut all: Vec<ChannelOverflow>, part: Vec<ChannelOverflow>| {
            for (all, part) in all.iter_mut().zip(&part) {
                all.merge(part);
            }
            all
        };
        match (output.elements_mut(), context.threads) {
            (Elements::Bytes(bytes), Threads::All) => bytes
                .par_chunks_mut(n)
                .enumerate()
                .fold(
                    || (Scratch::default(), none()),
                    |(mut scratch, mut records), (index, out)| {
                        work(&mut scratch, &mut records, index, Pixels::Bytes(out));
                        (scratch, records)
                    },
                )
                .map(|(_, records)| records)
                .reduce(none, merge),
            (Elements::Bytes(bytes), Threads::One) => {
                let (mut scratch, mut records) = (Scratch::default(), none());
                for (index, out) in bytes.chunks_mut(n).enumerate() {
                    work(&mut scratch, &mut records, index, Pixels::Bytes(out));
                }
                records
            }
            (Elements::Words(words), _) => {
                let (mut scratch, mut records) = (Scratch::default(), none());
                for (index, out) in words.chunks_mut(n).enumerate() {
                    work(&mut scratch, &mut records, index, Pixels::Words(out));
                }
                records
            }
        }
    }

    /// The pixels from `first` on.
    fn block(
        &self,
        context: Context<'_>,
        width: usize,
        first: usize,
        scratch: &mut Scratch,
        records: &mut [ChannelOverflow],
        mut out: Pixels<'_>,
    ) {
        let n_channels = records.len();
        let n_pixels = out.len() / n_channels;
        let input = &context.tensors[self.input.index()];
        let mut channel = 0;
        for (group, weights) in self.groups.iter().enumerate() {
            let n_columns = weights.n_columns();
            let patch = if self.is_direct {
                let n = weights.patch_len();
                &input.bytes()[first * n..(first + n_pixels) * n]
            } else {
                self.gather(
                    input,
                    weights,
                    group,
                    (first, n_pixels, width),
                    &mut scratch.patch,
                );
                &scratch.patch
            };
            let accumulators = &mut scratch.accumulators;
            // Every one of them is written.
            accumulators.resize(n_pixels * weights.n_lanes(), 0);
            let records = &mut records[channel..channel + n_columns];
            if context.detail == Detail::Values {
                kernels::accumulate_values(context.level, weights, patch, accumulators);
            } else {
                kernels::accumulate(context.level, weights, patch, accumulators, records);
            }
            if context.detail == Detail::Extremes {
                kernels::extremes(context.level, weights, patch, records);
            }
            self.finish.pixels(
                Reduced {
                    values: accumulators,
                    n_lanes: weights.n_lanes(),
                    channels: [channel, channel + n_columns],
                    first_pixel: first,
                    width,
                },
                context.tensors,
                &mut scratch.seconds,
                out.all(),
            );
            channel += n_columns;
        }
    }

    /// The patches of some pixels of one group.
    fn gather(
        &self,
        input: &Values,
        weights: &Weights,
        group: usize,
        (first, n_pixels, width): (usize, usize, usize),
        patch: &mut Vec<u8>,
    ) {
        let zero = (-input.q_min()) as u8;
        // Positions without a step have weight 0: what stands there is nobody's business.
        patch.resize(n_pixels * weights.patch_len(), zero);
        let is_whole = self.group_channels == input.shape().channels;
        let is_simple = is_whole && self.window.dilation[1] == 1 && weights.is_dense();
        let length = weights.patch_len();
        let mut index = 0;
        while index < n_pixels {
            let (y, x) = ((first + index) / width, (first + index) % width);
            if is_simple && self.taps.is_inside([y, x]) {
                // As far as the row goes on like this.
                let n = (self.taps.columns_inside().end - x).min(n_pixels - index);
                let patches = &mut patch[index * length..][..n * length];
                self.gather_inside(input, [y, x], length, patches);
                index += n;
                continue;
            }
            let patch = &mut patch[index * length..][..length];
            if !self.taps.is_inside([y, x]) {
                patch.fill(zero);
            }
            if weights.is_dense() {
                self.gather_pixel(input, group, [y, x], |k, run| {
                    patch[k..k + run.len()].copy_from_slice(run);
                });
            } else {
                self.gather_pixel(input, group, [y, x], |k, run| {
                    for (offset, &byte) in run.iter().enumerate() {
                        patch[weights.place(k + offset)] = byte;
                    }
                });
            }
            index += 1;
        }
    }

    /// Patches of `length` bytes side by side, all of whose taps lie inside the input, whose rows lie in
    /// memory as they are read.
    fn gather_inside(&self, input: &Values, [y, x]: [usize; 2], length: usize, patches: &mut [u8]) {
        let shape = input.shape();
        let columns = self.taps.columns(x);
        let left = columns[0].expect("a tap inside");
        let n = columns.len() * shape.channels;
        let step = self.taps.column_step() * shape.channels;
        let n_rows = self.window.kernel[0];
        for (tap, row) in self.taps.rows(y).iter().enumerate() {
            let row = row.expect("a tap inside");
            let source = &input.row(row)[left * shape.channels..];
            // Of a short row too much may be copied: the next is written over it.
            let is_short = tap + 1 < n_rows && tap * n + SHORT <= length;
            if n < SHORT && is_short {
                copy_each::<true>(patches, length, tap * n, source, step, n);
            } else {
                copy_each::<false>(patches, length, tap * n, source, step, n);
            }
        }
    }

    /// Hands over every run of steps that lies inside the input: its first step and its bytes.
    fn gather_pixel(
        &self,
        input: &Values,
        group: usize,
        [y, x]: [usize; 2],
        mut put: impl FnMut(usize, &[u8]),
    ) {
        let window = self.window;
        let shape = input.shape();
        let n = self.group_channels;
        let columns = self.taps.columns(x);
        let taps_x = columns.len();
        // Taps side by side in memory.
        let whole = (n == shape.channels && window.dilation[1] == 1)
            .then(|| {
                columns
                    .first()
                    .copied()
                    .flatten()
                    .zip(columns.last().copied().flatten())
            })
            .flatten();
        for (tap_y, row) in self.taps.rows(y).iter().enumerate() {
            let Some(row) = *row else {
                continue;
            };
            if let Some((left, right)) = whole {
                let from = (row * shape.width + left) * n;
                let to = (row * shape.width + right + 1) * n;
                put(tap_y * taps_x * n, &input.bytes()[from..to]);
                continue;
            }
            for (tap_x, column) in columns.iter().enumerate() {
                if let Some(column) = *column {
                    let bytes = &input.pixel(row, column)[group * n..(group + 1) * n];
                    put((tap_y * taps_x + tap_x) * n, bytes);
                }
            }
        }
    }
}

/// Rows of fewer bytes are copied as so many: that is one instruction or two.
const SHORT: usize = 32;

/// Copies `n` bytes to place `at` of each of the patches, every `step` bytes of the source for the next.
/// `MAY_SPILL`: bytes behind them may be written as well.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn copy_each<const MAY_SPILL: bool>(
    patches: &mut [u8],
    length: usize,
    at: usize,
    source: &[u8],
    step: usize,
    n: usize,
) {
    let mut from = 0;
    for patch in patches.chunks_exact_mut(length) {
        let (source, to) = (&source[from..], &mut patch[at..]);
        from += step;
        if MAY_SPILL
            && let (Some(source), Some(to)) =
                (source.first_chunk::<SHORT>(), to.first_chunk_mut::<SHORT>())
        {
            *to = *source;
            continue;
        }
        let (source, to) = (&source[..n], &mut to[..n]);
        let (lines, rest) = source.as_chunks::<64>();
        if rest.is_empty() && lines.len() <= 16 {
            // Without a call where it is whole cache lines.
            for (to, from) in to.as_chunks_mut::<64>().0.iter_mut().zip(lines) {
                *to = *from;
            }
        } else {
            to.copy_from_slice(source);
        }
    }
}
