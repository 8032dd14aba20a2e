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
    /// Bring a float model's channels to like ranges; its function stays
    Equalize(Equalize),
    /// Train a float model to be an integer network (quantization-aware training)
    Train(Box<Train>),
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
    /// Quantization methods side by side on one model, as a table
    Methods(Methods),
    /// Write the integer network as standard integer ONNX
    ExportOnnx(ExportOnnx),
    /// Cycles of a matrix product on the array alone, beside published ones
    Gemm(Gemm),
    /// Many machines and quantizer settings, and the front of the best
    Sweep(Sweep),
    /// How fast systole itself is on this computer
    Bench(Bench),
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
    #[arg(long, value_name = "BITS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub weight_bits: u8,
    /// Bits of an activation, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub activation_bits: u8,
    /// Bits of the network's input, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub input_bits: u8,
    /// Bits of the network's outputs, 2 to 16
    #[arg(long, value_name = "BITS", default_value_t = 16, value_parser = clap::value_parser!(u8).range(2..=16))]
    pub output_bits: u8,
    /// Bits of a bias mantissa, 2 to 16 [default: 8, or 16 for accumulators of more than 16 bits]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(2..=16))]
    pub bias_bits: Option<u8>,
    /// One bias shift per output channel instead of one per layer
    #[arg(long)]
    pub bias_shift_per_channel: bool,
    /// Weights whose sums provably fit accumulators of 8 to 32 bits, whatever the input; prints the
    /// proof. Without it, typical sums fit the machine's accumulators
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=32))]
    pub accumulator_bits: Option<u8>,
    /// One weight scale per output channel or per layer
    #[arg(long, value_enum, default_value_t = GranularityFlag::PerChannel)]
    pub granularity: GranularityFlag,
    /// How scales are chosen
    #[arg(long, value_enum, default_value_t = MethodFlag::Mse)]
    pub method: MethodFlag,
    /// For --method percentile: this share of magnitudes is not clipped, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 99.9, value_parser = percentage)]
    pub percentile: f64,
    /// Bits of one layer, overriding the defaults: NAME:w=8,a=8 (repeatable)
    #[arg(long = "layer", value_name = "NAME:w=BITS,a=BITS")]
    pub layers: Vec<LayerOverride>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it must be a whole number of at least 1".into()),
        Ok(number) => Ok(number),
    }
}

/// Above 0 and at most 100.
fn percentage(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if number > 0.0 && number <= 100.0 {
        Ok(number)
    } else {
        Err("it must be above 0 and at most 100".into())
    }
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "it is no number".to_owned())?;
    if (0.0..=1.0).contains(&number) {
        Ok(number)
    } else {
        Err("it must be 0 to 1".into())
    }
}

/// How the methods work that look at what the layers compute.
#[derive(Args, Clone, Debug)]
pub struct TuningFlags {
    /// For adaround and auto: images that rounding is learned on, from the first [default: 1024]
    #[arg(long, value_name = "N")]
    pub fit_images: Option<usize>,
    /// For adaround and auto: optimizer steps for each layer, at least 1 [default: 3000]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub steps: Option<usize>,
    /// For adaround and auto: seed of the samples and minibatches [default: 0]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
    /// For adaround and auto: images held out from fitting, the last ones, on which output errors
    /// are measured [default: 256]
    #[arg(long, value_name = "N")]
    pub held_out: Option<usize>,
    /// For the other methods too: search activation scales on the network's output error, as
    /// adaround does, then weight scales
    #[arg(long)]
    pub search_scales: bool,
    /// Bits layer by layer (but for those of --layer), 2 to 8: at most so many cycles on --machine
    /// at the least error, or at most so many top-1 points lost against float on the held-out
    /// images in the fewest cycles: 200000cycles or 0.5points
    #[arg(long, value_name = "Ncycles|Npoints")]
    pub budget: Option<BudgetFlag>,
}

impl TuningFlags {
    /// A flag that was given and that nothing would read under a method.
    pub fn idle(&self, method: MethodFlag) -> Option<&'static str> {
        let learns = method.looks_at_outputs();
        let looks = learns || self.search_scales || self.budget.is_some();
        [
            ("--steps", self.steps.is_some() && !learns),
            ("--fit-images", self.fit_images.is_some() && !looks),
            ("--seed", self.seed.is_some() && !looks),
            ("--held-out", self.held_out.is_some() && !looks),
        ]
        .into_iter()
        .find_map(|(flag, is_idle)| is_idle.then_some(flag))
    }
}

