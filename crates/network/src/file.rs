//! The network's file: safetensors with the graph as metadata.
//!
//! Invariant: `from_bytes(to_bytes(n)) == n` for every verified network, and equal networks give
//! equal bytes.
//!
//! # Layout (format version 2)
//! The safetensors header carries one metadata entry, `systole`: a JSON object with `version`,
//! `name`, `tensors`, `input`, `outputs` and `layers` (see [`Network`] for the meaning of each), and
//! optionally `notes`, an object of texts that do not change what the network computes (how to feed
//! it, for example).
//! A convolution's lists are tensors of the file, named by the layer's position in four digits:
//!
//! | tensor | type | length |
//! |---|---|---|
//! | `0007.weights` | U8 | `ceil(n · weight_bits / 8)` |
//! | `0007.weight_scale.mantissa`, `.exponent` | U8, I16 | 1 or output channels |
//! | `0007.bias.mantissa`, `.shift` | I16, U8 | output channels |
//! | `0007.requant.mantissa`, `.shift` | U8, U8 | 1 or output channels |
//!
//! I16 is little-endian. Weights stand in the order `[output channel, input channel of the group,
//! kernel row, kernel column]`, last index fastest, `weight_bits` bits of two's complement each
//! without gaps: bit `b` of weight `i` is bit `(i · weight_bits + b) mod 8`, counted from the least
//! significant, of byte `(i · weight_bits + b) / 8`. Two int4 weights thus share a byte, the first
//! in the low half. Unused bits of the last byte are 0. Nothing else may be in the file.

use crate::{
    Bias, Conv, Error, Layer, Network, Op, Part, Pool, Post, Residual, Tensor, TensorId, Window,
};
use arith::{Requant, Scale};
use ndarray::Array4;
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
};
use xxhash_rust::xxh3::xxh3_64;

/// The version of the layout that is written and read.
pub const FORMAT_VERSION: u64 = 2;
/// The metadata entry that holds the graph.
pub const METADATA_KEY: &str = "systole";

/// Mirror of the metadata's JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GraphFile {
    version: u64,
    name: String,
    tensors: Vec<Tensor>,
    input: TensorId,
    outputs: Vec<TensorId>,
    layers: Vec<LayerFile>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    notes: BTreeMap<String, String>,
}

/// Read first, so that a file of another version is not reported as a malformed one.
#[derive(Deserialize)]
struct VersionFile {
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerFile {
    name: String,
    output: TensorId,
    op: OpFile,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OpFile {
    Conv(ConvFile),
    Pool(Pool),
    Concat(Vec<Part>),
}

/// A convolution without the lists that are tensors of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConvFile {
    input: TensorId,
    window: Window,
    groups: usize,
    weight_bits: u8,
    weights_shape: [usize; 4],
    residual: Option<Residual>,
    negative_slope: Option<Requant>,
    q_min: i32,
    q_max: i32,
}

/// One tensor of the file that is to be written.
struct Block {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: Vec<u8>,
}

impl Block {
    fn u8(values: impl IntoIterator<Item = u8>) -> Self {
        let bytes: Vec<u8> = values.into_iter().collect();
        Self {
            dtype: Dtype::U8,
            shape: [bytes.len()],
            bytes,
        }
    }

