//! `evaluate` against a second, independent formulation in 128-bit integers, and the generator
//! against `verify`.

use arith::Requant;
use arith::SplitMix64;
use arith::{AccumulatorFormat, Arithmetic, Overflow, ReductionOrder, Rounding};
use ndarray::{Array3, s};
use network::arbitrary::{Limits, random_input, random_network};
use network::{Conv, Margin, Network, Op, Part, Pool, Post, Reduction, evaluate};
use proptest::prelude::*;

/// A tensor surrounded by so much padding that no tap ever leaves it.
struct Padded {
    rows: i128,
    columns: i128,
    values: Vec<Vec<Vec<Option<i128>>>>,
}

impl Padded {
    const MARGIN: i128 = 64;

    fn new(tensor: &Array3<i32>) -> Self {
        let (channels, height, width) = tensor.dim();
        let (rows, columns) = (height as i128 + 128, width as i128 + 128);
        let mut values = vec![vec![vec![None; columns as usize]; rows as usize]; channels];
        for ((c, y, x), &value) in tensor.indexed_iter() {
            values[c][y + 64][x + 64] = Some(value.into());
        }
        Self {
            rows,
            columns,
            values,
        }
    }

    fn at(&self, channel: usize, row: i128, column: i128) -> Option<i128> {
        let (row, column) = (row + Self::MARGIN, column + Self::MARGIN);
        assert!(row >= 0 && row < self.rows && column >= 0 && column < self.columns);
        self.values[channel][row as usize][column as usize]
    }
}

/// `value / 2^shift` rounded, by comparing twice the remainder with the divisor.
fn round(value: i128, shift: u32, rounding: Rounding) -> i128 {
    let divisor = 1i128 << shift;
    let (below, rest) = (value.div_euclid(divisor), value.rem_euclid(divisor));
    let up = match (2 * rest).cmp(&divisor) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Greater => rounding != Rounding::Floor,
        std::cmp::Ordering::Equal => match rounding {
            Rounding::Floor => false,
            Rounding::HalfUp => true,
            Rounding::HalfAwayFromZero => value > 0,
            Rounding::HalfEven => below.rem_euclid(2) == 1,
        },
    };
    below + i128::from(up)
}

fn post(post: &Post, channel: usize, v: i128, second: i128, rounding: Rounding) -> i128 {
    let requant = if post.requant.len() == 1 {
        post.requant[0]
    } else {
        post.requant[channel]
    };
    let mut n = u32::from(requant.shift);
    let mut p = v * i128::from(requant.mantissa);
    if let Some(residual) = post.residual {
        let up = n - u32::from(residual.requant.shift);
        p += second * i128::from(residual.requant.mantissa) * 2i128.pow(up);
    }
    if let Some(slope) = post.negative_slope.filter(|_| p < 0) {
        p *= i128::from(slope.mantissa);
        n += u32::from(slope.shift);
    }
    round(p, n, rounding)
        .max(post.q_min.into())
        .min(post.q_max.into())
}

fn second(operand: &Post, tensors: &[Array3<i32>], [c, y, x]: [usize; 3]) -> i128 {
    let Some(residual) = operand.residual else {
        return 0;
    };
    let tensor = &tensors[residual.tensor.0];
    if c < residual.channel_offset || c - residual.channel_offset >= tensor.dim().0 {
        return 0;
    }
    tensor[[
        c - residual.channel_offset,
        y * residual.stride[0],
        x * residual.stride[1],
    ]]
    .into()
}

