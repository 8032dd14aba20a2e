//! Sweeps: many machines and quantizer settings for some networks, one line of CSV a point.
//!
//! `file` reads what is wanted, `point` multiplies it out, `journal` keeps what is done, `evaluate`
//! does it, `accuracy` measures integers against floats, `front` finds the points that no other
//! beats, and `plot` draws them. Invariant: a line depends on its point alone, so neither threads nor
//! a sweep that was killed and went on show in the file.

mod accuracy;
mod evaluate;
mod file;
mod front;
mod journal;
mod plot;
mod point;

pub use accuracy::{Accuracy, float_outputs, measure};
pub use evaluate::{Networks, evaluate, fingerprint};
pub use file::Sweep;
pub use front::{Axis, Placed, fronts};
pub use journal::{Journal, Row};
pub use plot::svg;
pub use point::{Flags, Points, points};

/// Columns of the results: the network, what the points set, and what they are worth.
pub fn columns(points: &Points) -> Vec<String> {
    let worth = evaluate::COLUMNS.map(str::to_owned);
    let network = std::iter::once("network".to_owned());
    network
        .chain(points.columns.iter().cloned())
        .chain(worth)
        .collect()
}
