//! How often everything happens that costs energy, counted from the program alone.
//!
//! Invariant: the counts do not depend on data or on time, and the stepped model, which counts at
//! its ports while it runs, comes to the same numbers.

use crate::{
    Config, Dataflow, Fault,
    rules::{self, Held, Passes, Work},
};
use isa::{Destination, Input, Kernel, Matmul, Program, Residual, Source, Window};
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::ops::{Add, AddAssign, Index, IndexMut};

/// Something that costs energy each time it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// The frontend fetches an instruction and hands it on.
    Instruction,
    /// A multiplier, of a PE or of a lane, takes a pass: 4 × 4 bits.
    Multiply,
    /// An addition at the accumulators' width, in a PE, below a column, or in a lane.
    Accumulate,
    /// An accumulator is written to a block or read from it.
    Block,
    /// 4 bits are read from the activation scratchpad.
    ActivationRead,
    /// 4 bits are written to the activation scratchpad.
    ActivationWrite,
    /// 4 bits are read from the weight scratchpad.
    WeightRead,
    /// 4 bits are written to the weight scratchpad.
    WeightWrite,
    /// An entry (8 bytes) of the parameter table is read.
    ParameterRead,
    /// A byte of the parameter table is written.
    ParameterWrite,
    /// A lane of the post unit takes an element (of a window: each tap, and each pass of it).
    Lane,
    /// A byte of a bus word is read from DRAM, asked for or not.
    DramRead,
    /// A byte of a bus word is written to DRAM, asked for or not.
    DramWrite,
}

impl Action {
    /// How many there are.
    pub const COUNT: usize = 13;

    /// Every action, unit by unit.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Instruction,
        Self::Multiply,
        Self::Accumulate,
        Self::Block,
        Self::ActivationRead,
        Self::ActivationWrite,
        Self::WeightRead,
        Self::WeightWrite,
        Self::ParameterRead,
        Self::ParameterWrite,
        Self::Lane,
        Self::DramRead,
        Self::DramWrite,
    ];

    /// As keys of reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Instruction => "instruction",
            Self::Multiply => "multiply",
            Self::Accumulate => "accumulate",
            Self::Block => "block",
            Self::ActivationRead => "activation_read",
            Self::ActivationWrite => "activation_write",
            Self::WeightRead => "weight_read",
            Self::WeightWrite => "weight_write",
            Self::ParameterRead => "parameter_read",
            Self::ParameterWrite => "parameter_write",
            Self::Lane => "lane",
            Self::DramRead => "dram_read",
            Self::DramWrite => "dram_write",
        }
    }
}

/// A number for each action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Action::COUNT]);

impl Index<Action> for Counts {
    type Output = u64;

    fn index(&self, action: Action) -> &u64 {
        &self.0[action as usize]
    }
}

impl IndexMut<Action> for Counts {
    fn index_mut(&mut self, action: Action) -> &mut u64 {
        &mut self.0[action as usize]
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (sum, part) in self.0.iter_mut().zip(other.0) {
            *sum += part;
        }
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

impl Serialize for Counts {
    /// A map from each action's name, in the order of [`Action::ALL`].
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(Action::COUNT))?;
        for action in Action::ALL {
            map.serialize_entry(action.name(), &self[action])?;
        }
        map.end()
    }
}

/// The actions of every layer's instructions; they sum to the program's.
///
/// # Errors
/// The program breaks a rule of the machine.
pub fn count_actions(program: &Program, config: &Config) -> Result<Vec<Counts>, Fault> {
    let mut layers = vec![Counts::default(); program.layers.len()];
    let mut taps = InsideTaps::default();
    rules::for_each_work(program, config, |index, work| {
        let counts = &mut layers[program.layer_of[index] as usize];
        counts[Action::Instruction] += 1;
        count(work, config, &mut taps, counts);
    })?;
    Ok(layers)
}

