//! Co-simulation: the machine in `SystemVerilog` (`rtl/`) against the Rust models.
//!
//! Invariant: what is compared comes from the RTL's own run; nothing of the models reaches it but
//! the instructions' bytes, the machine's settings and the initial DRAM image.

mod compare;
mod programs;
mod rtl;
mod trace;

pub use compare::{Difference, compare, model};
pub use programs::{compiled, directed, machines, random};
pub use rtl::{Mutant, Rtl, build};
pub use trace::{Trace, machine_toml};

/// What a run of either side gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// First cycle after everything.
    pub total: u64,
    /// Issue, start and end of every instruction.
    pub cycles: Vec<(u64, u64, u64)>,
    /// One record per overflow counter.
    pub overflow: Vec<arith::ChannelOverflow>,
    /// Main memory afterwards.
    pub dram: Vec<u8>,
}

/// What can go wrong outside of the comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Verilator is not there, or does not accept the RTL.
    #[error("verilator: {0}; install Debian's package `verilator` (5.006)")]
    Verilator(String),
    /// The simulation did not finish.
    #[error("the RTL run ended with {0}")]
    Run(String),
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A recorded run that cannot be read.
    #[error("trace line {line}: {what}")]
    Trace {
        /// 1-based.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A program that the models refuse.
    #[error(transparent)]
    Fault(#[from] accelerator::Fault),
    /// An instruction without an encoding.
    #[error(transparent)]
    Encode(#[from] isa::EncodeError),
    /// A machine that the RTL's build is too small for.
    #[error("machine {machine}: {what} = {value}: the RTL is built for at most {limit}")]
    TooLarge {
        /// Its name.
        machine: String,
        /// The setting.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What the build has.
        limit: u64,
    },
}

pub(crate) fn file_error(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    |source| Error::File {
        path: path.display().to_string(),
        source,
    }
}
