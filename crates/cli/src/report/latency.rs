//! The report of `systole latency`.
//!
//! Invariant: the layers' cycles, owners, bytes, actions and energies sum to the totals, and no
//! layer is faster than its floors.

use super::Header;
use accelerator::{Config, Counts, EnergyUnit, LayerTiming, Owner};
use serde::Serialize;

/// `systole latency`.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyReport {
    /// Who and what.
    #[serde(flatten)]
    pub header: Header,
    /// The machine's clock.
    pub clock_hz: u64,
    /// PEs of the array.
    pub n_pes: u64,
    /// From the first issue to the last completion of one image.
    pub total_cycles: u64,
    /// The same at the machine's clock.
    pub total_seconds: f64,
    /// Images a second when one follows the other.
    pub frames_per_second: f64,
    /// Multiply-accumulates that the network asks for.
    pub n_macs: u64,
    /// PE-cycles that did a MAC step ÷ (PEs × cycles).
    pub compute_utilization: f64,
    /// Bytes that the load DMA asked for.
    pub dram_read_bytes: u64,
    /// Bytes that the store DMA asked for.
    pub dram_written_bytes: u64,
    /// MACs that the post unit's lanes did (depthwise convolutions).
    pub lane_macs: u64,
    /// Lane-cycles that did a MAC step ÷ (lanes × cycles in which the lanes took operands).
    pub lane_mapping_utilization: f64,
    /// Bursts by what they met in main memory's banks; `null` without banks.
    pub dram_rows: Option<DramRows>,
    /// Sum over the layers of the larger of `compute_floor_cycles` and `dram_cycles`.
    pub roofline_cycles: u64,
    /// `total_cycles / roofline_cycles`.
    pub over_roofline: f64,
    /// Cycles of the whole run by owner; they sum to `total_cycles`.
    pub owned_cycles: OwnedCycles,
    /// Energy of one image, fJ.
    pub energy_fj: u64,
    /// The same by unit; they sum to `energy_fj`.
    pub energy_by_unit_fj: EnergyByUnit,
    /// `energy_fj` ÷ `total_seconds`.
    pub average_watts: f64,
    /// How often each action happened.
    pub actions: Counts,
    /// What each action costs, fJ: the machine's table or its defaults.
    pub action_fj: Counts,
    /// What each cycle costs, fJ.
    pub cycle_fj: u64,
    /// Layers slower than their roofline, worst first.
    pub stalls: Vec<StallReport>,
    /// In execution order; their cycles sum to `total_cycles`.
    pub layers: Vec<LayerLatency>,
}

/// One layer's latency.
#[derive(Clone, Debug, Serialize)]
pub struct LayerLatency {
    /// Name in the network.
    pub name: String,
    /// First cycle that belongs to the layer.
    pub from_cycle: u64,
    /// From the start of its first work in array or post unit to the next layer's.
    pub cycles: u64,
    /// The same at the machine's clock.
    pub seconds: f64,
    /// Part of the total, 0 to 1.
    pub share: f64,
    /// Multiply-accumulates that the layer asks for.
    pub n_macs: u64,
    /// Multiplier-cycles that did a MAC step ÷ (multipliers × cycles): of PEs, or of post lanes for a layer that runs there.
    pub compute_utilization: f64,
    /// Multiplier-cycles that did a MAC step ÷ (multipliers × cycles in which their unit took its operands).
    pub mapping_utilization: f64,
    /// Which floor is highest: `compute`, `memory`, `post`.
    pub bound: Bound,
    /// `ceil(MACs · passes / multipliers)`; on lanes, which work on while the next layer begins, at most `post_floor_cycles`.
    pub compute_floor_cycles: u64,
    /// Cycles of the span in which data took the bus: the layer's own, or prefetched ones of later layers.
    pub memory_floor_cycles: u64,
    /// Cycles of the span in which the post unit took operands.
    pub post_floor_cycles: u64,
    /// `ceil(DRAM bytes / bytes a cycle)`: what the layer's own bytes need, wherever they travelled.
    pub dram_cycles: u64,
    /// Bytes loaded by the layer's instructions.
    pub dram_read_bytes: u64,
    /// Bytes stored by the layer's instructions.
    pub dram_written_bytes: u64,
    /// Cycles in which the post unit's lanes took operands of the layer's depthwise convolution.
    pub lane_busy_cycles: u64,
    /// Lane-cycles that did a MAC step ÷ (lanes × `lane_busy_cycles`).
    pub lane_mapping_utilization: f64,
    /// Bursts by what they met in main memory's banks; `null` without banks.
    pub dram_rows: Option<DramRows>,
    /// Who owned the layer's cycles; they sum to `cycles`.
    pub owned_cycles: OwnedCycles,
    /// Energy of the layer's instructions, and of its cycles, fJ.
    pub energy_fj: u64,
    /// The same by unit; they sum to `energy_fj`.
    pub energy_by_unit_fj: EnergyByUnit,
    /// How often the layer's instructions did each action.
    pub actions: Counts,
}

/// Main memory with banks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DramRows {
    /// Bursts whose row was open.
    pub hits: u64,
    /// Bursts that found no row open.
    pub misses: u64,
    /// Bursts that found another row open.
    pub conflicts: u64,
    /// Refreshes that began.
    pub refreshes: u64,
}

