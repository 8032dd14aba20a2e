//! The stepped and the event model on machines and programs made from seeds: the same cycles, the
//! same memory, the same overflow records, the same faults.
//!
//! `SYSTOLE_PAIRS` sets how many pairs are tried (256 by default).

use accelerator::{
    check_races, event,
    random::{self, Seed},
    stepped,
};
use rayon::prelude::*;

#[test]
fn stepped_and_event_models_agree() {
    let n_pairs = std::env::var("SYSTOLE_PAIRS").map_or(256, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("SYSTOLE_PAIRS = {text}: must be a number"))
    });
    let n_faults: u64 = (0..n_pairs)
        .into_par_iter()
        .map(|pair| u64::from(!agree(pair)))
        .sum();
    assert!(
        n_faults * 2 < n_pairs,
        "most programs should run: {n_faults} of {n_pairs} faulted"
    );
}

/// True when the program ran, false when both models refuse it alike.
fn agree(pair: u64) -> bool {
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
            let overflow = event::execute(&program, &config, &mut fast_dram)
                .unwrap_or_else(|fault| panic!("pair {pair}: {fault}"));
            assert_eq!(slow.overflow, overflow, "pair {pair}");
            let differs = slow_dram.iter().zip(&fast_dram).position(|(a, b)| a != b);
            assert_eq!(differs, None, "pair {pair}: first DRAM byte that differs");
            true
        }
        (Err(slow), Err(fast)) => {
            assert_eq!(slow, fast, "pair {pair}");
            false
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
