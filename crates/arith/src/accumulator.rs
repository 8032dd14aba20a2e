//! Accumulators: a fixed width, and one rule for sums that do not fit.
//!
//! Invariant: an accumulator's value always lies inside its format's range.

use serde::{Deserialize, Serialize};

/// What happens to a sum that the accumulator cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The nearest representable value is kept.
    Saturate,
    /// The high bits are dropped (two's complement).
    Wrap,
}

/// Width and overflow rule of an accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AccumulatorFormat {
    /// Width in bits, 8 to 32.
    pub width_bits: u8,
    /// The rule for sums that do not fit.
    pub overflow: Overflow,
}

/// A sum as the accumulator holds it, and whether the exact sum fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// The accumulator after the add.
    pub acc: i32,
    /// True when the exact sum did not fit (it was clipped or wrapped).
    pub overflowed: bool,
}

impl AccumulatorFormat {
    /// Smallest representable value.
    #[inline]
    pub const fn min(self) -> i32 {
        (-1i64 << (self.width_bits - 1)) as i32
    }

    /// Largest representable value.
    #[inline]
    pub const fn max(self) -> i32 {
        ((1i64 << (self.width_bits - 1)) - 1) as i32
    }

    /// Whether `value` is representable.
    #[inline]
    pub const fn holds(self, value: i64) -> bool {
        value >= self.min() as i64 && value <= self.max() as i64
    }

    /// One accumulation step: `ovf(acc + product)`.
    #[inline]
    pub const fn add(self, acc: i32, product: i32) -> Sum {
        let exact = acc as i64 + product as i64;
        if self.holds(exact) {
            return Sum {
                acc: exact as i32,
                overflowed: false,
            };
        }
        let acc = match self.overflow {
            Overflow::Saturate => {
                if exact > 0 {
                    self.max()
                } else {
                    self.min()
                }
            }
            Overflow::Wrap => {
                let unused = 64 - self.width_bits as u32;
                ((exact << unused) >> unused) as i32
            }
        };
        Sum {
            acc,
            overflowed: true,
        }
    }
}
