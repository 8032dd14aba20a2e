//! Waveforms of the stepped model in the formats of waveform viewers: FST and VCD.
//!
//! Invariant: the bytes depend on machine, program, data and window only; no date stands in them.
//! Cycle `t` begins at time `t` ns, whatever the machine's clock: there `clk` rises and every signal
//! has its value of the cycle; at half past `clk` falls.

mod fst;
mod vcd;

use accelerator::stepped::{Observer, Signal, Value};
use std::{
    io::{Seek, Write},
    ops::Range,
};

/// Time units of a cycle.
const CYCLE: u64 = 10;
/// Units of time: 10⁻¹⁰ s, so that a cycle is shown as 1 ns.
const UNIT_EXPONENT: i8 = -10;
/// What wrote the file.
const VERSION: &str = concat!("systole ", env!("CARGO_PKG_VERSION"));
/// The clock, in the scope of the machine.
const CLOCK: &str = "systole.clk";

/// How the file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Compressed, binary: what `GTKWave` and Surfer open fastest.
    Fst,
    /// Text: every tool, large files.
    Vcd,
}

impl Format {
    /// The format that a file name's extension asks for.
    pub fn of_extension(extension: &str) -> Option<Self> {
        match extension {
            "fst" => Some(Self::Fst),
            "vcd" => Some(Self::Vcd),
            _ => None,
        }
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The FST library.
    #[error(transparent)]
    Fst(fst_writer::FstWriteError),
    /// The run was over before.
    #[error("the run ends before cycle {from}")]
    Empty {
        /// First cycle of the window.
        from: u64,
    },
}

impl From<fst_writer::FstWriteError> for Error {
    fn from(error: fst_writer::FstWriteError) -> Self {
        match error {
            fst_writer::FstWriteError::Io(error) => Self::Io(error),
            error => Self::Fst(error),
        }
    }
}

/// A file format's side: declarations first, then changes, in order of time.
trait Sink: Sized {
    type Out;
    fn open(out: Self::Out, signals: &[Signal], from: u64) -> Result<Self, Error>;
    fn time(&mut self, time: u64) -> Result<(), Error>;
    fn change(&mut self, signal: usize, text: &[u8]) -> Result<(), Error>;
    fn close(self) -> Result<(), Error>;
}

/// An observer that writes a waveform.
pub struct Waves<W: Write + Seek> {
    window: Range<u64>,
    format: Format,
    state: State<W>,
    /// The clock, then those of the model.
    signals: Vec<Signal>,
    before: Vec<Option<Value>>,
    error: Option<Error>,
}

enum State<W: Write + Seek> {
    Waiting(W),
    Fst(Box<fst::Fst<W>>),
    Vcd(vcd::Vcd<W>),
    Failed,
}

impl<W: Write + Seek> Waves<W> {
    /// A waveform of the cycles of `window`.
    pub fn new(out: W, format: Format, window: Range<u64>) -> Self {
        Self {
            window,
            format,
            state: State::Waiting(out),
            signals: Vec::new(),
            before: Vec::new(),
            error: None,
        }
    }

    /// The cycles that are wanted.
    pub fn window(&self) -> Range<u64> {
        self.window.clone()
    }

    /// Ends the file.
    ///
    /// # Errors
    /// The file could not be written, or no cycle of the window was seen.
    pub fn finish(self) -> Result<(), Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        match self.state {
            State::Fst(fst) => fst.close(),
            State::Vcd(vcd) => vcd.close(),
            State::Waiting(_) | State::Failed => Err(Error::Empty {
                from: self.window.start,
            }),
        }
    }

    fn open(&mut self) -> Result<(), Error> {
        let State::Waiting(out) = std::mem::replace(&mut self.state, State::Failed) else {
            return Ok(());
        };
        let from = self.window.start * CYCLE;
        self.state = match self.format {
            Format::Fst => State::Fst(Box::new(fst::Fst::open(out, &self.signals, from)?)),
            Format::Vcd => State::Vcd(vcd::Vcd::open(out, &self.signals, from)?),
        };
        Ok(())
    }

    fn write(&mut self, cycle: u64, values: &[Value]) -> Result<(), Error> {
        match &mut self.state {
            State::Fst(fst) => write(&mut **fst, &self.signals, &mut self.before, cycle, values),
            State::Vcd(vcd) => write(vcd, &self.signals, &mut self.before, cycle, values),
            State::Waiting(_) | State::Failed => Ok(()),
        }
    }

    /// After an error nothing is written any more.
    fn keep(&mut self, result: Result<(), Error>) {
        if let Err(error) = result {
            self.state = State::Failed;
            self.error = Some(error);
        }
    }
}

impl<W: Write + Seek> Observer for Waves<W> {
    fn signals(&mut self, signals: &[Signal]) {
        let clock = Signal {
            name: CLOCK.to_owned(),
            width: 1,
        };
        self.signals = std::iter::once(clock)
            .chain(signals.iter().cloned())
            .collect();
        self.before = vec![None; signals.len()];
        let result = self.open();
        self.keep(result);
    }

    fn cycle(&mut self, cycle: u64, values: &[Value]) {
        let result = self.write(cycle, values);
        self.keep(result);
    }
}

/// What has changed in a cycle.
fn write<S: Sink>(
    sink: &mut S,
    signals: &[Signal],
    before: &mut [Option<Value>],
    cycle: u64,
    values: &[Value],
) -> Result<(), Error> {
    let mut text = [0; 64];
    sink.time(cycle * CYCLE)?;
    sink.change(0, b"1")?;
    for (index, (value, before)) in values.iter().zip(before).enumerate() {
        if before.replace(*value) != Some(*value) {
            let text = &mut text[..signals[index + 1].width as usize];
            digits(*value, text);
            sink.change(index + 1, text)?;
        }
    }
    sink.time(cycle * CYCLE + CYCLE / 2)?;
    sink.change(0, b"0")
}

/// A value's bits as characters, the highest first.
fn digits(value: Value, text: &mut [u8]) {
    for (place, digit) in text.iter_mut().rev().enumerate() {
        *digit = match (value.known >> place & 1, value.bits >> place & 1) {
            (0, _) => b'x',
            (_, 0) => b'0',
            _ => b'1',
        };
    }
}

/// A step of the walk through the signals' scopes.
enum Step<'a> {
    /// Into a scope.
    Down(&'a str),
    /// Out of it.
    Up,
    /// A signal: name, width.
    Signal(&'a str, u32),
}

/// Visits signals in their order; neighbours share the scopes that they have in common.
fn walk(
    signals: &[Signal],
    mut visit: impl FnMut(Step<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut open: Vec<&str> = Vec::new();
    for signal in signals {
        let mut scopes: Vec<&str> = signal.name.split('.').collect();
        let name = scopes.pop().unwrap_or_default();
        let common = open.iter().zip(&scopes).take_while(|(a, b)| a == b).count();
        while open.len() > common {
            open.pop();
            visit(Step::Up)?;
        }
        for scope in &scopes[common..] {
            open.push(scope);
            visit(Step::Down(scope))?;
        }
        visit(Step::Signal(name, signal.width))?;
    }
    for _ in open {
        visit(Step::Up)?;
    }
    Ok(())
}
