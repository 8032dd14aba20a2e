//! What a command line's files are to each other.
//!
//! Invariant: no command writes over a file that it reads, nor two results into one file.

use anyhow::{Result, ensure};
use clap::{ArgMatches, Command, parser::ValueSource};
use std::path::{Path, PathBuf};

/// Arguments that are written.
const WRITTEN: [&str; 8] = [
    "output",
    "checkpoint",
    "log",
    "curve",
    "dump_tensors",
    "waves",
    "trace",
    "plot",
];

/// One argument's file.
struct File {
    /// As the user knows the argument.
    argument: String,
    is_written: bool,
    path: PathBuf,
}

/// Checks the files of a parsed command line.
///
/// # Errors
/// A file is written and is another argument's file too.
pub fn check(command: &Command, matches: &ArgMatches) -> Result<()> {
    let Some((name, matches)) = matches.subcommand() else {
        return Ok(());
    };
    let Some(command) = command.find_subcommand(name) else {
        return Ok(());
    };
    let mut files: Vec<File> = Vec::new();
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let is_given = matches.value_source(id) == Some(ValueSource::CommandLine);
        // Other arguments hold other types.
        let Ok(Some(paths)) = matches.try_get_many::<PathBuf>(id) else {
            continue;
        };
        for path in paths.filter(|_| is_given) {
            files.push(File {
                argument: called(argument),
                is_written: WRITTEN.contains(&id),
                path: path.clone(),
            });
        }
    }
    for (index, file) in files.iter().enumerate() {
        for other in &files[..index] {
            let (written, other) = if file.is_written {
                (file, other)
            } else {
                (other, file)
            };
            ensure!(
                !written.is_written || !is_same(&written.path, &other.path),
                "{} and {} are the same file, {}: what is written would replace the other",
                written.argument,
                other.argument,
                written.path.display()
            );
        }
    }
    Ok(())
}

fn called(argument: &clap::Arg) -> String {
    if let Some(long) = argument.get_long() {
        return format!("--{long}");
    }
    let names = argument.get_value_names().unwrap_or_default();
    names.first().map_or_else(
        || argument.get_id().to_string(),
        std::string::ToString::to_string,
    )
}

/// Whether two paths lead to one file, which need not be there.
fn is_same(a: &Path, b: &Path) -> bool {
    match (place(a), place(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A path without detours; nothing if its folder is not there.
fn place(path: &Path) -> Option<PathBuf> {
    if let Ok(whole) = path.canonicalize() {
        return Some(whole);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    Some(folder.canonicalize().ok()?.join(path.file_name()?))
}

#[cfg(test)]
mod tests {
    use crate::args::Cli;
    use clap::CommandFactory;

    fn check(line: &[&str]) -> Result<(), String> {
        let command = Cli::command();
        let matches = command.clone().try_get_matches_from(line);
        let matches = matches.map_err(|error| error.to_string())?;
        super::check(&command, &matches).map_err(|error| error.to_string())
    }

    #[test]
    fn outputs_are_files_of_their_own() {
        let train = ["systole", "train", "m.onnx", "--data", "x.npz", "-o", "n"];
        let with = |more: &[&'static str]| check(&[&train[..], more].concat());
        assert_eq!(with(&["--checkpoint", "c", "--resume"]), Ok(()));
        assert_eq!(with(&["--validation", "x.npz"]), Ok(()));
        let same = |more: &[&'static str]| with(more).expect_err("the same file");
        assert_eq!(
            same(&["--checkpoint", "./n"]),
            "--output and --checkpoint are the same file, n: what is written would replace the other"
        );
        assert!(same(&["--log", "src/../m.onnx"]).starts_with("--log and MODEL.onnx"));
        assert!(same(&["--curve", "x.npz"]).starts_with("--curve and --data"));
    }

    /// Every argument that is written is an argument of some command.
    #[test]
    fn written_arguments_exist() {
        let command = Cli::command();
        for id in super::WRITTEN {
            let mut all = command
                .get_subcommands()
                .flat_map(clap::Command::get_arguments);
            assert!(all.any(|argument| argument.get_id() == id), "{id}");
        }
    }
}
