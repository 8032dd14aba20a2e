//! The post unit: sequencer, stages, lanes.
//!
//! Invariant: as in [`super`].

use super::{Probe, View, control::of, grid::nibble};
use crate::stepped::{
    lanes::MacOperand,
    post::{Beat, Operand, Output, Product, first_byte},
    sequencer::{Job, Task},
};
use crate::{Counts, DepthwiseUnit};
use isa::Destination;

impl View<'_> {
    pub(super) fn post(&self, probe: &mut impl Probe) {
        probe.within(format_args!("u_post"), |probe| {
            probe.within(format_args!("u_sequencer"), |probe| self.reading(probe));
            let post = &self.state.post;
            let multiplies = post.multiply.as_ref().filter(|beat| beat.is_last_tap);
            stage(probe, 1, multiplies);
            stage(probe, 2, post.shift.as_ref());
            stage(probe, 3, post.write.as_ref());
            for lane in 0..self.config.lanes as usize {
                let scope = format_args!("lane[{lane}].u_lane");
                probe.within(scope, |probe| self.lane(lane, probe));
            }
        });
    }

    fn reading(&self, probe: &mut impl Probe) {
        let job = self.state.post.job.as_ref();
        let lanes = self.config.lanes;
        probe.put(format_args!("active"), 1, job.is_some());
        probe.within(format_args!("running"), |probe| {
            probe.put(format_args!("index"), 32, of(job, |j| j.index));
        });
        probe.put(format_args!("row"), 14, of(job, |j| j.pixel));
        probe.put(format_args!("column"), 14, of(job, |j| j.group * lanes));
        probe.put(format_args!("dy"), 8, of(job, |j| j.tap_y));
        probe.put(format_args!("dx"), 8, of(job, |j| j.tap_x));
        probe.put(format_args!("pass"), 2, of(job, |j| j.pass));
        probe.within(format_args!("step"), |probe| {
            let work = of(job, |j| match j.task {
                Task::Requantize(_) => 0,
                Task::Pool(..) => 1,
                Task::Depthwise(..) => 2,
            });
            probe.put(format_args!("work"), 2, work);
            probe.put(format_args!("first_tap"), 1, of(job, Job::is_first_tap));
            let last = job.is_some_and(Job::is_last_tap);
            probe.put(format_args!("last"), 1, last);
            let ends = job.is_some_and(|j| j.is_last(self.config));
            probe.put(format_args!("ends"), 1, ends);
        });
    }

    fn lane(&self, lane: usize, probe: &mut impl Probe) {
        let post = &self.state.post;
        self.multiplying(lane, probe);
        let product = post.shift.as_ref().and_then(|beat| beat.lanes.get(lane));
        probe.put(format_args!("on2"), 1, product.is_some());
        let value = |p: &Product| p.value;
        probe.put(format_args!("product_q"), 64, of(product, value));
        probe.put(
            format_args!("shift2"),
            7,
            of(product, |p| u32::from(p.shift)),
        );
        let output = post
            .write
            .as_ref()
            .and_then(|beat| Some((beat.lanes.get(lane)?, beat.to)));
        let output = output.as_ref();
        probe.put(format_args!("on3"), 1, output.is_some());
        let value = |(output, _): &(&Output, Destination)| output.value;
        probe.put(format_args!("clamped_q"), 16, of(output, value));
        let address = |(output, to): &(&Output, Destination)| first_byte(output.target, *to);
        probe.put(format_args!("to_byte3"), 32, of(output, address));
    }

    /// The stage that reduces or accumulates, and multiplies.
    fn multiplying(&self, lane: usize, probe: &mut impl Probe) {
        let post = &self.state.post;
        let beat = post.multiply.as_ref();
        let operand = beat.and_then(|beat| Some((beat.lanes.get(lane)?, beat)));
        let mac = operand.and_then(|(operand, _)| operand.mac);
        let mac = mac.as_ref();
        let is_requantize =
            operand.is_some_and(|(operand, beat)| self.is_requantize(operand, beat));
        let block = operand.filter(|_| is_requantize);
        let pool = operand.filter(|(operand, _)| operand.mac.is_none() && !is_requantize);
        let last = operand.filter(|(_, beat)| beat.is_last_tap);
        probe.put(format_args!("on1"), 1, operand.is_some());
        let is_last = operand.map(|(_, beat)| beat.is_last_tap);
        probe.put(format_args!("last1"), 1, is_last);
        probe.put(format_args!("block1"), 32, block.and_then(|(o, _)| o.value));
        let inside = pool.map(|(o, _)| o.value.is_some());
        probe.put(format_args!("inside1"), 1, inside);
        probe.put(format_args!("tap1"), 9, pool.and_then(|(o, _)| o.value));
        let second = last.and_then(|(o, _)| o.residual).map(|(value, _)| value);
        probe.put(format_args!("second1"), 9, second);
        let mantissa = last.map(|(o, _)| o.multiplier.0);
        probe.put(format_args!("mantissa1"), 8, mantissa);
        let shift = last.map(|(o, _)| u32::from(o.multiplier.1));
        probe.put(format_args!("shift1"), 6, shift);
        let reduced = pool.map(|(operand, beat)| {
            let before = post.reduction[lane].filter(|_| !beat.is_first_tap);
            beat.reduce(before, operand.value).unwrap_or(0)
        });
        probe.put(format_args!("reduced"), 26, reduced);
        if self.config.depthwise == DepthwiseUnit::Post {
            self.accumulating(lane, mac, probe);
        }
    }

    /// The multiplier and the accumulator of a depthwise convolution.
    fn accumulating(&self, lane: usize, mac: Option<&MacOperand>, probe: &mut impl Probe) {
        let post = &self.state.post;
        nibble(probe, "weight1", mac.map(|mac| mac.weight));
        nibble(probe, "activation1", mac.map(|mac| mac.activation));
        let mut after = post.accumulators[lane];
        let before = after.accumulator.acc;
        if let Some(mac) = mac {
            after.step(mac, self.config, &mut Counts::default());
        }
        probe.put(format_args!("mac"), 18, of(mac, |_| after.product));
        // An output's first tap begins with the bias, whatever the register holds.
        let later = mac.filter(|mac| mac.tap > 0);
        probe.put(format_args!("acc"), 32, of(later, |_| before));
        let adds = mac.filter(|mac| mac.is_last_pass);
        probe.put(format_args!("sum"), 32, of(adds, |_| after.accumulator.acc));
        let overflows = || {
            let begins = adds.is_some_and(|mac| mac.initial.is_some());
            let n_before = if begins {
                0
            } else {
                post.accumulators[lane].accumulator.seen.n_overflowed
            };
            after.accumulator.seen.n_overflowed > n_before
        };
        probe.put(format_args!("overflowed"), 1, of(adds, |_| overflows()));
    }

    /// Whether a beat is of a `requantize`.
    fn is_requantize(&self, operand: &Operand, beat: &Beat<Operand>) -> bool {
        let op = &self.program.instructions[beat.index].op;
        operand.mac.is_none() && matches!(op, isa::Op::Requantize(_))
    }
}

fn stage<Lane>(probe: &mut impl Probe, number: u32, beat: Option<&Beat<Lane>>) {
    probe.within(format_args!("stage{number}"), |probe| {
        probe.put(format_args!("valid"), 1, beat.is_some());
        probe.put(format_args!("ends"), 1, of(beat, |b| b.is_last));
        probe.put(format_args!("index"), 32, of(beat, |b| b.index));
    });
}
