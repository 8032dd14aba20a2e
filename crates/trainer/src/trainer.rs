//! The loop: batches in, steps out, until the schedule ends.
//!
//! Invariant: the state after a step depends on the network, the settings, the data and the number of
//! steps alone: batches are divided into shards by their number of images, and shards are summed in
//! order.

use crate::batch_statistics::{self, BatchStatistics};
use crate::data::{Augmentation, Data};
use crate::error::Error;
use crate::float::Float;
use crate::graph::Graph;
use crate::integer::Integer;
use crate::loss::Distillation;
use crate::novice::Novice;
use crate::optimizer::{Optimizer, Parameter, Schedule};
use crate::pass::{Forward, Part, Pass, integers, n_classes, top1};
use crate::student::{ScaleRule, Student};
use crate::teacher::{Lens, Teacher};
use arith::Arithmetic;
use network::Network;
use quantizer::FloatNetwork;
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use serde::Serialize;

/// Images that one task works on: few, so that their maps stay in the cache.
const SHARD: usize = 4;

/// With batch normalization: enough for statistics.
pub(crate) const NORMED_SHARD: usize = 32;

/// What a run is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Widths, granularity: as for post-training quantization.
    pub quantizer: quantizer::Options,
    /// The machine's.
    pub arithmetic: Arithmetic,
    /// How scales learn.
    pub scales: ScaleRule,
    /// Scales are powers of two, so that requantization is a shift.
    pub power_of_two: bool,
    /// Passes over the images.
    pub epochs: u64,
    /// For so many of the first epochs every convolution that is no output is normalized by each
    /// batch's own statistics (those of the float network of the moment), which are folded into its
    /// weights before they are quantized; afterwards by the running ones, which stay (LLSQ).
    pub norm_epochs: u64,
    /// Images of a step.
    pub batch: usize,
    /// Rule for steps.
    pub optimizer: Optimizer,
    /// Learning rate at its peak.
    pub rate: f64,
    /// Epochs until the peak.
    pub warmup_epochs: f64,
    /// Of weights; scales and biases do not decay.
    pub weight_decay: f64,
    /// Share of the labels that is spread over all classes.
    pub label_smoothing: f64,
    /// A teacher's share in the loss; the float network itself unless [`Trainer::taught_by`] another.
    pub distillation: Option<Distillation>,
    /// Random changes of images.
    pub augmentation: Augmentation,
    /// What is validated and given out is a running average of the parameters, which keeps this
    /// share of itself at every step. Weights between two integers, which swing from one to the
    /// other until the end, then count as where they are on average (Izmailov et al., UAI 2018;
    /// the swinging: Nagel et al., ICML 2022).
    pub average: Option<f64>,
    /// Of the epochs, the one whose network was the best on the images kept aside is given out, not
    /// the last.
    pub keep_best: bool,
    /// Of order and changes.
    pub seed: u64,
}

/// What the last steps were like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Images seen.
    pub n_images: u64,
    /// Sum of their losses.
    pub loss: f64,
    /// Those whose largest output was their label's.
    pub n_right: u64,
}

/// An epoch's line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: u64,
    /// Learning rate of its last step.
    pub rate: f64,
    /// Mean loss of its images, as they were when they were seen.
    pub loss: f64,
    /// Top-1 of its images, varied as they were.
    pub top1: f64,
    /// Top-1 of the integer network on the images kept aside, after the epoch.
    pub validation_top1: Option<f64>,
}

/// The epoch whose network was the best on the images kept aside; of equals, the latest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Best {
    pub(crate) epoch: u64,
    pub(crate) top1: f64,
    /// By parameter.
    pub(crate) values: Vec<Vec<f32>>,
}

/// A run.
#[derive(Debug)]
pub struct Trainer {
    settings: Settings,
    subject: Subject,
    /// Steps done.
    step: u64,
    /// Of the epoch that has begun.
    totals: Totals,
    history: Vec<Epoch>,
    best: Option<Best>,
    /// The last epoch's order.
    order: Option<(u64, Vec<usize>)>,
}

/// Who learns.
#[derive(Debug)]
enum Subject {
    /// Integers, and the float network that teaches them.
    Integer(Box<Student>, Option<Teacher>),
    Float(Novice),
}

