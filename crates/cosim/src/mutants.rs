//! Deliberate mistakes in the RTL, to see that the comparison finds each and names the place.
//!
//! Invariant: a mutant is the RTL with one text replaced that stands in it exactly once.

use crate::{
    Build, Error, Size,
    suite::{self, Finding, Job},
    waves,
};
use std::path::Path;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// For reports and for the build's directory.
    pub name: &'static str,
    /// What is wrong then.
    pub what: &'static str,
    /// File of the RTL.
    pub file: &'static str,
    /// What stands there.
    pub from: &'static str,
    /// What stands there instead.
    pub to: &'static str,
    /// The mnemonic that the first difference must name, and a part of its signal.
    pub place: (&'static str, &'static str),
}

/// One mistake of every kind that the comparison must see.
pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "latency",
        what: "DRAM answers one cycle late",
        file: "dram.sv",
        from: "32'(cfg.dram_latency);",
        to: "32'(cfg.dram_latency) + 1;",
        place: ("load", "end"),
    },
    Mutant {
        name: "drain",
        what: "a matmul ends one cycle late",
        file: "array.sv",
        from: "32'(cfg.cols) - 1 + 32'(rows_to_drain);",
        to: "32'(cfg.cols) + 32'(rows_to_drain);",
        place: ("matmul", "end"),
    },
    Mutant {
        name: "rounding",
        what: "half-even rounds ties up",
        file: "post_lane.sv",
        from: "2: if (rest > half || (rest == half && shifted[0]))",
        to: "2: if (rest >= half)",
        place: ("store", "DRAM byte"),
    },
    Mutant {
        name: "saturation",
        what: "negative sums saturate one too high",
        file: "overflow_add.sv",
        from: "(saturate && under) sum = ~top;",
        to: "(saturate && under) sum = ~top + 1;",
        place: ("store", "DRAM byte"),
    },
    Mutant {
        name: "skew",
        what: "the weights of column 1 come a cycle early",
        file: "array.sv",
        from: ".here(column_here[c]), .right",
        to: ".here(column_here[c == 1 ? 0 : c]), .right",
        place: ("matmul", "overflow counter 1"),
    },
    Mutant {
        name: "preload",
        what: "without shadow operands a preload starts one cycle early",
        file: "array_sequencer.sv",
        from: "chain_busy <= n_passes + 18'(cfg.rows) + 18'(cfg.cols) - 1;",
        to: "chain_busy <= n_passes + 18'(cfg.rows) + 18'(cfg.cols) - 2;",
        place: ("preload", "start"),
    },
    Mutant {
        name: "bottom",
        what: "the sums of a reduction's folds wrap where they should saturate",
        file: "array_column.sv",
        from: ".saturate(cfg.saturate), .acc(block_in)",
        to: ".saturate(1'b0), .acc(block_in)",
        place: ("store", "DRAM byte"),
    },
    Mutant {
        name: "depthwise",
        what: "a lane adds after every pass, not after every tap",
        file: "post_lane.sv",
        from: "work1 == CONVOLVING && last_pass1;",
        to: "work1 == CONVOLVING;",
        place: ("depthwise", "overflow counter"),
    },
    Mutant {
        name: "post",
        what: "the post unit ends one cycle early",
        file: "post.sv",
        from: "assign finish.valid = stage3.valid && stage3.ends;
  assign finish.signal_mask = stage3.signal_mask;
  assign finish.index = stage3.index;",
        to: "assign finish.valid = stage2.valid && stage2.ends;
  assign finish.signal_mask = stage2.signal_mask;
  assign finish.index = stage2.index;",
        place: ("requantize", "end"),
    },
    Mutant {
        name: "lanes",
        what: "the post unit is ready one cycle late",
        file: "post_sequencer.sv",
        from: "assign ready = !active || step.ends;",
        to: "assign ready = !active;",
        place: ("pool", "start"),
    },
];

/// What came of a search for a mistake.
#[derive(Debug)]
pub struct Verdict {
    /// Whether the right place was named.
    pub is_named: bool,
    /// In words, a line or two.
    pub text: String,
}

impl Mutant {
    /// Builds the mutant in `directory` and looks for the first difference among the jobs that the
    /// build holds; writes both sides' waveforms around it into a folder of `waves`.
    ///
    /// # Errors
    /// As [`Build::make`], [`suite::run`] and [`waves::dump`].
    pub fn find(
        &'static self,
        directory: &Path,
        jobs: &[Job],
        waves: Option<&Path>,
    ) -> Result<Verdict, Error> {
        let build = Build {
            size: Size::Small,
            mutant: Some(self),
            traced: false,
        };
        let rtl = build.make(directory)?;
        for job in jobs.iter().filter(|job| rtl.holds(&job.config)) {
            if let Some(finding) = suite::first_difference(&rtl, job)? {
                if let (Some(to), Ok(difference)) = (waves, &finding.difference) {
                    let (to, program) = (to.join(self.name), &finding.program);
                    let cycle = difference.cycle;
                    waves::dump(directory, Some(self), &job.config, program, cycle, &to)?;
                }
                return Ok(self.judge(job, &finding));
            }
        }
        Ok(Verdict {
            is_named: false,
            text: format!("{} ({}): not found", self.name, self.what),
        })
    }

    fn judge(&self, job: &Job, finding: &Finding) -> Verdict {
        let what = format!("{} ({})", self.name, self.what);
        let place = format!("{}, {}", job.name, finding.program.name);
        let difference = match &finding.difference {
            Ok(difference) => difference,
            Err(said) => {
                return Verdict {
                    is_named: false,
                    text: format!("{what}: {place}: {said}"),
                };
            }
        };
        let (mnemonic, signal) = self.place;
        let is_named = difference.mnemonic == mnemonic && difference.signal.contains(signal);
        let rest = if is_named {
            String::new()
        } else {
            format!("\n{what}: the place should be a {mnemonic}'s {signal}")
        };
        Verdict {
            is_named,
            text: format!("{what}: {place}: {difference}{rest}"),
        }
    }

    /// The file's text with the mistake in it, or as it is when the mistake is elsewhere.
    ///
    /// # Errors
    /// The text to replace does not stand exactly once in the mutant's file.
    pub fn apply(&self, file: &str, text: &str) -> Result<String, Error> {
        if file != self.file {
            return Ok(text.to_owned());
        }
        let n = text.matches(self.from).count();
        if n != 1 {
            let Self { name, from, .. } = self;
            return Err(Error::Mutant(format!(
                "{name}: {from:?} stands {n} times in {file}, not once"
            )));
        }
        Ok(text.replace(self.from, self.to))
    }
}
