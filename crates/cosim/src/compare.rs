//! The model's run, and the first place where two runs differ.

use crate::{Error, Observed};
use accelerator::{Config, Timing, event, stepped};
use isa::Program;
use std::fmt;

/// The first difference of two runs: place, signal, both values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Instruction, counter or DRAM address, and the cycle where there is one.
    pub place: String,
    /// `issue`, `start`, `end`, a counter's field, or `dram`.
    pub signal: &'static str,
    /// What the RTL says.
    pub rtl: String,
    /// What the model says.
    pub model: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            signal,
            rtl,
            model,
        } = self;
        write!(
            f,
            "{place}: {signal} is {rtl} in the RTL, {model} in the model"
        )
    }
}

fn observed(timing: &Timing, overflow: Vec<arith::ChannelOverflow>, dram: Vec<u8>) -> Observed {
    let cycles = (0..timing.issue.len())
        .map(|i| (timing.issue[i], timing.start[i], timing.end[i]))
        .collect();
    Observed {
        total: timing.total.0,
        cycles,
        overflow,
        dram,
    }
}

/// Runs the event model, or the stepped one.
///
/// # Errors
/// A program that the machine refuses.
pub fn model(
    program: &Program,
    config: &Config,
    dram: &[u8],
    step: bool,
) -> Result<Observed, Error> {
    let mut dram = dram.to_vec();
    if step {
        let run = stepped::run(program, config, &mut dram)?;
        return Ok(observed(&run.timing, run.overflow, dram));
    }
    let plan = event::Plan::new(program, config)?;
    let overflow = plan.execute(&mut dram, event::Detail::Full)?;
    Ok(observed(plan.timing(), overflow, dram))
}

/// The difference with the smallest cycle; values come after cycles.
pub fn compare(program: &Program, rtl: &Observed, model: &Observed) -> Option<Difference> {
    let mut first: Option<(u64, usize, &'static str, u64, u64)> = None;
    for (i, (r, m)) in rtl.cycles.iter().zip(&model.cycles).enumerate() {
        for (signal, r, m) in [("issue", r.0, m.0), ("start", r.1, m.1), ("end", r.2, m.2)] {
            if r != m && first.is_none_or(|(cycle, ..)| r.min(m) < cycle) {
                first = Some((r.min(m), i, signal, r, m));
            }
        }
    }
    if let Some((cycle, i, signal, r, m)) = first {
        let what = program.instructions.get(i).map_or("?", |i| i.op.mnemonic());
        return Some(Difference {
            place: format!("cycle {cycle}, instruction {i} ({what})"),
            signal,
            rtl: r.to_string(),
            model: m.to_string(),
        });
    }
    let different = |place: String, signal, rtl: String, model: String| {
        (rtl != model).then_some(Difference {
            place,
            signal,
            rtl,
            model,
        })
    };
    let whole = "the program".to_owned();
    let counts = |o: &Observed| format!("{} instructions", o.cycles.len());
    different(whole.clone(), "length", counts(rtl), counts(model))
        .or_else(|| {
            different(
                whole,
                "total",
                rtl.total.to_string(),
                model.total.to_string(),
            )
        })
        .or_else(|| {
            (0..rtl.overflow.len().max(model.overflow.len())).find_map(|c| {
                let show = |o: &Observed| format!("{:?}", o.overflow.get(c));
                different(
                    format!("channel {c}"),
                    "overflow counter",
                    show(rtl),
                    show(model),
                )
            })
        })
        .or_else(|| {
            let at = (0..rtl.dram.len().max(model.dram.len()))
                .find(|&i| rtl.dram.get(i) != model.dram.get(i))?;
            let writer = writer_of(program, model, at);
            let show = |o: &Observed| format!("{:?}", o.dram.get(at));
            different(
                format!("DRAM byte {at}{writer}"),
                "dram",
                show(rtl),
                show(model),
            )
        })
}

/// The last store that covers a DRAM byte, in words.
fn writer_of(program: &Program, run: &Observed, at: usize) -> String {
    let mut pitch = 0u64;
    let mut last = None;
    for (i, instruction) in program.instructions.iter().enumerate() {
        match instruction.op {
            isa::Op::StorePitch(p) => pitch = p.dram_pitch.into(),
            isa::Op::Store(s) => {
                let covers = (0..u64::from(s.n_rows)).any(|row| {
                    let from = u64::from(s.dram_address) + row * pitch;
                    (from..from + u64::from(s.row_bytes)).contains(&(at as u64))
                });
                if covers {
                    last = Some(i);
                }
            }
            _ => {}
        }
    }
    match last {
        Some(i) => format!(", instruction {i} (store), cycle {}", run.cycles[i].2),
        None => String::new(),
    }
}
