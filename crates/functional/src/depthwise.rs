//! Depthwise convolutions: every channel has a filter of its own, so channels are the lanes.
//!
//! Invariant: the fast walk is taken only for channels whose sums provably fit, whatever the
//! activations.

#![expect(
    clippy::inline_always,
    reason = "what the SIMD versions of a function call has to be compiled as part of each"
)]

use crate::{
    Context, Detail,
    conv::finish_of,
    finish::{Finish, Reduced},
    taps::Taps,
    tensor::{Elements, Pixels, Values},
};
use arith::{AccumulatorFormat, Arithmetic, ChannelOverflow, Overflow, ReductionOrder};
use network::{Conv, Layer, Network, TensorId};
use rayon::prelude::*;
use std::ops::Range;

const LANES: usize = 16;

/// Taps of the window that has a walk of its own: those of 3 × 3.
const NINE: usize = 9;

#[derive(Debug)]
pub(crate) struct Prepared {
    input: TensorId,
    taps: Taps,
    n_channels: usize,
    /// `[tap][channel]`.
    weights: Vec<i16>,
    bias: Vec<i32>,
    /// The smallest activation times the sum of the filter, modulo 2^16: what sums of bytes lack.
    start: Vec<i16>,
    /// For each group of lanes: no sum can leave the accumulator.
    is_safe: Vec<bool>,
    all_safe: bool,
    accumulator: AccumulatorFormat,
    /// Taps of a fold.
    fold: usize,
    finish: Finish,
}

/// What a thread needs for its rows.
#[derive(Default)]
struct Scratch {
    accumulators: Vec<i32>,
    /// A row outside the input.
    padding: Vec<u8>,
    seconds: Vec<i32>,
}

impl Prepared {
    pub fn new(network: &Network, layer: &Layer, conv: &Conv, arithmetic: Arithmetic) -> Self {
        let n_channels = conv.groups;
        let [taps_y, taps_x] = conv.window.kernel;
        let n_taps = taps_y * taps_x;
        let at = |tap: usize, c: usize| i16::from(conv.weights[[c, 0, tap / taps_x, tap % taps_x]]);
        let weights = (0..n_taps)
            .flat_map(|tap| (0..n_channels).map(move |c| (tap, c)))
            .map(|(t, c)| at(t, c));
        let bias: Vec<i32> = conv.bias.iter().map(|bias| bias.value() as i32).collect();
        let format = network.tensor(conv.input).format;
        let (a_min, a_max) = (i64::from(format.q_min()), i64::from(format.q_max()));
        let fits = |c: usize| {
            let (mut up, mut down) = (0, 0);
            for tap in 0..n_taps {
                let w = i64::from(at(tap, c));
                up += (w * a_max).max(w * a_min).max(0);
                down += (w * a_max).min(w * a_min).min(0);
            }
            let (bias, accumulator) = (i64::from(bias[c]), arithmetic.accumulator);
            // Sums that start at the bias, and those that start at 0: of folds, and of `plain`.
            [up, down]
                .iter()
                .all(|&reach| accumulator.holds(reach) && accumulator.holds(bias + reach))
        };
        let is_safe: Vec<bool> = (0..n_channels)
            .step_by(LANES)
            .map(|first| (first..(first + LANES).min(n_channels)).all(fits))
            .collect();
        let start = (0..n_channels)
            .map(|c| (0..n_taps).fold(0i16, |sum, tap| sum.wrapping_add(at(tap, c))))
            .map(|sum| sum.wrapping_mul(a_min as i16))
            .collect();
        Self {
            input: conv.input,
            taps: Taps::new(
                conv.window,
                network.tensor(conv.input).shape,
                network.output_of(layer).shape,
            ),
            n_channels,
            weights: weights.collect(),
            start,
            all_safe: is_safe.iter().all(|&safe| safe),
            is_safe,
            accumulator: arithmetic.accumulator,
            fold: match network::order_of(conv, arithmetic) {
                ReductionOrder::InOrder => n_taps,
                ReductionOrder::Folds { n_steps } => n_steps as usize,
            },
            finish: finish_of(network, layer, conv, arithmetic),
            bias,
        }
    }

