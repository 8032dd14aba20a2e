//! Machine files: what is accepted, and what a mistake is answered with.

use accelerator::Config;
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
            "line 18, column 1: unknown field `lane`, expected `lanes` or `rounding`; did you mean `lanes`?"
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
        &expect!["line 33, column 19: bytes_per_cycle = 12: must be a power of two"],
    );
}

#[test]
fn burst_below_bus() {
    check_error(
        "burst_bytes = 64",
        "burst_bytes = 8",
        &expect!["line 34, column 15: burst_bytes = 8: must be 16 to 65536"],
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
