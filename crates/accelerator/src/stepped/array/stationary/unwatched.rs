//! An array whose operands stay and at whose registers nobody looks: what it reads, adds and writes, and when.
//!
//! Invariant: memories, overflow records, ends and counts are those of [`Stationary`](super::Stationary). What is
//! read may be read later, together with more, but before one of its operands is overwritten; sums land later,
//! but before their block is read or their stream ends.

use super::{
    elements::{Elements, Held, Initial},
    planes, read_weight,
};
use crate::stepped::{
    Wires,
    array::{
        ActivationPort, Half, Tap, halves, initial_value,
        landing::{Counters, Landing},
        passes,
        reach::Reach,
        set,
        unpack::{nibbles, word},
    },
    memory::{Memories, Memory, Write},
    sums::{FIRST, LANES, Sums, n_lanes, take_steps},
};
use crate::{Action, Config, Counts, Dataflow, FaultKind};
use arith::ChannelOverflow;
use isa::{Input, Kernel, Op, Preload, Stream};
use std::collections::VecDeque;

/// Elements that are read together at most.
const MOST_ELEMENTS: u64 = 64;

/// A preload whose lines are being read.
#[derive(Debug)]
struct Loading {
    index: usize,
    preload: Preload,
    input: Input,
    kernel: Kernel,
    started: u64,
    /// Lines that have been read, a plane after the other.
    n_read: u64,
    /// Of an input-stationary array: each column's port.
    ports: Vec<ActivationPort>,
    reach: Reach,
}

/// A stream whose elements are being read.
#[derive(Debug)]
struct Streaming {
    index: usize,
    stream: Stream,
    input: Input,
    kernel: Kernel,
    started: u64,
    /// Passes that have been read.
    n_read: u64,
    reach: Reach,
    /// It may come upon an initial value that its accumulators do not hold.
    is_doubtful: bool,
}

impl Streaming {
    fn n_passes(&self) -> u64 {
        u64::from(self.stream.n_minus_1 + 1) * u64::from(passes(&self.input))
    }
}

/// What the array is, and what it does.
#[derive(Debug)]
pub(crate) struct Unwatched {
    input: Option<Input>,
    kernel: Option<Kernel>,
    /// Cycles that have passed.
    now: u64,
    /// The next preload starts no earlier.
    preload_ready: u64,
    /// Nor does anything else.
    other_ready: u64,
    /// The last cycle of what has not ended, and its instruction.
    ends: Vec<(u64, usize)>,
    loading: Option<Loading>,
    streaming: Option<Streaming>,
    /// Where the reduction goes on.
    tap: Tap,
    /// No stream has taken what was loaded.
    is_fresh: bool,
    /// What is being loaded, and what the stream meets.
    chain: Held,
    working: Held,
    /// What the stream's sums begin with: by column, and by element of those that are read together.
    of_columns: Vec<[i32; LANES]>,
    of_elements: Vec<i32>,
    elements: Elements,
    /// The products so far of an element whose passes are read one by one.
    products: Vec<[i32; LANES]>,
    /// Of streams whose sums have not all landed.
    landings: VecDeque<Landing>,
    /// For other streams' sums.
    free: Vec<Sums>,
    /// What PEs and adders have done, for energy.
    pub counts: Counts,
}

