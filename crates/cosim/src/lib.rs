//! Co-simulation: the machine in `SystemVerilog` (`rtl/`) against the Rust models.
//!
//! Invariant: what is compared comes from the RTL's own run; nothing of the models reaches it but
//! the instructions' bytes, the machine's settings and the initial DRAM image.

mod compare;
mod machines;
mod models;
pub mod mutants;
pub mod programs;
pub mod recordings;
mod rtl;
pub mod suite;
mod trace;
pub mod waves;

pub use compare::{Difference, compare};
pub use machines::machines;
pub use models::{Model, model};
pub use rtl::{Build, Rtl, RtlRun, Size, image};
pub use trace::{Trace, machine_toml};

/// How a run of either side ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything has ended.
    Finished(Observed),
    /// The machine cannot go on.
    Stopped(Stop),
}

/// What a run of either side gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Why the machine itself stopped, and at which instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The instruction whose token is one too many, or the first that waits.
    pub index: usize,
    /// Which of the two.
    pub kind: StopKind,
}

/// The faults that the machine finds while it runs; all others are found before, in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopKind {
    /// A counter would exceed `max_tokens`.
    TokenOverflow,
    /// Nothing can start or finish any more.
    Deadlock,
}

impl StopKind {
    /// Both, for readers of text.
    pub const ALL: [Self; 2] = [Self::TokenOverflow, Self::Deadlock];

    /// The word in the harness's results and in traces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TokenOverflow => "token-overflow",
            Self::Deadlock => "deadlock",
        }
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at instruction {}", self.kind.name(), self.index)
    }
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
    /// A waveform that cannot be written.
    #[error(transparent)]
    Waveform(#[from] waveform::Error),
    /// A waveform that cannot be read.
    #[error("waveform: {0}")]
    Read(#[from] wellen::WellenError),
    /// A waveform in which a name means two signals.
    #[error("waveform: two signals are called {0}")]
    TwoSignals(String),
    /// A signal of the model that the RTL's waveform does not have.
    #[error("waveform: no signal {0} with known bits")]
    NoSignal(String),
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
    /// A mutant that does not fit the RTL as it is.
    #[error("mutant {0}")]
    Mutant(String),
    /// A network that the machine cannot hold.
    #[error(transparent)]
    Compile(#[from] compiler::Error),
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
