//! The sum of one output element: every add at the accumulator's width, in the machine's order.
//!
//! Invariant: an add that does not fit is counted with the step that caused it; the exact sums are
//! followed beside it, in the same order.

use arith::{AccumulatorFormat, ChannelOverflow, ReductionOrder};

/// A sum as the accumulator holds it, and as an unlimited one would.
#[derive(Clone, Copy)]
struct Partial {
    acc: i32,
    exact: i64,
}

/// The adds of one output.
struct Adder {
    format: AccumulatorFormat,
    seen: ChannelOverflow,
}

/// The accumulator of one output after all its products; what was seen is added to `overflow`.
pub fn accumulate(
    bias: i64,
    products: impl Iterator<Item = i32>,
    format: AccumulatorFormat,
    order: ReductionOrder,
    overflow: &mut ChannelOverflow,
) -> i32 {
    let mut adder = Adder {
        format,
        seen: ChannelOverflow::default(),
    };
    // The sum of the folds that are complete, and the one that grows.
    let mut total: Option<Partial> = None;
    let mut fold = adder.start(bias);
    let (mut k, mut last_k) = (0u32, 0);
    // `for_each` walks the nested iterators themselves, which `for` would ask anew at every step.
    products.for_each(|product| {
        let begins_fold = match order {
            ReductionOrder::InOrder => false,
            ReductionOrder::Folds { n_steps } => k > 0 && k.is_multiple_of(n_steps),
        };
        if begins_fold {
            total = Some(adder.join(total, fold, last_k));
            fold = adder.start(0);
        }
        let product = Partial {
            acc: product,
            exact: product.into(),
        };
        fold = adder.add(fold, product, k);
        (k, last_k) = (k + 1, k);
    });
    let total = adder.join(total, fold, last_k);
    overflow.merge(&adder.seen);
    total.acc
}

impl Adder {
    fn start(&mut self, value: i64) -> Partial {
        self.see(value);
        Partial {
            acc: value as i32,
            exact: value,
        }
    }

    fn add(&mut self, left: Partial, right: Partial, k: u32) -> Partial {
        let sum = self.format.add(left.acc, right.acc);
        if sum.overflowed {
            self.seen.n_overflowed += 1;
            self.seen.n_outputs_touched = 1;
            self.seen.first_k = self.seen.first_k.or(Some(k));
        }
        let exact = left.exact + right.exact;
        self.see(exact);
        Partial {
            acc: sum.acc,
            exact,
        }
    }

    /// The first fold's sum is the total; later ones are added to it.
    fn join(&mut self, total: Option<Partial>, fold: Partial, k: u32) -> Partial {
        match total {
            None => fold,
            Some(total) => self.add(total, fold, k),
        }
    }

    fn see(&mut self, exact: i64) {
        self.seen.min_partial_sum = self.seen.min_partial_sum.min(exact);
        self.seen.max_partial_sum = self.seen.max_partial_sum.max(exact);
    }
}
