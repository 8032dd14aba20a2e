//! Depthwise convolutions: every channel has a filter of its own, so channels are the lanes.
//!
//! Invariant: the fast walk is taken only for channels whose sums provably fit, whatever the
//! activations.

use crate::{
    Context, Detail,
    conv::finish_of,
    finish::Finish,
    tensor::{Elements, Pixels, Values},
};
use arith::{AccumulatorFormat, Arithmetic, ChannelOverflow, ReductionOrder};
use network::{Conv, Layer, Network, TensorId, Window};
use rayon::prelude::*;

const LANES: usize = 16;

#[derive(Debug)]
pub(crate) struct Prepared {
    input: TensorId,
    window: Window,
    n_channels: usize,
    /// `[tap][channel]`.
    weights: Vec<i16>,
    bias: Vec<i32>,
    /// For each group of lanes: no sum can leave the accumulator.
    is_safe: Vec<bool>,
    accumulator: AccumulatorFormat,
    /// Taps of a fold.
    fold: usize,
    finish: Finish,
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
            // Sums that start at the bias, and those of folds that start at 0.
            [up, down]
                .iter()
                .all(|&reach| accumulator.holds(reach) && accumulator.holds(bias + reach))
        };
        let is_safe = (0..n_channels)
            .step_by(LANES)
            .map(|first| (first..(first + LANES).min(n_channels)).all(fits))
            .collect();
        Self {
            input: conv.input,
            window: conv.window,
            n_channels,
            weights: weights.collect(),
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
                    self.row(context, y, &mut records, Pixels::Bytes(row), shape.width);
                    records
                })
                .reduce(none, |mut all, part| {
                    for (all, part) in all.iter_mut().zip(&part) {
                        all.merge(part);
                    }
                    all
                }),
            Elements::Bytes(bytes) => {
                let mut records = none();
                for (y, row) in bytes.chunks_mut(row_length).enumerate() {
                    self.row(context, y, &mut records, Pixels::Bytes(row), shape.width);
                }
                records
            }
            Elements::Words(words) => {
                let mut records = none();
                for (y, row) in words.chunks_mut(row_length).enumerate() {
                    self.row(context, y, &mut records, Pixels::Words(row), shape.width);
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
        mut out: Pixels<'_>,
        width: usize,
    ) {
        let input = &context.tensors[self.input.index()];
        let n_taps = self.window.n_taps();
        let padding = vec![(-input.q_min()) as u8; self.n_channels];
        let mut accumulators = vec![0; self.n_channels];
        let mut scratch = Vec::new();
        let mut taps: Vec<&[u8]> = Vec::with_capacity(n_taps);
        for x in 0..width {
            taps.clear();
            for tap_y in 0..self.window.kernel[0] {
                let row = self.window.source(0, y, tap_y, input.shape().height);
                for tap_x in 0..self.window.kernel[1] {
                    let column = self.window.source(1, x, tap_x, input.shape().width);
                    taps.push(match (row, column) {
                        (Some(row), Some(column)) => input.pixel(row, column),
                        _ => &padding,
                    });
                }
            }
            for (group, first) in (0..self.n_channels).step_by(LANES).enumerate() {
                let n = LANES.min(self.n_channels - first);
                let acc = &mut accumulators[first..first + n];
                acc.copy_from_slice(&self.bias[first..first + n]);
                if self.is_safe[group] && context.detail == Detail::Events {
                    let weights = self.weights.chunks_exact(self.n_channels);
                    for (tap, weights) in taps.iter().zip(weights) {
                        plain(
                            acc,
                            &tap[first..first + n],
                            &weights[first..first + n],
                            input.q_min(),
                        );
                    }
                } else {
                    self.walk(
                        &taps,
                        first,
                        input.q_min(),
                        acc,
                        &mut records[first..first + n],
                    );
                }
            }
            self.finish.pixel(
                &accumulators,
                0,
                [y, x],
                context.tensors,
                &mut scratch,
                out.pixel(x, self.n_channels),
            );
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

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn plain(acc: &mut [i32], pixel: &[u8], weights: &[i16], q_min: i32) {
    for ((acc, &byte), &weight) in acc.iter_mut().zip(pixel).zip(weights) {
        *acc = acc.wrapping_add((i32::from(byte) + q_min).wrapping_mul(i32::from(weight)));
    }
}
