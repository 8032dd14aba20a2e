//! What a point is worth: its network compiled and timed, and how accurate the integers are.
//!
//! Invariant: a point that does not fit its machine is a result too, with the reason in its line.

use super::{
    accuracy::{self, Accuracy},
    file::{NetworkFile, Sweep},
    point::{Flags, Point, Points},
};
use crate::{
    commands::{latency, quantize},
    data::{Dataset, Preprocessing},
    engine::Engine,
    input,
    model::{self, FloatModel, QuantizedModel},
    output,
    report::{Header, Identity},
};
use accelerator::Config;
use anyhow::{Context, Result, bail, ensure};
use arith::{Arithmetic, Bytes};
use std::{
    collections::BTreeMap,
    hash::Hasher,
    path::{Path, PathBuf},
};

/// Columns behind the settings.
pub const COLUMNS: [&str; 20] = [
    "machine",
    "network_fingerprint",
    "total_cycles",
    "seconds",
    "frames_per_second",
    "n_macs",
    "compute_utilization",
    "over_roofline",
    "dram_read_bytes",
    "dram_written_bytes",
    "energy_fj",
    "average_watts",
    "sram_bytes",
    "n_weights",
    "weight_bytes",
    "sqnr_db",
    "top1",
    "agreement",
    "n_overflowed",
    "error",
];

/// The networks of a sweep, quantized in every way that is still needed.
pub struct Networks {
    integers: BTreeMap<(usize, usize), QuantizedModel>,
    identities: BTreeMap<(usize, usize), Identity>,
    accuracies: BTreeMap<(usize, usize, String), Accuracy>,
}

/// A number that tells sweeps apart: everything that a line of results depends on.
///
/// # Errors
/// A file of the sweep cannot be read.
pub fn fingerprint(sweep: &Sweep, points: &Points) -> Result<u64> {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut add = |text: &str| {
        hash.write_u64(text.len() as u64);
        hash.write(text.as_bytes());
    };
    add(env!("CARGO_PKG_VERSION"));
    for network in &sweep.network {
        let files = [
            Some(&network.file),
            network.model.as_ref(),
            network.calibration.as_ref(),
            network.data.as_ref(),
        ];
        for file in files {
            let Some(file) = file else {
                add("-");
                continue;
            };
            let bytes = input::read(&sweep.folder.join(file), input::MAX_FILE_BYTES)?;
            add(&format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes)));
        }
        let NetworkFile {
            max_images,
            max_calibration_images,
            synthetic_weights,
            mean,
            std,
            scale,
            ..
        } = network;
        let how = (
            max_images,
            max_calibration_images,
            synthetic_weights,
            mean,
            std,
            scale,
        );
        add(&format!("{} {how:?}", network.name()));
    }
    for point in &points.list {
        add(&format!(
            "{} {} {:?}",
            point.network, point.quantizer, point.settings
        ));
        add(&format!("{:?}", point.machine));
    }
    for flags in &points.quantizers {
        add(&format!("{flags:?}"));
    }
    Ok(hash.finish())
}

impl Networks {
    /// Opens, quantizes and measures what `needed` points need.
    ///
    /// # Errors
    /// Bad files, or a network that the quantizer refuses.
    pub fn open(sweep: &Sweep, points: &Points, needed: &[&Point]) -> Result<Self> {
        let mut all = Self {
            integers: BTreeMap::new(),
            identities: BTreeMap::new(),
            accuracies: BTreeMap::new(),
        };
        for (index, file) in sweep.network.iter().enumerate() {
            let mine: Vec<&Point> = needed
                .iter()
                .copied()
                .filter(|point| point.network == index)
                .collect();
            if mine.is_empty() {
                continue;
            }
            all.open_one(index, file, &sweep.folder, points, &mine)
                .with_context(|| format!("network {}", file.name()))?;
        }
        Ok(all)
    }

    fn open_one(
        &mut self,
        index: usize,
        file: &NetworkFile,
        folder: &Path,
        points: &Points,
        needed: &[&Point],
    ) -> Result<()> {
        let path = folder.join(&file.file);
        let settings: std::collections::BTreeSet<usize> =
            needed.iter().map(|point| point.quantizer).collect();
        let float = match (&file.model, is_float(&path)) {
            (None, true) => Some(FloatModel::open(&path, file.synthetic_weights)?),
            (Some(model), false) => Some(FloatModel::open(&folder.join(model), None)?),
            (None, false) => None,
            (Some(_), true) => bail!("`model` is for integer networks; this one is a float model"),
        };
        for quantizer in settings {
            let model = match &float {
                Some(float) if is_float(&path) => {
                    quantized(float, file, folder, &points.quantizers[quantizer])?
                }
                _ => {
                    ensure!(
                        points.quantizers.len() == 1,
                        "it is quantized already: settings of the quantizer need a float model"
                    );
                    QuantizedModel::open(&path)?
                }
            };
            let identity = Identity::of(&model.network);
            self.identities.insert((index, quantizer), identity);
            self.integers.insert((index, quantizer), model);
        }
        let Some(data) = &file.data else {
            return Ok(());
        };
        self.measure(
            index,
            &folder.join(data),
            file.max_images,
            float.as_ref(),
            needed,
        )
    }

