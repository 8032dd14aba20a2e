//! One shard of a batch: forward, loss, backward.
//!
//! Invariant: a shard's results depend on its images, the epoch and the parameters alone, so shards
//! may run on any thread.

use crate::backward::{self, Context, Gradients};
use crate::convolution::Panels;
use crate::data::{Data, Mixed};
use crate::float::Float;
use crate::graph::Graph;
use crate::integer::Integer;
use crate::loss::{Loss, distance};
use crate::normalization::{Norm, Normalized};
use crate::scales::Slope;
use crate::tape::Tape;
use crate::teacher::{Answers, Lesson};
use crate::trainer::{Settings, Totals};
use network::Network;

/// Who computes the forward pass.
pub(crate) enum Forward<'a> {
    Integer(Integer<'a>),
    Float(Float<'a>),
}

/// The parameters of one step, as its shards see them.
pub(crate) struct Pass<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) graph: &'a Graph,
    pub(crate) forward: Forward<'a>,
    pub(crate) teacher: Option<Lesson<'a>>,
    pub(crate) panels: &'a [Option<Panels>],
    pub(crate) learned: &'a [Option<Slope>],
    pub(crate) norms: &'a [Option<Norm>],
    /// The step's images.
    pub(crate) n_batch: usize,
    /// Whether LLSQ's errors are wanted.
    pub(crate) with_errors: bool,
}

/// What one shard contributes.
pub(crate) struct Part {
    pub(crate) totals: Totals,
    pub(crate) gradients: Gradients,
    /// By layer.
    pub(crate) errors: Vec<[f64; 3]>,
    /// By layer; those of the first of several parts.
    pub(crate) normalized: Vec<Vec<Option<Normalized>>>,
}

impl Part {
    pub(crate) fn add(&mut self, part: Self) {
        self.totals.add(part.totals);
        self.gradients.add(&part.gradients);
        for (sum, part) in self.errors.iter_mut().zip(&part.errors) {
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        self.normalized.extend(part.normalized);
    }
}

impl Pass<'_> {
    pub(crate) fn shard(&self, data: &Data, shard: &[usize], epoch: u64) -> Part {
        let settings = self.settings;
        let (images, mixed) = data.batch(shard, epoch, settings.augmentation, settings.seed);
        let (mut tape, answers) = match &self.forward {
            Forward::Integer(integer) => {
                let input = integers(&images, integer.network);
                let answers = self.teacher.as_ref().map(|lesson| lesson.answers(images));
                (integer.run(input, self.with_errors), answers)
            }
            Forward::Float(float) => (float.run(images), None),
        };
        let (totals, outputs) = self.loss(data, shard, &mixed, &tape, answers.as_ref());
        let context = Context {
            graph: self.graph,
            panels: self.panels,
            learned: self.learned,
            norms: self.norms,
            sums: &[],
        };
        let gradients = backward::backward(context, &tape, outputs);
        let mut normalized = std::mem::take(&mut tape.normalized);
        // The maps have served.
        normalized
            .iter_mut()
            .flatten()
            .for_each(|n| n.hat = Vec::new());
        Part {
            totals,
            gradients,
            errors: tape.errors,
            normalized: vec![normalized],
        }
    }

    /// Losses and the gradients of the outputs.
    fn loss(
        &self,
        data: &Data,
        shard: &[usize],
        mixed: &[Option<Mixed>],
        tape: &Tape,
        answers: Option<&Answers<'_>>,
    ) -> (Totals, Vec<(usize, Vec<f32>)>) {
        let loss = Loss {
            label_smoothing: self.settings.label_smoothing,
            distillation: self.settings.distillation,
        };
        let classes = n_classes(self.graph);
        let labels = data.labels().filter(|_| classes.is_some());
        let share = 1.0 / self.n_batch as f64;
        let net = &self.graph.net;
        let mut totals = Totals {
            n_images: shard.len() as u64,
            ..Totals::default()
        };
        let mut outputs = Vec::new();
        for (number, &output) in net.outputs.iter().enumerate() {
            let n = net.tensors[output].shape.len();
            let mut gradient = Vec::with_capacity(shard.len() * n);
            for (at, (&index, &mixed)) in shard.iter().zip(mixed).enumerate() {
                let values = &tape.values[output][at * n..][..n];
                let real: Vec<f32> = values.iter().map(|v| v * tape.units[output]).collect();
                let taught = answers.map(|answers| &answers.of(number)[at * n..][..n]);
                let targets = labels.map(|labels| targets(labels, index, mixed));
                let is_right = targets.is_some_and(|[(label, _), _]| top1(values) == label);
                totals.n_right += u64::from(is_right);
                let (loss, of_image) = match (classes, taught) {
                    (None, Some(taught)) => distance(&real, taught, share),
                    _ => loss.of(&real, targets.as_ref(), taught, share),
                };
                totals.loss += loss;
                gradient.extend(of_image);
            }
            outputs.push((output, gradient));
        }
        (totals, outputs)
    }
}

/// The label of an image and that of what was mixed into it, with their shares.
fn targets(labels: &[usize], index: usize, mixed: Option<Mixed>) -> [(usize, f64); 2] {
    let label = labels[index];
    match mixed {
        Some(Mixed { other, share }) => [(label, share), (labels[other], 1.0 - share)],
        None => [(label, 1.0), (label, 0.0)],
    }
}

/// The number of classes, where the output is a list of their scores.
pub(crate) fn n_classes(graph: &Graph) -> Option<usize> {
    let &[output] = graph.net.outputs.as_slice() else {
        return None;
    };
    let shape = graph.shape(output);
    (shape.height == 1 && shape.width == 1).then_some(shape.channels)
}

/// The first largest.
pub(crate) fn top1(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}

/// Images as the integer network takes them.
pub(crate) fn integers(images: &[f32], network: &Network) -> Vec<f32> {
    let tensor = network.tensor(network.input);
    let scale = tensor.scale.real();
    let (low, high) = (
        f64::from(tensor.format.q_min()),
        f64::from(tensor.format.q_max()),
    );
    let round = |&x: &f32| (f64::from(x) / scale).round_ties_even().clamp(low, high) as f32;
    images.iter().map(round).collect()
}
