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

    /// Room for a tensor.
    pub(crate) fn zeros(tensor: &Tensor) -> Self {
        let n = tensor.shape.len();
        let elements = if tensor.format.bits <= 8 {
            Elements::Bytes(vec![0; n])
        } else {
            Elements::Words(vec![0; n])
        };
        Self {
            shape: tensor.shape,
            format: tensor.format,
            elements,
        }
    }

    /// From `[channel, row, column]`.
    pub(crate) fn of(values: &Array3<i32>, format: Format) -> Self {
        let (channels, height, width) = values.dim();
        let shape = Shape {
            channels,
            height,
            width,
        };
        let pixels = values.view().permuted_axes([1, 2, 0]);
        let elements = if format.bits <= 8 {
            Elements::Bytes(pixels.iter().map(|&q| (q - format.q_min()) as u8).collect())
        } else {
            Elements::Words(pixels.iter().copied().collect())
        };
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

    /// A pixel's bytes.
    pub(crate) fn pixel(&self, y: usize, x: usize) -> &[u8] {
        let channels = self.shape.channels;
        &self.bytes()[(y * self.shape.width + x) * channels..][..channels]
    }
}

/// Pixels of an output, as a layer's function fills them.
pub(crate) enum Pixels<'a> {
    Bytes(&'a mut [u8]),
    Words(&'a mut [i32]),
}

impl Pixels<'_> {
    /// The next pixel's channels.
    pub fn pixel(&mut self, index: usize, channels: usize) -> Pixels<'_> {
        match self {
            Pixels::Bytes(bytes) => Pixels::Bytes(&mut bytes[index * channels..][..channels]),
            Pixels::Words(words) => Pixels::Words(&mut words[index * channels..][..channels]),
        }
    }

    /// Some of a pixel's channels.
    pub fn part(&mut self, from: usize, to: usize) -> Pixels<'_> {
        match self {
            Pixels::Bytes(bytes) => Pixels::Bytes(&mut bytes[from..to]),
            Pixels::Words(words) => Pixels::Words(&mut words[from..to]),
        }
    }
}
