//! Mixed precision: which layer gets how many bits.
//!
//! Every weight tensor and every activation starts at the widest width. What each narrower width
//! costs alone is measured on the network's outputs; what it saves is what the machine's timing says
//! in context. Then, again and again, the step that saves most cycles for its error is taken, until
//! the budget is met. At the end bits that no cycle is saved by are given back.
//!
//! Invariant: a step is taken only if it saves cycles, and every estimate is made on the same
//! images, so that the order of steps depends on nothing else.

use crate::{Error, OutputError, Progress, Subject, output_error};
use network::Network;
use quantizer::{Choices, FloatNetwork, FloatOp, LayerBits, Options};
use std::collections::BTreeMap;
use std::ops::Range;

/// Cycles of a network on the machine; `None` when it does not fit.
pub type Cycles<'a> = dyn Fn(&Network) -> Option<u64> + 'a;

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// At most so many cycles, at the least error.
    Cycles(u64),
    /// At most this share of images whose class is another than the float network's, in the fewest
    /// cycles.
    Disagreement(f64),
}

/// How [`mixed`] works.
#[derive(Clone, Debug, PartialEq)]
pub struct MixedSearch {
    /// Widths to choose from, ascending.
    pub widths: Vec<u8>,
    /// Images that each width's cost is measured on.
    pub sensitivity_images: Range<usize>,
    /// Images that the disagreement is measured on.
    pub held_out: Range<usize>,
}

/// Bits by layer, and what they come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// By layer name.
    pub bits: BTreeMap<String, LayerBits>,
    /// On the machine; at the widest width, as chosen, at the narrowest.
    pub cycles: [u64; 3],
    /// On the held-out images, with weights rounded to nearest.
    pub error: OutputError,
}

/// What gets a width of its own.
#[derive(Clone, Debug, PartialEq)]
enum Knob {
    /// Of one layer, by name.
    Weights(String),
    /// Outputs that share a scale, by the names of the layers that make them.
    Activations(Vec<String>),
}

/// Searches the bits of every layer that the options do not fix.
///
/// # Errors
/// A layer that has no integer form; [`Error::Budget`] when nothing meets the budget.
pub fn mixed(
    subject: &Subject<'_>,
    budget: Budget,
    search: &MixedSearch,
    cycles: &Cycles<'_>,
    progress: &mut Progress<'_>,
) -> Result<Mix, Error> {
    let mut descent = Descent::new(subject, search, cycles, progress)?;
    descent.run(budget, progress)?;
    descent.give_back(budget)?;
    let error = descent.measured(&descent.at)?;
    let widest = descent.time(&vec![descent.widest(); descent.knobs.len()]);
    let narrowest = descent.time(&vec![0; descent.knobs.len()]);
    let chosen = descent.time(&descent.at);
    let unfit = || Error::Budget("the network does not fit the machine".to_owned());
    Ok(Mix {
        bits: descent.options(&descent.at).overrides,
        cycles: [
            widest.ok_or_else(unfit)?,
            chosen.ok_or_else(unfit)?,
            narrowest.ok_or_else(unfit)?,
        ],
        error,
    })
}

/// One or two knobs to be turned down to a width.
#[derive(Clone, Debug)]
struct Candidate {
    knobs: Vec<usize>,
    width: usize,
    /// Cycles saved per error, as last seen.
    worth: f64,
}

struct Descent<'a> {
    subject: &'a Subject<'a>,
    search: &'a MixedSearch,
    cycles: &'a Cycles<'a>,
    shapes: FloatNetwork,
    knobs: Vec<Knob>,
    /// By knob and width: error beyond that of the widest.
    costs: Vec<Vec<f64>>,
    /// Each knob's width, as an index.
    at: Vec<usize>,
    candidates: Vec<Candidate>,
}

impl<'a> Descent<'a> {
    fn new(
        subject: &'a Subject<'a>,
        search: &'a MixedSearch,
        cycles: &'a Cycles<'a>,
        progress: &mut Progress<'_>,
    ) -> Result<Self, Error> {
        let (knobs, pairs) = knobs(subject.float, subject.options);
        let mut shapes = subject.float.clone();
        shapes.shapes_only = true;
        let mut made = Self {
            subject,
            search,
            cycles,
            shapes,
            at: vec![search.widths.len() - 1; knobs.len()],
            knobs,
            costs: Vec::new(),
            candidates: Vec::new(),
        };
        made.costs = made.sensitivities(progress)?;
        for width in 0..made.widest() {
            let single = (0..made.knobs.len()).map(|knob| vec![knob]);
            let pairs = pairs.iter().map(|pair| pair.to_vec());
            made.candidates
                .extend(single.chain(pairs).map(|knobs| Candidate {
                    knobs,
                    width,
                    worth: f64::INFINITY,
                }));
        }
        Ok(made)
    }

    fn widest(&self) -> usize {
        self.search.widths.len() - 1
    }

