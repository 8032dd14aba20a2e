//! `systole compare`: the float model and the integer network, value by value.
//!
//! Invariant: sums run over an image in order and over images in order, so neither threads nor the
//! size of portions shows in a digit.

use crate::{
    args::Compare,
    data::{self, Dataset},
    engine::{self, Engine},
    input,
    model::{self, FloatModel, QuantizedModel},
    output,
    report::{CompareReport, Header, TensorComparison, Top1},
    sensitivity, tables,
};
use anyhow::{Result, ensure};
use functional::{Detail, Threads};
use network::{Shape, Tensor, TensorId};

/// Runs the command.
///
/// # Errors
/// Bad files, a float model that does not belong to the network, or a machine too small for it.
pub fn run(args: &Compare) -> Result<()> {
    let config = input::machine(args.machine.as_deref())?.config;
    let model = QuantizedModel::open(&args.network)?;
    let float = FloatModel::open(&args.model, args.synthetic_weights)?;
    let shape = model.network.tensor(model.network.input).shape;
    ensure!(
        float.input_shape() == shape,
        "{} takes {}, the network takes {shape}: it was not made from this model",
        args.model.display(),
        float.input_shape()
    );
    let mut dataset = Dataset::of_flags(&args.inputs, shape)?;
    dataset.truncate(args.max_images)?;
    let engine = Engine::new(&model.network, &config)?;
    let mut report = report(&engine, &model, &float, &dataset)?;
    if args.sensitivity {
        let has_classes = report.top1.is_some();
        let costs = sensitivity::report(&engine, &model, &float, &dataset, has_classes)?;
        report.sensitivity = Some(costs);
    }
    if args.json {
        return output::print_json(&report);
    }
    if args.csv {
        return output::print_csv(&report.tensors);
    }
    let costs = report.sensitivity.as_ref().map(tables::sensitivity);
    output::print(&format!(
        "{}\n{}{}",
        tables::header(&report.header),
        tables::compare(&report),
        costs.unwrap_or_default()
    ))
}

const LANES: usize = 8;

/// What a tensor's values add up to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    float_squares: f64,
    integer_squares: f64,
    products: f64,
    error_squares: f64,
    max_error: f64,
    n_clipped: u64,
    n_values: u64,
}

impl Sums {
    /// Of one image.
    pub fn of(tensor: &Tensor, float: &[f32], integers: &[i32]) -> Self {
        let scale = tensor.scale.real();
        let (q_min, q_max) = (tensor.format.q_min(), tensor.format.q_max());
        // Of every eighth value each, so that they do not wait for one another.
        let mut lanes = [Self::default(); LANES];
        for (floats, integers) in float.chunks(LANES).zip(integers.chunks(LANES)) {
            for ((lane, &float), &integer) in lanes.iter_mut().zip(floats).zip(integers) {
                let (float, real) = (f64::from(float), f64::from(integer) * scale);
                let error = (float - real).abs();
                lane.float_squares += float * float;
                lane.integer_squares += real * real;
                lane.products += float * real;
                lane.error_squares += error * error;
                lane.max_error = lane.max_error.max(error);
                // The 0 of an unsigned format is ReLU's own cut, not the quantizer's.
                let is_clipped = integer == q_max || (integer == q_min && q_min < 0);
                lane.n_clipped += u64::from(is_clipped);
            }
        }
        let mut sums = Self {
            n_values: float.len() as u64,
            ..Self::default()
        };
        for lane in &lanes {
            sums.add(lane);
        }
        sums
    }

    /// Adds another image's.
    pub fn add(&mut self, other: &Self) {
        self.float_squares += other.float_squares;
        self.integer_squares += other.integer_squares;
        self.products += other.products;
        self.error_squares += other.error_squares;
        self.max_error = self.max_error.max(other.max_error);
        self.n_clipped += other.n_clipped;
        self.n_values += other.n_values;
    }

