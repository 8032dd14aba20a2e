//! A layer as the machine sees it: numbers that fit the instructions' fields, and DRAM addresses.
//!
//! Invariant: a [`Job`] comes from a verified network, and every extent has passed [`Limits`], so
//! products of two extents and a pixel's bytes fit 64 bits, and DRAM addresses fit 32.

use crate::{
    Error, lanes,
    layout::{self, Layout},
    residency::{self, Residency},
};
use accelerator::Config;
use arith::Requant;
use isa::Placement;
use network::{Network, Op, Post, Reduction};

/// A tensor in DRAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Map {
    pub address: u32,
    pub height: u32,
    pub width: u32,
    pub channels: u32,
    pub pixel_bytes: u32,
    /// Bits of an element in memory: 4, 8 or 16.
    pub bits: u32,
    pub signed: bool,
    /// First byte in the activation scratchpad when the whole tensor stays there.
    pub chip: Option<u32>,
}

/// Where a sliding window reads; `[vertical, horizontal]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Window {
    pub kernel: [u32; 2],
    pub stride: [u32; 2],
    pub dilation: [u32; 2],
    pub pad: [u32; 2],
    /// Input rows and columns before the first that is read.
    pub offset: [u32; 2],
}

/// What of an input axis a run of outputs reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First input row or column.
    pub start: u32,
    /// How many.
    pub len: u32,
    /// Zeros before the first.
    pub pad: u32,
}

/// The second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Second {
    pub map: Map,
    pub stride: [u32; 2],
    /// First output channel that it reaches.
    pub channel: u32,
    pub mantissa: u32,
    pub shift: u32,
}

/// A convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Conv {
    pub input: Map,
    pub window: Window,
    pub groups: u32,
    /// Input channels of a group.
    pub group_in: u32,
    /// Output channels of a group.
    pub group_out: u32,
    pub wide_weights: bool,
    /// DRAM address of the first line.
    pub weights: u32,
    /// DRAM address of the first entry.
    pub parameters: u32,
    /// Overflow counter of output channel 0.
    pub counter: u32,
}

/// Output channels that one kind of `pool` computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    /// `None`: every tap is padding.
    pub source: Option<Map>,
    pub window: Window,
    /// First output channel.
    pub channel: u32,
    pub n_channels: u32,
    /// First channel of the source.
    pub source_channel: u32,
    pub sum: bool,
    /// The multiplier depends on the taps that are counted; else it is the first.
    pub margin: Option<Margin>,
    /// Position of its multipliers in those of the job.
    pub multiplier: usize,
}

/// The taps that an average counts: those of `window` inside the input and the margin around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Margin {
    pub window: Window,
    /// Rows and columns of the input.
    pub extent: [u32; 2],
    pub before: [u32; 2],
    pub after: [u32; 2],
}

/// What computes the layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Conv(Conv),
    /// A depthwise convolution on the post unit's lanes.
    Lanes(Conv),
    Pool(Vec<Part>),
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Job {
    pub output: Map,
    /// The output goes to DRAM (too).
    pub store: bool,
    pub second: Option<Second>,
    /// Mantissa and shift for negative values.
    pub slope: Option<(u32, u32)>,
    pub q_min: i16,
    pub q_max: i16,
    pub work: Work,
    /// Mantissas and shifts of the parts.
    pub multipliers: Vec<(u32, u32)>,
}

impl Map {
    fn of(placement: &Placement) -> Self {
        Self {
            address: placement.address,
            height: placement.height,
            width: placement.width,
            channels: placement.channels,
            pixel_bytes: placement.pixel_bytes,
            bits: placement.storage_bits.into(),
            signed: placement.signed,
            chip: None,
        }
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        u64::from(self.height) * u64::from(self.width) * u64::from(self.pixel_bytes)
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> u32 {
        self.width * self.pixel_bytes
    }

    /// 1 for elements of 8 bits.
    pub fn wide(&self) -> u32 {
        u32::from(self.bits == 8)
    }
}

impl Window {
    const UNIT: Self = Self {
        kernel: [1; 2],
        stride: [1; 2],
        dilation: [1; 2],
        pad: [0; 2],
        offset: [0; 2],
    };

