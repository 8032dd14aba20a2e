//! Tiles of one layer and the on-chip buffers that hold them.
//!
//! A buffer of activations is a ring of equal slots: two for double buffering, as many as there are
//! tiles when everything stays for another round, one when no more fits. Invariant: the rings of a
//! [`Plan`] lie inside the gap that the tensors on chip leave, and do not overlap.

use crate::{
    job::{Job, Map, Part, Span, Window, Work},
    lanes::LanePlan,
    residency::Gap,
    weights::WeightPlan,
};
use accelerator::{Config, Dataflow};

/// Rows and columns of an output tile: the fields for `y` and `x` have 12 bits.
pub(crate) const MAX_TILE: u32 = 4095;

/// What the search chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Choice {
    /// Output rows and columns of a tile.
    pub tile: [u32; 2],
    /// Weight groups are the outer loop, pixels the inner.
    pub channels_outer: bool,
    /// Column tiles of a weight group, when groups are the outer loop.
    pub group_tiles: u32,
    /// Output channels of a column tile at most.
    pub fold_channels: u32,
}

/// Where in the on-chip memories a layer's buffers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The part of the activation scratchpad that is free.
    pub gap: Gap,
    /// Buffers stand at the end of the gap instead of its start, so that neighbouring layers
    /// collide less.
    pub at_top: bool,
    /// Where the layer before stopped loading weights: first byte behind.
    pub weight: u32,
    /// First parameter entry behind those of the layer before.
    pub parameter: u32,
}

impl Place {
    /// The first layer's, with so much room.
    pub fn first(gap: Gap) -> Self {
        Self {
            gap,
            at_top: false,
            weight: 0,
            parameter: 0,
        }
    }
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

    pub fn size(&self) -> u32 {
        self.slot * self.n_slots
    }
}

/// Tiles and buffers of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub choice: Choice,
    /// Output rows of each tile row.
    pub ys: Vec<(u32, u32)>,
    /// Output columns of each tile column.
    pub xs: Vec<(u32, u32)>,
    /// `None` when the array has nothing to do.
    pub weights: Option<WeightPlan>,
    /// For depthwise convolutions on the post unit's lanes.
    pub lanes: Option<LanePlan>,
    /// One per operand that is loaded; parts without a source have an empty one.
    pub inputs: Vec<Ring>,
    pub output: Ring,
    pub second: Ring,
}

