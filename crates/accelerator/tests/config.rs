//! Machine files: what is accepted, and what a mistake is answered with.

use accelerator::{Action, Config, EnergyTable, Machine, presets};
use expect_test::{Expect, expect};

const EDGE: &str = include_str!("../../../configs/edge-16x16.toml");

fn check_error(from: &str, to: &str, answer: &Expect) {
    assert!(EDGE.contains(from), "the preset has no {from}");
    let error = Config::from_toml(&EDGE.replace(from, to)).expect_err("a mistake");
    answer.assert_eq(&error.to_string());
}

#[test]
fn the_preset_is_accepted() {
    let config = Config::from_toml(EDGE).expect("the preset");
    assert_eq!((config.rows, config.cols, config.line_bytes()), (16, 16, 8));
    let renamed = EDGE
        .replace("edge-16x16", "other")
        .replace("500_000_000", "1");
    let renamed = Config::from_toml(&renamed).expect("another name");
    assert_eq!(renamed.fingerprint(), config.fingerprint());
    let wider = Config::from_toml(&EDGE.replace("cols = 16", "cols = 17")).expect("17 columns");
    assert_ne!(wider.fingerprint(), config.fingerprint());
}

#[test]
fn unknown_key() {
    check_error(
        "lanes = 16",
        "lane = 16",
        &expect![
            "line 18, column 1: unknown field `lane`, expected one of `lanes`, `rounding`, `depthwise`; did you mean `lanes`?"
        ],
    );
}

#[test]
fn unknown_value() {
    check_error(
        "\"saturate\"",
        "\"saturated\"",
        &expect![
            "line 14, column 12: unknown variant `saturated`, expected `saturate` or `wrap`; did you mean `saturate`?"
        ],
    );
}