    /// What outputs `from..to` read of `extent` inputs; `None` when they read only padding.
    pub fn span(&self, axis: usize, (from, to): (u32, u32), extent: u32) -> Option<Span> {
        let pad = i64::from(self.pad[axis]) - i64::from(self.offset[axis]);
        let stride = i64::from(self.stride[axis]);
        let first = i64::from(from) * stride - pad;
        let reach = i64::from(self.kernel[axis] - 1) * i64::from(self.dilation[axis]);
        let last = (i64::from(to) - 1) * stride - pad + reach;
        let start = first.max(0);
        let end = (last + 1).min(extent.into());
        (start < end).then(|| Span {
            start: start as u32,
            len: (end - start) as u32,
            pad: (-first).max(0) as u32,
        })
    }
}

impl Margin {
    /// Counted taps of an output row or column.
    pub fn n_counted(&self, axis: usize, index: u32) -> u32 {
        let window = &self.window;
        let first = i64::from(index) * i64::from(window.stride[axis]) - i64::from(window.pad[axis]);
        let end = i64::from(self.extent[axis]) + i64::from(self.after[axis]);
        let taps = (0..window.kernel[axis]).filter(|&tap| {
            let position = first + i64::from(tap) * i64::from(window.dilation[axis]);
            position >= -i64::from(self.before[axis]) && position < end
        });
        taps.count() as u32
    }
}

impl Conv {
    /// Steps of the reduction.
    pub fn n_steps(&self) -> u32 {
        self.window.kernel[0] * self.window.kernel[1] * self.group_in
    }

    /// Cycles of one step.
    pub fn passes(&self) -> u64 {
        u64::from((1 + self.input.wide()) * (1 + u32::from(self.wide_weights)))
    }
}

impl Job {
    /// Calls `f` for every tensor that the job touches, the output first.
    fn for_each_map(&mut self, mut f: impl FnMut(&mut Map)) {
        f(&mut self.output);
        if let Some(second) = &mut self.second {
            f(&mut second.map);
        }
        match &mut self.work {
            Work::Conv(conv) | Work::Lanes(conv) => f(&mut conv.input),
            Work::Pool(parts) => parts
                .iter_mut()
                .filter_map(|part| part.source.as_mut())
                .for_each(f),
        }
    }

    /// Whether a tensor of the job stays on chip; its tiles are then as wide as the tensors.
    pub fn has_resident(&self) -> bool {
        let mut found = false;
        self.clone().for_each_map(|map| found |= map.chip.is_some());
        found
    }

    /// The job without its place in memory and its values: what decides how long it takes. Its
    /// tensors lie one behind the other in DRAM, and those that stay on chip from `behind` on.
    pub fn shape(&self, behind: u32) -> Self {
        let mut job = self.clone();
        // Where each tensor was and is; one that is read twice has one place.
        let mut placed: Vec<(Map, Map)> = Vec::new();
        let (mut dram, mut chip) = (0, behind);
        job.for_each_map(|map| {
            let known = placed.iter().find(|(was, _)| was == map);
            let is = if let Some(&(_, is)) = known {
                is
            } else {
                let is = Map {
                    address: dram,
                    chip: map.chip.map(|_| chip),
                    ..*map
                };
                placed.push((*map, is));
                dram += map.bytes().next_multiple_of(layout::ALIGNMENT) as u32;
                chip += map.chip.map_or(0, |_| residency::size(map) as u32);
                is
            };
            *map = is;
        });
        (job.q_min, job.q_max) = (0, 0);
        if let Some(second) = &mut job.second {
            (second.mantissa, second.shift) = (0, 0);
        }
        match &mut job.work {
            Work::Conv(conv) | Work::Lanes(conv) => {
                (conv.weights, conv.parameters, conv.counter) = (0, 0, 0);
            }
            Work::Pool(_) => {}
        }
        job.multipliers.fill((0, 0));
        job
    }
}

/// Checks numbers of one layer.
struct Limits<'a> {
    layer: &'a str,
}