    fn i16(values: impl IntoIterator<Item = i16>) -> Self {
        let bytes: Vec<u8> = values.into_iter().flat_map(i16::to_le_bytes).collect();
        Self {
            dtype: Dtype::I16,
            shape: [bytes.len() / 2],
            bytes,
        }
    }
}

impl View for Block {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The file's bytes of a verified network.
///
/// # Panics
/// When a weight does not fit `weight_bits`, which [`Network::verify`] refuses.
pub fn to_bytes(network: &Network) -> Vec<u8> {
    serialize(network, true, &BTreeMap::new())
}

/// As [`to_bytes`], with texts of the caller that [`from_bytes_with_notes`] gives back.
///
/// # Panics
/// As [`to_bytes`].
pub fn to_bytes_with_notes(network: &Network, notes: &BTreeMap<String, String>) -> Vec<u8> {
    serialize(network, true, notes)
}

/// A hash of everything but names: equal for networks that compute the same in the same order.
pub fn fingerprint(network: &Network) -> u64 {
    xxh3_64(&serialize(network, false, &BTreeMap::new()))
}

/// Reads a network and verifies it. Memory stays within a small multiple of the file's size.
///
/// # Errors
/// Bytes that are not exactly such a file, or a network that [`Network::verify`] refuses.
pub fn from_bytes(bytes: &[u8]) -> Result<Network, Error> {
    from_bytes_with_notes(bytes).map(|(network, _)| network)
}

/// As [`from_bytes`], and the texts that [`to_bytes_with_notes`] took.
///
/// # Errors
/// As [`from_bytes`].
pub fn from_bytes_with_notes(bytes: &[u8]) -> Result<(Network, BTreeMap<String, String>), Error> {
    check_offsets(bytes)?;
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let text = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(METADATA_KEY))
        .ok_or(Error::NoMetadata { key: METADATA_KEY })?;
    let VersionFile { version } = serde_json::from_str(text)?;
    if version != FORMAT_VERSION {
        return Err(Error::Version {
            found: version,
            supported: FORMAT_VERSION,
        });
    }
    let graph: GraphFile = serde_json::from_str(text)?;
    let file = SafeTensors::deserialize(bytes)?;
    let mut blocks = Blocks {
        file: &file,
        unread: file.names().into_iter().collect(),
    };
    let mut layers = Vec::with_capacity(graph.layers.len());
    for (index, layer) in graph.layers.into_iter().enumerate() {
        let op = match layer.op {
            OpFile::Conv(conv) => Op::Conv(blocks.conv(index, &conv)?),
            OpFile::Pool(pool) => Op::Pool(pool),
            OpFile::Concat(parts) => Op::Concat(parts),
        };
        layers.push(Layer {
            name: layer.name,
            output: layer.output,
            op,
        });
    }
    if let Some(&surplus) = blocks.unread.first() {
        return Err(tensor_error(surplus, "belongs to no layer"));
    }
    let GraphFile {
        name,
        tensors,
        input,
        outputs,
        notes,
        ..
    } = graph;
    let network = Network {
        name,
        tensors,
        input,
        outputs,
        layers,
    };
    network.verify()?;
    Ok((network, notes))
}

fn serialize(network: &Network, with_names: bool, notes: &BTreeMap<String, String>) -> Vec<u8> {
    let name = |name: &String| {
        if with_names {
            name.clone()
        } else {
            String::new()
        }
    };
    let mut blocks = Vec::new();
    let mut layers = Vec::with_capacity(network.layers.len());
    for (index, layer) in network.layers.iter().enumerate() {
        let op = match &layer.op {
            Op::Conv(conv) => {
                push_blocks(&mut blocks, index, conv);
                OpFile::Conv(graph_part(conv))
            }
            Op::Pool(pool) => OpFile::Pool(pool.clone()),
            Op::Concat(parts) => OpFile::Concat(parts.clone()),
        };
        layers.push(LayerFile {
            name: name(&layer.name),
            output: layer.output,
            op,
        });
    }
    let graph = GraphFile {
        version: FORMAT_VERSION,
        name: name(&network.name),
        tensors: network
            .tensors
            .iter()
            .map(|tensor| Tensor {
                name: name(&tensor.name),
                ..tensor.clone()
            })
            .collect(),
        input: network.input,
        outputs: network.outputs.clone(),
        layers,
        notes: notes.clone(),
    };
    let text = serde_json::to_string(&graph).expect("plain structures always become JSON");
    // One entry only: the map's order would otherwise show in the bytes.
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), text)]);
    safetensors::serialize(blocks, Some(metadata)).expect("lengths are those of the data")
}

