//! Instructions alone, for benches.
//!
//! Invariant: the compiler leaves out none of them.

use crate::{Level, Peak};
use std::arch::{aarch64::vdupq_n_s16, asm};

/// Instructions of one kind and nothing else, in registers: returns their MACs.
pub(crate) fn peak(level: Level, peak: Peak, n_rounds: usize) -> Option<u64> {
    assert!(
        level != Level::Portable && level.is_available(),
        "{level:?}"
    );
    // SAFETY: the level's instructions are there, as asserted above.
    let n_macs = unsafe {
        match (level, peak) {
            (Level::NeonDot, Peak::Dot) => dot_peak(n_rounds),
            (_, Peak::Dot) => add_peak(n_rounds),
            (_, Peak::Multiply) => multiply_peak(n_rounds),
            (_, Peak::LookUp) => return None,
        }
    };
    Some(n_macs)
}

/// Sums side by side, enough to hide latency.
const PEAK_SUMS: usize = 12;

macro_rules! peak {
    ($name:ident, $features:literal, $instructions:literal, $n_macs:literal) => {
        #[target_feature(enable = $features)]
        fn $name(n_rounds: usize) -> u64 {
            let mut sum = [vdupq_n_s16(0); PEAK_SUMS];
            for _ in 0..n_rounds {
                for sum in &mut sum {
                    // SAFETY: registers only, of instructions that are there.
                    unsafe {
                        asm!(
                            $instructions,
                            sum = inout(vreg) *sum,
                            out("v31") _,
                            a = in(vreg) vdupq_n_s16(3),
                            w = in(vreg) vdupq_n_s16(-7),
                            options(nomem, nostack, preserves_flags)
                        );
                    }
                }
            }
            (n_rounds * PEAK_SUMS * $n_macs) as u64
        }
    };
}

peak!(
    dot_peak,
    "neon,dotprod",
    "sdot {sum:v}.4s, {w:v}.16b, {a:v}.16b",
    16
);
peak!(add_peak, "neon", "mla {sum:v}.8h, {a:v}.8h, {w:v}.8h", 8);
peak!(
    multiply_peak,
    "neon",
    "mul v31.8h, {a:v}.8h, {w:v}.8h\nsqadd {sum:v}.8h, {sum:v}.8h, v31.8h",
    8
);
