//! Which tiles and loop order a layer gets: the ones that the event model finds fastest.
//!
//! The space is in `docs/compiler.md`: it is searched whole, except that a candidate whose lower bound
//! is no less than the best time found is not timed. Invariant: the same job and machine give the
//! same choice, and it is the one that timing every candidate would give; ties go to the candidate
//! with the smaller bound, then to the smaller tile.

use crate::{
    Error,
    bound::Bound,
    emit::{Item, emit},
    job::{Job, Work},
    layout::column_tiles,
    residency::Gap,
    schedule,
    tile::{Choice, MAX_TILE, Place, Plan, Shortage, fold_channels},
    tokens,
};
use accelerator::{Config, Dataflow};
use arith::{Bytes, Cycles};
use isa::{Fence, Instruction, LayerInfo, Program};
use std::collections::BTreeSet;

/// Even divisions of the output's height that are tried as tile heights, next to powers of two.
const MAX_PARTS: u32 = 6;
/// Narrower tiles that are tried when not even one full row fits.
const MAX_NARROW: usize = 6;

/// What the search found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub choice: Choice,
    /// The layer alone, from an idle machine.
    pub cycles: Cycles,
}

/// Instructions with their layers.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub instructions: Vec<Instruction>,
    pub layer_of: Vec<u32>,
    /// What each instruction is for.
    pub notes: Vec<crate::emit::Note>,
}

/// A candidate, and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub plan: Plan,
    pub bound: Bound,
    /// `None` when the bound excluded it, or the machine refused it.
    pub cycles: Option<Cycles>,
    /// Why the machine refused it.
    pub refusal: Option<String>,
}

/// A choice that does not fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rejected {
    pub choice: Choice,
    pub shortage: Shortage,
}

/// Orders instructions, and places tokens and fences.
pub(crate) fn stream(items: &[Item], layer_of: impl Fn(usize) -> u32, config: &Config) -> Stream {
    let order = schedule::order(items, config.queue_depth);
    let nodes: Vec<tokens::Node> = order
        .iter()
        .map(|&index| &items[index as usize])
        .map(|item| tokens::Node {
            unit: item.op.unit(),
            accesses: &item.accesses,
        })
        .collect();
    let placed = tokens::place(&nodes, config.queue_depth, config.max_tokens);
    let mut stream = Stream {
        instructions: Vec::with_capacity(items.len()),
        layer_of: Vec::with_capacity(items.len()),
        notes: Vec::with_capacity(items.len()),
    };
    for (&index, tokens) in order.iter().zip(placed) {
        let item = &items[index as usize];
        let mut push = |instruction| {
            stream.instructions.push(instruction);
            stream.layer_of.push(layer_of(index as usize));
            stream.notes.push(item.note);
        };
        if tokens.fence {
            push(Instruction::new(Fence {}));
        }
        push(Instruction {
            op: item.op,
            wait: tokens.wait,
            signal: tokens.signal,
        });
    }
    stream
}

/// Checks that every instruction has an encoding.
pub(crate) fn check(stream: &Stream, name: impl Fn(usize) -> String) -> Result<(), Error> {
    for (instruction, &layer) in stream.instructions.iter().zip(&stream.layer_of) {
        instruction.check().map_err(|source| Error::Instruction {
            layer: name(layer as usize),
            source,
        })?;
    }
    Ok(())
}

/// The machine's fingerprint and the DRAM that programs use: what a trial program needs besides
/// its instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    pub fingerprint: u64,
    pub dram_bytes: u64,
    pub n_channels: u32,
}

/// Which candidates are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Those that might be the fastest.
    Pruned,
    /// All of them.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests compare with it"))]
    Exhaustive,
}

/// The fastest choice for a job, given the room that it has for its tiles.
///
/// # Errors
/// [`Error::TooLarge`] when no tile fits; [`Error::Instruction`] when none has an encoding.
pub(crate) fn search(
    name: &str,
    job: &Job,
    room: u32,
    config: &Config,
    trial: Trial,
) -> Result<Found, Error> {
    candidates(name, job, room, config, trial, Effort::Pruned).map(|(found, _)| found)
}

/// The fastest choice, and all candidates by lower bound.
///
/// # Errors
/// As [`search`].
pub(crate) fn candidates(
    name: &str,
    job: &Job,
    room: u32,
    config: &Config,
    trial: Trial,
    effort: Effort,
) -> Result<(Found, Vec<Candidate>), Error> {
    // Tensors that stay lie behind the room for tiles.
    let job = &job.shape(room);
    let mut rejected = Vec::new();
    let mut candidates = plans(job, config, Gap { base: 0, len: room }, &mut rejected);
    if candidates.is_empty() {
        return Err(too_large(name, &rejected));
    }
    candidates.sort_by_key(|candidate| (candidate.bound.total, candidate.plan.choice));
    let mut best: Option<Found> = None;
    let mut first_error = None;
    for candidate in &mut candidates {
        let hopeless = best.is_some_and(|best| best.cycles.0 <= candidate.bound.total);
        if hopeless && effort == Effort::Pruned {
            break;
        }
        let items = emit(job, &candidate.plan, config).items;
        match time(name, &items, config, trial) {
            Ok(cycles) => {
                candidate.cycles = Some(cycles);
                if best.is_none_or(|best| cycles < best.cycles) {
                    best = Some(Found {
                        choice: candidate.plan.choice,
                        cycles,
                    });
                }
            }
            Err(error) => {
                candidate.refusal = Some(error.to_string());
                first_error = first_error.or(Some(error));
            }
        }
    }
    match (best, first_error) {
        (Some(best), _) => Ok((best, candidates)),
        (None, Some(error)) => Err(error),
        (None, None) => unreachable!("there is at least one plan, and each is timed or an error"),
    }
}

