//! `systole demo`: the whole path on an embedded network, told as a story.
//!
//! The network is a small CNN trained on the scikit-learn digits (UCI "Optical Recognition of
//! Handwritten Digits", CC BY 4.0); `assets/train_digits.py` made it.

use super::{compare, latency, overflow, quantize};
use crate::{
    args::Demo,
    data::{Dataset, Preprocessing},
    engine::Engine,
    input,
    model::{FloatModel, QuantizedModel},
    output,
    report::DemoReport,
    tables,
};
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
    let missing = |name: &str| Err(io::Error::new(io::ErrorKind::NotFound, name.to_owned()));
    let float = FloatModel::from_bytes(MODEL.to_vec(), None, &missing)?;
    let shape = float.input_shape();
    let preprocessing = Preprocessing {
        scale: Some(SCALE),
        ..Preprocessing::default()
    };
    let options = quantizer::Options {
        weight_bits: 4,
        activation_bits: 4,
        method: quantizer::Method::Mse,
        accumulator_bits: config.arithmetic.accumulator.width_bits,
        granularity: quantizer::Granularity::PerChannel,
        ..quantizer::Options::default()
    };
    let calibration = Dataset::from_bytes(CALIBRATION, shape).context("embedded calibration")?;
    let n_calibration = calibration.len();
    let model = quantize::quantize(&float, &options, &calibration, preprocessing)?;
    let test = Dataset::from_bytes(TEST, shape).context("embedded test images")?;
    let engine = Engine::new(&model.network, &config)?;
    let report = DemoReport {
        systole: env!("CARGO_PKG_VERSION"),
        command: "demo",
        latency: latency::report(&engine, &machine.energy)?,
        overflow: overflow::report(&engine, &model, &test, N_WORST)?,
        compare: compare::report(&engine, &model, &float, &test)?,
    };
    if args.json {
        return output::print_json(&report);
    }
    output::print(&story(&report, &model, n_calibration))
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