    /// Signal-to-quantization-noise ratio; none without noise.
    pub fn sqnr_db(&self) -> Option<f64> {
        Some(10.0 * (self.float_squares / self.error_squares).log10()).filter(|db| db.is_finite())
    }

    fn cosine(&self) -> Option<f64> {
        let lengths = self.float_squares.sqrt() * self.integer_squares.sqrt();
        Some(self.products / lengths).filter(|cosine| cosine.is_finite())
    }
}

/// One image's contribution.
struct ImageResult {
    sums: Vec<Sums>,
    float_top1: Option<usize>,
    integer_top1: usize,
}

/// The report over every image of a data set.
///
/// # Errors
/// Labels that are no classes, or a model that the float reference refuses.
pub fn report(
    engine: &Engine<'_>,
    model: &QuantizedModel,
    float: &FloatModel,
    dataset: &Dataset,
) -> Result<CompareReport> {
    let network = &model.network;
    let output = network.outputs[0];
    let classes = class_count(network.tensor(output).shape);
    if let Some(n_classes) = classes {
        dataset.check_labels(n_classes)?;
    }
    let reference = float.reference()?;
    let (compared, skipped) = counterparts(&reference, model, dataset)?;
    let names: Vec<&str> = compared
        .iter()
        .map(|&id| network.tensor(id).name.as_str())
        .collect();
    let output_index = compared.iter().position(|&id| id == output);
    let mut results: Vec<ImageResult> = Vec::with_capacity(dataset.len());
    let input = network.tensor(network.input);
    let portion = model::batch_size(network.tensors.iter().map(|tensor| tensor.shape));
    let feed = (input.shape, portion);
    let functional = engine.functional()?;
    model::for_each_portion(
        &reference,
        dataset,
        &model.preprocessing,
        feed,
        &names,
        "compare",
        |first, floats| {
            let n = portion.min(dataset.len() - first);
            results.extend(engine::parallel(0..n, |index| {
                let image = dataset.image(first + index, &model.preprocessing);
                let integers = data::quantize(&image, input);
                let run = functional.run(&integers, Detail::Values, Threads::One)?;
                let part = |position: usize| {
                    let length = network.tensor(compared[position]).shape.len();
                    &floats[position].data[index * length..(index + 1) * length]
                };
                let sums = compared
                    .iter()
                    .enumerate()
                    .map(|(position, &id)| {
                        let values = run.tensor(id).to_array();
                        let values = values.as_slice().expect("a whole array");
                        Sums::of(network.tensor(id), part(position), values)
                    })
                    .collect();
                Ok(ImageResult {
                    sums,
                    float_top1: output_index.map(|position| largest(part(position).iter())),
                    integer_top1: largest(run.tensor(output).to_array().iter()),
                })
            })?);
            Ok(())
        },
    )?;
    let tensors = compared
        .iter()
        .enumerate()
        .map(|(position, &id)| {
            let mut total = Sums::default();
            for result in &results {
                total.add(&result.sums[position]);
            }
            comparison(model, id, &total)
        })
        .collect();
    Ok(CompareReport {
        header: Header::new("compare", engine.config, network),
        n_images: dataset.len(),
        top1: classes.map(|_| top1(&results, dataset)),
        tensors,
        skipped: skipped
            .into_iter()
            .map(|id| network.tensor(id).name.clone())
            .collect(),
        sensitivity: None,
    })
}

fn comparison(model: &QuantizedModel, id: TensorId, total: &Sums) -> TensorComparison {
    let network = &model.network;
    let tensor = network.tensor(id);
    let sign = if tensor.format.signed { "" } else { "u" };
    TensorComparison {
        tensor: tensor.name.clone(),
        layer: network
            .producer(id)
            .map(|layer| network.layers[layer].name.clone()),
        format: format!("{sign}int{}", tensor.format.bits),
        n_values: total.n_values,
        sqnr_db: total.sqnr_db(),
        cosine: total.cosine(),
        max_error: total.max_error,
        clipped_share: super::latency::ratio(total.n_clipped, total.n_values),
    }
}

