//! The machine file: TOML in, a checked [`Config`] out.
//!
//! The private `File` mirrors the TOML; a `Config` is what has passed, so nobody checks again.

mod banks;

pub use banks::Banks;

use crate::{EnergyTable, energy::FileEnergy, inherit};
use arith::{AccumulatorFormat, Arithmetic, Overflow, ReductionOrder, Rounding};
use banks::FileBanks;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

/// Which operand stays in the PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dataflow {
    /// Partial sums stay; activations and weights stream. Rows are output pixels, columns output
    /// channels.
    OutputStationary,
    /// Weights stay; pixels stream. Rows are steps of the reduction, columns output channels.
    WeightStationary,
    /// Activations stay; output channels stream. Rows are steps of the reduction, columns output
    /// pixels.
    InputStationary,
}

/// Who computes depthwise convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DepthwiseUnit {
    /// The array, like any other convolution: one column a group.
    Array,
    /// The post unit, whose lanes then have a multiplier and an accumulator each.
    Post,
}

/// Main memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DramConfig {
    /// Capacity.
    pub size_bytes: u64,
    /// From a burst's acceptance to its first beat; with banks, to its command.
    pub latency_cycles: u32,
    /// Width of the bus: a power of two.
    pub bytes_per_cycle: u32,
    /// Longest burst: a power of two, at least the bus width.
    pub burst_bytes: u32,
    /// Bursts that one DMA unit may have in flight.
    pub max_outstanding: u32,
    /// Rows and banks; without them every burst takes the same time.
    pub banks: Option<Banks>,
}

impl DramConfig {
    /// Bus words that some bytes touch; a word's size is a power of two.
    #[inline]
    pub fn n_words(&self, address: u64, length: u64) -> u64 {
        let shift = self.bytes_per_cycle.trailing_zeros();
        ((address + length - 1) >> shift) - (address >> shift) + 1
    }

    /// Cycles that a burst keeps the data bus: one for each word that it touches, or as long as the
    /// devices need.
    #[inline]
    pub fn bus_cycles(&self, address: u64, length: u64) -> u64 {
        let words = self.n_words(address, length);
        self.banks
            .map_or(words, |banks| words.max(banks.data_cycles(address, length)))
    }
}

/// One machine, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Name for reports.
    pub name: String,
    /// Clock: for reports in seconds, and for the banks' times, which are given in seconds.
    pub clock_hz: u64,
    /// Which operand stays in the PE.
    pub dataflow: Dataflow,
    /// PE rows, 1 to 256; see [`Dataflow`] for what they are.
    pub rows: u32,
    /// PE columns, 1 to 256.
    pub cols: u32,
    /// PEs have a second register for what stays, so that folds overlap: an output-stationary fold
    /// streams while the one before drains (`shadow_accumulators`); otherwise the next operands are
    /// loaded while the present ones are used (`shadow_operands`).
    pub shadow: bool,
    /// Accumulators and rounding.
    pub arithmetic: Arithmetic,
    /// Accumulator blocks (`block_rows × cols` each) between array and post unit, 1 to 16.
    pub n_blocks: u32,
    /// Rows of an accumulator block, 1 to 4096; `rows` when output-stationary.
    pub block_rows: u32,
    /// Elements that the post unit takes a cycle.
    pub lanes: u32,
    /// Who computes depthwise convolutions.
    pub depthwise: DepthwiseUnit,
    /// Size of the activation scratchpad.
    pub activation_bytes: u32,
    /// Size of the weight scratchpad.
    pub weight_bytes: u32,
    /// Entries of the parameter table, at most 4096.
    pub n_parameters: u32,
    /// Instructions that a unit's queue holds.
    pub queue_depth: u32,
    /// Largest value of a dependency token counter.
    pub max_tokens: u32,
    /// Main memory.
    pub dram: DramConfig,
}

/// A machine file that cannot be used: where, what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ConfigError {
    /// 1-based.
    pub line: usize,
    /// 1-based.
    pub column: usize,
    /// One sentence.
    pub message: String,
}

/// A machine of systole.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(crate) struct File {
    /// For reports; not part of the fingerprint.
    name: String,
    /// For reports in seconds; not part of the fingerprint, unless the memory has banks.
    #[schemars(with = "i64", range(min = 1, max = 1_000_000_000_000_i64))]
    clock_hz: Spanned<i64>,
    array: FileArray,
    accumulator: FileAccumulator,
    post: FilePost,
    scratchpad: FileScratchpad,
    frontend: FileFrontend,
    dram: FileDram,
    energy: Option<FileEnergy>,
}

