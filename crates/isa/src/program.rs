//! A whole program: instructions, initial DRAM contents, and what names the results; its bytes.
//!
//! Invariant: `from_bytes` accepts exactly what `to_bytes` gives, and what it accepts has passed
//! [`Program::check`]. No length field makes it reserve more memory than there are bytes.

use crate::{Instruction, InstructionError};
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

/// The first bytes of a program.
const MAGIC: [u8; 8] = *b"SYSTOLE\0";
/// The format that this version reads and writes.
pub(crate) const VERSION: u32 = 1;
/// Where the checksum stands: behind magic and version.
const CHECKSUM_AT: usize = 12;
/// First byte behind the checksum.
const BODY_AT: usize = CHECKSUM_AT + 8;
/// Addresses have 32 bits.
const MAX_DRAM_BYTES: u64 = 1 << 32;
/// The counter of column 0 has 20 bits, and there are at most 256 columns.
const MAX_CHANNELS: u32 = (1 << 20) + 255;

/// A program for one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Fingerprint of the machine that it was compiled for.
    pub machine: u64,
    /// DRAM that it uses, from address 0.
    pub dram_bytes: u64,
    /// Overflow counters that it uses.
    pub n_channels: u32,
    /// The instructions in program order.
    pub instructions: Vec<Instruction>,
    /// Initial DRAM contents from address 0: weights and parameters.
    pub data: Vec<u8>,
    /// The layers of the network.
    pub layers: Vec<LayerInfo>,
    /// For each instruction, its layer's index.
    pub layer_of: Vec<u32>,
    /// Where tensors lie in DRAM.
    pub tensors: Vec<Placement>,
}

/// A layer, for reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerInfo {
    /// Name in the network.
    pub name: String,
    /// Multiply-accumulates that the network asks for, without those that padding of tiles adds.
    pub n_macs: u64,
    /// Overflow counter of its first output channel.
    pub first_channel: u32,
    /// Overflow counters, one for each output channel; 0 when not a convolution.
    pub n_channels: u32,
}

/// What a tensor is to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The host writes it before the run.
    Input,
    /// The host reads it after the run.
    Output,
    /// One layer writes it for another.
    Internal,
}

impl Role {
    /// All roles in the order of their byte.
    pub(crate) const ALL: [Self; 3] = [Self::Input, Self::Output, Self::Internal];

    /// The name in text: `input`, `output`, `internal`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Internal => "internal",
        }
    }
}

/// Where a tensor lies in DRAM: pixel by pixel, row after row, channels fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Name in the network.
    pub name: String,
    /// What it is to the network.
    pub role: Role,
    /// First byte in DRAM.
    pub address: u32,
    /// Channels of a pixel.
    pub channels: u32,
    /// Rows.
    pub height: u32,
    /// Pixels of a row.
    pub width: u32,
    /// Bytes from one pixel to the next.
    pub pixel_bytes: u32,
    /// Bits of an element: 4, 8 or 16.
    pub storage_bits: u8,
    /// Whether elements are two's complement.
    pub signed: bool,
}

