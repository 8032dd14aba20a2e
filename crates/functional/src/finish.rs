//! What follows a reduction: requantization, second operand, slope, clamp.
//!
//! Invariant: the fast form is taken only where 32 bits hold every intermediate value, as the
//! layer's extreme reductions prove; both forms are the formula of [`network::Post`].

use crate::tensor::{Pixels, Values};
use arith::{Format, Requant, Rounding, shift_right_rounding};
use network::{Post, Residual};

/// The requantization of some channels, prepared.
#[derive(Debug)]
pub(crate) struct Finish {
    mantissa: Vec<i32>,
    shift: Vec<i32>,
    residual: Option<Second>,
    slope: Option<Requant>,
    q_min: i32,
    q_max: i32,
    rounding: Rounding,
    /// Of the output.
    format: Format,
    is_small: bool,
}

#[derive(Debug)]
struct Second {
    residual: Residual,
    channels: usize,
    q_min: i32,
}

impl Finish {
    /// For `n_channels` output channels from `first` on. `limit` bounds the reduction's magnitude.
    pub fn new(
        post: &Post,
        requants: &[Requant],
        residual_of: impl Fn(Residual) -> (usize, Format),
        limit: i64,
        format: Format,
        rounding: Rounding,
    ) -> Self {
        let residual = post.residual.map(|residual| {
            let (channels, format) = residual_of(residual);
            Second {
                residual,
                channels,
                q_min: format.q_min(),
            }
        });
        let mut is_small = post.negative_slope.is_none();
        for requant in requants {
            let mut p = limit * i64::from(requant.mantissa);
            if let Some(second) = &residual {
                let requant_2 = second.residual.requant;
                p += (255 * i64::from(requant_2.mantissa)) << (requant.shift - requant_2.shift);
            }
            let half = 1i64 << requant.shift.max(1) >> 1;
            is_small &= (1..=30).contains(&requant.shift) && p + half < 1 << 31;
        }
        Self {
            mantissa: requants.iter().map(|r| r.mantissa.into()).collect(),
            shift: requants.iter().map(|r| r.shift.into()).collect(),
            residual,
            slope: post.negative_slope,
            q_min: post.q_min,
            q_max: post.q_max,
            rounding,
            format,
            is_small,
        }
    }

    /// One pixel: `values` are the reductions of channels `first..`, `out` their places, `[y, x]` the
    /// pixel. `scratch` has room for every channel.
    pub fn pixel(
        &self,
        values: &[i32],
        first: usize,
        [y, x]: [usize; 2],
        tensors: &[Values],
        scratch: &mut Vec<i32>,
        out: Pixels<'_>,
    ) {
        let n = values.len();
        let requants = Requants {
            mantissa: &self.mantissa[first..first + n],
            shift: &self.shift[first..first + n],
        };
        scratch.clear();
        scratch.resize(n, 0);
        if let Some(second) = &self.residual {
            second.read(first, [y, x], tensors, scratch);
        }
        match out {
            Pixels::Bytes(out) if self.is_small => {
                let limits = [self.q_min, self.q_max, self.format.q_min()];
                let shift_2 = self
                    .residual
                    .as_ref()
                    .map_or(0, |s| s.residual.requant.shift.into());
                match self.rounding {
                    Rounding::HalfUp => small::<0>(values, requants, scratch, shift_2, limits, out),
                    Rounding::HalfAwayFromZero => {
                        small::<1>(values, requants, scratch, shift_2, limits, out);
                    }
                    Rounding::HalfEven => {
                        small::<2>(values, requants, scratch, shift_2, limits, out);
                    }
                    Rounding::Floor => small::<3>(values, requants, scratch, shift_2, limits, out),
                }
            }
            Pixels::Bytes(out) => {
                let q_min = self.format.q_min();
                for (channel, out) in out.iter_mut().enumerate() {
                    *out = (self.any(values[channel], first + channel, scratch[channel]) - q_min)
                        as u8;
                }
            }
            Pixels::Words(out) => {
                for (channel, out) in out.iter_mut().enumerate() {
                    *out = self.any(values[channel], first + channel, scratch[channel]);
                }
            }
        }
    }

    /// The formula; `second` is the residual times its mantissa.
    fn any(&self, value: i32, channel: usize, second: i32) -> i32 {
        let mut shift = self.shift[channel] as u8;
        let mut p = i64::from(value) * i64::from(self.mantissa[channel]);
        if let Some(residual) = &self.residual {
            p += i64::from(second) << (shift - residual.residual.requant.shift);
        }
        if let Some(slope) = self.slope
            && p < 0
        {
            p *= i64::from(slope.mantissa);
            shift += slope.shift;
        }
        let y = shift_right_rounding(p, shift, self.rounding);
        y.clamp(self.q_min.into(), self.q_max.into()) as i32
    }
}

impl Second {
    /// The second operand of channels `first..` times its mantissa; 0 where there is none.
    fn read(&self, first: usize, [y, x]: [usize; 2], tensors: &[Values], out: &mut [i32]) {
        let residual = self.residual;
        let [step_y, step_x] = residual.stride;
        let pixel = tensors[residual.tensor.index()].pixel(y * step_y, x * step_x);
        let start = residual.channel_offset.max(first);
        let end = (residual.channel_offset + self.channels).min(first + out.len());
        if start >= end {
            return;
        }
        let source = &pixel[start - residual.channel_offset..end - residual.channel_offset];
        let mantissa = i32::from(residual.requant.mantissa);
        for (out, &byte) in out[start - first..end - first].iter_mut().zip(source) {
            *out = (i32::from(byte) + self.q_min) * mantissa;
        }
    }
}

#[derive(Clone, Copy)]
struct Requants<'a> {
    mantissa: &'a [i32],
    shift: &'a [i32],
}

/// Everything in 32 bits. `ROUNDING` is the rounding's place in [`Rounding::ALL`].
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn small<const ROUNDING: u8>(
    values: &[i32],
    requants: Requants<'_>,
    seconds: &[i32],
    shift_2: i32,
    [q_min, q_max, zero]: [i32; 3],
    out: &mut [u8],
) {
    let operands = values
        .iter()
        .zip(seconds)
        .zip(requants.mantissa.iter().zip(requants.shift));
    for (out, ((&value, &second), (&mantissa, &n))) in out.iter_mut().zip(operands) {
        // Wrapping, because a check for overflow would keep the loop from being SIMD.
        let left = n.wrapping_sub(shift_2) & 31;
        let p = value
            .wrapping_mul(mantissa)
            .wrapping_add(second.wrapping_shl(left as u32));
        let half = 1i32.wrapping_shl(n.wrapping_sub(1) as u32);
        let shifted = |p: i32| p.wrapping_shr(n as u32);
        let y = match ROUNDING {
            0 => shifted(p.wrapping_add(half)),
            1 => {
                // Towards zero below a half: what the sign takes away before the shift.
                shifted(p.wrapping_add(half).wrapping_sub(i32::from(p < 0)))
            }
            2 => {
                let odd = shifted(p) & 1;
                shifted(p.wrapping_add(half).wrapping_sub(1).wrapping_add(odd))
            }
            _ => shifted(p),
        };
        *out = y.clamp(q_min, q_max).wrapping_sub(zero) as u8;
    }
}
