//! What the commands report, in one place: the keys of `--json`.
//!
//! Invariant: keys are stable (a new version may add, never rename); a report begins with version,
//! machine and network and holds no date, no path and nothing of the host, so equal inputs give
//! equal bytes. Times are cycles of the accelerator unless the key says `seconds`. A number that
//! does not exist (the SQNR of an exact tensor) is `null`.

use accelerator::{Config, LayerTiming};
use arith::Overflow;
use network::Network;
use serde::Serialize;

/// How every report begins.
#[derive(Clone, Debug, Serialize)]
pub struct Header {
    /// Version of systole.
    pub systole: &'static str,
    /// The command.
    pub command: &'static str,
    /// The machine.
    pub machine: Identity,
    /// The integer network.
    pub network: Identity,
}

/// A name, and a fingerprint of what the name stands for.
#[derive(Clone, Debug, Serialize)]
pub struct Identity {
    /// As its file calls it.
    pub name: String,
    /// 16 hexadecimal digits; names do not count.
    pub fingerprint: String,
}

impl Header {
    /// The beginning of a report.
    pub fn new(command: &'static str, machine: &Config, network: &Network) -> Self {
        let identity = |name: &str, fingerprint: u64| Identity {
            name: name.to_owned(),
            fingerprint: format!("{fingerprint:016x}"),
        };
        Self {
            systole: env!("CARGO_PKG_VERSION"),
            command,
            machine: identity(&machine.name, machine.fingerprint()),
            network: identity(&network.name, network::fingerprint(network)),
        }
    }
}

/// `systole latency`.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyReport {
    /// Who and what.
    #[serde(flatten)]
    pub header: Header,
    /// The machine's clock.
    pub clock_hz: u64,
    /// PEs of the array.
    pub n_pes: u64,
    /// From the first issue to the last completion of one image.
    pub total_cycles: u64,
    /// The same at the machine's clock.
    pub total_seconds: f64,
    /// Images a second when one follows the other.
    pub frames_per_second: f64,
    /// Multiply-accumulates that the network asks for.
    pub n_macs: u64,
    /// PE-cycles that did a MAC step ÷ (PEs × cycles).
    pub compute_utilization: f64,
    /// Bytes that the load DMA asked for.
    pub dram_read_bytes: u64,
    /// Bytes that the store DMA asked for.
    pub dram_written_bytes: u64,
    /// Cycles of the whole run by owner; they sum to `total_cycles`.
    pub owned_cycles: OwnedCycles,
    /// In execution order; their cycles sum to `total_cycles`.
    pub layers: Vec<LayerLatency>,
}

/// One layer's latency.
#[derive(Clone, Debug, Serialize)]
pub struct LayerLatency {
    /// Name in the network.
    pub name: String,
    /// First cycle that belongs to the layer.
    pub from_cycle: u64,
    /// From its first `matmul` or `pool` to the next layer's.
    pub cycles: u64,
    /// Part of the total, 0 to 1.
    pub share: f64,
    /// Multiply-accumulates that the layer asks for.
    pub n_macs: u64,
    /// PE-cycles that did a MAC step ÷ (PEs × cycles).
    pub compute_utilization: f64,
    /// PE-cycles that did a MAC step ÷ (PEs × cycles in which the array took operands).
    pub mapping_utilization: f64,
    /// Which floor of the roofline is higher: `compute` or `memory`.
    pub bound: Bound,
    /// `ceil(MACs · passes / PEs)`.
    pub compute_floor_cycles: u64,
    /// `ceil(DRAM bytes / bytes a cycle)`.
    pub memory_floor_cycles: u64,
    /// Bytes loaded by the layer's instructions.
    pub dram_read_bytes: u64,
    /// Bytes stored by the layer's instructions.
    pub dram_written_bytes: u64,
    /// Who owned the layer's cycles; they sum to `cycles`.
    pub owned_cycles: OwnedCycles,
}