fn graph_part(conv: &Conv) -> ConvFile {
    let (o, i, kh, kw) = conv.weights.dim();
    ConvFile {
        input: conv.input,
        window: conv.window,
        groups: conv.groups,
        weight_bits: conv.weight_bits,
        weights_shape: [o, i, kh, kw],
        residual: conv.post.residual,
        negative_slope: conv.post.negative_slope,
        q_min: conv.post.q_min,
        q_max: conv.post.q_max,
    }
}

fn push_blocks(blocks: &mut Vec<(String, Block)>, index: usize, conv: &Conv) {
    let weights = conv.weights.as_standard_layout();
    let packed = pack(
        weights.as_slice().expect("the standard layout is a slice"),
        conv.weight_bits,
    );
    let (scales, requant) = (&conv.weight_scales, &conv.post.requant);
    blocks.extend(
        [
            ("weights", Block::u8(packed)),
            (
                "weight_scale.mantissa",
                Block::u8(scales.iter().map(|s| s.mantissa)),
            ),
            (
                "weight_scale.exponent",
                Block::i16(scales.iter().map(|s| s.exponent)),
            ),
            (
                "bias.mantissa",
                Block::i16(conv.bias.iter().map(|b| b.mantissa)),
            ),
            ("bias.shift", Block::u8(conv.bias.iter().map(|b| b.shift))),
            (
                "requant.mantissa",
                Block::u8(requant.iter().map(|r| r.mantissa)),
            ),
            ("requant.shift", Block::u8(requant.iter().map(|r| r.shift))),
        ]
        .map(|(part, block)| (block_name(index, part), block)),
    );
}

fn block_name(index: usize, part: &str) -> String {
    format!("{index:04}.{part}")
}

/// Weights of `weight_bits` each, as the module's documentation lays them out.
fn pack(weights: &[i8], weight_bits: u8) -> Vec<u8> {
    let width = usize::from(weight_bits);
    let (low, high) = weights.iter().fold((0, 0), |(low, high), &weight| {
        (weight.min(low), weight.max(high))
    });
    assert!(
        extend(low as u8, weight_bits) == low && extend(high as u8, weight_bits) == high,
        "weight wider than its layer's bits"
    );
    // Eight weights fill `width` bytes.
    let mut bytes = vec![0; (weights.len() * width).div_ceil(8)];
    let (eights, rest) = weights.as_chunks::<8>();
    for (into, eight) in bytes.chunks_mut(width).zip(eights) {
        let lanes = u64::from_le_bytes(eight.map(i8::cast_unsigned));
        into.copy_from_slice(&squeeze(lanes, weight_bits).to_le_bytes()[..width]);
    }
    if let Some(last) = bytes.chunks_mut(width).nth(eights.len()) {
        let mut eight = [0; 8];
        eight[..rest.len()].copy_from_slice(rest);
        let lanes = u64::from_le_bytes(eight.map(i8::cast_unsigned));
        let n = last.len();
        last.copy_from_slice(&squeeze(lanes, weight_bits).to_le_bytes()[..n]);
    }
    bytes
}

/// The lowest `bits` bits of each byte, side by side: bytes, then pairs, then fours move together.
fn squeeze(lanes: u64, bits: u8) -> u64 {
    let gap = 8 - u32::from(bits);
    let x = lanes & (0x0101_0101_0101_0101 * (0xff >> gap));
    let even = 0x00ff_00ff_00ff_00ff;
    let x = x & even | (x & !even) >> gap;
    let even = 0x0000_ffff_0000_ffff;
    let x = x & even | (x & !even) >> (2 * gap);
    let even = 0x0000_0000_ffff_ffff;
    x & even | (x & !even) >> (4 * gap)
}

/// The inverse of [`squeeze`], each byte with its sign.
fn spread(squeezed: u64, bits: u8) -> [i8; 8] {
    let (width, gap) = (u32::from(bits), 8 - u32::from(bits));
    let low = |n: u32| u64::MAX >> (64 - n);
    let x = squeezed;
    let x = x & low(4 * width) | (x & low(4 * width) << (4 * width)) << (4 * gap);
    let lanes = low(2 * width) | low(2 * width) << 32;
    let x = x & lanes | (x & lanes << (2 * width)) << (2 * gap);
    let lanes = (low(width) | low(width) << 16) * 0x0000_0001_0000_0001;
    let x = x & lanes | (x & lanes << width) << gap;
    x.to_le_bytes().map(|byte| extend(byte, bits))
}

