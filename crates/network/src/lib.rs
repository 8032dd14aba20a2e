//! The integer network: what the quantizer makes, the compiler compiles and the machine computes.
//!
//! Invariant: a [`Network`] that has passed [`Network::verify`] can be evaluated, written to a
//! file, read back and compiled without any further check.

mod accumulate;
#[doc(hidden)]
pub mod arbitrary;
mod bounds;
mod error;
mod evaluate;
mod file;
mod graph;
mod queries;
mod text;
mod verify;

pub use accumulate::accumulate;
pub use bounds::{SafetyRule, SumBound, safety, sum_bounds};
pub use error::{Error, Fault};
pub use evaluate::{Evaluation, check_bias, check_input, evaluate, order_of, post_process};
pub use file::{
    FORMAT_VERSION, METADATA_KEY, fingerprint, from_bytes, from_bytes_with_notes, to_bytes,
    to_bytes_with_notes,
};
pub use graph::{
    Bias, Conv, Layer, Margin, Network, Op, Part, Pool, Post, Reduction, Residual, Shape, Tensor,
    TensorId, Window,
};
pub use verify::{MAX_ALIGNMENT, MAX_ELEMENTS, MAX_EXTENT, MAX_SCALE_EXPONENT, MAX_WEIGHTS};
