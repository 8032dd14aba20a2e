//! The `cosim` command: the RTL against the models.
//!
//! Invariant: what goes to standard output is the same on every machine and every day; whatever
//! depends on the clock goes to standard error, or is the whole purpose of the command (`speed`).

use clap::{Parser, Subcommand};
use cosim::{
    Build, Error, Rtl,
    mutants::{MUTANTS, Verdict},
    recordings,
    suite::{self, Job, Row},
    waves::{self, Comparison},
};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// The machine in `SystemVerilog`, under Verilator, against the event and the stepped model.
#[derive(Debug, Parser)]
#[command(name = "cosim", version)]
struct Cli {
    /// Where Verilator builds
    #[arg(long, value_name = "DIR", default_value = "target/cosim")]
    build: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every machine and program on all three sides and print docs/cosimulation.md
    Check {
        /// Only rows whose name contains this
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Write both waveforms around the first difference here
        #[arg(long, value_name = "DIR")]
        waves: Option<PathBuf>,
    },
    /// Build the RTL with deliberate mistakes and see that each is found where it is
    Mutants {
        /// Write both waveforms around every mistake here
        #[arg(long, value_name = "DIR")]
        waves: Option<PathBuf>,
    },
    /// Write the recorded runs anew
    Record {
        /// Where they are
        #[arg(default_value = "traces")]
        directory: PathBuf,
    },
    /// Repeat every recorded run on today's RTL, byte for byte
    VerifyRecordings {
        /// Where they are
        #[arg(default_value = "traces")]
        directory: PathBuf,
    },
    /// Compare the waveforms of the RTL and of the stepped model, signal by signal, cycle by cycle
    Waves {
        /// Where recorded runs and their waveforms are
        #[arg(default_value = "traces")]
        directory: PathBuf,
        /// Write the recorded waveforms anew
        #[arg(long)]
        record: bool,
    },
    /// Cycles per second of the RTL and of both models, on this computer
    Speed,
}

/// What stands above the table.
const HEADER: &str = "# Co-simulation

The machine in SystemVerilog (`crates/cosim/rtl`) against the event and the stepped model. After every run are
compared: DRAM contents, every field of every overflow counter, total cycles, and issue, start and end of
every instruction; of runs that the machine stops (token overflow, deadlock) the reason and the instruction.
How the comparison works and what else it covers: [validation.md](validation.md).

A machine's programs are 8 directed ones (every instruction, each operand width, the whole array), 24 random
ones that finish and 4 that the machine stops; then networks from seeds, compiled. Last come, on machines of `configs/`, the
demo's trained network (handwritten digits, three test images) and a whole ResNet-20 with random weights. A machine's
name is its dataflow (output-stationary if none is named), rows × columns, accumulator width, overflow, rounding, and DRAM
bytes a cycle; `lanes`: depthwise convolutions are the post unit's; the machines stand in `crates/cosim/src/machines.rs`.

Written by `cargo run --release -p cosim -- check > docs/cosimulation.md`.

";

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Check { only, waves } => check(&cli.build, only.as_deref(), waves.as_deref()),
        Command::Mutants { waves } => mutants(&cli.build, waves.as_deref()),
        Command::Record { directory } => record(&cli.build, directory),
        Command::VerifyRecordings { directory } => verify(&cli.build, directory),
        Command::Waves { directory, record } => waves(&cli.build, directory, *record),
        Command::Speed => speed(&cli.build),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn check(directory: &Path, only: Option<&str>, waves: Option<&Path>) -> Result<bool, Error> {
    let mut jobs = suite::jobs()?;
    jobs.retain(|job| only.is_none_or(|text| job.name.contains(text)));
    let rtl = Build::FULL.make(directory)?;
    print!("{HEADER}");
    println!("| machine | programs | instructions | cycles, RTL | cycles, model | differences |");
    println!("| --- | --: | --: | --: | --: | --: |");
    let rows = rows(&rtl, &jobs, print_row)?;
    let all = Row::sum(&rows);
    print_row(&all);
    let first = rows.iter().position(|row| !row.differences.is_empty());
    if let (Some(to), Some(first)) = (waves, first)
        && let Some(dump) = waves::dump_first(directory, &rtl, &jobs[first], to)?
    {
        eprintln!("{}: {dump}", rows[first].name);
    }
    let [rtl, event, stepped] = speeds(&all);
    eprintln!("cycles/s: RTL {rtl:.0}, stepped model {stepped:.0}, event model {event:.0}");
    Ok(all.differences.is_empty() && !rows.is_empty())
}

fn rows(rtl: &Rtl, jobs: &[Job], mut show: impl FnMut(&Row)) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for job in jobs {
        let row = suite::run(rtl, job)?;
        for difference in &row.differences {
            eprintln!("{}, {difference}", row.name);
        }
        show(&row);
        rows.push(row);
    }
    Ok(rows)
}

fn print_row(row: &Row) {
    println!(
        "| {} | {} | {} | {} | {} | {} |",
        row.name,
        row.n_programs,
        row.n_instructions,
        row.rtl_cycles,
        row.model_cycles,
        row.differences.len()
    );
}

