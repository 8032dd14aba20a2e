//! Compiled networks: small ones of every layer kind, and a whole ResNet-20, all from seeds.
//!
//! Invariant: a program holds its input image in its initial DRAM contents, so that nothing but the
//! program is needed to run it.

use super::Named;
use accelerator::{Config, DepthwiseUnit};
use arith::{Format, Requant, Scale, SplitMix64};
use isa::{Op as Isa, Program};
use ndarray::{Array3, Array4};
use network::{
    Bias, Conv, Layer, Network, Op, Pool, Post, Reduction, Residual, Shape, Tensor, TensorId,
    Window,
    arbitrary::{Limits, random_input, random_network},
};

/// Memories large enough for networks, all else as in `config`.
fn with_large_memories(config: &Config) -> Config {
    let mut config = config.clone();
    config.name = format!("{} networks", config.name);
    config.activation_bytes = 1 << 17;
    config.weight_bytes = 1 << 16;
    config.n_parameters = 1024;
    config.dram.size_bytes = 1 << 23;
    config
}

/// `n` small networks from seeds, and the machine that they are compiled for. Networks that the
/// machine cannot hold are left out; where depthwise convolutions are the lanes', so are those without.
pub fn small(config: &Config, first_seed: u64, n: usize) -> (Config, Vec<Named>) {
    let config = with_large_memories(config);
    let limits = Limits {
        accumulator_bits: config.arithmetic.accumulator.width_bits.min(12),
        // The lanes' machines are there for these.
        depthwise: config.depthwise == DepthwiseUnit::Post,
        ..Limits::default()
    };
    let list = (first_seed..first_seed + 20 * n as u64)
        .filter_map(|seed| {
            let network = random_network(seed, limits);
            let program = with_image(&network, &config, &random_input(&network, seed)).ok()?;
            let name = format!("network {seed}");
            // Lanes that convolve are to be seen at it.
            let is_wanted = config.depthwise == DepthwiseUnit::Array
                || has(&program, |op| matches!(op, Isa::Depthwise(_)));
            is_wanted.then_some(Named { name, program })
        })
        .take(n)
        .collect();
    (config, list)
}

fn has(program: &Program, is_wanted: impl Fn(&Isa) -> bool) -> bool {
    program.instructions.iter().any(|i| is_wanted(&i.op))
}

/// The compiled network with an image in place.
///
/// # Errors
/// The machine cannot hold it.
pub fn with_image(
    network: &Network,
    config: &Config,
    image: &Array3<i32>,
) -> Result<Program, compiler::Error> {
    let mut program = compiler::compile(network, config)?.program;
    let mut dram = crate::rtl::image(&program);
    let placement = &program.tensors[network.input.index()];
    compiler::write_tensor(&mut dram, placement, image);
    program.data = dram;
    Ok(program)
}

/// Blocks of a stage, and the stages' channels, of the network of He et al. 2016 for CIFAR-10.
const N_BLOCKS: usize = 3;
const STAGES: [usize; 3] = [16, 32, 64];
const EXTENT: usize = 32;
const N_CLASSES: usize = 10;

/// ResNet-20 for 32 × 32 × 3 images with option-A shortcuts: 19 convolutions, global average, fully
/// connected layer. 4-bit weights and activations, 8-bit input, everything from a seed.
pub fn resnet20(seed: u64) -> Network {
    let mut builder = Builder {
        rng: SplitMix64(seed),
        tensors: Vec::new(),
        layers: Vec::new(),
    };
    let shape = |channels, extent| Shape {
        channels,
        height: extent,
        width: extent,
    };
    let pixels = Format {
        bits: 8,
        signed: false,
    };
    let mut last = builder.tensor("image", shape(3, EXTENT), pixels);
    last = builder.conv("stem", last, shape(STAGES[0], EXTENT), 1, None);
    for (stage, channels) in STAGES.into_iter().enumerate() {
        for block in 0..N_BLOCKS {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let output = shape(channels, EXTENT >> stage);
            let name = format!("stage{stage}.block{block}");
            let shortcut = Residual {
                tensor: last,
                stride: [stride; 2],
                channel_offset: (channels - builder.channels(last)) / 2,
                requant: Requant {
                    mantissa: 128,
                    shift: 7,
                },
            };
            let inner = builder.conv(&format!("{name}.conv0"), last, output, stride, None);
            let outer = format!("{name}.conv1");
            last = builder.conv(&outer, inner, output, 1, Some(shortcut));
        }
    }
    last = builder.global_average("pool", last);
    let logits = builder.fully_connected("classes", last, N_CLASSES);
    Network {
        name: format!("resnet20-{seed}"),
        tensors: builder.tensors,
        input: TensorId(0),
        outputs: vec![logits],
        layers: builder.layers,
    }
}

struct Builder {
    rng: SplitMix64,
    tensors: Vec<Tensor>,
    layers: Vec<Layer>,
}

const ACTIVATIONS: Format = Format {
    bits: 4,
    signed: false,
};

impl Builder {
    fn channels(&self, tensor: TensorId) -> usize {
        self.tensors[tensor.0].shape.channels
    }

