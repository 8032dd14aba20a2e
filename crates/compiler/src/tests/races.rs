//! Conflicting accesses that overlap in time, found from the program's fields alone.
//!
//! Invariant: ranges come from the instructions, not from what the compiler says it touches, so a
//! wrong list of accesses shows here.

use accelerator::{Config, Dataflow, Timing};
use isa::{Destination, Filter, Input, LoadPitch, Op, Program, Residual, Source, StorePitch, Unit};

#[derive(Clone, Copy, Debug)]
struct Touch {
    memory: u32,
    write: bool,
    from: u64,
    to: u64,
}

const DRAM: u32 = 3;
const BLOCKS: u32 = 4;

#[derive(Default)]
struct Registers {
    load: LoadPitch,
    store: StorePitch,
    input: Input,
    source: Source,
    taps: u32,
    filter: Filter,
    destination: Destination,
    residual: Residual,
}

fn touch(memory: u32, write: bool, from: u32, len: u64) -> Touch {
    Touch {
        memory,
        write,
        from: from.into(),
        to: u64::from(from) + len,
    }
}

fn rows(pitch: u32, n_rows: u32, row_bytes: u32) -> u64 {
    u64::from(n_rows - 1) * u64::from(pitch) + u64::from(row_bytes)
}

fn parameters(first: u32, n: u32) -> Touch {
    touch(2, false, 8 * first, u64::from(8 * n))
}

/// Rows of an accumulator block.
fn block(config: &Config, write: bool, (block, row): (u32, u32), n_rows: u32) -> Touch {
    touch(
        BLOCKS,
        write,
        block * config.block_rows + row,
        n_rows.into(),
    )
}

impl Registers {
    fn results(&self, list: &mut Vec<Touch>, at: (u32, u32), n_pixels: u32, add_residual: u32) {
        let to = &self.destination;
        let first = at.0 * to.width + at.1;
        let address = to.address + first * to.pixel_bytes;
        list.push(touch(
            0,
            true,
            address,
            u64::from(n_pixels * to.pixel_bytes),
        ));
        if add_residual == 0 {
            return;
        }
        let r = &self.residual;
        for pixel in first..first + n_pixels {
            let (y, x) = (pixel / to.width * r.stride_y, pixel % to.width * r.stride_x);
            let address = r.address + (y * r.width + x) * r.pixel_bytes;
            let bits = r.n_channels * (4 << r.wide);
            list.push(touch(0, false, address, u64::from(bits.div_ceil(8))));
        }
    }

    fn tile(&self) -> Touch {
        let i = &self.input;
        let bytes = u64::from(i.width * i.height * i.pixel_bytes);
        touch(0, false, i.address, bytes)
    }

    /// Lines of the weight scratchpad: one for each of `n` steps or channels and nibble.
    fn weights(&self, first: u32, n: u32, config: &Config) -> Touch {
        let (line, lines) = (config.line_bytes(), n * (1 + self.input.wide_weights));
        touch(1, false, first * line, u64::from(lines * line))
    }

