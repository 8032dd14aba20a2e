//! `cosim check [--mutants] | record | table`: the RTL against the models.
//!
//! Runs from the repository's root; the build goes to `target/cosim`.

use cosim::{
    Error, Mutant, Rtl, Trace, build, compare, compiled, directed, machines, model, random,
};
use isa::Program;
use std::{fs, path::Path, process::ExitCode, time::Instant};

const RANDOM_PER_MACHINE: u64 = 24;
const NETWORKS_PER_MACHINE: usize = 2;
const LENGTH: usize = 120;

/// What stands above the table in `docs/cosimulation.md`.
const HEADER: &str = "# Co-simulation

The machine in SystemVerilog (`crates/cosim/rtl`) against the event and the stepped model: DRAM contents, every
overflow counter, total cycles, and issue, start and end of every instruction. A row's programs are eight directed ones
and 24 from seeds, or networks from seeds, compiled. Seeds whose program the models refuse are left out.
Written by `cargo run --release -p cosim -- table > docs/cosimulation.md`.

";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["check"] => check(),
        ["table"] => {
            print!("{HEADER}");
            check()
        }
        ["check", "--mutants"] => mutants(),
        ["record"] => record(),
        _ => {
            eprintln!("usage: cosim check [--mutants] | record | table");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn directory() -> &'static Path {
    Path::new("target/cosim")
}

fn image(program: &Program) -> Vec<u8> {
    let mut dram = program.data.clone();
    dram.resize(program.dram_bytes as usize, 0);
    dram
}

/// Every program of a machine: directed, then random ones that the models accept.
fn programs(config: &accelerator::Config, machine: u64) -> Vec<(String, Program)> {
    let mut list = directed(config);
    let mut seed = machine << 32;
    let end = list.len() + RANDOM_PER_MACHINE as usize;
    while list.len() < end {
        seed += 1;
        let program = random(config, seed, LENGTH);
        // Programs that the models refuse (a token overflow, say) are another test's business.
        if model(&program, config, &image(&program), false).is_ok() {
            list.push((format!("random {seed:#x}"), program));
        }
    }
    list
}

/// Runs everything on both sides and prints the table of `docs/cosimulation.md`.
fn check() -> Result<bool, Error> {
    let rtl = build(directory(), None)?;
    println!("| machine | programs | instructions | cycles, RTL | cycles, model | differences |");
    println!("| --- | --: | --: | --: | --: | --: |");
    let mut n_different = 0;
    let mut sums = [0u64; 4];
    let (mut rtl_seconds, mut model_seconds) = (0.0, 0.0);
    let mut jobs: Vec<(accelerator::Config, Vec<(String, Program)>)> = Vec::new();
    for (machine, config) in machines().into_iter().enumerate() {
        let networks = compiled(&config, 1000 * machine as u64, NETWORKS_PER_MACHINE);
        let programs = programs(&config, machine as u64);
        jobs.push((config, programs));
        jobs.push(networks);
    }
    for (config, programs) in &jobs {
        let mut row = [0u64; 5];
        for (name, program) in programs {
            let dram = image(program);
            let clock = Instant::now();
            let expected = model(program, config, &dram, false)?;
            model_seconds += clock.elapsed().as_secs_f64();
            let clock = Instant::now();
            let found = match rtl.run(program, config, &dram) {
                Ok(found) => found,
                Err(error) => {
                    eprintln!("{}, {name}: {error}", config.name);
                    row[4] += 1;
                    continue;
                }
            };
            rtl_seconds += clock.elapsed().as_secs_f64();
            let stepped = model(program, config, &dram, true)?;
            for (which, expected) in [("event", &expected), ("stepped", &stepped)] {
                if let Some(difference) = compare(program, &found, expected) {
                    eprintln!("{}, {name}, {which} model: {difference}", config.name);
                    row[4] += 1;
                }
            }
            row[0] += 1;
            row[1] += program.instructions.len() as u64;
            row[2] += found.total;
            row[3] += expected.total;
        }
        let [n, instructions, cycles, expected, different] = row;
        let name = &config.name;
        println!("| {name} | {n} | {instructions} | {cycles} | {expected} | {different} |");
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
        n_different += different;
    }
    let [n, instructions, cycles, expected] = sums;
    println!("| all | {n} | {instructions} | {cycles} | {expected} | {n_different} |");
    eprintln!(
        "RTL {:.0} cycles/s with its files, event model {:.0} cycles/s",
        cycles as f64 / rtl_seconds,
        expected as f64 / model_seconds
    );
    Ok(n_different == 0)
}

/// Builds the RTL with a mistake and sees that the comparison finds it.
fn mutants() -> Result<bool, Error> {
    let mut all_found = true;
    for mutant in [Mutant::Latency, Mutant::Rounding] {
        let rtl = build(directory(), Some(mutant))?;
        let found = first_difference(&rtl)?;
        match &found {
            Some(difference) => println!("{mutant:?}: found: {difference}"),
            None => println!("{mutant:?}: not found"),
        }
        all_found &= found.is_some();
    }
    Ok(all_found)
}

fn first_difference(rtl: &Rtl) -> Result<Option<String>, Error> {
    for (machine, config) in machines().iter().enumerate() {
        for (name, program) in programs(config, machine as u64) {
            let dram = image(&program);
            let expected = model(&program, config, &dram, false)?;
            let found = rtl.run(&program, config, &dram)?;
            if let Some(difference) = compare(&program, &found, &expected) {
                return Ok(Some(format!("{}, {name}: {difference}", config.name)));
            }
        }
    }
    Ok(None)
}

/// Writes two directed and one random run of every machine to `traces/`.
fn record() -> Result<bool, Error> {
    let rtl = build(directory(), None)?;
    for (machine, config) in machines().iter().enumerate() {
        let all = programs(config, machine as u64);
        for which in [machine % 8, (machine + 5) % 8, 8] {
            let (name, program) = &all[which];
            let found = rtl.run(program, config, &image(program))?;
            let text = Trace::to_text(config, program, &found)?;
            let file = format!("traces/{machine}-{}.trace", name.replace(' ', "-"));
            fs::write(&file, text).map_err(|source| Error::File { path: file, source })?;
        }
    }
    Ok(true)
}
