//! The door: what a network must satisfy before anything computes with it.
//!
//! Invariant: `verify` itself neither panics nor allocates more than one flag per tensor, whatever
//! it is given; afterwards no extent, index or product of the oracle's formulas can overflow.

use crate::{
    Conv, Error, Fault, Layer, Margin, Network, Op, Part, Pool, Post, Reduction, Shape, Tensor,
    TensorId, Window,
};
use arith::{Requant, Scale};

/// Largest extent, stride, dilation, padding or channel count.
pub const MAX_EXTENT: usize = 1 << 16;
/// Most elements of one activation tensor.
pub const MAX_ELEMENTS: usize = 1 << 26;
/// Most weights of one layer.
pub const MAX_WEIGHTS: usize = 1 << 30;
/// Scales lie within `2^±` this: far from where a 64-bit float would lose them.
pub const MAX_SCALE_EXPONENT: i16 = 900;

/// Largest left shift that brings a residual to its channel's shift: what the post unit has.
pub const MAX_ALIGNMENT: u8 = 30;

/// Most taps of an average with a margin, which has a requantization for each number of them.
const MAX_COUNTED_TAPS: i64 = 1 << 10;
/// Largest shift of a negative slope, so that both shifts together stay under 63.
const MAX_SLOPE_SHIFT: u8 = 15;
/// `shift_right_rounding` takes magnitudes below this.
const PRODUCT_LIMIT: i128 = 1 << 62;

impl Network {
    /// Checks every rule of the graph's documentation.
    ///
    /// # Errors
    /// The first broken rule, with the layer or tensor that breaks it.
    pub fn verify(&self) -> Result<(), Error> {
        for (index, tensor) in self.tensors.iter().enumerate() {
            check_tensor(tensor).map_err(|fault| self.tensor_error(index, fault))?;
        }
        self.check_id("input", self.input).map_err(Error::Network)?;
        if self.outputs.is_empty() {
            return Err(Error::Network(Fault::Empty {
                what: "list of outputs",
            }));
        }
        for &output in &self.outputs {
            self.check_id("output", output).map_err(Error::Network)?;
        }
        let mut ready = vec![false; self.tensors.len()];
        ready[self.input.0] = true;
        for (index, layer) in self.layers.iter().enumerate() {
            self.check_layer(layer, &mut ready)
                .map_err(|fault| self.layer_error(index, fault))?;
        }
        match ready.iter().position(|&made| !made) {
            Some(index) => Err(self.tensor_error(index, Fault::NeverMade)),
            None => Ok(()),
        }
    }

    pub(crate) fn layer_error(&self, index: usize, fault: Fault) -> Error {
        Error::Layer {
            index,
            name: self.layers[index].name.clone(),
            fault,
        }
    }

    fn tensor_error(&self, index: usize, fault: Fault) -> Error {
        Error::Tensor {
            index,
            name: self.tensors[index].name.clone(),
            fault,
        }
    }

    fn check_id(&self, what: &'static str, id: TensorId) -> Result<&Tensor, Fault> {
        let n_tensors = self.tensors.len();
        self.tensors.get(id.0).ok_or(Fault::NoSuchTensor {
            what,
            tensor: id.0,
            n_tensors,
        })
    }

    fn check_layer(&self, layer: &Layer, ready: &mut [bool]) -> Result<(), Fault> {
        let output = self.check_id("output", layer.output)?;
        for id in layer.op.inputs() {
            self.check_id("operand", id)?;
            if !ready[id.0] {
                return Err(Fault::NotReady { tensor: id.0 });
            }
        }
        if std::mem::replace(&mut ready[layer.output.0], true) {
            return Err(Fault::MadeTwice {
                tensor: layer.output.0,
            });
        }
        match &layer.op {
            Op::Conv(conv) => self.check_conv(conv, output),
            Op::Pool(pool) => self.check_pool(pool, output),
            Op::Concat(parts) => self.check_concat(parts, output),
        }
    }

