//! Everything that leaves the program: standard output, files, errors, progress.
//!
//! Invariant: a file appears whole or not at all; a closed pipe ends the program quietly; nothing
//! here depends on the clock.

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use std::{
    io::{ErrorKind, Write},
    path::Path,
};

/// Prints `text`. A reader that has gone away is no error.
///
/// # Errors
/// Standard output cannot be written for another reason (a full disk).
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Tells people something on standard error, whether or not anyone listens.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a report as JSON, with a line end.
///
/// # Errors
/// As [`print()`].
pub fn print_json(report: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(report).context("cannot make JSON")?;
    text.push('\n');
    print(&text)
}

/// Prints a list of reports as CSV: a line with the keys, then one for each. A key inside another is
/// `outer.inner`; what is `null` in JSON is empty.
///
/// # Errors
/// As [`print()`].
pub fn print_csv(rows: &[impl Serialize]) -> Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (index, row) in rows.iter().enumerate() {
        let mut cells = Vec::new();
        flatten(
            "",
            &serde_json::to_value(row).context("cannot make CSV")?,
            &mut cells,
        );
        if index == 0 {
            writer.write_record(cells.iter().map(|(key, _)| key))?;
        }
        writer.write_record(cells.iter().map(|(_, cell)| cell))?;
    }
    let bytes = writer.into_inner().context("cannot make CSV")?;
    print(&String::from_utf8(bytes).context("cannot make CSV")?)
}

fn flatten(key: &str, value: &Value, cells: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (inner, value) in map {
                let key = if key.is_empty() {
                    inner.clone()
                } else {
                    format!("{key}.{inner}")
                };
                flatten(&key, value, cells);
            }
        }
        Value::Null => cells.push((key.to_owned(), String::new())),
        Value::String(text) => cells.push((key.to_owned(), text.clone())),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            cells.push((key.to_owned(), value.to_string()));
        }
    }
}

/// Writes a file whole: beside its place first, then moved there.
///
/// # Errors
/// The folder is missing or not writable, or the disk is full; nothing is left behind.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file_with(path, |file| Ok(file.write_all(bytes)?))
}

/// As [`write_file`], for contents that are too large to hold twice.
///
/// # Errors
/// As [`write_file`], or `contents` fails.
pub fn write_file_with(
    path: &Path,
    contents: impl FnOnce(&mut std::fs::File) -> Result<()>,
) -> Result<()> {
    let place = || format!("cannot write {}", path.display());
    let mut file = beside(path)?;
    contents(file.as_file_mut()).with_context(place)?;
    file.persist(path)
        .map_err(|error| error.error)
        .with_context(place)?;
    Ok(())
}

/// Checks that [`write_file`] will find its folder writable, before hours of work.
///
/// # Errors
/// As [`write_file`].
pub fn check_writable(path: &Path) -> Result<()> {
    beside(path).map(drop)
}

/// A new file in a path's folder, to become the path's.
fn beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    let place = || format!("cannot write {}", path.display());
    if let Ok(there) = path.metadata() {
        ensure!(!there.is_dir(), "{}: it is a folder", place());
        ensure!(there.is_file(), "{}: it is no ordinary file", place());
        let is_protected = there.permissions().readonly();
        ensure!(
            !is_protected,
            "{}: it is there and write-protected",
            place()
        );
    }
    let ends_in_name = !path.as_os_str().to_string_lossy().ends_with('/');
    ensure!(ends_in_name, "{}: it is a folder's name", place());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    ensure!(
        folder.is_dir(),
        "{}: there is no folder {}",
        place(),
        folder.display()
    );
    temporary(folder).with_context(place)
}

fn temporary(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".systole-");
    // An ordinary new file, not a private one: others may read what systole writes.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// The causes of an error in one line, each once: many errors quote their cause already.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A progress bar on standard error, shown only when that is a terminal.
pub fn progress(what: &'static str, n: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(n as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg:>12} {bar:40} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