/// `--budget`
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BudgetFlag {
    /// Of the whole network.
    Cycles(u64),
    /// Top-1, in percent.
    Points(f64),
}

impl FromStr for BudgetFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither like 200000cycles nor like 0.5points");
        if let Some(number) = text.strip_suffix("cycles") {
            return number.parse().map(Self::Cycles).map_err(|_| wrong());
        }
        let number = text.strip_suffix("points").ok_or_else(wrong)?;
        let points: f64 = number.parse().map_err(|_| wrong())?;
        if (0.0..=100.0).contains(&points) {
            Ok(Self::Points(points))
        } else {
            Err(wrong())
        }
    }
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

/// What goes in.
#[derive(Args, Clone, Debug)]
pub struct InputFlags {
    /// Inputs: .npz with `x` and optional `y`, or a PNG or JPEG image
    #[arg(long, value_name = "X", required_unless_present = "synthetic_images")]
    pub data: Option<PathBuf>,
    /// Inputs made up from a seed instead: N images, 4 unless given
    #[arg(long, value_name = "SEED[:N]", conflicts_with = "data")]
    pub synthetic_images: Option<SyntheticImages>,
}

/// `systole quantize`
#[derive(Args, Debug)]
pub struct Quantize {
    /// Float model (.onnx)
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// Sample inputs: .npz with `x`, or an image; scales follow from them
    #[arg(
        long,
        value_name = "X.npz",
        required_unless_present = "synthetic_images"
    )]
    pub calibration: Option<PathBuf>,
    /// Sample inputs made up from a seed instead: N images, 4 unless given
    #[arg(long, value_name = "SEED[:N]", conflicts_with = "calibration")]
    pub synthetic_images: Option<SyntheticImages>,
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
    /// Machine file: its arithmetic and timing are what the searches compute with
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// Seed for weights whose external data files are absent
    #[arg(long, value_name = "SEED")]
    pub synthetic_weights: Option<u64>,
    /// Where the network goes
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
}

/// `systole equalize`
#[derive(Args, Debug)]
pub struct Equalize {
    /// Float model (.onnx)
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// Sample inputs: .npz with `x`, or an image; the channels' ranges follow from them
    #[arg(
        long,
        value_name = "X.npz",
        required_unless_present = "synthetic_images"
    )]
    pub calibration: Option<PathBuf>,
    /// Sample inputs made up from a seed instead: N images, 4 unless given
    #[arg(long, value_name = "SEED[:N]", conflicts_with = "calibration")]
    pub synthetic_images: Option<SyntheticImages>,
    /// Use at most this many calibration images
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub preprocessing: PreprocessingFlags,
    /// Seed for weights whose external data files are absent
    #[arg(long, value_name = "SEED")]
    pub synthetic_weights: Option<u64>,
    /// Where the model goes
    #[arg(short, long, value_name = "OUT.onnx")]
    pub output: PathBuf,
}

/// `systole train`
#[derive(Args, Debug)]
pub struct Train {
    /// Float model (.onnx)
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// Training images: .npz with `x` and `y` (`y` is not needed with --distill 1)
    #[arg(long, value_name = "X.npz")]
    pub data: PathBuf,
    /// Images kept aside: top-1 on them after every epoch, and the best epoch's network is written
    #[arg(long, value_name = "X.npz")]
    pub validation: Option<PathBuf>,
    /// With --validation: the epoch whose network is written
    #[arg(long, value_enum, default_value_t = Keep::Best, requires = "validation")]
    pub keep: Keep,
    /// Images that the scales start from; the first training images unless given
    #[arg(long, value_name = "X.npz")]
    pub calibration: Option<PathBuf>,
    /// Use at most this many training images
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
    /// Machine file: accumulators and rounding
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub preprocessing: PreprocessingFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub quantizer: QuantizerFlags,
    /// How scales learn
    #[arg(long, value_enum, default_value_t = ScaleRuleFlag::Llsq)]
    pub scale_rule: ScaleRuleFlag,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub recipe: RecipeFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub teacher: TeacherFlags,
    /// The run's state, written as it goes and removed at its end
    #[arg(long, value_name = "RUN.checkpoint")]
    pub checkpoint: Option<PathBuf>,
    /// Steps between two checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..), requires = "checkpoint")]
    pub checkpoint_every: u64,
    /// Go on from the checkpoint, if there is one
    #[arg(long, requires = "checkpoint")]
    pub resume: bool,
    /// One line an epoch, separated by commas
    #[arg(long, value_name = "LOG.csv")]
    pub log: Option<PathBuf>,
    /// The same as a drawing
    #[arg(long, value_name = "CURVE.svg")]
    pub curve: Option<PathBuf>,
    /// Train real numbers, not integers; the result is a float model (.onnx)
    #[arg(long)]
    pub float: bool,
    /// With --float: draw the weights anew from the seed; the model is only a shape
    #[arg(long, requires = "float")]
    pub from_scratch: bool,
    /// Where the network goes
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
}

