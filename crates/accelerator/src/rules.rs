//! The rules that a program obeys before it runs, and what each instruction is worth.
//!
//! [`resolve`] walks the stream once, gives every instruction the registers that it will find, and
//! refuses what the machine cannot do. Invariant: every address of a resolved instruction lies
//! inside its memory, so the models index without doubt.

mod depthwise;
mod stationary;

pub(crate) use depthwise::weight_bytes;
pub(crate) use stationary::Held;

use crate::{
    Config, Dataflow, DramConfig, DramTraffic, Fault, FaultKind, LayerTiming, Timing,
    stats::Activity,
};
use arith::{Bytes, Cycles};
use isa::{
    Depthwise, Destination, Filter, Input, Kernel, Load, Matmul, Op, Pool, Program, Requantize,
    Residual, Slope, Source, Store, Stream, Window,
};

/// Bytes of a parameter table entry.
pub(crate) const PARAMETER_BYTES: u32 = 8;

/// Cycles a product takes: one for each pair of nibbles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes(pub u32);

impl Passes {
    /// 1, 2 or 4.
    pub const fn of(input: &Input) -> Self {
        Self((1 + input.wide_activations) * (1 + input.wide_weights))
    }
}

/// An instruction with the registers that it finds when it starts.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Sets registers, or fences.
    Setup,
    /// DRAM to chip: memory, first bytes, pitches, rows.
    Load(Load, Pitch),
    /// Chip to DRAM.
    Store(Store, Pitch),
    /// Steps of a fold; `k` is the step at which it goes on.
    Matmul {
        matmul: Matmul,
        input: Input,
        kernel: Kernel,
        k: u32,
    },
    /// Operands into the PEs.
    Preload { held: Held },
    /// Elements through the PEs; `held.is_fresh` when it is the first after the preload.
    Stream {
        stream: Stream,
        input: Input,
        kernel: Kernel,
        held: Held,
    },
    /// Accumulator block to activations.
    Requantize {
        requantize: Requantize,
        to: Destination,
        residual: Residual,
        slope: Slope,
    },
    /// Activations to activations.
    Pool {
        pool: Pool,
        source: Source,
        window: Window,
        to: Destination,
        residual: Residual,
        slope: Slope,
    },
    /// Activations to activations, through the lanes' accumulators.
    Depthwise {
        depthwise: Depthwise,
        filter: Filter,
        source: Source,
        window: Window,
        to: Destination,
        residual: Residual,
        slope: Slope,
    },
}

/// Distances between rows of a DMA transfer, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pitch {
    pub dram: u32,
    pub chip: u32,
}

/// Refuses a program that the machine cannot run.
///
/// # Errors
/// The first instruction that breaks a rule of `docs/machine.md`, section Faults.
pub fn check_program(program: &Program, config: &Config) -> Result<(), Fault> {
    for_each_work(program, config, |_, _| ())
}

#[derive(Clone, Default)]
pub(crate) struct Registers {
    load: Pitch,
    store: Pitch,
    input: Option<Input>,
    kernel: Option<Kernel>,
    source: Option<Source>,
    window: Option<Window>,
    filter: Option<Filter>,
    destination: Option<Destination>,
    residual: Option<Residual>,
    slope: Option<Slope>,
    /// The fold that is open, and the steps it has done.
    pub(crate) fold: Option<(Matmul, u32)>,
    /// What the PEs hold.
    pub(crate) held: Option<Held>,
}

/// Every instruction with its registers; see the module's invariant.
pub(crate) fn resolve(program: &Program, config: &Config) -> Result<Vec<Work>, Fault> {
    let mut works = Vec::with_capacity(program.instructions.len());
    for_each_work(program, config, |_, work| works.push(work.clone()))?;
    Ok(works)
}

