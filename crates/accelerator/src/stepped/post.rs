//! The post unit: read, multiply, shift and clamp, write; `lanes` elements side by side.
//!
//! Invariant: an instruction carries its registers with it, so the next one may set them while its
//! results are still on their way.

#![expect(
    clippy::inline_always,
    reason = "lanes' records that are handed over in memory cost more than what they hold"
)]

use super::{
    Wires,
    lanes::{self, Lane, MacOperand},
    memory::{Element, Memories, Memory, WIDEST, Write},
    sequencer::{Job, Task},
};
use crate::{Action, Config, Counts, Dataflow, FaultKind};
use arith::{Rounding, shift_right_rounding};
use isa::{Destination, Filter, Op, Pool, Residual, Slope, Source, Window};

/// A multiplier: mantissa and right shift.
type Multiplier = (i64, u8);

/// Between the stages read and multiply: one tap of one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    /// `None` outside the tile.
    pub value: Option<i64>,
    /// Of a depthwise convolution, which accumulates instead.
    pub mac: Option<MacOperand>,
    pub multiplier: Multiplier,
    /// Second operand, its multiplier.
    pub residual: Option<(i64, Multiplier)>,
    pub target: Element,
}

/// Between multiply and shift.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub value: i64,
    pub shift: u8,
    pub target: Element,
}

/// Between shift and write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub value: i64,
    pub target: Element,
}

/// What a stage register holds besides its lanes.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one wire of the hardware"
)]
pub(crate) struct Beat<Lane> {
    pub lanes: Vec<Lane>,
    pub index: usize,
    pub to: Destination,
    pub slope: Option<Slope>,
    /// A window's values are added, else the largest counts.
    pub is_sum: bool,
    pub is_first_tap: bool,
    pub is_last_tap: bool,
    /// Nothing of the instruction follows.
    pub is_last: bool,
}

impl<Lane> Beat<Lane> {
    /// A window's value with one tap more; `None` outside the tile.
    pub fn reduce(&self, before: Option<i64>, tap: Option<i64>) -> Option<i64> {
        match (before, tap) {
            (Some(a), Some(b)) if self.is_sum => Some(a + b),
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        }
    }

    /// What the next stage makes of it, in the memory of what that held.
    fn map<Next>(&self, mut held: Vec<Next>, stage: impl FnMut(&Lane) -> Next) -> Beat<Next> {
        held.clear();
        held.extend(self.lanes.iter().map(stage));
        Beat {
            lanes: held,
            index: self.index,
            to: self.to,
            slope: self.slope,
            is_sum: self.is_sum,
            is_first_tap: self.is_first_tap,
            is_last_tap: self.is_last_tap,
            is_last: self.is_last,
        }
    }
}

/// Registers of the post unit.
#[derive(Debug)]
pub(crate) struct Post {
    pub source: Option<Source>,
    pub window: Option<Window>,
    pub filter: Option<Filter>,
    pub to: Option<Destination>,
    pub residual: Option<Residual>,
    pub slope: Option<Slope>,
    pub job: Option<Job>,
    pub multiply: Option<Beat<Operand>>,
    /// What each lane has seen of its window.
    pub reduction: Vec<Option<i64>>,
    /// Where each lane accumulates.
    pub accumulators: Vec<Lane>,
    pub shift: Option<Beat<Product>>,
    pub write: Option<Beat<Output>>,
    /// What the lanes have done, for energy.
    pub counts: Counts,
}

impl Post {
    pub fn new(config: &Config) -> Self {
        Self {
            source: None,
            window: None,
            filter: None,
            to: None,
            residual: None,
            slope: None,
            job: None,
            multiply: None,
            reduction: vec![None; config.lanes as usize],
            accumulators: vec![Lane::default(); config.lanes as usize],
            shift: None,
            write: None,
            counts: Counts::default(),
        }
    }

    /// Whether an instruction may start in this cycle: the one before reads its last.
    pub fn is_ready(&self, config: &Config) -> bool {
        self.job.is_none_or(|job| job.is_last(config))
    }

    /// The accumulator block that it reads in this cycle.
    pub fn block(&self) -> Option<u32> {
        match self.job?.task {
            Task::Requantize(requantize) => Some(requantize.block),
            Task::Pool(..) | Task::Depthwise(..) => None,
        }
    }

    /// Whether nothing is in any stage.
    pub fn is_idle(&self) -> bool {
        let Self {
            job,
            multiply,
            shift,
            write,
            ..
        } = self;
        job.is_none() && multiply.is_none() && shift.is_none() && write.is_none()
    }

