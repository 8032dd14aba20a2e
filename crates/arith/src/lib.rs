//! Exact integer arithmetic and unit types: what every other crate computes with.
//!
//! Invariant: nothing here rounds, clips or wraps without saying so in its name or its result.

mod accumulator;
mod format;
mod overflow;
mod reduction;
mod rounding;
mod seed;
mod units;

pub use accumulator::{AccumulatorFormat, Overflow, Sum};
pub use format::{Format, OutOfRange, Scale};
pub use overflow::{ChannelOverflow, bits_for_range};
pub use reduction::ReductionOrder;
pub use rounding::{Requant, Rounding, shift_right_rounding};
pub use seed::SplitMix64;
pub use units::{Bytes, Cycle, Cycles};

/// The arithmetic of one machine: everything besides the network that decides an integer result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Arithmetic {
    /// Width and overflow rule of the accumulators.
    pub accumulator: AccumulatorFormat,
    /// Rounding of every requantization shift.
    pub rounding: Rounding,
    /// The order in which the array sums products.
    pub order: ReductionOrder,
    /// The order for depthwise convolutions with one filter a channel, which may not run on the
    /// array.
    pub depthwise_order: ReductionOrder,
}