/// Shows every instruction with its registers to `see`: [`resolve`] without the list.
pub(crate) fn for_each_work(
    program: &Program,
    config: &Config,
    mut see: impl FnMut(usize, &Work),
) -> Result<(), Fault> {
    let at = |index: usize, kind| Fault {
        index,
        mnemonic: program
            .instructions
            .get(index)
            .map_or("program", |i| i.op.mnemonic()),
        kind,
    };
    let machine = config.fingerprint();
    if program.machine != machine {
        return Err(at(
            0,
            FaultKind::OtherMachine {
                program: program.machine,
                machine,
            },
        ));
    }
    inside(program.dram_bytes, "DRAM", config.dram.size_bytes).map_err(|kind| at(0, kind))?;
    inside(program.data.len() as u64, "DRAM", program.dram_bytes).map_err(|kind| at(0, kind))?;
    let mut registers = Registers::default();
    for (index, instruction) in program.instructions.iter().enumerate() {
        // Looked at where it was made: moving it would cost as much as making it.
        match &registers.step(&instruction.op, program, config) {
            Ok(work) => see(index, work),
            Err(kind) => return Err(at(index, kind.clone())),
        }
    }
    if registers.fold.is_some() {
        let rule = "the program ends before the fold's last matmul";
        return Err(at(program.instructions.len() - 1, FaultKind::Fold { rule }));
    }
    Ok(())
}

impl Registers {
    /// The instruction with its registers, which it may change.
    pub(crate) fn step(
        &mut self,
        op: &Op,
        program: &Program,
        config: &Config,
    ) -> Result<Work, FaultKind> {
        match *op {
            Op::Fence(_) => {}
            Op::LoadPitch(p) => {
                self.load = Pitch {
                    dram: p.dram_pitch,
                    chip: p.chip_pitch,
                }
            }
            Op::StorePitch(p) => {
                self.store = Pitch {
                    dram: p.dram_pitch,
                    chip: p.chip_pitch,
                }
            }
            Op::Load(load) => {
                let (name, size) = match load.memory {
                    0 => ("the activation scratchpad", config.activation_bytes),
                    1 => ("the weight scratchpad", config.weight_bytes),
                    2 => ("the parameter table", config.n_parameters * PARAMETER_BYTES),
                    other => return Err(operand("memory", other, "must be 0, 1 or 2")),
                };
                let rows = (load.n_rows, load.row_bytes);
                block(
                    load.chip_address,
                    self.load.chip,
                    rows,
                    name,
                    u64::from(size),
                )?;
                block(
                    load.dram_address,
                    self.load.dram,
                    rows,
                    "DRAM",
                    program.dram_bytes,
                )?;
                return Ok(Work::Load(load, self.load));
            }
            Op::Store(store) => {
                let rows = (store.n_rows, store.row_bytes);
                let size = u64::from(config.activation_bytes);
                let name = "the activation scratchpad";
                block(store.chip_address, self.store.chip, rows, name, size)?;
                block(
                    store.dram_address,
                    self.store.dram,
                    rows,
                    "DRAM",
                    program.dram_bytes,
                )?;
                return Ok(Work::Store(store, self.store));
            }
            Op::Input(input) => {
                self.refuse_open_fold()?;
                positive("n_channels", input.n_channels)?;
                pixel(
                    input.channel + input.n_channels,
                    input.wide_activations,
                    input.pixel_bytes,
                )?;
                tile(
                    input.address,
                    input.width,
                    input.height,
                    input.pixel_bytes,
                    config,
                )?;
                self.input = Some(input);
            }
            Op::Kernel(kernel) => {
                self.refuse_open_fold()?;
                positive("height", kernel.height)?;
                positive("width", kernel.width)?;
                positive("output_width", kernel.output_width)?;
                self.kernel = Some(kernel);
            }
            Op::Matmul(matmul) => return self.matmul(matmul, program, config),
            Op::Preload(preload) => return self.preload(preload, config),
            Op::Stream(stream) => return self.stream(stream, program, config),
            Op::Source(source) => {
                tile(
                    source.address,
                    source.width,
                    source.height,
                    source.pixel_bytes,
                    config,
                )?;
                self.source = Some(source);
            }
            Op::Window(window) => {
                positive("height", window.height)?;
                positive("width", window.width)?;
                self.window = Some(window);
            }
            Op::Destination(destination) => {
                positive("width", destination.width)?;
                if destination.size > 2 {
                    return Err(operand("size", destination.size, "must be 0, 1 or 2"));
                }
                if destination.q_min > destination.q_max {
                    let rule = "must not exceed q_max";
                    return Err(operand("q_min", destination.q_min, rule));
                }
                self.destination = Some(destination);
            }
            Op::Residual(residual) => {
                if residual.shift > u32::from(arith::Requant::MAX_SHIFT) {
                    return Err(operand("shift", residual.shift, "must be at most 47"));
                }
                self.residual = Some(residual);
            }
            Op::Slope(slope) => self.slope = Some(slope),
            Op::Requantize(requantize) => return self.requantize(requantize, config),
            Op::Pool(pool) => return self.pool(pool, config),
            Op::Filter(filter) => {
                depthwise::check_machine(config)?;
                self.filter = Some(filter);
            }
            Op::Depthwise(depthwise) => return self.depthwise(depthwise, program, config),
        }
        Ok(Work::Setup)
    }