impl DramRows {
    /// A layer's; `None` without banks.
    pub fn of(layer: &LayerTiming, config: &Config) -> Option<Self> {
        config.dram.banks.map(|_| Self {
            hits: layer.rows.hits,
            misses: layer.rows.misses,
            conflicts: layer.rows.conflicts,
            refreshes: layer.n_refreshes,
        })
    }

    /// The sum over layers.
    pub fn total(layers: impl Iterator<Item = Option<Self>>) -> Option<Self> {
        layers.fold(None, |total: Option<Self>, layer| {
            let (total, layer) = (total.unwrap_or_default(), layer?);
            Some(Self {
                hits: total.hits + layer.hits,
                misses: total.misses + layer.misses,
                conflicts: total.conflicts + layer.conflicts,
                refreshes: total.refreshes + layer.refreshes,
            })
        })
    }
}

/// The side of the roofline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The multipliers need longest.
    Compute,
    /// The bus needs longest.
    Memory,
    /// The post unit needs longest.
    Post,
}

/// A layer slower than its roofline.
#[derive(Clone, Debug, Serialize)]
pub struct StallReport {
    /// The layer.
    pub layer: String,
    /// Its cycles beyond the larger of `compute_floor_cycles` and `dram_cycles`.
    pub beyond_roofline_cycles: u64,
    /// Cycles in which the multipliers took operands, beyond `compute_floor_cycles`: some had none.
    pub idle_multipliers_cycles: u64,
    /// The owner, other than `compute`, of most of its cycles.
    pub owner: Owner,
    /// Cycles of that owner.
    pub owned_cycles: u64,
}

/// Cycles by owner: the first of the list that applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OwnedCycles {
    /// The array takes operands.
    pub compute: u64,
    /// The array takes none; its last ones still travel, or stationary ones are brought in.
    pub fill: u64,
    /// The array only drains results.
    pub drain: u64,
    /// The post unit works and the array does not.
    pub post_unit: u64,
    /// Only DMA works, and the bus carries words: bandwidth is missing.
    pub dram: u64,
    /// A load is in work, but the bus rests: latency.
    pub wait_for_data: u64,
    /// Only a store is in work, and the bus rests: outputs have to leave before their place is free.
    pub wait_for_space: u64,
    /// Instructions travel.
    pub control: u64,
}

impl OwnedCycles {
    /// As the accelerator model counts them.
    pub fn of(layer: &LayerTiming) -> Self {
        let [
            compute,
            fill,
            drain,
            post_unit,
            dram,
            wait_for_data,
            wait_for_space,
            control,
        ] = layer.owned.map(|cycles| cycles.0);
        Self {
            compute,
            fill,
            drain,
            post_unit,
            dram,
            wait_for_data,
            wait_for_space,
            control,
        }
    }

    /// In the order of the fields, which is that of [`Owner::ALL`].
    pub const fn list(&self) -> [u64; Owner::COUNT] {
        [
            self.compute,
            self.fill,
            self.drain,
            self.post_unit,
            self.dram,
            self.wait_for_data,
            self.wait_for_space,
            self.control,
        ]
    }

    /// Adds another layer's.
    pub fn add(&mut self, other: &Self) {
        self.compute += other.compute;
        self.fill += other.fill;
        self.drain += other.drain;
        self.post_unit += other.post_unit;
        self.dram += other.dram;
        self.wait_for_data += other.wait_for_data;
        self.wait_for_space += other.wait_for_space;
        self.control += other.control;
    }
}

/// Femtojoules by unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EnergyByUnit {
    /// Fetching and handing on of instructions.
    pub frontend: u64,
    /// Multipliers and accumulators, of PEs and of lanes.
    pub macs: u64,
    /// Accumulator blocks.
    pub blocks: u64,
    /// Activation scratchpad.
    pub activations: u64,
    /// Weight scratchpad.
    pub weights: u64,
    /// Parameter table.
    pub parameters: u64,
    /// Requantization and pooling in the post unit's lanes.
    pub post_unit: u64,
    /// Main memory and its bus.
    pub dram: u64,
    /// Leakage and clocks.
    #[serde(rename = "static")]
    pub idle: u64,
}

impl EnergyByUnit {
    /// As the accelerator model charges it.
    pub const fn of(units: [u64; EnergyUnit::COUNT]) -> Self {
        let [
            frontend,
            macs,
            blocks,
            activations,
            weights,
            parameters,
            post_unit,
            dram,
            idle,
        ] = units;
        Self {
            frontend,
            macs,
            blocks,
            activations,
            weights,
            parameters,
            post_unit,
            dram,
            idle,
        }
    }

    /// In the order of the fields, which is that of [`EnergyUnit::ALL`].
    pub const fn list(&self) -> [u64; EnergyUnit::COUNT] {
        [
            self.frontend,
            self.macs,
            self.blocks,
            self.activations,
            self.weights,
            self.parameters,
            self.post_unit,
            self.dram,
            self.idle,
        ]
    }

    /// Adds another layer's.
    pub fn add(&mut self, other: &Self) {
        let mut sums = self.list();
        for (sum, part) in sums.iter_mut().zip(other.list()) {
            *sum += part;
        }
        *self = Self::of(sums);
    }

    /// All units together.
    pub fn total(&self) -> u64 {
        self.list().iter().sum()
    }
}
