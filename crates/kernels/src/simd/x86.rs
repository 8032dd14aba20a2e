//! The kernels for x86-64.
//!
//! Invariant: the public functions check lengths and the processor; inside, a function that needs
//! instructions says so (`target_feature`), and every pointer comes from a slice whose length the
//! loop's bounds respect.

mod avx2;
mod avx512;
mod in_order;

pub(crate) use in_order::accumulate_values;

use crate::{
    Level, Peak,
    pack::{Lanes, Weights},
    simd::tile::{Tile, tile_rows},
};
use arith::ChannelOverflow;
#[allow(
    clippy::wildcard_imports,
    reason = "some forty intrinsics, all with one prefix"
)]
use std::{
    arch::{asm, x86_64::*},
    hint::black_box,
};

pub(crate) fn accumulate(
    level: Level,
    weights: &Weights,
    patch: &[u8],
    accumulators: &mut [i32],
    records: &mut [ChannelOverflow],
) {
    assert!(level.is_available(), "{level:?} is not on this processor");
    let n_pixels = accumulators.len() / weights.n_lanes();
    if n_pixels == 0 {
        return;
    }
    let rows = tile_rows(level, n_pixels);
    let groups = tile_groups(level);
    let mut outlook = avx512::Outlook::NEW;
    for group in (0..weights.n_groups).step_by(groups) {
        let both = groups == 2 && group + 1 < weights.n_groups;
        let tiles = accumulators.chunks_mut(rows * weights.n_lanes());
        for (out, patch) in tiles.zip(patch.chunks(rows * weights.n_places)) {
            let n_rows = patch.len() / weights.n_places;
            let tile = Tile {
                weights,
                group,
                patch,
            };
            // SAFETY: the level's instructions are there, as asserted above.
            unsafe {
                match level {
                    Level::Avx512Vnni => {
                        tile.avx512::<true>(n_rows, both, out, records, &mut outlook);
                    }
                    Level::Avx512Bw => {
                        tile.avx512::<false>(n_rows, both, out, records, &mut outlook);
                    }
                    _ if weights.is_narrow() => tile.avx2(n_rows, out, records),
                    _ => tile.avx2_wide(n_rows, out, records),
                }
            }
        }
    }
}

/// Groups of columns of a tile, at most.
fn tile_groups(level: Level) -> usize {
    match level {
        Level::Avx512Bw | Level::Avx512Vnni => 2,
        Level::Portable | Level::Neon | Level::NeonDot | Level::Avx2 => 1,
    }
}

/// The sums of a stretch with its extremes, for weights whose short sums fit 16 bits.
pub(crate) fn relative(
    level: Level,
    activations: &[u8],
    pairs: &[i8],
    offset: i16,
) -> (Lanes<i32>, Lanes<i32>, Lanes<i32>) {
    assert!(
        level != Level::Portable && level.is_available(),
        "{level:?}"
    );
    // SAFETY: every level but the portable one has AVX2, and this processor has the level.
    unsafe { avx2::relative(activations, pairs, offset) }
}

/// Instructions of one kind and nothing else, from registers and 3 KiB of memory: returns their MACs.
pub(crate) fn peak(level: Level, peak: Peak, n_rounds: usize) -> Option<u64> {
    assert!(
        level != Level::Portable && level.is_available(),
        "{level:?}"
    );
    let operands = Aligned([3; (PEAK_OPERANDS + PEAK_SUMS) * 64]);
    let operands = &operands.0;
    // SAFETY: the level's instructions are there, as asserted above.
    let n_macs = unsafe {
        match (level, peak) {
            (Level::Avx512Vnni, Peak::Dot) => vnni_peak(operands, n_rounds),
            (Level::Avx512Bw, Peak::Dot) => avx512_peak(operands, n_rounds),
            (_, Peak::Dot) => avx2_peak(operands, n_rounds),
            (Level::Avx512Vnni | Level::Avx512Bw, Peak::Multiply) => multiply_peak_512(n_rounds),
            (_, Peak::Multiply) => multiply_peak_256(n_rounds),
            (Level::Avx512Vnni | Level::Avx512Bw, Peak::LookUp) => look_up_peak_512(n_rounds),
            (_, Peak::LookUp) => return None,
        }
    };
    Some(n_macs)
}

/// Registers that do not lie across two cache lines.
#[repr(align(64))]
struct Aligned([u8; (PEAK_OPERANDS + PEAK_SUMS) * 64]);

const PEAK_OPERANDS: usize = 32;
/// Sums side by side, enough to hide latency.
const PEAK_SUMS: usize = 12;

