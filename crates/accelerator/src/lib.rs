//! The simulated machine: its configuration, and two models of it.
//!
//! [`stepped`] keeps every register and takes every cycle; [`event`] jumps from event to event and
//! computes folds at once. Invariant: both give the same cycles, the same bytes and the same
//! overflow records for every machine and every program without a race.

mod actions;
mod config;
mod energy;
pub mod event;
mod fault;
mod hazards;
mod inherit;
pub mod presets;
pub mod random;
mod rules;
mod schema;
mod stats;
pub mod stepped;

pub use actions::{Action, Counts, count_actions};
pub use config::{Banks, Config, ConfigError, Dataflow, DepthwiseUnit, DramConfig, Machine};
pub use energy::{EnergyTable, EnergyUnit};
pub use fault::{Fault, FaultKind};
pub use hazards::{Race, check_races};
pub use rules::{Passes, check_program};
pub use schema::schema;
pub use stats::{DramTraffic, LayerTiming, Owner, RowCounts, RowEvent, Timing};

/// What a run of the stepped model gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// When everything happened.
    pub timing: Timing,
    /// One record per overflow counter of the program.
    pub overflow: Vec<arith::ChannelOverflow>,
    /// What the units did, counted where it happened.
    pub actions: Counts,
}
