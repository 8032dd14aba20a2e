//! The text of `--emit tiled`: what the search chose for each layer.
//!
//! Invariant: a listing depends on nothing but the network and the machine.

use crate::{
    job::{Job, Work},
    layout::PARAMETER_BYTES,
    tile::{Plan, Ring},
};
use arith::Cycles;
use serde::Serialize;
use std::fmt;

/// A buffer on chip: slots of equal size, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Buffer {
    /// What it holds.
    pub name: &'static str,
    /// Where it lies: `activation`, `weight` or `parameter`.
    pub memory: &'static str,
    /// First byte.
    pub address: u32,
    /// Bytes of a slot.
    pub slot_bytes: u32,
    /// 2 for double buffering.
    pub n_slots: u32,
}

/// What the compiler chose for one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// The layer's name.
    pub name: String,
    /// The operation with its extents, for reading.
    pub operation: String,
    /// Output rows and columns of a tile.
    pub tile: [u32; 2],
    /// Spatial tiles.
    pub n_tiles: usize,
    /// Groups of output channels whose weights are on chip together; 0 when not a convolution.
    pub n_weight_groups: usize,
    /// Weight groups are the outer loop, spatial tiles the inner.
    pub channels_outer: bool,
    /// Tensors that stay on chip as a whole: name of the role, first byte.
    pub resident: Vec<(&'static str, u32)>,
    /// Buffers on chip.
    pub buffers: Vec<Buffer>,
    /// Latency of the layer alone, from an idle machine.
    pub estimated: Cycles,
}

impl LayerPlan {
    pub(crate) fn new(name: &str, job: &Job, plan: &Plan, estimated: Cycles) -> Self {
        let mut buffers = Vec::new();
        let mut add = |name, memory, ring: Ring, unit: u32| {
            if ring.slot > 0 {
                buffers.push(Buffer {
                    name,
                    memory,
                    address: ring.base * unit,
                    slot_bytes: ring.slot * unit,
                    n_slots: ring.n_slots,
                });
            }
        };
        for &ring in &plan.inputs {
            add("input", "activation", ring, 1);
        }
        add("output", "activation", plan.output, 1);
        add("residual", "activation", plan.second, 1);
        if let Some(weights) = &plan.weights {
            let ring = Ring {
                n_slots: weights.ring.n_slots.min(weights.n_pieces() as u32),
                ..weights.ring
            };
            add("weights", "weight", ring, 1);
            add(
                "parameters",
                "parameter",
                weights.parameters,
                PARAMETER_BYTES,
            );
        }
        if let Some(lanes) = &plan.lanes {
            add("weights", "weight", lanes.weights, 1);
            add("parameters", "parameter", lanes.parameters, PARAMETER_BYTES);
        }
        let weights = plan.weights.as_ref();
        Self {
            name: name.to_owned(),
            operation: operation(job),
            tile: plan.choice.tile,
            n_tiles: plan.n_tiles(),
            n_weight_groups: weights.map_or(0, |w| w.groups.len())
                + plan.lanes.as_ref().map_or(0, |lanes| lanes.runs.len()),
            channels_outer: weights.is_some_and(|w| w.outer),
            resident: resident(job),
            buffers,
            estimated,
        }
    }
}

pub(crate) fn resident(job: &Job) -> Vec<(&'static str, u32)> {
    let sources: Vec<_> = match &job.work {
        Work::Conv(conv) | Work::Lanes(conv) => vec![conv.input],
        Work::Pool(parts) => parts.iter().filter_map(|part| part.source).collect(),
    };
    let inputs = sources.into_iter().map(|map| ("input", map));
    let others = [("output", job.output)].into_iter();
    let second = job.second.map(|second| ("residual", second.map));
    inputs
        .chain(others)
        .chain(second)
        .filter_map(|(name, map)| Some((name, map.chip?)))
        .collect()
}

pub(crate) fn operation(job: &Job) -> String {
    let output = &job.output;
    let to = format!("{}x{}x{}", output.channels, output.height, output.width);
    let mut text = match &job.work {
        Work::Conv(conv) => {
            let (input, window) = (&conv.input, &conv.window);
            let groups = match conv.groups {
                1 => String::new(),
                n => format!(" in {n} groups"),
            };
            format!(
                "conv {}x{} of {}x{}x{}{groups}",
                window.kernel[0], window.kernel[1], input.channels, input.height, input.width
            )
        }
        Work::Lanes(conv) => {
            let (input, window) = (&conv.input, &conv.window);
            format!(
                "depthwise {}x{} of {}x{}x{} on lanes",
                window.kernel[0], window.kernel[1], input.channels, input.height, input.width
            )
        }
        Work::Pool(parts) => {
            let part = &parts[0];
            let (height, width) = (part.window.kernel[0], part.window.kernel[1]);
            let kind = if part.sum { "sum" } else { "max" };
            format!("pool {kind} {height}x{width} of {} parts", parts.len())
        }
    };
    text.push_str(" to ");
    text.push_str(&to);
    if job.second.is_some() {
        text += ", adds a residual";
    }
    text
}

impl fmt::Display for LayerPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "layer {}: {}", self.name, self.operation)?;
        let [rows, columns] = self.tile;
        write!(f, "  tile {rows}x{columns} pixels, {} tiles", self.n_tiles)?;
        if self.n_weight_groups > 0 {
            let order = if self.channels_outer {
                "weights"
            } else {
                "pixels"
            };
            write!(
                f,
                ", {} weight groups, outer loop over {order}",
                self.n_weight_groups
            )?;
        }
        writeln!(f)?;
        for (name, address) in &self.resident {
            writeln!(f, "  {name:<10} activation {address:#08x} stays on chip")?;
        }
        for buffer in &self.buffers {
            let Buffer {
                name,
                memory,
                address,
                slot_bytes,
                n_slots,
            } = buffer;
            writeln!(
                f,
                "  {name:<10} {memory:<10} {address:#08x} {n_slots} x {slot_bytes} bytes"
            )?;
        }
        writeln!(f, "  alone      {}", self.estimated)
    }
}
