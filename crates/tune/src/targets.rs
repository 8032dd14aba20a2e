//! The float network's values that the searches compare with: a sample of pixels of every
//! convolution's output, and the network's outputs in full.
//!
//! Invariant: which pixels are sampled depends on shapes, the number of images and the seed alone.
//! Memory is bounded: at most [`MAX_VALUES`] values a layer besides the outputs.

use arith::SplitMix64;
use quantizer::{FloatNetwork, FloatOp};
use std::collections::BTreeMap;

/// Pixels sampled of one tensor over all images.
const MAX_ROWS: usize = 1 << 16;
/// Values sampled of one tensor.
const MAX_VALUES: usize = 1 << 22;
/// Values of the patches that one tensor's pixels need.
const MAX_PATCH_VALUES: usize = 1 << 26;

/// Float values by tensor index.
#[derive(Clone, Debug)]
pub struct Targets {
    n_fit: usize,
    n_images: usize,
    sampled: BTreeMap<usize, Sampled>,
    outputs: BTreeMap<usize, Vec<f32>>,
}

/// A sample of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct Sampled {
    channels: usize,
    plane: usize,
    per_image: usize,
    /// Pixel indices, `per_image` for each image, ascending.
    pub(crate) pixels: Vec<u32>,
    /// `[row][channel]`, a row for each pixel.
    pub(crate) values: Vec<f32>,
}

impl Targets {
    /// For `n_images` images, of which the first `n_fit` are for fitting and the rest held out.
    ///
    /// # Panics
    /// More images to fit than there are.
    pub fn new(net: &FloatNetwork, n_fit: usize, n_images: usize, seed: u64) -> Self {
        assert!(0 < n_fit && n_fit <= n_images, "images to fit are images");
        let mut sampled = BTreeMap::new();
        for layer in &net.layers {
            if let FloatOp::Conv(conv) = &layer.op {
                let shape = net.tensors[layer.output].shape;
                let reduction = conv.weights.len() / shape.channels * conv.groups;
                let rows = MAX_ROWS
                    .min(MAX_VALUES / shape.channels)
                    .min(MAX_PATCH_VALUES / reduction)
                    .max(1);
                let plane = shape.height * shape.width;
                let per_image = (rows / n_fit).clamp(1, plane);
                let seed = seed ^ (layer.output as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let mut random = SplitMix64(seed);
                let pixels = (0..n_fit)
                    .flat_map(|_| pick(&mut random, plane, per_image))
                    .collect();
                let sample = Sampled {
                    channels: shape.channels,
                    plane,
                    per_image,
                    pixels,
                    values: vec![0.0; n_fit * per_image * shape.channels],
                };
                sampled.insert(layer.output, sample);
            }
        }
        let outputs = net
            .outputs
            .iter()
            .map(|&t| (t, vec![0.0; n_images * net.tensors[t].shape.len()]))
            .collect();
        Self {
            n_fit,
            n_images,
            sampled,
            outputs,
        }
    }

    /// Images that values are fitted to: the first ones.
    pub fn n_fit(&self) -> usize {
        self.n_fit
    }

    /// Images in all.
    pub fn n_images(&self) -> usize {
        self.n_images
    }

    /// Takes in a tensor's values of some images, the first of which stands at `first_image`. Images
    /// beyond those wanted are passed over.
    pub fn see(&mut self, tensor: usize, first_image: usize, values: &[f32]) {
        if let Some(sample) = self.sampled.get_mut(&tensor) {
            let len = sample.channels * sample.plane;
            for (image, values) in (first_image..self.n_fit).zip(values.chunks_exact(len)) {
                sample.see(image, values);
            }
        }
        if let Some(output) = self.outputs.get_mut(&tensor) {
            let len = output.len() / self.n_images;
            let places = output.chunks_exact_mut(len).skip(first_image);
            for (place, values) in places.zip(values.chunks_exact(len)) {
                place.copy_from_slice(values);
            }
        }
    }

    pub(crate) fn sample(&self, tensor: usize) -> &Sampled {
        &self.sampled[&tensor]
    }

    /// An image's values of an output tensor, `[channel, row, column]`.
    pub(crate) fn output(&self, tensor: usize, image: usize) -> &[f32] {
        let values = &self.outputs[&tensor];
        let len = values.len() / self.n_images;
        &values[image * len..(image + 1) * len]
    }
}

impl Sampled {
    fn see(&mut self, image: usize, values: &[f32]) {
        let rows = image * self.per_image..(image + 1) * self.per_image;
        for row in rows {
            let pixel = self.pixels[row] as usize;
            let place = &mut self.values[row * self.channels..(row + 1) * self.channels];
            for (channel, place) in place.iter_mut().enumerate() {
                *place = values[channel * self.plane + pixel];
            }
        }
    }

    /// Sampled pixels of one image.
    pub(crate) fn of_image(&self, image: usize) -> &[u32] {
        &self.pixels[image * self.per_image..(image + 1) * self.per_image]
    }
}

/// `n` different numbers below `of`, ascending.
fn pick(random: &mut SplitMix64, of: usize, n: usize) -> Vec<u32> {
    let mut chosen = Vec::with_capacity(n);
    for index in 0..of {
        let wanted = n - chosen.len();
        // Each remaining number with the probability that leaves exactly n in the end.
        if wanted > 0 && (random.next_u64() % (of - index) as u64) < wanted as u64 {
            chosen.push(index as u32);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::pick;
    use arith::SplitMix64;

    #[test]
    fn samples_are_of_the_size_asked_for_and_cover_all() {
        let mut seen = [0; 9];
        let mut random = SplitMix64(1);
        for _ in 0..900 {
            let picked = pick(&mut random, 9, 3);
            assert_eq!(picked.len(), 3);
            assert!(picked.is_sorted_by(|a, b| a < b));
            for &p in &picked {
                seen[p as usize] += 1;
            }
        }
        assert!(seen.iter().all(|n| (240..360).contains(n)), "{seen:?}");
        assert_eq!(pick(&mut random, 4, 4), [0, 1, 2, 3]);
    }
}
