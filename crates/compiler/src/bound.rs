//! The fewest cycles that a plan can take: what its units and the DRAM bus have to do, and what must
//! happen before the array's first operand and after its last.
//!
//! Invariant: no run of the plan's own program from an idle machine is shorter.

use crate::{
    job::{Conv, Job, Map, Second, Span, Window, Work},
    lanes::run_bytes,
    layout::PARAMETER_BYTES,
    tile::{Plan, fold_pixels},
    weights::WeightPlan,
};
use accelerator::{Config, Dataflow};

/// Cycles from the post unit's last read to its write.
const POST_STAGES: u64 = 4;
/// A load is issued in cycle 0, starts in cycle 1, and its first burst is offered in cycle 2.
const DMA_CYCLES: u64 = 2;

/// Lower bounds of a plan, in cycles; traffic in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The array takes operands.
    pub array: u64,
    /// The post unit works.
    pub post: u64,
    /// Bytes from DRAM.
    pub loaded: u64,
    /// Bytes to DRAM.
    pub stored: u64,
    /// Until the first operands are on chip.
    pub first: u64,
    /// The post unit takes the array's last sums.
    pub behind: u64,
    /// Folds take turns at the accumulator blocks: each holds one from the first `matmul` or `stream` that
    /// writes it to the end of its `requantize`.
    pub blocks: u64,
    /// From the last of array and post unit to the end.
    pub last: u64,
    /// The last store, of that.
    pub store: u64,
    /// The bus carries all bytes.
    pub bus: u64,
    /// Everything together.
    pub total: u64,
}

impl Bound {
    pub fn of(job: &Job, plan: &Plan, config: &Config) -> Self {
        let mut bound = Self {
            stored: if job.store { job.output.bytes() } else { 0 },
            ..Self::default()
        };
        // Bytes before the first operand can be taken, and cycles behind the last.
        let first;
        let tail;
        // Cycles of the post unit for the array's last sums.
        let mut behind = 0;
        match (&job.work, &plan.weights) {
            (Work::Conv(conv), Some(weights)) => {
                first = bound.conv(job, conv, plan, weights, config);
                // Without shadow registers the last fold's cycles have it already.
                tail = if config.shadow { drain(config) } else { 0 } + POST_STAGES;
                behind = last_requantize(plan, weights, config);
            }
            (Work::Lanes(conv), _) => {
                let lanes = plan.lanes.as_ref().expect("a plan for lanes has runs");
                let (post, loaded) = lanes.work(job, conv, plan.n_tiles() as u64, config);
                bound.post = post;
                bound.loaded = loaded + all_loads(plan, &conv.input, &conv.window);
                if let Some(second) = &job.second {
                    bound.loaded += all_second(plan, second);
                }
                let n_channels = lanes.runs[0].1;
                let filters = run_bytes(n_channels, conv.n_steps(), conv.wide_weights);
                let parameters = u64::from(n_channels * PARAMETER_BYTES);
                first = parameters + filters + load(plan, 0, &conv.input, &conv.window);
                tail = POST_STAGES;
            }
            (Work::Pool(parts), _) => {
                tail = POST_STAGES;
                let lanes = config.lanes;
                let n_pixels = u64::from(job.output.height) * u64::from(job.output.width);
                for part in parts {
                    let taps = part.window.kernel[0] * part.window.kernel[1];
                    let groups = n_pixels * u64::from(part.n_channels.div_ceil(lanes));
                    bound.post += groups * u64::from(taps);
                    if let Some(source) = &part.source {
                        bound.loaded += all_loads(plan, source, &part.window);
                    }
                }
                if let Some(second) = &job.second {
                    bound.loaded += all_second(plan, second);
                }
                // The first part does not wait for the others.
                let part = &parts[0];
                first = part
                    .source
                    .map_or(0, |source| load(plan, 0, &source, &part.window));
            }
            (Work::Conv(_), None) => unreachable!("a convolution's plan has weights"),
        }
        let word = u64::from(config.dram.bytes_per_cycle);
        let latency = u64::from(config.dram.latency_cycles);
        let head = if first > 0 {
            DMA_CYCLES + latency + first.div_ceil(word)
        } else {
            0
        };
        let store = if job.store {
            1 + latency + last_store(job, plan).div_ceil(word)
        } else {
            0
        };
        let bus = (bound.loaded + bound.stored).div_ceil(word);
        let units = (bound.array + behind).max(bound.post) + tail;
        Self {
            first: head,
            behind,
            last: tail + store,
            store,
            bus,
            // The blocks' time has the post unit's last stages in it.
            total: (head + units.max(bound.blocks) + store).max(bus),
            ..bound
        }
    }

