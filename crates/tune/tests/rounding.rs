//! Learned rounding on layers from a seed: better than rounding to nearest, near the best rounding
//! where all can be tried, the same on any number of threads.

use arith::SplitMix64;
use ndarray::Array2;
use tune::{Problem, RoundingSettings, learn};

/// A number from -1 to 1.
fn uniform(random: &mut SplitMix64) -> f32 {
    random.between(-1_000_000, 1_000_000) as f32 / 1e6
}

/// A layer whose inputs are correlated, as real ones are, and its float weights in units of their
/// scale.
fn layer(
    seed: u64,
    [rows, steps, channels]: [usize; 3],
    with_addition: bool,
) -> (Problem, Array2<f32>, Vec<f32>) {
    let mut random = SplitMix64(seed);
    let weights = Array2::from_shape_simple_fn((channels, steps), || uniform(&mut random) * 3.0);
    let patches = Array2::from_shape_simple_fn((rows, steps), || 0i16);
    let mut patches = patches;
    for mut row in patches.rows_mut() {
        let common = random.between(0, 9) as i16;
        for q in &mut row {
            *q = (common + random.between(-4, 6) as i16).clamp(0, 15);
        }
    }
    let unit: Vec<f32> = (0..channels).map(|c| 0.01 + 0.002 * c as f32).collect();
    let added = with_addition
        .then(|| Array2::from_shape_simple_fn((rows, channels), || uniform(&mut random)));
    let bias: Vec<f32> = (0..channels).map(|_| uniform(&mut random) * 40.0).collect();
    let mut problem = Problem {
        targets: Array2::zeros((rows, channels)),
        patches,
        unit,
        added,
        low: 0.0,
        high: 2.0,
        slope: 1.0,
        guarantee: None,
    };
    problem.targets = problem.outputs(&weights, &bias);
    (problem, weights, bias)
}

fn error(problem: &Problem, weights: &Array2<f32>, bias: &[f32]) -> f64 {
    let outputs = problem.outputs(weights, bias);
    let squares = (&outputs - &problem.targets).mapv(|e| f64::from(e).powi(2));
    squares.sum() / problem.n_rows() as f64
}

fn settings(n_steps: usize) -> RoundingSettings {
    RoundingSettings {
        n_steps,
        batch: 256,
        ..RoundingSettings::default()
    }
}

#[test]
fn learned_rounding_beats_nearest_by_far() {
    for (seed, with_addition) in [(1, false), (2, true)] {
        let (problem, weights, bias) = layer(seed, [3000, 27, 6], with_addition);
        let fit = learn(&problem, &weights, &bias, [-8, 7], &settings(1200));
        let nearest = weights.mapv(f32::round_ties_even);
        let of_nearest = error(&problem, &nearest, &bias);
        assert!((fit.nearest_error - of_nearest).abs() <= 1e-6 * of_nearest);
        let learned = error(&problem, &fit.weights.mapv(f32::from), &fit.bias);
        assert!(
            (fit.error - learned).abs() <= 1e-6 * learned,
            "what is reported is what the weights do"
        );
        assert!(learned < 0.5 * of_nearest, "{learned} against {of_nearest}");
        for (q, w) in fit.weights.iter().zip(&weights) {
            assert!((f32::from(*q) - w).abs() < 1.0, "{w} became {q}");
        }
    }
}

#[test]
fn near_the_best_of_all_roundings() {
    let (problem, weights, bias) = layer(7, [400, 8, 1], false);
    let best = (0..1u32 << 8)
        .map(|bits| {
            let mut rounded = weights.mapv(f32::floor);
            for (step, q) in rounded.iter_mut().enumerate() {
                *q += f32::from(u8::from(bits >> step & 1 == 1));
            }
            error(&problem, &rounded, &bias)
        })
        .fold(f64::INFINITY, f64::min);
    let fit = learn(&problem, &weights, &bias, [-8, 7], &settings(1500));
    // The bias is free as well, so it may even be better.
    assert!(fit.error <= best * 1.5, "{} against {best}", fit.error);
    assert!(fit.nearest_error > best * 1.5, "nearest is already good");
}

#[test]
fn weights_stay_in_their_format() {
    let (problem, weights, bias) = layer(3, [500, 12, 3], false);
    let fit = learn(&problem, &(weights * 2.0), &bias, [-2, 1], &settings(200));
    assert!(fit.weights.iter().all(|q| (-2..=1).contains(q)));
}

#[test]
fn never_worse_than_nearest() {
    let (problem, weights, bias) = layer(4, [500, 12, 3], true);
    for n_steps in [0, 1, 10] {
        let fit = learn(&problem, &weights, &bias, [-8, 7], &settings(n_steps));
        assert!(fit.error <= fit.nearest_error, "{n_steps} steps");
    }
}

#[test]
fn threads_do_not_show() {
    let (problem, weights, bias) = layer(5, [1000, 20, 40], true);
    let on = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
        let pool = pool.build().expect("threads");
        pool.install(|| learn(&problem, &weights, &bias, [-8, 7], &settings(100)))
    };
    assert_eq!(on(1), on(3));
}
