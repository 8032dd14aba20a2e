//! Learned rounding: for each weight, up or down, so that the layer's output comes closest to the
//! float layer's.
//!
//! Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020:
//! rectified sigmoid, annealed regularizer, asymmetric reconstruction through the activation
//! function. The gradient of the squared error is written out; the bias is fitted beside by damped
//! Newton steps. Constants are relative to what flipping a weight costs, so that no layer's scale
//! matters.
//! Invariant: a minibatch is cut into chunks of fixed size whose sums are added in order, so the
//! number of threads does not show.

use crate::Problem;
use arith::SplitMix64;
use ndarray::{Array1, Array2, Axis, Zip};
use rayon::prelude::*;

/// How long and how hard to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundingSettings {
    /// Steps of the optimizer.
    pub n_steps: usize,
    /// Rows of a minibatch.
    pub batch: usize,
    /// Step size of Adam.
    pub rate: f32,
    /// Weight of the regularizer against the mean cost of a flip.
    pub pull: f32,
    /// Of the minibatches.
    pub seed: u64,
}

impl Default for RoundingSettings {
    fn default() -> Self {
        Self {
            n_steps: 3000,
            batch: 512,
            rate: 0.01,
            pull: 1.0,
            seed: 0,
        }
    }
}

/// Rounded weights and what they are worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// `[channel, step]`.
    pub weights: Array2<i8>,
    /// In units of the sum.
    pub bias: Vec<f32>,
    /// Mean squared error of rounding to nearest, with the given bias.
    pub nearest_error: f64,
    /// Mean squared error of the result.
    pub error: f64,
}

/// Rows whose sums are added by themselves.
const CHUNK: usize = 128;
/// Share of the steps without regularizer.
const WARM_UP: f32 = 0.2;
/// The regularizer's exponent, first and last.
const EXPONENT: [f32; 2] = [20.0, 2.0];
/// The rectified sigmoid's ends (Louizos et al., as in the paper): `h = clamp((ζ-γ)·σ(v) + γ)`.
const STRETCH: [f32; 2] = [-0.1, 1.1];
/// What a weight on a side of the bound that is passed is pushed back with, against the mean cost of
/// a flip.
const PUSH: f32 = 3.0;
/// Damping of the bias's Newton step.
const BIAS_RATE: f32 = 0.05;
/// Full Newton steps for the bias once the weights are fixed.
const BIAS_STEPS: usize = 6;

/// Learns the rounding of `weights` (`[channel, step]`, in units of their scale) to integers from
/// `q_min` to `q_max`, starting with `bias` (in units of the sum).
pub fn learn(
    problem: &Problem,
    weights: &Array2<f32>,
    bias: &[f32],
    [q_min, q_max]: [i8; 2],
    settings: &RoundingSettings,
) -> Rounded {
    let clip = |q: f32| q.max(f32::from(q_min)).min(f32::from(q_max));
    let nearest = weights.mapv(|w| clip(w.round_ties_even()));
    let nearest_error = mean_error(problem, &nearest, bias);
    let guarded = problem.guarantee.map(|g| g.shrunk(weights, bias));
    let start = guarded.as_ref().unwrap_or(weights);
    let mut learner = Learner::new(problem, start, bias, [q_min, q_max], settings);
    for step in 0..settings.n_steps {
        learner.step(step);
    }
    let learned = learner.hard();
    let mut candidates = [(learned, learner.bias), (nearest, bias.to_vec())];
    if let Some(guarantee) = problem.guarantee {
        let gram = problem.gram();
        for (candidate, bias) in &mut candidates {
            guarantee.repair(candidate, weights, bias, &gram);
        }
    }
    let fitted = candidates.map(|(weights, mut bias)| {
        let error = fit_bias(problem, &weights, &mut bias);
        (error, weights, bias)
    });
    let [learned, nearest] = fitted;
    let (error, weights, bias) = if learned.0 <= nearest.0 {
        learned
    } else {
        nearest
    };
    Rounded {
        weights: weights.mapv(|q| q as i8),
        bias,
        nearest_error,
        error,
    }
}

struct Learner<'a> {
    problem: &'a Problem,
    settings: &'a RoundingSettings,
    floor: Array2<f32>,
    limits: [f32; 2],
    /// The rounding's variable, and Adam's two moments.
    v: Array2<f32>,
    moments: [Array2<f32>; 2],
    /// What the floor adds, between 0 and 1.
    h: Array2<f32>,
    bias: Vec<f32>,
    /// Mean cost of a flip, by which the error's gradient is divided.
    flip_cost: f32,
    random: SplitMix64,
}

