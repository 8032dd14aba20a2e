//! Exported models: the nodes of small networks, and what holds for every model. ONNX Runtime
//! compares the values (`check/onnxruntime_check.py`).

use arith::{Format, Requant, Rounding, Scale};
use expect_test::{Expect, expect};
use export::{Error, Options, export};
use ndarray::Array4;
use network::{
    Bias, Conv, Layer, Network, Op, Post, Residual, Shape, Tensor, TensorId, Window,
    arbitrary::{Limits, random_network},
};
use onnx::{GraphProto, NodeProto};
use proptest::prelude::{any, proptest};
use std::collections::BTreeSet;

const PLAIN: Options = Options {
    rounding: Rounding::HalfEven,
    float_input: false,
    float_output: false,
    every_tensor: false,
};

fn tensor(name: &str, bits: u8, signed: bool) -> Tensor {
    Tensor {
        name: name.to_owned(),
        shape: Shape {
            channels: 1,
            height: 2,
            width: 2,
        },
        format: Format { bits, signed },
        scale: Scale {
            mantissa: 128,
            exponent: -7,
        },
    }
}

/// A 1 × 1 convolution of one channel, from `x` to `y`.
fn one_conv(x: Tensor, y: Tensor, weight: i8, requant: Requant) -> Network {
    let (q_min, q_max) = (y.format.q_min(), y.format.q_max());
    let conv = Conv {
        input: TensorId(0),
        window: Window::UNIT,
        groups: 1,
        weight_bits: 8,
        weights: Array4::from_elem((1, 1, 1, 1), weight),
        weight_scales: vec![x.scale],
        bias: vec![Bias {
            mantissa: 1,
            shift: 2,
        }],
        post: Post {
            requant: vec![requant],
            residual: None,
            negative_slope: None,
            q_min,
            q_max,
        },
    };
    Network {
        name: "one".to_owned(),
        tensors: vec![x, y],
        input: TensorId(0),
        outputs: vec![TensorId(1)],
        layers: vec![Layer {
            name: "conv".to_owned(),
            output: TensorId(1),
            op: Op::Conv(conv),
        }],
    }
}

fn graph(network: &Network, options: Options) -> GraphProto {
    let made = export(network, options).expect("it has such a form");
    let model = onnx::decode(&made.bytes).expect("it is a model");
    model.graph.expect("it has a graph")
}

fn check_nodes(network: &Network, options: Options, expected: &Expect) {
    let graph = graph(network, options);
    let line = |node: &NodeProto| {
        let (results, operands) = (node.output.join(", "), node.input.join(", "));
        format!("{results} = {}({operands})\n", node.op_type)
    };
    expected.assert_eq(&graph.node.iter().map(line).collect::<String>());
}