impl Unwatched {
    pub fn new(config: &Config) -> Self {
        let (rows, cols) = (config.rows as usize, config.cols as usize);
        let n_groups = cols.div_ceil(LANES);
        Self {
            input: None,
            kernel: None,
            now: 0,
            preload_ready: 0,
            other_ready: 0,
            ends: Vec::new(),
            loading: None,
            streaming: None,
            tap: Tap::default(),
            is_fresh: false,
            chain: Held::new(rows, cols),
            working: Held::new(rows, cols),
            of_columns: vec![[0; LANES]; n_groups],
            of_elements: Vec::new(),
            elements: Elements::new(rows),
            products: vec![[0; LANES]; rows * n_groups],
            landings: VecDeque::new(),
            free: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Whether `op` may start in this cycle.
    pub fn is_ready(&self, op: &Op) -> bool {
        self.now
            >= match op {
                Op::Preload(_) => self.preload_ready,
                _ => self.other_ready,
            }
    }

    /// Cycles from now on in which nothing ends and nothing gets ready to start.
    pub fn n_alike(&self) -> u64 {
        if self
            .streaming
            .as_ref()
            .is_some_and(|streaming| streaming.is_doubtful)
        {
            return 0;
        }
        let ends = self.ends.iter().map(|(end, _)| end + 1);
        let next = ends.min().map_or(self.now, |end| {
            let ready = [self.preload_ready, self.other_ready].into_iter();
            ready.filter(|&at| at >= self.now).fold(end, u64::min)
        });
        next - self.now
    }

    /// So many cycles.
    pub fn pass(&mut self, n: u64, wires: &mut Wires) {
        self.now += n;
        let ended = self.ends.iter().filter(|(end, _)| *end < self.now);
        wires.ended.extend(ended.map(|(_, index)| index));
    }

    /// One cycle, for which [`Self::catch_up`] may make up at its end.
    pub fn step(
        &mut self,
        start: Option<(usize, Op)>,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) {
        if let Some((index, op)) = start
            && let Err(kind) = self.start(index, &op, config, memories, wires)
        {
            wires.fault(index, kind);
            return;
        }
        self.pass(1, wires);
    }

    fn start(
        &mut self,
        index: usize,
        op: &Op,
        config: &Config,
        memories: &Memories<'_>,
        wires: &mut Wires,
    ) -> Result<(), FaultKind> {
        // What was loaded is complete when a stream takes it.
        self.read(config, memories).map_err(|(_, kind)| kind)?;
        match *op {
            Op::Input(input) => self.input = Some(input),
            Op::Kernel(kernel) => self.kernel = Some(kernel),
            Op::Preload(preload) => return self.start_preload(index, preload, config, memories),
            Op::Stream(stream) => return self.start_stream(index, stream, config, memories),
            ref other => unreachable!("{} is not for this array", other.mnemonic()),
        }
        wires.ended.push(index);
        Ok(())
    }

    fn start_preload(
        &mut self,
        index: usize,
        preload: Preload,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let (input, kernel) = (set("input", self.input)?, set("kernel", self.kernel)?);
        if preload.first == 1 {
            self.tap = Tap::default();
        }
        let n_planes = planes(&input, config);
        let mut ports = Vec::new();
        let reach = if config.dataflow == Dataflow::InputStationary {
            let columns = 0..=u64::from(preload.cols_minus_1);
            let pixel = |column| (preload.y, u64::from(preload.x) + column);
            ports.extend(columns.map(|column| ActivationPort::new(&kernel, pixel(column))));
            Reach::default().with_tile(&input)
        } else {
            let n_lines = (preload.rows_minus_1 + 1) * n_planes;
            Reach::default().with_lines((preload.weight_line, n_lines), config)
        };
        let reach = reach.checked(memories)?;
        let n_lines = u64::from(config.rows) * u64::from(n_planes);
        self.other_ready = self.other_ready.max(self.now + n_lines);
        let end = self.now + n_lines + u64::from(config.cols) - 2;
        self.ends.push((end, index));
        self.is_fresh = true;
        self.chain.taps.clear();
        self.chain.weights.fill([0; LANES]);
        self.loading = Some(Loading {
            index,
            preload,
            input,
            kernel,
            started: self.now,
            n_read: 0,
            ports,
            reach,
        });
        Ok(())
    }

    fn start_stream(
        &mut self,
        index: usize,
        stream: Stream,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let (input, kernel) = (set("input", self.input)?, set("kernel", self.kernel)?);
        let is_weight = config.dataflow == Dataflow::InputStationary;
        let n = stream.n_minus_1 + 1;
        let mut reach = Reach::default();
        let mut is_doubtful = false;
        self.of_columns.fill([0; LANES]);
        let format = config.arithmetic.accumulator;
        if is_weight {
            let n_lines = n * (1 + input.wide_weights);
            reach = reach.with_lines((stream.weight_line, n_lines), config);
            if stream.accumulate == 0 {
                reach = reach.with_parameters((stream.parameter, n));
                let mut entries = stream.parameter..stream.parameter + n;
                is_doubtful = !entries.all(|entry| {
                    let entry = memories.held_parameter(entry.into());
                    entry.is_ok_and(|entry| initial_value(entry, format).is_ok())
                });
            }
        } else {
            reach = reach.with_tile(&input);
            if stream.accumulate == 0 {
                for column in 0..=stream.cols_minus_1 {
                    let entry = memories.parameter(u64::from(stream.parameter + column))?;
                    let value = initial_value(entry, format)?;
                    self.of_columns[column as usize / LANES][column as usize % LANES] = value;
                }
            }
        }
        let reach = reach.checked(memories)?;
        if std::mem::take(&mut self.is_fresh) {
            std::mem::swap(&mut self.chain, &mut self.working);
            if config.shadow {
                // The wavefront takes the chains' values row by row.
                self.preload_ready = self.now + u64::from(config.rows);
            }
        }
        let streaming = Streaming {
            index,
            stream,
            input,
            kernel,
            started: self.now,
            n_read: 0,
            reach,
            is_doubtful,
        };
        let n_passes = streaming.n_passes();
        self.other_ready = self.now + n_passes;
        let (rows, cols) = (u64::from(config.rows), u64::from(config.cols));
        let end = self.now + n_passes + rows + cols - 1;
        self.ends.push((end, index));
        if !config.shadow {
            self.preload_ready = end + 1;
        }
        let passes = passes(&input);
        let counters = if is_weight {
            Counters::OfRows(stream.channel)
        } else {
            Counters::OfColumns(stream.channel)
        };
        let new = || Sums::new(config.block_rows as usize, config.cols as usize);
        self.landings.push_back(Landing {
            block: stream.block,
            first_row: stream.row,
            sums: self.free.pop().unwrap_or_else(new),
            n_rows: n,
            n_columns: stream.cols_minus_1 + 1,
            first: self.now + u64::from(passes) + rows,
            pace: passes.into(),
            adds_at: (stream.accumulate == 1).then(|| self.working.last_k()),
            counters: (stream.last == 1).then_some(counters),
            landed_to: self.now,
        });
        self.streaming = Some(streaming);
        Ok(())
    }

    /// Whether [`Self::catch_up`] is due before these writes take effect.
    pub fn must_catch_up(&self, writes: &[Write]) -> bool {
        let loading = self.loading.as_ref();
        let streaming = self.streaming.as_ref();
        self.ends.iter().any(|(end, _)| *end < self.now)
            || loading.is_some_and(|loading| loading.reach.meets(writes))
            || streaming
                .is_some_and(|streaming| streaming.is_doubtful || streaming.reach.meets(writes))
    }

    /// Reads what is due before these writes take effect, and lands the sums of streams that have ended.
    ///
    /// # Errors
    /// The instruction that cannot go on.
    pub fn catch_up(
        &mut self,
        writes: &[Write],
        config: &Config,
        memories: &mut Memories<'_>,
        overflow: &mut [ChannelOverflow],
    ) -> Result<(), (usize, FaultKind)> {
        self.read(config, memories)?;
        if let Some(streaming) = &mut self.streaming {
            // What stands there from now on may be initial values, and others than at the beginning.
            streaming.is_doubtful |= streaming.reach.meets(writes);
        }
        self.ends.retain(|(end, _)| *end >= self.now);
        while let Some(landing) = self.landings.front_mut()
            && landing.ends_before(self.now)
        {
            land(
                landing,
                self.now,
                config,
                (memories, overflow),
                &mut self.counts,
            );
            self.free
                .extend(self.landings.pop_front().map(|landing| landing.sums));
        }
        Ok(())
    }

    /// Lands all that is due in a block.
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
        if !self.landings.iter().any(|landing| landing.block == block) {
            return Ok(());
        }
        self.read(config, memories)?;
        for landing in &mut self.landings {
            land(
                landing,
                self.now,
                config,
                (memories, overflow),
                &mut self.counts,
            );
        }
        Ok(())
    }

    /// Reads what is due.
    fn read(&mut self, config: &Config, memories: &Memories<'_>) -> Result<(), (usize, FaultKind)> {
        if let Some(mut loading) = self.loading.take() {
            let n_planes = u64::from(planes(&loading.input, config));
            let n_lines = u64::from(config.rows) * n_planes;
            let due = n_lines.min(self.now - loading.started);
            let is_pixels = config.dataflow == Dataflow::InputStationary;
            if is_pixels && loading.n_read == 0 && due == n_lines {
                self.hold_pixels(&loading, n_planes, memories);
                loading.n_read = due;
            }
            for line in loading.n_read..due {
                let place = ((line / n_planes) as u32, (line % n_planes) as u32);
                self.read_line(&mut loading, place, config, memories)
                    .map_err(|kind| (loading.index, kind))?;
            }
            loading.n_read = due;
            self.loading = Some(loading).filter(|loading| loading.n_read < n_lines);
        }
        if let Some(mut streaming) = self.streaming.take() {
            let due = streaming.n_passes().min(self.now - streaming.started);
            self.read_stream(&mut streaming, due, config, memories)
                .map_err(|kind| (streaming.index, kind))?;
            let n_passes = streaming.n_passes();
            self.streaming = Some(streaming).filter(|streaming| streaming.n_read < n_passes);
        }
        Ok(())
    }

    /// All that is held, of pixels.
    fn hold_pixels(&mut self, loading: &Loading, n_planes: u64, memories: &Memories<'_>) {
        let (input, kernel) = (&loading.input, &loading.kernel);
        for _ in 0..=loading.preload.rows_minus_1 {
            self.chain.taps.push(self.tap);
            self.tap.advance(input, kernel);
        }
        let registers = (input, kernel);
        let n_reads =
            self.elements
                .hold_pixels(&loading.ports, registers, &mut self.chain, memories);
        memories.count_nibbles(Memory::Activation, n_reads * n_planes);
    }

    /// A plane of a row of what is held.
    fn read_line(
        &mut self,
        loading: &mut Loading,
        (row, plane): (u32, u32),
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let Loading {
            preload,
            input,
            kernel,
            ports,
            ..
        } = loading;
        if row > preload.rows_minus_1 {
            return Ok(());
        }
        if plane == 0 {
            self.chain.taps.push(self.tap);
            self.tap.advance(input, kernel);
        }
        let tap = self.chain.taps[row as usize];
        let (n_planes, is_high) = (planes(input, config), plane == 1);
        let n_columns = preload.cols_minus_1 as usize + 1;
        let rows = self.chain.weights.iter_mut().skip(row as usize);
        let groups = rows.step_by(config.rows as usize);
        if config.dataflow == Dataflow::InputStationary {
            let half = Half::new(input, tap.channel, is_high);
            for (group, ports) in groups.zip(ports.chunks_mut(LANES)) {
                for (value, port) in group.iter_mut().zip(ports) {
                    if plane == 0 && (row == 0 || tap.channel == 0) {
                        port.set(input, kernel, &tap);
                    }
                    memories.count_nibbles(Memory::Activation, port.n_reads());
                    *value += half.under(port, memories)?;
                }
            }
            return Ok(());
        }
        let line_bytes = u64::from(config.line_bytes());
        let line = u64::from(preload.weight_line + row * n_planes + plane);
        let line = memories.weights(line * line_bytes, line_bytes)?;
        memories.count_nibbles(Memory::Weight, n_columns as u64);
        for (index, (group, line)) in groups.zip(line.chunks(LANES / 2)).enumerate() {
            let values = nibbles(word(line), is_high || n_planes == 1);
            let n_used = n_lanes(n_columns, index);
            for i in 0..LANES {
                group[i] += (values[i] & FIRST[n_used][i]) << (4 * plane);
            }
        }
        Ok(())
    }

    /// The passes up to `due`.
    fn read_stream(
        &mut self,
        streaming: &mut Streaming,
        due: u64,
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let passes = u64::from(passes(&streaming.input));
        while streaming.n_read < due {
            let (element, pass) = (streaming.n_read / passes, streaming.n_read % passes);
            let n_elements = ((due - streaming.n_read) / passes).min(MOST_ELEMENTS);
            if pass == 0 && n_elements > 0 {
                let elements = (element as u32, n_elements as u32);
                self.read_elements(streaming, elements, config, memories)?;
                streaming.n_read += n_elements * passes;
            } else {
                let place = (element as u32, pass as u32);
                self.read_pass(streaming, place, config, memories)?;
                streaming.n_read += 1;
            }
        }
        Ok(())
    }

    /// `n` whole elements.
    fn read_elements(
        &mut self,
        streaming: &Streaming,
        (first, n): (u32, u32),
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let Streaming {
            stream,
            input,
            kernel,
            ..
        } = streaming;
        let passes = u64::from(passes(input));
        let (n_rows, n_columns) = (self.working.taps.len(), stream.cols_minus_1 as usize + 1);
        let initial = if config.dataflow == Dataflow::InputStationary {
            let is_wide = input.wide_weights == 1;
            let (line_bytes, per_element) = (config.line_bytes(), 1 + input.wide_weights);
            let line = u64::from(stream.weight_line + first * per_element);
            let n_bytes = u64::from(n * per_element * line_bytes);
            let lines = memories.weights(line * u64::from(line_bytes), n_bytes)?;
            let lines = (lines, line_bytes as usize);
            self.elements.read_lines(lines, n_rows, is_wide);
            let n_reads = n_rows as u64 * passes * u64::from(n);
            memories.count_nibbles(Memory::Weight, n_reads);
            self.of_elements.clear();
            for element in first..first + n {
                let initial = initial_of_element(stream, element, config, memories)?;
                self.of_elements.push(initial);
            }
            Initial::OfElements(&self.of_elements)
        } else {
            let (pixels, registers) = ((first, n), (input, kernel));
            let taps = &self.working.taps;
            let n_reads = self
                .elements
                .read_pixels(pixels, stream, registers, taps, memories);
            memories.count_nibbles(Memory::Activation, n_reads * passes);
            Initial::OfColumns(&self.of_columns)
        };
        if let Some(landing) = self.landings.back_mut() {
            self.elements.accumulate(
                (first as usize, n as usize),
                &mut landing.sums,
                initial,
                (&self.working, n_columns),
                config.arithmetic.accumulator,
            );
        }
        let n_products = (n_rows * n_columns) as u64 * u64::from(n);
        self.counts[Action::Multiply] += n_products * passes;
        self.counts[Action::Accumulate] += n_products;
        Ok(())
    }

    /// One pass, of an element that is not read as a whole.
    fn read_pass(
        &mut self,
        streaming: &Streaming,
        (element, pass): (u32, u32),
        config: &Config,
        memories: &Memories<'_>,
    ) -> Result<(), FaultKind> {
        let Streaming {
            stream,
            input,
            kernel,
            ..
        } = streaming;
        let is_weight = config.dataflow == Dataflow::InputStationary;
        let (activation_high, weight_high) = halves(input, pass);
        let adds = pass + 1 == passes(input);
        let n_columns = stream.cols_minus_1 as usize + 1;
        let n_groups = self.of_columns.len();
        let mut port = ActivationPort::new(kernel, (stream.y, u64::from(stream.x + element)));
        for (row, tap) in self.working.taps.iter().enumerate() {
            let value = if is_weight {
                let line = stream.weight_line + element * (1 + input.wide_weights);
                let place = (u64::from(line) + u64::from(weight_high), row);
                let is_wide = input.wide_weights == 1;
                read_weight(place, (is_wide, weight_high), config, memories)?
            } else {
                port.set(input, kernel, tap);
                memories.count_nibbles(Memory::Activation, port.n_reads());
                Half::new(input, tap.channel, activation_high).under(&port, memories)?
            };
            let (is_wide, is_high) = if is_weight {
                (input.wide_activations == 1, activation_high)
            } else {
                (input.wide_weights == 1, weight_high)
            };
            let products = &mut self.products[row * n_groups..][..n_groups];
            let held = self.working.weights.iter().skip(row);
            let held = held.step_by(config.rows as usize);
            for (products, held) in products.iter_mut().zip(held) {
                for i in 0..LANES {
                    let low = if is_wide { held[i] & 15 } else { held[i] };
                    let half = if is_high { held[i] - low } else { low };
                    let before = if pass == 0 { 0 } else { products[i] };
                    products[i] = before + value * half;
                }
            }
        }
        let n_products = (self.working.taps.len() * n_columns) as u64;
        self.counts[Action::Multiply] += n_products;
        if !adds {
            return Ok(());
        }
        self.counts[Action::Accumulate] += n_products;
        let Some(landing) = self.landings.back_mut() else {
            return Ok(());
        };
        let of_element = initial_of_element(stream, element, config, memories)?;
        let slots = landing.sums.slots().skip(element as usize * n_groups);
        for (index, mut slot) in slots.take(n_columns.div_ceil(LANES)).enumerate() {
            let initial = if is_weight {
                [of_element; LANES]
            } else {
                self.of_columns[index]
            };
            slot.begin(&initial);
            let n_used = n_lanes(n_columns, index);
            let products = self.products.iter().skip(index).step_by(n_groups);
            for (product, tap) in products.zip(&self.working.taps) {
                let step = (&[1][..], std::slice::from_ref(product), tap.k);
                take_steps(
                    &mut slot,
                    step,
                    &FIRST[n_used],
                    config.arithmetic.accumulator,
                );
            }
        }
        Ok(())
    }
}

/// What is due of sums.
fn land(
    landing: &mut Landing,
    now: u64,
    config: &Config,
    (memories, overflow): (&mut Memories<'_>, &mut [ChannelOverflow]),
    counts: &mut Counts,
) {
    let format = config.arithmetic.accumulator;
    let n_landed = landing.land(now, format, memories, overflow);
    if landing.adds_at.is_some() {
        counts[Action::Accumulate] += n_landed;
    }
}

/// What an element's sums begin with, where elements are output channels.
fn initial_of_element(
    stream: &Stream,
    element: u32,
    config: &Config,
    memories: &Memories<'_>,
) -> Result<i32, FaultKind> {
    if config.dataflow != Dataflow::InputStationary || stream.accumulate == 1 {
        return Ok(0);
    }
    let entry = memories.parameter(u64::from(stream.parameter + element))?;
    initial_value(entry, config.arithmetic.accumulator)
}
