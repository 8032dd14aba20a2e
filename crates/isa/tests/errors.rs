//! What users read when an instruction, a program or a text is wrong.

#![expect(
    clippy::needless_pass_by_value,
    reason = "an expectation reads best in place"
)]

use expect_test::{Expect, expect};
use isa::{
    Fence, Input, Instruction, LayerInfo, Load, Matmul, Op, Placement, Program, Requantize, Role,
    Slope, Unit, Units, check_tokens,
};

fn check_encode(op: impl Into<Op>, wait: u8, signal: u8, expected: Expect) {
    let (wait, signal) = (Units::from_bits(wait), Units::from_bits(signal));
    let error = Instruction {
        op: op.into(),
        wait,
        signal,
    }
    .encode()
    .expect_err("it is wrong");
    expected.assert_eq(&error.to_string());
}

#[test]
fn instructions_without_encoding() {
    let load = Load {
        n_rows: 1,
        row_bytes: 1,
        ..Load::default()
    };
    check_encode(
        Load {
            row_bytes: 1 << 20,
            ..load
        },
        0,
        0,
        expect!["load: row_bytes = 1048576: must be 1 to 1048575"],
    );
    check_encode(
        Load { n_rows: 0, ..load },
        0,
        0,
        expect!["load: n_rows = 0: must be 1 to 65535"],
    );
    check_encode(
        Load { memory: 3, ..load },
        0,
        0,
        expect!["load: memory = 3: must be 0 to 2"],
    );
    check_encode(load, 1, 0, expect!["load: wait names its own unit, load"]);
    check_encode(load, 0, 3, expect!["load: signal names its own unit, load"]);
    check_encode(
        Fence {},
        2,
        0,
        expect!["fence: wait names array, but it cannot take or give tokens"],
    );
    check_encode(
        Fence {},
        0,
        12,
        expect!["fence: signal names post,store, but it cannot take or give tokens"],
    );
    check_encode(
        Slope::default(),
        0,
        1,
        expect!["slope: signal names load, but only instructions that move or compute data may"],
    );
}

fn check_decode(bits: u128, expected: Expect) {
    let error = Instruction::decode(&bits.to_le_bytes()).expect_err("it is wrong");
    expected.assert_eq(&error.to_string());
}

#[test]
fn bytes_that_are_no_instruction() {
    check_decode(62, expect!["unknown opcode 62"]);
    check_decode(63, expect!["unknown opcode 63"]);
    check_decode(
        1 << 14,
        expect!["fence: bits 14 to 127 are reserved and must be 0"],
    );
    check_decode(
        0b1100 | 1 << 127,
        expect!["slope: bits 26 to 127 are reserved and must be 0"],
    );
    check_decode(
        1 << 6,
        expect!["fence: wait names load, but it cannot take or give tokens"],
    );
    check_decode(
        0b1100 | 1 << 8,
        expect!["slope: wait names its own unit, post"],
    );
}

/// A program of two instructions that passes.
fn small() -> Program {
    let input = Input {
        n_channels: 1,
        ..Input::default()
    };
    let matmul = Matmul {
        n_steps: 1,
        ..Matmul::default()
    };
    Program {
        dram_bytes: 100,
        n_channels: 4,
        instructions: vec![Instruction::new(input), Instruction::new(matmul)],
        layers: vec![LayerInfo {
            name: "conv1".into(),
            n_channels: 4,
            ..LayerInfo::default()
        }],
        layer_of: vec![0, 0],
        tensors: vec![Placement {
            name: "x".into(),
            role: Role::Input,
            address: 0,
            channels: 3,
            height: 5,
            width: 5,
            pixel_bytes: 4,
            storage_bits: 8,
            signed: false,
        }],
        ..Program::default()
    }
}

fn check_program(change: impl FnOnce(&mut Program), expected: Expect) {
    let mut program = small();
    assert_eq!(program.check(), Ok(()));
    change(&mut program);
    let error = program.to_bytes().expect_err("it is wrong");
    assert_eq!(program.check(), Err(error.clone()));
    expected.assert_eq(&error.to_string());
}

