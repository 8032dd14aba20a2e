//! The folded float network: the layers of [`network::Network`] before they have integers.
//!
//! Invariant: layers stand in execution order; tensor 0 is the input; each other tensor is the
//! output of exactly one layer. `Display` is its text form (`--emit folded`).

use ndarray::Array4;
use network::{Reduction, Shape, Window};
use std::fmt;

/// An activation tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatTensor {
    /// ONNX value name.
    pub name: String,
    /// Extent of one image.
    pub shape: Shape,
}

/// A network of float layers; tensors are named by index.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatNetwork {
    /// The ONNX graph's name.
    pub name: String,
    /// Every tensor, the input first.
    pub tensors: Vec<FloatTensor>,
    /// Tensors that the host reads.
    pub outputs: Vec<usize>,
    /// In execution order.
    pub layers: Vec<FloatLayer>,
    /// Nobody has read the weights: they are 0, and biases mean nothing.
    pub shapes_only: bool,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatLayer {
    /// ONNX node name (operator and output where the node has none).
    pub name: String,
    /// Index of the tensor that it makes.
    pub output: usize,
    /// How.
    pub op: FloatOp,
}

/// Operations, as in [`network::Op`].
#[derive(Clone, Debug, PartialEq)]
pub enum FloatOp {
    /// Convolution with everything that follows it.
    Conv(FloatConv),
    /// Pooling, addition, sub-sampling.
    Pool(FloatPool),
    /// Joins tensors along the channels.
    Concat(Vec<usize>),
}

/// A convolution.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatConv {
    /// Input tensor.
    pub input: usize,
    /// Where the kernel reads.
    pub window: Window,
    /// Channel groups.
    pub groups: usize,
    /// `[output channel, input channel of the group, kernel row, kernel column]`.
    pub weights: Array4<f32>,
    /// One per output channel.
    pub bias: Vec<f32>,
    /// What follows.
    pub post: FloatPost,
}

/// A window reduction per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatPool {
    /// Input tensor.
    pub input: usize,
    /// First output channel that the input's channel 0 becomes.
    pub channel_offset: usize,
    /// Where the window reads.
    pub window: Window,
    /// How a window becomes one number.
    pub reduction: Reduction,
    /// The sum is divided by this (an average's count, else 1).
    pub divisor: usize,
    /// What follows.
    pub post: FloatPost,
}

/// What follows a reduction: first the addition, then the activation function.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatPost {
    /// Second operand of an addition.
    pub residual: Option<View>,
    /// Activation function.
    pub activation: Activation,
}

impl FloatPost {
    /// Nothing follows.
    pub const NONE: Self = Self {
        residual: None,
        activation: Activation::None,
    };
}

/// A tensor as a shortcut sees it: sub-sampled, its channel 0 at `channel_offset`, else 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Tensor index.
    pub tensor: usize,
    /// Spatial step.
    pub stride: [usize; 2],
    /// First channel reached.
    pub channel_offset: usize,
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Identity.
    None,
    /// `min(max(x, low), high)`; infinite bounds do not clip.
    Clamp {
        /// Lower bound.
        low: f32,
        /// Upper bound.
        high: f32,
    },
    /// `x` for `x ≥ 0`, else `slope · x`.
    Leaky {
        /// Factor of negative values, in `0..1`.
        slope: f32,
    },
}

impl FloatNetwork {
    /// The names of the values that calibration must observe: every tensor except those whose
    /// scale is another's (max pooling and concatenation copy values).
    pub fn observed_values(&self) -> Vec<String> {
        let copied = |tensor: usize| {
            self.layers
                .iter()
                .any(|layer| layer.output == tensor && layer.op.copies_values())
        };
        (0..self.tensors.len())
            .filter(|&t| !copied(t))
            .map(|t| self.tensors[t].name.clone())
            .collect()
    }

    /// Multiply–accumulates of one image, padding included.
    pub fn n_macs(&self) -> u64 {
        self.layers
            .iter()
            .map(|layer| match &layer.op {
                FloatOp::Conv(conv) => {
                    let out = self.tensors[layer.output].shape;
                    conv.weights.len() as u64 * (out.height * out.width) as u64
                }
                FloatOp::Pool(_) | FloatOp::Concat(_) => 0,
            })
            .sum()
    }
}

