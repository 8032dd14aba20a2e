//! What an output channel's accumulators did: events and extremes.
//!
//! Invariant: merging is commutative and associative, so no thread count shows in a report.

use serde::{Deserialize, Serialize};

/// Overflow record of one output channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelOverflow {
    /// MAC steps whose exact sum (from the accumulator's real content) did not fit.
    pub n_overflowed: u64,
    /// Outputs with at least one such step.
    pub n_outputs_touched: u64,
    /// Smallest k (0-based, over all outputs) at which it happened.
    pub first_k: Option<u32>,
    /// Smallest exact partial sum: bias included, no clipping, over all outputs and steps.
    pub min_partial_sum: i64,
    /// Largest exact partial sum.
    pub max_partial_sum: i64,
}

impl Default for ChannelOverflow {
    fn default() -> Self {
        Self {
            n_overflowed: 0,
            n_outputs_touched: 0,
            first_k: None,
            min_partial_sum: i64::MAX,
            max_partial_sum: i64::MIN,
        }
    }
}

impl ChannelOverflow {
    /// Takes over what another part of the same channel saw.
    pub fn merge(&mut self, other: &Self) {
        self.n_overflowed += other.n_overflowed;
        self.n_outputs_touched += other.n_outputs_touched;
        self.first_k = match (self.first_k, other.first_k) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.min_partial_sum = self.min_partial_sum.min(other.min_partial_sum);
        self.max_partial_sum = self.max_partial_sum.max(other.max_partial_sum);
    }

    /// The accumulator width that would have held every exact partial sum.
    pub fn sufficient_bits(&self) -> u8 {
        if self.min_partial_sum > self.max_partial_sum {
            return 1;
        }
        bits_for_range(self.min_partial_sum, self.max_partial_sum)
    }
}

/// The two's complement width that holds both `min` and `max`.
pub const fn bits_for_range(min: i64, max: i64) -> u8 {
    let below = if min < 0 {
        65 - (!min).leading_zeros()
    } else {
        1
    };
    let above = if max > 0 { 65 - max.leading_zeros() } else { 1 };
    (if below > above { below } else { above }) as u8
}
