//! The simulated machine: its configuration, and two models of it.
//!
//! [`stepped`] keeps every register and takes every cycle; [`event`] jumps from event to event and
//! computes folds at once. Invariant: both give the same cycles, the same bytes and the same
//! overflow records for every machine and every program without a race.

mod config;
pub mod event;
mod fault;
mod hazards;
pub mod random;
mod rules;
mod stats;
pub mod stepped;

pub use config::{Config, ConfigError, Dataflow, DramConfig};
pub use fault::{Fault, FaultKind};
pub use hazards::{Race, check_races};
pub use rules::{Passes, check_program};
pub use stats::{DramTraffic, LayerTiming, Owner, Timing};

/// What a run of the stepped model gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// When everything happened.
    pub timing: Timing,
    /// One record per overflow counter of the program.
    pub overflow: Vec<arith::ChannelOverflow>,
}
