//! The kernels in SIMD instructions: a file for each architecture, with one face. The only unsafe code of the
//! workspace.
//!
//! Invariant: the face is safe. It checks that the processor has the level and that slices have their lengths.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "proofs that only x86-64 kernels use")
)]
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{accumulate, accumulate_values, peak, relative};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{accumulate, accumulate_values, peak, relative};
