//! Why a layer got its tiles: every candidate of the search, what it needs and costs, and what
//! became of it.
//!
//! Invariant: the candidates, their order and their fate are those of the search that compiles the
//! network; one of them is chosen unless none fits.

use crate::{
    Buffer, Error, Front, LayerPlan,
    bound::Bound,
    job,
    residency::{Gap, Residency},
    search::{self, Candidate, Effort, Rejected},
    search_all, shapes,
    tile::Choice,
};
use accelerator::Config;
use network::Network;
use serde::Serialize;

/// The search for one layer.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Its name.
    pub layer: String,
    /// What it computes, with extents.
    pub operation: String,
    /// Layers of the same shape and room: they share the answer.
    pub equal_layers: Vec<String>,
    /// Operands that stay on chip as a whole, and so need no tile.
    pub resident: Vec<&'static str>,
    /// Bytes of the activation scratchpad that resident tensors leave for tiles.
    pub room_bytes: u32,
    /// Bytes of the weight scratchpad.
    pub weight_bytes: u32,
    /// What fits, by lower bound.
    pub candidates: Vec<Explained>,
    /// What does not fit.
    pub too_large: Vec<TooLarge>,
}

/// The tiles and the loop order of a candidate.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Mapping {
    /// Output rows and columns of a tile.
    pub tile: [u32; 2],
    /// Weight groups are the outer loop, spatial tiles the inner.
    pub channels_outer: bool,
    /// Column tiles of a weight group when groups are the outer loop.
    pub group_tiles: u32,
    /// Output channels of a column tile at most.
    pub fold_channels: u32,
}

/// A candidate that fits.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// What it is.
    #[serde(flatten)]
    pub mapping: Mapping,
    /// Spatial tiles.
    pub n_tiles: usize,
    /// Groups of output channels whose weights are on chip together; 0 when not a convolution.
    pub n_weight_groups: usize,
    /// Buffers on chip.
    pub buffers: Vec<Buffer>,
    /// Why it cannot be faster.
    pub bound: BoundCycles,
    /// What became of it.
    pub fate: Fate,
    /// Its time from an idle machine; `null` unless the event model has run it.
    pub cycles: Option<u64>,
    /// What the machine says when it refuses it.
    pub refusal: Option<String>,
}

/// What became of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The fastest; among equals the one with the smaller bound, then the smaller tile.
    Chosen,
    /// Timed, and not faster.
    Slower,
    /// Not timed: its bound is no less than the best time.
    Pruned,
    /// The machine cannot run it.
    Refused,
}

/// A lower bound: the largest of `first_load + max(array + last_requantize, post) + last_store`,
/// `first_load + blocks + store` and `bus`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BoundCycles {
    /// Until the first operands are on chip.
    pub first_load: u64,
    /// The array takes operands, or cannot.
    pub array: u64,
    /// The post unit takes the array's last sums.
    pub last_requantize: u64,
    /// Folds take turns at the accumulator blocks: each holds one until its `requantize` has ended.
    pub blocks: u64,
    /// The post unit works.
    pub post: u64,
    /// Drain, post pipeline, and the last store.
    pub last_store: u64,
    /// The last store alone.
    pub store: u64,
    /// The DRAM bus carries all bytes.
    pub bus: u64,
    /// Everything together.
    pub total: u64,
    /// The largest part.
    pub dominant: Dominant,
    /// Bytes from DRAM.
    pub loaded_bytes: u64,
    /// Bytes to DRAM.
    pub stored_bytes: u64,
}

/// The unit that sets a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dominant {
    /// The PE array.
    Array,
    /// The accumulator blocks.
    Blocks,
    /// The post unit.
    Post,
    /// The DRAM bus.
    Bus,
}

/// A candidate that does not fit.
#[derive(Clone, Debug, Serialize)]
pub struct TooLarge {
    /// What it is.
    #[serde(flatten)]
    pub mapping: Mapping,
    /// What does not fit.
    pub what: &'static str,
    /// The memory.
    pub buffer: &'static str,
    /// Bytes that it needs.
    pub needed_bytes: u64,
    /// Bytes that there are.
    pub available_bytes: u64,
}

