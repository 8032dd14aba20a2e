//! The points of a sweep: every combination, in an order that only the file decides.
//!
//! Invariant: the machine of every point has passed `Machine::from_toml` before the first one runs.

use super::file::{Settings, Sweep};
use crate::{
    args::{QuantizerFlags, TuningFlags},
    input,
};
use accelerator::{Machine, presets};
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use std::{collections::BTreeMap, path::Path};
use toml::{Spanned, Table, Value};

/// The machine where no point names a `base`.
const DEFAULT_BASE: &str = "edge-16x16";

/// One network on one machine.
#[derive(Clone, Debug)]
pub struct Point {
    /// Position among all points.
    pub index: usize,
    /// Position among the sweep's networks.
    pub network: usize,
    /// What the point sets, machine then quantizer, in the order of the columns.
    pub settings: Vec<String>,
    /// The machine.
    pub machine: Machine,
    /// Which distinct setting of the quantizer: points that share it share the integer network.
    pub quantizer: usize,
}

/// All points, what their settings are called, and every distinct setting of the quantizer.
pub struct Points {
    /// In order.
    pub list: Vec<Point>,
    /// Names of `Point::settings`.
    pub columns: Vec<String>,
    /// By `Point::quantizer`.
    pub quantizers: Vec<Flags>,
}

/// A distinct setting of the quantizer.
#[derive(Clone, Debug, Parser)]
pub struct Flags {
    /// Bits and scales.
    #[command(flatten)]
    pub quantizer: QuantizerFlags,
    /// For the methods that look at outputs.
    #[command(flatten)]
    pub tuning: TuningFlags,
}

/// Multiplies a sweep out.
///
/// # Errors
/// A setting that the machine file or the quantizer does not know.
pub fn points(sweep: &Sweep) -> Result<Points> {
    let machine_keys = keys(
        sweep.grid.machine.keys(),
        sweep.point.iter().map(|p| &p.machine),
    );
    let quantizer_keys = keys(
        sweep.grid.quantizer.keys(),
        sweep.point.iter().map(|p| &p.quantizer),
    );
    let nothing = super::file::ListPoint::default();
    let listed: Vec<_> = match sweep.point.as_slice() {
        [] => vec![&nothing],
        list => list.iter().collect(),
    };
    let mut bases = BTreeMap::new();
    let mut distinct: Vec<(Settings, Flags)> = Vec::new();
    let mut list = Vec::new();
    for network in 0..sweep.network.len() {
        for own in &listed {
            for quantizer in combinations(&sweep.grid.quantizer, &own.quantizer) {
                let known = distinct.iter().position(|(known, _)| *known == quantizer);
                if known.is_none() {
                    distinct.push((quantizer.clone(), flags(&quantizer)?));
                }
                let position = known.unwrap_or(distinct.len() - 1);
                for machine in combinations(&sweep.grid.machine, &own.machine) {
                    let of = |keys: &[String], settings: &Settings| -> Vec<String> {
                        keys.iter()
                            .map(|key| settings.get(key).map_or(String::new(), plain))
                            .collect()
                    };
                    let mut settings = of(&machine_keys, &machine);
                    settings.extend(of(&quantizer_keys, &quantizer));
                    list.push(Point {
                        index: list.len(),
                        network,
                        settings,
                        machine: build(&machine, &sweep.folder, &mut bases)
                            .with_context(|| format!("machine {}", describe(&machine)))?,
                        quantizer: position,
                    });
                }
            }
        }
    }
    let columns = machine_keys.into_iter().chain(quantizer_keys).collect();
    let quantizers = distinct.into_iter().map(|(_, flags)| flags).collect();
    Ok(Points {
        list,
        columns,
        quantizers,
    })
}

/// Every key that the grid or a listed point sets, sorted.
fn keys<'a>(
    grid: impl Iterator<Item = &'a String>,
    listed: impl Iterator<Item = &'a Settings>,
) -> Vec<String> {
    let all: std::collections::BTreeSet<_> = grid.chain(listed.flat_map(Settings::keys)).collect();
    all.into_iter().cloned().collect()
}

/// The grid's combinations, the last key fastest, each with a listed point's own values, which win.
fn combinations(grid: &BTreeMap<String, Spanned<Value>>, own: &Settings) -> Vec<Settings> {
    let mut all = vec![own.clone()];
    for (key, values) in grid.iter().filter(|(key, _)| !own.contains_key(*key)) {
        let values = values
            .get_ref()
            .as_array()
            .map_or(&[] as &[Value], Vec::as_slice);
        all = all
            .iter()
            .flat_map(|settings| {
                values.iter().map(move |value| {
                    let mut settings = settings.clone();
                    settings.insert(key.clone(), value.clone());
                    settings
                })
            })
            .collect();
    }
    all
}

/// A value as people write it, text without quotation marks.
fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn describe(settings: &Settings) -> String {
    let all: Vec<String> = settings
        .iter()
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    all.join(", ")
}

/// The base's table with the settings in it, through the door that every machine file takes.
fn build(
    settings: &Settings,
    folder: &Path,
    bases: &mut BTreeMap<String, Table>,
) -> Result<Machine> {
    let base = settings
        .get("base")
        .map_or_else(|| DEFAULT_BASE.to_owned(), plain);
    if !bases.contains_key(&base) {
        bases.insert(base.clone(), base_table(&base, folder)?);
    }
    let mut table = bases[&base].clone();
    for (key, value) in settings.iter().filter(|(key, _)| *key != "base") {
        insert(&mut table, key, value)?;
    }
    let text = toml::to_string(&table).context("cannot write the machine")?;
    Machine::from_toml(&text).map_err(|error| anyhow!("{}", error.message))
}

fn base_table(base: &str, folder: &Path) -> Result<Table> {
    if presets::find(base).is_some() {
        return Ok(Table::from_iter([("base".to_owned(), Value::from(base))]));
    }
    // Through the same door as `--machine`, for its messages; then the text for its keys.
    let path = folder.join(base);
    input::machine(Some(&path))?;
    let text = input::read_text(&path, 1 << 20)?;
    text.parse().with_context(|| path.display().to_string())
}

fn insert(table: &mut Table, key: &str, value: &Value) -> Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value.clone());
            Ok(())
        }
        Some((first, rest)) => {
            let inner = table
                .entry(first)
                .or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else {
                bail!("{first} is no table of the machine file");
            };
            insert(inner, rest, value)
        }
    }
}

/// The quantizer's flags, parsed as on the command line, so that both know the same ones.
fn flags(settings: &Settings) -> Result<Flags> {
    let mut line = vec!["quantizer".to_owned()];
    for (key, value) in settings {
        let flag = format!("--{}", key.replace('_', "-"));
        match value {
            Value::Boolean(true) => line.push(flag),
            Value::Boolean(false) => {}
            _ => line.push(format!("{flag}={}", plain(value))),
        }
    }
    Flags::try_parse_from(line).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        anyhow!(
            "quantizer {}: {}",
            describe(settings),
            first.trim_start_matches("error: ")
        )
    })
}