impl Plan {
    /// The plan of a choice.
    pub fn new(
        job: &Job,
        choice: Choice,
        config: &Config,
        place: &Place,
    ) -> Result<Self, Shortage> {
        let mut plan = Self {
            choice,
            ys: cut(job.output.height, choice.tile[0]),
            xs: cut(job.output.width, choice.tile[1]),
            weights: None,
            lanes: None,
            inputs: Vec::new(),
            output: Ring::default(),
            second: Ring::default(),
        };
        match &job.work {
            Work::Conv(conv) => {
                plan.weights = Some(WeightPlan::new(job, conv, choice, config, place)?);
            }
            Work::Lanes(conv) => plan.lanes = Some(LanePlan::new(conv, config, place.at_top)?),
            Work::Pool(_) => {}
        }
        plan.place_activations(job, place)?;
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

    fn place_activations(&mut self, job: &Job, place: &Place) -> Result<(), Shortage> {
        let n_tiles = self.n_tiles() as u64;
        let bytes = TileBytes::of(job, &self.ys, &self.xs, self.weights.as_ref());
        let TileBytes {
            inputs,
            output,
            second,
        } = &bytes;
        let outer = self.weights.as_ref().is_some_and(|weights| weights.outer);
        let sliced = self.weights.as_ref().is_some_and(|weights| weights.sliced);
        let needed = bytes.sum([1; 3]);
        let available = u64::from(place.gap.len);
        let resident = if outer { n_tiles } else { 2 };
        let n_outputs = if sliced { 2 } else { n_tiles.min(2) };
        // In order of preference; the last is what must fit.
        for numbers in [
            [resident.min(n_tiles), n_outputs, resident.min(n_tiles)],
            [n_tiles.min(2), n_outputs, n_tiles.min(2)],
            [n_tiles.min(2), 1, 1],
            [1, 1, 1],
        ] {
            let total = bytes.sum(numbers);
            if total > available {
                continue;
            }
            let before = if place.at_top { available - total } else { 0 };
            let mut base = place.gap.base + before as u32;
            let mut ring = |slot: u64, n_slots: u64| {
                let ring = Ring {
                    base,
                    slot: slot as u32,
                    n_slots: n_slots as u32,
                };
                base += ring.size();
                ring
            };
            self.inputs = inputs
                .iter()
                .map(|&bytes| ring(bytes, numbers[0]))
                .collect();
            self.output = ring(*output, numbers[1]);
            self.second = ring(*second, numbers[2]);
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
}

/// Bytes of a layer's largest tiles; 0 for tensors that stay on chip as a whole.
struct TileBytes {
    inputs: Vec<u64>,
    output: u64,
    second: u64,
}

impl TileBytes {
    fn of(job: &Job, ys: &[(u32, u32)], xs: &[(u32, u32)], weights: Option<&WeightPlan>) -> Self {
        let inputs: Vec<u64> = match &job.work {
            Work::Conv(conv) | Work::Lanes(conv) => {
                vec![input_bytes(&conv.window, &conv.input, ys, xs)]
            }
            Work::Pool(parts) => parts.iter().map(|part| part_bytes(part, ys, xs)).collect(),
        };
        let sliced = weights.filter(|weights| weights.sliced);
        let pixel_bytes = sliced.map_or(u64::from(job.output.pixel_bytes), |weights| {
            let channels = weights.groups.iter().map(|group| group.n_channels);
            let widest = u64::from(channels.max().unwrap_or(0));
            (widest * u64::from(job.output.bits)).div_ceil(8)
        });
        let output = longest(ys) * longest(xs) * pixel_bytes;
        let second = job.second.map_or(0, |second| {
            let width = (longest(xs) - 1) * u64::from(second.stride[1]) + 1;
            // A slice is found by moving the tile's address into its first pixel; the machine wants
            // the whole moved tile inside the memory.
            let moved = u64::from(sliced.is_some());
            (longest(ys) * width + moved) * u64::from(second.map.pixel_bytes)
        });
        let loaded = |map: &Map, bytes| if map.chip.is_some() { 0 } else { bytes };
        Self {
            inputs,
            output: loaded(&job.output, output),
            second: job.second.map_or(0, |operand| loaded(&operand.map, second)),
        }
    }

    /// With so many slots for inputs, output and second operand.
    fn sum(&self, numbers: [u64; 3]) -> u64 {
        self.inputs.iter().sum::<u64>() * numbers[0]
            + self.output * numbers[1]
            + self.second * numbers[2]
    }
}

/// Room for double-buffered tiles of at least as many pixels as a fold has: with less, the array
/// would often wait.
pub(crate) fn comfortable_bytes(job: &Job, config: &Config) -> u64 {
    let Map { height, width, .. } = job.output;
    let n_pixels = match job.work {
        Work::Conv(_) => fold_pixels(config),
        Work::Pool(_) | Work::Lanes(_) => 1,
    };
    let ys = cut(height, n_pixels.div_ceil(width).min(height));
    let slots = (ys.len() as u64).min(2);
    TileBytes::of(job, &ys, &[(0, width)], None).sum([slots; 3])
}

/// Output pixels of a fold at most.
pub(crate) fn fold_pixels(config: &Config) -> u32 {
    match config.dataflow {
        Dataflow::OutputStationary => config.rows,
        Dataflow::WeightStationary => config.block_rows,
        Dataflow::InputStationary => config.cols,
    }
}

/// Output channels of a fold at most.
pub(crate) fn fold_channels(config: &Config) -> u32 {
    match config.dataflow {
        Dataflow::OutputStationary | Dataflow::WeightStationary => config.cols,
        Dataflow::InputStationary => config.block_rows,
    }
}

/// Runs of at most `step` that cover `0..extent`.
fn cut(extent: u32, step: u32) -> Vec<(u32, u32)> {
    (0..extent.div_ceil(step))
        .map(|i| (i * step, extent.min((i + 1) * step)))
        .collect()
}

pub(crate) fn longest(runs: &[(u32, u32)]) -> u64 {
    runs.iter()
        .map(|(from, to)| u64::from(to - from))
        .max()
        .unwrap_or(0)
}

/// Bytes of the largest input tile, one pixel where everything is padding; 0 when it stays on chip.
fn input_bytes(window: &Window, input: &Map, ys: &[(u32, u32)], xs: &[(u32, u32)]) -> u64 {
    if input.chip.is_some() {
        return 0;
    }
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
