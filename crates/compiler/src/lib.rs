//! From an integer network to a program for one machine.
//!
//! The stages, each a function from one value to the next: DRAM layout ([`layout`](Placement)),
//! jobs (layers in the machine's numbers), search (tiles and loop order by the event model),
//! emission (instructions with what they read and write), schedule (loads move ahead), tokens.
//! Invariant: the same network and machine give the same program, whatever the number of threads.

mod emit;
mod error;
mod job;
mod layout;
mod listing;
mod schedule;
mod search;
#[cfg(test)]
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]
mod tests;
mod tile;
mod tokens;

pub use error::Error;
pub use layout::{read_tensor, write_tensor};
pub use listing::{Buffer, LayerPlan};

use accelerator::Config;
use isa::{LayerInfo, Placement, Program};
use job::Job;
use network::Network;
use rayon::prelude::*;
use search::{Found, Trial};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A compiled network.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the machine runs.
    pub program: Program,
    /// What was chosen for each layer.
    pub tiles: Vec<LayerPlan>,
    /// For each instruction its tile; its layer is in the program's `layer_of`.
    pub notes: Vec<String>,
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
        self.program.to_text_with_notes(&self.notes)
    }

    /// Where a tensor lies in DRAM.
    pub fn placement(&self, tensor: network::TensorId) -> &Placement {
        &self.program.tensors[tensor.index()]
    }
}

/// Compiles a network for a machine.
///
/// # Errors
/// A network that [`Network::verify`] refuses or whose biases the accumulators cannot hold; a layer
/// of which not even the smallest tile fits; a number that no instruction can hold.
pub fn compile(network: &Network, config: &Config) -> Result<Compiled, Error> {
    network.verify()?;
    network::check_bias(network, config.arithmetic.accumulator)?;
    let layout = layout::place(network, config.cols, config.dram.size_bytes)?;
    let (layers, n_channels) = layer_infos(network)?;
    let first_counters: Vec<u32> = layers.iter().map(|layer| layer.first_channel).collect();
    let jobs = job::lower(network, &layout, &first_counters)?;
    let trial = Trial {
        fingerprint: config.fingerprint(),
        dram_bytes: layout.dram_bytes,
        n_channels,
    };
    let found = search_all(network, &jobs, config, trial)?;
    let mut tiles = Vec::new();
    let mut stages = Vec::new();
    for (index, ((layer, job), found)) in network.layers.iter().zip(&jobs).zip(&found).enumerate() {
        // The search has seen that the choice fits; the place in memory does not change that.
        let plan = tile::Plan::new(job, found.choice, config, index % 2 == 1)
            .expect("a plan that fits at the start of a memory fits at its end");
        tiles.push(LayerPlan::new(&layer.name, job, &plan, found.cycles));
        let emitted = emit::emit(job, &plan, config);
        stages.extend(emitted.into_iter().map(|stage| (index as u32, stage)));
    }
    let stage_notes: Vec<String> = stages.iter().map(|(_, stage)| stage.note.clone()).collect();
    let stream = search::stream(stages, config);
    search::check(&stream, |layer| network.layers[layer].name.clone())?;
    let notes = stream
        .stage_of
        .iter()
        .map(|&s| stage_notes[s as usize].clone())
        .collect();
    let program = Program {
        machine: trial.fingerprint,
        dram_bytes: layout.dram_bytes,
        n_channels,
        instructions: stream.instructions,
        data: layout.data,
        layers,
        layer_of: stream.layer_of,
        tensors: layout.tensors,
    };
    Ok(Compiled {
        program,
        tiles,
        notes,
    })
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
    config: &Config,
    trial: Trial,
) -> Result<Vec<Found>, Error> {
    let mut shapes: Vec<(Job, usize)> = Vec::new();
    let mut index_of: BTreeMap<Job, usize> = BTreeMap::new();
    let mut shape_of = Vec::with_capacity(jobs.len());
    for (layer, job) in jobs.iter().enumerate() {
        let n = shapes.len();
        let index = *index_of.entry(job.shape()).or_insert(n);
        if index == n {
            shapes.push((job.clone(), layer));
        }
        shape_of.push(index);
    }
    let found: Vec<Result<Found, Error>> = shapes
        .par_iter()
        .map(|(job, layer)| search::search(&network.layers[*layer].name, job, config, trial))
        .collect();
    // The first error in layer order, whatever thread met its own first.
    let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(shape_of.into_iter().map(|index| found[index]).collect())
}
