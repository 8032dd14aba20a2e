//! Many operands from bytes at once.
//!
//! Invariant: each is what [`weighed`](crate::stepped::pe::weighed) makes of its nibbles, one after the other.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

use crate::stepped::{pe::weighed, sums::LANES};

/// The first bytes, the lowest first; 0 where there are none.
#[inline(always)]
pub(super) fn word(bytes: &[u8]) -> u64 {
    if let Some(first) = bytes.first_chunk() {
        return u64::from_le_bytes(*first);
    }
    let mut held = [0; 8];
    held[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(held)
}

/// What bytes stand for.
#[inline(always)]
pub(super) fn bytes_to(to: &mut [i32], bytes: &[u8], is_signed: bool) {
    let sign = if is_signed { 128 } else { 0 };
    for (at, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let bytes = bytes.get(at * LANES..).unwrap_or_default();
        let mut held = [0; LANES];
        if let Some(first) = bytes.first_chunk() {
            held = *first;
        } else {
            held[..bytes.len()].copy_from_slice(bytes);
        }
        for i in 0..LANES {
            to[i] = (i32::from(held[i]) ^ sign) - sign;
        }
    }
}

/// What nibbles stand for, from the first or the first upper one on.
#[inline(always)]
pub(super) fn nibbles_to(to: &mut [i32], bytes: &[u8], from_upper: bool, is_signed: bool) {
    for (at, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let bytes = bytes.get(at * LANES / 2..).unwrap_or_default();
        let mut nibble = word(bytes);
        if from_upper {
            let next = bytes.get(8).copied().unwrap_or_default();
            nibble = nibble >> 4 | u64::from(next) << 60;
        }
        *to = nibbles(nibble, is_signed);
    }
}

/// What the nibbles of a word stand for, the lowest first.
#[inline(always)]
pub(super) fn nibbles(word: u64, is_signed: bool) -> [i32; LANES] {
    let mut values = [0; LANES];
    for (at, value) in values.iter_mut().enumerate() {
        *value = weighed((word >> (4 * at)) as u8, false, is_signed);
    }
    values
}
