//! Labelled images, and how raw values become the model's input.
//!
//! Invariant: a [`Dataset`] fits the network that it was opened for: rank, channels, rows and
//! columns are the network's, every float is finite. Preprocessing travels with the quantized
//! network, so that every later command feeds it in the same way.

use crate::{
    args::{InputFlags, PreprocessingFlags, SyntheticImages},
    input, npy, synthetic,
};
use anyhow::{Context, Result, bail, ensure};
use image::ImageReader;
use ndarray::{Array3, Axis};
use network::Shape;
use serde::{Deserialize, Serialize};
use std::{io::Cursor, path::Path};

/// Largest side of an image file, before its size is compared with the network's.
const MAX_IMAGE_EXTENT: u32 = 1 << 14;

/// `(x · scale - mean) / std`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Per channel, or one for all; empty means 0.
    pub mean: Vec<f32>,
    /// Per channel, or one for all; empty means 1.
    pub std: Vec<f32>,
    /// 1/255 for uint8 and 1 for float32 when absent.
    pub scale: Option<f32>,
}

impl Preprocessing {
    /// The entry of the network file's metadata that holds it.
    pub const KEY: &str = "preprocessing";

    /// Checks the flags against the number of input channels.
    ///
    /// # Errors
    /// A list that is neither one long nor one per channel, a number that is not finite, a
    /// standard deviation or scale that is not positive.
    pub fn new(flags: &PreprocessingFlags, channels: usize) -> Result<Self> {
        let made = Self {
            mean: flags.mean.clone().unwrap_or_default(),
            std: flags.std.clone().unwrap_or_default(),
            scale: flags.scale,
        };
        made.check(channels)?;
        Ok(made)
    }

    fn check(&self, channels: usize) -> Result<()> {
        for (flag, list) in [("--mean", &self.mean), ("--std", &self.std)] {
            let n = list.len();
            ensure!(
                n <= 1 || n == channels,
                "{flag} has {n} values, the model's input has {channels} channels"
            );
            if let Some(bad) = list.iter().find(|value| !value.is_finite()) {
                bail!("{flag} has the value {bad}: it must be finite");
            }
        }
        if let Some(bad) = self.std.iter().find(|&&value| value <= 0.0) {
            bail!("--std has the value {bad}: it must be above 0");
        }
        if let Some(bad) = self
            .scale
            .filter(|scale| !scale.is_finite() || *scale <= 0.0)
        {
            bail!("--scale is {bad}: it must be finite and above 0");
        }
        Ok(())
    }

    /// From the metadata of a network file.
    ///
    /// # Errors
    /// The text is not what [`Self::to_text`] writes, or does not fit the network.
    pub fn from_text(text: &str, channels: usize) -> Result<Self> {
        let made: Self = serde_json::from_str(text).context("preprocessing in the network file")?;
        made.check(channels)
            .context("preprocessing in the network file")?;
        Ok(made)
    }

    /// For the metadata of a network file.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("finite numbers always become JSON")
    }

    /// What a raw 0 becomes, per channel.
    pub fn of_zero(&self, channels: usize) -> Vec<f32> {
        (0..channels).map(|c| self.apply(0.0, 1.0, c)).collect()
    }

    /// What `other` makes of a pixel of which this one makes `x`: `factor · x + offset`, a pair for every
    /// channel.
    fn to_other(&self, other: &Self, default_scale: f32, channels: usize) -> Vec<(f32, f32)> {
        let line = |made: &Self, channel: usize| {
            let [zero, one] = [0.0, 1.0].map(|raw| made.apply(raw, default_scale, channel));
            (one - zero, zero)
        };
        let of_channel = |channel| {
            let ((from_slope, from_zero), (slope, zero)) =
                (line(self, channel), line(other, channel));
            let factor = slope / from_slope;
            (factor, zero - factor * from_zero)
        };
        (0..channels).map(of_channel).collect()
    }

    fn apply(&self, raw: f32, default_scale: f32, channel: usize) -> f32 {
        let of = |list: &[f32], neutral| match list {
            [] => neutral,
            [one] => *one,
            many => many[channel],
        };
        let scaled = self.scale.map_or(raw * default_scale, |scale| raw * scale);
        (scaled - of(&self.mean, 0.0)) / of(&self.std, 1.0)
    }
}

