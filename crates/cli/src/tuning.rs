//! `--method adaround` and `--method auto`: the searches of the `tune` crate, fed with the float
//! reference's values.
//!
//! Invariant: images that rounding is learned on are never those on which methods are compared.

use crate::{
    args::{BudgetFlag, MethodFlag, QuantizerFlags, TuningFlags},
    commands::quantize::observe,
    data::{self, Dataset, Preprocessing},
    mix,
    model::{FloatModel, QuantizedModel},
    output,
};
use accelerator::{Config, Machine};
use anyhow::{Result, ensure};
use arith::Arithmetic;
use network::{Network, Tensor};
use quantizer::{Choices, Method, Options};
use std::fmt::Write;
use tune::{
    ActivationSearch, Fit, LayerFit, OutputError, RoundingSettings, Settings, Subject, Targets,
};

/// Images that activation scales are searched on.
const SCALE_IMAGES: usize = 128;

/// Images that rounding is learned on, unless the flags say so.
const FIT_IMAGES: usize = 1024;
/// Optimizer steps for each layer.
const STEPS: usize = 3000;
/// Images on which output errors are measured.
const HELD_OUT_IMAGES: usize = 256;

/// What is to be done.
pub struct Plan {
    method: MethodFlag,
    searches_scales: bool,
    budget: Option<BudgetFlag>,
    settings: Settings,
    n_fit: usize,
    n_held_out: usize,
    inside_ppm: u32,
    seed: u64,
    /// Accumulators as wide as the searches compute with.
    arithmetic: Arithmetic,
    /// For cycles.
    config: Config,
}

impl Plan {
    /// The plan of a command line; `None` for methods that look at no layer's values.
    ///
    /// # Errors
    /// Numbers that leave nothing to do.
    pub fn of(
        flags: &QuantizerFlags,
        tuning: &TuningFlags,
        machine: &Machine,
    ) -> Result<Option<Self>> {
        let learns = flags.method.looks_at_outputs();
        if !learns && !tuning.search_scales && tuning.budget.is_none() {
            return Ok(None);
        }
        let n_fit = tuning.fit_images.unwrap_or(FIT_IMAGES);
        ensure!(n_fit > 0, "--fit-images is 0: there must be an image");
        let seed = tuning.seed.unwrap_or(0);
        let mut arithmetic = machine.config.arithmetic;
        if let Some(bits) = flags.accumulator_bits {
            arithmetic.accumulator.width_bits = bits;
        }
        let rounding = RoundingSettings {
            n_steps: if learns {
                tuning.steps.unwrap_or(STEPS)
            } else {
                0
            },
            seed,
            ..RoundingSettings::default()
        };
        Ok(Some(Self {
            method: flags.method,
            searches_scales: tuning.search_scales,
            budget: tuning.budget,
            settings: Settings { rounding },
            n_fit,
            n_held_out: tuning.held_out.unwrap_or(HELD_OUT_IMAGES),
            inside_ppm: (flags.percentile * 1e4).round() as u32,
            seed,
            arithmetic,
            config: machine.config.clone(),
        }))
    }
}

/// One way of quantizing, and how far its outputs are from the float network's.
struct Candidate {
    name: String,
    network: Network,
    error: OutputError,
}

