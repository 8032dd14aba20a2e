//! The `systole` command: files in, reports out.
//!
//! Only this crate opens files, prints, and reads the clock or the environment. Invariant: a user's
//! mistake ends in exit code 2 and one message on standard error; models of the machine that
//! disagree end in 1; nothing is ever left half-written.

mod args;
mod commands;
mod curve;
mod data;
mod engine;
mod input;
mod mix;
mod model;
mod npy;
mod output;
mod paths;
mod proof;
mod report;
mod sensitivity;
mod sweep;
mod synthetic;
mod tables;
mod trace;
mod tuning;

use anyhow::Result;
use args::{Cli, Command};
use clap::{CommandFactory, FromArgMatches};
use std::{
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
    sync::Mutex,
};

/// A mistake of the user's.
const USER_ERROR: u8 = 2;
/// Models of one machine disagree.
const CHECK_FAILED: u8 = 1;
/// A mistake of ours, as Rust's own panics report it.
const INTERNAL_ERROR: u8 = 101;

/// What a panic said, for the case that nobody catches it: the float reference's library panics on
/// some broken models, which its caller turns into an ordinary error.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

fn main() -> ExitCode {
    panic::set_hook(Box::new(|info| {
        if let Ok(mut last) = LAST_PANIC.lock() {
            *last = Some(info.to_string());
        }
    }));
    // `-1` is a number: what is wrong with it is said where it is used.
    let mut command = Cli::command().mut_subcommands(|subcommand| {
        subcommand.mut_args(|argument| {
            let takes_values = argument.get_action().takes_values();
            argument.allow_negative_numbers(takes_values)
        })
    });
    let matches = command.get_matches_mut();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let work = || paths::check(&command, &matches).and_then(|()| run(&cli.command));
    match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            output::tell(&format!("error: {}", output::explain(&error)));
            let is_ours = error.downcast_ref::<engine::CheckFailed>().is_some();
            ExitCode::from(if is_ours { CHECK_FAILED } else { USER_ERROR })
        }
        Err(_) => {
            let last = LAST_PANIC
                .lock()
                .ok()
                .and_then(|mut last| last.take())
                .unwrap_or_default();
            output::tell(&format!("internal error, please report it: {last}"));
            ExitCode::from(INTERNAL_ERROR)
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Quantize(args) => commands::quantize::run(args),
        Command::Equalize(args) => commands::equalize::run(args),
        Command::Train(args) => commands::train::run(args),
        Command::Compile(args) => commands::compile::compile(args),
        Command::Disasm(args) => commands::compile::disasm(args),
        Command::Assemble(args) => commands::compile::assemble(args),
        Command::Run(args) => commands::run::run(args),
        Command::Latency(args) => commands::latency::run(args),
        Command::Overflow(args) => commands::overflow::run(args),
        Command::Compare(args) => commands::compare::run(args),
        Command::Methods(args) => commands::methods::run(args),
        Command::ExportOnnx(args) => commands::export::run(args),
        Command::Gemm(args) => commands::gemm::run(args),
        Command::Sweep(args) => commands::sweep::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Machines(args) => commands::machines::run(args),
        Command::Schema => commands::machines::schema(),
        Command::Demo(args) => commands::demo::run(args),
    }
}
