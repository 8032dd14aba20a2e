//! `systole run --waves` from outside: what is written, and what is refused.

use crate::common::Workshop;
use std::io::Cursor;

const RUN: &str = "run net.safetensors --data digits_test.npz --json";

/// Cycles that a waveform shows, and its number of signals.
fn look(bytes: Vec<u8>) -> (Vec<u64>, usize) {
    let waveform = wellen::simple::read_from_reader(Cursor::new(bytes)).expect("a waveform");
    // A cycle is 10 units; an FST has a time 0, at which nothing is known before the window.
    let times = waveform.time_table().iter().copied();
    let begins = times.filter(|time| time % 10 == 0 && *time > 0);
    let n_signals = waveform.hierarchy().all_vars().count();
    (begins.map(|time| time / 10).collect(), n_signals)
}

#[test]
fn a_window_of_a_compiled_network_in_both_formats() {
    let shop = Workshop::with_digits();
    let plain = shop.succeed(RUN);
    let report = shop.succeed(&format!("{RUN} --waves a.fst --wave-cycles 100..200"));
    assert!(report == plain, "a waveform changes no report");
    shop.succeed(&format!("{RUN} --waves b.vcd --wave-cycles 100..200"));
    shop.succeed("compile net.safetensors -o program.bin");
    let program = "--program program.bin --waves c.fst --wave-cycles 100..200";
    shop.succeed(&format!("{RUN} {program}"));
    assert!(
        shop.read("a.fst") == shop.read("c.fst"),
        "the same run, the same bytes"
    );
    let (cycles, n_signals) = look(shop.read("a.fst"));
    assert_eq!(cycles, (100..200).collect::<Vec<u64>>());
    // 256 PEs with 13 signals each, and all the rest.
    assert!(n_signals > 3500, "{n_signals}");
    assert_eq!(look(shop.read("b.vcd")), (cycles, n_signals));
    let total = serde_json::from_str::<serde_json::Value>(&plain).expect("JSON")["total_cycles"]
        .as_u64()
        .expect("a number");
    shop.succeed(&format!(
        "{RUN} --waves end.fst --wave-cycles {}..",
        total - 5
    ));
    let (cycles, _) = look(shop.read("end.fst"));
    assert_eq!(cycles, (total - 5..total).collect::<Vec<u64>>());
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let shop = Workshop::with_digits();
    for (flags, parts) in [
        ("--waves w.txt", &["w.txt", ".fst or .vcd"][..]),
        ("--waves w.fst --wave-cycles 7..7", &["from 7 to before 7"]),
        ("--waves w.fst --wave-cycles 7", &["FROM..TO"]),
        (
            "--waves w.fst --wave-cycles 999999..",
            &["begins at cycle 999999", "the run has"],
        ),
        ("--wave-cycles 1..2", &["--waves"]),
        ("--waves w.fst --all", &["--all"]),
        ("--waves missing/w.fst", &["missing/w.fst"]),
    ] {
        shop.refuse(&format!("{RUN} {flags}"), parts);
    }
}
