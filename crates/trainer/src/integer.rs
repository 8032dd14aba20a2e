//! The forward pass on integers: what the machine computes, and what it rounded away.
//!
//! Invariant: every value equals [`network::evaluate`]'s. Sums are taken by the float kernels, which
//! are exact below 2^24, where no partial sum can leave the accumulator; other channels are summed
//! step by step by [`network::accumulate`].

use crate::convolution::{self, Panels};
use crate::graph::{Graph, each_tap, look, post};
use crate::scales;
use crate::tape::{Gate, Tape};
use arith::{Arithmetic, ChannelOverflow, Rounding};
use network::{Conv, Network, Op, Part, Pool, Post, Reduction, Shape};
use quantizer::{Activation, View};

/// An integer network, ready for its images.
#[derive(Debug)]
pub(crate) struct Integer<'a> {
    graph: &'a Graph,
    pub(crate) network: &'a Network,
    arithmetic: Arithmetic,
    convs: Vec<Option<IntegerConv>>,
}

#[derive(Debug)]
struct IntegerConv {
    panels: Panels,
    bias: Vec<f32>,
    /// Channels whose sums have to be taken step by step.
    slow: Vec<usize>,
}

impl<'a> Integer<'a> {
    pub(crate) fn new(graph: &'a Graph, network: &'a Network, arithmetic: Arithmetic) -> Self {
        let convs = network.layers.iter().enumerate().map(|(index, layer)| {
            let conv = layer.conv()?;
            let geometry = graph.convs[index].as_ref()?;
            let panels = geometry.panels(graph.conv(index), |at| f32::from(conv.weights[at]));
            Some(IntegerConv {
                panels,
                bias: conv.bias.iter().map(|b| b.value() as f32).collect(),
                slow: slow_channels(network, conv, arithmetic),
            })
        });
        Self {
            graph,
            network,
            arithmetic,
            convs: convs.collect(),
        }
    }

    /// Runs images that are integers already. `with_errors`: also the errors at half and twice the
    /// scale of each tensor.
    pub(crate) fn run(&self, images: Vec<f32>, with_errors: bool) -> Tape {
        let network = self.network;
        let n_images = images.len() / network.tensor(network.input).shape.len();
        let mut tape = Tape::new(n_images, network.tensors.len(), network.layers.len());
        tape.units = network
            .tensors
            .iter()
            .map(|t| t.scale.real() as f32)
            .collect();
        tape.values[network.input.index()] = images;
        for (index, layer) in network.layers.iter().enumerate() {
            let (mut output, mut before) = (Vec::new(), Vec::new());
            for image in 0..n_images {
                match &layer.op {
                    Op::Conv(conv) => {
                        self.conv(index, conv, &tape, image, &mut output, &mut before);
                    }
                    Op::Pool(pool) => {
                        self.pool(index, pool, &tape, image, &mut output, &mut before);
                    }
                    Op::Concat(parts) => self.join(index, parts, &tape, image, &mut output),
                }
            }
            if with_errors && !before.is_empty() {
                tape.errors[index] = self.errors(index, &before);
            }
            tape.gates.push(layer.op.post().map_or(Gate::OPEN, gate));
            tape.before.push(before);
            tape.values[layer.output.index()] = output;
        }
        tape
    }

    fn shape_of(&self, layer: usize) -> Shape {
        self.network.output_of(&self.network.layers[layer]).shape
    }

    fn conv(
        &self,
        index: usize,
        conv: &Conv,
        tape: &Tape,
        image: usize,
        output: &mut Vec<f32>,
        before: &mut Vec<f32>,
    ) {
        let (Some(geometry), Some(prepared)) = (&self.graph.convs[index], &self.convs[index])
        else {
            unreachable!("a convolution has weights");
        };
        let input = map(tape, self.network, conv.input.index(), image);
        let shape = self.shape_of(index);
        let mut padded = Vec::new();
        geometry.forward.pad(input, &mut padded);
        let mut sums = vec![0f32; shape.len()];
        convolution::forward(&geometry.forward, &padded, &prepared.panels, &mut sums);
        for pixel in sums.chunks_exact_mut(shape.channels) {
            pixel
                .iter_mut()
                .zip(&prepared.bias)
                .for_each(|(s, b)| *s += b);
        }
        for &channel in &prepared.slow {
            self.accumulate(geometry, conv, &padded, channel, &mut sums);
        }
        let residual = self.residual(&conv.post, tape, image, shape);
        self.finish(&conv.post, &sums, &residual, shape, output, before);
    }