    fn check_conv(&self, conv: &Conv, output: &Tensor) -> Result<(), Fault> {
        let input = self.tensor(conv.input);
        let channels = output.shape.channels;
        range("operand width in bits", input.format.bits.into(), 2, 8)?;
        range("weight width in bits", conv.weight_bits.into(), 2, 8)?;
        check_window(conv.window)?;
        range("groups", conv.groups as i64, 1, MAX_EXTENT as i64)?;
        for channels in [input.shape.channels, channels] {
            if !channels.is_multiple_of(conv.groups) {
                return Err(Fault::Groups {
                    groups: conv.groups,
                    channels,
                });
            }
        }
        let (found_out, found_in, found_rows, found_columns) = conv.weights.dim();
        equal("output channels of the weights", found_out, channels)?;
        equal(
            "input channels of the weights",
            found_in,
            input.shape.channels / conv.groups,
        )?;
        equal(
            "kernel rows of the weights",
            found_rows,
            conv.window.kernel[0],
        )?;
        equal(
            "kernel columns of the weights",
            found_columns,
            conv.window.kernel[1],
        )?;
        range(
            "number of weights",
            conv.weights.len() as i64,
            1,
            MAX_WEIGHTS as i64,
        )?;
        let weight_max = (1i64 << (conv.weight_bits - 1)) - 1;
        let ends = |(low, high): (i8, i8), &weight: &i8| (low.min(weight), high.max(weight));
        let (low, high) = match conv.weights.as_slice() {
            Some(weights) => weights.iter().fold((0, 0), ends),
            None => conv.weights.iter().fold((0, 0), ends),
        };
        for weight in [low, high] {
            range("weight", weight.into(), -weight_max - 1, weight_max)?;
        }
        one_or_each("list of weight scales", conv.weight_scales.len(), channels)?;
        conv.weight_scales
            .iter()
            .try_for_each(|&scale| check_scale(scale))?;
        equal("number of biases", conv.bias.len(), channels)?;
        for (channel, bias) in conv.bias.iter().enumerate() {
            range("bias shift", bias.shift.into(), 0, 31)?;
            if i32::try_from(bias.value()).is_err() {
                return Err(Fault::Bias {
                    channel,
                    value: bias.value(),
                    width_bits: 32,
                });
            }
        }
        one_or_each("list of requantizations", conv.post.requant.len(), channels)?;
        self.check_post(&conv.post, 1 << 31, output)
    }

    fn check_pool(&self, pool: &Pool, output: &Tensor) -> Result<(), Fault> {
        let input = self.tensor(pool.input);
        check_window(pool.window)?;
        check_offset("input", pool.channel_offset, input.shape, output.shape)?;
        let n_requants = match pool.margin {
            None => 1,
            Some(margin) => {
                check_margin(margin, pool.window, input.shape, output.shape)?;
                pool.window.n_taps()
            }
        };
        equal(
            "number of requantizations",
            pool.post.requant.len(),
            n_requants,
        )?;
        let largest = largest_magnitude(input);
        let reduced = match pool.reduction {
            Reduction::Max => {
                for axis in 0..2 {
                    let extents = (input.shape.extent()[axis], output.shape.extent()[axis]);
                    check_no_empty_window(pool.window, axis, extents)?;
                }
                largest
            }
            Reduction::Sum => {
                // Kernel extents are at most 2^16 each and a value 16 bits: 48 bits in all.
                let sum = pool.window.n_taps() as i64 * largest;
                range("largest window sum", sum, 0, i32::MAX.into())?;
                sum
            }
        };
        self.check_post(&pool.post, reduced, output)
    }