/// Cycles per second: RTL, event model, stepped model.
fn speeds(row: &Row) -> [f64; 3] {
    row.seconds.map(|seconds| row.model_cycles as f64 / seconds)
}

fn mutants(directory: &Path, waves: Option<&Path>) -> Result<bool, Error> {
    let jobs = suite::machine_jobs();
    // A build has long stretches on one core, so builds go side by side.
    let verdicts: Result<Vec<Verdict>, Error> = MUTANTS
        .par_iter()
        .map(|mutant| mutant.find(directory, &jobs, waves))
        .collect();
    let verdicts = verdicts?;
    for verdict in &verdicts {
        println!("{}", verdict.text);
    }
    Ok(verdicts.iter().all(|verdict| verdict.is_named))
}

fn record(build: &Path, directory: &Path) -> Result<bool, Error> {
    let rtl = Build::FULL.make(build)?;
    let n = recordings::record(&rtl, directory)?;
    println!("{n} runs recorded in {}", directory.display());
    Ok(true)
}

fn verify(build: &Path, directory: &Path) -> Result<bool, Error> {
    let rtl = Build::FULL.make(build)?;
    let files = recordings::files(directory)?;
    let mut n_same = 0;
    for path in &files {
        match recordings::repeat(&rtl, path)? {
            None => n_same += 1,
            Some(difference) => println!("{}: {difference}", path.display()),
        }
    }
    println!(
        "{n_same} of {} recorded runs are what the RTL does today, byte for byte",
        files.len()
    );
    Ok(n_same == files.len() && n_same > 0)
}

fn waves(directory: &Path, recorded: &Path, record: bool) -> Result<bool, Error> {
    println!("| machine | programs | cycles | signals | values | unknown | differences |");
    println!("| --- | --: | --: | --: | --: | --: | --: |");
    let mut all = Comparison::default();
    let (mut n_programs, mut is_rich) = (0, true);
    for (number, config) in waves::small_machines() {
        let rtl = Build::traced(&config, None).make(directory)?;
        let programs = waves::programs_of(&config, number);
        let mut of_machine = Comparison::default();
        for named in &programs {
            let found = waves::compare_run(&rtl, &config, &named.program)?;
            if let Some(first) = &found.first {
                eprintln!("{}, {}: {first}", config.name, named.name);
            }
            of_machine.add(&found);
        }
        print_waves(&config.name, programs.len(), &of_machine);
        is_rich &= of_machine.known.len() >= waves::LEAST_SIGNALS;
        n_programs += programs.len();
        all.add(&of_machine);
    }
    print_waves("all", n_programs, &all);
    let never: Vec<_> = all.known.iter().filter(|(_, n)| **n == 0).collect();
    for (signal, _) in &never {
        eprintln!("{signal} is never known");
    }
    for signal in &all.missing {
        eprintln!("{signal} is not in the RTL");
    }
    if !is_rich {
        eprintln!("fewer than {} signals of a machine", waves::LEAST_SIGNALS);
    }
    let is_complete = is_rich && never.is_empty() && all.missing.is_empty();
    let is_recorded = recorded_waves(directory, recorded, record)?;
    Ok(all.n_differences == 0 && is_complete && is_recorded)
}

/// Writes the recorded waveforms, or sees that they are what the RTL does today.
fn recorded_waves(build: &Path, directory: &Path, record: bool) -> Result<bool, Error> {
    let mut are_same = true;
    for (trace, file) in waves::recorded(directory) {
        let today = waves::record(build, &trace)?;
        let is_same = if record {
            fs::write(&file, &today).map_err(|source| Error::File {
                path: file.display().to_string(),
                source,
            })?;
            true
        } else {
            fs::read(&file).is_ok_and(|then| then == today)
        };
        let is = if is_same { "is" } else { "is not" };
        println!("{} {is} what the RTL does today", file.display());
        are_same &= is_same;
    }
    Ok(are_same)
}

fn print_waves(name: &str, n_programs: usize, found: &Comparison) {
    println!(
        "| {name} | {n_programs} | {} | {} | {} | {} | {} |",
        found.n_cycles,
        found.known.len(),
        found.n_values,
        found.n_unknown,
        found.n_differences,
    );
}

fn speed(directory: &Path) -> Result<bool, Error> {
    let rtl = Build::FULL.make(directory)?;
    println!(
        "| program | cycles | RTL, cycles/s | stepped model, cycles/s | event model, cycles/s |"
    );
    println!("| --- | --: | --: | --: | --: |");
    let mut all_equal = true;
    for job in suite::speed_jobs()? {
        let row = suite::run(&rtl, &job)?;
        all_equal &= row.differences.is_empty();
        let [rtl, event, stepped] = speeds(&row);
        let (name, cycles) = (&row.name, row.rtl_cycles);
        println!("| {name} | {cycles} | {rtl:.0} | {stepped:.0} | {event:.0} |");
    }
    Ok(all_equal)
}
