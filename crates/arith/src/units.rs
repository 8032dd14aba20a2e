//! Units: a moment on the accelerator's clock, a length of time, a size.
//!
//! `Cycle + Cycles = Cycle`, `Cycle - Cycle = Cycles`; `Cycle + Cycle` does not compile.

use serde::{Deserialize, Serialize};
use std::{fmt, iter::Sum, ops};

/// A point on the accelerator's clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Cycle(pub u64);

/// A length of time on the accelerator's clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Cycles(pub u64);

/// A size in bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl ops::Add<Cycles> for Cycle {
    type Output = Self;
    fn add(self, length: Cycles) -> Self {
        Self(self.0 + length.0)
    }
}

impl ops::Sub for Cycle {
    type Output = Cycles;
    fn sub(self, earlier: Self) -> Cycles {
        Cycles(self.0 - earlier.0)
    }
}

macro_rules! length {
    ($unit:ident) => {
        impl ops::Add for $unit {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }
        impl ops::Sub for $unit {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }
        impl ops::AddAssign for $unit {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }
        impl Sum for $unit {
            fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
                items.fold(Self(0), |a, b| a + b)
            }
        }
    };
}
length!(Cycles);
length!(Bytes);

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Cycles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cycles", self.0)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}
