//! Elements of a stream: their operands, and the sums that come out of the columns.
//!
//! Invariant: a sum takes its products in the order of rows, each once, as
//! [`Accumulator::add`](crate::stepped::pe::Accumulator::add) says.

use crate::stepped::{
    array::{
        ActivationPort, Tap,
        steps::{CAPACITY, is_done},
        unpack::{bytes_to, nibbles_to},
    },
    memory::Memories,
    sums::{FIRST, LANES, Sums, n_lanes, take_steps},
};
use arith::AccumulatorFormat;
use isa::{Input, Kernel, Stream};

/// What the PEs hold, whole.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Group of columns by group, each row by row.
    pub weights: Vec<[i32; LANES]>,
    n_rows: usize,
    /// The steps of the rows in use.
    pub taps: Vec<Tap>,
}

impl Held {
    pub fn new(n_rows: usize, n_columns: usize) -> Self {
        Self {
            weights: vec![[0; LANES]; n_rows * n_columns.div_ceil(LANES)],
            n_rows,
            taps: Vec::with_capacity(n_rows),
        }
    }

    /// Number of the first step.
    pub fn first_k(&self) -> u32 {
        self.taps.first().map_or(0, |tap| tap.k)
    }

    /// Number of the last.
    pub fn last_k(&self) -> u32 {
        self.taps.last().map_or(0, |tap| tap.k)
    }
}

