//! Values: what every instruction does to the memories, a whole fold at a time.
//!
//! Invariant: instructions run in the order of their starts, which without races is an order in
//! which every operand is ready.

mod depthwise;
mod stationary;

use super::mac::{self, Cell, Group, LANES, Weights};
use crate::{
    Config, Dataflow, Fault, FaultKind,
    rules::{PARAMETER_BYTES, Pitch, Work, block_extents, check_alignment},
};
use arith::{ChannelOverflow, Requant, shift_right_rounding};
use isa::{Destination, Input, Kernel, Matmul, Pool, Requantize, Residual, Slope, Source, Window};

/// How much a run records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Values, overflow events and their first step.
    Counts,
    /// Extremes of the exact partial sums as well.
    Full,
}

struct State<'a> {
    config: &'a Config,
    dram: &'a mut [u8],
    activations: Vec<u8>,
    weights: Vec<u8>,
    parameters: Vec<u8>,
    /// `n_blocks × rows × cols` accumulators, when output-stationary.
    blocks: Vec<i32>,
    /// The open fold: for each row, its groups of columns.
    fold: Vec<Cell>,
    /// What the PEs of a stationary array hold.
    held: stationary::Held,
    /// Entries of its blocks, row by row in groups of columns.
    entries: Vec<Cell>,
    overflow: Vec<ChannelOverflow>,
    detail: Detail,
    patch: Vec<i16>,
}

/// A parameter table entry.
#[derive(Clone, Copy)]
struct Parameter {
    bias: i64,
    requant: Requant,
}

pub(super) fn execute(
    config: &Config,
    works: &[Work],
    order: &[u32],
    n_channels: usize,
    dram: &mut [u8],
    detail: Detail,
) -> Result<Vec<ChannelOverflow>, Fault> {
    let n_rows = (config.n_blocks * config.block_rows) as usize;
    let cols = config.cols as usize;
    let (n_accumulators, n_entries) = match config.dataflow {
        Dataflow::OutputStationary => (n_rows * cols, 0),
        Dataflow::WeightStationary | Dataflow::InputStationary => {
            (0, n_rows * cols.div_ceil(LANES))
        }
    };
    let mut state = State {
        config,
        dram,
        activations: vec![0; config.activation_bytes as usize],
        weights: vec![0; config.weight_bytes as usize],
        parameters: vec![0; (config.n_parameters * PARAMETER_BYTES) as usize],
        blocks: vec![0; n_accumulators],
        fold: Vec::new(),
        held: stationary::Held::default(),
        entries: vec![Cell::EMPTY; n_entries],
        overflow: vec![ChannelOverflow::default(); n_channels],
        detail,
        patch: Vec::new(),
    };
    for &index in order {
        let (mnemonic, result) = match &works[index as usize] {
            Work::Setup => continue,
            Work::Load(load, pitch) => {
                state.load(load, *pitch);
                continue;
            }
            Work::Store(store, pitch) => {
                state.store(store, *pitch);
                continue;
            }
            Work::Matmul {
                matmul,
                input,
                kernel,
                k,
            } => ("matmul", state.matmul(matmul, input, kernel, *k)),
            Work::Preload { held } => {
                state.preload(held);
                continue;
            }
            Work::Stream {
                stream,
                input,
                kernel,
                held,
            } => ("stream", state.stream(stream, input, kernel, held)),
            Work::Requantize {
                requantize,
                to,
                residual,
                slope,
            } => (
                "requantize",
                state.requantize(requantize, to, residual, *slope),
            ),
            Work::Pool {
                pool,
                source,
                window,
                to,
                residual,
                slope,
            } => {
                state.pool(pool, source, window, to, residual, *slope);
                continue;
            }
            Work::Depthwise {
                depthwise,
                filter,
                source,
                window,
                to,
                residual,
                slope,
            } => {
                let job = depthwise::Job {
                    depthwise,
                    filter,
                    source,
                    window,
                    to,
                    residual,
                    slope: *slope,
                };
                ("depthwise", state.depthwise(&job))
            }
        };
        result.map_err(|kind| Fault {
            index: index as usize,
            mnemonic,
            kind,
        })?;
    }
    Ok(state.overflow)
}

