//! Quantization-aware training on the machine's own arithmetic.
//!
//! ```text
//! FloatNetwork + post-training Network --Trainer::new--> Network, whose integers were in every forward pass
//! FloatNetwork, or its shapes alone    --Trainer::float--> FloatNetwork
//! ```
//!
//! Invariant: the same network, settings and data give the same bytes, on any number of threads and
//! any processor, stopped and resumed or not.

mod backward;
mod batch_statistics;
mod checkpoint;
mod convolution;
mod data;
mod error;
mod float;
mod graph;
mod integer;
mod loss;
mod normalization;
mod novice;
mod optimizer;
mod pass;
mod scales;
mod student;
mod tape;
mod teacher;
#[cfg(test)]
mod tests;
mod trainer;

pub use data::{Augmentation, Data};
pub use error::Error;
pub use loss::Distillation;
pub use optimizer::Optimizer;
pub use student::ScaleRule;
pub use teacher::Lens;
pub use trainer::{Epoch, Settings, Totals, Trainer};
