//! Window reductions and joins: channels are lanes, nothing can overflow.

use crate::{
    Context,
    finish::{Finish, Reduced},
    taps::Taps,
    tensor::{Elements, Pixels, Values},
};
use arith::{Arithmetic, Requant, Rounding, shift_right_rounding};
use network::{Layer, Network, Part, Pool, Reduction, TensorId};

/// Channels that are reduced side by side.
const LANES: usize = 32;

#[derive(Debug)]
pub(crate) struct Prepared {
    pool: Pool,
    taps: Taps,
    /// One for every requantization: by the number of counted taps where the layer has a margin.
    finishes: Vec<Finish>,
    n_channels: usize,
    /// What each largest byte becomes, where nothing else has a say.
    table: Option<Box<[u8; 256]>>,
    /// The input's largest value.
    q_max: i32,
}

impl Prepared {
    pub fn new(network: &Network, layer: &Layer, pool: &Pool, arithmetic: Arithmetic) -> Self {
        let output = network.output_of(layer);
        let n_channels = output.shape.channels;
        let limit = match pool.reduction {
            Reduction::Max => 255,
            Reduction::Sum => 255 * pool.window.n_taps() as i64,
        };
        let finish = |requant: &Requant| {
            Finish::new(
                &pool.post,
                &vec![*requant; n_channels],
                |residual| {
                    let tensor = network.tensor(residual.tensor);
                    (tensor.shape.channels, tensor.format)
                },
                limit,
                output.format,
                arithmetic.rounding,
            )
        };
        let finishes = pool.post.requant.iter().map(finish).collect();
        let input = network.tensor(pool.input);
        let is_bytewise = pool.reduction == Reduction::Max
            && pool.post.residual.is_none()
            && pool.post.requant.len() == 1
            && pool.channel_offset == 0
            && input.shape.channels == n_channels
            && output.format.bits <= 8;
        let table = is_bytewise.then(|| {
            Box::new(std::array::from_fn(|byte| {
                let value = byte as i32 + input.format.q_min();
                let y = network::post_process(&pool.post, 0, value.into(), 0, arithmetic.rounding);
                (y - output.format.q_min()) as u8
            }))
        });
        Self {
            pool: pool.clone(),
            taps: Taps::new(pool.window, network.tensor(pool.input).shape, output.shape),
            finishes,
            n_channels,
            table,
            q_max: input.format.q_max(),
        }
    }

    pub fn run(&self, context: Context<'_>, output: &mut Values) {
        let shape = output.shape();
        let input = &context.tensors[self.pool.input.index()];
        let mut pixels = match output.elements_mut() {
            Elements::Bytes(bytes) => Pixels::Bytes(bytes),
            Elements::Words(words) => Pixels::Words(words),
        };
        let n = self.n_channels;
        if let (Some(table), Pixels::Bytes(bytes)) = (&self.table, &mut pixels) {
            return self.largest(input, shape.width, table, bytes);
        }
        let mut values = vec![0; shape.width * n];
        let (mut scratch, mut taps) = (Vec::new(), Vec::new());
        for y in 0..shape.height {
            for (x, values) in values.chunks_exact_mut(n).enumerate() {
                self.reduce(input, [y, x], &mut taps, values);
            }
            // Pixels side by side with the same requantization.
            let mut x = 0;
            while x < shape.width {
                let index = self.finish_of(input, [y, x]);
                let same = (x..shape.width).take_while(|&x| self.finish_of(input, [y, x]) == index);
                let end = x + same.count();
                let first_pixel = y * shape.width + x;
                self.finishes[index].pixels(
                    Reduced {
                        values: &values[x * n..end * n],
                        n_lanes: n,
                        channels: [0, n],
                        first_pixel,
                        width: shape.width,
                    },
                    context.tensors,
                    &mut scratch,
                    pixels.some(first_pixel, end - x, n),
                );
                x = end;
            }
        }
    }

    /// The largest byte of every channel's window, replaced by its table entry.
    fn largest(&self, input: &Values, width: usize, table: &[u8; 256], out: &mut [u8]) {
        let n_bytes = (self.q_max - input.q_min()) as usize + 1;
        let is_identity = (0..=255)
            .zip(&table[..n_bytes])
            .all(|(byte, &to)| byte == to);
        let mut taps = Vec::new();
        for (index, out) in out.chunks_exact_mut(self.n_channels).enumerate() {
            taps.clear();
            self.taps_of(input, [index / width, index % width], &mut taps);
            largest(out, &taps);
        }
        if !is_identity {
            for byte in out {
                *byte = table[usize::from(*byte)];
            }
        }
    }