#[target_feature(enable = "avx2")]
fn avx2_peak(operands: &[u8], n_rounds: usize) -> u64 {
    let mut sum = [_mm256_setzero_si256(); PEAK_SUMS];
    let a = _mm256_set1_epi32(black_box(0x0102_0304));
    for round in 0..n_rounds {
        let operands = &operands[round % PEAK_OPERANDS * 64..];
        for (sum, w) in sum.iter_mut().zip(operands.chunks_exact(32)) {
            // SAFETY: the chunk is 32 bytes long.
            let w = unsafe { _mm256_loadu_si256(w.as_ptr().cast()) };
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(a, w));
        }
    }
    black_box(sum);
    (n_rounds * PEAK_SUMS * 32) as u64
}

#[target_feature(enable = "avx512f,avx512bw")]
fn avx512_peak(operands: &[u8], n_rounds: usize) -> u64 {
    let mut sum = [_mm512_setzero_si512(); PEAK_SUMS];
    let a = _mm512_set1_epi32(black_box(0x0102_0304));
    for round in 0..n_rounds {
        let operands = &operands[round % PEAK_OPERANDS * 64..];
        for (sum, w) in sum.iter_mut().zip(operands.chunks_exact(64)) {
            // SAFETY: the chunk is 64 bytes long.
            let w = unsafe { _mm512_loadu_si512(w.as_ptr().cast()) };
            *sum = _mm512_add_epi16(*sum, _mm512_maddubs_epi16(a, w));
        }
    }
    black_box(sum);
    (n_rounds * PEAK_SUMS * 64) as u64
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni_peak(operands: &[u8], n_rounds: usize) -> u64 {
    let mut sum = [_mm512_setzero_si512(); PEAK_SUMS];
    let a = _mm512_set1_epi32(black_box(0x0102_0304));
    for round in 0..n_rounds {
        let operands = &operands[round % PEAK_OPERANDS * 64..];
        for (sum, w) in sum.iter_mut().zip(operands.chunks_exact(64)) {
            // SAFETY: the chunk is 64 bytes long.
            let w = unsafe { _mm512_loadu_si512(w.as_ptr().cast()) };
            *sum = _mm512_dpbusd_epi32(*sum, a, w);
        }
    }
    black_box(sum);
    (n_rounds * PEAK_SUMS * 64) as u64
}

/// Twelve products and then as many adds, by turns. The products, always the same, are written out
/// because the compiler would make them once.
macro_rules! in_order_peak {
    ($name:ident, $features:literal, $kind:ident, $product:literal, [$zero:ident $set1:ident $adds:ident], $lanes:literal) => {
        #[target_feature(enable = $features)]
        fn $name(n_rounds: usize) -> u64 {
            let mut sum = [$zero(); PEAK_SUMS];
            let (a, w) = ($set1(black_box(3)), $set1(black_box(-7)));
            for _ in 0..n_rounds {
                let mut product = [$zero(); PEAK_SUMS];
                for product in &mut product {
                    // SAFETY: registers only, of instructions that are there.
                    unsafe {
                        asm!(
                            $product,
                            product = out($kind) *product,
                            a = in($kind) a,
                            w = in($kind) w,
                            options(nomem, nostack, preserves_flags)
                        );
                    }
                }
                for (sum, product) in sum.iter_mut().zip(product) {
                    *sum = $adds(*sum, product);
                }
            }
            black_box(sum);
            (n_rounds * PEAK_SUMS * $lanes) as u64
        }
    };
}

in_order_peak!(multiply_peak_512, "avx512f,avx512bw", zmm_reg, "vpmullw {product}, {a}, {w}",
    [_mm512_setzero_si512 _mm512_set1_epi16 _mm512_adds_epi16], 32);
in_order_peak!(look_up_peak_512, "avx512f,avx512bw", zmm_reg, "vpermw {product}, {a}, {w}",
    [_mm512_setzero_si512 _mm512_set1_epi16 _mm512_adds_epi16], 32);
in_order_peak!(multiply_peak_256, "avx2", ymm_reg, "vpmullw {product}, {a}, {w}",
    [_mm256_setzero_si256 _mm256_set1_epi16 _mm256_adds_epi16], 16);

/// Above 0 as long as at least four of five tries succeeded; a failure costs what four tries bring.
struct Hope(i32);

impl Hope {
    fn is_alive(&self) -> bool {
        self.0 > 0
    }

    fn note(&mut self, is_success: bool) {
        self.0 = (self.0 + if is_success { 1 } else { -4 }).clamp(-8, 4);
    }
}
