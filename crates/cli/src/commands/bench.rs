//! `systole bench`: how fast systole itself is on this computer, stage by stage.
//!
//! Invariant: this is the only report that depends on the clock; its work (program, image, events)
//! does not.

use crate::{
    args::Bench,
    engine::Engine,
    input, model, output,
    report::{BenchReport, Header, StageTime},
    tables,
};
use accelerator::event::Tasks;
use anyhow::{Context, Result, ensure};
use functional::{Detail, Level, Threads};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// No stage is repeated more often.
const MAX_REPETITIONS: usize = 100_000;

/// Runs the command.
///
/// # Errors
/// Bad files, a machine too small for the network, or a time that is no time.
pub fn run(args: &Bench) -> Result<()> {
    ensure!(
        args.seconds > 0.0 && args.seconds <= 3600.0,
        "--seconds is {}: it must be above 0 and at most 3600",
        args.seconds
    );
    let budget = Duration::from_secs_f64(args.seconds);
    let config = input::machine(args.machine.as_deref())?.config;
    let bits = config.arithmetic.accumulator.width_bits;
    let (model, _) = model::open_any(&args.network, &args.uncalibrated, bits)?;
    let network = &model.network;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.into())
        .build()
        .context("cannot start threads")?;
    let threads = if args.threads == 1 {
        Threads::One
    } else {
        Threads::All
    };
    let report = pool.install(|| {
        let image = network::arbitrary::random_input(network, args.seed);
        let engine = Engine::timed(network, &config)?;
        let n_instructions = engine.program.instructions.len() as u64;
        let tasks = Tasks::of(&engine.program, &config)?;
        let functional = functional::Engine::new(network, config.arithmetic, Level::best())?;
        let seen = functional.run(&image, Detail::Events, threads)?;
        let mut run = functional::Run::default();
        let n_macs = network.n_macs();
        let stages = vec![
            stage("compile", n_instructions, "instructions", budget, || {
                black_box(Engine::timed(network, &config).map(drop)).is_ok()
            }),
            stage("check", n_instructions, "instructions", budget, || {
                black_box(Tasks::of(&engine.program, &config).map(drop)).is_ok()
            }),
            stage("time", n_instructions, "instructions", budget, || {
                black_box(tasks.time()).is_ok()
            }),
            stage(
                "prepare",
                network.n_weights() as u64,
                "weights",
                budget,
                || {
                    let made = functional::Engine::new(network, config.arithmetic, Level::best());
                    black_box(made).is_ok()
                },
            ),
            stage("run", n_macs, "MACs", budget, || {
                // As for image after image.
                let again = functional.run_again(&image, Detail::Events, threads, &mut run);
                black_box(again).is_ok()
            }),
        ];
        Ok::<_, anyhow::Error>(BenchReport {
            header: Header::new("bench", &config, network),
            level: format!("{:?}", Level::best()),
            n_threads: args.threads.into(),
            n_macs,
            n_overflowed: seen.overflow.iter().flatten().map(|c| c.n_overflowed).sum(),
            stages,
        })
    })?;
    if args.json {
        return output::print_json(&report);
    }
    output::print(&format!(
        "{}\n{}",
        tables::header(&report.header),
        tables::bench(&report)
    ))
}

/// Repeats `work` for about `budget`, after one run that does not count.
fn stage(
    name: &'static str,
    n_items: u64,
    unit: &'static str,
    budget: Duration,
    mut work: impl FnMut() -> bool,
) -> StageTime {
    assert!(work(), "{name} succeeded before");
    let mut seconds = Vec::new();
    let begin = Instant::now();
    while seconds.len() < 3 || (begin.elapsed() < budget && seconds.len() < MAX_REPETITIONS) {
        let start = Instant::now();
        work();
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median_seconds = seconds[seconds.len() / 2];
    StageTime {
        name,
        n_repetitions: seconds.len(),
        min_seconds: seconds[0],
        median_seconds,
        n_items,
        unit,
        items_per_second: n_items as f64 / median_seconds,
    }
}
