//! What can be asked of the graph's types.
//!
//! Invariant: nothing here changes anything. Methods that multiply extents assume a network that
//! has passed [`Network::verify`], which bounds every product.

use crate::{
    Bias, Conv, Layer, Margin, Network, Op, Part, Pool, Post, Shape, Tensor, TensorId, Window,
};
use arith::Requant;
use std::{collections::BTreeSet, fmt};

impl TensorId {
    /// Position in [`Network::tensors`].
    pub const fn index(self) -> usize {
        self.0
    }
}

impl Shape {
    /// Number of elements.
    pub const fn len(self) -> usize {
        self.channels * self.height * self.width
    }

    /// Whether there is no element.
    pub const fn is_empty(self) -> bool {
        self.channels == 0 || self.height == 0 || self.width == 0
    }

    /// Number of elements, `None` when it does not fit `usize`.
    pub fn checked_len(self) -> Option<usize> {
        self.channels
            .checked_mul(self.height)?
            .checked_mul(self.width)
    }

    /// As `ndarray` wants it: channels, rows, columns.
    pub const fn dim(self) -> (usize, usize, usize) {
        (self.channels, self.height, self.width)
    }

    /// Rows and columns.
    pub const fn extent(self) -> [usize; 2] {
        [self.height, self.width]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}×{}", self.channels, self.height, self.width)
    }
}

impl Window {
    /// One element, no step: the window of element-wise operations.
    pub const UNIT: Self = Self {
        kernel: [1, 1],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [0, 0],
    };

    /// Number of taps.
    pub const fn n_taps(self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Rows (axis 0) or columns (axis 1) from the first tap to the last, both included.
    pub const fn reach(self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// Output extent along `axis` when `pad_after` zeros follow `input` elements; `None` when the
    /// window does not fit once, or the numbers do not fit `usize`.
    pub fn output_extent(self, axis: usize, input: usize, pad_after: usize) -> Option<usize> {
        let reach = self.kernel[axis]
            .checked_sub(1)?
            .checked_mul(self.dilation[axis])?
            .checked_add(1)?;
        let padded = input.checked_add(self.pad[axis])?.checked_add(pad_after)?;
        padded
            .checked_sub(reach)?
            .checked_div(self.stride[axis])?
            .checked_add(1)
    }

    /// Where a tap reads along `axis`; negative or beyond the input means padding.
    pub const fn position(self, axis: usize, output_index: usize, tap: usize) -> i64 {
        (output_index * self.stride[axis] + tap * self.dilation[axis]) as i64
            - self.pad[axis] as i64
    }

    /// Where a tap reads along `axis` of `extent` elements; `None` in the padding.
    pub fn source(
        self,
        axis: usize,
        output_index: usize,
        tap: usize,
        extent: usize,
    ) -> Option<usize> {
        usize::try_from(self.position(axis, output_index, tap))
            .ok()
            .filter(|&p| p < extent)
    }

    /// Elements of padding behind the input that `output` windows need; negative when that many
    /// input elements are never read.
    pub const fn pad_after(self, axis: usize, input: usize, output: usize) -> i64 {
        self.position(axis, output - 1, self.kernel[axis] - 1) + 1 - input as i64
    }
}

impl Part {
    /// A whole tensor of `n_channels`, copied.
    pub const fn whole(tensor: TensorId, n_channels: usize) -> Self {
        Self {
            tensor,
            channel: 0,
            n_channels,
            stride: [1, 1],
            offset: [0, 0],
            requant: Requant::IDENTITY,
        }
    }
}

impl Margin {
    /// Taps of one output that are counted along an axis of `extent` elements.
    pub fn n_counted(
        self,
        window: Window,
        axis: usize,
        output_index: usize,
        extent: usize,
    ) -> usize {
        (0..window.kernel[axis])
            .filter(|&tap| {
                let position = window.position(axis, output_index, tap);
                position >= -(self.before[axis] as i64)
                    && position < (extent + self.after[axis]) as i64
            })
            .count()
    }
}

impl Bias {
    /// The accumulator's initial value, exactly (before any check that it fits).
    pub const fn value(self) -> i64 {
        (self.mantissa as i64) << self.shift
    }
}

impl Post {
    /// The requantization of a convolution's output channel, or of a pool without a margin.
    pub fn requant_of(&self, channel: usize) -> Requant {
        self.requant[if self.requant.len() == 1 { 0 } else { channel }]
    }
}

impl Pool {
    /// The requantization of an output pixel; `extent` is that of the input.
    pub fn requant_at(&self, [y, x]: [usize; 2], extent: [usize; 2]) -> Requant {
        let Some(margin) = self.margin else {
            return self.post.requant_of(0);
        };
        let counted = |axis, index| margin.n_counted(self.window, axis, index, extent[axis]);
        self.post.requant[counted(0, y) * counted(1, x) - 1]
    }
}

impl Conv {
    /// Output channels.
    pub fn n_output_channels(&self) -> usize {
        self.weights.dim().0
    }

    /// Input channels that one output channel reads.
    pub fn n_group_channels(&self) -> usize {
        self.weights.dim().1
    }

    /// MAC steps of one output element, padding included (`k` runs below this).
    pub fn reduction_length(&self) -> usize {
        self.window.n_taps() * self.n_group_channels()
    }

    /// MACs of one image, those that read padding included.
    pub fn n_macs(&self, output: Shape) -> u64 {
        output.len() as u64 * self.reduction_length() as u64
    }

    /// The input channel that step `group_channel` of output channel `channel` reads.
    pub fn input_channel(&self, channel: usize, group_channel: usize) -> usize {
        channel / (self.n_output_channels() / self.groups) * self.n_group_channels() + group_channel
    }

    /// True when every channel has a filter of its own (one input channel per group).
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.n_group_channels() == 1
    }

    /// True for a depthwise convolution that makes one output channel of each input channel.
    pub fn is_plain_depthwise(&self) -> bool {
        self.is_depthwise() && self.n_output_channels() == self.groups
    }
}

impl Op {
    /// The tensors that it reads: first operand(s), then the residual.
    pub fn inputs(&self) -> Vec<TensorId> {
        let (first, post) = match self {
            Self::Conv(Conv { input, post, .. }) | Self::Pool(Pool { input, post, .. }) => {
                (*input, post)
            }
            Self::Concat(parts) => return parts.iter().map(|part| part.tensor).collect(),
        };
        std::iter::once(first)
            .chain(post.residual.map(|r| r.tensor))
            .collect()
    }

