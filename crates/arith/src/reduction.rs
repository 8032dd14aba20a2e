//! The order of a reduction: where sums overflow, it is part of the result.
//!
//! Invariant: without overflow every order gives the same sum.

use serde::{Deserialize, Serialize};

/// How the products `0, 1, 2, …` of an output are added up, each add with the accumulator's rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReductionOrder {
    /// One after the other, from the bias (output-stationary arrays, lanes).
    #[default]
    InOrder,
    /// In folds of `n_steps` consecutive products: each fold's are added one after the other, the
    /// first fold's from the bias, the others' from 0; then the folds' sums are added to the first
    /// one after the other (weight- and input-stationary arrays; `n_steps` are the array's rows).
    Folds {
        /// Products of a fold, at least 1; the last may have fewer.
        n_steps: u32,
    },
}
