//! Where everything lies in DRAM, and how tensors, weights and parameters look there.
//!
//! Weights and parameters come first (they are the program's initial data), then every tensor of
//! the network, so that each layer can be compared with the oracle. Invariant: no two areas
//! overlap; each starts at a multiple of [`ALIGNMENT`].

use crate::{Error, job, lanes, tile::Plan, weights};
use accelerator::{Config, Dataflow};
use arith::Bytes;
use isa::{Placement, Role};
use ndarray::Array3;
use network::{Conv, Network, Op};

/// Areas start at multiples of this: the usual longest burst.
pub const ALIGNMENT: u64 = 64;
/// Bytes of a parameter table entry.
pub const PARAMETER_BYTES: u32 = 8;

/// DRAM contents of a network.
#[derive(Debug)]
pub(crate) struct Layout {
    /// In the order of the network's tensors.
    pub tensors: Vec<Placement>,
    /// Weights and parameters lie from address 0 to here.
    pub data_bytes: u64,
    /// Per layer: first bytes of weights and parameters; 0 when not a convolution.
    pub constants: Vec<(u32, u32)>,
    /// End of the last area.
    pub dram_bytes: u64,
}

/// Output channels of one group that are computed side by side, and where their weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ColumnTile {
    /// First output channel.
    pub channel: u32,
    pub n_channels: u32,
    /// First byte of the weights, from the layer's first.
    pub offset: u64,
    pub bytes: u64,
}

/// Column tiles of a convolution: up to `most` output channels of one group each.
pub(crate) fn column_tiles(conv: &job::Conv, config: &Config, most: u32) -> Vec<ColumnTile> {
    let line = u64::from(weights::line_bytes(conv, config));
    let mut tiles = Vec::new();
    let mut offset = 0;
    for group in 0..conv.groups {
        let mut channel = 0;
        while channel < conv.group_out {
            let n_channels = most.min(conv.group_out - channel);
            let n_lines = match config.dataflow {
                Dataflow::OutputStationary | Dataflow::WeightStationary => conv.n_steps(),
                Dataflow::InputStationary => conv.n_steps().div_ceil(config.rows) * n_channels,
            };
            let bytes = u64::from(n_lines) * line;
            tiles.push(ColumnTile {
                channel: group * conv.group_out + channel,
                n_channels,
                offset,
                bytes,
            });
            offset += bytes;
            channel += n_channels;
        }
    }
    tiles
}

/// Places a verified network.
///
/// # Errors
/// [`Error::Dram`] when it does not fit.
pub(crate) fn place(network: &Network, config: &Config) -> Result<Layout, Error> {
    let available = config.dram.size_bytes.min(1 << 32);
    let mut end = 0u64;
    let mut sizes = Vec::new();
    for layer in &network.layers {
        if let Op::Conv(conv) = &layer.op {
            let (weights, parameters) = constant_bytes(conv, config);
            sizes.push((reserve(&mut end, weights), reserve(&mut end, parameters)));
        } else {
            sizes.push((0, 0));
        }
    }
    let data_bytes = end;
    let mut addresses = Vec::new();
    for tensor in &network.tensors {
        let shape = tensor.shape;
        let bits = u64::from(tensor.format.storage_bits());
        let pixel_bytes = (shape.channels as u64 * bits).div_ceil(8);
        let bytes = pixel_bytes.saturating_mul((shape.height * shape.width) as u64);
        addresses.push((reserve(&mut end, bytes), pixel_bytes as u32));
    }
    // A tensor that ends at 2^32 would still be addressable, but its end would not.
    if end > available || end > u64::from(u32::MAX) {
        let (needed, available) = (Bytes(end), Bytes(available));
        return Err(Error::Dram { needed, available });
    }
    let tensors = addresses
        .iter()
        .enumerate()
        .map(|(index, &(address, pixel_bytes))| placement(network, index, address, pixel_bytes))
        .collect();
    let constants = sizes.iter().map(|&(w, p)| (w as u32, p as u32)).collect();
    Ok(Layout {
        tensors,
        data_bytes,
        constants,
        dram_bytes: end,
    })
}

