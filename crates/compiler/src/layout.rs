//! Where everything lies in DRAM, and how tensors, weights and parameters look there.
//!
//! Weights and parameters come first (they are the program's initial data), then every tensor of
//! the network, so that each layer can be compared with the oracle. Invariant: no two areas
//! overlap; each starts at a multiple of [`ALIGNMENT`].

use crate::Error;
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
    /// Weights and parameters, from address 0.
    pub data: Vec<u8>,
    /// Per layer: first bytes of weights and parameters; 0 when not a convolution.
    pub constants: Vec<(u32, u32)>,
    /// End of the last area.
    pub dram_bytes: u64,
}

/// Column tiles of a convolution: up to `cols` output channels of one group each.
pub(crate) fn column_tiles(groups: u32, group_channels: u32, cols: u32) -> Vec<(u32, u32)> {
    let mut tiles = Vec::new();
    for group in 0..groups {
        let mut channel = 0;
        while channel < group_channels {
            let n = cols.min(group_channels - channel);
            tiles.push((group * group_channels + channel, n));
            channel += n;
        }
    }
    tiles
}

/// Places a verified network.
///
/// # Errors
/// [`Error::Dram`] when it does not fit.
pub(crate) fn place(network: &Network, cols: u32, dram_bytes: u64) -> Result<Layout, Error> {
    let available = dram_bytes.min(1 << 32);
    let mut end = 0u64;
    let mut sizes = Vec::new();
    for layer in &network.layers {
        if let Op::Conv(conv) = &layer.op {
            let (weights, parameters) = constant_bytes(conv, cols);
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
    let mut data = vec![0u8; data_bytes as usize];
    for (layer, &(weights, parameters)) in network.layers.iter().zip(&sizes) {
        if let Op::Conv(conv) = &layer.op {
            pack_weights(conv, cols, &mut data[weights as usize..]);
            pack_parameters(conv, &mut data[parameters as usize..]);
        }
    }
    let constants = sizes.iter().map(|&(w, p)| (w as u32, p as u32)).collect();
    Ok(Layout {
        tensors,
        data,
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

fn group_channels(conv: &Conv) -> u32 {
    (conv.n_output_channels() / conv.groups) as u32
}

fn constant_bytes(conv: &Conv, cols: u32) -> (u64, u64) {
    let n_tiles = conv.groups as u64 * u64::from(group_channels(conv).div_ceil(cols));
    let lines = conv.reduction_length() as u64 * if conv.weight_bits > 4 { 2 } else { 1 };
    let weights = n_tiles
        .saturating_mul(lines)
        .saturating_mul(u64::from(cols.div_ceil(2)));
    (
        weights,
        conv.n_output_channels() as u64 * u64::from(PARAMETER_BYTES),
    )
}

/// Lines of nibbles: tile by tile, step by step (kernel row, kernel column, channel).
fn pack_weights(conv: &Conv, cols: u32, into: &mut [u8]) {
    let line = cols.div_ceil(2) as usize;
    let wide = conv.weight_bits > 4;
    let weights = conv.weights.as_standard_layout();
    let flat = weights.as_slice().expect("standard layout is contiguous");
    let (_, n_in, height, width) = conv.weights.dim();
    let taps = height * width;
    let mut at = 0;
    for (first, n) in column_tiles(conv.groups as u32, group_channels(conv), cols) {
        for tap in 0..taps {
            for channel in 0..n_in {
                for column in 0..n as usize {
                    let index = ((first as usize + column) * n_in + channel) * taps + tap;
                    let byte = flat[index].cast_unsigned();
                    let shift = 4 * (column % 2);
                    into[at + column / 2] |= (byte & 15) << shift;
                    if wide {
                        into[at + line + column / 2] |= (byte >> 4) << shift;
                    }
                }
                at += line * (1 + usize::from(wide));
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
