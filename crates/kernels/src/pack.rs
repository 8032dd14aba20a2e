//! Weights in the order in which the kernels read them, with the bounds that prove blocks safe.
//!
//! Invariant: a step's position is `place(k)`; positions without a step have weight 0, so whatever
//! activation stands there changes nothing. Runs are the shortest stretches that a proof covers;
//! blocks are whole runs, runs are whole quads of positions.

use crate::{portable::SHORT, table::Table};
use arith::{AccumulatorFormat, Format, Overflow};
use std::sync::OnceLock;

/// Columns of a group: 16 lanes of 16 bits are one AVX2 register.
pub const LANES: usize = 16;
/// Positions of a run without chunks.
const RUN: usize = 32;
/// Runs of a block without chunks.
const RUNS_OF_BLOCK: usize = 8;

/// Positions of a block without chunks, at most.
pub(crate) const MAX_BLOCK: usize = RUN * RUNS_OF_BLOCK;

/// One value a column of a group.
pub(crate) type Lanes<T> = [T; LANES];

/// What must hold before a stretch for it to be free of events, per column: the accumulator lies in
/// `low..=high`. An impossible proof has `low > high`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Bounds {
    /// For accumulators of at most 16 bits.
    pub low: Lanes<i16>,
    pub high: Lanes<i16>,
    /// The same for any accumulator.
    pub low_32: Lanes<i32>,
    pub high_32: Lanes<i32>,
    /// What the stored activations' offset adds to the sum, modulo 2^16 and 2^32.
    pub correction: Lanes<i16>,
    pub correction_32: Lanes<i32>,
}

/// How far a sum on its way through a run can pass both its beginning and its end, per column: after
/// `j` steps it is at most the beginning and what `j` steps can add, and at most the end and what the
/// other steps can take away. If beginning and end lie in `low..=high`, nothing happened between them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Between {
    pub low: Lanes<i32>,
    pub high: Lanes<i32>,
    /// The same for accumulators of at most 16 bits and ends that are sums clipped to 16 bits of a
    /// beginning and what the run adds, which 16 bits hold: a clipped end is outside.
    pub low_16: Lanes<i16>,
    pub high_16: Lanes<i16>,
    /// The same for each quad of the run, between the sums before it and after it.
    pub quad_low: Lanes<i32>,
    pub quad_high: Lanes<i32>,
}

/// A stretch of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub from: usize,
    pub to: usize,
}

/// The weights of some output channels over one reduction, packed once.
#[derive(Debug)]
pub struct Weights {
    pub(crate) n_columns: usize,
    pub(crate) n_groups: usize,
    /// Steps of the reduction.
    pub(crate) n_steps: usize,
    /// Steps of a chunk: each but the first is summed from 0 and then added. `n_steps` without chunks.
    pub(crate) chunk: usize,
    /// Positions of a chunk.
    pub(crate) chunk_places: usize,
    pub(crate) n_places: usize,
    pub(crate) activation: Format,
    pub(crate) accumulator: AccumulatorFormat,
    /// `[group][pair of positions][column][position of the pair]`.
    pub(crate) pairs: Vec<i8>,
    /// `[group][quad of positions][column][position of the quad]`.
    pub(crate) quads: Vec<i8>,
    pub(crate) bias: Vec<Lanes<i32>>,
    /// The same for accumulators of at most 16 bits.
    pub(crate) bias_16: Vec<Lanes<i16>>,
    pub(crate) runs: Vec<Stretch>,
    /// First run and one past the last.
    pub(crate) blocks: Vec<Stretch>,
    /// `[group][run]`.
    pub(crate) run_bounds: Vec<Bounds>,
    /// `[group][block]`.
    pub(crate) block_bounds: Vec<Bounds>,
    /// The same, of everything from a block on.
    pub(crate) rest_bounds: Vec<Bounds>,
    /// `[group][run]`, made when a group first asks: most sums are proved without.
    run_between: Vec<OnceLock<Vec<Between>>>,
    /// Sums of two products may leave 16 bits: activations go in halves.
    pub(crate) splits: bool,
    /// Sums of [`SHORT`] products fit 16 bits.
    pub(crate) is_small: bool,
    /// Operands of sums in order, made when one is first asked for.
    table: OnceLock<Table>,
    /// Every product fits the accumulator.
    pub(crate) is_roomy: bool,
    /// Magnitude of the largest product that there can be.
    pub(crate) product: i64,
}

