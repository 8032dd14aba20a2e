//! What an instruction may look at while it reads.
//!
//! Invariant: a write that changes what it reads meets its reach; one that meets it need not.

use crate::stepped::memory::{ENTRY_BYTES, Memories, Memory, Write};
use crate::{Config, FaultKind};
use isa::Input;
use std::ops::Range;

/// Bytes of memories.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach(Vec<(Memory, Range<u64>)>);

impl Reach {
    /// All pixels.
    pub fn with_tile(mut self, input: &Input) -> Self {
        let n_pixels = u64::from(input.height) * u64::from(input.width);
        let first = u64::from(input.address);
        let bytes = first..first + n_pixels * u64::from(input.pixel_bytes);
        self.0.push((Memory::Activation, bytes));
        self
    }

    /// `n` lines of weights.
    pub fn with_lines(mut self, (first, n): (u32, u32), config: &Config) -> Self {
        let line_bytes = u64::from(config.line_bytes());
        let first = u64::from(first) * line_bytes;
        let bytes = first..first + u64::from(n) * line_bytes;
        self.0.push((Memory::Weight, bytes));
        self
    }

    /// `n` entries of the parameter table.
    pub fn with_parameters(mut self, (first, n): (u32, u32)) -> Self {
        let first = u64::from(first) * ENTRY_BYTES;
        let bytes = first..first + u64::from(n) * ENTRY_BYTES;
        self.0.push((Memory::Parameter, bytes));
        self
    }

    /// Itself, if all of it exists.
    ///
    /// # Errors
    /// When it does not.
    pub fn checked(self, memories: &Memories<'_>) -> Result<Self, FaultKind> {
        for (memory, bytes) in &self.0 {
            let n = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
            memories.check(*memory, bytes.start, n)?;
        }
        Ok(self)
    }

    /// Whether one of these writes may change some of it.
    pub fn meets(&self, writes: &[Write]) -> bool {
        writes.iter().any(|write| self.meets_one(write))
    }

    fn meets_one(&self, write: &Write) -> bool {
        let (written, bytes) = match *write {
            Write::Bytes {
                memory, address, n, ..
            } => (memory, address..address + n as u64),
            Write::Nibble { address, .. } => (Memory::Activation, address..address + 1),
            Write::Block { .. } => return false,
        };
        let mut all = self.0.iter();
        all.any(|(memory, reach)| {
            *memory == written && bytes.start < reach.end && reach.start < bytes.end
        })
    }
}