impl FloatOp {
    /// Whether every output value is an input value (so that scale and format are inherited).
    pub fn copies_values(&self) -> bool {
        match self {
            Self::Conv(_) => false,
            Self::Pool(pool) => pool.reduction == Reduction::Max,
            Self::Concat(_) => true,
        }
    }

    /// The tensors that it reads.
    pub fn inputs(&self) -> Vec<usize> {
        let with = |input: usize, post: &FloatPost| {
            let mut all = vec![input];
            all.extend(post.residual.map(|view| view.tensor));
            all
        };
        match self {
            Self::Conv(conv) => with(conv.input, &conv.post),
            Self::Pool(pool) => with(pool.input, &pool.post),
            Self::Concat(inputs) => inputs.clone(),
        }
    }
}

impl fmt::Display for FloatNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensor = |t: usize| &self.tensors[t].name;
        let extent = |s: Shape| format!("{}x{}x{}", s.channels, s.height, s.width);
        writeln!(f, "network {}", self.name)?;
        writeln!(
            f,
            "input {} {}",
            self.tensors[0].name,
            extent(self.tensors[0].shape)
        )?;
        for layer in &self.layers {
            let made = &self.tensors[layer.output];
            write!(f, "{} {} = ", made.name, extent(made.shape))?;
            match &layer.op {
                FloatOp::Conv(conv) => {
                    write!(f, "conv {} {}", tensor(conv.input), text(&conv.window))?;
                    if conv.groups > 1 {
                        write!(f, " groups {}", conv.groups)?;
                    }
                    let peak = conv.weights.iter().fold(0f32, |m, w| m.max(w.abs()));
                    let bias = conv.bias.iter().fold(0f32, |m, b| m.max(b.abs()));
                    write!(f, " max|w| {peak:.6} max|b| {bias:.6}")?;
                    write_post(self, f, &conv.post)?;
                }
                FloatOp::Pool(pool) => {
                    let name = match pool.reduction {
                        Reduction::Max => "max",
                        Reduction::Sum => "sum",
                    };
                    write!(f, "{name} {} {}", tensor(pool.input), text(&pool.window))?;
                    if pool.divisor > 1 {
                        write!(f, " divided by {}", pool.divisor)?;
                    }
                    if pool.channel_offset > 0 {
                        write!(f, " channels from {}", pool.channel_offset)?;
                    }
                    write_post(self, f, &pool.post)?;
                }
                FloatOp::Concat(inputs) => {
                    write!(f, "concat")?;
                    for &input in inputs {
                        write!(f, " {}", tensor(input))?;
                    }
                }
            }
            writeln!(f, "  # {}", layer.name)?;
        }
        for &output in &self.outputs {
            writeln!(f, "output {}", tensor(output))?;
        }
        Ok(())
    }
}

fn write_post(net: &FloatNetwork, f: &mut fmt::Formatter<'_>, post: &FloatPost) -> fmt::Result {
    if let Some(view) = post.residual {
        write!(f, " + {}", net.tensors[view.tensor].name)?;
        if view.stride != [1, 1] {
            write!(f, " stride {}x{}", view.stride[0], view.stride[1])?;
        }
        if view.channel_offset > 0 {
            write!(f, " channels from {}", view.channel_offset)?;
        }
    }
    match post.activation {
        Activation::None => Ok(()),
        Activation::Clamp { low, high } => write!(f, " clamp {low}..{high}"),
        Activation::Leaky { slope } => write!(f, " leaky {slope}"),
    }
}

fn text(window: &Window) -> String {
    let [kh, kw] = window.kernel;
    let mut text = format!("{kh}x{kw}");
    for (name, pair, default) in [
        ("stride", window.stride, 1),
        ("dilation", window.dilation, 1),
        ("pad", window.pad, 0),
    ] {
        if pair != [default, default] {
            for part in [
                " ",
                name,
                " ",
                &pair[0].to_string(),
                "x",
                &pair[1].to_string(),
            ] {
                text += part;
            }
        }
    }
    text
}