    fn refuse_open_fold(&self) -> Result<(), FaultKind> {
        match self.fold {
            None => Ok(()),
            Some(_) => Err(FaultKind::Fold {
                rule: "only matmul may follow until its last",
            }),
        }
    }

    fn matmul(
        &mut self,
        matmul: Matmul,
        program: &Program,
        config: &Config,
    ) -> Result<Work, FaultKind> {
        if config.dataflow != Dataflow::OutputStationary {
            let needs = "array.dataflow = \"output-stationary\"";
            return Err(FaultKind::NotOnThisMachine { needs });
        }
        let input = set("input", self.input.as_ref())?;
        let kernel = set("kernel", self.kernel.as_ref())?;
        let k = match self.fold {
            None if matmul.first == 1 => 0,
            None => {
                return Err(FaultKind::Fold {
                    rule: "it must begin with first = 1",
                });
            }
            Some(_) if matmul.first == 1 => {
                return Err(FaultKind::Fold {
                    rule: "the fold before has not had its last",
                });
            }
            Some((open, k)) => {
                let same = |m: Matmul| {
                    (
                        m.y,
                        m.x,
                        m.rows_minus_1,
                        m.cols_minus_1,
                        m.parameter,
                        m.channel,
                        m.block,
                    )
                };
                if same(open) != same(matmul) {
                    let rule = "pixels, columns, parameters, counters and block must stay";
                    return Err(FaultKind::Fold { rule });
                }
                k
            }
        };
        positive("n_steps", matmul.n_steps)?;
        let k_end = k + matmul.n_steps;
        let window = u64::from(kernel.height * kernel.width) * u64::from(input.n_channels);
        if u64::from(k_end) > window {
            let rule = "more steps than kernel taps times channels";
            return Err(operand("n_steps", matmul.n_steps, rule));
        }
        below("rows_minus_1", matmul.rows_minus_1, config.rows)?;
        below("cols_minus_1", matmul.cols_minus_1, config.cols)?;
        below("block", matmul.block, config.n_blocks)?;
        below("x", matmul.x, kernel.output_width)?;
        let lines = u64::from(matmul.n_steps) * u64::from(1 + input.wide_weights);
        let n_lines = u64::from(config.weight_bytes / config.line_bytes());
        inside(
            u64::from(matmul.weight_line) + lines,
            "the weight scratchpad (lines)",
            n_lines,
        )?;
        parameters(matmul.parameter, matmul.cols_minus_1, config)?;
        let counters = u64::from(matmul.channel + matmul.cols_minus_1) + 1;
        inside(
            counters,
            "the overflow counters",
            u64::from(program.n_channels),
        )?;
        self.fold = (matmul.last == 0).then_some((matmul, k_end));
        Ok(Work::Matmul {
            matmul,
            input: *input,
            kernel: *kernel,
            k,
        })
    }

