//! How far the integers are from the floats, for every network, setting and arithmetic once.
//!
//! Invariant: accuracy depends on the integer network and the machine's arithmetic alone, so points
//! that share both share it; sums run over the images in order.

use crate::{
    commands::compare::{Sums, largest},
    data::{self, Dataset},
    engine,
    model::{self, FloatModel, QuantizedModel},
};
use anyhow::Result;
use arith::Arithmetic;
use functional::{Detail, Level, Threads};

/// What the integers of a network's first output are worth.
#[derive(Clone, Copy, Debug)]
pub struct Accuracy {
    /// Signal-to-quantization-noise ratio, if there is a float model and it is finite.
    pub sqnr_db: Option<f64>,
    /// Share of images whose largest output is the label's.
    pub top1: Option<f64>,
    /// Share of images whose largest output is the float model's.
    pub agreement: Option<f64>,
    /// MAC steps that overflowed, all images together.
    pub n_overflowed: u64,
}

/// The float model's outputs, image after image.
///
/// # Errors
/// The reference refuses the model or an image.
pub fn float_outputs(
    float: &FloatModel,
    integer: &QuantizedModel,
    dataset: &Dataset,
) -> Result<Vec<f32>> {
    let reference = float.reference()?;
    let network = &integer.network;
    let name = network.tensor(network.outputs[0]).name.as_str();
    let portion = model::batch_size(network.tensors.iter().map(|tensor| tensor.shape));
    let feed = (float.input_shape(), portion);
    let mut outputs = Vec::new();
    model::for_each_portion(
        &reference,
        dataset,
        &integer.preprocessing,
        feed,
        &[name],
        "float",
        |_, values| {
            outputs.extend(values.into_iter().flat_map(|value| value.data));
            Ok(())
        },
    )?;
    Ok(outputs)
}

/// Runs every image through the integer network; `floats` is empty where there is no float model.
///
/// # Errors
/// A bias that the accumulators cannot hold.
pub fn measure(
    model: &QuantizedModel,
    arithmetic: Arithmetic,
    dataset: &Dataset,
    floats: &[f32],
) -> Result<Accuracy> {
    let network = &model.network;
    let engine = functional::Engine::new(network, arithmetic, Level::best())?;
    let output = network.tensor(network.outputs[0]);
    let length = output.shape.len();
    let images = engine::parallel(0..dataset.len(), |index| {
        let image = dataset.image(index, &model.preprocessing);
        let integers = data::quantize(&image, network.tensor(network.input));
        let run = engine.run(&integers, Detail::Events, Threads::One)?;
        let values = run.tensor(network.outputs[0]).to_array();
        let float = floats.get(index * length..(index + 1) * length);
        let values = values.as_slice().expect("a whole array");
        let sums = Sums::of(output, float.unwrap_or_default(), values);
        let n_overflowed: u64 = run
            .overflow
            .iter()
            .flatten()
            .map(|channel| channel.n_overflowed)
            .sum();
        let classes = (
            largest(values.iter()),
            float.map(|float| largest(float.iter())),
        );
        Ok((sums, classes, n_overflowed))
    })?;
    let mut total = Sums::default();
    let (mut n_right, mut n_agree, mut n_overflowed) = (0u64, 0u64, 0u64);
    for (index, (sums, (integer, float), overflowed)) in images.iter().enumerate() {
        total.add(sums);
        let label = dataset.labels.as_ref().and_then(|labels| labels.get(index));
        n_right += u64::from(label == Some(integer));
        n_agree += u64::from(*float == Some(*integer));
        n_overflowed += overflowed;
    }
    let is_vector = output.shape.height == 1 && output.shape.width == 1 && length > 1;
    let share = |n| crate::commands::latency::ratio(n, images.len() as u64);
    Ok(Accuracy {
        sqnr_db: total.sqnr_db().filter(|_| !floats.is_empty()),
        top1: (is_vector && dataset.labels.is_some()).then(|| share(n_right)),
        agreement: (is_vector && !floats.is_empty()).then(|| share(n_agree)),
        n_overflowed,
    })
}
