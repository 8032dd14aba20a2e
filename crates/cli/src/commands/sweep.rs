//! `systole sweep`: every point of a sweep file, a line of CSV each, and the front of the best.

use crate::{
    args, output,
    sweep::{Axis, Journal, Networks, Sweep, columns, evaluate, fingerprint, fronts, points, svg},
    tables,
};
use anyhow::Result;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

/// Runs the command.
///
/// # Errors
/// A sweep file or a file that it names is wrong, or the results file holds something else.
pub fn run(args: &args::Sweep) -> Result<()> {
    let sweep = Sweep::open(&args.file)?;
    let points = points(&sweep)?;
    if let Some(path) = &args.plot {
        output::check_writable(path)?;
    }
    let columns = columns(&points);
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| args.file.with_extension("csv"));
    let n_points = points.list.len();
    let journal = Journal::open(&output, &columns, fingerprint(&sweep, &points)?, n_points)?;
    let open: Vec<_> = points
        .list
        .iter()
        .filter(|point| !journal.has(point.index))
        .collect();
    if open.len() < n_points {
        let n_done = n_points - open.len();
        output::tell(&format!(
            "note: {n_done} of {n_points} points are done already"
        ));
    }
    let names: Vec<String> = sweep.names();
    let networks = Networks::open(&sweep, &points, &open)?;
    let bar = output::progress("sweep", n_points);
    bar.set_position((n_points - open.len()) as u64);
    open.par_iter().try_for_each(|point| {
        let row = evaluate(&networks, point, &names[point.network])?;
        journal.add(point.index, row)?;
        bar.inc(1);
        anyhow::Ok(())
    })?;
    bar.finish_and_clear();
    let rows = journal.finish()?;
    let axes = match &sweep.front {
        Some(names) => names
            .iter()
            .filter_map(|name| Axis::of(name.get_ref()))
            .collect(),
        None => Axis::defaults(&columns, &rows),
    };
    let placed = fronts(&columns, &rows, &axes);
    if let Some(path) = &args.plot {
        output::write_file(path, svg(&placed, &axes)?.as_bytes())?;
    }
    let n_settings = points.columns.len();
    output::print(&tables::sweep(
        &columns[..=n_settings],
        &rows,
        &axes,
        &placed,
    ))?;
    output::print(&format!("\n{n_points} points in {}\n", output.display()))
}
