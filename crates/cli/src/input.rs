//! Everything that comes in: files of bounded size, machines, and where in a file an error stands.

use accelerator::{Machine, presets};
use anyhow::{Context, Result, anyhow, bail};
use std::{fmt::Write, fs::File, io::Read, path::Path};

/// Largest model, network or archive that is read.
pub const MAX_FILE_BYTES: u64 = 2 << 30;
/// Largest machine file.
const MAX_MACHINE_BYTES: u64 = 1 << 20;

/// A file's contents.
///
/// # Errors
/// It is missing, not readable, or larger than `max_bytes`.
pub fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let place = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(place)?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .with_context(place)?;
    if bytes.len() as u64 > max_bytes {
        bail!("{}: it is larger than {max_bytes} bytes", place());
    }
    Ok(bytes)
}

/// A text file's contents.
///
/// # Errors
/// As [`read`]; or it is not UTF-8.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    String::from_utf8(read(path, max_bytes)?)
        .with_context(|| format!("cannot read {}: not UTF-8", path.display()))
}

/// The machine of a file, of a preset's name where there is no such file, or the default one.
///
/// # Errors
/// The file is missing or wrong; the message shows the line.
pub fn machine(path: Option<&Path>) -> Result<Machine> {
    let preset = match path {
        None => presets::PRESETS.first(),
        Some(path) if path.exists() => None,
        Some(path) => path.to_str().and_then(presets::find),
    };
    if let Some(preset) = preset {
        return Machine::from_toml(preset.text)
            .with_context(|| format!("the embedded machine {}", preset.name));
    }
    let path = path.context("systole knows no machine")?;
    let text = read_text(path, MAX_MACHINE_BYTES).with_context(|| {
        let known = presets::PRESETS.iter().map(|preset| preset.name);
        let known = known.collect::<Vec<_>>().join(", ");
        format!("{} is neither a file nor one of {known}", path.display())
    })?;
    Machine::from_toml(&text).map_err(|error| {
        let at = format!("{}:{}:{}", path.display(), error.line, error.column);
        anyhow!(
            "{at}: {}{}",
            error.message.trim_end(),
            excerpt(&text, error.line, error.column)
        )
    })
}

/// A message about a part of a file: place, message, the line with a caret.
pub fn at_span(
    path: &Path,
    text: &str,
    span: Option<std::ops::Range<usize>>,
    message: &str,
) -> String {
    let before = text
        .get(..span.map_or(0, |span| span.start))
        .unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    let message = message.trim_end();
    format!(
        "{}:{line}:{column}: {message}{}",
        path.display(),
        excerpt(text, line, column)
    )
}

/// The line with a caret under the column.
fn excerpt(text: &str, line: usize, column: usize) -> String {
    let Some(source) = line
        .checked_sub(1)
        .and_then(|index| text.lines().nth(index))
    else {
        return String::new();
    };
    // Tabs and control characters would move the caret.
    let source: String = source
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(160)
        .collect();
    let margin = line.to_string().len();
    let mut drawing = String::new();
    let caret = column.saturating_sub(1);
    let _ = write!(drawing, "\n{:margin$} |\n{line} | {source}", "");
    if caret <= 160 {
        let _ = write!(drawing, "\n{:margin$} | {:caret$}^", "", "");
    }
    drawing
}

#[cfg(test)]
mod tests {
    use super::{excerpt, machine};

    #[test]
    fn caret_stands_under_the_column() {
        assert_eq!(
            excerpt("a\n\tbc = 0\n", 2, 7),
            "\n  |\n2 |  bc = 0\n  |       ^"
        );
        assert_eq!(excerpt("a", 9, 1), "");
    }

    #[test]
    fn the_default_machine_is_sound() {
        assert_eq!(machine(None).expect("embedded").config.name, "edge-16x16");
    }
}