    /// What follows the reduction; a concatenation has nothing.
    pub const fn post(&self) -> Option<&Post> {
        match self {
            Self::Conv(conv) => Some(&conv.post),
            Self::Pool(pool) => Some(&pool.post),
            Self::Concat(_) => None,
        }
    }
}

impl Layer {
    /// The tensors that it reads: first operand(s), then the residual.
    pub fn inputs(&self) -> Vec<TensorId> {
        self.op.inputs()
    }

    /// The convolution, if it is one.
    pub const fn conv(&self) -> Option<&Conv> {
        match &self.op {
            Op::Conv(conv) => Some(conv),
            Op::Pool(_) | Op::Concat(_) => None,
        }
    }
}

impl Network {
    /// The tensor of an id.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// One name for each tensor, none twice and none empty: its own, or the first of `name_2`,
    /// `name_3`, … that is free.
    pub fn unique_names(&self) -> Vec<String> {
        let mut taken = BTreeSet::new();
        let free = |name: &String| {
            let numbered = (2u64..).map(|n| format!("{name}_{n}"));
            std::iter::once(name.clone())
                .chain(numbered)
                .find(|name| !name.is_empty() && taken.insert(name.clone()))
                .expect("numbers do not end")
        };
        self.tensors
            .iter()
            .map(|tensor| &tensor.name)
            .map(free)
            .collect()
    }

    /// The tensor that a layer makes.
    pub fn output_of(&self, layer: &Layer) -> &Tensor {
        self.tensor(layer.output)
    }

    /// Indices of the layers that read a tensor, ascending.
    pub fn consumers(&self, id: TensorId) -> Vec<usize> {
        (0..self.layers.len())
            .filter(|&i| self.layers[i].inputs().contains(&id))
            .collect()
    }

    /// Index of the layer that makes a tensor; `None` for the input.
    pub fn producer(&self, id: TensorId) -> Option<usize> {
        self.layers.iter().position(|layer| layer.output == id)
    }

    /// MACs of one image, those that read padding included.
    pub fn n_macs(&self) -> u64 {
        self.layers
            .iter()
            .filter_map(|layer| Some(layer.conv()?.n_macs(self.output_of(layer).shape)))
            .sum()
    }

    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.layers
            .iter()
            .filter_map(Layer::conv)
            .map(|conv| conv.weights.len())
            .sum()
    }
}
