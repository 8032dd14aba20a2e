//! Tiles of one layer and the on-chip buffers that hold them.
//!
//! A buffer is a ring of equal slots: two for double buffering, as many as there are tiles when
//! everything stays resident, one when no more fits. Invariant: the rings of a [`Plan`] lie inside
//! their memories and do not overlap.

use crate::{
    job::{Conv, Job, Map, Part, Span, Window, Work},
    layout::{PARAMETER_BYTES, column_tiles},
};
use accelerator::Config;

/// Weight groups and loads under this size cost more in latency than they hide.
const SMALL_LOAD_BYTES: u64 = 1024;
/// Steps that one `matmul` can do.
const MAX_STEPS: u32 = 0xffff;
/// Rows and columns of an output tile: the fields for `y` and `x` have 12 bits.
pub(crate) const MAX_TILE: u32 = 4095;

/// What the search chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Choice {
    /// Output rows and columns of a tile.
    pub tile: [u32; 2],
    /// Weight groups are the outer loop, pixels the inner.
    pub channels_outer: bool,
}

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub what: &'static str,
    pub buffer: &'static str,
    pub needed: u64,
    pub available: u64,
}

/// Slots of equal size, one behind the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ring {
    /// First byte; for parameters, first entry.
    pub base: u32,
    /// Bytes (or entries) of a slot.
    pub slot: u32,
    pub n_slots: u32,
}

impl Ring {
    /// First byte (or entry) of a slot.
    pub fn address(&self, slot: u32) -> u32 {
        self.base + self.slot * slot
    }

    fn size(&self) -> u32 {
        self.slot * self.n_slots
    }
}

/// Output channels whose weights lie on chip together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// First column tile.
    pub first_tile: usize,
    pub n_tiles: usize,
    /// First output channel.
    pub channel: u32,
    pub n_channels: u32,
}

/// How a convolution's weights come on chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeightPlan {
    /// Per column tile: first channel, channels.
    pub tiles: Vec<(u32, u32)>,
    pub groups: Vec<Group>,
    /// Steps of one `matmul` at most.
    pub chunk_steps: u32,
    /// A column tile does not fit: its chunks are loaded for every fold.
    pub streamed: bool,
    pub step_bytes: u32,
    pub weights: Ring,
    pub parameters: Ring,
    /// Every parameter stays on chip, in one slot.
    pub parameters_resident: bool,
    /// An output tile holds one group's channels, not all.
    pub sliced: bool,
}

/// Tiles and buffers of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub choice: Choice,
    /// Output rows of each tile row.
    pub ys: Vec<(u32, u32)>,
    /// Output columns of each tile column.
    pub xs: Vec<(u32, u32)>,
    /// `None` for pooling.
    pub weights: Option<WeightPlan>,
    /// One per operand that is loaded; parts without a source have an empty one.
    pub inputs: Vec<Ring>,
    pub output: Ring,
    pub second: Ring,
}

impl Plan {
    /// The plan of a choice. `at_top` places the buffers at the end of the memories instead of
    /// their start, so that neighbouring layers collide less.
    pub fn new(job: &Job, choice: Choice, config: &Config, at_top: bool) -> Result<Self, Shortage> {
        let ys = cut(job.output.height, choice.tile[0]);
        let xs = cut(job.output.width, choice.tile[1]);
        let mut plan = Self {
            choice,
            ys,
            xs,
            weights: None,
            inputs: Vec::new(),
            output: Ring::default(),
            second: Ring::default(),
        };
        if let Work::Conv(conv) = &job.work {
            plan.weights = Some(plan_weights(job, conv, choice, config, at_top)?);
        }
        plan.place_activations(job, config, at_top)?;
        Ok(plan)
    }

    /// Spatial tiles.
    pub fn n_tiles(&self) -> usize {
        self.ys.len() * self.xs.len()
    }

    /// Output rows and columns of a tile.
    pub fn tile(&self, index: usize) -> [(u32, u32); 2] {
        [
            self.ys[index / self.xs.len()],
            self.xs[index % self.xs.len()],
        ]
    }