/// The PE array.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct FileArray {
    /// Which operand stays in the PE.
    #[schemars(with = "Dataflow")]
    dataflow: Spanned<Dataflow>,
    /// PE rows: output pixels when output-stationary, otherwise steps of the reduction.
    #[schemars(with = "i64", range(min = 1, max = 256))]
    rows: Spanned<i64>,
    /// PE columns: output channels, or output pixels when input-stationary.
    #[schemars(with = "i64", range(min = 1, max = 256))]
    cols: Spanned<i64>,
    /// Output-stationary only: a fold may stream while the one before drains.
    #[schemars(with = "Option<bool>")]
    shadow_accumulators: Option<Spanned<bool>>,
    /// Weight- and input-stationary only: the next fold's operands are loaded while the present ones are used.
    #[schemars(with = "Option<bool>")]
    shadow_operands: Option<Spanned<bool>>,
}

/// Accumulators.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct FileAccumulator {
    /// Width.
    #[schemars(with = "i64", range(min = 8, max = 32))]
    width_bits: Spanned<i64>,
    /// What becomes of a sum that does not fit.
    #[schemars(with = "String", extend("enum" = ["saturate", "wrap"]))]
    overflow: Overflow,
    /// Blocks between array and post unit.
    #[schemars(with = "i64", range(min = 1, max = 16))]
    n_blocks: Spanned<i64>,
    /// Weight- and input-stationary only: rows of a block.
    #[schemars(with = "Option<i64>", range(min = 1, max = 4096))]
    block_rows: Option<Spanned<i64>>,
}

/// The post unit: requantization, pooling, perhaps depthwise convolutions.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct FilePost {
    /// Elements that it takes a cycle.
    #[schemars(with = "i64", range(min = 1, max = 1024))]
    lanes: Spanned<i64>,
    /// Rounding of the requantization shift.
    #[schemars(with = "String", extend("enum" = ["half-up", "half-away-from-zero", "half-even", "floor"]))]
    rounding: Rounding,
    /// Who computes depthwise convolutions: the array, or the post unit's lanes.
    depthwise: DepthwiseUnit,
}

/// On-chip memories.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct FileScratchpad {
    /// Size of the activation scratchpad.
    #[schemars(with = "i64", range(min = 1, max = 16_777_216))]
    activation_bytes: Spanned<i64>,
    /// Size of the weight scratchpad.
    #[schemars(with = "i64", range(min = 1, max = 16_777_216))]
    weight_bytes: Spanned<i64>,
    /// Entries of the parameter table, one for each output channel that is resident.
    #[schemars(with = "i64", range(min = 1, max = 4096))]
    n_parameters: Spanned<i64>,
}

/// Instruction queues and dependency tokens.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct FileFrontend {
    /// Instructions that wait for a unit.
    #[schemars(with = "i64", range(min = 1, max = 4096))]
    queue_depth: Spanned<i64>,
    /// Largest value of a dependency counter.
    #[schemars(with = "i64", range(min = 1, max = 65535))]
    max_tokens: Spanned<i64>,
}

/// Main memory.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
struct FileDram {
    /// Capacity.
    #[schemars(with = "i64", range(min = 1, max = 4_294_967_296_i64))]
    size_bytes: Spanned<i64>,
    /// From a burst's acceptance to its first beat.
    #[schemars(with = "i64", range(min = 1, max = 100_000))]
    latency_cycles: Spanned<i64>,
    /// Width of the bus: a power of two.
    #[schemars(with = "i64", range(min = 1, max = 1024))]
    bytes_per_cycle: Spanned<i64>,
    /// Longest burst: a power of two, at least `bytes_per_cycle`.
    #[schemars(with = "i64", range(min = 1, max = 65536))]
    burst_bytes: Spanned<i64>,
    /// Bursts that a DMA unit may have in flight.
    #[schemars(with = "i64", range(min = 1, max = 4096))]
    max_outstanding: Spanned<i64>,
    /// Rows and banks; without them every burst has the same latency.
    #[schemars(with = "Option<FileBanks>")]
    banks: Option<Spanned<FileBanks>>,
}

/// What a machine file describes: the machine, and what its actions cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What programs and results depend on.
    pub config: Config,
    /// What only reports depend on.
    pub energy: EnergyTable,
}

impl Machine {
    /// Reads a machine file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line: an unknown key (and the near one that may
    /// have been meant), a wrong type, a value outside its range.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let door = Door { text };
        let table = inherit::complete(text)
            .map_err(|(span, message)| door.refuse(&span, explain(&message)))?;
        let mut file = File::deserialize(toml::Deserializer::from(table)).map_err(|error| {
            door.refuse(&error.span().unwrap_or(0..0), explain(error.message()))
        })?;
        let prices = file.energy.take().unwrap_or_default();
        let config = Config::from_file(file, &door)?;
        let energy = prices.table(&config, &door)?;
        Ok(Self { config, energy })
    }
}