fn count(work: &Work, config: &Config, taps: &mut InsideTaps, counts: &mut Counts) {
    match work {
        Work::Setup => {}
        Work::Load(load, pitch) => {
            let bytes = u64::from(load.n_rows) * u64::from(load.row_bytes);
            match load.memory {
                0 => counts[Action::ActivationWrite] += 2 * bytes,
                1 => counts[Action::WeightWrite] += 2 * bytes,
                _ => counts[Action::ParameterWrite] += bytes,
            }
            let (first, rows) = (load.dram_address, (load.n_rows, load.row_bytes));
            counts[Action::DramRead] += bus_bytes(first, pitch.dram, rows, config);
        }
        Work::Store(store, pitch) => {
            let bytes = u64::from(store.n_rows) * u64::from(store.row_bytes);
            counts[Action::ActivationRead] += 2 * bytes;
            let (first, rows) = (store.dram_address, (store.n_rows, store.row_bytes));
            counts[Action::DramWrite] += bus_bytes(first, pitch.dram, rows, config);
        }
        Work::Matmul {
            matmul,
            input,
            kernel,
            k,
        } => {
            let rows = u64::from(matmul.rows_minus_1 + 1);
            let cols = u64::from(matmul.cols_minus_1 + 1);
            let n_steps = u64::from(matmul.n_steps);
            let passes = u64::from(Passes::of(input).0);
            counts[Action::Multiply] += n_steps * passes * rows * cols;
            counts[Action::Accumulate] += n_steps * rows * cols;
            counts[Action::WeightRead] += n_steps * passes * cols;
            counts[Action::ActivationRead] += taps.of_matmul(matmul, input, kernel, *k) * passes;
            counts[Action::ParameterRead] += u64::from(matmul.first) * cols;
            counts[Action::Block] += u64::from(matmul.last) * rows * cols;
        }
        Work::Preload { held } => count_preload(held, config, taps, counts),
        Work::Stream {
            stream,
            input,
            kernel,
            held,
        } => {
            let (n_steps, cols) = (held.n_steps(), u64::from(stream.cols_minus_1 + 1));
            let n = u64::from(stream.n_minus_1 + 1);
            let passes = u64::from(Passes::of(input).0);
            let sums = n * cols;
            counts[Action::Multiply] += sums * passes * u64::from(n_steps);
            counts[Action::Accumulate] += sums * u64::from(n_steps);
            // Below a column: written, or read, added to and written.
            counts[Action::Block] += sums;
            if stream.accumulate == 1 {
                counts[Action::Accumulate] += sums;
                counts[Action::Block] += sums;
            }
            let (reads, biases) = match config.dataflow {
                Dataflow::OutputStationary | Dataflow::WeightStationary => {
                    let inside = taps.of(Geometry {
                        y: stream.y,
                        x: stream.x,
                        n_pixels: stream.n_minus_1 + 1,
                        k: held.k,
                        n_steps,
                        input: *input,
                        kernel: *kernel,
                    });
                    counts[Action::ActivationRead] += inside * passes;
                    (0, cols)
                }
                Dataflow::InputStationary => (n * passes * u64::from(n_steps), n),
            };
            counts[Action::WeightRead] += reads;
            counts[Action::ParameterRead] += biases * u64::from(1 - stream.accumulate);
        }
        Work::Requantize {
            requantize,
            to,
            residual,
            ..
        } => {
            let (n_pixels, n_channels) = rules::block_extents(requantize, config.dataflow);
            let n_pixels = u64::from(n_pixels);
            let n_outputs = n_pixels * u64::from(n_channels);
            counts[Action::Block] += n_outputs;
            counts[Action::ParameterRead] += n_outputs;
            counts[Action::Lane] += n_outputs;
            let channels = (requantize.channel, n_channels);
            count_results(n_pixels, channels, to, residual, counts);
        }
        Work::Pool {
            pool,
            source,
            window,
            to,
            residual,
            ..
        } => {
            let n_pixels = u64::from(pool.n_pixels);
            let per_tap = n_pixels * u64::from(pool.n_channels);
            counts[Action::Lane] += per_tap * u64::from(window.height * window.width);
            let first = (pool.y, pool.x, pool.n_pixels);
            counts[Action::ActivationRead] += n_inside(first, source, window, to)
                * u64::from(pool.n_channels)
                * u64::from(1 + source.wide);
            let channels = (pool.channel, pool.n_channels);
            count_results(n_pixels, channels, to, residual, counts);
        }
        Work::Depthwise {
            depthwise,
            filter,
            source,
            window,
            to,
            residual,
            ..
        } => {
            let n_pixels = u64::from(depthwise.n_pixels);
            let n_outputs = n_pixels * u64::from(depthwise.n_channels);
            let n_taps = u64::from(window.height * window.width);
            let passes = u64::from((1 + source.wide) * (1 + filter.wide_weights));
            counts[Action::Multiply] += n_outputs * n_taps * passes;
            counts[Action::Accumulate] += n_outputs * n_taps;
            counts[Action::Lane] += n_outputs * n_taps * passes;
            counts[Action::WeightRead] += n_outputs * n_taps * passes;
            let first = (depthwise.y, depthwise.x, depthwise.n_pixels);
            counts[Action::ActivationRead] +=
                n_inside(first, source, window, to) * u64::from(depthwise.n_channels) * passes;
            // The bias with the first step, the multiplier with the last.
            counts[Action::ParameterRead] += n_outputs * (n_taps * passes).min(2);
            let channels = (depthwise.channel, depthwise.n_channels);
            count_results(n_pixels, channels, to, residual, counts);
        }
    }
}

