//! What can be wrong with a training run that a user asks for.
//!
//! Invariant: every message names the place, the value and the limit.

/// A run that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tensors of one image do not fit.
    #[error("the network's tensors have more than {max} elements an image")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// A setting outside its range.
    #[error("{name} is {value}: it must be {needed}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        needed: String,
    },
    /// Images and labels that do not belong to the network or to each other.
    #[error("{0}")]
    Data(String),
    /// A teacher that cannot teach this network.
    #[error("the teacher: {0}")]
    Teacher(String),
    /// The loss is no number any more.
    #[error(
        "step {step}: the loss is {loss}: the learning rate {rate} is too high for this network"
    )]
    Diverged {
        /// Steps done before.
        step: u64,
        /// NaN or infinite.
        loss: f64,
        /// At that step.
        rate: f64,
    },
    /// A checkpoint that is damaged, or of another run.
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    /// Scales or biases that have no integer form.
    #[error(transparent)]
    Quantizer(#[from] quantizer::Error),
    /// The integer network is refused by its verifier.
    #[error(transparent)]
    Network(#[from] network::Error),
}
