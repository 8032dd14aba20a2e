//! Reshapes and transposes as index arithmetic: which element of a tensor stands where.
//!
//! Invariant: an arrangement names each element of its tensor exactly once; no digit has extent 1
//! and no two neighbouring digits of an axis are one.

use network::Shape;

/// No image has more channels.
const MAX_CHANNELS: usize = 1 << 16;

/// Counts along one axis of the tensor: `extent` positions, `stride` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Digit {
    /// 0 channels, 1 rows, 2 columns.
    source: usize,
    stride: usize,
    extent: usize,
}

/// A tensor in another order, seen with ONNX dims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrangement {
    /// For each ONNX axis its index as a number of mixed radix, the most significant digit first.
    axes: Vec<Vec<Digit>>,
}

/// Channels of a tensor, seen from an offset and with a stride. See [`network::Part`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatPart {
    /// Tensor index.
    pub tensor: usize,
    /// First channel read.
    pub channel: usize,
    /// Channels read.
    pub n_channels: usize,
    /// Step between rows and columns read.
    pub stride: [usize; 2],
    /// First row and column read.
    pub offset: [usize; 2],
}

impl FloatPart {
    /// All of a tensor.
    pub const fn whole(tensor: usize, n_channels: usize) -> Self {
        Self {
            tensor,
            channel: 0,
            n_channels,
            stride: [1, 1],
            offset: [0, 0],
        }
    }

    /// Appends `self` to `parts`, as one with the last where it goes on there.
    pub(crate) fn append_to(self, parts: &mut Vec<Self>) {
        if let Some(last) = parts.last_mut()
            && last.channel + last.n_channels == self.channel
            && (last.tensor, last.stride, last.offset) == (self.tensor, self.stride, self.offset)
        {
            last.n_channels += self.n_channels;
        } else {
            parts.push(self);
        }
    }

    /// Channels `from..from + n` of `base`, which is a tensor made of parts, as `self` sees it.
    pub(crate) fn through(self, base: &[Self], parts: &mut Vec<Self>) {
        let (mut from, end) = (self.channel, self.channel + self.n_channels);
        let mut begin = 0;
        for part in base {
            let upto = begin + part.n_channels;
            if from < upto.min(end) {
                let n_channels = upto.min(end) - from;
                let both = |d: usize| part.offset[d] + self.offset[d] * part.stride[d];
                Self {
                    tensor: part.tensor,
                    channel: part.channel + from - begin,
                    n_channels,
                    stride: [0, 1].map(|d| part.stride[d] * self.stride[d]),
                    offset: [both(0), both(1)],
                }
                .append_to(parts);
                from += n_channels;
            }
            begin = upto;
        }
    }
}

impl Arrangement {
    /// The tensor's own order under `dims`; `None` where an axis would cut one of the tensor's in
    /// parts that are no whole numbers of its positions.
    pub(crate) fn of(shape: Shape, dims: &[usize]) -> Option<Self> {
        let extents = [shape.channels, shape.height, shape.width];
        let digit = |source: usize| Digit {
            source,
            stride: 1,
            extent: extents[source],
        };
        Self {
            axes: (0..3).map(|source| vec![digit(source)]).collect(),
        }
        .reshape(dims)
    }

    pub(crate) fn dims(&self) -> Vec<usize> {
        let product = |digits: &Vec<Digit>| digits.iter().map(|digit| digit.extent).product();
        self.axes.iter().map(product).collect()
    }

    pub(crate) fn transpose(&self, perm: &[usize]) -> Self {
        Self {
            axes: perm.iter().map(|&axis| self.axes[axis].clone()).collect(),
        }
    }