fn reserve(end: &mut u64, bytes: u64) -> u64 {
    let address = *end;
    *end = address.saturating_add(bytes.next_multiple_of(ALIGNMENT));
    address
}

fn placement(network: &Network, index: usize, address: u64, pixel_bytes: u32) -> Placement {
    let tensor = &network.tensors[index];
    let role = if network.input.index() == index {
        Role::Input
    } else if network.outputs.iter().any(|id| id.index() == index) {
        Role::Output
    } else {
        Role::Internal
    };
    Placement {
        name: tensor.name.clone(),
        role,
        address: address as u32,
        channels: tensor.shape.channels as u32,
        height: tensor.shape.height as u32,
        width: tensor.shape.width as u32,
        pixel_bytes,
        storage_bits: tensor.format.storage_bits(),
        signed: tensor.format.signed,
    }
}

fn constant_bytes(conv: &Conv, config: &Config) -> (u64, u64) {
    let parameters = conv.n_output_channels() as u64 * u64::from(PARAMETER_BYTES);
    let wide = conv.weight_bits > 4;
    if lanes::take(conv, config) {
        let n_taps = conv.window.n_taps() as u32;
        let runs = lanes::runs(conv.groups as u32, n_taps, wide, config).into_iter();
        let weights = runs.map(|(_, n)| lanes::run_bytes(n, n_taps, wide)).sum();
        return (weights, parameters);
    }
    let group_channels = conv.n_output_channels() / conv.groups;
    let n_steps = conv.reduction_length() as u64;
    let n_lines = match config.dataflow {
        Dataflow::OutputStationary | Dataflow::WeightStationary => {
            n_steps.saturating_mul(group_channels.div_ceil(config.cols as usize) as u64)
        }
        Dataflow::InputStationary => n_steps
            .div_ceil(config.rows.into())
            .saturating_mul(group_channels as u64),
    };
    let weights = (conv.groups as u64)
        .saturating_mul(n_lines)
        .saturating_mul(u64::from(config.line_bytes()) * (1 + u64::from(wide)));
    (weights, parameters)
}

/// Writes the weights and parameters of a layer, as its plan wants them.
pub(crate) fn pack(conv: &Conv, job: &job::Conv, plan: &Plan, config: &Config, data: &mut [u8]) {
    let mut first = job.weights as usize;
    for &run in plan.lanes.iter().flat_map(|lanes| &lanes.runs) {
        lanes::pack(conv, run, job.wide_weights, &mut data[first..]);
        first += lanes::run_bytes(run.1, job.n_steps(), job.wide_weights) as usize;
    }
    let packer = Packer::new(conv, config);
    for tile in plan.weights.iter().flat_map(|weights| &weights.tiles) {
        let first = job.weights as usize + tile.offset as usize;
        let into = &mut data[first..first + tile.bytes as usize];
        match config.dataflow {
            Dataflow::OutputStationary | Dataflow::WeightStationary => packer.by_step(tile, into),
            Dataflow::InputStationary => packer.by_channel(tile, config.rows as usize, into),
        }
    }
    pack_parameters(conv, &mut data[job.parameters as usize..]);
}

/// Weights as they lie in lines of nibbles.
struct Packer<'a> {
    flat: std::borrow::Cow<'a, [i8]>,
    n_in: usize,
    taps: usize,
    /// Bytes of a line.
    line: usize,
    wide: bool,
}

impl<'a> Packer<'a> {
    fn new(conv: &'a Conv, config: &Config) -> Self {
        let (_, n_in, height, width) = conv.weights.dim();
        let flat = conv.weights.as_slice().map_or_else(
            || conv.weights.iter().copied().collect::<Vec<i8>>().into(),
            Into::into,
        );
        Self {
            flat,
            n_in,
            taps: height * width,
            line: config.line_bytes() as usize,
            wide: conv.weight_bits > 4,
        }
    }

    /// The weight of an output channel in step `k`: kernel row, kernel column, channel (fastest).
    fn weight(&self, channel: usize, k: usize) -> u8 {
        let (tap, from) = (k / self.n_in, k % self.n_in);
        self.flat[(channel * self.n_in + from) * self.taps + tap].cast_unsigned()
    }