    fn place_activations(
        &mut self,
        job: &Job,
        config: &Config,
        at_top: bool,
    ) -> Result<(), Shortage> {
        let n_tiles = self.n_tiles() as u64;
        let (ys, xs) = (&self.ys, &self.xs);
        let inputs: Vec<u64> = match &job.work {
            Work::Conv(conv) => vec![input_bytes(&conv.window, &conv.input, ys, xs)],
            Work::Pool(parts) => parts.iter().map(|part| part_bytes(part, ys, xs)).collect(),
        };
        let n_pixels = longest(ys) * longest(xs);
        let sliced = self.weights.as_ref().filter(|w| w.sliced);
        let output = n_pixels
            * sliced.map_or(u64::from(job.output.pixel_bytes), |weights| {
                let widest = weights
                    .groups
                    .iter()
                    .map(|g| g.n_channels)
                    .max()
                    .unwrap_or(0);
                (u64::from(widest) * u64::from(job.output.bits)).div_ceil(8)
            });
        let second = job.second.map_or(0, |second| {
            let width = (longest(xs) - 1) * u64::from(second.stride[1]) + 1;
            // A slice is found by moving the tile's address into its first pixel; the machine wants
            // the whole moved tile inside the memory.
            let moved = u64::from(sliced.is_some());
            (longest(ys) * width + moved) * u64::from(second.map.pixel_bytes)
        });
        let needed = inputs.iter().sum::<u64>() + output + second;
        let available = u64::from(config.activation_bytes);
        let resident = if sliced.is_some() { n_tiles } else { 2 };
        let n_outputs = if sliced.is_some() { 2 } else { n_tiles.min(2) };
        // In order of preference; the last is what must fit.
        for (n_inputs, n_outputs, n_second) in [
            (resident.min(n_tiles), n_outputs, resident.min(n_tiles)),
            (n_tiles.min(2), n_outputs, n_tiles.min(2)),
            (n_tiles.min(2), 1, 1),
            (1, 1, 1),
        ] {
            let total = inputs.iter().sum::<u64>() * n_inputs + output * n_outputs;
            let total = total + second * n_second;
            if total > available {
                continue;
            }
            let mut base = if at_top { available - total } else { 0 } as u32;
            let mut ring = |slot: u64, n_slots: u64| {
                let ring = Ring {
                    base,
                    slot: slot as u32,
                    n_slots: n_slots as u32,
                };
                base += ring.size();
                ring
            };
            self.inputs = inputs.iter().map(|&bytes| ring(bytes, n_inputs)).collect();
            self.output = ring(output, n_outputs);
            self.second = ring(second, n_second);
            return Ok(());
        }
        let what = if self.choice.tile == [1, 1] {
            "one output pixel"
        } else if self.choice.tile[0] == 1 {
            "one output row"
        } else {
            "an output tile"
        };
        Err(Shortage {
            what,
            buffer: "activation scratchpad",
            needed,
            available,
        })
    }