    fn options(&self, at: &[usize]) -> Options {
        let mut options = self.subject.options.clone();
        for (knob, &width) in self.knobs.iter().zip(at) {
            let bits = Some(self.search.widths[width]);
            match knob {
                Knob::Weights(name) => {
                    let layer = options.overrides.entry(name.clone()).or_default();
                    layer.weight_bits = bits;
                }
                Knob::Activations(names) => {
                    for name in names {
                        let layer = options.overrides.entry(name.clone()).or_default();
                        layer.activation_bits = bits;
                    }
                }
            }
        }
        options
    }

    fn network(&self, at: &[usize]) -> Result<Network, Error> {
        let (float, observer) = (self.subject.float, Some(self.subject.observer));
        let options = self.options(at);
        let choices = Choices::default();
        Ok(quantizer::quantize_with(
            float, observer, &options, &choices,
        )?)
    }

    fn time(&self, at: &[usize]) -> Option<u64> {
        let network = quantizer::quantize(&self.shapes, None, &self.options(at)).ok()?;
        (self.cycles)(&network)
    }

    fn measured(&self, at: &[usize]) -> Result<OutputError, Error> {
        let network = self.network(at)?;
        output_error(self.subject, &network, self.search.held_out.clone())
    }

    /// What each width of each knob costs alone.
    fn sensitivities(&self, progress: &mut Progress<'_>) -> Result<Vec<Vec<f64>>, Error> {
        let error = |at: &[usize]| -> Result<f64, Error> {
            let network = self.network(at)?;
            let images = self.search.sensitivity_images.clone();
            Ok(output_error(self.subject, &network, images)?.relative)
        };
        let base = error(&self.at)?;
        let n = self.knobs.len();
        let mut costs = Vec::with_capacity(n);
        for knob in 0..n {
            progress("sensitivity", knob, n);
            let mut of_knob = vec![0.0; self.search.widths.len()];
            // A narrower width is taken to cost no less than a wider one.
            for width in (0..self.widest()).rev() {
                let mut at = self.at.clone();
                at[knob] = width;
                of_knob[width] = (error(&at)? - base).max(of_knob[width + 1]);
            }
            costs.push(of_knob);
        }
        Ok(costs)
    }

    fn turned(&self, candidate: &Candidate) -> Vec<usize> {
        let mut at = self.at.clone();
        for &knob in &candidate.knobs {
            at[knob] = at[knob].min(candidate.width);
        }
        at
    }

    /// Cycles saved for the error added, from where the descent stands; `None` if none are.
    fn worth(&self, candidate: &Candidate, now: u64) -> Option<f64> {
        let at = self.turned(candidate);
        let saved = now
            .checked_sub(self.time(&at)?)
            .filter(|&saved| saved > 0)?;
        let added: f64 = candidate
            .knobs
            .iter()
            .map(|&knob| self.costs[knob][at[knob]] - self.costs[knob][self.at[knob]])
            .sum();
        Some(saved as f64 / added.max(1e-9))
    }

    /// Takes the best step until the budget is met (cycles) or nothing more may go (disagreement).
    fn run(&mut self, budget: Budget, progress: &mut Progress<'_>) -> Result<(), Error> {
        let Some(first) = self.time(&self.at) else {
            return Err(Error::Budget(
                "the network at its widest does not fit the machine".to_owned(),
            ));
        };
        if let Budget::Disagreement(most) = budget {
            let least = self.disagreement(&self.at)?;
            if least > most {
                return Err(Error::Budget(format!(
                    "{:.2} points: even the widest layers lose {:.2} on the held-out images",
                    most * 100.0,
                    least * 100.0
                )));
            }
        }
        let mut now = first;
        let mut idle: Vec<Candidate> = Vec::new();
        let mut n_steps = 0;
        loop {
            if let Budget::Cycles(most) = budget
                && now <= most
            {
                return Ok(());
            }
            let Some(candidate) = self.next(now, &mut idle) else {
                break;
            };
            let at = self.turned(&candidate);
            if let Budget::Disagreement(most) = budget
                && self.disagreement(&at)? > most
            {
                continue;
            }
            self.at = at;
            now = self.time(&self.at).unwrap_or(now);
            n_steps += 1;
            progress("bits", n_steps, n_steps + self.candidates.len());
            // What saved nothing before may save now.
            self.candidates.append(&mut idle);
        }
        match budget {
            Budget::Cycles(most) => Err(Error::Budget(format!(
                "{most} cycles: the least that was found is {now}, at {} bits {first}",
                self.search.widths[self.widest()]
            ))),
            Budget::Disagreement(_) => Ok(()),
        }
    }

