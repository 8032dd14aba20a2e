//! From an integer network to a program for one machine.
//!
//! The stages, each a function from one value to the next: DRAM layout ([`layout`](Placement)),
//! jobs (layers in the machine's numbers), residency (what stays on chip), search (tiles and loop
//! order by the event model), emission (instructions with what they read and write), schedule (loads
//! move ahead), tokens.
//! Invariant: the same network and machine give the same program, whatever the number of threads.

mod bound;
mod emit;
mod error;
mod explain;
pub mod gemm;
mod job;
mod lanes;
mod layout;
mod listing;
mod ranges;
mod residency;
mod schedule;
mod search;
#[cfg(test)]
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]
mod tests;
mod tile;
mod tokens;
mod weights;

pub use error::Error;
pub use explain::{
    BoundCycles, Dominant, Explained, Explanation, Fate, Mapping, TooLarge, explain,
};
pub use layout::{read_tensor, write_tensor};
pub use listing::{Buffer, LayerPlan};

use accelerator::Config;
use isa::{LayerInfo, Placement, Program};
use job::{Job, Work};
use layout::Layout;
use network::Network;
use rayon::prelude::*;
use residency::Residency;
use search::{Found, Trial};
use std::collections::BTreeMap;
use std::fmt::Write;
use tile::{Place, Plan};

/// A compiled network.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the machine runs.
    pub program: Program,
    /// What was chosen for each layer.
    pub tiles: Vec<LayerPlan>,
    /// For each instruction what it is for; its layer is in the program's `layer_of`.
    notes: Vec<emit::Note>,
    plans: Vec<Plan>,
}

impl Compiled {
    /// The text of `--emit tiled`.
    pub fn tiled(&self) -> String {
        let mut text = String::new();
        for plan in &self.tiles {
            write!(text, "{plan}").expect("a string takes every write");
        }
        text
    }

    /// The text of `--emit asm`.
    pub fn asm(&self) -> String {
        let notes: Vec<String> = self
            .notes
            .iter()
            .zip(&self.program.layer_of)
            .map(|(note, &layer)| note.text(&self.plans[layer as usize]))
            .collect();
        self.program.to_text_with_notes(&notes)
    }

    /// Where a tensor lies in DRAM.
    pub fn placement(&self, tensor: network::TensorId) -> &Placement {
        &self.program.tensors[tensor.index()]
    }
}

/// What a program is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Every tensor is stored to DRAM, so that each can be compared with the oracle; otherwise only
    /// those that somebody reads there. The choice of what stays on chip is the same.
    pub store_all: bool,
    /// The program has no weights: enough for its time, not for values.
    pub without_data: bool,
}

/// Compiles a network for a machine.
///
/// # Errors
/// A network that [`Network::verify`] refuses or whose biases the accumulators cannot hold; a layer
/// of which not even the smallest tile fits; a number that no instruction can hold.
pub fn compile(network: &Network, config: &Config) -> Result<Compiled, Error> {
    compile_with(network, config, Options::default())
}

/// As [`compile`], for a purpose.
///
/// # Errors
/// As [`compile`].
pub fn compile_with(
    network: &Network,
    config: &Config,
    options: Options,
) -> Result<Compiled, Error> {
    let front = Front::new(network, config)?;
    let residency = Residency::decide(network, &front.jobs, config);
    let nothing_stays = residency.addresses.iter().all(Option::is_none);
    match front.compile(&residency, options) {
        // What stays on chip has left too little room; this is rare, for `decide` has looked.
        Err(Error::TooLarge { .. }) if !nothing_stays => {
            front.compile(&Residency::none(network, config), options)
        }
        compiled => compiled,
    }
}

/// Everything that is known before tensors are placed on chip.
struct Front<'a> {
    network: &'a Network,
    config: &'a Config,
    layout: Layout,
    layers: Vec<LayerInfo>,
    /// With every tensor in DRAM.
    jobs: Vec<Job>,
    trial: Trial,
}

impl<'a> Front<'a> {
    fn new(network: &'a Network, config: &'a Config) -> Result<Self, Error> {
        network.verify()?;
        network::check_bias(network, config.arithmetic.accumulator)?;
        let layout = layout::place(network, config)?;
        let (layers, n_channels) = layer_infos(network)?;
        let first_counters: Vec<u32> = layers.iter().map(|layer| layer.first_channel).collect();
        let jobs = job::lower(network, &layout, &first_counters, config)?;
        let trial = Trial {
            fingerprint: config.fingerprint(),
            dram_bytes: layout.dram_bytes,
            n_channels,
        };
        Ok(Self {
            network,
            config,
            layout,
            layers,
            jobs,
            trial,
        })
    }

