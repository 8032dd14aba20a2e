//! The latency report as tables of at most 100 columns: time, owners of cycles, bytes and energy.

use super::{add, decimals, grouped, new_table, percent};
use crate::report::{Bound, EnergyByUnit, LatencyReport, LayerLatency, OwnedCycles};
use accelerator::Owner;
use std::fmt::Write;

/// Longest name in tables that are not wide; of a longer one the end is shown, which differs.
const NAME_CHARS: usize = 22;
/// Layers that are named as the worst.
const N_STALLS: usize = 3;

/// Cycles of every layer, who owned them, what moved, and what it cost. `wide` gives names and
/// cycles in full.
pub fn latency(report: &LatencyReport, wide: bool) -> String {
    let mut text = String::new();
    time_table(&mut text, report, wide);
    owner_table(&mut text, report, wide);
    energy_table(&mut text, report, wide);
    summary(&mut text, report);
    text
}

fn time_table(text: &mut String, report: &LatencyReport, wide: bool) {
    let columns = [
        "cycles", "µs", "share", "MMACs", "util.", "mapped", "× floor",
    ];
    let mut table = new_table(&["layer", "bound"], &columns);
    for layer in &report.layers {
        let row = vec![
            name(&layer.name, wide),
            bound(layer.bound).to_owned(),
            grouped(layer.cycles),
            decimals(layer.seconds * 1e6, 1),
            tenths(layer.share),
            decimals(layer.n_macs as f64 / 1e6, 2),
            tenths(layer.compute_utilization),
            tenths(layer.mapping_utilization),
            over_floor(layer),
        ];
        add(&mut table, row);
    }
    let _ = write!(text, "{table}\n\n");
}

fn owner_table(text: &mut String, report: &LatencyReport, wide: bool) {
    let columns = [
        "cycles", "compute", "fill", "drain", "post", "DRAM", "data", "space", "control",
    ];
    let mut table = new_table(&["layer"], &columns);
    let mut row = |name: String, cycles: u64, owned: &OwnedCycles| {
        let mut row = vec![name, grouped(cycles)];
        row.extend(owned.list().map(|part| {
            if wide {
                grouped(part)
            } else {
                blank_zero(part, || tenths(part as f64 / cycles.max(1) as f64))
            }
        }));
        add(&mut table, row);
    };
    for layer in &report.layers {
        row(name(&layer.name, wide), layer.cycles, &layer.owned_cycles);
    }
    row(
        "total".to_owned(),
        report.total_cycles,
        &report.owned_cycles,
    );
    let unit = if wide { "cycles" } else { "%" };
    let _ = write!(
        text,
        "who owned the cycles ({unit}; data, space: waiting for them)\n{table}\n\n"
    );
}

fn energy_table(text: &mut String, report: &LatencyReport, wide: bool) {
    let narrow_columns = [
        "KiB in", "KiB out", "µJ", "MACs", "act.", "weights", "DRAM", "other",
    ];
    let wide_columns = [
        "KiB in", "KiB out", "µJ", "MACs", "act.", "weights", "DRAM", "blocks", "param.", "post",
        "frontend", "static",
    ];
    let columns: &[&str] = if wide { &wide_columns } else { &narrow_columns };
    let mut table = new_table(&["layer"], columns);
    let mut row = |name: String, bytes: [u64; 2], energy: &EnergyByUnit| {
        let mut row = vec![name];
        row.extend(bytes.map(|bytes| decimals(bytes as f64 / 1024.0, 1)));
        let mut units = vec![
            energy.total(),
            energy.macs,
            energy.activations,
            energy.weights,
            energy.dram,
        ];
        let others = [
            energy.blocks,
            energy.parameters,
            energy.post_unit,
            energy.frontend,
            energy.idle,
        ];
        if wide {
            units.extend(others);
        } else {
            units.push(others.iter().sum());
        }
        row.extend(
            units
                .into_iter()
                .map(|fj| blank_zero(fj, || decimals(microjoules(fj), 2))),
        );
        add(&mut table, row);
    };
    for layer in &report.layers {
        let bytes = [layer.dram_read_bytes, layer.dram_written_bytes];
        row(name(&layer.name, wide), bytes, &layer.energy_by_unit_fj);
    }
    let bytes = [report.dram_read_bytes, report.dram_written_bytes];
    row("total".to_owned(), bytes, &report.energy_by_unit_fj);
    let _ = write!(
        text,
        "DRAM traffic, and energy by unit (µJ; act., weights: scratchpads)\n{table}\n\n"
    );
}