/// The inverse of [`pack`]; `None` when an unused bit is set or the length is wrong.
fn unpack(bytes: &[u8], n_weights: usize, weight_bits: u8) -> Option<Vec<i8>> {
    let width = usize::from(weight_bits);
    let n_bits = n_weights.checked_mul(width)?;
    if bytes.len() != n_bits.div_ceil(8) {
        return None;
    }
    if !n_bits.is_multiple_of(8) && bytes.last()? >> (n_bits % 8) != 0 {
        return None;
    }
    let mut weights = vec![0; n_weights];
    for (into, packed) in weights.chunks_mut(8).zip(bytes.chunks(width)) {
        let mut eight = [0; 8];
        eight[..packed.len()].copy_from_slice(packed);
        let spread = spread(u64::from_le_bytes(eight), weight_bits);
        into.copy_from_slice(&spread[..into.len()]);
    }
    Some(weights)
}

/// Sign extension of the lowest `bits` bits.
fn extend(value: u8, bits: u8) -> i8 {
    let unused = 8 - bits;
    ((value << unused) as i8) >> unused
}

/// The parser adds up offsets that a hostile header may choose near the largest integer, so they
/// are held against the file's length first.
fn check_offsets(bytes: &[u8]) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Entry {
        data_offsets: Option<[u64; 2]>,
    }
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Ok(()); // The parser has the right error.
    };
    let header = usize::try_from(u64::from_le_bytes(*length))
        .ok()
        .and_then(|n| rest.get(..n));
    let Some(header) = header else {
        return Ok(());
    };
    let entries: BTreeMap<String, Entry> = serde_json::from_slice(header)
        .map_err(safetensors::SafeTensorError::InvalidHeaderDeserialization)?;
    for (name, entry) in entries {
        if entry
            .data_offsets
            .is_some_and(|[_, end]| end > bytes.len() as u64)
        {
            return Err(tensor_error(&name, "ends behind the end of the file"));
        }
    }
    Ok(())
}

/// The tensors of a file that is being read.
struct Blocks<'a> {
    file: &'a SafeTensors<'a>,
    unread: BTreeSet<&'a str>,
}

