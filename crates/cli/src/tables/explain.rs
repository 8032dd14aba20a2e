//! The candidates of a tile search, and why one won.

use super::{add, grouped, new_table};
use compiler::{BoundCycles, Dominant, Explained, Explanation, Fate, Mapping};
use std::fmt::Write;

/// Candidates by lower bound, what does not fit, and the reason for the choice.
pub fn explain(report: &Explanation) -> String {
    let mut text = format!("layer {}: {}\n", report.layer, report.operation);
    let _ = write!(
        text,
        "{} bytes of activation scratchpad for tiles, {} of weight scratchpad",
        grouped(report.room_bytes.into()),
        grouped(report.weight_bytes.into())
    );
    for (index, operand) in report.resident.iter().enumerate() {
        let lead = if index == 0 { "; on chip: " } else { ", " };
        let _ = write!(text, "{lead}{operand}");
    }
    text.push('\n');
    if let [first, rest @ ..] = report.equal_layers.as_slice() {
        let _ = write!(text, "the same answer serves {first}");
        for layer in rest {
            let _ = write!(text, ", {layer}");
        }
        text.push('\n');
    }
    candidates(&mut text, report);
    too_large(&mut text, report);
    reason(&mut text, report);
    text
}

fn candidates(text: &mut String, report: &Explanation) {
    let columns = [
        "act. B", "wgt. B", "1st load", "array", "blocks", "post", "last", "bus", "bound", "cycles",
    ];
    let mut table = new_table(&["tile", "outer loop"], &columns);
    for candidate in &report.candidates {
        let bound = &candidate.bound;
        let bytes = |memory: &str| {
            let buffers = candidate.buffers.iter().filter(|b| b.memory == memory);
            let bytes = buffers.map(|b| u64::from(b.slot_bytes) * u64::from(b.n_slots));
            grouped(bytes.sum())
        };
        let row = vec![
            tile(&candidate.mapping),
            order(report, &candidate.mapping),
            bytes("activation"),
            bytes("weight"),
            grouped(bound.first_load),
            grouped(bound.array),
            grouped(bound.blocks),
            grouped(bound.post),
            grouped(bound.last_requantize + bound.last_store),
            grouped(bound.bus),
            grouped(bound.total),
            fate(candidate),
        ];
        add(&mut table, row);
    }
    let _ = write!(text, "\n{table}\n");
}

fn fate(candidate: &Explained) -> String {
    match (candidate.fate, candidate.cycles) {
        (Fate::Chosen, Some(cycles)) => format!("* {}", grouped(cycles)),
        (_, Some(cycles)) => grouped(cycles),
        (Fate::Refused, None) => "refused".to_owned(),
        (_, None) => "pruned".to_owned(),
    }
}

fn tile(mapping: &Mapping) -> String {
    format!("{}x{}", mapping.tile[0], mapping.tile[1])
}

/// The block of channels is named when there are several to choose from.
fn order(report: &Explanation, mapping: &Mapping) -> String {
    let mut order = if mapping.channels_outer {
        format!("weights by {}", mapping.group_tiles)
    } else {
        "pixels".to_owned()
    };
    let fitting = report.candidates.iter().map(|candidate| candidate.mapping);
    let others = report.too_large.iter().map(|candidate| candidate.mapping);
    let mut all = fitting.chain(others);
    if all.any(|other| other.fold_channels != mapping.fold_channels) {
        let _ = write!(order, ", {} ch.", mapping.fold_channels);
    }
    order
}

fn too_large(text: &mut String, report: &Explanation) {
    if report.too_large.is_empty() {
        return;
    }
    let mut table = new_table(
        &["tile", "outer loop", "does not fit", "memory"],
        &["needs B", "has B"],
    );
    for candidate in &report.too_large {
        let row = vec![
            tile(&candidate.mapping),
            order(report, &candidate.mapping),
            candidate.what.to_owned(),
            candidate.buffer.to_owned(),
            grouped(candidate.needed_bytes),
            grouped(candidate.available_bytes),
        ];
        add(&mut table, row);
    }
    let _ = write!(text, "\n{table}\n");
}

/// Why the chosen one is not faster, and why no other is.
fn reason(text: &mut String, report: &Explanation) {
    let chosen = report.candidates.iter().find(|c| c.fate == Fate::Chosen);
    let Some((chosen, cycles)) = chosen.and_then(|chosen| Some((chosen, chosen.cycles?))) else {
        let _ = writeln!(text, "\nnothing fits");
        return;
    };
    let beyond = match cycles - chosen.bound.total {
        0 => "exactly its bound".to_owned(),
        beyond => format!("{} above its bound", grouped(beyond)),
    };
    let _ = writeln!(
        text,
        "\n* {}, outer loop {}: {} cycles, {beyond}: {}",
        tile(&chosen.mapping),
        order(report, &chosen.mapping),
        grouped(cycles),
        sum(&chosen.bound)
    );
    let count = |fate| report.candidates.iter().filter(|c| c.fate == fate).count();
    let [slower, pruned, refused] = [Fate::Slower, Fate::Pruned, Fate::Refused].map(count);
    let equal = report
        .candidates
        .iter()
        .filter(|c| c.fate == Fate::Slower && c.cycles == Some(cycles));
    let _ = write!(
        text,
        "{} candidates fit: {} timed, {pruned} pruned (their bound is no less)",
        report.candidates.len(),
        slower + 1
    );
    match equal.count() {
        0 => {}
        n => {
            let _ = write!(
                text,
                "; {n} as fast lost by the larger bound, or the larger tile"
            );
        }
    }
    if refused > 0 {
        let _ = write!(text, "; {refused} refused by the machine");
    }
    text.push('\n');
}

fn sum(bound: &BoundCycles) -> String {
    let units = |busiest: &str, cycles: u64, last: u64| {
        format!(
            "{} until the first operands are on chip, {} of {busiest}, {} from there to the last byte",
            grouped(bound.first_load),
            grouped(cycles),
            grouped(last)
        )
    };
    match bound.dominant {
        Dominant::Array => units(
            "the array",
            bound.array,
            bound.last_requantize + bound.last_store,
        ),
        Dominant::Blocks => units("the accumulator blocks", bound.blocks, bound.store),
        Dominant::Post => units("the post unit", bound.post, bound.last_store),
        Dominant::Bus => format!(
            "the DRAM bus carries {} bytes in, {} out",
            grouped(bound.loaded_bytes),
            grouped(bound.stored_bytes)
        ),
    }
}