    fn put(&self, line: &mut [u8], nibble: usize, weight: u8) {
        let shift = 4 * (nibble % 2);
        line[nibble / 2] |= (weight & 15) << shift;
        if self.wide {
            line[self.line + nibble / 2] |= (weight >> 4) << shift;
        }
    }

    fn line_bytes(&self) -> usize {
        self.line * (1 + usize::from(self.wide))
    }

    /// For each step one line, a nibble for each channel.
    fn by_step(&self, tile: &ColumnTile, into: &mut [u8]) {
        for (k, line) in into.chunks_exact_mut(self.line_bytes()).enumerate() {
            for column in 0..tile.n_channels as usize {
                self.put(line, column, self.weight(tile.channel as usize + column, k));
            }
        }
    }

    /// For each fold of `rows` steps and each channel one line, a nibble for each step.
    fn by_channel(&self, tile: &ColumnTile, rows: usize, into: &mut [u8]) {
        let n_channels = tile.n_channels as usize;
        for (index, line) in into.chunks_exact_mut(self.line_bytes()).enumerate() {
            let (fold, channel) = (index / n_channels, index % n_channels);
            let behind = (self.n_in * self.taps).min((fold + 1) * rows);
            for k in fold * rows..behind {
                self.put(
                    line,
                    k - fold * rows,
                    self.weight(tile.channel as usize + channel, k),
                );
            }
        }
    }
}

fn pack_parameters(conv: &Conv, into: &mut [u8]) {
    for (channel, bias) in conv.bias.iter().enumerate() {
        let requant = conv.post.requant_of(channel);
        let entry = &mut into[channel * PARAMETER_BYTES as usize..][..5];
        entry[..2].copy_from_slice(&bias.mantissa.to_le_bytes());
        entry[2] = bias.shift;
        entry[3] = requant.mantissa;
        entry[4] = requant.shift;
    }
}

/// First byte of a pixel, and elements of it; the caller keeps indices inside the tensor.
fn pixel(placement: &Placement, y: usize, x: usize) -> usize {
    let index = y * placement.width as usize + x;
    placement.address as usize + index * placement.pixel_bytes as usize
}

/// Writes a tensor, `[channel, row, column]`, where the program expects it. Values lose the bits
/// that the element's storage does not have.
///
/// # Panics
/// When `dram` is smaller than the program says or `values` has another shape.
pub fn write_tensor(dram: &mut [u8], placement: &Placement, values: &Array3<i32>) {
    let shape = (
        placement.channels as usize,
        placement.height as usize,
        placement.width as usize,
    );
    assert_eq!(
        values.dim(),
        shape,
        "tensor {} has another shape",
        placement.name
    );
    for ((c, y, x), &value) in values.indexed_iter() {
        let at = pixel(placement, y, x);
        match placement.storage_bits {
            4 => {
                let shift = 4 * (c % 2);
                let byte = &mut dram[at + c / 2];
                *byte = *byte & !(15 << shift) | (value as u8 & 15) << shift;
            }
            8 => dram[at + c] = value as u8,
            _ => dram[at + 2 * c..][..2].copy_from_slice(&(value as u16).to_le_bytes()),
        }
    }
}

/// Reads a tensor, `[channel, row, column]`, from where the program puts it.
///
/// # Panics
/// When `dram` is smaller than the program says.
pub fn read_tensor(dram: &[u8], placement: &Placement) -> Array3<i32> {
    let shape = (
        placement.channels as usize,
        placement.height as usize,
        placement.width as usize,
    );
    Array3::from_shape_fn(shape, |(c, y, x)| {
        let at = pixel(placement, y, x);
        let raw = match placement.storage_bits {
            4 => i32::from(dram[at + c / 2] >> (4 * (c % 2)) & 15),
            8 => i32::from(dram[at + c]),
            _ => i32::from(u16::from_le_bytes([dram[at + 2 * c], dram[at + 2 * c + 1]])),
        };
        let unused = 32 - u32::from(placement.storage_bits);
        if placement.signed {
            raw << unused >> unused
        } else {
            raw
        }
    })
}