impl State<'_> {
    fn load(&mut self, load: &isa::Load, pitch: Pitch) {
        let memory = match load.memory {
            0 => &mut self.activations,
            1 => &mut self.weights,
            _ => &mut self.parameters,
        };
        let length = load.row_bytes as usize;
        for row in 0..load.n_rows as usize {
            let from = load.dram_address as usize + row * pitch.dram as usize;
            let to = load.chip_address as usize + row * pitch.chip as usize;
            memory[to..to + length].copy_from_slice(&self.dram[from..from + length]);
        }
    }

    fn store(&mut self, store: &isa::Store, pitch: Pitch) {
        let length = store.row_bytes as usize;
        for row in 0..store.n_rows as usize {
            let from = store.chip_address as usize + row * pitch.chip as usize;
            let to = store.dram_address as usize + row * pitch.dram as usize;
            self.dram[to..to + length].copy_from_slice(&self.activations[from..from + length]);
        }
    }

    fn parameter(&self, index: u32) -> Result<Parameter, FaultKind> {
        let entry = &self.parameters[(index * PARAMETER_BYTES) as usize..];
        let (bias_shift, shift) = (entry[2], entry[4]);
        if bias_shift > 31 {
            let rule = "a parameter's bias shift is at most 31";
            return Err(FaultKind::Operand {
                field: "bias_shift",
                value: bias_shift.into(),
                rule,
            });
        }
        if shift > Requant::MAX_SHIFT {
            let rule = "a parameter's shift is at most 47";
            return Err(FaultKind::Operand {
                field: "shift",
                value: shift.into(),
                rule,
            });
        }
        let bias = i64::from(i16::from_le_bytes([entry[0], entry[1]])) << bias_shift;
        Ok(Parameter {
            bias,
            requant: Requant {
                mantissa: entry[3],
                shift,
            },
        })
    }

    fn matmul(
        &mut self,
        matmul: &Matmul,
        input: &Input,
        kernel: &Kernel,
        k: u32,
    ) -> Result<(), FaultKind> {
        let rows = matmul.rows_minus_1 as usize + 1;
        let cols = matmul.cols_minus_1 as usize + 1;
        let groups = cols.div_ceil(LANES);
        if matmul.first == 1 {
            self.open_fold(matmul, rows, groups)?;
        }
        let range = activation_range(input);
        let (line, n_steps) = (matmul.weight_line, matmul.n_steps);
        let weights: Vec<Weights> = (0..groups)
            .map(|group| self.unpack(line, n_steps, input, group, cols))
            .collect();
        let mut patch = std::mem::take(&mut self.patch);
        let format = self.config.arithmetic.accumulator;
        let extremes = self.detail == Detail::Full;
        for row in 0..rows {
            let pixel = matmul.x + row as u32;
            let y = matmul.y + pixel / kernel.output_width;
            let x = pixel % kernel.output_width;
            patch.clear();
            gather(
                &mut patch,
                &self.activations,
                input,
                kernel,
                (y, x),
                k,
                matmul.n_steps,
            );
            for (group, weights) in weights.iter().enumerate() {
                let cell = &mut self.fold[row * groups + group];
                mac::accumulate(cell, &patch, weights, k, range, format, extremes);
            }
        }
        self.patch = patch;
        if matmul.last == 1 {
            self.drain(matmul, rows, cols, groups);
        }
        Ok(())
    }

    fn open_fold(&mut self, matmul: &Matmul, rows: usize, groups: usize) -> Result<(), FaultKind> {
        let mut bias: Vec<Group> = vec![[0; LANES]; groups];
        for c in 0..=matmul.cols_minus_1 {
            let value = self.initial_value(matmul.parameter + c)?;
            bias[c as usize / LANES][c as usize % LANES] = value;
        }
        self.fold.clear();
        for _ in 0..rows {
            self.fold.extend(bias.iter().map(|&bias| Cell::new(bias)));
        }
        Ok(())
    }

    /// The bias of a parameter table entry.
    fn initial_value(&self, entry: u32) -> Result<i32, FaultKind> {
        let value = self.parameter(entry)?.bias;
        if self.config.arithmetic.accumulator.holds(value) {
            return Ok(value as i32);
        }
        let rule = "the initial value must fit the accumulator";
        Err(FaultKind::Operand {
            field: "bias",
            value,
            rule,
        })
    }

    /// Weights of a group of columns; columns that are not in use weigh nothing.
    fn unpack(&self, line: u32, n_steps: u32, input: &Input, group: usize, cols: usize) -> Weights {
        let line_bytes = self.config.line_bytes() as usize;
        let planes = 1 + input.wide_weights as usize;
        let used = (cols - group * LANES).min(LANES);
        let steps = self.weights[line as usize * line_bytes..]
            .chunks_exact(line_bytes * planes)
            .take(n_steps as usize)
            .map(|lines| {
                let high = (planes == 2).then(|| &lines[line_bytes..]);
                let mut step = [0i16; LANES];
                for (c, weight) in step[..used].iter_mut().enumerate() {
                    *weight = nibble_pair(lines, high, group * LANES + c);
                }
                step
            })
            .collect();
        Weights::new(steps)
    }

    fn drain(&mut self, matmul: &Matmul, rows: usize, cols: usize, groups: usize) {
        let size = (self.config.block_rows * self.config.cols) as usize;
        let block = &mut self.blocks[matmul.block as usize * size..][..size];
        for row in 0..rows {
            for c in 0..cols {
                let cell = &self.fold[row * groups + c / LANES];
                let lane = c % LANES;
                block[row * self.config.cols as usize + c] = cell.acc[lane];
                let counter = &mut self.overflow[matmul.channel as usize + c];
                cell.count(lane, self.detail, counter);
            }
        }
    }

    fn requantize(
        &mut self,
        requantize: &Requantize,
        to: &Destination,
        residual: &Residual,
        slope: Slope,
    ) -> Result<(), FaultKind> {
        let (n_pixels, n_channels) = block_extents(requantize, self.config.dataflow);
        let is_transposed = self.config.dataflow == Dataflow::InputStationary;
        let parameters = (0..n_channels)
            .map(|c| self.parameter(requantize.parameter + c))
            .collect::<Result<Vec<_>, _>>()?;
        let reached = residual.channel..residual.channel + residual.n_channels;
        for (parameter, channel) in parameters.iter().zip(requantize.channel..) {
            if reached.contains(&channel) {
                check_alignment(parameter.requant.shift.into(), residual.shift)?;
            }
        }
        for i in 0..n_pixels {
            let pixel = Pixel::of(to, requantize.y, requantize.x + i);
            for (c, parameter) in (0..n_channels).zip(&parameters) {
                let (row, col) = if is_transposed { (c, i) } else { (i, c) };
                let channel = requantize.channel + c;
                let row = requantize.block * self.config.block_rows + requantize.row + row;
                let value = i64::from(self.accumulator(row, col));
                let second = self.second(residual, &pixel, channel);
                self.finish(
                    value,
                    parameter.requant,
                    second,
                    slope,
                    to,
                    (&pixel, channel),
                );
            }
        }
        Ok(())
    }

    /// A block's accumulator; rows count through all blocks.
    fn accumulator(&self, row: u32, col: u32) -> i32 {
        let (row, col, cols) = (row as usize, col as usize, self.config.cols as usize);
        match self.config.dataflow {
            Dataflow::OutputStationary => self.blocks[row * cols + col],
            Dataflow::WeightStationary | Dataflow::InputStationary => {
                self.entries[row * cols.div_ceil(LANES) + col / LANES].acc[col % LANES]
            }
        }
    }

    fn pool(
        &mut self,
        pool: &Pool,
        source: &Source,
        window: &Window,
        to: &Destination,
        residual: &Residual,
        slope: Slope,
    ) {
        let requant = Requant {
            mantissa: pool.mantissa as u8,
            shift: pool.shift as u8,
        };
        for i in 0..pool.n_pixels {
            let pixel = Pixel::of(to, pool.y, pool.x + i);
            for c in 0..pool.n_channels {
                let value = self.reduce(pool, source, window, &pixel, pool.source_channel + c);
                let channel = pool.channel + c;
                let second = self.second(residual, &pixel, channel);
                self.finish(value, requant, second, slope, to, (&pixel, channel));
            }
        }
    }

    fn reduce(
        &self,
        pool: &Pool,
        source: &Source,
        window: &Window,
        pixel: &Pixel,
        channel: u32,
    ) -> i64 {
        let mut best: Option<i64> = None;
        for dy in 0..window.height {
            let y = tap(
                pixel.y,
                window.stride_y,
                dy,
                window.dilation_y,
                window.pad_top,
            );
            for dx in 0..window.width {
                let x = tap(
                    pixel.x,
                    window.stride_x,
                    dx,
                    window.dilation_x,
                    window.pad_left,
                );
                if y < 0 || x < 0 || y >= source.height.into() || x >= source.width.into() {
                    continue;
                }
                let first = source.address as usize
                    + (y as usize * source.width as usize + x as usize)
                        * source.pixel_bytes as usize;
                let value = element(
                    &self.activations[first..],
                    channel,
                    source.wide,
                    source.signed,
                );
                best = Some(match best {
                    None => value,
                    Some(sum) if pool.sum == 1 => sum + value,
                    Some(largest) => largest.max(value),
                });
            }
        }
        best.unwrap_or(0)
    }

    /// The residual's contribution before its shift is aligned.
    fn second(&self, residual: &Residual, pixel: &Pixel, channel: u32) -> Option<(i64, u8)> {
        let c = channel
            .checked_sub(residual.channel)
            .filter(|&c| c < residual.n_channels)?;
        let (y, x) = (pixel.y * residual.stride_y, pixel.x * residual.stride_x);
        let first = residual.address as usize
            + (y as usize * residual.width as usize + x as usize) * residual.pixel_bytes as usize;
        let value = element(
            &self.activations[first..],
            c,
            residual.wide,
            residual.signed,
        );
        Some((value * i64::from(residual.mantissa), residual.shift as u8))
    }

    fn finish(
        &mut self,
        value: i64,
        requant: Requant,
        second: Option<(i64, u8)>,
        slope: Slope,
        to: &Destination,
        (pixel, channel): (&Pixel, u32),
    ) {
        let y = post(
            value,
            requant,
            second,
            slope,
            self.config.arithmetic.rounding,
        );
        let y = y.clamp(to.q_min.into(), to.q_max.into());
        let first = to.address as usize + pixel.index * to.pixel_bytes as usize;
        let bytes = &mut self.activations[first..];
        let c = channel as usize;
        match to.size {
            0 => {
                let shift = 4 * (c % 2);
                bytes[c / 2] = bytes[c / 2] & !(15 << shift) | ((y & 15) as u8) << shift;
            }
            1 => bytes[c] = y as u8,
            _ => bytes[2 * c..2 * c + 2].copy_from_slice(&(y as i16).to_le_bytes()),
        }
    }
}

