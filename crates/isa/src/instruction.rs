//! Instructions: one struct for each line of the list, and their 128 bits.
//!
//! Invariant: `decode` accepts exactly the bytes that `encode` gives; each instruction has one
//! encoding, each encoding one instruction.

use crate::ops::for_each_op;
use crate::{Unit, Units};
use bitvec::{array::BitArray, field::BitField, order::Lsb0};
use std::fmt;
use thiserror::Error;

/// Opcode, wait mask and signal mask: the bits before the first operand field.
pub(crate) const HEADER_BITS: usize = 14;

/// One operand field of an instruction, as the list declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name in the struct and in text.
    pub name: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// Bits that it takes.
    pub width_bits: usize,
    /// Smallest value allowed.
    pub min: i64,
    /// Largest value allowed.
    pub max: i64,
    /// Whether the bits are two's complement.
    pub signed: bool,
}

/// One line of the list: everything that is known of a kind of instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpInfo {
    /// Name in text.
    pub mnemonic: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// The first six bits.
    pub opcode: u8,
    /// Who executes it.
    pub unit: Unit,
    /// Operands in the order of their bits.
    pub fields: &'static [Field],
}

/// What the width, the type and the list's `min` or `max` leave of a field.
const fn limit(bits: usize, signed: bool, min: Option<i64>, max: Option<i64>) -> (i64, i64) {
    let (low, high) = if signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    };
    let low = if let Some(min) = min { min } else { low };
    let high = if let Some(max) = max { max } else { high };
    (low, high)
}

/// `Some(value)` when the list gives one.
macro_rules! optional {
    () => {
        None
    };
    ($value:literal) => {
        Some($value)
    };
}

