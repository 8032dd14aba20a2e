//! Builds the RTL with Verilator and runs programs on it.
//!
//! Invariant: one build serves every machine up to its size; what a machine sets is an input that
//! stays constant during the run.

use crate::{Error, Observed, file_error};
use accelerator::Config;
use arith::{ChannelOverflow, Overflow, Rounding};
use isa::Program;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Source files of the RTL, the package first.
const SOURCES: &[(&str, &str)] = &[
    ("systole_pkg.sv", include_str!("../rtl/systole_pkg.sv")),
    ("frontend.sv", include_str!("../rtl/frontend.sv")),
    ("tokens.sv", include_str!("../rtl/tokens.sv")),
    ("dma.sv", include_str!("../rtl/dma.sv")),
    ("dram.sv", include_str!("../rtl/dram.sv")),
    ("scratchpad.sv", include_str!("../rtl/scratchpad.sv")),
    ("parameters.sv", include_str!("../rtl/parameters.sv")),
    ("array.sv", include_str!("../rtl/array.sv")),
    ("grid.sv", include_str!("../rtl/grid.sv")),
    ("accumulators.sv", include_str!("../rtl/accumulators.sv")),
    (
        "overflow_counters.sv",
        include_str!("../rtl/overflow_counters.sv"),
    ),
    ("post.sv", include_str!("../rtl/post.sv")),
    ("systole.sv", include_str!("../rtl/systole.sv")),
    ("harness.cpp", include_str!("harness.cpp")),
];

/// A deliberate mistake in the RTL, to see that the comparison finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// DRAM answers one cycle late.
    Latency,
    /// Ties round the wrong way in two of the roundings.
    Rounding,
}

impl Mutant {
    /// The define that switches it on.
    pub const fn define(self) -> &'static str {
        match self {
            Self::Latency => "MUTANT_LATENCY",
            Self::Rounding => "MUTANT_ROUNDING",
        }
    }
}

/// A built simulator.
#[derive(Clone, Debug)]
pub struct Rtl {
    harness: PathBuf,
    scratch: PathBuf,
}

/// Builds the RTL in `directory`, or takes the build of the same sources that is there.
///
/// # Errors
/// Without Verilator, when it fails, or when `directory` cannot be written.
pub fn build(directory: &Path, mutant: Option<Mutant>) -> Result<Rtl, Error> {
    let name = mutant.map_or("plain", Mutant::define).to_lowercase();
    let root = directory.join(name);
    let objects = root.join("objects");
    let scratch = root.join("run");
    fs::create_dir_all(&scratch).map_err(file_error(&scratch))?;
    let all: String = SOURCES.iter().map(|(_, text)| *text).collect();
    let stamp = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(all.as_bytes()));
    let stamp_file = root.join("built");
    let rtl = Rtl {
        harness: objects.join("harness"),
        scratch,
    };
    if rtl.harness.exists() && fs::read_to_string(&stamp_file).is_ok_and(|built| built == stamp) {
        return Ok(rtl);
    }
    let mut command = Command::new("verilator");
    command.args([
        "--cc",
        "--exe",
        "--build",
        "-j",
        "2",
        "-O3",
        "-Wno-fatal",
        "-Wno-WIDTH",
    ]);
    command.args([
        "-Wno-UNOPTFLAT",
        "-Wno-UNSIGNED",
        "--top-module",
        "systole",
        "-o",
        "harness",
    ]);
    command
        .args(["-MAKEFLAGS", "OPT_FAST=-O1 OPT_SLOW=-O0", "--Mdir"])
        .arg(&objects);
    if let Some(mutant) = mutant {
        command.arg(format!("-D{}", mutant.define()));
    }
    for (name, text) in SOURCES {
        let path = root.join(name);
        fs::write(&path, text).map_err(file_error(&path))?;
        command.arg(fs::canonicalize(&path).map_err(file_error(&path))?);
    }
    let output = command
        .output()
        .map_err(|error| Error::Verilator(error.to_string()))?;
    if !output.status.success() {
        return Err(Error::Verilator(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ));
    }
    fs::write(&stamp_file, stamp).map_err(file_error(&stamp_file))?;
    Ok(rtl)
}

/// The program's instructions as the instruction memory holds them.
pub(crate) fn instruction_bytes(program: &Program) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(16 * program.instructions.len());
    for instruction in &program.instructions {
        bytes.extend(instruction.encode()?);
    }
    Ok(bytes)
}

/// Main memory before the run, when the host adds nothing to the program's data.
pub(crate) fn image(program: &Program) -> Vec<u8> {
    let mut dram = program.data.clone();
    dram.resize(program.dram_bytes as usize, 0);
    dram
}

