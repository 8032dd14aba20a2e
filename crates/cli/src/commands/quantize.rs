//! `systole quantize`: float model and sample inputs in, integer network out.

use crate::{
    args::Quantize,
    data::{Dataset, Preprocessing, Source},
    model::{self, FloatModel, QuantizedModel},
    output,
};
use anyhow::{Context, Result};
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
    let options = model::options(&args.quantizer);
    let quantized = quantize(&float, &options, &dataset, preprocessing)
        .with_context(|| args.model.display().to_string())?;
    output::write_file(&args.output, &quantized.to_bytes())?;
    output::print(&summary(&quantized, &args.output))
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
    let observer = observe(float, dataset, &preprocessing)?;
    let network = quantizer::quantize(folded, Some(&observer), options)?;
    Ok(QuantizedModel {
        network,
        preprocessing,
    })
}

/// What the images make of every value that calibration looks at.
///
/// # Errors
/// The reference refuses the model, or a value is not finite.
pub fn observe(
    float: &FloatModel,
    dataset: &Dataset,
    preprocessing: &Preprocessing,
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
        |_, values| {
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
        network.n_macs(),
        network.n_weights(),
        network::fingerprint(network),
        path.display()
    )
}
