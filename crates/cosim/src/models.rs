//! The models' side of a comparison.
//!
//! Invariant: a token overflow or a deadlock is an outcome, as it is for the RTL; every other fault
//! is an error, because the RTL trusts that the program was checked.

use crate::{Error, Observed, Outcome, Stop, StopKind};
use accelerator::{Config, Fault, FaultKind, Timing, event, stepped};
use isa::Program;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// From event to event.
    Event,
    /// Every register, every cycle.
    Stepped,
}

impl Model {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Event, Self::Stepped];

    /// The word in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Stepped => "stepped",
        }
    }
}

/// Runs a model on a DRAM image.
///
/// # Errors
/// A program that the machine refuses before it runs.
pub fn model(
    which: Model,
    program: &Program,
    config: &Config,
    dram: &[u8],
) -> Result<Outcome, Error> {
    let mut dram = dram.to_vec();
    let run = match which {
        Model::Stepped => stepped::run(program, config, &mut dram)
            .map(|run| observed(&run.timing, run.overflow, dram)),
        Model::Event => event::Plan::new(program, config).and_then(|plan| {
            let overflow = plan.execute(&mut dram, event::Detail::Full)?;
            Ok(observed(plan.timing(), overflow, dram))
        }),
    };
    run.map(Outcome::Finished).or_else(|fault| {
        stop(&fault)
            .map(Outcome::Stopped)
            .ok_or_else(|| fault.into())
    })
}

fn observed(timing: &Timing, overflow: Vec<arith::ChannelOverflow>, dram: Vec<u8>) -> Observed {
    let cycles = (0..timing.issue.len())
        .map(|i| (timing.issue[i], timing.start[i], timing.end[i]))
        .collect();
    Observed {
        total: timing.total.0,
        cycles,
        overflow,
        dram,
    }
}

fn stop(fault: &Fault) -> Option<Stop> {
    let kind = match fault.kind {
        FaultKind::TokenOverflow { .. } => StopKind::TokenOverflow,
        FaultKind::Deadlock { .. } => StopKind::Deadlock,
        FaultKind::OtherMachine { .. }
        | FaultKind::OutsideMemory { .. }
        | FaultKind::NotOnThisMachine { .. }
        | FaultKind::Operand { .. }
        | FaultKind::Fold { .. } => return None,
    };
    Some(Stop {
        index: fault.index,
        kind,
    })
}
