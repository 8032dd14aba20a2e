//! What is run on which machine, and what came of it.
//!
//! Invariant: the list of runs and everything in a [`Row`] but its seconds depend on nothing but the
//! sources.

use crate::{
    Difference, Error, Model, Outcome, Rtl, compare, image, machines, model,
    programs::{self, Named, digits, networks},
};
use accelerator::Config;
use isa::Program;
use rayon::prelude::*;
use std::time::Instant;

/// Random programs of a machine that run to their end.
pub const RANDOM_PER_MACHINE: usize = 24;
/// Random programs of a machine that end in a token overflow or a deadlock.
pub const STOPPED_PER_MACHINE: usize = 4;
/// Small networks of a machine.
pub const NETWORKS_PER_MACHINE: usize = 2;
/// No run is longer; one that is has gone wrong.
pub const MAX_CYCLES: u64 = 20_000_000;
const LENGTH: usize = 120;
const RESNET_SEED: u64 = 20;

/// Programs for one machine, a row of the table.
#[derive(Clone, Debug)]
pub struct Job {
    /// What the row is called.
    pub name: String,
    /// The machine.
    pub config: Config,
    /// What runs on it.
    pub programs: Vec<Named>,
}

/// What came of a job.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The job's name.
    pub name: String,
    /// Programs.
    pub n_programs: u64,
    /// Of them, those that the machine stopped.
    pub n_stopped: u64,
    /// Instructions.
    pub n_instructions: u64,
    /// Cycles of all finished runs by the RTL.
    pub rtl_cycles: u64,
    /// Cycles of all finished runs by the event model.
    pub model_cycles: u64,
    /// What differed: a program's name and the first difference from a model.
    pub differences: Vec<String>,
    /// Wall time: RTL, event model, stepped model.
    pub seconds: [f64; 3],
}

impl Row {
    fn add(&mut self, other: Row) {
        self.n_programs += other.n_programs;
        self.n_stopped += other.n_stopped;
        self.n_instructions += other.n_instructions;
        self.rtl_cycles += other.rtl_cycles;
        self.model_cycles += other.model_cycles;
        self.differences.extend(other.differences);
        for (sum, seconds) in self.seconds.iter_mut().zip(other.seconds) {
            *sum += seconds;
        }
    }

    /// The sum of rows.
    pub fn sum(rows: &[Row]) -> Row {
        let mut all = Row {
            name: "all".to_owned(),
            ..Row::default()
        };
        for row in rows {
            all.add(row.clone());
        }
        all
    }
}

/// The machines that networks of full size run on, one for each dataflow.
const PRESETS: [&str; 3] = [
    include_str!("../../../configs/edge-16x16.toml"),
    include_str!("../../../configs/paper-16x16-ws.toml"),
    include_str!("../../../configs/paper-16x16-is.toml"),
];

/// Every job that needs nothing from outside.
///
/// # Errors
/// A preset does not hold a network.
pub fn jobs() -> Result<Vec<Job>, Error> {
    let mut jobs = machine_jobs();
    jobs.extend(preset_jobs()?);
    Ok(jobs)
}

/// The jobs of the machines of the comparison.
pub fn machine_jobs() -> Vec<Job> {
    let mut jobs = Vec::new();
    for (machine, config) in machines().into_iter().enumerate() {
        let (large, list) = networks::small(&config, 1000 * machine as u64, NETWORKS_PER_MACHINE);
        jobs.push(Job {
            name: config.name.clone(),
            programs: synthetic(&config, machine as u64),
            config,
        });
        jobs.push(Job {
            name: large.name.clone(),
            config: large,
            programs: list,
        });
    }
    jobs
}

/// The demo's network and ResNet-20, on a machine of each dataflow.
///
/// # Errors
/// A preset does not hold a network.
fn preset_jobs() -> Result<Vec<Job>, Error> {
    let mut jobs = Vec::new();
    for text in PRESETS {
        let config = preset(text);
        let programs = digits::programs(&config)?;
        jobs.push(Job {
            name: format!("{} digits", config.name),
            config,
            programs,
        });
    }
    for text in PRESETS {
        jobs.push(resnet20(&preset(text))?);
    }
    Ok(jobs)
}

/// What the speed table measures: the networks of full size, and the random programs of a small
/// machine.
///
/// # Errors
/// A preset does not hold a network.
pub fn speed_jobs() -> Result<Vec<Job>, Error> {
    let mut jobs = preset_jobs()?;
    let config = machines().swap_remove(0);
    jobs.insert(
        0,
        Job {
            name: format!("{} directed and random", config.name),
            programs: synthetic(&config, 0),
            config,
        },
    );
    Ok(jobs)
}

/// ResNet-20 with random weights.
fn resnet20(config: &Config) -> Result<Job, Error> {
    let network = networks::resnet20(RESNET_SEED);
    let image = network::arbitrary::random_input(&network, RESNET_SEED);
    let program = networks::with_image(&network, config, &image)?;
    let name = format!("{} ResNet-20", config.name);
    Ok(Job {
        programs: vec![Named {
            name: network.name,
            program,
        }],
        name,
        config: config.clone(),
    })
}