impl Rtl {
    /// Runs a program on a DRAM image of `dram_bytes` of the program.
    ///
    /// # Errors
    /// A machine or program larger than the build, a fault or deadlock in the RTL, or files that
    /// cannot be written.
    pub fn run(&self, program: &Program, config: &Config, dram: &[u8]) -> Result<Observed, Error> {
        let machine = settings(config, program.n_channels)?;
        let path = |name: &str| self.scratch.join(name);
        let put = |name: &str, bytes: &[u8]| {
            fs::write(path(name), bytes).map_err(file_error(&path(name)))
        };
        put("machine.txt", machine.as_bytes())?;
        put("program.bin", &instruction_bytes(program)?)?;
        put("dram.bin", dram)?;
        let output = Command::new(&self.harness)
            .arg(&self.scratch)
            .output()
            .map_err(file_error(&self.harness))?;
        if !output.status.success() {
            return Err(Error::Run(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        let result = path("result.txt");
        let text = fs::read_to_string(&result).map_err(file_error(&result))?;
        let after = path("dram_after.bin");
        let dram = fs::read(&after).map_err(file_error(&after))?;
        parse(&text, dram)
    }
}

/// The run's settings, one `name value` a line.
fn settings(config: &Config, n_channels: u32) -> Result<String, Error> {
    let format = config.arithmetic.accumulator;
    let rounding = match config.arithmetic.rounding {
        Rounding::HalfUp => 0,
        Rounding::HalfAwayFromZero => 1,
        Rounding::HalfEven => 2,
        Rounding::Floor => 3,
    };
    let dram = &config.dram;
    let table: [(&'static str, u64, u64); 18] = [
        ("rows", config.rows.into(), 16),
        ("cols", config.cols.into(), 16),
        ("shadow", config.shadow_accumulators.into(), 1),
        ("acc_bits", format.width_bits.into(), 32),
        (
            "saturate",
            (format.overflow == Overflow::Saturate).into(),
            1,
        ),
        ("rounding", rounding, 3),
        ("lanes", config.lanes.into(), 16),
        ("n_blocks", config.n_blocks.into(), 16),
        ("activation_bytes", config.activation_bytes.into(), 1 << 17),
        ("weight_bytes", config.weight_bytes.into(), 1 << 16),
        ("n_parameters", config.n_parameters.into(), 1024),
        ("n_channels", n_channels.into(), 4096),
        ("queue_depth", config.queue_depth.into(), 64),
        ("max_tokens", config.max_tokens.into(), 65535),
        ("dram_latency", dram.latency_cycles.into(), 100_000),
        ("bytes_per_cycle", dram.bytes_per_cycle.into(), 16),
        ("burst_bytes", dram.burst_bytes.into(), 65536),
        ("max_outstanding", dram.max_outstanding.into(), 64),
    ];
    let mut text = String::new();
    for (what, value, limit) in table {
        if value > limit {
            let machine = config.name.clone();
            return Err(Error::TooLarge {
                machine,
                what,
                value,
                limit,
            });
        }
        let _ = writeln!(text, "{what} {value}");
    }
    Ok(text)
}

/// Reads what the harness writes: status and total, then `i` and `c` lines.
fn parse(text: &str, dram: Vec<u8>) -> Result<Observed, Error> {
    let mut lines = text.lines();
    let (status, total) = lines
        .next()
        .unwrap_or("")
        .split_once(' ')
        .unwrap_or(("", ""));
    if status != "ok" {
        return Err(Error::Run(status.to_owned()));
    }
    let bad = |line: &str| Error::Run(format!("an unreadable result: {line}"));
    let mut cycles = Vec::new();
    let mut overflow = Vec::new();
    for line in lines {
        let numbers: Vec<i64> = line[1..].split_whitespace().flat_map(str::parse).collect();
        match (line.as_bytes()[0], &numbers[..]) {
            (b'i', &[issue, start, end]) => cycles.push((issue as u64, start as u64, end as u64)),
            (b'c', &[n, touched, first, min, max]) => overflow.push(ChannelOverflow {
                n_overflowed: n as u64,
                n_outputs_touched: touched as u64,
                first_k: u32::try_from(first).ok(),
                min_partial_sum: min,
                max_partial_sum: max,
            }),
            _ => return Err(bad(line)),
        }
    }
    Ok(Observed {
        total: total.parse().map_err(|_| bad(total))?,
        cycles,
        overflow,
        dram,
    })
}
