//! Tiles, which kernels keep in registers, and the rules of sums in order.
//!
//! Invariant: a tile's patch is whole pixels, as its weights have places.

use crate::{
    Level,
    pack::{Between, Bounds, LANES, Stretch, Weights},
};

/// Pixels of a tile: tiles of equal size, as a small last one would cost nearly as much as a full one.
pub(crate) fn tile_rows(level: Level, n_pixels: usize) -> usize {
    n_pixels.div_ceil(n_pixels.div_ceil(level.tile_pixels()))
}

/// Some pixels of one or two groups.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub weights: &'a Weights,
    pub group: usize,
    /// Of all its pixels.
    pub patch: &'a [u8],
}

impl Tile<'_> {
    #[inline]
    pub fn pixel(&self, row: usize) -> &[u8] {
        &self.patch[row * self.weights.n_places..][..self.weights.n_places]
    }

    #[inline]
    pub fn block_bounds(&self, lane_group: usize, block: usize) -> &Bounds {
        &self.weights.block_bounds[(self.group + lane_group) * self.weights.blocks.len() + block]
    }

    /// A group's quads of a stretch.
    #[inline]
    pub fn quads(&self, lane_group: usize, places: Stretch) -> &[i8] {
        let quads = self.weights.group_quads(self.group + lane_group);
        &quads[places.from * LANES..places.to * LANES]
    }

    /// Of everything from a block on.
    #[inline]
    pub fn rest_bounds(&self, lane_group: usize, block: usize) -> &Bounds {
        &self.weights.rest_bounds[(self.group + lane_group) * self.weights.blocks.len() + block]
    }

    #[inline]
    pub fn run_bounds(&self, lane_group: usize, run: usize) -> &Bounds {
        &self.weights.run_bounds[(self.group + lane_group) * self.weights.runs.len() + run]
    }

    #[inline]
    pub fn run_between(&self, lane_group: usize, run: usize) -> &Between {
        self.weights.between(self.group + lane_group, run)
    }

    /// Positions of a block.
    #[inline]
    pub fn places(&self, block: Stretch) -> Stretch {
        let runs = &self.weights.runs;
        Stretch {
            from: runs[block.from].from,
            to: runs[block.to - 1].to,
        }
    }
}

/// Clips, at the upper end of 16 bits.
pub(crate) const SATURATE: u8 = 0;
/// Drops high bits, at the upper end of 16 bits.
pub(crate) const WRAP: u8 = 1;
/// Clips, where products may be wider than the accumulator.
pub(crate) const SATURATE_ANY: u8 = 2;
/// Drops high bits, where products may be wider than the accumulator.
pub(crate) const WRAP_ANY: u8 = 3;
