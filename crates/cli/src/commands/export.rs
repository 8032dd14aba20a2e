//! `systole export-onnx`: the integer network for other runtimes.

use crate::{args::ExportOnnx, input, model::QuantizedModel, output};
use anyhow::{Context, Result};
use export::{Form, Numbers};
use std::collections::BTreeMap;

/// Runs the command.
///
/// # Errors
/// Bad files, a network that has no such form, an output that cannot be written.
pub fn run(args: &ExportOnnx) -> Result<()> {
    let config = input::machine(args.machine.as_deref())?.config;
    let model = QuantizedModel::open(&args.network)?;
    output::check_writable(&args.output)?;
    let options = export::Options {
        rounding: config.arithmetic.rounding,
        float_input: args.float_input,
        float_output: args.float_output,
        every_tensor: args.every_tensor,
    };
    let made = export::export(&model.network, options)
        .with_context(|| args.network.display().to_string())?;
    output::write_file(&args.output, &made.bytes)?;
    let mut counts: BTreeMap<Form, usize> = BTreeMap::new();
    for &form in &made.forms {
        *counts.entry(form).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(&form, n)| format!("{n} {}", description(form)))
        .collect();
    output::print(&format!(
        "{}: {} layers: {}\nwritten to {}\n",
        model.network.name,
        made.forms.len(),
        counts.join(", "),
        args.output.display()
    ))
}

fn description(form: Form) -> &'static str {
    match form {
        Form::OneNode => "as QLinearConv",
        Form::Explicit(Numbers::Float32) => "requantized in float32",
        Form::Explicit(Numbers::Float64) => "requantized in float64",
        Form::Explicit(Numbers::Int64) => "requantized in int64",
        Form::Copied => "without arithmetic",
    }
}
