//! The on-chip memories and the DRAM: read in the cycle, written at its end.
//!
//! Invariant: nothing changes during a cycle; every [`Write`] of a cycle takes effect together, in
//! [`Memories::commit`]. Every index is checked, whatever the rules have promised.

use super::{pe::Accumulator, sums::Sums};
use crate::{Action, Config, Counts, FaultKind};
use std::cell::Cell;

/// Bytes of a parameter table entry.
pub(crate) const ENTRY_BYTES: u64 = 8;

/// A memory that the load DMA can fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Feature maps.
    Activation,
    /// Weight lines.
    Weight,
    /// Bias and requantization of output channels.
    Parameter,
    /// Main memory.
    Dram,
}

/// Most bytes of one request; words of the bus that are wider are several.
pub(crate) const WIDEST: usize = 16;

/// One write port's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Whole bytes, the first `n` of these.
    Bytes {
        memory: Memory,
        address: u64,
        values: [u8; WIDEST],
        n: usize,
    },
    /// Half a byte of the activation scratchpad.
    Nibble { address: u64, high: bool, value: u8 },
    /// A sum for an accumulator block, with its record.
    Block {
        block: usize,
        row: usize,
        column: usize,
        value: Accumulator,
    },
}

/// Element of a feature map: where its bits are, and how they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// First byte of the pixel.
    pub pixel: u64,
    /// Channel inside the pixel.
    pub channel: u64,
    /// 8 bits, else 4.
    pub wide: bool,
    /// Two's complement.
    pub signed: bool,
}

/// A parameter table entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub bias_mantissa: i16,
    pub bias_shift: u8,
    pub mantissa: u8,
    pub shift: u8,
}

/// Contents of all memories.
#[derive(Debug)]
pub(crate) struct Memories<'a> {
    pub dram: &'a mut [u8],
    pub activations: Vec<u8>,
    pub weights: Vec<u8>,
    pub parameters: Vec<u8>,
    /// Accumulator blocks, each `block_rows × cols`.
    pub blocks: Vec<Sums>,
    /// What the ports have done, for energy.
    counts: [Cell<u64>; Action::COUNT],
}

impl<'a> Memories<'a> {
    pub fn new(config: &Config, dram: &'a mut [u8]) -> Self {
        let block = Sums::new(config.block_rows as usize, config.cols as usize);
        Self {
            dram,
            activations: vec![0; config.activation_bytes as usize],
            weights: vec![0; config.weight_bytes as usize],
            parameters: vec![0; config.n_parameters as usize * ENTRY_BYTES as usize],
            blocks: vec![block; config.n_blocks as usize],
            counts: Default::default(),
        }
    }