/// Bounds of the activations, 0 included.
fn activation_range(input: &Input) -> (i64, i64) {
    let bits = if input.wide_activations == 1 { 8 } else { 4 };
    if input.signed_activations == 1 {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// The weight at a place of a line, or of two lines: one of low nibbles and one of high ones.
fn nibble_pair(low: &[u8], high: Option<&[u8]>, place: usize) -> i16 {
    let nibble = |line: &[u8]| (line[place / 2] >> (4 * (place % 2))) & 15;
    match high {
        Some(high) => i16::from((nibble(low) | nibble(high) << 4) as i8),
        None => i16::from((nibble(low) << 4) as i8 >> 4),
    }
}

/// A destination pixel: its place in the tile and its index in memory.
struct Pixel {
    y: u32,
    x: u32,
    index: usize,
}

impl Pixel {
    fn of(to: &Destination, y: u32, x: u32) -> Self {
        let (y, x) = (y + x / to.width, x % to.width);
        Self {
            y,
            x,
            index: y as usize * to.width as usize + x as usize,
        }
    }
}

/// The post unit's formula up to the clamp (`docs/machine.md`, Post unit).
fn post(
    value: i64,
    requant: Requant,
    second: Option<(i64, u8)>,
    slope: Slope,
    rounding: arith::Rounding,
) -> i64 {
    // |value| < 2^32 and an alignment of at most 30 keep every step below 2^62.
    let mut product = value * i64::from(requant.mantissa);
    if let Some((value, shift)) = second {
        product += value << (requant.shift - shift);
    }
    let mut shift = requant.shift;
    if product < 0 {
        product *= i64::from(slope.mantissa);
        shift += slope.shift as u8;
    }
    shift_right_rounding(product, shift, rounding)
}

fn tap(output: u32, stride: u32, tap: u32, dilation: u32, pad: u32) -> i64 {
    i64::from(output) * i64::from(stride) + i64::from(tap * dilation) - i64::from(pad)
}

fn element(pixel: &[u8], channel: u32, wide: u32, signed: u32) -> i64 {
    let c = channel as usize;
    match (wide, signed) {
        (1, 1) => i64::from(pixel[c] as i8),
        (1, _) => i64::from(pixel[c]),
        (_, signed) => {
            let nibble = (pixel[c / 2] >> (4 * (c % 2))) & 15;
            if signed == 1 {
                i64::from((nibble << 4) as i8 >> 4)
            } else {
                i64::from(nibble)
            }
        }
    }
}

/// The activations of one output pixel for steps `k..k + n_steps`, 0 outside the tile.
fn gather(
    patch: &mut Vec<i16>,
    memory: &[u8],
    input: &Input,
    kernel: &Kernel,
    (y, x): (u32, u32),
    k: u32,
    n_steps: u32,
) {
    let mut k = k;
    let end = k + n_steps;
    while k < end {
        let (tap_index, channel) = (k / input.n_channels, k % input.n_channels);
        let n = (input.n_channels - channel).min(end - k);
        let (dy, dx) = (tap_index / kernel.width, tap_index % kernel.width);
        let iy = tap(y, kernel.stride_y, dy, kernel.dilation_y, kernel.pad_top);
        let ix = tap(x, kernel.stride_x, dx, kernel.dilation_x, kernel.pad_left);
        k += n;
        if iy < 0 || ix < 0 || iy >= input.height.into() || ix >= input.width.into() {
            patch.resize(patch.len() + n as usize, 0);
            continue;
        }
        let first = input.address as usize
            + (iy as usize * input.width as usize + ix as usize) * input.pixel_bytes as usize;
        let pixel = &memory[first..first + input.pixel_bytes as usize];
        let channels = input.channel + channel..input.channel + channel + n;
        let (wide, signed) = (input.wide_activations, input.signed_activations);
        if wide == 1 {
            let bytes = &pixel[channels.start as usize..channels.end as usize];
            if signed == 1 {
                patch.extend(bytes.iter().map(|&byte| i16::from(byte as i8)));
            } else {
                patch.extend(bytes.iter().map(|&byte| i16::from(byte)));
            }
        } else if channels.start.is_multiple_of(2) && n.is_multiple_of(2) && signed == 0 {
            let bytes = &pixel[channels.start as usize / 2..channels.end as usize / 2];
            patch.extend(
                bytes
                    .iter()
                    .flat_map(|&b| [i16::from(b & 15), i16::from(b >> 4)]),
            );
        } else {
            patch.extend(channels.map(|c| element(pixel, c, wide, signed) as i16));
        }
    }
}