fn time(name: &str, items: &[Item], config: &Config, trial: Trial) -> Result<Cycles, Error> {
    let stream = stream(items, |_| 0, config);
    check(&stream, |_| name.to_owned())?;
    let program = Program {
        machine: trial.fingerprint,
        dram_bytes: trial.dram_bytes,
        n_channels: trial.n_channels,
        instructions: stream.instructions,
        data: Vec::new(),
        layers: vec![LayerInfo {
            name: name.to_owned(),
            ..LayerInfo::default()
        }],
        layer_of: stream.layer_of,
        tensors: Vec::new(),
    };
    accelerator::event::time(&program, config)
        .map(|timing| timing.total)
        .map_err(|source| Error::Fault {
            layer: name.to_owned(),
            source,
        })
}

/// The loop orders and fold sizes of a job: everything of a choice but the tile.
fn orders(job: &Job, config: &Config) -> Vec<Choice> {
    let choice = Choice {
        tile: [0, 0],
        channels_outer: false,
        group_tiles: 1,
        fold_channels: fold_channels(config),
    };
    let Work::Conv(conv) = &job.work else {
        return vec![choice];
    };
    let most = choice.fold_channels.min(conv.group_out);
    let sizes: Vec<u32> = match config.dataflow {
        Dataflow::OutputStationary | Dataflow::WeightStationary => vec![most],
        // A column tile's weights have to fit the weight scratchpad, at least a fold of them.
        Dataflow::InputStationary => {
            let n_tiles = conv.group_out.div_ceil(most);
            let parts = [1, 2, 4, 8, 16].map(|split| conv.group_out.div_ceil(n_tiles * split));
            BTreeSet::from(parts).into_iter().rev().collect()
        }
    };
    let mut orders = Vec::new();
    for fold_channels in sizes {
        let choice = Choice {
            fold_channels,
            ..choice
        };
        orders.push(choice);
        let tiles = column_tiles(conv, config, fold_channels);
        let n_tiles = tiles.len() as u64;
        let tile_bytes = tiles.iter().map(|tile| tile.bytes).max().unwrap_or(1);
        // One column tile at a time; as many as fill half of the memory; as many as it holds.
        let held = (u64::from(config.weight_bytes) / tile_bytes).max(1);
        for group in BTreeSet::from([1, (held / 2).max(1), held]) {
            if group < n_tiles {
                orders.push(Choice {
                    channels_outer: true,
                    group_tiles: group as u32,
                    ..choice
                });
            }
        }
    }
    orders
}

/// Every plan that fits, with its bound. Full-width bands are tried first; only if none fits,
/// narrower tiles. What does not fit goes to `rejected`.
pub(crate) fn plans(
    job: &Job,
    config: &Config,
    gap: Gap,
    rejected: &mut Vec<Rejected>,
) -> Vec<Candidate> {
    let place = &Place::first(gap);
    let (height, width) = (job.output.height, job.output.width);
    let orders = orders(job, config);
    let mut plans = Vec::new();
    let mut add = |tile: [u32; 2], plans: &mut Vec<Candidate>| {
        for order in &orders {
            let choice = Choice { tile, ..*order };
            match Plan::new(job, choice, config, place) {
                // One group makes both orders the same.
                Ok(plan)
                    if choice.channels_outer && !plan.weights.as_ref().is_some_and(|w| w.outer) => {
                }
                Ok(plan) => plans.push(Candidate {
                    bound: Bound::of(job, &plan, config),
                    plan,
                    cycles: None,
                    refusal: None,
                }),
                Err(shortage) => rejected.push(Rejected { choice, shortage }),
            }
        }
    };
    if width <= MAX_TILE {
        for rows in sizes(height, MAX_PARTS) {
            if rows <= MAX_TILE {
                add([rows, width], &mut plans);
            }
        }
    }
    if plans.is_empty() && !job.has_resident() {
        for columns in sizes(width, 1)
            .into_iter()
            .rev()
            .filter(|&columns| columns <= MAX_TILE)
        {
            for rows in [4, 2, 1] {
                if rows <= height {
                    add([rows, columns], &mut plans);
                }
            }
            if plans.len() >= MAX_NARROW {
                break;
            }
        }
    }
    plans
}

/// The error when nothing fits: what the last of the plain choices needs, which is the smallest.
fn too_large(layer: &str, rejected: &[Rejected]) -> Error {
    let plain = rejected.iter().rfind(|r| !r.choice.channels_outer);
    let Shortage {
        what,
        buffer,
        needed,
        available,
    } = plain.expect("a plain choice fits or does not").shortage;
    Error::TooLarge {
        layer: layer.to_owned(),
        what,
        needed: Bytes(needed),
        buffer,
        available: Bytes(available),
    }
}

/// Tile sizes along an axis, ascending: powers of two, and even divisions into up to `n` parts.
fn sizes(extent: u32, n: u32) -> Vec<u32> {
    let powers = (0..)
        .map(|power| 1 << power)
        .take_while(|&size| size < extent);
    let parts = (1..=n).map(|part| extent.div_ceil(part));
    powers
        .chain(parts)
        .collect::<BTreeSet<u32>>()
        .into_iter()
        .collect()
}
