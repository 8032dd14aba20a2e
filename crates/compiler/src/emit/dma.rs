//! Loads and stores of tiles: rows with pitches, or runs of bytes.
//!
//! Invariant: each instruction's accesses cover all bytes between its first and its last.

use super::{
    Access, Emitter, Memory,
    operands::{OutputTile, pixel_address},
};
use isa::{Load, LoadPitch, Store, StorePitch};

/// Longest row of a DMA instruction that copies bytes without a pitch.
const MAX_RUN: u64 = 1 << 19;
/// Most rows of a DMA instruction.
const MAX_ROWS: u32 = 0xffff;
/// A part of a tensor in both memories.
#[derive(Clone, Copy)]
pub(super) struct Transfer {
    pub dram: u64,
    pub chip: u32,
    pub dram_pitch: u32,
    pub chip_pitch: u32,
    pub n_rows: u32,
    pub row_bytes: u32,
}

impl Emitter<'_> {
    /// Stores an output tile: whole rows, or a slice of every pixel.
    pub(super) fn store(&mut self, output: &OutputTile) {
        let map = self.job.output;
        let (rows, columns, width) = (output.rows, output.columns, output.width());
        let n_rows = rows.1 - rows.0;
        let dram = pixel_address(&map, rows.0, columns.0);
        let whole = output.n_channels == map.channels;
        if whole {
            self.store_rows(Transfer {
                dram,
                chip: output.address,
                dram_pitch: map.width * map.pixel_bytes,
                chip_pitch: width * map.pixel_bytes,
                n_rows,
                row_bytes: width * map.pixel_bytes,
            });
            return;
        }
        let first = u64::from(output.channel * map.bits / 8);
        // Pixels of a full-width tile follow each other in DRAM, those of other tiles in a row.
        let (n_runs, run) = if width == map.width {
            (1, n_rows * width)
        } else {
            (n_rows, width)
        };
        for index in 0..n_runs {
            self.store_rows(Transfer {
                dram: dram + u64::from(index) * u64::from(map.width * map.pixel_bytes) + first,
                chip: output.address + index * width * output.pixel_bytes,
                dram_pitch: map.pixel_bytes,
                chip_pitch: output.pixel_bytes,
                n_rows: run,
                row_bytes: output.pixel_bytes,
            });
        }
    }

    /// Loads bytes that follow each other.
    pub(super) fn load_run(
        &mut self,
        memory: u32,
        (dram, chip): (u64, u32),
        bytes: u64,
        access: Access,
    ) {
        let mut done = 0;
        while done < bytes {
            let n = MAX_RUN.min(bytes - done);
            let load = Load {
                memory,
                dram_address: (dram + done) as u32,
                chip_address: chip + done as u32,
                n_rows: 1,
                row_bytes: n as u32,
            };
            let read = Access::new(Memory::Dram, false, load.dram_address, n);
            // Of a transfer in several parts each part writes its own bytes.
            let write = match access.memory {
                Memory::Parameter => access,
                memory => Access::new(memory, true, load.chip_address, n),
            };
            // Weights and parameters never change in DRAM.
            match memory {
                0 => self.push(load, [read, write]),
                _ => self.push(load, [write]),
            }
            done += n;
        }
    }

    pub(super) fn load_rows(&mut self, transfer: Transfer, access: Access) {
        let Transfer {
            dram,
            chip,
            dram_pitch,
            chip_pitch,
            n_rows,
            row_bytes,
        } = transfer;
        if n_rows == 1 || (dram_pitch == row_bytes && chip_pitch == row_bytes) {
            let bytes = u64::from(n_rows) * u64::from(row_bytes);
            return self.load_run(0, (dram, chip), bytes, access);
        }
        let pitch = LoadPitch {
            dram_pitch,
            chip_pitch,
        };
        if self.registers.load != Some(pitch) {
            self.registers.load = Some(pitch);
            self.push(pitch, []);
        }
        let span = u64::from(n_rows - 1) * u64::from(dram_pitch) + u64::from(row_bytes);
        let read = Access::new(Memory::Dram, false, dram as u32, span);
        let load = Load {
            memory: 0,
            dram_address: dram as u32,
            chip_address: chip,
            n_rows,
            row_bytes,
        };
        self.push(load, [read, access]);
    }

    fn store_rows(&mut self, transfer: Transfer) {
        let Transfer {
            dram,
            chip,
            dram_pitch,
            chip_pitch,
            n_rows,
            row_bytes,
        } = transfer;
        if n_rows == 1 || (dram_pitch == row_bytes && chip_pitch == row_bytes) {
            let bytes = u64::from(n_rows) * u64::from(row_bytes);
            for done in (0..bytes).step_by(MAX_RUN as usize) {
                let n = MAX_RUN.min(bytes - done) as u32;
                self.store_part(dram + done, chip + done as u32, (0, 0), 1, n);
            }
            return;
        }
        let pitch = StorePitch {
            dram_pitch,
            chip_pitch,
        };
        if self.registers.store != Some(pitch) {
            self.registers.store = Some(pitch);
            self.push(pitch, []);
        }
        for row in (0..n_rows).step_by(MAX_ROWS as usize) {
            let dram = dram + u64::from(row) * u64::from(dram_pitch);
            let n = MAX_ROWS.min(n_rows - row);
            self.store_part(
                dram,
                chip + row * chip_pitch,
                (dram_pitch, chip_pitch),
                n,
                row_bytes,
            );
        }
    }

    fn store_part(
        &mut self,
        dram: u64,
        chip: u32,
        (dram_pitch, chip_pitch): (u32, u32),
        n_rows: u32,
        row_bytes: u32,
    ) {
        let store = Store {
            dram_address: dram as u32,
            chip_address: chip,
            n_rows,
            row_bytes,
        };
        let span = |pitch: u32| u64::from(n_rows - 1) * u64::from(pitch) + u64::from(row_bytes);
        let accesses = [
            Access::new(Memory::Activation, false, chip, span(chip_pitch)),
            Access::new(Memory::Dram, true, store.dram_address, span(dram_pitch)),
        ];
        self.push(store, accesses);
    }
}
