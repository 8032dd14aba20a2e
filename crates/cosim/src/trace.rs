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
//!
//! A run that the machine itself stopped has `instruction` lines without cycles and, instead of the
//! last three kinds, `stopped <deadlock or token-overflow> <instruction>`.
//!
//! Invariant: what [`Trace::from_text`] accepts fits a small machine's memory and is complete.

use crate::{Error, Observed, Outcome, Stop, StopKind, rtl::image};
use accelerator::{Config, Dataflow, DepthwiseUnit};
use arith::{ChannelOverflow, Overflow, Rounding};
use isa::{Instruction, LayerInfo, Program};
use std::{fmt::Write as _, str::SplitWhitespace};
use xxhash_rust::xxh3::xxh3_64;

/// The largest main memory of a recorded run.
const MAX_DRAM_BYTES: u64 = 1 << 24;
/// The most overflow counters of a recorded run.
const MAX_CHANNELS: u64 = 1 << 16;
const MAGIC: &str = "systole trace 1\nmachine\n";

/// A recorded run.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The machine.
    pub config: Config,
    /// What ran.
    pub program: Program,
    /// How the RTL ended; the memory afterwards is kept as a hash, here it is empty.
    pub outcome: Outcome,
    /// xxh3 of the DRAM image after a finished run.
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
    let depthwise = match c.depthwise {
        DepthwiseUnit::Array => "array",
        DepthwiseUnit::Post => "post",
    };
    let (shadow, block_rows) = match c.dataflow {
        Dataflow::OutputStationary => ("shadow_accumulators", String::new()),
        Dataflow::WeightStationary | Dataflow::InputStationary => (
            "shadow_operands",
            format!("block_rows = {}\n", c.block_rows),
        ),
    };
    let (width, d) = (c.arithmetic.accumulator.width_bits, &c.dram);
    format!(
        "name = {name}\nclock_hz = {}\n[array]\ndataflow = \"{dataflow}\"\nrows = {}\n\
         cols = {}\n{shadow} = {}\n[accumulator]\nwidth_bits = {width}\n\
         overflow = \"{overflow}\"\nn_blocks = {}\n{block_rows}[post]\nlanes = {}\n\
         rounding = \"{rounding}\"\ndepthwise = \"{depthwise}\"\n[scratchpad]\n\
         activation_bytes = {}\nweight_bytes = {}\nn_parameters = {}\n[frontend]\n\
         queue_depth = {}\nmax_tokens = {}\n[dram]\nsize_bytes = {}\nlatency_cycles = {}\n\
         bytes_per_cycle = {}\nburst_bytes = {}\nmax_outstanding = {}\n",
        c.clock_hz,
        c.rows,
        c.cols,
        c.shadow,
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
        name = toml::Value::String(c.name.clone()),
        dataflow = c.dataflow.name(),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8))
        .collect()
}

impl Trace {
    /// A run that has just been made, as it is recorded.
    ///
    /// # Errors
    /// An instruction without an encoding.
    pub fn to_text(config: &Config, program: &Program, outcome: &Outcome) -> Result<String, Error> {
        let (cycles, end) = match outcome {
            Outcome::Finished(run) => (&run.cycles[..], finished(run)),
            Outcome::Stopped(Stop { index, kind }) => {
                (&[][..], format!("stopped {} {index}\n", kind.name()))
            }
        };
        let mut text = format!("{MAGIC}{}.\n", machine_toml(config));
        let _ = writeln!(
            text,
            "dram_bytes {}\nchannels {}",
            program.dram_bytes, program.n_channels
        );
        for (i, instruction) in program.instructions.iter().enumerate() {
            let _ = write!(text, "instruction {}", hex(&instruction.encode()?));
            if let Some((issue, start, end)) = cycles.get(i) {
                let _ = write!(text, " {issue} {start} {end}");
            }
            text.push('\n');
        }
        for line in program.data.chunks(64) {
            let _ = writeln!(text, "data {}", hex(line));
        }
        Ok(text + &end)
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
            .strip_prefix(MAGIC)
            .and_then(|text| text.split_once("\n.\n"))
            .ok_or_else(|| bad(1, "not a trace"))?;
        let config = Config::from_toml(machine).map_err(|e| bad(2 + e.line, &e.message))?;
        let mut reader = Reader::default();
        let before = machine.lines().count() + 4;
        let mut n_lines = 0;
        for (i, line) in rest.lines().enumerate() {
            n_lines = i;
            reader
                .line(line)
                .map_err(|what| bad(before + i, &format!("{what}: {line:.60}")))?;
        }
        let (program, outcome, dram_hash) = reader
            .finish(&config)
            .map_err(|what| bad(before + n_lines, what))?;
        Ok(Self {
            config,
            program,
            outcome,
            dram_hash,
        })
    }

    /// Main memory before the run.
    pub fn dram(&self) -> Vec<u8> {
        image(&self.program)
    }
}