#[test]
fn programs_whose_parts_do_not_fit() {
    check_program(
        |p| p.layer_of = vec![0, 1],
        expect!["instruction 1: layer is 1: must be 0 to 0"],
    );
    check_program(
        |p| p.layer_of = vec![0],
        expect!["1 instructions have a layer, but there are 2"],
    );
    check_program(
        |p| p.n_channels = 3,
        expect![[r#"layer "conv1": end of the overflow counters is 4: must be 0 to 3"#]],
    );
    check_program(
        |p| p.n_channels = u32::MAX,
        expect!["n_channels is 4294967295: must be 0 to 1048831"],
    );
    check_program(
        |p| p.data = vec![1; 101],
        expect!["dram_bytes is 100: must be 101 to 4294967296"],
    );
    check_program(
        |p| p.tensors[0].address = 1,
        expect![[r#"tensor "x": end in DRAM is 101: must be 0 to 100"#]],
    );
    check_program(
        |p| p.tensors[0].height = 0,
        expect![[r#"tensor "x": height is 0: must be 1 to 4294967295"#]],
    );
    check_program(
        |p| p.tensors[0].pixel_bytes = 2,
        expect![[r#"tensor "x": pixel_bytes is 2: must be 3 to 4294967295"#]],
    );
    check_program(
        |p| p.tensors[0].storage_bits = 5,
        expect![[r#"tensor "x": storage_bits (4, 8 or 16) is 5: must be 4 to 16"#]],
    );
    check_program(
        |p| p.instructions[1] = Instruction::new(Matmul::default()),
        expect!["instruction 1: matmul: n_steps = 0: must be 1 to 65535"],
    );
}

#[test]
fn files_that_are_no_program() {
    let check = |bytes: &[u8], expected: Expect| {
        let error = Program::from_bytes(bytes).expect_err("it is wrong");
        expected.assert_eq(&error.to_string());
    };
    check(
        b"",
        expect!["not a systole program: it does not begin with the magic bytes"],
    );
    check(
        b"PK\x03\x04.......",
        expect!["not a systole program: it does not begin with the magic bytes"],
    );
    check(
        b"SYSTOLE\0",
        expect!["program ends within its header: 4 bytes needed, 0 left"],
    );
    check(
        b"SYSTOLE\0\x02\0\0\0",
        expect!["program format 2 is not supported, only 1"],
    );
    let mut bytes = small().to_bytes().expect("a valid program");
    bytes[100] ^= 1;
    check(
        &bytes,
        expect![
            "corrupted program: checksum is 0x17d689657cce06d8, the header says 0x6393e995407ffd0b"
        ],
    );
}

const HEAD: &str = ".program version=1 machine=0x1 dram_bytes=100 n_channels=4\n\
                    .layer name=\"conv1\" n_macs=9 first_channel=0 n_channels=4\n\
                    .at layer=0\n";

fn check_text(line: &str, expected: Expect) {
    let error = Program::from_text(&format!("{HEAD}{line}\n")).expect_err("it is wrong");
    expected.assert_eq(&error.to_string());
}

#[test]
fn lines_that_are_no_statement() {
    assert_eq!(
        Program::from_text(HEAD)
            .expect("a valid program")
            .n_channels,
        4
    );
    check_text(
        "0000: matmull y=0",
        expect!["line 4: unknown instruction matmull; did you mean matmul?"],
    );
    check_text(
        "frobnicate",
        expect!["line 4: unknown instruction frobnicate"],
    );
    check_text(
        "slope mantisa=1 shift=0",
        expect!["line 4: unknown field mantisa; did you mean mantissa?"],
    );
    check_text(
        "slope mantissa=1",
        expect!["line 4: slope: shift is missing"],
    );
    check_text(
        "slope mantissa=1 shift=0 shift=1",
        expect!["line 4: slope: shift is given twice"],
    );
    check_text(
        "slope mantissa=256 shift=0",
        expect!["line 4: slope: mantissa = 256: must be 0 to 255"],
    );
    check_text(
        "slope mantissa=-1 shift=0",
        expect!["line 4: slope: mantissa = -1: must be 0 to 255"],
    );
    check_text(
        "slope mantissa=x shift=0",
        expect!["line 4: mantissa = x: must be a whole number, 0 to 255"],
    );
    check_text(
        "slope mantissa shift=0",
        expect!["line 4: mantissa: expected key=value"],
    );
    check_text(
        "slope mantissa=1 shift=0 wait=lod",
        expect!["line 4: unknown unit lod; did you mean load?"],
    );
    check_text(
        "slope mantissa=1 shift=0 wait=post",
        expect!["line 4: slope: wait names its own unit, post"],
    );
    check_text(
        "slope mantissa=1 shift=0 signal=array",
        expect![
            "line 4: slope: signal names array, but only instructions that move or compute data may"
        ],
    );
    check_text(
        "fence wait=frontend",
        expect!["line 4: unknown unit frontend"],
    );
    check_text(
        ".at layer=1",
        expect!["line 4: .at: there is no such .layer above (they count from 0)"],
    );
    check_text(
        ".layr name=\"a\"",
        expect!["line 4: unknown directive .layr; did you mean .layer?"],
    );
    check_text(
        ".layer name=\"a",
        expect![[
            r#"line 4: name=\"a: expected a closing quote and only the escapes \", \\ and \u{..}"#
        ]],
    );
    check_text(
        ".layer name=\"\\q\"",
        expect![[
            r#"line 4: name=\"\\q\": expected a closing quote and only the escapes \", \\ and \u{..}"#
        ]],
    );
    check_text(
        ".program version=1",
        expect!["line 4: .program: the first statement, and only the first, must be .program"],
    );
    check_text(
        ".data\n00000000: 00\n00000040: 00",
        expect![
            "line 6: data line 00000040: 00: expected address 00000001, then 1 to 64 bytes in hex or zeros"
        ],
    );
    check_text(
        ".data\n00000000: 0",
        expect![
            "line 5: data line 00000000: 0: expected address 00000000, then 1 to 64 bytes in hex or zeros"
        ],
    );
    check_text(
        ".data\n00000000: 0g",
        expect![
            "line 5: data line 00000000: 0g: expected address 00000000, then 1 to 64 bytes in hex or zeros"
        ],
    );
    check_text(
        ".data\n00000000: zeros\n00000040: zeros",
        expect!["line 6: dram_bytes is 100: must be 128 to 4294967296"],
    );
    check_text(
        &"z".repeat(1000),
        expect!["line 4: unknown instruction zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz…"],
    );
}

#[test]
fn texts_that_are_no_program() {
    let check = |text: &str, expected: Expect| {
        let error = Program::from_text(text).expect_err("it is wrong");
        expected.assert_eq(&error.to_string());
    };
    check("", expect!["line 1: no .program found"]);
    check("; nothing\n\n", expect!["line 2: no .program found"]);
    check(
        "fence\n",
        expect!["line 1: fence: the first statement, and only the first, must be .program"],
    );
    check(
        ".program version=2\n",
        expect!["line 1: program format 2 is not supported, only 1"],
    );
    check(
        ".program version=1 machine=0 dram_bytes=0 n_channels=0\nfence\n",
        expect!["line 2: fence: the first instruction needs an .at above"],
    );
}

#[test]
fn tokens_that_nobody_gives() {
    let load = Instruction {
        signal: Units::NONE.with(Unit::Array),
        ..Instruction::new(Load {
            n_rows: 1,
            row_bytes: 1,
            ..Load::default()
        })
    };
    let matmul = Instruction {
        wait: Units::NONE.with(Unit::Load),
        signal: Units::NONE.with(Unit::Post),
        ..Instruction::new(Matmul {
            n_steps: 1,
            ..Matmul::default()
        })
    };
    let requantize = Instruction {
        wait: Units::NONE.with(Unit::Array),
        ..Instruction::new(Requantize::default())
    };
    assert_eq!(check_tokens(&[load, matmul, requantize]), Ok(()));
    // Who gives may stand behind who takes: the units have queues of their own.
    assert_eq!(check_tokens(&[matmul, load]), Ok(()));
    let error = check_tokens(&[load, matmul, requantize, matmul]).expect_err("one load, two waits");
    expect!["instruction 3 (matmul y=0 x=0 rows_minus_1=0 cols_minus_1=0 weight_line=0 block=0 n_steps=1 first=0 last=0 parameter=0 channel=0 wait=load signal=post): token underflow: array takes token 2 from load, which gives 1"].assert_eq(&error.to_string());
    let error = check_tokens(&[requantize, load]).expect_err("no matmul at all");
    expect!["instruction 0 (requantize block=0 y=0 x=0 rows_minus_1=0 cols_minus_1=0 row=0 parameter=0 channel=0 add_residual=0 use_slope=0 wait=array): token underflow: post takes token 1 from array, which gives 0"].assert_eq(&error.to_string());
}
