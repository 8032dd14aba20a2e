//! `--budget`: bits layer by layer, with the cycles of the machine's event model.
//!
//! Invariant: cycles are those that `systole latency` prints for the chosen widths.

use crate::{args::BudgetFlag, engine::Engine, output, tables};
use accelerator::Config;
use anyhow::Result;
use network::Network;
use quantizer::LayerBits;
use std::{collections::BTreeMap, fmt::Write, ops::Range};
use tune::{Budget, Mix, MixedSearch, Subject};

/// Widths to choose from.
const WIDTHS: [u8; 5] = [2, 3, 4, 6, 8];
/// Images that each width's cost is measured on.
const SENSITIVITY_IMAGES: usize = 128;

/// Which images the search looks at.
pub fn search(n_fit: usize, held_out: Range<usize>) -> MixedSearch {
    MixedSearch {
        widths: WIDTHS.to_vec(),
        sensitivity_images: 0..n_fit.min(SENSITIVITY_IMAGES),
        held_out,
    }
}

/// The bits of every layer, and what there is to say about them.
///
/// # Errors
/// Nothing meets the budget.
pub fn bits(
    subject: &Subject<'_>,
    budget: BudgetFlag,
    search: &MixedSearch,
    config: &Config,
) -> Result<(BTreeMap<String, LayerBits>, String)> {
    let bar = output::progress("bits", 0);
    let mut progress = |_: &str, done: usize, n: usize| {
        bar.set_length(n as u64);
        bar.set_position(done as u64);
    };
    let cycles = |network: &Network| {
        let engine = Engine::timed(network, config).ok()?;
        Some(engine.timing.total.0)
    };
    let limit = match budget {
        BudgetFlag::Cycles(cycles) => Budget::Cycles(cycles),
        BudgetFlag::Points(points) => Budget::Disagreement(points / 100.0),
    };
    let mix = tune::mixed(subject, limit, search, &cycles, &mut progress)?;
    bar.finish_and_clear();
    let text = text(subject, &mix, config, search.held_out.len());
    Ok((mix.bits, text))
}

fn text(subject: &Subject<'_>, mix: &Mix, config: &Config, n_held_out: usize) -> String {
    let bits = |bits: Option<u8>| bits.map_or_else(|| "-".to_owned(), |bits| bits.to_string());
    let layers = subject.float.layers.iter();
    let rows = layers
        .filter_map(|layer| {
            let of_layer = mix.bits.get(&layer.name)?;
            Some(vec![
                layer.name.clone(),
                bits(of_layer.weight_bits),
                bits(of_layer.activation_bits),
            ])
        })
        .collect();
    let table = tables::plain(&["layer"], &["weight bits", "output bits"], rows);
    let [widest, chosen, narrowest] = mix.cycles;
    let mut text = format!("{table}\n\n");
    let _ = write!(
        text,
        "{chosen} cycles on {} ({widest} with every layer at {} bits, {narrowest} at {}); rounded to nearest, relative output error {:.5}",
        config.name,
        WIDTHS[WIDTHS.len() - 1],
        WIDTHS[0],
        mix.error.relative
    );
    if let Some(agreement) = mix.error.agreement {
        let points = (1.0 - agreement) * 100.0;
        let _ = write!(
            text,
            ", {points:.2} points of {n_held_out} held-out images lost"
        );
    }
    text.push('\n');
    text
}