/// The side of the roofline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The PEs need longer than the bus.
    Compute,
    /// The bus needs longer than the PEs.
    Memory,
}

/// Cycles by owner: the first of the list that applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OwnedCycles {
    /// The array takes operands.
    pub compute: u64,
    /// The array is busy, but only filling or draining.
    pub fill_or_drain: u64,
    /// The post unit works and the array does not.
    pub post_unit: u64,
    /// Only the load DMA works.
    pub wait_for_data: u64,
    /// Only the store DMA works.
    pub wait_for_store: u64,
    /// Instructions travel.
    pub control: u64,
}

impl OwnedCycles {
    /// As the accelerator model counts them.
    pub fn of(layer: &LayerTiming) -> Self {
        let [
            compute,
            fill_or_drain,
            post_unit,
            wait_for_data,
            wait_for_store,
            control,
        ] = layer.owned.map(|cycles| cycles.0);
        Self {
            compute,
            fill_or_drain,
            post_unit,
            wait_for_data,
            wait_for_store,
            control,
        }
    }

    /// In the order of the fields.
    pub const fn list(&self) -> [u64; 6] {
        [
            self.compute,
            self.fill_or_drain,
            self.post_unit,
            self.wait_for_data,
            self.wait_for_store,
            self.control,
        ]
    }

    /// Adds another layer's.
    pub fn add(&mut self, other: &Self) {
        self.compute += other.compute;
        self.fill_or_drain += other.fill_or_drain;
        self.post_unit += other.post_unit;
        self.wait_for_data += other.wait_for_data;
        self.wait_for_store += other.wait_for_store;
        self.control += other.control;
    }
}

/// `systole overflow`.
#[derive(Clone, Debug, Serialize)]
pub struct OverflowReport {
    /// Who and what.
    #[serde(flatten)]
    pub header: Header,
    /// Images that ran.
    pub n_images: usize,
    /// Width of the machine's accumulators.
    pub accumulator_bits: u8,
    /// What happens to a sum that does not fit.
    pub overflow: Overflow,
    /// MAC steps of all images, padding included.
    pub n_mac_steps: u64,
    /// Steps whose exact sum did not fit.
    pub n_overflowed: u64,
    /// `n_overflowed / n_mac_steps`.
    pub overflowed_share: f64,
    /// The narrowest accumulator that would have held every exact partial sum.
    pub sufficient_bits: u8,
    /// Every layer that multiplies, in execution order.
    pub layers: Vec<LayerOverflow>,
    /// Channels with the most overflowed steps; those without any are left out.
    pub worst_channels: Vec<ChannelReport>,
}

/// One layer's accumulators.
#[derive(Clone, Debug, Serialize)]
pub struct LayerOverflow {
    /// Name in the network.
    pub name: String,
    /// MAC steps of all images.
    pub n_mac_steps: u64,
    /// `n_overflowed / n_mac_steps`.
    pub overflowed_share: f64,
    /// Output elements of all images.
    pub n_outputs: u64,
    /// The counts.
    #[serde(flatten)]
    pub counts: OverflowCounts,
}

/// One output channel's accumulators.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelReport {
    /// Name of its layer.
    pub layer: String,
    /// Output channel.
    pub channel: u32,
    /// The counts.
    #[serde(flatten)]
    pub counts: OverflowCounts,
}

/// What accumulators did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OverflowCounts {
    /// MAC steps whose exact sum did not fit.
    pub n_overflowed: u64,
    /// Outputs with at least one such step.
    pub n_outputs_touched: u64,
    /// Smallest k (0-based) at which it happened.
    pub first_k: Option<u32>,
    /// Smallest exact partial sum.
    pub min_partial_sum: i64,
    /// Largest exact partial sum.
    pub max_partial_sum: i64,
    /// The narrowest accumulator that would have held every exact partial sum.
    pub sufficient_bits: u8,
}

