//! What a run gives besides values: when everything happened, and who owned every cycle.
//!
//! Invariant: in every span, the owners' cycles sum to the span.

use arith::{Bytes, Cycle, Cycles};
use isa::{Op, Program, Unit};
use serde::Serialize;

/// Traffic of one DMA instruction or a sum of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DramTraffic {
    /// Bytes asked for.
    pub payload: Bytes,
    /// Bursts.
    pub n_bursts: u64,
    /// Cycles in which the bus carried them.
    pub bus: Cycles,
}

/// What a burst met in its bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowEvent {
    /// Its row was open.
    Hit,
    /// No row was open.
    Miss,
    /// Another row was open.
    Conflict,
}

/// Bursts by what they met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RowCounts {
    /// The row was open.
    pub hits: u64,
    /// No row was open.
    pub misses: u64,
    /// Another row was open.
    pub conflicts: u64,
}

impl RowCounts {
    /// Counts one burst.
    pub const fn count(&mut self, event: RowEvent) {
        match event {
            RowEvent::Hit => self.hits += 1,
            RowEvent::Miss => self.misses += 1,
            RowEvent::Conflict => self.conflicts += 1,
        }
    }

    /// Adds others.
    pub const fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.conflicts += other.conflicts;
    }
}

/// When every instruction was issued, started and ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Per instruction.
    pub issue: Vec<u64>,
    /// Per instruction.
    pub start: Vec<u64>,
    /// Per instruction: the first cycle in which the results are visible.
    pub end: Vec<u64>,
    /// Per instruction: its bursts by what they met; empty when main memory has no banks.
    pub rows: Vec<RowCounts>,
    /// The first cycle after everything.
    pub total: Cycles,
    /// When data took the DRAM bus: intervals `[from, to)` in order, none touching the next.
    pub bus: Vec<(u64, u64)>,
}

/// Who owns a cycle, in order of precedence: the first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The array takes operands: useful work.
    Compute,
    /// The array takes no operands; its last ones still travel, or stationary ones are brought in.
    Fill,
    /// The array only drains results.
    Drain,
    /// The post unit works and the array does not.
    PostUnit,
    /// Only DMA works, and the bus carries words: bandwidth is missing.
    Dram,
    /// A load is in work, but the bus rests: latency.
    WaitForData,
    /// Only a store is in work, and the bus rests: outputs have to leave before their place is free.
    WaitForSpace,
    /// Nobody works: instructions travel.
    Control,
}

impl Owner {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// Every owner, in order of precedence.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Compute,
        Self::Fill,
        Self::Drain,
        Self::PostUnit,
        Self::Dram,
        Self::WaitForData,
        Self::WaitForSpace,
        Self::Control,
    ];
}

/// One layer's part of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LayerTiming {
    /// First cycle that belongs to the layer.
    pub from: Cycle,
    /// Cycles from there to the next layer; these sum to the run's total.
    pub cycles: Cycles,
    /// Cycles by owner, in the order of [`Owner::ALL`].
    pub owned: [Cycles; Owner::COUNT],
    /// Cycles of the span in which data took the bus, whichever layer's.
    pub bus_busy: Cycles,
    /// Cycles of the span in which the post unit took operands, whichever layer's.
    pub post_busy: Cycles,
    /// Cycles in which the array takes operands, in whichever layer's span they fall.
    pub array_busy: Cycles,
    /// PE-cycles that do a MAC step of this layer, over all PEs.
    pub mac_passes: u64,
    /// Cycles in which the post unit's lanes take operands of depthwise convolutions.
    pub lanes_busy: Cycles,
    /// Lane-cycles that do a MAC step of this layer, over all lanes of the post unit.
    pub lane_passes: u64,
    /// Loaded by this layer's instructions.
    pub loaded: DramTraffic,
    /// Stored by this layer's instructions.
    pub stored: DramTraffic,
    /// Bursts of this layer's instructions by what they met in their banks.
    pub rows: RowCounts,
    /// Refreshes of main memory that begin in the layer's span.
    pub n_refreshes: u64,
}

impl Timing {
    /// Divides the run among the program's layers. A layer's span begins when its first `matmul`
    /// or `stream` (or `pool` or `depthwise`, where it has none) starts, but not before the array has
    /// taken the last operands of the layers before; it ends where the next layer's begins. So it holds every cycle in which the
    /// array takes the layer's operands. The first begins at 0, the last ends with the run.
    pub fn layers(&self, program: &Program, config: &crate::Config) -> Vec<LayerTiming> {
        let n_layers = program.layers.len();
        let mut first_start = vec![u64::MAX; n_layers];
        for (index, &layer) in program.layer_of.iter().enumerate() {
            if begins_layer(&program.instructions[index].op) {
                let slot = &mut first_start[layer as usize];
                *slot = (*slot).min(self.start[index]);
            }
        }
        if let Some(first) = first_start.first_mut() {
            *first = 0;
        }
        // A layer without such instructions has an empty span before the next layer's.
        let mut until = self.total.0;
        for start in first_start.iter_mut().rev() {
            until = until.min(*start);
            *start = until;
        }
        let mut layers = vec![LayerTiming::default(); n_layers];
        let activity = crate::rules::account(self, program, config, &mut layers);
        let mut array_free = 0;
        for (layer, start) in first_start.iter_mut().enumerate() {
            *start = (*start).max(array_free).min(self.total.0);
            array_free = array_free.max(activity.operands_until[layer]);
        }
        let ends = first_start.iter().skip(1).chain([&self.total.0]);
        for (layer, (&from, &until)) in layers.iter_mut().zip(first_start.iter().zip(ends)) {
            layer.from = Cycle(from);
            layer.cycles = Cycles(until - from);
            layer.n_refreshes = config.dram.banks.map_or(0, |banks| {
                // Refresh k begins in cycle k · interval, from k = 1 on.
                let before = |cycle: u64| cycle.saturating_sub(1) / banks.refi_cycles;
                before(until) - before(from)
            });
        }
        for (layer, busy) in layers
            .iter_mut()
            .zip(overlaps(&first_start, self.total.0, &self.bus))
        {
            layer.bus_busy = Cycles(busy);
        }
        let post = union(&activity.post_takes);
        for (layer, busy) in layers
            .iter_mut()
            .zip(overlaps(&first_start, self.total.0, &post))
        {
            layer.post_busy = Cycles(busy);
        }
        own(&activity.intervals, &mut layers);
        layers
    }
}