    fn check_concat(&self, parts: &[Part], output: &Tensor) -> Result<(), Fault> {
        if parts.is_empty() {
            return Err(Fault::Empty {
                what: "list of joined tensors",
            });
        }
        let mut channels = 0usize;
        for part in parts {
            let source = self.tensor(part.tensor);
            let last = saturate(part.channel).saturating_add(saturate(part.n_channels));
            range(
                "number of channels of a part",
                saturate(part.n_channels),
                1,
                MAX_EXTENT as i64,
            )?;
            range(
                "last channel of a part",
                last - 1,
                0,
                source.shape.channels as i64 - 1,
            )?;
            for axis in 0..2 {
                let (stride, offset) = (part.stride[axis], part.offset[axis]);
                range("stride of a part", saturate(stride), 1, MAX_EXTENT as i64)?;
                range("offset of a part", saturate(offset), 0, MAX_EXTENT as i64)?;
                let last = (output.shape.extent()[axis] - 1) * stride + offset;
                let extent = source.shape.extent()[axis];
                range(
                    "last row or column of a part",
                    last as i64,
                    0,
                    extent as i64 - 1,
                )?;
            }
            range(
                "requantization shift",
                part.requant.shift.into(),
                0,
                Requant::MAX_SHIFT.into(),
            )?;
            channels = channels.saturating_add(part.n_channels);
        }
        equal(
            "channels of the joined tensors",
            channels,
            output.shape.channels,
        )
    }

    /// `reduced` bounds the magnitude of the number that is requantized.
    fn check_post(&self, post: &Post, reduced: i64, output: &Tensor) -> Result<(), Fault> {
        let (low, high) = (output.format.q_min().into(), output.format.q_max().into());
        range("lower clamp", post.q_min.into(), low, high)?;
        range("upper clamp", post.q_max.into(), low, high)?;
        if post.q_min > post.q_max {
            return Err(Fault::EmptyClamp {
                q_min: post.q_min,
                q_max: post.q_max,
            });
        }
        let slope_mantissa = post.negative_slope.map_or(1, |slope| slope.mantissa.max(1));
        if let Some(slope) = post.negative_slope {
            range(
                "shift of the negative slope",
                slope.shift.into(),
                0,
                MAX_SLOPE_SHIFT.into(),
            )?;
        }
        if let Some(residual) = &post.residual {
            range(
                "residual shift",
                residual.requant.shift.into(),
                0,
                Requant::MAX_SHIFT.into(),
            )?;
            let shape = self.tensor(residual.tensor).shape;
            check_offset("residual", residual.channel_offset, shape, output.shape)?;
            for axis in 0..2 {
                let stride = residual.stride[axis];
                range("residual stride", stride as i64, 1, MAX_EXTENT as i64)?;
                let last = (output.shape.extent()[axis] - 1) * stride;
                let extent = shape.extent()[axis];
                range(
                    "last residual row or column",
                    last as i64,
                    0,
                    extent as i64 - 1,
                )?;
            }
        }
        for (channel, requant) in post.requant.iter().enumerate() {
            let shift = requant.shift;
            range(
                "requantization shift",
                shift.into(),
                0,
                Requant::MAX_SHIFT.into(),
            )?;
            let mut product = i128::from(reduced) * i128::from(requant.mantissa);
            if let Some(residual) = &post.residual {
                let up = shift.checked_sub(residual.requant.shift);
                let Some(up) = up.filter(|&up| up <= MAX_ALIGNMENT) else {
                    let residual = residual.requant.shift;
                    return Err(Fault::ResidualShift {
                        residual,
                        shift,
                        channel,
                    });
                };
                let largest = i128::from(largest_magnitude(self.tensor(residual.tensor)));
                product += (largest * i128::from(residual.requant.mantissa)) << up;
            }
            if product * i128::from(slope_mantissa) >= PRODUCT_LIMIT {
                return Err(Fault::ProductTooWide { channel });
            }
        }
        Ok(())
    }
}

fn check_tensor(tensor: &Tensor) -> Result<(), Fault> {
    let Shape {
        channels,
        height,
        width,
    } = tensor.shape;
    range("channels", saturate(channels), 1, MAX_EXTENT as i64)?;
    range("height", saturate(height), 1, MAX_EXTENT as i64)?;
    range("width", saturate(width), 1, MAX_EXTENT as i64)?;
    range(
        "number of elements",
        tensor.shape.len() as i64,
        1,
        MAX_ELEMENTS as i64,
    )?;
    range("format width in bits", tensor.format.bits.into(), 2, 16)?;
    check_scale(tensor.scale)
}

