//! `systole demo`: the whole path on an embedded network, told as a story.
//!
//! The network is a small CNN trained on the scikit-learn digits (UCI "Optical Recognition of
//! Handwritten Digits", CC BY 4.0); `assets/train_digits` made it.

use super::{compare, latency, overflow, quantize};
use crate::{
    args::Demo,
    data::{Dataset, Preprocessing},
    engine::Engine,
    input,
    model::{FloatModel, QuantizedModel},
    output,
    report::{DemoReport, Header},
    tables,
};
use accelerator::Config;
use anyhow::{Context, Result};
use std::{fmt::Write, io};

const MODEL: &[u8] = include_bytes!("../../assets/digits.onnx");
const CALIBRATION: &[u8] = include_bytes!("../../assets/digits_calibration.npz");
const TEST: &[u8] = include_bytes!("../../assets/digits_test.npz");
/// The data set's pixels go from 0 to 16, the network was trained on 0 to 1.
const SCALE: f32 = 1.0 / 16.0;
const N_WORST: usize = 5;

/// Runs the command.
///
/// # Errors
/// A bad machine file, or one too small for the network.
pub fn run(args: &Demo) -> Result<()> {
    let machine = input::machine(args.machine.as_deref())?;
    let config = machine.config;
    let float = float()?;
    let (model, n_calibration) = quantized(&float, &config)?;
    let test = test_images(&float)?;
    let engine = Engine::new(&model.network, &config)?;
    let report = DemoReport {
        systole: env!("CARGO_PKG_VERSION"),
        command: "demo",
        latency: latency::report(
            Header::new("latency", engine.config, engine.network),
            &engine,
            &machine.energy,
        )?,
        overflow: overflow::report(&engine, &model, &test, N_WORST)?,
        compare: compare::report(&engine, &model, &float, &test)?,
    };
    if args.json {
        return output::print_json(&report);
    }
    output::print(&story(&report, &model, n_calibration))
}

fn float() -> Result<FloatModel> {
    let missing = |name: &str| Err(io::Error::new(io::ErrorKind::NotFound, name.to_owned()));
    FloatModel::from_bytes(MODEL.to_vec(), None, &missing)
}

fn test_images(float: &FloatModel) -> Result<Dataset> {
    Dataset::from_bytes(TEST, float.input_shape()).context("embedded test images")
}

/// The integer network, and the number of images that calibrated it.
fn quantized(float: &FloatModel, config: &Config) -> Result<(QuantizedModel, usize)> {
    let preprocessing = Preprocessing {
        scale: Some(SCALE),
        ..Preprocessing::default()
    };
    let options = quantizer::Options {
        weight_bits: 4,
        activation_bits: 4,
        method: quantizer::Method::Mse,
        granularity: quantizer::Granularity::PerChannel,
        ..quantizer::Options::for_accumulators(config.arithmetic.accumulator.width_bits)
    };
    let calibration =
        Dataset::from_bytes(CALIBRATION, float.input_shape()).context("embedded calibration")?;
    let n_calibration = calibration.len();
    let model = quantize::quantize(float, &options, &calibration, preprocessing)?;
    Ok((model, n_calibration))
}

fn story(report: &DemoReport, model: &QuantizedModel, n_calibration: usize) -> String {
    let mut text = String::new();
    let mut line = |sentence: std::fmt::Arguments<'_>| {
        text.write_fmt(sentence)
            .and_then(|()| text.write_char('\n'))
            .expect("strings grow");
    };
    let header = &report.latency.header;
    line(format_args!("systole {} demo", report.systole));
    line(format_args!(
        "A small CNN that reads handwritten digits (8 × 8 pixels), {} layers, {} MACs, {} weights.",
        model.network.layers.len(),
        tables::grouped(report.latency.n_macs),
        tables::grouped(model.network.n_weights() as u64)
    ));
    line(format_args!(
        "Batch norm folded, then quantized to 4-bit weights and activations (mse, per channel, {n_calibration} calibration images),"
    ));
    line(format_args!(
        "compiled for machine {} ({}) and run there bit by bit.\n",
        header.machine.name, header.machine.fingerprint
    ));
    line(format_args!("1. How long does an image take, and why?\n"));
    line(format_args!("{}", tables::latency(&report.latency, false)));
    line(format_args!("2. Do the accumulators overflow?\n"));
    line(format_args!("{}", tables::overflow(&report.overflow)));
    line(format_args!("3. What do 4 bits cost?\n"));
    text.push_str(&tables::compare(&report.compare));
    text
}

#[cfg(test)]
mod tests {
    use super::{float, quantized, test_images};
    use crate::{data, input};
    use std::{env, fmt::Write, fs, path::Path};

    /// The co-simulation cannot quantize, so what it runs are files; they are what `demo` runs on its
    /// default machine: the integer network, and three test images as the network takes them.
    #[test]
    fn the_co_simulation_runs_this_network() {
        let config = input::machine(None).expect("the default").config;
        let float = float().expect("embedded");
        let (model, _) = quantized(&float, &config).expect("embedded");
        let test = test_images(&float).expect("embedded");
        let labels = test.labels.as_ref().expect("embedded images have labels");
        let tensor = model.network.tensor(model.network.input);
        let mut images = String::new();
        for index in [0, 150, 300] {
            let _ = writeln!(images, "label {}", labels[index]);
            let image = data::quantize(&test.image(index, &model.preprocessing), tensor);
            for row in image.rows() {
                let row: Vec<String> = row.iter().map(i32::to_string).collect();
                let _ = writeln!(images, "{}", row.join(" "));
            }
        }
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cosim/assets");
        for (name, expected) in [
            ("digits.safetensors", model.to_bytes()),
            ("digits.txt", images.into_bytes()),
        ] {
            let path = assets.join(name);
            if env::var_os("UPDATE_EXPECT").is_some() {
                fs::write(&path, &expected).expect("assets are writable");
            }
            let found = fs::read(&path).expect("an asset of the co-simulation");
            assert!(
                found == expected,
                "{name} is not what the demo runs; UPDATE_EXPECT=1 writes it anew"
            );
        }
    }
}
