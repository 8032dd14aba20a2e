//! Every rule of `verify`: one small edit of a valid network, one message.

use arith::{
    AccumulatorFormat, Arithmetic, Format, Overflow, ReductionOrder, Requant, Rounding, Scale,
};
use ndarray::{Array3, Array4};
use network::{
    Bias, Conv, Layer, Margin, Network, Op, Part, Pool, Post, Reduction, Residual, Shape, Tensor,
    TensorId, Window, check_bias, evaluate,
};

const SIGNED4: Format = Format {
    bits: 4,
    signed: true,
};

fn post() -> Post {
    Post {
        requant: vec![Requant {
            mantissa: 128,
            shift: 10,
        }],
        residual: None,
        negative_slope: None,
        q_min: -8,
        q_max: 7,
    }
}

/// Input, 3 × 3 convolution with residual and slope, 2 × 2 maximum, 2 × 2 sum, concatenation.
fn valid() -> Network {
    let tensor = |name: &str, channels, extent, format| Tensor {
        name: name.to_owned(),
        shape: Shape {
            channels,
            height: extent,
            width: extent,
        },
        format,
        scale: Scale {
            mantissa: 128,
            exponent: -7,
        },
    };
    let window = Window {
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [1, 1],
    };
    let conv = Conv {
        input: TensorId(0),
        window,
        groups: 2,
        weight_bits: 4,
        weights: Array4::from_elem((4, 1, 3, 3), -8),
        weight_scales: vec![Scale {
            mantissa: 200,
            exponent: -9,
        }],
        bias: vec![
            Bias {
                mantissa: 100,
                shift: 2
            };
            4
        ],
        post: Post {
            residual: Some(Residual {
                tensor: TensorId(0),
                stride: [1, 1],
                channel_offset: 1,
                requant: Requant {
                    mantissa: 128,
                    shift: 7,
                },
            }),
            negative_slope: Some(Requant {
                mantissa: 205,
                shift: 11,
            }),
            ..post()
        },
    };
    let window = Window {
        kernel: [2, 2],
        stride: [2, 2],
        dilation: [1, 1],
        pad: [0, 0],
    };
    let pool = |reduction| {
        let post = Post {
            requant: vec![Requant {
                mantissa: 128,
                shift: 9,
            }],
            ..post()
        };
        Op::Pool(Pool {
            input: TensorId(1),
            channel_offset: 0,
            window,
            reduction,
            margin: None,
            post,
        })
    };
    let layer = |name: &str, output, op| Layer {
        name: name.to_owned(),
        output: TensorId(output),
        op,
    };
    Network {
        name: "small".to_owned(),
        tensors: vec![
            tensor(
                "image",
                2,
                6,
                Format {
                    bits: 8,
                    signed: false,
                },
            ),
            tensor("a", 4, 6, SIGNED4),
            tensor("b", 4, 3, SIGNED4),
            tensor("c", 4, 3, SIGNED4),
            tensor("d", 8, 3, SIGNED4),
        ],
        input: TensorId(0),
        outputs: vec![TensorId(4)],
        layers: vec![
            layer("conv", 1, Op::Conv(conv)),
            layer("max", 2, pool(Reduction::Max)),
            layer("sum", 3, pool(Reduction::Sum)),
            layer(
                "join",
                4,
                Op::Concat(vec![
                    Part::whole(TensorId(2), 4),
                    Part::whole(TensorId(3), 4),
                ]),
            ),
        ],
    }
}

fn conv(network: &mut Network) -> &mut Conv {
    let Op::Conv(conv) = &mut network.layers[0].op else {
        unreachable!()
    };
    conv
}

fn pool(network: &mut Network, index: usize) -> &mut Pool {
    let Op::Pool(pool) = &mut network.layers[index].op else {
        unreachable!()
    };
    pool
}

fn residual(network: &mut Network) -> &mut Residual {
    conv(network).post.residual.as_mut().unwrap()
}

#[track_caller]
fn refused(edit: impl FnOnce(&mut Network), message: &str) {
    let mut network = valid();
    network.verify().unwrap();
    edit(&mut network);
    let error = network.verify().expect_err("the edit breaks a rule");
    assert_eq!(error.to_string(), message);
}