/// Where images come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file.
    File(&'a Path),
    /// A seed.
    Seed(SyntheticImages),
}

impl<'a> Source<'a> {
    /// Of two flags, of which `clap` lets exactly one through.
    ///
    /// # Panics
    /// Neither was given.
    pub fn of(file: Option<&'a Path>, seed: Option<SyntheticImages>) -> Self {
        match (file, seed) {
            (_, Some(seed)) => Self::Seed(seed),
            (Some(file), None) => Self::File(file),
            (None, None) => panic!("one of the two flags is required"),
        }
    }
}

enum Pixels {
    U8(Vec<u8>),
    F32(Vec<f32>),
}

impl Pixels {
    /// What they are multiplied by unless the user says so.
    fn default_scale(&self) -> f32 {
        match self {
            Self::U8(_) => 1.0 / 255.0,
            Self::F32(_) => 1.0,
        }
    }
}

/// Images of one size, with labels or without.
pub struct Dataset {
    shape: Shape,
    n_images: usize,
    pixels: Pixels,
    /// One per image.
    pub labels: Option<Vec<usize>>,
}

impl Dataset {
    /// Reads an `.npz` archive, or one PNG or JPEG image, for a network's input.
    ///
    /// # Errors
    /// The file is missing, no such file, without `x`, of another size than the network takes, has
    /// a value that is not finite or labels that do not belong to it.
    pub fn open(path: &Path, shape: Shape) -> Result<Self> {
        let bytes = input::read(path, input::MAX_FILE_BYTES)?;
        Self::from_bytes(&bytes, shape).with_context(|| path.display().to_string())
    }

    /// As [`Self::open`], or made up.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_source(source: Source<'_>, shape: Shape) -> Result<Self> {
        match source {
            Source::File(path) => Self::open(path, shape),
            Source::Seed(SyntheticImages { seed, n_images }) => Ok(Self {
                shape,
                n_images,
                pixels: Pixels::U8(synthetic::images(seed, n_images, shape)),
                labels: None,
            }),
        }
    }

    /// Of the flags that most commands have.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_flags(flags: &InputFlags, shape: Shape) -> Result<Self> {
        let source = Source::of(flags.data.as_deref(), flags.synthetic_images);
        Self::from_source(source, shape)
    }

    /// As [`Self::open`], from a file's contents.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(bytes: &[u8], shape: Shape) -> Result<Self> {
        if bytes.starts_with(b"\x89PNG") || bytes.starts_with(b"\xff\xd8") {
            from_image(bytes, shape)
        } else if bytes.starts_with(b"PK") {
            from_npz(bytes, shape)
        } else {
            bail!("neither an .npz archive nor a PNG or JPEG image")
        }
    }

    /// Number of images, at least 1.
    pub fn len(&self) -> usize {
        self.n_images
    }

    /// Keeps the first `n` images.
    ///
    /// # Errors
    /// `n` is 0.
    pub fn truncate(&mut self, n: Option<usize>) -> Result<()> {
        if let Some(n) = n {
            ensure!(n > 0, "--max-images is 0: there must be an image");
            self.n_images = self.n_images.min(n);
            if let Some(labels) = &mut self.labels {
                labels.truncate(n);
            }
        }
        Ok(())
    }

    /// Checks labels against the number of classes.
    ///
    /// # Errors
    /// A label that is no class.
    pub fn check_labels(&self, n_classes: usize) -> Result<()> {
        let labels = self.labels.iter().flatten().enumerate();
        for (index, &label) in labels {
            ensure!(
                label < n_classes,
                "label {label} of image {index} is out of range: the network has {n_classes} classes"
            );
        }
        Ok(())
    }

    /// How a network with the `other` preprocessing sees a pixel that is preprocessed: see
    /// [`Preprocessing::to_other`].
    pub fn lens(&self, preprocessing: &Preprocessing, other: &Preprocessing) -> Vec<(f32, f32)> {
        preprocessing.to_other(other, self.pixels.default_scale(), self.shape.channels)
    }

    /// Image `index` as the float model takes it, `[channel, row, column]`.
    ///
    /// # Panics
    /// There is no such image.
    pub fn image(&self, index: usize, preprocessing: &Preprocessing) -> Array3<f32> {
        assert!(index < self.n_images, "image {index} of {}", self.n_images);
        let n = self.shape.len();
        let range = index * n..(index + 1) * n;
        let plane = self.shape.height * self.shape.width;
        let default_scale = self.pixels.default_scale();
        let apply = |(i, raw)| preprocessing.apply(raw, default_scale, i / plane);
        let values: Vec<f32> = match &self.pixels {
            Pixels::U8(pixels) => pixels[range]
                .iter()
                .map(|&raw| f32::from(raw))
                .enumerate()
                .map(apply)
                .collect(),
            Pixels::F32(pixels) => pixels[range]
                .iter()
                .copied()
                .enumerate()
                .map(apply)
                .collect(),
        };
        Array3::from_shape_vec(self.shape.dim(), values).expect("as many values as elements")
    }
}