/// Every PE in use is given one operand; padding is read from nowhere.
fn count_preload(held: &Held, config: &Config, taps: &mut InsideTaps, counts: &mut Counts) {
    let (input, preload) = (&held.input, &held.preload);
    let n_cols = preload.cols_minus_1 + 1;
    match config.dataflow {
        Dataflow::OutputStationary | Dataflow::WeightStationary => {
            let nibbles = held.n_steps() * n_cols * (1 + input.wide_weights);
            counts[Action::WeightRead] += u64::from(nibbles);
        }
        Dataflow::InputStationary => {
            let inside = taps.of(Geometry {
                y: preload.y,
                x: preload.x,
                n_pixels: n_cols,
                k: held.k,
                n_steps: held.n_steps(),
                input: *input,
                kernel: held.kernel,
            });
            counts[Action::ActivationRead] += inside * u64::from(1 + input.wide_activations);
        }
    }
}

/// Second operands read and results written.
fn count_results(
    n_pixels: u64,
    (first, n_channels): (u32, u32),
    to: &Destination,
    residual: &Residual,
    counts: &mut Counts,
) {
    let n_outputs = n_pixels * u64::from(n_channels);
    counts[Action::ActivationWrite] += n_outputs << to.size;
    let end = (first + n_channels).min(residual.channel + residual.n_channels);
    let reached = end.saturating_sub(first.max(residual.channel));
    counts[Action::ActivationRead] += n_pixels * u64::from(reached) * u64::from(1 + residual.wide);
}

/// Bytes of all bus words that a transfer's bursts touch.
fn bus_bytes(first: u32, pitch: u32, (n_rows, row_bytes): (u32, u32), config: &Config) -> u64 {
    let traffic = rules::traffic(first, pitch, (n_rows, row_bytes), &config.dram);
    traffic.n_words * u64::from(config.dram.bytes_per_cycle)
}

