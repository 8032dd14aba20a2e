//! Float models and integer networks: from files to values, and from one to the other.
//!
//! Invariant: external data is looked for beside the model and below, never elsewhere.

use crate::{
    args::{GranularityFlag, MethodFlag, QuantizerFlags, UncalibratedFlags},
    data::Preprocessing,
    input, output,
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use network::{Network, Shape};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    path::{Component, Path},
};

/// A float model: folded, and as it came.
pub struct FloatModel {
    /// What the quantizer makes of it.
    pub import: quantizer::Import,
    /// The ONNX file.
    bytes: Vec<u8>,
    /// Data files beside it, by the name that the model gives.
    external: BTreeMap<String, Vec<u8>>,
    /// Fills data files that are absent.
    synthetic_seed: Option<u64>,
}

impl FloatModel {
    /// Reads an ONNX file and the data files that it names.
    ///
    /// # Errors
    /// A file is missing, damaged, or uses what the import does not know.
    pub fn open(path: &Path, synthetic_seed: Option<u64>) -> Result<Self> {
        let bytes = input::read(path, input::MAX_FILE_BYTES)?;
        ensure!(
            !has_suffix(path, "safetensors"),
            "{}: this is an integer network by its name; a float model (.onnx) is needed",
            path.display()
        );
        let model = Self::from_bytes(bytes, synthetic_seed, &|name| beside(path, name));
        let model = model.with_context(|| path.display().to_string())?;
        if let [first, ..] = model.import.synthetic.as_slice() {
            let n = model.import.synthetic.len();
            let seed = synthetic_seed.unwrap_or_default();
            output::tell(&format!(
                "note: {n} tensors (`{first}`, …) have no data beside {}: synthetic weights from seed {seed}",
                path.display()
            ));
        }
        Ok(model)
    }

    /// As [`Self::open`], from contents.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(
        bytes: Vec<u8>,
        synthetic_seed: Option<u64>,
        external: &quantizer::ExternalData<'_>,
    ) -> Result<Self> {
        let opened = RefCell::new(BTreeMap::new());
        let remember = |name: &str| {
            let contents = external(name)?;
            opened
                .borrow_mut()
                .insert(name.to_owned(), contents.clone());
            Ok(contents)
        };
        let import = quantizer::import(&bytes, &remember, synthetic_seed).map_err(|error| {
            let is_absent = matches!(error, quantizer::Error::ExternalData { .. });
            let error = anyhow::Error::new(error);
            if is_absent && synthetic_seed.is_none() {
                return anyhow!("{error}; --synthetic-weights SEED makes weights up");
            }
            error
        })?;
        Ok(Self {
            import,
            bytes,
            external: opened.into_inner(),
            synthetic_seed,
        })
    }

    /// One image of the input.
    pub fn input_shape(&self) -> Shape {
        self.import.network.tensors[0].shape
    }

    /// The float reference of the model.
    ///
    /// # Errors
    /// The reference library refuses the model.
    pub fn reference(&self) -> Result<reference::Model> {
        let mut external = self.external.clone();
        if let (false, Some(seed)) = (self.import.synthetic.is_empty(), self.synthetic_seed) {
            let present = |name: &str| {
                let absent = || io::Error::from(io::ErrorKind::NotFound);
                self.external.get(name).cloned().ok_or_else(absent)
            };
            external.extend(quantizer::synthetic_files(&self.bytes, &present, seed)?);
        }
        let threads = std::num::NonZeroUsize::new(rayon::current_num_threads());
        let model = reference::Model::load(self.bytes.clone(), external)?;
        Ok(model.with_threads(threads.unwrap_or(std::num::NonZeroUsize::MIN)))
    }
}