    /// Returns the bytes before the array's first operand.
    fn conv(
        &mut self,
        job: &Job,
        conv: &Conv,
        plan: &Plan,
        weights: &WeightPlan,
        config: &Config,
    ) -> u64 {
        let n_tiles = plan.n_tiles() as u64;
        let n_groups = weights.groups.len() as u64;
        let most = u64::from(fold_pixels(config));
        let mut n_folds = 0;
        let mut slack = 0;
        let mut turns = 0;
        for tile in 0..plan.n_tiles() {
            let n_pixels = pixels(plan, tile);
            let folds = n_pixels.div_ceil(most);
            n_folds += folds;
            for column in &weights.tiles {
                let n_channels = u64::from(column.n_channels);
                let all = folds_cycles(conv, weights, (n_pixels, folds), n_channels, config);
                self.array += all.array;
                slack = slack.max(all.idle);
                let post = match config.dataflow {
                    Dataflow::OutputStationary | Dataflow::WeightStationary => {
                        n_pixels * n_channels.div_ceil(config.lanes.into())
                    }
                    Dataflow::InputStationary => {
                        let (whole, rest) = (n_pixels / most, n_pixels % most);
                        let groups = |n: u64| n.div_ceil(config.lanes.into());
                        n_channels * (whole * groups(most) + groups(rest))
                    }
                };
                self.post += post;
                turns += all.held + post + folds * POST_STAGES;
            }
        }
        // The fullest block takes no less than its share.
        self.blocks = turns.div_ceil(config.n_blocks.into());
        // Nothing follows the last fold, and nothing hides the first `preload` of weights.
        self.array = self.array.saturating_sub(slack);
        if config.dataflow == Dataflow::WeightStationary && config.shadow {
            self.array += u64::from(config.rows) * u64::from(1 + u32::from(conv.wide_weights));
        }
        // Each tile of an input has an `input` of its own when tiles lie at different places.
        if n_tiles > 1 && (conv.input.chip.is_some() || plan.inputs[0].n_slots > 1) {
            let reads = |&tile: &usize| spans(plan, tile, &conv.input, &conv.window).is_some();
            let n_inputs = (0..plan.n_tiles()).filter(reads).count() as u64;
            let n_inputs = n_inputs * if weights.outer { n_groups } else { 1 };
            self.array += n_inputs.saturating_sub(1) * exposed(conv, plan, weights, config);
        }
        let rounds = |n_slots: u32| {
            if weights.outer && u64::from(n_slots) < n_tiles {
                n_groups
            } else {
                1
            }
        };
        let weight_rounds = if weights.n_chunks() > weights.ring.n_slots {
            n_folds
        } else if weights.outer || weights.stays() {
            1
        } else {
            n_tiles
        };
        let input = all_loads(plan, &conv.input, &conv.window);
        self.loaded = weight_rounds * weights.bytes()
            + rounds(plan.inputs[0].n_slots) * input
            + u64::from(conv.groups * conv.group_out * PARAMETER_BYTES);
        if let Some(second) = &job.second
            && !weights.sliced
        {
            self.loaded += rounds(plan.second.n_slots) * all_second(plan, second);
        }
        let piece = weights.piece(conv, 0, 0, config).bytes;
        let n_parameters = if weights.parameters_resident {
            conv.groups * conv.group_out
        } else {
            weights.groups[0].n_channels
        };
        let n_channels = if weights.sliced {
            weights.groups[0].n_channels
        } else {
            conv.groups * conv.group_out
        };
        // Loads come in the order of the stream.
        let second = job.second.filter(|second| second.channel < n_channels);
        u64::from(n_parameters * PARAMETER_BYTES)
            + second.map_or(0, |second| second_load(plan, 0, &second))
            + load(plan, 0, &conv.input, &conv.window)
            + u64::from(piece)
    }
}