/// Explains the choice for one layer.
///
/// # Errors
/// No layer has this name; or as [`crate::compile`], but a layer of which nothing fits is explained.
pub fn explain(network: &Network, config: &Config, layer: &str) -> Result<Explanation, Error> {
    let names = || network.layers.iter().map(|layer| layer.name.as_str());
    let index = names()
        .position(|name| name == layer)
        .ok_or_else(|| Error::UnknownLayer {
            layer: layer.to_owned(),
            nearest: nearest(layer, names()),
        })?;
    let front = Front::new(network, config)?;
    let mut residency = Residency::decide(network, &front.jobs, config);
    let mut jobs = front.jobs.clone();
    job::keep_on_chip(&mut jobs, &network.layers, &residency, false);
    // As `compile_with` does.
    let searched = search_all(network, &jobs, &residency, config, front.trial);
    if let Err(Error::TooLarge { .. }) = searched {
        residency = Residency::none(network, config);
        job::keep_on_chip(&mut jobs, &network.layers, &residency, false);
    }
    let room = residency.gaps[index].len;
    let job = &jobs[index];
    let mut rejected = Vec::new();
    let gap = Gap { base: 0, len: room };
    let fitting = search::plans(&job.shape(room), config, gap, &mut rejected);
    let candidates = if fitting.is_empty() {
        Vec::new()
    } else {
        let (found, candidates) =
            search::candidates(layer, job, room, config, front.trial, Effort::Pruned)?;
        let explained = candidates.iter();
        explained
            .map(|candidate| explained_candidate(job, candidate, found.choice))
            .collect()
    };
    let (_, shape_of) = shapes(&jobs, &residency);
    let equal = |&other: &usize| other != index && shape_of[other] == shape_of[index];
    Ok(Explanation {
        layer: layer.to_owned(),
        operation: crate::listing::operation(job),
        equal_layers: (0..jobs.len())
            .filter(equal)
            .map(|other| network.layers[other].name.clone())
            .collect(),
        resident: crate::listing::resident(job)
            .into_iter()
            .map(|(name, _)| name)
            .collect(),
        room_bytes: room,
        weight_bytes: config.weight_bytes,
        candidates,
        too_large: rejected.iter().map(too_large).collect(),
    })
}

fn explained_candidate(job: &job::Job, candidate: &Candidate, chosen: Choice) -> Explained {
    let plan = &candidate.plan;
    let cycles = candidate.cycles;
    let listed = LayerPlan::new("", job, plan, cycles.unwrap_or_default());
    Explained {
        mapping: Mapping::of(plan.choice),
        n_tiles: listed.n_tiles,
        n_weight_groups: listed.n_weight_groups,
        buffers: listed.buffers,
        bound: BoundCycles::of(&candidate.bound),
        fate: match (cycles, &candidate.refusal) {
            _ if plan.choice == chosen => Fate::Chosen,
            (Some(_), _) => Fate::Slower,
            (None, Some(_)) => Fate::Refused,
            (None, None) => Fate::Pruned,
        },
        cycles: cycles.map(|cycles| cycles.0),
        refusal: candidate.refusal.clone(),
    }
}

fn too_large(rejected: &Rejected) -> TooLarge {
    let shortage = rejected.shortage;
    TooLarge {
        mapping: Mapping::of(rejected.choice),
        what: shortage.what,
        buffer: shortage.buffer,
        needed_bytes: shortage.needed,
        available_bytes: shortage.available,
    }
}

impl Mapping {
    fn of(choice: Choice) -> Self {
        Self {
            tile: choice.tile,
            channels_outer: choice.channels_outer,
            group_tiles: choice.group_tiles,
            fold_channels: choice.fold_channels,
        }
    }
}

impl BoundCycles {
    fn of(bound: &Bound) -> Self {
        let units = bound.total - bound.bus.min(bound.total);
        Self {
            first_load: bound.first,
            array: bound.array,
            last_requantize: bound.behind,
            post: bound.post,
            blocks: bound.blocks,
            last_store: bound.last,
            store: bound.store,
            bus: bound.bus,
            total: bound.total,
            dominant: if units == 0 {
                Dominant::Bus
            } else if bound.first + bound.blocks + bound.store == bound.total {
                Dominant::Blocks
            } else if bound.array + bound.behind >= bound.post {
                Dominant::Array
            } else {
                Dominant::Post
            },
            loaded_bytes: bound.loaded,
            stored_bytes: bound.stored,
        }
    }
}

/// The name with the fewest edits, if they are at most a third of it.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let part_of = |name: &str| !wanted.is_empty() && name.contains(wanted);
    names
        .map(|name| {
            let edits = strsim::damerau_levenshtein(wanted, name);
            ((!part_of(name), edits), name)
        })
        .min()
        .filter(|((foreign, edits), name)| !foreign || *edits <= name.chars().count().div_ceil(3))
        .map(|(_, name)| name.to_owned())
}