/// Why something is no program.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProgramError {
    /// Some other file.
    #[error("not a systole program: it does not begin with the magic bytes")]
    Magic,
    /// Written by another version.
    #[error("program format {found} is not supported, only {VERSION}")]
    Version {
        /// The format of the bytes.
        found: u32,
    },
    /// Damaged.
    #[error("corrupted program: checksum is {computed:#018x}, the header says {stored:#018x}")]
    Checksum {
        /// What the header says.
        stored: u64,
        /// What the bytes give.
        computed: u64,
    },
    /// Ends too early.
    #[error("program ends within its {section}: {needed} bytes needed, {available} left")]
    Truncated {
        /// Where.
        section: &'static str,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are left.
        available: usize,
    },
    /// Goes on after its end.
    #[error("{n_bytes} bytes after the end of the program")]
    Trailing {
        /// How many.
        n_bytes: usize,
    },
    /// An instruction is wrong.
    #[error("instruction {index}: {source}")]
    Instruction {
        /// Its position.
        index: usize,
        /// What is wrong.
        source: InstructionError,
    },
    /// A name that is no text.
    #[error("the name of {section} {index} is not UTF-8")]
    Name {
        /// `layer` or `tensor`.
        section: &'static str,
        /// Its position.
        index: usize,
    },
    /// A number outside its limits.
    #[error("{what} is {value}: must be {min} to {max}")]
    Limit {
        /// The number's name.
        what: String,
        /// Its value.
        value: u64,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// Layers and instructions do not belong together.
    #[error("{n_layers} instructions have a layer, but there are {n_instructions}")]
    LayerOf {
        /// Instructions with a layer.
        n_layers: u64,
        /// Instructions.
        n_instructions: usize,
    },
    /// Adjacent runs of the same layer, or an empty one: there is one way to write them.
    #[error("layer run {index} is empty or continues the one before")]
    Run {
        /// Its position.
        index: usize,
    },
}

/// `value` within `min..=max`; `what` is only named in the error.
fn check_limit(
    what: impl FnOnce() -> String,
    value: u64,
    min: u64,
    max: u64,
) -> Result<(), ProgramError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ProgramError::Limit {
        what: what(),
        value,
        min,
        max,
    })
}

impl Program {
    /// Whether the parts belong together and every instruction has an encoding.
    ///
    /// # Errors
    /// The first part that is wrong, with its value and limit.
    pub fn check(&self) -> Result<(), ProgramError> {
        for (index, instruction) in self.instructions.iter().enumerate() {
            instruction
                .check()
                .map_err(|source| ProgramError::Instruction { index, source })?;
        }
        self.check_tables()
    }

    /// [`Self::check`] without the instructions.
    fn check_tables(&self) -> Result<(), ProgramError> {
        let n_data = self.data.len() as u64;
        check_limit(
            || "dram_bytes".into(),
            self.dram_bytes,
            n_data,
            MAX_DRAM_BYTES,
        )?;
        check_limit(
            || "n_channels".into(),
            self.n_channels.into(),
            0,
            MAX_CHANNELS.into(),
        )?;
        if self.layer_of.len() != self.instructions.len() {
            return Err(ProgramError::LayerOf {
                n_layers: self.layer_of.len() as u64,
                n_instructions: self.instructions.len(),
            });
        }
        for (index, &layer) in self.layer_of.iter().enumerate() {
            if layer as usize >= self.layers.len() {
                return Err(ProgramError::Limit {
                    what: format!("instruction {index}: layer"),
                    value: layer.into(),
                    min: 0,
                    max: (self.layers.len() as u64).saturating_sub(1),
                });
            }
        }
        for layer in &self.layers {
            let end = u64::from(layer.first_channel) + u64::from(layer.n_channels);
            let what = || format!("layer {:?}: end of the overflow counters", layer.name);
            check_limit(what, end, 0, self.n_channels.into())?;
        }
        self.tensors
            .iter()
            .try_for_each(|tensor| tensor.check(self.dram_bytes))
    }

    /// The layers of the instructions as runs: layer, instructions.
    fn runs(&self) -> impl Iterator<Item = (u32, usize)> {
        self.layer_of
            .chunk_by(|a, b| a == b)
            .map(|run| (run[0], run.len()))
    }

