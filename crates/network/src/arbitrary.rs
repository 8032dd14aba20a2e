//! Random small networks for the tests of this and of other crates.
//!
//! Invariant: every network passes [`Network::verify`], its biases fit the accumulator that the
//! limits name, and a seed gives the same network on every machine (integers only).

use crate::{
    Bias, Conv, Layer, Margin, Network, Op, Part, Pool, Post, Reduction, Residual, Shape, Tensor,
    TensorId, Window,
};
use arith::{Format, Requant, Scale, SplitMix64};
use ndarray::{Array3, Array4};

/// What a random network may contain.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, one per feature"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most channels of a tensor.
    pub max_channels: usize,
    /// Most rows and columns of a tensor.
    pub max_extent: usize,
    /// Most layers before the last one, which is fully connected.
    pub max_layers: usize,
    /// Every bias fits this accumulator.
    pub accumulator_bits: u8,
    /// Grouped and depthwise convolutions.
    pub groups: bool,
    /// Half of the convolutions are depthwise, one output channel for each input channel.
    pub depthwise: bool,
    /// Strides over 1, dilations over 1, asymmetric padding.
    pub strides: bool,
    /// Second operands and their channel offsets.
    pub residuals: bool,
    /// Pooling, element-wise addition, sub-sampling.
    pub pools: bool,
    /// Concatenations.
    pub concats: bool,
    /// Leaky slopes.
    pub slopes: bool,
    /// The last tensor may be wider than 8 bits.
    pub wide_output: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_channels: 8,
            max_extent: 12,
            max_layers: 6,
            accumulator_bits: 16,
            groups: true,
            depthwise: false,
            strides: true,
            residuals: true,
            pools: true,
            concats: true,
            slopes: true,
            wide_output: true,
        }
    }
}

/// The network of a seed.
pub fn random_network(seed: u64, limits: Limits) -> Network {
    let mut rng = SplitMix64(seed);
    let shape = Shape {
        channels: rng.size(1, limits.max_channels),
        height: rng.size(1, limits.max_extent),
        width: rng.size(1, limits.max_extent),
    };
    let bits = if rng.one_in(3) {
        rng.between(2, 8) as u8
    } else {
        8
    };
    let format = Format {
        bits,
        signed: rng.one_in(2),
    };
    let n_layers = rng.size(0, limits.max_layers);
    let mut builder = Builder {
        rng,
        limits,
        tensors: Vec::new(),
        layers: Vec::new(),
    };
    builder.add_tensor(shape, format);
    while builder.layers.len() < n_layers {
        builder.add_layer();
    }
    builder.add_fully_connected();
    let mut outputs = vec![TensorId(builder.tensors.len() - 1)];
    if builder.rng.one_in(4) {
        outputs.push(TensorId(builder.rng.size(0, builder.tensors.len() - 1)));
        outputs.sort_unstable();
        outputs.dedup();
    }
    Network {
        name: format!("random-{seed}"),
        tensors: builder.tensors,
        input: TensorId(0),
        outputs,
        layers: builder.layers,
    }
}

/// A random image for a network; sometimes of extreme values only.
pub fn random_input(network: &Network, seed: u64) -> Array3<i32> {
    let tensor = network.tensor(network.input);
    let mut rng = SplitMix64(seed ^ 0x5EED);
    let (min, max) = (tensor.format.q_min(), tensor.format.q_max());
    let extreme = rng.one_in(4);
    Array3::from_shape_simple_fn(tensor.shape.dim(), || {
        if extreme {
            rng.pick(&[min, max])
        } else {
            rng.between(min.into(), max.into()) as i32
        }
    })
}

struct Builder {
    rng: SplitMix64,
    limits: Limits,
    tensors: Vec<Tensor>,
    layers: Vec<Layer>,
}

impl Builder {
    fn add_tensor(&mut self, shape: Shape, format: Format) -> TensorId {
        // Few scales, so that some tensors can be joined.
        let scale = Scale {
            mantissa: self.rng.pick(&[128, 200]),
            exponent: -10,
        };
        self.tensors.push(Tensor {
            name: format!("t{}", self.tensors.len()),
            shape,
            format,
            scale,
        });
        TensorId(self.tensors.len() - 1)
    }

    fn push(&mut self, shape: Shape, format: Format, op: Op) {
        let output = self.add_tensor(shape, format);
        self.layers.push(Layer {
            name: format!("layer{}", self.layers.len()),
            output,
            op,
        });
    }

    /// Mostly the newest tensor, sometimes any.
    fn any_tensor(&mut self) -> TensorId {
        let newest = self.tensors.len() - 1;
        TensorId(if self.rng.one_in(3) {
            self.rng.size(0, newest)
        } else {
            newest
        })
    }

