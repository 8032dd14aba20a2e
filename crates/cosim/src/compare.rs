//! The first place where two runs differ.
//!
//! Invariant: cycles come before values, and of the cycles the smallest; so a wrong latency is not
//! reported as the wrong data that it leads to.

use crate::{Observed, Outcome};
use accelerator::Dataflow;
use isa::{Op, Program};
use std::{fmt, ops::Range};

/// The first difference of two runs: place, signal, both values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The instruction, when one can be named.
    pub instruction: Option<usize>,
    /// Its mnemonic.
    pub mnemonic: &'static str,
    /// When; for values the end of the instruction that should have made them.
    pub cycle: Option<u64>,
    /// `issue`, `start`, `end`, `total`, an overflow counter's field, or a DRAM byte.
    pub signal: String,
    /// What the RTL says.
    pub rtl: String,
    /// What the model says.
    pub model: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.instruction {
            write!(f, "instruction {index} ({}), ", self.mnemonic)?;
        }
        if let Some(cycle) = self.cycle {
            write!(f, "cycle {cycle}, ")?;
        }
        let Self {
            signal, rtl, model, ..
        } = self;
        write!(f, "{signal}: {rtl} in the RTL, {model} in the model")
    }
}

/// The difference with the smallest cycle; values come after cycles.
pub fn compare(
    program: &Program,
    dataflow: Dataflow,
    rtl: &Outcome,
    model: &Outcome,
) -> Option<Difference> {
    let (rtl, model) = match (rtl, model) {
        (Outcome::Finished(rtl), Outcome::Finished(model)) => (rtl, model),
        (rtl, model) if rtl == model => return None,
        (rtl, model) => {
            let index = [rtl, model].into_iter().find_map(|outcome| match outcome {
                Outcome::Stopped(stop) => Some(stop.index),
                Outcome::Finished(_) => None,
            });
            let show = |outcome: &Outcome| match outcome {
                Outcome::Stopped(stop) => stop.to_string(),
                Outcome::Finished(observed) => format!("cycle {}", observed.total),
            };
            return Some(Report(program).at(index, None, "the end", show(rtl), show(model)));
        }
    };
    differing_cycle(program, rtl, model)
        .or_else(|| differing_counter(program, dataflow, rtl, model))
        .or_else(|| differing_byte(program, rtl, model))
}

struct Report<'a>(&'a Program);

impl Report<'_> {
    fn at(
        &self,
        instruction: Option<usize>,
        cycle: Option<u64>,
        signal: impl Into<String>,
        rtl: impl Into<String>,
        model: impl Into<String>,
    ) -> Difference {
        let found = instruction.and_then(|index| self.0.instructions.get(index));
        Difference {
            instruction,
            mnemonic: found.map_or("?", |instruction| instruction.op.mnemonic()),
            cycle,
            signal: signal.into(),
            rtl: rtl.into(),
            model: model.into(),
        }
    }
}

