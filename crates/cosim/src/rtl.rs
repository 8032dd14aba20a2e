//! Builds the RTL with Verilator and runs programs on it.
//!
//! Invariant: one build serves every machine up to its parameters; what a machine sets is an input
//! that stays constant during the run.

use crate::{Error, Observed, Outcome, Stop, StopKind, file_error, mutants::Mutant};
use accelerator::{Config, Dataflow};
use arith::{ChannelOverflow, Overflow, Rounding};
use isa::Program;
use std::{
    fmt::Write as _,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

/// Source files of the RTL, the packages first, and the program that drives it.
pub(crate) const SOURCES: &[(&str, &str)] = &[
    ("isa_pkg.sv", include_str!("../rtl/isa_pkg.sv")),
    ("systole_pkg.sv", include_str!("../rtl/systole_pkg.sv")),
    ("frontend.sv", include_str!("../rtl/frontend.sv")),
    ("tokens.sv", include_str!("../rtl/tokens.sv")),
    ("dma.sv", include_str!("../rtl/dma.sv")),
    ("dram.sv", include_str!("../rtl/dram.sv")),
    ("scratchpad.sv", include_str!("../rtl/scratchpad.sv")),
    ("parameters.sv", include_str!("../rtl/parameters.sv")),
    ("overflow_add.sv", include_str!("../rtl/overflow_add.sv")),
    ("pe.sv", include_str!("../rtl/pe.sv")),
    ("grid.sv", include_str!("../rtl/grid.sv")),
    (
        "activation_port.sv",
        include_str!("../rtl/activation_port.sv"),
    ),
    ("weight_port.sv", include_str!("../rtl/weight_port.sv")),
    (
        "array_sequencer.sv",
        include_str!("../rtl/array_sequencer.sv"),
    ),
    ("array_row.sv", include_str!("../rtl/array_row.sv")),
    ("array_column.sv", include_str!("../rtl/array_column.sv")),
    ("array.sv", include_str!("../rtl/array.sv")),
    ("accumulators.sv", include_str!("../rtl/accumulators.sv")),
    (
        "post_sequencer.sv",
        include_str!("../rtl/post_sequencer.sv"),
    ),
    ("post_lane.sv", include_str!("../rtl/post_lane.sv")),
    ("post.sv", include_str!("../rtl/post.sv")),
    (
        "overflow_counters.sv",
        include_str!("../rtl/overflow_counters.sv"),
    ),
    ("systole.sv", include_str!("../rtl/systole.sv")),
    ("harness.cpp", include_str!("harness.cpp")),
];

/// How the RTL is elaborated: the top module's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Everything up to 16×16 with the memories of `configs/edge-16x16.toml`.
    Full,
    /// 4×4 with small memories: builds in a fraction of the time.
    Small,
}

/// The top module's parameters, and their values for [`Size::Full`] and [`Size::Small`].
const PARAMETERS: &[(&str, u64, u64)] = &[
    ("ROWS", 16, 4),
    ("COLS", 16, 4),
    ("LANES", 16, 4),
    ("N_BLOCK_ROWS", 4096, 64),
    ("ACTIVATION_BYTES", 1 << 17, 1 << 10),
    ("WEIGHT_BYTES", 1 << 16, 1 << 9),
    ("N_PARAMETERS", 1024, 32),
    ("N_CHANNELS", 1 << 14, 64),
    ("QUEUE_DEPTH", 64, 16),
    ("DRAM_BYTES", 1 << 24, 1 << 16),
    ("BUS_BYTES", 64, 16),
    ("N_INSTRUCTIONS", 1 << 18, 1 << 12),
];

impl Size {
    const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Small => "small",
        }
    }

    /// Small builds go side by side, the large one has the computer for itself.
    const fn build_jobs(self) -> &'static str {
        match self {
            Self::Full => "2",
            Self::Small => "1",
        }
    }

    fn parameter(self, name: &str) -> u64 {
        let found = PARAMETERS.iter().find(|(known, ..)| *known == name);
        let (_, full, small) = found.unwrap_or_else(|| panic!("no parameter {name}"));
        match self {
            Self::Full => *full,
            Self::Small => *small,
        }
    }
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// How large.
    pub size: Size,
    /// With which mistake.
    pub mutant: Option<&'static Mutant>,
    /// It can write waveforms.
    pub traced: bool,
}

