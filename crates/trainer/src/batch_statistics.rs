//! Batch statistics for networks that learn to be integers: measured on the float network of the moment,
//! folded into weights by the student, and the gradients that go back through them.
//!
//! Invariant: batches are divided into parts by their number of images, and parts are summed in order.

use crate::backward::{self, Context, Gradients};
use crate::convolution::Panels;
use crate::data::Data;
use crate::float::Float;
use crate::graph::Graph;
use crate::normalization::{Norm, Normalized, Slopes, Statistics};
use crate::student::Student;
use crate::tape::Tape;
use crate::trainer::{NORMED_SHARD, Settings, evenly};
use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};

/// Images that the first statistics are of.
const N_MEASURED: usize = 512;

/// Of one batch.
pub(crate) struct BatchStatistics {
    /// By layer, where it is normalized.
    pub(crate) statistics: Vec<Option<Statistics>>,
    parts: Vec<Tape>,
    norms: Vec<Option<Norm>>,
    /// Of the unfolded weights.
    panels: Vec<Option<Panels>>,
}

impl BatchStatistics {
    /// Of the float network of the moment, each part of the batch normalized by its own.
    pub(crate) fn of(
        student: &mut Student,
        settings: &Settings,
        data: &Data,
        batch: &[usize],
        epoch: u64,
    ) -> Self {
        let (graph, norms) = student.unfolded();
        let float = Float::new(graph, &norms);
        let n = batch.len().div_ceil(NORMED_SHARD);
        let parts = (0..n).into_par_iter().map(|index| {
            let part = evenly(batch, n, index);
            let (images, _) = data.batch(part, epoch, settings.augmentation, settings.seed);
            float.run(images)
        });
        let parts: Vec<Tape> = parts.collect();
        Self {
            statistics: pooled(&parts),
            parts,
            panels: graph.panels_back(),
            norms,
        }
    }

    /// Adds what goes through the statistics: back through the float network that they were measured
    /// on, from every layer's mean and variance.
    pub(crate) fn backward(&self, student: &Student, gradients: &mut [Vec<f32>]) {
        let slopes = student.slopes(gradients);
        let of_parts: Vec<Gradients> = self
            .parts
            .par_iter()
            .map(|part| self.through(&student.graph, part, &slopes))
            .collect();
        let sum = of_parts.into_iter().reduce(|mut sum, part| {
            sum.add(&part);
            sum
        });
        if let Some(sum) = sum {
            student.add(&sum, gradients);
        }
    }

    fn through(&self, graph: &Graph, part: &Tape, slopes: &[Option<Slopes>]) -> Gradients {
        let n_images: usize = self.parts.iter().map(|part| part.n_images).sum();
        let of_sums = |layer: usize| {
            let (slopes, normalized) = (slopes[layer].as_ref()?, part.normalized[layer].as_ref()?);
            let shape = graph.shape(graph.net.layers[layer].output);
            let count = n_images * shape.height * shape.width;
            Some(normalized.spread(self.statistics[layer].as_ref()?, slopes, count))
        };
        let sums: Vec<Option<Vec<f32>>> = (0..slopes.len()).map(of_sums).collect();
        let context = Context {
            graph,
            panels: &self.panels,
            learned: &vec![None; slopes.len()],
            norms: &self.norms,
            sums: &sums,
        };
        backward::backward(context, part, Vec::new())
    }
}

/// Normalization begins as what it is on images as they are: the function stays.
pub(crate) fn begin(student: &mut Student, data: &Data) {
    let (graph, _) = student.unfolded();
    let float = Float::measuring(graph);
    let n_images = data.len().min(N_MEASURED);
    let n = n_images.div_ceil(NORMED_SHARD);
    let all: Vec<usize> = (0..n_images).collect();
    let parts = (0..n).into_par_iter().map(|index| {
        let part = evenly(&all, n, index);
        let images = part.iter().flat_map(|&i| data.image(i)).copied();
        let mut tape = float.run(images.collect());
        // Only the statistics are wanted.
        tape.values = Vec::new();
        tape.before = Vec::new();
        tape
    });
    let parts: Vec<Tape> = parts.collect();
    student.begin_norms(pooled(&parts));
}

/// Of each layer that was looked at, what the parts together have.
fn pooled(parts: &[Tape]) -> Vec<Option<Statistics>> {
    let n_layers = parts.first().map_or(0, |part| part.normalized.len());
    let of = |layer: usize| {
        let of_part = |part: &Tape| -> Option<(usize, Statistics)> {
            let Normalized { statistics, .. } = part.normalized[layer].as_ref()?;
            Some((part.n_images, statistics.clone()))
        };
        let parts: Option<Vec<_>> = parts.iter().map(of_part).collect();
        Some(Statistics::pooled(&parts?))
    };
    (0..n_layers).map(of).collect()
}