    fn touches(&mut self, op: &Op, config: &Config) -> Vec<Touch> {
        let mut list = Vec::new();
        match *op {
            Op::LoadPitch(pitch) => self.load = pitch,
            Op::StorePitch(pitch) => self.store = pitch,
            Op::Input(input) => self.input = input,
            Op::Source(source) => self.source = source,
            Op::Window(window) => self.taps = window.height * window.width,
            Op::Filter(filter) => self.filter = filter,
            Op::Destination(destination) => self.destination = destination,
            Op::Residual(residual) => self.residual = residual,
            Op::Fence(_) | Op::Kernel(_) | Op::Slope(_) => {}
            Op::Load(l) => {
                let chip = rows(self.load.chip_pitch, l.n_rows, l.row_bytes);
                let dram = rows(self.load.dram_pitch, l.n_rows, l.row_bytes);
                list.push(touch(l.memory, true, l.chip_address, chip));
                list.push(touch(DRAM, false, l.dram_address, dram));
            }
            Op::Store(s) => {
                let chip = rows(self.store.chip_pitch, s.n_rows, s.row_bytes);
                let dram = rows(self.store.dram_pitch, s.n_rows, s.row_bytes);
                list.push(touch(0, false, s.chip_address, chip));
                list.push(touch(DRAM, true, s.dram_address, dram));
            }
            Op::Matmul(m) => {
                list.push(self.tile());
                list.push(self.weights(m.weight_line, m.n_steps, config));
                if m.first == 1 {
                    list.push(parameters(m.parameter, m.cols_minus_1 + 1));
                }
                if m.last == 1 {
                    list.push(block(config, true, (m.block, 0), m.rows_minus_1 + 1));
                }
            }
            Op::Preload(p) if config.dataflow == Dataflow::InputStationary => {
                assert_eq!(p.weight_line, 0);
                list.push(self.tile());
            }
            Op::Preload(p) => {
                list.push(self.weights(p.weight_line, p.rows_minus_1 + 1, config));
            }
            Op::Stream(s) => {
                let n = s.n_minus_1 + 1;
                let n_channels = if config.dataflow == Dataflow::InputStationary {
                    list.push(self.weights(s.weight_line, n, config));
                    n
                } else {
                    list.push(self.tile());
                    s.cols_minus_1 + 1
                };
                if s.accumulate == 0 {
                    list.push(parameters(s.parameter, n_channels));
                }
                list.push(block(config, true, (s.block, s.row), n));
            }
            Op::Requantize(r) => {
                let (rows, cols) = (r.rows_minus_1 + 1, r.cols_minus_1 + 1);
                let (n_pixels, n_channels) = if config.dataflow == Dataflow::InputStationary {
                    (cols, rows)
                } else {
                    (rows, cols)
                };
                list.push(block(config, false, (r.block, r.row), rows));
                list.push(parameters(r.parameter, n_channels));
                self.results(&mut list, (r.y, r.x), n_pixels, r.add_residual);
            }
            Op::Pool(p) => {
                let s = &self.source;
                let tile = u64::from(s.width * s.height * s.pixel_bytes);
                list.push(touch(0, false, s.address, tile));
                self.results(&mut list, (p.y, p.x), p.n_pixels, p.add_residual);
            }
            Op::Depthwise(d) => {
                let (s, f) = (&self.source, &self.filter);
                let tile = u64::from(s.width * s.height * s.pixel_bytes);
                list.push(touch(0, false, s.address, tile));
                let bits = self.taps * d.n_channels * (4 << f.wide_weights);
                list.push(touch(
                    1,
                    false,
                    f.weight_address,
                    u64::from(bits.div_ceil(8)),
                ));
                list.push(touch(
                    2,
                    false,
                    8 * f.parameter,
                    u64::from(8 * d.n_channels),
                ));
                self.results(&mut list, (d.y, d.x), d.n_pixels, d.add_residual);
            }
        }
        list
    }
}

/// Panics at the first pair of conflicting accesses whose instructions overlap in time or run in
/// the wrong order. Within a unit only a result that the post unit reads back, and a load over a
/// load, count: the rest happens in order.
pub(crate) fn check(program: &Program, config: &Config, timing: &Timing) {
    let mut registers = Registers::default();
    let all: Vec<Vec<Touch>> = program
        .instructions
        .iter()
        .map(|i| registers.touches(&i.op, config))
        .collect();
    for second in 0..all.len() {
        for first in 0..second {
            if timing.end[first] <= timing.start[second] {
                continue;
            }
            let units = [first, second].map(|index| program.instructions[index].op.unit());
            let same = units[0] == units[1];
            for a in &all[first] {
                for b in &all[second] {
                    let overlap = a.memory == b.memory && a.from < b.to && b.from < a.to;
                    let matters = match units[0] {
                        Unit::Post if same => a.write && !b.write,
                        Unit::Load if same => a.write && b.write,
                        _ if same => false,
                        _ => a.write || b.write,
                    };
                    assert!(
                        !(overlap && matters),
                        "{first} {:?} and {second} {:?} race: {a:?} {b:?}",
                        program.instructions[first],
                        program.instructions[second]
                    );
                }
            }
        }
    }
}
