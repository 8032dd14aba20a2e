//! `systole run`: images through the machine, and the proof that its models agree.

use super::{compare, compile, quantize, waves};
use crate::{
    args::{ModelFlag, Run},
    data::{self, Dataset, Preprocessing},
    engine::{self, Contents, Engine},
    input,
    model::{self, FloatModel, QuantizedModel},
    npy, output,
    report::{Checked, Header, ImageRun, Output, RunReport},
    tables,
};
use accelerator::event::Detail;
use anyhow::{Context, Result, ensure};
use arith::ChannelOverflow;
use ndarray::Array3;
use network::{Network, TensorId};
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// Bad files, a program for another machine, or (exit code 1) models that disagree.
pub fn run(args: &Run) -> Result<()> {
    let config = input::machine(args.machine.as_deref())?.config;
    let accumulator_bits = config.arithmetic.accumulator.width_bits;
    let (model, dataset) = open(args, accumulator_bits)?;
    let images = if args.all {
        0..dataset.len()
    } else {
        let n = dataset.len();
        ensure!(
            args.image < n,
            "--image {}: there are {n} images, counted from 0",
            args.image
        );
        args.image..args.image + 1
    };
    ensure!(
        args.program.is_none() || args.model != ModelFlag::Oracle,
        "--program: the oracle computes layers, not instructions; --model event or stepped runs programs"
    );
    let engine = match &args.program {
        Some(path) => Engine::with_program(&model.network, &config, compile::read_program(path)?)?,
        None => Engine::new(&model.network, &config)?,
    };
    if let Some(path) = &args.dump_tensors {
        output::check_writable(path)?;
    }
    let waves = waves::Wanted::of(args, &engine)?;
    // Tensors that stay on chip are looked at in a program that stores them too.
    let observed = match &args.program {
        None if args.check || args.dump_tensors.is_some() => {
            Some(Engine::observed(&model.network, &config)?)
        }
        _ => None,
    };
    let dumping = match (&args.dump_tensors, &observed) {
        (Some(_), Some(observed)) => observed,
        (Some(_), None) => {
            engine.ensure_all_in_dram()?;
            &engine
        }
        (None, _) => &engine,
    };
    let input = model.network.tensor(model.network.input);
    let wanted = match &args.dump_tensors {
        Some(_) => (0..model.network.tensors.len()).map(TensorId).collect(),
        None => model.network.outputs.clone(),
    };
    let first = images.start;
    let bar = output::progress("run", images.len());
    let results = engine::parallel(images, |index| {
        let image = dataset.image(index, &model.preprocessing);
        let integers = data::quantize(&image, input);
        let checked = if args.check {
            let oracle = network::evaluate(&model.network, config.arithmetic, &integers)?;
            let mut checked = engine.check(index, &integers, &oracle, args.stepped)?;
            if let Some(observed) = &observed {
                let all = observed.check(index, &integers, &oracle, false)?;
                checked = (
                    if args.dump_tensors.is_some() {
                        all.0
                    } else {
                        checked.0
                    },
                    all.1,
                );
            }
            Some(checked)
        } else {
            None
        };
        if let Some(waves) = &waves {
            waves.write(&engine, &integers)?;
        }
        let (known, counts) = checked.unzip();
        let (values, records) = compute(dumping, args.model, &integers, &wanted, known)?;
        let dumped: Vec<Vec<u8>> = match &args.dump_tensors {
            Some(_) => wanted.iter().zip(&values).map(packed(&engine)).collect(),
            None => Vec::new(),
        };
        bar.inc(1);
        Ok((
            outputs_of(&engine, &wanted, values),
            dumped,
            records.iter().map(|record| record.n_overflowed).sum(),
            counts,
        ))
    })?;
    bar.finish_and_clear();
    let mut checked = args.check.then(|| Checked {
        stepped: args.stepped,
        ..Checked::default()
    });
    let mut reports = Vec::with_capacity(results.len());
    let mut dumps = Vec::new();
    for (position, (outputs, dumped, n_overflowed, counts)) in results.into_iter().enumerate() {
        dumps.push(dumped);
        let image = first + position;
        if let (Some(checked), Some([n_tensors, n_values, n_records])) = (&mut checked, counts) {
            checked.n_images += 1;
            checked.n_tensors += n_tensors;
            checked.n_values += n_values;
            checked.n_overflow_records += n_records;
        }
        reports.push(ImageRun {
            image,
            label: dataset.labels.as_ref().map(|labels| labels[image]),
            top1: outputs
                .first()
                .map_or(0, |output| compare::largest(output.iter())),
            n_overflowed,
            outputs: named(&engine, outputs),
        });
    }
    if let Some(path) = &args.dump_tensors {
        dump(path, &model.network, &dumps)?;
    }
    let report = RunReport {
        header: Header::new("run", &config, &model.network),
        model: match args.model {
            ModelFlag::Event => "event",
            ModelFlag::Stepped => "stepped",
            ModelFlag::Oracle => "oracle",
        },
        total_cycles: (args.model != ModelFlag::Oracle).then_some(engine.timing.total.0),
        checked,
        images: reports,
    };
    if args.json {
        return output::print_json(&report);
    }
    output::print(&format!(
        "{}\n{}",
        tables::header(&report.header),
        tables::run(&report)
    ))
}

