//! In which number type a layer's requantization is exact.
//!
//! A requantization is `round(p · 2^-n)`, clamped, with an integer `p`. A float with a `b`-bit
//! significand holds `p · 2^-n` exactly while `|p| ≤ 2^b`, and so does each of its summands. Beyond
//! that, rounding to the float still keeps the order of numbers: when there is only one summand and
//! `2^b · 2^-n` lies outside the clamp, everything that is not exact is clamped all the same.
//!
//! Invariant: [`choose`] is right for every value inside the given bounds (`tests` compare each
//! answer with `network::post_process`).

use arith::{Requant, Rounding};
use network::Post;
use onnx::DataType;

/// The number type of a requantization, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Numbers {
    /// 24-bit significand.
    Float32,
    /// 53-bit significand.
    Float64,
    /// Integer arithmetic throughout: always exact.
    Int64,
}

impl Numbers {
    pub(crate) const fn data_type(self) -> DataType {
        match self {
            Self::Float32 => DataType::Float,
            Self::Float64 => DataType::Double,
            Self::Int64 => DataType::Int64,
        }
    }
}

/// All integers from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) min: i64,
    pub(crate) max: i64,
}

impl Interval {
    pub(crate) const fn new(min: i64, max: i64) -> Self {
        Self { min, max }
    }

    /// The smallest interval around both.
    pub(crate) fn join(self, other: Self) -> Self {
        Self::new(self.min.min(other.min), self.max.max(other.max))
    }

    pub(crate) fn magnitude(self) -> u64 {
        self.min.unsigned_abs().max(self.max.unsigned_abs())
    }
}

/// A multiplier, and the numbers that it multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) requant: Requant,
    pub(crate) v: Interval,
}

/// The cheapest type in which the requantization is exact for every `v` inside its term's
/// interval and every residual inside `residual`.
pub(crate) fn choose(
    post: &Post,
    terms: &[Term],
    residual: Option<Interval>,
    rounding: Rounding,
) -> Numbers {
    let is_exact = |significand: u32| {
        terms
            .iter()
            .all(|&term| is_exact(post, term, residual, rounding, significand))
    };
    if is_exact(f32::MANTISSA_DIGITS) {
        Numbers::Float32
    } else if is_exact(f64::MANTISSA_DIGITS) {
        Numbers::Float64
    } else {
        Numbers::Int64
    }
}

fn is_exact(
    post: &Post,
    Term { requant, v }: Term,
    residual: Option<Interval>,
    rounding: Rounding,
    significand: u32,
) -> bool {
    let mut largest = u128::from(v.magnitude()) * u128::from(requant.mantissa);
    if let (Some(second), Some(interval)) = (&post.residual, residual) {
        let aligned = u128::from(second.requant.mantissa) << (requant.shift - second.requant.shift);
        largest += u128::from(interval.magnitude()) * aligned;
    }
    let positive = (largest, u32::from(requant.shift));
    let negative = post.negative_slope.map(|slope| {
        let product = largest * u128::from(slope.mantissa);
        (product, u32::from(requant.shift) + u32::from(slope.shift))
    });
    let limit = 1u128 << significand;
    let clamp = u128::from(post.q_min.unsigned_abs().max(post.q_max.unsigned_abs()));
    [Some(positive), negative]
        .into_iter()
        .flatten()
        .all(|(largest, shift)| match rounding {
            Rounding::HalfEven | Rounding::Floor => {
                let is_clamped = residual.is_none()
                    && shift < significand
                    && 1u128 << (significand - shift) > clamp;
                largest <= limit || is_clamped
            }
            // One half is added before the fraction is dropped.
            Rounding::HalfUp | Rounding::HalfAwayFromZero if shift == 0 => 2 * largest < limit,
            Rounding::HalfUp | Rounding::HalfAwayFromZero => {
                largest + (1u128 << (shift - 1)) <= limit
            }
        })
}