    pub fn run(&self, context: Context<'_>, output: &mut Values) -> Vec<ChannelOverflow> {
        let shape = output.shape();
        let none = || vec![ChannelOverflow::default(); self.n_channels];
        let row_length = shape.width * self.n_channels;
        match output.elements_mut() {
            Elements::Bytes(bytes) if context.threads == crate::Threads::All => bytes
                .par_chunks_mut(row_length)
                .enumerate()
                .fold(none, |mut records, (y, row)| {
                    let mut scratch = Scratch::default();
                    self.row(context, y, &mut records, Pixels::Bytes(row), &mut scratch);
                    records
                })
                .reduce(none, |mut all, part| {
                    for (all, part) in all.iter_mut().zip(&part) {
                        all.merge(part);
                    }
                    all
                }),
            Elements::Bytes(bytes) => {
                let (mut records, mut scratch) = (none(), Scratch::default());
                for (y, row) in bytes.chunks_mut(row_length).enumerate() {
                    self.row(context, y, &mut records, Pixels::Bytes(row), &mut scratch);
                }
                records
            }
            Elements::Words(words) => {
                let (mut records, mut scratch) = (none(), Scratch::default());
                for (y, row) in words.chunks_mut(row_length).enumerate() {
                    self.row(context, y, &mut records, Pixels::Words(row), &mut scratch);
                }
                records
            }
        }
    }

    fn row(
        &self,
        context: Context<'_>,
        y: usize,
        records: &mut [ChannelOverflow],
        out: Pixels<'_>,
        scratch: &mut Scratch,
    ) {
        let input = &context.tensors[self.input.index()];
        let n = self.n_channels;
        let width = out.len() / n;
        let Scratch {
            accumulators,
            padding,
            seconds,
        } = scratch;
        accumulators.resize(width * n, 0);
        padding.resize(input.shape().width * n, (-input.q_min()) as u8);
        let rows = self.taps.rows(y);
        let looks_closely = context.detail == Detail::Extremes;
        let mut done = 0..0;
        let inside = self.taps.columns_inside();
        if !looks_closely && self.weights.len() == NINE * n && !inside.is_empty() {
            // Every column of the row is inside, so its first says where all begin.
            let columns = self.taps.columns(inside.start);
            let taps: [&[u8]; NINE] = std::array::from_fn(|tap| {
                let (row, column) = (rows[tap / columns.len()], columns[tap % columns.len()]);
                let row = row.map_or(&padding[..], |row| input.row(row));
                &row[column.unwrap_or_default() * n..]
            });
            let step = self.taps.column_step() * n;
            let acc = &mut accumulators[inside.start * n..inside.end * n];
            if self.accumulator.width_bits <= 16 {
                narrow_row(acc, taps, step, self, input.q_min() as i16);
            } else {
                wide_row(acc, taps, step, self, input.q_min() as i16);
            }
            done = inside;
        }
        let mut taps: Vec<&[u8]> = Vec::new();
        for (x, acc) in accumulators.chunks_exact_mut(n).enumerate() {
            let is_done = done.contains(&x);
            if is_done && self.all_safe {
                continue;
            }
            taps.clear();
            for row in rows {
                taps.extend(
                    self.taps
                        .columns(x)
                        .iter()
                        .map(|column| match (row, column) {
                            (Some(row), Some(column)) => input.pixel(*row, *column),
                            _ => &padding[..n],
                        }),
                );
            }
            if !looks_closely && !is_done {
                // Unsafe groups are overwritten below, or are right but for bits that wrap.
                let q_min = input.q_min() as i16;
                if self.accumulator.width_bits <= 16 {
                    narrow(acc, &taps, self, q_min);
                } else {
                    wide(acc, &taps, self, q_min);
                }
            }
            if self.all_safe && !looks_closely {
                continue;
            }
            for (group, first) in (0..n).step_by(LANES).enumerate() {
                if looks_closely || !self.is_safe[group] {
                    let range = first..(first + LANES).min(n);
                    let acc = &mut acc[range.clone()];
                    match (context.detail, self.accumulator.overflow) {
                        (Detail::Values, Overflow::Wrap) => self.wrap(acc),
                        (Detail::Values, Overflow::Saturate) => {
                            in_order(acc, &taps, self, first, input.q_min());
                        }
                        _ => self.walk(&taps, first, input.q_min(), acc, &mut records[range]),
                    }
                }
            }
        }
        self.finish.pixels(
            Reduced {
                values: accumulators,
                n_lanes: n,
                channels: [0, n],
                first_pixel: y * width,
                width,
            },
            context.tensors,
            seconds,
            out,
        );
    }

    /// Drops the bits that the accumulators do not have.
    fn wrap(&self, acc: &mut [i32]) {
        let unused_bits = 32 - u32::from(self.accumulator.width_bits);
        for acc in acc {
            *acc = *acc << unused_bits >> unused_bits;
        }
    }