fn summary(text: &mut String, report: &LatencyReport) {
    let _ = writeln!(
        text,
        "{} cycles at {} MHz: {} ms an image, {:.1} images a second",
        grouped(report.total_cycles),
        report.clock_hz as f64 / 1e6,
        decimals(report.total_seconds * 1e3, 4),
        report.frames_per_second
    );
    let _ = writeln!(
        text,
        "{} MACs, compute utilization {}; DRAM: {} bytes in, {} bytes out",
        grouped(report.n_macs),
        percent(report.compute_utilization),
        grouped(report.dram_read_bytes),
        grouped(report.dram_written_bytes)
    );
    if report.lane_macs > 0 {
        let _ = writeln!(
            text,
            "{} MACs of depthwise convolutions on the post unit's lanes, {} of their bound while busy",
            grouped(report.lane_macs),
            percent(report.lane_mapping_utilization)
        );
    }
    if let Some(rows) = &report.dram_rows {
        let _ = writeln!(
            text,
            "DRAM rows: {} hits, {} misses, {} conflicts; {} refreshes",
            grouped(rows.hits),
            grouped(rows.misses),
            grouped(rows.conflicts),
            grouped(rows.refreshes)
        );
    }
    let _ = writeln!(
        text,
        "{} µJ an image, {} mW on average",
        decimals(microjoules(report.energy_fj), 2),
        decimals(report.average_watts * 1e3, 2)
    );
    let _ = writeln!(
        text,
        "{} × the sum of the layers' rooflines ({} cycles)",
        decimals(report.over_roofline, 3),
        grouped(report.roofline_cycles)
    );
    for stall in report.stalls.iter().take(N_STALLS) {
        let _ = writeln!(
            text,
            "  {}: {} cycles beyond its own; multipliers without work {}, {} {}",
            super::printable(&stall.layer),
            grouped(stall.beyond_roofline_cycles),
            grouped(stall.idle_multipliers_cycles),
            phrase(stall.owner),
            grouped(stall.owned_cycles)
        );
    }
}

const fn bound(bound: Bound) -> &'static str {
    match bound {
        Bound::Compute => "compute",
        Bound::Memory => "memory",
        Bound::Post => "post",
    }
}

const fn phrase(owner: Owner) -> &'static str {
    match owner {
        Owner::Compute => "compute",
        Owner::Fill => "array fills",
        Owner::Drain => "array drains",
        Owner::PostUnit => "post unit",
        Owner::Dram => "DRAM bus",
        Owner::WaitForData => "waiting for data",
        Owner::WaitForSpace => "waiting for space",
        Owner::Control => "control",
    }
}

fn over_floor(layer: &LayerLatency) -> String {
    let floor = layer
        .compute_floor_cycles
        .max(layer.memory_floor_cycles)
        .max(layer.post_floor_cycles);
    if floor == 0 {
        return String::new();
    }
    decimals(layer.cycles as f64 / floor as f64, 2)
}

fn name(name: &str, wide: bool) -> String {
    let n_chars = name.chars().count();
    if wide || n_chars <= NAME_CHARS {
        return name.to_owned();
    }
    let end: String = name.chars().skip(n_chars - NAME_CHARS + 1).collect();
    format!("…{end}")
}

fn microjoules(fj: u64) -> f64 {
    fj as f64 / 1e9
}

/// `12.3`, in percent.
fn tenths(share: f64) -> String {
    decimals(share * 100.0, 1)
}

fn blank_zero(number: u64, text: impl FnOnce() -> String) -> String {
    if number == 0 { String::new() } else { text() }
}

#[cfg(test)]
mod tests {
    use super::{NAME_CHARS, name};

    #[test]
    fn long_names_keep_their_end() {
        assert_eq!(name("conv1", false), "conv1");
        let long = "/layer4/layer4.0/downsample/downsample.0/Conv";
        assert_eq!(name(long, true), long);
        assert_eq!(name(long, false), "…ple/downsample.0/Conv");
        assert_eq!(name(long, false).chars().count(), NAME_CHARS);
    }
}