/// The lines that only a finished run has.
fn finished(run: &Observed) -> String {
    let mut text = String::new();
    for c in &run.overflow {
        let first = c.first_k.map_or("-".to_owned(), |k| k.to_string());
        let (min, max) = (c.min_partial_sum, c.max_partial_sum);
        let (n, touched) = (c.n_overflowed, c.n_outputs_touched);
        let _ = writeln!(text, "channel {n} {touched} {first} {min} {max}");
    }
    let hash = xxh3_64(&run.dram);
    let _ = writeln!(text, "total {}\ndram_after {hash:016x}", run.total);
    text
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    program: Program,
    run: Observed,
    n_channels: Option<u64>,
    dram_bytes: Option<u64>,
    total: Option<u64>,
    dram_hash: Option<u64>,
    stop: Option<Stop>,
}

type Complaint = &'static str;

struct Words<'a>(SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn next(&mut self) -> Result<&'a str, Complaint> {
        self.0.next().ok_or("it ends too early")
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T, Complaint> {
        self.next()?.parse().map_err(|_| "not a number in range")
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Complaint> {
    if slot.replace(value).is_some() {
        return Err("it stands here a second time");
    }
    Ok(())
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), Complaint> {
        let mut words = Words(line.split_whitespace());
        match words.next()? {
            "dram_bytes" => once(&mut self.dram_bytes, words.number()?)?,
            "channels" => once(&mut self.n_channels, words.number()?)?,
            "total" => once(&mut self.total, words.number()?)?,
            "instruction" => {
                let bytes = unhex(words.next()?).and_then(|b| <[u8; 16]>::try_from(b).ok());
                let bytes = bytes.ok_or("not 32 hexadecimal digits")?;
                let instruction =
                    Instruction::decode(&bytes).map_err(|_| "not an instruction of the machine")?;
                self.program.instructions.push(instruction);
                // Those of a stopped run have no cycles.
                if words.0.clone().next().is_some() {
                    let cycles = (words.number()?, words.number()?, words.number()?);
                    self.run.cycles.push(cycles);
                }
            }
            "data" => {
                let bytes = unhex(words.next()?).ok_or("not pairs of hexadecimal digits")?;
                self.program.data.extend(bytes);
            }
            "channel" => self.run.overflow.push(ChannelOverflow {
                n_overflowed: words.number()?,
                n_outputs_touched: words.number()?,
                first_k: match words.next()? {
                    "-" => None,
                    k => Some(k.parse().map_err(|_| "not a step")?),
                },
                min_partial_sum: words.number()?,
                max_partial_sum: words.number()?,
            }),
            "dram_after" => {
                let hash = u64::from_str_radix(words.next()?, 16).map_err(|_| "not a hash")?;
                once(&mut self.dram_hash, hash)?;
            }
            "stopped" => {
                let name = words.next()?;
                let kind = StopKind::ALL.into_iter().find(|kind| kind.name() == name);
                let stop = Stop {
                    kind: kind.ok_or("not a reason to stop")?,
                    index: words.number()?,
                };
                once(&mut self.stop, stop)?;
            }
            _ => return Err("not a line of a trace"),
        }
        match words.0.next() {
            None => Ok(()),
            Some(_) => Err("something stands behind its end"),
        }
    }

    fn finish(self, config: &Config) -> Result<(Program, Outcome, u64), Complaint> {
        let mut program = self.program;
        program.machine = config.fingerprint();
        program.dram_bytes = self.dram_bytes.ok_or("no dram_bytes")?;
        if program.dram_bytes > MAX_DRAM_BYTES.min(config.dram.size_bytes) {
            return Err("dram_bytes is more than the machine or a trace may have");
        }
        if program.data.len() as u64 > program.dram_bytes {
            return Err("more data than dram_bytes");
        }
        let n_channels = self.n_channels.ok_or("no channels")?;
        if n_channels > MAX_CHANNELS {
            return Err("more channels than a trace may have");
        }
        program.n_channels = n_channels as u32;
        program.layer_of = vec![0; program.instructions.len()];
        program.layers = vec![LayerInfo {
            name: "recorded".to_owned(),
            n_macs: 0,
            first_channel: 0,
            n_channels: program.n_channels,
        }];
        if let Some(stop) = self.stop {
            if self.total.is_some() || self.dram_hash.is_some() || !self.run.cycles.is_empty() {
                return Err("a stopped run has no cycles and no end");
            }
            return Ok((program, Outcome::Stopped(stop), 0));
        }
        let run = Observed {
            total: self.total.ok_or("no total")?,
            ..self.run
        };
        if run.cycles.len() != program.instructions.len() {
            return Err("an instruction without cycles");
        }
        if run.overflow.len() as u64 != n_channels {
            return Err("channels and channel lines differ in number");
        }
        let hash = self.dram_hash.ok_or("no dram_after")?;
        Ok((program, Outcome::Finished(run), hash))
    }
}
