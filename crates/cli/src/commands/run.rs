//! `systole run`: images through the machine, and the proof that its models agree.

use super::{compare, compile};
use crate::{
    args::{ModelFlag, Run},
    data::{self, Dataset},
    engine::{self, Engine},
    input,
    model::QuantizedModel,
    output,
    report::{Checked, Header, ImageRun, Output, RunReport},
    tables,
};
use accelerator::event::Detail;
use anyhow::{Result, ensure};
use arith::ChannelOverflow;
use ndarray::Array3;
use network::TensorId;

/// Runs the command.
///
/// # Errors
/// Bad files, a program for another machine, or (exit code 1) models that disagree.
pub fn run(args: &Run) -> Result<()> {
    let config = input::machine(args.machine.as_deref())?;
    let model = QuantizedModel::open(&args.network)?;
    let shape = model.network.tensor(model.network.input).shape;
    let dataset = Dataset::open(&args.data, shape)?;
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
    let engine = match &args.program {
        Some(path) => Engine::with_program(&model.network, &config, compile::read_program(path)?)?,
        None => Engine::new(&model.network, &config)?,
    };
    let input = model.network.tensor(model.network.input);
    let first = images.start;
    let bar = output::progress("run", images.len());
    let results = engine::parallel(images, |index| {
        let image = dataset.image(index, &model.preprocessing);
        let integers = data::quantize(&image, input);
        let counts = if args.check {
            Some(engine.check(index, &integers, args.stepped)?)
        } else {
            None
        };
        let (outputs, records) = compute(&engine, args.model, &integers)?;
        bar.inc(1);
        Ok((
            outputs,
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
    for (position, (outputs, n_overflowed, counts)) in results.into_iter().enumerate() {
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
    let report = RunReport {
        header: Header::new("run", &config, &model.network),
        model: match args.model {
            ModelFlag::Event => "event",
            ModelFlag::Stepped => "stepped",
            ModelFlag::Oracle => "oracle",
        },
        total_cycles: (args.model != ModelFlag::Oracle).then(|| engine.plan.timing().total.0),
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

/// The network's outputs and the overflow records, by the model that was asked for.
fn compute(
    engine: &Engine<'_>,
    model: ModelFlag,
    image: &Array3<i32>,
) -> Result<(Vec<Array3<i32>>, Vec<ChannelOverflow>)> {
    let outputs = &engine.network.outputs;
    let read = |dram: &[u8]| {
        outputs
            .iter()
            .map(|&id: &TensorId| engine.tensor(dram, id))
            .collect::<Vec<_>>()
    };
    match model {
        ModelFlag::Event => {
            let (dram, records) = engine.run(image, Detail::Counts)?;
            Ok((read(&dram), records))
        }
        ModelFlag::Stepped => {
            let mut dram = engine.dram(image);
            let run = accelerator::stepped::run(&engine.program, engine.config, &mut dram)?;
            Ok((read(&dram), run.overflow))
        }
        ModelFlag::Oracle => {
            let all = network::evaluate(engine.network, engine.config.arithmetic, image)?;
            let values = outputs
                .iter()
                .map(|id| all.tensors[id.index()].clone())
                .collect();
            Ok((values, all.overflow.into_iter().flatten().collect()))
        }
    }
}
