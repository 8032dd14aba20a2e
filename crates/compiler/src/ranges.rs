//! A memory cut into ranges, each with one history.
//!
//! Invariant: ranges do not overlap, and those that nobody touched are absent.

use std::collections::BTreeMap;

/// Ranges by first address.
#[derive(Debug, Default)]
pub(crate) struct Ranges<T> {
    by_start: BTreeMap<u64, (u64, T)>,
}

impl<T: Copy + Default> Ranges<T> {
    /// Calls `update` on every range within `from..to`, untouched ones included.
    pub fn visit(&mut self, from: u64, to: u64, mut update: impl FnMut(&mut T)) {
        // Most often the same range is touched again.
        if let Some((end, history)) = self.by_start.get_mut(&from)
            && *end == to
        {
            return update(history);
        }
        self.split(from);
        self.split(to);
        let mut gaps = Vec::new();
        let mut at = from;
        for (&start, (end, history)) in self.by_start.range_mut(from..to) {
            if at < start {
                gaps.push((at, start));
            }
            update(history);
            at = *end;
        }
        if at < to {
            gaps.push((at, to));
        }
        for (start, end) in gaps {
            let mut history = T::default();
            update(&mut history);
            self.by_start.insert(start, (end, history));
        }
    }

    /// Forgets the boundaries within `from..to`, whose history is now the same.
    pub fn join(&mut self, from: u64, to: u64) {
        let Some(&(_, history)) = self.by_start.get(&from) else {
            return;
        };
        let inner: Vec<u64> = self
            .by_start
            .range(from + 1..to)
            .map(|(&start, _)| start)
            .collect();
        if inner.is_empty() {
            return;
        }
        for start in inner {
            self.by_start.remove(&start);
        }
        self.by_start.insert(from, (to, history));
    }

    /// Makes `at` a boundary.
    fn split(&mut self, at: u64) {
        let Some((_, range)) = self.by_start.range_mut(..at).next_back() else {
            return;
        };
        if range.0 > at {
            let rest = *range;
            range.0 = at;
            self.by_start.insert(at, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;
    use arith::SplitMix64;

    /// Against one history for each byte.
    #[test]
    fn the_same_as_byte_by_byte() {
        for seed in 0..200 {
            let mut random = SplitMix64(seed);
            let mut ranges = Ranges::<u64>::default();
            let mut bytes = [0u64; 40];
            for step in 1..60 {
                let from = random.next_u64() % 40;
                let to = from + 1 + random.next_u64() % (40 - from);
                let mut seen = Vec::new();
                if step % 3 == 0 {
                    // A write: everything gets the same history.
                    ranges.visit(from, to, |history| {
                        seen.push(*history);
                        *history = step;
                    });
                    ranges.join(from, to);
                } else {
                    ranges.visit(from, to, |history| {
                        seen.push(*history);
                        *history += 1000;
                    });
                }
                let slice = &mut bytes[from as usize..to as usize];
                let mut wanted: Vec<u64> = slice.to_vec();
                for byte in slice {
                    *byte = if step % 3 == 0 { step } else { *byte + 1000 };
                }
                for list in [&mut wanted, &mut seen] {
                    list.sort_unstable();
                    list.dedup();
                }
                assert_eq!(seen, wanted, "seed {seed}, step {step}");
            }
        }
    }
}
