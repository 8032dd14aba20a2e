//! The kernels in plain Rust: every accumulator width, every processor.
//!
//! Invariant: a lane's sum is the same whether its run was proved safe or walked step by step.

use crate::{
    Level,
    pack::{Bounds, LANES, Lanes, Stretch, Weights},
};
use arith::ChannelOverflow;

/// Positions whose products are added in 16 bits where that fits.
pub(crate) const SHORT: usize = 32;

/// An output pixel's group of columns, and where its events go.
pub(crate) struct Cell<'a> {
    pub acc: Lanes<i32>,
    pub n_overflowed: Lanes<u32>,
    /// The records of the group's columns.
    pub records: &'a mut [ChannelOverflow],
}

pub(crate) fn accumulate(
    weights: &Weights,
    patch: &[u8],
    accumulators: &mut [i32],
    records: &mut [ChannelOverflow],
) {
    let pixels = patch.chunks_exact(weights.n_places);
    for (pixel, lanes) in pixels.zip(accumulators.chunks_exact_mut(weights.n_lanes())) {
        for (group, out) in lanes.chunks_exact_mut(LANES).enumerate() {
            let mut cell = Cell {
                acc: weights.bias[group],
                n_overflowed: [0; LANES],
                records: columns(weights, group, records),
            };
            for (index, block) in weights.blocks.iter().enumerate() {
                let bounds = &weights.block_bounds[group * weights.blocks.len() + index];
                let (from, to) = (weights.runs[block.from].from, weights.runs[block.to - 1].to);
                if holds(bounds, &cell.acc) {
                    dot(weights, group, pixel, Stretch { from, to }, &mut cell.acc);
                } else {
                    walk_block(weights, group, pixel, *block, &mut cell);
                }
            }
            out.copy_from_slice(&cell.acc);
            close(cell.records, &[cell.n_overflowed]);
        }
    }
}

/// As [`accumulate`], without events.
pub(crate) fn accumulate_values(weights: &Weights, patch: &[u8], accumulators: &mut [i32]) {
    let pixels = patch.chunks_exact(weights.n_places);
    for (pixel, lanes) in pixels.zip(accumulators.chunks_exact_mut(weights.n_lanes())) {
        for (group, out) in lanes.chunks_exact_mut(LANES).enumerate() {
            let mut acc = weights.bias[group];
            for (index, block) in weights.blocks.iter().enumerate() {
                let bounds = &weights.block_bounds[group * weights.blocks.len() + index];
                let (from, to) = (weights.runs[block.from].from, weights.runs[block.to - 1].to);
                if weights.is_orderless() || holds(bounds, &acc) {
                    dot(weights, group, pixel, Stretch { from, to }, &mut acc);
                } else {
                    in_order(weights, group, pixel, Stretch { from, to }, &mut acc);
                }
            }
            out.copy_from_slice(&acc);
        }
    }
    if weights.is_orderless() {
        wrap(weights, accumulators);
    }
}

/// Drops the bits that the accumulators do not have.
pub(crate) fn wrap(weights: &Weights, accumulators: &mut [i32]) {
    let unused_bits = 32 - u32::from(weights.accumulator.width_bits);
    for acc in accumulators {
        *acc = *acc << unused_bits >> unused_bits;
    }
}

/// Adds a stretch to saturating accumulators in the documented order.
pub(crate) fn in_order(
    weights: &Weights,
    group: usize,
    pixel: &[u8],
    stretch: Stretch,
    acc: &mut Lanes<i32>,
) {
    let limits = (weights.accumulator.min(), weights.accumulator.max());
    for from in (stretch.from..stretch.to).step_by(weights.chunk_places) {
        let to = (from + weights.chunk_places).min(stretch.to);
        let is_first = from < weights.chunk_places;
        let mut sum = if is_first { *acc } else { [0; LANES] };
        let pairs = &weights.group_pairs(group)[from * LANES..to * LANES];
        let offset = weights.offset() as i16;
        add_pairs(&pixel[from..to], pairs, offset, limits, &mut sum);
        if is_first {
            *acc = sum;
            continue;
        }
        for (acc, sum) in acc.iter_mut().zip(sum) {
            *acc = acc.saturating_add(sum).clamp(limits.0, limits.1);
        }
    }
}

