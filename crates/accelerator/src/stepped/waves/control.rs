//! Issue, starts and ends; the frontend's queues and the tokens.
//!
//! Invariant: as in [`super`].

use super::{Probe, Value, View, bits};
use crate::{Dataflow, stepped::dma::Direction};
use isa::{Op, Unit};

impl View<'_> {
    pub(super) fn control(&self, probe: &mut impl Probe) {
        self.events(probe);
        probe.within(format_args!("u_frontend"), |probe| self.frontend(probe));
        probe.within(format_args!("u_tokens"), |probe| {
            for (from, row) in self.state.frontend.tokens.iter().enumerate() {
                for (to, &count) in row.iter().enumerate() {
                    probe.put(format_args!("count[{}]", 4 * from + to), 17, count);
                }
            }
        });
    }

    /// What the machine says of its instructions.
    fn events(&self, probe: &mut impl Probe) {
        let frontend = &self.state.frontend;
        let heads = Unit::QUEUED.map(|unit| self.head(unit));
        let ends = Unit::QUEUED.map(|unit| self.ends(unit));
        let is_done = frontend.is_done(self.program);
        let is_fence = self.issued.is_some_and(|index| {
            let op = &self.program.instructions[index].op;
            matches!(op, Op::Fence(_))
        });
        let has_start = self.starts.iter().any(Option::is_some);
        let is_stuck = self.issued.is_none() && !has_start && self.state.is_quiet() && !is_done;
        probe.put(format_args!("trace_issue"), 1, self.issued.is_some());
        probe.put(format_args!("trace_fence"), 1, is_fence);
        probe.put(format_args!("trace_issue_index"), 32, frontend.next);
        let ready = Unit::QUEUED.map(|unit| self.is_ready(unit));
        probe.put(format_args!("ready"), 4, bits(ready));
        let granted = heads.map(|head| {
            let index = head?;
            let mut missing = frontend.missing(&self.program.instructions[index]);
            Some(missing.next().is_none())
        });
        probe.put(format_args!("granted"), 4, bits(granted));
        let starts = self.starts.map(|start| Some(start.is_some()));
        probe.put(format_args!("trace_start"), 4, bits(starts));
        for (unit, head) in heads.into_iter().enumerate() {
            probe.put(format_args!("trace_start_index[{unit}]"), 32, head);
        }
        let setup = Unit::QUEUED.map(|unit| Some(self.start(unit).is_some_and(is_setup)));
        probe.put(format_args!("trace_setup_end"), 4, bits(setup));
        let are_over = ends.map(|end| Some(end.is_some()));
        probe.put(format_args!("trace_end"), 4, bits(are_over));
        for (unit, end) in ends.into_iter().enumerate() {
            probe.put(format_args!("trace_end_index[{unit}]"), 32, end);
        }
        if self.config.dataflow != Dataflow::OutputStationary {
            let preload = self.preload_ends();
            probe.put(format_args!("trace_preload_end"), 1, preload.is_some());
            probe.put(format_args!("trace_preload_end_index"), 32, preload);
        }
        probe.put(format_args!("done"), 1, is_done);
        probe.put(format_args!("deadlock"), 1, is_stuck);
    }

    fn frontend(&self, probe: &mut impl Probe) {
        let frontend = &self.state.frontend;
        let heads = Unit::QUEUED.map(|unit| self.head(unit));
        let oldest = heads.into_iter().flatten().min();
        probe.put(format_args!("pc"), 32, frontend.next);
        let has_head = heads.map(|head| Some(head.is_some()));
        probe.put(format_args!("has_head"), 4, bits(has_head));
        for (unit, queue) in frontend.queues.iter().enumerate() {
            probe.put(format_args!("count[{unit}]"), 16, queue.len());
        }
        probe.put(format_args!("n_running"), 32, frontend.n_open);
        probe.put(format_args!("all_wait"), 1, self.state.is_quiet());
        let oldest = oldest.unwrap_or(frontend.next);
        probe.put(format_args!("oldest_index"), 32, oldest);
    }

    fn head(&self, unit: Unit) -> Option<usize> {
        self.state.frontend.queues[unit.index()].front().copied()
    }

    /// Whether a unit takes its queue's head; the array's answer depends on what that is.
    fn is_ready(&self, unit: Unit) -> Option<bool> {
        match unit {
            Unit::Load => Some(self.state.load.is_ready()),
            Unit::Store => Some(self.state.store.is_ready()),
            Unit::Post => Some(self.state.post.is_ready(self.config)),
            Unit::Array => self.head(unit).map(|index| {
                let op = &self.program.instructions[index].op;
                self.state.array.is_ready(op, self.config)
            }),
            Unit::Frontend => None,
        }
    }

    /// The instruction, other than setup and `preload`, whose last cycle this is.
    fn ends(&self, unit: Unit) -> Option<usize> {
        match unit {
            Unit::Load => self.transfer_ends(Direction::Load),
            Unit::Store => self.transfer_ends(Direction::Store),
            Unit::Array => self.array_ends(),
            Unit::Post => {
                let beat = self.state.post.write.as_ref()?;
                beat.is_last.then_some(beat.index)
            }
            Unit::Frontend => None,
        }
    }
}

/// Instructions that start and end in the same cycle.
fn is_setup((_, op): (usize, &Op)) -> bool {
    !matches!(
        op,
        Op::Load(_)
            | Op::Store(_)
            | Op::Matmul(_)
            | Op::Preload(_)
            | Op::Stream(_)
            | Op::Requantize(_)
            | Op::Pool(_)
            | Op::Depthwise(_)
    )
}

/// Known only while `owner` is there.
pub(super) fn of<T, V: Into<Value>>(owner: Option<&T>, value: impl FnOnce(&T) -> V) -> Value {
    owner.map(value).into()
}
