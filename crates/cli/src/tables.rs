//! Reports as tables for people.
//!
//! Invariant: a table shows nothing that the report does not hold.

use crate::report::{
    Bound, CompareReport, Header, LatencyReport, LayerLatency, OverflowCounts, OverflowReport,
    OwnedCycles, RunReport,
};
use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use std::fmt::Write;

/// Columns apart by space, one line under the header: nothing to trip over when pasted.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::new('─', '─', '─', '─'));

/// The first lines of every report.
pub fn header(header: &Header) -> String {
    format!(
        "systole {} {}\nmachine {} ({})\nnetwork {} ({})\n",
        header.systole,
        header.command,
        header.machine.name,
        header.machine.fingerprint,
        header.network.name,
        header.network.fingerprint
    )
}

/// Cycles of every layer, then who owned them.
pub fn latency(report: &LatencyReport) -> String {
    let mut table = new_table(
        &["layer", "bound"],
        &[
            "cycles",
            "share",
            "MACs",
            "compute util.",
            "mapping util.",
            "floor",
            "DRAM in",
            "DRAM out",
        ],
    );
    for layer in &report.layers {
        add(&mut table, latency_row(layer));
    }
    let mut owners = new_table(
        &["layer"],
        &[
            "cycles",
            "compute",
            "fill/drain",
            "post unit",
            "wait data",
            "wait store",
            "control",
        ],
    );
    for layer in &report.layers {
        add(
            &mut owners,
            owner_row(&layer.name, layer.cycles, &layer.owned_cycles),
        );
    }
    add(
        &mut owners,
        owner_row("total", report.total_cycles, &report.owned_cycles),
    );
    let mut text = format!("{table}\n\nwho owned the cycles\n{owners}\n\n");
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
    text
}

fn latency_row(layer: &LayerLatency) -> Vec<String> {
    let bound = match layer.bound {
        Bound::Compute => "compute",
        Bound::Memory => "memory",
    };
    vec![
        layer.name.clone(),
        bound.to_owned(),
        grouped(layer.cycles),
        percent(layer.share),
        grouped(layer.n_macs),
        percent(layer.compute_utilization),
        percent(layer.mapping_utilization),
        grouped(layer.compute_floor_cycles.max(layer.memory_floor_cycles)),
        grouped(layer.dram_read_bytes),
        grouped(layer.dram_written_bytes),
    ]
}

fn owner_row(name: &str, cycles: u64, owned: &OwnedCycles) -> Vec<String> {
    let mut row = vec![name.to_owned(), grouped(cycles)];
    row.extend(owned.list().map(grouped));
    row
}

/// The accumulators of every layer, then the worst channels.
pub fn overflow(report: &OverflowReport) -> String {
    let counts = [
        "overflowed",
        "outputs",
        "first k",
        "min sum",
        "max sum",
        "bits",
    ];
    let columns = [&["MAC steps", "share"], counts.as_slice()].concat();
    let mut table = new_table(&["layer"], &columns);
    for layer in &report.layers {
        let mut row = vec![
            layer.name.clone(),
            grouped(layer.n_mac_steps),
            percent(layer.overflowed_share),
        ];
        row.extend(count_cells(&layer.counts));
        add(&mut table, row);
    }
    let mut text = format!("{table}\n");
    if !report.worst_channels.is_empty() {
        let mut worst = new_table(&["layer"], &[&["channel"], counts.as_slice()].concat());
        for channel in &report.worst_channels {
            let mut row = vec![channel.layer.clone(), channel.channel.to_string()];
            row.extend(count_cells(&channel.counts));
            add(&mut worst, row);
        }
        let _ = write!(text, "\nworst channels\n{worst}\n");
    }
    let _ = writeln!(
        text,
        "\n{} images: {} of {} MAC steps overflowed {} bits ({}); {} bits would have sufficed",
        report.n_images,
        grouped(report.n_overflowed),
        grouped(report.n_mac_steps),
        report.accumulator_bits,
        percent(report.overflowed_share),
        report.sufficient_bits
    );
    text
}