    fn any_format(&mut self) -> Format {
        let bits = if self.rng.one_in(3) {
            self.rng.between(2, 8)
        } else {
            4
        };
        Format {
            bits: bits as u8,
            signed: self.rng.one_in(2),
        }
    }

    fn add_layer(&mut self) {
        match self.rng.size(0, 9) {
            0..=2 if self.limits.pools => self.add_pool(),
            3 if self.limits.concats => self.add_concat(),
            _ => self.add_conv(),
        }
    }

    fn add_conv(&mut self) {
        let input = self.any_tensor();
        let shape = self.tensors[input.0].shape;
        let (window, extent) = self.window(shape);
        let max = self.limits.max_channels;
        let divisors: Vec<usize> = (1..=shape.channels.min(max))
            .filter(|&g| shape.channels.is_multiple_of(g))
            .collect();
        let groups = if self.limits.groups && self.rng.one_in(2) {
            self.rng.pick(&divisors)
        } else {
            1
        };
        let mut channels = groups * self.rng.size(1, max / groups);
        let mut groups = groups;
        if self.limits.depthwise && self.rng.one_in(2) {
            (groups, channels) = (shape.channels, shape.channels);
        }
        let output = Shape {
            channels,
            height: extent[0],
            width: extent[1],
        };
        let format = self.any_format();
        self.push_conv(input, window, groups, output, format);
    }

    fn add_fully_connected(&mut self) {
        let input = TensorId(self.tensors.len() - 1);
        let kernel = self.tensors[input.0].shape.extent();
        let window = Window {
            kernel,
            ..Window::UNIT
        };
        let channels = self.rng.size(1, self.limits.max_channels);
        let output = Shape {
            channels,
            height: 1,
            width: 1,
        };
        let wide = self.limits.wide_output && self.rng.one_in(2);
        let bits = if wide { self.rng.between(9, 16) } else { 8 };
        self.push_conv(
            input,
            window,
            1,
            output,
            Format {
                bits: bits as u8,
                signed: true,
            },
        );
    }

    fn push_conv(
        &mut self,
        input: TensorId,
        window: Window,
        groups: usize,
        output: Shape,
        format: Format,
    ) {
        let source = &self.tensors[input.0];
        let (group_channels, operand_bits) = (source.shape.channels / groups, source.format.bits);
        let rng = &mut self.rng;
        let weight_bits = if rng.one_in(3) {
            rng.between(2, 8) as u8
        } else {
            4
        };
        let limit = 1i64 << (weight_bits - 1);
        let extreme = rng.one_in(8);
        let [rows, columns] = window.kernel;
        let dim = (output.channels, group_channels, rows, columns);
        let weights = Array4::from_shape_simple_fn(dim, || {
            let weight = rng.between(-limit, limit - 1);
            (if extreme && weight < 0 {
                -limit
            } else if extreme {
                limit - 1
            } else {
                weight
            }) as i8
        });
        let n_scales = if rng.one_in(2) { 1 } else { output.channels };
        let weight_scales = (0..n_scales)
            .map(|_| Scale {
                mantissa: rng.between(128, 255) as u8,
                exponent: -12,
            })
            .collect();
        let max_shift = i64::from(self.limits.accumulator_bits - 8);
        let common_shift = rng.between(0, max_shift.min(4)) as u8;
        let bias = (0..output.channels)
            .map(|_| {
                let any = rng.one_in(6);
                let shift = if any {
                    rng.between(0, max_shift) as u8
                } else {
                    common_shift
                };
                Bias {
                    mantissa: rng.between(-128, 127) as i16,
                    shift,
                }
            })
            .collect();
        let k = rows * columns * group_channels;
        // A sum of k products of about half the range each grows with the root of k.
        let bits = weight_bits + operand_bits - 3 + (k.ilog2() / 2) as u8;
        let n_requants = if rng.one_in(2) { 1 } else { output.channels };
        let post = self.post(output, format, bits, n_requants);
        let conv = Conv {
            input,
            window,
            groups,
            weight_bits,
            weights,
            weight_scales,
            bias,
            post,
        };
        self.push(output, format, Op::Conv(conv));
    }

