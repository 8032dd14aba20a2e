//! The integer network: tensors, layers and their exact meaning.
//!
//! Invariant (checked by [`crate::verify`]): layers stand in an order in which every input is
//! ready; every integer lies in its format. The zero-point is always 0.

use arith::{Format, Requant, Scale};
use ndarray::Array4;
use serde::{Deserialize, Serialize};

/// Index of a tensor in [`Network::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TensorId(pub usize);

/// A feature map of one image: channels × height × width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// An activation tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// The float model's name for the value (used to find it in the float reference).
    pub name: String,
    /// Extent of one image.
    pub shape: Shape,
    /// Integer format.
    pub format: Format,
    /// `real = scale · integer`.
    pub scale: Scale,
}

/// An integer network, from 8-bit input to the last layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Name for reports.
    pub name: String,
    /// Every activation tensor; the input first.
    pub tensors: Vec<Tensor>,
    /// The tensor that the host writes.
    pub input: TensorId,
    /// The tensors that the host reads.
    pub outputs: Vec<TensorId>,
    /// In execution order.
    pub layers: Vec<Layer>,
}

/// One layer: an operation that makes one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The float model's name for the layer.
    pub name: String,
    /// What it makes.
    pub output: TensorId,
    /// How.
    pub op: Op,
}

/// The operations of the machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Convolution (a fully connected layer is one whose kernel covers its input).
    Conv(Conv),
    /// A reduction over windows of one tensor, then requantization: pooling, element-wise
    /// addition, sub-sampling, re-scaling.
    Pool(Pool),
    /// Joins views of tensors along the channels, each brought to the output's scale:
    /// concatenation, space-to-depth, slices and shuffles of channels, sub-sampling.
    Concat(Vec<Part>),
}

/// What a [`Op::Concat`] copies to its next `n_channels` output channels:
///
/// ```text
/// v = tensor[channel + c, offset[0] + y · stride[0], offset[1] + x · stride[1]]
/// y = clamp(shift_right_rounding(v · requant.mantissa, requant.shift), q_min, q_max)
/// ```
///
/// `q_min`, `q_max` are the output format's. [`Requant::IDENTITY`] copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where from.
    pub tensor: TensorId,
    /// First channel read.
    pub channel: usize,
    /// Channels read.
    pub n_channels: usize,
    /// Step between rows and columns read.
    pub stride: [usize; 2],
    /// First row and column read.
    pub offset: [usize; 2],
    /// From the tensor's scale to the output's.
    pub requant: Requant,
}

/// Where a sliding window reads. Row/column order everywhere: `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// Kernel extent.
    pub kernel: [usize; 2],
    /// Step between outputs.
    pub stride: [usize; 2],
    /// Step between kernel taps.
    pub dilation: [usize; 2],
    /// Zero rows above and columns left of the input (those below and right follow from the
    /// output's shape).
    pub pad: [usize; 2],
}

/// The value added before the shift: `tensor[c - channel_offset, y · stride, x · stride]`, and 0
/// where that channel does not exist (the option-A shortcut of `ResNet`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residual {
    /// Second operand.
    pub tensor: TensorId,
    /// Spatial sub-sampling.
    pub stride: [usize; 2],
    /// First output channel that it reaches.
    pub channel_offset: usize,
    /// Its multiplier; the shift is at most that of every channel's requantization.
    pub requant: Requant,
}

/// What follows the reduction `v` (an accumulator or a window's sum or maximum), per channel `c`:
///
/// ```text
/// n = requant[c].shift
/// p = v · requant[c].mantissa + (residual · residual.mantissa << (n - residual.shift))
/// if p < 0 and there is a negative slope:  p = p · slope.mantissa,  n = n + slope.shift
/// y = clamp(shift_right_rounding(p, n), q_min, q_max)
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Post {
    /// One entry, or one per output channel.
    pub requant: Vec<Requant>,
    /// Second operand.
    pub residual: Option<Residual>,
    /// Leaky `ReLU`'s slope; `ReLU` itself is `q_min = 0`. The shift is at most 15.
    pub negative_slope: Option<Requant>,
    /// Lower clamp, inside the output's format.
    pub q_min: i32,
    /// Upper clamp, inside the output's format.
    pub q_max: i32,
}

/// Initial value of an output channel's accumulator: `mantissa << shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bias {
    /// 8 bits by default, at most 16.
    pub mantissa: i16,
    /// Left shift.
    pub shift: u8,
}

/// A convolution. The reduction runs over kernel row, kernel column, input channel of the group
/// (channel fastest); `k` counts in this order, which saturation makes part of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// Input tensor.
    pub input: TensorId,
    /// Where the kernel reads.
    pub window: Window,
    /// Channel groups; input and output channels are multiples of it.
    pub groups: usize,
    /// Width of a weight, 2..=8.
    pub weight_bits: u8,
    /// `[output channel, input channel of the group, kernel row, kernel column]`.
    pub weights: Array4<i8>,
    /// One entry, or one per output channel.
    pub weight_scales: Vec<Scale>,
    /// One per output channel.
    pub bias: Vec<Bias>,
    /// Requantization.
    pub post: Post,
}

/// The reduction of a [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Largest value; padding never wins.
    Max,
    /// Exact 32-bit sum; padding adds 0 (an average's divisor is part of the requantization).
    Sum,
}

/// A window reduction of one tensor per channel. Kernel 1 × 1 makes it element-wise: with a
/// residual an addition, with stride a sub-sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Input tensor.
    pub input: TensorId,
    /// First output channel that the input's channel 0 becomes (others are 0 before the residual).
    pub channel_offset: usize,
    /// Where the window reads.
    pub window: Window,
    /// How a window becomes one number.
    pub reduction: Reduction,
    /// An average that does not divide by all taps of its window. `None`: the number of taps does
    /// not matter.
    pub margin: Option<Margin>,
    /// Requantization. `requant` has one entry; with a margin one for each number of counted
    /// taps, from 1 to all: `requant[n - 1]` is used where `n` taps are counted.
    pub post: Post,
}

/// The taps that an average counts: those inside the input, widened by this many rows and columns
/// (padding that counts). `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Margin {
    /// Above and left of the input.
    pub before: [usize; 2],
    /// Below and right of it.
    pub after: [usize; 2],
}
