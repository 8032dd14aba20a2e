//! Which tensors stay in the activation scratchpad from the layer that makes them to the last one
//! that reads them, and where.
//!
//! Whole tensors only. The best saver of DRAM traffic for the room and time that it takes comes
//! first; a tensor stays when every layer of its life still has room for its own tiles. Invariant:
//! tensors that live at the same time do not overlap, nor does a layer's gap overlap any of them.

use crate::{
    job::{Job, Map, Work},
    tile,
};
use accelerator::Config;
use network::{Network, TensorId};
use std::cmp::Reverse;

/// Largest sub-sampling of a second operand that the `residual` instruction can do.
const MAX_STRIDE: u32 = 15;
/// Columns before the first that is read.
const MAX_OFFSET: u32 = 1;

/// A part of the activation scratchpad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Gap {
    /// First byte.
    pub base: u32,
    /// Bytes.
    pub len: u32,
}

/// What stays on chip.
#[derive(Clone, Debug)]
pub(crate) struct Residency {
    /// For each tensor, its first byte in the activation scratchpad if it stays there.
    pub addresses: Vec<Option<u32>>,
    /// For each tensor, whether anyone needs it in DRAM.
    pub stored: Vec<bool>,
    /// For each layer, the largest room that is left for its own tiles.
    pub gaps: Vec<Gap>,
}

/// A tensor that might stay.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    tensor: usize,
    /// Bytes on chip.
    size: u32,
    /// First and last layer of its life.
    life: (usize, usize),
    /// Times that its bytes cross the DRAM bus if it does not stay.
    n_transfers: u64,
}

impl Candidate {
    fn meets(&self, other: &Self) -> bool {
        self.life.0 <= other.life.1 && other.life.0 <= self.life.1
    }
}

/// Bytes that a tensor takes on chip: the machine wants a tile that is moved by some channels, as
/// for a slice of a second operand, or by a pixel, as for every other column, to end inside the
/// memory.
pub(crate) fn size(map: &Map) -> u64 {
    map.bytes() + u64::from(map.pixel_bytes)
}

impl Residency {
    /// Every tensor goes through DRAM.
    pub fn none(network: &Network, config: &Config) -> Self {
        let whole = Gap {
            base: 0,
            len: config.activation_bytes,
        };
        Self {
            addresses: vec![None; network.tensors.len()],
            stored: vec![true; network.tensors.len()],
            gaps: vec![whole; network.layers.len()],
        }
    }

    /// Chooses; `jobs` are the layers with every tensor in DRAM.
    pub fn decide(network: &Network, jobs: &[Job], config: &Config) -> Self {
        let mut candidates = candidates(network, jobs, config);
        // Transfers saved for each layer of life; among equals the larger tensor, then the first.
        candidates.sort_by_key(|c| {
            let life = (c.life.1 - c.life.0 + 1) as u64;
            let worth = (c.n_transfers << 32) / life;
            (Reverse(worth), Reverse(c.size), c.tensor)
        });
        let mut kept: Vec<Candidate> = Vec::new();
        let mut best = Self::none(network, config);
        for candidate in candidates {
            kept.push(candidate);
            match Self::place(network, jobs, config, &kept) {
                Some(residency) => best = residency,
                None => {
                    kept.pop();
                }
            }
        }
        best
    }

    /// `None` when something does not fit.
    fn place(network: &Network, jobs: &[Job], config: &Config, kept: &[Candidate]) -> Option<Self> {
        let mut residency = Self::none(network, config);
        let placed = allocate(kept, config.activation_bytes)?;
        for &(candidate, address) in &placed {
            residency.addresses[candidate.tensor] = Some(address);
            residency.stored[candidate.tensor] =
                network.outputs.contains(&TensorId(candidate.tensor));
        }
        for (layer, job) in jobs.iter().enumerate() {
            let alive =
                |candidate: &Candidate| (candidate.life.0..=candidate.life.1).contains(&layer);
            let mut taken: Vec<(u32, u32)> = placed
                .iter()
                .filter(|(candidate, _)| alive(candidate))
                .map(|&(candidate, address)| (address, address + candidate.size))
                .collect();
            if taken.is_empty() {
                continue;
            }
            let gap = largest_gap(&mut taken, config.activation_bytes);
            residency.gaps[layer] = gap;
            let mut job = [job.clone()];
            let layers = &network.layers[layer..=layer];
            crate::job::keep_on_chip(&mut job, layers, &residency, false);
            if tile::comfortable_bytes(&job[0], config) > u64::from(gap.len) {
                return None;
            }
        }
        Some(residency)
    }
}

fn candidates(network: &Network, jobs: &[Job], config: &Config) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (producer, layer) in network.layers.iter().enumerate() {
        let map = &jobs[producer].output;
        let consumers = network.consumers(layer.output);
        let Some(&last) = consumers.last() else {
            continue;
        };
        let reads = |index: &usize| {
            let inputs = network.layers[*index].inputs();
            inputs.iter().filter(|&&id| id == layer.output).count() as u64
        };
        let n_loads: u64 = consumers.iter().map(reads).sum();
        let n_stores = u64::from(!network.outputs.contains(&layer.output));
        // Another layer's second operand is read with its stride, and every tile is a full row.
        let readable = consumers.iter().all(|&index| {
            let job = &jobs[index];
            let strides = job.second.filter(|s| s.map.address == map.address);
            let offset = match &job.work {
                Work::Conv(_) | Work::Lanes(_) => 0,
                Work::Pool(parts) => {
                    let sources = parts.iter().filter(|part| {
                        part.source
                            .is_some_and(|source| source.address == map.address)
                    });
                    sources.map(|part| part.window.offset[1]).max().unwrap_or(0)
                }
            };
            offset <= MAX_OFFSET
                && job.output.width <= tile::MAX_TILE
                && strides.is_none_or(|s| s.stride.iter().all(|&stride| stride <= MAX_STRIDE))
        });
        if !readable || map.width > tile::MAX_TILE || size(map) > u64::from(config.activation_bytes)
        {
            continue;
        }
        candidates.push(Candidate {
            tensor: layer.output.index(),
            size: size(map) as u32,
            life: (producer, last),
            n_transfers: n_loads + n_stores,
        });
    }
    candidates
}

/// First fit, large tensors first.
fn allocate(kept: &[Candidate], available: u32) -> Option<Vec<(Candidate, u32)>> {
    let mut order: Vec<Candidate> = kept.to_vec();
    order.sort_by_key(|c| (Reverse(c.size), c.tensor));
    let mut placed: Vec<(Candidate, u32)> = Vec::new();
    for candidate in order {
        let mut taken: Vec<(u32, u32)> = placed
            .iter()
            .filter(|(other, _)| other.meets(&candidate))
            .map(|&(other, address)| (address, address + other.size))
            .collect();
        taken.sort_unstable();
        let mut address = 0;
        for (from, to) in taken {
            if address + candidate.size <= from {
                break;
            }
            address = address.max(to);
        }
        if address + candidate.size > available {
            return None;
        }
        placed.push((candidate, address));
    }
    Some(placed)
}

fn largest_gap(taken: &mut Vec<(u32, u32)>, available: u32) -> Gap {
    taken.push((available, available));
    taken.sort_unstable();
    let mut largest = Gap { base: 0, len: 0 };
    let mut base = 0;
    for &(from, to) in &*taken {
        let len = from.saturating_sub(base);
        if len > largest.len {
            largest = Gap { base, len };
        }
        base = base.max(to);
    }
    largest
}