impl Weights {
    /// Packs the weights of some columns, `[column][step]`.
    ///
    /// `bias[column]` is the accumulator's initial value, which it must be able to hold.
    /// `chunk_steps` is the length of the chunks of a stationary array (`docs/numerics.md`), `None`
    /// for one sum from the bias.
    ///
    /// # Panics
    /// Without columns or steps, or for an accumulator outside 8 to 32 bits.
    pub fn pack(
        weights: &[i8],
        bias: &[i32],
        activation: Format,
        accumulator: AccumulatorFormat,
        chunk_steps: Option<u32>,
    ) -> Self {
        let n_columns = bias.len();
        assert!(n_columns > 0 && !weights.is_empty(), "an empty reduction");
        let n_steps = weights.len() / n_columns;
        assert_eq!(weights.len(), n_columns * n_steps, "whole columns");
        assert!(
            (8..=32).contains(&accumulator.width_bits),
            "accumulators have 8 to 32 bits"
        );
        let chunk = chunk_steps.map_or(n_steps, |n| (n as usize).clamp(1, n_steps));
        let chunk_places = chunk.next_multiple_of(4);
        let n_chunks = n_steps.div_ceil(chunk);
        let n_groups = n_columns.div_ceil(LANES);
        let mut packed = Self {
            n_columns,
            n_groups,
            n_steps,
            chunk,
            chunk_places,
            n_places: n_chunks * chunk_places,
            activation,
            accumulator,
            pairs: Vec::new(),
            quads: Vec::new(),
            bias: vec![[0; LANES]; n_groups],
            bias_16: vec![[0; LANES]; n_groups],
            runs: Vec::new(),
            blocks: Vec::new(),
            run_bounds: Vec::new(),
            block_bounds: Vec::new(),
            rest_bounds: Vec::new(),
            run_between: vec![OnceLock::new(); n_groups],
            splits: false,
            is_small: false,
            table: OnceLock::new(),
            is_roomy: false,
            product: 0,
        };
        for (column, &value) in bias.iter().enumerate() {
            packed.bias[column / LANES][column % LANES] = value;
            packed.bias_16[column / LANES][column % LANES] = value as i16;
        }
        packed.cut(n_chunks);
        let n_places = packed.n_places;
        packed.pairs = vec![0; n_groups * LANES * n_places];
        packed.quads = vec![0; n_groups * LANES * n_places];
        for (column, steps) in weights.chunks_exact(n_steps).enumerate() {
            let (group, lane) = (column / LANES, column % LANES);
            let first = group * LANES * n_places;
            for (index, steps) in steps.chunks(packed.chunk).enumerate() {
                // Chunks are whole quads.
                let first = first + index * packed.chunk_places * LANES;
                spread::<2>(&mut packed.pairs[first..], steps, lane);
                spread::<4>(&mut packed.quads[first..], steps, lane);
            }
        }
        packed.bound();
        let largest = |values: &[i8]| {
            values
                .iter()
                .map(|w| w.unsigned_abs())
                .max()
                .map_or(0, i64::from)
        };
        let a = i64::from(activation.q_max()).max(-i64::from(activation.q_min()));
        let product = largest(&packed.pairs) * a;
        packed.is_small = product * (SHORT as i64) <= i64::from(i16::MAX);
        packed.product = product;
        packed.is_roomy = product <= accumulator.max().into();
        packed
    }

    /// Columns.
    pub fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// Accumulators of a pixel: the columns, filled up to whole groups.
    pub fn n_lanes(&self) -> usize {
        self.n_groups * LANES
    }

    /// Steps of the reduction.
    pub fn n_steps(&self) -> usize {
        self.n_steps
    }

    /// Stored activations of a pixel.
    pub fn patch_len(&self) -> usize {
        self.n_places
    }

    /// Where in a pixel's patch step `k` stands.
    pub fn place(&self, k: usize) -> usize {
        if k < self.chunk {
            return k;
        }
        (k / self.chunk) * self.chunk_places + k % self.chunk
    }