    fn compile(&self, residency: &Residency, options: Options) -> Result<Compiled, Error> {
        let config = self.config;
        let mut jobs = self.jobs.clone();
        job::keep_on_chip(&mut jobs, &self.network.layers, residency, false);
        let found = search_all(self.network, &jobs, residency, config, self.trial)?;
        job::keep_on_chip(
            &mut jobs,
            &self.network.layers,
            residency,
            options.store_all,
        );
        let mut tiles = Vec::new();
        let mut plans = Vec::new();
        let mut items = Vec::new();
        // For each layer the first item behind its own.
        let mut layer_ends = Vec::new();
        let mut place = Place::first(residency::Gap { base: 0, len: 0 });
        for (index, (job, found)) in jobs.iter().zip(&found).enumerate() {
            place.gap = residency.gaps[index];
            place.at_top = index % 2 == 1;
            // The search has seen that the choice fits; the place in memory does not change that.
            let plan = Plan::new(job, found.choice, config, &place)
                .expect("a plan that fits at the start of a memory fits at its end");
            let name = &self.network.layers[index].name;
            tiles.push(LayerPlan::new(name, job, &plan, found.cycles));
            let emitted = emit::emit(job, &plan, config);
            if plan.weights.is_some() {
                (place.weight, place.parameter) = (emitted.weight, emitted.parameter);
            }
            items.extend(emitted.items);
            layer_ends.push(items.len());
            plans.push(plan);
        }
        let layer_of = |index: usize| layer_ends.partition_point(|&end| end <= index) as u32;
        let stream = search::stream(&items, layer_of, config);
        search::check(&stream, |layer| self.network.layers[layer].name.clone())?;
        let data = if options.without_data {
            Vec::new()
        } else {
            self.pack(&jobs, &plans)
        };
        let program = Program {
            machine: self.trial.fingerprint,
            dram_bytes: self.layout.dram_bytes,
            n_channels: self.trial.n_channels,
            instructions: stream.instructions,
            data,
            layers: self.layers.clone(),
            layer_of: stream.layer_of,
            tensors: self.layout.tensors.clone(),
        };
        Ok(Compiled {
            program,
            tiles,
            notes: stream.notes,
            plans,
        })
    }

    /// The DRAM's first contents: weights and parameters.
    fn pack(&self, jobs: &[Job], plans: &[Plan]) -> Vec<u8> {
        let mut data = vec![0; self.layout.data_bytes as usize];
        for ((layer, job), plan) in self.network.layers.iter().zip(jobs).zip(plans) {
            if let (Some(conv), Work::Conv(work) | Work::Lanes(work)) = (layer.conv(), &job.work) {
                layout::pack(conv, work, plan, self.config, &mut data);
            }
        }
        data
    }
}

/// For each tensor of a program, whether an instruction stores it to DRAM; the others stay on chip,
/// or are the host's.
pub fn stored_tensors(program: &Program) -> Vec<bool> {
    let mut stored = vec![false; program.tensors.len()];
    let mut by_address: Vec<usize> = (0..program.tensors.len()).collect();
    by_address.sort_by_key(|&index| program.tensors[index].address);
    for instruction in &program.instructions {
        if let isa::Op::Store(store) = &instruction.op {
            // Tensors do not overlap, so a store belongs to the last that begins before it.
            let behind = by_address
                .partition_point(|&index| program.tensors[index].address <= store.dram_address);
            if let Some(index) = behind.checked_sub(1) {
                stored[by_address[index]] = true;
            }
        }
    }
    stored
}

/// The layers for reports, and the number of overflow counters.
fn layer_infos(network: &Network) -> Result<(Vec<LayerInfo>, u32), Error> {
    /// The counter of column 0 has 20 bits.
    const MAX_CHANNELS: i64 = 1 << 20;
    let mut next = 0u32;
    let mut layers = Vec::new();
    for layer in &network.layers {
        let shape = network.tensor(layer.output).shape;
        let n_channels = layer.conv().map_or(0, |_| shape.channels as u32);
        layers.push(LayerInfo {
            name: layer.name.clone(),
            n_macs: layer.conv().map_or(0, |conv| conv.n_macs(shape)),
            first_channel: next,
            n_channels,
        });
        next = next.saturating_add(n_channels);
        if i64::from(next) > MAX_CHANNELS {
            return Err(Error::Limit {
                layer: layer.name.clone(),
                what: "number of overflow counters up to this layer",
                value: next.into(),
                min: 0,
                max: MAX_CHANNELS,
            });
        }
    }
    Ok((layers, next))
}

/// Searches each shape once; equal layers share the answer.
fn search_all(
    network: &Network,
    jobs: &[Job],
    residency: &Residency,
    config: &Config,
    trial: Trial,
) -> Result<Vec<Found>, Error> {
    let (shapes, shape_of) = shapes(jobs, residency);
    let found: Vec<Result<Found, Error>> = shapes
        .par_iter()
        .map(|&layer| {
            let room = residency.gaps[layer].len;
            let name = &network.layers[layer].name;
            search::search(name, &jobs[layer], room, config, trial)
        })
        .collect();
    // The first error in layer order, whatever thread met its own first.
    let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(shape_of.into_iter().map(|index| found[index]).collect())
}

/// The first layer of each shape, and for each layer which shape it has.
fn shapes(jobs: &[Job], residency: &Residency) -> (Vec<usize>, Vec<usize>) {
    let mut shapes: Vec<usize> = Vec::new();
    let mut index_of: BTreeMap<(Job, u32), usize> = BTreeMap::new();
    let mut shape_of = Vec::with_capacity(jobs.len());
    for (layer, job) in jobs.iter().enumerate() {
        let room = residency.gaps[layer].len;
        let n = shapes.len();
        let index = *index_of.entry((job.shape(room), room)).or_insert(n);
        if index == n {
            shapes.push(layer);
        }
        shape_of.push(index);
    }
    (shapes, shape_of)
}