impl Config {
    /// Reads a machine file; see [`Machine::from_toml`].
    ///
    /// # Errors
    /// As [`Machine::from_toml`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Machine::from_toml(text).map(|machine| machine.config)
    }

    fn from_file(file: File, door: &Door<'_>) -> Result<Self, ConfigError> {
        let dram = &file.dram;
        let bytes_per_cycle =
            door.power_of_two("bytes_per_cycle", &dram.bytes_per_cycle, 1, 1024)?;
        let clock_hz = door.number("clock_hz", &file.clock_hz, 1, 1_000_000_000_000)?;
        let burst_bytes = door.power_of_two(
            "burst_bytes",
            &dram.burst_bytes,
            i64::from(bytes_per_cycle),
            1 << 16,
        )?;
        let dataflow = *file.array.dataflow.get_ref();
        let rows = door.small("rows", &file.array.rows, 1, 256)?;
        let (shadow, block_rows) = door.stationary(&file.array, &file.accumulator, rows)?;
        let mut config = Self {
            name: file.name,
            clock_hz,
            dataflow,
            rows,
            cols: door.small("cols", &file.array.cols, 1, 256)?,
            shadow,
            arithmetic: Arithmetic {
                accumulator: AccumulatorFormat {
                    width_bits: door.small("width_bits", &file.accumulator.width_bits, 8, 32)?
                        as u8,
                    overflow: file.accumulator.overflow,
                },
                rounding: file.post.rounding,
                order: ReductionOrder::InOrder,
                depthwise_order: ReductionOrder::InOrder,
            },
            n_blocks: door.small("n_blocks", &file.accumulator.n_blocks, 1, 16)?,
            block_rows,
            lanes: door.small("lanes", &file.post.lanes, 1, 1024)?,
            depthwise: file.post.depthwise,
            activation_bytes: door.small(
                "activation_bytes",
                &file.scratchpad.activation_bytes,
                1,
                1 << 24,
            )?,
            weight_bytes: door.small("weight_bytes", &file.scratchpad.weight_bytes, 1, 1 << 24)?,
            n_parameters: door.small("n_parameters", &file.scratchpad.n_parameters, 1, 4096)?,
            queue_depth: door.small("queue_depth", &file.frontend.queue_depth, 1, 4096)?,
            max_tokens: door.small("max_tokens", &file.frontend.max_tokens, 1, 65535)?,
            dram: DramConfig {
                size_bytes: door.number("size_bytes", &dram.size_bytes, 1, 1 << 32)?,
                latency_cycles: door.small("latency_cycles", &dram.latency_cycles, 1, 100_000)?,
                bytes_per_cycle,
                burst_bytes,
                max_outstanding: door.small("max_outstanding", &dram.max_outstanding, 1, 4096)?,
                banks: dram
                    .banks
                    .as_ref()
                    .map(|banks| {
                        let table = banks.get_ref();
                        table.check(door, banks.span(), clock_hz, burst_bytes)
                    })
                    .transpose()?,
            },
        };
        config.derive();
        Ok(config)
    }

    /// Identifies everything that a program depends on. Name and clock do not count; the banks' times
    /// in cycles do.
    pub fn fingerprint(&self) -> u64 {
        let nameless = Self {
            name: String::new(),
            clock_hz: 1,
            ..self.clone()
        };
        xxhash_rust::xxh3::xxh3_64(format!("systole machine 1 {nameless:?}").as_bytes())
    }

    /// Bytes of a line of the weight scratchpad: one 4-bit weight for every column, on an
    /// input-stationary machine for every row.
    pub fn line_bytes(&self) -> u32 {
        match self.dataflow {
            Dataflow::OutputStationary | Dataflow::WeightStationary => self.cols.div_ceil(2),
            Dataflow::InputStationary => self.rows.div_ceil(2),
        }
    }

    /// Gives the array another dataflow and extent, and sets what follows from them.
    pub fn set_array(&mut self, dataflow: Dataflow, rows: u32, cols: u32) {
        self.dataflow = dataflow;
        self.rows = rows;
        self.cols = cols;
        self.derive();
    }

    /// Gives depthwise convolutions to another unit, and sets what follows from it.
    pub fn set_depthwise(&mut self, unit: DepthwiseUnit) {
        self.depthwise = unit;
        self.derive();
    }

    /// What is not free to choose: orders of reduction, and the blocks of output-stationary arrays.
    fn derive(&mut self) {
        self.arithmetic.order = match self.dataflow {
            Dataflow::OutputStationary => ReductionOrder::InOrder,
            Dataflow::WeightStationary | Dataflow::InputStationary => {
                ReductionOrder::Folds { n_steps: self.rows }
            }
        };
        self.arithmetic.depthwise_order = match self.depthwise {
            DepthwiseUnit::Array => self.arithmetic.order,
            DepthwiseUnit::Post => ReductionOrder::InOrder,
        };
        if self.dataflow == Dataflow::OutputStationary {
            self.block_rows = self.rows;
        }
    }
}