#[cfg(test)]
mod tests {
    use super::{Interval, Numbers, Term, choose, is_exact};
    use arith::{Requant, Rounding, shift_right_rounding};
    use network::{Post, Residual, TensorId, post_process};
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};

    /// The exported graph's formula (`post`), in the floats of a type.
    macro_rules! in_floats {
        ($float:ty, $post:expr, $v:expr, $residual:expr, $rounding:expr) => {{
            let (post, rounding): (&Post, Rounding) = ($post, $rounding);
            let mut x = ($v as $float) * (post.requant[0].factor() as $float);
            if let Some(second) = &post.residual {
                x += ($residual as $float) * (second.requant.factor() as $float);
            }
            if let Some(slope) = post.negative_slope
                && x < 0.0
            {
                x *= slope.factor() as $float;
            }
            let y = match rounding {
                Rounding::HalfEven => x.round_ties_even(),
                Rounding::Floor => x.floor(),
                Rounding::HalfUp => (x + 0.5).floor(),
                Rounding::HalfAwayFromZero => {
                    let away = (x.abs() + 0.5).floor();
                    if x < 0.0 { -away } else { away }
                }
            };
            y.clamp(post.q_min as $float, post.q_max as $float) as i32
        }};
    }

    fn requant(max_shift: u8) -> impl Strategy<Value = Requant> {
        (any::<u8>(), 0..=max_shift).prop_map(|(mantissa, shift)| Requant { mantissa, shift })
    }

    /// A number near a tie: what a wrong rounding gets wrong.
    fn near_tie(post: &Post, wish: i64, offset: i64) -> i64 {
        let Requant { mantissa, shift } = post.requant[0];
        let tie = (i128::from(wish) * 2 + 1) << shift >> 1;
        (tie / i128::from(mantissa.max(1))) as i64 + offset
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(20_000))]

        #[test]
        fn the_choice_is_exact(
            first in requant(47),
            second in prop_oneof![proptest::strategy::Just(None), requant(47).prop_map(Some)],
            slope in prop_oneof![proptest::strategy::Just(None), requant(15).prop_map(Some)],
            bits in 2u8..=16,
            v_bits in 1u32..=31,
            wish in -70_000i64..70_000,
            offset in -2i64..=2,
            fraction in any::<i32>(),
            residual in -32768i32..=32767,
            rounding in 0usize..4,
        ) {
            let rounding = Rounding::ALL[rounding];
            let second = second.map(|second| Requant { shift: second.shift.min(first.shift), ..second });
            if second.is_some_and(|second| first.shift - second.shift > network::MAX_ALIGNMENT) {
                return Ok(());
            }
            let limit = 1i64 << (bits - 1);
            let post = Post {
                requant: vec![first],
                residual: second.map(|requant| Residual {
                    tensor: TensorId(0), stride: [1, 1], channel_offset: 0, requant,
                }),
                negative_slope: slope,
                q_min: -limit as i32,
                q_max: limit as i32 - 1,
            };
            let bound = Interval::new(-(1 << v_bits), (1 << v_bits) - 1);
            let interval = second.map(|_| Interval::new(-32768, 32767));
            let numbers = choose(&post, &[Term { requant: first, v: bound }], interval, rounding);
            let residual = if second.is_some() { residual } else { 0 };
            for v in [near_tie(&post, wish, offset), bound.min, bound.max, i64::from(fraction) >> (31 - v_bits)] {
                let v = v.clamp(bound.min, bound.max);
                let exact = post_process(&post, 0, v, residual, rounding);
                let found = match numbers {
                    Numbers::Float32 => in_floats!(f32, &post, v, residual, rounding),
                    Numbers::Float64 => in_floats!(f64, &post, v, residual, rounding),
                    Numbers::Int64 => exact,
                };
                prop_assert_eq!(found, exact, "{:?} v {}", numbers, v);
            }
        }
    }

    /// A float of few bits, as a multiple of `2^-unit`: what does not fit is rounded half to even.
    fn toy(x: i64, significand: u32) -> i64 {
        let surplus = (u64::BITS - x.unsigned_abs().leading_zeros()).saturating_sub(significand);
        shift_right_rounding(x, surplus as u8, Rounding::HalfEven) << surplus
    }

    /// The exported graph's formula in such floats.
    fn in_toys(post: &Post, v: i64, residual: i64, rounding: Rounding, significand: u32) -> i64 {
        let toy = |x: i64| toy(x, significand);
        let Requant { mantissa, shift } = post.requant[0];
        let slope = post.negative_slope.unwrap_or(Requant::IDENTITY);
        // Small enough for every product and for one half.
        let unit = shift + slope.shift + 1;
        let mut x = toy((toy(v) * i64::from(mantissa)) << (unit - shift));
        if let Some(second) = &post.residual {
            let r = toy(residual) * i64::from(second.requant.mantissa);
            x = toy(x + toy(r << (unit - second.requant.shift)));
        }
        if x < 0 {
            x = toy((x * i64::from(slope.mantissa)) >> slope.shift);
        }
        let half = 1 << (unit - 1);
        let y = match rounding {
            Rounding::HalfEven | Rounding::Floor => shift_right_rounding(x, unit, rounding),
            Rounding::HalfUp => toy(x + half) >> unit,
            Rounding::HalfAwayFromZero => x.signum() * (toy(x.abs() + half) >> unit),
        };
        y.clamp(post.q_min.into(), post.q_max.into())
    }

    /// Every bound that holds for five bits is tried on all numbers inside it.
    #[test]
    fn the_bounds_hold_exhaustively() {
        const SIGNIFICAND: u32 = 5;
        let mut n_exact = [0u32; 4];
        let mut n_wrong = [0u32; 4];
        let mantissas = [0u8, 1, 2, 3, 5, 7];
        for (first, v_bits) in iproduct(requants(&mantissas, 6), 0..=6u32) {
            let v = Interval::new(-(1 << v_bits), (1 << v_bits) - 1);
            let seconds = requants(&[1, 3], first.shift);
            let seconds = std::iter::once(None).chain(seconds.map(Some));
            let slopes = [None, Some((1, 2)), Some((3, 1)), Some((5, 3))];
            for (second, slope) in iproduct(seconds, slopes.into_iter()) {
                for (limit, rounding) in iproduct([2, 4, 32].into_iter(), Rounding::ALL.into_iter())
                {
                    let post = Post {
                        requant: vec![first],
                        residual: second.map(|requant| Residual {
                            tensor: TensorId(0),
                            stride: [1, 1],
                            channel_offset: 0,
                            requant,
                        }),
                        negative_slope: slope.map(|(mantissa, shift)| Requant { mantissa, shift }),
                        q_min: -limit,
                        q_max: limit - 1,
                    };
                    let r = Interval::new(-2, 2);
                    let term = Term { requant: first, v };
                    let promised = is_exact(&post, term, second.map(|_| r), rounding, SIGNIFICAND);
                    let residuals = if second.is_some() {
                        r.min..=r.max
                    } else {
                        0..=0
                    };
                    let wrong = iproduct(v.min..=v.max, residuals).find(|&(v, residual)| {
                        let found = in_toys(&post, v, residual, rounding, SIGNIFICAND);
                        let exact = post_process(&post, 0, v, residual as i32, rounding);
                        found != i64::from(exact)
                    });
                    let rounding = Rounding::ALL.iter().position(|&r| r == rounding);
                    let rounding = rounding.expect("all are listed");
                    n_exact[rounding] += u32::from(promised);
                    n_wrong[rounding] += u32::from(wrong.is_some());
                    assert!(
                        !promised || wrong.is_none(),
                        "{post:?} at {wrong:?} in {v:?}"
                    );
                }
            }
        }
        // Neither side is empty: bounds that hold, and numbers that they rightly exclude.
        assert!(
            n_exact.iter().chain(&n_wrong).all(|&n| n > 300),
            "{n_exact:?} {n_wrong:?}"
        );
    }

    fn iproduct<A: Clone, B: Clone>(
        a: impl Iterator<Item = A>,
        b: impl Iterator<Item = B> + Clone,
    ) -> impl Iterator<Item = (A, B)> {
        a.flat_map(move |a| b.clone().map(move |b| (a.clone(), b)))
    }

    fn requants(mantissas: &[u8], max_shift: u8) -> impl Iterator<Item = Requant> + Clone {
        let shifts = 0..=max_shift;
        mantissas
            .iter()
            .flat_map(move |&mantissa| shifts.clone().map(move |shift| Requant { mantissa, shift }))
    }

    #[test]
    fn the_bounds_are_not_wasteful() {
        let post = |mantissa, shift| Post {
            requant: vec![Requant { mantissa, shift }],
            residual: None,
            negative_slope: None,
            q_min: -128,
            q_max: 127,
        };
        let choose = |post: &Post, bits: u32| {
            let limit = 1i64 << (bits - 1);
            let v = Interval::new(-limit, limit - 1);
            let requant = post.requant[0];
            choose(post, &[Term { requant, v }], None, Rounding::HalfEven)
        };
        // A 16-bit accumulator times 8 bits has 24 bits: float32 always does.
        assert_eq!(choose(&post(255, 47), 16), Numbers::Float32);
        // More than that, and what float32 cannot hold is clamped.
        assert_eq!(choose(&post(255, 16), 32), Numbers::Float32);
        assert_eq!(choose(&post(255, 17), 32), Numbers::Float64);
    }
}