/// Cycles by which an `input` between two folds sets the second back: it waits until the `stream`
/// before it has read, and the next `preload`, else hidden by that stream, waits for it.
fn exposed(conv: &Conv, plan: &Plan, weights: &WeightPlan, config: &Config) -> u64 {
    let rows = u64::from(config.rows);
    let most = u64::from(fold_pixels(config));
    let (planes, n_elements) = match config.dataflow {
        // A short stream waits for the drain before it in any case.
        Dataflow::OutputStationary => {
            let stream = u64::from(conv.n_steps()) * conv.passes();
            return u64::from(!config.shadow || stream >= rows);
        }
        Dataflow::WeightStationary => {
            let last = |tile| {
                let n_pixels = pixels(plan, tile);
                let folds = n_pixels.div_ceil(most);
                n_pixels - (folds - 1) * n_pixels.div_ceil(folds)
            };
            let n_pixels = (0..plan.n_tiles()).map(last).min();
            (1 + u64::from(conv.wide_weights), n_pixels)
        }
        Dataflow::InputStationary => {
            let n_channels = weights.tiles.iter().map(|tile| tile.n_channels.into());
            (1 + u64::from(conv.input.wide()), n_channels.min())
        }
    };
    let (preload, stream) = (rows * planes, n_elements.unwrap_or(0) * conv.passes());
    if config.shadow {
        (stream + 1 + preload).max(rows + preload) - stream.max(rows + preload)
    } else {
        // The `preload` waits for the stream in any case, and longer.
        0
    }
}

/// All folds of a tile and a column tile, in cycles.
struct Folds {
    /// Of the array.
    array: u64,
    /// In which the array only waits for the next fold, of one fold.
    idle: u64,
    /// From the start of the first instruction that writes a fold's block to the end of the last.
    held: u64,
}

fn folds_cycles(
    conv: &Conv,
    weights: &WeightPlan,
    (n_pixels, folds): (u64, u64),
    n_channels: u64,
    config: &Config,
) -> Folds {
    let (rows, cols) = (u64::from(config.rows), u64::from(config.cols));
    let n_units = u64::from(weights.n_units);
    // A `preload` follows the `stream` that took what it replaces.
    let unit = |planes: u32, n_elements: u64| {
        let preload = rows * u64::from(planes);
        let stream = n_elements * conv.passes();
        let cycles = if config.shadow {
            stream.max(rows + preload)
        } else {
            stream + rows + cols + preload
        };
        let held = (n_units - 1) * cycles + stream + rows + cols;
        (cycles, cycles - stream, held)
    };
    match config.dataflow {
        Dataflow::OutputStationary => {
            let stream = u64::from(conv.n_steps()) * conv.passes();
            let fold = if config.shadow {
                stream.max(rows)
            } else {
                stream + drain(config)
            };
            // Only the last `matmul` of a fold writes.
            let before = (weights.n_chunks() - 1) * weights.chunk_units * weights.unit_steps;
            let last = u64::from(conv.n_steps() - before) * conv.passes();
            Folds {
                array: folds * fold,
                idle: if config.shadow { fold - stream } else { 0 },
                held: folds * (last + drain(config)),
            }
        }
        Dataflow::WeightStationary => {
            // Folds differ by at most one pixel, all but the last, which may be smaller.
            let planes = 1 + u32::from(conv.wide_weights);
            let most = n_pixels.div_ceil(folds);
            let (whole, _, whole_held) = unit(planes, most);
            let (last, idle, last_held) = unit(planes, n_pixels - (folds - 1) * most);
            Folds {
                array: n_units * ((folds - 1) * whole + last),
                idle,
                held: (folds - 1) * whole_held + last_held,
            }
        }
        Dataflow::InputStationary => {
            let (cycles, idle, held) = unit(1 + conv.input.wide(), n_channels);
            Folds {
                array: folds * n_units * cycles,
                idle,
                held: folds * held,
            }
        }
    }
}