    /// One channel's sums as the accumulator makes them.
    fn accumulate(
        &self,
        geometry: &crate::graph::ConvGeometry,
        conv: &Conv,
        padded: &[f32],
        channel: usize,
        sums: &mut [f32],
    ) {
        let weights: Vec<i32> = (0..geometry.forward.reduction())
            .map(|k| weight(conv, channel, k))
            .collect();
        let order = network::order_of(conv, self.arithmetic);
        let n = conv.n_output_channels();
        for (pixel, sum) in sums.iter_mut().skip(channel).step_by(n).enumerate() {
            let products = geometry
                .forward
                .window(padded, pixel, channel)
                .zip(&weights)
                .map(|(x, w)| x as i32 * w);
            let bias = conv.bias[channel].value();
            let mut seen = ChannelOverflow::default();
            let acc = network::accumulate(
                bias,
                products,
                self.arithmetic.accumulator,
                order,
                &mut seen,
            );
            *sum = acc as f32;
        }
    }

    fn residual(&self, post: &Post, tape: &Tape, image: usize, shape: Shape) -> Vec<f32> {
        let mut seen = Vec::new();
        if let Some(residual) = post.residual {
            let view = View {
                tensor: residual.tensor.index(),
                stride: residual.stride,
                channel_offset: residual.channel_offset,
            };
            let source = map(tape, self.network, view.tensor, image);
            let from = self.network.tensor(residual.tensor).shape;
            look(view, source, from, shape, &mut seen);
        }
        seen
    }

    fn finish(
        &self,
        post: &Post,
        sums: &[f32],
        residual: &[f32],
        shape: Shape,
        output: &mut Vec<f32>,
        before: &mut Vec<f32>,
    ) {
        let finisher = Finisher::new(post, shape.channels, self.arithmetic.rounding);
        finisher.run(sums, residual, output, before);
    }

    fn pool(
        &self,
        index: usize,
        pool: &Pool,
        tape: &Tape,
        image: usize,
        output: &mut Vec<f32>,
        before: &mut Vec<f32>,
    ) {
        let input = map(tape, self.network, pool.input.index(), image);
        let (from, shape) = (self.network.tensor(pool.input).shape, self.shape_of(index));
        let sums = reduce(
            pool.window,
            pool.channel_offset,
            pool.reduction,
            input,
            from,
            shape,
        );
        let residual = self.residual(&pool.post, tape, image, shape);
        let rounding = self.arithmetic.rounding;
        let extent = [from.height, from.width];
        if pool.margin.is_none() {
            return self.finish(&pool.post, &sums, &residual, shape, output, before);
        }
        // Each pixel has the multiplier of its number of counted taps.
        for (pixel, sums) in sums.chunks_exact(shape.channels).enumerate() {
            let at = [pixel / shape.width, pixel % shape.width];
            let one = Post {
                requant: vec![pool.requant_at(at, extent)],
                ..pool.post.clone()
            };
            let first = pixel * shape.channels;
            let residual = residual
                .get(first..first + shape.channels)
                .unwrap_or_default();
            Finisher::new(&one, shape.channels, rounding).run(sums, residual, output, before);
        }
    }

    fn join(&self, index: usize, parts: &[Part], tape: &Tape, image: usize, output: &mut Vec<f32>) {
        let made = self.network.output_of(&self.network.layers[index]);
        let (shape, format) = (made.shape, made.format);
        let start = output.len();
        output.resize(start + shape.len(), 0.0);
        let output = &mut output[start..];
        let mut first = 0;
        for part in parts {
            let source = map(tape, self.network, part.tensor.index(), image);
            let from = self.network.tensor(part.tensor).shape;
            for pixel in 0..shape.height * shape.width {
                let row = part.offset[0] + pixel / shape.width * part.stride[0];
                let column = part.offset[1] + pixel % shape.width * part.stride[1];
                let at = (row * from.width + column) * from.channels + part.channel;
                for c in 0..part.n_channels {
                    let p = source[at + c] as i64 * i64::from(part.requant.mantissa);
                    let rounded = arith::shift_right_rounding(
                        p,
                        part.requant.shift,
                        self.arithmetic.rounding,
                    );
                    let clamped = rounded.clamp(format.q_min().into(), format.q_max().into());
                    output[pixel * shape.channels + first + c] = clamped as f32;
                }
            }
            first += part.n_channels;
        }
    }

