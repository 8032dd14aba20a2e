//! `systole compare --sensitivity`: the searches' simulator on the user's images.
//!
//! Invariant: images are added in order.

use crate::{
    commands::latency::ratio,
    data::{self, Dataset},
    engine::Engine,
    model::{FloatModel, QuantizedModel},
    output,
    report::{Cost, SensitivityReport},
};
use anyhow::Result;
use tune::{Outcome, Source};

/// Tries every source in every layer.
///
/// # Errors
/// The engine refuses the network.
pub fn report(
    engine: &Engine<'_>,
    model: &QuantizedModel,
    float: &FloatModel,
    dataset: &Dataset,
    has_classes: bool,
) -> Result<SensitivityReport> {
    let network = &model.network;
    let input = network.tensor(network.input);
    let bar = output::progress("sensitivity", dataset.len());
    let image = |index: usize| {
        let real = dataset.image(index, &model.preprocessing);
        let integers = data::quantize(&real, input);
        (real, integers)
    };
    let found = tune::sensitivity(
        &float.import.network,
        network,
        engine.config.arithmetic,
        dataset.len(),
        &image,
        &|| bar.inc(1),
    )?;
    bar.finish_and_clear();
    let signal: f64 = found.signal.iter().sum();
    let cost = |layer: Option<usize>, source: Source, of: &dyn Fn(usize) -> Outcome| {
        let outcomes: Vec<Outcome> = (0..dataset.len()).map(of).collect();
        let error: f64 = outcomes.iter().map(|outcome| outcome.error).sum();
        let share = |right: &dyn Fn(usize) -> bool| {
            let count = (0..outcomes.len()).filter(|&image| right(image)).count();
            ratio(count as u64, outcomes.len() as u64)
        };
        let labels = dataset.labels.as_ref().filter(|_| has_classes);
        Cost {
            layer: layer.map(|index| network.layers[index].name.clone()),
            source: name(source),
            relative_error: error / signal.max(f64::MIN_POSITIVE),
            agreement: has_classes
                .then(|| share(&|image| outcomes[image].top1 == found.float[image].top1)),
            top1: labels.map(|labels| share(&|image| outcomes[image].top1 == labels[image])),
        }
    };
    Ok(SensitivityReport {
        sources: Source::ALL
            .iter()
            .enumerate()
            .map(|(place, &source)| cost(None, source, &|image| found.totals[image][place]))
            .collect(),
        costs: found
            .cases
            .iter()
            .enumerate()
            .map(|(place, case)| {
                cost(case.layer, case.source, &|image| {
                    found.outcomes[image][place]
                })
            })
            .collect(),
    })
}

const fn name(source: Source) -> &'static str {
    match source {
        Source::Weights => "weights",
        Source::Activations => "activations",
        Source::Constants => "constants",
        Source::Overflow => "overflow",
    }
}