macro_rules! define_ops {
    ($(
        $(#[doc = $doc:literal])*
        ($mnemonic:literal, $Op:ident, $opcode:literal, $unit:ident, { $(
            $(#[doc = $field_doc:literal])*
            $field:ident: $ty:ident = $width:literal $(min $min:literal)? $(max $max:literal)?,
        )* }),
    )*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
            pub struct $Op {
                $($(#[doc = $field_doc])* pub $field: $ty,)*
            }

            impl $Op {
                /// Its line of the list.
                pub const INFO: OpInfo = OpInfo {
                    mnemonic: $mnemonic,
                    doc: concat!($($doc),*).trim_ascii(),
                    opcode: $opcode,
                    unit: Unit::$unit,
                    fields: &[$({
                        const SIGNED: bool = $ty::MIN != 0;
                        const LIMIT: (i64, i64) =
                            limit($width, SIGNED, optional!($($min)?), optional!($($max)?));
                        Field {
                            name: stringify!($field),
                            doc: concat!($($field_doc),*).trim_ascii(),
                            width_bits: $width,
                            min: LIMIT.0,
                            max: LIMIT.1,
                            signed: SIGNED,
                        }
                    }),*],
                };
            }

            const _: () = {
                const USED_BITS: usize = HEADER_BITS $(+ $width)*;
                assert!(USED_BITS <= 128, "the fields do not fit");
            };

            impl From<$Op> for Op {
                fn from(op: $Op) -> Self {
                    Self::$Op(op)
                }
            }
        )*

        /// The list: every kind of instruction in the order of its opcode.
        pub const OPS: &[OpInfo] = &[$($Op::INFO),*];

        /// What an instruction does, with its operands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op {
            $($(#[doc = $doc])* $Op($Op),)*
        }

        impl Op {
            /// Its line of the list.
            #[inline]
            pub const fn info(&self) -> &'static OpInfo {
                match self {
                    $(Self::$Op(_) => &$Op::INFO,)*
                }
            }

            /// Every operand within its limits.
            fn check_fields(&self) -> Result<(), InstructionError> {
                match *self {
                    $(Self::$Op($Op { $($field),* }) => {
                        check_values(&$Op::INFO, &[$(i64::from($field)),*])
                    })*
                }
            }

            /// The operands in the order of the list.
            pub fn values(&self) -> Vec<i64> {
                match *self {
                    $(Self::$Op($Op { $($field),* }) => vec![$(i64::from($field)),*],)*
                }
            }

            /// The instruction of this line of the list with these operands, one for each field.
            ///
            /// # Errors
            /// A value outside its field's limits, or an `info` that is not in the list.
            pub(crate) fn from_values(
                info: &OpInfo,
                values: &[i64],
            ) -> Result<Self, InstructionError> {
                check_values(info, values)?;
                let mut values = values.iter().copied();
                match info.opcode {
                    $($opcode => Ok(Self::$Op($Op {
                        $($field: values
                            .next()
                            .and_then(|value| $ty::try_from(value).ok())
                            .expect("a checked value for each field"),)*
                    })),)*
                    opcode => Err(InstructionError::UnknownOpcode { opcode }),
                }
            }
        }
    };
}
for_each_op!(define_ops);

impl Op {
    /// Who executes it.
    #[inline]
    pub const fn unit(&self) -> Unit {
        self.info().unit
    }

    /// Its name in text.
    pub const fn mnemonic(&self) -> &'static str {
        self.info().mnemonic
    }

    /// Whether it may push tokens: it ends at a moment that others have to wait for.
    pub const fn may_signal(&self) -> bool {
        self.info().may_signal()
    }
}

impl OpInfo {
    /// Whether such instructions may push tokens.
    pub const fn may_signal(&self) -> bool {
        matches!(
            self.opcode,
            Load::INFO_OPCODE
                | Store::INFO_OPCODE
                | Matmul::INFO_OPCODE
                | Stream::INFO_OPCODE
                | Requantize::INFO_OPCODE
                | Pool::INFO_OPCODE
                | Depthwise::INFO_OPCODE
        )
    }
}

/// Patterns cannot reach into a constant, so the opcodes that `may_signal` needs have a name.
macro_rules! name_opcodes {
    ($($Op:ident)*) => { $(impl $Op { const INFO_OPCODE: u8 = Self::INFO.opcode; })* };
}
name_opcodes!(Load Store Matmul Stream Requantize Pool Depthwise);

/// One instruction: what it does, and the tokens that it takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// Units of which it takes a token when it starts.
    pub wait: Units,
    /// Units to which it gives a token when it ends.
    pub signal: Units,
}

/// What is wrong with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InstructionError {
    /// A field's value does not fit.
    #[error("{mnemonic}: {field} = {value}: must be {min} to {max}")]
    Field {
        /// The instruction.
        mnemonic: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
        /// Smallest value allowed.
        min: i64,
        /// Largest value allowed.
        max: i64,
    },
    /// Not in the list.
    #[error("unknown opcode {opcode}")]
    UnknownOpcode {
        /// The six bits.
        opcode: u8,
    },
    /// Bits that mean nothing are not zero.
    #[error("{mnemonic}: bits {first_bit} to 127 are reserved and must be 0")]
    Reserved {
        /// The instruction.
        mnemonic: &'static str,
        /// The first bit behind the fields.
        first_bit: usize,
    },
    /// A unit waits for or signals itself.
    #[error("{mnemonic}: {mask} names its own unit, {unit}")]
    OwnUnit {
        /// The instruction.
        mnemonic: &'static str,
        /// `wait` or `signal`.
        mask: &'static str,
        /// The unit.
        unit: Unit,
    },
    /// The frontend has no tokens.
    #[error("{mnemonic}: {mask} names {units}, but it cannot take or give tokens")]
    Frontend {
        /// The instruction.
        mnemonic: &'static str,
        /// `wait` or `signal`.
        mask: &'static str,
        /// The units named.
        units: Units,
    },
    /// Only instructions that move or compute data signal.
    #[error(
        "{mnemonic}: signal names {units}, but only instructions that move or compute data may"
    )]
    MayNotSignal {
        /// The instruction.
        mnemonic: &'static str,
        /// The units named.
        units: Units,
    },
}

/// Why an instruction has no encoding.
pub type EncodeError = InstructionError;
/// Why 16 bytes are no instruction.
pub type DecodeError = InstructionError;

