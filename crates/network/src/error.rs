//! Everything that can be wrong with a network, its file or its input.
//!
//! Invariant: a message names the place (layer or tensor), the value and the limit.

use crate::Shape;
use arith::OutOfRange;

/// An unusable network, file or input.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer breaks a rule.
    #[error("layer {index} {name:?}: {fault}")]
    Layer {
        /// Position in the network.
        index: usize,
        /// Its name.
        name: String,
        /// The rule.
        fault: Fault,
    },
    /// A tensor breaks a rule.
    #[error("tensor {index} {name:?}: {fault}")]
    Tensor {
        /// Position in the network.
        index: usize,
        /// Its name.
        name: String,
        /// The rule.
        fault: Fault,
    },
    /// The network's input or outputs break a rule.
    #[error("network: {0}")]
    Network(Fault),
    /// The input image has another shape.
    #[error("input is {found:?}, the network takes {expected}")]
    InputShape {
        /// Channels, rows, columns given.
        found: [usize; 3],
        /// What the network takes.
        expected: Shape,
    },
    /// An input value is outside the input's format.
    #[error("input value at {at:?} (channel, row, column): {source}")]
    InputValue {
        /// Channel, row, column.
        at: [usize; 3],
        /// The value and the format.
        source: OutOfRange,
    },
    /// The accumulator's width is impossible.
    #[error("accumulator is {width_bits} bits wide, 8 to 32 are possible")]
    AccumulatorWidth {
        /// Given.
        width_bits: u8,
    },
    /// Not a safetensors file.
    #[error("not a safetensors file: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// A safetensors file without a network.
    #[error("no metadata {key:?}: not a quantized network")]
    NoMetadata {
        /// The key that was looked for.
        key: &'static str,
    },
    /// The graph cannot be read.
    #[error("graph in metadata: {0}")]
    Json(#[from] serde_json::Error),
    /// The file is of another version.
    #[error("file has format version {found}, this program reads version {supported}")]
    Version {
        /// In the file.
        found: u64,
        /// Readable.
        supported: u64,
    },
    /// A tensor of the file is missing, surplus, or not of the type and size the graph says.
    #[error("tensor {tensor:?} of the file: {what}")]
    FileTensor {
        /// Its name in the file.
        tensor: String,
        /// What is wrong.
        what: String,
    },
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A number is outside its limits.
    #[error("{what} is {value}, allowed is {min} to {max}")]
    Range {
        /// The number's name.
        what: &'static str,
        /// The number.
        value: i64,
        /// Smallest allowed.
        min: i64,
        /// Largest allowed.
        max: i64,
    },
    /// Two numbers that must be equal differ.
    #[error("{what}: found {found}, needed {needed}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// Found.
        found: usize,
        /// Needed.
        needed: usize,
    },
    /// A per-channel list has neither one entry nor one per channel.
    #[error("{what} has {found} entries, allowed are 1 and {channels}")]
    Length {
        /// The list's name.
        what: &'static str,
        /// Entries.
        found: usize,
        /// Output channels.
        channels: usize,
    },
    /// An id beyond the tensors.
    #[error("{what} is tensor {tensor}, there are {n_tensors}")]
    NoSuchTensor {
        /// Whose id.
        what: &'static str,
        /// The id.
        tensor: usize,
        /// Number of tensors.
        n_tensors: usize,
    },
    /// A tensor is read before it is made.
    #[error("reads tensor {tensor} before it is made")]
    NotReady {
        /// The id.
        tensor: usize,
    },
    /// A tensor is made twice (or the input is made by a layer).
    #[error("makes tensor {tensor}, which exists already")]
    MadeTwice {
        /// The id.
        tensor: usize,
    },
    /// A tensor that no layer makes.
    #[error("no layer makes it")]
    NeverMade,
    /// A list that needs an entry has none.
    #[error("{what} is empty")]
    Empty {
        /// The list's name.
        what: &'static str,
    },
    /// Groups that do not divide the channels.
    #[error("{groups} groups do not divide {channels} channels")]
    Groups {
        /// Groups.
        groups: usize,
        /// Input or output channels.
        channels: usize,
    },
    /// A maximum over nothing but padding, or an average that counts no tap.
    #[error("the window of output {output} on axis {axis} holds no input element")]
    EmptyWindow {
        /// 0: rows, 1: columns.
        axis: usize,
        /// Output row or column.
        output: usize,
    },
    /// The clamp's ends are swapped.
    #[error("clamp {q_min} to {q_max} is empty")]
    EmptyClamp {
        /// Lower end.
        q_min: i32,
        /// Upper end.
        q_max: i32,
    },
    /// The residual's shift is larger than a channel's, or far smaller.
    #[error(
        "residual shift {residual} must be 0 to 30 below the shift {shift} of channel {channel}"
    )]
    ResidualShift {
        /// The residual's shift.
        residual: u8,
        /// The channel's shift.
        shift: u8,
        /// Output channel.
        channel: usize,
    },
    /// The product before the shift may need more than 62 bits.
    #[error("product before the shift of channel {channel} may reach 2^62")]
    ProductTooWide {
        /// Output channel.
        channel: usize,
    },
    /// A bias that the accumulator cannot hold.
    #[error("bias {value} of channel {channel} does not fit a {width_bits}-bit accumulator")]
    Bias {
        /// Output channel.
        channel: usize,
        /// `mantissa << shift`.
        value: i64,
        /// The accumulator's width.
        width_bits: u8,
    },
}