/// A built simulator.
#[derive(Clone, Debug)]
pub struct Rtl {
    harness: PathBuf,
    scratch: PathBuf,
    size: Size,
}

/// A run, and how long it took.
#[derive(Clone, Debug)]
pub struct RtlRun {
    /// How it ended.
    pub outcome: Outcome,
    /// Wall time of the clocked part, without files.
    pub seconds: f64,
}

impl Build {
    /// The whole machine as it should be.
    pub const FULL: Self = Self {
        size: Size::Full,
        mutant: None,
        traced: false,
    };

    /// The smallest build, with waveforms, that holds a machine.
    pub fn traced(config: &Config, mutant: Option<&'static Mutant>) -> Self {
        let is_small = settings(config, 0, Size::Small).is_ok();
        let size = if is_small { Size::Small } else { Size::Full };
        Self {
            size,
            mutant,
            traced: true,
        }
    }

    fn sources(&self) -> Result<Vec<(&'static str, String)>, Error> {
        SOURCES
            .iter()
            .map(|&(name, text)| {
                let text = match self.mutant {
                    Some(mutant) => mutant.apply(name, text)?,
                    None => text.to_owned(),
                };
                Ok((name, text))
            })
            .collect()
    }

    /// Builds in `directory`, or takes the build of the same sources that is there.
    ///
    /// # Errors
    /// Without Verilator, when it fails, or when `directory` cannot be written.
    pub fn make(&self, directory: &Path) -> Result<Rtl, Error> {
        let variant = self.mutant.map_or("plain", |mutant| mutant.name);
        let traced = if self.traced { "-traced" } else { "" };
        let root = directory.join(format!("{}-{variant}{traced}", self.size.name()));
        let objects = root.join("objects");
        let scratch = root.join("run");
        fs::create_dir_all(&scratch).map_err(file_error(&scratch))?;
        let sources = self.sources()?;
        let mut arguments: Vec<String> = [
            "--cc",
            "--exe",
            "--build",
            "-j",
            self.size.build_jobs(),
            "-O3",
            "-Wno-fatal",
            "-Wno-WIDTH",
            "-Wno-UNOPTFLAT",
            "-Wno-UNSIGNED",
            "--top-module",
            "systole",
            "-o",
            "harness",
            "-MAKEFLAGS",
            "OPT_FAST=-O1 OPT_SLOW=-O0",
        ]
        .map(str::to_owned)
        .into();
        if self.traced {
            // Fields of structs by name; arrays of one element a PE or lane, but not the memories.
            arguments.extend(["--trace", "--trace-structs"].map(str::to_owned));
            arguments.extend(["--trace-max-array", "64"].map(str::to_owned));
        }
        for (name, ..) in PARAMETERS {
            arguments.push(format!("-G{name}={}", self.size.parameter(name)));
        }
        let identity = format!("{arguments:?}{sources:?}");
        let stamp = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(identity.as_bytes()));
        let stamp_file = root.join("built");
        let rtl = Rtl {
            harness: objects.join("harness"),
            scratch,
            size: self.size,
        };
        if rtl.harness.exists() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
            return Ok(rtl);
        }
        let mut command = Command::new("verilator");
        command.args(&arguments).arg("--Mdir").arg(&objects);
        for (name, text) in sources {
            let path = root.join(name);
            fs::write(&path, text).map_err(file_error(&path))?;
            command.arg(fs::canonicalize(&path).map_err(file_error(&path))?);
        }
        let output = command
            .output()
            .map_err(|error| Error::Verilator(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::Verilator(said));
        }
        fs::write(&stamp_file, stamp).map_err(file_error(&stamp_file))?;
        Ok(rtl)
    }
}

