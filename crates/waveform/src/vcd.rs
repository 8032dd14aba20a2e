//! The VCD side.
//!
//! Invariant: as in the crate.

use crate::{Error, Sink, Step, VERSION, walk};
use accelerator::stepped::Signal;
use std::io::{Seek, Write};
use vcd::{IdCode, ReferenceIndex, ScopeType, TimescaleUnit, Value, VarType, Writer};

pub(crate) struct Vcd<W: Write> {
    writer: Writer<W>,
    ids: Vec<IdCode>,
}

impl<W: Write + Seek> Sink for Vcd<W> {
    type Out = W;

    fn open(out: W, signals: &[Signal], _from: u64) -> Result<Self, Error> {
        let mut writer = Writer::new(out);
        writer.version(VERSION)?;
        writer.timescale(100, TimescaleUnit::PS)?;
        let mut ids = Vec::with_capacity(signals.len());
        walk(signals, |step| {
            match step {
                Step::Down(scope) => writer.scope_def(ScopeType::Module, scope)?,
                Step::Up => writer.upscope()?,
                Step::Signal(name, width) => {
                    let range = ReferenceIndex::Range(width as i32 - 1, 0);
                    let range = (width > 1).then_some(range);
                    ids.push(writer.add_var(VarType::Wire, width, name, range)?);
                }
            }
            Ok(())
        })?;
        writer.enddefinitions()?;
        Ok(Self { writer, ids })
    }

    fn time(&mut self, time: u64) -> Result<(), Error> {
        Ok(self.writer.timestamp(time)?)
    }

    fn change(&mut self, signal: usize, text: &[u8]) -> Result<(), Error> {
        let id = self.ids[signal];
        let value = |&digit: &u8| match digit {
            b'0' => Value::V0,
            b'1' => Value::V1,
            _ => Value::X,
        };
        match text {
            [digit] => self.writer.change_scalar(id, value(digit))?,
            text => self.writer.change_vector(id, text.iter().map(value))?,
        }
        Ok(())
    }

    fn close(mut self) -> Result<(), Error> {
        Ok(self.writer.flush()?)
    }
}
