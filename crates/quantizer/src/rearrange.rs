//! Operators that only move elements: reshapes, transposes, slices, splits, concatenations.
//!
//! Invariant: none of them computes. Where the result is an image whose channels are strided views
//! of tensors it becomes a [`RawOp::Concat`], which folding merges into the one that reads it; where
//! it is not, it waits in its binding for the next operator that moves elements.

use crate::arrangement::{Arrangement, FloatPart};
use crate::import::{Binding, Importer, Node, Operand};
use crate::raw::RawOp;
use crate::{Error, constant_fold as fold_op};
use network::Shape;

impl Importer {
    /// An operand as a value in some order, with its dims; the order is absent where dims cut an
    /// axis of the tensor apart in a way that no arrangement has.
    fn arranged(
        &self,
        node: &Node<'_>,
        index: usize,
    ) -> Result<(usize, Vec<usize>, Option<Arrangement>), Error> {
        if let Binding::Rearranged {
            value, arrangement, ..
        } = self.binding(node, index)?
        {
            return Ok((*value, arrangement.dims(), Some(arrangement.clone())));
        }
        let x = self.activation(node, index)?;
        let arrangement = Arrangement::of(x.shape, &x.dims);
        Ok((x.value, x.dims, arrangement))
    }

    /// Binds the node's output to a value in another order: its own, a view of its channels, or
    /// one that has to be moved on.
    fn bind_arranged(
        &mut self,
        node: &Node<'_>,
        value: usize,
        arrangement: Arrangement,
    ) -> Result<(), Error> {
        let dims = arrangement.dims();
        if arrangement.is_own_order() {
            return self.bind(node, Binding::Activation { value, dims });
        }
        if let Some((shape, parts)) = arrangement.views(value) {
            return self.emit(node, shape, dims, RawOp::Concat(parts));
        }
        let node_name = node.name.clone();
        let binding = Binding::Rearranged {
            value,
            arrangement,
            node: node_name,
        };
        self.bind(node, binding)
    }

    /// `Reshape` and its like: other dims, the same order of elements.
    pub(crate) fn reshape(&mut self, node: &Node<'_>) -> Result<(), Error> {
        if let Binding::Rearranged {
            value, arrangement, ..
        } = self.binding(node, 0)?
        {
            let dims = self.relabel(node, &arrangement.dims())?;
            let value = *value;
            let reshaped = arrangement.reshape(&dims).ok_or_else(|| {
                node.error(format!(
                    "{dims:?} cuts the axes of {:?}, a rearrangement of {}, apart: only whole \
                     factors of its axes are supported",
                    arrangement.dims(),
                    self.values[value].shape
                ))
            })?;
            return self.bind_arranged(node, value, reshaped);
        }
        let x = self.activation(node, 0)?;
        let dims = self.relabel(node, &x.dims)?;
        let value = x.value;
        self.bind(node, Binding::Activation { value, dims })
    }

    pub(crate) fn transpose(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let (value, dims, arrangement) = self.arranged(node, 0)?;
        let perm = fold_op::permutation(node.ints("perm").unwrap_or_default(), dims.len())
            .map_err(|e| node.error(e))?;
        if let Some(arrangement) = arrangement {
            return self.bind_arranged(node, value, arrangement.transpose(&perm));
        }
        // The order of extents above 1 may stay whatever the axes are made of.
        let moved: Vec<usize> = perm.iter().copied().filter(|&p| dims[p] > 1).collect();
        if !moved.is_sorted() {
            return Err(node.unsupported(&format!(
                "perm {perm:?} of {dims:?} moves elements across whole factors of {}'s axes",
                self.values[value].shape
            )));
        }
        let dims = perm.iter().map(|&p| dims[p]).collect();
        self.bind(node, Binding::Activation { value, dims })
    }

    /// `[C, H·b, W·b]` to `[b·b·C, H, W]`, the block's position slowest, as ONNX defines it.
    pub(crate) fn space_to_depth(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.image(node, 0)?;
        let block = usize::try_from(node.int("blocksize", 0)).unwrap_or(0);
        let Shape {
            channels,
            height,
            width,
        } = x.shape;
        if block == 0 || !height.is_multiple_of(block) || !width.is_multiple_of(block) {
            return Err(node.error(format!(
                "blocksize {block} does not divide {height}x{width}"
            )));
        }
        let (height, width) = (height / block, width / block);
        let blocks = [1, channels, height, block, width, block];
        let moved = Arrangement::of(x.shape, &blocks)
            .map(|split| split.transpose(&[0, 3, 5, 1, 2, 4]))
            .and_then(|moved| moved.reshape(&[1, channels * block * block, height, width]))
            .ok_or_else(|| node.error("has too large a block"))?;
        self.bind_arranged(node, x.value, moved)
    }

    /// The one vector of a matrix product; for each of its elements the position in the tensor.
    pub(crate) fn vector(
        &self,
        node: &Node<'_>,
        index: usize,
    ) -> Result<(Operand, Vec<usize>), Error> {
        if let Binding::Rearranged {
            value, arrangement, ..
        } = self.binding(node, index)?
        {
            let shape = self.values[*value].shape;
            let operand = Operand {
                value: *value,
                dims: arrangement.dims(),
                shape,
            };
            return Ok((operand, arrangement.order(shape)));
        }
        let x = self.activation(node, index)?;
        let order = (0..x.shape.len()).collect();
        Ok((x, order))
    }

