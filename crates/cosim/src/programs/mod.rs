//! The programs of the comparison: directed, random, stopped by a fault, and networks of
//! both kinds, random and trained.
//!
//! Invariant: the same machine and seed give the same program.

pub mod digits;
mod directed;
mod lanes;
pub mod networks;
mod stationary;

pub use directed::directed;

use accelerator::{Config, random as models};
use isa::{Program, Unit};

/// A program with the name that reports use.
#[derive(Clone, Debug)]
pub struct Named {
    /// What it is.
    pub name: String,
    /// What runs.
    pub program: Program,
}

/// A legal program of about `length` instructions.
pub fn random(config: &Config, seed: u64, length: usize) -> Program {
    models::program(&mut models::Seed::new(seed), config, length)
}

/// A random program whose tokens do not add up: one signal is missing, so that it ends in a
/// deadlock, or some are too many, so that a counter may overflow.
pub fn token_fault(config: &Config, seed: u64, length: usize) -> Program {
    let mut program = random(config, seed, length);
    let mut draw = models::Seed::new(!seed);
    let is_missing = draw.pick(0, 1) == 0;
    let mut signalling: Vec<usize> = (0..program.instructions.len())
        .filter(|&i| program.instructions[i].op.may_signal())
        .collect();
    if is_missing {
        signalling.retain(|&i| program.instructions[i].signal.iter().next().is_some());
        let Some(last) = signalling.len().checked_sub(1) else {
            return program;
        };
        let which = signalling[draw.pick(0, last as u32) as usize];
        program.instructions[which].signal = isa::Units::NONE;
        return program;
    }
    // One unit repeats the same token after everything it does, from some place on.
    let from = Unit::QUEUED[draw.pick(0, 3) as usize];
    let to = Unit::QUEUED[(from.index() + draw.pick(1, 3) as usize) % 4];
    let first = draw.pick(0, program.instructions.len() as u32 / 2) as usize;
    for &i in signalling.iter().filter(|&&i| i >= first) {
        let instruction = &mut program.instructions[i];
        if instruction.op.unit() == from {
            instruction.signal = instruction.signal.with(to);
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use super::directed;
    use crate::{Model, Outcome, image, machines, model};
    use accelerator::{Dataflow, DepthwiseUnit};
    use std::collections::BTreeSet;

    /// Every instruction that a machine has is in its directed programs, and these end.
    #[test]
    fn directed_programs_use_every_instruction() {
        for config in machines() {
            let mut seen = BTreeSet::new();
            for named in directed(&config) {
                let run = model(
                    Model::Event,
                    &named.program,
                    &config,
                    &image(&named.program),
                );
                let place = format!("{}, {}", config.name, named.name);
                match run {
                    Ok(Outcome::Finished(_)) => {}
                    other => panic!("{place}: {other:?}"),
                }
                seen.extend(named.program.instructions.iter().map(|i| i.op.mnemonic()));
            }
            let expected = isa::OPS.iter().map(|info| info.mnemonic).filter(|&name| {
                let is_output_stationary = config.dataflow == Dataflow::OutputStationary;
                match name {
                    "matmul" => is_output_stationary,
                    "preload" | "stream" => !is_output_stationary,
                    "filter" | "depthwise" => config.depthwise == DepthwiseUnit::Post,
                    _ => true,
                }
            });
            assert_eq!(seen, expected.collect(), "{}", config.name);
        }
    }
}
