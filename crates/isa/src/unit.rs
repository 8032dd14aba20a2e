//! The units that execute instructions, and small sets of them.
//!
//! Invariant: a set holds only units with a queue; the frontend neither gives nor takes tokens.

use std::fmt;

/// What executes an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// The DMA from DRAM into the on-chip memories.
    Load,
    /// The PE array.
    Array,
    /// The post unit: requantization and pooling.
    Post,
    /// The DMA from the activation scratchpad to DRAM.
    Store,
    /// The frontend itself; it has no queue and no tokens.
    Frontend,
}

impl Unit {
    /// The units with a queue, in the order of their mask bits.
    pub const QUEUED: [Self; 4] = [Self::Load, Self::Array, Self::Post, Self::Store];

    /// Position in [`Self::QUEUED`], which is also the bit in a mask; 4 for the frontend.
    pub const fn index(self) -> usize {
        match self {
            Self::Load => 0,
            Self::Array => 1,
            Self::Post => 2,
            Self::Store => 3,
            Self::Frontend => 4,
        }
    }

    /// The name in text: `load`, `array`, `post`, `store`, `frontend`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Array => "array",
            Self::Post => "post",
            Self::Store => "store",
            Self::Frontend => "frontend",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A set of units that have a queue: a wait mask or a signal mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Units(u8);

impl Units {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// Whether the unit is in the set; the frontend never is.
    pub const fn contains(self, unit: Unit) -> bool {
        self.0 >> unit.index() & 1 == 1
    }

    /// The set and this unit.
    ///
    /// # Panics
    /// For the frontend, which has no tokens.
    #[must_use]
    pub const fn with(self, unit: Unit) -> Self {
        assert!(unit.index() < 4, "the frontend has no tokens");
        Self(self.0 | 1 << unit.index())
    }

    /// The units in the order of [`Unit::QUEUED`].
    pub fn iter(self) -> impl Iterator<Item = Unit> {
        Unit::QUEUED
            .into_iter()
            .filter(move |&unit| self.contains(unit))
    }

    /// Whether no unit is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The mask: bit 0 load, 1 array, 2 post, 3 store.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set of a mask; only the low four bits mean something.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0b1111)
    }
}

impl FromIterator<Unit> for Units {
    fn from_iter<I: IntoIterator<Item = Unit>>(units: I) -> Self {
        units.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Names with commas between them, as in the text of an instruction.
impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, unit) in self.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{unit}")?;
        }
        Ok(())
    }
}