/// The quantizer's options of the flags, for a machine with accumulators of such a width.
pub fn options(flags: &QuantizerFlags, machine_bits: u8) -> quantizer::Options {
    let accumulator_bits = flags.accumulator_bits.unwrap_or(machine_bits);
    let usual = quantizer::Options::for_accumulators(accumulator_bits);
    quantizer::Options {
        weight_bits: flags.weight_bits,
        activation_bits: flags.activation_bits,
        input_bits: flags.input_bits,
        output_bits: flags.output_bits,
        bias_bits: flags.bias_bits.unwrap_or(usual.bias_bits),
        bias_shift_per_channel: flags.bias_shift_per_channel,
        accumulator_bits,
        guarantee: flags.accumulator_bits.is_some(),
        granularity: match flags.granularity {
            GranularityFlag::PerChannel => quantizer::Granularity::PerChannel,
            GranularityFlag::PerTensor => quantizer::Granularity::PerTensor,
        },
        method: match flags.method {
            MethodFlag::MinMax => quantizer::Method::MinMax,
            // What adaround and auto start from.
            MethodFlag::Mse | MethodFlag::Adaround | MethodFlag::Auto => quantizer::Method::Mse,
            MethodFlag::Percentile => quantizer::Method::Percentile {
                inside_ppm: (flags.percentile * 1e4).round() as u32,
            },
            MethodFlag::Kl => quantizer::Method::Kl,
            MethodFlag::Llsq => quantizer::Method::Llsq,
        },
        overrides: flags
            .layers
            .iter()
            .map(|layer| {
                let bits = quantizer::LayerBits {
                    weight_bits: layer.weight_bits,
                    activation_bits: layer.activation_bits,
                };
                (layer.name.clone(), bits)
            })
            .collect(),
    }
}

impl UncalibratedFlags {
    /// The quantizer's options for a machine's accumulators.
    pub fn options(&self, accumulator_bits: u8) -> quantizer::Options {
        quantizer::Options {
            weight_bits: self.weight_bits.unwrap_or(4),
            activation_bits: self.activation_bits.unwrap_or(4),
            ..quantizer::Options::for_accumulators(accumulator_bits)
        }
    }

    /// Checks that they are not given for an integer network.
    ///
    /// # Errors
    /// They are.
    pub fn ensure_none(&self, network: &Path) -> Result<()> {
        let bits = [
            ("--weight-bits", self.weight_bits),
            ("--activation-bits", self.activation_bits),
        ];
        match bits.iter().find(|(_, bits)| bits.is_some()) {
            Some((flag, _)) => bail!(
                "{flag}: {} is an integer network, whose bits are what they are; `systole quantize` chooses them",
                network.display()
            ),
            None => Ok(()),
        }
    }
}

/// Images that are computed together: as many as keep every value of the model within 256 MiB.
/// A function of the model alone, so that results do not depend on the host.
pub fn batch_size(shapes: impl Iterator<Item = Shape>) -> usize {
    let values: usize = shapes.map(Shape::len).fold(0, usize::saturating_add);
    ((1 << 26) / values.max(1)).clamp(1, 64)
}

/// An integer network and how it is fed.
pub struct QuantizedModel {
    /// The network.
    pub network: Network,
    /// From the quantizer's command line.
    pub preprocessing: Preprocessing,
}

impl QuantizedModel {
    /// Reads a network file.
    ///
    /// # Errors
    /// The file is missing, damaged or no network.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = input::read(path, input::MAX_FILE_BYTES)?;
        ensure!(
            !has_suffix(path, "onnx"),
            "{}: this is a float model by its name; `systole quantize` makes an integer network of it",
            path.display()
        );
        Self::from_bytes(&bytes).with_context(|| path.display().to_string())
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (network, notes) = network::from_bytes_with_notes(bytes)?;
        let channels = network.tensor(network.input).shape.channels;
        let preprocessing = match notes.get(Preprocessing::KEY) {
            Some(text) => Preprocessing::from_text(text, channels)?,
            None => Preprocessing::default(),
        };
        Ok(Self {
            network,
            preprocessing,
        })
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let notes = BTreeMap::from([(Preprocessing::KEY.to_owned(), self.preprocessing.to_text())]);
        network::to_bytes_with_notes(&self.network, &notes)
    }
}

