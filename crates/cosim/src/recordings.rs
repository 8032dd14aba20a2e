//! The files in `traces/`: written by the RTL, repeated by the RTL, judged against the models.
//!
//! Invariant: a recording names machine, program and data, so that it does not depend on how the
//! programs of the comparison are made today.

use crate::{
    Difference, Error, Model, Observed, Outcome, Rtl, Trace, compare, file_error, model, suite,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::xxh3_64;

/// The recordings of a directory, in order of their names.
///
/// # Errors
/// The directory cannot be read.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(file_error(directory))? {
        let path = entry.map_err(file_error(directory))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "trace")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Writes the suite's choice of runs, and removes recordings that are no longer part of it.
/// Returns how many were written.
///
/// # Errors
/// A run fails, or a file cannot be written.
pub fn record(rtl: &Rtl, directory: &Path) -> Result<usize, Error> {
    let mut written = BTreeSet::new();
    for (file, config, program) in suite::recorded() {
        let run = rtl.run(
            &program,
            &config,
            &crate::image(&program),
            suite::MAX_CYCLES,
        )?;
        let text = Trace::to_text(&config, &program, &run.outcome)?;
        let path = directory.join(format!("{file}.trace"));
        fs::write(&path, text).map_err(file_error(&path))?;
        written.insert(path);
    }
    for path in files(directory)? {
        if !written.contains(&path) {
            fs::remove_file(&path).map_err(file_error(&path))?;
        }
    }
    Ok(written.len())
}

/// What stands in a recording.
///
/// # Errors
/// It cannot be read, or is no trace.
pub fn read(path: &Path) -> Result<(String, Trace), Error> {
    let text = fs::read_to_string(path).map_err(file_error(path))?;
    let trace = Trace::from_text(&text)?;
    Ok((text, trace))
}

/// Runs a recording on today's RTL; the first line of the file that it would write otherwise.
///
/// # Errors
/// The recording cannot be read, or the RTL cannot run it.
pub fn repeat(rtl: &Rtl, path: &Path) -> Result<Option<String>, Error> {
    let (text, trace) = read(path)?;
    let run = rtl.run(
        &trace.program,
        &trace.config,
        &trace.dram(),
        suite::MAX_CYCLES,
    )?;
    let today = Trace::to_text(&trace.config, &trace.program, &run.outcome)?;
    if text == today {
        return Ok(None);
    }
    let mut lines = text.lines().zip(today.lines()).enumerate();
    Ok(Some(match lines.find(|(_, (then, now))| then != now) {
        Some((i, (then, now))) => {
            format!("line {}: recorded {then:?}, today {now:?}", i + 1)
        }
        None => format!("{} bytes recorded, {} today", text.len(), today.len()),
    }))
}

/// Compares a recording with a model.
///
/// # Errors
/// The model refuses the program.
pub fn judge(trace: &Trace, which: Model) -> Result<Option<Difference>, Error> {
    let run = model(which, &trace.program, &trace.config, &trace.dram())?;
    let dataflow = trace.config.dataflow;
    let Outcome::Finished(run) = run else {
        return Ok(compare(&trace.program, dataflow, &trace.outcome, &run));
    };
    let hash = xxh3_64(&run.dram);
    let run = Observed {
        dram: Vec::new(),
        ..run
    };
    let difference = compare(
        &trace.program,
        dataflow,
        &trace.outcome,
        &Outcome::Finished(run),
    );
    Ok(difference.or_else(|| {
        (hash != trace.dram_hash).then(|| Difference {
            instruction: None,
            mnemonic: "?",
            cycle: None,
            signal: "hash of DRAM".to_owned(),
            rtl: format!("{:016x}", trace.dram_hash),
            model: format!("{hash:016x}"),
        })
    }))
}
