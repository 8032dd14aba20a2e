//! `base = "preset"`: what a machine file leaves out comes from a machine that systole knows.
//!
//! Invariant: an inherited value stands, for messages, where the `base` stands that brought it.

use crate::presets;
use std::ops::Range;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A mistake in the text: where, and what.
pub(crate) type Mistake = (Range<usize>, String);

/// Keys that only some dataflows have: a file that chooses another one does not inherit them.
const OF_A_DATAFLOW: [(&str, &str); 3] = [
    ("array", "shadow_accumulators"),
    ("array", "shadow_operands"),
    ("accumulator", "block_rows"),
];

/// The file's table, completed by its base.
pub(crate) fn complete(text: &str) -> Result<Spanned<DeTable<'_>>, Mistake> {
    let mut file = DeTable::parse(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        (span, error.message().to_owned())
    })?;
    let Some(base) = file.get_mut().remove("base") else {
        return Ok(file);
    };
    let span = base.span();
    let Some(name) = base.get_ref().as_str() else {
        return Err((span, "base: must be the name of a machine".to_owned()));
    };
    let Some(preset) = presets::find(name) else {
        let message = format!("base = \"{name}\": {}", presets::unknown(name));
        return Err((span, message));
    };
    let mut base = complete(preset.text)
        .unwrap_or_else(|(_, message)| panic!("preset {name}: {message}"))
        .into_inner();
    if changes_dataflow(file.get_ref(), &base) {
        for (table, key) in OF_A_DATAFLOW {
            if let Some(DeValue::Table(table)) = base.get_mut(table).map(Spanned::get_mut) {
                table.remove(key);
            }
        }
    }
    fill(file.get_mut(), base, &span);
    Ok(file)
}

fn changes_dataflow(file: &DeTable<'_>, base: &DeTable<'_>) -> bool {
    let dataflow = |table: &DeTable<'_>| {
        let array = table.get("array")?.get_ref().as_table()?;
        Some(array.get("dataflow")?.get_ref().as_str()?.to_owned())
    };
    dataflow(file).is_some_and(|own| Some(own) != dataflow(base))
}

/// Gives a table what it lacks, tables inside it too.
fn fill<'t>(table: &mut DeTable<'t>, base: DeTable<'t>, span: &Range<usize>) {
    for (key, value) in base {
        let value = value.into_inner();
        match table.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut) {
            Some(DeValue::Table(own)) => {
                if let DeValue::Table(value) = value {
                    fill(own, value, span);
                }
            }
            Some(_) => {}
            None => {
                let key = Spanned::new(span.clone(), key.into_inner());
                let value = Spanned::new(span.clone(), respanned(value, span));
                table.insert(key, value);
            }
        }
    }
}

fn respanned<'t>(value: DeValue<'t>, span: &Range<usize>) -> DeValue<'t> {
    let DeValue::Table(inner) = value else {
        return value;
    };
    let mut table = DeTable::new();
    fill(&mut table, inner, span);
    DeValue::Table(table)
}