/// Places the tensors that stay on chip.
pub(crate) fn keep_on_chip(
    jobs: &mut [Job],
    layers: &[network::Layer],
    residency: &Residency,
    keep_all: bool,
) {
    for (job, layer) in jobs.iter_mut().zip(layers) {
        let chip = |id: network::TensorId| residency.addresses[id.index()];
        job.output.chip = chip(layer.output);
        job.store = keep_all || residency.stored[layer.output.index()];
        if let (Some(second), Some(residual)) = (
            &mut job.second,
            layer.op.post().and_then(|post| post.residual),
        ) {
            second.map.chip = chip(residual.tensor);
        }
        match (&mut job.work, &layer.op) {
            (Work::Conv(work) | Work::Lanes(work), Op::Conv(conv)) => {
                work.input.chip = chip(conv.input);
            }
            (Work::Pool(parts), Op::Pool(pool)) => {
                if let Some(source) = &mut parts[0].source {
                    source.chip = chip(pool.input);
                }
            }
            (Work::Pool(parts), Op::Concat(views)) => {
                for (part, view) in parts.iter_mut().zip(views) {
                    if let Some(source) = &mut part.source {
                        source.chip = chip(view.tensor);
                    }
                }
            }
            (work, op) => unreachable!("{work:?} is not the job of {op:?}"),
        }
    }
}

impl Limits<'_> {
    fn check(&self, what: &'static str, value: i64, min: i64, max: i64) -> Result<u32, Error> {
        if (min..=max).contains(&value) {
            return Ok(value as u32);
        }
        Err(Error::Limit {
            layer: self.layer.to_owned(),
            what,
            value,
            min,
            max,
        })
    }

    fn map(&self, placement: &Placement) -> Result<Map, Error> {
        self.check("number of channels", placement.channels.into(), 1, 0xffff)?;
        self.check("height", placement.height.into(), 1, 0x3fff)?;
        self.check("width", placement.width.into(), 1, 0x3fff)?;
        self.check("bytes of a pixel", placement.pixel_bytes.into(), 1, 0xffff)?;
        Ok(Map::of(placement))
    }

    /// A tensor that the array or the post unit reads.
    fn operand(&self, placement: &Placement) -> Result<Map, Error> {
        self.check(
            "operand's width in bits",
            placement.storage_bits.into(),
            4,
            8,
        )?;
        self.map(placement)
    }

    fn window(&self, window: network::Window) -> Result<Window, Error> {
        let pair = |what, values: [usize; 2], min| -> Result<[u32; 2], Error> {
            let [y, x] = values.map(|value| i64::try_from(value).unwrap_or(i64::MAX));
            Ok([
                self.check(what, y, min, 255)?,
                self.check(what, x, min, 255)?,
            ])
        };
        Ok(Window {
            kernel: pair("kernel extent", window.kernel, 1)?,
            stride: pair("stride", window.stride, 1)?,
            dilation: pair("dilation", window.dilation, 1)?,
            pad: pair("padding", window.pad, 0)?,
            offset: [0; 2],
        })
    }

    /// Where a part of a concatenation reads.
    fn view(&self, part: &network::Part) -> Result<Window, Error> {
        let view = self.window(network::Window {
            stride: part.stride,
            ..network::Window::UNIT
        })?;
        // An offset is part of an address: the tensor's extent has bounded it.
        let offset = part.offset.map(|offset| offset as u32);
        Ok(Window { offset, ..view })
    }

    fn margin(
        &self,
        margin: network::Margin,
        window: Window,
        source: Map,
    ) -> Result<Margin, Error> {
        let pair = |values: [usize; 2]| -> Result<[u32; 2], Error> {
            let [y, x] = values.map(|value| i64::try_from(value).unwrap_or(i64::MAX));
            Ok([
                self.check("margin", y, 0, 0xffff)?,
                self.check("margin", x, 0, 0xffff)?,
            ])
        };
        Ok(Margin {
            window,
            extent: [source.height, source.width],
            before: pair(margin.before)?,
            after: pair(margin.after)?,
        })
    }

    fn clamp(&self, value: i32) -> Result<i16, Error> {
        self.check("clamp", value.into(), i16::MIN.into(), i16::MAX.into())
            .map(|bits| bits as i16)
    }
}

/// Lowers every layer. `first_counters` holds each layer's first overflow counter.
///
/// # Errors
/// [`Error::Limit`] for a number that no instruction can hold.
pub(crate) fn lower(
    network: &Network,
    layout: &Layout,
    first_counters: &[u32],
    config: &Config,
) -> Result<Vec<Job>, Error> {
    (0..network.layers.len())
        .map(|index| lower_layer(network, layout, index, first_counters[index], config))
        .collect()
}