    fn add_pool(&mut self) {
        let input = self.any_tensor();
        let source = self.tensors[input.0].clone();
        let reduction = self.rng.pick(&[Reduction::Max, Reduction::Sum]);
        let (window, extent) = match self.rng.size(0, 3) {
            // Element-wise, or a sub-sampling.
            0 => (Window::UNIT, source.shape.extent()),
            1 if self.limits.strides => {
                let stride = [self.rng.size(1, 2), self.rng.size(1, 2)];
                let window = Window {
                    stride,
                    ..Window::UNIT
                };
                let extent = [0, 1].map(|axis| source.shape.extent()[axis].div_ceil(stride[axis]));
                (window, extent)
            }
            // Global.
            2 if self.rng.one_in(2) => (
                Window {
                    kernel: source.shape.extent(),
                    ..Window::UNIT
                },
                [1, 1],
            ),
            _ => self.window(source.shape),
        };
        if reduction == Reduction::Max && !every_window_reads(window, source.shape, extent) {
            return;
        }
        let room = self
            .limits
            .max_channels
            .saturating_sub(source.shape.channels);
        let widen = self.limits.residuals && room > 0 && self.rng.one_in(4);
        let extra = if widen { self.rng.size(1, room) } else { 0 };
        let channel_offset = self.rng.size(0, extra);
        let channels = source.shape.channels + extra;
        let output = Shape {
            channels,
            height: extent[0],
            width: extent[1],
        };
        let format = self.any_format();
        let growth = if reduction == Reduction::Sum {
            window.n_taps().ilog2()
        } else {
            0
        };
        let margin = self.margin(reduction, window, source.shape, extent);
        let n_requants = margin.map_or(1, |_| window.n_taps());
        let post = self.post(
            output,
            format,
            source.format.bits + growth as u8,
            n_requants,
        );
        let pool = Pool {
            input,
            channel_offset,
            window,
            reduction,
            margin,
            post,
        };
        self.push(output, format, Op::Pool(pool));
    }

    /// Sometimes an average that leaves padding out, where every output then counts a tap.
    fn margin(
        &mut self,
        reduction: Reduction,
        window: Window,
        input: Shape,
        extent: [usize; 2],
    ) -> Option<Margin> {
        if reduction == Reduction::Max || self.rng.one_in(2) {
            return None;
        }
        let mut side = || [self.rng.size(0, 1), self.rng.size(0, 1)];
        let margin = Margin {
            before: side(),
            after: side(),
        };
        let counts = |axis: usize| {
            let of = |y| margin.n_counted(window, axis, y, input.extent()[axis]);
            (0..extent[axis]).all(|y| of(y) > 0)
        };
        (counts(0) && counts(1)).then_some(margin)
    }

    /// Joins views of whatever reaches far enough: copies where format and scale are the output's,
    /// else (or sometimes) re-scaled.
    fn add_concat(&mut self) {
        let first = self.any_tensor();
        let model = self.tensors[first.0].clone();
        let own = self.rng.one_in(3);
        let format = if own { self.any_format() } else { model.format };
        let mut extent = model.shape.extent();
        if self.limits.strides && self.rng.one_in(2) {
            let step = self.rng.size(1, 3);
            extent = extent.map(|extent| extent.div_ceil(step));
        }
        let mut parts = Vec::new();
        let mut channels = 0;
        for _ in 0..self.rng.size(1, 4) {
            let tensor = if parts.is_empty() {
                first
            } else {
                self.any_tensor()
            };
            if let Some(part) = self.part(tensor, extent, format, model.scale)
                && channels + part.n_channels <= self.limits.max_channels
            {
                channels += part.n_channels;
                parts.push(part);
            }
        }
        if parts.is_empty() {
            return;
        }
        let [height, width] = extent;
        let shape = Shape {
            channels,
            height,
            width,
        };
        self.push(shape, format, Op::Concat(parts));
        let output = self
            .tensors
            .last_mut()
            .expect("a layer has just been pushed");
        output.scale = model.scale;
    }

    /// A view of `tensor` with the extent, where there is one.
    fn part(
        &mut self,
        tensor: TensorId,
        extent: [usize; 2],
        format: Format,
        scale: Scale,
    ) -> Option<Part> {
        let source = self.tensors[tensor.0].clone();
        let rng = &mut self.rng;
        let channel = rng.size(0, source.shape.channels - 1);
        let channel = if rng.one_in(2) { 0 } else { channel };
        let n_channels = rng.size(1, source.shape.channels - channel);
        let mut part = Part {
            channel,
            n_channels,
            ..Part::whole(tensor, n_channels)
        };
        for (axis, to) in extent.into_iter().enumerate() {
            let from = source.shape.extent()[axis];
            let most = if self.limits.strides { 3 } else { 1 };
            let stride = (1..=most).rev().find(|&step| (to - 1) * step < from)?;
            part.stride[axis] = stride;
            part.offset[axis] = rng.size(0, from - 1 - (to - 1) * stride);
        }
        if (source.format, source.scale) != (format, scale) || rng.one_in(4) {
            let wanted = 7 + i64::from(source.format.bits) - i64::from(format.bits);
            part.requant = Requant {
                mantissa: rng.between(100, 255) as u8,
                shift: (wanted + rng.between(-1, 1)).clamp(0, 40) as u8,
            };
        }
        Some(part)
    }