/// The tensors that the float model has, and those that it has not (or in another size).
fn counterparts(
    reference: &reference::Model,
    model: &QuantizedModel,
    dataset: &Dataset,
) -> Result<(Vec<TensorId>, Vec<TensorId>)> {
    let network = &model.network;
    let known: Vec<TensorId> = (0..network.tensors.len())
        .map(TensorId)
        .filter(|&id| reference.has_value(&network.tensor(id).name))
        .collect();
    let names: Vec<&str> = known
        .iter()
        .map(|&id| network.tensor(id).name.as_str())
        .collect();
    let image = dataset.image(0, &model.preprocessing);
    let (c, h, w) = image.dim();
    let values = reference.run(image.as_slice().unwrap_or_default(), [1, c, h, w], &names)?;
    let compared: Vec<TensorId> = known
        .iter()
        .zip(&values)
        .filter(|&(&id, value)| value.data.len() == network.tensor(id).shape.len())
        .map(|(&id, _)| id)
        .collect();
    let skipped = (0..network.tensors.len())
        .map(TensorId)
        .filter(|id| !compared.contains(id))
        .collect();
    Ok((compared, skipped))
}

/// Elements of an output that is a vector of classes.
fn class_count(shape: Shape) -> Option<usize> {
    (shape.height == 1 && shape.width == 1 && shape.channels > 1).then_some(shape.channels)
}

/// Position of the largest value; the first among equals.
pub fn largest<'a, T: PartialOrd + Copy + 'a>(values: impl Iterator<Item = &'a T>) -> usize {
    let mut best: Option<(usize, T)> = None;
    for (index, &value) in values.enumerate() {
        if best.is_none_or(|(_, largest)| value > largest) {
            best = Some((index, value));
        }
    }
    best.map_or(0, |(index, _)| index)
}

fn top1(results: &[ImageResult], dataset: &Dataset) -> Top1 {
    let n = results.len() as u64;
    let share = |count: usize| super::latency::ratio(count as u64, n);
    let has_float = results.iter().all(|result| result.float_top1.is_some());
    let right = |pick: &dyn Fn(&ImageResult) -> Option<usize>| {
        let labels = dataset.labels.as_ref()?;
        Some(share(
            results
                .iter()
                .zip(labels)
                .filter(|(r, l)| pick(r) == Some(**l))
                .count(),
        ))
    };
    let agree = results
        .iter()
        .filter(|r| r.float_top1 == Some(r.integer_top1))
        .count();
    Top1 {
        float: right(&|result| result.float_top1).filter(|_| has_float),
        integer: right(&|result| Some(result.integer_top1)),
        agreement: has_float.then(|| share(agree)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Sums, largest};
    use arith::{Format, Scale};
    use network::{Shape, Tensor};

    #[test]
    fn sums_of_a_small_tensor() {
        let tensor = Tensor {
            name: String::new(),
            shape: Shape {
                channels: 1,
                height: 1,
                width: 3,
            },
            format: Format {
                bits: 4,
                signed: true,
            },
            scale: Scale {
                mantissa: 128,
                exponent: -8,
            },
        };
        let sums = Sums::of(&tensor, &[1.0, -2.0, 4.0], &[2, -4, 7]);
        assert!((sums.max_error - 0.5).abs() < 1e-12);
        let db = sums.sqnr_db().expect("inexact");
        assert!((db - 10.0 * (21.0f64 / 0.25).log10()).abs() < 1e-9, "{db}");
        assert_eq!((sums.n_clipped, sums.n_values), (1, 3));
        let exact = Sums::of(&tensor, &[1.0], &[2]);
        assert_eq!(exact.sqnr_db(), None);
        assert_eq!(exact.cosine(), Some(1.0));
    }

    #[test]
    fn first_among_equals() {
        assert_eq!(largest([1, 3, 3, 2].iter()), 1);
    }
}
