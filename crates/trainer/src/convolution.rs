//! Convolution in 32-bit floats: forward, backward to the weights, and (as a forward pass with other
//! weights) backward to the input.
//!
//! Maps lie pixel by pixel, channels fastest. A padded copy of the image makes every window a list of
//! contiguous runs, so that nothing is unrolled into columns: a tile of six pixels and sixteen output
//! channels stays in registers while the window passes.
//!
//! Invariant: every sum has one order and each of its steps is one fused multiply-add, so results do
//! not depend on the processor or on threads. Sums of integers below 2^24 are exact.

#![expect(
    clippy::inline_always,
    reason = "tiles must be compiled for the processor that their caller was chosen for"
)]

use network::{Shape, Window};
use std::array::from_fn;

/// Output channels that a tile computes together.
pub(crate) const LANES: usize = 16;

/// Pixels that a tile computes together: 6 × 16 sums fill twelve registers of AVX2.
const ROWS: usize = 6;

/// Pixels whose gradients stay in the first cache while every weight sees them.
const BLOCK: usize = 96;

/// One lane block of weights or sums.
pub(crate) type Lanes = [f32; LANES];

/// Where windows read in a padded map.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    /// Rows and columns of the padded map.
    padded: [usize; 2],
    /// The map's place inside the padded one.
    map: Shape,
    pad: [usize; 2],
    groups: usize,
    n_group_channels: usize,
    n_group_outputs: usize,
    n_outputs: usize,
    /// First element of each output pixel's window in group 0.
    bases: Vec<usize>,
    /// First element of each contiguous run of a window.
    runs: Vec<usize>,
    /// Elements of a run.
    run: usize,
}

impl Geometry {
    pub(crate) fn new(map: Shape, output: Shape, window: Window, groups: usize) -> Self {
        let needed = |axis: usize, extent: usize, out: usize| {
            let last = (out - 1) * window.stride[axis] + window.reach(axis);
            last.max(extent + window.pad[axis])
        };
        let padded = [
            needed(0, map.height, output.height),
            needed(1, map.width, output.width),
        ];
        let pixel = |y: usize, x: usize| (y * padded[1] + x) * map.channels;
        let bases = (0..output.height)
            .flat_map(|y| (0..output.width).map(move |x| (y, x)))
            .map(|(y, x)| pixel(y * window.stride[0], x * window.stride[1]))
            .collect();
        let n_group_channels = map.channels / groups;
        let is_dense = groups == 1 && window.dilation[1] == 1;
        let [n_rows, n_columns] = window.kernel;
        let runs = (0..n_rows)
            .flat_map(|y| (0..if is_dense { 1 } else { n_columns }).map(move |x| (y, x)))
            .map(|(y, x)| pixel(y * window.dilation[0], x * window.dilation[1]))
            .collect();
        Self {
            padded,
            map,
            pad: window.pad,
            groups,
            n_group_channels,
            n_group_outputs: output.channels / groups,
            n_outputs: output.channels,
            bases,
            runs,
            run: n_group_channels * if is_dense { n_columns } else { 1 },
        }
    }

    /// The convolution that brings gradients of the output back to the input; its map is what
    /// [`spread`] makes.
    pub(crate) fn transposed(map: Shape, output: Shape, window: Window, groups: usize) -> Self {
        let spread = Shape {
            channels: output.channels,
            height: map.height + window.reach(0) - 1,
            width: map.width + window.reach(1) - 1,
        };
        let back = Window {
            stride: [1, 1],
            pad: [0, 0],
            ..window
        };
        Self::new(spread, map, back, groups)
    }

    /// Products of one sum.
    pub(crate) fn reduction(&self) -> usize {
        self.runs.len() * self.run
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.n_group_channels == 1 && self.n_group_outputs == 1
    }

    fn n_blocks(&self) -> usize {
        self.n_group_outputs.div_ceil(LANES)
    }

    /// Elements of a padded map.
    fn n_padded(&self) -> usize {
        self.padded[0] * self.padded[1] * self.map.channels
    }

    /// What an output channel's window sees at a pixel, in the window's order.
    pub(crate) fn window<'m>(
        &'m self,
        padded: &'m [f32],
        pixel: usize,
        channel: usize,
    ) -> impl Iterator<Item = f32> + 'm {
        let first = self.bases[pixel] + channel / self.n_group_outputs * self.n_group_channels;
        let run = move |&offset: &usize| padded[first + offset..][..self.run].iter().copied();
        self.runs.iter().flat_map(run)
    }

    /// The map with zeros around it.
    pub(crate) fn pad(&self, map: &[f32], padded: &mut Vec<f32>) {
        padded.clear();
        padded.resize(self.n_padded(), 0.0);
        let row = self.map.width * self.map.channels;
        for (y, source) in map.chunks_exact(row).enumerate() {
            let first = ((y + self.pad[0]) * self.padded[1] + self.pad[1]) * self.map.channels;
            padded[first..first + row].copy_from_slice(source);
        }
    }
}

