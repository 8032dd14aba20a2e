//! The rules of `depthwise`, and what it is worth.
//!
//! Invariant: the weights, entries and counters of every channel lie inside their memories.

use super::{Area, NO_RESIDUAL, Registers, Work, inside, pixel, positive, set};
use crate::{Config, DepthwiseUnit, FaultKind};
use isa::{Depthwise, Filter, Program, Source, Window};

/// Only machines whose lanes multiply and accumulate know these instructions.
pub(super) fn check_machine(config: &Config) -> Result<(), FaultKind> {
    match config.depthwise {
        DepthwiseUnit::Post => Ok(()),
        DepthwiseUnit::Array => Err(FaultKind::NotOnThisMachine {
            needs: "post.depthwise = \"post\"",
        }),
    }
}

/// Cycles of a tap: one for each pair of nibbles.
pub(super) fn passes(filter: &Filter, source: &Source) -> u32 {
    (1 + source.wide) * (1 + filter.wide_weights)
}

/// Cycles in which the lanes take operands.
pub(super) fn busy(
    depthwise: &Depthwise,
    filter: &Filter,
    source: &Source,
    window: &Window,
    lanes: u32,
) -> u64 {
    let groups = u64::from(depthwise.n_pixels) * u64::from(depthwise.n_channels.div_ceil(lanes));
    groups * u64::from(window.height * window.width) * u64::from(passes(filter, source))
}

/// Bytes of the weights, from `weight_address` on.
pub(crate) fn weight_bytes(depthwise: &Depthwise, filter: &Filter, window: &Window) -> u64 {
    let n = u64::from(window.height * window.width) * u64::from(depthwise.n_channels);
    (n * u64::from(4u32 << filter.wide_weights)).div_ceil(8)
}

impl Registers {
    pub(super) fn depthwise(
        &self,
        depthwise: Depthwise,
        program: &Program,
        config: &Config,
    ) -> Result<Work, FaultKind> {
        check_machine(config)?;
        let to = set("destination", self.destination.as_ref())?;
        let source = set("source", self.source.as_ref())?;
        let window = set("window", self.window.as_ref())?;
        let filter = set("filter", self.filter.as_ref())?;
        positive("n_pixels", depthwise.n_pixels)?;
        positive("n_channels", depthwise.n_channels)?;
        if source.height > 0 {
            pixel(
                depthwise.source_channel + depthwise.n_channels,
                source.wide,
                source.pixel_bytes,
            )?;
        }
        inside(
            u64::from(filter.weight_address) + weight_bytes(&depthwise, filter, window),
            "the weight scratchpad",
            u64::from(config.weight_bytes),
        )?;
        inside(
            u64::from(filter.parameter) + u64::from(depthwise.n_channels),
            "the parameter table (entries)",
            u64::from(config.n_parameters),
        )?;
        inside(
            u64::from(filter.counter) + u64::from(depthwise.n_channels),
            "the overflow counters",
            u64::from(program.n_channels),
        )?;
        let area = Area {
            y: depthwise.y,
            x: depthwise.x,
            n_pixels: depthwise.n_pixels,
            channels: depthwise.channel..depthwise.channel + depthwise.n_channels,
        };
        area.check(to, config)?;
        let residual = self.second_operand(depthwise.add_residual, &area, to, config)?;
        let slope = self.slope(depthwise.use_slope)?;
        Ok(Work::Depthwise {
            depthwise,
            filter: *filter,
            source: *source,
            window: *window,
            to: *to,
            residual: residual.copied().unwrap_or(NO_RESIDUAL),
            slope,
        })
    }
}