    /// The input's pixels under a window.
    fn taps_of<'a>(&self, input: &'a Values, [y, x]: [usize; 2], taps: &mut Vec<&'a [u8]>) {
        for row in self.taps.rows(y).iter().flatten() {
            let columns = self.taps.columns(x).iter().flatten();
            taps.extend(columns.map(|column| input.pixel(*row, *column)));
        }
    }

    /// Which requantization a pixel has.
    fn finish_of(&self, input: &Values, [y, x]: [usize; 2]) -> usize {
        self.pool.margin.map_or(0, |margin| {
            let extent = input.shape().extent();
            let counted =
                |axis, index| margin.n_counted(self.pool.window, axis, index, extent[axis]);
            counted(0, y) * counted(1, x) - 1
        })
    }

    /// The reduction of every output channel of a pixel; `taps` is scratch.
    fn reduce<'a>(
        &self,
        input: &'a Values,
        [y, x]: [usize; 2],
        taps: &mut Vec<&'a [u8]>,
        values: &mut [i32],
    ) {
        values.fill(0);
        let values = &mut values[self.pool.channel_offset..];
        let n = values.len().min(input.shape().channels);
        taps.clear();
        self.taps_of(input, [y, x], taps);
        fold(
            &mut values[..n],
            taps,
            input.q_min(),
            self.pool.reduction == Reduction::Max,
        );
    }
}

/// The largest of some pixels' bytes, channel by channel.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn largest(out: &mut [u8], taps: &[&[u8]]) {
    let (lines, rest) = out.as_chunks_mut::<64>();
    let n = 64 * lines.len();
    for (index, line) in lines.iter_mut().enumerate() {
        let mut most = [0u8; 64];
        for tap in taps {
            for (most, &byte) in most.iter_mut().zip(&tap[64 * index..][..64]) {
                *most = byte.max(*most);
            }
        }
        *line = most;
    }
    rest.fill(0);
    for tap in taps {
        for (most, &byte) in rest.iter_mut().zip(&tap[n..]) {
            *most = byte.max(*most);
        }
    }
}

/// The sums or the largest of some pixels' values, channel by channel.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2"))]
fn fold(values: &mut [i32], taps: &[&[u8]], q_min: i32, takes_largest: bool) {
    let Some((first, others)) = taps.split_first() else {
        return;
    };
    for (index, values) in values.chunks_mut(LANES).enumerate() {
        let range = index * LANES..index * LANES + values.len();
        let mut reduced = [0i32; LANES];
        if takes_largest {
            let mut largest = [0u8; LANES];
            largest[..values.len()].copy_from_slice(&first[range.clone()]);
            for tap in others {
                for (largest, &byte) in largest.iter_mut().zip(&tap[range.clone()]) {
                    *largest = byte.max(*largest);
                }
            }
            reduced = largest.map(|byte| i32::from(byte).wrapping_add(q_min));
        } else {
            for tap in taps {
                for (sum, &byte) in reduced.iter_mut().zip(&tap[range.clone()]) {
                    *sum = sum.wrapping_add(i32::from(byte).wrapping_add(q_min));
                }
            }
        }
        values.copy_from_slice(&reduced[..values.len()]);
    }
}

/// One part of a join.
#[derive(Debug)]
pub(crate) struct Copy {
    tensor: TensorId,
    part: Part,
    /// First output channel.
    first: usize,
    /// What each input byte becomes.
    table: [u8; 256],
}

impl Copy {
    pub fn all(
        network: &Network,
        layer: &Layer,
        parts: &[Part],
        arithmetic: Arithmetic,
    ) -> Vec<Self> {
        let output = network.output_of(layer).format;
        let mut first = 0;
        let copy = |part: &Part| {
            let input = network.tensor(part.tensor).format;
            let convert = |byte: usize| {
                let value = byte as i64 + i64::from(input.q_min());
                let y = requantize(value, part.requant, arithmetic.rounding)
                    .clamp(output.q_min().into(), output.q_max().into());
                (y - i64::from(output.q_min())) as u8
            };
            let table = std::array::from_fn(convert);
            let copy = Self {
                tensor: part.tensor,
                part: *part,
                first,
                table,
            };
            first += part.n_channels;
            copy
        };
        parts.iter().map(copy).collect()
    }
}

fn requantize(value: i64, requant: Requant, rounding: Rounding) -> i64 {
    shift_right_rounding(value * i64::from(requant.mantissa), requant.shift, rounding)
}

pub(crate) fn join(copies: &[Copy], context: Context<'_>, output: &mut Values) {
    let shape = output.shape();
    let Elements::Bytes(bytes) = output.elements_mut() else {
        panic!("a join makes operands of at most 8 bits: verify refuses others");
    };
    for copy in copies {
        let input = &context.tensors[copy.tensor.index()];
        let part = &copy.part;
        for (index, pixel) in bytes.chunks_exact_mut(shape.channels).enumerate() {
            let (y, x) = (index / shape.width, index % shape.width);
            let [row, column] = [
                part.offset[0] + y * part.stride[0],
                part.offset[1] + x * part.stride[1],
            ];
            let source = &input.pixel(row, column)[part.channel..part.channel + part.n_channels];
            let out = &mut pixel[copy.first..copy.first + part.n_channels];
            for (out, &byte) in out.iter_mut().zip(source) {
                *out = copy.table[usize::from(byte)];
            }
        }
    }
}
