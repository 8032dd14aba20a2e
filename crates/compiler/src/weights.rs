//! How a convolution's weights and parameters come on chip.
//!
//! Weights are cut into pieces: several small column tiles, one column tile, or some units of one.
//! The weight scratchpad is one ring of slots, each of which holds a piece; pieces follow each other
//! around the ring in the order of their use, and a layer goes on where the one before stopped, so
//! that what is loaded ahead replaces what was used longest ago. When a layer has no more pieces
//! than slots, all of them stay. Invariant: ring and table of a plan lie inside their memories.

use crate::{
    job::{Conv, Job},
    layout::{ColumnTile, PARAMETER_BYTES, column_tiles},
    tile::{Choice, Place, Ring, Shortage},
};
use accelerator::{Config, Dataflow};

/// Pieces have about this size: large enough to be few, small enough that the array does not wait
/// long for the first.
const PIECE_BYTES: u64 = 4096;
/// A ring has at least this many slots, where a unit of weights allows it.
const MIN_SLOTS: u64 = 8;
/// Steps that one `matmul` can do.
const MAX_STEPS: u32 = 0xffff;

/// Column tiles that are worked on together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// First column tile.
    pub first_tile: usize,
    pub n_tiles: usize,
    /// First output channel.
    pub channel: u32,
    pub n_channels: u32,
}

/// A part of the weights that is loaded at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub index: usize,
    /// First byte, from the layer's first.
    pub offset: u64,
    pub bytes: u32,
    /// Where within the piece the chunk that was asked for begins.
    pub inner: u32,
}

/// How a convolution's weights come on chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeightPlan {
    pub tiles: Vec<ColumnTile>,
    pub groups: Vec<Group>,
    /// Steps of a unit: 1, or the rows of an array whose rows are steps.
    pub unit_steps: u32,
    /// Units of the reduction.
    pub n_units: u32,
    /// Units of a chunk: what one piece has of a column tile.
    pub chunk_units: u32,
    /// Column tiles of a piece; 1 when a tile has several chunks.
    pub piece_tiles: usize,
    pub ring: Ring,
    /// Slot of the first piece.
    pub first_slot: u32,
    pub parameters: Ring,
    /// Every parameter stays on chip, in one slot.
    pub parameters_resident: bool,
    /// Groups are the outer loop, and there are several.
    pub outer: bool,
    /// An output tile holds one group's channels, not all.
    pub sliced: bool,
}

/// Bytes of a step's weights: one line, or two; on an input-stationary machine the lines of one
/// output channel and as many steps as the array has rows.
pub(crate) fn line_bytes(conv: &Conv, config: &Config) -> u32 {
    config.line_bytes() * (1 + u32::from(conv.wide_weights))
}

/// Bytes of a unit of a column tile.
pub(crate) fn unit_bytes(conv: &Conv, tile: &ColumnTile, config: &Config) -> u32 {
    line_bytes(conv, config)
        * match config.dataflow {
            Dataflow::OutputStationary => 1,
            Dataflow::WeightStationary => config.rows.min(conv.n_steps()),
            Dataflow::InputStationary => tile.n_channels,
        }
}

impl WeightPlan {
    /// Chunks of a column tile.
    pub fn n_chunks(&self) -> u32 {
        self.n_units.div_ceil(self.chunk_units)
    }

    pub fn n_pieces(&self) -> usize {
        if self.piece_tiles > 1 {
            self.tiles.len().div_ceil(self.piece_tiles)
        } else {
            self.tiles.len() * self.n_chunks() as usize
        }
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        self.tiles.last().map_or(0, |tile| tile.offset + tile.bytes)
    }

    /// No piece is loaded twice.
    pub fn stays(&self) -> bool {
        self.n_pieces() <= self.ring.n_slots as usize
    }

    /// The piece that holds a chunk of a column tile.
    pub fn piece(&self, conv: &Conv, tile: usize, chunk: u32, config: &Config) -> Piece {
        let column = &self.tiles[tile];
        if self.piece_tiles > 1 {
            let index = tile / self.piece_tiles;
            let first = &self.tiles[index * self.piece_tiles];
            let last = (index + 1) * self.piece_tiles - 1;
            let last = &self.tiles[last.min(self.tiles.len() - 1)];
            return Piece {
                index,
                offset: first.offset,
                bytes: (last.offset + last.bytes - first.offset) as u32,
                inner: (column.offset - first.offset) as u32,
            };
        }
        let chunk_bytes = u64::from(self.chunk_units) * u64::from(unit_bytes(conv, column, config));
        let from = u64::from(chunk) * chunk_bytes;
        Piece {
            index: tile * self.n_chunks() as usize + chunk as usize,
            offset: column.offset + from,
            bytes: (column.bytes - from).min(chunk_bytes) as u32,
            inner: 0,
        }
    }

