//! The machine file: TOML in, a checked [`Config`] out.
//!
//! The private `File` mirrors the TOML; a `Config` is what has passed, so nobody checks again.

use arith::{AccumulatorFormat, Arithmetic, Overflow, Rounding};
use serde::{Deserialize, Serialize};
use toml::Spanned;

/// Which operand stays in the PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dataflow {
    /// Partial sums stay; activations and weights stream.
    OutputStationary,
}

/// Main memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DramConfig {
    /// Capacity.
    pub size_bytes: u64,
    /// From a burst's acceptance to its first beat.
    pub latency_cycles: u32,
    /// Width of the bus: a power of two.
    pub bytes_per_cycle: u32,
    /// Longest burst: a power of two, at least the bus width.
    pub burst_bytes: u32,
    /// Bursts that one DMA unit may have in flight.
    pub max_outstanding: u32,
}

/// One machine, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Name for reports.
    pub name: String,
    /// Clock, for reports in seconds only.
    pub clock_hz: u64,
    /// Which operand stays in the PE.
    pub dataflow: Dataflow,
    /// PE rows, 1 to 256: output pixels.
    pub rows: u32,
    /// PE columns, 1 to 256: output channels.
    pub cols: u32,
    /// A fold may stream while the one before drains.
    pub shadow_accumulators: bool,
    /// Accumulators and rounding.
    pub arithmetic: Arithmetic,
    /// Accumulator blocks (`rows × cols` each) between array and post unit, 1 to 16.
    pub n_blocks: u32,
    /// Elements that the post unit takes a cycle.
    pub lanes: u32,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    clock_hz: Spanned<i64>,
    array: FileArray,
    accumulator: FileAccumulator,
    post: FilePost,
    scratchpad: FileScratchpad,
    frontend: FileFrontend,
    dram: FileDram,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileArray {
    dataflow: Dataflow,
    rows: Spanned<i64>,
    cols: Spanned<i64>,
    shadow_accumulators: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAccumulator {
    width_bits: Spanned<i64>,
    overflow: Overflow,
    n_blocks: Spanned<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePost {
    lanes: Spanned<i64>,
    rounding: Rounding,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileScratchpad {
    activation_bytes: Spanned<i64>,
    weight_bytes: Spanned<i64>,
    n_parameters: Spanned<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFrontend {
    queue_depth: Spanned<i64>,
    max_tokens: Spanned<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDram {
    size_bytes: Spanned<i64>,
    latency_cycles: Spanned<i64>,
    bytes_per_cycle: Spanned<i64>,
    burst_bytes: Spanned<i64>,
    max_outstanding: Spanned<i64>,
}

impl Config {
    /// Reads a machine file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line: an unknown key (and the near one that may
    /// have been meant), a wrong type, a value outside its range.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let (line, column) = position(text, error.span().map_or(0, |span| span.start));
            ConfigError {
                line,
                column,
                message: explain(error.message()),
            }
        })?;
        let door = Door { text };
        let dram = &file.dram;
        let bytes_per_cycle =
            door.power_of_two("bytes_per_cycle", &dram.bytes_per_cycle, 1, 1024)?;
        let config = Self {
            name: file.name,
            clock_hz: door.number("clock_hz", &file.clock_hz, 1, 1_000_000_000_000)?,
            dataflow: file.array.dataflow,
            rows: door.small("rows", &file.array.rows, 1, 256)?,
            cols: door.small("cols", &file.array.cols, 1, 256)?,
            shadow_accumulators: file.array.shadow_accumulators,
            arithmetic: Arithmetic {
                accumulator: AccumulatorFormat {
                    width_bits: door.small("width_bits", &file.accumulator.width_bits, 8, 32)?
                        as u8,
                    overflow: file.accumulator.overflow,
                },
                rounding: file.post.rounding,
            },
            n_blocks: door.small("n_blocks", &file.accumulator.n_blocks, 1, 16)?,
            lanes: door.small("lanes", &file.post.lanes, 1, 1024)?,
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
                burst_bytes: door.power_of_two(
                    "burst_bytes",
                    &dram.burst_bytes,
                    i64::from(bytes_per_cycle),
                    1 << 16,
                )?,
                max_outstanding: door.small("max_outstanding", &dram.max_outstanding, 1, 4096)?,
            },
        };
        Ok(config)
    }

    /// Identifies everything that a program depends on; name and clock do not count.
    pub fn fingerprint(&self) -> u64 {
        let nameless = Self {
            name: String::new(),
            clock_hz: 1,
            ..self.clone()
        };
        xxhash_rust::xxh3::xxh3_64(format!("systole machine 1 {nameless:?}").as_bytes())
    }

    /// Bytes of a line of the weight scratchpad: one 4-bit weight for every column.
    pub fn line_bytes(&self) -> u32 {
        self.cols.div_ceil(2)
    }
}

/// Checks values, and knows where they stand.
struct Door<'a> {
    text: &'a str,
}

impl Door<'_> {
    fn refuse(&self, span: &std::ops::Range<usize>, message: String) -> ConfigError {
        let (line, column) = position(self.text, span.start);
        ConfigError {
            line,
            column,
            message,
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