/// The integers of a float image, clipped to the tensor's format.
pub fn quantize(image: &Array3<f32>, tensor: &network::Tensor) -> Array3<i32> {
    let scale = tensor.scale.real();
    let (min, max) = (
        f64::from(tensor.format.q_min()),
        f64::from(tensor.format.q_max()),
    );
    image.map(|&value| (f64::from(value) / scale).round_ties_even().clamp(min, max) as i32)
}

fn from_npz(bytes: &[u8], shape: Shape) -> Result<Dataset> {
    let x = npy::from_npz(bytes, "x")?.with_context(|| {
        let names = npy::names(bytes).unwrap_or_default().join(", ");
        format!("there is no array `x` (found: {names})")
    })?;
    let expected = format!("the network takes N×{shape}");
    let &[n_images, channels, height, width] = x.shape.as_slice() else {
        bail!(
            "`x` has {} dimensions ({:?}), needed are 4: {expected}",
            x.shape.len(),
            x.shape
        );
    };
    ensure!(
        (channels, height, width) == shape.dim(),
        "`x` is {n_images}×{channels}×{height}×{width}, {expected}"
    );
    ensure!(n_images > 0, "`x` has no images");
    let pixels = if let Some(pixels) = x.u8() {
        Pixels::U8(pixels.to_vec())
    } else if let Some(pixels) = x.f32() {
        if let Some(index) = pixels.iter().position(|value| !value.is_finite()) {
            let image = index / shape.len();
            bail!(
                "`x` holds {} in image {image}: values must be finite",
                pixels[index]
            );
        }
        Pixels::F32(pixels)
    } else {
        bail!("`x` is of type {}: it must be uint8 or float32", x.descr);
    };
    let labels = match npy::from_npz(bytes, "y")? {
        None => None,
        Some(y) => Some(labels(&y, n_images)?),
    };
    Ok(Dataset {
        shape,
        n_images,
        pixels,
        labels,
    })
}

fn labels(y: &npy::Array, n_images: usize) -> Result<Vec<usize>> {
    let values = y
        .integers()
        .with_context(|| format!("`y` is of type {}: it must be integer", y.descr))?;
    let is_column = matches!(*y.shape, [n] | [n, 1] if n == n_images);
    ensure!(
        is_column,
        "`y` has shape {:?}, needed is one label for each of {n_images} images",
        y.shape
    );
    let check = |(index, value): (usize, &i128)| {
        usize::try_from(*value)
            .ok()
            .with_context(|| format!("label {value} of image {index} is out of range"))
    };
    values.iter().enumerate().map(check).collect()
}

