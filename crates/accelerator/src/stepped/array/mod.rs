//! The PE array: one file for arrays whose sums stay, one for the same where nobody looks at their registers,
//! and one for those whose operands stay; here is what all read.
//!
//! Invariant: what moves from register to register moves one register a cycle.

mod landing;
mod output_stationary;
mod reach;
mod stationary;
mod steps;
mod unpack;

use super::{
    Wires,
    memory::{Memories, Memory, Parameter, Write},
    pe::weighed,
};
use crate::{Config, Counts, Dataflow, FaultKind};
use arith::{AccumulatorFormat, ChannelOverflow};
use isa::{Input, Kernel, Op};
pub(super) use output_stationary::OutputStationary;
pub(super) use stationary::{Held, PeView, Stationary, Sum, mark, planes};

/// The array.
#[derive(Debug)]
pub(crate) enum Array {
    /// Partial sums stay.
    Sums(OutputStationary),
    /// Weights or activations stay.
    Operands(Stationary),
    /// Partial sums stay, and nobody looks at registers.
    UnwatchedSums(output_stationary::Unwatched),
    /// Weights or activations stay, and nobody looks at registers.
    UnwatchedOperands(stationary::Unwatched),
}

impl Array {
    /// `is_observed`: somebody looks at every cycle.
    pub fn new(config: &Config, is_observed: bool) -> Self {
        match (config.dataflow, is_observed) {
            (Dataflow::OutputStationary, true) => Self::Sums(OutputStationary::new(config)),
            (Dataflow::OutputStationary, false) => {
                Self::UnwatchedSums(output_stationary::Unwatched::new(config))
            }
            (Dataflow::WeightStationary | Dataflow::InputStationary, true) => {
                Self::Operands(Stationary::new(config))
            }
            (Dataflow::WeightStationary | Dataflow::InputStationary, false) => {
                Self::UnwatchedOperands(stationary::Unwatched::new(config))
            }
        }
    }

    /// What the PEs and adders have done, for energy.
    pub fn counts(&self) -> Counts {
        match self {
            Self::Sums(array) => array.counts,
            Self::Operands(array) => array.counts,
            Self::UnwatchedSums(array) => array.counts,
            Self::UnwatchedOperands(array) => array.counts,
        }
    }

    /// Whether `op` may start in this cycle.
    pub fn is_ready(&self, op: &Op, config: &Config) -> bool {
        match self {
            Self::Sums(array) => array.sequencer.is_ready(op, config, 0),
            Self::Operands(array) => array.is_ready(op, config),
            Self::UnwatchedSums(array) => array.is_ready(op, config),
            Self::UnwatchedOperands(array) => array.is_ready(op),
        }
    }

    /// One cycle.
    pub fn step(
        &mut self,
        start: Option<(usize, Op)>,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) {
        match self {
            Self::Sums(array) => array.step(start, config, memories, wires),
            Self::Operands(array) => array.step(start, config, memories, wires),
            Self::UnwatchedSums(array) => array.step(start, config, memories, wires),
            Self::UnwatchedOperands(array) => array.step(start, config, memories, wires),
        }
    }

    /// Cycles from now on, up to an end and with it, in which it tells nobody anything and gets ready for
    /// nothing.
    pub fn n_alike(&self) -> u64 {
        match self {
            Self::Sums(_) | Self::Operands(_) => 0,
            Self::UnwatchedSums(array) => array.n_alike(),
            Self::UnwatchedOperands(array) => array.n_alike(),
        }
    }

    /// So many cycles, at most [`Self::n_alike`].
    pub fn pass(&mut self, n_cycles: u64, wires: &mut Wires) {
        match self {
            Self::Sums(_) | Self::Operands(_) => {}
            Self::UnwatchedSums(array) => array.pass(n_cycles, wires),
            Self::UnwatchedOperands(array) => array.pass(n_cycles, wires),
        }
    }

    /// What must have been done before a block is read.
    ///
    /// # Errors
    /// The instruction that cannot go on.
    pub fn before_reading(
        &mut self,
        block: u32,
        config: &Config,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) -> Result<(), (usize, FaultKind)> {
        match self {
            Self::Sums(_) | Self::Operands(_) => Ok(()),
            Self::UnwatchedSums(array) => {
                array.before_reading(block, config, memories, overflow);
                Ok(())
            }
            Self::UnwatchedOperands(array) => {
                array.before_reading(block, config, memories, overflow)
            }
        }
    }

    /// What must have been done before these writes take effect.
    ///
    /// # Errors
    /// The instruction that cannot go on.
    pub fn before_writing(
        &mut self,
        writes: &[Write],
        config: &Config,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) -> Result<(), (usize, FaultKind)> {
        match self {
            Self::UnwatchedSums(array) if array.must_catch_up(writes) => {
                array.catch_up(config, memories, overflow)
            }
            Self::UnwatchedOperands(array) if array.must_catch_up(writes) => {
                array.catch_up(writes, config, memories, overflow)
            }
            _ => Ok(()),
        }
    }
}

/// Position in the reduction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tap {
    pub k: u32,
    pub kernel_y: u32,
    pub kernel_x: u32,
    pub channel: u32,
}