impl<'a> Learner<'a> {
    fn new(
        problem: &'a Problem,
        weights: &Array2<f32>,
        bias: &[f32],
        [q_min, q_max]: [i8; 2],
        settings: &'a RoundingSettings,
    ) -> Self {
        let floor = weights.mapv(f32::floor);
        let [low, high] = STRETCH;
        let v = Zip::from(weights).and(&floor).map_collect(|&w, &f| {
            let sigma = ((w - f) - low) / (high - low);
            -(1.0 / sigma - 1.0).ln()
        });
        let squares = problem.mean_squares();
        let units: f32 = problem.unit.iter().map(|u| u * u).sum();
        let flip_cost = squares.mean().unwrap_or(0.0) * units / problem.n_channels() as f32;
        let zeros = Array2::zeros(v.raw_dim());
        let mut made = Self {
            problem,
            settings,
            floor,
            limits: [f32::from(q_min), f32::from(q_max)],
            h: zeros.clone(),
            moments: [zeros.clone(), zeros],
            v,
            bias: bias.to_vec(),
            flip_cost: flip_cost.max(f32::MIN_POSITIVE),
            random: SplitMix64(settings.seed),
        };
        made.h = made.v.mapv(|v| rectified(v).0);
        made
    }

    /// The weights as they are in between.
    fn soft(&self) -> Array2<f32> {
        let [low, high] = self.limits;
        Zip::from(&self.floor)
            .and(&self.h)
            .map_collect(|&f, &h| (f + h).max(low).min(high))
    }

    /// The weights when every variable has decided.
    fn hard(&self) -> Array2<f32> {
        let [low, high] = self.limits;
        Zip::from(&self.floor)
            .and(&self.h)
            .map_collect(|&f, &h| (f + if h >= 0.5 { 1.0 } else { 0.0 }).max(low).min(high))
    }

    fn step(&mut self, step: usize) {
        let n = self.problem.n_rows();
        let rows: Vec<usize> = (0..self.settings.batch)
            .map(|_| (self.random.next_u64() % n as u64) as usize)
            .collect();
        let soft = self.soft();
        let chunks: Vec<Gradient> = rows
            .par_chunks(CHUNK)
            .map(|rows| gradient(self.problem, rows, &soft, &self.bias))
            .collect();
        let mut chunks = chunks.into_iter();
        let mut sum = chunks.next().expect("a batch has rows");
        for chunk in chunks {
            sum.weights += &chunk.weights;
            sum.bias += &chunk.bias;
            sum.active += &chunk.active;
        }
        if let Some(guarantee) = self.problem.guarantee {
            let push = PUSH * self.flip_cost * rows.len() as f32;
            guarantee.push_back(&soft, &self.bias, push, &mut sum.weights);
        }
        let scale = 1.0 / (rows.len() as f32 * self.flip_cost);
        self.adam(step, &sum.weights, scale);
        self.bias_step(&sum, rows.len(), BIAS_RATE);
    }

    fn adam(&mut self, step: usize, gradient: &Array2<f32>, scale: f32) {
        let settings = self.settings;
        let progress = step as f32 / settings.n_steps as f32;
        let warm = (progress - WARM_UP) / (1.0 - WARM_UP);
        let pull = if warm < 0.0 { 0.0 } else { settings.pull };
        let exponent = EXPONENT[1] + (EXPONENT[0] - EXPONENT[1]) * (1.0 - warm.max(0.0));
        let n = step as f32 + 1.0;
        let (unbias_1, unbias_2) = (1.0 - 0.9f32.powf(n), 1.0 - 0.999f32.powf(n));
        let [low, high] = self.limits;
        let [m1, m2] = &mut self.moments;
        // h of the last step is still in place: its slope follows from v.
        let slices = (
            self.v.as_slice_mut().expect("standard layout"),
            m1.as_slice_mut().expect("standard layout"),
            m2.as_slice_mut().expect("standard layout"),
            self.h.as_slice_mut().expect("standard layout"),
        );
        let floor = self.floor.as_slice().expect("standard layout");
        let gradient = gradient.as_slice().expect("standard layout");
        slices
            .0
            .par_chunks_mut(4096)
            .zip(slices.1.par_chunks_mut(4096))
            .zip(slices.2.par_chunks_mut(4096))
            .zip(slices.3.par_chunks_mut(4096))
            .zip(floor.par_chunks(4096).zip(gradient.par_chunks(4096)))
            .for_each(|((((v, m1), m2), h), (floor, gradient))| {
                for i in 0..v.len() {
                    let (value, slope) = rectified(v[i]);
                    let q = floor[i] + value;
                    // Outside the format the weight does not move with h.
                    let moves = q >= low && q <= high;
                    let of_error = if moves { gradient[i] * scale } else { 0.0 };
                    let distance = 2.0 * value - 1.0;
                    // d/dh of 1 - |2h - 1|^β
                    let of_pull = if pull > 0.0 {
                        -2.0 * exponent * distance.abs().powf(exponent - 1.0) * distance.signum()
                    } else {
                        0.0
                    };
                    let g = (of_error + pull * of_pull) * slope;
                    m1[i] += 0.1 * (g - m1[i]);
                    m2[i] += 0.001 * (g * g - m2[i]);
                    let move_by = (m1[i] / unbias_1) / ((m2[i] / unbias_2).sqrt() + 1e-12);
                    v[i] -= settings.rate * move_by;
                    h[i] = rectified(v[i]).0;
                }
            });
    }

    fn bias_step(&mut self, sum: &Gradient, n: usize, rate: f32) {
        for (c, bias) in self.bias.iter_mut().enumerate() {
            let active = sum.active[c].max(0.05 * n as f32);
            // Half the derivative over half the curvature, both in units of the sum.
            *bias -= rate * sum.bias[c] / (2.0 * active * self.problem.unit[c].powi(2));
        }
    }
}

