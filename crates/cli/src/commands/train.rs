//! `systole train`: float model and training images in, integer network out.
//!
//! Invariant: what is written depends on the files and flags alone: not on threads, and not on
//! whether the run was stopped and resumed.

use crate::{
    args::{Keep, OptimizerFlag, PreprocessingFlags, ScaleRuleFlag, Train},
    commands::quantize,
    curve,
    data::{Dataset, Preprocessing},
    input,
    model::{self, FloatModel, QuantizedModel},
    output, tables,
};
use anyhow::{Context, Result, ensure};
use network::Shape;
use std::path::Path;
use trainer::{
    Augmentation, Data, Distillation, Epoch, Lens, Optimizer, ScaleRule, Settings, Trainer,
};

/// Images that scales start from.
const N_CALIBRATION: usize = 512;

/// Runs the command.
///
/// # Errors
/// Bad files or flags, a network that cannot learn as asked, an output that cannot be written.
pub fn run(args: &Train) -> Result<()> {
    let float = FloatModel::open(&args.model, None)?;
    let shape = float.input_shape();
    let preprocessing = Preprocessing::new(&args.preprocessing, shape.channels)?;
    check_outputs(args)?;
    let crop = args.recipe.crop;
    ensure!(
        crop < shape.height.min(shape.width),
        "--crop {crop}: an image of {shape} would be shifted out of its frame"
    );
    ensure!(
        !args.float || args.recipe.batch_norm == 0,
        "--batch-norm is for integers: --float --from-scratch normalizes by itself"
    );
    let dataset = training_images(args, shape)?;
    let teacher = teacher(args, &dataset, (shape, &preprocessing))?;
    let data = data(dataset, shape, &preprocessing)?;
    let validation = match &args.validation {
        Some(path) => Some(data_of(path, shape, &preprocessing)?),
        None => None,
    };
    let mut trainer = begin(args, &float, &preprocessing)?;
    if let (Some((model, lens)), Some(path)) = (teacher, &args.teacher.teacher) {
        let taught = trainer.taught_by(&model.import.network, lens);
        trainer = taught.with_context(|| path.display().to_string())?;
    }
    trainer.check_data(&data)?;
    resume(args, &mut trainer)?;
    train(args, &mut trainer, &data, validation.as_ref())?;
    let report = finish(args, &mut trainer, preprocessing)?;
    if let Some(path) = args.checkpoint.as_ref().filter(|path| path.exists()) {
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    output::print(&report)
}

/// The integer network that the flags train, for other commands: nothing is read but the images, and
/// nothing is written.
///
/// # Errors
/// As [`run`]'s.
///
/// # Panics
/// The flags want a float network.
pub(super) fn trained(args: &Train, float: &FloatModel) -> Result<QuantizedModel> {
    let shape = float.input_shape();
    let preprocessing = Preprocessing::new(&args.preprocessing, shape.channels)?;
    let data = data(training_images(args, shape)?, shape, &preprocessing)?;
    let mut trainer = begin(args, float, &preprocessing)?;
    trainer.check_data(&data)?;
    train(args, &mut trainer, &data, None)?;
    let network = trainer.network()?.expect("integers were trained");
    Ok(QuantizedModel {
        network,
        preprocessing,
    })
}

fn training_images(args: &Train, shape: Shape) -> Result<Dataset> {
    let mut dataset = Dataset::open(&args.data, shape)?;
    dataset.truncate(args.max_images)?;
    Ok(dataset)
}

/// The teacher that the flags name, and how it sees the training images.
fn teacher(
    args: &Train,
    images: &Dataset,
    (shape, students): (Shape, &Preprocessing),
) -> Result<Option<(FloatModel, Lens)>> {
    let Some(path) = &args.teacher.teacher else {
        return Ok(None);
    };
    ensure!(
        args.recipe.distill > 0.0,
        "with --distill 0 a teacher has no share in the loss"
    );
    let teacher = FloatModel::open(path, None)?;
    let flags = PreprocessingFlags {
        mean: args.teacher.teacher_mean.clone(),
        std: args.teacher.teacher_std.clone(),
        scale: args.teacher.teacher_scale,
    };
    // The trainer refuses a teacher of other images.
    let its_own =
        Preprocessing::new(&flags, shape.channels).with_context(|| path.display().to_string())?;
    let lens = images.lens(students, &its_own);
    Ok(Some((teacher, lens)))
}

fn check_outputs(args: &Train) -> Result<()> {
    let paths = [
        Some(&args.output),
        args.checkpoint.as_ref(),
        args.log.as_ref(),
        args.curve.as_ref(),
    ];
    paths
        .into_iter()
        .flatten()
        .try_for_each(|path| output::check_writable(path))
}

fn begin(args: &Train, float: &FloatModel, preprocessing: &Preprocessing) -> Result<Trainer> {
    let config = input::machine(args.machine.as_deref())?.config;
    let machine_bits = config.arithmetic.accumulator.width_bits;
    let options = model::options(&args.quantizer, machine_bits);
    ensure!(
        !args.quantizer.method.looks_at_outputs(),
        "--method {}: training learns the rounding itself; it starts from scales by another method",
        args.quantizer.method.name()
    );
    let settings = settings(args, options.clone(), config.arithmetic);
    let net = &float.import.network;
    let place = || args.model.display().to_string();
    if args.float {
        return Trainer::float(net, settings, args.from_scratch).with_context(place);
    }
    let path = args.calibration.as_ref().unwrap_or(&args.data);
    let mut calibration = Dataset::open(path, float.input_shape())?;
    if args.calibration.is_none() {
        calibration.truncate(Some(N_CALIBRATION))?;
    }
    let start = quantize::quantize(float, &options, &calibration, preprocessing.clone())?.network;
    Trainer::new(net, &start, settings).with_context(place)
}

fn resume(args: &Train, trainer: &mut Trainer) -> Result<()> {
    let Some(path) = args.checkpoint.as_ref().filter(|_| args.resume) else {
        return Ok(());
    };
    if !path.exists() {
        output::tell(&format!(
            "note: there is no {}: the run begins",
            path.display()
        ));
        return Ok(());
    }
    let bytes = input::read(path, input::MAX_FILE_BYTES)?;
    trainer
        .resume(&bytes)
        .with_context(|| path.display().to_string())?;
    let done = trainer.steps_done();
    output::tell(&format!("note: going on after step {done}"));
    Ok(())
}

/// Writes what was learned; what to say about it.
fn finish(args: &Train, trainer: &mut Trainer, preprocessing: Preprocessing) -> Result<String> {
    if let Some(network) = trainer.network()? {
        let quantized = QuantizedModel {
            network,
            preprocessing,
        };
        output::write_file(&args.output, &quantized.to_bytes())?;
        return Ok(quantize::summary(&quantized, &args.output));
    }
    let network = trainer
        .float_network()
        .context("neither integers nor real numbers were trained")?;
    output::write_file(&args.output, &quantizer::to_onnx(&network)?)?;
    Ok(format!(
        "{}: {} layers, {} MACs\nwritten to {}\n",
        network.name,
        network.layers.len(),
        tables::grouped(network.n_macs()),
        args.output.display()
    ))
}

fn data_of(path: &Path, shape: Shape, preprocessing: &Preprocessing) -> Result<Data> {
    let dataset = Dataset::open(path, shape)?;
    ensure!(
        dataset.labels.is_some(),
        "{}: there is no array `y`",
        path.display()
    );
    data(dataset, shape, preprocessing).with_context(|| path.display().to_string())
}

fn data(mut dataset: Dataset, shape: Shape, preprocessing: &Preprocessing) -> Result<Data> {
    let labels = dataset.labels.take();
    let images = (0..dataset.len()).map(|index| dataset.image(index, preprocessing));
    Ok(Data::new(
        shape,
        images,
        labels,
        preprocessing.of_zero(shape.channels),
    )?)
}

fn settings(
    args: &Train,
    quantizer: quantizer::Options,
    arithmetic: arith::Arithmetic,
) -> Settings {
    let recipe = &args.recipe;
    let (optimizer, usual_rate) = match recipe.optimizer {
        OptimizerFlag::Sgd => (Optimizer::Sgd, 5e-3),
        OptimizerFlag::AdamW => (Optimizer::AdamW, 5e-4),
    };
    Settings {
        quantizer,
        arithmetic,
        scales: match args.scale_rule {
            ScaleRuleFlag::Llsq => ScaleRule::Llsq,
            ScaleRuleFlag::Lsq => ScaleRule::Lsq,
            ScaleRuleFlag::Pact => ScaleRule::Pact,
            ScaleRuleFlag::Fixed => ScaleRule::Fixed,
        },
        power_of_two: recipe.power_of_two,
        epochs: recipe.epochs,
        norm_epochs: recipe.batch_norm,
        batch: recipe.batch,
        optimizer,
        rate: recipe.rate.unwrap_or(usual_rate),
        warmup_epochs: recipe.warmup,
        weight_decay: recipe.weight_decay,
        label_smoothing: recipe.label_smoothing,
        distillation: (recipe.distill != 0.0).then_some(Distillation {
            weight: recipe.distill,
            temperature: recipe.temperature,
        }),
        augmentation: Augmentation {
            crop: recipe.crop,
            flip: !recipe.no_flip,
            mix: recipe.mix,
        },
        average: recipe.average,
        keep_best: args.validation.is_some() && args.keep == Keep::Best,
        seed: recipe.seed,
    }
}

fn train(
    args: &Train,
    trainer: &mut Trainer,
    data: &Data,
    validation: Option<&Data>,
) -> Result<()> {
    let n_steps = args.recipe.epochs * trainer.steps_per_epoch(data);
    let bar = output::progress("train", usize::try_from(n_steps).unwrap_or(usize::MAX));
    write_log(args, trainer.history())?;
    while !trainer.is_done(data) {
        let n_epochs = trainer.history().len();
        trainer.step(data, validation)?;
        bar.set_position(trainer.steps_done());
        let totals = trainer.totals();
        if totals.n_images > 0 {
            let n = totals.n_images as f64;
            let (loss, top1) = (totals.loss / n, 100.0 * totals.n_right as f64 / n);
            bar.set_message(format!("loss {loss:.4}, top-1 {top1:.2} %"));
        }
        let epoch = trainer.history().get(n_epochs);
        if let Some(epoch) = epoch {
            bar.suspend(|| output::tell(&line(epoch)));
            write_log(args, trainer.history())?;
        }
        let is_due = epoch.is_some() || trainer.steps_done().is_multiple_of(args.checkpoint_every);
        if let Some(path) = args.checkpoint.as_ref().filter(|_| is_due) {
            output::write_file(path, &trainer.to_bytes())?;
        }
    }
    bar.finish_and_clear();
    if let Some(epoch) = trainer.kept_epoch() {
        output::tell(&format!("note: the network is epoch {epoch}'s"));
    }
    Ok(())
}

fn line(epoch: &Epoch) -> String {
    let held_out = epoch.validation_top1.map_or(String::new(), |top1| {
        format!(", {:.2} % of those kept aside", 100.0 * top1)
    });
    format!(
        "epoch {}: loss {:.5}, top-1 {:.2} % of the training images{held_out}",
        epoch.epoch,
        epoch.loss,
        100.0 * epoch.top1
    )
}

fn write_log(args: &Train, history: &[Epoch]) -> Result<()> {
    if let Some(path) = &args.log {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["epoch", "rate", "loss", "top1", "validation_top1"])?;
        for epoch in history {
            let validation = epoch.validation_top1.map(|v| v.to_string());
            let numbers = [epoch.rate, epoch.loss, epoch.top1].map(|v| v.to_string());
            let first = std::iter::once(epoch.epoch.to_string());
            writer.write_record(first.chain(numbers).chain([validation.unwrap_or_default()]))?;
        }
        let bytes = writer.into_inner().context("cannot make CSV")?;
        output::write_file(path, &bytes)?;
    }
    if let Some(path) = &args.curve {
        output::write_file(path, curve::draw(history)?.as_bytes())?;
    }
    Ok(())
}
