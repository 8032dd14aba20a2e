//! The sequencer of an output-stationary array: which matmul's operands are read, and when matmuls end.
//!
//! Invariant: one pass is read a cycle, from the cycle in which a matmul starts on.

use crate::stepped::array::{ActivationPort, Half, Tap, halves, initial_value, passes, set};
use crate::stepped::{
    Wires,
    memory::{Memories, Memory},
    pe::weighed,
};
use crate::{Config, FaultKind};
use isa::{Input, Kernel, Matmul, Op};
use std::collections::VecDeque;

/// The matmul whose operands are being read, and where its reading stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub index: usize,
    pub matmul: Matmul,
    pub input: Input,
    pub kernel: Kernel,
    /// Step of this matmul.
    pub step: u32,
    /// Pass of the step.
    pub pass: u32,
}

impl Stream {
    /// Passes that remain to be read.
    pub fn n_left(&self) -> u64 {
        u64::from(self.matmul.n_steps - self.step) * u64::from(passes(&self.input))
            - u64::from(self.pass)
    }

    /// Whether its step is a fold's last.
    pub fn ends_fold(&self) -> bool {
        self.matmul.last == 1 && self.step + 1 == self.matmul.n_steps
    }
}

/// A matmul whose end has not come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub index: usize,
    pub is_last: bool,
    /// Cycles until its end.
    pub left: u64,
}

/// What is read in a pass, weighed.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// One activation a row in use.
    pub activations: Vec<i32>,
    /// One weight a column in use.
    pub weights: Vec<i32>,
}

/// Its registers.
#[derive(Debug, Default)]
pub(crate) struct Sequencer {
    pub input: Option<Input>,
    pub kernel: Option<Kernel>,
    pub stream: Option<Stream>,
    pub tap: Tap,
    /// Initial values of the columns in use.
    pub initial: Vec<i32>,
    /// A `last` matmul must be at least this many passes long to start now.
    pub drain_gap: u64,
    pub running: VecDeque<Running>,
    /// The read port of each row in use.
    pub ports: Vec<ActivationPort>,
    /// Nibbles that they read in a pass; unknown until they are set to the tap.
    n_reads: Option<u64>,
}

impl Sequencer {
    /// Whether `op` may start in this cycle, when so many have not been counted yet.
    pub fn is_ready(&self, op: &Op, config: &Config, n_behind: u64) -> bool {
        let sums_are_kept = config.shadow || !self.running.iter().any(|matmul| matmul.is_last);
        let chain_is_free = match (op, &self.input) {
            (Op::Matmul(matmul), Some(input)) if matmul.last == 1 => {
                u64::from(matmul.n_steps) * u64::from(passes(input))
                    >= self.drain_gap.saturating_sub(n_behind)
            }
            _ => true,
        };
        self.stream.is_none() && sums_are_kept && chain_is_free
    }

