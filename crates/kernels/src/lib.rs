//! Accumulation at full speed: reductions of a block of outputs, exact in every bit and every event.
//!
//! Lanes are output channels, so every output keeps its own order of adds. Where no prefix of a block
//! of steps can leave the accumulator's range, any order gives the same bits and no event, and the
//! block is a plain dot product; the test is made with the accumulators' real contents. Blocks that
//! fail are done step by step, with counts.
//!
//! Invariant: every [`Level`] gives what [`arith::AccumulatorFormat::add`] gives, step after step.

mod level;
mod pack;
mod portable;
#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "SIMD intrinsics: the one module that needs them"
)]
mod x86;

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
    assert_eq!(
        records.len(),
        weights.n_columns(),
        "a record for every column"
    );
    #[cfg(target_arch = "x86_64")]
    if level != Level::Portable {
        return x86::accumulate(level, weights, patch, accumulators, records);
    }
    let _ = level;
    portable::accumulate(weights, patch, accumulators, records);
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

/// MACs of `n_rounds` rounds of the level's dot product instruction alone, for benches: what a kernel
/// could do if it had nothing else to do. `None` without such an instruction.
pub fn peak(level: Level, n_rounds: usize) -> Option<u64> {
    match level {
        Level::Portable => None,
        #[cfg(target_arch = "x86_64")]
        level => Some(x86::peak(level, n_rounds)),
        #[cfg(not(target_arch = "x86_64"))]
        _ => None,
    }
}