#[test]
fn exact_in_float32_is_one_node() {
    let requant = Requant {
        mantissa: 200,
        shift: 12,
    };
    let narrow = one_conv(tensor("x", 8, false), tensor("y", 4, false), 7, requant);
    check_nodes(
        &narrow,
        PLAIN,
        &expect![[r"
            y/convolved = QLinearConv(x, y/one, y/zero_point, y/weights, y/factor, y/weight_zero_point, y/one, y/zero_point, y/bias)
            y = Clip(y/convolved, y/zero_point, y/q_max)
        "]],
    );
    // Another rounding than ONNX's own.
    let options = Options {
        rounding: Rounding::HalfUp,
        ..PLAIN
    };
    check_nodes(
        &narrow,
        options,
        &expect![[r"
            y/products = ConvInteger(x, y/weights, y/zero_point, y/weight_zero_point)
            y/accumulator = Add(y/products, y/bias)
            y/number = Cast(y/accumulator)
            y/scaled = Mul(y/number, y/factor)
            y/raised = Add(y/scaled, y/half)
            y/rounded = Floor(y/raised)
            y/clamped = Clip(y/rounded, y/q_min, y/q_max)
            y = Cast(y/clamped)
        "]],
    );
}

#[test]
fn real_numbers_outside() {
    let network = one_conv(
        tensor("x", 8, true),
        tensor("y", 16, true),
        -128,
        Requant::IDENTITY,
    );
    let options = Options {
        float_input: true,
        float_output: true,
        ..PLAIN
    };
    check_nodes(
        &network,
        options,
        &expect![[r"
            x/double = Cast(x)
            x/divided = Div(x/double, x/scale)
            x/rounded = Round(x/divided)
            x/clamped = Clip(x/rounded, x/q_min, x/q_max)
            x/integer = Cast(x/clamped)
            y/products = ConvInteger(x/integer, y/weights, y/weight_zero_point, y/weight_zero_point)
            y/accumulator = Add(y/products, y/bias)
            y/number = Cast(y/accumulator)
            y/scaled = Mul(y/number, y/factor)
            y/rounded = Round(y/scaled)
            y/clamped = Clip(y/rounded, y/q_min, y/q_max)
            y/integer = Cast(y/clamped)
            y/float = Cast(y/integer)
            y = Mul(y/float, y/scale)
        "]],
    );
}

#[test]
fn weights_that_a_runtime_could_saturate_are_unsigned() {
    let weights = |operand: Tensor, weight: i8| {
        let signed = operand.format.signed;
        let requant = Requant {
            mantissa: 128,
            shift: 14,
        };
        let network = one_conv(operand, tensor("y", 8, signed), weight, requant);
        let graph = graph(&network, PLAIN);
        let wanted = |t: &&onnx::TensorProto| t.name == "y/weights";
        let weights = graph.initializer.iter().find(wanted).expect("weights");
        (weights.data_type, weights.raw_data[0])
    };
    let (int8, uint8) = (onnx::DataType::Int8 as i32, onnx::DataType::Uint8 as i32);
    // 2 · 255 · 64 = 32640 fits 16 bits, 2 · 255 · 65 does not.
    assert_eq!(weights(tensor("x", 8, false), 64), (int8, 64));
    assert_eq!(weights(tensor("x", 8, false), 65), (uint8, 65 + 128));
    assert_eq!(weights(tensor("x", 7, false), -128), (int8, 128));
    assert_eq!(weights(tensor("x", 8, true), -128), (int8, 128));
}

#[test]
fn sums_that_no_float_holds_are_integers() {
    let (x, y) = (tensor("x", 8, false), tensor("y", 8, true));
    let requant = Requant {
        mantissa: 255,
        shift: 40,
    };
    let mut network = one_conv(x, y, 1, requant);
    if let Op::Conv(conv) = &mut network.layers[0].op {
        conv.post.residual = Some(Residual {
            tensor: TensorId(0),
            stride: [1, 1],
            channel_offset: 0,
            requant: Requant {
                mantissa: 255,
                shift: 10,
            },
        });
        conv.post.negative_slope = Some(Requant {
            mantissa: 255,
            shift: 15,
        });
    }
    check_nodes(
        &network,
        Options {
            rounding: Rounding::Floor,
            ..PLAIN
        },
        &expect![[r"
            y/products = ConvInteger(x, y/weights, y/zero_point, y/weight_zero_point)
            y/accumulator = Add(y/products, y/bias)
            y/number = Cast(y/accumulator)
            y/product = Mul(y/number, y/mantissa)
            y/residual = Cast(x)
            y/residual_product = Mul(y/residual, y/residual_mantissa)
            y/sum = Add(y/product, y/residual_product)
            y/is_negative = Less(y/sum, y/zero)
            y/sloped = Mul(y/sum, y/slope)
            y/leaky = Where(y/is_negative, y/sloped, y/sum)
            y/divisor_2 = Where(y/is_negative, y/negative_divisor, y/divisor)
            y/rest = Mod(y/leaky, y/divisor_2)
            y/multiple = Sub(y/leaky, y/rest)
            y/floor = Div(y/multiple, y/divisor_2)
            y/clamped = Clip(y/floor, y/q_min, y/q_max)
            y = Cast(y/clamped)
        "]],
    );
}

#[test]
fn scales_beyond_float32_are_refused_only_for_real_outputs() {
    let mut network = one_conv(
        tensor("x", 8, true),
        tensor("y", 8, true),
        1,
        Requant::IDENTITY,
    );
    network.tensors[1].scale.exponent = -200;
    assert!(export(&network, PLAIN).is_ok());
    let options = Options {
        float_output: true,
        ..PLAIN
    };
    let refused = export(&network, options).expect_err("2^-193 is no float32");
    assert!(matches!(refused, Error::Scale { .. }), "{refused}");
}

proptest! {
    #[test]
    fn every_model_is_well_formed(seed in any::<u64>(), rounding in 0usize..4, switches in 0u8..8) {
        let mut network = random_network(seed, Limits::default());
        if seed.is_multiple_of(3) {
            for tensor in &mut network.tensors {
                tensor.name = ["", "same", "same/one"][(seed / 3 % 3) as usize].to_owned();
            }
        }
        let options = Options {
            rounding: Rounding::ALL[rounding],
            float_input: switches & 1 != 0,
            float_output: switches & 2 != 0,
            every_tensor: switches & 4 != 0,
        };
        let graph = graph(&network, options);
        let mut defined = BTreeSet::new();
        let inputs = graph.input.iter().map(|input| &input.name);
        let constants = graph.initializer.iter().map(|constant| &constant.name);
        for name in inputs.chain(constants) {
            assert!(!name.is_empty() && defined.insert(name.clone()), "{name} twice");
        }
        let mut used = BTreeSet::new();
        for node in &graph.node {
            for name in &node.input {
                assert!(defined.contains(name), "{name} is read before it is made");
                used.insert(name);
            }
            assert!(defined.insert(node.output[0].clone()), "{} twice", node.output[0]);
        }
        for constant in &graph.initializer {
            assert!(used.contains(&constant.name), "{} is never read", constant.name);
        }
        for output in &graph.output {
            assert!(defined.contains(&output.name), "{} is never made", output.name);
        }
        let n_outputs = if options.every_tensor {
            let input_too = usize::from(network.outputs.contains(&network.input));
            network.tensors.len() - 1 + input_too
        } else {
            network.outputs.len()
        };
        assert_eq!(graph.output.len(), n_outputs);
        assert_eq!(export(&network, options).expect("again").bytes, export(&network, options).expect("again").bytes);
    }
}