/// The rectified sigmoid and its derivative.
fn rectified(v: f32) -> (f32, f32) {
    let [low, high] = STRETCH;
    let sigma = 1.0 / (1.0 + (-v).exp());
    let h = sigma * (high - low) + low;
    if h <= 0.0 {
        (0.0, 0.0)
    } else if h >= 1.0 {
        (1.0, 0.0)
    } else {
        (h, sigma * (1.0 - sigma) * (high - low))
    }
}

/// Of the summed squared error of some rows.
struct Gradient {
    /// By weight, in its units.
    weights: Array2<f32>,
    /// By bias, in units of the sum.
    bias: Array1<f32>,
    /// Rows in which the output moves with the sum.
    active: Array1<f32>,
}

fn gradient(problem: &Problem, rows: &[usize], weights: &Array2<f32>, bias: &[f32]) -> Gradient {
    let patches = floats(problem, rows);
    let mut d = problem.sums(&patches, rows, weights, bias);
    let mut active = Array1::zeros(bias.len());
    for (mut d, &row) in d.axis_iter_mut(Axis(0)).zip(rows) {
        let targets = problem.targets.row(row);
        for (c, d) in d.iter_mut().enumerate() {
            let slope = problem.derivative(*d);
            active[c] += slope;
            *d = 2.0 * (problem.activate(*d) - targets[c]) * slope * problem.unit[c];
        }
    }
    Gradient {
        weights: d.t().dot(&patches),
        bias: d.sum_axis(Axis(0)),
        active,
    }
}

fn floats(problem: &Problem, rows: &[usize]) -> Array2<f32> {
    let mut patches = Array2::zeros((rows.len(), problem.patches.ncols()));
    for (mut to, &row) in patches.axis_iter_mut(Axis(0)).zip(rows) {
        to.zip_mut_with(&problem.patches.row(row), |to, &q| *to = f32::from(q));
    }
    patches
}

/// The bias that takes back each channel's mean error, and the mean squared error with it.
fn fit_bias(problem: &Problem, weights: &Array2<f32>, bias: &mut [f32]) -> f64 {
    if let Some(guarantee) = problem.guarantee {
        guarantee.clamp_bias(weights, bias);
    }
    let mut best = (mean_error(problem, weights, bias), bias.to_vec());
    for _ in 0..BIAS_STEPS {
        let n = problem.n_rows();
        let rows: Vec<usize> = (0..n).collect();
        let sums: Vec<[Array1<f32>; 2]> = rows
            .par_chunks(CHUNK * 8)
            .map(|rows| residuals(problem, rows, weights, bias))
            .collect();
        let mut total = [Array1::<f64>::zeros(bias.len()), Array1::zeros(bias.len())];
        for sums in &sums {
            for (total, sum) in total.iter_mut().zip(sums) {
                total.zip_mut_with(sum, |t, &s| *t += f64::from(s));
            }
        }
        for (c, bias) in bias.iter_mut().enumerate() {
            let active = total[1][c].max(0.02 * n as f64);
            *bias -= (total[0][c] / active) as f32 / problem.unit[c];
        }
        if let Some(guarantee) = problem.guarantee {
            guarantee.clamp_bias(weights, bias);
        }
        let error = mean_error(problem, weights, bias);
        if error < best.0 {
            best = (error, bias.to_vec());
        }
    }
    bias.copy_from_slice(&best.1);
    best.0
}

/// Sums over rows of the errors that move with the bias, and how many do.
fn residuals(
    problem: &Problem,
    rows: &[usize],
    weights: &Array2<f32>,
    bias: &[f32],
) -> [Array1<f32>; 2] {
    let patches = floats(problem, rows);
    let z = problem.sums(&patches, rows, weights, bias);
    let mut sums = [Array1::zeros(bias.len()), Array1::zeros(bias.len())];
    for (z, &row) in z.axis_iter(Axis(0)).zip(rows) {
        for (c, &z) in z.iter().enumerate() {
            let slope = problem.derivative(z);
            sums[0][c] += (problem.activate(z) - problem.targets[[row, c]]) * slope;
            sums[1][c] += slope;
        }
    }
    sums
}

/// Mean over rows of the squared error summed over channels.
pub(crate) fn mean_error(problem: &Problem, weights: &Array2<f32>, bias: &[f32]) -> f64 {
    let rows: Vec<usize> = (0..problem.n_rows()).collect();
    let sums: Vec<f64> = rows
        .par_chunks(CHUNK * 8)
        .map(|rows| {
            let patches = floats(problem, rows);
            let z = problem.sums(&patches, rows, weights, bias);
            let mut sum = 0.0;
            for (z, &row) in z.axis_iter(Axis(0)).zip(rows) {
                for (&z, &target) in z.iter().zip(problem.targets.row(row)) {
                    sum += f64::from(problem.activate(z) - target).powi(2);
                }
            }
            sum
        })
        .collect();
    sums.iter().sum::<f64>() / rows.len() as f64
}