/// Quantizes by a plan; the network, and what there is to say about it.
///
/// # Errors
/// Too few images, a model that the float reference refuses, a layer without integer form.
pub fn quantize(
    float: &FloatModel,
    options: &Options,
    plan: &Plan,
    dataset: &Dataset,
    preprocessing: Preprocessing,
) -> Result<(QuantizedModel, String)> {
    let n = dataset.len();
    ensure!(
        n > 1,
        "1 calibration image: some to learn on and some to compare on are needed"
    );
    let n_held_out = plan.n_held_out.min(n / 2).max(1);
    let n_fit = plan.n_fit.min(n - n_held_out);
    let folded = &float.import.network;
    let mut targets = Targets::new(folded, n_fit, n, plan.seed);
    let observer = observe(float, dataset, &preprocessing, Some(&mut targets))?;
    let images = |index: usize, tensor: &Tensor| {
        data::quantize(&dataset.image(index, &preprocessing), tensor)
    };
    let mut subject = Subject {
        float: folded,
        observer: &observer,
        options,
        arithmetic: plan.arithmetic,
        targets: &targets,
        images: &images,
    };
    let held_out = n - n_held_out..n;
    let mut story = String::new();
    let mut options = options.clone();
    if let Some(budget) = plan.budget {
        let search = mix::search(n_fit, held_out.clone());
        let (bits, found) = mix::bits(&subject, budget, &search, &plan.config)?;
        story = found;
        options.overrides = bits;
    }
    subject.options = &options;
    let subject = subject;
    let mut candidates = Vec::new();
    let mut consider = |name: &str, network: Network| -> Result<()> {
        let error = tune::output_error(&subject, &network, held_out.clone())?;
        candidates.push(Candidate {
            name: name.to_owned(),
            network,
            error,
        });
        Ok(())
    };
    let is_auto = plan.method == MethodFlag::Auto;
    if is_auto {
        let inside_ppm = plan.inside_ppm;
        for (name, method) in [
            ("min-max", Method::MinMax),
            ("llsq", Method::Llsq),
            ("percentile", Method::Percentile { inside_ppm }),
            ("kl", Method::Kl),
        ] {
            let options = Options {
                method,
                ..options.clone()
            };
            consider(
                name,
                quantizer::quantize(folded, Some(&observer), &options)?,
            )?;
        }
    }
    let learns = plan.settings.rounding.n_steps > 0;
    let plain = if plan.method.looks_at_outputs() {
        MethodFlag::Mse
    } else {
        plan.method
    };
    consider(&plain.name(), subject.quantize(&Choices::default())?)?;
    let mut layers = Vec::new();
    let mut choices = Choices::default();
    if plan.searches_scales || learns {
        let real = |index: usize| dataset.image(index, &preprocessing);
        choices = search(&subject, &choices, n_fit, learns, &real)?;
        consider("scales", subject.quantize(&choices)?)?;
    }
    if learns {
        let fit = learn(&subject, &choices, &plan.settings)?;
        layers = fit.layers;
        consider("adaround", subject.quantize(&fit.choices)?)?;
    }
    let best = if is_auto {
        least(&candidates)
    } else {
        candidates.len() - 1
    };
    let story = format!(
        "{story}{}{}",
        learned_layers(&layers, n_fit),
        comparison(&candidates, best)
    );
    let network = candidates.swap_remove(best).network;
    let model = QuantizedModel {
        network,
        preprocessing,
    };
    Ok((model, story))
}

fn search(
    subject: &Subject<'_>,
    start: &Choices,
    n_fit: usize,
    learns: bool,
    real: &(dyn Fn(usize) -> ndarray::Array3<f32> + Sync),
) -> Result<Choices> {
    let bar = output::progress("scales", 0);
    let mut progress = |_: &str, done: usize, n: usize| {
        bar.set_length(n as u64);
        bar.set_position(done as u64);
    };
    let alone = ActivationSearch::new(0..n_fit.min(SCALE_IMAGES));
    let mut choices = tune::search_activations(subject, start, &alone, real, &mut progress)?;
    if !learns {
        let search = tune::ScaleSearch::default();
        (choices, _) = tune::search_scales(subject, &choices, &search, &mut progress)?;
    }
    bar.finish_and_clear();
    Ok(choices)
}

fn learn(subject: &Subject<'_>, start: &Choices, settings: &Settings) -> Result<Fit> {
    let bar = output::progress("adaround", subject.float.layers.len());
    let mut progress = |_: &str, done: usize, _: usize| bar.set_position(done as u64);
    let fit = tune::adaround(subject, start, settings, &mut progress)?;
    bar.finish_and_clear();
    Ok(fit)
}

fn least(candidates: &[Candidate]) -> usize {
    let mut best = 0;
    for (index, candidate) in candidates.iter().enumerate() {
        if candidate.error.cost() < candidates[best].error.cost() {
            best = index;
        }
    }
    best
}

/// What learning did to each layer.
fn learned_layers(layers: &[LayerFit], n_fit: usize) -> String {
    let mut text = String::new();
    if layers.is_empty() {
        return text;
    }
    let width = layers.iter().map(|l| l.layer.chars().count()).max();
    let width = width.unwrap_or_default();
    let _ = writeln!(
        text,
        "rounding learned on {n_fit} images; mean squared error of a layer's output, against rounding to nearest:"
    );
    for layer in layers {
        let share = 100.0 * layer.error / layer.nearest_error.max(f64::MIN_POSITIVE);
        let _ = writeln!(
            text,
            "  {:width$}  {:>12.6}  nearest {:>12.6}  {share:>6.2} %",
            layer.layer, layer.error, layer.nearest_error
        );
    }
    text
}

/// The candidates' output errors, and which was taken.
fn comparison(candidates: &[Candidate], best: usize) -> String {
    let mut text = String::new();
    let n = candidates[best].error.n_images;
    let _ = writeln!(text, "output error on {n} held-out images:");
    for candidate in candidates {
        let error = &candidate.error;
        let _ = write!(
            text,
            "  {:10}  relative {:.5}",
            candidate.name, error.relative
        );
        if let (Some(divergence), Some(agreement)) = (error.divergence, error.agreement) {
            let share = agreement * 100.0;
            let _ = write!(
                text,
                "  divergence {divergence:.5}  same top-1 {share:6.2} %"
            );
        }
        text.push('\n');
    }
    let _ = writeln!(text, "taken: {}", candidates[best].name);
    text
}