/// The program's instructions as the instruction memory holds them.
fn instruction_bytes(program: &Program) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(16 * program.instructions.len());
    for instruction in &program.instructions {
        bytes.extend(instruction.encode()?);
    }
    Ok(bytes)
}

/// Main memory before the run, when the host adds nothing to the program's data.
pub fn image(program: &Program) -> Vec<u8> {
    let mut dram = program.data.clone();
    dram.resize(program.dram_bytes as usize, 0);
    dram
}

impl Rtl {
    /// Whether the build is large enough for a machine.
    pub fn holds(&self, config: &Config) -> bool {
        settings(config, 0, self.size).is_ok()
    }

    /// Runs a program on a DRAM image of `dram_bytes` of the program, for at most `max_cycles`.
    ///
    /// # Errors
    /// A machine or program larger than the build, a run that does not end in time, or files that
    /// cannot be written.
    pub fn run(
        &self,
        program: &Program,
        config: &Config,
        dram: &[u8],
        max_cycles: u64,
    ) -> Result<RtlRun, Error> {
        let files = self.run_files(program, config, dram, max_cycles, 0..0)?;
        parse(&files.text, files.dram)
    }

    /// As [`Rtl::run`], on a traced build: the waveform of the cycles of `window`, as VCD.
    ///
    /// # Errors
    /// As [`Rtl::run`].
    pub fn waveform(
        &self,
        program: &Program,
        config: &Config,
        dram: &[u8],
        window: Range<u64>,
    ) -> Result<Vec<u8>, Error> {
        let max_cycles = window.end;
        let files = self.run_files(program, config, dram, max_cycles, window)?;
        files
            .vcd
            .ok_or_else(|| Error::Run("no waveform".to_owned()))
    }

    /// Runs the harness.
    fn run_files(
        &self,
        program: &Program,
        config: &Config,
        dram: &[u8],
        max_cycles: u64,
        window: Range<u64>,
    ) -> Result<Files, Error> {
        let mut machine = settings(config, program.n_channels, self.size)?;
        let _ = writeln!(
            machine,
            "wave_from {}\nwave_to {}",
            window.start, window.end
        );
        // A directory of its own, so that runs can go side by side.
        let scratch = tempfile::tempdir_in(&self.scratch).map_err(file_error(&self.scratch))?;
        let path = |name: &str| scratch.path().join(name);
        let put = |name: &str, bytes: &[u8]| {
            fs::write(path(name), bytes).map_err(file_error(&path(name)))
        };
        put("machine.txt", machine.as_bytes())?;
        put("program.bin", &instruction_bytes(program)?)?;
        put("dram.bin", dram)?;
        let output = Command::new(&self.harness)
            .arg(scratch.path())
            .arg(max_cycles.to_string())
            .output()
            .map_err(file_error(&self.harness))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::Run(said));
        }
        let result = path("result.txt");
        let text = fs::read_to_string(&result).map_err(file_error(&result))?;
        let after = path("dram_after.bin");
        let dram = fs::read(&after).map_err(file_error(&after))?;
        let vcd = (!window.is_empty()).then(|| fs::read(path("rtl.vcd")));
        let vcd = vcd.transpose().map_err(file_error(&path("rtl.vcd")))?;
        Ok(Files { text, dram, vcd })
    }
}

/// What the harness writes.
struct Files {
    /// How the run ended, and the instructions' cycles.
    text: String,
    dram: Vec<u8>,
    /// The waveform, when one was wanted.
    vcd: Option<Vec<u8>>,
}