    /// Some channels of a pixel, step by step, with everything that can be seen.
    fn walk(
        &self,
        taps: &[&[u8]],
        first: usize,
        q_min: i32,
        acc: &mut [i32],
        records: &mut [ChannelOverflow],
    ) {
        for (lane, (acc, record)) in acc.iter_mut().zip(records).enumerate() {
            let c = first + lane;
            *acc = self.bias[c];
            let products = taps.iter().enumerate().map(|(tap, pixel)| {
                let a = i32::from(pixel[c]) + q_min;
                a * i32::from(self.weights[tap * self.n_channels + c])
            });
            *acc = network::accumulate(
                (*acc).into(),
                products,
                self.accumulator,
                ReductionOrder::Folds {
                    n_steps: self.fold as u32,
                },
                record,
            );
        }
    }
}

/// A group of channels of a pixel, step by step in saturating accumulators.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn in_order(acc: &mut [i32], taps: &[&[u8]], conv: &Prepared, first: usize, q_min: i32) {
    if let Ok(acc) = acc.try_into() {
        return in_order_lanes::<LANES>(acc, taps, conv, first, q_min);
    }
    for (lane, acc) in acc.as_chunks_mut::<1>().0.iter_mut().enumerate() {
        in_order_lanes::<1>(acc, taps, conv, first + lane, q_min);
    }
}

#[inline(always)]
fn in_order_lanes<const L: usize>(
    acc: &mut [i32; L],
    taps: &[&[u8]],
    conv: &Prepared,
    first: usize,
    q_min: i32,
) {
    let (min, max) = (conv.accumulator.min(), conv.accumulator.max());
    let weights = conv.weights.chunks(conv.fold * conv.n_channels);
    for (index, (taps, weights)) in taps.chunks(conv.fold).zip(weights).enumerate() {
        // The first fold begins at the bias, and what it sums is the total so far.
        let mut sum = if index == 0 {
            part(&conv.bias, first)
        } else {
            [0; L]
        };
        for (tap, weights) in taps.iter().zip(weights.chunks_exact(conv.n_channels)) {
            let (pixel, weights): ([u8; L], [i16; L]) = (part(tap, first), part(weights, first));
            for lane in 0..L {
                let activation = i32::from(pixel[lane]).wrapping_add(q_min);
                let product = activation.wrapping_mul(weights[lane].into());
                sum[lane] = sum[lane].saturating_add(product).max(min).min(max);
            }
        }
        for lane in 0..L {
            acc[lane] = if index == 0 {
                sum[lane]
            } else {
                acc[lane].saturating_add(sum[lane]).max(min).min(max)
            };
        }
    }
}

/// Nine taps of every channel of some pixels whose sums fit 16 bits, as [`narrow`]. `taps` begin at the
/// first pixel's, every other pixel's are `step` bytes on.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn narrow_row(acc: &mut [i32], taps: [&[u8]; NINE], step: usize, conv: &Prepared, q_min: i16) {
    let mut first = 0;
    for first in lanes(conv.n_channels, 32, &mut first) {
        narrow_lanes::<32>(acc, &taps, step, conv, first);
    }
    for first in lanes(conv.n_channels, LANES, &mut first) {
        narrow_lanes::<LANES>(acc, &taps, step, conv, first);
    }
    last_of_row(acc, &taps, step, conv, q_min);
}

/// As [`narrow_row`], for sums that fit 32 bits.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn wide_row(acc: &mut [i32], taps: [&[u8]; NINE], step: usize, conv: &Prepared, q_min: i16) {
    let mut first = 0;
    for first in lanes(conv.n_channels, LANES, &mut first) {
        wide_lanes::<LANES>(acc, &taps, step, conv, first, q_min);
    }
    last_of_row(acc, &taps, step, conv, q_min);
}

/// The first lanes of whole groups from `next` on, which moves behind them.
#[inline(always)]
fn lanes(n: usize, group: usize, next: &mut usize) -> std::iter::StepBy<Range<usize>> {
    let first = *next;
    *next += (n - first) / group * group;
    (first..*next).step_by(group)
}

/// Weights, activations of one tap: `L` channels from `first` on.
#[inline(always)]
fn part<const L: usize, T: Copy>(all: &[T], first: usize) -> [T; L] {
    all[first..first + L].try_into().expect("as many as asked")
}

#[inline(always)]
fn narrow_lanes<const L: usize>(
    acc: &mut [i32],
    taps: &[&[u8]; NINE],
    step: usize,
    conv: &Prepared,
    first: usize,
) {
    let n = conv.n_channels;
    let weights: [[i16; L]; NINE] = std::array::from_fn(|tap| part(&conv.weights, tap * n + first));
    let (start, bias): ([i16; L], [i32; L]) = (part(&conv.start, first), part(&conv.bias, first));
    for (x, acc) in acc.chunks_exact_mut(n).enumerate() {
        let mut sum = start;
        for (tap, weights) in taps.iter().zip(&weights) {
            let pixel: [u8; L] = part(tap, x * step + first);
            for lane in 0..L {
                let product = i16::from(pixel[lane]).wrapping_mul(weights[lane]);
                sum[lane] = sum[lane].wrapping_add(product);
            }
        }
        let acc = &mut acc[first..first + L];
        for lane in 0..L {
            acc[lane] = bias[lane].wrapping_add(sum[lane].into());
        }
    }
}

