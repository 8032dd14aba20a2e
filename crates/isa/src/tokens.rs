//! The static half of token checking: no unit waits for a token that nobody will ever give.
//!
//! Invariant: what passes can still deadlock (an order that queues cannot hold, a token given by an
//! instruction that itself waits); only running it tells. What fails cannot run.

use crate::{Instruction, Unit};
use thiserror::Error;

/// A unit takes more tokens from another than that one gives.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "instruction {index} ({text}): token underflow: {to} takes token {pop} from {from}, which gives {n_pushes}"
)]
pub struct TokenError {
    /// The instruction that takes the token.
    pub index: usize,
    /// Its text.
    pub text: String,
    /// Who gives.
    pub from: Unit,
    /// Who takes.
    pub to: Unit,
    /// The token taken, counted from 1.
    pub pop: usize,
    /// Tokens that `from` gives to `to` in the whole program.
    pub n_pushes: usize,
}

/// For each ordered pair of units, the k-th token taken has a k-th token given.
///
/// # Errors
/// The first instruction that takes a token too many.
pub fn check_tokens(instructions: &[Instruction]) -> Result<(), TokenError> {
    // Indexed by giver, then taker; the frontend has neither but keeps the index total.
    let mut n_pushes = [[0_usize; 5]; 5];
    for instruction in instructions {
        for to in instruction.signal.iter() {
            n_pushes[instruction.op.unit().index()][to.index()] += 1;
        }
    }
    let mut n_pops = [[0_usize; 5]; 5];
    for (index, instruction) in instructions.iter().enumerate() {
        let to = instruction.op.unit();
        for from in instruction.wait.iter() {
            let pop = &mut n_pops[from.index()][to.index()];
            *pop += 1;
            let n_pushes = n_pushes[from.index()][to.index()];
            if *pop > n_pushes {
                let text = instruction.to_string();
                return Err(TokenError {
                    index,
                    text,
                    from,
                    to,
                    pop: *pop,
                    n_pushes,
                });
            }
        }
    }
    Ok(())
}
