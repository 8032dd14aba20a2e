//! The programs of the comparison: directed, random, stopped by a fault, and networks.
//!
//! Invariant: the same machine and seed give the same program.

mod directed;
pub mod networks;

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