    /// One cycle: the stages from the last to the first, so each reads what the one before left.
    pub fn step(
        &mut self,
        start: Option<(usize, Op)>,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) {
        let mut outputs = Vec::new();
        if let Some(beat) = self.write.take() {
            stage_write(&beat, memories, wires);
            outputs = beat.lanes;
        }
        let rounding = config.arithmetic.rounding;
        let mut products = Vec::new();
        if let Some(beat) = self.shift.take() {
            self.write = Some(beat.map(outputs, |lane| shifted(*lane, beat.to, rounding)));
            products = beat.lanes;
        }
        let mut operands = Vec::new();
        if let Some(beat) = self.multiply.take() {
            self.shift = self.stage_multiply(&beat, products, config, wires);
            operands = beat.lanes;
        }
        if let Some(job) = self.job {
            match read(&job, operands, config, memories) {
                Ok(beat) => {
                    self.counts[Action::Lane] += beat.lanes.len() as u64;
                    self.multiply = Some(beat);
                }
                Err(kind) => wires.fault(job.index, kind),
            }
            self.job = job.next(config);
        }
        if let Some((index, op)) = start {
            match self.start(index, &op) {
                Ok(Some(job)) => self.job = Some(job),
                Ok(None) => wires.ended.push(index),
                Err(kind) => wires.fault(index, kind),
            }
        }
    }

    /// Sets a register, or gives the job that begins.
    fn start(&mut self, index: usize, op: &Op) -> Result<Option<Job>, FaultKind> {
        match *op {
            Op::Source(source) => self.source = Some(source),
            Op::Window(window) => self.window = Some(window),
            Op::Filter(filter) => self.filter = Some(filter),
            Op::Destination(to) => self.to = Some(to),
            Op::Residual(residual) => self.residual = Some(residual),
            Op::Slope(slope) => self.slope = Some(slope),
            Op::Requantize(requantize) => {
                let task = Task::Requantize(requantize);
                return self.job(index, task, requantize.add_residual, requantize.use_slope);
            }
            Op::Pool(pool) => {
                let source = set("source", self.source)?;
                let window = set("window", self.window)?;
                for (field, extent) in [
                    ("n_pixels", pool.n_pixels),
                    ("n_channels", pool.n_channels),
                    ("height", window.height),
                    ("width", window.width),
                ] {
                    positive(field, extent)?;
                }
                let task = Task::Pool(pool, source, window);
                return self.job(index, task, pool.add_residual, pool.use_slope);
            }
            Op::Depthwise(depthwise) => {
                let source = set("source", self.source)?;
                let window = set("window", self.window)?;
                let filter = set("filter", self.filter)?;
                for (field, extent) in [
                    ("n_pixels", depthwise.n_pixels),
                    ("n_channels", depthwise.n_channels),
                    ("height", window.height),
                    ("width", window.width),
                ] {
                    positive(field, extent)?;
                }
                let task = Task::Depthwise(depthwise, filter, source, window);
                return self.job(index, task, depthwise.add_residual, depthwise.use_slope);
            }
            ref other => unreachable!("{} is not for the post unit", other.mnemonic()),
        }
        Ok(None)
    }

    fn job(
        &self,
        index: usize,
        task: Task,
        add_residual: u32,
        use_slope: u32,
    ) -> Result<Option<Job>, FaultKind> {
        let to = set("destination", self.to)?;
        let residual = if add_residual == 1 {
            Some(set("residual", self.residual)?)
        } else {
            None
        };
        let slope = if use_slope == 1 {
            Some(set("slope", self.slope)?)
        } else {
            None
        };
        Ok(Some(Job {
            index,
            task,
            to,
            residual,
            slope,
            pixel: 0,
            group: 0,
            tap_y: 0,
            tap_x: 0,
            pass: 0,
        }))
    }

    /// Reduces a window's taps; with the last one, multiplies.
    fn stage_multiply(
        &mut self,
        beat: &Beat<Operand>,
        products: Vec<Product>,
        config: &Config,
        wires: &mut Wires,
    ) -> Option<Beat<Product>> {
        for (operand, lane) in beat.lanes.iter().zip(&mut self.accumulators) {
            let Some(mac) = &operand.mac else { continue };
            lane.step(mac, config, &mut self.counts);
            if beat.is_last_tap {
                wires.overflow.push((mac.counter, lane.accumulator.seen));
            }
        }
        for (lane, seen) in beat.lanes.iter().zip(&mut self.reduction) {
            let before = if beat.is_first_tap { None } else { *seen };
            *seen = beat.reduce(before, lane.value);
        }
        if !beat.is_last_tap {
            return None;
        }
        let mut reduced = self.reduction.iter().zip(&self.accumulators);
        Some(beat.map(products, |lane| {
            let value = reduced.next().map_or(0, |(seen, mac)| match lane.mac {
                Some(_) => i64::from(mac.accumulator.acc),
                None => seen.unwrap_or(0),
            });
            multiplied(lane, value, beat.slope)
        }))
    }
}