    /// Whether [`Self::place`] leaves no gaps before the last step.
    pub fn is_dense(&self) -> bool {
        self.chunk == self.chunk_places || self.chunk == self.n_steps
    }

    /// The byte that stands for an activation in a patch: signed ones are moved up to start at 0.
    pub fn stored(&self, activation: i32) -> u8 {
        (activation + self.offset()) as u8
    }

    /// What [`Self::stored`] adds.
    pub fn offset(&self) -> i32 {
        -self.activation.q_min()
    }

    /// Accumulators of at most 16 bits.
    pub(crate) fn is_narrow(&self) -> bool {
        self.accumulator.width_bits <= 16
    }

    /// Whether the order of adds has no influence on values: what wraps is exact modulo a power of two.
    pub(crate) fn is_orderless(&self) -> bool {
        self.accumulator.overflow == Overflow::Wrap
    }

    /// Unused bits of a lane of 16 bits below a number that stands at the lane's upper end, so that
    /// 16-bit instructions clip as the accumulator does. 0 where products would not fit.
    pub(crate) fn scale(&self) -> u32 {
        if self.is_roomy && self.is_narrow() {
            16 - u32::from(self.accumulator.width_bits)
        } else {
            0
        }
    }

    /// Operands of sums in order.
    pub(crate) fn table(&self) -> &Table {
        self.table.get_or_init(|| Table::new(self))
    }

    /// Whether sums on the way prove something: a stretch is one sum, and 32 bits hold it.
    pub(crate) fn can_glance(&self) -> bool {
        self.chunk_places == self.n_places && self.accumulator.width_bits <= 30
    }

    /// Whether runs can be walked in one go: they are parts of one sum that 16 bits hold.
    pub(crate) fn can_join_runs(&self) -> bool {
        self.chunk_places == self.n_places && self.is_narrow()
    }

    /// The weight of a lane at a place.
    pub(crate) fn at(&self, group: usize, place: usize, lane: usize) -> i8 {
        let first = group * LANES * self.n_places;
        self.pairs[first + (place / 2) * 2 * LANES + 2 * lane + place % 2]
    }

    /// A group's pairs.
    #[inline]
    pub(crate) fn group_pairs(&self, group: usize) -> &[i8] {
        &self.pairs[group * LANES * self.n_places..][..LANES * self.n_places]
    }

    /// A group's quads.
    #[inline]
    pub(crate) fn group_quads(&self, group: usize) -> &[i8] {
        &self.quads[group * LANES * self.n_places..][..LANES * self.n_places]
    }

    /// The step at a place; places without one belong to the step before.
    pub(crate) fn step_at(&self, place: usize) -> u32 {
        if place < self.chunk {
            return place as u32;
        }
        let (chunk, inside) = (place / self.chunk_places, place % self.chunk_places);
        let first = chunk * self.chunk;
        let length = self.chunk.min(self.n_steps - first);
        (first + inside.min(length - 1)) as u32
    }

    /// Cuts the positions into runs and blocks. With chunks, a run is whole chunks.
    fn cut(&mut self, n_chunks: usize) {
        let run = if n_chunks == 1 {
            RUN
        } else {
            (RUN / self.chunk_places).max(1) * self.chunk_places
        };
        self.runs = (0..self.n_places)
            .step_by(run)
            .map(|from| Stretch {
                from,
                to: (from + run).min(self.n_places),
            })
            .collect();
        let n_runs = self.runs.len();
        // Events of a run are counted in 16 bits.
        assert!(run <= 1 << 14, "chunks have at most 2^14 steps");
        let per_block = (MAX_BLOCK / run).max(1);
        self.blocks = (0..n_runs)
            .step_by(per_block)
            .map(|from| Stretch {
                from,
                to: (from + per_block).min(n_runs),
            })
            .collect();
    }

    /// The smallest and the largest activation.
    fn extremes(&self) -> (i32, i32) {
        (self.activation.q_min(), self.activation.q_max())
    }

