//! The integer network as ONNX's own operators, so that any ONNX runtime computes the same integers.
//!
//! Invariant: on an image that overflows no accumulator, every tensor of the exported model equals
//! the oracle's, bit for bit, under the rounding that the export was asked for. Each layer uses the
//! cheapest number type in which its requantization is proven exact (`numbers`).

mod concat;
mod conv;
mod graph;
mod numbers;
mod pool;
mod post;
mod write;

pub use numbers::Numbers;
pub use write::{Export, Form, Options, export};

/// A network that has no such form.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network breaks a rule of its own.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// Real values of a tensor do not fit float32.
    #[error("tensor {tensor:?}: its scale {scale:e} times its integers does not fit float32")]
    Scale {
        /// Its name.
        tensor: String,
        /// Its scale.
        scale: f64,
    },
    /// Protocol buffers end at 2 GiB.
    #[error("the weights take {n_bytes} bytes, an ONNX file holds less than {max}")]
    TooLarge {
        /// Bytes of all weights.
        n_bytes: usize,
        /// Limit.
        max: usize,
    },
}
