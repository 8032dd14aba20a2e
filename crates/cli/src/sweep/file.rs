//! The sweep file: which networks, on which machines, quantized how.
//!
//! Invariant: paths are relative to the file's folder, and stay as written in everything that is
//! printed.

use crate::{args::PreprocessingFlags, input};
use anyhow::{Result, anyhow, ensure};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use toml::{Spanned, Value};

/// Largest sweep file.
const MAX_SWEEP_BYTES: u64 = 1 << 20;

/// Settings by their dotted key, in the file's spelling.
pub type Settings = BTreeMap<String, Value>;

/// A sweep file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The networks; each point runs every one.
    pub network: Vec<NetworkFile>,
    /// Values to combine with each other.
    #[serde(default)]
    pub grid: Grid,
    /// Points of their own, each combined with the grid.
    #[serde(default)]
    pub point: Vec<ListPoint>,
    /// What the front is made of, `Axis` by name; sensible ones where it is left out.
    pub front: Option<Vec<Spanned<String>>>,
    /// The sweep file's folder.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// A network of a sweep.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFile {
    /// Integer network (.safetensors) or float model (.onnx).
    pub file: PathBuf,
    /// Name in the results; the file's name where it is left out.
    pub name: Option<String>,
    /// The float model of an integer network, for SQNR.
    pub model: Option<PathBuf>,
    /// Images that a float model is calibrated with.
    pub calibration: Option<PathBuf>,
    /// Images (and labels) that accuracy is measured with.
    pub data: Option<PathBuf>,
    /// Use at most this many images of `data`.
    pub max_images: Option<usize>,
    /// Use at most this many images of `calibration`.
    pub max_calibration_images: Option<usize>,
    /// Seed for weights whose data files are absent.
    pub synthetic_weights: Option<u64>,
    /// As `--mean` of `quantize`.
    pub mean: Option<Vec<f32>>,
    /// As `--std` of `quantize`.
    pub std: Option<Vec<f32>>,
    /// As `--scale` of `quantize`.
    pub scale: Option<f32>,
}

/// Lists of values by key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Keys of the machine file, dotted, and `base`.
    #[serde(default)]
    pub machine: BTreeMap<String, Spanned<Value>>,
    /// Flags of `quantize`.
    #[serde(default)]
    pub quantizer: BTreeMap<String, Spanned<Value>>,
}

/// One value by key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListPoint {
    /// Keys of the machine file, dotted, and `base`.
    #[serde(default)]
    pub machine: Settings,
    /// Flags of `quantize`.
    #[serde(default)]
    pub quantizer: Settings,
}

impl Sweep {
    /// Reads a sweep file.
    ///
    /// # Errors
    /// It is missing, or wrong; the message shows the line.
    pub fn open(path: &Path) -> Result<Self> {
        let text = input::read_text(path, MAX_SWEEP_BYTES)?;
        let at = |span: Option<std::ops::Range<usize>>, message: &str| {
            anyhow!(input::at_span(path, &text, span, message))
        };
        let mut sweep: Self =
            toml::from_str(&text).map_err(|error| at(error.span(), error.message()))?;
        for values in sweep
            .grid
            .machine
            .values()
            .chain(sweep.grid.quantizer.values())
        {
            let is_list = values
                .get_ref()
                .as_array()
                .is_some_and(|list| !list.is_empty());
            if !is_list {
                return Err(at(Some(values.span()), "a list of values is needed here"));
            }
        }
        for axis in sweep.front.iter().flatten() {
            if super::Axis::of(axis.get_ref()).is_none() {
                let message = format!("no such axis: one of {}", super::Axis::names());
                return Err(at(Some(axis.span()), &message));
            }
        }
        ensure!(
            !sweep.network.is_empty(),
            "{}: no [[network]]",
            path.display()
        );
        path.parent()
            .unwrap_or(Path::new(""))
            .clone_into(&mut sweep.folder);
        Ok(sweep)
    }

    /// The networks' names in the results.
    pub fn names(&self) -> Vec<String> {
        self.network.iter().map(NetworkFile::name).collect()
    }
}

impl NetworkFile {
    /// Its name in the results.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let stem = self.file.file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        })
    }

    /// How images become its input.
    pub fn preprocessing(&self) -> PreprocessingFlags {
        PreprocessingFlags {
            mean: self.mean.clone(),
            std: self.std.clone(),
            scale: self.scale,
        }
    }
}
