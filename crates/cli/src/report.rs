//! What the commands report, in one place: the keys of `--json`.
//!
//! Invariant: keys are stable (a new version may add, never rename); a report begins with version,
//! machine and network and holds no date, no path and nothing of the host, so equal inputs give
//! equal bytes. Times are cycles of the accelerator unless the key says `seconds`. A number that
//! does not exist (the SQNR of an exact tensor) is `null`.

mod bench;
mod gemm;
mod latency;
mod sensitivity;

use accelerator::Config;
use arith::Overflow;
use network::Network;
use serde::Serialize;

pub use bench::{BenchReport, StageTime};
pub use gemm::GemmPoint;
pub use latency::{
    Bound, DramRows, EnergyByUnit, LatencyReport, LayerLatency, OwnedCycles, StallReport,
};
pub use sensitivity::{Cost, SensitivityReport};

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

impl Identity {
    fn new(name: &str, fingerprint: u64) -> Self {
        Self {
            name: name.to_owned(),
            fingerprint: format!("{fingerprint:016x}"),
        }
    }

    /// Of a network. This reads every weight.
    pub fn of(network: &Network) -> Self {
        Self::new(&network.name, network::fingerprint(network))
    }
}

impl Header {
    /// The beginning of a report.
    pub fn new(command: &'static str, machine: &Config, network: &Network) -> Self {
        Self::with(command, machine, Identity::of(network))
    }

    /// The same for a network that is known already.
    pub fn with(command: &'static str, machine: &Config, network: Identity) -> Self {
        Self {
            systole: env!("CARGO_PKG_VERSION"),
            command,
            machine: Identity::new(&machine.name, machine.fingerprint()),
            network,
        }
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
    /// With `--sensitivity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<SensitivityReport>,
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