impl Trainer {
    /// A run that has not begun. `start` is the post-training network of `net` under the settings'
    /// options: its scales are where learning starts.
    ///
    /// # Errors
    /// A setting outside its range.
    pub fn new(net: &FloatNetwork, start: &Network, settings: Settings) -> Result<Self, Error> {
        check(&settings)?;
        let student = Student::new(
            net,
            start,
            &settings.quantizer,
            settings.arithmetic.accumulator,
            settings.scales,
            settings.power_of_two,
            settings.norm_epochs > 0,
        )?;
        let teaches = settings.distillation.is_some();
        let teacher = if teaches {
            Some(Teacher::own(net)?)
        } else {
            None
        };
        Ok(Self::begin(
            Subject::Integer(Box::new(student), teacher),
            settings,
        ))
    }

    /// Another teacher than the float network itself, where the settings ask for one.
    ///
    /// # Errors
    /// It takes other images, gives other outputs, or nobody is taught.
    pub fn taught_by(mut self, net: &FloatNetwork, lens: Lens) -> Result<Self, Error> {
        let other = Teacher::other(net, lens, &self.graph().net)?;
        match &mut self.subject {
            Subject::Integer(_, teacher @ Some(_)) => *teacher = Some(other),
            Subject::Integer(_, None) | Subject::Float(_) => {
                return Err(Error::Teacher("it has no share in the loss".into()));
            }
        }
        Ok(self)
    }