/// Accumulator, overflowed steps, smallest and largest exact sum.
fn conv_at(
    conv: &Conv,
    input: &Padded,
    [c, y, x]: [usize; 3],
    format: AccumulatorFormat,
    order: ReductionOrder,
) -> (i128, Vec<usize>, i128, i128) {
    let (outputs, depth, rows, columns) = conv.weights.dim();
    let first_channel = c / (outputs / conv.groups) * depth;
    let window = conv.window;
    let mut products = Vec::new();
    for tap in 0..rows * columns * depth {
        let (ky, kx, i) = (tap / (columns * depth), tap / depth % columns, tap % depth);
        let row = (y * window.stride[0] + ky * window.dilation[0]) as i128 - window.pad[0] as i128;
        let column =
            (x * window.stride[1] + kx * window.dilation[1]) as i128 - window.pad[1] as i128;
        let value = input.at(first_channel + i, row, column).unwrap_or(0);
        products.push(value * i128::from(conv.weights[[c, i, ky, kx]]));
    }
    let start = i128::from(conv.bias[c].mantissa) * 2i128.pow(conv.bias[c].shift.into());
    let half = 2i128.pow(u32::from(format.width_bits) - 1);
    let mut events = Vec::new();
    let mut fit = |sum: i128, k: usize| {
        if sum >= -half && sum < half {
            return sum;
        }
        events.push(k);
        match format.overflow {
            Overflow::Saturate => sum.max(-half).min(half - 1),
            Overflow::Wrap => (sum + half).rem_euclid(2 * half) - half,
        }
    };
    let fold_length = match order {
        ReductionOrder::InOrder => products.len(),
        ReductionOrder::Folds { n_steps } => n_steps as usize,
    };
    // Fold by fold: the exact sums of all prefixes, and the sum with the accumulator's rule.
    let (mut exact, mut acc, mut sums) = (0, 0, Vec::new());
    for (index, fold) in products.chunks(fold_length).enumerate() {
        let first = index * fold_length;
        let bias = if index == 0 { start } else { 0 };
        sums.extend((0..=fold.len()).map(|n| bias + fold[..n].iter().sum::<i128>()));
        exact += bias + fold.iter().sum::<i128>();
        sums.push(exact);
        let mut sum = bias;
        for (offset, product) in fold.iter().enumerate() {
            sum = fit(sum + product, first + offset);
        }
        acc = if index == 0 {
            sum
        } else {
            fit(acc + sum, first + fold.len() - 1)
        };
    }
    sums.sort_unstable();
    (acc, events, sums[0], sums[sums.len() - 1])
}

fn pool_at(pool: &Pool, channels: usize, input: &Padded, [c, y, x]: [usize; 3]) -> i128 {
    if c < pool.channel_offset || c >= pool.channel_offset + channels {
        return 0;
    }
    let window = pool.window;
    let mut elements = Vec::new();
    for ky in 0..window.kernel[0] {
        for kx in 0..window.kernel[1] {
            let row =
                (y * window.stride[0] + ky * window.dilation[0]) as i128 - window.pad[0] as i128;
            let column =
                (x * window.stride[1] + kx * window.dilation[1]) as i128 - window.pad[1] as i128;
            elements.extend(input.at(c - pool.channel_offset, row, column));
        }
    }
    match pool.reduction {
        Reduction::Max => *elements.iter().max().unwrap(),
        Reduction::Sum => elements.iter().sum(),
    }
}

/// By cutting the window's rectangle with that of the input and its margin, where taps are dense;
/// tap by tap otherwise.
fn n_counted(
    pool: &Pool,
    margin: Margin,
    (_, height, width): (usize, usize, usize),
    at: [usize; 2],
) -> usize {
    let along = |axis: usize, extent: usize| {
        let first = (at[axis] * pool.window.stride[axis]) as i64 - pool.window.pad[axis] as i64;
        let step = pool.window.dilation[axis] as i64;
        let end = (extent + margin.after[axis]) as i64;
        let begin = -(margin.before[axis] as i64);
        let n = pool.window.kernel[axis] as i64;
        // Taps first, first + step, …: those below the end minus those below the beginning.
        let below = |limit: i64| (limit - first + step - 1).div_euclid(step).clamp(0, n);
        (below(end) - below(begin)) as usize
    };
    along(0, height) * along(1, width)
}

fn view(part: &Part, tensors: &[Array3<i32>]) -> Array3<i32> {
    let all = &tensors[part.tensor.0];
    let channels = part.channel as isize..(part.channel + part.n_channels) as isize;
    let [rows, columns] = [0, 1].map(|axis| part.offset[axis] as isize);
    let [down, across] = part.stride.map(|stride| stride as isize);
    all.slice(s![channels, rows..;down, columns..;across])
        .into_owned()
}

