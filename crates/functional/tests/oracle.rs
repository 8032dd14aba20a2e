//! The engine against the oracle: random networks, every arithmetic, every level.

use arith::{AccumulatorFormat, Arithmetic, ChannelOverflow, Overflow, ReductionOrder, Rounding};
use functional::{Detail, Engine, Level, Threads};
use network::{
    TensorId,
    arbitrary::{Limits, random_input, random_network},
    evaluate,
};
use proptest::prelude::*;

fn check(seed: u64, arithmetic: Arithmetic, limits: Limits) {
    let limits = Limits {
        accumulator_bits: arithmetic.accumulator.width_bits,
        ..limits
    };
    let network = random_network(seed, limits);
    let image = random_input(&network, seed);
    let expected = evaluate(&network, arithmetic, &image).expect("a valid network");
    for level in Level::available() {
        let engine = Engine::new(&network, arithmetic, level).expect("a valid network");
        for threads in [Threads::One, Threads::All] {
            let run = engine
                .run(&image, Detail::Extremes, threads)
                .expect("a valid image");
            for (index, expected) in expected.tensors.iter().enumerate() {
                let found = run.tensor(TensorId(index)).to_array();
                assert_eq!(&found, expected, "seed {seed}, {level:?}, tensor {index}");
            }
            assert_eq!(run.overflow, expected.overflow, "seed {seed}, {level:?}");
        }
        let values = engine
            .run(&image, Detail::Values, Threads::One)
            .expect("a valid image");
        for (index, expected) in expected.tensors.iter().enumerate() {
            let found = values.tensor(TensorId(index)).to_array();
            assert_eq!(&found, expected, "seed {seed}, {level:?}, tensor {index}");
        }
        let none = ChannelOverflow::default();
        assert!(values.overflow.iter().flatten().all(|seen| *seen == none));
        // In the memory of another image's run.
        let other = random_input(&network, seed + 1);
        let mut run = engine
            .run(&other, Detail::Events, Threads::One)
            .expect("a valid image");
        engine
            .run_again(&image, Detail::Events, Threads::One, &mut run)
            .expect("a valid image");
        for (index, expected) in expected.tensors.iter().enumerate() {
            let found = run.tensor(TensorId(index)).to_array();
            assert_eq!(&found, expected, "seed {seed}, {level:?}, tensor {index}");
        }
        for (found, expected) in run
            .overflow
            .iter()
            .flatten()
            .zip(expected.overflow.iter().flatten())
        {
            assert_eq!(
                found.n_overflowed, expected.n_overflowed,
                "seed {seed}, {level:?}"
            );
            assert_eq!(
                found.n_outputs_touched, expected.n_outputs_touched,
                "seed {seed}"
            );
            assert_eq!(found.first_k, expected.first_k, "seed {seed}, {level:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SYSTOLE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
    ))]

    /// With `many_channels` more than a register has lanes, half of the convolutions depthwise.
    #[test]
    fn the_engine_equals_the_oracle(
        seed: u64,
        width_bits in 8u8..=32,
        wrap: bool,
        rounding in 0usize..4,
        n_steps in 0u32..24,
        (depthwise_in_order, many_channels) in any::<(bool, bool)>(),
    ) {
        let overflow = if wrap { Overflow::Wrap } else { Overflow::Saturate };
        let order = match n_steps {
            0 => ReductionOrder::InOrder,
            n_steps => ReductionOrder::Folds { n_steps },
        };
        let arithmetic = Arithmetic {
            accumulator: AccumulatorFormat { width_bits, overflow },
            rounding: Rounding::ALL[rounding],
            order,
            depthwise_order: if depthwise_in_order { ReductionOrder::InOrder } else { order },
        };
        let limits = if many_channels {
            Limits {
                max_channels: 75,
                max_extent: 9,
                max_layers: 3,
                depthwise: true,
                ..Limits::default()
            }
        } else {
            Limits::default()
        };
        check(seed, arithmetic, limits);
    }
}