fn lower_layer(
    network: &Network,
    layout: &Layout,
    index: usize,
    counter: u32,
    config: &Config,
) -> Result<Job, Error> {
    let layer = &network.layers[index];
    let limits = Limits { layer: &layer.name };
    let tensor = |id: network::TensorId| &layout.tensors[id.index()];
    let output = limits.map(tensor(layer.output))?;
    let mut multipliers = Vec::new();
    let work = match &layer.op {
        Op::Conv(conv) => {
            let groups = conv.groups as u32;
            let input = limits.operand(tensor(conv.input))?;
            let (weights, parameters) = layout.constants[index];
            let lowered = Conv {
                input,
                window: limits.window(conv.window)?,
                groups,
                group_in: input.channels / groups,
                group_out: output.channels / groups,
                wide_weights: conv.weight_bits > 4,
                weights,
                parameters,
                counter,
            };
            if lanes::take(conv, config) {
                Work::Lanes(lowered)
            } else {
                Work::Conv(lowered)
            }
        }
        Op::Pool(pool) => {
            let source = limits.operand(tensor(pool.input))?;
            multipliers.extend(pool.post.requant.iter().copied().map(pair));
            let window = limits.window(pool.window)?;
            let margin = pool.margin;
            let main = Part {
                source: Some(source),
                window,
                channel: pool.channel_offset as u32,
                n_channels: source.channels,
                source_channel: 0,
                sum: pool.reduction == Reduction::Sum,
                margin: margin
                    .map(|margin| limits.margin(margin, window, source))
                    .transpose()?,
                multiplier: 0,
            };
            let behind = main.channel + main.n_channels;
            // Where the input has no channel the sum is 0, and so is it times any multiplier; with a
            // residual the multiplier's shift still counts, so each pixel keeps its own.
            let rest = |from: u32, to: u32| Part {
                source: None,
                window: Window::UNIT,
                channel: from,
                n_channels: to - from,
                sum: true,
                ..main
            };
            let mut parts = vec![main];
            if main.channel > 0 {
                parts.push(rest(0, main.channel));
            }
            if behind < output.channels {
                parts.push(rest(behind, output.channels));
            }
            Work::Pool(parts)
        }
        Op::Concat(views) => {
            let mut channel = 0;
            let mut parts = Vec::new();
            for view in views {
                parts.push(Part {
                    source: Some(limits.operand(tensor(view.tensor))?),
                    window: limits.view(view)?,
                    channel,
                    n_channels: view.n_channels as u32,
                    source_channel: view.channel as u32,
                    sum: false,
                    margin: None,
                    multiplier: multipliers.len(),
                });
                multipliers.push(pair(view.requant));
                channel += view.n_channels as u32;
            }
            Work::Pool(parts)
        }
    };
    let format = network.tensor(layer.output).format;
    let post = layer.op.post();
    let (q_min, q_max) = post.map_or((format.q_min(), format.q_max()), |p| (p.q_min, p.q_max));
    Ok(Job {
        output,
        store: true,
        second: post.and_then(|p| second(&limits, layout, p)).transpose()?,
        slope: post
            .and_then(|p| p.negative_slope)
            .map(|slope| (slope.mantissa.into(), slope.shift.into())),
        q_min: limits.clamp(q_min)?,
        q_max: limits.clamp(q_max)?,
        work,
        multipliers,
    })
}

fn pair(requant: Requant) -> (u32, u32) {
    (requant.mantissa.into(), requant.shift.into())
}

fn second(limits: &Limits, layout: &Layout, post: &Post) -> Option<Result<Second, Error>> {
    let residual = post.residual?;
    let map = match limits.operand(&layout.tensors[residual.tensor.index()]) {
        Ok(map) => map,
        Err(error) => return Some(Err(error)),
    };
    Some(Ok(Second {
        map,
        stride: residual.stride.map(|stride| stride as u32),
        channel: residual.channel_offset as u32,
        mantissa: residual.requant.mantissa.into(),
        shift: residual.requant.shift.into(),
    }))
}
