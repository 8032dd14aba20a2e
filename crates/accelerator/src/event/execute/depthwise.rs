//! `depthwise`: sixteen channels of a pixel side by side, tap by tap.
//!
//! Invariant: every channel's products are added in the order of the taps, as one column of a fold
//! would add them, so the fold's arithmetic serves here too: the products are the weights of
//! activations that are all 1.

use super::{Parameter, Pixel, State, element, tap};
use crate::event::Detail;
use crate::event::mac::{self, Cell, Group, LANES, Weights};
use crate::{FaultKind, rules::check_alignment};
use isa::{Depthwise, Destination, Filter, Residual, Slope, Source, Window};

/// A `depthwise` with the registers that it finds.
pub(super) struct Job<'a> {
    pub depthwise: &'a Depthwise,
    pub filter: &'a Filter,
    pub source: &'a Source,
    pub window: &'a Window,
    pub to: &'a Destination,
    pub residual: &'a Residual,
    pub slope: Slope,
}

impl Job<'_> {
    /// Channels of a group of lanes, counted from the instruction's first.
    fn channels(&self, group: u32) -> std::ops::Range<u32> {
        let from = group * LANES as u32;
        from..self.depthwise.n_channels.min(from + LANES as u32)
    }
}

impl State<'_> {
    pub(super) fn depthwise(&mut self, job: &Job<'_>) -> Result<(), FaultKind> {
        let parameters = self.depthwise_parameters(job)?;
        let n_groups = job.depthwise.n_channels.div_ceil(LANES as u32);
        let n_taps = job.window.height * job.window.width;
        let groups: Vec<(Group, Vec<[i16; LANES]>)> = (0..n_groups)
            .map(|group| {
                let mut bias = [0; LANES];
                for (lane, c) in job.channels(group).enumerate() {
                    bias[lane] = parameters[c as usize].bias as i32;
                }
                (bias, self.taps(job, group))
            })
            .collect();
        let ones = vec![1i16; n_taps as usize];
        let format = self.config.arithmetic.accumulator;
        let extremes = self.detail == Detail::Full;
        let mut products = Vec::with_capacity(n_taps as usize);
        for i in 0..job.depthwise.n_pixels {
            let pixel = Pixel::of(job.to, job.depthwise.y, job.depthwise.x + i);
            for (group, (bias, taps)) in (0..n_groups).zip(&groups) {
                self.products(job, &pixel, group, taps, &mut products);
                let weights = Weights::new(products);
                let mut cell = Cell::new(*bias);
                mac::accumulate(&mut cell, &ones, &weights, 0, (0, 1), format, extremes);
                products = weights.steps;
                for (lane, c) in job.channels(group).enumerate() {
                    self.count(job, c, &cell, lane);
                    let channel = job.depthwise.channel + c;
                    let second = self.second(job.residual, &pixel, channel);
                    self.finish(
                        cell.acc[lane].into(),
                        parameters[c as usize].requant,
                        second,
                        job.slope,
                        job.to,
                        (&pixel, channel),
                    );
                }
            }
        }
        Ok(())
    }

    fn depthwise_parameters(&self, job: &Job<'_>) -> Result<Vec<Parameter>, FaultKind> {
        let residual = &job.residual;
        let reached = residual.channel..residual.channel + residual.n_channels;
        (0..job.depthwise.n_channels)
            .map(|c| {
                let parameter = self.parameter(job.filter.parameter + c)?;
                if !self.config.arithmetic.accumulator.holds(parameter.bias) {
                    let rule = "the initial value must fit the accumulator";
                    return Err(FaultKind::Operand {
                        field: "bias",
                        value: parameter.bias,
                        rule,
                    });
                }
                if reached.contains(&(job.depthwise.channel + c)) {
                    check_alignment(parameter.requant.shift.into(), residual.shift)?;
                }
                Ok(parameter)
            })
            .collect()
    }

    /// Weights of a group of lanes, tap by tap; lanes that are not in use weigh nothing.
    fn taps(&self, job: &Job<'_>, group: u32) -> Vec<[i16; LANES]> {
        let memory = &self.weights[job.filter.weight_address as usize..];
        (0..job.window.height * job.window.width)
            .map(|tap| {
                let mut weights = [0; LANES];
                for (lane, c) in job.channels(group).enumerate() {
                    let index = tap * job.depthwise.n_channels + c;
                    weights[lane] = element(memory, index, job.filter.wide_weights, 1) as i16;
                }
                weights
            })
            .collect()
    }

    /// What each tap adds to a group of lanes.
    fn products(
        &self,
        job: &Job<'_>,
        pixel: &Pixel,
        group: u32,
        taps: &[[i16; LANES]],
        into: &mut Vec<[i16; LANES]>,
    ) {
        let (source, window) = (job.source, job.window);
        into.clear();
        let mut taps = taps.iter();
        for dy in 0..window.height {
            let (stride, dilation) = (window.stride_y, window.dilation_y);
            let y = tap(pixel.y, stride, dy, dilation, window.pad_top);
            for (dx, weights) in (0..window.width).zip(taps.by_ref()) {
                let (stride, dilation) = (window.stride_x, window.dilation_x);
                let x = tap(pixel.x, stride, dx, dilation, window.pad_left);
                let mut products = [0; LANES];
                if (0..source.height.into()).contains(&y) && (0..source.width.into()).contains(&x) {
                    let index = y as usize * source.width as usize + x as usize;
                    let first = source.address as usize + index * source.pixel_bytes as usize;
                    let memory = &self.activations[first..];
                    for (lane, c) in job.channels(group).enumerate() {
                        let c = job.depthwise.source_channel + c;
                        // An 8-bit by 8-bit product always fits 16 bits.
                        products[lane] = weights[lane].wrapping_mul(element(
                            memory,
                            c,
                            source.wide,
                            source.signed,
                        )
                            as i16);
                    }
                }
                into.push(products);
            }
        }
    }

    /// Adds one output to its channel's overflow counter.
    fn count(&mut self, job: &Job<'_>, c: u32, cell: &Cell, lane: usize) {
        let counter = &mut self.overflow[(job.filter.counter + c) as usize];
        if cell.n_overflowed[lane] > 0 {
            counter.n_overflowed += u64::from(cell.n_overflowed[lane].unsigned_abs());
            counter.n_outputs_touched += 1;
            let first = cell.first_k[lane];
            counter.first_k = Some(counter.first_k.map_or(first, |k| k.min(first)));
        }
        if self.detail == Detail::Full {
            counter.min_partial_sum = counter.min_partial_sum.min(cell.min[lane]);
            counter.max_partial_sum = counter.max_partial_sum.max(cell.max[lane]);
        }
    }
}