    /// A run of real numbers; what concerns integers in the settings does not matter.
    /// `from_scratch`: the network is only a shape, its weights are drawn from the seed, and batch
    /// normalization follows every convolution that is no output.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn float(
        net: &FloatNetwork,
        settings: Settings,
        from_scratch: bool,
    ) -> Result<Self, Error> {
        check(&settings)?;
        let novice = Novice::new(net, from_scratch.then_some(settings.seed))?;
        Ok(Self::begin(Subject::Float(novice), settings))
    }

    fn begin(subject: Subject, settings: Settings) -> Self {
        Self {
            settings,
            subject,
            step: 0,
            totals: Totals::default(),
            history: Vec::new(),
            best: None,
            order: None,
        }
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self, data: &Data) -> u64 {
        data.len().div_ceil(self.settings.batch) as u64
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Whether the schedule has ended.
    pub fn is_done(&self, data: &Data) -> bool {
        self.step >= self.settings.epochs * self.steps_per_epoch(data)
    }

    /// The epochs so far.
    pub fn history(&self) -> &[Epoch] {
        &self.history
    }

    /// Of the epoch that has begun.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The integers learned so far: those of the best epoch, of the average or of the last step, as the
    /// settings say. Nothing in a run of real numbers.
    ///
    /// # Errors
    /// A scale or bias that has no integer form.
    pub fn network(&mut self) -> Result<Option<Network>, Error> {
        self.with(self.result(), |subject| match subject {
            Subject::Integer(student, _) => Ok(Some(student.network()?)),
            Subject::Float(_) => Ok(None),
        })
    }

    /// The folded float network, chosen as [`Trainer::network`]; nothing in a run of integers.
    pub fn float_network(&mut self) -> Option<FloatNetwork> {
        self.with(self.result(), |subject| match subject {
            Subject::Integer(..) => None,
            Subject::Float(novice) => Some(novice.folded()),
        })
    }

    /// The epoch that [`Trainer::network`] is of, where it is not the last.
    pub fn kept_epoch(&self) -> Option<u64> {
        Some(self.best.as_ref()?.epoch)
    }

    pub(crate) fn best(&self) -> Option<&Best> {
        self.best.as_ref()
    }

    /// What is given out, if it is not the parameters of the moment.
    fn result(&self) -> Option<Vec<Vec<f32>>> {
        let best = self.best.as_ref().map(|best| best.values.clone());
        best.or_else(|| self.averages())
    }

    fn averages(&self) -> Option<Vec<Vec<f32>>> {
        self.settings.average?;
        Some(
            self.parameters()
                .iter()
                .map(|p| p.average.clone())
                .collect(),
        )
    }

    /// Something done with other values in the parameters, which are what they were afterwards.
    fn with<T>(&mut self, values: Option<Vec<Vec<f32>>>, act: impl FnOnce(&mut Subject) -> T) -> T {
        let Some(values) = values else {
            return act(&mut self.subject);
        };
        let parameters = self.subject.parameters_mut();
        let own = parameters.iter_mut().zip(values);
        let own: Vec<Vec<f32>> = own
            .map(|(parameter, values)| std::mem::replace(&mut parameter.values, values))
            .collect();
        let result = act(&mut self.subject);
        let parameters = self.subject.parameters_mut().iter_mut();
        parameters
            .zip(own)
            .for_each(|(parameter, values)| parameter.values = values);
        result
    }

    pub(crate) fn parameters(&self) -> &[Parameter] {
        match &self.subject {
            Subject::Integer(student, _) => &student.parameters,
            Subject::Float(novice) => &novice.parameters,
        }
    }

    fn graph(&self) -> &Graph {
        self.subject.graph()
    }

    /// The settings, and the network's name, as one line of JSON.
    pub(crate) fn settings_text(&self) -> String {
        let mut all = serde_json::json!(self.settings);
        all["network"] = self.graph().net.name.clone().into();
        if let Subject::Integer(_, Some(teacher)) = &self.subject
            && let Some(identity) = teacher.identity()
        {
            all["teacher"] = identity;
        }
        all.to_string()
    }

    pub(crate) fn set_state(
        &mut self,
        parameters: Vec<Parameter>,
        step: u64,
        totals: Totals,
        history: Vec<Epoch>,
        best: Option<Best>,
    ) {
        *self.subject.parameters_mut() = parameters;
        (self.step, self.totals, self.history) = (step, totals, history);
        self.best = best;
    }

    /// Whether the data belongs to the network.
    ///
    /// # Errors
    /// Another shape, labels that are no classes, or nothing to learn from.
    pub fn check_data(&self, data: &Data) -> Result<(), Error> {
        let shape = self.graph().shape(0);
        if data.shape() != shape {
            return Err(Error::Data(format!(
                "the images are {}, the network takes {shape}",
                data.shape()
            )));
        }
        let classes = n_classes(self.graph());
        let labels = data.labels().filter(|_| classes.is_some());
        let has_teacher = matches!(self.subject, Subject::Integer(_, Some(_)));
        if labels.is_none() && !has_teacher {
            return Err(Error::Data(
                "there are no class labels to learn: only distillation needs none".into(),
            ));
        }
        let n_classes = classes.unwrap_or(usize::MAX);
        let mut labels = labels.into_iter().flatten().enumerate();
        match labels.find(|&(_, &label)| label >= n_classes) {
            None => Ok(()),
            Some((index, label)) => Err(Error::Data(format!(
                "label {label} of image {index} is out of range: the network has {n_classes} classes"
            ))),
        }
    }

    /// One step. At the end of an epoch `validation` is looked at too.
    ///
    /// # Errors
    /// The loss is no number any more, or a scale or bias has no integer form.
    pub fn step(&mut self, data: &Data, validation: Option<&Data>) -> Result<(), Error> {
        let per_epoch = self.steps_per_epoch(data);
        let (epoch, index) = (self.step / per_epoch, self.step % per_epoch);
        let schedule = Schedule {
            peak: self.settings.rate,
            n_warmup: (self.settings.warmup_epochs * per_epoch as f64).round() as u64,
            n_steps: self.settings.epochs * per_epoch,
        };
        let rate = schedule.rate(self.step);
        let order = match self.order.take() {
            Some((of, order)) if of == epoch => order,
            _ => data.order(self.settings.seed, epoch),
        };
        let batch = evenly(&order, per_epoch as usize, index as usize);
        let settings = &self.settings;
        let (totals, gradients) = match &mut self.subject {
            Subject::Integer(student, teacher) => {
                if settings.norm_epochs > 0 && self.step == 0 {
                    batch_statistics::begin(student, data);
                }
                integer_step(student, teacher.as_ref(), settings, data, batch, epoch)?
            }
            Subject::Float(novice) => float_step(novice, settings, data, batch, epoch),
        };
        self.order = Some((epoch, order));
        if !totals.loss.is_finite() {
            let (step, loss) = (self.step, totals.loss);
            return Err(Error::Diverged { step, loss, rate });
        }
        self.step += 1;
        let parameters = self.subject.parameters_mut();
        for (parameter, gradient) in parameters.iter_mut().zip(&gradients) {
            let (optimizer, decay) = (self.settings.optimizer, self.settings.weight_decay);
            parameter.step(gradient, optimizer, rate, decay, self.step);
            if let Some(decay) = self.settings.average {
                parameter.remember(decay, self.step);
            }
        }
        self.totals.add(totals);
        if self.step.is_multiple_of(per_epoch) {
            self.close(epoch + 1, rate, validation)?;
        }
        Ok(())
    }

    fn close(&mut self, epoch: u64, rate: f64, validation: Option<&Data>) -> Result<(), Error> {
        let totals = std::mem::take(&mut self.totals);
        let n = totals.n_images.max(1) as f64;
        let values = self.averages();
        let mut validation_top1 = None;
        if let Some(data) = validation {
            let arithmetic = self.settings.arithmetic;
            let top1 = self.with(values.clone(), |subject| subject.top1(data, arithmetic))?;
            validation_top1 = Some(top1);
            let before = self.best.as_ref().map_or(0.0, |best| best.top1);
            if self.settings.keep_best && top1 >= before {
                let now = || self.parameters().iter().map(|p| p.values.clone()).collect();
                self.best = Some(Best {
                    epoch,
                    top1,
                    values: values.unwrap_or_else(now),
                });
            }
        }
        self.history.push(Epoch {
            epoch,
            rate,
            loss: totals.loss / n,
            top1: totals.n_right as f64 / n,
            validation_top1,
        });
        Ok(())
    }

    /// Top-1 of what [`Trainer::network`] gives.
    ///
    /// # Errors
    /// As [`Trainer::network`]; or the images have no labels.
    pub fn top1(&mut self, data: &Data) -> Result<f64, Error> {
        let arithmetic = self.settings.arithmetic;
        self.with(self.result(), |subject| subject.top1(data, arithmetic))
    }

    /// Every tensor of one image as the next step's pass computes it, channels fastest; nothing in a
    /// run of real numbers.
    ///
    /// # Errors
    /// As [`Trainer::network`].
    pub fn evaluate(&mut self, data: &Data, image: usize) -> Result<Vec<Vec<i32>>, Error> {
        let Subject::Integer(student, _) = &mut self.subject else {
            return Ok(Vec::new());
        };
        let network = student.network()?;
        let integer = Integer::new(&student.graph, &network, self.settings.arithmetic);
        let tape = integer.run(integers(data.image(image), &network), true);
        let exact = |values: Vec<f32>| values.into_iter().map(|v| v as i32).collect();
        Ok(tape.values.into_iter().map(exact).collect())
    }
}

