//! The frontend: program counter, four queues, twelve token counters.
//!
//! Invariant: `n_open` counts the instructions in the queues and in the units; at 0 everything
//! issued has ended.

use super::Wires;
use crate::{Config, FaultKind};
use isa::{Instruction, Op, Program, Unit};
use std::collections::VecDeque;

/// What starts in a cycle, by [`Unit::index`].
pub(crate) type Starts = [Option<usize>; 4];

/// Registers of the frontend.
#[derive(Debug, Default)]
pub(crate) struct Frontend {
    /// The instruction that issues next.
    pub next: usize,
    /// Instructions that wait for their unit, by [`Unit::index`].
    pub queues: [VecDeque<usize>; 4],
    /// `tokens[from][to]`; the diagonal stays 0.
    pub tokens: [[u32; 4]; 4],
    /// Issued and not ended.
    pub n_open: usize,
}

impl Frontend {
    /// The instruction that issues in this cycle.
    pub fn issues(&self, program: &Program, config: &Config) -> Option<usize> {
        let instruction = program.instructions.get(self.next)?;
        let may_issue = match instruction.op.unit() {
            Unit::Frontend => self.n_open == 0,
            unit => self.queues[unit.index()].len() < config.queue_depth as usize,
        };
        may_issue.then_some(self.next)
    }

    /// Units whose tokens `instruction` still misses.
    pub fn missing(&self, instruction: &Instruction) -> impl Iterator<Item = Unit> {
        let to = instruction.op.unit().index();
        let waits = instruction.wait.iter();
        waits.filter(move |from| self.tokens[from.index()][to] == 0)
    }

    /// Whether everything has issued and ended.
    pub fn is_done(&self, program: &Program) -> bool {
        self.next == program.instructions.len() && self.n_open == 0
    }

    /// The clock edge: what issued, started, and is visible as ended from the next cycle on.
    pub fn step(
        &mut self,
        issued: Option<usize>,
        starts: &Starts,
        program: &Program,
        config: &Config,
        wires: &mut Wires,
    ) {
        for index in starts.iter().copied().flatten() {
            let instruction = &program.instructions[index];
            let to = instruction.op.unit().index();
            self.queues[to].pop_front();
            for from in instruction.wait.iter() {
                self.tokens[from.index()][to] -= 1;
            }
        }
        let ended = std::mem::take(&mut wires.ended);
        for &index in &ended {
            self.n_open -= 1;
            self.signal(index, program, config, wires);
        }
        wires.ended = ended;
        if let Some(index) = issued {
            let instruction = &program.instructions[index];
            if let Op::Fence(_) = instruction.op {
                // It ends with this cycle, so it never counts as open.
                wires.ended.push(index);
            } else {
                self.queues[instruction.op.unit().index()].push_back(index);
                self.n_open += 1;
            }
            self.next += 1;
        }
    }

    fn signal(&mut self, index: usize, program: &Program, config: &Config, wires: &mut Wires) {
        let instruction = &program.instructions[index];
        let from = instruction.op.unit();
        for to in instruction.signal.iter() {
            let counter = &mut self.tokens[from.index()][to.index()];
            *counter += 1;
            if *counter > config.max_tokens {
                let limit = config.max_tokens;
                wires.fault(index, FaultKind::TokenOverflow { from, to, limit });
            }
        }
    }
}
