//! Which accumulators cannot overflow, whatever the input: the proof of `--accumulator-bits`, and
//! without it how many channels happen to be safe.
//!
//! Invariant: counted from the network that is written, not from what the quantizer meant.

use crate::tables;
use arith::{AccumulatorFormat, Overflow};
use network::{Network, SafetyRule, SumBound};
use std::fmt::Write;

/// The proof for accumulators of this width; a line for each layer when `in_full`.
pub fn text(network: &Network, width_bits: u8, in_full: bool) -> String {
    let accumulator = AccumulatorFormat {
        width_bits,
        overflow: Overflow::Saturate,
    };
    let mut counts = [0usize; 3];
    let mut n_channels = 0;
    let mut rows = Vec::new();
    for layer in &network.layers {
        let Some(conv) = layer.conv() else { continue };
        let rules = network::safety(network, conv, accumulator);
        let of = |rule: SafetyRule| rules.iter().filter(|r| **r == Some(rule)).count();
        let by_rule = [
            of(SafetyRule::Widths),
            of(SafetyRule::Magnitudes),
            of(SafetyRule::Signs),
        ];
        counts
            .iter_mut()
            .zip(by_rule)
            .for_each(|(all, n)| *all += n);
        n_channels += rules.len();
        let bounds = network::sum_bounds(network, conv);
        let worst = (0..bounds.len()).min_by_key(|&c| bounds[c].slack(accumulator));
        if let Some(worst) = worst {
            let SumBound { min, max } = bounds[worst];
            let safe: usize = by_rule.iter().sum();
            rows.push(vec![
                layer.name.clone(),
                format!("{safe} of {}", rules.len()),
                worst.to_string(),
                min.to_string(),
                max.to_string(),
                bounds[worst].slack(accumulator).to_string(),
                bounds[worst].sufficient_bits().to_string(),
            ]);
        }
    }
    let mut text = String::new();
    if in_full {
        let _ = writeln!(
            text,
            "{}",
            tables::plain(
                &["layer"],
                &[
                    "channels safe",
                    "worst",
                    "least sum",
                    "largest sum",
                    "slack",
                    "bits"
                ],
                rows
            )
        );
    }
    let _ = writeln!(
        text,
        "{} of {n_channels} channels cannot overflow {width_bits} bits, whatever the input and the order of the sum ({} by widths, {} by magnitudes, {} by signs of the weights)",
        counts.iter().sum::<usize>(),
        counts[0],
        counts[1],
        counts[2]
    );
    text
}
