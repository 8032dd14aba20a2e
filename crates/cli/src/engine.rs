//! A network on a machine: compiled and timed once, then run on image after image.
//!
//! Invariant: results of an image depend on nothing but the network, the machine and the image.

use accelerator::{Config, event};
use anyhow::{Context, Result, bail, ensure};
use arith::ChannelOverflow;
use compiler::Options;
use functional::Level;
use isa::Program;
use ndarray::Array3;
use network::{Evaluation, Network, TensorId};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

/// A network ready to run.
pub struct Engine<'a> {
    /// What is run.
    pub network: &'a Network,
    /// For which machine.
    pub config: &'a Config,
    /// How.
    pub program: Program,
    /// Checked and timed.
    pub plan: event::Plan<'a>,
    /// For each tensor, whether it can be found in DRAM after a run.
    in_dram: Vec<bool>,
}

impl<'a> Engine<'a> {
    /// Compiles the network.
    ///
    /// # Errors
    /// The machine is too small for it.
    pub fn new(network: &'a Network, config: &'a Config) -> Result<Self> {
        Self::compiled(network, config, Options::default())
    }

    /// As [`Engine::new`], but every tensor is stored to DRAM, where it can be looked at; that takes
    /// a little longer on the machine, so this is not for measuring time.
    ///
    /// # Errors
    /// The machine is too small for the network.
    pub fn observed(network: &'a Network, config: &'a Config) -> Result<Self> {
        let options = Options {
            store_all: true,
            ..Options::default()
        };
        Self::compiled(network, config, options)
    }

    /// As [`Engine::new`], but good for its time only: there are no weights.
    ///
    /// # Errors
    /// The machine is too small for the network.
    pub fn timed(network: &'a Network, config: &'a Config) -> Result<Self> {
        let options = Options {
            without_data: true,
            ..Options::default()
        };
        Self::compiled(network, config, options)
    }

    fn compiled(network: &'a Network, config: &'a Config, options: Options) -> Result<Self> {
        let program = compiler::compile_with(network, config, options)
            .with_context(|| format!("machine {}", config.name))?
            .program;
        Self::with_program(network, config, program)
    }

    /// Uses a program that was compiled before.
    ///
    /// # Errors
    /// It is for another machine or another network, or breaks a rule of the machine.
    pub fn with_program(
        network: &'a Network,
        config: &'a Config,
        program: Program,
    ) -> Result<Self> {
        let plan = event::Plan::new(&program, config)?;
        let fits = program.tensors.len() == network.tensors.len()
            && program.layers.len() == network.layers.len()
            && program
                .tensors
                .iter()
                .zip(&network.tensors)
                .all(|(placed, tensor)| {
                    let placed_shape = (placed.channels, placed.height, placed.width);
                    let shape = tensor.shape;
                    placed_shape
                        == (
                            shape.channels as u32,
                            shape.height as u32,
                            shape.width as u32,
                        )
                        && placed.storage_bits == tensor.format.storage_bits()
                        && placed.signed == tensor.format.signed
                });
        ensure!(
            fits,
            "the program was compiled from another network than {:?}",
            network.name
        );
        let mut in_dram = compiler::stored_tensors(&program);
        in_dram[network.input.index()] = true;
        Ok(Self {
            network,
            config,
            program,
            plan,
            in_dram,
        })
    }

