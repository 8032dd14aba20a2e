//! Deliberate mistakes in the RTL, to see that the comparison finds each and names the place.
//!
//! Invariant: a mutant is the RTL with one text replaced that stands in it exactly once.

use crate::Error;

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
];

impl Mutant {
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
