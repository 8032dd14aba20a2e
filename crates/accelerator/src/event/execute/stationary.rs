//! `preload` and `stream`: sixteen columns side by side, element by element.
//!
//! Invariant: a column's sum and the add below it are what `AccumulatorFormat::add` gives in the order
//! of `docs/machine.md`. What stays plays the part of the weights of a fold, what streams that of
//! its activations; the arithmetic of a fold does not care which is which.

use super::{State, activation_range, gather, nibble_pair};
use crate::event::Detail;
use crate::event::mac::{Fold, LANES, Starts, Weights};
use crate::{Dataflow, FaultKind, rules};
use isa::{Input, Kernel, Stream};

/// What the PEs hold, one element for each group of columns.
#[derive(Default)]
pub(super) struct Held {
    groups: Vec<Weights>,
}

/// Bounds of the weights.
fn weight_range(input: &Input) -> (i64, i64) {
    if input.wide_weights == 1 {
        (-128, 127)
    } else {
        (-8, 7)
    }
}

impl State<'_> {
    pub(super) fn preload(&mut self, held: &rules::Held) {
        let n_cols = held.preload.cols_minus_1 as usize + 1;
        let groups = 0..n_cols.div_ceil(LANES);
        self.held.groups = match self.config.dataflow {
            Dataflow::InputStationary => groups
                .map(|group| self.held_activations(held, group, n_cols))
                .collect(),
            Dataflow::WeightStationary | Dataflow::OutputStationary => {
                let (line, n_steps) = (held.preload.weight_line, held.n_steps());
                groups
                    .map(|group| self.unpack(line, n_steps, &held.input, group, n_cols))
                    .collect()
            }
        };
    }

    /// Each column's pixel, step by step.
    fn held_activations(&self, held: &rules::Held, group: usize, n_cols: usize) -> Weights {
        let mut steps = vec![[0i16; LANES]; held.n_steps() as usize];
        let mut patch = Vec::with_capacity(steps.len());
        for lane in 0..LANES.min(n_cols - group * LANES) {
            let column = (group * LANES + lane) as u32;
            patch.clear();
            gather(
                &mut patch,
                &self.activations,
                &held.input,
                &held.kernel,
                position(&held.kernel, held.preload.y, held.preload.x + column),
                held.k,
                held.n_steps(),
            );
            for (step, &value) in steps.iter_mut().zip(&patch) {
                step[lane] = value;
            }
        }
        Weights::new(steps)
    }

    pub(super) fn stream(
        &mut self,
        stream: &Stream,
        input: &Input,
        kernel: &Kernel,
        held: &rules::Held,
    ) -> Result<(), FaultKind> {
        let is_weight = self.config.dataflow == Dataflow::InputStationary;
        let n_steps = held.n_steps() as usize;
        let mut patch = std::mem::take(&mut self.patch);
        patch.clear();
        for element in 0..=stream.n_minus_1 {
            if is_weight {
                let line = stream.weight_line + element * (1 + input.wide_weights);
                self.channel_weights(&mut patch, input, line, n_steps);
            } else {
                let at = position(kernel, stream.y, stream.x + element);
                let memory = &self.activations;
                gather(
                    &mut patch,
                    memory,
                    input,
                    kernel,
                    at,
                    held.k,
                    held.n_steps(),
                );
            }
        }
        let biases = self.biases(stream, is_weight)?;
        let range = if is_weight {
            weight_range(input)
        } else {
            activation_range(input)
        };
        let n_cols = stream.cols_minus_1 as usize + 1;
        let (first, row_groups) = self.first_entry(stream);
        for (group, weights) in self.held.groups.iter().enumerate() {
            let fold = Fold {
                held: weights,
                elements: &patch,
                k: held.k,
                range,
                format: self.config.arithmetic.accumulator,
                extremes: self.detail == Detail::Full,
                n_lanes: (n_cols - group * LANES).min(LANES),
                accumulate: stream.accumulate == 1,
            };
            let starts = match &biases {
                None => Starts::Columns([0; LANES]),
                Some(biases) if is_weight => Starts::Elements(biases),
                Some(biases) => {
                    let mut start = [0; LANES];
                    let biases = &biases[group * LANES..][..fold.n_lanes];
                    start[..fold.n_lanes].copy_from_slice(biases);
                    Starts::Columns(start)
                }
            };
            let entries = self.entries[first + group..].iter_mut().step_by(row_groups);
            fold.run(entries, starts);
        }
        self.patch = patch;
        if stream.last == 1 {
            self.count_entries(stream, is_weight);
        }
        Ok(())
    }

    /// Entry of the first group of columns of element 0, and entries from one element to the next.
    fn first_entry(&self, stream: &Stream) -> (usize, usize) {
        let row_groups = (self.config.cols as usize).div_ceil(LANES);
        let row = stream.block * self.config.block_rows + stream.row;
        (row as usize * row_groups, row_groups)
    }

    /// Weights of a channel: row `r` reads nibble `r`.
    fn channel_weights(&self, patch: &mut Vec<i16>, input: &Input, line: u32, n_steps: usize) {
        let line_bytes = self.config.line_bytes() as usize;
        let lines = &self.weights[line as usize * line_bytes..];
        let high = (input.wide_weights == 1).then(|| &lines[line_bytes..]);
        patch.extend((0..n_steps).map(|row| nibble_pair(lines, high, row)));
    }

    /// First values of the channels' sums; `None` when they are 0.
    fn biases(&self, stream: &Stream, is_transposed: bool) -> Result<Option<Vec<i32>>, FaultKind> {
        if stream.accumulate == 1 {
            return Ok(None);
        }
        let channels_minus_1 = if is_transposed {
            stream.n_minus_1
        } else {
            stream.cols_minus_1
        };
        (0..=channels_minus_1)
            .map(|c| self.initial_value(stream.parameter + c))
            .collect::<Result<Vec<_>, _>>()
            .map(Some)
    }

    /// The reduction has ended: the entries' records belong to their channels.
    fn count_entries(&mut self, stream: &Stream, is_transposed: bool) {
        let (first, row_groups) = self.first_entry(stream);
        for element in 0..=stream.n_minus_1 as usize {
            for c in 0..=stream.cols_minus_1 as usize {
                let entry = &self.entries[first + element * row_groups + c / LANES];
                let channel = if is_transposed { element } else { c };
                let counter = &mut self.overflow[stream.channel as usize + channel];
                entry.count(c % LANES, self.detail, counter);
            }
        }
    }
}

/// The `x`-th pixel after the row's first, which wraps into the next rows.
fn position(kernel: &Kernel, y: u32, x: u32) -> (u32, u32) {
    (y + x / kernel.output_width, x % kernel.output_width)
}