    /// A window that fits, and the extent of what it makes.
    fn window(&mut self, input: Shape) -> (Window, [usize; 2]) {
        let mut window = Window::UNIT;
        let mut extent = input.extent();
        let square = self.rng.pick(&[1, 2, 3, 3, 3, 4, 5]);
        for (axis, extent) in extent.iter_mut().enumerate() {
            loop {
                let rng = &mut self.rng;
                let kernel = if rng.one_in(4) {
                    rng.size(1, 4)
                } else {
                    square
                };
                let exotic = self.limits.strides && rng.one_in(3);
                let (stride, dilation) = if exotic {
                    (rng.size(1, 3), rng.size(1, 2))
                } else {
                    (1, 1)
                };
                window.kernel[axis] = kernel;
                window.stride[axis] = stride;
                window.dilation[axis] = dilation;
                window.pad[axis] = rng.size(0, kernel / 2);
                let pad_after = if exotic {
                    rng.size(0, kernel / 2)
                } else {
                    window.pad[axis]
                };
                let made = window.output_extent(axis, input.extent()[axis], pad_after);
                if let Some(made) = made.filter(|&made| made <= self.limits.max_extent) {
                    *extent = made;
                    break;
                }
            }
        }
        (window, extent)
    }

    /// A requantization that brings numbers of about `bits` bits into the format.
    fn post(&mut self, output: Shape, format: Format, bits: u8, n_requants: usize) -> Post {
        let slopes = self.limits.slopes && format.signed && self.rng.one_in(4);
        let candidate = self.any_tensor();
        let with_residual = self.limits.residuals && self.rng.one_in(2);
        let rng = &mut self.rng;
        let wanted = 7 + i64::from(bits) - i64::from(format.bits);
        let requant: Vec<Requant> = (0..n_requants)
            .map(|_| {
                let shift = (wanted + rng.between(-1, 1)).clamp(0, 40) as u8;
                let mantissa = if rng.one_in(16) {
                    rng.between(0, 127)
                } else {
                    rng.between(128, 255)
                };
                Requant {
                    mantissa: mantissa as u8,
                    shift,
                }
            })
            .collect();
        let smallest = requant.iter().map(|r| r.shift).min().unwrap_or(0);
        let residual = if with_residual {
            self.residual(candidate, output, format, smallest)
        } else {
            None
        };
        let rng = &mut self.rng;
        let negative_slope = slopes.then(|| Requant {
            mantissa: rng.between(0, 255) as u8,
            shift: rng.between(7, 15) as u8,
        });
        let (mut q_min, mut q_max) = (format.q_min(), format.q_max());
        if rng.one_in(8) {
            q_max = rng.between(q_min.into(), q_max.into()) as i32;
            q_min = rng.between(q_min.into(), q_max.into()) as i32;
        } else if rng.one_in(4) {
            q_min = 0;
        }
        Post {
            requant,
            residual,
            negative_slope,
            q_min,
            q_max,
        }
    }

    /// `tensor` as a second operand, where it fits the output.
    fn residual(
        &mut self,
        tensor: TensorId,
        output: Shape,
        format: Format,
        max_shift: u8,
    ) -> Option<Residual> {
        let source = &self.tensors[tensor.0];
        let room = output.channels.checked_sub(source.shape.channels)?;
        let mut stride = [1, 1];
        for (axis, stride) in stride.iter_mut().enumerate() {
            let (from, to) = (source.shape.extent()[axis], output.extent()[axis]);
            *stride = (1..=3).rev().find(|&step| (to - 1) * step < from)?;
        }
        if stride != [1, 1] && !self.limits.strides {
            return None;
        }
        let wanted = 7 + i64::from(source.format.bits) - i64::from(format.bits);
        let rng = &mut self.rng;
        let shift = (wanted + rng.between(-1, 1)).clamp(0, max_shift.into()) as u8;
        let lost = (wanted - i64::from(shift)).clamp(0, 7);
        let mantissa = (rng.between(128, 255) >> lost) as u8;
        let channel_offset = rng.size(0, room);
        Some(Residual {
            tensor,
            stride,
            channel_offset,
            requant: Requant { mantissa, shift },
        })
    }
}

fn every_window_reads(window: Window, input: Shape, extent: [usize; 2]) -> bool {
    (0..2).all(|axis| {
        (0..extent[axis]).all(|output| {
            (0..window.kernel[axis]).any(|tap| {
                window
                    .source(axis, output, tap, input.extent()[axis])
                    .is_some()
            })
        })
    })
}
