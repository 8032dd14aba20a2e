//! The waveform of a run: cycles of the stepped model as an FST or VCD file.
//!
//! Invariant: what is asked for is checked before anything long begins; the waveform's run is held to
//! the event model's cycles.

use crate::{
    args::Run,
    engine::{CheckFailed, Engine},
    output,
};
use accelerator::stepped;
use anyhow::{Result, bail, ensure};
use ndarray::Array3;
use std::{io::BufWriter, ops::Range, path::PathBuf};
use waveform::{Format, Waves};

/// A waveform that is to be written.
pub struct Wanted {
    path: PathBuf,
    format: Format,
    window: Range<u64>,
}

impl Wanted {
    /// What the flags ask for, of a program.
    ///
    /// # Errors
    /// An unknown kind of file, a window behind the run's end, a file that cannot be written.
    pub fn of(args: &Run, engine: &Engine<'_>) -> Result<Option<Self>> {
        let Some(path) = &args.waves else {
            return Ok(None);
        };
        let extension = path.extension().and_then(|extension| extension.to_str());
        let Some(format) = extension.and_then(Format::of_extension) else {
            bail!(
                "--waves {}: its name must end in .fst or .vcd",
                path.display()
            );
        };
        let total = engine.plan.timing().total.0;
        let from = args.wave_cycles.from;
        ensure!(
            from < total,
            "--wave-cycles: the window begins at cycle {from}, and the run has {total}, counted from 0"
        );
        output::check_writable(path)?;
        Ok(Some(Self {
            path: path.clone(),
            format,
            window: from..args.wave_cycles.to.map_or(total, |to| to.min(total)),
        }))
    }

    /// Runs the stepped model on an image and writes the file.
    ///
    /// # Errors
    /// The file cannot be written, or the models disagree.
    pub fn write(&self, engine: &Engine<'_>, image: &Array3<i32>) -> Result<()> {
        output::write_file_with(&self.path, |file| {
            let out = BufWriter::new(file);
            let mut waves = Waves::new(out, self.format, self.window.clone());
            let mut dram = engine.dram(image);
            let (program, config) = (&engine.program, engine.config);
            let window = self.window.clone();
            let run = stepped::run_watched(program, config, &mut dram, window, &mut waves)?;
            if run.timing != *engine.plan.timing() {
                let message = "cycles of event and stepped model differ".to_owned();
                bail!(CheckFailed::new(message));
            }
            Ok(waves.finish()?)
        })
    }
}
