//! The text form of a network: one block per layer, for people and for diffs.
//!
//! Invariant: equal networks give equal bytes; every integer that decides a result is shown or
//! stands behind a checksum.

use crate::{Conv, Layer, Margin, Network, Op, Part, Post, Reduction, TensorId, Window};
use arith::{Format, Requant, Scale};
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "network {:?}: {} layers, {} MACs, {} weights",
            self.name,
            self.layers.len(),
            self.n_macs(),
            self.n_weights()
        )?;
        writeln!(f, "input  {}", self.describe(self.input))?;
        for &output in &self.outputs {
            writeln!(f, "output {}", self.describe(output))?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            writeln!(f)?;
            self.write_layer(f, index, layer)?;
        }
        Ok(())
    }
}

impl Network {
    fn describe(&self, id: TensorId) -> String {
        let tensor = self.tensor(id);
        let (format, scale) = (format_text(tensor.format), scale_text(tensor.scale));
        format!(
            "%{} {:?}: {} {format}, scale {scale}",
            id.0, tensor.name, tensor.shape
        )
    }

    fn write_layer(&self, f: &mut fmt::Formatter<'_>, index: usize, layer: &Layer) -> fmt::Result {
        let kind = match &layer.op {
            Op::Conv(conv) if conv.is_depthwise() => "depthwise conv",
            Op::Conv(_) => "conv",
            Op::Pool(pool) => match pool.reduction {
                Reduction::Max => "max",
                Reduction::Sum => "sum",
            },
            Op::Concat(_) => "concat",
        };
        writeln!(f, "{index:04} {kind} {:?}", layer.name)?;
        match &layer.op {
            Op::Conv(conv) => {
                writeln!(f, "    in      {}", self.describe(conv.input))?;
                write_window(f, conv.window)?;
                write_weights(f, conv)?;
            }
            Op::Pool(pool) => {
                write!(f, "    in      {}", self.describe(pool.input))?;
                write_offset(f, pool.channel_offset)?;
                write_window(f, pool.window)?;
                if let Some(Margin { before, after }) = pool.margin {
                    writeln!(f, "    margin  {before:?} to {after:?}")?;
                }
            }
            Op::Concat(parts) => {
                for part in parts {
                    self.write_part(f, part)?;
                }
            }
        }
        if let Some(post) = layer.op.post() {
            self.write_post(f, post)?;
        }
        writeln!(f, "    out     {}", self.describe(layer.output))
    }

    fn write_part(&self, f: &mut fmt::Formatter<'_>, part: &Part) -> fmt::Result {
        write!(f, "    in      {}", self.describe(part.tensor))?;
        if (part.channel, part.n_channels) != (0, self.tensor(part.tensor).shape.channels) {
            let end = part.channel + part.n_channels;
            write!(f, ", channels {}..{end}", part.channel)?;
        }
        if part.stride != [1, 1] {
            write!(f, ", stride {}×{}", part.stride[0], part.stride[1])?;
        }
        if part.offset != [0, 0] {
            write!(f, ", from {}×{}", part.offset[0], part.offset[1])?;
        }
        if part.requant != Requant::IDENTITY {
            write!(f, ", {}", requant_text(part.requant))?;
        }
        writeln!(f)
    }

    fn write_post(&self, f: &mut fmt::Formatter<'_>, post: &Post) -> fmt::Result {
        let hash = checksum(post.requant.iter().flat_map(|r| [r.mantissa, r.shift]));
        match post.requant.as_slice() {
            [one] => writeln!(f, "    requant {}", requant_text(*one))?,
            each => {
                let shifts = span(each.iter().map(|r| i64::from(r.shift)));
                let mantissas = span(each.iter().map(|r| i64::from(r.mantissa)));
                let n = each.len();
                writeln!(f, "    requant {n} × {mantissas} >> {shifts}, xxh3 {hash}")?;
            }
        }
        if let Some(residual) = &post.residual {
            write!(
                f,
                "    add     {} × {}",
                self.describe(residual.tensor),
                requant_text(residual.requant)
            )?;
            if residual.stride != [1, 1] {
                write!(f, ", stride {}×{}", residual.stride[0], residual.stride[1])?;
            }
            write_offset(f, residual.channel_offset)?;
        }
        if let Some(slope) = post.negative_slope {
            writeln!(f, "    leaky   {}", requant_text(slope))?;
        }
        writeln!(f, "    clamp   {}..={}", post.q_min, post.q_max)
    }
}

fn write_offset(f: &mut fmt::Formatter<'_>, channel_offset: usize) -> fmt::Result {
    if channel_offset == 0 {
        writeln!(f)
    } else {
        writeln!(f, ", from channel {channel_offset}")
    }
}

fn write_window(f: &mut fmt::Formatter<'_>, window: Window) -> fmt::Result {
    let Window {
        kernel,
        stride,
        dilation,
        pad,
    } = window;
    write!(
        f,
        "    window  {}×{}, stride {}×{}",
        kernel[0], kernel[1], stride[0], stride[1]
    )?;
    if dilation != [1, 1] {
        write!(f, ", dilation {}×{}", dilation[0], dilation[1])?;
    }
    writeln!(f, ", pad {}×{}", pad[0], pad[1])
}

fn write_weights(f: &mut fmt::Formatter<'_>, conv: &Conv) -> fmt::Result {
    let (o, i, kh, kw) = conv.weights.dim();
    let hash = checksum(conv.weights.iter().map(|&w| w as u8));
    let groups = conv.groups;
    let bits = conv.weight_bits;
    writeln!(
        f,
        "    weights {o}×{i}×{kh}×{kw} int{bits}, {groups} groups, xxh3 {hash}"
    )?;
    let hash = checksum(
        conv.weight_scales
            .iter()
            .flat_map(|s| [[s.mantissa, 0], s.exponent.to_le_bytes()])
            .flatten(),
    );
    match conv.weight_scales.as_slice() {
        [one] => writeln!(f, "    scale   {}", scale_text(*one))?,
        each => writeln!(f, "    scale   {} channels, xxh3 {hash}", each.len())?,
    }
    let shifts = span(conv.bias.iter().map(|b| i64::from(b.shift)));
    let mantissas = span(conv.bias.iter().map(|b| i64::from(b.mantissa)));
    let hash = checksum(
        conv.bias
            .iter()
            .flat_map(|b| [b.mantissa.to_le_bytes(), [b.shift, 0]])
            .flatten(),
    );
    writeln!(
        f,
        "    bias    {} × {mantissas} << {shifts}, xxh3 {hash}",
        conv.bias.len()
    )
}

fn format_text(format: Format) -> String {
    format!("{}int{}", if format.signed { "" } else { "u" }, format.bits)
}

fn scale_text(scale: Scale) -> String {
    format!("{}·2^{}", scale.mantissa, scale.exponent)
}

fn requant_text(requant: Requant) -> String {
    format!("{} >> {}", requant.mantissa, requant.shift)
}

/// `smallest..=largest`, or the number itself when all are equal.
fn span(values: impl Iterator<Item = i64> + Clone) -> String {
    match (values.clone().min(), values.max()) {
        (Some(min), Some(max)) if min < max => format!("{min}..={max}"),
        (Some(min), _) => format!("{min}"),
        _ => "none".to_owned(),
    }
}

fn checksum(bytes: impl Iterator<Item = u8>) -> String {
    let bytes: Vec<u8> = bytes.collect();
    let mut hash = Xxh3::new();
    hash.update(&bytes);
    format!("{:016x}", hash.digest())
}
