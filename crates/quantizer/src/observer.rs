//! What calibration saw of each tensor: a histogram whose bins never depend on the order.
//!
//! Invariant: a histogram's range is the smallest power of two above its largest magnitude, and
//! widening merges neighbouring bins exactly; observing in any order, or merging the observers
//! of several threads, gives the same histogram. Sums of channels are integers (see [`Channel`]), so the same
//! holds of them.

use crate::Error;
use crate::scale::Values;
use network::Shape;
use std::collections::BTreeMap;

/// Bins over `-2^exponent .. 2^exponent`.
const N_BINS: usize = 8192;

/// Smallest range: values below `2^-60` all share the two middle bins.
const MIN_EXPONENT: i32 = -48;

/// Calibration values by tensor name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observer {
    tensors: BTreeMap<String, Histogram>,
    channels: BTreeMap<String, Vec<Channel>>,
}

/// One channel of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Channel {
    /// Of all values, in units of `2^-40`, each image's rounded.
    sum: i128,
    n: u64,
    /// Largest magnitude.
    pub(crate) peak: f32,
}

/// Units of a channel's sum.
const SUM_UNITS: f64 = (1u64 << 40) as f64;

impl Channel {
    fn add(&mut self, values: &[f32]) {
        let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
        // A conversion saturates; so would the sum, at 2^87 times the largest float32.
        self.sum = self.sum.saturating_add((sum * SUM_UNITS) as i128);
        self.n += values.len() as u64;
        self.peak = values.iter().fold(self.peak, |m, v| m.max(v.abs()));
    }

    fn merge(&mut self, other: Self) {
        self.sum = self.sum.saturating_add(other.sum);
        self.n += other.n;
        self.peak = self.peak.max(other.peak);
    }

    pub(crate) fn mean(self) -> f64 {
        if self.n == 0 {
            return 0.0;
        }
        self.sum as f64 / SUM_UNITS / self.n as f64
    }
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

    /// As [`Self::observe`], of whole images of a shape: the channels are looked at one by one too.
    ///
    /// # Errors
    /// As [`Self::observe`].
    ///
    /// # Panics
    /// `values` are no whole number of images.
    pub fn observe_images(
        &mut self,
        name: &str,
        values: &[f32],
        shape: Shape,
    ) -> Result<(), Error> {
        self.observe(name, values)?;
        assert!(
            values.len().is_multiple_of(shape.len()),
            "{name}: {} values are no images of {shape:?}",
            values.len()
        );
        let channels = self.channels.entry(name.into()).or_default();
        channels.resize(shape.channels, Channel::default());
        for image in values.chunks_exact(shape.len()) {
            let planes = image.chunks_exact(shape.height * shape.width);
            for (channel, plane) in channels.iter_mut().zip(planes) {
                channel.add(plane);
            }
        }
        Ok(())
    }

    /// The channels of a tensor that was observed as images.
    pub(crate) fn channels(&self, name: &str) -> Option<&[Channel]> {
        self.channels.get(name).map(Vec::as_slice)
    }

    /// Takes in what another observer saw.
    pub fn merge(&mut self, other: &Self) {
        for (name, channels) in &other.channels {
            let mine = self.channels.entry(name.clone()).or_default();
            mine.resize(channels.len(), Channel::default());
            for (mine, &other) in mine.iter_mut().zip(channels) {
                mine.merge(other);
            }
        }
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

    /// Channels against their definition, in any order and split among observers.
    #[test]
    fn channels_are_looked_at_one_by_one() {
        let shape = Shape {
            channels: 2,
            height: 1,
            width: 3,
        };
        let images = [
            [1.0, 2.0, 3.0, -8.0, 0.1, 0.0],
            [0.5, 0.0, 0.5, 1e-3, 7.0, -2.0],
            [0.0, 0.0, 3.5, 1.0, 1.0, 1.0],
        ];
        let mut whole = Observer::new();
        whole
            .observe_images("t", &images.concat(), shape)
            .expect("finite");
        let mut parts = Observer::new();
        for image in images.iter().rev() {
            let mut one = Observer::new();
            one.observe_images("t", image, shape).expect("finite");
            parts.merge(&one);
        }
        assert_eq!(parts, whole);
        let [a, b] = whole.channels("t").expect("observed") else {
            panic!("two channels");
        };
        assert_eq!((a.peak, b.peak), (3.5, 8.0));
        assert!((a.mean() - 10.5 / 9.0).abs() < 1e-9);
        assert!((b.mean() - 0.101 / 9.0).abs() < 1e-8);
        assert_eq!(whole.range("t"), Some((-8.0, 7.0)));
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