impl Subject {
    fn parameters_mut(&mut self) -> &mut Vec<Parameter> {
        match self {
            Self::Integer(student, _) => &mut student.parameters,
            Self::Float(novice) => &mut novice.parameters,
        }
    }

    fn graph(&self) -> &Graph {
        match self {
            Self::Integer(student, _) => &student.graph,
            Self::Float(novice) => &novice.graph,
        }
    }

    fn top1(&mut self, data: &Data, arithmetic: Arithmetic) -> Result<f64, Error> {
        let Some(labels) = data.labels() else {
            return Err(Error::Data("the validation images have no labels".into()));
        };
        let output = self.graph().net.outputs[0];
        let count = |outputs: &(dyn Fn(&[f32]) -> Vec<f32> + Sync)| -> usize {
            (0..data.len())
                .into_par_iter()
                .zip(labels)
                .map(|(index, &label)| usize::from(top1(&outputs(data.image(index))) == label))
                .sum()
        };
        let n_right = match self {
            Self::Integer(student, _) => {
                let network = student.network()?;
                let integer = Integer::new(&student.graph, &network, arithmetic);
                count(&|image| {
                    let mut tape = integer.run(integers(image, &network), false);
                    std::mem::take(&mut tape.values[output])
                })
            }
            Self::Float(novice) => {
                let graph = Graph::new(&novice.folded())?;
                let float = Float::new(&graph, &[]);
                count(&|image| std::mem::take(&mut float.run(image.to_vec()).values[output]))
            }
        };
        Ok(n_right as f64 / data.len() as f64)
    }
}

impl Totals {
    pub(crate) fn add(&mut self, other: Self) {
        self.n_images += other.n_images;
        self.loss += other.loss;
        self.n_right += other.n_right;
    }
}

/// Part `index` of `n`, none of which differs from another by more than one.
pub(crate) fn evenly(all: &[usize], n: usize, index: usize) -> &[usize] {
    &all[all.len() * index / n..all.len() * (index + 1) / n]
}

fn run(pass: &Pass<'_>, data: &Data, batch: &[usize], epoch: u64, shard: usize) -> Part {
    let n = batch.len().div_ceil(shard);
    let parts: Vec<Part> = (0..n)
        .into_par_iter()
        .map(|index| pass.shard(data, evenly(batch, n, index), epoch))
        .collect();
    let sum = parts.into_iter().reduce(|mut sum, part| {
        sum.add(part);
        sum
    });
    sum.expect("a batch has images")
}

