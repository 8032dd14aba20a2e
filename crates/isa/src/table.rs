//! The tables of `docs/isa.md`, printed from the list.
//!
//! Invariant: a test holds the document equal to what this prints.

use crate::OPS;
use crate::instruction::HEADER_BITS;
use std::fmt::Write;

/// Markdown: an overview of all instructions, then one section with the fields of each.
pub fn markdown_table() -> String {
    let mut out = String::from(
        "| opcode | instruction | unit | may signal | what it does |\n| --: | --- | --- | --- | --- |\n",
    );
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        writeln!(out, "{arguments}").expect("a string takes every write");
    };
    for info in OPS {
        let may_signal = if info.may_signal() { "yes" } else { "" };
        let (opcode, mnemonic, unit, doc) = (info.opcode, info.mnemonic, info.unit, info.doc);
        line(format_args!(
            "| {opcode} | `{mnemonic}` | {unit} | {may_signal} | {doc} |"
        ));
    }
    for info in OPS.iter().filter(|info| !info.fields.is_empty()) {
        line(format_args!("\n### `{}`\n\n{}\n", info.mnemonic, info.doc));
        line(format_args!(
            "| bits | field | values | meaning |\n| --- | --- | --- | --- |"
        ));
        let mut position = HEADER_BITS;
        for field in info.fields {
            let last = position + field.width_bits - 1;
            let bits = if last == position {
                format!("{last}")
            } else {
                format!("{position}–{last}")
            };
            let (name, min, max, doc) = (field.name, field.min, field.max, field.doc);
            line(format_args!(
                "| {bits} | `{name}` | {min} to {max} | {doc} |"
            ));
            position = last + 1;
        }
    }
    out
}
