//! Depthwise convolutions on the post unit's lanes.
//!
//! Invariant: every output channel belongs to exactly one run, and a tile is stored after its last.

use super::{Access, Accesses, Emitter, Memory, Note, Slots, operands::OutputTile};
use crate::{
    job::Conv,
    lanes::{LanePlan, run_bytes},
    layout::PARAMETER_BYTES,
};
use isa::{Depthwise, Filter};

/// Most pixels of a `depthwise`.
const MAX_PIXELS: u32 = 0x3fff;

/// Weights and parameters of a run of channels, on chip.
struct Run {
    channel: u32,
    n_channels: u32,
    weights: Access,
    parameters: Access,
}

impl Emitter<'_> {
    pub(super) fn lanes(&mut self, conv: &Conv, plan: &LanePlan) {
        let mut weights = Slots::new(plan.weights, 0, plan.runs.len());
        let mut parameters = Slots::new(plan.parameters, 0, plan.runs.len());
        for tile in 0..self.plan.n_tiles() {
            for index in 0..plan.runs.len() {
                self.note = Note {
                    tile: tile as u32,
                    group: (plan.runs.len() > 1).then_some(index as u32),
                };
                let run = self.load_filters(conv, plan, index, (&mut weights, &mut parameters));
                let source = self.load_tile(0, tile, &conv.input, &conv.window);
                let output = self.output_tile(tile, None);
                self.set_destination(&output);
                self.set_source(&conv.input, &conv.window, tile, source);
                self.set_filter(conv, &run);
                self.depthwise(&run, source, &output);
                if self.job.store && index + 1 == plan.runs.len() {
                    self.store(&output);
                }
            }
        }
    }

    fn load_filters(
        &mut self,
        conv: &Conv,
        plan: &LanePlan,
        index: usize,
        (weights, parameters): (&mut Slots, &mut Slots),
    ) -> Run {
        let (channel, n_channels) = plan.runs[index];
        let bytes = |n| run_bytes(n, conv.n_steps(), conv.wide_weights);
        let (entry, missing) = parameters.take(index);
        let mut entries = Access::new(Memory::Parameter, true, entry, n_channels.into());
        if missing {
            let dram = conv.parameters + channel * PARAMETER_BYTES;
            let at = (u64::from(dram), entry * PARAMETER_BYTES);
            self.load_run(2, at, u64::from(n_channels * PARAMETER_BYTES), entries);
        }
        let (address, missing) = weights.take(index);
        let mut filters = Access::new(Memory::Weight, true, address, bytes(n_channels));
        if missing {
            let before: u64 = plan.runs[..index].iter().map(|&(_, n)| bytes(n)).sum();
            let dram = u64::from(conv.weights) + before;
            self.load_run(1, (dram, address), bytes(n_channels), filters);
        }
        (filters.write, entries.write) = (false, false);
        Run {
            channel,
            n_channels,
            weights: filters,
            parameters: entries,
        }
    }

    fn set_filter(&mut self, conv: &Conv, run: &Run) {
        let filter = Filter {
            weight_address: run.weights.from,
            wide_weights: conv.wide_weights.into(),
            parameter: run.parameters.from,
            counter: conv.counter + run.channel,
        };
        if self.registers.filter != Some(filter) {
            self.registers.filter = Some(filter);
            self.push(filter, []);
        }
    }

    fn depthwise(&mut self, run: &Run, source: Option<Access>, output: &OutputTile) {
        let width = output.width();
        let rows_at_once = (MAX_PIXELS / width).max(1);
        let n_rows = output.n_pixels() / width;
        let mut accesses: Accesses = [
            run.weights,
            run.parameters,
            Access::new(Memory::Activation, true, output.address, output.len),
        ]
        .into_iter()
        .collect();
        accesses.extend(source);
        accesses.extend(output.second);
        for y in (0..n_rows).step_by(rows_at_once as usize) {
            let depthwise = Depthwise {
                y,
                x: 0,
                n_pixels: rows_at_once.min(n_rows - y) * width,
                channel: run.channel,
                source_channel: if source.is_some() { run.channel } else { 0 },
                n_channels: run.n_channels,
                add_residual: output.second.is_some().into(),
                use_slope: self.job.slope.is_some().into(),
            };
            self.push(depthwise, accesses.clone());
        }
    }
}
