//! The lowering of each ONNX operator on activations.
//!
//! Invariant: kernels, strides and dilations are at least 1 and every window of an output lies
//! over at least one input element.

use crate::Error;
use crate::constant_fold as fold_op;
use crate::float::Activation;
use crate::import::{Binding, Importer, Node, Operand};
use crate::raw::RawOp;
use ndarray::Array4;
use network::{Reduction, Shape, Window};

impl Importer {
    /// Lowers one operator.
    pub(crate) fn lower(&mut self, node: &Node<'_>) -> Result<(), Error> {
        match node.proto.op_type.as_str() {
            "Conv" => self.conv(node),
            "BatchNormalization" => self.batch_norm(node),
            "Gemm" | "MatMul" => self.gemm(node),
            "Add" => self.add(node),
            "Relu" => self.function(
                node,
                Activation::Clamp {
                    low: 0.0,
                    high: f32::INFINITY,
                },
            ),
            "Clip" => self.clip(node),
            "LeakyRelu" => self.leaky_relu(node),
            "MaxPool" => self.pool(node, Reduction::Max),
            "AveragePool" => self.pool(node, Reduction::Sum),
            "GlobalAveragePool" => self.global_pool(node, Reduction::Sum, true),
            "GlobalMaxPool" => self.global_pool(node, Reduction::Max, true),
            "ReduceMean" => self.reduce_mean(node),
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" | "Identity" | "Dropout" => {
                let x = self.activation(node, 0)?;
                let dims = self.relabel(node, &x.dims)?;
                self.bind(
                    node,
                    Binding::Activation {
                        value: x.value,
                        dims,
                    },
                )
            }
            "Transpose" => self.transpose(node),
            "Concat" => self.concat(node),
            "Slice" => self.slice(node),
            "Pad" => self.pad(node),
            "Softmax" | "LogSoftmax" => {
                let x = self.activation(node, 0)?;
                self.host_nodes.push(node.name.clone());
                self.bind(node, Binding::Host(x.value))
            }
            "DequantizeLinear" | "QuantizeLinear" => Err(node.unsupported(
                "on activations: give the float model, only weights may be quantized",
            )),
            "SpaceToDepth" => Err(node
                .unsupported("the machine has no data rearrangement yet: cut the model before it")),
            _ => Err(node.unsupported(
                "replace it by convolutions, pooling, additions and clamps, or cut the model \
                 before it and leave the rest to the host",
            )),
        }
    }

    fn conv(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.image(node, 0)?;
        let weights = self.needed(node, 1)?;
        let floats = weights
            .to_floats()
            .ok_or_else(|| node.error("weights must be real"))?;
        let &[n_out, n_in, kh, kw] = weights.dims.as_slice() else {
            return Err(node.error(format!(
                "weights have dims {:?}: only 2-D convolutions are supported",
                weights.dims
            )));
        };
        let groups = usize::try_from(node.int("group", 1)).unwrap_or(0);
        let fits = groups > 0
            && n_out > 0
            && n_out.is_multiple_of(groups)
            && n_in.checked_mul(groups) == Some(x.shape.channels);
        if !fits {
            return Err(node.error(format!(
                "weights {:?} in {groups} groups do not fit {} input channels",
                weights.dims, x.shape.channels
            )));
        }
        if let Some(kernel) = node.ints("kernel_shape")
            && kernel != [kh as i64, kw as i64]
        {
            return Err(node.error(format!("kernel_shape {kernel:?} but weights {kh}x{kw}")));
        }
        let (window, [height, width]) = window(node, x.shape, [kh, kw], false)?;
        let bias = self.bias(node, 2, n_out)?;
        let weights = Array4::from_shape_vec((n_out, n_in, kh, kw), floats)
            .map_err(|e| node.error(e.to_string()))?;
        let shape = Shape {
            channels: n_out,
            height,
            width,
        };
        let op = RawOp::Conv {
            input: x.value,
            window,
            groups,
            weights,
            bias,
        };
        self.emit(node, shape, vec![1, n_out, height, width], op)
    }

    /// An optional operand with one real number per channel (or one for all).
    fn bias(&self, node: &Node<'_>, index: usize, n: usize) -> Result<Vec<f32>, Error> {
        let Some(bias) = self.constant(node, index)? else {
            return Ok(vec![0.0; n]);
        };
        match bias.as_floats() {
            Some(v) if v.len() == n => Ok(v.to_vec()),
            Some(&[one]) => Ok(vec![one; n]),
            _ => Err(node.error(format!("bias has dims {:?}, {n} channels", bias.dims))),
        }
    }

    fn batch_norm(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.activation(node, 0)?;
        let n = x.shape.channels;
        if node.int("training_mode", 0) != 0 || node.int("spatial", 1) != 1 {
            return Err(node.error("training_mode and spatial = 0 are not supported"));
        }
        if x.dims.get(1) != Some(&n) {
            return Err(node.error(format!("reads {:?}: channels must be axis 1", x.dims)));
        }
        let [gamma, beta, mean, variance] =
            [1, 2, 3, 4].map(|index| match self.constant(node, index) {
                Ok(Some(c)) => match c.as_floats() {
                    Some(v) if v.len() == n => Ok(v.to_vec()),
                    _ => Err(node.error(format!(
                        "input {index} has dims {:?} for {n} channels",
                        c.dims
                    ))),
                },
                Ok(None) => Err(node.error(format!("input {index} absent"))),
                Err(e) => Err(e),
            });
        let (gamma, shift, mean, variance) = (gamma?, beta?, mean?, variance?);
        let epsilon = node.float("epsilon", 1e-5)?;
        let scale: Vec<f32> = gamma
            .iter()
            .zip(&variance)
            .map(|(g, v)| g / (v + epsilon).sqrt())
            .collect();
        if let Some(c) = scale.iter().position(|s| !s.is_finite()) {
            return Err(node.error(format!(
                "channel {c}: variance {} + epsilon {epsilon} must be positive",
                variance[c]
            )));
        }
        let op = RawOp::Affine {
            input: x.value,
            scale,
            mean,
            shift,
        };
        self.emit(node, x.shape, x.dims, op)
    }

    /// `Gemm` and `MatMul` by a constant: a convolution whose kernel covers its input.
    fn gemm(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.activation(node, 0)?;
        let matrix = self.needed(node, 1)?;
        let unread = matrix.is_unread();
        let floats = matrix
            .as_floats()
            .or(unread.then_some(&[]))
            .ok_or_else(|| node.error("weights must be real"))?;
        let &[rows, columns] = matrix.dims.as_slice() else {
            return Err(node.error(format!("weights have dims {:?}, not 2-D", matrix.dims)));
        };
        let transposed = node.int("transB", 0) != 0;
        let (k, n) = if transposed {
            (columns, rows)
        } else {
            (rows, columns)
        };
        let Shape {
            channels,
            height,
            width,
        } = x.shape;
        let reduced = if node.int("transA", 0) != 0 {
            x.dims.first()
        } else {
            x.dims.last()
        };
        if reduced != Some(&k) || x.dims.iter().product::<usize>() != k || n == 0 {
            return Err(node.error(format!(
                "multiplies {:?} by {:?}: one vector of {k} elements is needed",
                x.dims, matrix.dims
            )));
        }
        let alpha = node.float("alpha", 1.0)?;
        let beta = node.float("beta", 1.0)?;
        let at = |o: usize, i: usize| {
            if transposed {
                floats[o * k + i]
            } else {
                floats[i * n + o]
            }
        };
        let extents = (n, channels, height, width);
        let weights = if unread {
            Array4::zeros(extents)
        } else {
            Array4::from_shape_fn(extents, |(o, c, y, x)| {
                alpha * at(o, (c * height + y) * width + x)
            })
        };
        let bias = if node.proto.op_type == "Gemm" {
            self.bias(node, 2, n)?
                .into_iter()
                .map(|b| beta * b)
                .collect()
        } else {
            vec![0.0; n]
        };
        if !unread && weights.iter().chain(&bias).any(|v| !v.is_finite()) {
            return Err(node.error(format!(
                "alpha {alpha} or beta {beta} overflows the weights"
            )));
        }
        let kernel = [height, width];
        let window = Window {
            kernel,
            stride: [1, 1],
            dilation: [1, 1],
            pad: [0, 0],
        };
        let mut dims = x.dims;
        match dims.last_mut() {
            Some(last) if node.int("transA", 0) == 0 => *last = n,
            _ => dims = vec![1, n],
        }
        let shape = Shape {
            channels: n,
            height: 1,
            width: 1,
        };
        let op = RawOp::Conv {
            input: x.value,
            window,
            groups: 1,
            weights,
            bias,
        };
        self.emit(node, shape, dims, op)
    }

    fn add(&mut self, node: &Node<'_>) -> Result<(), Error> {
        for (x, c) in [(0, 1), (1, 0)] {
            if self.is_constant(node, c)? {
                return self.add_constant(node, x, c);
            }
        }
        let (a, b) = (self.activation(node, 0)?, self.activation(node, 1)?);
        if a.dims != b.dims || a.shape != b.shape {
            return Err(node.error(format!(
                "adds {:?} and {:?}: operands of one shape are needed",
                a.dims, b.dims
            )));
        }
        self.emit(node, a.shape, a.dims, RawOp::Add(a.value, b.value))
    }

    fn add_constant(&mut self, node: &Node<'_>, x: usize, c: usize) -> Result<(), Error> {
        let x = self.activation(node, x)?;
        let constant = self.needed(node, c)?;
        let floats = constant
            .as_floats()
            .ok_or_else(|| node.error("constant must be real"))?;
        let n = x.shape.channels;
        let rank = x.dims.len();
        // Dims are aligned at the right; only the channel axis may be longer than 1.
        let per_channel = floats.len() == n
            && constant.dims.len() <= rank
            && x.dims.get(1) == Some(&n)
            && (constant.dims.iter().enumerate())
                .all(|(i, &d)| d == 1 || i + rank - constant.dims.len() == 1);
        let shift = match floats {
            &[one] => vec![one; n],
            _ if per_channel => floats.to_vec(),
            _ => {
                return Err(node.error(format!(
                    "adds a constant {:?} to {:?}: one number per channel is needed",
                    constant.dims, x.dims
                )));
            }
        };
        let op = RawOp::Affine {
            input: x.value,
            scale: vec![1.0; n],
            mean: vec![0.0; n],
            shift,
        };
        self.emit(node, x.shape, x.dims, op)
    }

    fn function(&mut self, node: &Node<'_>, function: Activation) -> Result<(), Error> {
        let x = self.activation(node, 0)?;
        self.emit(node, x.shape, x.dims, RawOp::Activation(x.value, function))
    }

    fn clip(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let bound = |this: &Self, index, name, default: f32| match this.constant(node, index)? {
            None => node.float(name, default),
            Some(c) => c
                .scalar()
                .map(|v| v as f32)
                .ok_or_else(|| node.error("bounds are scalars")),
        };
        let low = bound(self, 1, "min", f32::NEG_INFINITY)?;
        let high = bound(self, 2, "max", f32::INFINITY)?;
        if low > 0.0 || high <= 0.0 {
            return Err(node.error(format!("clips to {low}..{high}: the range must contain 0")));
        }
        self.function(node, Activation::Clamp { low, high })
    }

    fn leaky_relu(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let slope = node.float("alpha", 0.01)?;
        if !(0.0..=1.0).contains(&slope) {
            return Err(node.error(format!("slope {slope} is outside 0..=1")));
        }
        let function = if slope == 0.0 {
            Activation::Clamp {
                low: 0.0,
                high: f32::INFINITY,
            }
        } else if slope >= 1.0 {
            Activation::None
        } else {
            Activation::Leaky { slope }
        };
        self.function(node, function)
    }

    fn pool(&mut self, node: &Node<'_>, reduction: Reduction) -> Result<(), Error> {
        let x = self.image(node, 0)?;
        let kernel = pair(node, "kernel_shape", None)?;
        let ceil = node.int("ceil_mode", 0) != 0;
        let (window, [height, width]) = window(node, x.shape, kernel, ceil)?;
        let padded = {
            let need = |out: usize, d: usize| {
                (out - 1) * window.stride[d] + (kernel[d] - 1) * window.dilation[d] + 1
            };
            window.pad != [0, 0]
                || need(height, 0) > x.shape.height
                || need(width, 1) > x.shape.width
        };
        if reduction == Reduction::Sum && padded && (ceil || node.int("count_include_pad", 0) == 0)
        {
            return Err(node.error(
                "an average that leaves padding out of its count is not supported: \
                 export with count_include_pad = 1, ceil_mode = 0, or without padding",
            ));
        }
        if let Some(d) = (0..2).find(|&d| window.pad[d] > (kernel[d] - 1) * window.dilation[d]) {
            return Err(node.error(format!("pad {} hides a whole window", window.pad[d])));
        }
        let divisor = if reduction == Reduction::Sum {
            kernel[0] * kernel[1]
        } else {
            1
        };
        let shape = Shape {
            height,
            width,
            ..x.shape
        };
        let op = RawOp::Pool {
            input: x.value,
            window,
            reduction,
            divisor,
        };
        self.emit(node, shape, vec![1, shape.channels, height, width], op)
    }

    fn global_pool(
        &mut self,
        node: &Node<'_>,
        reduction: Reduction,
        keep: bool,
    ) -> Result<(), Error> {
        let x = self.image(node, 0)?;
        let Shape {
            channels,
            height,
            width,
        } = x.shape;
        let window = Window {
            kernel: [height, width],
            stride: [1, 1],
            dilation: [1, 1],
            pad: [0, 0],
        };
        let divisor = if reduction == Reduction::Sum {
            height * width
        } else {
            1
        };
        let dims = if keep {
            vec![1, channels, 1, 1]
        } else {
            vec![1, channels]
        };
        let op = RawOp::Pool {
            input: x.value,
            window,
            reduction,
            divisor,
        };
        self.emit(
            node,
            Shape {
                channels,
                height: 1,
                width: 1,
            },
            dims,
            op,
        )
    }

    fn reduce_mean(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.image(node, 0)?;
        let axes = self.ints(node, 1, "axes")?.unwrap_or_default();
        let mut resolved: Vec<usize> = axes
            .iter()
            .map(|&a| fold_op::axis(a, x.dims.len()).map_err(|e| node.error(e)))
            .collect::<Result<_, _>>()?;
        resolved.sort_unstable();
        if resolved != [2, 3] {
            return Err(node.error(format!("reduces axes {axes:?}: only H and W (2, 3)")));
        }
        self.global_pool(node, Reduction::Sum, node.int("keepdims", 1) != 0)
    }

    /// A permutation that leaves the order of the extents above 1 moves no data.
    fn transpose(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.activation(node, 0)?;
        let perm = fold_op::permutation(node.ints("perm").unwrap_or_default(), x.dims.len())
            .map_err(|e| node.error(e))?;
        let moved: Vec<usize> = perm.iter().copied().filter(|&p| x.dims[p] > 1).collect();
        if !moved.is_sorted() {
            return Err(node.unsupported(&format!(
                "perm {perm:?} of {:?} moves data; only relabelling is supported",
                x.dims
            )));
        }
        let dims = perm.iter().map(|&p| x.dims[p]).collect();
        self.bind(
            node,
            Binding::Activation {
                value: x.value,
                dims,
            },
        )
    }

    fn concat(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let all: Vec<Operand> = (0..node.proto.input.len())
            .map(|i| self.activation(node, i))
            .collect::<Result<_, _>>()?;
        let first = &all[0];
        let at = fold_op::axis(node.int("axis", 1), first.dims.len()).map_err(|e| node.error(e))?;
        let mut channels = 0usize;
        for x in &all {
            let same = at == 1
                && x.dims.len() == first.dims.len()
                && x.dims.get(1) == Some(&x.shape.channels)
                && x.dims
                    .iter()
                    .zip(&first.dims)
                    .enumerate()
                    .all(|(d, (a, b))| d == 1 || a == b)
                && (x.shape.height, x.shape.width) == (first.shape.height, first.shape.width);
            if !same {
                return Err(node.error(format!(
                    "joins {:?} and {:?} along axis {at}: only channels of equal images",
                    first.dims, x.dims
                )));
            }
            channels += x.shape.channels;
        }
        let mut dims = first.dims.clone();
        dims[1] = channels;
        let shape = Shape {
            channels,
            ..first.shape
        };
        let op = RawOp::Concat(all.iter().map(|x| x.value).collect());
        self.emit(node, shape, dims, op)
    }

    /// Sub-sampling from the first row and column.
    fn slice(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.activation(node, 0)?;
        let mut stride = [1, 1];
        let mut dims = x.dims.clone();
        for range in self.slice_operands(node, &x.dims)? {
            let extent = x.dims[range.axis];
            let step = usize::try_from(range.step).unwrap_or(0).min(extent);
            let whole = step > 0 && range.first == 0 && range.count == extent.div_ceil(step);
            if !whole || (step > 1 && (range.axis < 2 || x.dims.len() != 4)) {
                return Err(node.unsupported(&format!(
                    "only a step over all rows and columns is; this takes {} elements from {} \
                     of axis {} of {:?}",
                    range.count, range.first, range.axis, x.dims
                )));
            }
            if step > 1 {
                stride[range.axis - 2] = step;
                dims[range.axis] = range.count;
            }
        }
        if stride == [1, 1] {
            return self.bind(
                node,
                Binding::Activation {
                    value: x.value,
                    dims,
                },
            );
        }
        let x = self.image(node, 0)?;
        let shape = Shape {
            height: dims[2],
            width: dims[3],
            ..x.shape
        };
        self.emit(
            node,
            shape,
            dims,
            RawOp::Sample {
                input: x.value,
                stride,
            },
        )
    }

    /// Zero channels before and behind.
    fn pad(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.activation(node, 0)?;
        let pads = self.ints(node, 1, "pads")?.unwrap_or_default();
        let value = match self.constant(node, 2)? {
            Some(c) => c.scalar().unwrap_or(f64::NAN),
            None => f64::from(node.float("value", 0.0)?),
        };
        let axes = self.ints(node, 3, "axes")?;
        let rank = x.dims.len();
        let n = axes.as_ref().map_or(rank, Vec::len);
        let constant = node.text("mode", "constant") == "constant" && value == 0.0;
        if !constant || pads.len() != 2 * n {
            return Err(node.unsupported("only padding by constant 0, two pads per axis, is"));
        }
        let mut channel = [0, 0];
        for i in 0..n {
            let at = axes.as_ref().map_or(i as i64, |axes| axes[i]);
            let at = fold_op::axis(at, rank).map_err(|e| node.error(e))?;
            let ends = [pads[i], pads[n + i]].map(|pad| usize::try_from(pad).ok());
            match ends {
                [Some(0), Some(0)] => {}
                [Some(before), Some(behind)]
                    if at == 1 && x.dims[1] == x.shape.channels && before + behind < 1 << 24 =>
                {
                    channel = [before, behind];
                }
                _ => {
                    return Err(node.unsupported(&format!(
                        "only zero channels may be added, pads are {pads:?}: give rows and \
                         columns to the next Conv's pads"
                    )));
                }
            }
        }
        if channel == [0, 0] {
            return self.bind(
                node,
                Binding::Activation {
                    value: x.value,
                    dims: x.dims,
                },
            );
        }
        let channels = x.shape.channels + channel[0] + channel[1];
        let mut dims = x.dims;
        dims[1] = channels;
        let op = RawOp::PadChannels {
            input: x.value,
            before: channel[0],
        };
        self.emit(
            node,
            Shape {
                channels,
                ..x.shape
            },
            dims,
            op,
        )
    }
}

