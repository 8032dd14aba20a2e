//! The command line: every command, flag and default.
//!
//! Invariant: what `clap` lets through still has to be checked against the model and the data; the
//! commands do that, and every complaint leaves with exit code 2.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{path::PathBuf, str::FromStr};

/// Quantize a float network, compile it for an integer accelerator, and see cycle by cycle and bit
/// by bit what the machine makes of it.
#[derive(Debug, Parser)]
#[command(name = "systole", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn a float ONNX model into an integer network
    Quantize(Quantize),
    /// Compile a network into a program for one machine
    Compile(Compile),
    /// Print a program as text
    Disasm(Disasm),
    /// Turn a program's text back into bytes
    Assemble(Assemble),
    /// Run images through the simulated machine
    Run(Run),
    /// Cycles of every layer, and who owned them
    Latency(Latency),
    /// What the accumulators did: saturated steps, extremes, sufficient widths
    Overflow(Overflow),
    /// Float against integer, layer by layer
    Compare(Compare),
    /// Write the integer network as standard integer ONNX
    ExportOnnx(ExportOnnx),
    /// The machines that systole knows by name, or the file of one
    Machines(Machines),
    /// The JSON Schema of machine files, for editors
    Schema,
    /// The whole path on an embedded network: latency, overflow and accuracy at 4 bits
    Demo(Demo),
}

/// How the quantizer works.
#[derive(Args, Clone, Debug)]
pub struct QuantizerFlags {
    /// Bits of a weight, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 4)]
    pub weight_bits: u8,
    /// Bits of an activation, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 4)]
    pub activation_bits: u8,
    /// Bits of the network's input, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 8)]
    pub input_bits: u8,
    /// Bits of the network's outputs, 2 to 16
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    pub output_bits: u8,
    /// Bits of a bias mantissa, 2 to 16
    #[arg(long, value_name = "BITS", default_value_t = 8)]
    pub bias_bits: u8,
    /// One bias shift per output channel instead of one per layer
    #[arg(long)]
    pub bias_shift_per_channel: bool,
    /// Accumulator that biases and estimated sums must fit, 8 to 32 bits
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    pub accumulator_bits: u8,
    /// Weights whose sums provably fit --accumulator-bits, whatever the input; prints the proof
    #[arg(long)]
    pub guarantee_accumulator: bool,
    /// One weight scale per output channel or per layer
    #[arg(long, value_enum, default_value_t = GranularityFlag::PerChannel)]
    pub granularity: GranularityFlag,
    /// How scales are chosen
    #[arg(long, value_enum, default_value_t = MethodFlag::Mse)]
    pub method: MethodFlag,
    /// For --method percentile: this share of magnitudes is not clipped, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 99.9)]
    pub percentile: f64,
    /// Bits of one layer, overriding the defaults: NAME:w=8,a=8 (repeatable)
    #[arg(long = "layer", value_name = "NAME:w=BITS,a=BITS")]
    pub layers: Vec<LayerOverride>,
}

/// How the methods work that look at what the layers compute.
#[derive(Args, Clone, Debug)]
pub struct TuningFlags {
    /// For adaround and auto: images that rounding is learned on, from the first
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub fit_images: usize,
    /// For adaround and auto: optimizer steps for each layer
    #[arg(long, value_name = "N", default_value_t = 3000)]
    pub steps: usize,
    /// For adaround and auto: seed of the samples and minibatches
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// For adaround and auto: images held out from fitting, the last ones, on which output errors
    /// are measured
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub held_out: usize,
    /// Search the scales on the network's output error before rounding is learned
    #[arg(long)]
    pub search_scales: bool,
}

/// How raw values become the model's input: `(x · scale - mean) / std`.
#[derive(Args, Clone, Debug, Default)]
pub struct PreprocessingFlags {
    /// Mean per channel (or one for all), subtracted after --scale
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation per channel (or one for all), divided by last
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub std: Option<Vec<f32>>,
    /// Multiplied first; 1/255 for uint8 and 1 for float32 unless given
    #[arg(long, value_name = "FACTOR", allow_hyphen_values = true)]
    pub scale: Option<f32>,
}

