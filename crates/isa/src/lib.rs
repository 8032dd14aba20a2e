//! The instruction set of the accelerator: instructions, their bits, their text, and whole programs.
//!
//! Invariant: every form of an instruction (struct, 16 bytes, line of text, row of `docs/isa.md`)
//! follows from the one list in `ops.rs`; what one form can say, each can say, and no more.

mod assembler;
mod instruction;
mod ops;
mod program;
mod table;
mod text;
mod tokens;
mod unit;

pub use assembler::{Problem, TextError};
pub use instruction::{
    DecodeError, Depthwise, Destination, EncodeError, Fence, Field, Filter, Input, Instruction,
    InstructionError, Kernel, Load, LoadPitch, Matmul, OPS, Op, OpInfo, Pool, Preload, Requantize,
    Residual, Slope, Source, Store, StorePitch, Stream, Window,
};
pub use program::{LayerInfo, Placement, Program, ProgramError, Role};
pub use table::markdown_table;
pub use tokens::{TokenError, check_tokens};
pub use unit::{Unit, Units};
