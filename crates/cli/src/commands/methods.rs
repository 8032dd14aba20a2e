//! `systole methods`: quantization methods side by side, each quantized and measured here.
//!
//! Invariant: a line is what `systole quantize` with that method and `systole compare` would say;
//! no choice is made by the test images.

use super::{quantize::by_flags, train};
use crate::{
    args::{
        GranularityFlag, Keep, Methods, RecipeFlags, ScaleRuleFlag, TeacherFlags, Train, value_name,
    },
    data::{Dataset, Preprocessing},
    input,
    model::{FloatModel, QuantizedModel},
    output,
    sweep::{Accuracy, Flags, float_outputs, measure},
    tables,
};
use accelerator::Machine;
use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

const COLUMNS: [&str; 4] = ["top-1", "agreement", "SQNR dB", "overflowed steps"];

/// Runs the command.
///
/// # Errors
/// Bad files or flags, a layer without integer form.
pub fn run(args: &Methods) -> Result<()> {
    let float = FloatModel::open(&args.model, None)?;
    let machine = input::machine(args.machine.as_deref())?;
    let mut test = Test {
        args,
        machine: &machine,
        float: &float,
        dataset: Dataset::open(&args.data, float.input_shape())?,
        floats: Vec::new(),
    };
    test.dataset.truncate(args.max_images)?;
    let mut rows = Vec::new();
    for &granularity in &args.granularities {
        for &method in &args.compared {
            let name = method.name();
            output::tell(&format!("{name}, {}", name_of(granularity)));
            let mut flags = Flags::try_parse_from(["quantizer"])?;
            flags.quantizer.method = method;
            flags.quantizer.granularity = granularity;
            flags.quantizer.weight_bits = args.weight_bits;
            flags.quantizer.activation_bits = args.activation_bits;
            flags.quantizer.accumulator_bits = args.accumulator_bits;
            let model = test
                .quantize(&flags)
                .with_context(|| format!("{}: {name}", args.model.display()))?;
            rows.push(test.row(&name, name_of(granularity), &model)?);
        }
        let Some(images) = &args.train else {
            continue;
        };
        for &rule in &args.scale_rules {
            let name = format!("trained, {}", value_name(&rule));
            output::tell(&format!("{name}, {}", name_of(granularity)));
            let model = train::trained(&course(args, images, granularity, rule)?, &float)?;
            rows.push(test.row(&name, name_of(granularity), &model)?);
        }
    }
    for network in &args.networks {
        let model = QuantizedModel::open(&network.file)?;
        let shape = model.network.tensor(model.network.input).shape;
        ensure!(
            shape == float.input_shape(),
            "{} takes {shape}: it was not made from {}",
            network.file.display(),
            args.model.display()
        );
        rows.push(test.row(&network.name, granularity_of(&model), &model)?);
    }
    let table = if args.markdown { markdown } else { plain };
    output::print(&format!("{}\n{}\n", table(rows), test.about()?))
}

/// The flags of `systole train` for a line of the table.
fn course(
    args: &Methods,
    images: &Path,
    granularity: GranularityFlag,
    scale_rule: ScaleRuleFlag,
) -> Result<Train> {
    let mut quantizer = Flags::try_parse_from(["quantizer"])?.quantizer;
    quantizer.granularity = granularity;
    quantizer.weight_bits = args.weight_bits;
    quantizer.activation_bits = args.activation_bits;
    quantizer.accumulator_bits = args.accumulator_bits;
    let mut recipe = RecipeFlags::try_parse_from(["recipe"])?;
    recipe.epochs = args.epochs;
    recipe.rate = args.rate;
    recipe.distill = args.distill;
    Ok(Train {
        model: args.model.clone(),
        data: images.to_owned(),
        validation: None,
        keep: Keep::Last,
        calibration: Some(args.calibration.clone()),
        max_images: None,
        machine: args.machine.clone(),
        preprocessing: args.preprocessing.clone(),
        quantizer,
        scale_rule,
        recipe,
        teacher: TeacherFlags::default(),
        checkpoint: None,
        checkpoint_every: u64::MAX,
        resume: false,
        log: None,
        curve: None,
        float: false,
        from_scratch: false,
        output: PathBuf::new(),
    })
}