/// The records of a group's columns; the last group may have fewer than lanes.
pub(crate) fn columns<'a>(
    weights: &Weights,
    group: usize,
    records: &'a mut [ChannelOverflow],
) -> &'a mut [ChannelOverflow] {
    &mut records[group * LANES..weights.n_columns.min((group + 1) * LANES)]
}

/// Adds what some pixels have seen to the records of a group's columns.
pub(crate) fn close(records: &mut [ChannelOverflow], pixels: &[Lanes<u32>]) {
    for pixel in pixels {
        for (record, &n) in records.iter_mut().zip(pixel) {
            record.n_overflowed += u64::from(n);
            record.n_outputs_touched += u64::from(n > 0);
        }
    }
}

pub(crate) fn holds(bounds: &Bounds, acc: &Lanes<i32>) -> bool {
    (0..LANES).all(|lane| (bounds.low_32[lane]..=bounds.high_32[lane]).contains(&acc[lane]))
}

/// A block whose proof failed, run by run.
pub(crate) fn walk_block(
    weights: &Weights,
    group: usize,
    pixel: &[u8],
    block: Stretch,
    cell: &mut Cell,
) {
    for index in block.from..block.to {
        let run = weights.runs[index];
        if holds(
            &weights.run_bounds[group * weights.runs.len() + index],
            &cell.acc,
        ) {
            dot(weights, group, pixel, run, &mut cell.acc);
        } else {
            walk(weights, group, pixel, run, cell);
        }
    }
}

/// A proved stretch: any way of adding gives the same bits.
fn dot(weights: &Weights, group: usize, pixel: &[u8], stretch: Stretch, acc: &mut Lanes<i32>) {
    let pairs = &weights.group_pairs(group)[stretch.from * LANES..stretch.to * LANES];
    dot_pairs(
        &pixel[stretch.from..stretch.to],
        pairs,
        weights.offset() as i16,
        acc,
    );
}

/// The weights of a pair of positions, each for 16 columns.
#[inline]
fn halves(pair: &[i8]) -> [Lanes<i16>; 2] {
    let both: Lanes<i16> = std::array::from_fn(|lane| {
        i16::from_le_bytes([pair[2 * lane] as u8, pair[2 * lane + 1] as u8])
    });
    [
        both.map(|both| (both << 8) >> 8),
        both.map(|both| both >> 8),
    ]
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn dot_pairs(activations: &[u8], pairs: &[i8], offset: i16, acc: &mut Lanes<i32>) {
    for (a, w) in activations
        .chunks_exact(2)
        .zip(pairs.chunks_exact(2 * LANES))
    {
        for (&a, w) in a.iter().zip(halves(w)) {
            let a = i16::from(a) - offset;
            for lane in 0..LANES {
                // Products of 8-bit operands fit 16 bits.
                acc[lane] = acc[lane].wrapping_add(i32::from(a.wrapping_mul(w[lane])));
            }
        }
    }
}

/// As [`dot_pairs`], in order, with limits.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn add_pairs(
    activations: &[u8],
    pairs: &[i8],
    offset: i16,
    (min, max): (i32, i32),
    acc: &mut Lanes<i32>,
) {
    for (a, w) in activations
        .chunks_exact(2)
        .zip(pairs.chunks_exact(2 * LANES))
    {
        for (&a, w) in a.iter().zip(halves(w)) {
            let a = i16::from(a) - offset;
            for lane in 0..LANES {
                let product = i32::from(a.wrapping_mul(w[lane]));
                acc[lane] = acc[lane].saturating_add(product).max(min).min(max);
            }
        }
    }
}

/// A stretch whose proof failed: every lane step by step, chunk by chunk.
pub(crate) fn walk(
    weights: &Weights,
    group: usize,
    pixel: &[u8],
    stretch: Stretch,
    cell: &mut Cell,
) {
    for lane in 0..cell.records.len() {
        walk_lane(weights, group, pixel, stretch, lane, cell);
    }
}

