//! Accumulation at full speed: reductions of a block of outputs, exact in every bit and every event.
//!
//! Lanes are output channels, so every output keeps its own order of adds. Where no prefix of a block
//! of steps can leave the accumulator's range, any order gives the same bits and no event, and the
//! block is a plain dot product; the test is made with the accumulators' real contents. Blocks that
//! fail are done step by step, with counts ([`accumulate`]) or without ([`accumulate_values`]).
//!
//! Invariant: every [`Level`] gives what [`arith::AccumulatorFormat::add`] gives, step after step.

mod level;
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "proofs and operands that only x86-64 kernels use")
)]
mod pack;
mod portable;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
#[expect(
    unsafe_code,
    reason = "SIMD intrinsics: the one module that needs them"
)]
mod simd;
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "operands that only x86-64 kernels use")
)]
mod table;

pub use level::Level;
pub use pack::{LANES, Weights};

use arith::ChannelOverflow;

/// Accumulates every column of `weights` for some output pixels.
///
/// `patch` holds [`Weights::patch_len`] activations a pixel, in the order of [`Weights::place`], each
/// stored as [`Weights::stored`] says. `accumulators` receives [`Weights::n_lanes`] values a pixel
/// (lanes from [`Weights::n_columns`] on are 0 or the bias of nothing). Events go to `records`, one a
/// column; extremes are [`extremes`]'s business.
///
/// # Panics
/// When a slice has another length than the others ask for.
pub fn accumulate(
    level: Level,
    weights: &Weights,
    patch: &[u8],
    accumulators: &mut [i32],
    records: &mut [ChannelOverflow],
) {
    check(weights, patch, accumulators);
    assert_eq!(
        records.len(),
        weights.n_columns(),
        "a record for every column"
    );
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    if level != Level::Portable {
        return simd::accumulate(level, weights, patch, accumulators, records);
    }
    let _ = level;
    portable::accumulate(weights, patch, accumulators, records);
}

/// [`accumulate`] without events: the same accumulators, sooner where sums overflow.
///
/// # Panics
/// When a slice has another length than the others ask for.
pub fn accumulate_values(level: Level, weights: &Weights, patch: &[u8], accumulators: &mut [i32]) {
    check(weights, patch, accumulators);
    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
    if level != Level::Portable {
        return simd::accumulate_values(level, weights, patch, accumulators);
    }
    let _ = level;
    portable::accumulate_values(weights, patch, accumulators);
}

fn check(weights: &Weights, patch: &[u8], accumulators: &[i32]) {
    let n_pixels = accumulators.len() / weights.n_lanes();
    assert_eq!(
        accumulators.len(),
        n_pixels * weights.n_lanes(),
        "whole pixels"
    );
    assert_eq!(
        patch.len(),
        n_pixels * weights.patch_len(),
        "a patch for every pixel"
    );
}

/// The extremes of the exact partial sums, start values included, for the same arguments.
///
/// # Panics
/// When a slice has another length than the others ask for.
pub fn extremes(level: Level, weights: &Weights, patch: &[u8], records: &mut [ChannelOverflow]) {
    assert_eq!(patch.len() % weights.patch_len(), 0, "whole pixels");
    assert_eq!(
        records.len(),
        weights.n_columns(),
        "a record for every column"
    );
    portable::extremes(level, weights, patch, records);
}

/// What a kernel could do if it had nothing else to do: instructions for [`peak`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peak {
    /// The level's dot product.
    Dot,
    /// A multiplication and a saturating add of 16-bit lanes.
    Multiply,
    /// A product from a table in a register and a saturating add of 16-bit lanes.
    LookUp,
}

/// MACs of `n_rounds` rounds of the level's instructions alone, for benches. `None` without such
/// instructions.
pub fn peak(level: Level, peak: Peak, n_rounds: usize) -> Option<u64> {
    match level {
        Level::Portable => None,
        #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
        level => simd::peak(level, peak, n_rounds),
        #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
        _ => None,
    }
}
