//! What stops a program: always with the instruction that did it.

use isa::Unit;

/// A program that the machine cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction {index} ({mnemonic}): {kind}")]
pub struct Fault {
    /// Position in the program.
    pub index: usize,
    /// Its mnemonic.
    pub mnemonic: &'static str,
    /// What went wrong.
    pub kind: FaultKind,
}

/// Why an instruction cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// The program was made for another machine.
    #[error("the program was compiled for machine {program:016x}, this is machine {machine:016x}")]
    OtherMachine {
        /// Fingerprint in the program.
        program: u64,
        /// Fingerprint of the configuration.
        machine: u64,
    },
    /// A counter would exceed its limit.
    #[error("token overflow: {from:?} to {to:?} would hold more than {limit}")]
    TokenOverflow {
        /// Who pushed.
        from: Unit,
        /// For whom.
        to: Unit,
        /// `max_tokens`.
        limit: u32,
    },
    /// Nothing can go on; this instruction is the first that waits.
    #[error("deadlock: waits for a token from {missing:?} that never comes")]
    Deadlock {
        /// Units whose tokens are missing.
        missing: Vec<Unit>,
    },
    /// An access outside a memory.
    #[error("address {address} is outside {memory} of {size}")]
    OutsideMemory {
        /// First address behind the limit.
        address: u64,
        /// Which memory.
        memory: &'static str,
        /// Its size, in the memory's own units.
        size: u64,
    },
    /// An operand that the machine does not accept.
    #[error("{field} = {value}: {rule}")]
    Operand {
        /// Field or parameter.
        field: &'static str,
        /// Its value.
        value: i64,
        /// What would be right.
        rule: &'static str,
    },
    /// An instruction that this machine has no hardware for.
    #[error("this machine does not know it: it needs {needs}")]
    NotOnThisMachine {
        /// The key and value of the machine file.
        needs: &'static str,
    },
    /// `first` and `last` do not pair, or something changed inside a fold.
    #[error("the fold is not well formed: {rule}")]
    Fold {
        /// What would be right.
        rule: &'static str,
    },
}
