//! `rtl/isa_pkg.sv` is the instruction list in `SystemVerilog`: opcodes, units, and a struct for
//! each instruction. It is written from the list, like the tables of `docs/isa.md`.

use expect_test::expect_file;
use isa::{OPS, OpInfo, Unit};
use std::fmt::Write;

const HEADER: &str = "\
// The instruction set: opcodes, the unit of each, and every instruction's fields.
// Written from the list in crates/isa/src/ops.rs: UPDATE_EXPECT=1 cargo test -p cosim --test isa_package
// Opcodes stand in the order of the list; a struct is the whole 128-bit word, its first field the highest bits.
package isa_pkg;
";

/// Words of `SystemVerilog` that are names of fields get an underscore.
fn field_name(name: &str) -> String {
    let is_keyword = [
        "signed",
        "wait",
        "final",
        "first_match",
        "input",
        "output",
        "parameter",
    ]
    .contains(&name);
    format!("{name}{}", if is_keyword { "_" } else { "" })
}

fn bits(width: usize) -> String {
    match width {
        1 => String::new(),
        width => format!("[{}:0] ", width - 1),
    }
}

fn package() -> String {
    let mut text = String::from(HEADER);
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        writeln!(text, "{arguments}").expect("a string takes every write");
    };
    for info in OPS {
        let (name, opcode) = (info.mnemonic.to_uppercase(), info.opcode);
        line(format_args!(
            "  localparam logic [5:0] OP_{name} = {opcode};"
        ));
    }
    line(format_args!(
        "\n  // The unit of an opcode: 0 load, 1 array, 2 post, 3 store.\n  \
         function automatic logic [1:0] unit_of(input logic [5:0] opcode);\n    case (opcode)"
    ));
    for (unit, number) in [(Unit::Load, 0), (Unit::Array, 1), (Unit::Store, 3)] {
        let names: Vec<String> = OPS
            .iter()
            .filter(|info| info.unit == unit)
            .map(|info| format!("OP_{}", info.mnemonic.to_uppercase()))
            .collect();
        line(format_args!(
            "      {}: unit_of = {number};",
            names.join(", ")
        ));
    }
    line(format_args!(
        "      default: unit_of = 2;\n    endcase\n  endfunction"
    ));
    for info in OPS.iter().filter(|info| !info.fields.is_empty()) {
        line(format_args!("\n{}", structure(info)));
    }
    text.push_str("endpackage\n");
    text
}

fn structure(info: &OpInfo) -> String {
    let width: usize = info.fields.iter().map(|field| field.width_bits).sum();
    let mut text = String::from("  typedef struct packed {\n");
    if width < 114 {
        let _ = writeln!(text, "    logic {}unused;", bits(114 - width));
    }
    for field in info.fields.iter().rev() {
        let sign = if field.signed { "signed " } else { "" };
        let (bits, name) = (bits(field.width_bits), field_name(field.name));
        let _ = writeln!(text, "    logic {sign}{bits}{name};");
    }
    let name = info.mnemonic;
    let _ = write!(
        text,
        "    logic [3:0] signal_mask;\n    logic [3:0] wait_mask;\n    logic [5:0] opcode;\n  \
         }} {name}_t;"
    );
    text
}

#[test]
fn package_is_the_list() {
    expect_file!["../rtl/isa_pkg.sv"].assert_eq(&package());
}