    /// How far the sums of a run can go.
    fn reach(&self, group: usize, run: Stretch) -> Reach {
        let pairs = self.group_pairs(group);
        let mut reach = Reach::default();
        let mut from = run.from;
        while from < run.to {
            let chunk_end = from - from % self.chunk_places + self.chunk_places;
            let to = run.to.min(chunk_end);
            let mut part = Reach::default();
            part.add(&pairs[from * LANES..to * LANES], self.extremes());
            // A chunk that is not the first starts at 0.
            if from >= self.chunk_places {
                for lane in 0..LANES {
                    let fits = self.accumulator.holds(part.up[lane].into())
                        && self.accumulator.holds(part.down[lane].into());
                    part.is_impossible[lane] = !fits;
                }
            }
            reach.merge(&part);
            from = to;
        }
        reach
    }

    /// Of a group's run.
    pub(crate) fn between(&self, group: usize, run: usize) -> &Between {
        let of_group = self.run_between[group].get_or_init(|| {
            let pairs = self.group_pairs(group);
            let of_run = |&run: &Stretch| {
                let pairs = &pairs[run.from * LANES..run.to * LANES];
                let reach = self.reach(group, run);
                between(pairs, self.extremes(), &reach, self.accumulator)
            };
            self.runs.iter().map(of_run).collect()
        });
        &of_group[run]
    }

    fn bound(&mut self) {
        let activation = self.extremes();
        for group in 0..self.n_groups {
            let runs: Vec<Reach> = self
                .runs
                .iter()
                .map(|&run| self.reach(group, run))
                .collect();
            let offset = i64::from(self.offset());
            self.run_bounds
                .extend(runs.iter().map(|r| r.bounds(self.accumulator, offset)));
            let first = self.rest_bounds.len();
            let mut rest = Reach::default();
            for block in self.blocks.iter().rev() {
                let mut whole = Reach::default();
                for run in &runs[block.from..block.to] {
                    whole.merge(run);
                }
                rest.merge(&whole);
                self.block_bounds
                    .push(whole.bounds(self.accumulator, offset));
                self.rest_bounds.push(rest.bounds(self.accumulator, offset));
            }
            self.block_bounds[first..].reverse();
            self.rest_bounds[first..].reverse();
        }
        self.splits = pairs_leave_16_bits(&self.pairs, activation.1 - activation.0);
    }
}

/// A lane's steps, `N` at a time.
fn spread<const N: usize>(to: &mut [i8], steps: &[i8], lane: usize) {
    let (whole, rest) = steps.as_chunks::<N>();
    let mut to = to.chunks_exact_mut(N * LANES);
    for (steps, to) in whole.iter().zip(&mut to) {
        to[N * lane..][..N].copy_from_slice(steps);
    }
    if !rest.is_empty() {
        let to = to.next().expect("chunks end with a whole quad");
        to[N * lane..][..rest.len()].copy_from_slice(rest);
    }
}

/// How far the sums of a stretch can go. Those of a run, at most 2^14 products of at most 2^15, are
/// inside 32 bits; what is not has no proof.
#[derive(Clone, Default)]
struct Reach {
    up: Lanes<i32>,
    down: Lanes<i32>,
    weight: Lanes<i32>,
    is_impossible: Lanes<bool>,
}

impl Reach {
    /// Adds pairs of positions; `activation` is the smallest and the largest.
    fn add(&mut self, pairs: &[i8], activation: (i32, i32)) {
        reach_of(
            pairs,
            activation,
            &mut self.up,
            &mut self.down,
            &mut self.weight,
        );
    }

    fn merge(&mut self, other: &Self) {
        for lane in 0..LANES {
            let up = self.up[lane].checked_add(other.up[lane]);
            let down = self.down[lane].checked_add(other.down[lane]);
            let is_impossible = up.is_none() || down.is_none() || other.is_impossible[lane];
            self.is_impossible[lane] |= is_impossible;
            self.up[lane] = up.unwrap_or(0);
            self.down[lane] = down.unwrap_or(0);
            self.weight[lane] = self.weight[lane].wrapping_add(other.weight[lane]);
        }
    }