    fn requantize(&self, requantize: Requantize, config: &Config) -> Result<Work, FaultKind> {
        let to = set("destination", self.destination.as_ref())?;
        below("block", requantize.block, config.n_blocks)?;
        inside(
            u64::from(requantize.row + requantize.rows_minus_1) + 1,
            "the accumulator block (rows)",
            config.block_rows.into(),
        )?;
        below("cols_minus_1", requantize.cols_minus_1, config.cols)?;
        let (n_pixels, n_channels) = block_extents(&requantize, config.dataflow);
        parameters(requantize.parameter, n_channels - 1, config)?;
        let area = Area {
            y: requantize.y,
            x: requantize.x,
            n_pixels,
            channels: requantize.channel..requantize.channel + n_channels,
        };
        area.check(to, config)?;
        let residual = self.second_operand(requantize.add_residual, &area, to, config)?;
        let slope = self.slope(requantize.use_slope)?;
        Ok(Work::Requantize {
            requantize,
            to: *to,
            residual: residual.copied().unwrap_or(NO_RESIDUAL),
            slope,
        })
    }

    fn pool(&self, pool: Pool, config: &Config) -> Result<Work, FaultKind> {
        let to = set("destination", self.destination.as_ref())?;
        let source = set("source", self.source.as_ref())?;
        let window = set("window", self.window.as_ref())?;
        positive("n_pixels", pool.n_pixels)?;
        positive("n_channels", pool.n_channels)?;
        if pool.shift > u32::from(arith::Requant::MAX_SHIFT) {
            return Err(operand("shift", pool.shift, "must be at most 47"));
        }
        if source.height > 0 {
            pixel(
                pool.source_channel + pool.n_channels,
                source.wide,
                source.pixel_bytes,
            )?;
        }
        let area = Area {
            y: pool.y,
            x: pool.x,
            n_pixels: pool.n_pixels,
            channels: pool.channel..pool.channel + pool.n_channels,
        };
        area.check(to, config)?;
        let residual = self.second_operand(pool.add_residual, &area, to, config)?;
        if let Some(residual) = residual {
            check_alignment(pool.shift, residual.shift)?;
        }
        let slope = self.slope(pool.use_slope)?;
        Ok(Work::Pool {
            pool,
            source: *source,
            window: *window,
            to: *to,
            residual: residual.copied().unwrap_or(NO_RESIDUAL),
            slope,
        })
    }

    fn slope(&self, wanted: u32) -> Result<Slope, FaultKind> {
        if wanted == 1 {
            set("slope", self.slope.as_ref()).copied()
        } else {
            Ok(Slope {
                mantissa: 1,
                shift: 0,
            })
        }
    }

    /// The residual register, with its reach inside the scratchpad; `None` when it is not wanted or
    /// reaches nothing.
    fn second_operand(
        &self,
        wanted: u32,
        area: &Area,
        to: &Destination,
        config: &Config,
    ) -> Result<Option<&Residual>, FaultKind> {
        if wanted == 0 {
            return Ok(None);
        }
        let residual = set("residual", self.residual.as_ref())?;
        let first = area.channels.start.max(residual.channel);
        let behind = area
            .channels
            .end
            .min(residual.channel + residual.n_channels);
        if first >= behind {
            return Ok(None);
        }
        pixel(
            behind - residual.channel,
            residual.wide,
            residual.pixel_bytes,
        )?;
        let last = area.x + area.n_pixels - 1;
        let last_y = u64::from(area.y + last / to.width) * u64::from(residual.stride_y);
        let widest = if last >= to.width { to.width - 1 } else { last };
        let last_x = u64::from(widest) * u64::from(residual.stride_x);
        let pixels = last_y * u64::from(residual.width) + last_x + 1;
        let behind = u64::from(residual.address) + pixels * u64::from(residual.pixel_bytes);
        inside(
            behind,
            "the activation scratchpad",
            u64::from(config.activation_bytes),
        )?;
        Ok(Some(residual))
    }
}

