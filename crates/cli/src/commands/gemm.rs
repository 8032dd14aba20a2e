//! `systole gemm`: cycles of matrix products on the array alone, beside a published simulator's.
//!
//! Invariant: cycles are counted by the event model; what SCALE-Sim v3 would report follows from
//! them by the corrections of `docs/deviations.md` alone.

use crate::{args::Gemm, engine, input, output, report::GemmPoint, tables};
use accelerator::{Config, Dataflow};
use anyhow::{Context, Result, anyhow, bail, ensure};
use compiler::gemm::{self, unlimited};
use serde::Deserialize;
use std::path::Path;

/// Largest file of points.
const MAX_POINTS_BYTES: u64 = 64 << 20;

/// A line of a file of points.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    name: String,
    #[serde(rename = "M", alias = "m")]
    m: u64,
    #[serde(rename = "N", alias = "n")]
    n: u64,
    #[serde(rename = "K", alias = "k")]
    k: u64,
    #[serde(alias = "rows")]
    array_rows: u32,
    #[serde(alias = "cols")]
    array_cols: u32,
    dataflow: String,
    compute_cycles: Option<u64>,
}

/// Times one product, or every one of a file; the latter also compares.
///
/// # Errors
/// A file without the columns, an extent or array that the machine does not know; a point that
/// differs from the published one.
pub fn run(args: &Gemm) -> Result<()> {
    let base = input::machine(args.machine.as_deref())?.config;
    let points = if let Some(path) = &args.points {
        read(path, &base)?
    } else {
        let [m, n, k] = args.extents[..] else {
            bail!("give M N K (output pixels, output channels, steps), or --points FILE.csv");
        };
        let (rows, cols) = (base.rows, base.cols);
        let config = unlimited(base.clone(), base.dataflow, rows, cols);
        vec![point(String::new(), gemm::Gemm { m, n, k }, &config, None)?]
    };
    if args.csv {
        output::print_csv(&points)?;
    } else if args.json {
        output::print_json(&points)?;
    } else {
        output::print(&tables::gemm(&points))?;
    }
    let n_different = points
        .iter()
        .filter(|p| p.difference.is_some_and(|d| d != 0))
        .count();
    if n_different > 0 {
        let n = points.len();
        bail!(engine::CheckFailed(format!(
            "{n_different} of {n} points differ from the published cycles"
        )));
    }
    Ok(())
}

fn read(path: &Path, base: &Config) -> Result<Vec<GemmPoint>> {
    let text = input::read_text(path, MAX_POINTS_BYTES)?;
    let mut points = Vec::new();
    for (index, line) in csv::Reader::from_reader(text.as_bytes())
        .deserialize()
        .enumerate()
    {
        let place = || format!("{}: line {}", path.display(), index + 2);
        let line: Line = line.map_err(|error| explain(&error)).with_context(place)?;
        points.push(timed(line, base).with_context(place)?);
    }
    ensure!(!points.is_empty(), "{}: no point in it", path.display());
    Ok(points)
}

/// What is wrong with a line, without the library's own words of where.
fn explain(error: &csv::Error) -> anyhow::Error {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => anyhow!("{err}"),
        _ => anyhow!("{error}"),
    }
}

fn timed(line: Line, base: &Config) -> Result<GemmPoint> {
    for (what, extent) in [
        ("array_rows", line.array_rows),
        ("array_cols", line.array_cols),
    ] {
        ensure!(
            (1..=256).contains(&extent),
            "{what} is {extent}, the machine takes 1 to 256"
        );
    }
    let dataflow = match line.dataflow.as_str() {
        "os" | "output-stationary" => Dataflow::OutputStationary,
        "ws" | "weight-stationary" => Dataflow::WeightStationary,
        "is" | "input-stationary" => Dataflow::InputStationary,
        other => bail!("dataflow {other:?} is not one of os, ws, is"),
    };
    let config = unlimited(base.clone(), dataflow, line.array_rows, line.array_cols);
    let gemm = gemm::Gemm {
        m: line.m,
        n: line.n,
        k: line.k,
    };
    point(line.name, gemm, &config, line.compute_cycles)
}

fn point(
    name: String,
    gemm: gemm::Gemm,
    config: &Config,
    published: Option<u64>,
) -> Result<GemmPoint> {
    let time = gemm.time(config)?;
    let scale_sim = time.scale_sim_v3();
    Ok(GemmPoint {
        name,
        m: gemm.m,
        n: gemm.n,
        k: gemm.k,
        dataflow: config.dataflow.name(),
        rows: config.rows,
        cols: config.cols,
        n_folds: time.n_folds,
        cycles: time.cycles,
        correction_cycles: time.cycles - scale_sim,
        scale_sim_v3_cycles: scale_sim,
        published_cycles: published,
        difference: published.map(|published| scale_sim.cast_signed() - published.cast_signed()),
    })
}
