//! Writes random networks as files, for `check/onnxruntime_check.py`: `random_networks FOLDER N`.
//!
//! Two of three have 8-bit weights and activations throughout, one of these shifts so large that
//! floats cannot hold what is added.

use arith::{Format, Requant};
use network::{
    Network, Op, Post, TensorId,
    arbitrary::{Limits, random_network},
};
use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, n] = arguments.as_slice() else {
        return Err("usage: random_networks FOLDER N".into());
    };
    fs::create_dir_all(folder)?;
    for seed in 0..n.parse::<u64>()? {
        let plain = random_network(seed, Limits::default());
        let changed = match seed % 3 {
            0 => plain.clone(),
            1 => eight_bits(plain.clone()),
            _ => deep(eight_bits(plain.clone())),
        };
        // A few get numbers that the post unit does not hold.
        let network = changed.verify().map_or(plain, |()| changed);
        let path = Path::new(folder).join(format!("{seed:04}.safetensors"));
        fs::write(path, network::to_bytes(&network))?;
    }
    Ok(())
}

/// Everything that has fewer than 8 bits has 8, and every shift follows.
fn eight_bits(mut network: Network) -> Network {
    let added: Vec<u8> = network
        .tensors
        .iter()
        .map(|tensor| 8u8.saturating_sub(tensor.format.bits))
        .collect();
    for (tensor, added) in network.tensors.iter_mut().zip(&added) {
        tensor.format.bits += added;
    }
    let of = |id: TensorId| i32::from(added[id.index()]);
    let formats: Vec<Format> = network.tensors.iter().map(|t| t.format).collect();
    for layer in &mut network.layers {
        let output = layer.output;
        match &mut layer.op {
            Op::Conv(conv) => {
                let weight_bits = 8 - conv.weight_bits;
                conv.weight_bits = 8;
                // The new low bits are those of the sign: the extremes stay extreme.
                let widened = |w: i8| (w << weight_bits) | (((1 << weight_bits) - 1) & !(w >> 7));
                conv.weights.mapv_inplace(widened);
                let more = of(conv.input) + i32::from(weight_bits) - of(output);
                widen(&mut conv.post, more, &of, output, formats[output.index()]);
            }
            Op::Pool(pool) => {
                let more = of(pool.input) - of(output);
                widen(&mut pool.post, more, &of, output, formats[output.index()]);
            }
            Op::Concat(parts) => {
                for part in parts {
                    move_shift(&mut part.requant, of(part.tensor) - of(output));
                }
            }
        }
    }
    network
}

fn move_shift(requant: &mut Requant, more: i32) {
    requant.shift = (i32::from(requant.shift) + more).clamp(0, Requant::MAX_SHIFT.into()) as u8;
}

fn widen(
    post: &mut Post,
    more: i32,
    of: &dyn Fn(TensorId) -> i32,
    output: TensorId,
    format: Format,
) {
    for requant in &mut post.requant {
        move_shift(requant, more);
    }
    if let Some(residual) = &mut post.residual {
        move_shift(&mut residual.requant, of(residual.tensor) - of(output));
        let smallest = post.requant.iter().map(|r| r.shift).min();
        residual.requant.shift = residual.requant.shift.min(smallest.unwrap_or(0));
    }
    post.q_min <<= of(output);
    post.q_max = ((post.q_max + 1) << of(output)) - 1;
    post.q_max = post.q_max.min(format.q_max());
}

/// Sums of a large residual and a reduction that decides ties only.
fn deep(mut network: Network) -> Network {
    for layer in &mut network.layers {
        let (Op::Conv(network::Conv { post, .. }) | Op::Pool(network::Pool { post, .. })) =
            &mut layer.op
        else {
            continue;
        };
        let Some(residual) = &post.residual else {
            continue;
        };
        let shifts = post.requant.iter().map(|r| r.shift);
        let largest = shifts.max().unwrap_or(0);
        let room = (network::MAX_ALIGNMENT + residual.requant.shift).min(Requant::MAX_SHIFT);
        let more = room.saturating_sub(largest);
        for requant in &mut post.requant {
            requant.shift += more;
        }
        if post.q_min < 0 {
            post.negative_slope = Some(Requant {
                mantissa: 171,
                shift: 8,
            });
        }
    }
    network
}
