//! What each source of error costs: the float network with one thing quantized at a time.
//!
//! Sources are a layer's weights (with the bias that was fitted to them), its output's activations,
//! the rounding of its bias and multipliers, and its accumulators' overflow. The first three are
//! switched on alone in an otherwise real-valued network; overflow in an otherwise exact integer
//! network.
//! Invariant: with everything switched off this is the float network, up to float rounding.

use crate::Error;
use crate::simulate::{Simulator, Switches};
use arith::{AccumulatorFormat, Arithmetic};
use functional::{Detail, Engine, Level, Threads, Values};
use ndarray::Array3;
use network::Network;
use quantizer::FloatNetwork;
use rayon::prelude::*;

/// What can cost accuracy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Rounded weights, with the bias that was fitted to them.
    Weights,
    /// Rounded and clipped outputs (of the input: the input).
    Activations,
    /// Rounded bias and multipliers.
    Constants,
    /// Sums that did not fit the accumulator.
    Overflow,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 4] = [
        Self::Weights,
        Self::Activations,
        Self::Constants,
        Self::Overflow,
    ];
}

/// One thing switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Layer index; `None` is the network's input.
    pub layer: Option<usize>,
    /// What of it.
    pub source: Source,
}

/// What an image's first output is under a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Squared distance of all outputs from those with the case switched off.
    pub error: f64,
    /// Largest element of the first output.
    pub top1: usize,
}

/// The cases and what they do to each image.
#[derive(Clone, Debug)]
pub struct Sensitivity {
    /// Each layer's sources, the input's activations first.
    pub cases: Vec<Case>,
    /// By image: everything off.
    pub float: Vec<Outcome>,
    /// By image: squared float outputs.
    pub signal: Vec<f64>,
    /// By image: each source on in all layers, in the order of [`Source::ALL`].
    pub totals: Vec<Vec<Outcome>>,
    /// By image: each case.
    pub outcomes: Vec<Vec<Outcome>>,
}

/// Tries every case on images given as real and as integer values.
///
/// # Errors
/// The engine refuses the network.
///
/// # Panics
/// Networks that do not belong to each other.
pub fn sensitivity(
    float: &FloatNetwork,
    network: &Network,
    arithmetic: Arithmetic,
    n_images: usize,
    image: &(dyn Fn(usize) -> (Array3<f32>, Array3<i32>) + Sync),
    done: &(dyn Fn() + Sync),
) -> Result<Sensitivity, Error> {
    let wide = Arithmetic {
        accumulator: AccumulatorFormat {
            width_bits: 32,
            ..arithmetic.accumulator
        },
        ..arithmetic
    };
    let engines = [
        Engine::new(network, wide, Level::best())?,
        Engine::new(network, arithmetic, Level::best())?,
    ];
    let simulator = Simulator::new(float, network);
    let cases = cases(network);
    let all: Vec<OfImage> = (0..n_images)
        .into_par_iter()
        .map(|index| {
            let (real, integers) = image(index);
            let of = of_image(&simulator, &engines, network, &cases, &real, &integers)?;
            done();
            Ok(of)
        })
        .collect::<Result<_, Error>>()?;
    let mut sensitivity = Sensitivity {
        cases,
        float: Vec::new(),
        signal: Vec::new(),
        totals: Vec::new(),
        outcomes: Vec::new(),
    };
    for of in all {
        sensitivity.float.push(of.float);
        sensitivity.signal.push(of.signal);
        sensitivity.totals.push(of.totals);
        sensitivity.outcomes.push(of.outcomes);
    }
    Ok(sensitivity)
}

fn cases(network: &Network) -> Vec<Case> {
    let mut cases = vec![Case {
        layer: None,
        source: Source::Activations,
    }];
    for (index, layer) in network.layers.iter().enumerate() {
        for source in Source::ALL {
            let exists = match source {
                Source::Activations => true,
                Source::Constants => layer.op.post().is_some(),
                Source::Weights | Source::Overflow => layer.conv().is_some(),
            };
            if exists {
                cases.push(Case {
                    layer: Some(index),
                    source,
                });
            }
        }
    }
    cases
}