    /// The plan of a choice.
    pub fn new(
        job: &Job,
        conv: &Conv,
        choice: Choice,
        config: &Config,
        place: &Place,
    ) -> Result<Self, Shortage> {
        let tiles = column_tiles(conv, config, choice.fold_channels);
        let line = config.line_bytes();
        let room = u64::from(config.weight_bytes / line * line);
        let n_steps = conv.n_steps();
        let unit_steps = match config.dataflow {
            Dataflow::OutputStationary => 1,
            Dataflow::WeightStationary | Dataflow::InputStationary => config.rows,
        };
        let n_units = n_steps.div_ceil(unit_steps);
        let unit = tiles
            .iter()
            .map(|tile| unit_bytes(conv, tile, config))
            .max();
        let unit = u64::from(unit.unwrap_or(1));
        let tile_bytes = tiles.iter().map(|tile| tile.bytes).max().unwrap_or(1);
        if unit > room {
            return Err(Shortage {
                what: match config.dataflow {
                    Dataflow::OutputStationary => "one step of the reduction",
                    Dataflow::WeightStationary | Dataflow::InputStationary => "one fold",
                },
                buffer: "weight scratchpad",
                needed: unit,
                available: config.weight_bytes.into(),
            });
        }
        let target = PIECE_BYTES.min(room / MIN_SLOTS);
        let (piece_tiles, chunk_units, slot) = if tile_bytes <= target {
            let n = (target / tile_bytes).min(tiles.len() as u64);
            (n as usize, n_units, n * tile_bytes)
        } else {
            let most = (target / unit).clamp(1, u64::from(MAX_STEPS / unit_steps).max(1)) as u32;
            // Chunks of nearly equal size.
            let chunk = n_units.div_ceil(n_units.div_ceil(most));
            (1, chunk, (u64::from(chunk) * unit).min(tile_bytes))
        };
        // Lines are counted from the memory's first byte.
        let slot = slot.next_multiple_of(line.into());
        let ring = Ring {
            base: 0,
            slot: slot as u32,
            n_slots: (room / slot) as u32,
        };
        let mut plan = Self {
            tiles,
            groups: Vec::new(),
            unit_steps,
            n_units,
            chunk_units,
            piece_tiles,
            ring,
            first_slot: place.weight.div_ceil(ring.slot) % ring.n_slots,
            parameters: Ring::default(),
            parameters_resident: conv.groups * conv.group_out <= config.n_parameters,
            outer: false,
            sliced: false,
        };
        plan.place_parameters(conv, choice, config, place)?;
        plan.outer = choice.channels_outer && plan.groups.len() > 1;
        plan.sliced = plan.outer && job.output.chip.is_none();
        if plan.sliced {
            check_slices(job, &plan.groups)?;
        }
        Ok(plan)
    }

    /// Groups, and the place of their parameters.
    fn place_parameters(
        &mut self,
        conv: &Conv,
        choice: Choice,
        config: &Config,
        place: &Place,
    ) -> Result<(), Shortage> {
        let n_parameters = config.n_parameters;
        let widest = self.tiles.iter().map(|tile| tile.n_channels).max();
        let widest = widest.unwrap_or(0);
        let wanted = if choice.channels_outer {
            choice.group_tiles as usize
        } else {
            self.tiles.len()
        };
        let group_tiles = if self.parameters_resident {
            wanted
        } else {
            wanted.min((n_parameters / 2 / widest).max(1) as usize)
        };
        self.groups = group(&self.tiles, group_tiles);
        let slot = if self.parameters_resident {
            conv.groups * conv.group_out
        } else {
            let channels = self.groups.iter().map(|group| group.n_channels);
            channels.max().unwrap_or(0)
        };
        if slot > n_parameters {
            return Err(Shortage {
                what: "a column tile",
                buffer: "parameter table",
                needed: u64::from(slot) * u64::from(PARAMETER_BYTES),
                available: u64::from(n_parameters) * u64::from(PARAMETER_BYTES),
            });
        }
        let n_slots = if self.parameters_resident || slot * 2 > n_parameters {
            1
        } else {
            2
        };
        let fits = place.parameter + slot * n_slots <= n_parameters;
        self.parameters = Ring {
            base: if fits { place.parameter } else { 0 },
            slot,
            n_slots,
        };
        Ok(())
    }
}

fn group(tiles: &[ColumnTile], n_tiles: usize) -> Vec<Group> {
    let chunks = tiles.chunks(n_tiles).enumerate();
    chunks
        .map(|(index, chunk)| Group {
            first_tile: index * n_tiles,
            n_tiles: chunk.len(),
            channel: chunk[0].channel,
            n_channels: chunk.iter().map(|tile| tile.n_channels).sum(),
        })
        .collect()
}

/// A slice of a pixel is stored by bytes, and a residual's slice is found by bytes.
fn check_slices(job: &Job, groups: &[Group]) -> Result<(), Shortage> {
    let odd = |group: &Group| {
        let second = job.second.is_some_and(|second| {
            group.channel > second.channel
                && !((group.channel - second.channel) * second.map.bits).is_multiple_of(8)
        });
        second || !(group.channel * job.output.bits).is_multiple_of(8)
    };
    if groups.iter().any(odd) {
        // Never an error, only explained: the other loop order has no slices.
        return Err(Shortage {
            what: "a slice from inside a byte",
            buffer: "pixel",
            needed: 0,
            available: 0,
        });
    }
    Ok(())
}