/// An epoch of a training run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keep {
    /// The best on the images kept aside; of equals, the latest
    Best,
    /// The last
    Last,
}

/// How `systole train` learns.
#[derive(Clone, Debug, Parser)]
pub struct RecipeFlags {
    /// Scales are powers of two: requantization is a shift
    #[arg(long)]
    pub power_of_two: bool,
    /// Passes over the images
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub epochs: u64,
    /// Images of a step
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub batch: usize,
    /// Rule for steps
    #[arg(long, value_enum, default_value_t = OptimizerFlag::AdamW)]
    pub optimizer: OptimizerFlag,
    /// Learning rate at its peak; 0.0005 for adam-w and 0.005 for sgd unless given
    #[arg(long, value_name = "RATE")]
    pub rate: Option<f64>,
    /// Epochs until the peak; a cosine to 0 follows
    #[arg(long, value_name = "EPOCHS", default_value_t = 0.5)]
    pub warmup: f64,
    /// Normalize by each batch's own statistics in so many of the first epochs, then freeze them
    #[arg(long, value_name = "EPOCHS", default_value_t = 0)]
    pub batch_norm: u64,
    /// Decay of weights; scales and biases do not decay
    #[arg(long, value_name = "FACTOR", default_value_t = 1e-4)]
    pub weight_decay: f64,
    /// Share of the labels that is spread over all classes
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub label_smoothing: f64,
    /// Share of the float network's outputs in the loss, 0 (none) to 1 (labels do not matter)
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub distill: f64,
    /// Distillation softens both distributions by this
    #[arg(long, value_name = "T", default_value_t = 4.0)]
    pub temperature: f64,
    /// Shift images at random by up to this many pixels each way
    #[arg(long, value_name = "PIXELS", default_value_t = 4)]
    pub crop: usize,
    /// Do not mirror images at random
    #[arg(long)]
    pub no_flip: bool,
    /// Mix this share of the images with another one each, labels likewise (mixup)
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub mix: f64,
    /// Give out a running average of the parameters that keeps this share of itself at every step
    #[arg(long, value_name = "SHARE")]
    pub average: Option<f64>,
    /// Of the order of images and their changes
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
}

/// Who teaches, where --distill says that somebody does.
#[derive(Args, Clone, Debug, Default)]
pub struct TeacherFlags {
    /// Float model (.onnx) that teaches, of the same images and outputs; the trained one itself unless given
    #[arg(long, value_name = "MODEL.onnx", conflicts_with = "float")]
    pub teacher: Option<PathBuf>,
    /// The teacher's --mean
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "teacher"
    )]
    pub teacher_mean: Option<Vec<f32>>,
    /// The teacher's --std
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "teacher"
    )]
    pub teacher_std: Option<Vec<f32>>,
    /// The teacher's --scale
    #[arg(
        long,
        value_name = "FACTOR",
        allow_hyphen_values = true,
        requires = "teacher"
    )]
    pub teacher_scale: Option<f32>,
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
    /// Print the candidates of one layer's tile search, what they cost and why one won
    #[arg(long, value_name = "LAYER", conflicts_with_all = ["emit", "output"])]
    pub explain: Option<String>,
    /// With --explain: JSON instead of tables
    #[arg(long, requires = "explain")]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub uncalibrated: UncalibratedFlags,
}