/// What all methods are tried on.
struct Test<'a> {
    args: &'a Methods,
    machine: &'a Machine,
    float: &'a FloatModel,
    dataset: Dataset,
    /// The float model's outputs, once they are needed.
    floats: Vec<f32>,
}

impl Test<'_> {
    fn quantize(&self, flags: &Flags) -> Result<QuantizedModel> {
        let shape = self.float.input_shape();
        let preprocessing = Preprocessing::new(&self.args.preprocessing, shape.channels)?;
        let calibration = Dataset::open(&self.args.calibration, shape)?;
        let flags = (&flags.quantizer, &self.args.tuning);
        let (model, _) = by_flags(self.float, flags, self.machine, &calibration, preprocessing)?;
        Ok(model)
    }

    fn row(&mut self, name: &str, scales: &str, model: &QuantizedModel) -> Result<Vec<String>> {
        if self.floats.is_empty() {
            self.floats = float_outputs(self.float, model, &self.dataset)?;
        }
        let arithmetic = self.machine.config.arithmetic;
        let Accuracy {
            sqnr_db,
            top1,
            agreement,
            n_overflowed,
        } = measure(model, arithmetic, &self.dataset, &self.floats)?;
        let share = |share: Option<f64>| {
            share.map_or_else(|| "-".to_owned(), |share| format!("{:.2} %", share * 100.0))
        };
        Ok(vec![
            name.to_owned(),
            scales.to_owned(),
            share(top1),
            share(agreement),
            sqnr_db.map_or_else(|| "-".to_owned(), |db| format!("{db:.2}")),
            n_overflowed.to_string(),
        ])
    }

    /// What the numbers are of, and what float reaches.
    fn about(&self) -> Result<String> {
        let n = self.dataset.len();
        let mut text = format!(
            "{n} images, W{}A{}, {}-bit accumulators ({})",
            self.args.weight_bits,
            self.args.activation_bits,
            self.machine.config.arithmetic.accumulator.width_bits,
            self.machine.config.name
        );
        if let Some(labels) = &self.dataset.labels {
            let length = self.floats.len() / n.max(1);
            ensure!(length > 0, "neither a method nor a network to measure");
            let outputs = self.floats.chunks_exact(length);
            let right = outputs
                .zip(labels)
                .filter(|(output, label)| super::compare::largest(output.iter()) == **label)
                .count();
            let _ = write!(text, "; float {:.2} %", 100.0 * right as f64 / n as f64);
        }
        Ok(text)
    }
}

fn name_of(granularity: GranularityFlag) -> &'static str {
    match granularity {
        GranularityFlag::PerChannel => "per channel",
        GranularityFlag::PerTensor => "per tensor",
    }
}

fn granularity_of(model: &QuantizedModel) -> &'static str {
    let mut convs = model.network.layers.iter().filter_map(|layer| layer.conv());
    let is_per_channel = convs.any(|conv| conv.weight_scales.len() > 1);
    name_of(if is_per_channel {
        GranularityFlag::PerChannel
    } else {
        GranularityFlag::PerTensor
    })
}

fn plain(rows: Vec<Vec<String>>) -> String {
    format!(
        "{}\n",
        tables::plain(&["method", "weight scales"], &COLUMNS, rows)
    )
}

fn markdown(rows: Vec<Vec<String>>) -> String {
    let mut text = format!("| method | weight scales | {} |\n", COLUMNS.join(" | "));
    text.push_str("| --- | --- |");
    text.push_str(&" ---: |".repeat(COLUMNS.len()));
    text.push('\n');
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}
