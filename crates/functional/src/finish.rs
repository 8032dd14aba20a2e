//! What follows a reduction: requantization, second operand, slope, clamp.
//!
//! Invariant: each form is taken only where its numbers hold every intermediate value exactly, as the
//! layer's extreme reductions prove; all forms are the formula of [`network::Post`].

#![expect(
    clippy::inline_always,
    reason = "what the SIMD versions of a function call has to be compiled as part of each"
)]

use crate::tensor::{Pixels, Values};
use arith::{Format, Requant, Rounding, shift_right_rounding};
use network::{Post, Residual};
use std::ops::Range;

/// The requantization of some channels, prepared.
#[derive(Debug)]
pub(crate) struct Finish {
    mantissa: Vec<i32>,
    shift: Vec<i32>,
    /// Half a unit of the output, where 32 bits hold it.
    half: Vec<i32>,
    residual: Option<Second>,
    slope: Option<Requant>,
    q_min: i32,
    q_max: i32,
    rounding: Rounding,
    /// Of the output.
    format: Format,
    numbers: Numbers,
}

#[derive(Debug)]
struct Second {
    residual: Residual,
    channels: usize,
    q_min: i32,
}

/// The narrowest numbers that hold everything between a reduction and its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    /// 32-bit integers.
    Int32,
    /// Doubles: integers of up to 51 bits and their multiples by powers of two are exact.
    Double,
    /// 64-bit integers.
    Int64,
}

/// Reductions of some pixels.
#[derive(Clone, Copy)]
pub(crate) struct Reduced<'a> {
    /// `[pixel][lane]`; the first lanes are `channels`.
    pub values: &'a [i32],
    pub n_lanes: usize,
    pub channels: [usize; 2],
    /// The first pixel and the width of its tensor: pixels are counted row by row.
    pub first_pixel: usize,
    pub width: usize,
}

impl Finish {
    /// `limit` bounds the reduction's magnitude.
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
        let numbers = requants
            .iter()
            .map(|requant| {
                let mut p = i128::from(limit) * i128::from(requant.mantissa);
                if let Some(second) = &residual {
                    let requant_2 = second.residual.requant;
                    p += (255 * i128::from(requant_2.mantissa))
                        << requant.shift.saturating_sub(requant_2.shift);
                }
                p *= i128::from(post.negative_slope.map_or(1, |slope| slope.mantissa.max(1)));
                let half = 1i128 << requant.shift.max(1) >> 1;
                let is_plain = post.negative_slope.is_none();
                if is_plain && (1..=30).contains(&requant.shift) && p + half < 1 << 31 {
                    Numbers::Int32
                } else if p < 1 << 51 {
                    Numbers::Double
                } else {
                    Numbers::Int64
                }
            })
            .max_by_key(|&numbers| numbers as u8)
            .unwrap_or(Numbers::Int64);
        Self {
            mantissa: requants.iter().map(|r| r.mantissa.into()).collect(),
            shift: requants.iter().map(|r| r.shift.into()).collect(),
            half: requants.iter().map(|r| half(r.shift)).collect(),
            residual,
            slope: post.negative_slope,
            q_min: post.q_min,
            q_max: post.q_max,
            rounding,
            format,
            numbers,
        }
    }

    /// Some channels of some pixels; `out` has all channels of these pixels. `scratch` is anything.
    pub fn pixels(
        &self,
        reduced: Reduced<'_>,
        tensors: &[Values],
        scratch: &mut Vec<i32>,
        out: Pixels<'_>,
    ) {
        let [first, end] = reduced.channels;
        let n = end - first;
        if let Some(second) = &self.residual {
            let n_pixels = reduced.values.len() / reduced.n_lanes;
            scratch.clear();
            scratch.resize(n_pixels * n, 0);
            for (index, scratch) in scratch.chunks_exact_mut(n).enumerate() {
                let pixel = reduced.first_pixel + index;
                let at = [pixel / reduced.width, pixel % reduced.width];
                second.read(first, at, tensors, scratch);
            }
        }
        let seconds: Option<&[i32]> = self.residual.as_ref().map(|_| &scratch[..]);
        let job = Job {
            finish: self,
            reduced,
            seconds,
            channels: first..end,
        };
        match out {
            Pixels::Bytes(out) if self.numbers == Numbers::Int32 => match self.rounding {
                Rounding::HalfUp => int32::<HALF_UP>(&job, out),
                Rounding::HalfAwayFromZero => int32::<HALF_AWAY>(&job, out),
                Rounding::HalfEven => int32::<HALF_EVEN>(&job, out),
                Rounding::Floor => int32::<FLOOR>(&job, out),
            },
            Pixels::Bytes(out) if self.numbers == Numbers::Double => match self.rounding {
                Rounding::HalfUp => double::<HALF_UP>(&job, out),
                Rounding::HalfAwayFromZero => double::<HALF_AWAY>(&job, out),
                Rounding::HalfEven => double::<HALF_EVEN>(&job, out),
                Rounding::Floor => double::<FLOOR>(&job, out),
            },
            Pixels::Bytes(out) => {
                let q_min = self.format.q_min();
                job.each(out, |value| (value - q_min) as u8);
            }
            Pixels::Words(out) => job.each(out, |value| value),
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
        multiply(
            &mut out[start - first..end - first],
            source,
            self.q_min,
            mantissa,
        );
    }
}

