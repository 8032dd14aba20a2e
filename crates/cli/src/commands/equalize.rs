//! `systole equalize`: the same float function with channels of like ranges.

use super::quantize;
use crate::{
    args::Equalize,
    data::{Dataset, Preprocessing, Source},
    model::FloatModel,
    output,
};
use anyhow::{Context, Result};

/// Runs the command.
///
/// # Errors
/// Bad files or flags, a layer that ONNX has no plain operators for, an output that cannot be written.
pub fn run(args: &Equalize) -> Result<()> {
    let float = FloatModel::open(&args.model, args.synthetic_weights)?;
    let shape = float.input_shape();
    let preprocessing = Preprocessing::new(&args.preprocessing, shape.channels)?;
    let source = Source::of(args.calibration.as_deref(), args.synthetic_images);
    let mut dataset = Dataset::from_source(source, shape)?;
    dataset.truncate(args.max_images)?;
    output::check_writable(&args.output)?;
    let observer = quantize::observe(&float, &dataset, &preprocessing, None)?;
    let place = || args.model.display().to_string();
    let equalized = quantizer::equalize(&float.import.network, &observer).with_context(place)?;
    let bytes = quantizer::to_onnx(&equalized.network).with_context(place)?;
    output::write_file(&args.output, &bytes)?;
    output::print(&format!(
        "{}: {} of {} channels have another factor\nwritten to {}\n",
        equalized.network.name,
        equalized.n_scaled,
        equalized.n_channels,
        args.output.display()
    ))
}