/// For commands that also take a float model, whose scales do not matter to the result.
#[derive(Args, Clone, Debug)]
pub struct UncalibratedFlags {
    /// Bits of a weight when the network is a float model, 2 to 8; 4 unless given
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(2..=8))]
    pub weight_bits: Option<u8>,
    /// Bits of an activation when the network is a float model, 2 to 8; 4 unless given
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(2..=8))]
    pub activation_bits: Option<u8>,
    /// Seed for weights whose external data files are absent; times do not depend on weights
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
    /// Integer network (.safetensors), or a float model (.onnx), which is quantized with the inputs
    /// as calibration
    #[arg(value_name = "NET")]
    pub network: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub uncalibrated: UncalibratedFlags,
    /// Machine file
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub inputs: InputFlags,
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
    /// Also write the stepped model's waveform: every signal by the RTL's name (.fst or .vcd)
    #[arg(long, value_name = "OUT.fst", conflicts_with = "all")]
    pub waves: Option<PathBuf>,
    /// With --waves: only these cycles, counted from 0, TO not included; either may be left out
    #[arg(
        long,
        value_name = "FROM..TO",
        requires = "waves",
        default_value = ".."
    )]
    pub wave_cycles: WaveCycles,
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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub inputs: InputFlags,
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
    /// Seed for weights whose external data files are absent
    #[arg(long, value_name = "SEED")]
    pub synthetic_weights: Option<u64>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub inputs: InputFlags,
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

/// `systole methods`
#[derive(Args, Debug)]
pub struct Methods {
    /// Float model (.onnx)
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// Sample inputs that scales and rounding follow from
    #[arg(long, value_name = "X.npz")]
    pub calibration: PathBuf,
    /// Test inputs: .npz with `x` and optional `y`
    #[arg(long, value_name = "X.npz")]
    pub data: PathBuf,
    /// Use at most this many test images
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub preprocessing: PreprocessingFlags,
    /// Methods to compare, in this order
    #[arg(
        long = "methods",
        value_enum,
        value_delimiter = ',',
        default_value = "min-max,percentile,kl,mse,llsq,adaround"
    )]
    pub compared: Vec<MethodFlag>,
    /// Weight scales to compare
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "per-tensor,per-channel"
    )]
    pub granularities: Vec<GranularityFlag>,
    /// Training images: networks are trained too, as `systole train` does it
    #[arg(long, value_name = "X.npz")]
    pub train: Option<PathBuf>,
    /// With --train: how their scales learn, one after the other
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "llsq,lsq,pact",
        requires = "train"
    )]
    pub scale_rules: Vec<ScaleRuleFlag>,
    /// With --train: passes over the images
    #[arg(long, value_name = "N", default_value_t = 6, requires = "train")]
    pub epochs: u64,
    /// With --train: learning rate at its peak
    #[arg(long, value_name = "RATE", requires = "train")]
    pub rate: Option<f64>,
    /// With --train: share of the float network's outputs in the loss
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, requires = "train")]
    pub distill: f64,
    /// A network that is there already, as a line of its own (repeatable)
    #[arg(long = "network", value_name = "NAME=NET.safetensors")]
    pub networks: Vec<NamedNetwork>,
    /// Bits of a weight, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub weight_bits: u8,
    /// Bits of an activation, 2 to 8
    #[arg(long, value_name = "BITS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub activation_bits: u8,
    /// As of `systole quantize`
    #[arg(long, value_name = "BITS")]
    pub accumulator_bits: Option<u8>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub tuning: TuningFlags,
    /// Machine file: its arithmetic is what the networks compute with
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// The table in Markdown
    #[arg(long)]
    pub markdown: bool,
}

/// `NAME=FILE` of `systole methods`.
#[derive(Clone, Debug)]
pub struct NamedNetwork {
    /// In the table.
    pub name: String,
    /// Integer network.
    pub file: PathBuf,
}

impl FromStr for NamedNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = text
            .rsplit_once('=')
            .ok_or_else(|| format!("`{text}` is not NAME=FILE"))?;
        Ok(Self {
            name: name.to_owned(),
            file: file.into(),
        })
    }
}

/// `systole sweep`
#[derive(Args, Debug)]
pub struct Sweep {
    /// What to combine: docs/sweep.md
    #[arg(value_name = "SWEEP.toml")]
    pub file: PathBuf,
    /// Where results go, and where a sweep that was stopped goes on; beside the sweep file unless given
    #[arg(short, long, value_name = "POINTS.csv")]
    pub output: Option<PathBuf>,
    /// Draw the points and their front
    #[arg(long, value_name = "PLOT.svg")]
    pub plot: Option<PathBuf>,
}

/// `systole bench`
#[derive(Args, Debug)]
pub struct Bench {
    /// Integer network (.safetensors), or a float model (.onnx), which is quantized without data
    #[arg(value_name = "NET")]
    pub network: PathBuf,
    /// Machine file
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub uncalibrated: UncalibratedFlags,
    /// Threads that compute, 1 to 256
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
    /// Time for each stage
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub seconds: f64,
    /// Of the random image
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// JSON instead of tables
    #[arg(long)]
    pub json: bool,
}