#[inline(always)]
fn multiplied(lane: &Operand, value: i64, slope: Option<Slope>) -> Product {
    let (mantissa, shift) = lane.multiplier;
    let mut product = Product {
        value: value * mantissa,
        shift,
        target: lane.target,
    };
    if let Some((residual, (mantissa, residual_shift))) = lane.residual {
        product.value += (residual * mantissa) << (shift - residual_shift);
    }
    if let Some(slope) = slope.filter(|_| product.value < 0) {
        product.value *= i64::from(slope.mantissa);
        product.shift += slope.shift as u8;
    }
    product
}

#[inline(always)]
fn shifted(lane: Product, to: Destination, rounding: Rounding) -> Output {
    let value = shift_right_rounding(lane.value, lane.shift, rounding);
    // Not `clamp`, which panics when the limits cross.
    let value = value.max(i64::from(to.q_min)).min(i64::from(to.q_max));
    Output {
        value,
        target: lane.target,
    }
}

/// Where an output begins.
pub(crate) fn first_byte(target: Element, to: Destination) -> u64 {
    match to.size {
        0 => target.pixel + target.channel / 2,
        1 => target.pixel + target.channel,
        _ => target.pixel + target.channel * 2,
    }
}

fn stage_write(beat: &Beat<Output>, memories: &Memories<'_>, wires: &mut Wires) {
    for Output { value, target } in &beat.lanes {
        let bytes = value.to_le_bytes();
        let memory = Memory::Activation;
        let first = first_byte(*target, beat.to);
        let n = beat.to.size.min(2) as usize;
        if let Err(kind) = memories.check(memory, first, n.max(1)) {
            wires.fault(beat.index, kind);
            return;
        }
        wires.writes.push(if n == 0 {
            Write::Nibble {
                address: first,
                high: target.channel % 2 == 1,
                value: bytes[0] & 15,
            }
        } else {
            let mut values = [0; WIDEST];
            values[..n].copy_from_slice(&bytes[..n]);
            Write::Bytes {
                memory,
                address: first,
                values,
                n,
            }
        });
    }
    if beat.is_last {
        wires.ended.push(beat.index);
    }
}

/// The read stage: every lane's operand, multiplier and second operand, in memory that held others.
fn read(
    job: &Job,
    mut lanes: Vec<Operand>,
    config: &Config,
    memories: &Memories<'_>,
) -> Result<Beat<Operand>, FaultKind> {
    let from = job.group * config.lanes;
    let to = job.n_channels().min(from + config.lanes);
    let is_transposed = matches!(
        (job.task, config.dataflow),
        (Task::Requantize(_), Dataflow::InputStationary)
    );
    lanes.clear();
    let at = job.position(job.pixel);
    for lane in from..to {
        // Where it goes, its channel, counted from the task's first, and its lane.
        let (at, offset) = if is_transposed {
            (job.position(lane), job.pixel)
        } else {
            (at, lane)
        };
        lanes.push(read_lane(job, at, (offset, lane), config, memories)?);
    }
    Ok(Beat {
        lanes,
        index: job.index,
        to: job.to,
        slope: job.slope,
        is_sum: matches!(job.task, Task::Pool(Pool { sum: 1, .. }, ..)),
        is_first_tap: job.is_first_tap(),
        is_last_tap: job.is_last_tap(),
        is_last: job.is_last(config),
    })
}