impl Tap {
    /// The next step: channel fastest, then the kernel's column.
    fn advance(&mut self, input: &Input, kernel: &Kernel) {
        self.k += 1;
        self.channel += 1;
        if self.channel == input.n_channels {
            self.channel = 0;
            self.kernel_x += 1;
        }
        if self.kernel_x == kernel.width {
            self.kernel_x = 0;
            self.kernel_y += 1;
        }
    }
}

/// Cycles of a product.
pub(super) fn passes(input: &Input) -> u32 {
    (1 + input.wide_activations) * (1 + input.wide_weights)
}

/// Which halves of the operands a pass multiplies: (activation, weight). The activation's change
/// first.
fn halves(input: &Input, pass: u32) -> (bool, bool) {
    let activation = input.wide_activations == 1 && pass % 2 == 1;
    let weight = input.wide_weights == 1 && pass > input.wide_activations;
    (activation, weight)
}

/// What a read port of activations looks at: the window of an output pixel, and the pixel under a tap
/// of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ActivationPort {
    /// Row of the window's first tap, negative in the padding above.
    y: i64,
    /// Its column.
    x: i64,
    /// First byte of the pixel under the tap; `None` outside the tile.
    pixel: Option<u64>,
}

impl ActivationPort {
    /// Of the output pixel at column `x` of row `y`, where rows are as long as the kernel says.
    fn new(kernel: &Kernel, (y, x): (u32, u64)) -> Self {
        let width = u64::from(kernel.output_width).max(1);
        let output_y = u64::from(y) + x / width;
        let output_x = x % width;
        let first = |output: u64, stride: u32, pad: u32| {
            (output * u64::from(stride)) as i64 - i64::from(pad)
        };
        Self {
            y: first(output_y, kernel.stride_y, kernel.pad_top),
            x: first(output_x, kernel.stride_x, kernel.pad_left),
            pixel: None,
        }
    }

    /// Goes to a tap's pixel.
    fn set(&mut self, input: &Input, kernel: &Kernel, tap: &Tap) {
        let y = self.y + i64::from(tap.kernel_y) * i64::from(kernel.dilation_y);
        let x = self.x + i64::from(tap.kernel_x) * i64::from(kernel.dilation_x);
        let is_inside =
            (0..i64::from(input.height)).contains(&y) && (0..i64::from(input.width)).contains(&x);
        self.pixel = is_inside.then(|| {
            let pixel = y as u64 * u64::from(input.width) + x as u64;
            u64::from(input.address) + pixel * u64::from(input.pixel_bytes)
        });
    }

    /// Nibbles that it reads in a pass.
    fn n_reads(&self) -> u64 {
        self.pixel.is_some().into()
    }
}

/// Half of an activation's bits: where it stands in a pixel, and what it stands for.
#[derive(Clone, Copy, Debug)]
struct Half {
    /// From the pixel's first byte.
    offset: u64,
    is_upper: bool,
    high: bool,
    is_signed: bool,
}

impl Half {
    fn new(input: &Input, channel: u32, high: bool) -> Self {
        let (is_wide, is_signed) = (input.wide_activations == 1, input.signed_activations == 1);
        let channel = u64::from(input.channel) + u64::from(channel);
        let (offset, is_upper) = if is_wide {
            (channel, high)
        } else {
            (channel / 2, channel % 2 == 1)
        };
        Self {
            offset,
            is_upper,
            high,
            is_signed: is_signed && (high || !is_wide),
        }
    }

    /// What a port reads, weighed; 0 outside the tile. The caller counts the read.
    #[inline]
    fn under(&self, port: &ActivationPort, memories: &Memories<'_>) -> Result<i32, FaultKind> {
        let Some(pixel) = port.pixel else {
            return Ok(0);
        };
        let bits = memories.activation(pixel + self.offset)? >> (4 * u32::from(self.is_upper));
        Ok(weighed(bits, self.high, self.is_signed))
    }
}

/// [`Half::under`] the port of a pixel that is looked at once.
fn read_activation(
    input: &Input,
    kernel: &Kernel,
    pixel: (u32, u64),
    tap: &Tap,
    high: bool,
    memories: &Memories<'_>,
) -> Result<i32, FaultKind> {
    let mut port = ActivationPort::new(kernel, pixel);
    port.set(input, kernel, tap);
    memories.count_nibbles(Memory::Activation, port.n_reads());
    Half::new(input, tap.channel, high).under(&port, memories)
}

/// A register that must have been set.
fn set<T>(field: &'static str, register: Option<T>) -> Result<T, FaultKind> {
    let rule = "the register was never set";
    register.ok_or(FaultKind::Operand {
        field,
        value: 0,
        rule,
    })
}

/// `mantissa << shift`, if the accumulator holds it.
pub(super) fn initial_value(entry: Parameter, format: AccumulatorFormat) -> Result<i32, FaultKind> {
    // 32 places carry any mantissa but 0 out of 32 bits, so more would tell nothing.
    let value = i64::from(entry.bias_mantissa) << entry.bias_shift.min(32);
    if format.holds(value) {
        return Ok(value as i32);
    }
    let rule = "the accumulator cannot hold this initial value";
    Err(FaultKind::Operand {
        field: "bias",
        value,
        rule,
    })
}
