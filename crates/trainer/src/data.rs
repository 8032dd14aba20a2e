//! Images and labels, their order, and how they are varied.
//!
//! Invariant: what an image becomes depends on the seed, the epoch and the image's index alone.

use crate::Error;
use arith::SplitMix64;
use ndarray::Array3;
use network::Shape;

/// Images as the network takes them, with labels or without.
#[derive(Clone, Debug)]
pub struct Data {
    shape: Shape,
    /// Pixel by pixel, channels fastest.
    images: Vec<f32>,
    labels: Option<Vec<usize>>,
    /// What cropping moves in, per channel.
    fill: Vec<f32>,
}

/// Random changes of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Augmentation {
    /// Shifts by up to this many pixels each way.
    pub crop: usize,
    /// Mirrors every other image.
    pub flip: bool,
    /// This share of the images is mixed with another image, in proportions that are equally likely;
    /// labels likewise (mixup with `α = 1`: Zhang et al., ICLR 2018).
    pub mix: f64,
}

/// An image that another one was mixed into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mixed {
    /// The other image.
    pub(crate) other: usize,
    /// What is left of the first, at least a half.
    pub(crate) share: f64,
}

impl Data {
    /// No images yet; `fill` has one value per channel.
    ///
    /// # Errors
    /// Labels and images differ in number, or a label is no class.
    pub fn new(
        shape: Shape,
        images: impl Iterator<Item = Array3<f32>>,
        labels: Option<Vec<usize>>,
        fill: Vec<f32>,
    ) -> Result<Self, Error> {
        let mut pixels = Vec::new();
        for image in images {
            if image.dim() != shape.dim() {
                return Err(Error::Data(format!(
                    "an image is {:?}, the network takes {shape}",
                    image.dim()
                )));
            }
            pixels.extend(image.permuted_axes([1, 2, 0]).iter());
        }
        let made = Self {
            shape,
            images: pixels,
            labels,
            fill,
        };
        match &made.labels {
            _ if made.is_empty() => Err(Error::Data("there are no images".into())),
            _ if made.fill.len() != shape.channels => {
                Err(Error::Data("there must be a fill value a channel".into()))
            }
            Some(labels) if labels.len() != made.len() => Err(Error::Data(format!(
                "{} labels for {} images",
                labels.len(),
                made.len()
            ))),
            _ => Ok(made),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.len() / self.shape.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// One image.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn labels(&self) -> Option<&[usize]> {
        self.labels.as_deref()
    }

    pub(crate) fn image(&self, index: usize) -> &[f32] {
        &self.images[index * self.shape.len()..][..self.shape.len()]
    }

    /// Images of an epoch one after the other, changed at random, and what was mixed into each.
    pub(crate) fn batch(
        &self,
        indices: &[usize],
        epoch: u64,
        augmentation: Augmentation,
        seed: u64,
    ) -> (Vec<f32>, Vec<Option<Mixed>>) {
        let mut images = Vec::with_capacity(indices.len() * self.shape.len());
        let vary = |&index: &usize| {
            let mut rng = generator(seed, epoch, index as u64);
            self.varied(index, augmentation, &mut rng, &mut images)
        };
        let mixed = indices.iter().map(vary).collect();
        (images, mixed)
    }

    /// Appends an image, changed at random; what was mixed into it.
    fn varied(
        &self,
        index: usize,
        augmentation: Augmentation,
        rng: &mut SplitMix64,
        out: &mut Vec<f32>,
    ) -> Option<Mixed> {
        let first = out.len();
        self.moved(index, augmentation, rng, out);
        // Nothing is drawn without it, so that runs of then are runs of now.
        if augmentation.mix <= 0.0 || unit(rng) >= augmentation.mix {
            return None;
        }
        let other = rng.size(0, self.len() - 1);
        let share = unit(rng);
        let share = share.max(1.0 - share);
        let mut second = Vec::with_capacity(self.shape.len());
        self.moved(other, augmentation, rng, &mut second);
        for (a, b) in out[first..].iter_mut().zip(&second) {
            *a = (f64::from(*a) * share + f64::from(*b) * (1.0 - share)) as f32;
        }
        Some(Mixed { other, share })
    }

    /// Appends an image, moved and mirrored at random.
    fn moved(
        &self,
        index: usize,
        augmentation: Augmentation,
        rng: &mut SplitMix64,
        out: &mut Vec<f32>,
    ) {
        let image = self.image(index);
        let reach = augmentation.crop as i64;
        let (down, right) = (rng.between(-reach, reach), rng.between(-reach, reach));
        let mirrored = augmentation.flip && rng.one_in(2);
        let Shape {
            channels,
            height,
            width,
        } = self.shape;
        for y in 0..height as i64 {
            for x in 0..width as i64 {
                let x = if mirrored { width as i64 - 1 - x } else { x };
                let (row, column) = (y + down, x + right);
                let inside =
                    (0..height as i64).contains(&row) && (0..width as i64).contains(&column);
                if inside {
                    let at = (row as usize * width + column as usize) * channels;
                    out.extend_from_slice(&image[at..at + channels]);
                } else {
                    out.extend_from_slice(&self.fill);
                }
            }
        }
    }

    /// The order of an epoch.
    pub(crate) fn order(&self, seed: u64, epoch: u64) -> Vec<usize> {
        let mut rng = generator(seed, epoch, u64::MAX);
        let mut order: Vec<usize> = (0..self.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, rng.size(0, last));
        }
        order
    }
}

/// A number from 0 to 1, 1 not included.
pub(crate) fn unit(rng: &mut SplitMix64) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Random numbers for one purpose.
pub(crate) fn generator(seed: u64, epoch: u64, index: u64) -> SplitMix64 {
    let mut mixed = 0;
    for part in [seed, epoch, index] {
        mixed = SplitMix64(mixed ^ part).next_u64();
    }
    SplitMix64(mixed)
}
