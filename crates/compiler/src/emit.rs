//! Instructions of one layer, in an order in which they could run one after the other.
//!
//! Invariant: every stage can run when the stages before it have ended, and each instruction lists
//! everything that it reads and writes, buffer by buffer.

mod dma;
mod pooling;

use crate::{
    job::{Conv, Job, Map, Second, Work},
    layout::PARAMETER_BYTES,
    tile::{Group, Plan, Ring, WeightPlan},
};
use accelerator::Config;
use dma::Transfer;
use isa::{
    Destination, Input, Kernel, LoadPitch, Matmul, Op, Requantize, Residual, Slope, Source,
    StorePitch, Window,
};

/// A memory that instructions share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Memory {
    Dram,
    Activation,
    Weight,
    /// In entries.
    Parameter,
    /// In accumulator blocks.
    Block,
}

/// Bytes (entries, blocks) that an instruction touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Access {
    pub memory: Memory,
    pub write: bool,
    pub from: u64,
    pub to: u64,
}

impl Access {
    fn new(memory: Memory, write: bool, from: u32, len: u64) -> Self {
        Self {
            memory,
            write,
            from: from.into(),
            to: u64::from(from) + len,
        }
    }

    /// Whether the order of both matters.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.memory == other.memory
            && (self.write || other.write)
            && self.from < other.to
            && other.from < self.to
    }
}

/// An instruction without its tokens.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub op: Op,
    pub accesses: Vec<Access>,
}

/// Loads, and the work that needs them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    pub note: String,
    pub loads: Vec<Item>,
    pub work: Vec<Item>,
}

/// Which tile lies in which slot.
struct Slots {
    ring: Ring,
    keys: Vec<Option<u64>>,
    next: usize,
}

impl Slots {
    fn new(ring: Ring) -> Self {
        Self {
            ring,
            keys: vec![None; ring.n_slots as usize],
            next: 0,
        }
    }

    /// The address for a key, and whether its data has yet to be loaded.
    fn take(&mut self, key: u64) -> (u32, bool) {
        if let Some(slot) = self.keys.iter().position(|&held| held == Some(key)) {
            return (self.ring.address(slot as u32), false);
        }
        let slot = self.next;
        self.next = (self.next + 1) % self.keys.len();
        self.keys[slot] = Some(key);
        (self.ring.address(slot as u32), true)
    }
}

/// What the units' registers hold.
#[derive(Default)]
struct Registers {
    load: Option<LoadPitch>,
    store: Option<StorePitch>,
    input: Option<Input>,
    kernel: Option<Kernel>,
    source: Option<Source>,
    window: Option<Window>,
    destination: Option<Destination>,
    residual: Option<Residual>,
    slope: Option<Slope>,
}

struct Emitter<'a> {
    job: &'a Job,
    plan: &'a Plan,
    config: &'a Config,
    registers: Registers,
    stages: Vec<Stage>,
    inputs: Vec<Slots>,
    output: Slots,
    second: Slots,
    next_block: u32,
}

/// The output tile at work.
#[derive(Clone, Copy)]
struct OutputTile {
    rows: (u32, u32),
    columns: (u32, u32),
    /// Channels that it holds.
    channel: u32,
    n_channels: u32,
    address: u32,
    pixel_bytes: u32,
    /// Bytes of the tile.
    len: u64,
    /// The second operand's tile.
    second: Option<Access>,
}

impl OutputTile {
    fn width(&self) -> u32 {
        self.columns.1 - self.columns.0
    }

    fn n_pixels(&self) -> u32 {
        (self.rows.1 - self.rows.0) * self.width()
    }
}

/// The stages of a layer.
pub(crate) fn emit(job: &Job, plan: &Plan, config: &Config) -> Vec<Stage> {
    let mut emitter = Emitter {
        job,
        plan,
        config,
        registers: Registers::default(),
        stages: Vec::new(),
        inputs: plan.inputs.iter().map(|&ring| Slots::new(ring)).collect(),
        output: Slots::new(plan.output),
        second: Slots::new(plan.second),
        next_block: 0,
    };
    match (&job.work, &plan.weights) {
        (Work::Conv(conv), Some(weights)) => emitter.convolution(conv, weights),
        (Work::Pool(parts), _) => emitter.pooling(parts),
        (Work::Conv(_), None) => unreachable!("a convolution's plan has weights"),
    }
    emitter.stages
}