fn count_cells(counts: &OverflowCounts) -> [String; 6] {
    [
        grouped(counts.n_overflowed),
        grouped(counts.n_outputs_touched),
        counts
            .first_k
            .map_or_else(|| "-".to_owned(), |k| k.to_string()),
        counts.min_partial_sum.to_string(),
        counts.max_partial_sum.to_string(),
        counts.sufficient_bits.to_string(),
    ]
}

/// Every tensor, float against integer.
pub fn compare(report: &CompareReport) -> String {
    let mut table = new_table(
        &["layer", "tensor", "format"],
        &["SQNR dB", "cosine", "max error", "clipped"],
    );
    for tensor in &report.tensors {
        let optional = |value: Option<f64>, n| {
            value.map_or_else(|| "-".to_owned(), |value| decimals(value, n))
        };
        let row = vec![
            tensor.layer.clone().unwrap_or_else(|| "(input)".to_owned()),
            tensor.tensor.clone(),
            tensor.format.clone(),
            optional(tensor.sqnr_db, 2),
            optional(tensor.cosine, 5),
            decimals(tensor.max_error, 4),
            percent(tensor.clipped_share),
        ];
        add(&mut table, row);
    }
    let mut text = format!("{table}\n");
    for name in &report.skipped {
        let _ = writeln!(
            text,
            "the float model has no value {name:?} of this size: not compared"
        );
    }
    let _ = write!(text, "\n{} images", report.n_images);
    if let Some(top1) = &report.top1 {
        if let (Some(float), Some(integer)) = (top1.float, top1.integer) {
            let _ = write!(
                text,
                ": top-1 float {}, integer {}",
                percent(float),
                percent(integer)
            );
        }
        if let Some(agreement) = top1.agreement {
            let _ = write!(text, "; both agree on {}", percent(agreement));
        }
    }
    text.push('\n');
    text
}

/// The outputs of every image.
pub fn run(report: &RunReport) -> String {
    let mut text = String::new();
    for image in &report.images {
        let label = image
            .label
            .map_or_else(String::new, |label| format!(", label {label}"));
        let _ = writeln!(
            text,
            "image {}: top-1 {}{label}, {} overflowed MAC steps",
            image.image,
            image.top1,
            grouped(image.n_overflowed)
        );
        if report.images.len() > 1 {
            continue;
        }
        for output in &image.outputs {
            let [c, h, w] = output.shape;
            let _ = writeln!(
                text,
                "output {:?} {c}×{h}×{w}, scale {:e}",
                output.tensor, output.scale
            );
            for row in output.integers.chunks(16) {
                let row: Vec<String> = row.iter().map(|value| format!("{value:6}")).collect();
                let _ = writeln!(text, "  {}", row.join(" "));
            }
        }
    }
    if let Some(cycles) = report.total_cycles {
        let _ = writeln!(text, "{} cycles an image", grouped(cycles));
    }
    if let Some(checked) = &report.checked {
        let who = if checked.stepped {
            "event, stepped model and oracle"
        } else {
            "event model and oracle"
        };
        let _ = writeln!(
            text,
            "{who} agree bit for bit: {} images, {} tensors, {} values, {} overflow records",
            checked.n_images,
            checked.n_tensors,
            grouped(checked.n_values),
            grouped(checked.n_overflow_records)
        );
    }
    text
}

fn new_table(texts: &[&str], numbers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE);
    table.set_header(texts.iter().chain(numbers).map(|name| (*name).to_owned()));
    for index in texts.len()..texts.len() + numbers.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn add(table: &mut Table, row: Vec<String>) {
    table.add_row(row.into_iter().map(|text| Cell::new(printable(&text))));
}

/// Names come from files: nothing in them may steer a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// `12'345'678`
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\'');
        }
        text.push(digit);
    }
    text
}

/// `12.34 %`
pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn decimals(value: f64, n: usize) -> String {
    format!("{value:.n$}")
}

#[cfg(test)]
mod tests {
    use super::{grouped, percent};

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [0, 999, 1000, 12_345_678].map(grouped),
            ["0", "999", "1'000", "12'345'678"]
        );
        assert_eq!(percent(0.125), "12.50 %");
    }
}