    pub(crate) fn reshape(&self, dims: &[usize]) -> Option<Self> {
        let mut rest = merged(self.axes.concat()).into_iter();
        let mut open = rest.next();
        let mut axes = Vec::with_capacity(dims.len());
        for &dim in dims {
            let mut wanted = dim;
            let mut digits = Vec::new();
            while wanted > 1 {
                let digit = open.take()?;
                if wanted.is_multiple_of(digit.extent) {
                    wanted /= digit.extent;
                    digits.push(digit);
                    open = rest.next();
                } else if digit.extent.is_multiple_of(wanted) {
                    let inner = digit.extent / wanted;
                    digits.push(Digit {
                        stride: digit.stride * inner,
                        extent: wanted,
                        ..digit
                    });
                    open = Some(Digit {
                        extent: inner,
                        ..digit
                    });
                    wanted = 1;
                } else {
                    return None;
                }
            }
            axes.push(digits);
        }
        open.is_none().then_some(Self { axes })
    }

    /// Whether the elements stand in the tensor's own order.
    pub(crate) fn is_own_order(&self) -> bool {
        let digits = merged(self.axes.concat());
        digits.iter().all(|digit| digit.stride == 1)
            && digits.is_sorted_by(|a, b| a.source < b.source)
    }

    /// As an image whose channels are strided views of the tensor's; `None` when rows or columns
    /// hold anything but rows and columns.
    pub(crate) fn views(&self, tensor: usize) -> Option<(Shape, Vec<FloatPart>)> {
        let [batch, channels, rows, columns] = self.axes.as_slice() else {
            return None;
        };
        let stride = |digits: &[Digit], source: usize| match *digits {
            [] => Some(1),
            [digit] if digit.source == source => Some(digit.stride),
            _ => None,
        };
        let stride = [stride(rows, 1)?, stride(columns, 2)?];
        let n_channels: usize = channels.iter().map(|digit| digit.extent).product();
        if !batch.is_empty() || n_channels > MAX_CHANNELS {
            return None;
        }
        let mut parts = Vec::new();
        for [channel, y, x] in positions(channels) {
            FloatPart {
                tensor,
                channel,
                n_channels: 1,
                stride,
                offset: [y, x],
            }
            .append_to(&mut parts);
        }
        let [_, channels, height, width] = self.dims()[..] else {
            return None;
        };
        let shape = Shape {
            channels,
            height,
            width,
        };
        Some((shape, parts))
    }

    /// For each element, in this order, its position in the tensor's own.
    pub(crate) fn order(&self, shape: Shape) -> Vec<usize> {
        positions(&self.axes.concat())
            .map(|[c, y, x]| (c * shape.height + y) * shape.width + x)
            .collect()
    }
}

/// Neighbouring digits that count through one axis in one go become one; those of extent 1 go.
fn merged(digits: Vec<Digit>) -> Vec<Digit> {
    let mut all: Vec<Digit> = Vec::with_capacity(digits.len());
    for digit in digits.into_iter().filter(|digit| digit.extent > 1) {
        match all.last_mut() {
            Some(last)
                if last.source == digit.source && last.stride == digit.stride * digit.extent =>
            {
                last.stride = digit.stride;
                last.extent *= digit.extent;
            }
            _ => all.push(digit),
        }
    }
    all
}

