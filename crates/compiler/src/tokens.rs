//! Where instructions wait for each other: from what they read and write to wait and signal masks.
//!
//! The stream is valid when run one after the other, so every dependence points backwards. Between
//! an ordered pair of units the k-th token taken is the k-th given, and instructions of a unit end
//! in order: waiting for one is waiting for all before it. An instruction therefore takes a token
//! only when it needs a later producer than any instruction of its unit before it.
//!
//! Within a unit no token exists. Conflicts there are harmless or ordered otherwise:
//! - post → post: results leave the pipeline in order, and reads come before writes; but reading
//!   what another post instruction wrote would need a wait.
//! - array → array on a block: drains do not overlap.
//! - store → store: two stores never write the same byte.
//! - load → load on a buffer: whoever read the first waited for it, and the second waits for them.
//!
//! Waiting is transitive: who waits for an instruction has waited for everything that this one had
//! waited for. So most waits are not needed, and most results that the post unit reads back (a second
//! operand that stayed on chip) are known to be there. What is left (a load over a load that nobody
//! read, post reading from post) gets a `fence`; so does a producer whose token might exceed the
//! counter. Invariant: a consumer never starts before
//! its producers have ended, no counter exceeds `max_tokens`, and the program cannot deadlock: the
//! earliest unfinished instruction has nothing to wait for.

use crate::{
    emit::{Access, Memory},
    ranges::Ranges,
};
use isa::{Unit, Units};
use std::collections::VecDeque;

/// What token placement needs to know of an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node<'a> {
    pub unit: Unit,
    pub accesses: &'a [Access],
}

/// The tokens of one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// A `fence` stands before the instruction.
    pub fence: bool,
    pub wait: Units,
    pub signal: Units,
}

/// Latest instruction of each unit, by [`Unit::index`].
type Latest = [Option<u32>; 4];

/// What happened last to a range of a memory.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// Last write: unit, instruction.
    write: Option<(usize, u32)>,
    /// Last read since then, per unit.
    reads: Latest,
}

/// What an instruction needs.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    producers: Latest,
    /// A producer of its own unit: no token can say that.
    own_unit: Option<u32>,
}

/// Places tokens and fences.
pub(crate) fn place(nodes: &[Node], queue_depth: u32, max_tokens: u32) -> Vec<Tokens> {
    let needs = dependences(nodes);
    let mut tokens = vec![Tokens::default(); nodes.len()];
    let mut start = 0;
    while start < nodes.len() {
        let end = assign(nodes, &needs, start, nodes.len(), &mut tokens);
        let end = overflow(nodes, &tokens[..end], start, queue_depth, max_tokens).unwrap_or(end);
        if end < nodes.len() {
            // Whatever waits behind the fence needs no token from before it.
            tokens[end] = Tokens {
                fence: true,
                ..Tokens::default()
            };
            assign(nodes, &needs, start, end, &mut tokens);
        }
        start = end;
    }
    tokens
}

/// Tokens for dependences within `start..end`; returns where the first conflict within a unit ends
/// it.
fn assign(
    nodes: &[Node],
    needs: &[Needs],
    start: usize,
    end: usize,
    tokens: &mut [Tokens],
) -> usize {
    for token in &mut tokens[start..end] {
        (token.wait, token.signal) = (Units::NONE, Units::NONE);
    }
    // What each unit knows to have ended when its latest instruction starts, and each instruction
    // when it starts. Units start their instructions in order, so knowledge only grows.
    let mut known: [Latest; 4] = Default::default();
    let mut known_by: Vec<Latest> = Vec::with_capacity(end - start);
    for index in start..end {
        let consumer = nodes[index].unit;
        let mut knows = known[consumer.index()];
        for producer in Unit::QUEUED {
            let Some(needed) = needs[index].producers[producer.index()] else {
                continue;
            };
            if (needed as usize) < start
                || knows[producer.index()].is_some_and(|seen| seen >= needed)
            {
                continue;
            }
            learn(&mut knows, &known_by[needed as usize - start]);
            knows[producer.index()] = Some(needed);
            tokens[index].wait = tokens[index].wait.with(producer);
            let signal = &mut tokens[needed as usize].signal;
            *signal = signal.with(consumer);
        }
        let unknown = |producer: u32| {
            producer as usize >= start && knows[consumer.index()].is_none_or(|seen| seen < producer)
        };
        if needs[index].own_unit.is_some_and(unknown) {
            return index;
        }
        known[consumer.index()] = knows;
        known_by.push(knows);
    }
    end
}

fn learn(knows: &mut Latest, other: &Latest) {
    for (mine, theirs) in knows.iter_mut().zip(other) {
        *mine = (*mine).max(*theirs);
    }
}

/// The first instruction whose token might find its counter full. When it ends, of the
/// instructions issued at most `queue_depth` of a unit have not started, so at least the tokens of
/// all others are taken.
fn overflow(
    nodes: &[Node],
    tokens: &[Tokens],
    start: usize,
    queue_depth: u32,
    max_tokens: u32,
) -> Option<usize> {
    let mut held = [[0u32; 4]; 4];
    let mut queues: [VecDeque<Units>; 4] = Default::default();
    for (index, token) in tokens.iter().enumerate().skip(start) {
        let unit = nodes[index].unit.index();
        queues[unit].push_back(token.wait);
        if queues[unit].len() > queue_depth as usize
            && let Some(started) = queues[unit].pop_front()
        {
            for producer in started.iter() {
                held[producer.index()][unit] -= 1;
            }
        }
        for consumer in token.signal.iter() {
            let count = &mut held[unit][consumer.index()];
            *count += 1;
            if *count > max_tokens {
                return Some(index);
            }
        }
    }
    None
}

fn dependences(nodes: &[Node]) -> Vec<Needs> {
    let mut memories: [Ranges<History>; Memory::N] = Default::default();
    let mut all = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let mut needs = Needs::default();
        let unit = node.unit.index();
        // Reads first: an instruction does not depend on itself.
        for write in [false, true] {
            for access in node.accesses.iter().filter(|access| access.write == write) {
                let ranges = &mut memories[access.memory as usize];
                ranges.visit(access.from(), access.to(), |history| {
                    if write {
                        needs.write(node.unit, history);
                        *history = History {
                            write: Some((unit, index as u32)),
                            reads: [None; 4],
                        };
                    } else {
                        needs.read(node.unit, history);
                        history.reads[unit] = Some(index as u32);
                    }
                });
                if write {
                    ranges.join(access.from(), access.to());
                }
            }
        }
        all.push(needs);
    }
    all
}

impl Needs {
    fn producer(&mut self, unit: usize, index: u32) {
        let latest = &mut self.producers[unit];
        *latest = (*latest).max(Some(index));
    }

    fn read(&mut self, unit: Unit, history: &History) {
        match history.write {
            Some((writer, index)) if writer == unit.index() => {
                self.own_unit = self.own_unit.max(Some(index));
            }
            Some((writer, index)) => self.producer(writer, index),
            None => {}
        }
    }

    fn write(&mut self, unit: Unit, history: &History) {
        let mut read = false;
        for (reader, index) in history.reads.iter().enumerate() {
            let Some(index) = *index else { continue };
            // Every reader has waited for the write before it, so no one needs to wait again.
            read = true;
            if reader != unit.index() {
                self.producer(reader, index);
            }
        }
        match history.write {
            Some((writer, index)) if !read && writer != unit.index() => {
                self.producer(writer, index);
            }
            Some((_, index)) if !read && unit == Unit::Load => {
                self.own_unit = self.own_unit.max(Some(index));
            }
            _ => {}
        }
    }
}