/// Cycles in which the post unit takes the sums of the last fold.
fn last_requantize(plan: &Plan, weights: &WeightPlan, config: &Config) -> u64 {
    let n_pixels = pixels(plan, plan.n_tiles() - 1);
    let folds = n_pixels.div_ceil(fold_pixels(config).into());
    let n_pixels = n_pixels - (folds - 1) * n_pixels.div_ceil(folds);
    let n_channels = weights.tiles.last().map_or(0, |tile| tile.n_channels);
    let n_channels = u64::from(n_channels);
    let lanes = u64::from(config.lanes);
    match config.dataflow {
        Dataflow::OutputStationary | Dataflow::WeightStationary => {
            n_pixels * n_channels.div_ceil(lanes)
        }
        Dataflow::InputStationary => n_channels * n_pixels.div_ceil(lanes),
    }
}

/// From the end of a stream of operands to the last sum in a block.
fn drain(config: &Config) -> u64 {
    let (rows, cols) = (u64::from(config.rows), u64::from(config.cols));
    match config.dataflow {
        Dataflow::OutputStationary => 2 * rows + cols - 1,
        Dataflow::WeightStationary | Dataflow::InputStationary => rows + cols,
    }
}

fn pixels(plan: &Plan, tile: usize) -> u64 {
    let [rows, columns] = plan.tile(tile);
    u64::from(rows.1 - rows.0) * u64::from(columns.1 - columns.0)
}

/// Rows and columns of the input that a tile reads.
fn spans(plan: &Plan, tile: usize, map: &Map, window: &Window) -> Option<(Span, Span)> {
    let [rows, columns] = plan.tile(tile);
    let y = window.span(0, rows, map.height)?;
    Some((y, window.span(1, columns, map.width)?))
}

/// Bytes of one tile's load.
fn load(plan: &Plan, tile: usize, map: &Map, window: &Window) -> u64 {
    if map.chip.is_some() {
        return 0;
    }
    let pixels =
        spans(plan, tile, map, window).map_or(0, |(y, x)| u64::from(y.len) * u64::from(x.len));
    pixels * u64::from(map.pixel_bytes)
}

fn all_loads(plan: &Plan, map: &Map, window: &Window) -> u64 {
    (0..plan.n_tiles())
        .map(|tile| load(plan, tile, map, window))
        .sum()
}

/// Bytes of the second operand, once.
fn all_second(plan: &Plan, second: &Second) -> u64 {
    (0..plan.n_tiles())
        .map(|tile| second_load(plan, tile, second))
        .sum()
}

/// Bytes of the second operand for one tile.
fn second_load(plan: &Plan, tile: usize, second: &Second) -> u64 {
    if second.map.chip.is_some() {
        return 0;
    }
    let [rows, columns] = plan.tile(tile);
    let width = (columns.1 - 1 - columns.0) * second.stride[1] + 1;
    u64::from(rows.1 - rows.0) * u64::from(width * second.map.pixel_bytes)
}

/// Bytes of the last tile's store, or of its last group's slice.
fn last_store(job: &Job, plan: &Plan) -> u64 {
    let map = &job.output;
    let n_pixels = pixels(plan, plan.n_tiles() - 1);
    let slice = plan.weights.as_ref().filter(|weights| weights.sliced);
    let pixel_bytes = slice
        .and_then(|weights| weights.groups.last())
        .map_or(u64::from(map.pixel_bytes), |group| {
            u64::from((group.n_channels * map.bits).div_ceil(8))
        });
    n_pixels * pixel_bytes
}