    /// The same integers without the machine, for many images.
    ///
    /// # Errors
    /// A bias that the accumulators cannot hold.
    pub fn functional(&self) -> Result<functional::Engine<'a>> {
        let arithmetic = self.config.arithmetic;
        let engine = functional::Engine::new(self.network, arithmetic, Level::best())?;
        Ok(engine)
    }

    /// DRAM as the program finds it, with the image in place.
    pub fn dram(&self, image: &Array3<i32>) -> Vec<u8> {
        let mut dram = vec![0; usize::try_from(self.program.dram_bytes).unwrap_or(usize::MAX)];
        dram[..self.program.data.len()].copy_from_slice(&self.program.data);
        let placement = &self.program.tensors[self.network.input.index()];
        compiler::write_tensor(&mut dram, placement, image);
        dram
    }

    /// Runs one image; DRAM afterwards, and the overflow records.
    ///
    /// # Errors
    /// A parameter that the machine cannot use.
    pub fn run(
        &self,
        image: &Array3<i32>,
        detail: event::Detail,
    ) -> Result<(Vec<u8>, Vec<ChannelOverflow>)> {
        let mut dram = self.dram(image);
        let overflow = self.plan.execute(&mut dram, detail)?;
        Ok((dram, overflow))
    }

    /// Refuses a program that keeps a tensor on chip.
    ///
    /// # Errors
    /// The first such tensor's name.
    pub fn ensure_all_in_dram(&self) -> Result<()> {
        match self.in_dram.iter().position(|&stored| !stored) {
            None => Ok(()),
            Some(index) => bail!(
                "the program keeps tensor {:?} on chip; without --program every tensor can be read",
                self.network.tensors[index].name
            ),
        }
    }

    /// A tensor in DRAM.
    pub fn tensor(&self, dram: &[u8], id: TensorId) -> Array3<i32> {
        compiler::read_tensor(dram, &self.program.tensors[id.index()])
    }

    /// The overflow records of a layer.
    pub fn records<'r>(&self, layer: usize, all: &'r [ChannelOverflow]) -> &'r [ChannelOverflow] {
        let info = &self.program.layers[layer];
        let first = info.first_channel as usize;
        all.get(first..first + info.n_channels as usize)
            .unwrap_or_default()
    }

    /// Runs one image through the event model, and through the stepped model if wanted, and compares
    /// with the oracle's values every tensor that is in DRAM, and every overflow record. Numbers of
    /// tensors, values and overflow records that were found equal.
    ///
    /// # Errors
    /// [`CheckFailed`] where they differ first.
    pub fn check(
        &self,
        index: usize,
        image: &Array3<i32>,
        oracle: &Evaluation,
        stepped: bool,
    ) -> Result<[u64; 3]> {
        let (dram, overflow) = self.run(image, event::Detail::Full)?;
        let mut n = [0u64; 3];
        for (id, expected) in oracle.tensors.iter().enumerate() {
            if !self.in_dram[id] {
                continue;
            }
            let found = self.tensor(&dram, TensorId(id));
            if found != *expected {
                let name = &self.network.tensors[id].name;
                let place = found
                    .indexed_iter()
                    .zip(expected)
                    .find(|((_, f), e)| f != e);
                let Some(((at, found), expected)) = place else {
                    bail!(CheckFailed(format!(
                        "image {index}: tensor {name:?} has another shape"
                    )));
                };
                bail!(CheckFailed(format!(
                    "image {index}: tensor {name:?} at {at:?} (channel, row, column): the event model has {found}, the oracle {expected}"
                )));
            }
            n[0] += 1;
            n[1] += found.len() as u64;
        }
        for (layer, expected) in oracle.overflow.iter().enumerate() {
            let found = self.records(layer, &overflow);
            if found != expected.as_slice() {
                let name = &self.network.layers[layer].name;
                let channel = found.iter().zip(expected).position(|(f, e)| f != e);
                bail!(CheckFailed(format!(
                    "image {index}: layer {name:?}: overflow records of event model and oracle differ (channel {channel:?})"
                )));
            }
            n[2] += found.len() as u64;
        }
        if stepped {
            let mut again = self.dram(image);
            let run = accelerator::stepped::run(&self.program, self.config, &mut again)?;
            for (what, equal) in [
                ("cycles", run.timing == *self.plan.timing()),
                ("DRAM contents", again == dram),
                ("overflow records", run.overflow == overflow),
            ] {
                if !equal {
                    let message =
                        format!("image {index}: {what} of event and stepped model differ");
                    bail!(CheckFailed(message));
                }
            }
        }
        Ok(n)
    }
}

/// Models of the same machine disagree: our mistake, not the user's.
#[derive(Debug)]
pub struct CheckFailed(pub String);

impl CheckFailed {
    /// What differs.
    pub fn new(what: String) -> Self {
        Self(what)
    }
}

impl std::fmt::Display for CheckFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "check failed: {}", self.0)
    }
}

impl std::error::Error for CheckFailed {}

/// Computes `f` of every index in parallel; answers and the first error are in index order.
///
/// # Errors
/// That of the smallest index that fails.
pub fn parallel<T: Send>(
    indices: std::ops::Range<usize>,
    f: impl Fn(usize) -> Result<T> + Sync + Send,
) -> Result<Vec<T>> {
    let all: Vec<Result<T>> = indices.into_par_iter().map(f).collect();
    all.into_iter().collect()
}