    /// The program as a file: see `docs/isa.md` for the layout.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ProgramError> {
        self.check_tables()?;
        let mut out = Vec::with_capacity(self.instructions.len() * 16 + self.data.len() + 1024);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 8]);
        out.extend(self.machine.to_le_bytes());
        out.extend(self.dram_bytes.to_le_bytes());
        out.extend(self.n_channels.to_le_bytes());
        let count = |out: &mut Vec<u8>, what: &str, n: usize| {
            check_limit(|| format!("number of {what}"), n as u64, 0, u32::MAX.into())?;
            out.extend((n as u32).to_le_bytes());
            Ok(())
        };
        count(&mut out, "instructions", self.instructions.len())?;
        count(&mut out, "layers", self.layers.len())?;
        count(&mut out, "layer runs", self.runs().count())?;
        count(&mut out, "tensors", self.tensors.len())?;
        out.extend((self.data.len() as u64).to_le_bytes());
        for (index, instruction) in self.instructions.iter().enumerate() {
            let bytes = instruction
                .encode()
                .map_err(|source| ProgramError::Instruction { index, source })?;
            out.extend(bytes);
        }
        for layer in &self.layers {
            count(&mut out, "bytes of a layer's name", layer.name.len())?;
            out.extend(layer.name.as_bytes());
            out.extend(layer.n_macs.to_le_bytes());
            out.extend(layer.first_channel.to_le_bytes());
            out.extend(layer.n_channels.to_le_bytes());
        }
        for (layer, n) in self.runs() {
            out.extend(layer.to_le_bytes());
            count(&mut out, "instructions of a layer", n)?;
        }
        for tensor in &self.tensors {
            count(&mut out, "bytes of a tensor's name", tensor.name.len())?;
            out.extend(tensor.name.as_bytes());
            out.extend([tensor.role as u8, tensor.storage_bits, tensor.signed.into()]);
            for number in tensor.numbers() {
                out.extend(number.to_le_bytes());
            }
        }
        out.extend(&self.data);
        let checksum = checksum(&out).to_le_bytes();
        out[CHECKSUM_AT..BODY_AT].copy_from_slice(&checksum);
        Ok(out)
    }

    /// The program of a file.
    ///
    /// # Errors
    /// Another format, a damaged file, or as [`Self::check`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProgramError> {
        let mut reader = Reader {
            rest: bytes,
            section: "header",
        };
        if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
            return Err(ProgramError::Magic);
        }
        reader.take(MAGIC.len() as u64)?;
        let found = reader.u32()?;
        if found != VERSION {
            return Err(ProgramError::Version { found });
        }
        let stored = reader.u64()?;
        let computed = checksum(bytes);
        if stored != computed {
            return Err(ProgramError::Checksum { stored, computed });
        }
        let mut program = Self {
            machine: reader.u64()?,
            dram_bytes: reader.u64()?,
            n_channels: reader.u32()?,
            ..Self::default()
        };
        let [n_instructions, n_layers, n_runs, n_tensors] =
            [reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?];
        let n_data = reader.u64()?;
        reader.section = "instructions";
        for (index, chunk) in reader
            .take(u64::from(n_instructions) * 16)?
            .as_chunks()
            .0
            .iter()
            .enumerate()
        {
            let instruction = Instruction::decode(chunk)
                .map_err(|source| ProgramError::Instruction { index, source })?;
            program.instructions.push(instruction);
        }
        reader.section = "layers";
        for index in 0..n_layers as usize {
            program.layers.push(LayerInfo {
                name: reader.name("layer", index)?,
                n_macs: reader.u64()?,
                first_channel: reader.u32()?,
                n_channels: reader.u32()?,
            });
        }
        reader.section = "layer runs";
        program.layer_of = reader.runs(n_runs, program.instructions.len())?;
        reader.section = "tensors";
        for index in 0..n_tensors as usize {
            let tensor = reader.tensor(index)?;
            program.tensors.push(tensor);
        }
        reader.section = "data";
        program.data = reader.take(n_data)?.to_vec();
        if !reader.rest.is_empty() {
            return Err(ProgramError::Trailing {
                n_bytes: reader.rest.len(),
            });
        }
        program.check_tables()?;
        Ok(program)
    }
}