impl OverflowCounts {
    /// Of a channel or of several merged ones.
    pub fn of(record: &arith::ChannelOverflow) -> Self {
        Self {
            n_overflowed: record.n_overflowed,
            n_outputs_touched: record.n_outputs_touched,
            first_k: record.first_k,
            min_partial_sum: record.min_partial_sum,
            max_partial_sum: record.max_partial_sum,
            sufficient_bits: record.sufficient_bits(),
        }
    }
}

/// `systole compare`.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// Who and what.
    #[serde(flatten)]
    pub header: Header,
    /// Images compared.
    pub n_images: usize,
    /// Whose largest output is the right one; absent when the output is no vector of classes.
    pub top1: Option<Top1>,
    /// The input first, then the tensor that each layer makes.
    pub tensors: Vec<TensorComparison>,
    /// Tensors of which the float model has no counterpart.
    pub skipped: Vec<String>,
}

/// Classification.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Top1 {
    /// Images whose largest float output is at the label, 0 to 1; `null` without labels.
    pub float: Option<f64>,
    /// The same of the integer outputs.
    pub integer: Option<f64>,
    /// Images for which float and integer choose the same class, 0 to 1; `null` without a float output.
    pub agreement: Option<f64>,
}

/// One tensor, float against integer times scale.
#[derive(Clone, Debug, Serialize)]
pub struct TensorComparison {
    /// Name of the value in the float model.
    pub tensor: String,
    /// Layer that makes it; `null` for the input.
    pub layer: Option<String>,
    /// Integer format: `uint4`, `int8`.
    pub format: String,
    /// Values compared, over all images.
    pub n_values: u64,
    /// Signal-to-quantization-noise ratio, dB: 10·log10(Σ float² / Σ (float - integer·scale)²).
    pub sqnr_db: Option<f64>,
    /// Cosine of the angle between both.
    pub cosine: Option<f64>,
    /// Largest absolute difference, in real units.
    pub max_error: f64,
    /// Share of integers at an end of the clip range that is not the cut of a `ReLU` at 0.
    pub clipped_share: f64,
}

/// `systole run`.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Who and what.
    #[serde(flatten)]
    pub header: Header,
    /// `event`, `stepped` or `oracle`.
    pub model: &'static str,
    /// Cycles of one image; `null` for the oracle, which has no time.
    pub total_cycles: Option<u64>,
    /// What was compared bit for bit, and found equal.
    pub checked: Option<Checked>,
    /// Each image.
    pub images: Vec<ImageRun>,
}

/// The size of a successful `--check`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Checked {
    /// Images.
    pub n_images: usize,
    /// Tensors of all images.
    pub n_tensors: u64,
    /// Values of all tensors.
    pub n_values: u64,
    /// Overflow records of all images.
    pub n_overflow_records: u64,
    /// Whether the stepped model took part.
    pub stepped: bool,
}

/// One image's results.
#[derive(Clone, Debug, Serialize)]
pub struct ImageRun {
    /// Position in the data.
    pub image: usize,
    /// Its label, when there is one.
    pub label: Option<usize>,
    /// Largest element of the first output.
    pub top1: usize,
    /// MAC steps whose exact sum did not fit.
    pub n_overflowed: u64,
    /// The network's outputs.
    pub outputs: Vec<Output>,
}

/// One output tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Output {
    /// Name of the value.
    pub tensor: String,
    /// Channels, rows, columns.
    pub shape: [usize; 3],
    /// `real = scale · integer`.
    pub scale: f64,
    /// Row-major.
    pub integers: Vec<i32>,
}

/// `systole demo`: the three questions.
#[derive(Clone, Debug, Serialize)]
pub struct DemoReport {
    /// Version of systole.
    pub systole: &'static str,
    /// The command.
    pub command: &'static str,
    /// How long does an image take, and why?
    pub latency: LatencyReport,
    /// Do the accumulators overflow?
    pub overflow: OverflowReport,
    /// What does quantization cost?
    pub compare: CompareReport,
}