/// What the sums of an element begin with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Initial<'a> {
    /// By column.
    OfColumns(&'a [[i32; LANES]]),
    /// By element.
    OfElements(&'a [i32]),
}

/// Operands of some elements, whole.
#[derive(Debug)]
pub(crate) struct Elements {
    /// From one element's operands to the next one's: vectors may end behind the last row.
    pitch: usize,
    values: Vec<i32>,
}

impl Elements {
    pub fn new(n_rows: usize) -> Self {
        Self {
            pitch: n_rows + LANES,
            values: Vec::new(),
        }
    }

    fn make_room(&mut self, n: usize) {
        let n = n * self.pitch;
        if self.values.len() < n {
            self.values.resize(n, 0);
        }
    }

    /// Reads the activations of pixels from `first` of a stream on, `n` of them, for these taps; gives how
    /// many there are inside the tile. The caller has looked that they exist.
    pub fn read_pixels(
        &mut self,
        (first, n): (u32, u32),
        stream: &Stream,
        (input, kernel): (&Input, &Kernel),
        taps: &[Tap],
        memories: &Memories<'_>,
    ) -> u64 {
        self.make_room(n as usize);
        let elements = self.values.chunks_exact_mut(self.pitch);
        let pixels = first..first + n;
        let ports =
            pixels.map(|x| ActivationPort::new(kernel, (stream.y, u64::from(stream.x + x))));
        read_pixels(elements.zip(ports), (input, kernel), taps, memories)
    }

    /// As [`Self::read_pixels`], each the pixel of a column, for what is held.
    pub fn hold_pixels(
        &mut self,
        ports: &[ActivationPort],
        (input, kernel): (&Input, &Kernel),
        held: &mut Held,
        memories: &Memories<'_>,
    ) -> u64 {
        self.make_room(ports.len());
        let elements = self.values.chunks_exact_mut(self.pitch);
        let ports = elements.zip(ports.iter().copied());
        let n = ports.len();
        let n_inside = read_pixels(ports, (input, kernel), &held.taps, memories);
        let columns = self.values.chunks_exact(self.pitch).take(n);
        for (column, values) in columns.enumerate() {
            let rows = held.weights[column / LANES * held.n_rows..].iter_mut();
            for (row, value) in rows.zip(&values[..held.taps.len()]) {
                row[column % LANES] = *value;
            }
        }
        n_inside
    }

    /// Reads weights: `lines` of `line_bytes`, as many for each element as its weights have nibbles. The
    /// caller has looked that they exist.
    pub fn read_lines(
        &mut self,
        (lines, line_bytes): (&[u8], usize),
        n_rows: usize,
        is_wide: bool,
    ) {
        let per_element = line_bytes * (1 + usize::from(is_wide));
        self.make_room(lines.len() / per_element);
        let elements = self.values.chunks_exact_mut(self.pitch);
        for (values, lines) in elements.zip(lines.chunks_exact(per_element)) {
            read_line(values, (lines, line_bytes), n_rows, is_wide);
        }
    }

    /// The sums of `n` elements, in rows from `first_row` on.
    pub fn accumulate(
        &self,
        (first_row, n): (usize, usize),
        sums: &mut Sums,
        initial: Initial<'_>,
        (held, n_columns): (&Held, usize),
        format: AccumulatorFormat,
    ) {
        let rows = (first_row, n);
        accumulate(self, rows, sums, initial, (held, n_columns), format);
    }
}

/// The activations under some ports, for each tap; how many there are inside the tile.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn read_pixels<'a>(
    ports: impl Iterator<Item = (&'a mut [i32], ActivationPort)>,
    (input, kernel): (&Input, &Kernel),
    taps: &[Tap],
    memories: &Memories<'_>,
) -> u64 {
    let is_signed = input.signed_activations == 1;
    let mut n_inside = 0;
    let runs: Vec<&[Tap]> = taps.chunk_by(|a, b| b.channel == a.channel + 1).collect();
    for (values, mut port) in ports {
        let mut row = 0;
        for run in &runs {
            port.set(input, kernel, &run[0]);
            let to = &mut values[row..][..run.len().next_multiple_of(LANES)];
            row += run.len();
            let Some(pixel) = port.pixel else {
                to.fill(0);
                continue;
            };
            n_inside += run.len() as u64;
            let channel = u64::from(input.channel) + u64::from(run[0].channel);
            if input.wide_activations == 1 {
                let bytes = &memories.activations[(pixel + channel) as usize..];
                bytes_to(to, bytes, is_signed);
            } else {
                let bytes = &memories.activations[(pixel + channel / 2) as usize..];
                nibbles_to(to, bytes, channel % 2 == 1, is_signed);
            }
        }
    }
    n_inside
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn read_line(
    values: &mut [i32],
    (lines, line_bytes): (&[u8], usize),
    n_rows: usize,
    is_wide: bool,
) {
    let to = &mut values[..n_rows.next_multiple_of(LANES)];
    if !is_wide {
        nibbles_to(to, &lines[..line_bytes], false, true);
        return;
    }
    let (low, high) = lines.split_at(line_bytes);
    nibbles_to(to, low, false, false);
    let mut upper = [0; LANES];
    for (to, high) in to
        .as_chunks_mut::<LANES>()
        .0
        .iter_mut()
        .zip(high.chunks(LANES / 2))
    {
        nibbles_to(&mut upper, high, false, true);
        for i in 0..LANES {
            to[i] += upper[i] << 4;
        }
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn accumulate(
    elements: &Elements,
    (first_row, n): (usize, usize),
    sums: &mut Sums,
    initial: Initial<'_>,
    (held, n_columns): (&Held, usize),
    format: AccumulatorFormat,
) {
    let n_groups = sums.n_groups;
    let values = elements.values.chunks_exact(elements.pitch).take(n);
    let slots = sums.slots().skip(first_row * n_groups);
    let mut slots = slots.take(n * n_groups);
    for (element, values) in values.enumerate() {
        let activations = &values[..held.taps.len()];
        for (index, mut slot) in slots.by_ref().take(n_groups).enumerate() {
            let n_used = n_lanes(n_columns, index);
            if n_used == 0 {
                continue;
            }
            match initial {
                Initial::OfColumns(initial) => slot.begin(&initial[index]),
                Initial::OfElements(initial) => slot.begin(&[initial[element]; LANES]),
            }
            let weights = &held.weights[index * held.n_rows..][..activations.len()];
            let parts = activations.chunks(CAPACITY).zip(weights.chunks(CAPACITY));
            for ((activations, weights), k) in parts.zip((held.first_k()..).step_by(CAPACITY)) {
                if !is_done(&mut slot, activations, weights, (format, n_used)) {
                    take_steps(&mut slot, (activations, weights, k), &FIRST[n_used], format);
                }
            }
        }
    }
}
