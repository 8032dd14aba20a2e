//! Why a network cannot be compiled for a machine.
//!
//! Invariant: a message names the layer, the buffer or field, the need and the limit.

use arith::Bytes;

/// A network that the machine cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network itself is wrong, or a bias does not fit the accumulators.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A buffer is too small for even the smallest tile.
    #[error("layer {layer}: {what} needs {needed} of {buffer}, {available} available")]
    TooLarge {
        /// Name of the layer.
        layer: String,
        /// The smallest thing that has to fit.
        what: &'static str,
        /// What it needs.
        needed: Bytes,
        /// The memory.
        buffer: &'static str,
        /// Its size.
        available: Bytes,
    },
    /// Tensors, weights and parameters together exceed main memory.
    #[error("the network needs {needed} of DRAM, {available} available")]
    Dram {
        /// Sum over tensors, weights and parameters.
        needed: Bytes,
        /// Size of the machine's DRAM, at most what 32-bit addresses reach.
        available: Bytes,
    },
    /// Nothing has this name.
    #[error("no layer is named {layer:?}{}", nearest.as_ref().map_or_else(String::new, |name| format!(", did you mean {name:?}?")))]
    UnknownLayer {
        /// The name.
        layer: String,
        /// A layer whose name is like it.
        nearest: Option<String>,
    },
    /// A number of the layer is larger than the instruction's field.
    #[error("layer {layer}: {what} is {value}, the machine takes {min} to {max}")]
    Limit {
        /// Name of the layer.
        layer: String,
        /// What is out of range.
        what: &'static str,
        /// Its value.
        value: i64,
        /// Smallest value possible.
        min: i64,
        /// Largest value possible.
        max: i64,
    },
    /// An instruction has no encoding.
    #[error("layer {layer}: {source}")]
    Instruction {
        /// Name of the layer.
        layer: String,
        /// The field.
        source: isa::InstructionError,
    },
    /// The machine refuses the program of a layer.
    #[error("layer {layer}: {source}")]
    Fault {
        /// Name of the layer.
        layer: String,
        /// What the machine says.
        source: accelerator::Fault,
    },
}
