//! A run's state as bytes: everything that the next step depends on.
//!
//! Invariant: a run that goes on from its bytes takes the same steps as one that was never stopped;
//! bytes of another network or of other settings are refused.

use crate::error::Error;
use crate::optimizer::Parameter;
use crate::trainer::{Best, Epoch, Totals, Trainer};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;

const SETTINGS: &str = "systole-train-settings";
/// Numbers of the run: steps, then the totals of the epoch that has begun.
const STATE: &str = "state";
/// One row an epoch.
const HISTORY: &str = "history";
const N_COLUMNS: usize = 5;
/// The epoch and its top-1, then the values of every parameter in order.
const BEST: &str = "best";
const PARTS: [&str; 4] = ["values", "first", "second", "average"];

fn lists(parameter: &Parameter) -> [&Vec<f32>; 4] {
    let [first, second] = &parameter.slots;
    [&parameter.values, first, second, &parameter.average]
}

fn name(index: usize, parameter: &Parameter, part: &str) -> String {
    format!("{index}.{}.{part}", parameter.name)
}

impl Trainer {
    /// The state.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut arrays: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (index, parameter) in self.parameters().iter().enumerate() {
            for (part, values) in PARTS.iter().zip(lists(parameter)) {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let name = name(index, parameter, part);
                arrays.push((name, Dtype::F32, vec![values.len()], bytes));
            }
        }
        let totals = self.totals();
        let state = [
            self.steps_done() as f64,
            totals.n_images as f64,
            totals.loss,
            totals.n_right as f64,
        ];
        let history: Vec<f64> = self.history().iter().flat_map(row).collect();
        let best = self.best().map_or(Vec::new(), Best::numbers);
        for (name, values) in [
            (STATE, state.as_slice()),
            (HISTORY, &history),
            (BEST, &best),
        ] {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            arrays.push((name.into(), Dtype::F64, vec![values.len()], bytes));
        }
        let views = arrays.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (name.clone(), view.expect("as many bytes as elements"))
        });
        let views: BTreeMap<String, TensorView<'_>> = views.collect();
        let settings = [(SETTINGS.to_owned(), self.settings_text())];
        safetensors::serialize(views, Some(settings.into_iter().collect()))
            .expect("memory takes any number of bytes")
    }

    /// Goes on where the bytes' run stood.
    ///
    /// # Errors
    /// Damaged bytes, or a state of another network or of other settings; nothing has changed then.
    pub fn resume(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let damaged = |problem: &str| Error::Checkpoint(problem.into());
        let (_, header) = SafeTensors::read_metadata(bytes)
            .map_err(|error| Error::Checkpoint(error.to_string()))?;
        let text = header.metadata().as_ref().and_then(|m| m.get(SETTINGS));
        match text {
            None => return Err(damaged("it is no state of a training run")),
            Some(text) if *text != self.settings_text() => {
                return Err(Error::Checkpoint(difference(text, &self.settings_text())));
            }
            Some(_) => {}
        }
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| Error::Checkpoint(error.to_string()))?;
        let mut parameters = self.parameters().to_vec();
        for (index, parameter) in parameters.iter_mut().enumerate() {
            let names = PARTS.map(|part| name(index, parameter, part));
            let [first, second] = &mut parameter.slots;
            let lists = [&mut parameter.values, first, second, &mut parameter.average];
            for (name, values) in names.iter().zip(lists) {
                let view = file
                    .tensor(name)
                    .map_err(|error| Error::Checkpoint(error.to_string()))?;
                let (found, exact) = view.data().as_chunks::<4>();
                if view.dtype() != Dtype::F32 || !exact.is_empty() || found.len() != values.len() {
                    return Err(Error::Checkpoint(format!(
                        "`{name}` has {} numbers, the network needs {}",
                        found.len(),
                        values.len()
                    )));
                }
                for (value, bytes) in values.iter_mut().zip(found) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
        let doubles = |name: &str| -> Result<Vec<f64>, Error> {
            let view = file
                .tensor(name)
                .map_err(|error| Error::Checkpoint(error.to_string()))?;
            let (found, _) = view.data().as_chunks::<8>();
            Ok(found
                .iter()
                .map(|bytes| f64::from_le_bytes(*bytes))
                .collect())
        };
        let &[step, n_images, loss, n_right] = doubles(STATE)?.as_slice() else {
            return Err(damaged("its state is not four numbers"));
        };
        let history = doubles(HISTORY)?;
        let totals = Totals {
            n_images: n_images as u64,
            loss,
            n_right: n_right as u64,
        };
        let history = history.chunks_exact(N_COLUMNS).map(epoch).collect();
        let best = match doubles(BEST)?.as_slice() {
            [] => None,
            numbers => Some(
                Best::from_numbers(numbers, &parameters)
                    .ok_or_else(|| damaged("its best epoch is of another network"))?,
            ),
        };
        self.set_state(parameters, step as u64, totals, history, best);
        Ok(())
    }
}

impl Best {
    fn numbers(&self) -> Vec<f64> {
        let values = self.values.iter().flatten().map(|&v| f64::from(v));
        [self.epoch as f64, self.top1]
            .into_iter()
            .chain(values)
            .collect()
    }

    /// Nothing if there are not as many numbers as the parameters have.
    fn from_numbers(numbers: &[f64], parameters: &[Parameter]) -> Option<Self> {
        let (&[epoch, top1], mut rest) = numbers.split_first_chunk()?;
        let mut values = Vec::with_capacity(parameters.len());
        for parameter in parameters {
            let (of_parameter, after) = rest.split_at_checked(parameter.values.len())?;
            values.push(of_parameter.iter().map(|&v| v as f32).collect());
            rest = after;
        }
        rest.is_empty().then_some(Self {
            epoch: epoch as u64,
            top1,
            values,
        })
    }
}

fn row(epoch: &Epoch) -> [f64; N_COLUMNS] {
    let validation = epoch.validation_top1.unwrap_or(f64::NAN);
    [
        epoch.epoch as f64,
        epoch.rate,
        epoch.loss,
        epoch.top1,
        validation,
    ]
}

fn epoch(row: &[f64]) -> Epoch {
    Epoch {
        epoch: row[0] as u64,
        rate: row[1],
        loss: row[2],
        top1: row[3],
        validation_top1: Some(row[4]).filter(|v| !v.is_nan()),
    }
}

/// The first setting that differs.
fn difference(theirs: &str, ours: &str) -> String {
    let keys = |text: &str| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_str(text).unwrap_or_default()
    };
    let (theirs, ours) = (keys(theirs), keys(ours));
    let differing = ours
        .iter()
        .find(|(key, value)| theirs.get(*key) != Some(value));
    match differing {
        Some((key, value)) => {
            let before = theirs.get(key).unwrap_or(&serde_json::Value::Null);
            format!("it is of a run with {key} = {before}, asked for is {value}")
        }
        None => "it is of a run with other settings".into(),
    }
}