    pub(crate) fn concat(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let all: Vec<Operand> = (0..node.proto.input.len())
            .map(|i| self.activation(node, i))
            .collect::<Result<_, _>>()?;
        let first = all.first().ok_or_else(|| node.error("joins nothing"))?;
        let at = fold_op::axis(node.int("axis", 1), first.dims.len()).map_err(|e| node.error(e))?;
        let mut channels = 0usize;
        let mut parts = Vec::with_capacity(all.len());
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
            parts.push(FloatPart::whole(x.value, x.shape.channels));
        }
        let mut dims = first.dims.clone();
        dims[1] = channels;
        let shape = Shape {
            channels,
            ..first.shape
        };
        self.emit(node, shape, dims, RawOp::Concat(parts))
    }

    /// Every step-th row and column from the first on stays a sub-sampling, which additions read
    /// in place; any other slice is a view of channels, rows and columns.
    pub(crate) fn slice(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.activation(node, 0)?;
        // Of channels, rows, columns: first, step, count.
        let Shape {
            channels,
            height,
            width,
        } = x.shape;
        let mut ranges = [(0, 1, channels), (0, 1, height), (0, 1, width)];
        let mut dims = x.dims.clone();
        for range in self.slice_operands(node, &x.dims)? {
            let extent = x.dims[range.axis];
            let step = usize::try_from(range.step).unwrap_or(0);
            if step > 0 && range.first == 0 && range.count == extent && step == 1 {
                continue;
            }
            let is_image_axis = (1..4).contains(&range.axis)
                && x.dims.len() <= 4
                && x.dims.get(1) == Some(&channels)
                && (x.dims.len() == 4 || range.axis == 1);
            if step == 0 || range.count == 0 || !is_image_axis {
                return Err(node.unsupported(&format!(
                    "only forward steps over channels, rows and columns are; this takes {} elements \
                     from {} of axis {} of {:?}, {} apart",
                    range.count, range.first, range.axis, x.dims, range.step
                )));
            }
            // A step that is never taken is written as 1.
            let step = if range.count == 1 { 1 } else { step };
            ranges[range.axis - 1] = (range.first, step, range.count);
            dims[range.axis] = range.count;
        }
        let [(channel, every, n_channels), rows, columns] = ranges;
        let shape = Shape {
            channels: n_channels,
            height: rows.2,
            width: columns.2,
        };
        let value = x.value;
        let stride = [rows.1, columns.1];
        if shape == x.shape {
            return self.bind(node, Binding::Activation { value, dims });
        }
        if n_channels == channels && (rows.0, columns.0) == (0, 0) && stride != [1, 1] {
            let reaches_end = |(_, step, count): (usize, usize, usize), extent: usize| {
                count == extent.div_ceil(step)
            };
            if reaches_end(rows, height) && reaches_end(columns, width) {
                let op = RawOp::Sample {
                    input: value,
                    stride,
                };
                return self.emit(node, shape, dims, op);
            }
        }
        let mut parts = Vec::new();
        for index in 0..n_channels {
            FloatPart {
                tensor: value,
                channel: channel + index * every,
                n_channels: 1,
                stride,
                offset: [rows.0, columns.0],
            }
            .append_to(&mut parts);
        }
        self.emit(node, shape, dims, RawOp::Concat(parts))
    }

    /// Consecutive channels, a value for each output.
    pub(crate) fn split(&mut self, node: &Node<'_>) -> Result<(), Error> {
        let x = self.activation(node, 0)?;
        let channels = x.shape.channels;
        let at = fold_op::axis(node.int("axis", 0), x.dims.len()).map_err(|e| node.error(e))?;
        if at != 1 || x.dims[1] != channels {
            return Err(node.unsupported(&format!(
                "only channels may be split, this splits axis {at} of {:?}",
                x.dims
            )));
        }
        let n = node.proto.output.len();
        let sizes = if let Some(sizes) = self.ints(node, 1, "split")? {
            sizes
                .iter()
                .map(|&size| usize::try_from(size).unwrap_or(0))
                .collect()
        } else {
            let size = channels.div_ceil(n.max(1));
            (0..n)
                .map(|i| size.min(channels.saturating_sub(i * size)))
                .collect::<Vec<_>>()
        };
        let total = sizes
            .iter()
            .try_fold(0usize, |sum, &size| sum.checked_add(size));
        if sizes.len() != n || sizes.contains(&0) || total != Some(channels) {
            return Err(node.error(format!(
                "splits {channels} channels into {sizes:?} for {n} outputs"
            )));
        }
        let mut channel = 0;
        for (name, &n_channels) in node.proto.output.iter().zip(&sizes) {
            let part = FloatPart {
                channel,
                ..FloatPart::whole(x.value, n_channels)
            };
            channel += n_channels;
            let mut dims = x.dims.clone();
            dims[1] = n_channels;
            let shape = Shape {
                channels: n_channels,
                ..x.shape
            };
            self.emit_as(node, name, shape, dims, RawOp::Concat(vec![part]))?;
        }
        Ok(())
    }
}