/// Reads a network, or makes one of a float model without looking at data: layer shapes and widths
/// are right, scales are not, which is all the same to latency.
///
/// # Errors
/// The file is missing, damaged, or neither.
pub fn open_any(
    path: &Path,
    flags: &UncalibratedFlags,
    accumulator_bits: u8,
) -> Result<(QuantizedModel, Option<FloatModel>)> {
    if is_network(path)? {
        flags.ensure_none(path)?;
        return Ok((QuantizedModel::open(path)?, None));
    }
    let float = FloatModel::open(path, flags.synthetic_weights)?;
    let network = uncalibrated(&float.import, flags, accumulator_bits)
        .with_context(|| path.display().to_string())?;
    Ok((
        QuantizedModel {
            network,
            preprocessing: Preprocessing::default(),
        },
        Some(float),
    ))
}

/// As [`open_any`], for latency alone: the weights of a float model are neither read nor made up.
///
/// # Errors
/// As [`open_any`], but for the weights.
pub fn open_for_time(
    path: &Path,
    flags: &UncalibratedFlags,
    accumulator_bits: u8,
) -> Result<Network> {
    if is_network(path)? {
        flags.ensure_none(path)?;
        return Ok(QuantizedModel::open(path)?.network);
    }
    let bytes = input::read(path, input::MAX_FILE_BYTES)?;
    let network = || {
        let import = quantizer::import_shapes(&bytes, &|name| beside(path, name))?;
        uncalibrated(&import, flags, accumulator_bits)
    };
    network().with_context(|| path.display().to_string())
}

/// The integer network of a float model, without looking at data.
fn uncalibrated(
    import: &quantizer::Import,
    flags: &UncalibratedFlags,
    accumulator_bits: u8,
) -> Result<Network> {
    let options = flags.options(accumulator_bits);
    Ok(quantizer::quantize(&import.network, None, &options)?)
}

/// Reads a data file of a model.
fn beside(model: &Path, name: &str) -> io::Result<Vec<u8>> {
    let folder = model.parent().unwrap_or(Path::new(""));
    let inside = Path::new(name)
        .components()
        .all(|c| matches!(c, Component::Normal(_)));
    if !inside || name.is_empty() {
        let refused = "it is not beside the model";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, refused));
    }
    std::fs::read(folder.join(name))
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case(suffix))
}

/// Whether a file is a network rather than a float model: by the name's end, else by the first bytes.
///
/// # Errors
/// The file is missing, or a program.
pub fn is_network(path: &Path) -> Result<bool> {
    if has_suffix(path, "safetensors") || has_suffix(path, "onnx") {
        return Ok(has_suffix(path, "safetensors"));
    }
    let bytes = input::read(path, input::MAX_FILE_BYTES)?;
    if bytes.starts_with(b"SYSTOLE\0") {
        bail!(
            "{} is a program; needed is a network or a model",
            path.display()
        );
    }
    Ok(bytes.get(8) == Some(&b'{'))
}

/// Feeds images to the float reference and shows every value to `see`, portion by portion: the
/// position of the portion's first image, and the values in the order of `names`.
///
/// # Errors
/// The reference refuses the model or an image, or `see` fails.
pub fn for_each_portion(
    model: &reference::Model,
    data: &crate::data::Dataset,
    preprocessing: &Preprocessing,
    (shape, portion): (Shape, usize),
    names: &[&str],
    what: &'static str,
    mut see: impl FnMut(usize, Vec<reference::Tensor>) -> Result<()>,
) -> Result<()> {
    let bar = output::progress(what, data.len());
    for first in (0..data.len()).step_by(portion) {
        let n = portion.min(data.len() - first);
        let batch: Vec<f32> = (first..first + n)
            .flat_map(|index| data.image(index, preprocessing).into_raw_vec_and_offset().0)
            .collect();
        let extents = [n, shape.channels, shape.height, shape.width];
        see(first, model.run(&batch, extents, names)?)?;
        bar.inc(n as u64);
    }
    bar.finish_and_clear();
    Ok(())
}