#[test]
fn wrong_type() {
    check_error(
        "rows = 16",
        "rows = \"16\"",
        &expect![[r#"line 8, column 8: invalid type: string "16", expected i64"#]],
    );
}

#[test]
fn zero_rows() {
    check_error(
        "rows = 16",
        "rows = 0",
        &expect!["line 8, column 8: rows = 0: must be 1 to 256"],
    );
}

#[test]
fn odd_bus() {
    check_error(
        "bytes_per_cycle = 16",
        "bytes_per_cycle = 12",
        &expect!["line 34, column 19: bytes_per_cycle = 12: must be a power of two"],
    );
}

#[test]
fn burst_below_bus() {
    check_error(
        "burst_bytes = 64",
        "burst_bytes = 8",
        &expect!["line 35, column 15: burst_bytes = 8: must be 16 to 65536"],
    );
}

#[test]
fn missing_key() {
    check_error(
        "n_blocks = 2\n",
        "",
        &expect!["line 12, column 1: missing field `n_blocks`"],
    );
}

#[test]
fn not_toml() {
    check_error(
        "[post]",
        "[post",
        &expect!["line 17, column 6: unclosed table, expected `]`"],
    );
}

const WEIGHT_STATIONARY: &str = "[array]
dataflow = \"weight-stationary\"
rows = 9
cols = 16
shadow_operands = true

[accumulator]
block_rows = 100
";

/// The preset as a machine of another dataflow.
fn stationary() -> String {
    let array = EDGE.find("[array]").expect("its array");
    let width = EDGE.find("width_bits").expect("its accumulator");
    format!("{}{WEIGHT_STATIONARY}{}", &EDGE[..array], &EDGE[width..])
}

#[test]
fn stationary_machines() {
    let weights = Config::from_toml(&stationary()).expect("weight-stationary");
    assert_eq!((weights.line_bytes(), weights.block_rows), (8, 100));
    let inputs = stationary().replace("weight-", "input-");
    let inputs = Config::from_toml(&inputs).expect("input-stationary");
    assert_eq!((inputs.line_bytes(), inputs.shadow), (5, true));
    let order = arith::ReductionOrder::Folds { n_steps: 9 };
    assert_eq!(
        [weights.arithmetic.order, inputs.arithmetic.order],
        [order; 2]
    );
    let edge = Config::from_toml(EDGE).expect("the preset");
    assert_eq!(edge.arithmetic.order, arith::ReductionOrder::InOrder);
    assert_eq!(edge.block_rows, edge.rows);
}

#[test]
fn keys_of_another_dataflow() {
    for (from, to, answer) in [
        (
            "\"output-stationary\"",
            "\"weight-stationary\"",
            expect![
                "line 10, column 23: shadow_accumulators is not for weight-stationary machines; theirs is shadow_operands"
            ],
        ),
        (
            "shadow_accumulators = true",
            "shadow_operands = true",
            expect![
                "line 10, column 19: shadow_operands is not for output-stationary machines; theirs is shadow_accumulators"
            ],
        ),
        (
            "shadow_accumulators = true\n",
            "",
            expect!["line 7, column 12: output-stationary machines need array.shadow_accumulators"],
        ),
        (
            "n_blocks = 2",
            "n_blocks = 2\nblock_rows = 16",
            expect![
                "line 16, column 14: block_rows is not for output-stationary machines, whose blocks have as many rows as the array"
            ],
        ),
    ] {
        check_error(from, to, &answer);
    }
    for (from, answer) in [
        (
            "shadow_operands = true\n",
            expect!["line 7, column 12: weight-stationary machines need array.shadow_operands"],
        ),
        (
            "block_rows = 100\n",
            expect!["line 7, column 12: weight-stationary machines need accumulator.block_rows"],
        ),
    ] {
        let error = Config::from_toml(&stationary().replace(from, "")).expect_err("a mistake");
        answer.assert_eq(&error.to_string());
    }
}

fn with_banks(banks: &str) -> Result<accelerator::Banks, String> {
    Config::from_toml(&format!("{EDGE}\n[dram.banks]\n{banks}"))
        .map(|config| config.dram.banks.expect("a table of banks"))
        .map_err(|error| error.to_string())
}

/// 500 MHz: a cycle is 2000 ps.
#[test]
fn memory_clocks_become_cycles() {
    let ddr4 = with_banks("preset = \"ddr4-2400\"").expect("a preset");
    // 17 × 833 ps are 7.08 cycles.
    assert_eq!((ddr4.rcd_cycles, ddr4.rp_cycles, ddr4.cl_cycles), (8, 8, 8));
    // 39, 56 and 421 clocks are 16.2, 23.3 and 175.3 cycles; 9363 are 3899.7, rounded down.
    assert_eq!(
        (ddr4.ras_cycles, ddr4.rc_cycles, ddr4.rfc_cycles),
        (17, 24, 176)
    );
    assert_eq!(ddr4.refi_cycles, 3899);
    // Four clocks for 64 bytes are 1.67 cycles: one access takes 2, three together 5, four 7.
    let data = [64, 192, 256].map(|length| ddr4.data_cycles(0, length));
    assert_eq!(data, [2, 5, 7]);
    assert_eq!(ddr4.data_cycles(60, 8), 4, "two accesses");
    assert_eq!(ddr4.place(8191), (0, 0));
    assert_eq!(ddr4.place(8192 * 17), (1, 1));
    let lpddr4 = with_banks("preset = \"lpddr4-3200\"").expect("a preset");
    assert_eq!((lpddr4.rcd_cycles, lpddr4.cl_cycles), (10, 9));
    assert_eq!((lpddr4.ras_cycles, lpddr4.rc_cycles), (22, 31));
    assert_eq!((lpddr4.refi_cycles, lpddr4.rfc_cycles), (1951, 90));
    let slower = with_banks("preset = \"ddr4-2400\"\nt_cl = 22").expect("a preset, but for a key");
    assert_eq!((slower.cl_cycles, slower.rcd_cycles), (10, 8));
}

#[test]
fn banks_that_cannot_be() {
    let refused = |banks: &str, answer: &Expect| {
        answer.assert_eq(&with_banks(banks).expect_err("a mistake"));
    };
    refused(
        "preset = \"ddr4\"",
        &expect![
            "line 39, column 10: unknown variant `ddr4`, expected `ddr4-2400` or `lpddr4-3200`; did you mean `ddr4-2400`?"
        ],
    );
    refused(
        "n_banks = 8",
        &expect![
            "line 38, column 1: missing field `row_bytes`: without `preset` every key is given"
        ],
    );
    refused(
        "preset = \"ddr4-2400\"\nn_banks = 12",
        &expect!["line 40, column 11: n_banks = 12: must be a power of two"],
    );
    refused(
        "preset = \"ddr4-2400\"\nrow_bytes = 32",
        &expect![
            "line 40, column 13: row_bytes = 32: must be at least dram.burst_bytes, 64, so that a burst has one row"
        ],
    );
    refused(
        "preset = \"ddr4-2400\"\nt_rfc = 20",
        &expect!["line 38, column 1: t_rfc: a refresh must last at least t_rc"],
    );
    refused(
        "preset = \"ddr4-2400\"\nt_refi = 400",
        &expect![
            "line 38, column 1: t_refi: 166 cycles from one refresh to the next leave no time for data after 184 of refresh and 8 to open a row"
        ],
    );
}

#[test]
fn the_clock_counts_only_with_banks() {
    let fingerprint = |clock: &str, banks: &str| {
        let text = format!("{EDGE}\n{banks}").replace("500_000_000", clock);
        Config::from_toml(&text).expect("a machine").fingerprint()
    };
    let banks = "[dram.banks]\npreset = \"ddr4-2400\"";
    assert_eq!(
        fingerprint("500_000_000", ""),
        fingerprint("250_000_000", "")
    );
    assert_ne!(
        fingerprint("500_000_000", banks),
        fingerprint("250_000_000", banks)
    );
}

#[test]
fn presets_are_sound_and_named_as_their_files() {
    for preset in presets::PRESETS {
        let machine = Machine::from_toml(preset.text)
            .unwrap_or_else(|error| panic!("{}: {error}", preset.name));
        assert_eq!(machine.config.name, preset.name);
        assert!(preset.text.starts_with("# "), "{}", preset.name);
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");
    let files = std::fs::read_dir(folder).expect("the presets' folder");
    let n_machines = files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .count();
    assert_eq!(n_machines, presets::PRESETS.len());
}

#[test]
fn inherits_from_a_preset() {
    let edge = Machine::from_toml(EDGE).expect("the preset");
    let same = Machine::from_toml("base = \"edge-16x16\"\n").expect("only a base");
    assert_eq!(same, edge);
    let text = "base = \"edge-16x16\"\nname = \"small\"\n[array]\nrows = 8\n";
    let small = Machine::from_toml(text).expect("a base and changes");
    assert_eq!((small.config.rows, small.config.cols), (8, 16));
    assert_eq!(small.config.name, "small");
    assert_eq!(small.config.dram, edge.config.dram);
}

#[test]
fn mistakes_with_a_base() {
    for (text, answer) in [
        (
            "base = \"edge-16x17\"\n",
            expect![[
                r#"line 1, column 8: base = "edge-16x17": no machine has this name; did you mean "edge-16x16"?"#
            ]],
        ),
        (
            "base = \"nothing\"\n",
            expect![[
                r#"line 1, column 8: base = "nothing": no machine has this name; `systole machines` lists them"#
            ]],
        ),
        (
            "base = 5\n",
            expect!["line 1, column 8: base: must be the name of a machine"],
        ),
        // An inherited value stands where the base stands.
        (
            "\nbase = \"edge-16x16\"\n[dram]\nbytes_per_cycle = 128\n",
            expect!["line 2, column 8: burst_bytes = 64: must be 128 to 65536"],
        ),
        (
            "base = \"edge-16x16\"\n[array]\nrow = 8\n",
            expect![
                "line 3, column 1: unknown field `row`, expected one of `dataflow`, `rows`, `cols`, `shadow_accumulators`, `shadow_operands`; did you mean `rows`?"
            ],
        ),
        (
            "base = \"edge-16x16\"\narray = 5\n",
            expect!["line 2, column 9: invalid type: integer `5`, expected a table"],
        ),
    ] {
        let error = Machine::from_toml(text).expect_err("a mistake");
        answer.assert_eq(&error.to_string());
    }
}

#[test]
fn energy_prices() {
    let edge = Machine::from_toml(EDGE).expect("the preset");
    assert_eq!(edge.energy, EnergyTable::default_for(&edge.config));
    let text =
        format!("{EDGE}\n[energy]\nmultiply_pj = 0.028\ndram_read_pj = 20\ncycle_pj = 1e1\n");
    let dear = Machine::from_toml(&text).expect("prices");
    assert_eq!(dear.energy.actions[Action::Multiply], 28);
    assert_eq!(dear.energy.actions[Action::DramRead], 20_000);
    assert_eq!(dear.energy.cycle, 10_000);
    assert_eq!(
        dear.energy.actions[Action::DramWrite],
        edge.energy.actions[Action::DramWrite]
    );
    // What programs depend on is the same.
    assert_eq!(dear.config, edge.config);
    for (line, answer) in [
        (
            "multiply_pj = -1",
            expect!["line 39, column 15: multiply_pj = -1: must be 0 to 1000000"],
        ),
        (
            "multiply_pj = 0.0001",
            expect!["line 39, column 15: multiply_pj = 0.0001: must have at most three decimals"],
        ),
        (
            "multiply_pj = nan",
            expect!["line 39, column 15: multiply_pj = NaN: must be 0 to 1000000"],
        ),
        (
            "multiplypj = 1",
            expect![
                "line 39, column 1: unknown field `multiplypj`, expected one of `instruction_pj`, `multiply_pj`, `accumulate_pj`, `block_pj`, `activation_read_pj`, `activation_write_pj`, `weight_read_pj`, `weight_write_pj`, `parameter_read_pj`, `parameter_write_pj`, `lane_pj`, `dram_read_pj`, `dram_write_pj`, `cycle_pj`; did you mean `multiply_pj`?"
            ],
        ),
    ] {
        let error =
            Machine::from_toml(&format!("{EDGE}\n[energy]\n{line}\n")).expect_err("a mistake");
        answer.assert_eq(&error.to_string());
    }
}