    /// What the ports have done.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for action in Action::ALL {
            counts[action] = self.counts[action as usize].get();
        }
        counts
    }

    fn count(&self, action: Action, n: u64) {
        let count = &self.counts[action as usize];
        count.set(count.get() + n);
    }

    /// Half bytes that read ports give.
    pub fn count_nibbles(&self, memory: Memory, nibbles: u64) {
        match memory {
            Memory::Activation => self.count(Action::ActivationRead, nibbles),
            Memory::Weight => self.count(Action::WeightRead, nibbles),
            // The parameter table is read by entries, DRAM by bus words.
            Memory::Parameter | Memory::Dram => {}
        }
    }

    /// Reads the byte at an address.
    pub fn byte(&self, memory: Memory, address: u64) -> Result<u8, FaultKind> {
        self.count_nibbles(memory, 2);
        self.look(memory, address)
    }

    /// Reads the bytes from an address on; nothing is counted where one of them does not exist.
    pub fn read(&self, memory: Memory, address: u64, to: &mut [u8]) -> Result<(), FaultKind> {
        let from = self.span(memory, address, to.len())?;
        to.copy_from_slice(from);
        self.count_nibbles(memory, 2 * to.len() as u64);
        Ok(())
    }

    fn look(&self, memory: Memory, address: u64) -> Result<u8, FaultKind> {
        self.span(memory, address, 1).map(|bytes| bytes[0])
    }

    /// Some bytes, or the first that does not exist.
    #[inline]
    fn span(&self, memory: Memory, address: u64, n: usize) -> Result<&[u8], FaultKind> {
        let (bytes, name): (&[u8], _) = match memory {
            Memory::Activation => (&self.activations, "the activation scratchpad"),
            Memory::Weight => (&self.weights, "the weight scratchpad"),
            Memory::Parameter => (&self.parameters, "the parameter table"),
            Memory::Dram => (self.dram, "DRAM"),
        };
        let from = usize::try_from(address).unwrap_or(usize::MAX);
        let found = bytes.get(from..from.saturating_add(n));
        found.ok_or(FaultKind::OutsideMemory {
            address: address.max(bytes.len() as u64),
            memory: name,
            size: bytes.len() as u64,
        })
    }

    /// A byte of the activation scratchpad, whose nibbles the caller counts.
    pub fn activation(&self, address: u64) -> Result<u8, FaultKind> {
        self.look(Memory::Activation, address)
    }

    /// `n` bytes of the weight scratchpad, whose nibbles the caller counts.
    pub fn weights(&self, address: u64, n: u64) -> Result<&[u8], FaultKind> {
        self.span(
            Memory::Weight,
            address,
            usize::try_from(n).unwrap_or(usize::MAX),
        )
    }

    /// The low or high half of a byte.
    #[inline]
    pub fn nibble(&self, memory: Memory, address: u64, high: bool) -> Result<u8, FaultKind> {
        self.count_nibbles(memory, 1);
        let byte = self.look(memory, address)?;
        Ok(if high { byte >> 4 } else { byte & 15 })
    }

    /// The bits of a feature map's element, not yet extended; of a wide one one half.
    #[inline]
    pub fn half_element(&self, element: Element, high: bool) -> Result<u8, FaultKind> {
        if element.wide {
            return self.nibble(Memory::Activation, element.pixel + element.channel, high);
        }
        self.raw_element(element)
    }

    /// The bits of a feature map's element, not yet extended.
    #[inline]
    fn raw_element(&self, element: Element) -> Result<u8, FaultKind> {
        if element.wide {
            return self.byte(Memory::Activation, element.pixel + element.channel);
        }
        let address = element.pixel + element.channel / 2;
        self.nibble(Memory::Activation, address, element.channel % 2 == 1)
    }

    /// The value of a feature map's element.
    #[inline]
    pub fn element(&self, element: Element) -> Result<i64, FaultKind> {
        let raw = i64::from(self.raw_element(element)?);
        let span = if element.wide { 256 } else { 16 };
        Ok(if element.signed && raw >= span / 2 {
            raw - span
        } else {
            raw
        })
    }

    /// Reads an entry of the parameter table.
    #[inline]
    pub fn parameter(&self, entry: u64) -> Result<Parameter, FaultKind> {
        self.count(Action::ParameterRead, 1);
        self.held_parameter(entry)
    }

    /// An entry of the parameter table that was read before and is still held.
    pub fn held_parameter(&self, entry: u64) -> Result<Parameter, FaultKind> {
        let found = usize::try_from(entry).ok().and_then(|entry| {
            let from = entry.checked_mul(ENTRY_BYTES as usize)?;
            self.parameters.get(from..)?.first_chunk()
        });
        let Some(&[low, high, bias_shift, mantissa, shift]) = found else {
            return Err(FaultKind::OutsideMemory {
                address: entry,
                memory: "the parameter table",
                size: self.parameters.len() as u64 / ENTRY_BYTES,
            });
        };
        Ok(Parameter {
            bias_mantissa: i16::from_le_bytes([low, high]),
            bias_shift,
            mantissa,
            shift,
        })
    }

    /// An entry of an accumulator block.
    pub fn entry(&self, block: u32, row: u32, column: u32) -> Result<Accumulator, FaultKind> {
        let block = self.rows_of(block, row)?;
        Ok(block.get(row as usize, column as usize))
    }

    /// What the accumulator of an entry holds.
    #[inline]
    pub fn sum(&self, block: u32, (row, column): (u32, u32)) -> Result<i32, FaultKind> {
        let block = self.rows_of(block, row)?;
        Ok(block.acc(row as usize, column as usize))
    }

    /// A block that has this row, of which an entry is read.
    fn rows_of(&self, block: u32, row: u32) -> Result<&Sums, FaultKind> {
        self.count_entries(1);
        let found = self.blocks.get(block as usize);
        let found = found.filter(|block| (row as usize) < block.n_rows());
        found.ok_or_else(|| FaultKind::OutsideMemory {
            address: row.into(),
            memory: "the accumulator block",
            size: self.blocks.first().map_or(0, |block| block.n_rows() as u64),
        })
    }

    /// Entries of accumulator blocks that are read or written.
    pub fn count_entries(&self, n: u64) {
        self.count(Action::Block, n);
    }

    /// Whether bytes exist, so that [`Self::commit`] will find them.
    pub fn check(&self, memory: Memory, address: u64, n: usize) -> Result<(), FaultKind> {
        self.span(memory, address, n).map(|_| ())
    }

    /// The clock edge: every write of the cycle.
    pub fn commit(&mut self, writes: &mut Vec<Write>) {
        for write in writes.drain(..) {
            match write {
                Write::Bytes {
                    memory,
                    address,
                    values,
                    n,
                } => {
                    let bytes = match memory {
                        Memory::Activation => {
                            self.count(Action::ActivationWrite, 2 * n as u64);
                            &mut self.activations[..]
                        }
                        Memory::Weight => {
                            self.count(Action::WeightWrite, 2 * n as u64);
                            &mut self.weights[..]
                        }
                        Memory::Parameter => {
                            self.count(Action::ParameterWrite, n as u64);
                            &mut self.parameters[..]
                        }
                        Memory::Dram => &mut *self.dram,
                    };
                    bytes[address as usize..][..n].copy_from_slice(&values[..n]);
                }
                Write::Nibble {
                    address,
                    high,
                    value,
                } => {
                    self.count(Action::ActivationWrite, 1);
                    let byte = &mut self.activations[address as usize];
                    *byte = if high {
                        (*byte & 0x0F) | ((value & 15) << 4)
                    } else {
                        (*byte & 0xF0) | (value & 15)
                    };
                }
                Write::Block {
                    block,
                    row,
                    column,
                    value,
                } => {
                    self.count_entries(1);
                    self.blocks[block].set(row, column, &value);
                }
            }
        }
    }
}
