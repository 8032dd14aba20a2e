//! `systole machines` and `systole schema`: what there is to know about machine files.

use crate::{args::Machines, output, tables};
use accelerator::{Machine, presets};
use anyhow::{Context, Result, bail};

/// Lists the presets, or prints the file of one.
///
/// # Errors
/// There is no preset of that name.
pub fn run(args: &Machines) -> Result<()> {
    if let Some(name) = &args.name {
        let Some(preset) = presets::find(name) else {
            bail!("no machine is named {name:?}: `systole machines` lists them");
        };
        return output::print(preset.text);
    }
    let machines = presets::PRESETS
        .iter()
        .map(|preset| {
            let machine = Machine::from_toml(preset.text)
                .with_context(|| format!("the embedded machine {}", preset.name))?;
            Ok((machine.config, preset.summary()))
        })
        .collect::<Result<Vec<_>>>()?;
    output::print(&tables::machines(&machines))
}

/// Prints the JSON Schema of machine files.
///
/// # Errors
/// Standard output cannot be written.
pub fn schema() -> Result<()> {
    output::print_json(&accelerator::schema())
}
