//! Rounding right shifts and requantization.
//!
//! Source: LLSQ (Zhao et al., ICLR 2020), section 3.3: `q_o = clamp(round(acc · M / 2^n), Qn, Qp)`.

use serde::{Deserialize, Serialize};

/// What happens to the bits that a right shift drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// `floor((v + 2^(n-1)) / 2^n)`: a tie goes up.
    HalfUp,
    /// A tie goes away from zero (gemmlowp).
    HalfAwayFromZero,
    /// A tie goes to the even neighbour (Gemmini, ONNX).
    HalfEven,
    /// Towards minus infinity: the plain arithmetic shift.
    Floor,
}

impl Rounding {
    /// Every rounding, in the order of the machine file's documentation.
    pub const ALL: [Self; 4] = [
        Self::HalfUp,
        Self::HalfAwayFromZero,
        Self::HalfEven,
        Self::Floor,
    ];

    /// The integer for a real number: [`shift_right_rounding`] of `value` and `shift`, if `y` is their
    /// quotient and `|value| < 2^51`. Then the quotient, and its distance from a tie, are exact.
    #[inline]
    pub fn integer_of(self, y: f64) -> f64 {
        match self {
            Self::HalfUp => (y + 0.5).floor(),
            Self::HalfAwayFromZero => (y + 0.5f64.copysign(y)).trunc(),
            Self::HalfEven => y.round_ties_even(),
            Self::Floor => y.floor(),
        }
    }
}

/// `value / 2^shift`, rounded. `shift = 0` is the value itself.
///
/// The caller keeps `|value| < 2^62` and `shift <= 62`.
pub const fn shift_right_rounding(value: i64, shift: u8, rounding: Rounding) -> i64 {
    if shift == 0 {
        return value;
    }
    let half = 1i64 << (shift - 1);
    match rounding {
        Rounding::Floor => value >> shift,
        Rounding::HalfUp => (value + half) >> shift,
        Rounding::HalfAwayFromZero => {
            if value >= 0 {
                (value + half) >> shift
            } else {
                -((-value + half) >> shift)
            }
        }
        Rounding::HalfEven => {
            let floor = value >> shift;
            let rest = value - (floor << shift);
            if rest > half || (rest == half && floor & 1 == 1) {
                floor + 1
            } else {
                floor
            }
        }
    }
}

/// A multiplier `mantissa · 2^-shift`: how one integer unit becomes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Requant {
    /// 128..=255 when normalised; 0 for a channel that is always zero.
    pub mantissa: u8,
    /// Right shift, 0..=[`Requant::MAX_SHIFT`].
    pub shift: u8,
}

impl Requant {
    /// The largest shift that the post unit has.
    pub const MAX_SHIFT: u8 = 47;
    /// Multiplies by one.
    pub const IDENTITY: Self = Self {
        mantissa: 1,
        shift: 0,
    };

    /// The nearest multiplier with an 8-bit mantissa; `None` when `factor` is not a positive
    /// number below 255.5. Factors under `2^-40` lose mantissa bits and at last become zero.
    pub fn nearest(factor: f64) -> Option<Self> {
        if !(factor.is_finite() && factor > 0.0 && factor < 255.5) {
            return None;
        }
        let mut shift = (7 - factor.log2().floor() as i32).clamp(0, i32::from(Self::MAX_SHIFT));
        let mut mantissa = (factor * 2f64.powi(shift)).round_ties_even();
        if mantissa > 255.0 {
            shift -= 1;
            mantissa = (factor * 2f64.powi(shift)).round_ties_even();
        }
        Some(Self {
            mantissa: mantissa as u8,
            shift: shift as u8,
        })
    }

    /// The multiplier as a real number.
    pub fn factor(self) -> f64 {
        f64::from(self.mantissa) * 2f64.powi(-i32::from(self.shift))
    }
}