/// The default machine.
pub fn edge() -> Config {
    preset(PRESETS[0])
}

fn preset(text: &str) -> Config {
    Config::from_toml(text).expect("the presets are machine files")
}

/// Directed programs, random ones that finish, and random ones that the machine stops.
pub fn synthetic(config: &Config, machine: u64) -> Vec<Named> {
    let mut list = programs::directed(config);
    let finishes = |program: &Program| {
        let run = model(Model::Event, program, config, &image(program));
        run.is_ok_and(|outcome| matches!(outcome, Outcome::Finished(_)))
    };
    let stops = |program: &Program| {
        let run = model(Model::Event, program, config, &image(program));
        run.is_ok_and(|outcome| matches!(outcome, Outcome::Stopped(_)))
    };
    let seeds = || (machine << 32) + 1..;
    list.extend(
        seeds()
            .map(|seed| Named {
                name: format!("random {seed:#x}"),
                program: programs::random(config, seed, LENGTH),
            })
            .filter(|named| finishes(&named.program))
            .take(RANDOM_PER_MACHINE),
    );
    list.extend(
        seeds()
            .map(|seed| Named {
                name: format!("stopped {seed:#x}"),
                program: programs::token_fault(config, seed, LENGTH),
            })
            .filter(|named| stops(&named.program))
            .take(STOPPED_PER_MACHINE),
    );
    list
}

/// The runs that are kept in `traces/`: of every machine two directed ones, a random one and one that
/// is stopped.
pub fn recorded() -> Vec<(String, Config, Program)> {
    let mut list = Vec::new();
    for (machine, config) in machines().into_iter().enumerate() {
        let all = synthetic(&config, machine as u64);
        let n_directed = all.len() - RANDOM_PER_MACHINE - STOPPED_PER_MACHINE;
        let stopped = n_directed + RANDOM_PER_MACHINE;
        for which in [
            machine % n_directed,
            (machine + 5) % n_directed,
            n_directed,
            stopped,
        ] {
            let Named { name, program } = &all[which];
            let file = format!("{machine}-{}", name.replace(' ', "-"));
            list.push((file, config.clone(), program.clone()));
        }
    }
    list
}

/// Runs a job on all three sides, its programs side by side.
///
/// # Errors
/// A program that a model refuses before it runs, or one that the RTL's build cannot hold.
pub fn run(rtl: &Rtl, job: &Job) -> Result<Row, Error> {
    let rows: Result<Vec<Row>, Error> = job
        .programs
        .par_iter()
        .map(|named| run_one(rtl, &job.config, named))
        .collect();
    Ok(Row {
        name: job.name.clone(),
        ..Row::sum(&rows?)
    })
}

fn run_one(rtl: &Rtl, config: &Config, named: &Named) -> Result<Row, Error> {
    let Named { name, program } = named;
    let dram = image(program);
    let mut row = Row {
        n_programs: 1,
        n_instructions: program.instructions.len() as u64,
        ..Row::default()
    };
    let mut models = Vec::new();
    for (which, seconds) in Model::ALL.into_iter().zip([1, 2]) {
        let clock = Instant::now();
        models.push((which, model(which, program, config, &dram)?));
        row.seconds[seconds] = clock.elapsed().as_secs_f64();
    }
    let found = match rtl.run(program, config, &dram, MAX_CYCLES) {
        Ok(found) => found,
        Err(Error::Run(what)) => {
            row.differences.push(format!("{name}: the RTL: {what}"));
            return Ok(row);
        }
        Err(error) => return Err(error),
    };
    row.seconds[0] = found.seconds;
    for (which, outcome) in &models {
        if let Some(difference) = compare(program, config.dataflow, &found.outcome, outcome) {
            let which = which.name();
            row.differences
                .push(format!("{name}, {which} model: {difference}"));
        }
    }
    match &found.outcome {
        Outcome::Finished(observed) => row.rtl_cycles = observed.total,
        Outcome::Stopped(_) => row.n_stopped = 1,
    }
    if let (_, Outcome::Finished(observed)) = &models[0] {
        row.model_cycles = observed.total;
    }
    Ok(row)
}

/// A program that runs otherwise on the RTL.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The program.
    pub program: Named,
    /// Where it differs, or why the RTL did not finish.
    pub difference: Result<Difference, String>,
}

/// The first program of a job whose run on the RTL differs from the event model's.
///
/// # Errors
/// As [`run`].
pub fn first_difference(rtl: &Rtl, job: &Job) -> Result<Option<Finding>, Error> {
    for named in &job.programs {
        let dram = image(&named.program);
        let expected = model(Model::Event, &named.program, &job.config, &dram)?;
        let difference = match rtl.run(&named.program, &job.config, &dram, MAX_CYCLES) {
            Ok(found) => compare(
                &named.program,
                job.config.dataflow,
                &found.outcome,
                &expected,
            )
            .map(Ok),
            Err(Error::Run(what)) => Some(Err(what)),
            Err(error) => return Err(error),
        };
        if let Some(difference) = difference {
            return Ok(Some(Finding {
                program: named.clone(),
                difference,
            }));
        }
    }
    Ok(None)
}