#[inline(always)]
fn wide_lanes<const L: usize>(
    acc: &mut [i32],
    taps: &[&[u8]; NINE],
    step: usize,
    conv: &Prepared,
    first: usize,
    q_min: i16,
) {
    let n = conv.n_channels;
    let weights: [[i16; L]; NINE] = std::array::from_fn(|tap| part(&conv.weights, tap * n + first));
    let bias: [i32; L] = part(&conv.bias, first);
    for (x, acc) in acc.chunks_exact_mut(n).enumerate() {
        let mut sum = bias;
        for (tap, weights) in taps.iter().zip(&weights) {
            let pixel: [u8; L] = part(tap, x * step + first);
            for lane in 0..L {
                let activation = i16::from(pixel[lane]).wrapping_add(q_min);
                let product = activation.wrapping_mul(weights[lane]);
                sum[lane] = sum[lane].wrapping_add(product.into());
            }
        }
        acc[first..first + L].copy_from_slice(&sum);
    }
}

/// The channels behind the last whole group, of every pixel.
#[inline(always)]
fn last_of_row(acc: &mut [i32], taps: &[&[u8]; NINE], step: usize, conv: &Prepared, q_min: i16) {
    let n = conv.n_channels;
    if n.is_multiple_of(LANES) {
        return;
    }
    for (x, acc) in acc.chunks_exact_mut(n).enumerate() {
        last(acc, &taps.map(|tap| &tap[x * step..][..n]), conv, q_min);
    }
}

/// Every channel of a pixel, whose sums fit 16 bits. Sums are of bytes, which lie above the activations
/// by `-q_min`; modulo 2^16 the start makes up for that.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn narrow(acc: &mut [i32], taps: &[&[u8]], conv: &Prepared, q_min: i16) {
    let n = acc.len();
    let taps_of = || taps.iter().zip(conv.weights.chunks_exact(n));
    let groups = acc.as_chunks_mut::<LANES>().0;
    for (group, acc) in groups.iter_mut().enumerate() {
        let lanes = group * LANES..(group + 1) * LANES;
        let mut sum = [0i16; LANES];
        sum.copy_from_slice(&conv.start[lanes.clone()]);
        for (pixel, weights) in taps_of() {
            let (pixel, weights) = (&pixel[lanes.clone()], &weights[lanes.clone()]);
            for lane in 0..LANES {
                let product = i16::from(pixel[lane]).wrapping_mul(weights[lane]);
                sum[lane] = sum[lane].wrapping_add(product);
            }
        }
        for ((acc, sum), bias) in acc.iter_mut().zip(sum).zip(&conv.bias[lanes]) {
            *acc = bias.wrapping_add(sum.into());
        }
    }
    last(acc, taps, conv, q_min);
}

/// Every channel of a pixel, whose sums fit 32 bits. Products of 8-bit operands fit 16 bits.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn wide(acc: &mut [i32], taps: &[&[u8]], conv: &Prepared, q_min: i16) {
    let n = acc.len();
    let taps_of = || taps.iter().zip(conv.weights.chunks_exact(n));
    let groups = acc.as_chunks_mut::<LANES>().0;
    for (group, acc) in groups.iter_mut().enumerate() {
        let lanes = group * LANES..(group + 1) * LANES;
        let mut sum = [0i32; LANES];
        sum.copy_from_slice(&conv.bias[lanes.clone()]);
        for (pixel, weights) in taps_of() {
            let (pixel, weights) = (&pixel[lanes.clone()], &weights[lanes.clone()]);
            for lane in 0..LANES {
                let activation = i16::from(pixel[lane]).wrapping_add(q_min);
                let product = activation.wrapping_mul(weights[lane]);
                sum[lane] = sum[lane].wrapping_add(product.into());
            }
        }
        acc.copy_from_slice(&sum);
    }
    last(acc, taps, conv, q_min);
}

/// The channels behind the last whole group.
fn last(acc: &mut [i32], taps: &[&[u8]], conv: &Prepared, q_min: i16) {
    let n = acc.len();
    for c in n / LANES * LANES..n {
        let products = taps.iter().zip(conv.weights.chunks_exact(n));
        let products = products.map(|(pixel, weights)| {
            (i32::from(pixel[c]) + i32::from(q_min)) * i32::from(weights[c])
        });
        acc[c] = products.fold(conv.bias[c], i32::wrapping_add);
    }
}
