//! The reader of recorded runs: what it takes back, and what it refuses.

use cosim::{Observed, Outcome, Stop, StopKind, Trace, machines, programs};
use expect_test::{Expect, expect};
use proptest::prelude::*;

/// A short recording, made up.
fn text() -> String {
    let config = &machines()[0];
    let program = programs::random(config, 1, 3);
    let n = program.instructions.len() as u64;
    let run = Observed {
        total: 90,
        cycles: (0..n).map(|i| (i, i + 1, i + 20)).collect(),
        overflow: (0..program.n_channels)
            .map(|c| arith::ChannelOverflow {
                n_overflowed: c.into(),
                first_k: (c > 0).then_some(c),
                ..arith::ChannelOverflow::default()
            })
            .collect(),
        dram: vec![3; program.dram_bytes as usize],
    };
    Trace::to_text(config, &program, &Outcome::Finished(run)).expect("a legal program")
}

#[test]
fn what_is_written_is_read_back() {
    let text = text();
    let trace = Trace::from_text(&text).expect("as written");
    assert_eq!(trace.config, machines()[0]);
    let program = programs::random(&machines()[0], 1, 3);
    assert_eq!(trace.program.instructions, program.instructions);
    assert_eq!(trace.dram(), cosim::image(&program));
    assert_eq!(
        trace.dram_hash,
        xxhash_rust::xxh3::xxh3_64(&[3; 4096]),
        "of the whole image"
    );
    let Outcome::Finished(run) = trace.outcome else {
        panic!("a finished run");
    };
    assert_eq!((run.total, run.cycles[1]), (90, (1, 2, 21)));
    assert_eq!(run.overflow[0].first_k, None);
    assert_eq!(run.overflow[2].first_k, Some(2));

    let stop = Outcome::Stopped(Stop {
        index: 2,
        kind: StopKind::TokenOverflow,
    });
    let text = Trace::to_text(&trace.config, &program, &stop).expect("a legal program");
    assert_eq!(Trace::from_text(&text).expect("as written").outcome, stop);
}

/// What is said about the recording with `from` replaced by `to`.
fn check(from: &str, to: &str, expected: &Expect) {
    let text = text();
    assert!(text.contains(from), "{from:?} stands in the recording");
    let error = Trace::from_text(&text.replacen(from, to, 1)).expect_err(to);
    expected.assert_eq(&error.to_string());
}

#[test]
fn damaged_recordings_are_refused() {
    check("trace 1", "trace 2", &expect!["trace line 1: not a trace"]);
    check(
        "rows = 4",
        "rows = 0",
        &expect!["trace line 7: rows = 0: must be 1 to 256"],
    );
    check("\n.\n", "\n", &expect!["trace line 1: not a trace"]);
    check(
        "dram_bytes 4096",
        "dram_bytes",
        &expect!["trace line 32: it ends too early: dram_bytes"],
    );
    // More than the machine has; and so much that reading it would exhaust this computer's memory.
    check(
        "dram_bytes 4096",
        "dram_bytes 65537",
        &expect!["trace line 126: dram_bytes is more than the machine or a trace may have"],
    );
    check(
        "dram_bytes 4096",
        "dram_bytes 18446744073709551615",
        &expect!["trace line 126: dram_bytes is more than the machine or a trace may have"],
    );
    check(
        "dram_bytes 4096",
        "dram_bytes -1",
        &expect!["trace line 32: not a number in range: dram_bytes -1"],
    );
    check(
        "dram_bytes 4096",
        "dram_bytes 64",
        &expect!["trace line 126: more data than dram_bytes"],
    );
    check(
        "dram_bytes 4096",
        "dram_bytes 4096\ndram_bytes 4096",
        &expect!["trace line 33: it stands here a second time: dram_bytes 4096"],
    );
    check(
        "channels 24",
        "channels 4294967320",
        &expect!["trace line 126: more channels than a trace may have"],
    );
    check(
        "channels 24",
        "channels 25",
        &expect!["trace line 126: channels and channel lines differ in number"],
    );
    check(
        "instruction 02",
        "instruction 0",
        &expect![
            "trace line 34: not 32 hexadecimal digits: instruction 080000000000000000100c000000000 0 1 20"
        ],
    );
    check(
        "instruction 02",
        "instruction zz",
        &expect![
            "trace line 34: not 32 hexadecimal digits: instruction zz80000000000000000100c000000000 0 1 20"
        ],
    );
    check(
        "instruction 02",
        "instruction 3f",
        &expect![
            "trace line 34: not an instruction of the machine: instruction 3f80000000000000000100c000000000 0 1 20"
        ],
    );
    check(
        "0 1 20",
        "0 1",
        &expect![
            "trace line 34: it ends too early: instruction 0280000000000000000100c000000000 0 1"
        ],
    );
    check(
        "0 1 20",
        "",
        &expect!["trace line 126: an instruction without cycles"],
    );
    check(
        "0 1 20",
        "0 1 20 3",
        &expect![
            "trace line 34: something stands behind its end: instruction 0280000000000000000100c000000000 0 1 20 3"
        ],
    );
    check(
        "data ",
        "data é",
        &expect![
            "trace line 37: not pairs of hexadecimal digits: data éd7ff00d816000000a4ff08d412000000130000a117000000400000"
        ],
    );
    check(
        "data ",
        "dat ",
        &expect![
            "trace line 37: not a line of a trace: dat d7ff00d816000000a4ff08d412000000130000a11700000040000080"
        ],
    );
    check(
        "channel 0 0 -",
        "channel 0 0 x",
        &expect![
            "trace line 101: not a step: channel 0 0 x 9223372036854775807 -9223372036854775808"
        ],
    );
    check("total 90\n", "", &expect!["trace line 125: no total"]);
    check(
        "total 90\n",
        "total 90\nstopped deadlock 1\n",
        &expect!["trace line 127: a stopped run has no cycles and no end"],
    );
    check(
        "total 90\n",
        "stopped timeout 1\n",
        &expect!["trace line 125: not a reason to stop: stopped timeout 1"],
    );
    check(
        "dram_after ",
        "dram_after x",
        &expect!["trace line 126: not a hash: dram_after x82704892cc9ed108"],
    );
}

proptest! {
    /// Whatever is done to a recording: it is refused, or it can be written again.
    #[test]
    fn no_damage_makes_the_reader_panic(
        places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = text().into_bytes();
        for (place, byte) in places {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(text) = String::from_utf8(bytes)
            && let Ok(trace) = Trace::from_text(&text)
        {
            let again = Trace::to_text(&trace.config, &trace.program, &trace.outcome)
                .expect("what was decoded has an encoding");
            prop_assert!(Trace::from_text(&again).is_ok());
        }
    }
}
