//! Stochastic gradient descent with momentum, `AdamW`, and the learning rate's schedule.
//!
//! Source: Loshchilov and Hutter, ICLR 2019 (`AdamW`) and ICLR 2017 (cosine).
//! Invariant: a step depends on the parameter, its two slots, the gradient and the step's number.

use serde::Serialize;

/// A rule for steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Momentum 0.9; decay is added to the gradient.
    Sgd,
    /// β 0.9 and 0.999; decay is taken from the parameter.
    AdamW,
}

const MOMENTUM: f32 = 0.9;
const BETA: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

/// A learned list of numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) values: Vec<f32>,
    /// Momentum; with `AdamW` the second is that of squares.
    pub(crate) slots: [Vec<f32>; 2],
    /// What `AdamW`'s steps are counted in.
    pub(crate) unit: f32,
    /// The running average of the values.
    pub(crate) average: Vec<f32>,
}

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Decays.
    Weight,
    /// Biases, and a normalization's gamma and beta.
    Bias,
    /// Stays positive.
    Scale,
    /// Running statistics: no gradient.
    Statistic,
}

impl Parameter {
    pub(crate) fn new(name: String, role: Role, values: Vec<f32>) -> Self {
        let n = values.len();
        Self {
            name,
            role,
            average: values.clone(),
            values,
            slots: [vec![0.0; n], vec![0.0; n]],
            unit: 1.0,
        }
    }

    /// Trained weights move in proportion to their size, which folding and the range of the network's
    /// input have made different from layer to layer: a root mean square of 0.1 makes 1.
    pub(crate) fn in_proportion(mut self) -> Self {
        let squares: f64 = self.values.iter().map(|&w| f64::from(w).powi(2)).sum();
        let rms = (squares / self.values.len().max(1) as f64).sqrt();
        if rms > 0.0 {
            self.unit = (10.0 * rms) as f32;
        }
        self
    }

    /// Moves; `step` counts from 1.
    pub(crate) fn step(
        &mut self,
        gradient: &[f32],
        optimizer: Optimizer,
        rate: f64,
        weight_decay: f64,
        step: u64,
    ) {
        let decay = if self.role == Role::Weight {
            weight_decay as f32
        } else {
            0.0
        };
        let rate = rate as f32;
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(step as f64)) as f32;
        let correct = BETA.map(correction);
        let [first, second] = &mut self.slots;
        let slots = first.iter_mut().zip(second);
        for ((value, &g), (m, v)) in self.values.iter_mut().zip(gradient).zip(slots) {
            let before = *value;
            match optimizer {
                Optimizer::Sgd => {
                    *m = MOMENTUM * *m + g + decay * *value;
                    *value -= rate * *m;
                }
                Optimizer::AdamW => {
                    *m += (1.0 - BETA[0]) * (g - *m);
                    *v += (1.0 - BETA[1]) * (g * g - *v);
                    let direction = (*m / correct[0]) / ((*v / correct[1]).sqrt() + EPSILON);
                    // A scale's steps are in proportion to it, as its own gradient's are.
                    let unit = if self.role == Role::Scale {
                        before
                    } else {
                        self.unit
                    };
                    *value -= rate * (unit * direction + decay * *value);
                }
            }
            if self.role == Role::Scale {
                *value = value.max(before * 0.5).min(before * 2.0);
            }
        }
    }
}

impl Parameter {
    /// Takes the values after step `step`, counted from 1, into their average. Until there are
    /// enough, an average of few forgets faster.
    pub(crate) fn remember(&mut self, decay: f64, step: u64) {
        let young = (step + 1) as f64 / (step + 10) as f64;
        let share = (1.0 - decay.min(young)) as f32;
        for (average, value) in self.average.iter_mut().zip(&self.values) {
            *average += share * (value - *average);
        }
    }
}

/// Linear warm-up, then a cosine to 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) peak: f64,
    pub(crate) n_warmup: u64,
    pub(crate) n_steps: u64,
}

impl Schedule {
    /// The rate of the step that follows `done` steps.
    pub(crate) fn rate(self, done: u64) -> f64 {
        if done < self.n_warmup {
            return self.peak * (done + 1) as f64 / self.n_warmup as f64;
        }
        let rest = (self.n_steps - self.n_warmup).max(1) as f64;
        let part = (done - self.n_warmup) as f64 / rest;
        self.peak * 0.5 * (1.0 + (std::f64::consts::PI * part.min(1.0)).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_rises_and_falls() {
        let schedule = Schedule {
            peak: 2.0,
            n_warmup: 4,
            n_steps: 12,
        };
        let rates: Vec<f64> = (0..13).map(|done| schedule.rate(done)).collect();
        assert_eq!(&rates[..5], &[0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!((rates[8] - 1.0).abs() < 1e-12 && rates[12].abs() < 1e-12);
        assert!(rates[4..].windows(2).all(|pair| pair[1] < pair[0]));
    }

    /// Both rules find the minimum of `(x - 3)²`.
    #[test]
    fn both_descend() {
        for optimizer in [Optimizer::Sgd, Optimizer::AdamW] {
            let mut x = Parameter::new("x".into(), Role::Bias, vec![0.0]);
            for step in 1..=400 {
                let gradient = [2.0 * (x.values[0] - 3.0)];
                x.step(&gradient, optimizer, 0.05, 0.0, step);
            }
            assert!(
                (x.values[0] - 3.0).abs() < 1e-2,
                "{optimizer:?}: {}",
                x.values[0]
            );
        }
    }

    #[test]
    fn only_weights_decay() {
        for (role, kept) in [
            (Role::Weight, false),
            (Role::Bias, true),
            (Role::Scale, true),
        ] {
            for optimizer in [Optimizer::Sgd, Optimizer::AdamW] {
                let mut p = Parameter::new("p".into(), role, vec![1.0]);
                p.step(&[0.0], optimizer, 0.1, 0.5, 1);
                assert_eq!(p.values == [1.0], kept);
            }
        }
    }
}