/// 16-bit products at most; wrapping, because checks would keep the loop from being SIMD.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn multiply(out: &mut [i32], source: &[u8], q_min: i32, mantissa: i32) {
    for (out, &byte) in out.iter_mut().zip(source) {
        *out = i32::from(byte).wrapping_add(q_min).wrapping_mul(mantissa);
    }
}

/// What one call works on.
struct Job<'a> {
    finish: &'a Finish,
    reduced: Reduced<'a>,
    /// `[pixel][channel]`, the second operand times its mantissa.
    seconds: Option<&'a [i32]>,
    channels: Range<usize>,
}

impl Job<'_> {
    /// Value by value, in 64 bits.
    fn each<T>(&self, out: &mut [T], store: impl Fn(i32) -> T) {
        let n = self.channels.len();
        let rows = out.chunks_exact_mut(self.finish.mantissa.len());
        let values = self.reduced.values.chunks_exact(self.reduced.n_lanes);
        for (pixel, (out, values)) in rows.zip(values).enumerate() {
            for lane in 0..n {
                let second = self.seconds.map_or(0, |seconds| seconds[pixel * n + lane]);
                let channel = self.channels.start + lane;
                out[channel] = store(self.finish.any(values[lane], channel, second));
            }
        }
    }

    fn shift_2(&self) -> i32 {
        let residual = self.finish.residual.as_ref();
        residual.map_or(0, |second| second.residual.requant.shift.into())
    }
}

fn half(shift: u8) -> i32 {
    match shift {
        1..=31 => 1 << (shift - 1),
        _ => 0,
    }
}

// Places in `Rounding::ALL`.
const HALF_UP: u8 = 0;
const HALF_AWAY: u8 = 1;
const HALF_EVEN: u8 = 2;
const FLOOR: u8 = 3;

/// Everything in 32 bits; wrapping, because checks for overflow would keep the loop from being SIMD.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn int32<const ROUNDING: u8>(job: &Job<'_>, out: &mut [u8]) {
    let (q_min, q_max, zero) = (
        job.finish.q_min,
        job.finish.q_max,
        job.finish.format.q_min(),
    );
    let shift_2 = job.shift_2();
    groups(
        job,
        out,
        |value,
         second,
         Requantizer {
             mantissa,
             shift,
             half,
         }| {
            let mut p = value.wrapping_mul(mantissa);
            if let Some(second) = second {
                let left = shift.wrapping_sub(shift_2) & 31;
                p = p.wrapping_add(second.wrapping_shl(left as u32));
            }
            let shifted = |p: i32| p.wrapping_shr(shift as u32);
            let y = match ROUNDING {
                HALF_UP => shifted(p.wrapping_add(half)),
                // Towards zero below a half: what the sign takes away before the shift.
                HALF_AWAY => shifted(p.wrapping_add(half).wrapping_sub(i32::from(p < 0))),
                HALF_EVEN => {
                    let odd = shifted(p) & 1;
                    shifted(p.wrapping_add(half).wrapping_sub(1).wrapping_add(odd))
                }
                _ => shifted(p),
            };
            y.max(q_min).min(q_max).wrapping_sub(zero) as u8
        },
    );
}

