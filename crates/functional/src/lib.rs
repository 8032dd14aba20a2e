//! The integer network at full speed: what the oracle computes, thousands of times faster.
//!
//! An [`Engine`] is prepared once for a network and an arithmetic (weights packed, proofs made) and
//! then runs any number of images, from any number of threads. Tensors lie pixel by pixel, channels
//! fastest, a byte an element, so that channels are lanes.
//!
//! Invariant: equal to [`network::evaluate`] in every value and, where they are asked for, every overflow
//! record, whatever the processor and the number of threads.

mod conv;
mod depthwise;
mod finish;
mod pool;
mod taps;
mod tensor;

pub use kernels::Level;
pub use tensor::Values;

use arith::{Arithmetic, ChannelOverflow};
use ndarray::Array3;
use network::{Error, Network, Op, TensorId};

/// What a run looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Values only: overflow records stay empty. Several times as fast where many sums overflow.
    Values,
    /// Values and events.
    Events,
    /// Also the extremes of the exact partial sums, which costs a walk over every step.
    Extremes,
}

/// How a run shares out its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One thread: for many images side by side.
    One,
    /// The blocks of a layer on all threads of the pool: for one image.
    All,
}

/// Every value that one image makes.
#[derive(Debug, Default)]
pub struct Run {
    tensors: Vec<Values>,
    /// One list per layer: one record per output channel of a convolution, empty otherwise. What the
    /// run's [`Detail`] leaves out is as in [`ChannelOverflow::default`].
    pub overflow: Vec<Vec<ChannelOverflow>>,
}

impl Run {
    /// A tensor's values.
    pub fn tensor(&self, id: TensorId) -> &Values {
        &self.tensors[id.index()]
    }
}

/// A network, prepared.
#[derive(Debug)]
pub struct Engine<'a> {
    network: &'a Network,
    layers: Vec<Prepared>,
    level: Level,
}

#[derive(Debug)]
enum Prepared {
    Conv(conv::Prepared),
    Depthwise(depthwise::Prepared),
    Pool(pool::Prepared),
    Join(Vec<pool::Copy>),
}

/// What a layer's functions need to know of a run.
#[derive(Clone, Copy)]
struct Context<'a> {
    level: Level,
    detail: Detail,
    threads: Threads,
    tensors: &'a [Values],
}

impl<'a> Engine<'a> {
    /// Prepares a network; `level` is [`Level::best`] but for tests and measurements.
    ///
    /// # Errors
    /// A network that [`Network::verify`] refuses, or a bias that the accumulator cannot hold.
    pub fn new(network: &'a Network, arithmetic: Arithmetic, level: Level) -> Result<Self, Error> {
        network.verify()?;
        network::check_bias(network, arithmetic.accumulator)?;
        let layers = network
            .layers
            .iter()
            .map(|layer| match &layer.op {
                Op::Conv(conv) if conv.is_plain_depthwise() => {
                    Prepared::Depthwise(depthwise::Prepared::new(network, layer, conv, arithmetic))
                }
                Op::Conv(conv) => {
                    Prepared::Conv(conv::Prepared::new(network, layer, conv, arithmetic))
                }
                Op::Pool(pool) => {
                    Prepared::Pool(pool::Prepared::new(network, layer, pool, arithmetic))
                }
                Op::Concat(parts) => {
                    Prepared::Join(pool::Copy::all(network, layer, parts, arithmetic))
                }
            })
            .collect();
        Ok(Self {
            network,
            layers,
            level,
        })
    }

    /// Runs one image, `[channel, row, column]`.
    ///
    /// # Errors
    /// An image of another shape or with a value outside the input's format.
    pub fn run(&self, image: &Array3<i32>, detail: Detail, threads: Threads) -> Result<Run, Error> {
        let mut run = Run::default();
        self.run_again(image, detail, threads, &mut run)?;
        Ok(run)
    }

    /// As [`Self::run`], in the memory of a run that is not needed any more.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_again(
        &self,
        image: &Array3<i32>,
        detail: Detail,
        threads: Threads,
        run: &mut Run,
    ) -> Result<(), Error> {
        self.begin_again(image, &mut run.tensors)?;
        let all = 0..self.layers.len();
        run.overflow = self.advance(all, &mut run.tensors, detail, threads);
        Ok(())
    }

    /// An image's tensors before the first layer: the input, and every other without values.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn begin(&self, image: &Array3<i32>) -> Result<Vec<Values>, Error> {
        let mut tensors = Vec::new();
        self.begin_again(image, &mut tensors)?;
        Ok(tensors)
    }

    fn begin_again(&self, image: &Array3<i32>, tensors: &mut Vec<Values>) -> Result<(), Error> {
        let network = self.network;
        network::check_input(network, image)?;
        if tensors.len() != network.tensors.len() {
            *tensors = network.tensors.iter().map(Values::empty).collect();
        }
        let input = network.tensor(network.input);
        let room = &mut tensors[network.input.index()];
        *room = Values::of(image, input.format, room.take(input));
        Ok(())
    }

    /// Runs some layers on tensors, one per id, of which those that the layers read have values:
    /// the overflow records, as in [`Run`]. Tensors that nobody reads any more may be taken away
    /// with [`Values::empty`] in between.
    ///
    /// # Panics
    /// A layer's input has no values.
    pub fn advance(
        &self,
        layers: std::ops::Range<usize>,
        tensors: &mut [Values],
        detail: Detail,
        threads: Threads,
    ) -> Vec<Vec<ChannelOverflow>> {
        let network = self.network;
        let mut overflow = Vec::with_capacity(layers.len());
        for index in layers {
            let layer = &network.layers[index];
            let tensor = network.output_of(layer);
            let mut output = tensors[layer.output.index()].take(tensor).with_room(tensor);
            let context = Context {
                level: self.level,
                detail,
                threads,
                tensors,
            };
            overflow.push(match &self.layers[index] {
                Prepared::Conv(conv) => conv.run(context, &mut output),
                Prepared::Depthwise(conv) => conv.run(context, &mut output),
                Prepared::Pool(pool) => {
                    pool.run(context, &mut output);
                    Vec::new()
                }
                Prepared::Join(copies) => {
                    pool::join(copies, context, &mut output);
                    Vec::new()
                }
            });
            tensors[layer.output.index()] = output;
        }
        overflow
    }
}