/// Gradients of an output, with the stride's gaps and the kernel's reach around, for the geometry
/// [`Geometry::transposed`].
pub(crate) fn spread(
    gradient: &[f32],
    map: Shape,
    output: Shape,
    window: Window,
    spread: &mut Vec<f32>,
) {
    let extent = [
        map.height + window.reach(0) - 1,
        map.width + window.reach(1) - 1,
    ];
    let n = output.channels;
    spread.clear();
    spread.resize(extent[0] * extent[1] * n, 0.0);
    // Windows that see nothing but padding have no place.
    let place = |axis: usize, index: usize| {
        (index * window.stride[axis] + window.reach(axis) - 1)
            .checked_sub(window.pad[axis])
            .filter(|&at| at < extent[axis])
    };
    for y in 0..output.height {
        let Some(row) = place(0, y) else { continue };
        for x in 0..output.width {
            let Some(column) = place(1, x) else { continue };
            let source = &gradient[(y * output.width + x) * n..][..n];
            spread[(row * extent[1] + column) * n..][..n].copy_from_slice(source);
        }
    }
}

/// Weights as the kernels read them: for each group and each block of output channels one [`Lanes`]
/// a product, in the window's order (row, column, channel). Depthwise: `[tap][channel]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Panels {
    lanes: Vec<Lanes>,
    depthwise: Vec<f32>,
}

impl Panels {
    /// `weight(output channel, product)`, the output channel counted over all groups.
    pub(crate) fn new(geometry: &Geometry, weight: impl Fn(usize, usize) -> f32) -> Self {
        let n = geometry.reduction();
        if geometry.is_depthwise() {
            let all = (0..n).flat_map(|k| (0..geometry.n_outputs).map(move |c| (c, k)));
            return Self {
                lanes: Vec::new(),
                depthwise: all.map(|(c, k)| weight(c, k)).collect(),
            };
        }
        let mut lanes = Vec::with_capacity(geometry.groups * geometry.n_blocks() * n);
        for group in 0..geometry.groups {
            for block in 0..geometry.n_blocks() {
                let first = block * LANES;
                let n_lanes = LANES.min(geometry.n_group_outputs - first);
                for k in 0..n {
                    lanes.push(from_fn(|lane| {
                        if lane < n_lanes {
                            weight(group * geometry.n_group_outputs + first + lane, k)
                        } else {
                            0.0
                        }
                    }));
                }
            }
        }
        Self {
            lanes,
            depthwise: Vec::new(),
        }
    }

    /// Panels of zeros, for gradients.
    pub(crate) fn zeros(geometry: &Geometry) -> Self {
        Self::new(geometry, |_, _| 0.0)
    }

    /// Weight `product` of an output channel.
    pub(crate) fn get(&self, geometry: &Geometry, channel: usize, product: usize) -> f32 {
        if geometry.is_depthwise() {
            return self.depthwise[product * geometry.n_outputs + channel];
        }
        let (group, inside) = (
            channel / geometry.n_group_outputs,
            channel % geometry.n_group_outputs,
        );
        let panel = group * geometry.n_blocks() + inside / LANES;
        self.lanes[panel * geometry.reduction() + product][inside % LANES]
    }

    /// Multiplies every number.
    pub(crate) fn scale(&mut self, factor: f32) {
        let all = self.lanes.iter_mut().flatten().chain(&mut self.depthwise);
        all.for_each(|w| *w *= factor);
    }

    /// Adds another's numbers.
    pub(crate) fn add(&mut self, other: &Self) {
        for (a, b) in self.lanes.iter_mut().zip(&other.lanes) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
        for (a, b) in self.depthwise.iter_mut().zip(&other.depthwise) {
            *a += b;
        }
    }
}

/// All outputs of one padded image, without bias.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
pub(crate) fn forward(geometry: &Geometry, image: &[f32], weights: &Panels, output: &mut [f32]) {
    if geometry.is_depthwise() {
        return depthwise(geometry, image, &weights.depthwise, output);
    }
    let n = geometry.reduction();
    let mut panels = weights.lanes.chunks_exact(n);
    for group in 0..geometry.groups {
        let image = &image[group * geometry.n_group_channels..];
        for block in 0..geometry.n_blocks() {
            let Some(panel) = panels.next() else { return };
            let first = group * geometry.n_group_outputs + block * LANES;
            let n_lanes = LANES.min(geometry.n_group_outputs - block * LANES);
            let pixels = geometry
                .bases
                .chunks(ROWS)
                .zip(output.chunks_mut(ROWS * geometry.n_outputs));
            for (bases, output) in pixels {
                let mut store = |row: usize, sums: &Lanes| {
                    let at = row * geometry.n_outputs + first;
                    output[at..at + n_lanes].copy_from_slice(&sums[..n_lanes]);
                };
                macro_rules! tile {
                    ($n:literal) => {
                        tile::<$n>(geometry, image, bases, panel)
                            .iter()
                            .enumerate()
                            .for_each(|(row, sums)| store(row, sums))
                    };
                }
                match bases.len() {
                    6 => tile!(6),
                    5 => tile!(5),
                    4 => tile!(4),
                    3 => tile!(3),
                    2 => tile!(2),
                    _ => tile!(1),
                }
            }
        }
    }
}