/// Whether a layer's own work begins with it. A `preload` runs ahead, perhaps while the layer before
/// still streams.
fn begins_layer(op: &Op) -> bool {
    match op {
        Op::Matmul(_) | Op::Stream(_) | Op::Pool(_) | Op::Depthwise(_) => true,
        Op::Fence(_)
        | Op::LoadPitch(_)
        | Op::Load(_)
        | Op::StorePitch(_)
        | Op::Store(_)
        | Op::Input(_)
        | Op::Kernel(_)
        | Op::Preload(_)
        | Op::Source(_)
        | Op::Window(_)
        | Op::Filter(_)
        | Op::Destination(_)
        | Op::Residual(_)
        | Op::Slope(_)
        | Op::Requantize(_) => false,
    }
}

/// What goes on when, for [`Timing::layers`].
#[derive(Default)]
pub(crate) struct Activity {
    /// Intervals `[from, to)` of every owner but the last, in the order of [`Owner::ALL`].
    pub intervals: [Vec<(u64, u64)>; Owner::COUNT - 1],
    /// Intervals in which the post unit takes operands.
    pub post_takes: Vec<(u64, u64)>,
    /// Per layer: the first cycle in which the array takes none of its operands any more.
    pub operands_until: Vec<u64>,
}

/// Gives every cycle of every layer to its first owner.
fn own(activity: &[Vec<(u64, u64)>; Owner::COUNT - 1], layers: &mut [LayerTiming]) {
    let unions: Vec<Vec<(u64, u64)>> = activity.iter().map(|list| union(list)).collect();
    // Sweep over all boundaries: between two of them nothing changes.
    let mut edges: Vec<u64> = unions.iter().flatten().flat_map(|&(a, b)| [a, b]).collect();
    edges.extend(
        layers
            .iter()
            .flat_map(|l| [l.from.0, l.from.0 + l.cycles.0]),
    );
    edges.sort_unstable();
    edges.dedup();
    let mut cursor = [0usize; Owner::COUNT - 1];
    let mut layer = 0;
    for pair in edges.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        while layer < layers.len() && layers[layer].from.0 + layers[layer].cycles.0 <= from {
            layer += 1;
        }
        if layer == layers.len() {
            break;
        }
        let mut owner = Owner::COUNT - 1;
        for (kind, list) in unions.iter().enumerate() {
            while cursor[kind] < list.len() && list[cursor[kind]].1 <= from {
                cursor[kind] += 1;
            }
            if owner == Owner::COUNT - 1
                && cursor[kind] < list.len()
                && list[cursor[kind]].0 <= from
            {
                owner = kind;
            }
        }
        layers[layer].owned[owner] += Cycles(to - from);
    }
    for layer in layers {
        let owned: Cycles = layer.owned.iter().copied().sum();
        assert_eq!(owned, layer.cycles, "cycles lost or counted twice");
    }
}

/// Cycles that disjoint, sorted intervals share with each span; spans begin at `starts` and the last
/// ends at `end`.
fn overlaps(starts: &[u64], end: u64, intervals: &[(u64, u64)]) -> Vec<u64> {
    let mut first = 0;
    (0..starts.len())
        .map(|span| {
            let (from, to) = (starts[span], starts.get(span + 1).copied().unwrap_or(end));
            while first < intervals.len() && intervals[first].1 <= from {
                first += 1;
            }
            intervals[first..]
                .iter()
                .take_while(|interval| interval.0 < to)
                .map(|interval| interval.1.min(to) - interval.0.max(from))
                .sum()
        })
        .collect()
}

/// Adds `[from, to)`, which begins no earlier than the last interval does, to a list whose
/// intervals do not touch.
pub(crate) fn append(list: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    match list.last_mut() {
        Some(last) if from <= last.1 => last.1 = last.1.max(to),
        _ => list.push((from, to)),
    }
}

fn union(intervals: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut sorted: Vec<(u64, u64)> = intervals.iter().copied().filter(|(a, b)| a < b).collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (from, to) in sorted {
        append(&mut merged, from, to);
    }
    merged
}

/// The unit's place in tables of queued units.
pub(crate) fn slot(unit: Unit) -> usize {
    unit.index()
}
