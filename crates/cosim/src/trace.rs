//! Recorded runs: everything that is needed to repeat one and to judge it, as text.
//!
//! ```text
//! systole trace 1
//! machine        the machine file follows, up to a line `.`
//! .
//! dram_bytes 4096
//! channels 12
//! instruction <32 hexadecimal digits> <issue> <start> <end>      one line each
//! data <hexadecimal>                                             initial DRAM, the rest is 0
//! channel <n_overflowed> <n_outputs_touched> <first_k or -> <min> <max>
//! total <cycles>
//! dram_after <xxh3 of the whole image>
//! ```

use crate::{Error, Observed, rtl::image};
use accelerator::Config;
use arith::{ChannelOverflow, Overflow, Rounding};
use isa::{Instruction, LayerInfo, Program};
use std::{fmt::Write as _, str::FromStr};
use xxhash_rust::xxh3::xxh3_64;

/// A recorded run.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The machine.
    pub config: Config,
    /// What ran.
    pub program: Program,
    /// What the RTL did; the memory afterwards is kept as a hash, here it is empty.
    pub observed: Observed,
    /// xxh3 of the DRAM image after the run.
    pub dram_hash: u64,
}

/// A machine as its file.
pub fn machine_toml(c: &Config) -> String {
    let overflow = match c.arithmetic.accumulator.overflow {
        Overflow::Saturate => "saturate",
        Overflow::Wrap => "wrap",
    };
    let rounding = match c.arithmetic.rounding {
        Rounding::HalfUp => "half-up",
        Rounding::HalfAwayFromZero => "half-away-from-zero",
        Rounding::HalfEven => "half-even",
        Rounding::Floor => "floor",
    };
    let (width, d) = (c.arithmetic.accumulator.width_bits, &c.dram);
    format!(
        "name = \"{}\"\nclock_hz = {}\n[array]\ndataflow = \"output-stationary\"\nrows = {}\n\
         cols = {}\nshadow_accumulators = {}\n[accumulator]\nwidth_bits = {width}\n\
         overflow = \"{overflow}\"\nn_blocks = {}\n[post]\nlanes = {}\nrounding = \"{rounding}\"\n\
         [scratchpad]\nactivation_bytes = {}\nweight_bytes = {}\nn_parameters = {}\n[frontend]\n\
         queue_depth = {}\nmax_tokens = {}\n[dram]\nsize_bytes = {}\nlatency_cycles = {}\n\
         bytes_per_cycle = {}\nburst_bytes = {}\nmax_outstanding = {}\n",
        c.name,
        c.clock_hz,
        c.rows,
        c.cols,
        c.shadow_accumulators,
        c.n_blocks,
        c.lanes,
        c.activation_bytes,
        c.weight_bytes,
        c.n_parameters,
        c.queue_depth,
        c.max_tokens,
        d.size_bytes,
        d.latency_cycles,
        d.bytes_per_cycle,
        d.burst_bytes,
        d.max_outstanding,
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |i: usize| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok();
    (0..text.len() / 2).map(pair).collect()
}

impl Trace {
    /// The run's text.
    ///
    /// # Errors
    /// An instruction without an encoding.
    pub fn to_text(config: &Config, program: &Program, run: &Observed) -> Result<String, Error> {
        let mut text = format!("systole trace 1\nmachine\n{}.\n", machine_toml(config));
        let _ = writeln!(
            text,
            "dram_bytes {}\nchannels {}",
            program.dram_bytes, program.n_channels
        );
        for (instruction, (issue, start, end)) in program.instructions.iter().zip(&run.cycles) {
            let bits = hex(&instruction.encode()?);
            let _ = writeln!(text, "instruction {bits} {issue} {start} {end}");
        }
        for line in program.data.chunks(64) {
            let _ = writeln!(text, "data {}", hex(line));
        }
        for c in &run.overflow {
            let first = c.first_k.map_or("-".to_owned(), |k| k.to_string());
            let (min, max) = (c.min_partial_sum, c.max_partial_sum);
            let (n, touched) = (c.n_overflowed, c.n_outputs_touched);
            let _ = writeln!(text, "channel {n} {touched} {first} {min} {max}");
        }
        let _ = writeln!(
            text,
            "total {}\ndram_after {:016x}",
            run.total,
            xxh3_64(&run.dram)
        );
        Ok(text)
    }

    /// Reads a recorded run.
    ///
    /// # Errors
    /// The first line that is not as described above.
    pub fn from_text(text: &str) -> Result<Self, Error> {
        let bad = |line: usize, what: &str| Error::Trace {
            line,
            what: what.to_owned(),
        };
        let (machine, rest) = text
            .strip_prefix("systole trace 1\nmachine\n")
            .and_then(|text| text.split_once("\n.\n"))
            .ok_or_else(|| bad(1, "not a trace"))?;
        let config = Config::from_toml(machine).map_err(|e| bad(2 + e.line, &e.message))?;
        let mut program = Program {
            machine: config.fingerprint(),
            ..Program::default()
        };
        let mut run = Observed {
            total: 0,
            cycles: vec![],
            overflow: vec![],
            dram: vec![],
        };
        let mut dram_hash = 0;
        let before = machine.lines().count() + 4;
        for (i, line) in rest.lines().enumerate() {
            let mut words = line.split_whitespace();
            let mut word = || {
                words
                    .next()
                    .ok_or_else(|| bad(before + i, "it ends too early"))
            };
            let number = |text: &str| parse::<u64>(text).ok_or_else(|| bad(before + i, text));
            match word()? {
                "dram_bytes" => program.dram_bytes = number(word()?)?,
                "channels" => program.n_channels = number(word()?)? as u32,
                "total" => run.total = number(word()?)?,
                "instruction" => {
                    let bytes = unhex(word()?).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
                    let bytes = bytes.ok_or_else(|| bad(before + i, "no instruction"))?;
                    program.instructions.push(Instruction::decode(&bytes)?);
                    run.cycles
                        .push((number(word()?)?, number(word()?)?, number(word()?)?));
                }
                "data" => {
                    let bytes = unhex(word()?).ok_or_else(|| bad(before + i, "no bytes"))?;
                    program.data.extend(bytes);
                }
                "channel" => run.overflow.push(ChannelOverflow {
                    n_overflowed: number(word()?)?,
                    n_outputs_touched: number(word()?)?,
                    first_k: parse(word()?),
                    min_partial_sum: parse(word()?).ok_or_else(|| bad(before + i, "min"))?,
                    max_partial_sum: parse(word()?).ok_or_else(|| bad(before + i, "max"))?,
                }),
                "dram_after" => {
                    dram_hash =
                        u64::from_str_radix(word()?, 16).map_err(|_| bad(before + i, "no hash"))?;
                }
                other => return Err(bad(before + i, other)),
            }
        }
        let n_channels = program.n_channels;
        program.layer_of = vec![0; program.instructions.len()];
        let name = "recorded".to_owned();
        program.layers = vec![LayerInfo {
            name,
            n_macs: 0,
            first_channel: 0,
            n_channels,
        }];
        Ok(Self {
            config,
            program,
            observed: run,
            dram_hash,
        })
    }

    /// Main memory before the run.
    pub fn dram(&self) -> Vec<u8> {
        image(&self.program)
    }
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}