/// `systole gemm`
#[derive(Args, Debug)]
pub struct Gemm {
    /// Output pixels, output channels, steps of the reduction
    #[arg(value_name = "M N K", num_args = 3, conflicts_with = "points")]
    pub extents: Vec<u64>,
    /// Machine file: its array, without limits of memory and without overlap
    #[arg(long, value_name = "M.toml")]
    pub machine: Option<PathBuf>,
    /// Every line of a file with columns `M`, `N`, `K`, `array_rows`, `array_cols`, `dataflow`
    /// (os, ws, is) and perhaps `compute_cycles`, to compare with
    #[arg(long, value_name = "POINTS.csv")]
    pub points: Option<PathBuf>,
    /// JSON instead of tables
    #[arg(long)]
    pub json: bool,
    /// One line a point, separated by commas, instead of tables
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
    /// Activation scales by output error, rounding learned layer by layer on calibration images.
    Adaround,
    /// Whichever of the others comes closest to the float outputs on held-out images.
    Auto,
}

/// A value as on the command line.
pub fn value_name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

impl MethodFlag {
    /// As on the command line.
    pub fn name(self) -> String {
        value_name(&self)
    }

    /// Whether it compares what layers compute, beyond the values' distribution.
    pub const fn looks_at_outputs(self) -> bool {
        matches!(self, Self::Adaround | Self::Auto)
    }
}

/// How scales learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScaleRuleFlag {
    /// The simulated gradient from the errors at s/2, s, 2s.
    Llsq,
    /// The loss's own gradient.
    Lsq,
    /// The loss's gradient of the activations' clipping levels; scales of weights stay.
    Pact,
    /// They stay as calibrated.
    Fixed,
}

/// Rules for steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OptimizerFlag {
    /// Stochastic gradient descent, momentum 0.9.
    Sgd,
    /// Adam with decoupled weight decay.
    AdamW,
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

/// `SEED[:N]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyntheticImages {
    /// Decides every pixel.
    pub seed: u64,
    /// At least 1.
    pub n_images: usize,
}

impl FromStr for SyntheticImages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not of the form SEED or SEED:N, N from 1 to 10000");
        let (seed, n) = text.split_once(':').unwrap_or((text, "4"));
        let n_images = n.parse().map_err(|_| form())?;
        if !(1..=10_000).contains(&n_images) {
            return Err(form());
        }
        let seed = seed.parse().map_err(|_| form())?;
        Ok(Self { seed, n_images })
    }
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

/// `100..200`, `100..`, `..200` or `..`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaveCycles {
    /// First cycle.
    pub from: u64,
    /// The cycle behind the last, or the run's end.
    pub to: Option<u64>,
}

impl FromStr for WaveCycles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "it is not of the form FROM..TO, such as 100..200".to_owned();
        let (from, to) = text.split_once("..").ok_or_else(form)?;
        let number = |text: &str, absent: Option<u64>| match text {
            "" => Ok(absent),
            text => text.parse().map(Some).map_err(|_| form()),
        };
        let from = number(from, Some(0))?.unwrap_or(0);
        let to = number(to, None)?;
        if let Some(to) = to
            && to <= from
        {
            return Err(format!("no cycle lies from {from} to before {to}"));
        }
        Ok(Self { from, to })
    }
}

#[cfg(test)]
mod tests {
    use super::{Cli, LayerOverride, SyntheticImages, WaveCycles};
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn synthetic_images() {
        let parse = |text: &str| {
            text.parse::<SyntheticImages>()
                .map(|s| (s.seed, s.n_images))
        };
        assert_eq!(parse("7"), Ok((7, 4)));
        assert_eq!(parse("18446744073709551615:1"), Ok((u64::MAX, 1)));
        for bad in ["", ":", "7:", "7:0", "7:10001", "-1", "7:1:1", "x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
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

    #[test]
    fn wave_cycles() {
        for (text, from, to) in [
            ("100..200", 100, Some(200)),
            ("100..", 100, None),
            ("..200", 0, Some(200)),
            ("..", 0, None),
        ] {
            let parsed: WaveCycles = text.parse().expect("well formed");
            assert_eq!(parsed, WaveCycles { from, to });
        }
        for bad in [
            "", "5", "5..5", "6..5", "..0", "a..b", "-1..5", "1..2..3", "1...5",
        ] {
            assert!(bad.parse::<WaveCycles>().is_err(), "{bad}");
        }
    }
}