    fn measure(
        &mut self,
        index: usize,
        data: &Path,
        max_images: Option<usize>,
        float: Option<&FloatModel>,
        needed: &[&Point],
    ) -> Result<()> {
        let mut jobs: BTreeMap<(usize, String), Arithmetic> = BTreeMap::new();
        for point in needed {
            let arithmetic = point.machine.config.arithmetic;
            jobs.insert((point.quantizer, format!("{arithmetic:?}")), arithmetic);
        }
        let Some(first) = needed
            .first()
            .and_then(|point| self.integers.get(&(index, point.quantizer)))
        else {
            return Ok(());
        };
        let shape = first.network.tensor(first.network.input).shape;
        let mut dataset = Dataset::open(data, shape)?;
        dataset.truncate(max_images)?;
        let floats = match float {
            Some(float) if float.import.synthetic.is_empty() => {
                accuracy::float_outputs(float, first, &dataset)?
            }
            _ => Vec::new(),
        };
        let bar = output::progress("accuracy", jobs.len());
        for ((quantizer, key), arithmetic) in jobs {
            let model = &self.integers[&(index, quantizer)];
            // An accumulator that cannot hold the biases is the point's own error, found below.
            if let Ok(accuracy) = accuracy::measure(model, arithmetic, &dataset, &floats) {
                self.accuracies.insert((index, quantizer, key), accuracy);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }
}

fn is_float(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("onnx"))
}

fn quantized(
    float: &FloatModel,
    file: &NetworkFile,
    folder: &Path,
    flags: &Flags,
) -> Result<QuantizedModel> {
    // One network serves all machines, so it is made for the usual one.
    let machine = input::machine(None)?;
    let machine_bits = machine.config.arithmetic.accumulator.width_bits;
    let options = model::options(&flags.quantizer, machine_bits);
    let shape = float.input_shape();
    let preprocessing = Preprocessing::new(&file.preprocessing(), shape.channels)?;
    let Some(calibration) = &file.calibration else {
        ensure!(
            file.data.is_none() || !float.import.synthetic.is_empty(),
            "accuracy on `data` needs `calibration` images"
        );
        let network = quantizer::quantize(&float.import.network, None, &options)?;
        return Ok(QuantizedModel {
            network,
            preprocessing,
        });
    };
    let path: PathBuf = folder.join(calibration);
    let mut dataset = Dataset::open(&path, shape)?;
    dataset.truncate(file.max_calibration_images)?;
    let flags = (&flags.quantizer, &flags.tuning);
    let (model, _) = quantize::by_flags(float, flags, &machine, &dataset, preprocessing)?;
    Ok(model)
}

/// A point's line: network, settings, and [`COLUMNS`].
///
/// # Errors
/// None of the user's: what does not fit is in the line.
pub fn evaluate(networks: &Networks, point: &Point, name: &str) -> Result<super::Row> {
    let model = networks
        .integers
        .get(&(point.network, point.quantizer))
        .context("the point's network was not opened")?;
    let config = &point.machine.config;
    let mut row = vec![name.to_owned()];
    row.extend(point.settings.iter().cloned());
    row.push(format!("{:016x}", config.fingerprint()));
    let identity = networks.identities[&(point.network, point.quantizer)].clone();
    row.push(identity.fingerprint.clone());
    let report = Engine::timed(&model.network, config).and_then(|engine| {
        let header = Header::with("latency", config, identity);
        latency::report(header, &engine, &point.machine.energy)
    });
    let (cells, error) = match report {
        Ok(report) => {
            let cells = [
                report.total_cycles.to_string(),
                report.total_seconds.to_string(),
                report.frames_per_second.to_string(),
                report.n_macs.to_string(),
                report.compute_utilization.to_string(),
                report.over_roofline.to_string(),
                report.dram_read_bytes.to_string(),
                report.dram_written_bytes.to_string(),
                report.energy_fj.to_string(),
                report.average_watts.to_string(),
            ];
            (cells, String::new())
        }
        Err(error) => (Default::default(), output::explain(&error)),
    };
    row.extend(cells);
    row.push(sram(config).0.to_string());
    row.push(model.network.n_weights().to_string());
    row.push(weights(&model.network).0.to_string());
    let key = (
        point.network,
        point.quantizer,
        format!("{:?}", config.arithmetic),
    );
    let accuracy = networks.accuracies.get(&key).filter(|_| error.is_empty());
    let cell = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    row.push(cell(accuracy.and_then(|accuracy| accuracy.sqnr_db)));
    row.push(cell(accuracy.and_then(|accuracy| accuracy.top1)));
    row.push(cell(accuracy.and_then(|accuracy| accuracy.agreement)));
    row.push(accuracy.map_or(String::new(), |accuracy| accuracy.n_overflowed.to_string()));
    row.push(error);
    Ok(row)
}

/// All memories of the machine: scratchpads, parameter table, accumulator blocks.
fn sram(config: &Config) -> Bytes {
    let blocks = u64::from(config.n_blocks)
        * u64::from(config.block_rows)
        * u64::from(config.cols)
        * u64::from(config.arithmetic.accumulator.width_bits);
    Bytes(
        u64::from(config.activation_bytes)
            + u64::from(config.weight_bytes)
            + 8 * u64::from(config.n_parameters)
            + blocks.div_ceil(8),
    )
}

/// Weights at their own widths.
fn weights(network: &network::Network) -> Bytes {
    let bits = |layer: &network::Layer| {
        layer.conv().map_or(0, |conv| {
            conv.weights.len() as u64 * u64::from(conv.weight_bits)
        })
    };
    Bytes(network.layers.iter().map(bits).sum::<u64>().div_ceil(8))
}