fn check(network: &Network, arithmetic: Arithmetic, input: &Array3<i32>) {
    let result = evaluate(network, arithmetic, input).unwrap();
    let tensors = &result.tensors;
    assert_eq!(&tensors[0], input);
    for (layer, records) in network.layers.iter().zip(&result.overflow) {
        let output = &tensors[layer.output.0];
        assert_eq!(output.dim(), network.tensor(layer.output).shape.dim());
        let format = network.tensor(layer.output).format;
        assert!(output.iter().all(|&v| format.check(v.into()).is_ok()));
        match &layer.op {
            Op::Conv(conv) => {
                assert_eq!(records.len(), output.dim().0);
                let input = Padded::new(&tensors[conv.input.0]);
                let (outputs, depth, _, _) = conv.weights.dim();
                let order = if depth == 1 && conv.groups > 1 && outputs == conv.groups {
                    arithmetic.depthwise_order
                } else {
                    arithmetic.order
                };
                for (c, record) in records.iter().enumerate() {
                    let (mut events, mut touched) = (Vec::new(), 0);
                    let (mut low, mut high) = (i128::MAX, i128::MIN);
                    for ((y, x), &found) in output.index_axis(ndarray::Axis(0), c).indexed_iter() {
                        let at = [c, y, x];
                        let (acc, new, min, max) =
                            conv_at(conv, &input, at, arithmetic.accumulator, order);
                        let residual = second(&conv.post, tensors, at);
                        let expected = post(&conv.post, c, acc, residual, arithmetic.rounding);
                        assert_eq!(i128::from(found), expected, "{} at {at:?}", layer.name);
                        touched += u64::from(!new.is_empty());
                        events.extend(new);
                        (low, high) = (low.min(min), high.max(max));
                    }
                    assert_eq!(record.n_overflowed, events.len() as u64);
                    assert_eq!(record.n_outputs_touched, touched);
                    assert_eq!(record.first_k, events.iter().min().map(|&k| k as u32));
                    assert_eq!(i128::from(record.min_partial_sum), low);
                    assert_eq!(i128::from(record.max_partial_sum), high);
                }
            }
            Op::Pool(pool) => {
                assert!(records.is_empty());
                let source = &tensors[pool.input.0];
                let padded = Padded::new(source);
                for ((c, y, x), &found) in output.indexed_iter() {
                    let v = pool_at(pool, source.dim().0, &padded, [c, y, x]);
                    let residual = second(&pool.post, tensors, [c, y, x]);
                    let mut as_post = pool.post.clone();
                    if let Some(margin) = pool.margin {
                        let n = n_counted(pool, margin, source.dim(), [y, x]);
                        as_post.requant = vec![pool.post.requant[n - 1]];
                    }
                    let expected = post(&as_post, c, v, residual, arithmetic.rounding);
                    assert_eq!(i128::from(found), expected, "{} at {c} {y} {x}", layer.name);
                }
            }
            Op::Concat(parts) => {
                assert!(records.is_empty());
                let views: Vec<_> = parts.iter().map(|part| view(part, tensors)).collect();
                let n: usize = output.dim().0;
                let multipliers = parts.iter().flat_map(|p| vec![p.requant; p.n_channels]);
                let multipliers: Vec<Requant> = multipliers.collect();
                assert_eq!(multipliers.len(), n);
                let [_, height, width] = [n, output.dim().1, output.dim().2];
                let cut: Vec<_> = views
                    .iter()
                    .map(|v| v.slice(s![.., ..height, ..width]))
                    .collect();
                let joined = ndarray::concatenate(ndarray::Axis(0), &cut).unwrap();
                for ((c, y, x), &found) in output.indexed_iter() {
                    let as_post = Post {
                        requant: vec![multipliers[c]],
                        residual: None,
                        negative_slope: None,
                        q_min: format.q_min(),
                        q_max: format.q_max(),
                    };
                    let v = joined[[c, y, x]].into();
                    let expected = post(&as_post, 0, v, 0, arithmetic.rounding);
                    assert_eq!(i128::from(found), expected, "{} at {c} {y} {x}", layer.name);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn evaluate_equals_the_second_formulation(
        seed: u64,
        width_bits in 8u8..=32,
        wrap: bool,
        rounding in 0usize..4,
        n_steps in 0u32..24,
    ) {
        let limits = Limits { accumulator_bits: width_bits, ..Limits::default() };
        let network = random_network(seed, limits);
        let overflow = if wrap { Overflow::Wrap } else { Overflow::Saturate };
        let accumulator = AccumulatorFormat { width_bits, overflow };
        let order = match n_steps {
            0 => ReductionOrder::InOrder,
            n_steps => ReductionOrder::Folds { n_steps },
        };
        let depthwise_order = if seed % 2 == 0 { order } else { ReductionOrder::InOrder };
        let rounding = Rounding::ALL[rounding];
        let arithmetic = Arithmetic { accumulator, rounding, order, depthwise_order };
        check(&network, arithmetic, &random_input(&network, seed));
    }
}

#[test]
fn every_random_network_is_valid_and_every_kind_of_layer_occurs() {
    let (mut n_overflowed, mut n_residuals, mut n_offsets, mut n_slopes) = (0, 0, 0, 0);
    let (mut n_grouped, mut n_strided, mut n_max, mut n_sum, mut n_concat) = (0, 0, 0, 0, 0);
    let (mut n_margins, mut n_views, mut n_rescaled) = (0, 0, 0);
    let (mut n_distinct, mut n_elements) = (0, 0);
    for seed in 0..2000 {
        let network = random_network(seed, Limits::default());
        network
            .verify()
            .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{network}"));
        for layer in &network.layers {
            if let Some(post) = layer.op.post() {
                n_residuals += u32::from(post.residual.is_some());
                n_offsets += u32::from(post.residual.is_some_and(|r| r.channel_offset > 0));
                n_slopes += u32::from(post.negative_slope.is_some());
            }
            match &layer.op {
                Op::Conv(conv) => {
                    n_grouped += u32::from(conv.groups > 1);
                    n_strided += u32::from(conv.window.stride != [1, 1]);
                }
                Op::Pool(pool) if pool.reduction == Reduction::Max => n_max += 1,
                Op::Pool(pool) => {
                    n_sum += 1;
                    n_margins += u32::from(pool.margin.is_some());
                }
                Op::Concat(parts) => {
                    n_concat += u32::from(parts.len() > 1);
                    n_views += u32::from(parts.iter().any(|p| p.stride != [1, 1]));
                    let is_copy = |p: &Part| p.requant == Requant::IDENTITY;
                    n_rescaled += u32::from(!parts.iter().all(is_copy));
                }
            }
        }
        if seed < 200 {
            let accumulator = AccumulatorFormat {
                width_bits: 12,
                overflow: Overflow::Saturate,
            };
            let arithmetic = Arithmetic {
                accumulator,
                rounding: Rounding::HalfUp,
                order: ReductionOrder::InOrder,
                depthwise_order: ReductionOrder::InOrder,
            };
            let network = random_network(
                seed,
                Limits {
                    accumulator_bits: 12,
                    ..Limits::default()
                },
            );
            let result = evaluate(&network, arithmetic, &random_input(&network, seed)).unwrap();
            n_overflowed += u32::from(result.overflow.iter().flatten().any(|c| c.n_overflowed > 0));
            for tensor in &result.tensors[1..] {
                let mut values: Vec<i32> = tensor.iter().copied().collect();
                n_elements += values.len();
                values.sort_unstable();
                values.dedup();
                n_distinct += values.len();
            }
        }
    }
    for count in [
        n_residuals,
        n_offsets,
        n_slopes,
        n_grouped,
        n_strided,
        n_max,
        n_sum,
        n_concat,
        n_margins,
        n_views,
        n_rescaled,
    ] {
        assert!(count > 100, "a kind of layer hardly occurs: {count}");
    }
    assert!(
        n_overflowed > 20,
        "random networks hardly overflow: {n_overflowed}"
    );
    assert!(
        n_distinct * 40 > n_elements,
        "random networks compute constants: {n_distinct}"
    );
}

#[test]
fn the_generator_is_the_published_splitmix64() {
    // First outputs for seed 1234567, as in Rosetta Code's "Pseudo-random numbers/Splitmix64".
    let mut rng = SplitMix64(1_234_567);
    assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
    assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
    assert_eq!(SplitMix64(9).between(i64::MIN, i64::MIN), i64::MIN);
}