/// Two positive extents from an attribute.
fn pair(node: &Node<'_>, name: &str, default: Option<usize>) -> Result<[usize; 2], Error> {
    match (node.ints(name), default) {
        (Some(&[y, x]), _) if (1..=1 << 16).contains(&y) && (1..=1 << 16).contains(&x) => {
            Ok([y as usize, x as usize])
        }
        (None, Some(default)) => Ok([default; 2]),
        (given, _) => Err(node.error(format!("{name} {given:?} must be two numbers in 1..=65536"))),
    }
}

/// Window and output extent (`ONNX` Conv and pool operators).
fn window(
    node: &Node<'_>,
    input: Shape,
    kernel: [usize; 2],
    ceil: bool,
) -> Result<(Window, [usize; 2]), Error> {
    let mut stride = pair(node, "strides", Some(1))?;
    let mut dilation = pair(node, "dilations", Some(1))?;
    let given = match node.ints("pads") {
        None => [0; 4],
        Some(pads) => {
            let pads: Option<Vec<usize>> = pads
                .iter()
                .map(|&p| usize::try_from(p).ok().filter(|&p| p <= 1 << 16))
                .collect();
            pads.and_then(|pads| pads.try_into().ok())
                .ok_or_else(|| node.error("pads must be four numbers in 0..=65536".to_string()))?
        }
    };
    let auto_pad = node.text("auto_pad", "NOTSET");
    let mut pad = [0; 2];
    let mut out = [0; 2];
    for (d, extent) in [input.height, input.width].into_iter().enumerate() {
        if kernel[d] == 0 || kernel[d] > 1 << 16 {
            return Err(node.error(format!("kernel extent {} is outside 1..=65536", kernel[d])));
        }
        let reach = (kernel[d] - 1) * dilation[d] + 1;
        let (before, behind) = match auto_pad {
            "NOTSET" | "" => (given[d], given[d + 2]),
            "VALID" => (0, 0),
            "SAME_UPPER" | "SAME_LOWER" => {
                let count = extent.div_ceil(stride[d]);
                let total = ((count - 1) * stride[d] + reach).saturating_sub(extent);
                let small = total / 2;
                if auto_pad == "SAME_UPPER" {
                    (small, total - small)
                } else {
                    (total - small, small)
                }
            }
            other => return Err(node.error(format!("auto_pad {other} is unknown"))),
        };
        let room = (extent + before + behind)
            .checked_sub(reach)
            .ok_or_else(|| {
                node.error(format!(
                    "kernel reaches over {reach}, the padded input has {}",
                    extent + before + behind
                ))
            })?;
        pad[d] = before;
        out[d] = room / stride[d] + 1;
        // ONNX counts a further window only if it starts inside the input or the padding before it.
        if ceil && !room.is_multiple_of(stride[d]) && out[d] * stride[d] < extent + before {
            out[d] += 1;
        }
        // A step that is never taken is written as 1, so that exporters' variants are equal.
        if out[d] == 1 {
            stride[d] = 1;
        }
        if kernel[d] == 1 {
            dilation[d] = 1;
        }
    }
    Ok((
        Window {
            kernel,
            stride,
            dilation,
            pad,
        },
        out,
    ))
}
