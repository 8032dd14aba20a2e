//! What can go wrong: only what the quantizer or the engine refuses.
//!
//! Invariant: messages are those of the crate that refused.

/// An error of a search.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer has no integer form under what was chosen.
    #[error(transparent)]
    Quantize(#[from] quantizer::Error),
    /// The engine refuses the integer network.
    #[error(transparent)]
    Network(#[from] network::Error),
}
