//! Reports as tables for people.
//!
//! Invariant: a table shows nothing that the report does not hold.

mod explain;
mod gemm;
mod latency;
mod sensitivity;
mod sweep;

use crate::report::{CompareReport, Header, OverflowCounts, OverflowReport, RunReport};
use accelerator::Config;
use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use std::fmt::Write;

pub use explain::explain;
pub use gemm::gemm;
pub use latency::latency;
pub use sensitivity::sensitivity;
pub use sweep::sweep;

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

/// How long systole's own stages take here.
pub fn bench(report: &crate::report::BenchReport) -> String {
    let columns = ["runs", "min ms", "median ms", "a second"];
    let mut table = new_table(&["stage"], &[&columns[..], &["of"]].concat());
    for stage in &report.stages {
        let million = decimals(stage.items_per_second / 1e6, 1);
        let row = vec![
            stage.name.to_owned(),
            stage.n_repetitions.to_string(),
            decimals(stage.min_seconds * 1e3, 3),
            decimals(stage.median_seconds * 1e3, 3),
            format!("{million} million"),
            stage.unit.to_owned(),
        ];
        add(&mut table, row);
    }
    format!(
        "{table}\n\n{} kernels, {} threads; {} of {} MAC steps overflowed\n",
        report.level,
        report.n_threads,
        grouped(report.n_overflowed),
        grouped(report.n_macs)
    )
}

/// Machines by name, with what each is.
pub fn machines(machines: &[(Config, &str)]) -> String {
    let columns = ["PEs", "MHz", "acc.", "KiB act.", "KiB wgt.", "GB/s"];
    let mut table = new_table(&["machine", "dataflow"], &columns);
    let mut summaries = String::new();
    for (config, summary) in machines {
        let kib = |bytes: u32| decimals(f64::from(bytes) / 1024.0, 0);
        let bandwidth = f64::from(config.dram.bytes_per_cycle) * config.clock_hz as f64 / 1e9;
        let row = vec![
            config.name.clone(),
            config.dataflow.name().to_owned(),
            format!("{} × {}", config.rows, config.cols),
            decimals(config.clock_hz as f64 / 1e6, 0),
            format!("{} bits", config.arithmetic.accumulator.width_bits),
            kib(config.activation_bytes),
            kib(config.weight_bytes),
            decimals(bandwidth, 1),
        ];
        add(&mut table, row);
        let _ = writeln!(summaries, "{}: {summary}", config.name);
    }
    format!("{table}\n\n{summaries}")
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
            "{who} agree bit for bit: {} images, {} tensors, {} values, overflow counts of {} channels",
            checked.n_images,
            checked.n_tensors,
            grouped(checked.n_values),
            grouped(checked.n_overflow_records)
        );
    }
    text
}

/// A table of rows that are text already.
pub fn plain(texts: &[&str], numbers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = new_table(texts, numbers);
    for row in rows {
        add(&mut table, row);
    }
    table.to_string()
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
