//! Compiled programs against the oracle, on random networks and random machines.
//!
//! `SYSTOLE_CASES` sets the number of random cases.

use crate::{
    Compiled, Error, LayerPlan, Options, compile, compile_with, read_tensor, stored_tensors,
    write_tensor,
};
mod races;
mod search;

use accelerator::{Config, Dataflow, DepthwiseUnit, DramConfig, event};
use arith::{
    AccumulatorFormat, Arithmetic, Format, Overflow, ReductionOrder, Requant, Rounding, Scale,
    SplitMix64,
};
use expect_test::{Expect, expect};
use ndarray::Array4;
use network::{
    Bias, Layer, Network, Op, Post, Residual, Shape, Tensor, TensorId, Window,
    arbitrary::{Limits, random_input, random_network},
};

fn n_cases() -> u64 {
    std::env::var("SYSTOLE_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(64)
}

fn small_machine() -> Config {
    Config {
        name: "small".into(),
        clock_hz: 1,
        dataflow: Dataflow::OutputStationary,
        rows: 4,
        cols: 4,
        shadow: true,
        arithmetic: Arithmetic {
            accumulator: AccumulatorFormat {
                width_bits: 16,
                overflow: Overflow::Saturate,
            },
            rounding: Rounding::HalfEven,
            order: ReductionOrder::InOrder,
            depthwise_order: ReductionOrder::InOrder,
        },
        n_blocks: 2,
        block_rows: 4,
        lanes: 4,
        depthwise: DepthwiseUnit::Array,
        activation_bytes: 4096,
        weight_bytes: 2048,
        n_parameters: 64,
        queue_depth: 8,
        max_tokens: 15,
        dram: DramConfig {
            size_bytes: 1 << 20,
            latency_cycles: 10,
            bytes_per_cycle: 8,
            burst_bytes: 64,
            max_outstanding: 4,
            banks: None,
        },
    }
}

fn random_machine(seed: u64) -> Config {
    let mut random = SplitMix64(seed);
    let mut pick = |from: u64, to: u64| (from + random.next_u64() % (to - from + 1)) as u32;
    let mut config = small_machine();
    config.set_array(Dataflow::OutputStationary, pick(1, 8), pick(1, 8));
    config.lanes = pick(1, 8);
    config.shadow = pick(0, 1) == 1;
    config.n_blocks = pick(1, 3);
    if pick(0, 1) == 1 {
        config.set_depthwise(DepthwiseUnit::Post);
    }
    config.activation_bytes = 1 << pick(7, 13);
    config.weight_bytes = pick(16, 64) << pick(0, 5);
    config.n_parameters = pick(8, 40);
    config.queue_depth = pick(1, 8);
    config.max_tokens = pick(1, 15);
    config.arithmetic.rounding = Rounding::ALL[pick(0, 3) as usize];
    config.arithmetic.accumulator.width_bits = pick(12, 20) as u8;
    if pick(0, 1) == 1 {
        config.arithmetic.accumulator.overflow = Overflow::Wrap;
    }
    config.dram.latency_cycles = pick(1, 40);
    config.dram.bytes_per_cycle = 1 << pick(0, 4);
    config.dram.burst_bytes = 64;
    config.dram.max_outstanding = pick(1, 8);
    config
}

/// A machine, and a network whose biases it can hold.
fn random_case(seed: u64) -> (Config, Network) {
    let config = random_machine(seed);
    let limits = Limits {
        accumulator_bits: config.arithmetic.accumulator.width_bits,
        max_channels: 4 + (seed % 5 * 7) as usize,
        depthwise: config.depthwise == DepthwiseUnit::Post,
        ..Limits::default()
    };
    (config, random_network(seed, limits))
}

/// Runs a compiled network and compares with the oracle every tensor that it stores, and every
/// overflow record.
fn run(network: &Network, config: &Config, compiled: &Compiled, seed: u64) {
    let program = &compiled.program;
    program.check().expect("the program is encodable");
    let input = random_input(network, seed);
    let oracle = network::evaluate(network, config.arithmetic, &input).expect("the oracle runs");
    let mut dram = vec![0x5a; program.dram_bytes as usize];
    dram[..program.data.len()].copy_from_slice(&program.data);
    write_tensor(&mut dram, compiled.placement(network.input), &input);
    let timing = event::time(program, config).expect("the program runs");
    races::check(program, config, &timing);
    let overflow = event::execute(program, config, &mut dram).expect("the program executes");
    let stored = stored_tensors(program);
    for (layer, plan) in network.layers.iter().zip(&compiled.tiles) {
        let id = layer.output;
        if !stored[id.index()] {
            continue;
        }
        let found = read_tensor(&dram, compiled.placement(id));
        let wanted = &oracle.tensors[id.index()];
        assert!(
            found == *wanted,
            "seed {seed}: layer {} is wrong:\n{plan}{:?}",
            layer.name,
            layer.op
        );
    }
    let wanted: Vec<_> = oracle.overflow.into_iter().flatten().collect();
    assert_eq!(overflow, wanted, "seed {seed}: overflow records");
}

/// As it is, and with every tensor stored.
fn check_run(network: &Network, config: &Config, compiled: &Compiled, seed: u64) {
    run(network, config, compiled, seed);
    let stored = stored_tensors(&compiled.program);
    assert!(
        network
            .outputs
            .iter()
            .all(|id| stored[id.index()] || *id == network.input)
    );
    let options = Options {
        store_all: true,
        ..Options::default()
    };
    let all = compile_with(network, config, options).expect("it compiled before");
    let stored = stored_tensors(&all.program);
    let made = |id: TensorId| network.producer(id).is_some();
    assert!((0..stored.len()).all(|id| stored[id] || !made(TensorId(id))));
    run(network, config, &all, seed);
}

#[test]
fn random_networks_on_random_machines() {
    let (mut n_run, mut n_on_lanes, mut n_in_runs) = (0, 0, 0);
    for seed in 0..n_cases() {
        let (config, network) = random_case(seed);
        match compile(&network, &config) {
            Ok(compiled) => {
                check_run(&network, &config, &compiled, seed);
                n_run += 1;
                let on_lanes = |plan: &&LayerPlan| plan.operation.starts_with("depthwise");
                n_on_lanes += compiled.tiles.iter().filter(on_lanes).count();
                let mut plans = compiled.tiles.iter().filter(on_lanes);
                n_in_runs += u64::from(plans.any(|plan| plan.n_weight_groups > 1));
            }
            Err(Error::TooLarge { .. }) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(
        n_run * 2 > n_cases(),
        "only {n_run} networks fitted their machines"
    );
    assert!(n_on_lanes > 0, "no depthwise layer on lanes");
    assert!(n_in_runs > 0, "no depthwise layer in several runs");
}

/// A network of one 3 × 3 convolution and a pooling, with plain numbers.
fn two_layers() -> Network {
    let limits = Limits {
        max_layers: 2,
        concats: false,
        slopes: false,
        ..Limits::default()
    };
    random_network(3, limits)
}

fn check_error(network: &Network, config: &Config, wanted: &Expect) {
    let error = compile(network, config).expect_err("it must not compile");
    wanted.assert_eq(&error.to_string());
}

#[test]
fn activation_scratchpad_too_small() {
    let config = Config {
        activation_bytes: 4,
        ..small_machine()
    };
    check_error(
        &two_layers(),
        &config,
        &expect![
            "layer layer0: one output pixel needs 9 bytes of activation scratchpad, 4 bytes available"
        ],
    );
}

#[test]
fn weight_scratchpad_too_small() {
    let config = Config {
        weight_bytes: 1,
        ..small_machine()
    };
    check_error(
        &two_layers(),
        &config,
        &expect![
            "layer layer1: one step of the reduction needs 2 bytes of weight scratchpad, 1 bytes available"
        ],
    );
}

#[test]
fn parameter_table_too_small() {
    let config = Config {
        n_parameters: 1,
        ..small_machine()
    };
    check_error(
        &two_layers(),
        &config,
        &expect![
            "layer layer1: a column tile needs 32 bytes of parameter table, 8 bytes available"
        ],
    );
}

#[test]
fn main_memory_too_small() {
    let mut config = small_machine();
    config.dram.size_bytes = 256;
    check_error(
        &two_layers(),
        &config,
        &expect!["the network needs 3520 bytes of DRAM, 256 bytes available"],
    );
}

#[test]
fn listings() {
    let compiled = compile(&two_layers(), &small_machine()).expect("it fits");
    expect![[r#"
        layer layer0: pool max 1x1 of 1 parts to 6x10x10
          tile 2x10 pixels, 5 tiles
          output     activation 0x000000 stays on chip
          input      activation 0x00012f 2 x 120 bytes
          alone      239 cycles
        layer layer1: conv 10x10 of 6x10x10 to 5x1x1
          tile 1x1 pixels, 1 tiles, 1 weight groups, outer loop over pixels
          input      activation 0x000000 stays on chip
          output     activation 0x000ffb 1 x 5 bytes
          weights    weight     0x000000 8 x 240 bytes
          parameters parameter  0x000000 1 x 40 bytes
          alone      1275 cycles
    "#]]
    .assert_eq(&compiled.tiled());
    let asm: String = compiled
        .asm()
        .lines()
        .skip_while(|line| !line.starts_with(".at"))
        .take_while(|line| !line.starts_with(".data"))
        .flat_map(|line| [line.trim_end(), "\n"])
        .collect();
    expect![[r#"
        .at layer=0
        0000: load        memory=0 dram_address=2496 chip_address=303 n_rows=1 row_bytes=120 signal=post ; layer layer0, rows 0..2
        0001: load        memory=0 dram_address=2616 chip_address=423 n_rows=1 row_bytes=120 signal=post ; layer layer0, rows 2..4
        0002: destination address=0 width=10 pixel_bytes=3 size=0 q_min=-8 q_max=7 ; layer layer0, rows 0..2
        0003: source      address=303 width=10 height=2 pixel_bytes=6 wide=1 signed=1 ; layer layer0, rows 0..2
        0004: window      height=1 width=1 stride_y=1 stride_x=1 dilation_y=1 dilation_x=1 pad_top=0 pad_left=0 ; layer layer0, rows 0..2
        0005: pool        y=0 x=0 n_pixels=20 channel=0 source_channel=0 n_channels=6 sum=0 mantissa=178 shift=12 add_residual=0 use_slope=0 wait=load signal=load ; layer layer0, rows 0..2
        0006: load        memory=0 dram_address=2736 chip_address=303 n_rows=1 row_bytes=120 wait=post signal=post ; layer layer0, rows 4..6
        0007: destination address=60 width=10 pixel_bytes=3 size=0 q_min=-8 q_max=7 ; layer layer0, rows 2..4
        0008: source      address=423 width=10 height=2 pixel_bytes=6 wide=1 signed=1 ; layer layer0, rows 2..4
        0009: pool        y=0 x=0 n_pixels=20 channel=0 source_channel=0 n_channels=6 sum=0 mantissa=178 shift=12 add_residual=0 use_slope=0 wait=load signal=load ; layer layer0, rows 2..4
        0010: load        memory=0 dram_address=2856 chip_address=423 n_rows=1 row_bytes=120 wait=post signal=post ; layer layer0, rows 6..8
        0011: destination address=120 width=10 pixel_bytes=3 size=0 q_min=-8 q_max=7 ; layer layer0, rows 4..6
        0012: source      address=303 width=10 height=2 pixel_bytes=6 wide=1 signed=1 ; layer layer0, rows 4..6
        0013: pool        y=0 x=0 n_pixels=20 channel=0 source_channel=0 n_channels=6 sum=0 mantissa=178 shift=12 add_residual=0 use_slope=0 wait=load signal=load ; layer layer0, rows 4..6
        0014: load        memory=0 dram_address=2976 chip_address=303 n_rows=1 row_bytes=120 wait=post signal=post ; layer layer0, rows 8..10
        .at layer=1
        0015: load        memory=2 dram_address=2432 chip_address=0 n_rows=1 row_bytes=40 signal=post ; layer layer1, rows 0..1 channels 0..5
        0016: load        memory=1 dram_address=0 chip_address=0 n_rows=1 row_bytes=240 signal=array ; layer layer1, rows 0..1 channels 0..5
        0017: load        memory=1 dram_address=240 chip_address=240 n_rows=1 row_bytes=240 signal=array ; layer layer1, rows 0..1 channels 0..5
        0018: load        memory=1 dram_address=480 chip_address=480 n_rows=1 row_bytes=240 signal=array ; layer layer1, rows 0..1 channels 0..5
        0019: load        memory=1 dram_address=720 chip_address=720 n_rows=1 row_bytes=240 signal=array ; layer layer1, rows 0..1 channels 0..5
        0020: load        memory=1 dram_address=960 chip_address=960 n_rows=1 row_bytes=240 signal=array ; layer layer1, rows 0..1 channels 0..5
        .at layer=0
        0021: destination address=180 width=10 pixel_bytes=3 size=0 q_min=-8 q_max=7 ; layer layer0, rows 6..8
        0022: source      address=423 width=10 height=2 pixel_bytes=6 wide=1 signed=1 ; layer layer0, rows 6..8
        0023: pool        y=0 x=0 n_pixels=20 channel=0 source_channel=0 n_channels=6 sum=0 mantissa=178 shift=12 add_residual=0 use_slope=0 wait=load ; layer layer0, rows 6..8
        .at layer=1
        0024: load        memory=1 dram_address=1200 chip_address=1200 n_rows=1 row_bytes=240 signal=array ; layer layer1, rows 0..1 channels 0..5
        .at layer=0
        0025: destination address=240 width=10 pixel_bytes=3 size=0 q_min=-8 q_max=7 ; layer layer0, rows 8..10
        0026: source      address=303 width=10 height=2 pixel_bytes=6 wide=1 signed=1 ; layer layer0, rows 8..10
        0027: pool        y=0 x=0 n_pixels=20 channel=0 source_channel=0 n_channels=6 sum=0 mantissa=178 shift=12 add_residual=0 use_slope=0 wait=load signal=array ; layer layer0, rows 8..10
        .at layer=1
        0028: load        memory=1 dram_address=1440 chip_address=1440 n_rows=1 row_bytes=240 signal=array ; layer layer1, rows 0..1 channels 0..5
        0029: kernel      height=10 width=10 stride_y=1 stride_x=1 dilation_y=1 dilation_x=1 pad_top=0 pad_left=0 output_width=1 ; layer layer1, rows 0..1 channels 0..5
        0030: input       address=0 width=10 height=10 pixel_bytes=3 channel=0 n_channels=6 wide_activations=0 signed_activations=1 wide_weights=0 ; layer layer1, rows 0..1 channels 0..5
        0031: destination address=4091 width=1 pixel_bytes=5 size=1 q_min=0 q_max=127 ; layer layer1, rows 0..1 channels 0..5
        0032: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=3 weight_line=0 block=0 n_steps=120 first=1 last=0 parameter=0 channel=0 wait=load,post signal=load ; layer layer1, rows 0..1 channels 0..5
        0033: load        memory=1 dram_address=1680 chip_address=1680 n_rows=1 row_bytes=240 signal=array ; layer layer1, rows 0..1 channels 0..5
        0034: load        memory=1 dram_address=1920 chip_address=0 n_rows=1 row_bytes=240 wait=array signal=array ; layer layer1, rows 0..1 channels 0..5
        0035: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=3 weight_line=120 block=0 n_steps=120 first=0 last=0 parameter=0 channel=0 wait=load signal=load ; layer layer1, rows 0..1 channels 0..5
        0036: load        memory=1 dram_address=2160 chip_address=240 n_rows=1 row_bytes=240 wait=array signal=array ; layer layer1, rows 0..1 channels 0..5
        0037: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=3 weight_line=240 block=0 n_steps=120 first=0 last=0 parameter=0 channel=0 wait=load ; layer layer1, rows 0..1 channels 0..5
        0038: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=3 weight_line=360 block=0 n_steps=120 first=0 last=0 parameter=0 channel=0 wait=load ; layer layer1, rows 0..1 channels 0..5
        0039: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=3 weight_line=480 block=0 n_steps=120 first=0 last=1 parameter=0 channel=0 wait=load signal=post ; layer layer1, rows 0..1 channels 0..5
        0040: requantize  block=0 y=0 x=0 rows_minus_1=0 cols_minus_1=3 row=0 parameter=0 channel=0 add_residual=0 use_slope=0 wait=load,array ; layer layer1, rows 0..1 channels 0..5
        0041: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=0 weight_line=600 block=1 n_steps=120 first=1 last=0 parameter=4 channel=4 wait=load ; layer layer1, rows 0..1 channels 0..5
        0042: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=0 weight_line=720 block=1 n_steps=120 first=0 last=0 parameter=4 channel=4 wait=load ; layer layer1, rows 0..1 channels 0..5
        0043: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=0 weight_line=840 block=1 n_steps=120 first=0 last=0 parameter=4 channel=4 wait=load ; layer layer1, rows 0..1 channels 0..5
        0044: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=0 weight_line=0 block=1 n_steps=120 first=0 last=0 parameter=4 channel=4 wait=load ; layer layer1, rows 0..1 channels 0..5
        0045: matmul      y=0 x=0 rows_minus_1=0 cols_minus_1=0 weight_line=120 block=1 n_steps=120 first=0 last=1 parameter=4 channel=4 wait=load signal=post ; layer layer1, rows 0..1 channels 0..5
        0046: requantize  block=1 y=0 x=0 rows_minus_1=0 cols_minus_1=0 row=0 parameter=4 channel=4 add_residual=0 use_slope=0 wait=array signal=store ; layer layer1, rows 0..1 channels 0..5
        0047: store       dram_address=3456 chip_address=4091 n_rows=1 row_bytes=5 wait=post ; layer layer1, rows 0..1 channels 0..5
    "#]].assert_eq(&asm);
}

#[test]
fn same_bytes_with_any_number_of_threads() {
    let network = random_network(11, Limits::default());
    let bytes = |n| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .expect("threads");
        let compiled = pool
            .install(|| compile(&network, &small_machine()))
            .expect("it fits");
        compiled.program.to_bytes().expect("it encodes")
    };
    assert_eq!(bytes(1), bytes(2));
}

/// A residual network: a first convolution, then for each width pairs of 3 × 3 convolutions with a
/// shortcut that sub-samples where the width grows, and a fully connected end.
fn residual_network(extent: usize, widths: &[usize], n_blocks: usize, n_outputs: usize) -> Network {
    let format = |bits| Format { bits, signed: true };
    let mut random = SplitMix64(1);
    let mut network = Network {
        name: "residual".into(),
        ..random_network(0, Limits::default())
    };
    (network.tensors, network.layers) = (Vec::new(), Vec::new());
    let tensor = |network: &mut Network, channels, extent, bits| {
        let shape = Shape {
            channels,
            height: extent,
            width: extent,
        };
        let scale = Scale {
            mantissa: 128,
            exponent: 0,
        };
        let name = format!("t{}", network.tensors.len());
        network.tensors.push(Tensor {
            name,
            shape,
            format: format(bits),
            scale,
        });
        TensorId(network.tensors.len() - 1)
    };
    let mut conv =
        |network: &mut Network, input: TensorId, output: TensorId, kernel, pad, second| {
            let (from, to) = (network.tensor(input).shape, network.tensor(output).shape);
            let stride = if kernel == 3 {
                from.height / to.height
            } else {
                1
            };
            let dim = (to.channels, from.channels, kernel, kernel);
            let requant = Requant {
                mantissa: 200,
                shift: 15,
            };
            let residual = |tensor| Residual {
                tensor,
                stride: [network.tensor(tensor).shape.height / to.height; 2],
                channel_offset: 0,
                requant,
            };
            let post = Post {
                requant: vec![requant],
                residual: Option::map(second, residual),
                negative_slope: None,
                q_min: -8,
                q_max: 7,
            };
            let op = network::Conv {
                input,
                window: Window {
                    kernel: [kernel; 2],
                    stride: [stride; 2],
                    dilation: [1; 2],
                    pad: [pad; 2],
                },
                groups: 1,
                weight_bits: 4,
                weights: Array4::from_shape_fn(dim, |_| random.between(-8, 7) as i8),
                weight_scales: vec![Scale {
                    mantissa: 128,
                    exponent: 0,
                }],
                bias: vec![
                    Bias {
                        mantissa: 5,
                        shift: 3
                    };
                    to.channels
                ],
                post,
            };
            let name = format!("conv{}", network.layers.len());
            network.layers.push(Layer {
                name,
                output,
                op: Op::Conv(op),
            });
        };
    let mut extent = extent;
    network.input = tensor(&mut network, 3, extent, 8);
    let mut at = tensor(&mut network, widths[0], extent, 4);
    conv(&mut network, TensorId(0), at, 3, 1, None);
    for (index, &width) in widths.iter().enumerate() {
        for block in 0..n_blocks {
            if index > 0 && block == 0 {
                extent /= 2;
            }
            let middle = tensor(&mut network, width, extent, 4);
            conv(&mut network, at, middle, 3, 1, None);
            let end = tensor(&mut network, width, extent, 4);
            conv(&mut network, middle, end, 3, 1, Some(at));
            at = end;
        }
    }
    let end = tensor(&mut network, n_outputs, 1, 8);
    conv(&mut network, at, end, extent, 0, None);
    network.outputs = vec![end];
    network
}

fn default_machine() -> Config {
    Config::from_toml(include_str!("../../../configs/edge-16x16.toml")).expect("a good file")
}

#[test]
fn residual_network_on_the_default_machine() {
    let network = residual_network(16, &[16, 32, 64], 1, 10);
    let config = default_machine();
    let compiled = compile(&network, &config).expect("it fits");
    check_run(&network, &config, &compiled, 0);
}

/// Times are printed for `--nocapture`; what is checked is that the search ends with a program.
#[test]
fn large_networks_compile() {
    for (extent, widths, n_blocks) in [(32, &[16, 32, 64][..], 3), (56, &[64, 128, 256, 512], 2)] {
        let network = residual_network(extent, widths, n_blocks, 1000);
        let compiled = compile(&network, &default_machine()).expect("it fits");
        let timing = event::time(&compiled.program, &default_machine()).expect("it runs");
        let alone: u64 = compiled.tiles.iter().map(|plan| plan.estimated.0).sum();
        // Layers overlap at their borders, and never by more than they take.
        assert!(
            timing.total.0 <= alone + alone / 8,
            "{} of {alone}",
            timing.total
        );
        println!(
            "{} instructions, {}",
            compiled.program.instructions.len(),
            timing.total
        );
    }
}