impl Dataflow {
    /// As in the machine file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutputStationary => "output-stationary",
            Self::WeightStationary => "weight-stationary",
            Self::InputStationary => "input-stationary",
        }
    }
}

/// Checks values, and knows where they stand.
pub(crate) struct Door<'a> {
    text: &'a str,
}

impl Door<'_> {
    pub(crate) fn refuse(&self, span: &std::ops::Range<usize>, message: String) -> ConfigError {
        let (line, column) = position(self.text, span.start);
        ConfigError {
            line,
            column,
            message,
        }
    }

    /// The keys that depend on the dataflow: `shadow` and `block_rows`.
    fn stationary(
        &self,
        array: &FileArray,
        accumulator: &FileAccumulator,
        rows: u32,
    ) -> Result<(bool, u32), ConfigError> {
        let dataflow = *array.dataflow.get_ref();
        let missing = |key: &str| {
            let message = format!("{} machines need {key}", dataflow.name());
            self.refuse(&array.dataflow.span(), message)
        };
        let foreign = |span: std::ops::Range<usize>, key: &str, instead: &str| {
            let message = format!("{key} is not for {} machines{instead}", dataflow.name());
            Err(self.refuse(&span, message))
        };
        match dataflow {
            Dataflow::OutputStationary => {
                if let Some(given) = &array.shadow_operands {
                    let instead = "; theirs is shadow_accumulators";
                    return foreign(given.span(), "shadow_operands", instead);
                }
                if let Some(given) = &accumulator.block_rows {
                    let instead = ", whose blocks have as many rows as the array";
                    return foreign(given.span(), "block_rows", instead);
                }
                let shadow = array.shadow_accumulators.as_ref();
                let shadow = shadow.ok_or_else(|| missing("array.shadow_accumulators"))?;
                Ok((*shadow.get_ref(), rows))
            }
            Dataflow::WeightStationary | Dataflow::InputStationary => {
                if let Some(given) = &array.shadow_accumulators {
                    let instead = "; theirs is shadow_operands";
                    return foreign(given.span(), "shadow_accumulators", instead);
                }
                let shadow = array.shadow_operands.as_ref();
                let shadow = shadow.ok_or_else(|| missing("array.shadow_operands"))?;
                let block_rows = accumulator.block_rows.as_ref();
                let block_rows = block_rows.ok_or_else(|| missing("accumulator.block_rows"))?;
                let block_rows = self.small("block_rows", block_rows, 1, 4096)?;
                Ok((*shadow.get_ref(), block_rows))
            }
        }
    }

    fn number(
        &self,
        key: &str,
        value: &Spanned<i64>,
        min: i64,
        max: i64,
    ) -> Result<u64, ConfigError> {
        let number = *value.get_ref();
        if number < min || number > max {
            let message = format!("{key} = {number}: must be {min} to {max}");
            return Err(self.refuse(&value.span(), message));
        }
        Ok(number as u64)
    }

    fn small(
        &self,
        key: &str,
        value: &Spanned<i64>,
        min: i64,
        max: i64,
    ) -> Result<u32, ConfigError> {
        self.number(key, value, min, max)
            .map(|number| number as u32)
    }

    fn power_of_two(
        &self,
        key: &str,
        value: &Spanned<i64>,
        min: i64,
        max: i64,
    ) -> Result<u32, ConfigError> {
        let number = self.small(key, value, min, max)?;
        if !number.is_power_of_two() {
            let message = format!("{key} = {number}: must be a power of two");
            return Err(self.refuse(&value.span(), message));
        }
        Ok(number)
    }
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

/// Adds the key or value that was probably meant to the parser's own message.
fn explain(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let is_unknown = message.starts_with("unknown ");
    let Some(given) = names.next().filter(|_| is_unknown) else {
        return message.to_owned();
    };
    let nearest = names
        .map(|known| (strsim::damerau_levenshtein(given, known), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(2))
        .min();
    match nearest {
        Some((_, known)) => format!("{message}; did you mean `{known}`?"),
        None => message.to_owned(),
    }
}
