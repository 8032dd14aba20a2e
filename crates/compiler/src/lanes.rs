//! Depthwise convolutions on the post unit's lanes: runs of channels whose weights are on chip
//! together, and how these weights look.
//!
//! Invariant: runs are in order and cover every channel once; a run's weights begin at a byte, tap by
//! tap, channels fastest (`docs/machine.md`, Depthwise convolution).

use crate::{
    job::{Conv, Job},
    layout::PARAMETER_BYTES,
    tile::{Ring, Shortage},
};
use accelerator::{Config, DepthwiseUnit};

/// Channels that one `depthwise` can name.
const MAX_CHANNELS: u32 = 0x3fff;

/// How a layer's weights and parameters come on chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LanePlan {
    /// Per run: first channel, channels.
    pub runs: Vec<(u32, u32)>,
    pub weights: Ring,
    pub parameters: Ring,
}

/// Whether the lanes compute a convolution.
pub(crate) fn take(conv: &network::Conv, config: &Config) -> bool {
    config.depthwise == DepthwiseUnit::Post && conv.is_plain_depthwise()
}

/// Bytes of a run's weights.
pub(crate) fn run_bytes(n_channels: u32, n_taps: u32, wide: bool) -> u64 {
    let nibbles = u64::from(n_channels) * u64::from(n_taps) * (1 + u64::from(wide));
    nibbles.div_ceil(2)
}

/// All channels at once, or the longest runs of which two are on chip at a time. Empty when not even
/// one channel fits.
pub(crate) fn runs(n_channels: u32, n_taps: u32, wide: bool, config: &Config) -> Vec<(u32, u32)> {
    let longest = |weight_bytes: u32, n_parameters: u32| {
        let nibbles = u64::from(n_taps) * (1 + u64::from(wide));
        let by_weights = 2 * u64::from(weight_bytes) / nibbles;
        by_weights
            .min(u64::from(n_parameters.min(MAX_CHANNELS)))
            .min(u64::from(n_channels)) as u32
    };
    let mut n = longest(config.weight_bytes, config.n_parameters);
    if n < n_channels {
        let half = longest(config.weight_bytes / 2, config.n_parameters / 2);
        n = if half > 0 { half } else { n };
        // Whole groups of lanes, so that none is half empty in the middle of a layer.
        if n > config.lanes {
            n -= n % config.lanes;
        }
    }
    if n == 0 {
        return Vec::new();
    }
    (0..n_channels.div_ceil(n))
        .map(|i| (i * n, n.min(n_channels - i * n)))
        .collect()
}

/// A run's channels of `[channel, 1, row, column]` weights.
pub(crate) fn pack(
    conv: &network::Conv,
    (first, n_channels): (u32, u32),
    wide: bool,
    into: &mut [u8],
) {
    let weights = conv.weights.as_standard_layout();
    let flat = weights.as_slice().expect("standard layout is contiguous");
    let n_taps = conv.window.n_taps();
    for tap in 0..n_taps {
        for c in 0..n_channels as usize {
            let byte = flat[(first as usize + c) * n_taps + tap].cast_unsigned();
            let index = tap * n_channels as usize + c;
            if wide {
                into[index] = byte;
            } else {
                into[index / 2] |= (byte & 15) << (4 * (index % 2));
            }
        }
    }
}

impl LanePlan {
    /// Buffers in the weight scratchpad and the parameter table.
    pub fn new(conv: &Conv, config: &Config, at_top: bool) -> Result<Self, Shortage> {
        let (n_taps, wide) = (conv.n_steps(), conv.wide_weights);
        let runs = runs(conv.groups, n_taps, wide, config);
        let n_slots = runs.len().min(2) as u32;
        let Some(&(_, longest)) = runs.first() else {
            return Err(Shortage {
                what: "one channel's filter",
                buffer: "weight scratchpad",
                needed: run_bytes(1, n_taps, wide),
                available: config.weight_bytes.into(),
            });
        };
        let mut weights = Ring {
            base: 0,
            slot: run_bytes(longest, n_taps, wide) as u32,
            n_slots,
        };
        let mut parameters = Ring {
            base: 0,
            slot: longest,
            n_slots,
        };
        if weights.size() > config.weight_bytes || parameters.size() > config.n_parameters {
            (weights.n_slots, parameters.n_slots) = (1, 1);
        }
        if at_top {
            weights.base = config.weight_bytes - weights.size();
            parameters.base = config.n_parameters - parameters.size();
        }
        Ok(Self {
            runs,
            weights,
            parameters,
        })
    }

    /// Cycles in which the lanes are busy, and bytes loaded for `n_tiles` tiles.
    pub fn work(&self, job: &Job, conv: &Conv, n_tiles: u64, config: &Config) -> (u64, u64) {
        let n_pixels = u64::from(job.output.height) * u64::from(job.output.width);
        let n_groups: u64 = self
            .runs
            .iter()
            .map(|(_, n)| u64::from(n.div_ceil(config.lanes)))
            .sum();
        let post = n_pixels * n_groups * u64::from(conv.n_steps()) * conv.passes();
        let once = run_bytes(conv.groups, conv.n_steps(), conv.wide_weights)
            + u64::from(conv.groups) * u64::from(PARAMETER_BYTES);
        let resident = self.runs.len() <= self.weights.n_slots as usize;
        (post, if resident { once } else { n_tiles * once })
    }
}