fn check_scale(scale: Scale) -> Result<(), Fault> {
    range("scale mantissa", scale.mantissa.into(), 128, 255)?;
    let limit = i64::from(MAX_SCALE_EXPONENT);
    range("scale exponent", scale.exponent.into(), -limit, limit)
}

fn check_window(window: Window) -> Result<(), Fault> {
    for axis in 0..2 {
        range(
            "kernel extent",
            saturate(window.kernel[axis]),
            1,
            MAX_EXTENT as i64,
        )?;
        range(
            "stride",
            saturate(window.stride[axis]),
            1,
            MAX_EXTENT as i64,
        )?;
        range(
            "dilation",
            saturate(window.dilation[axis]),
            1,
            MAX_EXTENT as i64,
        )?;
        range("padding", saturate(window.pad[axis]), 0, MAX_EXTENT as i64)?;
    }
    Ok(())
}

/// Every output of an average counts a tap.
fn check_margin(margin: Margin, window: Window, input: Shape, output: Shape) -> Result<(), Fault> {
    range(
        "taps of an average with a margin",
        saturate(window.kernel[0]).saturating_mul(saturate(window.kernel[1])),
        1,
        MAX_COUNTED_TAPS,
    )?;
    for axis in 0..2 {
        for extent in [margin.before[axis], margin.after[axis]] {
            range("margin", saturate(extent), 0, MAX_EXTENT as i64)?;
        }
        let extent = input.extent()[axis];
        let empty = (0..output.extent()[axis])
            .find(|&index| margin.n_counted(window, axis, index, extent) == 0);
        if let Some(output) = empty {
            return Err(Fault::EmptyWindow { axis, output });
        }
    }
    Ok(())
}

/// A tensor placed at `offset` lies inside the output's channels.
fn check_offset(
    what: &'static str,
    offset: usize,
    operand: Shape,
    output: Shape,
) -> Result<(), Fault> {
    let what = if what == "input" {
        "channel offset"
    } else {
        "channel offset of the residual"
    };
    let room = output.channels as i64 - operand.channels as i64;
    range(what, saturate(offset), 0, room)
}

/// `extents` are those of the input and the output. The first tap at or behind the input's first
/// element must also be a tap of the kernel and lie before the input's end.
fn check_no_empty_window(
    window: Window,
    axis: usize,
    extents: (usize, usize),
) -> Result<(), Fault> {
    let (input, outputs) = extents;
    for output in 0..outputs {
        let before = window.pad[axis].saturating_sub(output * window.stride[axis]);
        let tap = before.div_ceil(window.dilation[axis]);
        if tap >= window.kernel[axis] || window.source(axis, output, tap, input).is_none() {
            return Err(Fault::EmptyWindow { axis, output });
        }
    }
    Ok(())
}

fn largest_magnitude(tensor: &Tensor) -> i64 {
    let format = tensor.format;
    i64::from(format.q_max()).max(-i64::from(format.q_min()))
}

fn saturate(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn range(what: &'static str, value: i64, min: i64, max: i64) -> Result<(), Fault> {
    if value < min || value > max {
        return Err(Fault::Range {
            what,
            value,
            min,
            max,
        });
    }
    Ok(())
}

fn equal(what: &'static str, found: usize, needed: usize) -> Result<(), Fault> {
    if found != needed {
        return Err(Fault::Mismatch {
            what,
            found,
            needed,
        });
    }
    Ok(())
}

fn one_or_each(what: &'static str, found: usize, channels: usize) -> Result<(), Fault> {
    if found != 1 && found != channels {
        return Err(Fault::Length {
            what,
            found,
            channels,
        });
    }
    Ok(())
}