    fn errors(&self, layer: usize, before: &[f32]) -> [f64; 3] {
        let output = self.network.output_of(&self.network.layers[layer]);
        let unit = output.scale.real() as f32;
        let (low, high) = match post(&self.graph.net.layers[layer].op).map(|post| post.activation) {
            Some(Activation::Clamp { low, high }) => (low / unit, high / unit),
            _ => (f32::NEG_INFINITY, f32::INFINITY),
        };
        scales::errors(before, [low, high], output.format)
    }
}

/// A weight, counted in the window's order.
fn weight(conv: &Conv, channel: usize, k: usize) -> i32 {
    let n_channels = conv.n_group_channels();
    let (tap, c) = (k / n_channels, k % n_channels);
    let n_columns = conv.window.kernel[1];
    conv.weights[[channel, c, tap / n_columns, tap % n_columns]].into()
}

/// The channels for which sums of float32 are not known to be the accumulator's.
fn slow_channels(network: &Network, conv: &Conv, arithmetic: Arithmetic) -> Vec<usize> {
    let format = network.tensor(conv.input).format;
    let (low, high) = (i64::from(format.q_min()), i64::from(format.q_max()));
    let is_slow = |channel: &usize| {
        let (mut least, mut most) = (0i64, 0i64);
        for &w in conv.weights.index_axis(ndarray::Axis(0), *channel) {
            let w = i64::from(w);
            let (a, b) = (w * low, w * high);
            least += a.min(b).min(0);
            most += a.max(b).max(0);
        }
        let bias = conv.bias[*channel].value();
        // Partial sums of folds begin at 0 or at the bias.
        let (least, most) = (least + bias.min(0), most + bias.max(0));
        let accumulator = arithmetic.accumulator;
        let fits = accumulator.holds(least) && accumulator.holds(most);
        !fits || most - least >= 1 << 24
    };
    (0..conv.bias.len()).filter(is_slow).collect()
}

fn gate(post: &Post) -> Gate {
    Gate {
        low: post.q_min as f32,
        high: post.q_max as f32,
        slope: post
            .negative_slope
            .map_or(1.0, |slope| slope.factor() as f32),
    }
}

/// One image of a tensor.
fn map<'t>(tape: &'t Tape, network: &Network, tensor: usize, image: usize) -> &'t [f32] {
    let n = network.tensors[tensor].shape.len();
    &tape.values[tensor][image * n..][..n]
}

/// Window sums or maxima of one image; 0 where the channel does not exist.
pub(crate) fn reduce(
    window: network::Window,
    channel_offset: usize,
    reduction: Reduction,
    input: &[f32],
    from: Shape,
    to: Shape,
) -> Vec<f32> {
    let n = from
        .channels
        .min(to.channels.saturating_sub(channel_offset));
    let mut output = vec![0f32; to.len()];
    if reduction == Reduction::Max {
        for pixel in output.chunks_exact_mut(to.channels) {
            pixel[channel_offset..channel_offset + n].fill(f32::NEG_INFINITY);
        }
    }
    each_tap(window, from, to, |at, seen| {
        let out = &mut output[at * to.channels + channel_offset..][..n];
        let seen = &input[seen * from.channels..][..n];
        for (out, &x) in out.iter_mut().zip(seen) {
            *out = match reduction {
                Reduction::Max => out.max(x),
                Reduction::Sum => *out + x,
            };
        }
    });
    output
}

/// What follows a reduction, for one image.
struct Finisher<'a> {
    post: &'a Post,
    n_channels: usize,
    rounding: Rounding,
    /// Real multipliers of sum and residual, in units of the output, one per channel.
    factors: Vec<f32>,
    residual_factor: f32,
    slope: f32,
    /// One per channel, if doubles hold every integer between a reduction and its output.
    exact: Option<Vec<Exact>>,
}

/// A channel's requantization in doubles.
#[derive(Clone, Copy)]
struct Exact {
    mantissa: f64,
    second: f64,
    /// `2^-shift` of what is not negative, and of the rest with its slope.
    units: [f64; 2],
    slope: f64,
}

