//! The text of a program, written.
//!
//! Invariant: of a program that passes [`Program::check`], [`Program::from_text`] gives back an
//! equal one. Comments carry nothing that the program needs.

use crate::Program;
use crate::program::VERSION;
use std::fmt::Write;

/// Bytes of a line of data.
pub(crate) const DATA_LINE: usize = 64;

/// A name between quotes, without characters that could end the quotes or the line.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", escaped(name))
}

/// Quotes, backslashes and control characters as escapes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

impl Program {
    /// The program as text that [`Self::from_text`] reads; see `docs/isa.md`.
    pub fn to_text(&self) -> String {
        self.to_text_with_notes(&[])
    }

    /// As [`Self::to_text`]; the i-th note, when there is one, ends the i-th instruction's comment.
    pub fn to_text_with_notes(&self, notes: &[String]) -> String {
        let mut out = String::new();
        self.write_text(&mut out, notes)
            .expect("a string takes every write");
        out
    }

    fn write_text(&self, out: &mut String, notes: &[String]) -> std::fmt::Result {
        let Self {
            machine,
            dram_bytes,
            n_channels,
            ..
        } = self;
        writeln!(
            out,
            ".program version={VERSION} machine={machine:#018x} dram_bytes={dram_bytes} n_channels={n_channels}"
        )?;
        for (index, layer) in self.layers.iter().enumerate() {
            writeln!(
                out,
                ".layer name={} n_macs={} first_channel={} n_channels={} ; {index}",
                quoted(&layer.name),
                layer.n_macs,
                layer.first_channel,
                layer.n_channels
            )?;
        }
        for tensor in &self.tensors {
            writeln!(
                out,
                ".tensor name={} role={} address={} channels={} height={} width={} pixel_bytes={} storage_bits={} signed={}",
                quoted(&tensor.name),
                tensor.role.name(),
                tensor.address,
                tensor.channels,
                tensor.height,
                tensor.width,
                tensor.pixel_bytes,
                tensor.storage_bits,
                u8::from(tensor.signed)
            )?;
        }
        self.write_instructions(out, notes)?;
        if !self.data.is_empty() {
            writeln!(out, ".data")?;
        }
        for (index, line) in self.data.chunks(DATA_LINE).enumerate() {
            write!(out, "{:08x}: ", index * DATA_LINE)?;
            if line == [0; DATA_LINE] {
                out.push_str("zeros");
            } else {
                line.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
            }
            out.push('\n');
        }
        Ok(())
    }

    fn write_instructions(&self, out: &mut String, notes: &[String]) -> std::fmt::Result {
        let mut current = None;
        for (index, instruction) in self.instructions.iter().enumerate() {
            let layer = self.layer_of.get(index).copied();
            if let Some(layer) = layer
                && current != Some(layer)
            {
                writeln!(out, ".at layer={layer}")?;
                current = Some(layer);
            }
            let text = instruction.to_string();
            let (mnemonic, operands) = text.split_once(' ').unwrap_or((&text, ""));
            let line = format!("{index:04}: {mnemonic:<11} {operands}");
            out.push_str(line.trim_end());
            let name = layer.and_then(|layer| self.layers.get(layer as usize));
            let name = name.map(|layer| format!("layer {}", escaped(&layer.name)));
            let note = notes
                .get(index)
                .filter(|note| !note.is_empty())
                .map(|note| escaped(note));
            let comment = name.into_iter().chain(note).collect::<Vec<_>>().join(", ");
            if !comment.is_empty() {
                write!(out, " ; {comment}")?;
            }
            out.push('\n');
        }
        Ok(())
    }
}