/// What an instruction without a second operand finds.
const NO_RESIDUAL: Residual = Residual {
    address: 0,
    width: 0,
    pixel_bytes: 0,
    wide: 0,
    signed: 0,
    stride_y: 0,
    stride_x: 0,
    mantissa: 0,
    shift: 0,
    channel: 0,
    n_channels: 0,
};

/// Pixels and channels that a result covers.
struct Area {
    y: u32,
    x: u32,
    n_pixels: u32,
    channels: std::ops::Range<u32>,
}

impl Area {
    fn check(&self, to: &Destination, config: &Config) -> Result<(), FaultKind> {
        below("x", self.x, to.width)?;
        let bits = u64::from(self.channels.end) * (4 << to.size);
        if bits.div_ceil(8) > u64::from(to.pixel_bytes) {
            let rule = "the destination's pixels have fewer channels";
            return Err(operand("channel", self.channels.end, rule));
        }
        let pixels = u64::from(self.y) * u64::from(to.width) + u64::from(self.x + self.n_pixels);
        let behind = u64::from(to.address) + pixels * u64::from(to.pixel_bytes);
        inside(
            behind,
            "the activation scratchpad",
            u64::from(config.activation_bytes),
        )
    }
}

/// The residual is aligned by a left shift of 0 to 30, which keeps every sum exact in 64 bits.
pub(crate) fn check_alignment(shift: u32, residual_shift: u32) -> Result<(), FaultKind> {
    match shift.checked_sub(residual_shift) {
        Some(0..=30) => Ok(()),
        _ => Err(operand(
            "shift",
            shift,
            "must be 0 to 30 above the residual's shift",
        )),
    }
}

/// Pixels and channels of a block that `requantize` takes.
pub(crate) fn block_extents(requantize: &Requantize, dataflow: Dataflow) -> (u32, u32) {
    let (rows, cols) = (requantize.rows_minus_1 + 1, requantize.cols_minus_1 + 1);
    match dataflow {
        Dataflow::OutputStationary | Dataflow::WeightStationary => (rows, cols),
        Dataflow::InputStationary => (cols, rows),
    }
}

fn operand(field: &'static str, value: impl Into<i64>, rule: &'static str) -> FaultKind {
    FaultKind::Operand {
        field,
        value: value.into(),
        rule,
    }
}

/// A register that must have been set; lent, as moving it through a result would cost more than the rest.
fn set<'a, T>(field: &'static str, register: Option<&'a T>) -> Result<&'a T, FaultKind> {
    register.ok_or(FaultKind::Operand {
        field,
        value: 0,
        rule: "the register was never set",
    })
}

fn positive(field: &'static str, value: u32) -> Result<(), FaultKind> {
    if value == 0 {
        Err(operand(field, 0, "must be at least 1"))
    } else {
        Ok(())
    }
}

fn below(field: &'static str, value: u32, limit: u32) -> Result<(), FaultKind> {
    if value < limit {
        Ok(())
    } else {
        Err(operand(field, value, "the machine has fewer"))
    }
}

fn inside(behind: u64, memory: &'static str, size: u64) -> Result<(), FaultKind> {
    if behind <= size {
        Ok(())
    } else {
        Err(FaultKind::OutsideMemory {
            address: behind - 1,
            memory,
            size,
        })
    }
}

fn block(
    first: u32,
    pitch: u32,
    (n_rows, row_bytes): (u32, u32),
    memory: &'static str,
    size: u64,
) -> Result<(), FaultKind> {
    positive("n_rows", n_rows)?;
    positive("row_bytes", row_bytes)?;
    let span = u64::from(n_rows - 1) * u64::from(pitch) + u64::from(row_bytes);
    inside(u64::from(first) + span, memory, size)
}