impl Placement {
    /// The 32-bit numbers in the order of the file.
    fn numbers(&self) -> [u32; 5] {
        [
            self.address,
            self.channels,
            self.height,
            self.width,
            self.pixel_bytes,
        ]
    }

    /// Whether it has an extent, elements that exist, and an end within the program's DRAM.
    fn check(&self, dram_bytes: u64) -> Result<(), ProgramError> {
        let name = |what: &str| format!("tensor {:?}: {what}", self.name);
        for (what, value) in [
            ("channels", self.channels),
            ("height", self.height),
            ("width", self.width),
        ] {
            check_limit(|| name(what), value.into(), 1, u32::MAX.into())?;
        }
        if ![4, 8, 16].contains(&self.storage_bits) {
            let what = name("storage_bits (4, 8 or 16)");
            return Err(ProgramError::Limit {
                what,
                value: self.storage_bits.into(),
                min: 4,
                max: 16,
            });
        }
        let bytes = (u64::from(self.channels) * u64::from(self.storage_bits)).div_ceil(8);
        check_limit(
            || name("pixel_bytes"),
            self.pixel_bytes.into(),
            bytes,
            u32::MAX.into(),
        )?;
        let end = u128::from(self.height) * u128::from(self.width) * u128::from(self.pixel_bytes)
            + u128::from(self.address);
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        check_limit(|| name("end in DRAM"), end, 0, dram_bytes)
    }
}

/// xxh3-64 of everything but the checksum itself.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&bytes[..CHECKSUM_AT.min(bytes.len())]);
    hash.update(bytes.get(BODY_AT..).unwrap_or_default());
    hash.digest()
}

/// Walks over the bytes; `section` is named in errors.
struct Reader<'a> {
    rest: &'a [u8],
    section: &'static str,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8], ProgramError> {
        let taken = usize::try_from(n)
            .ok()
            .and_then(|n| self.rest.split_at_checked(n));
        let (taken, rest) = taken.ok_or(ProgramError::Truncated {
            section: self.section,
            needed: n,
            available: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProgramError> {
        let taken = self.take(N as u64)?;
        Ok(taken
            .try_into()
            .expect("took as many bytes as the array has"))
    }

    fn u32(&mut self) -> Result<u32, ProgramError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ProgramError> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self, section: &'static str, index: usize) -> Result<String, ProgramError> {
        let n = self.u32()?;
        let bytes = self.take(n.into())?.to_vec();
        String::from_utf8(bytes).map_err(|_| ProgramError::Name { section, index })
    }

    /// The layer of each instruction; the runs must add up to `n_instructions`.
    fn runs(&mut self, n_runs: u32, n_instructions: usize) -> Result<Vec<u32>, ProgramError> {
        let mut layer_of = Vec::new();
        for index in 0..n_runs as usize {
            let (layer, n) = (self.u32()?, self.u32()?);
            if n == 0 || layer_of.last() == Some(&layer) {
                return Err(ProgramError::Run { index });
            }
            let n_layers = layer_of.len() as u64 + u64::from(n);
            if n_layers > n_instructions as u64 {
                return Err(ProgramError::LayerOf {
                    n_layers,
                    n_instructions,
                });
            }
            layer_of.extend(std::iter::repeat_n(layer, n as usize));
        }
        Ok(layer_of)
    }

    fn tensor(&mut self, index: usize) -> Result<Placement, ProgramError> {
        let name = self.name("tensor", index)?;
        let [role, storage_bits, signed] = self.array()?;
        for (what, value, max) in [("role", role, 2), ("signed", signed, 1)] {
            check_limit(|| format!("tensor {name:?}: {what}"), value.into(), 0, max)?;
        }
        Ok(Placement {
            name,
            role: Role::ALL[usize::from(role)],
            address: self.u32()?,
            channels: self.u32()?,
            height: self.u32()?,
            width: self.u32()?,
            pixel_bytes: self.u32()?,
            storage_bits,
            signed: signed == 1,
        })
    }
}