struct OfImage {
    float: Outcome,
    signal: f64,
    totals: Vec<Outcome>,
    outcomes: Vec<Outcome>,
}

fn of_image(
    simulator: &Simulator<'_>,
    engines: &[Engine<'_>; 2],
    network: &Network,
    cases: &[Case],
    real: &Array3<f32>,
    integers: &Array3<i32>,
) -> Result<OfImage, Error> {
    let base = simulator.run(real, &|_, _| false);
    let floats = simulator.outputs(&base);
    let outcome = |outputs: &[Vec<f32>]| Outcome {
        error: distance(outputs, &floats),
        top1: largest(&outputs[0]),
    };
    let overflow = Overflow::new(engines, network, integers)?;
    let simulated = |switches: &Switches<'_>, from: usize| {
        let tensors = simulator.rerun(&base, real, from, switches);
        outcome(&simulator.outputs(&tensors))
    };
    let totals = Source::ALL
        .iter()
        .map(|&source| match source {
            Source::Overflow => overflow.total(),
            _ => simulated(&|_, s| s == source, 0),
        })
        .collect();
    let outcomes = cases
        .iter()
        .map(|case| match (case.source, case.layer) {
            (Source::Overflow, Some(layer)) => overflow.of_layer(layer),
            (source, layer) => {
                simulated(&|l, s| l == layer && s == source, layer.unwrap_or_default())
            }
        })
        .collect();
    Ok(OfImage {
        float: outcome(&floats),
        signal: floats.iter().flatten().map(|&v| f64::from(v).powi(2)).sum(),
        totals,
        outcomes,
    })
}

/// The integer network with accumulators that always suffice, and with the machine's.
struct Overflow<'a> {
    engines: &'a [Engine<'a>; 2],
    network: &'a Network,
    exact: Vec<Values>,
    narrow: Vec<Values>,
}

impl<'a> Overflow<'a> {
    fn new(
        engines: &'a [Engine<'a>; 2],
        network: &'a Network,
        image: &Array3<i32>,
    ) -> Result<Self, Error> {
        let all = |engine: &Engine<'_>| -> Result<Vec<Values>, Error> {
            let mut tensors = engine.begin(image)?;
            let layers = 0..network.layers.len();
            engine.advance(layers, &mut tensors, Detail::Values, Threads::One);
            Ok(tensors)
        };
        Ok(Self {
            exact: all(&engines[0])?,
            narrow: all(&engines[1])?,
            engines,
            network,
        })
    }

    fn outcome(&self, tensors: &[Values]) -> Outcome {
        let reals = |tensors: &[Values]| -> Vec<Vec<f32>> {
            let outputs = self.network.outputs.iter();
            outputs
                .map(|&id| {
                    let scale = self.network.tensor(id).scale.real();
                    let values = tensors[id.index()].iter();
                    values.map(|q| (f64::from(q) * scale) as f32).collect()
                })
                .collect()
        };
        let outputs = reals(tensors);
        Outcome {
            error: distance(&outputs, &reals(&self.exact)),
            top1: largest(&outputs[0]),
        }
    }

    fn total(&self) -> Outcome {
        self.outcome(&self.narrow)
    }

    fn of_layer(&self, layer: usize) -> Outcome {
        let output = self.network.layers[layer].output.index();
        let mut tensors = self.exact.clone();
        let one = layer..layer + 1;
        self.engines[1].advance(one, &mut tensors, Detail::Values, Threads::One);
        if tensors[output] != self.exact[output] {
            let rest = layer + 1..self.network.layers.len();
            self.engines[0].advance(rest, &mut tensors, Detail::Values, Threads::One);
        }
        self.outcome(&tensors)
    }
}

fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}