fn tile(
    first: u32,
    width: u32,
    height: u32,
    pixel_bytes: u32,
    config: &Config,
) -> Result<(), FaultKind> {
    let bytes = u64::from(width) * u64::from(height) * u64::from(pixel_bytes);
    let size = u64::from(config.activation_bytes);
    inside(u64::from(first) + bytes, "the activation scratchpad", size)
}

fn pixel(n_channels: u32, wide: u32, pixel_bytes: u32) -> Result<(), FaultKind> {
    if (n_channels * (4 << wide)).div_ceil(8) > pixel_bytes {
        return Err(operand(
            "pixel_bytes",
            pixel_bytes,
            "too small for the channels",
        ));
    }
    Ok(())
}

fn parameters(first: u32, cols_minus_1: u32, config: &Config) -> Result<(), FaultKind> {
    let behind = u64::from(first + cols_minus_1) + 1;
    inside(
        behind,
        "the parameter table (entries)",
        u64::from(config.n_parameters),
    )
}

/// Cycles from the end of a matmul's stream to its end.
pub(crate) fn matmul_tail(config: &Config) -> u64 {
    2 * u64::from(config.rows) + u64::from(config.cols) - 1
}

/// How long an instruction keeps its unit from starting the next, and how long until its end;
/// `None` for DMA, whose time the DRAM decides.
pub(crate) fn occupancy(work: &Work, config: &Config) -> Option<(u64, u64)> {
    let (rows, cols) = (u64::from(config.rows), u64::from(config.cols));
    let lanes = config.lanes;
    Some(match work {
        Work::Setup => (1, 1),
        Work::Load(..) | Work::Store(..) => return None,
        Work::Matmul { matmul, input, .. } => {
            let stream = u64::from(matmul.n_steps) * u64::from(Passes::of(input).0);
            let end = stream + matmul_tail(config);
            let free = config.shadow || matmul.last == 0;
            (if free { stream } else { end }, end)
        }
        Work::Preload { held } => {
            let read = preload_cycles(held, config);
            (read, read + cols - 1)
        }
        Work::Stream { stream, input, .. } => {
            let read = stream_cycles(stream, input);
            (read, read + rows + cols)
        }
        Work::Requantize { requantize, .. } => {
            let columns = (requantize.cols_minus_1 + 1).div_ceil(lanes);
            let busy = u64::from(requantize.rows_minus_1 + 1) * u64::from(columns);
            (busy, busy + POST_STAGES)
        }
        Work::Pool { pool, window, .. } => {
            let groups = u64::from(pool.n_pixels) * u64::from(pool.n_channels.div_ceil(lanes));
            let busy = groups * u64::from(window.height) * u64::from(window.width);
            (busy, busy + POST_STAGES)
        }
        Work::Depthwise {
            depthwise,
            filter,
            source,
            window,
            ..
        } => {
            let busy = depthwise::busy(depthwise, filter, source, window, lanes);
            (busy, busy + POST_STAGES)
        }
    })
}

/// Cycles in which a `preload` reads: one for each array row and nibble, in use or not.
pub(crate) fn preload_cycles(held: &Held, config: &Config) -> u64 {
    let planes = match config.dataflow {
        Dataflow::OutputStationary | Dataflow::WeightStationary => 1 + held.input.wide_weights,
        Dataflow::InputStationary => 1 + held.input.wide_activations,
    };
    u64::from(config.rows) * u64::from(planes)
}

/// Cycles in which a `stream` reads.
pub(crate) fn stream_cycles(stream: &Stream, input: &Input) -> u64 {
    u64::from(stream.n_minus_1 + 1) * u64::from(Passes::of(input).0)
}

/// Read, multiply, shift and clamp, write.
pub(crate) const POST_STAGES: u64 = 4;

/// A piece of a row that the channel carries at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burst {
    /// First byte in DRAM.
    pub address: u64,
    /// Cycles that it keeps the data bus.
    pub bus_cycles: u64,
    /// Bus words that it touches.
    pub n_words: u64,
}