    fn bounds(&self, accumulator: AccumulatorFormat, offset: i64) -> Bounds {
        let mut bounds = Bounds {
            low: [i16::MAX; LANES],
            high: [i16::MIN; LANES],
            low_32: [i32::MAX; LANES],
            high_32: [i32::MIN; LANES],
            correction: [0; LANES],
            correction_32: [0; LANES],
        };
        for lane in 0..LANES {
            bounds.correction_32[lane] = (offset * i64::from(self.weight[lane])) as i32;
            bounds.correction[lane] = bounds.correction_32[lane] as i16;
            let low = i64::from(accumulator.min()) - i64::from(self.down[lane]);
            let high = i64::from(accumulator.max()) - i64::from(self.up[lane]);
            if self.is_impossible[lane] || low > high {
                continue;
            }
            // `low <= high` puts both inside the accumulator's range.
            (bounds.low_32[lane], bounds.high_32[lane]) = (low as i32, high as i32);
            if accumulator.width_bits <= 16 {
                (bounds.low[lane], bounds.high[lane]) = (low as i16, high as i16);
            }
        }
        bounds
    }
}

/// Of a run's pairs, whose reach is known.
fn between(
    pairs: &[i8],
    activation: (i32, i32),
    reach: &Reach,
    accumulator: AccumulatorFormat,
) -> Between {
    let (mut run, mut quad) = (Excess::default(), Excess::default());
    excess_of(pairs, activation, (&reach.up, &reach.down), &mut run);
    excess_of_quads(pairs, activation, &mut quad);
    let mut between = Between {
        low: [i32::MAX; LANES],
        high: [i32::MIN; LANES],
        low_16: [i16::MAX; LANES],
        high_16: [i16::MIN; LANES],
        quad_low: [i32::MAX; LANES],
        quad_high: [i32::MIN; LANES],
    };
    for lane in 0..LANES {
        // Ends are summed in 32 bits, which must hold them.
        if reach.is_impossible[lane] || accumulator.width_bits > 30 {
            continue;
        }
        let limits = |excess: &Excess| {
            let low = accumulator.min().saturating_add(excess.down[lane]);
            let high = accumulator.max().saturating_sub(excess.up[lane]);
            (low, high)
        };
        let (low, high) = limits(&run);
        (between.low[lane], between.high[lane]) = (low, high);
        let holds = |sum: i32| i16::try_from(sum).is_ok();
        let is_narrow = accumulator.width_bits <= 16;
        if is_narrow && low <= high && holds(reach.up[lane]) && holds(reach.down[lane]) {
            // `low <= high` puts both inside the accumulator's range.
            between.low_16[lane] = (low as i16).max(i16::MIN + 1);
            between.high_16[lane] = (high as i16).min(i16::MAX - 1);
        }
        (between.quad_low[lane], between.quad_high[lane]) = limits(&quad);
    }
    between
}

/// See [`Between`].
#[derive(Default)]
struct Excess {
    up: Lanes<i32>,
    down: Lanes<i32>,
}

/// The largest excess on the way through `pairs`, whose reach is `(up, down)`, or what stands there.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn excess_of(
    pairs: &[i8],
    (a_min, a_max): (i32, i32),
    (up, down): (&Lanes<i32>, &Lanes<i32>),
    excess: &mut Excess,
) {
    let (mut more, mut less) = ([0i32; LANES], [0i32; LANES]);
    for pair in pairs.chunks_exact(2 * LANES) {
        for odd in 0..2 {
            for lane in 0..LANES {
                let w = i32::from(pair[2 * lane + odd]);
                let (high, low) = (w.wrapping_mul(a_max), w.wrapping_mul(a_min));
                more[lane] = more[lane].wrapping_add(high.max(low).max(0));
                less[lane] = less[lane].wrapping_add(high.min(low).min(0));
                // What the steps behind can take away, and what they can add.
                let fall = less[lane].wrapping_sub(down[lane]);
                let rise = up[lane].wrapping_sub(more[lane]);
                excess.up[lane] = excess.up[lane].max(more[lane].min(fall));
                let least = less[lane].wrapping_neg().min(rise);
                excess.down[lane] = excess.down[lane].max(least);
            }
        }
    }
}