impl Emitter<'_> {
    fn stage(&mut self) -> &mut Stage {
        self.stages
            .last_mut()
            .expect("a stage is begun before its instructions")
    }

    fn begin(&mut self, note: &str) {
        self.stages.push(Stage {
            note: note.to_owned(),
            ..Stage::default()
        });
    }

    fn work(&mut self, op: impl Into<Op>, accesses: Vec<Access>) {
        let op = op.into();
        self.stage().work.push(Item { op, accesses });
    }

    fn convolution(&mut self, conv: &Conv, plan: &WeightPlan) {
        let mut weights = Slots::new(plan.weights);
        let mut parameters = Slots::new(plan.parameters);
        let (n_tiles, n_groups) = (self.plan.n_tiles(), plan.groups.len());
        for step in 0..n_tiles * n_groups {
            let (tile, group_index) = if self.plan.choice.channels_outer {
                (step % n_tiles, step / n_tiles)
            } else {
                (step / n_groups, step % n_groups)
            };
            let group = &plan.groups[group_index];
            let note = self.note(tile, Some(group));
            self.begin(&note);
            let parameter = self.load_parameters(conv, plan, group_index, &mut parameters);
            let weight =
                (!plan.streamed).then(|| self.load_weights(conv, plan, group_index, &mut weights));
            let input = self.load_conv_input(conv, tile);
            let output = self.output_tile(tile, plan.sliced.then_some((group_index, group)));
            self.set_input(conv, tile, group, input);
            self.set_destination(&output);
            for index in group.first_tile..group.first_tile + group.n_tiles {
                let (channel, n_channels) = plan.tiles[index];
                self.set_group(conv, channel);
                let before = (index - group.first_tile) as u32;
                let tile_weights =
                    weight.map(|address| address + before * conv.n_steps() * plan.step_bytes);
                let mut pixel = 0;
                while pixel < output.n_pixels() {
                    let n_pixels = self.config.rows.min(output.n_pixels() - pixel);
                    let fold = Fold {
                        pixel,
                        n_pixels,
                        index,
                        channel,
                        n_channels,
                        parameter: parameter + channel - Self::first_parameter(plan, group),
                        all_padding: input.is_none(),
                        weights: tile_weights,
                    };
                    self.fold(conv, plan, &fold, &mut weights, &output, &note);
                    pixel += n_pixels;
                }
            }
            if plan.sliced || group_index + 1 == n_groups {
                self.store(&output);
            }
        }
    }

    fn note(&self, tile: usize, group: Option<&Group>) -> String {
        let [rows, columns] = self.plan.tile(tile);
        let columns = if self.plan.xs.len() > 1 {
            format!(" columns {}..{}", columns.0, columns.1)
        } else {
            String::new()
        };
        let channels = group.map_or_else(String::new, |group| {
            format!(
                " channels {}..{}",
                group.channel,
                group.channel + group.n_channels
            )
        });
        format!("rows {}..{}{columns}{channels}", rows.0, rows.1)
    }

    /// Channel of the first entry of the slot that holds a group's parameters.
    fn first_parameter(plan: &WeightPlan, group: &Group) -> u32 {
        if plan.parameters_resident {
            0
        } else {
            group.channel
        }
    }

    /// First entry of the group's slot.
    fn load_parameters(
        &mut self,
        conv: &Conv,
        plan: &WeightPlan,
        group_index: usize,
        slots: &mut Slots,
    ) -> u32 {
        let group = &plan.groups[group_index];
        let (key, n) = if plan.parameters_resident {
            (0, conv.groups * conv.group_out)
        } else {
            (group_index as u64, group.n_channels)
        };
        let (entry, missing) = slots.take(key);
        if missing {
            let first = Self::first_parameter(plan, group) * PARAMETER_BYTES;
            let access = Access::new(Memory::Parameter, true, entry, n.into());
            let load = (u64::from(conv.parameters + first), entry * PARAMETER_BYTES);
            self.load_run(2, load, u64::from(n * PARAMETER_BYTES), access);
        }
        entry
    }

    /// First byte of the group's slot.
    fn load_weights(
        &mut self,
        conv: &Conv,
        plan: &WeightPlan,
        group_index: usize,
        slots: &mut Slots,
    ) -> u32 {
        let group = &plan.groups[group_index];
        let (address, missing) = slots.take(group_index as u64);
        if missing {
            let tile_bytes = u64::from(plan.step_bytes) * u64::from(conv.n_steps());
            let bytes = tile_bytes * group.n_tiles as u64;
            let dram = u64::from(conv.weights) + tile_bytes * group.first_tile as u64;
            let access = Access::new(Memory::Weight, true, address, bytes);
            self.load_run(1, (dram, address), bytes, access);
        }
        address
    }

    /// The input tile on chip; `None` when the outputs read only padding.
    fn load_conv_input(&mut self, conv: &Conv, tile: usize) -> Option<Access> {
        self.load_tile(0, tile, &conv.input, &conv.window)
    }

    fn load_tile(
        &mut self,
        operand: usize,
        tile: usize,
        map: &Map,
        window: &crate::job::Window,
    ) -> Option<Access> {
        let [rows, columns] = self.plan.tile(tile);
        let y = window.span(0, rows, map.height)?;
        let x = window.span(1, columns, map.width)?;
        let (chip, missing) = self.inputs[operand].take(tile as u64);
        let row_bytes = x.len * map.pixel_bytes;
        let mut access = Access::new(
            Memory::Activation,
            true,
            chip,
            u64::from(row_bytes) * u64::from(y.len),
        );
        if missing {
            let transfer = Transfer {
                dram: pixel_address(map, y.start, x.start),
                chip,
                dram_pitch: map.width * map.pixel_bytes,
                chip_pitch: row_bytes,
                n_rows: y.len,
                row_bytes,
            };
            self.load_rows(transfer, access);
        }
        access.write = false;
        Some(access)
    }

    fn output_tile(&mut self, tile: usize, slice: Option<(usize, &Group)>) -> OutputTile {
        let [rows, columns] = self.plan.tile(tile);
        let n_tiles = self.plan.n_tiles() as u64;
        let map = &self.job.output;
        let (key, channel, n_channels, pixel_bytes) = match slice {
            None => (tile as u64, 0, map.channels, map.pixel_bytes),
            Some((index, group)) => {
                let bytes = (group.n_channels * map.bits).div_ceil(8);
                let key = index as u64 * n_tiles + tile as u64;
                (key, group.channel, group.n_channels, bytes)
            }
        };
        let (address, _) = self.output.take(key);
        let mut output = OutputTile {
            rows,
            columns,
            channel,
            n_channels,
            address,
            pixel_bytes,
            len: 0,
            second: None,
        };
        output.len = u64::from(output.n_pixels()) * u64::from(pixel_bytes);
        if let Some(second) = self.job.second
            && reaches(&second, &output)
        {
            output.second = Some(self.load_second(&second, tile));
        }
        output
    }

    /// Loads the rows that the second operand's stride keeps, all columns between them.
    fn load_second(&mut self, second: &Second, tile: usize) -> Access {
        let [rows, columns] = self.plan.tile(tile);
        let map = &second.map;
        let (chip, missing) = self.second.take(tile as u64);
        let row_bytes = second_width(second, columns) * map.pixel_bytes;
        let n_rows = rows.1 - rows.0;
        let mut access = Access::new(
            Memory::Activation,
            true,
            chip,
            u64::from(row_bytes) * u64::from(n_rows),
        );
        if missing {
            let transfer = Transfer {
                dram: pixel_address(map, rows.0 * second.stride[0], columns.0 * second.stride[1]),
                chip,
                // The stride of a single row may be larger than the tensor.
                dram_pitch: if n_rows == 1 {
                    row_bytes
                } else {
                    second.stride[0] * map.width * map.pixel_bytes
                },
                chip_pitch: row_bytes,
                n_rows,
                row_bytes,
            };
            self.load_rows(transfer, access);
        }
        access.write = false;
        access
    }

    /// The `kernel`, and the part of the `input` that all groups share.
    fn set_input(&mut self, conv: &Conv, tile: usize, group: &Group, input: Option<Access>) {
        let [rows, columns] = self.plan.tile(tile);
        let window = &conv.window;
        let spans = input.and_then(|_| {
            let y = window.span(0, rows, conv.input.height)?;
            Some((y, window.span(1, columns, conv.input.width)?))
        });
        // Where everything is padding, one pixel is described and the folds start a row below it.
        let (height, width, pad_top, pad_left) =
            spans.map_or((1, 1, 0, 0), |(y, x)| (y.len, x.len, y.pad, x.pad));
        let kernel = Kernel {
            height: window.kernel[0],
            width: window.kernel[1],
            stride_y: window.stride[0],
            stride_x: window.stride[1],
            dilation_y: window.dilation[0],
            dilation_x: window.dilation[1],
            pad_top,
            pad_left,
            output_width: columns.1 - columns.0,
        };
        if self.registers.kernel != Some(kernel) {
            self.registers.kernel = Some(kernel);
            self.work(kernel, Vec::new());
        }
        let input = Input {
            address: input.map_or(self.plan.inputs[0].base, |access| access.from as u32),
            width,
            height,
            pixel_bytes: conv.input.pixel_bytes,
            channel: group.channel / conv.group_out * conv.group_in,
            n_channels: conv.group_in,
            wide_activations: conv.input.wide(),
            signed_activations: conv.input.signed.into(),
            wide_weights: conv.wide_weights.into(),
        };
        if self.registers.input != Some(input) {
            self.registers.input = Some(input);
            self.work(input, Vec::new());
        }
    }

    /// Moves the `input` to the channels that an output channel reads.
    fn set_group(&mut self, conv: &Conv, channel: u32) {
        let Some(mut input) = self.registers.input else {
            return;
        };
        let first = channel / conv.group_out * conv.group_in;
        if input.channel != first {
            input.channel = first;
            self.registers.input = Some(input);
            self.work(input, Vec::new());
        }
    }

    /// `destination`, `residual` and `slope`.
    fn set_destination(&mut self, output: &OutputTile) {
        let destination = Destination {
            address: output.address,
            width: output.width(),
            pixel_bytes: output.pixel_bytes,
            size: match self.job.output.bits {
                4 => 0,
                8 => 1,
                _ => 2,
            },
            q_min: self.job.q_min,
            q_max: self.job.q_max,
        };
        if self.registers.destination != Some(destination) {
            self.registers.destination = Some(destination);
            self.work(destination, Vec::new());
        }
        if let (Some(second), Some(access)) = (&self.job.second, output.second) {
            let skipped = output.channel.saturating_sub(second.channel);
            let width = second_width(second, output.columns);
            let residual = Residual {
                address: access.from as u32 + skipped * second.map.bits / 8,
                width,
                pixel_bytes: second.map.pixel_bytes,
                wide: second.map.wide(),
                signed: second.map.signed.into(),
                stride_y: 1,
                stride_x: if output.width() == 1 {
                    1
                } else {
                    second.stride[1]
                },
                mantissa: second.mantissa,
                shift: second.shift,
                channel: second.channel.saturating_sub(output.channel),
                n_channels: second.map.channels - skipped,
            };
            if self.registers.residual != Some(residual) {
                self.registers.residual = Some(residual);
                self.work(residual, Vec::new());
            }
        }
        if let Some((mantissa, shift)) = self.job.slope {
            let slope = Slope { mantissa, shift };
            if self.registers.slope != Some(slope) {
                self.registers.slope = Some(slope);
                self.work(slope, Vec::new());
            }
        }
    }

    /// One fold: its `matmul`s and its `requantize`. Streamed weights are loaded chunk by chunk,
    /// each in a stage of its own.
    fn fold(
        &mut self,
        conv: &Conv,
        plan: &WeightPlan,
        fold: &Fold,
        slots: &mut Slots,
        output: &OutputTile,
        note: &str,
    ) {
        let n_steps = conv.n_steps();
        let block = self.next_block;
        self.next_block = (block + 1) % self.config.n_blocks;
        let mut k = 0;
        while k < n_steps {
            let n = plan.chunk_steps.min(n_steps - k);
            let bytes = n * plan.step_bytes;
            let address = fold.weights.map_or_else(
                || {
                    if k > 0
                        || self
                            .stages
                            .last()
                            .is_some_and(|stage| !stage.work.is_empty())
                    {
                        self.begin(note);
                    }
                    let step = fold.index as u64 * u64::from(n_steps) + u64::from(k);
                    let (address, missing) = slots.take(step);
                    if missing {
                        let dram = u64::from(conv.weights) + step * u64::from(plan.step_bytes);
                        let access = Access::new(Memory::Weight, true, address, bytes.into());
                        self.load_run(1, (dram, address), bytes.into(), access);
                    }
                    address
                },
                |address| address + k * plan.step_bytes,
            );
            self.matmul(conv, fold, (address, bytes), block, (k, n));
            k += n;
        }
        let (y, x) = (fold.pixel / output.width(), fold.pixel % output.width());
        let n_channels = fold.n_channels;
        let requantize = Requantize {
            block,
            y,
            x,
            rows_minus_1: fold.n_pixels - 1,
            cols_minus_1: n_channels - 1,
            parameter: fold.parameter,
            channel: fold.channel - output.channel,
            add_residual: output.second.is_some().into(),
            use_slope: self.job.slope.is_some().into(),
        };
        let mut accesses = vec![
            Access::new(Memory::Block, false, block, 1),
            Access::new(Memory::Parameter, false, fold.parameter, n_channels.into()),
            Access::new(Memory::Activation, true, output.address, output.len),
        ];
        accesses.extend(output.second);
        self.work(requantize, accesses);
    }

    fn matmul(
        &mut self,
        conv: &Conv,
        fold: &Fold,
        (address, bytes): (u32, u32),
        block: u32,
        (k, n_steps): (u32, u32),
    ) {
        let Some(input) = self.registers.input else {
            return;
        };
        let Some(kernel) = self.registers.kernel else {
            return;
        };
        let (first, last) = (k == 0, k + n_steps == conv.n_steps());
        let matmul = Matmul {
            y: fold.pixel / kernel.output_width + u32::from(fold.all_padding),
            x: fold.pixel % kernel.output_width,
            rows_minus_1: fold.n_pixels - 1,
            cols_minus_1: fold.n_channels - 1,
            weight_line: address / self.config.line_bytes(),
            block,
            n_steps,
            first: first.into(),
            last: last.into(),
            parameter: fold.parameter,
            channel: conv.counter + fold.channel,
        };
        let tile_bytes = u64::from(input.width * input.height) * u64::from(conv.input.pixel_bytes);
        let mut accesses = vec![Access::new(Memory::Weight, false, address, bytes.into())];
        if !fold.all_padding {
            accesses.push(Access::new(
                Memory::Activation,
                false,
                input.address,
                tile_bytes,
            ));
        }
        if first {
            let n = fold.n_channels.into();
            accesses.push(Access::new(Memory::Parameter, false, fold.parameter, n));
        }
        if last {
            accesses.push(Access::new(Memory::Block, true, block, 1));
        }
        self.work(matmul, accesses);
    }
}

/// A block of outputs: pixels of one tile × channels of one column tile.
struct Fold {
    /// First pixel, counted within the tile.
    pixel: u32,
    n_pixels: u32,
    /// Column tile.
    index: usize,
    channel: u32,
    n_channels: u32,
    /// Parameter table entry of column 0.
    parameter: u32,
    /// No tap of the tile lies inside the input.
    all_padding: bool,
    /// First byte of the column tile's weights; `None` when they are streamed.
    weights: Option<u32>,
}

fn pixel_address(map: &Map, y: u32, x: u32) -> u64 {
    let index = u64::from(y) * u64::from(map.width) + u64::from(x);
    u64::from(map.address) + index * u64::from(map.pixel_bytes)
}

/// Columns of the second operand that a run of output columns spans.
fn second_width(second: &Second, columns: (u32, u32)) -> u32 {
    (columns.1 - 1 - columns.0) * second.stride[1] + 1
}

/// Whether the second operand has channels in the tile.
fn reaches(second: &Second, output: &OutputTile) -> bool {
    second.channel < output.channel + output.n_channels
        && output.channel < second.channel + second.map.channels
}