/// Channel, row and column of every index that the digits count.
fn positions(digits: &[Digit]) -> impl Iterator<Item = [usize; 3]> {
    let n: usize = digits.iter().map(|digit| digit.extent).product();
    (0..n).map(move |index| {
        let mut rest = index;
        let mut position = [0; 3];
        for digit in digits.iter().rev() {
            position[digit.source] += rest % digit.extent * digit.stride;
            rest /= digit.extent;
        }
        position
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHAPE: Shape = Shape {
        channels: 4,
        height: 6,
        width: 2,
    };

    /// The elements themselves, moved as ONNX says.
    #[derive(Clone, Debug)]
    struct Slow {
        dims: Vec<usize>,
        elements: Vec<usize>,
    }

    impl Slow {
        fn transpose(&self, perm: &[usize]) -> Self {
            let array = ndarray::ArrayD::from_shape_vec(self.dims.clone(), self.elements.clone());
            let moved = array.expect("as many").permuted_axes(perm.to_vec());
            Self {
                dims: moved.shape().to_vec(),
                elements: moved.iter().copied().collect(),
            }
        }
    }

    /// What the views read, channel by channel.
    fn read(shape: Shape, (image, parts): (Shape, Vec<FloatPart>)) -> Vec<usize> {
        let mut elements = Vec::new();
        for part in parts {
            for c in part.channel..part.channel + part.n_channels {
                for y in 0..image.height {
                    for x in 0..image.width {
                        let y = part.offset[0] + y * part.stride[0];
                        let x = part.offset[1] + x * part.stride[1];
                        elements.push((c * shape.height + y) * shape.width + x);
                    }
                }
            }
        }
        elements
    }

    proptest! {
        /// Any chain of reshapes and transposes, against moved elements.
        #[test]
        fn chains(steps in prop::collection::vec((0usize..40, 0usize..720), 0..5)) {
            let n = SHAPE.len();
            let mut slow = Slow { dims: vec![1, 4, 6, 2], elements: (0..n).collect() };
            let mut fast = Arrangement::of(SHAPE, &slow.dims).unwrap();
            let factors: Vec<Vec<usize>> = vec![
                vec![1, 4, 6, 2], vec![1, 4, 3, 2, 2], vec![1, 4, 3, 2, 2, 1], vec![1, 2, 2, 6, 2], vec![48],
                vec![1, 48], vec![1, 8, 3, 2], vec![1, 16, 3, 1], vec![4, 12], vec![2, 2, 2, 3, 2], vec![1, 2, 24, 1],
            ];
            for (reshape, order) in steps {
                if let Some(dims) = factors.get(reshape) {
                    slow.dims.clone_from(dims);
                    match fast.reshape(dims) {
                        Some(next) => fast = next,
                        None => return Ok(()),
                    }
                }
                let mut perm: Vec<usize> = (0..slow.dims.len()).collect();
                let mut order = order;
                for i in (1..perm.len()).rev() {
                    perm.swap(i, order % (i + 1));
                    order /= i + 1;
                }
                slow = slow.transpose(&perm);
                fast = fast.transpose(&perm);
                prop_assert_eq!(&fast.order(SHAPE), &slow.elements);
                prop_assert_eq!(&fast.dims(), &slow.dims);
                prop_assert_eq!(fast.is_own_order(), slow.elements.is_sorted());
                if let Some(views) = fast.views(0) {
                    prop_assert_eq!(read(SHAPE, views), slow.elements.clone());
                }
            }
        }
    }

    #[test]
    fn passthrough_is_four_views() {
        let shape = Shape {
            channels: 64,
            height: 26,
            width: 26,
        };
        let split = Arrangement::of(shape, &[1, 64, 13, 2, 13, 2]).unwrap();
        let blocks = split
            .transpose(&[0, 3, 5, 1, 2, 4])
            .reshape(&[1, 256, 13, 13]);
        let (image, parts) = blocks.unwrap().views(7).unwrap();
        assert_eq!(
            image,
            Shape {
                channels: 256,
                height: 13,
                width: 13
            }
        );
        let offsets: Vec<_> = parts
            .iter()
            .map(|p| (p.n_channels, p.stride, p.offset))
            .collect();
        let part = |y, x| (64, [2, 2], [y, x]);
        assert_eq!(offsets, [part(0, 0), part(0, 1), part(1, 0), part(1, 1)]);
    }

    #[test]
    fn depth_to_space_is_no_view() {
        let split = Arrangement::of(SHAPE, &[1, 2, 2, 1, 6, 2]).unwrap();
        let moved = split.transpose(&[0, 3, 4, 1, 5, 2]).reshape(&[1, 1, 12, 4]);
        assert_eq!(moved.unwrap().views(0), None);
    }
}
