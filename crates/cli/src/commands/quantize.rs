//! `systole quantize`: float model and sample inputs in, integer network out.

use crate::{
    args::{Quantize, QuantizerFlags, TuningFlags},
    data::{Dataset, Preprocessing, Source},
    input,
    model::{self, FloatModel, QuantizedModel},
    output, proof, tables, tuning,
};
use accelerator::Machine;
use anyhow::{Context, Result, bail};
use network::Shape;
use quantizer::{FloatNetwork, Observer, Options};
use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// Bad files or flags, a layer without integer form, an output that cannot be written.
pub fn run(args: &Quantize) -> Result<()> {
    let float = FloatModel::open(&args.model, args.synthetic_weights)?;
    let shape = float.input_shape();
    let preprocessing = Preprocessing::new(&args.preprocessing, shape.channels)?;
    let source = Source::of(args.calibration.as_deref(), args.synthetic_images);
    let mut dataset = Dataset::from_source(source, shape)?;
    dataset.truncate(args.max_images)?;
    output::check_writable(&args.output)?;
    let machine = input::machine(args.machine.as_deref())?;
    let method = args.quantizer.method;
    if let Some(flag) = args.tuning.idle(method) {
        bail!(
            "{flag}: --method {} does not read it (adaround and auto do)",
            method.name()
        );
    }
    let flags = (&args.quantizer, &args.tuning);
    let (quantized, story) = by_flags(&float, flags, &machine, &dataset, preprocessing)
        .with_context(|| args.model.display().to_string())?;
    output::write_file(&args.output, &quantized.to_bytes())?;
    let accumulator_bits = args.quantizer.accumulator_bits;
    let machine_bits = machine.config.arithmetic.accumulator.width_bits;
    let proof = proof::text(
        &quantized.network,
        accumulator_bits.unwrap_or(machine_bits),
        accumulator_bits.is_some(),
    );
    output::print(&format!(
        "{story}{proof}{}",
        summary(&quantized, &args.output)
    ))
}

/// Quantizes as the flags say; the network, and what there is to say about it.
///
/// # Errors
/// As [`quantize`], or nothing meets the flags.
pub fn by_flags(
    float: &FloatModel,
    (flags, tuning): (&QuantizerFlags, &TuningFlags),
    machine: &Machine,
    dataset: &Dataset,
    preprocessing: Preprocessing,
) -> Result<(QuantizedModel, String)> {
    let machine_bits = machine.config.arithmetic.accumulator.width_bits;
    let options = model::options(flags, machine_bits);
    match tuning::Plan::of(flags, tuning, machine)? {
        Some(plan) if float.import.synthetic.is_empty() => {
            tuning::quantize(float, &options, &plan, dataset, preprocessing)
        }
        Some(_) if tuning.budget.is_some() => {
            bail!("--budget: synthetic weights have no float reference to compare with")
        }
        _ => {
            let quantized = quantize(float, &options, dataset, preprocessing)?;
            Ok((quantized, String::new()))
        }
    }
}

/// Calibrates and quantizes.
///
/// # Errors
/// The reference refuses the model, a calibration value is not finite, or a layer has no integer
/// form under the options.
pub fn quantize(
    float: &FloatModel,
    options: &Options,
    dataset: &Dataset,
    preprocessing: Preprocessing,
) -> Result<QuantizedModel> {
    let folded = &float.import.network;
    let observer = observe(float, dataset, &preprocessing, None)?;
    let network = quantizer::quantize(folded, Some(&observer), options)?;
    Ok(QuantizedModel {
        network,
        preprocessing,
    })
}

/// Runs the float network on every image: what the scales follow from, and, if wanted, the values
/// that searches compare with.
///
/// # Errors
/// The reference refuses the model, or a value is not finite.
pub fn observe(
    float: &FloatModel,
    dataset: &Dataset,
    preprocessing: &Preprocessing,
    mut targets: Option<&mut tune::Targets>,
) -> Result<Observer> {
    let folded: &FloatNetwork = &float.import.network;
    let reference = float.reference()?;
    let wanted = folded.observed_values();
    let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let shape_of = |name: &&str| folded.tensors.iter().find(|t| t.name == **name);
    let shapes: Vec<Shape> = names
        .iter()
        .filter_map(|name| Some(shape_of(name)?.shape))
        .collect();
    // One for each value, so that threads share nothing; the order of images is kept.
    let mut observers = vec![Observer::new(); names.len()];
    let portion = model::batch_size(folded.tensors.iter().map(|tensor| tensor.shape));
    let feed = (float.input_shape(), portion);
    model::for_each_portion(
        &reference,
        dataset,
        preprocessing,
        feed,
        &names,
        "calibrate",
        |first, values| {
            if let Some(targets) = &mut targets {
                for (name, value) in names.iter().zip(&values) {
                    if let Some(tensor) = folded.tensors.iter().position(|t| t.name == *name) {
                        targets.see(tensor, first, &value.data);
                    }
                }
            }
            let results: Vec<Result<(), quantizer::Error>> = observers
                .par_iter_mut()
                .zip(&names)
                .zip(&values)
                .zip(&shapes)
                .map(|(((observer, name), value), &shape)| {
                    observer.observe_images(name, &value.data, shape)
                })
                .collect();
            Ok(results.into_iter().collect::<Result<(), _>>()?)
        },
    )?;
    let mut whole = Observer::new();
    for observer in &observers {
        whole.merge(observer);
    }
    Ok(whole)
}

pub fn summary(model: &QuantizedModel, path: &Path) -> String {
    let network = &model.network;
    format!(
        "{}: {} layers, {} MACs, {} weights (fingerprint {:016x})\nwritten to {}\n",
        network.name,
        network.layers.len(),
        tables::grouped(network.n_macs()),
        tables::grouped(network.n_weights() as u64),
        network::fingerprint(network),
        path.display()
    )
}