    fn tensor(&mut self, name: &str, shape: Shape, format: Format) -> TensorId {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            shape,
            format,
            scale: Scale {
                mantissa: 128,
                exponent: -10,
            },
        });
        TensorId(self.tensors.len() - 1)
    }

    fn push(&mut self, name: &str, shape: Shape, format: Format, op: Op) -> TensorId {
        let output = self.tensor(name, shape, format);
        self.layers.push(Layer {
            name: name.to_owned(),
            output,
            op,
        });
        output
    }

    /// A 3 × 3 convolution with padding and `ReLU`.
    fn conv(
        &mut self,
        name: &str,
        input: TensorId,
        output: Shape,
        stride: usize,
        residual: Option<Residual>,
    ) -> TensorId {
        let window = Window {
            kernel: [3, 3],
            stride: [stride; 2],
            pad: [1, 1],
            ..Window::UNIT
        };
        self.dense(name, input, window, output, ACTIVATIONS, residual)
    }

    fn fully_connected(&mut self, name: &str, input: TensorId, channels: usize) -> TensorId {
        let output = Shape {
            channels,
            height: 1,
            width: 1,
        };
        let logits = Format {
            bits: 16,
            signed: true,
        };
        self.dense(name, input, Window::UNIT, output, logits, None)
    }

    fn dense(
        &mut self,
        name: &str,
        input: TensorId,
        window: Window,
        output: Shape,
        format: Format,
        residual: Option<Residual>,
    ) -> TensorId {
        let source = &self.tensors[input.0];
        let (channels, is_image) = (source.shape.channels, source.format.bits == 8);
        let rng = &mut self.rng;
        let [rows, columns] = window.kernel;
        let dim = (output.channels, channels, rows, columns);
        let weights = Array4::from_shape_simple_fn(dim, || rng.between(-7, 7) as i8);
        let bias = (0..output.channels)
            .map(|_| Bias {
                mantissa: rng.between(-100, 100) as i16,
                shift: 1,
            })
            .collect();
        // A sum of K products grows with the root of K; 4-bit activations then use their range.
        let k = rows * columns * channels;
        let spread = k.isqrt() * if is_image { 800 } else { 40 };
        let shift = if format.bits > 8 {
            7
        } else {
            (spread * 32).ilog2() as u8
        };
        let requant = (0..output.channels)
            .map(|_| Requant {
                mantissa: rng.between(128, 255) as u8,
                shift,
            })
            .collect();
        let conv = Conv {
            input,
            window,
            groups: 1,
            weight_bits: 4,
            weights,
            weight_scales: vec![Scale {
                mantissa: 128,
                exponent: -12,
            }],
            bias,
            post: Post {
                requant,
                residual,
                negative_slope: None,
                q_min: format.q_min(),
                q_max: format.q_max(),
            },
        };
        self.push(name, output, format, Op::Conv(conv))
    }

    fn global_average(&mut self, name: &str, input: TensorId) -> TensorId {
        let source = self.tensors[input.0].shape;
        let n_pixels = (source.height * source.width) as u64;
        let pool = Pool {
            input,
            channel_offset: 0,
            window: Window {
                kernel: source.extent(),
                ..Window::UNIT
            },
            reduction: Reduction::Sum,
            margin: None,
            post: Post {
                requant: vec![Requant {
                    mantissa: 128,
                    shift: 7 + n_pixels.ilog2() as u8,
                }],
                residual: None,
                negative_slope: None,
                q_min: ACTIVATIONS.q_min(),
                q_max: ACTIVATIONS.q_max(),
            },
        };
        let shape = Shape {
            height: 1,
            width: 1,
            ..source
        };
        self.push(name, shape, ACTIVATIONS, Op::Pool(pool))
    }
}

#[cfg(test)]
mod tests {
    use super::{random_input, resnet20};

    /// What makes the network worth a run: its size, values that are neither dead nor all at the
    /// clamp, and accumulators that do overflow.
    #[test]
    fn resnet20_is_of_full_size_and_alive() {
        let network = resnet20(20);
        network.verify().expect("a legal network");
        let n_macs: u64 = network
            .layers
            .iter()
            .filter_map(|layer| Some(layer.conv()?.n_macs(network.tensor(layer.output).shape)))
            .sum();
        assert_eq!(n_macs, 40_551_040);
        assert_eq!(
            network.layers.iter().filter_map(|l| l.conv()).count(),
            20,
            "layers with weights"
        );
        let arithmetic = crate::suite::edge().arithmetic;
        let image = random_input(&network, 20);
        let run = network::evaluate(&network, arithmetic, &image).expect("it runs");
        for (tensor, values) in network.tensors.iter().zip(&run.tensors).skip(1) {
            let n_inside = values
                .iter()
                .filter(|&&v| v != 0 && v != tensor.format.q_max())
                .count();
            assert!(
                n_inside * 10 > values.len(),
                "{}: {n_inside} of {} between the clamps",
                tensor.name,
                values.len()
            );
        }
    }
}