/// The same for quads, each alone.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn excess_of_quads(pairs: &[i8], (a_min, a_max): (i32, i32), excess: &mut Excess) {
    for quad in pairs.chunks_exact(4 * LANES) {
        for lane in 0..LANES {
            let at = |step: usize| {
                let w = i32::from(quad[(step / 2) * 2 * LANES + 2 * lane + step % 2]);
                let (high, low) = (w.wrapping_mul(a_max), w.wrapping_mul(a_min));
                (high.max(low).max(0), high.min(low).min(0))
            };
            let steps = [at(0), at(1), at(2), at(3)];
            for split in 1..4 {
                let sum = |from: usize, to: usize| {
                    let mut sum = (0i32, 0i32);
                    for step in &steps[from..to] {
                        sum = (sum.0.wrapping_add(step.0), sum.1.wrapping_add(step.1));
                    }
                    sum
                };
                let (before, after) = (sum(0, split), sum(split, 4));
                let up = before.0.min(after.1.wrapping_neg());
                let down = before.1.wrapping_neg().min(after.0);
                excess.up[lane] = excess.up[lane].max(up);
                excess.down[lane] = excess.down[lane].max(down);
            }
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn reach_of(
    pairs: &[i8],
    (a_min, a_max): (i32, i32),
    up: &mut Lanes<i32>,
    down: &mut Lanes<i32>,
    weight: &mut Lanes<i32>,
) {
    for pair in pairs.chunks_exact(2 * LANES) {
        for odd in 0..2 {
            for lane in 0..LANES {
                let w = i32::from(pair[2 * lane + odd]);
                let (high, low) = (w.wrapping_mul(a_max), w.wrapping_mul(a_min));
                up[lane] = up[lane].wrapping_add(high.max(low).max(0));
                down[lane] = down[lane].wrapping_add(high.min(low).min(0));
                weight[lane] = weight[lane].wrapping_add(w);
            }
        }
    }
}

/// Whether two stored activations of up to `a_max` can give a sum of more than 16 bits.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn pairs_leave_16_bits(pairs: &[i8], a_max: i32) -> bool {
    let (mut most, mut least) = (0i32, 0i32);
    for pair in pairs.chunks_exact(2) {
        let (a, b) = (i32::from(pair[0]), i32::from(pair[1]));
        most = most.max(a.max(0).wrapping_add(b.max(0)));
        least = least.min(a.min(0).wrapping_add(b.min(0)));
    }
    most * a_max > i16::MAX.into() || least * a_max < i16::MIN.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arith::SplitMix64;

    /// Every sequence of small activations (from 0, as another beginning only shifts all sums): where
    /// beginning and end are inside the limits, so is everything between them; and the limits
    /// allow for no more than one step beyond the widest excess that was seen.
    #[test]
    fn ends_prove_what_is_between() {
        let accumulator = AccumulatorFormat {
            width_bits: 8,
            overflow: Overflow::Saturate,
        };
        let mut rng = SplitMix64(1);
        for (bits, signed, n_steps) in [(2, false, 4), (2, true, 4), (1, false, 8), (2, false, 7)] {
            let activation = Format { bits, signed };
            for _ in 0..20 {
                let weights: Vec<i8> = (0..n_steps).map(|_| rng.between(-9, 9) as i8).collect();
                let packed = Weights::pack(&weights, &[0], activation, accumulator, None);
                let between = packed.between(0, 0);
                let limits = [
                    (between.low[0], between.high[0]),
                    (between.quad_low[0], between.quad_high[0]),
                ];
                let limits = if n_steps <= 4 {
                    &limits[..]
                } else {
                    &limits[..1]
                };
                let mut widest = [i32::MIN; 2];
                let n_values = 1usize << bits;
                for code in 0..n_values.pow(n_steps as u32) {
                    let value = |step: usize| {
                        let digit = code / n_values.pow(step as u32) % n_values;
                        digit as i32 + activation.q_min()
                    };
                    let mut sums = vec![0];
                    for (step, &w) in weights.iter().enumerate() {
                        sums.push(sums[step] + i32::from(w) * value(step));
                    }
                    let end = sums[n_steps];
                    let (least, most) = (sums.iter().min(), sums.iter().max());
                    let (least, most) = (*least.expect("some"), *most.expect("some"));
                    let excess = [end.min(0) - least, most - end.max(0)];
                    widest = [widest[0].max(excess[0]), widest[1].max(excess[1])];
                }
                for &(low, high) in limits {
                    assert!(low >= accumulator.min() + widest[0], "{weights:?}");
                    assert!(high <= accumulator.max() - widest[1], "{weights:?}");
                    assert!(low - accumulator.min() - widest[0] <= 27, "{weights:?}");
                    assert!(accumulator.max() - widest[1] - high <= 27, "{weights:?}");
                }
            }
        }
    }
}