impl<'a> Blocks<'a> {
    fn take(&mut self, name: &str, dtype: Dtype) -> Result<&'a [u8], Error> {
        let block = self
            .file
            .tensor(name)
            .map_err(|_| tensor_error(name, "is missing"))?;
        self.unread.remove(name);
        if block.dtype() != dtype || block.shape().len() != 1 {
            let what = format!(
                "is {:?} {:?}, needed is {dtype:?} [n]",
                block.dtype(),
                block.shape()
            );
            return Err(tensor_error(name, what));
        }
        Ok(block.data())
    }

    fn u8(&mut self, index: usize, part: &str) -> Result<&'a [u8], Error> {
        self.take(&block_name(index, part), Dtype::U8)
    }

    fn i16(&mut self, index: usize, part: &str) -> Result<Vec<i16>, Error> {
        let bytes = self.take(&block_name(index, part), Dtype::I16)?;
        Ok(bytes
            .as_chunks::<2>()
            .0
            .iter()
            .copied()
            .map(i16::from_le_bytes)
            .collect())
    }

    fn requants(&mut self, index: usize) -> Result<Vec<Requant>, Error> {
        let mantissas = self.u8(index, "requant.mantissa")?;
        let shifts = self.u8(index, "requant.shift")?;
        let pairs = pair(index, "requant.shift", mantissas, shifts)?;
        Ok(pairs
            .map(|(mantissa, shift)| Requant { mantissa, shift })
            .collect())
    }

    fn conv(&mut self, index: usize, conv: &ConvFile) -> Result<Conv, Error> {
        let mantissas = self.u8(index, "weight_scale.mantissa")?;
        let exponents = self.i16(index, "weight_scale.exponent")?;
        let scales = pair(index, "weight_scale.exponent", mantissas, &exponents)?;
        let weight_scales = scales.map(|(mantissa, exponent)| Scale { mantissa, exponent });
        let mantissas = self.i16(index, "bias.mantissa")?;
        let shifts = self.u8(index, "bias.shift")?;
        let biases = pair(index, "bias.shift", &mantissas, shifts)?;
        let bias = biases.map(|(mantissa, shift)| Bias { mantissa, shift });
        Ok(Conv {
            input: conv.input,
            window: conv.window,
            groups: conv.groups,
            weight_bits: conv.weight_bits,
            weights: self.weights(index, conv)?,
            weight_scales: weight_scales.collect(),
            bias: bias.collect(),
            post: Post {
                requant: self.requants(index)?,
                residual: conv.residual,
                negative_slope: conv.negative_slope,
                q_min: conv.q_min,
                q_max: conv.q_max,
            },
        })
    }

    fn weights(&mut self, index: usize, conv: &ConvFile) -> Result<Array4<i8>, Error> {
        let name = block_name(index, "weights");
        if !(2..=8).contains(&conv.weight_bits) {
            let what = format!(
                "has weights of {} bits, allowed is 2 to 8",
                conv.weight_bits
            );
            return Err(tensor_error(&name, what));
        }
        let packed = self.take(&name, Dtype::U8)?;
        let shape = conv.weights_shape;
        shape
            .iter()
            .try_fold(1usize, |product, &extent| product.checked_mul(extent))
            .and_then(|n_weights| unpack(packed, n_weights, conv.weight_bits))
            .and_then(|weights| Array4::from_shape_vec(shape, weights).ok())
            .ok_or_else(|| {
                let (length, bits) = (packed.len(), conv.weight_bits);
                let what =
                    format!("has {length} bytes, not exactly {shape:?} weights of {bits} bits");
                tensor_error(&name, what)
            })
    }
}

/// Two lists of one length, element by element.
fn pair<A: Copy, B: Copy>(
    index: usize,
    part: &str,
    first: &[A],
    second: &[B],
) -> Result<impl Iterator<Item = (A, B)>, Error> {
    if first.len() != second.len() {
        let what = format!(
            "has {} entries, its partner has {}",
            second.len(),
            first.len()
        );
        return Err(tensor_error(&block_name(index, part), what));
    }
    Ok(first.iter().copied().zip(second.iter().copied()))
}

fn tensor_error(tensor: &str, what: impl Into<String>) -> Error {
    Error::FileTensor {
        tensor: tensor.to_owned(),
        what: what.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::{pack, unpack};
    use arith::SplitMix64;

    /// Every width and number of weights against the layout's definition, bit by bit.
    #[test]
    fn packed_weights_lie_as_documented() {
        let mut random = SplitMix64(1);
        for bits in 2..=8u8 {
            let width = usize::from(bits);
            for n in 0..40 {
                let unused = 8 - bits;
                let weights: Vec<i8> = (0..n)
                    .map(|_| ((random.next_u64() as u8) << unused).cast_signed() >> unused)
                    .collect();
                let packed = pack(&weights, bits);
                let bit = |index: usize| packed[index / 8] >> (index % 8) & 1;
                for (i, &weight) in weights.iter().enumerate() {
                    for b in 0..width {
                        let wanted = weight.cast_unsigned() >> b & 1;
                        assert_eq!(bit(i * width + b), wanted, "{bits} bits, weight {i} of {n}");
                    }
                }
                assert!((n * width..packed.len() * 8).all(|index| bit(index) == 0));
                assert_eq!(unpack(&packed, n, bits), Some(weights));
                if let Some(last) = (n * width % 8 != 0).then(|| packed.len() - 1) {
                    let mut dirty = packed;
                    dirty[last] |= 128;
                    assert_eq!(unpack(&dirty, n, bits), None, "an unused bit is set");
                }
            }
        }
    }
}