/// Every value within its field's limits.
fn check_values(info: &OpInfo, values: &[i64]) -> Result<(), InstructionError> {
    for (field, &value) in info.fields.iter().zip(values) {
        if !(field.min..=field.max).contains(&value) {
            return Err(InstructionError::Field {
                mnemonic: info.mnemonic,
                field: field.name,
                value,
                min: field.min,
                max: field.max,
            });
        }
    }
    Ok(())
}

impl Instruction {
    /// An instruction without tokens.
    pub fn new(op: impl Into<Op>) -> Self {
        Self {
            op: op.into(),
            wait: Units::NONE,
            signal: Units::NONE,
        }
    }

    /// Whether the instruction has an encoding.
    ///
    /// # Errors
    /// A field outside its limits, or a token that it cannot take or give.
    pub fn check(&self) -> Result<(), InstructionError> {
        self.op.check_fields()?;
        self.check_masks()
    }

    fn check_masks(&self) -> Result<(), InstructionError> {
        let (mnemonic, unit) = (self.op.mnemonic(), self.op.unit());
        for (mask, units) in [("wait", self.wait), ("signal", self.signal)] {
            if unit == Unit::Frontend && !units.is_empty() {
                return Err(InstructionError::Frontend {
                    mnemonic,
                    mask,
                    units,
                });
            }
            if units.contains(unit) {
                return Err(InstructionError::OwnUnit {
                    mnemonic,
                    mask,
                    unit,
                });
            }
        }
        if !self.signal.is_empty() && !self.op.may_signal() {
            return Err(InstructionError::MayNotSignal {
                mnemonic,
                units: self.signal,
            });
        }
        Ok(())
    }

    /// The 128 bits, little endian: opcode, wait mask, signal mask, operands, zeros.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn encode(&self) -> Result<[u8; 16], EncodeError> {
        let (info, values) = (self.op.info(), self.op.values());
        check_values(info, &values)?;
        self.check_masks()?;
        let mut bits: BitArray<[u8; 16], Lsb0> = BitArray::ZERO;
        bits[0..6].store_le(info.opcode);
        bits[6..10].store_le(self.wait.bits());
        bits[10..HEADER_BITS].store_le(self.signal.bits());
        let mut position = HEADER_BITS;
        for (field, value) in info.fields.iter().zip(values) {
            bits[position..position + field.width_bits].store_le(value);
            position += field.width_bits;
        }
        Ok(bits.into_inner())
    }

    /// The instruction of 16 bytes.
    ///
    /// # Errors
    /// An unknown opcode, reserved bits that are not zero, or as [`Self::check`].
    pub fn decode(bytes: &[u8; 16]) -> Result<Self, DecodeError> {
        let bits: BitArray<[u8; 16], Lsb0> = BitArray::new(*bytes);
        let opcode = bits[0..6].load_le::<u8>();
        let info = OPS
            .iter()
            .find(|info| info.opcode == opcode)
            .ok_or(InstructionError::UnknownOpcode { opcode })?;
        let mut position = HEADER_BITS;
        let mut values = Vec::with_capacity(info.fields.len());
        for field in info.fields {
            let slice = &bits[position..position + field.width_bits];
            // An unsigned load of at most 32 bits always fits; a signed one extends the sign.
            let value = if field.signed {
                slice.load_le::<i64>()
            } else {
                slice.load_le::<u32>().into()
            };
            values.push(value);
            position += field.width_bits;
        }
        if bits[position..].any() {
            return Err(InstructionError::Reserved {
                mnemonic: info.mnemonic,
                first_bit: position,
            });
        }
        let instruction = Self {
            op: Op::from_values(info, &values)?,
            wait: Units::from_bits(bits[6..10].load_le()),
            signal: Units::from_bits(bits[10..HEADER_BITS].load_le()),
        };
        instruction.check_masks()?;
        Ok(instruction)
    }
}

/// As in the text of a program, without label and comment.
impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.op.mnemonic())?;
        for (field, value) in self.op.info().fields.iter().zip(self.op.values()) {
            write!(f, " {}={value}", field.name)?;
        }
        for (mask, units) in [("wait", self.wait), ("signal", self.signal)] {
            if !units.is_empty() {
                write!(f, " {mask}={units}")?;
            }
        }
        Ok(())
    }
}
