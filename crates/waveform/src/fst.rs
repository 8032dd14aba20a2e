//! The FST side.
//!
//! Invariant: as in the crate.

use crate::{Error, Sink, Step, UNIT_EXPONENT, VERSION, walk};
use accelerator::stepped::Signal;
use fst_writer::{
    FstBodyWriter, FstFileType, FstHeaderWriter, FstInfo, FstScopeType, FstSignalId, FstSignalType,
    FstVarDirection, FstVarType,
};
use std::io::{Seek, Write};

/// Changes are kept in memory up to about this size, then written as a block.
const BLOCK_BYTES: usize = 64 << 20;

pub(crate) struct Fst<W: Write + Seek> {
    body: FstBodyWriter<W>,
    ids: Vec<FstSignalId>,
}

impl<W: Write + Seek> Sink for Fst<W> {
    type Out = W;

    fn open(out: W, signals: &[Signal], from: u64) -> Result<Self, Error> {
        let info = FstInfo {
            start_time: from,
            timescale_exponent: UNIT_EXPONENT,
            version: VERSION.to_owned(),
            date: String::new(),
            file_type: FstFileType::Verilog,
        };
        let mut header = FstHeaderWriter::new(out, &info)?;
        let mut ids = Vec::with_capacity(signals.len());
        walk(signals, |step| {
            match step {
                Step::Down(scope) => header.scope(scope, "", FstScopeType::Module)?,
                Step::Up => header.up_scope()?,
                Step::Signal(name, width) => {
                    let name = match width {
                        1 => name.to_owned(),
                        _ => format!("{name} [{}:0]", width - 1),
                    };
                    ids.push(header.var(
                        name,
                        FstSignalType::bit_vec(width),
                        FstVarType::Wire,
                        FstVarDirection::Implicit,
                        None,
                    )?);
                }
            }
            Ok(())
        })?;
        let body = header.finish()?;
        Ok(Self { body, ids })
    }

    fn time(&mut self, time: u64) -> Result<(), Error> {
        if self.body.size() > BLOCK_BYTES {
            self.body.flush()?;
        }
        Ok(self.body.time_change(time)?)
    }

    fn change(&mut self, signal: usize, text: &[u8]) -> Result<(), Error> {
        Ok(self.body.signal_change(self.ids[signal], text)?)
    }

    fn close(self) -> Result<(), Error> {
        Ok(self.body.finish()?.flush()?)
    }
}
