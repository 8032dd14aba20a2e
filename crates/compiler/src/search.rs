//! Which tiles and loop order a layer gets: the ones that the event model finds fastest.
//!
//! Invariant: the same job and machine give the same choice; ties go to the candidate with the
//! smaller estimate, then to the smaller tile.

use crate::{
    Error,
    emit::{Stage, emit},
    job::Job,
    schedule,
    tile::{Choice, MAX_TILE, Plan, Shortage},
    tokens,
};
use accelerator::Config;
use arith::{Bytes, Cycles};
use isa::{Fence, Instruction, LayerInfo, Program};
use std::collections::BTreeSet;

/// Candidates that the event model times at most.
const MAX_TIMED: usize = 6;
/// Instructions after which no further candidate is timed.
const MAX_TIMED_INSTRUCTIONS: usize = 60_000;

/// What the search found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub choice: Choice,
    /// The layer alone, from an idle machine.
    pub cycles: Cycles,
}

/// Instructions with their layers and stages.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub instructions: Vec<Instruction>,
    pub layer_of: Vec<u32>,
    /// Stage of each instruction, in program order.
    pub stage_of: Vec<u32>,
}

/// Orders stages, and places tokens and fences.
pub(crate) fn stream(stages: Vec<(u32, Stage)>, config: &Config) -> Stream {
    let scheduled = schedule::order(stages);
    let nodes: Vec<tokens::Node> = scheduled
        .iter()
        .map(|s| tokens::Node {
            unit: s.item.op.unit(),
            accesses: &s.item.accesses,
        })
        .collect();
    let placed = tokens::place(&nodes, config.queue_depth, config.max_tokens);
    let mut stream = Stream::default();
    for (scheduled, tokens) in scheduled.iter().zip(placed) {
        let mut push = |instruction| {
            stream.instructions.push(instruction);
            stream.layer_of.push(scheduled.layer);
            stream.stage_of.push(scheduled.stage);
        };
        if tokens.fence {
            push(Instruction::new(Fence {}));
        }
        push(Instruction {
            op: scheduled.item.op,
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

/// The fastest choice for a job.
///
/// # Errors
/// [`Error::TooLarge`] when no tile fits; [`Error::Instruction`] when none has an encoding.
pub(crate) fn search(name: &str, job: &Job, config: &Config, trial: Trial) -> Result<Found, Error> {
    let mut plans = plans(name, job, config)?;
    plans.sort_by_key(|(estimate, plan)| (*estimate, plan.choice));
    let mut best: Option<Found> = None;
    let mut first_error = None;
    let mut n_instructions = 0;
    for (_, plan) in plans.iter().take(MAX_TIMED) {
        if best.is_some() && n_instructions > MAX_TIMED_INSTRUCTIONS {
            break;
        }
        let stages = emit(job, plan, config)
            .into_iter()
            .map(|stage| (0, stage))
            .collect();
        let stream = stream(stages, config);
        n_instructions += stream.instructions.len();
        match time(name, stream, config, trial) {
            Ok(cycles) if best.is_none_or(|best| cycles < best.cycles) => {
                best = Some(Found {
                    choice: plan.choice,
                    cycles,
                });
            }
            Ok(_) => {}
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    match (best, first_error) {
        (Some(best), _) => Ok(best),
        (None, Some(error)) => Err(error),
        (None, None) => unreachable!("there is at least one plan, and each is timed or an error"),
    }
}

fn time(name: &str, stream: Stream, config: &Config, trial: Trial) -> Result<Cycles, Error> {
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

/// Every plan that fits, with its estimate. Full-width bands are tried first; only if none fits,
/// narrower tiles.
fn plans(name: &str, job: &Job, config: &Config) -> Result<Vec<(u64, Plan)>, Error> {
    let (height, width) = (job.output.height, job.output.width);
    let bands = sizes(height, 6);
    let mut plans = Vec::new();
    let mut smallest = None;
    let mut add = |tile: [u32; 2], plans: &mut Vec<(u64, Plan)>| {
        for channels_outer in [false, true] {
            let choice = Choice {
                tile,
                channels_outer,
            };
            match Plan::new(job, choice, config, false) {
                Ok(plan) if channels_outer && !plan.weights.as_ref().is_some_and(|w| w.sliced) => {}
                Ok(plan) => plans.push((plan.estimate(job, config), plan)),
                Err(shortage) if !channels_outer => smallest = Some(shortage),
                Err(_) => {}
            }
        }
    };
    if width <= MAX_TILE {
        for &rows in bands.iter().filter(|&&rows| rows <= MAX_TILE) {
            add([rows, width], &mut plans);
        }
    }
    if plans.is_empty() {
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
            if plans.len() >= MAX_TIMED {
                break;
            }
        }
    }
    match (plans.is_empty(), smallest) {
        (
            true,
            Some(Shortage {
                what,
                buffer,
                needed,
                available,
            }),
        ) => {
            let (needed, available) = (Bytes(needed), Bytes(available));
            Err(Error::TooLarge {
                layer: name.to_owned(),
                what,
                needed,
                buffer,
                available,
            })
        }
        _ => Ok(plans),
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