fn differing_cycle(program: &Program, rtl: &Observed, model: &Observed) -> Option<Difference> {
    let report = Report(program);
    let n = [rtl, model].map(|run| run.cycles.len());
    if n[0] != n[1] {
        let [rtl, model] = n.map(|n| n.to_string());
        return Some(report.at(None, None, "number of instructions", rtl, model));
    }
    let mut first: Option<(u64, usize, &'static str, u64, u64)> = None;
    for (i, (r, m)) in rtl.cycles.iter().zip(&model.cycles).enumerate() {
        for (signal, r, m) in [("issue", r.0, m.0), ("start", r.1, m.1), ("end", r.2, m.2)] {
            if r != m && first.is_none_or(|(cycle, ..)| r.min(m) < cycle) {
                first = Some((r.min(m), i, signal, r, m));
            }
        }
    }
    if let Some((cycle, i, signal, r, m)) = first {
        return Some(report.at(Some(i), Some(cycle), signal, r.to_string(), m.to_string()));
    }
    (rtl.total != model.total).then(|| {
        let cycle = rtl.total.min(model.total);
        let (rtl, model) = (rtl.total.to_string(), model.total.to_string());
        report.at(None, Some(cycle), "total", rtl, model)
    })
}

fn differing_counter(
    program: &Program,
    dataflow: Dataflow,
    rtl: &Observed,
    model: &Observed,
) -> Option<Difference> {
    let report = Report(program);
    let n = [rtl, model].map(|run| run.overflow.len());
    if n[0] != n[1] {
        let [rtl, model] = n.map(|n| n.to_string());
        return Some(report.at(None, None, "number of overflow counters", rtl, model));
    }
    let channel = (0..n[0]).find(|&c| rtl.overflow[c] != model.overflow[c])?;
    let (r, m) = (&rtl.overflow[channel], &model.overflow[channel]);
    let k = |k: Option<u32>| k.map_or("none".to_owned(), |k| k.to_string());
    let (field, r, m) = [
        (
            "n_overflowed",
            r.n_overflowed.to_string(),
            m.n_overflowed.to_string(),
        ),
        (
            "n_outputs_touched",
            r.n_outputs_touched.to_string(),
            m.n_outputs_touched.to_string(),
        ),
        ("first_k", k(r.first_k), k(m.first_k)),
        (
            "min_partial_sum",
            r.min_partial_sum.to_string(),
            m.min_partial_sum.to_string(),
        ),
        (
            "max_partial_sum",
            r.max_partial_sum.to_string(),
            m.max_partial_sum.to_string(),
        ),
    ]
    .into_iter()
    .find(|(_, r, m)| r != m)?;
    let writer = counted_by(program, dataflow, channel as u64);
    let cycle = writer.map(|i| model.cycles[i].2);
    let signal = format!("overflow counter {channel}, {field}");
    Some(report.at(writer, cycle, signal, r, m))
}

fn differing_byte(program: &Program, rtl: &Observed, model: &Observed) -> Option<Difference> {
    let report = Report(program);
    let n = [rtl, model].map(|run| run.dram.len());
    if n[0] != n[1] {
        let [rtl, model] = n.map(|n| n.to_string());
        return Some(report.at(None, None, "bytes of DRAM", rtl, model));
    }
    // Of all bytes that differ, the one that was stored first.
    let (cycle, writer, at) = (0..n[0])
        .filter(|&at| rtl.dram[at] != model.dram[at])
        .map(|at| {
            let writer = stored_by(program, at as u64);
            (writer.map_or(u64::MAX, |i| model.cycles[i].2), writer, at)
        })
        .min()?;
    let cycle = writer.map(|_| cycle);
    let signal = format!("DRAM byte {at}");
    let (r, m) = (rtl.dram[at].to_string(), model.dram[at].to_string());
    Some(report.at(writer, cycle, signal, r, m))
}

/// The first instruction that adds to an overflow counter.
fn counted_by(program: &Program, dataflow: Dataflow, channel: u64) -> Option<usize> {
    let mut filter_counter = 0;
    program.instructions.iter().position(|instruction| {
        if let Op::Filter(filter) = instruction.op {
            filter_counter = filter.counter;
        }
        counters(&instruction.op, dataflow, filter_counter).contains(&channel)
    })
}

/// The overflow counters that an instruction adds to.
fn counters(op: &Op, dataflow: Dataflow, filter_counter: u32) -> Range<u64> {
    let (first, n) = match *op {
        Op::Matmul(matmul) if matmul.last == 1 => (matmul.channel, matmul.cols_minus_1 + 1),
        Op::Stream(stream) if stream.last == 1 => match dataflow {
            Dataflow::InputStationary => (stream.channel, stream.n_minus_1 + 1),
            Dataflow::WeightStationary | Dataflow::OutputStationary => {
                (stream.channel, stream.cols_minus_1 + 1)
            }
        },
        Op::Depthwise(depthwise) => (filter_counter, depthwise.n_channels),
        _ => (0, 0),
    };
    u64::from(first)..u64::from(first) + u64::from(n)
}

/// The last store that covers a DRAM byte.
fn stored_by(program: &Program, at: u64) -> Option<usize> {
    let mut pitch = 0u64;
    let mut last = None;
    for (i, instruction) in program.instructions.iter().enumerate() {
        if let Op::StorePitch(setup) = instruction.op {
            pitch = setup.dram_pitch.into();
        }
        let Op::Store(store) = instruction.op else {
            continue;
        };
        let first = u64::from(store.dram_address);
        let covers = (0..u64::from(store.n_rows)).any(|row| {
            let from = first + row * pitch;
            (from..from + u64::from(store.row_bytes)).contains(&at)
        });
        if covers {
            last = Some(i);
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::compare;
    use crate::{Observed, Outcome, Stop, StopKind};
    use accelerator::Dataflow;
    use arith::ChannelOverflow;
    use isa::{Depthwise, Filter, Instruction, Matmul, Op, Program, Store, Stream};

    const OS: Dataflow = Dataflow::OutputStationary;

    fn program() -> Program {
        let matmul = Matmul {
            cols_minus_1: 1,
            last: 1,
            ..Matmul::default()
        };
        let store = |dram_address| Store {
            dram_address,
            n_rows: 1,
            row_bytes: 2,
            ..Store::default()
        };
        Program {
            instructions: vec![
                Instruction::new(matmul),
                Instruction::new(store(0)),
                Instruction::new(store(2)),
            ],
            ..Program::default()
        }
    }

    fn observed() -> Observed {
        Observed {
            total: 30,
            cycles: vec![(0, 1, 20), (1, 2, 30), (2, 5, 28)],
            overflow: vec![ChannelOverflow::default(); 2],
            dram: vec![0; 4],
        }
    }

    /// What is said about a run that differs by `change` from the model's.
    fn check(change: impl FnOnce(&mut Observed), expected: &str) {
        let mut rtl = observed();
        change(&mut rtl);
        let (rtl, model) = (Outcome::Finished(rtl), Outcome::Finished(observed()));
        let found = compare(&program(), OS, &rtl, &model).map(|d| d.to_string());
        assert_eq!(found.as_deref(), Some(expected));
        assert_eq!(compare(&program(), OS, &rtl, &rtl), None);
    }

    #[test]
    fn cycles() {
        check(
            |run| run.cycles[1].0 = 3,
            "instruction 1 (store), cycle 1, issue: 3 in the RTL, 1 in the model",
        );
        check(
            |run| run.cycles[2].1 = 4,
            "instruction 2 (store), cycle 4, start: 4 in the RTL, 5 in the model",
        );
        check(
            |run| {
                run.cycles[1].2 = 31;
                run.cycles[0].2 = 21;
                run.dram[0] = 1;
            },
            "instruction 0 (matmul), cycle 20, end: 21 in the RTL, 20 in the model",
        );
        check(
            |run| run.total = 31,
            "cycle 30, total: 31 in the RTL, 30 in the model",
        );
        check(
            |run| run.cycles.truncate(2),
            "number of instructions: 2 in the RTL, 3 in the model",
        );
    }

    #[test]
    fn counters() {
        let place = "instruction 0 (matmul), cycle 20, overflow counter 1";
        let check = |change: fn(&mut ChannelOverflow), rest: &str| {
            check(
                |run| change(&mut run.overflow[1]),
                &format!("{place}, {rest}"),
            );
        };
        check(
            |c| c.n_overflowed = 5,
            "n_overflowed: 5 in the RTL, 0 in the model",
        );
        check(
            |c| c.n_outputs_touched = 2,
            "n_outputs_touched: 2 in the RTL, 0 in the model",
        );
        check(
            |c| c.first_k = Some(7),
            "first_k: 7 in the RTL, none in the model",
        );
        let min = ChannelOverflow::default().min_partial_sum;
        check(
            |c| c.min_partial_sum = -3,
            &format!("min_partial_sum: -3 in the RTL, {min} in the model"),
        );
        let max = ChannelOverflow::default().max_partial_sum;
        check(
            |c| c.max_partial_sum = 9,
            &format!("max_partial_sum: 9 in the RTL, {max} in the model"),
        );
    }

    #[test]
    fn counters_name_who_counts() {
        let stream = Stream {
            channel: 4,
            cols_minus_1: 1,
            n_minus_1: 5,
            last: 1,
            ..Stream::default()
        };
        let filter = Filter {
            counter: 20,
            ..Filter::default()
        };
        let depthwise = Depthwise {
            n_channels: 2,
            ..Depthwise::default()
        };
        let unfinished = Stream { last: 0, ..stream };
        let program = Program {
            instructions: [
                Op::Stream(unfinished),
                Op::Stream(stream),
                Op::Filter(filter),
                Op::Depthwise(depthwise),
            ]
            .map(Instruction::new)
            .to_vec(),
            ..Program::default()
        };
        let who = |dataflow, channel| super::counted_by(&program, dataflow, channel);
        let (ws, is) = (Dataflow::WeightStationary, Dataflow::InputStationary);
        assert_eq!(
            [3, 4, 5, 6].map(|c| who(ws, c)),
            [None, Some(1), Some(1), None]
        );
        assert_eq!(
            [3, 4, 9, 10].map(|c| who(is, c)),
            [None, Some(1), Some(1), None]
        );
        assert_eq!(
            [19, 20, 21, 22].map(|c| who(ws, c)),
            [None, Some(3), Some(3), None]
        );
    }

    #[test]
    fn memory() {
        check(
            |run| {
                run.dram[1] = 7;
                run.dram[3] = 9;
            },
            // The store at 2 ends first.
            "instruction 2 (store), cycle 28, DRAM byte 3: 9 in the RTL, 0 in the model",
        );
        check(
            |run| run.dram.truncate(3),
            "bytes of DRAM: 3 in the RTL, 4 in the model",
        );
    }

    #[test]
    fn ends() {
        let stopped = |index, kind| Outcome::Stopped(Stop { index, kind });
        let finished = Outcome::Finished(observed());
        let say = |rtl: &Outcome, model: &Outcome| {
            compare(&program(), OS, rtl, model).map(|difference| difference.to_string())
        };
        let deadlock = stopped(1, StopKind::Deadlock);
        assert_eq!(say(&deadlock, &deadlock), None);
        assert_eq!(
            say(&deadlock, &finished).as_deref(),
            Some(
                "instruction 1 (store), the end: deadlock at instruction 1 in the RTL, cycle 30 in the model"
            )
        );
        assert_eq!(
            say(
                &stopped(2, StopKind::Deadlock),
                &stopped(2, StopKind::TokenOverflow)
            )
            .as_deref(),
            Some(
                "instruction 2 (store), the end: deadlock at instruction 2 in the RTL, \
                 token-overflow at instruction 2 in the model"
            )
        );
    }
}