/// The network and what goes in. A float model is quantized with its inputs as calibration.
fn open(args: &Run, accumulator_bits: u8) -> Result<(QuantizedModel, Dataset)> {
    if model::is_network(&args.network)? {
        args.uncalibrated.ensure_none(&args.network)?;
        let model = QuantizedModel::open(&args.network)?;
        let shape = model.network.tensor(model.network.input).shape;
        let dataset = Dataset::of_flags(&args.inputs, shape)?;
        return Ok((model, dataset));
    }
    let float = FloatModel::open(&args.network, args.uncalibrated.synthetic_weights)?;
    let dataset = Dataset::of_flags(&args.inputs, float.input_shape())?;
    let options = args.uncalibrated.options(accumulator_bits);
    let model = quantize::quantize(&float, &options, &dataset, Preprocessing::default())
        .with_context(|| args.network.display().to_string())?;
    Ok((model, dataset))
}

fn named(engine: &Engine<'_>, outputs: Vec<Array3<i32>>) -> Vec<Output> {
    let ids = engine.network.outputs.iter();
    ids.zip(outputs)
        .map(|(&id, values)| {
            let tensor = engine.network.tensor(id);
            Output {
                tensor: tensor.name.clone(),
                shape: values.dim().into(),
                scale: tensor.scale.real(),
                integers: values.iter().copied().collect(),
            }
        })
        .collect()
}

/// Of all `values`, those that are the network's outputs.
fn outputs_of(engine: &Engine<'_>, ids: &[TensorId], values: Vec<Array3<i32>>) -> Vec<Array3<i32>> {
    let outputs = &engine.network.outputs;
    if ids == outputs.as_slice() {
        return values;
    }
    let value = |id: &TensorId| {
        let position = ids.iter().position(|wanted| wanted == id);
        values[position.expect("outputs are among all tensors")].clone()
    };
    outputs.iter().map(value).collect()
}

/// One tensor's integers as bytes of the type that [`dump`] gives it.
fn packed(engine: &Engine<'_>) -> impl Fn((&TensorId, &Array3<i32>)) -> Vec<u8> {
    |(&id, values)| {
        let format = engine.network.tensor(id).format;
        if format.bits <= 8 {
            values.iter().map(|&value| value as u8).collect()
        } else {
            let halves = |&value: &i32| (value as u16).to_le_bytes();
            values.iter().flat_map(halves).collect()
        }
    }
}

/// Writes every tensor of every image: images × channels × height × width, in the narrowest of int8,
/// uint8, int16 and uint16.
fn dump(path: &Path, network: &Network, images: &[Vec<Vec<u8>>]) -> Result<()> {
    let names = network.unique_names();
    output::write_file_with(path, |file| {
        let mut archive = npy::NpzWriter::new(file);
        for (id, (name, tensor)) in names.iter().zip(&network.tensors).enumerate() {
            let descr = match (tensor.format.bits > 8, tensor.format.signed) {
                (false, false) => "|u1",
                (false, true) => "|i1",
                (true, false) => "<u2",
                (true, true) => "<i2",
            };
            let (channels, height, width) = tensor.shape.dim();
            let shape = [images.len(), channels, height, width];
            archive.add(name, descr, &shape, images.iter().map(|image| &image[id]))?;
        }
        archive.finish()
    })
}

/// The tensors `ids` and the overflow records, by the model that was asked for; `known` is what the
/// event model has left already.
fn compute(
    engine: &Engine<'_>,
    model: ModelFlag,
    image: &Array3<i32>,
    ids: &[TensorId],
    known: Option<Contents>,
) -> Result<(Vec<Array3<i32>>, Vec<ChannelOverflow>)> {
    let read = |dram: &[u8]| {
        ids.iter()
            .map(|&id: &TensorId| engine.tensor(dram, id))
            .collect::<Vec<_>>()
    };
    match model {
        ModelFlag::Event => {
            let (dram, records) = match known {
                Some(known) => known,
                None => engine.run(image, Detail::Counts)?,
            };
            Ok((read(&dram), records))
        }
        ModelFlag::Stepped => {
            let mut dram = engine.dram(image);
            let run = accelerator::stepped::run(&engine.program, engine.config, &mut dram)?;
            Ok((read(&dram), run.overflow))
        }
        ModelFlag::Oracle => {
            let all = network::evaluate(engine.network, engine.config.arithmetic, image)?;
            let values = ids
                .iter()
                .map(|id| all.tensors[id.index()].clone())
                .collect();
            Ok((values, all.overflow.into_iter().flatten().collect()))
        }
    }
}