/// What a transfer's bursts come to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub n_bursts: u64,
    pub bus_cycles: u64,
    pub n_words: u64,
}

/// The sums over the bursts of a transfer's rows; the same for either direction.
pub(crate) fn traffic(first: u32, pitch: u32, rows: (u32, u32), dram: &DramConfig) -> Traffic {
    let mut bursts = Bursts::new(first, pitch, rows, dram);
    let mut sum = Traffic::default();
    while !bursts.is_done() {
        // Equal ones at once; the last of them may end its row.
        let n = bursts.n_whole(dram).max(1);
        let burst = bursts.next(dram);
        bursts.skip(n - 1, dram);
        sum.n_bursts += n;
        sum.bus_cycles += n * burst.bus_cycles;
        sum.n_words += n * burst.n_words;
    }
    sum
}

/// The bursts of a transfer that are left.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bursts {
    /// First byte of the row at work.
    row_at: u64,
    pitch: u64,
    /// Rows that are left, with the one at work.
    n_rows: u32,
    row_bytes: u64,
    /// Bytes of the row that are done.
    done: u64,
}

impl Bursts {
    pub fn new(first: u32, pitch: u32, (n_rows, row_bytes): (u32, u32), dram: &DramConfig) -> Self {
        let mut bursts = Self {
            row_at: first.into(),
            pitch: pitch.into(),
            n_rows,
            row_bytes: row_bytes.into(),
            done: 0,
        };
        // Rows without gaps, all of whole bursts, are one row.
        let is_whole = |bytes: u32| bytes.is_multiple_of(dram.burst_bytes);
        if pitch == row_bytes && is_whole(first) && is_whole(row_bytes) && n_rows > 0 {
            bursts.row_bytes *= u64::from(n_rows);
            bursts.n_rows = 1;
        }
        bursts
    }

    pub const fn is_done(&self) -> bool {
        self.n_rows == 0
    }

    /// The next burst of a transfer that is not done: it ends with its row, or before the next
    /// multiple of the burst's size.
    #[inline]
    pub fn next(&mut self, dram: &DramConfig) -> Burst {
        let from = self.row_at + self.done;
        // Both sizes are powers of two.
        let to_boundary = dram.burst_bytes - (from as u32 & (dram.burst_bytes - 1));
        let length = u64::from(to_boundary).min(self.row_bytes - self.done);
        self.pass(length);
        Burst {
            address: from,
            bus_cycles: dram.bus_cycles(from, length),
            n_words: dram.n_words(from, length),
        }
    }

    /// How many bursts of full size come next in the row at work.
    #[inline]
    pub fn n_whole(&self, dram: &DramConfig) -> u64 {
        let from = self.row_at + self.done;
        let into_burst = from & u64::from(dram.burst_bytes - 1);
        if self.n_rows == 0 || into_burst != 0 {
            return 0;
        }
        (self.row_bytes - self.done) >> dram.burst_bytes.trailing_zeros()
    }

    /// Passes over bursts of full size, at most as many as come next in the row.
    #[inline]
    pub fn skip(&mut self, n: u64, dram: &DramConfig) {
        if n > 0 {
            self.pass(n * u64::from(dram.burst_bytes));
        }
    }

    fn pass(&mut self, length: u64) {
        self.done += length;
        if self.done == self.row_bytes {
            self.row_at += self.pitch;
            self.n_rows -= 1;
            self.done = 0;
        }
    }
}