/// One lane of a stretch.
pub(crate) fn walk_lane(
    weights: &Weights,
    group: usize,
    pixel: &[u8],
    stretch: Stretch,
    lane: usize,
    cell: &mut Cell,
) {
    let format = weights.accumulator;
    let offset = weights.offset();
    let record = &mut cell.records[lane];
    let mut count = |at: usize, overflowed: bool| {
        if overflowed {
            cell.n_overflowed[lane] += 1;
            let k = weights.step_at(at);
            record.first_k = Some(record.first_k.map_or(k, |first| first.min(k)));
        }
    };
    let mut acc = cell.acc[lane];
    let mut sum = 0;
    for (place, &a) in (stretch.from..stretch.to).zip(&pixel[stretch.from..stretch.to]) {
        let product = i32::from(weights.at(group, place, lane)) * (i32::from(a) - offset);
        if place < weights.chunk_places {
            let next = format.add(acc, product);
            count(place, next.overflowed);
            acc = next.acc;
            continue;
        }
        let next = format.add(sum, product);
        count(place, next.overflowed);
        sum = next.acc;
        if (place + 1).is_multiple_of(weights.chunk_places) {
            let next = format.add(acc, sum);
            count(place, next.overflowed);
            (acc, sum) = (next.acc, 0);
        }
    }
    cell.acc[lane] = acc;
}

pub(crate) fn extremes(
    level: Level,
    weights: &Weights,
    patch: &[u8],
    records: &mut [ChannelOverflow],
) {
    for pixel in patch.chunks_exact(weights.n_places) {
        for group in 0..weights.n_groups {
            let mut exact = weights.bias[group].map(i64::from);
            let (mut min, mut max) = (exact, exact);
            for chunk in 0..weights.n_places / weights.chunk_places {
                let from = chunk * weights.chunk_places;
                let stretch = Stretch {
                    from,
                    to: from + weights.chunk_places,
                };
                let start = if chunk == 0 { exact } else { [0; LANES] };
                let sum = follow(
                    level,
                    weights,
                    group,
                    pixel,
                    stretch,
                    start,
                    [&mut min, &mut max],
                );
                for lane in 0..LANES {
                    exact[lane] = if chunk == 0 {
                        sum[lane]
                    } else {
                        exact[lane] + sum[lane]
                    };
                    min[lane] = min[lane].min(exact[lane]);
                    max[lane] = max[lane].max(exact[lane]);
                }
            }
            for (lane, record) in columns(weights, group, records).iter_mut().enumerate() {
                record.min_partial_sum = record.min_partial_sum.min(min[lane]);
                record.max_partial_sum = record.max_partial_sum.max(max[lane]);
            }
        }
    }
}

/// The exact sum of a stretch from `start` on, with its extremes, `start` included.
fn follow(
    level: Level,
    weights: &Weights,
    group: usize,
    pixel: &[u8],
    stretch: Stretch,
    start: Lanes<i64>,
    [min, max]: [&mut Lanes<i64>; 2],
) -> Lanes<i64> {
    // 2^15 products of at most 2^15 stay inside 31 bits, relative to the part's start.
    const PART: usize = 1 << 15;
    let mut at = start;
    for from in (stretch.from..stretch.to).step_by(PART) {
        let to = (from + PART).min(stretch.to);
        let pairs = &weights.group_pairs(group)[from * LANES..to * LANES];
        let (pixel, offset) = (&pixel[from..to], weights.offset() as i16);
        let (sum, low, high) = match level {
            Level::Portable => relative(pixel, pairs, offset),
            #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
            level if weights.is_small => crate::simd::relative(level, pixel, pairs, offset),
            _ => relative(pixel, pairs, offset),
        };
        for lane in 0..LANES {
            min[lane] = min[lane].min(at[lane] + i64::from(low[lane]));
            max[lane] = max[lane].max(at[lane] + i64::from(high[lane]));
            at[lane] += i64::from(sum[lane]);
        }
    }
    at
}

/// Sum, smallest and largest prefix, the empty one included.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn relative(activations: &[u8], pairs: &[i8], offset: i16) -> (Lanes<i32>, Lanes<i32>, Lanes<i32>) {
    let (mut sum, mut low, mut high) = ([0i32; LANES], [0i32; LANES], [0i32; LANES]);
    for (a, w) in activations
        .chunks_exact(2)
        .zip(pairs.chunks_exact(2 * LANES))
    {
        for (&a, w) in a.iter().zip(halves(w)) {
            let a = i16::from(a) - offset;
            for lane in 0..LANES {
                sum[lane] = sum[lane].wrapping_add(i32::from(a.wrapping_mul(w[lane])));
                low[lane] = low[lane].min(sum[lane]);
                high[lane] = high[lane].max(sum[lane]);
            }
        }
    }
    (sum, low, high)
}