#[inline(always)]
fn tile<const N: usize>(
    geometry: &Geometry,
    image: &[f32],
    bases: &[usize],
    panel: &[Lanes],
) -> [Lanes; N] {
    let mut sums = [[0f32; LANES]; N];
    for (&offset, weights) in geometry.runs.iter().zip(panel.chunks_exact(geometry.run)) {
        let rows: [&[f32]; N] = from_fn(|row| &image[bases[row] + offset..][..weights.len()]);
        for (k, weights) in weights.iter().enumerate() {
            let values: [f32; N] = from_fn(|row| rows[row][k]);
            for (sums, value) in sums.iter_mut().zip(values) {
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = value.mul_add(*weight, *sum);
                }
            }
        }
    }
    sums
}

#[inline(always)]
fn depthwise(geometry: &Geometry, image: &[f32], weights: &[f32], output: &mut [f32]) {
    let n = geometry.n_outputs;
    for (&base, output) in geometry.bases.iter().zip(output.chunks_exact_mut(n)) {
        output.fill(0.0);
        for (&offset, weights) in geometry.runs.iter().zip(weights.chunks_exact(n)) {
            let inputs = &image[base + offset..][..n];
            for ((sum, x), w) in output.iter_mut().zip(inputs).zip(weights) {
                *sum = x.mul_add(*w, *sum);
            }
        }
    }
}

/// Adds to `weights` what one padded image and the gradients of its outputs contribute.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma"))]
pub(crate) fn backward(geometry: &Geometry, image: &[f32], gradient: &[f32], weights: &mut Panels) {
    if geometry.is_depthwise() {
        return backward_depthwise(geometry, image, gradient, &mut weights.depthwise);
    }
    let n = geometry.reduction();
    let mut lanes = vec![[0f32; LANES]; BLOCK];
    let mut panels = weights.lanes.chunks_exact_mut(n);
    for group in 0..geometry.groups {
        let image = &image[group * geometry.n_group_channels..];
        for block in 0..geometry.n_blocks() {
            let Some(panel) = panels.next() else { return };
            let first = group * geometry.n_group_outputs + block * LANES;
            let n_lanes = LANES.min(geometry.n_group_outputs - block * LANES);
            let pixels = geometry
                .bases
                .chunks(BLOCK)
                .zip(gradient.chunks(BLOCK * geometry.n_outputs));
            for (bases, gradient) in pixels {
                for (lanes, gradient) in lanes.iter_mut().zip(gradient.chunks(geometry.n_outputs)) {
                    lanes[..n_lanes].copy_from_slice(&gradient[first..first + n_lanes]);
                }
                let lanes = &lanes[..bases.len()];
                for (&offset, panel) in geometry.runs.iter().zip(panel.chunks_mut(geometry.run)) {
                    for (index, weights) in panel.chunks_mut(ROWS).enumerate() {
                        let image = &image[offset + index * ROWS..];
                        match weights.len() {
                            6 => gather::<6>(image, bases, lanes, weights),
                            5 => gather::<5>(image, bases, lanes, weights),
                            4 => gather::<4>(image, bases, lanes, weights),
                            3 => gather::<3>(image, bases, lanes, weights),
                            2 => gather::<2>(image, bases, lanes, weights),
                            _ => gather::<1>(image, bases, lanes, weights),
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn gather<const N: usize>(image: &[f32], bases: &[usize], lanes: &[Lanes], weights: &mut [Lanes]) {
    let mut sums: [Lanes; N] = from_fn(|row| weights[row]);
    for (&base, gradient) in bases.iter().zip(lanes) {
        let inputs = &image[base..][..N];
        for (sums, value) in sums.iter_mut().zip(inputs) {
            for (sum, gradient) in sums.iter_mut().zip(gradient) {
                *sum = value.mul_add(*gradient, *sum);
            }
        }
    }
    weights.copy_from_slice(&sums);
}

#[inline(always)]
fn backward_depthwise(geometry: &Geometry, image: &[f32], gradient: &[f32], weights: &mut [f32]) {
    let n = geometry.n_outputs;
    for (&base, gradient) in geometry.bases.iter().zip(gradient.chunks_exact(n)) {
        for (&offset, weights) in geometry.runs.iter().zip(weights.chunks_exact_mut(n)) {
            let inputs = &image[base + offset..][..n];
            for ((sum, x), g) in weights.iter_mut().zip(inputs).zip(gradient) {
                *sum = x.mul_add(*g, *sum);
            }
        }
    }
}