    /// Takes an instruction.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn start(
        &mut self,
        index: usize,
        op: &Op,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) -> Result<(), FaultKind> {
        match *op {
            Op::Input(input) => self.input = Some(input),
            Op::Kernel(kernel) => self.kernel = Some(kernel),
            Op::Matmul(matmul) => return self.start_matmul(index, matmul, config, memories),
            ref other => unreachable!("{} is not for the array", other.mnemonic()),
        }
        wires.ended.push(index);
        Ok(())
    }

    fn start_matmul(
        &mut self,
        index: usize,
        matmul: Matmul,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let input = set("input", self.input)?;
        let kernel = set("kernel", self.kernel)?;
        if matmul.n_steps == 0 {
            let rule = "must be at least 1";
            return Err(FaultKind::Operand {
                field: "n_steps",
                value: 0,
                rule,
            });
        }
        if matmul.first == 1 {
            self.tap = Tap::default();
            self.initial.clear();
            for column in 0..=matmul.cols_minus_1 {
                let entry = memories.parameter(u64::from(matmul.parameter) + u64::from(column))?;
                self.initial
                    .push(initial_value(entry, config.arithmetic.accumulator)?);
            }
        }
        let rows_in_use = 0..=u64::from(matmul.rows_minus_1);
        let pixel = |row| (matmul.y, u64::from(matmul.x) + row);
        self.ports.clear();
        self.ports
            .extend(rows_in_use.map(|row| ActivationPort::new(&kernel, pixel(row))));
        self.n_reads = None;
        let stream = u64::from(matmul.n_steps) * u64::from(passes(&input));
        let (rows, cols) = (u64::from(config.rows), u64::from(config.cols));
        let is_last = matmul.last == 1;
        self.running.push_back(Running {
            index,
            is_last,
            left: stream + 2 * rows + cols - 1,
        });
        if is_last {
            self.drain_gap = stream + rows;
        }
        self.stream = Some(Stream {
            index,
            matmul,
            input,
            kernel,
            step: 0,
            pass: 0,
        });
        Ok(())
    }

    /// Whether the pass that is read begins a fold.
    pub fn has_initial(&self) -> bool {
        self.tap.k == 0 && !self.initial.is_empty()
    }

    /// Sets the ports to the tap's pixels, where they are not there yet; gives the nibbles that they read
    /// in a pass.
    pub fn set_ports(&mut self) -> u64 {
        let Some(stream) = &self.stream else {
            return 0;
        };
        let (ports, tap) = (&mut self.ports, &self.tap);
        *self.n_reads.get_or_insert_with(|| {
            for port in ports.iter_mut() {
                port.set(&stream.input, &stream.kernel, tap);
            }
            ports.iter().map(ActivationPort::n_reads).sum()
        })
    }

    /// Reads a pass.
    ///
    /// # Errors
    /// When an operand is outside its memory.
    pub fn read(
        &mut self,
        config: &Config,
        memories: &Memories<'_>,
        to: &mut Pass,
    ) -> Result<(), FaultKind> {
        memories.count_nibbles(Memory::Activation, self.set_ports());
        let Some(stream) = &self.stream else {
            return Ok(());
        };
        let (matmul, input) = (&stream.matmul, &stream.input);
        let (activation_high, weight_high) = halves(input, stream.pass);
        let half = Half::new(input, self.tap.channel, activation_high);
        to.activations.clear();
        for port in &self.ports {
            to.activations.push(half.under(port, memories)?);
        }
        let n_columns = matmul.cols_minus_1 + 1;
        let line = u64::from(matmul.weight_line)
            + u64::from(stream.step) * u64::from(1 + input.wide_weights)
            + u64::from(weight_high);
        let address = line * u64::from(config.line_bytes());
        let is_top = weight_high || input.wide_weights == 0;
        let bytes = memories.weights(address, u64::from(n_columns).div_ceil(2))?;
        memories.count_nibbles(Memory::Weight, n_columns.into());
        let halves = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
        let weighed = halves.map(|bits| weighed(bits, weight_high, is_top));
        to.weights.clear();
        to.weights.extend(weighed.take(n_columns as usize));
        Ok(())
    }

    /// The counters of pass, step and tap, channel fastest.
    pub fn advance(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        stream.pass += 1;
        if stream.pass < passes(&stream.input) {
            return;
        }
        stream.pass = 0;
        stream.step += 1;
        self.tap.advance(&stream.input, &stream.kernel);
        if self.tap.channel == 0 {
            // Along a pixel's channels the ports stay.
            self.n_reads = None;
        }
        if stream.step == stream.matmul.n_steps {
            self.stream = None;
        }
    }

    /// `n` steps of the same pixels, from the first pass of the first to the last of the last.
    pub fn advance_by(&mut self, n: u32) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        stream.step += n - 1;
        stream.pass = passes(&stream.input) - 1;
        self.tap.k += n - 1;
        self.tap.channel += n - 1;
        self.advance();
    }

    /// The matmuls that end after so many cycles.
    pub fn ending(&self, n_cycles: u64) -> impl Iterator<Item = usize> {
        let running = self.running.iter();
        let ending = running.filter(move |matmul| matmul.left == n_cycles);
        ending.map(|matmul| matmul.index)
    }

    /// Counts cycles, none of which is behind the end of a matmul.
    pub fn count_down(&mut self, n_cycles: u64) {
        self.drain_gap = self.drain_gap.saturating_sub(n_cycles);
        for matmul in &mut self.running {
            matmul.left -= n_cycles;
        }
        self.running.retain(|matmul| matmul.left > 0);
    }
}