/// `systole quantize`
#[derive(Args, Debug)]
pub struct Quantize {
    /// Float model (.onnx)
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// Sample inputs: .npz with `x`, or an image; scales follow from them
    #[arg(long, value_name = "X.npz")]
    pub calibration: PathBuf,
    /// Use at most this many calibration images
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub preprocessing: PreprocessingFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub quantizer: QuantizerFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub tuning: TuningFlags,
    /// Machine file: its rounding and overflow rule are what the searches compute with
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// Seed for weights whose external data files are absent
    #[arg(long, value_name = "SEED")]
    pub synthetic_weights: Option<u64>,
    /// Where the network goes
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
}

/// `systole compile`
#[derive(Args, Debug)]
pub struct Compile {
    /// Integer network (.safetensors), or a float model (.onnx), which is quantized without data
    #[arg(value_name = "NET")]
    pub network: PathBuf,
    /// Machine file
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// Where the program goes
    #[arg(short, long, value_name = "PROGRAM.bin")]
    pub output: Option<PathBuf>,
    /// Print a stage
    #[arg(long, value_enum)]
    pub emit: Option<Stage>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub uncalibrated: UncalibratedFlags,
}

/// For commands that also take a float model, whose scales do not matter to the result.
#[derive(Args, Clone, Debug)]
pub struct UncalibratedFlags {
    /// Bits of a weight when the network is a float model
    #[arg(long, value_name = "BITS", default_value_t = 4)]
    pub weight_bits: u8,
    /// Bits of an activation when the network is a float model
    #[arg(long, value_name = "BITS", default_value_t = 4)]
    pub activation_bits: u8,
    /// Seed for weights whose external data files are absent
    #[arg(long, value_name = "SEED")]
    pub synthetic_weights: Option<u64>,
}

/// `systole disasm`
#[derive(Args, Debug)]
pub struct Disasm {
    /// Program
    #[arg(value_name = "PROGRAM.bin")]
    pub program: PathBuf,
}

/// `systole assemble`
#[derive(Args, Debug)]
pub struct Assemble {
    /// Text as `disasm` prints it
    #[arg(value_name = "PROGRAM.asm")]
    pub text: PathBuf,
    /// Where the program goes
    #[arg(short, long, value_name = "PROGRAM.bin")]
    pub output: PathBuf,
}

/// `systole export-onnx`
#[derive(Args, Debug)]
pub struct ExportOnnx {
    /// Integer network
    #[arg(value_name = "NET.safetensors")]
    pub network: PathBuf,
    /// Machine file: its rounding is the model's
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// Where the model goes
    #[arg(short, long, value_name = "OUT.onnx")]
    pub output: PathBuf,
    /// The model takes the float model's input and quantizes it
    #[arg(long)]
    pub float_input: bool,
    /// The model gives real numbers instead of integers
    #[arg(long)]
    pub float_output: bool,
    /// Every tensor is an output
    #[arg(long)]
    pub every_tensor: bool,
}

/// `systole run`
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Run {
    /// Integer network
    #[arg(value_name = "NET.safetensors")]
    pub network: PathBuf,
    /// Machine file
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// Inputs: .npz with `x`, or a PNG or JPEG image
    #[arg(long, value_name = "X")]
    pub data: PathBuf,
    /// Which image, from 0
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "all")]
    pub image: usize,
    /// Every image
    #[arg(long)]
    pub all: bool,
    /// Run this program instead of compiling the network
    #[arg(long, value_name = "PROGRAM.bin")]
    pub program: Option<PathBuf>,
    /// Who computes
    #[arg(long, value_enum, default_value_t = ModelFlag::Event)]
    pub model: ModelFlag,
    /// Compare the event model with the oracle: every layer, every bit, every overflow count
    #[arg(long)]
    pub check: bool,
    /// With --check: the stepped model too, cycles included
    #[arg(long, requires = "check")]
    pub stepped: bool,
    /// Write every tensor's integers, by name, images × channels × height × width
    #[arg(long, value_name = "OUT.npz")]
    pub dump_tensors: Option<PathBuf>,
    /// JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// `systole latency`
#[derive(Args, Debug)]
pub struct Latency {
    /// Float model (.onnx) or integer network (.safetensors)
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Machine file
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub uncalibrated: UncalibratedFlags,
    /// Names and cycles in full, however wide the tables get
    #[arg(long)]
    pub wide: bool,
    /// JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// One line a layer, separated by commas, instead of tables
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Also write every instruction of every unit as a trace for Perfetto
    #[arg(long, value_name = "TRACE.json")]
    pub trace: Option<PathBuf>,
}