#[test]
fn network_rules() {
    refused(
        |n| n.input = TensorId(5),
        "network: input is tensor 5, there are 5",
    );
    refused(|n| n.outputs.clear(), "network: list of outputs is empty");
    refused(
        |n| n.outputs[0] = TensorId(9),
        "network: output is tensor 9, there are 5",
    );
    refused(
        |n| n.layers.truncate(3),
        r#"tensor 4 "d": no layer makes it"#,
    );
    refused(
        |n| n.layers[1].output = TensorId(9),
        r#"layer 1 "max": output is tensor 9, there are 5"#,
    );
    refused(
        |n| n.layers[1].output = TensorId(1),
        r#"layer 1 "max": makes tensor 1, which exists already"#,
    );
    refused(
        |n| n.layers[0].output = TensorId(0),
        r#"layer 0 "conv": makes tensor 0, which exists already"#,
    );
    refused(
        |n| conv(n).input = TensorId(2),
        r#"layer 0 "conv": reads tensor 2 before it is made"#,
    );
    refused(
        |n| residual(n).tensor = TensorId(7),
        r#"layer 0 "conv": operand is tensor 7, there are 5"#,
    );
}

#[test]
fn tensor_rules() {
    refused(
        |n| n.tensors[0].shape.channels = 0,
        r#"tensor 0 "image": channels is 0, allowed is 1 to 65536"#,
    );
    refused(
        |n| n.tensors[0].shape.width = usize::MAX,
        r#"tensor 0 "image": width is 9223372036854775807, allowed is 1 to 65536"#,
    );
    refused(
        |n| {
            n.tensors[0].shape = Shape {
                channels: 65536,
                height: 65536,
                width: 65536,
            }
        },
        r#"tensor 0 "image": number of elements is 281474976710656, allowed is 1 to 67108864"#,
    );
    refused(
        |n| n.tensors[1].format.bits = 17,
        r#"tensor 1 "a": format width in bits is 17, allowed is 2 to 16"#,
    );
    refused(
        |n| n.tensors[1].scale.mantissa = 127,
        r#"tensor 1 "a": scale mantissa is 127, allowed is 128 to 255"#,
    );
    refused(
        |n| n.tensors[1].scale.exponent = i16::MIN,
        r#"tensor 1 "a": scale exponent is -32768, allowed is -900 to 900"#,
    );
}

#[test]
fn window_rules() {
    for (axis, value) in [(0, 0), (1, 65537), (1, usize::MAX)] {
        let what = |name: &str, min: u8| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            format!(r#"layer 1 "max": {name} is {value}, allowed is {min} to 65536"#)
        };
        refused(
            |n| pool(n, 1).window.kernel[axis] = value,
            &what("kernel extent", 1),
        );
        refused(
            |n| pool(n, 1).window.stride[axis] = value,
            &what("stride", 1),
        );
        refused(
            |n| pool(n, 1).window.dilation[axis] = value,
            &what("dilation", 1),
        );
        if value > 0 {
            refused(|n| pool(n, 1).window.pad[axis] = value, &what("padding", 0));
        }
    }
    let empty = |output: usize, axis: usize| {
        format!(
            r#"layer 1 "max": the window of output {output} on axis {axis} holds no input element"#
        )
    };
    refused(|n| pool(n, 1).window.pad[0] = 2, &empty(0, 0));
    refused(|n| pool(n, 1).window.stride[1] = 3, &empty(2, 1));
    // Taps at -1 and 6: both outside an input of 6, though the window spans it.
    refused(
        |n| {
            pool(n, 1).window = Window {
                kernel: [2, 2],
                stride: [1, 2],
                dilation: [7, 1],
                pad: [1, 0],
            };
        },
        &empty(0, 0),
    );
}

#[test]
fn conv_rules() {
    refused(
        |n| n.tensors[0].format.bits = 9,
        r#"layer 0 "conv": operand width in bits is 9, allowed is 2 to 8"#,
    );
    refused(
        |n| conv(n).weight_bits = 9,
        r#"layer 0 "conv": weight width in bits is 9, allowed is 2 to 8"#,
    );
    refused(
        |n| conv(n).weight_bits = 3,
        r#"layer 0 "conv": weight is -8, allowed is -4 to 3"#,
    );
    refused(
        |n| conv(n).groups = 0,
        r#"layer 0 "conv": groups is 0, allowed is 1 to 65536"#,
    );
    refused(
        |n| conv(n).groups = 4,
        r#"layer 0 "conv": 4 groups do not divide 2 channels"#,
    );
    let weights = |dim| move |n: &mut Network| conv(n).weights = Array4::zeros(dim);
    refused(
        weights((3, 1, 3, 3)),
        r#"layer 0 "conv": output channels of the weights: found 3, needed 4"#,
    );
    refused(
        weights((4, 2, 3, 3)),
        r#"layer 0 "conv": input channels of the weights: found 2, needed 1"#,
    );
    refused(
        weights((4, 1, 2, 3)),
        r#"layer 0 "conv": kernel rows of the weights: found 2, needed 3"#,
    );
    refused(
        weights((4, 1, 3, 2)),
        r#"layer 0 "conv": kernel columns of the weights: found 2, needed 3"#,
    );
    refused(
        |n| conv(n).weight_scales.clear(),
        r#"layer 0 "conv": list of weight scales has 0 entries, allowed are 1 and 4"#,
    );
    refused(
        |n| conv(n).weight_scales[0].mantissa = 0,
        r#"layer 0 "conv": scale mantissa is 0, allowed is 128 to 255"#,
    );
    refused(
        |n| conv(n).bias.truncate(3),
        r#"layer 0 "conv": number of biases: found 3, needed 4"#,
    );
    refused(
        |n| conv(n).bias[1].shift = 32,
        r#"layer 0 "conv": bias shift is 32, allowed is 0 to 31"#,
    );
    refused(
        |n| conv(n).bias[1].shift = 31,
        r#"layer 0 "conv": bias 214748364800 of channel 1 does not fit a 32-bit accumulator"#,
    );
    refused(
        |n| conv(n).post.requant = vec![Requant::IDENTITY; 3],
        r#"layer 0 "conv": list of requantizations has 3 entries, allowed are 1 and 4"#,
    );
}