/// Reads that are not padding. Folds of the same pixels and steps follow each other, once for each
/// block of channels, so the last answer is kept.
#[derive(Default)]
struct InsideTaps {
    last: Option<(Geometry, u64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Geometry {
    y: u32,
    x: u32,
    n_pixels: u32,
    k: u32,
    n_steps: u32,
    input: Input,
    kernel: Kernel,
}

impl InsideTaps {
    fn of_matmul(&mut self, matmul: &Matmul, input: &Input, kernel: &Kernel, k: u32) -> u64 {
        self.of(Geometry {
            y: matmul.y,
            x: matmul.x,
            n_pixels: matmul.rows_minus_1 + 1,
            k,
            n_steps: matmul.n_steps,
            input: *input,
            kernel: *kernel,
        })
    }

    /// Pairs of pixel and step whose tap lies inside the tile.
    fn of(&mut self, geometry: Geometry) -> u64 {
        if let Some((last, n)) = self.last
            && last == geometry
        {
            return n;
        }
        let n = geometry.n_inside();
        self.last = Some((geometry, n));
        n
    }
}

impl Geometry {
    /// Whether even the whole windows of all pixels lie inside the tile.
    fn is_inside(&self) -> bool {
        let (input, kernel) = (&self.input, &self.kernel);
        let last = self.x + self.n_pixels - 1;
        // Over a row's end the pixels reach from its first column to its last.
        let (first_x, last_x) = if last < kernel.output_width {
            (self.x, last)
        } else {
            (0, kernel.output_width - 1)
        };
        let last_y = self.y + last / kernel.output_width;
        let reach = |n: u32, dilation: u32| (n - 1) * dilation;
        is_inside(self.y * kernel.stride_y, kernel.pad_top, input.height)
            && is_inside(first_x * kernel.stride_x, kernel.pad_left, input.width)
            && is_inside(
                last_y * kernel.stride_y + reach(kernel.height, kernel.dilation_y),
                kernel.pad_top,
                input.height,
            )
            && is_inside(
                last_x * kernel.stride_x + reach(kernel.width, kernel.dilation_x),
                kernel.pad_left,
                input.width,
            )
    }

    fn n_inside(&self) -> u64 {
        let (input, kernel) = (&self.input, &self.kernel);
        if self.is_inside() {
            return u64::from(self.n_pixels) * u64::from(self.n_steps);
        }
        let k_end = self.k + self.n_steps;
        let taps = self.k / input.n_channels..k_end.div_ceil(input.n_channels);
        let mut n = 0;
        for row in 0..self.n_pixels {
            let position = self.x + row;
            let y = (self.y + position / kernel.output_width) * kernel.stride_y;
            let x = (position % kernel.output_width) * kernel.stride_x;
            for tap in taps.clone() {
                let tap_y = tap / kernel.width * kernel.dilation_y;
                let tap_x = tap % kernel.width * kernel.dilation_x;
                if is_inside(y + tap_y, kernel.pad_top, input.height)
                    && is_inside(x + tap_x, kernel.pad_left, input.width)
                {
                    let from = self.k.max(tap * input.n_channels);
                    let to = k_end.min((tap + 1) * input.n_channels);
                    n += u64::from(to - from);
                }
            }
        }
        n
    }
}

/// Pairs of pixel and tap inside the source, for so many pixels from `(y, x)` on.
fn n_inside(
    (y, x, n_pixels): (u32, u32, u32),
    source: &Source,
    window: &Window,
    to: &Destination,
) -> u64 {
    // A window's rows and columns are inside independently of each other.
    let inside = |position: u32, (n, stride, dilation, pad): (u32, u32, u32, u32), size| {
        let taps = (0..n).filter(|tap| is_inside(position * stride + tap * dilation, pad, size));
        taps.count() as u64
    };
    let vertical = (
        window.height,
        window.stride_y,
        window.dilation_y,
        window.pad_top,
    );
    let horizontal = (
        window.width,
        window.stride_x,
        window.dilation_x,
        window.pad_left,
    );
    (x..x + n_pixels)
        .map(|position| {
            let (y, x) = (y + position / to.width, position % to.width);
            inside(y, vertical, source.height) * inside(x, horizontal, source.width)
        })
        .sum()
}

fn is_inside(position: u32, pad: u32, size: u32) -> bool {
    position >= pad && position - pad < size
}
