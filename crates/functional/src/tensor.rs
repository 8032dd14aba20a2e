//! Tensors as the engine holds them.
//!
//! Invariant: element `[channel, row, column]` stands at `(row · width + column) · channels +
//! channel`; a byte is the value minus its format's smallest, so that it starts at 0.

use arith::Format;
use ndarray::Array3;
use network::{Shape, Tensor};

/// The values of one tensor of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    shape: Shape,
    format: Format,
    elements: Elements,
}

/// Formats of up to 8 bits take a byte; wider ones are network outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Elements {
    Bytes(Vec<u8>),
    Words(Vec<i32>),
}

impl Values {
    /// Nothing yet.
    pub fn empty(tensor: &Tensor) -> Self {
        Self {
            shape: tensor.shape,
            format: tensor.format,
            elements: Elements::Bytes(Vec::new()),
        }
    }

    /// The values, of which nothing stays.
    pub(crate) fn take(&mut self, tensor: &Tensor) -> Self {
        std::mem::replace(self, Self::empty(tensor))
    }

    /// Room for a tensor, in this memory. What it holds is anything: a layer writes every element of
    /// its output.
    pub(crate) fn with_room(self, tensor: &Tensor) -> Self {
        let n = tensor.shape.len();
        let elements = match self.elements {
            Elements::Bytes(mut bytes) if tensor.format.bits <= 8 => {
                bytes.resize(n, 0);
                Elements::Bytes(bytes)
            }
            Elements::Words(mut words) if tensor.format.bits > 8 => {
                words.resize(n, 0);
                Elements::Words(words)
            }
            _ if tensor.format.bits <= 8 => Elements::Bytes(vec![0; n]),
            _ => Elements::Words(vec![0; n]),
        };
        Self {
            shape: tensor.shape,
            format: tensor.format,
            elements,
        }
    }

    /// From `[channel, row, column]`.
    pub(crate) fn of(values: &Array3<i32>, format: Format, old: Self) -> Self {
        let (channels, height, width) = values.dim();
        let shape = Shape {
            channels,
            height,
            width,
        };
        // Channel by channel, as images mostly lie in memory.
        if format.bits <= 8 {
            let mut elements = match old.elements {
                Elements::Bytes(bytes) => bytes,
                Elements::Words(_) => Vec::new(),
            };
            elements.resize(shape.len(), 0);
            if let (3, Some(planes)) = (channels, values.as_slice()) {
                interleave(planes, format.q_min(), &mut elements);
            } else {
                for (channel, plane) in values.outer_iter().enumerate() {
                    let pixels = elements[channel..].iter_mut().step_by(channels);
                    pixels
                        .zip(&plane)
                        .for_each(|(to, &q)| *to = q.wrapping_sub(format.q_min()) as u8);
                }
            }
            return Self {
                shape,
                format,
                elements: Elements::Bytes(elements),
            };
        }
        let pixels = values.view().permuted_axes([1, 2, 0]);
        let elements = Elements::Words(pixels.iter().copied().collect());
        Self {
            shape,
            format,
            elements,
        }
    }

    /// Channels, rows, columns.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Values in memory order: pixel by pixel, channels fastest.
    pub fn iter(&self) -> impl Iterator<Item = i32> + '_ {
        let q_min = self.format.q_min();
        let (bytes, words): (&[u8], &[i32]) = match &self.elements {
            Elements::Bytes(bytes) => (bytes, &[]),
            Elements::Words(words) => (&[], words),
        };
        bytes
            .iter()
            .map(move |&byte| i32::from(byte) + q_min)
            .chain(words.iter().copied())
    }

    /// As `[channel, row, column]`.
    pub fn to_array(&self) -> Array3<i32> {
        let Shape {
            channels,
            height,
            width,
        } = self.shape;
        let pixels = Array3::from_shape_vec((height, width, channels), self.iter().collect())
            .expect("a value for every element");
        pixels
            .permuted_axes([2, 0, 1])
            .as_standard_layout()
            .into_owned()
    }

    /// Bytes of memory.
    pub fn n_bytes(&self) -> usize {
        match &self.elements {
            Elements::Bytes(bytes) => bytes.len(),
            Elements::Words(words) => 4 * words.len(),
        }
    }

    /// The bytes of an operand.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.elements {
            Elements::Bytes(bytes) => bytes,
            Elements::Words(_) => panic!("operands have at most 8 bits: verify refuses others"),
        }
    }

    /// A byte's value is this plus the byte.
    pub(crate) fn q_min(&self) -> i32 {
        self.format.q_min()
    }

    pub(crate) fn elements_mut(&mut self) -> &mut Elements {
        &mut self.elements
    }

    /// A row's bytes.
    pub(crate) fn row(&self, y: usize) -> &[u8] {
        let n = self.shape.width * self.shape.channels;
        &self.bytes()[y * n..][..n]
    }

    /// A pixel's bytes.
    pub(crate) fn pixel(&self, y: usize, x: usize) -> &[u8] {
        let channels = self.shape.channels;
        &self.bytes()[(y * self.shape.width + x) * channels..][..channels]
    }
}

/// Three planes as pixels, `-q_min` added.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn interleave(planes: &[i32], q_min: i32, to: &mut [u8]) {
    let n = planes.len() / 3;
    let (first, others) = planes.split_at(n);
    let (second, third) = others.split_at(n);
    let planes = first.iter().zip(second).zip(third);
    for (to, ((a, b), c)) in to.as_chunks_mut().0.iter_mut().zip(planes) {
        *to = [a, b, c].map(|q| q.wrapping_sub(q_min) as u8);
    }
}

/// Pixels of an output, as a layer's function fills them.
pub(crate) enum Pixels<'a> {
    Bytes(&'a mut [u8]),
    Words(&'a mut [i32]),
}

impl Pixels<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Pixels::Bytes(bytes) => bytes.len(),
            Pixels::Words(words) => words.len(),
        }
    }

    /// The same pixels, lent.
    pub fn all(&mut self) -> Pixels<'_> {
        match self {
            Pixels::Bytes(bytes) => Pixels::Bytes(bytes),
            Pixels::Words(words) => Pixels::Words(words),
        }
    }

    /// Some pixels of `channels` each.
    pub fn some(&mut self, first: usize, n: usize, channels: usize) -> Pixels<'_> {
        let range = first * channels..(first + n) * channels;
        match self {
            Pixels::Bytes(bytes) => Pixels::Bytes(&mut bytes[range]),
            Pixels::Words(words) => Pixels::Words(&mut words[range]),
        }
    }
}