/// Of one channel.
#[derive(Clone, Copy)]
struct Requantizer {
    mantissa: i32,
    shift: i32,
    half: i32,
}

/// Every value of a job: whole registers of channels first, few channels are left over.
#[inline(always)]
fn groups<F>(job: &Job<'_>, out: &mut [u8], finish: F)
where
    F: Fn(i32, Option<i32>, Requantizer) -> u8 + Copy,
{
    let mut first = 0;
    lanes::<16, F>(job, out, &mut first, finish);
    lanes::<8, F>(job, out, &mut first, finish);
    lanes::<1, F>(job, out, &mut first, finish);
}

/// As many whole groups of `L` channels as there are from the job's channel `first` on, which moves
/// behind them: a group of all pixels after the other, so that its multipliers stay in registers.
#[inline(always)]
fn lanes<const L: usize, F>(job: &Job<'_>, out: &mut [u8], first: &mut usize, finish: F)
where
    F: Fn(i32, Option<i32>, Requantizer) -> u8,
{
    let n = job.channels.len();
    while *first + L <= n {
        let lane = *first;
        let start = job.channels.start + lane;
        // Lists of their own, so that each stays in its register.
        let (mantissa, shift, half) = (
            part::<L>(&job.finish.mantissa, start),
            part::<L>(&job.finish.shift, start),
            part::<L>(&job.finish.half, start),
        );
        let requantizer = |lane: usize| Requantizer {
            mantissa: mantissa[lane],
            shift: shift[lane],
            half: half[lane],
        };
        let pixels = out
            .chunks_exact_mut(job.finish.mantissa.len())
            .zip(job.reduced.values.chunks_exact(job.reduced.n_lanes));
        if let Some(seconds) = job.seconds {
            for ((out, values), seconds) in pixels.zip(seconds.chunks_exact(n)) {
                let (values, seconds) = (part::<L>(values, lane), part::<L>(seconds, lane));
                // Bytes of its own: nothing has to be asked about where the others lie.
                let mut bytes = [0; L];
                for lane in 0..L {
                    bytes[lane] = finish(values[lane], Some(seconds[lane]), requantizer(lane));
                }
                out[start..start + L].copy_from_slice(&bytes);
            }
        } else {
            for (out, values) in pixels {
                let values = part::<L>(values, lane);
                let mut bytes = [0; L];
                for lane in 0..L {
                    bytes[lane] = finish(values[lane], None, requantizer(lane));
                }
                out[start..start + L].copy_from_slice(&bytes);
            }
        }
        *first += L;
    }
}

/// `L` elements from `first` on.
#[inline(always)]
fn part<const L: usize>(all: &[i32], first: usize) -> [i32; L] {
    all[first..first + L].try_into().expect("as many as asked")
}

/// Everything in doubles: products are integers below 2^51, so they, their multiples by powers of two
/// and their distance to a half are exact or, far below a half, too small to matter.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn double<const ROUNDING: u8>(job: &Job<'_>, out: &mut [u8]) {
    let finish = job.finish;
    let (q_min, q_max) = (f64::from(finish.q_min), f64::from(finish.q_max));
    let zero = finish.format.q_min();
    let shift_2 = job.shift_2();
    let slope = finish.slope.map_or(1.0, |slope| {
        f64::from(slope.mantissa) * power_of_two(-i32::from(slope.shift))
    });
    groups(
        job,
        out,
        |value,
         second,
         Requantizer {
             mantissa, shift, ..
         }| {
            let mut p = f64::from(value) * f64::from(mantissa);
            if let Some(second) = second {
                p += f64::from(second) * power_of_two(shift.wrapping_sub(shift_2));
            }
            let unit = power_of_two(shift.wrapping_neg());
            let y = p * if p < 0.0 { unit * slope } else { unit };
            let y = Rounding::ALL[usize::from(ROUNDING)].integer_of(y);
            // An integer far below 2^51 stands in the low bits of its sum with 1.5 · 2^52.
            let y = y.max(q_min).min(q_max) + 6_755_399_441_055_744.0;
            (y.to_bits() as i32).wrapping_sub(zero) as u8
        },
    );
}

/// `2^n` for `n` between -1022 and 1023.
#[inline]
fn power_of_two(n: i32) -> f64 {
    f64::from_bits((i64::from(n.wrapping_add(1023)) as u64) << 52)
}