impl Exact {
    /// `None` where a sum of up to 32 bits may pass 51 bits.
    fn of(post: &Post, channel: usize) -> Option<Self> {
        let requant = post.requant_of(channel);
        let second = match &post.residual {
            Some(residual) => {
                let left = i32::from(requant.shift) - i32::from(residual.requant.shift);
                f64::from(residual.requant.mantissa) * 2f64.powi(left)
            }
            None => 0.0,
        };
        let slope = post.negative_slope.map_or(1.0, |s| f64::from(s.mantissa));
        let mantissa = f64::from(requant.mantissa);
        let most = (2f64.powi(32) * mantissa + 256.0 * second) * slope.max(1.0);
        let unit = 2f64.powi(-i32::from(requant.shift));
        let slope_unit = post
            .negative_slope
            .map_or(1.0, |s| 2f64.powi(-i32::from(s.shift)));
        (most < 2f64.powi(51)).then_some(Self {
            mantissa,
            second,
            units: [unit, unit * slope_unit],
            slope,
        })
    }
}

impl<'a> Finisher<'a> {
    fn new(post: &'a Post, n_channels: usize, rounding: Rounding) -> Self {
        let factor = |c: usize| post.requant_of(c).factor() as f32;
        Self {
            post,
            n_channels,
            rounding,
            factors: (0..n_channels).map(factor).collect(),
            residual_factor: post.residual.map_or(0.0, |r| r.requant.factor() as f32),
            slope: post.negative_slope.map_or(1.0, |s| s.factor() as f32),
            exact: (0..n_channels).map(|c| Exact::of(post, c)).collect(),
        }
    }

    fn run(&self, sums: &[f32], residual: &[f32], output: &mut Vec<f32>, before: &mut Vec<f32>) {
        let n = self.n_channels;
        if let Some(exact) = &self.exact {
            let first = output.len();
            output.resize(first + sums.len(), 0.0);
            before.resize(first + sums.len(), 0.0);
            let to = (&mut output[first..], &mut before[first..]);
            return match self.rounding {
                Rounding::HalfUp => fast::<0>(self, exact, sums, residual, to),
                Rounding::HalfAwayFromZero => fast::<1>(self, exact, sums, residual, to),
                Rounding::HalfEven => fast::<2>(self, exact, sums, residual, to),
                Rounding::Floor => fast::<3>(self, exact, sums, residual, to),
            };
        }
        output.reserve(sums.len());
        before.reserve(sums.len());
        for (pixel, sums) in sums.chunks_exact(n).enumerate() {
            let second = residual.get(pixel * n..(pixel + 1) * n);
            for (channel, &sum) in sums.iter().enumerate() {
                let other = second.map_or(0.0, |r| r[channel]);
                let q = network::post_process(
                    self.post,
                    channel,
                    sum as i64,
                    other as i32,
                    self.rounding,
                );
                let mut real = sum * self.factors[channel] + other * self.residual_factor;
                if real < 0.0 {
                    real *= self.slope;
                }
                output.push(q as f32);
                before.push(real);
            }
        }
    }
}

/// [`Finisher::run`] where doubles are exact; `ROUNDING` is the place in [`Rounding::ALL`].
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
fn fast<const ROUNDING: u8>(
    finisher: &Finisher<'_>,
    exact: &[Exact],
    sums: &[f32],
    residual: &[f32],
    (output, before): (&mut [f32], &mut [f32]),
) {
    let n = finisher.n_channels;
    let rounding = Rounding::ALL[usize::from(ROUNDING)];
    let (q_min, q_max) = (
        f64::from(finisher.post.q_min),
        f64::from(finisher.post.q_max),
    );
    let none = vec![0.0; n];
    let mut seconds = residual.chunks_exact(n);
    let pixels = output.chunks_exact_mut(n).zip(before.chunks_exact_mut(n));
    for ((output, before), sums) in pixels.zip(sums.chunks_exact(n)) {
        let seconds = seconds.next().unwrap_or(&none);
        let channels = exact.iter().zip(&finisher.factors);
        let operands = sums.iter().zip(seconds).zip(channels);
        let results = output.iter_mut().zip(before);
        for ((output, before), ((&sum, &other), (exact, factor))) in results.zip(operands) {
            let p = f64::from(sum) * exact.mantissa + f64::from(other) * exact.second;
            let y = if p < 0.0 {
                p * exact.slope * exact.units[1]
            } else {
                p * exact.units[0]
            };
            // Adding 0 makes 0 of -0.
            *output = (rounding.integer_of(y).max(q_min).min(q_max) + 0.0) as f32;
            let real = sum * factor + other * finisher.residual_factor;
            *before = if real < 0.0 {
                real * finisher.slope
            } else {
                real
            };
        }
    }
}