/// `systole overflow`
#[derive(Args, Debug)]
pub struct Overflow {
    /// Integer network
    #[arg(value_name = "NET.safetensors")]
    pub network: PathBuf,
    /// Inputs: .npz with `x`, or a PNG or JPEG image
    #[arg(long, value_name = "X")]
    pub data: PathBuf,
    /// Machine file
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// How many of the worst channels to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Use at most this many images
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
    /// JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// One line a layer, separated by commas, instead of tables
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

/// `systole compare`
#[derive(Args, Debug)]
pub struct Compare {
    /// Integer network
    #[arg(value_name = "NET.safetensors")]
    pub network: PathBuf,
    /// Also what each source of error costs (weights, activations, rounded constants, overflow) in
    /// each layer, by switching them on one at a time
    #[arg(long)]
    pub sensitivity: bool,
    /// The float model that it came from
    #[arg(long, value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// Inputs: .npz with `x` and optional `y`, or a PNG or JPEG image
    #[arg(long, value_name = "X")]
    pub data: PathBuf,
    /// Machine file
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// Use at most this many images
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
    /// JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// One line a tensor, separated by commas, instead of tables
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

/// `systole machines`
#[derive(Args, Debug)]
pub struct Machines {
    /// Print this machine's file
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// `systole demo`
#[derive(Args, Debug)]
pub struct Demo {
    /// Machine file; the embedded edge-16x16 unless given
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// JSON instead of a story
    #[arg(long)]
    pub json: bool,
}

/// Weight scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GranularityFlag {
    /// One per output channel.
    PerChannel,
    /// One per layer.
    PerTensor,
}

/// Choice of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MethodFlag {
    /// Nothing is clipped.
    MinMax,
    /// Least mean squared error.
    Mse,
    /// The s/2, s, 2s comparison, iterated.
    Llsq,
    /// The largest values are clipped (--percentile).
    Percentile,
    /// Least Kullback–Leibler divergence of activations.
    Kl,
    /// Scales by mse, rounding learned layer by layer on the calibration images.
    Adaround,
    /// Whichever of the others comes closest to the float outputs on held-out images.
    Auto,
}

/// A stage of the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// The float graph after folding (needs an .onnx file).
    Folded,
    /// The integer network.
    Integer,
    /// Tiles and loop orders.
    Tiled,
    /// Instructions.
    Asm,
}

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelFlag {
    /// The event model of the machine.
    Event,
    /// The stepped model of the machine.
    Stepped,
    /// The network's own evaluator: values, no time.
    Oracle,
}

/// `NAME:w=8,a=8`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerOverride {
    /// Layer of the float model.
    pub name: String,
    /// Bits of its weights.
    pub weight_bits: Option<u8>,
    /// Bits of its output.
    pub activation_bits: Option<u8>,
}

impl FromStr for LayerOverride {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not of the form NAME:w=8,a=8");
        // Layer names may contain colons: the last one divides.
        let (name, settings) = text.rsplit_once(':').ok_or_else(form)?;
        if name.is_empty() || settings.is_empty() {
            return Err(form());
        }
        let mut parsed = Self {
            name: name.to_owned(),
            weight_bits: None,
            activation_bits: None,
        };
        for setting in settings.split(',') {
            let (key, value) = setting.split_once('=').ok_or_else(form)?;
            let slot = match key {
                "w" => &mut parsed.weight_bits,
                "a" => &mut parsed.activation_bits,
                _ => {
                    return Err(format!(
                        "unknown key {key:?}: w (weights) or a (activations)"
                    ));
                }
            };
            let bits = value.parse().map_err(|_| form())?;
            if slot.replace(bits).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::{Cli, LayerOverride};
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn layer_overrides() {
        let parsed: LayerOverride = "a:b/conv:w=8,a=6".parse().expect("well formed");
        assert_eq!(
            (parsed.name.as_str(), parsed.weight_bits),
            ("a:b/conv", Some(8))
        );
        assert_eq!(parsed.activation_bits, Some(6));
        for bad in [
            "conv",
            "conv:",
            ":w=8",
            "conv:w",
            "conv:w=x",
            "conv:b=8",
            "conv:w=8,w=7",
        ] {
            assert!(bad.parse::<LayerOverride>().is_err(), "{bad}");
        }
    }
}
