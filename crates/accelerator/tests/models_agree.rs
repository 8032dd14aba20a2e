//! The stepped and the event model on machines and programs made from seeds: the same cycles, the
//! same memory, the same overflow records, the same faults. The stepped model twice: as it runs, and when
//! somebody looks at every register.
//!
//! `SYSTOLE_PAIRS` sets how many pairs are tried (256 by default).

use accelerator::{
    Config, Counts, Timing, check_races, count_actions, event,
    random::{self, Seed},
    stepped,
};
use arith::ChannelOverflow;
use isa::{Op, Program};
use rayon::prelude::*;

#[test]
fn stepped_and_event_models_agree() {
    let n_pairs = std::env::var("SYSTOLE_PAIRS").map_or(256, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("SYSTOLE_PAIRS = {text}: must be a number"))
    });
    let seen = (0..n_pairs)
        .into_par_iter()
        .map(agree)
        .reduce(Seen::default, |a, b| a.plus(&b));
    assert!(
        seen.faults * 2 < n_pairs,
        "most programs should run: {} of {n_pairs} faulted",
        seen.faults
    );
    for (what, n) in [
        ("output-stationary programs", seen.programs[0]),
        ("weight-stationary programs", seen.programs[1]),
        ("input-stationary programs", seen.programs[2]),
        ("preloads while a stream is read", seen.preloads_ahead),
        (
            "streams that add to overflowing sums",
            seen.overflowing_streams,
        ),
    ] {
        assert!(n * 16 > n_pairs, "hardly any {what}: {n}");
    }
}

/// What the programs showed.
#[derive(Default)]
struct Seen {
    faults: u64,
    programs: [u64; 3],
    preloads_ahead: u64,
    overflowing_streams: u64,
}

impl Seen {
    fn plus(self, other: &Self) -> Self {
        Self {
            faults: self.faults + other.faults,
            programs: std::array::from_fn(|i| self.programs[i] + other.programs[i]),
            preloads_ahead: self.preloads_ahead + other.preloads_ahead,
            overflowing_streams: self.overflowing_streams + other.overflowing_streams,
        }
    }

    fn of(
        program: &Program,
        config: &Config,
        timing: &Timing,
        overflow: &[ChannelOverflow],
    ) -> Self {
        let mut seen = Self::default();
        seen.programs[config.dataflow as usize] = 1;
        let n_overflowed: u64 = overflow.iter().map(|channel| channel.n_overflowed).sum();
        let mut end_of_reading = 0;
        for (index, instruction) in program.instructions.iter().enumerate() {
            match instruction.op {
                Op::Stream(stream) => {
                    end_of_reading = timing.end[index] - u64::from(config.rows + config.cols);
                    let adds = stream.accumulate == 1 && stream.last == 1;
                    seen.overflowing_streams += u64::from(adds && n_overflowed > 0);
                }
                Op::Preload(_) => {
                    seen.preloads_ahead += u64::from(timing.start[index] < end_of_reading);
                }
                _ => {}
            }
        }
        seen
    }
}

/// Runs a program; both models may refuse it, but alike.
fn agree(pair: u64) -> Seen {
    let mut seed = Seed::new(pair.wrapping_mul(0x2545_F491_4F6C_DD1D));
    let config = random::machine(&mut seed);
    let length = seed.pick(2, 120) as usize;
    let program = random::program(&mut seed, &config, length);
    let image = |program: &isa::Program| {
        let mut dram = program.data.clone();
        dram.resize(program.dram_bytes as usize, 0);
        dram
    };
    let (mut slow_dram, mut fast_dram) = (image(&program), image(&program));
    let slow = stepped::run(&program, &config, &mut slow_dram);
    let mut watched_dram = image(&program);
    let watched = stepped::run_watched(&program, &config, &mut watched_dram, 0..0, &mut Nobody);
    assert!(slow == watched, "pair {pair}: watched");
    assert!(slow_dram == watched_dram, "pair {pair}: DRAM, watched");
    let timing = event::time(&program, &config);
    match (slow, timing) {
        (Ok(slow), Ok(timing)) => {
            check_races(&program, &config, &timing)
                .unwrap_or_else(|race| panic!("pair {pair}: {race}"));
            for index in 0..program.instructions.len() {
                let of = |t: &accelerator::Timing| (t.issue[index], t.start[index], t.end[index]);
                let op = &program.instructions[index];
                assert_eq!(
                    of(&slow.timing),
                    of(&timing),
                    "pair {pair}, {index}: {op:?}"
                );
            }
            assert_eq!(slow.timing, timing, "pair {pair}");
            let counted: Counts = count_actions(&program, &config)
                .unwrap_or_else(|fault| panic!("pair {pair}: {fault}"))
                .into_iter()
                .sum();
            assert_eq!(slow.actions, counted, "pair {pair}: actions");
            let overflow = event::execute(&program, &config, &mut fast_dram)
                .unwrap_or_else(|fault| panic!("pair {pair}: {fault}"));
            assert_eq!(slow.overflow, overflow, "pair {pair}");
            let differs = slow_dram.iter().zip(&fast_dram).position(|(a, b)| a != b);
            assert_eq!(differs, None, "pair {pair}: first DRAM byte that differs");
            let mut dram = image(&program);
            let counts = event::Plan::new(&program, &config)
                .and_then(|plan| plan.execute(&mut dram, event::Detail::Counts))
                .unwrap_or_else(|fault| panic!("pair {pair}: {fault}"));
            assert!(dram == slow_dram, "pair {pair}: DRAM, without extremes");
            let events = |channels: &[ChannelOverflow]| -> Vec<_> {
                let each = channels.iter();
                each.map(|c| (c.n_overflowed, c.n_outputs_touched, c.first_k))
                    .collect()
            };
            assert_eq!(
                events(&counts),
                events(&overflow),
                "pair {pair}: without extremes"
            );
            Seen::of(&program, &config, &timing, &overflow)
        }
        (Err(slow), Err(fast)) => {
            assert_eq!(slow, fast, "pair {pair}");
            Seen {
                faults: 1,
                ..Seen::default()
            }
        }
        (slow, fast) => {
            panic!(
                "pair {pair}: stepped {:?}, event {:?}",
                slow.map(|_| ()),
                fast.map(|_| ())
            )
        }
    }
}

/// Looks, and sees nothing.
struct Nobody;

impl stepped::Observer for Nobody {
    fn signals(&mut self, _: &[stepped::Signal]) {}
    fn cycle(&mut self, _: u64, _: &[stepped::Value]) {}
}