/// Adds an instruction's work to its layer.
fn charge(layer: &mut LayerTiming, work: &Work, config: &Config) {
    match work {
        Work::Load(l, p) => {
            let rows = (l.n_rows, l.row_bytes);
            charge_rows(
                &mut layer.loaded,
                l.dram_address,
                p.dram,
                rows,
                &config.dram,
            );
        }
        Work::Store(s, p) => {
            let rows = (s.n_rows, s.row_bytes);
            charge_rows(
                &mut layer.stored,
                s.dram_address,
                p.dram,
                rows,
                &config.dram,
            );
        }
        Work::Matmul { matmul, input, .. } => {
            let stream = u64::from(matmul.n_steps) * u64::from(Passes::of(input).0);
            layer.array_busy += Cycles(stream);
            let used = (matmul.rows_minus_1 + 1) * (matmul.cols_minus_1 + 1);
            layer.mac_passes += stream * u64::from(used);
        }
        Work::Depthwise {
            depthwise,
            filter,
            source,
            window,
            ..
        } => {
            let busy = depthwise::busy(depthwise, filter, source, window, config.lanes);
            layer.lanes_busy += Cycles(busy);
            layer.lane_passes += depthwise::busy(depthwise, filter, source, window, 1);
        }
        Work::Stream {
            stream,
            input,
            held,
            ..
        } => {
            let cycles = stream_cycles(stream, input);
            layer.array_busy += Cycles(cycles);
            let used = held.n_steps() * (stream.cols_minus_1 + 1);
            layer.mac_passes += cycles * u64::from(used);
        }
        Work::Setup | Work::Preload { .. } | Work::Requantize { .. } | Work::Pool { .. } => {}
    }
}

fn charge_rows(to: &mut DramTraffic, first: u32, pitch: u32, rows: (u32, u32), dram: &DramConfig) {
    let traffic = traffic(first, pitch, rows, dram);
    to.payload += Bytes(u64::from(rows.0) * u64::from(rows.1));
    to.n_bursts += traffic.n_bursts;
    to.bus += Cycles(traffic.bus_cycles);
}

/// Adds every instruction's work to its layer, and tells when each kind of work goes on; see
/// [`crate::Owner`] for the kinds.
pub(crate) fn account(
    timing: &Timing,
    program: &Program,
    config: &Config,
    layers: &mut [LayerTiming],
) -> Activity {
    for (rows, &layer) in timing.rows.iter().zip(&program.layer_of) {
        layers[layer as usize].rows.add(rows);
    }
    let mut activity = Activity {
        operands_until: vec![0; program.layers.len()],
        ..Activity::default()
    };
    let [compute, fill, drain, post, dram, load, store] = &mut activity.intervals;
    let see = |index: usize, work: &Work| {
        let layer = program.layer_of[index] as usize;
        charge(&mut layers[layer], work, config);
        let (start, end) = (timing.start[index], timing.end[index]);
        match work {
            Work::Setup => {}
            Work::Matmul { matmul, input, .. } => {
                let stream = u64::from(matmul.n_steps) * u64::from(Passes::of(input).0);
                compute.push((start, start + stream));
                if matmul.last == 1 {
                    // The first value leaves column 0 in cycle `start + S + R`. Inside a fold
                    // nobody waits for the wavefront.
                    let drains_from = start + stream + u64::from(config.rows);
                    fill.push((start + stream, drains_from));
                    drain.push((drains_from, end));
                }
                let until = &mut activity.operands_until[layer];
                *until = (*until).max(start + stream);
            }
            Work::Preload { .. } => fill.push((start, end)),
            Work::Stream { stream, input, .. } => {
                let taken = start + stream_cycles(stream, input);
                // The first element leaves column 0 after its passes through all rows.
                let first = u64::from(Passes::of(input).0) + u64::from(config.rows);
                let drains_from = taken.max(start + first);
                compute.push((start, taken));
                fill.push((taken, drains_from));
                drain.push((drains_from, end));
                let until = &mut activity.operands_until[layer];
                *until = (*until).max(taken);
            }
            Work::Requantize { .. } | Work::Pool { .. } | Work::Depthwise { .. } => {
                post.push((start, end));
                activity.post_takes.push((start, end - POST_STAGES));
            }
            Work::Load(..) => load.push((start, end)),
            Work::Store(..) => store.push((start, end)),
        }
    };
    for_each_work(program, config, see).expect("a program that was timed keeps the rules");
    dram.clone_from(&timing.bus);
    activity
}