fn read_lane(
    job: &Job,
    (y, x): (u64, u64),
    (offset, lane): (u32, u32),
    config: &Config,
    memories: &Memories<'_>,
) -> Result<Operand, FaultKind> {
    let mut mac = None;
    let (value, multiplier, channel) = match job.task {
        Task::Requantize(requantize) => {
            let row = requantize.row + job.pixel;
            let acc = memories.sum(requantize.block, (row, lane))?;
            let entry = memories.parameter(u64::from(requantize.parameter) + u64::from(offset))?;
            let multiplier = (i64::from(entry.mantissa), entry.shift);
            (
                Some(i64::from(acc)),
                multiplier,
                requantize.channel + offset,
            )
        }
        Task::Pool(pool, source, window) => {
            let channel = pool.source_channel + offset;
            let element = tap(job, (y, x), &source, &window, channel);
            let value = element
                .map(|element| memories.element(element))
                .transpose()?;
            (
                value,
                (i64::from(pool.mantissa), pool.shift as u8),
                pool.channel + offset,
            )
        }
        Task::Depthwise(depthwise, filter, source, window) => {
            let channel = depthwise.source_channel + offset;
            let element = tap(job, (y, x), &source, &window, channel);
            let registers = (&depthwise, &filter, &source);
            let entry = u64::from(filter.parameter) + u64::from(offset);
            // The bias is needed first and the multiplier last.
            let entry = if (job.is_first_tap() && job.pass == 0) || job.is_last_tap() {
                memories.parameter(entry)?
            } else {
                memories.held_parameter(entry)?
            };
            let operand = (element, entry);
            mac = Some(lanes::read(
                job, registers, offset, operand, config, memories,
            )?);
            let multiplier = (i64::from(entry.mantissa), entry.shift);
            (None, multiplier, depthwise.channel + offset)
        }
    };
    if multiplier.1 > arith::Requant::MAX_SHIFT {
        let value = i64::from(multiplier.1);
        return Err(FaultKind::Operand {
            field: "shift",
            value,
            rule: "must be at most 47",
        });
    }
    let residual = match &job.residual {
        // A window's second operand is added to the reduced value.
        Some(residual) if job.is_last_tap() => read_residual(residual, (y, x), channel, memories)?,
        Some(_) | None => None,
    };
    if let Some((_, (_, shift))) = residual {
        crate::rules::check_alignment(u32::from(multiplier.1), u32::from(shift))?;
    }
    let pixel = y * u64::from(job.to.width) + x;
    let target = Element {
        pixel: u64::from(job.to.address) + pixel * u64::from(job.to.pixel_bytes),
        channel: u64::from(channel),
        wide: job.to.size > 0,
        signed: true,
    };
    Ok(Operand {
        value,
        mac,
        multiplier,
        residual,
        target,
    })
}

/// The element under the tap; `None` outside the tile.
#[inline]
fn tap(
    job: &Job,
    (y, x): (u64, u64),
    source: &Source,
    window: &Window,
    channel: u32,
) -> Option<Element> {
    let y = y * u64::from(window.stride_y) + u64::from(job.tap_y) * u64::from(window.dilation_y);
    let x = x * u64::from(window.stride_x) + u64::from(job.tap_x) * u64::from(window.dilation_x);
    let y = y
        .checked_sub(u64::from(window.pad_top))
        .filter(|&y| y < u64::from(source.height));
    let x = x
        .checked_sub(u64::from(window.pad_left))
        .filter(|&x| x < u64::from(source.width));
    let pixel = y? * u64::from(source.width) + x?;
    Some(Element {
        pixel: u64::from(source.address) + pixel * u64::from(source.pixel_bytes),
        channel: u64::from(channel),
        wide: source.wide == 1,
        signed: source.signed == 1,
    })
}

/// `None` for a channel that the second operand does not reach.
fn read_residual(
    residual: &Residual,
    (y, x): (u64, u64),
    channel: u32,
    memories: &Memories<'_>,
) -> Result<Option<(i64, Multiplier)>, FaultKind> {
    let Some(channel) = channel
        .checked_sub(residual.channel)
        .filter(|&c| c < residual.n_channels)
    else {
        return Ok(None);
    };
    let (y, x) = (
        y * u64::from(residual.stride_y),
        x * u64::from(residual.stride_x),
    );
    let pixel = y * u64::from(residual.width) + x;
    let value = memories.element(Element {
        pixel: u64::from(residual.address) + pixel * u64::from(residual.pixel_bytes),
        channel: u64::from(channel),
        wide: residual.wide == 1,
        signed: residual.signed == 1,
    })?;
    Ok(Some((
        value,
        (i64::from(residual.mantissa), residual.shift as u8),
    )))
}

fn set<T>(field: &'static str, register: Option<T>) -> Result<T, FaultKind> {
    let rule = "the register was never set";
    register.ok_or(FaultKind::Operand {
        field,
        value: 0,
        rule,
    })
}

fn positive(field: &'static str, value: u32) -> Result<(), FaultKind> {
    if value == 0 {
        let rule = "must be at least 1";
        return Err(FaultKind::Operand {
            field,
            value: 0,
            rule,
        });
    }
    Ok(())
}