#[test]
fn post_rules() {
    refused(
        |n| conv(n).post.q_min = -9,
        r#"layer 0 "conv": lower clamp is -9, allowed is -8 to 7"#,
    );
    refused(
        |n| conv(n).post.q_max = 8,
        r#"layer 0 "conv": upper clamp is 8, allowed is -8 to 7"#,
    );
    refused(
        |n| (conv(n).post.q_min, conv(n).post.q_max) = (3, 2),
        r#"layer 0 "conv": clamp 3 to 2 is empty"#,
    );
    refused(
        |n| conv(n).post.requant[0].shift = 48,
        r#"layer 0 "conv": requantization shift is 48, allowed is 0 to 47"#,
    );
    refused(
        |n| conv(n).post.negative_slope.as_mut().unwrap().shift = 16,
        r#"layer 0 "conv": shift of the negative slope is 16, allowed is 0 to 15"#,
    );
    refused(
        |n| residual(n).requant.shift = 48,
        r#"layer 0 "conv": residual shift is 48, allowed is 0 to 47"#,
    );
    refused(
        |n| residual(n).requant.shift = 11,
        r#"layer 0 "conv": residual shift 11 must be 0 to 30 below the shift 10 of channel 0"#,
    );
    refused(
        |n| residual(n).channel_offset = 3,
        r#"layer 0 "conv": channel offset of the residual is 3, allowed is 0 to 2"#,
    );
    refused(
        |n| residual(n).stride[0] = 0,
        r#"layer 0 "conv": residual stride is 0, allowed is 1 to 65536"#,
    );
    refused(
        |n| residual(n).stride[1] = 2,
        r#"layer 0 "conv": last residual row or column is 10, allowed is 0 to 5"#,
    );
    refused(
        |n| {
            conv(n).post.requant[0].shift = 47;
            residual(n).requant.shift = 0;
        },
        r#"layer 0 "conv": residual shift 0 must be 0 to 30 below the shift 47 of channel 0"#,
    );
}

#[test]
fn pool_and_concat_rules() {
    refused(
        |n| pool(n, 2).channel_offset = 1,
        r#"layer 2 "sum": channel offset is 1, allowed is 0 to 0"#,
    );
    refused(
        |n| pool(n, 2).post.requant.push(Requant::IDENTITY),
        r#"layer 2 "sum": number of requantizations: found 2, needed 1"#,
    );
    refused(
        |n| pool(n, 2).window.kernel = [65536, 65536],
        r#"layer 2 "sum": largest window sum is 34359738368, allowed is 0 to 2147483647"#,
    );
    refused(
        |n| pool(n, 2).margin = Some(Margin::default()),
        r#"layer 2 "sum": number of requantizations: found 1, needed 4"#,
    );
    refused(
        |n| {
            pool(n, 2).margin = Some(Margin::default());
            pool(n, 2).window.pad = [2, 2];
        },
        r#"layer 2 "sum": the window of output 0 on axis 0 holds no input element"#,
    );
    refused(
        |n| {
            pool(n, 2).margin = Some(Margin::default());
            pool(n, 2).window.kernel = [64, 17];
        },
        r#"layer 2 "sum": taps of an average with a margin is 1088, allowed is 1 to 1024"#,
    );
    let part = Part::whole(TensorId(2), 4);
    let parts = |parts: Vec<Part>| |n: &mut Network| n.layers[3].op = Op::Concat(parts);
    refused(
        parts(vec![]),
        r#"layer 3 "join": list of joined tensors is empty"#,
    );
    refused(
        parts(vec![part]),
        r#"layer 3 "join": channels of the joined tensors: found 4, needed 8"#,
    );
    refused(
        parts(vec![Part {
            n_channels: 0,
            ..part
        }]),
        r#"layer 3 "join": number of channels of a part is 0, allowed is 1 to 65536"#,
    );
    refused(
        parts(vec![Part { channel: 1, ..part }]),
        r#"layer 3 "join": last channel of a part is 4, allowed is 0 to 3"#,
    );
    refused(
        parts(vec![Part {
            channel: usize::MAX,
            ..part
        }]),
        r#"layer 3 "join": last channel of a part is 9223372036854775806, allowed is 0 to 3"#,
    );
    refused(
        parts(vec![Part {
            stride: [1, 2],
            ..part
        }]),
        r#"layer 3 "join": last row or column of a part is 4, allowed is 0 to 2"#,
    );
    refused(
        parts(vec![Part {
            offset: [1, 0],
            ..part
        }]),
        r#"layer 3 "join": last row or column of a part is 3, allowed is 0 to 2"#,
    );
    refused(
        parts(vec![Part {
            stride: [0, 1],
            ..part
        }]),
        r#"layer 3 "join": stride of a part is 0, allowed is 1 to 65536"#,
    );
    let requant = Requant {
        mantissa: 1,
        shift: 48,
    };
    refused(
        parts(vec![Part { requant, ..part }]),
        r#"layer 3 "join": requantization shift is 48, allowed is 0 to 47"#,
    );
}