    /// Cycles that the layer takes if everything overlaps, plus what cannot: the first tile's load
    /// and the last tile's store. Only the order of candidates depends on it.
    pub fn estimate(&self, job: &Job, config: &Config) -> u64 {
        let n_tiles = self.n_tiles() as u64;
        let word = u64::from(config.dram.bytes_per_cycle);
        let input: u64 = self.inputs.iter().map(|ring| u64::from(ring.slot)).sum();
        let tile_load = input + u64::from(self.second.slot);
        let stored = u64::from(job.output.pixel_bytes)
            * u64::from(job.output.height)
            * u64::from(job.output.width);
        let lanes = u64::from(config.lanes);
        let (array, post, loaded, first) = match (&job.work, &self.weights) {
            (Work::Conv(conv), Some(weights)) => {
                let rows = u64::from(config.rows);
                let n_folds: u64 = self
                    .ys
                    .iter()
                    .flat_map(|y| self.xs.iter().map(move |x| (y.1 - y.0, x.1 - x.0)))
                    .map(|(h, w)| (u64::from(h) * u64::from(w)).div_ceil(rows))
                    .sum();
                let n_columns = weights.tiles.len() as u64;
                let mut fold = u64::from(conv.n_steps()) * conv.passes();
                if !config.shadow_accumulators {
                    fold += u64::from(2 * config.rows + config.cols);
                }
                let requantize = rows * u64::from(config.cols).div_ceil(lanes);
                let tile_bytes = u64::from(weights.step_bytes) * u64::from(conv.n_steps());
                let n_groups = weights.groups.len() as u64;
                let outer = self.choice.channels_outer;
                let weight_loads = if weights.streamed {
                    n_folds
                } else if outer || u64::from(weights.weights.n_slots) >= n_groups {
                    1
                } else {
                    n_tiles
                };
                let input_loads = if outer && u64::from(self.inputs[0].n_slots) < n_tiles {
                    n_groups
                } else {
                    1
                };
                let loaded =
                    weight_loads * n_columns * tile_bytes + input_loads * n_tiles * tile_load;
                let first = tile_load + u64::from(weights.weights.slot);
                let n_folds = n_folds * n_columns;
                (n_folds * fold, n_folds * requantize, loaded, first)
            }
            (Work::Pool(parts), _) => {
                let n_pixels = u64::from(job.output.height) * u64::from(job.output.width);
                let post: u64 = parts
                    .iter()
                    .map(|part| {
                        let taps = part.window.kernel[0] * part.window.kernel[1];
                        n_pixels * u64::from(part.n_channels).div_ceil(lanes) * u64::from(taps)
                    })
                    .sum();
                (0, post, n_tiles * tile_load, tile_load)
            }
            (Work::Conv(_), None) => unreachable!("a convolution's plan has weights"),
        };
        let overlapped = array.max(post).max((loaded + stored).div_ceil(word));
        // A tile costs a few instructions and DRAM latencies of its own.
        let per_tile = 16 * n_tiles;
        overlapped + (first + u64::from(self.output.slot)).div_ceil(word) + per_tile
    }
}

/// Runs of at most `step` that cover `0..extent`.
fn cut(extent: u32, step: u32) -> Vec<(u32, u32)> {
    (0..extent.div_ceil(step))
        .map(|i| (i * step, extent.min((i + 1) * step)))
        .collect()
}

fn longest(runs: &[(u32, u32)]) -> u64 {
    runs.iter()
        .map(|(from, to)| u64::from(to - from))
        .max()
        .unwrap_or(0)
}

/// Bytes of the largest input tile; one pixel where everything is padding.
fn input_bytes(window: &Window, input: &Map, ys: &[(u32, u32)], xs: &[(u32, u32)]) -> u64 {
    let longest = |axis: usize, runs: &[(u32, u32)], extent: u32| {
        let spans = runs
            .iter()
            .filter_map(|&run| window.span(axis, run, extent));
        spans
            .map(|span: Span| u64::from(span.len))
            .max()
            .unwrap_or(1)
    };
    longest(0, ys, input.height) * longest(1, xs, input.width) * u64::from(input.pixel_bytes)
}

fn part_bytes(part: &Part, ys: &[(u32, u32)], xs: &[(u32, u32)]) -> u64 {
    part.source
        .map_or(0, |source| input_bytes(&part.window, &source, ys, xs))
}

