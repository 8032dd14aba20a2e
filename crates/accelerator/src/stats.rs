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

/// When every instruction was issued, started and ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Per instruction.
    pub issue: Vec<u64>,
    /// Per instruction.
    pub start: Vec<u64>,
    /// Per instruction: the first cycle in which the results are visible.
    pub end: Vec<u64>,
    /// The first cycle after everything.
    pub total: Cycles,
}

/// Who owns a cycle, in order of precedence: the first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The array takes operands: useful work.
    Compute,
    /// The array is busy, but only filling or draining.
    FillOrDrain,
    /// The post unit works and the array does not.
    PostUnit,
    /// Only DMA works, loading: compute waits for data.
    WaitForData,
    /// Only DMA works, storing.
    WaitForStore,
    /// Nobody works: instructions travel.
    Control,
}

impl Owner {
    /// Every owner, in order of precedence.
    pub const ALL: [Self; 6] = [
        Self::Compute,
        Self::FillOrDrain,
        Self::PostUnit,
        Self::WaitForData,
        Self::WaitForStore,
        Self::Control,
    ];
}

/// One layer's part of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerTiming {
    /// First cycle that belongs to the layer.
    pub from: Cycle,
    /// Cycles from there to the next layer; these sum to the run's total.
    pub cycles: Cycles,
    /// Cycles by owner, in the order of [`Owner::ALL`].
    pub owned: [Cycles; 6],
    /// Cycles in which the array takes operands, in whichever layer's span they fall.
    pub array_busy: Cycles,
    /// PE-cycles that do a MAC step of this layer, over all PEs.
    pub mac_passes: u64,
    /// Loaded by this layer's instructions.
    pub loaded: DramTraffic,
    /// Stored by this layer's instructions.
    pub stored: DramTraffic,
}

impl Timing {
    /// Divides the run among the program's layers. A layer's span begins when its first `matmul`
    /// (or `pool`, where it has none) starts and ends where the next layer's begins, so it
    /// holds every cycle in which the array takes the layer's operands. The first begins at 0, the
    /// last ends with the run.
    pub fn layers(&self, program: &Program, config: &crate::Config) -> Vec<LayerTiming> {
        let n_layers = program.layers.len();
        let mut first_start = vec![u64::MAX; n_layers];
        for (index, &layer) in program.layer_of.iter().enumerate() {
            if matches!(program.instructions[index].op, Op::Matmul(_) | Op::Pool(_)) {
                let slot = &mut first_start[layer as usize];
                *slot = (*slot).min(self.start[index]);
            }
        }
        if let Some(first) = first_start.first_mut() {
            *first = 0;
        }
        let mut until = self.total.0;
        let mut layers: Vec<LayerTiming> = first_start
            .iter()
            .rev()
            .map(|&start| {
                let from = start.min(until);
                let layer = LayerTiming {
                    from: Cycle(from),
                    cycles: Cycles(until - from),
                    owned: [Cycles(0); 6],
                    array_busy: Cycles(0),
                    mac_passes: 0,
                    loaded: DramTraffic::default(),
                    stored: DramTraffic::default(),
                };
                until = from;
                layer
            })
            .collect();
        layers.reverse();
        crate::rules::charge_work(self, program, config, &mut layers);
        let activity = crate::rules::activity(self, program, config);
        own(&activity, &mut layers);
        layers
    }
}

/// Intervals `[from, to)` in which each kind of work goes on, sorted by start.
pub(crate) type Activity = [Vec<(u64, u64)>; 5];

/// Gives every cycle of every layer to its first owner.
fn own(activity: &Activity, layers: &mut [LayerTiming]) {
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
    let mut cursor = [0usize; 5];
    let mut layer = 0;
    for pair in edges.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        while layer < layers.len() && layers[layer].from.0 + layers[layer].cycles.0 <= from {
            layer += 1;
        }
        if layer == layers.len() {
            break;
        }
        let mut owner = 5;
        for (kind, list) in unions.iter().enumerate() {
            while cursor[kind] < list.len() && list[cursor[kind]].1 <= from {
                cursor[kind] += 1;
            }
            if owner == 5 && cursor[kind] < list.len() && list[cursor[kind]].0 <= from {
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

fn union(intervals: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut sorted: Vec<(u64, u64)> = intervals.iter().copied().filter(|(a, b)| a < b).collect();
    sorted.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (from, to) in sorted {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

/// The unit's place in tables of queued units.
pub(crate) fn slot(unit: Unit) -> usize {
    unit.index()
}