fn from_image(bytes: &[u8], shape: Shape) -> Result<Dataset> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .context("cannot read image")?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_IMAGE_EXTENT);
    limits.max_image_height = Some(MAX_IMAGE_EXTENT);
    reader.limits(limits);
    let decoded = reader.decode().context("cannot decode the image")?;
    ensure!(
        decoded.height() as usize == shape.height && decoded.width() as usize == shape.width,
        "the image is {}×{} (height × width), the network takes {}×{}",
        decoded.height(),
        decoded.width(),
        shape.height,
        shape.width
    );
    let interleaved = match shape.channels {
        1 => decoded.to_luma8().into_raw(),
        3 => decoded.to_rgb8().into_raw(),
        other => bail!("an image has 1 or 3 channels, the network takes {other}"),
    };
    let by_pixel =
        ndarray::Array::from_shape_vec((shape.height, shape.width, shape.channels), interleaved)
            .context("cannot decode the image")?;
    let mut planes = by_pixel.view();
    planes.swap_axes(1, 2);
    planes.swap_axes(0, 1);
    debug_assert_eq!(planes.len_of(Axis(0)), shape.channels);
    let pixels = Pixels::U8(planes.iter().copied().collect());
    Ok(Dataset {
        shape,
        n_images: 1,
        pixels,
        labels: None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Dataset, Preprocessing, quantize};
    use arith::{Format, Scale};
    use network::{Shape, Tensor};

    #[test]
    fn preprocessing_survives_the_file() {
        let made = Preprocessing {
            mean: vec![0.485, 0.1, -3.0],
            std: vec![0.3],
            scale: Some(1.0),
        };
        assert_eq!(
            Preprocessing::from_text(&made.to_text(), 3).expect("own text"),
            made
        );
        assert!(Preprocessing::from_text(&made.to_text(), 4).is_err());
        assert!(Preprocessing::from_text("{\"mean\":[],\"std\":[0],\"scale\":null}", 1).is_err());
    }

    #[test]
    fn pixels_of_an_image_become_planes() {
        let shape = Shape {
            channels: 3,
            height: 1,
            width: 2,
        };
        let pixels =
            image::RgbImage::from_raw(2, 1, vec![0, 51, 102, 153, 204, 255]).expect("2 pixels");
        let mut png = std::io::Cursor::new(Vec::new());
        pixels
            .write_to(&mut png, image::ImageFormat::Png)
            .expect("memory");
        let data = Dataset::from_bytes(png.get_ref(), shape).expect("well formed");
        let raw = Preprocessing {
            scale: Some(1.0),
            ..Default::default()
        };
        assert_eq!(
            data.image(0, &raw).into_raw_vec_and_offset().0,
            [0., 153., 51., 204., 102., 255.]
        );
        let error = Dataset::from_bytes(png.get_ref(), Shape { width: 4, ..shape }).err();
        assert!(
            error
                .expect("refused")
                .to_string()
                .contains("1×2 (height × width), the network takes 1×4")
        );
    }

    #[test]
    fn quantization_clips() {
        let tensor = Tensor {
            name: String::new(),
            shape: Shape {
                channels: 1,
                height: 1,
                width: 4,
            },
            format: Format {
                bits: 4,
                signed: false,
            },
            scale: Scale {
                mantissa: 128,
                exponent: -8,
            },
        };
        let image = ndarray::arr3(&[[[0.25f32, 0.75, -1.0, 100.0]]]);
        let integers = quantize(&image, &tensor);
        assert_eq!(integers.into_raw_vec_and_offset().0, [0, 2, 0, 15]);
    }
}