fn plan_weights(
    job: &Job,
    conv: &Conv,
    choice: Choice,
    config: &Config,
    at_top: bool,
) -> Result<WeightPlan, Shortage> {
    let tiles = column_tiles(conv.groups, conv.group_out, config.cols);
    let line = config.line_bytes();
    let step_bytes = line * (1 + u32::from(conv.wide_weights));
    let room = u64::from(config.weight_bytes / line * line);
    let n_steps = conv.n_steps();
    let tile_bytes = u64::from(n_steps) * u64::from(step_bytes);
    let n_tiles = tiles.len() as u64;
    let small = SMALL_LOAD_BYTES.div_ceil(tile_bytes).clamp(1, n_tiles);
    // Streaming loads weights again for every fold; with one fold it only hides the load.
    let single_fold = job.output.height * job.output.width <= config.rows;
    let mut chunk_steps = n_steps.min(MAX_STEPS);
    let mut streamed = false;
    // Column tiles of a group, slots.
    let (mut group_tiles, mut n_slots) = if tile_bytes * n_tiles <= room {
        (small, n_tiles.div_ceil(small))
    } else if tile_bytes * 2 <= room {
        let most = room / 2 / tile_bytes;
        (
            if choice.channels_outer {
                most
            } else {
                most.min(small)
            },
            2,
        )
    } else if tile_bytes <= room && !single_fold {
        (1, 1)
    } else {
        streamed = true;
        let n_slots = if u64::from(step_bytes) * 2 <= room {
            2
        } else {
            1
        };
        chunk_steps = chunk_steps.min((room / n_slots / u64::from(step_bytes)) as u32);
        if chunk_steps == 0 {
            return Err(Shortage {
                what: "one step of the reduction",
                buffer: "weight scratchpad",
                needed: step_bytes.into(),
                available: config.weight_bytes.into(),
            });
        }
        (1, n_slots)
    };
    let resident = conv.groups * conv.group_out <= config.n_parameters;
    let widest = |groups: &[Group]| groups.iter().map(|g| g.n_channels).max().unwrap_or(0);
    let mut groups = group(&tiles, group_tiles as usize);
    if !resident && widest(&groups) * 2 > config.n_parameters && group_tiles > 1 {
        n_slots = if n_slots as usize >= groups.len() {
            n_tiles
        } else {
            n_slots
        };
        group_tiles = 1;
        groups = group(&tiles, 1);
    }
    let slot_channels = if resident {
        conv.groups * conv.group_out
    } else {
        widest(&groups)
    };
    if slot_channels > config.n_parameters {
        return Err(Shortage {
            what: "a column tile",
            buffer: "parameter table",
            needed: u64::from(slot_channels) * u64::from(PARAMETER_BYTES),
            available: u64::from(config.n_parameters) * u64::from(PARAMETER_BYTES),
        });
    }
    let n_parameter_slots = if resident || slot_channels * 2 > config.n_parameters {
        1
    } else {
        2
    };
    let slot = if streamed {
        chunk_steps * step_bytes
    } else {
        group_tiles as u32 * tile_bytes as u32
    };
    let mut weights = Ring {
        base: 0,
        slot,
        n_slots: n_slots as u32,
    };
    let mut parameters = Ring {
        base: 0,
        slot: slot_channels,
        n_slots: n_parameter_slots,
    };
    if at_top {
        // The last group may be smaller than its slot, so a resident ring may be longer than the
        // weights; it still has to lie inside the memory.
        weights.base = (room as u32).saturating_sub(weights.size());
        parameters.base = config.n_parameters - parameters.size();
    }
    let sliced = choice.channels_outer && groups.len() > 1;
    if sliced {
        check_slices(job, &groups)?;
    }
    Ok(WeightPlan {
        tiles,
        groups,
        chunk_steps,
        streamed,
        step_bytes,
        weights,
        parameters,
        parameters_resident: resident,
        sliced,
    })
}

fn group(tiles: &[(u32, u32)], n_tiles: usize) -> Vec<Group> {
    let chunks = tiles.chunks(n_tiles).enumerate();
    chunks
        .map(|(index, chunk)| Group {
            first_tile: index * n_tiles,
            n_tiles: chunk.len(),
            channel: chunk[0].0,
            n_channels: chunk.iter().map(|tile| tile.1).sum(),
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
        // Never reported: the other loop order has no slices.
        return Err(Shortage {
            what: "a slice",
            buffer: "bytes",
            needed: 0,
            available: 0,
        });
    }
    Ok(())
}
