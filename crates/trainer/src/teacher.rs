//! The float network that teaches, and how it sees the images.
//!
//! Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
//! Invariant: there is one output for each of the student's, with as many elements.

use crate::error::Error;
use crate::float::Float;
use crate::graph::Graph;
use crate::tape::Tape;
use quantizer::{FloatNetwork, FloatOp};

/// What a teacher sees where the student sees `x`: `factor · x + offset`, a pair for every channel.
pub type Lens = Vec<(f32, f32)>;

#[derive(Debug)]
pub(crate) struct Teacher {
    graph: Graph,
    /// Nothing where it is the student's own float network, which sees what the student sees.
    lens: Option<Lens>,
}

impl Teacher {
    /// The student's own float network.
    pub(crate) fn own(net: &FloatNetwork) -> Result<Self, Error> {
        let (graph, lens) = (Graph::new(net)?, None);
        Ok(Self { graph, lens })
    }

    /// Another one, if it can teach that student.
    pub(crate) fn other(
        net: &FloatNetwork,
        lens: Lens,
        student: &FloatNetwork,
    ) -> Result<Self, Error> {
        let (ours, theirs) = (net.tensors[0].shape, student.tensors[0].shape);
        if ours != theirs {
            return Err(Error::Teacher(format!(
                "its images are {ours}, the student's {theirs}"
            )));
        }
        let elements = |net: &FloatNetwork| -> Vec<usize> {
            let outputs = net.outputs.iter();
            outputs.map(|&t| net.tensors[t].shape.len()).collect()
        };
        let (ours, theirs) = (elements(net), elements(student));
        if ours != theirs {
            return Err(Error::Teacher(format!(
                "its outputs have {ours:?} elements, the student's {theirs:?}"
            )));
        }
        let channels = net.tensors[0].shape.channels;
        if lens.len() != channels {
            return Err(Error::Teacher(format!(
                "a lens of {} channels, its images have {channels}",
                lens.len()
            )));
        }
        let (graph, lens) = (Graph::new(net)?, Some(lens));
        Ok(Self { graph, lens })
    }

    /// Says whose state a checkpoint is, unless it is the student's own float network.
    pub(crate) fn identity(&self) -> Option<serde_json::Value> {
        let lens = self.lens.as_ref()?;
        let convs = self
            .graph
            .net
            .layers
            .iter()
            .filter_map(|layer| match &layer.op {
                FloatOp::Conv(conv) => Some(conv),
                _ => None,
            });
        let weights: f64 = convs
            .flat_map(|c| c.weights.iter())
            .map(|&w| f64::from(w))
            .sum();
        let name = &self.graph.net.name;
        Some(serde_json::json!({ "network": name, "weights": weights, "lens": lens }))
    }

    /// Ready for a step's images.
    pub(crate) fn begin(&self) -> Lesson<'_> {
        Lesson {
            teacher: self,
            float: Float::new(&self.graph, &[]),
        }
    }
}

/// A teacher in a step.
#[derive(Debug)]
pub(crate) struct Lesson<'a> {
    teacher: &'a Teacher,
    float: Float<'a>,
}

impl Lesson<'_> {
    /// What it answers to the student's images.
    pub(crate) fn answers(&self, mut images: Vec<f32>) -> Answers<'_> {
        if let Some(lens) = &self.teacher.lens {
            for pixel in images.chunks_exact_mut(lens.len()) {
                for (x, (factor, offset)) in pixel.iter_mut().zip(lens) {
                    *x = factor * *x + offset;
                }
            }
        }
        Answers {
            tape: self.float.run(images),
            outputs: &self.teacher.graph.net.outputs,
        }
    }
}

/// A teacher's outputs.
pub(crate) struct Answers<'a> {
    tape: Tape,
    outputs: &'a [usize],
}

impl Answers<'_> {
    /// Of output number `output`: one image's `n` elements after the other's.
    pub(crate) fn of(&self, output: usize) -> &[f32] {
        &self.tape.values[self.outputs[output]]
    }
}