fn integer_step(
    student: &mut Student,
    teacher: Option<&Teacher>,
    settings: &Settings,
    data: &Data,
    batch: &[usize],
    epoch: u64,
) -> Result<(Totals, Vec<Vec<f32>>), Error> {
    let seen = (epoch < settings.norm_epochs)
        .then(|| BatchStatistics::of(student, settings, data, batch, epoch));
    let network = match &seen {
        Some(seen) => {
            student.follow(&seen.statistics);
            student.network_by(&seen.statistics)?
        }
        None => student.network()?,
    };
    let pass = Pass {
        settings,
        graph: &student.graph,
        forward: Forward::Integer(Integer::new(&student.graph, &network, settings.arithmetic)),
        teacher: teacher.map(Teacher::begin),
        panels: &student.panels_back(&network),
        learned: &student.learned(),
        norms: &[],
        n_batch: batch.len(),
        with_errors: settings.scales == ScaleRule::Llsq,
    };
    let part = run(&pass, data, batch, epoch, SHARD);
    let mut gradients = student.gradients(&network, &part.gradients, &part.errors);
    if let Some(seen) = &seen {
        seen.backward(student, &mut gradients);
    }
    Ok((part.totals, gradients))
}

fn float_step(
    novice: &mut Novice,
    settings: &Settings,
    data: &Data,
    batch: &[usize],
    epoch: u64,
) -> (Totals, Vec<Vec<f32>>) {
    novice.refresh();
    let norms = novice.norms();
    let is_normed = norms.iter().any(Option::is_some);
    let pass = Pass {
        settings,
        graph: &novice.graph,
        forward: Forward::Float(Float::new(&novice.graph, &norms)),
        teacher: None,
        panels: &novice.graph.panels_back(),
        learned: &vec![None; norms.len()],
        norms: &norms,
        n_batch: batch.len(),
        with_errors: false,
    };
    let shard = if is_normed { NORMED_SHARD } else { SHARD };
    let part = run(&pass, data, batch, epoch, shard);
    let share = 1.0 / part.normalized.len() as f32;
    for normalized in &part.normalized {
        novice.observe(normalized, share);
    }
    (part.totals, novice.gradients(&part.gradients))
}

fn check(settings: &Settings) -> Result<(), Error> {
    let refuse = |name, value: &dyn std::fmt::Display, needed: &str| {
        Err(Error::Setting {
            name,
            value: value.to_string(),
            needed: needed.into(),
        })
    };
    if settings.epochs == 0 {
        return refuse("epochs", &settings.epochs, "at least 1");
    }
    if settings.norm_epochs > settings.epochs {
        let needed = format!("0 to the {} epochs", settings.epochs);
        return refuse("batch-norm epochs", &settings.norm_epochs, &needed);
    }
    if settings.batch == 0 {
        return refuse("batch", &settings.batch, "at least 1");
    }
    if !(settings.rate.is_finite() && settings.rate > 0.0) {
        return refuse("rate", &settings.rate, "finite and above 0");
    }
    if !(0.0..=settings.epochs as f64).contains(&settings.warmup_epochs) {
        let needed = format!("0 to the {} epochs", settings.epochs);
        return refuse("warm-up", &settings.warmup_epochs, &needed);
    }
    if !(0.0..1.0).contains(&settings.weight_decay) {
        return refuse("weight decay", &settings.weight_decay, "0 or more, below 1");
    }
    if !(0.0..1.0).contains(&settings.label_smoothing) {
        return refuse(
            "label smoothing",
            &settings.label_smoothing,
            "0 or more, below 1",
        );
    }
    if !(0.0..=1.0).contains(&settings.augmentation.mix) {
        return refuse("mix", &settings.augmentation.mix, "0 to 1");
    }
    if let Some(decay) = settings.average.filter(|d| !(0.0..1.0).contains(d)) {
        return refuse("average", &decay, "0 or more, below 1");
    }
    if let Some(d) = settings.distillation {
        if !(0.0..=1.0).contains(&d.weight) {
            return refuse("distillation weight", &d.weight, "0 to 1");
        }
        if !(d.temperature.is_finite() && d.temperature > 0.0) {
            return refuse("temperature", &d.temperature, "finite and above 0");
        }
    }
    Ok(())
}