#[test]
fn biases_and_inputs() {
    let accumulator = |width_bits| AccumulatorFormat {
        width_bits,
        overflow: Overflow::Wrap,
    };
    let mut network = valid();
    conv(&mut network).bias[3] = Bias {
        mantissa: -128,
        shift: 8,
    };
    check_bias(&network, accumulator(16)).unwrap();
    assert_eq!(
        check_bias(&network, accumulator(15))
            .unwrap_err()
            .to_string(),
        r#"layer 0 "conv": bias -32768 of channel 3 does not fit a 15-bit accumulator"#
    );
    for width in [0, 7, 33, 255] {
        assert_eq!(
            check_bias(&network, accumulator(width))
                .unwrap_err()
                .to_string(),
            format!("accumulator is {width} bits wide, 8 to 32 are possible")
        );
    }
    let arithmetic = Arithmetic {
        accumulator: accumulator(16),
        rounding: Rounding::HalfEven,
        order: ReductionOrder::InOrder,
        depthwise_order: ReductionOrder::InOrder,
    };
    let error = evaluate(&network, arithmetic, &Array3::zeros((2, 6, 5))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input is [2, 6, 5], the network takes 2×6×6"
    );
    let mut image = Array3::zeros((2, 6, 6));
    image[[1, 2, 3]] = 256;
    assert_eq!(
        evaluate(&network, arithmetic, &image)
            .unwrap_err()
            .to_string(),
        "input value at [1, 2, 3] (channel, row, column): 256 is outside 0..=255"
    );
    image[[1, 2, 3]] = 255;
    evaluate(&network, arithmetic, &image).unwrap();
}

#[test]
fn text() {
    expect_test::expect![[r#"
        network "small": 4 layers, 1296 MACs, 36 weights
        input  %0 "image": 2×6×6 uint8, scale 128·2^-7
        output %4 "d": 8×3×3 int4, scale 128·2^-7

        0000 depthwise conv "conv"
            in      %0 "image": 2×6×6 uint8, scale 128·2^-7
            window  3×3, stride 1×1, pad 1×1
            weights 4×1×3×3 int4, 2 groups, xxh3 44d46ebddced4fde
            scale   200·2^-9
            bias    4 × 100 << 2, xxh3 f355bd437e0fcc00
            requant 128 >> 10
            add     %0 "image": 2×6×6 uint8, scale 128·2^-7 × 128 >> 7, from channel 1
            leaky   205 >> 11
            clamp   -8..=7
            out     %1 "a": 4×6×6 int4, scale 128·2^-7

        0001 max "max"
            in      %1 "a": 4×6×6 int4, scale 128·2^-7
            window  2×2, stride 2×2, pad 0×0
            requant 128 >> 9
            clamp   -8..=7
            out     %2 "b": 4×3×3 int4, scale 128·2^-7

        0002 sum "sum"
            in      %1 "a": 4×6×6 int4, scale 128·2^-7
            window  2×2, stride 2×2, pad 0×0
            requant 128 >> 9
            clamp   -8..=7
            out     %3 "c": 4×3×3 int4, scale 128·2^-7

        0003 concat "join"
            in      %2 "b": 4×3×3 int4, scale 128·2^-7
            in      %3 "c": 4×3×3 int4, scale 128·2^-7
            out     %4 "d": 8×3×3 int4, scale 128·2^-7
    "#]]
    .assert_eq(&valid().to_string());
}
