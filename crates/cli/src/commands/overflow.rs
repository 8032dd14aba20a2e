//! `systole overflow`: what the accumulators did on a set of images.

use super::latency::ratio;
use crate::{
    args::Overflow,
    data::{self, Dataset},
    engine::Engine,
    input,
    model::QuantizedModel,
    output,
    report::{ChannelReport, Header, LayerOverflow, OverflowCounts, OverflowReport},
    tables,
};
use anyhow::Result;
use arith::ChannelOverflow;
use functional::{Detail, Threads};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

/// Runs the command.
///
/// # Errors
/// Bad files, or a machine too small for the network.
pub fn run(args: &Overflow) -> Result<()> {
    let config = input::machine(args.machine.as_deref())?.config;
    let model = QuantizedModel::open(&args.network)?;
    let shape = model.network.tensor(model.network.input).shape;
    let mut dataset = Dataset::of_flags(&args.inputs, shape)?;
    dataset.truncate(args.max_images)?;
    let engine = Engine::new(&model.network, &config)?;
    let report = report(&engine, &model, &dataset, args.top)?;
    if args.json {
        return output::print_json(&report);
    }
    if args.csv {
        return output::print_csv(&report.layers);
    }
    output::print(&format!(
        "{}\n{}",
        tables::header(&report.header),
        tables::overflow(&report)
    ))
}

/// The report over every image of a data set, with the `top` worst channels.
///
/// # Errors
/// A parameter that the machine cannot use.
pub fn report(
    engine: &Engine<'_>,
    model: &QuantizedModel,
    dataset: &Dataset,
    top: usize,
) -> Result<OverflowReport> {
    let records = merged_records(engine, model, dataset)?;
    let n_images = dataset.len() as u64;
    let mut layers = Vec::new();
    let mut worst = Vec::new();
    let mut whole = ChannelOverflow::default();
    let mut n_mac_steps = 0u64;
    for (index, info) in engine.program.layers.iter().enumerate() {
        let channels = &records[index];
        if channels.is_empty() {
            continue;
        }
        let mut layer = ChannelOverflow::default();
        for (channel, record) in channels.iter().enumerate() {
            layer.merge(record);
            worst.push((index, channel as u32, *record));
        }
        whole.merge(&layer);
        let steps = info.n_macs.saturating_mul(n_images);
        n_mac_steps = n_mac_steps.saturating_add(steps);
        let shape = engine
            .network
            .output_of(&engine.network.layers[index])
            .shape;
        layers.push(LayerOverflow {
            name: info.name.clone(),
            n_mac_steps: steps,
            overflowed_share: ratio(layer.n_overflowed, steps),
            n_outputs: shape.len() as u64 * n_images,
            counts: OverflowCounts::of(&layer),
        });
    }
    worst.retain(|(_, _, record)| record.n_overflowed > 0);
    worst.sort_by_key(|&(layer, channel, record)| {
        (std::cmp::Reverse(record.n_overflowed), layer, channel)
    });
    let worst_channels = worst
        .iter()
        .take(top)
        .map(|&(layer, channel, ref record)| ChannelReport {
            layer: engine.program.layers[layer].name.clone(),
            channel,
            counts: OverflowCounts::of(record),
        })
        .collect();
    let accumulator = engine.config.arithmetic.accumulator;
    Ok(OverflowReport {
        header: Header::new("overflow", engine.config, engine.network),
        n_images: dataset.len(),
        accumulator_bits: accumulator.width_bits,
        overflow: accumulator.overflow,
        n_mac_steps,
        n_overflowed: whole.n_overflowed,
        overflowed_share: ratio(whole.n_overflowed, n_mac_steps),
        sufficient_bits: whole.sufficient_bits(),
        layers,
        worst_channels,
    })
}

/// Merging is commutative and associative, so the order in which threads finish does not show.
fn merged_records(
    engine: &Engine<'_>,
    model: &QuantizedModel,
    dataset: &Dataset,
) -> Result<Vec<Vec<ChannelOverflow>>> {
    let input = model.network.tensor(model.network.input);
    let functional = engine.functional()?;
    let bar = output::progress("overflow", dataset.len());
    let merged = (0..dataset.len())
        .into_par_iter()
        .map(|index| {
            let image = dataset.image(index, &model.preprocessing);
            let integers = data::quantize(&image, input);
            let run = functional.run(&integers, Detail::Extremes, Threads::One)?;
            bar.inc(1);
            anyhow::Ok(run.overflow)
        })
        .try_reduce_with(|mut all, one| {
            let pairs = all.iter_mut().flatten().zip(one.iter().flatten());
            pairs.for_each(|(a, b)| a.merge(b));
            Ok(all)
        });
    bar.finish_and_clear();
    merged.unwrap_or_else(|| Ok(vec![Vec::new(); engine.network.layers.len()]))
}
