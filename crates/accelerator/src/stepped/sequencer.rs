//! The post unit's sequencer: which tap of which output is read in a cycle.
//!
//! Invariant: the pass counts fastest, then the tap, the group of lanes, the pixel.

use crate::Config;
use isa::{Depthwise, Destination, Filter, Pool, Requantize, Residual, Slope, Source, Window};

/// What is being read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// Accumulators of a block.
    Requantize(Requantize),
    /// Windows of a tile.
    Pool(Pool, Source, Window),
    /// Windows of a tile, weighed.
    Depthwise(Depthwise, Filter, Source, Window),
}

/// The instruction whose operands are being read, and where its reading stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub index: usize,
    pub task: Task,
    pub to: Destination,
    pub residual: Option<Residual>,
    pub slope: Option<Slope>,
    /// Output pixel (block row of a `requantize`).
    pub pixel: u32,
    /// Lanes full of channels (block columns) before this one.
    pub group: u32,
    pub tap_y: u32,
    pub tap_x: u32,
    /// Pass of the tap.
    pub pass: u32,
}

impl Job {
    pub fn n_pixels(&self) -> u32 {
        match self.task {
            Task::Requantize(requantize) => requantize.rows_minus_1 + 1,
            Task::Pool(pool, ..) => pool.n_pixels,
            Task::Depthwise(depthwise, ..) => depthwise.n_pixels,
        }
    }

    pub fn n_channels(&self) -> u32 {
        match self.task {
            Task::Requantize(requantize) => requantize.cols_minus_1 + 1,
            Task::Pool(pool, ..) => pool.n_channels,
            Task::Depthwise(depthwise, ..) => depthwise.n_channels,
        }
    }

    pub fn n_taps(&self) -> (u32, u32) {
        match self.task {
            Task::Requantize(_) => (1, 1),
            Task::Pool(_, _, window) | Task::Depthwise(.., window) => (window.height, window.width),
        }
    }

    /// Cycles of a tap.
    pub fn n_passes(&self) -> u32 {
        match self.task {
            Task::Requantize(_) | Task::Pool(..) => 1,
            Task::Depthwise(_, filter, source, _) => (1 + source.wide) * (1 + filter.wide_weights),
        }
    }

    pub fn is_first_tap(&self) -> bool {
        (self.tap_y, self.tap_x) == (0, 0)
    }

    /// The last cycle of an output: the last pass of its last tap.
    #[inline]
    pub fn is_last_tap(&self) -> bool {
        (self.tap_y + 1, self.tap_x + 1) == self.n_taps() && self.pass + 1 == self.n_passes()
    }

    #[inline]
    pub fn is_last(&self, config: &Config) -> bool {
        self.is_last_tap()
            && self.group + 1 == self.n_channels().div_ceil(config.lanes)
            && self.pixel + 1 == self.n_pixels()
    }

    /// The counters of pass, tap, group of channels, pixel, the pass fastest.
    pub fn next(mut self, config: &Config) -> Option<Self> {
        if self.is_last(config) {
            return None;
        }
        self.pass += 1;
        if self.pass < self.n_passes() {
            return Some(self);
        }
        self.pass = 0;
        self.tap_x += 1;
        if self.tap_x == self.n_taps().1 {
            self.tap_x = 0;
            self.tap_y += 1;
        }
        if self.tap_y == self.n_taps().0 {
            self.tap_y = 0;
            self.group += 1;
        }
        if self.group == self.n_channels().div_ceil(config.lanes) {
            self.group = 0;
            self.pixel += 1;
        }
        Some(self)
    }

    /// Destination row and column of the output pixel.
    pub fn position(&self, pixel: u32) -> (u64, u64) {
        let (y, x) = match self.task {
            Task::Requantize(requantize) => (requantize.y, requantize.x),
            Task::Pool(pool, ..) => (pool.y, pool.x),
            Task::Depthwise(depthwise, ..) => (depthwise.y, depthwise.x),
        };
        let width = u64::from(self.to.width).max(1);
        let position = u64::from(x) + u64::from(pixel);
        (u64::from(y) + position / width, position % width)
    }
}
