//! A run in Chrome's trace format, which Perfetto opens: one track for the layers, one for each
//! unit, one for the DRAM bus.
//!
//! Invariant: slices of a track never overlap, and a microsecond on the screen is a cycle.

use crate::{engine::Engine, report::LatencyReport};
use anyhow::Result;
use isa::Unit;
use serde_json::{Value, json};

/// Tracks in the order in which a viewer shows them.
const LAYERS: usize = 0;
const FIRST_UNIT: usize = 1;
const BUS: usize = 6;

/// The trace as JSON.
///
/// # Errors
/// None that a user can cause.
pub fn chrome(engine: &Engine<'_>, report: &LatencyReport) -> Result<Vec<u8>> {
    let mut events: Vec<Value> = Vec::new();
    events.push(json!({
        "ph": "M", "pid": 1, "name": "process_name",
        "args": { "name": format!("{} on {}", report.header.network.name, report.header.machine.name) }
    }));
    let units = [
        Unit::Frontend,
        Unit::Load,
        Unit::Array,
        Unit::Post,
        Unit::Store,
    ];
    let tracks = [
        "layers", "frontend", "load", "array", "post", "store", "bus",
    ];
    for (track, name) in tracks.iter().enumerate() {
        events.push(json!({
            "ph": "M", "pid": 1, "tid": track, "name": "thread_name", "args": { "name": name }
        }));
        events.push(json!({
            "ph": "M", "pid": 1, "tid": track, "name": "thread_sort_index",
            "args": { "sort_index": track }
        }));
    }
    for layer in &report.layers {
        let args = json!({ "bound": layer.bound, "energy_fj": layer.energy_fj });
        let span = (layer.from_cycle, layer.from_cycle + layer.cycles);
        events.push(slice(LAYERS, &layer.name, span, &args));
    }
    let timing = &engine.timing;
    for (position, unit) in units.into_iter().enumerate() {
        let of_unit: Vec<usize> = (0..engine.program.instructions.len())
            .filter(|&index| engine.program.instructions[index].op.unit() == unit)
            .collect();
        for (place, &index) in of_unit.iter().enumerate() {
            // An instruction that runs on under the next one is drawn until the next one starts.
            let next = of_unit
                .get(place + 1)
                .map_or(u64::MAX, |&next| timing.start[next]);
            let (start, end) = (timing.start[index], timing.end[index]);
            let layer = engine.program.layer_of[index] as usize;
            let args = json!({
                "index": index,
                "layer": engine.program.layers[layer].name,
                "issue": timing.issue[index],
                "start": start,
                "end": end,
            });
            let name = engine.program.instructions[index].op.mnemonic();
            let track = FIRST_UNIT + position;
            events.push(slice(track, name, (start, end.min(next)), &args));
        }
    }
    for &span in &timing.bus {
        events.push(slice(BUS, "words", span, &json!({})));
    }
    // One event a line, so that traces can be compared.
    let mut text = String::from("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n");
    for (index, event) in events.iter().enumerate() {
        text.push_str(&serde_json::to_string(event)?);
        text.push_str(if index + 1 == events.len() {
            "\n"
        } else {
            ",\n"
        });
    }
    text.push_str("]}\n");
    Ok(text.into_bytes())
}

fn slice(track: usize, name: &str, (from, to): (u64, u64), args: &Value) -> Value {
    json!({
        "ph": "X", "pid": 1, "tid": track, "name": name,
        "ts": from, "dur": to.saturating_sub(from), "args": args
    })
}
