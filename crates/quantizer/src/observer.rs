//! What calibration saw of each tensor: a histogram whose bins never depend on the order.
//!
//! Invariant: a histogram's range is the smallest power of two above its largest magnitude, and
//! widening merges neighbouring bins exactly; observing in any order, or merging the observers
//! of several threads, gives the same histogram.

use crate::Error;
use crate::scale::Values;
use std::collections::BTreeMap;

/// Bins over `-2^exponent .. 2^exponent`.
const N_BINS: usize = 8192;

/// Smallest range: values below `2^-60` all share the two middle bins.
const MIN_EXPONENT: i32 = -48;

/// Calibration values by tensor name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observer {
    tensors: BTreeMap<String, Histogram>,
}

/// The values of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    exponent: i32,
    counts: Vec<u64>,
    n_zero: u64,
    min: f32,
    max: f32,
}

impl Observer {
    /// An observer that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in values of one tensor.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for NaN and infinities; nothing is taken in then.
    pub fn observe(&mut self, name: &str, values: &[f32]) -> Result<(), Error> {
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            let value = values[index];
            return Err(Error::NotFinite {
                tensor: name.into(),
                index,
                value,
            });
        }
        if !self.tensors.contains_key(name) {
            self.tensors.insert(name.into(), Histogram::new());
        }
        if let Some(histogram) = self.tensors.get_mut(name) {
            histogram.add(values);
        }
        Ok(())
    }

    /// Takes in what another observer saw.
    pub fn merge(&mut self, other: &Self) {
        for (name, histogram) in &other.tensors {
            match self.tensors.get_mut(name) {
                Some(mine) => mine.merge(histogram),
                None => {
                    self.tensors.insert(name.clone(), histogram.clone());
                }
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Histogram, Error> {
        self.tensors.get(name).ok_or_else(|| Error::NotObserved {
            tensor: name.into(),
        })
    }

    /// Smallest and largest value seen of a tensor.
    pub fn range(&self, name: &str) -> Option<(f32, f32)> {
        self.tensors.get(name).map(|h| (h.min, h.max))
    }
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            exponent: MIN_EXPONENT,
            counts: vec![0; N_BINS],
            n_zero: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
        }
    }

    /// Bin width.
    fn width(&self) -> f64 {
        2f64.powi(self.exponent + 1) / N_BINS as f64
    }

    fn add(&mut self, values: &[f32]) {
        let (mut min, mut max) = (self.min, self.max);
        for &v in values {
            min = min.min(v);
            max = max.max(v);
        }
        (self.min, self.max) = (min, max);
        let peak = f64::from(min.abs().max(max.abs()));
        if !values.is_empty() {
            self.widen(peak);
        }
        let inverse = 1.0 / self.width();
        for &v in values {
            if v == 0.0 {
                self.n_zero += 1;
            } else {
                let bin = (f64::from(v) * inverse).floor() as i64 + N_BINS as i64 / 2;
                self.counts[bin as usize] += 1;
            }
        }
    }

    /// Doubles the range until it exceeds `peak`.
    fn widen(&mut self, peak: f64) {
        while 2f64.powi(self.exponent) <= peak {
            let mut merged = vec![0; N_BINS];
            for (bin, &count) in self.counts.iter().enumerate() {
                // floor(x / 2w) = floor(floor(x / w) / 2), so nothing moves between bins.
                merged[usize::midpoint(bin, N_BINS / 2)] += count;
            }
            self.counts = merged;
            self.exponent += 1;
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        self.widen(2f64.powi(other.exponent - 1));
        other.widen(2f64.powi(self.exponent - 1));
        self.counts
            .iter_mut()
            .zip(&other.counts)
            .for_each(|(a, b)| *a += b);
        self.n_zero += other.n_zero;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Largest magnitude.
    pub(crate) fn peak(&self) -> f64 {
        if self.min > self.max {
            0.0
        } else {
            f64::from(self.min.abs().max(self.max.abs()))
        }
    }

    pub(crate) fn min(&self) -> f32 {
        self.min
    }

    /// Bin centres and counts of the values other than 0 (which every scale represents).
    pub(crate) fn samples(&self) -> Vec<(f64, f64)> {
        let width = self.width();
        let bins = self
            .counts
            .iter()
            .enumerate()
            .filter(|&(_, &count)| count > 0);
        bins.map(|(bin, &count)| {
            (
                (bin as f64 - N_BINS as f64 / 2.0 + 0.5) * width,
                count as f64,
            )
        })
        .collect()
    }

    /// Root mean square, zeros included.
    pub(crate) fn rms(&self) -> f64 {
        self.mean_of(|x| x * x).sqrt()
    }

    /// Mean, zeros included.
    pub(crate) fn mean(&self) -> f64 {
        self.mean_of(|x| x)
    }

    fn mean_of(&self, f: impl Fn(f64) -> f64) -> f64 {
        let samples = self.samples();
        let n = self.n_zero as f64 + samples.iter().map(|&(_, n)| n).sum::<f64>();
        let sum: f64 = samples.iter().map(|&(x, n)| f(x) * n).sum();
        if n > 0.0 { sum / n } else { 0.0 }
    }

    pub(crate) fn search(
        &self,
        format: arith::Format,
        method: crate::Method,
    ) -> Option<arith::Scale> {
        crate::scale::search(
            Values::Counted(&self.samples()),
            self.peak(),
            format,
            method,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn order_and_merging_do_not_show(
            mut values in prop::collection::vec(-1e6f32..1e6, 0..50),
            small in prop::collection::vec(-1e-6f32..1e-6, 0..50),
            cut in 0usize..100,
        ) {
            values.extend(small);
            let mut whole = Observer::new();
            whole.observe("t", &values).unwrap();
            let mut one_by_one = Observer::new();
            for v in values.iter().rev() {
                one_by_one.observe("t", &[*v]).unwrap();
            }
            let (a, b) = values.split_at(cut.min(values.len()));
            let mut left = Observer::new();
            left.observe("t", b).unwrap();
            let mut right = Observer::new();
            right.observe("t", a).unwrap();
            left.merge(&right);
            prop_assert_eq!(&left, &whole);
            if !values.is_empty() {
                prop_assert_eq!(&one_by_one, &whole);
                let n: f64 = whole.tensors["t"].samples().iter().map(|s| s.1).sum();
                prop_assert_eq!(n as u64 + whole.tensors["t"].n_zero, values.len() as u64);
            }
        }
    }

    #[test]
    fn refuses_nan() {
        let e = Observer::new().observe("t", &[0.0, f32::NAN]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "tensor `t`: element 1 is NaN: values must be finite"
        );
    }
}
