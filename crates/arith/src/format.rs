//! Integer formats of tensors, and the scales that tie them to real numbers.

use serde::{Deserialize, Serialize};

/// The integers that a tensor may hold; the zero-point is always 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Format {
    /// Width in bits: 2..=8 for operands of a multiplication, up to 16 for network outputs.
    pub bits: u8,
    /// Two's complement, or values from 0 upwards.
    pub signed: bool,
}

/// A value outside its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value} is outside {min}..={max}")]
pub struct OutOfRange {
    /// What was given.
    pub value: i64,
    /// The format's smallest value.
    pub min: i32,
    /// The format's largest value.
    pub max: i32,
}

impl Format {
    /// Smallest value (`Qn`).
    pub const fn q_min(self) -> i32 {
        if self.signed {
            -(1 << (self.bits - 1))
        } else {
            0
        }
    }

    /// Largest value (`Qp`).
    pub const fn q_max(self) -> i32 {
        if self.signed {
            (1 << (self.bits - 1)) - 1
        } else {
            (1 << self.bits) - 1
        }
    }

    /// Bits that one element takes in a memory: 4, 8 or 16.
    pub const fn storage_bits(self) -> u8 {
        match self.bits {
            0..=4 => 4,
            5..=8 => 8,
            _ => 16,
        }
    }

    /// `value` if the format holds it.
    ///
    /// # Errors
    /// A value outside the format, with the format's limits.
    pub const fn check(self, value: i64) -> Result<i32, OutOfRange> {
        if value < self.q_min() as i64 || value > self.q_max() as i64 {
            return Err(OutOfRange {
                value,
                min: self.q_min(),
                max: self.q_max(),
            });
        }
        Ok(value as i32)
    }
}

/// A scale as the integer machine stores it: `mantissa · 2^exponent`, mantissa 128..=255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scale {
    /// 128..=255.
    pub mantissa: u8,
    /// Power of two.
    pub exponent: i16,
}

impl Scale {
    /// The nearest representable scale; `None` unless `real` is a positive normal number.
    pub fn nearest(real: f64) -> Option<Self> {
        if !(real.is_finite() && real > 1e-300) {
            return None;
        }
        let mut exponent = real.log2().floor() as i32 - 7;
        let mut mantissa = (real * 2f64.powi(-exponent)).round_ties_even();
        if mantissa > 255.0 {
            exponent += 1;
            mantissa = 128.0;
        } else if mantissa < 128.0 {
            exponent -= 1;
            mantissa = 255.0;
        }
        Some(Self {
            mantissa: mantissa as u8,
            exponent: i16::try_from(exponent).ok()?,
        })
    }

    /// The scale as a real number, exactly.
    pub fn real(self) -> f64 {
        f64::from(self.mantissa) * 2f64.powi(i32::from(self.exponent))
    }
}
