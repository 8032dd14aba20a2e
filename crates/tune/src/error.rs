//! What can go wrong: what the quantizer or the engine refuses, and budgets that
//! nothing meets.
//!
//! Invariant: messages are those of the crate that refused, and say numbers.

/// An error of a search.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer has no integer form under what was chosen.
    #[error(transparent)]
    Quantize(#[from] quantizer::Error),
    /// The engine refuses the integer network.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// Nothing meets a budget.
    #[error("the budget cannot be met: {0}")]
    Budget(String),
}