/// The run's settings, one `name value` a line.
fn settings(config: &Config, n_channels: u32, size: Size) -> Result<String, Error> {
    let format = config.arithmetic.accumulator;
    let rounding = match config.arithmetic.rounding {
        Rounding::HalfUp => 0,
        Rounding::HalfAwayFromZero => 1,
        Rounding::HalfEven => 2,
        Rounding::Floor => 3,
    };
    let is_saturating = format.overflow == Overflow::Saturate;
    let dataflow = match config.dataflow {
        Dataflow::OutputStationary => 0,
        Dataflow::WeightStationary => 1,
        Dataflow::InputStationary => 2,
    };
    let dram = &config.dram;
    if let Some(banks) = &dram.banks {
        // The RTL's channel is the flat one.
        return Err(Error::TooLarge {
            machine: config.name.clone(),
            what: "dram.banks.n_banks",
            value: banks.n_banks.into(),
            limit: 0,
        });
    }
    let limit = |name| size.parameter(name);
    let table: [(&'static str, u64, u64); 20] = [
        ("rows", config.rows.into(), limit("ROWS")),
        ("cols", config.cols.into(), limit("COLS")),
        ("shadow", config.shadow.into(), 1),
        ("acc_bits", format.width_bits.into(), 32),
        ("saturate", is_saturating.into(), 1),
        ("rounding", rounding, 3),
        ("lanes", config.lanes.into(), limit("LANES")),
        ("dataflow", dataflow, 2),
        ("block_rows", config.block_rows.into(), 4096),
        (
            "n_block_rows",
            u64::from(config.n_blocks) * u64::from(config.block_rows),
            limit("N_BLOCK_ROWS"),
        ),
        (
            "activation_bytes",
            config.activation_bytes.into(),
            limit("ACTIVATION_BYTES"),
        ),
        (
            "weight_bytes",
            config.weight_bytes.into(),
            limit("WEIGHT_BYTES"),
        ),
        (
            "n_parameters",
            config.n_parameters.into(),
            limit("N_PARAMETERS"),
        ),
        ("n_channels", n_channels.into(), limit("N_CHANNELS")),
        (
            "queue_depth",
            config.queue_depth.into(),
            limit("QUEUE_DEPTH"),
        ),
        ("max_tokens", config.max_tokens.into(), 65535),
        ("dram_latency", dram.latency_cycles.into(), 100_000),
        (
            "bytes_per_cycle",
            dram.bytes_per_cycle.into(),
            limit("BUS_BYTES"),
        ),
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

/// Reads what the harness writes: status, its number and the seconds, then `i` and `c` lines.
fn parse(text: &str, dram: Vec<u8>) -> Result<RtlRun, Error> {
    let bad = |line: &str| Error::Run(format!("an unreadable result: {line}"));
    let mut lines = text.lines();
    let first = lines.next().unwrap_or("");
    let words: Vec<&str> = first.split_whitespace().collect();
    let &[status, number, seconds] = &words[..] else {
        return Err(bad(first));
    };
    let number: u64 = number.parse().map_err(|_| bad(first))?;
    let seconds: f64 = seconds.parse().map_err(|_| bad(first))?;
    if let Some(kind) = StopKind::ALL.into_iter().find(|kind| kind.name() == status) {
        let index = number as usize;
        let outcome = Outcome::Stopped(Stop { index, kind });
        return Ok(RtlRun { outcome, seconds });
    }
    if status != "ok" {
        return Err(Error::Run(format!("{status} after {number} cycles")));
    }
    let mut observed = Observed {
        total: number,
        dram,
        ..Observed::default()
    };
    for line in lines {
        let (kind, rest) = line.split_once(' ').ok_or_else(|| bad(line))?;
        let numbers: Vec<i64> = rest.split_whitespace().flat_map(str::parse).collect();
        match (kind, &numbers[..]) {
            ("i", &[issue, start, end]) => {
                observed
                    .cycles
                    .push((issue as u64, start as u64, end as u64));
            }
            ("c", &[n, touched, first, min, max]) => observed.overflow.push(ChannelOverflow {
                n_overflowed: n as u64,
                n_outputs_touched: touched as u64,
                first_k: u32::try_from(first).ok(),
                min_partial_sum: min,
                max_partial_sum: max,
            }),
            _ => return Err(bad(line)),
        }
    }
    Ok(RtlRun {
        outcome: Outcome::Finished(observed),
        seconds,
    })
}