    /// The candidate that is worth most now. Worths seldom rise, so only those that lead by their old
    /// worth are computed anew.
    fn next(&mut self, now: u64, idle: &mut Vec<Candidate>) -> Option<Candidate> {
        let mut fresh = f64::NEG_INFINITY;
        let mut best: Option<Candidate> = None;
        loop {
            let leader = (0..self.candidates.len())
                .max_by(|&a, &b| {
                    let worths = [a, b].map(|index| self.candidates[index].worth);
                    worths[0].total_cmp(&worths[1]).then(b.cmp(&a))
                })
                .filter(|&index| self.candidates[index].worth > fresh);
            let Some(leader) = leader else { break };
            let mut candidate = self.candidates.remove(leader);
            if candidate
                .knobs
                .iter()
                .all(|&knob| self.at[knob] <= candidate.width)
            {
                continue;
            }
            match self.worth(&candidate, now) {
                None => idle.push(candidate),
                Some(worth) => {
                    candidate.worth = worth;
                    if worth > fresh {
                        fresh = worth;
                        self.candidates.extend(best.replace(candidate));
                    } else {
                        self.candidates.push(candidate);
                    }
                }
            }
        }
        best
    }

    fn disagreement(&self, at: &[usize]) -> Result<f64, Error> {
        let error = self.measured(at)?;
        let agreement = error.agreement.ok_or_else(|| {
            Error::Budget(
                "in points: the first output is no vector of classes; give cycles".to_owned(),
            )
        })?;
        Ok(others_share(agreement, self.search.held_out.len()))
    }

    /// Widens, most sensitive first, whatever costs no cycle beyond the budget (or, where accuracy is
    /// the budget, no cycle at all, and keeps to it: more bits may change other images).
    fn give_back(&mut self, budget: Budget) -> Result<(), Error> {
        let most = match budget {
            Budget::Cycles(most) => most,
            Budget::Disagreement(_) => self.time(&self.at).unwrap_or(0),
        };
        let mut order: Vec<usize> = (0..self.knobs.len()).collect();
        let cost = |knob: usize| self.costs[knob][self.at[knob]];
        order.sort_by(|&a, &b| cost(b).total_cmp(&cost(a)).then(a.cmp(&b)));
        for knob in order {
            for width in (self.at[knob] + 1..=self.widest()).rev() {
                let mut at = self.at.clone();
                at[knob] = width;
                if self.time(&at).is_none_or(|cycles| cycles > most) {
                    continue;
                }
                if let Budget::Disagreement(most) = budget
                    && self.disagreement(&at)? > most
                {
                    continue;
                }
                self.at = at;
                break;
            }
        }
        Ok(())
    }
}

/// The knobs, and which of them a layer's products are made of.
fn knobs(net: &FloatNetwork, options: &Options) -> (Vec<Knob>, Vec<[usize; 2]>) {
    let groups = quantizer::scale_groups(net);
    let fixed = |name: &str| options.overrides.get(name).copied().unwrap_or_default();
    let mut knobs = Vec::new();
    let mut of_group = BTreeMap::new();
    let is_read = |t: usize| {
        net.layers
            .iter()
            .any(|layer| layer.op.inputs().contains(&t))
    };
    for root in 0..net.tensors.len() {
        let makers: Vec<_> = (net.layers.iter())
            .filter(|layer| groups[layer.output] == root)
            .collect();
        let is_input = groups[0] == root;
        let is_inside = makers.len() > 1 || makers.iter().any(|layer| is_read(layer.output));
        let is_free = makers
            .iter()
            .all(|layer| fixed(&layer.name).activation_bits.is_none());
        if !is_input && is_inside && is_free {
            let names = makers.iter().map(|layer| layer.name.clone()).collect();
            of_group.insert(root, knobs.len());
            knobs.push(Knob::Activations(names));
        }
    }
    let mut pairs = Vec::new();
    for layer in &net.layers {
        if let FloatOp::Conv(conv) = &layer.op
            && fixed(&layer.name).weight_bits.is_none()
        {
            if let Some(&input) = of_group.get(&groups[conv.input]) {
                pairs.push([knobs.len(), input]);
            }
            knobs.push(Knob::Weights(layer.name.clone()));
        }
    }
    (knobs, pairs)
}

/// `1 - agreement` as a whole number of `n` images: a budget of just as many is met.
fn others_share(agreement: f64, n: usize) -> f64 {
    let n = n.max(1) as f64;
    (n - (agreement * n).round()) / n
}

#[cfg(test)]
mod tests {
    /// A budget in points, as it is read, is met by as many images.
    #[test]
    fn budgets_are_met_exactly() {
        for n in 1..=2000 {
            for others in [0, 1, n / 200, n / 2, n] {
                let agreement = (n - others) as f64 / n as f64;
                let share = super::others_share(agreement, n);
                assert_eq!(share.to_bits(), (others as f64 / n as f64).to_bits());
            }
        }
        assert_eq!(
            super::others_share(0.995, 1000).to_bits(),
            (0.5f64 / 100.0).to_bits()
        );
    }
}
