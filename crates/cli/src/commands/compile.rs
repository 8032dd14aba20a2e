//! `systole compile`, `disasm`, `assemble`: networks to programs, programs to text and back.

use crate::{
    args::{Assemble, Compile, Disasm, Stage},
    input, model, output,
    report::Header,
    tables,
};
use accelerator::Config;
use anyhow::{Context, Result, bail};
use compiler::Explanation;
use isa::Program;
use network::Network;
use serde::Serialize;
use std::path::Path;

/// Largest program, as bytes or text.
const MAX_PROGRAM_BYTES: u64 = 1 << 30;

/// `systole compile`.
///
/// # Errors
/// Bad files, a machine too small for the network, an output that cannot be written.
pub fn compile(args: &Compile) -> Result<()> {
    let config = input::machine(args.machine.as_deref())?.config;
    let accumulator_bits = config.arithmetic.accumulator.width_bits;
    if let Some(layer) = &args.explain {
        let network = model::open_for_time(&args.network, &args.uncalibrated, accumulator_bits)?;
        return explain(&network, &config, layer, args.json);
    }
    let (model, float) = model::open_any(&args.network, &args.uncalibrated, accumulator_bits)?;
    if let Some(path) = &args.output {
        output::check_writable(path)?;
    }
    match (args.emit, &float) {
        (Some(Stage::Folded), Some(float)) => {
            output::print(&float.import.network.to_string())?;
        }
        (Some(Stage::Folded), None) => {
            bail!("--emit folded shows the float model: it needs an .onnx file");
        }
        (Some(Stage::Integer), _) => output::print(&model.network.to_string())?,
        (Some(Stage::Tiled | Stage::Asm) | None, _) => {}
    }
    let needs_program =
        args.output.is_some() || !matches!(args.emit, Some(Stage::Folded | Stage::Integer));
    if !needs_program {
        return Ok(());
    }
    let compiled = compiler::compile(&model.network, &config)
        .with_context(|| format!("machine {}", config.name))?;
    match args.emit {
        Some(Stage::Tiled) => output::print(&compiled.tiled())?,
        Some(Stage::Asm) => output::print(&compiled.asm())?,
        Some(Stage::Folded | Stage::Integer) => {}
        None => output::print(&format!(
            "{}: {} instructions for machine {} ({:016x}), {} bytes of DRAM\n",
            model.network.name,
            compiled.program.instructions.len(),
            config.name,
            config.fingerprint(),
            compiled.program.dram_bytes
        ))?,
    }
    if let Some(path) = &args.output {
        output::write_file(path, &compiled.program.to_bytes()?)?;
    }
    Ok(())
}

/// `systole compile --explain`.
fn explain(network: &Network, config: &Config, layer: &str, json: bool) -> Result<()> {
    #[derive(Serialize)]
    struct Report {
        #[serde(flatten)]
        header: Header,
        #[serde(flatten)]
        explanation: Explanation,
    }
    let explanation = compiler::explain(network, config, layer)
        .with_context(|| format!("machine {}", config.name))?;
    let header = Header::new("compile --explain", config, network);
    if json {
        return output::print_json(&Report {
            header,
            explanation,
        });
    }
    output::print(&format!(
        "{}\n{}",
        tables::header(&header),
        tables::explain(&explanation)
    ))
}

/// `systole disasm`.
///
/// # Errors
/// The file is missing, damaged or no program.
pub fn disasm(args: &Disasm) -> Result<()> {
    output::print(&read_program(&args.program)?.to_text())
}

/// `systole assemble`.
///
/// # Errors
/// The text is wrong (the message names the line), or the output cannot be written.
pub fn assemble(args: &Assemble) -> Result<()> {
    let text = input::read_text(&args.text, MAX_PROGRAM_BYTES)?;
    let program = Program::from_text(&text).with_context(|| args.text.display().to_string())?;
    output::write_file(&args.output, &program.to_bytes()?)
}

/// Reads a program file.
///
/// # Errors
/// The file is missing, damaged or no program.
pub fn read_program(path: &Path) -> Result<Program> {
    let bytes = input::read(path, MAX_PROGRAM_BYTES)?;
    Program::from_bytes(&bytes).with_context(|| path.display().to_string())
}
