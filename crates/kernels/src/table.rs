//! Operands of sums in order, by activation: what stands in a register for each byte.
//!
//! Invariant: there is an entry for every byte, so any activation leads to one.

use crate::pack::{LANES, Lanes, Weights};

/// A register of 32 lanes of 16 bits.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Register(pub [Lanes<i16>; 2]);

/// Bytes from an entry to the next.
pub(crate) const STRIDE: u16 = size_of::<Register>() as u16;

/// Operands for every byte, scaled as [`Weights::scale`] says.
#[derive(Debug)]
pub(crate) struct Table {
    /// The byte's activation in every lane, for a multiplication.
    pub factors: Box<[Register; 256]>,
    /// For two pixels' activations of 4 bits each, the first pixel's in the upper half of the byte:
    /// the products of the first with every weight of 4 bits, then those of the second. A weight's
    /// place is its low bits. Only where all weights and activations have at most 4 bits.
    pub products: Option<Box<[Register; 256]>>,
}

impl Table {
    pub fn new(weights: &Weights) -> Self {
        let scale = weights.scale();
        // Low bits are right, whatever the high ones are; products of operands that exist fit.
        let real = |stored: usize| (stored as i32 - weights.offset()) << scale;
        let factor = |byte: usize| Register([[real(byte) as i16; LANES]; 2]);
        let product = |stored: usize, place: usize| {
            let weight = (place as i32) << 28 >> 28;
            real(stored).wrapping_mul(weight) as i16
        };
        let products = |byte: usize| {
            Register([byte >> 4, byte & 15].map(|a| std::array::from_fn(|w| product(a, w))))
        };
        let all = |entry: &dyn Fn(usize) -> Register| Box::new(std::array::from_fn(entry));
        let are_nibbles =
            weights.activation.bits <= 4 && weights.pairs.iter().all(|w| (-8..8).contains(w));
        Self {
            factors: all(&factor),
            products: are_nibbles.then(|| all(&products)),
        }
    }
}
