//! Small ONNX models, written here, against a naive convolution and against expected errors.

use onnx::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use proptest::prelude::*;
use quantizer::{
    Activation, Error, FloatConv, FloatNetwork, FloatOp, Import, Observer, Options, import,
    quantize,
};

fn floats(name: &str, dims: &[i64], values: Vec<f32>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 1,
        float_data: values,
        ..Default::default()
    }
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: 7,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[i64])]) -> NodeProto {
    let attribute = |&(name, ints): &(&str, &[i64])| AttributeProto {
        name: name.into(),
        ints: ints.to_vec(),
        i: ints.first().copied(),
        ..Default::default()
    };
    NodeProto {
        op_type: op.into(),
        name: format!("{output}_node"),
        input: inputs.iter().map(|&s| s.into()).collect(),
        output: vec![output.into()],
        attribute: attributes.iter().map(attribute).collect(),
        ..Default::default()
    }
}

fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| DimensionProto {
        dim_value: (d != 0).then_some(d),
        dim_param: None,
    };
    let shape = TensorShapeProto {
        dim: dims.iter().map(dim).collect(),
    };
    let tensor_type = Some(TensorTypeProto {
        elem_type: 1,
        shape: Some(shape),
    });
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { tensor_type }),
    }
}

fn model(dims: &[i64], initializer: Vec<TensorProto>, node: Vec<NodeProto>) -> Vec<u8> {
    let output = node.last().map_or(String::new(), |n| n.output[0].clone());
    let graph = GraphProto {
        node,
        name: "g".into(),
        initializer,
        input: vec![value("x", dims)],
        output: vec![value(&output, &[])],
    };
    let opset_import = vec![OperatorSetIdProto {
        domain: String::new(),
        version: 13,
    }];
    onnx::encode(&ModelProto {
        ir_version: 8,
        opset_import,
        graph: Some(graph),
        ..Default::default()
    })
}

fn absent(_: &str) -> std::io::Result<Vec<u8>> {
    Err(std::io::ErrorKind::NotFound.into())
}

fn load(bytes: &[u8]) -> Result<Import, Error> {
    import(bytes, &absent, None)
}

fn check_error(bytes: &[u8], expected: &str) {
    assert_eq!(
        load(bytes).expect_err("must be refused").to_string(),
        expected
    );
}

fn network(dims: &[i64], initializer: Vec<TensorProto>, nodes: Vec<NodeProto>) -> FloatNetwork {
    load(&model(dims, initializer, nodes))
        .expect("imports")
        .network
}

/// Naive convolution of `x` (channels × height × width).
fn convolve(conv: &FloatConv, x: &[f64], input: [usize; 3], output: [usize; 3]) -> Vec<f64> {
    let [channels, height, width] = input;
    let (n_in, per_group) = (channels / conv.groups, output[0] / conv.groups);
    let mut y = Vec::new();
    for o in 0..output[0] {
        for row in 0..output[1] {
            for column in 0..output[2] {
                let mut sum = f64::from(conv.bias[o]);
                for ((i, ky, kx), &w) in conv.weights.index_axis(ndarray::Axis(0), o).indexed_iter()
                {
                    let at = |out: usize, k: usize, d: usize| {
                        (out * conv.window.stride[d] + k * conv.window.dilation[d])
                            .checked_sub(conv.window.pad[d])
                    };
                    if let (Some(yy), Some(xx)) = (at(row, ky, 0), at(column, kx, 1))
                        && yy < height
                        && xx < width
                    {
                        let c = o / per_group * n_in + i;
                        sum += f64::from(w) * x[(c * height + yy) * width + xx];
                    }
                }
                y.push(sum);
            }
        }
    }
    y
}

fn noise(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32)
        .map(|i| {
            let hash = (i ^ seed)
                .wrapping_mul(2_654_435_761)
                .rotate_left(13)
                .wrapping_mul(0x9E37);
            (hash % 2001) as f32 / 1000.0 - 1.0
        })
        .collect()
}

proptest! {
    #[test]
    fn folded_batch_norm_equals_conv_then_batch_norm(seed: u32, stride in 1i64..3) {
        let initializers = vec![
            floats("w", &[4, 2, 3, 3], noise(72, seed)),
            floats("b", &[4], noise(4, seed ^ 1)),
            floats("gamma", &[4], noise(4, seed ^ 2)),
            floats("beta", &[4], noise(4, seed ^ 3)),
            floats("mean", &[4], noise(4, seed ^ 4)),
            floats("var", &[4], noise(4, seed ^ 5).iter().map(|v| v.abs() + 0.1).collect()),
        ];
        let attributes: [(&str, &[i64]); 2] = [("pads", &[1, 0, 2, 1]), ("strides", &[stride; 2])];
        let conv = node("Conv", &["x", "w", "b"], "c", &attributes);
        let norm = node("BatchNormalization", &["c", "gamma", "beta", "mean", "var"], "n", &[]);
        let plain = network(&[1, 2, 7, 6], initializers.clone(), vec![conv.clone()]);
        let folded = network(&[0, 2, 7, 6], initializers, vec![conv, norm]);
        let [FloatOp::Conv(a), FloatOp::Conv(b)] = [&plain.layers[0].op, &folded.layers[0].op]
        else { panic!("both are one convolution") };
        prop_assert_eq!(folded.layers.len(), 1);
        let shape = folded.tensors[1].shape;
        let out = [shape.channels, shape.height, shape.width];
        let size = |extent: usize, pads: usize| (extent + pads - 3) / stride as usize + 1;
        prop_assert_eq!(out, [4, size(7, 3), size(6, 1)]);
        let x: Vec<f64> = noise(84, seed ^ 9).into_iter().map(f64::from).collect();
        let raw = convolve(a, &x, [2, 7, 6], out);
        let y = convolve(b, &x, [2, 7, 6], out);
        for (i, (raw, y)) in raw.iter().zip(&y).enumerate() {
            let c = (i / (out[1] * out[2])) as u32;
            let at = |s: u32| f64::from(noise(4, seed ^ s)[c as usize]);
            let deviation = (at(5).abs() + 0.1 + 1e-5).sqrt();
            let expected = (raw - at(4)) / deviation * at(2) + at(3);
            prop_assert!((y - expected).abs() < 1e-4, "{y} {expected}");
        }
    }

    #[test]
    fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
        let _ = load(&bytes);
        let mut whole = small();
        let at = cut % whole.len();
        if let Some(byte) = bytes.pop() {
            whole[at] = byte;
        }
        let _ = load(&whole);
    }
}

/// Convolution, `ReLU`, shortcut by slice and pad, addition, flatten, matrix.
fn small() -> Vec<u8> {
    let conv3: [(&str, &[i64]); 2] = [("pads", &[1, 1, 1, 1]), ("strides", &[2, 2])];
    model(
        &[0, 2, 4, 4],
        vec![
            floats("w1", &[2, 2, 3, 3], noise(36, 1)),
            floats("w2", &[4, 2, 3, 3], noise(72, 2)),
            floats("fc", &[16, 3], noise(48, 3)),
            ints("starts", &[0, 0]),
            ints("ends", &[i64::MAX, i64::MAX]),
            ints("axes", &[2, 3]),
            ints("steps", &[2, 2]),
            ints("pads", &[0, 1, 0, 0, 0, 1, 0, 0]),
        ],
        vec![
            node("Conv", &["x", "w1"], "c1", &[("pads", &[1, 1, 1, 1])]),
            node("Relu", &["c1"], "r1", &[]),
            node("Conv", &["r1", "w2"], "c2", &conv3),
            node(
                "Slice",
                &["r1", "starts", "ends", "axes", "steps"],
                "s",
                &[],
            ),
            node("Pad", &["s", "pads"], "p", &[]),
            node("Add", &["p", "c2"], "a", &[]),
            node("Relu", &["a"], "r2", &[]),
            node("Flatten", &["r2"], "f", &[]),
            node("MatMul", &["f", "fc"], "y", &[]),
            node("Softmax", &["y"], "probabilities", &[]),
        ],
    )
}

#[test]
fn shortcut_becomes_a_view() {
    let loaded = load(&small()).expect("imports");
    expect_test::expect![[r"
        network g
        input x 2x4x4
        r1 2x4x4 = conv x 3x3 pad 1x1 max|w| 1.000000 max|b| 0.000000 clamp 0..inf  # c1_node
        r2 4x2x2 = conv r1 3x3 stride 2x2 pad 1x1 max|w| 1.000000 max|b| 0.000000 + r1 stride 2x2 channels from 1 clamp 0..inf  # c2_node
        y 3x1x1 = conv r2 2x2 max|w| 1.000000 max|b| 0.000000  # y_node
        output y
    "]]
    .assert_eq(&loaded.network.to_string());
    assert_eq!(loaded.host_nodes, ["probabilities_node"]);
    assert_eq!(loaded.network.observed_values(), ["x", "r1", "r2", "y"]);
    let FloatOp::Conv(fc) = &loaded.network.layers[2].op else {
        panic!("a convolution")
    };
    // Element (c, y, x) of the kernel is row c·4 + y·2 + x of the matrix.
    assert_eq!(
        fc.weights[[1, 3, 0, 1]].to_bits(),
        noise(48, 3)[13 * 3 + 1].to_bits()
    );
}

#[test]
fn integer_form() {
    let net = load(&small()).expect("imports").network;
    let mut observer = Observer::new();
    for name in net.observed_values() {
        let signed = name == "x" || name == "y";
        let values = noise(999, 5)
            .into_iter()
            .map(|v| if signed { v } else { v.abs() });
        observer
            .observe(&name, &values.collect::<Vec<_>>())
            .expect("finite");
    }
    let integer = quantize(&net, Some(&observer), &Options::default()).expect("quantizes");
    let formats: Vec<_> = integer
        .tensors
        .iter()
        .map(|t| (t.format.bits, t.format.signed))
        .collect();
    assert_eq!(formats, [(8, true), (4, false), (4, false), (16, true)]);
    for layer in &integer.layers {
        let network::Op::Conv(conv) = &layer.op else {
            panic!("only convolutions")
        };
        assert!(conv.weights.iter().all(|w| (-8..=7).contains(w)));
        assert!(
            conv.weights.iter().any(|w| *w == 7 || *w <= -7),
            "scale does not use the range"
        );
        if let Some(residual) = conv.post.residual {
            assert!(
                conv.post
                    .requant
                    .iter()
                    .all(|r| r.shift >= residual.requant.shift)
            );
        }
    }
    observer.observe("r1", &[]).expect("finite");
    let missing = quantize(&net, Some(&Observer::new()), &Options::default()).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "tensor `x`: no calibration values were observed"
    );
    assert!(quantize(&net, None, &Options::default()).is_ok());
    let wide = Options {
        weight_bits: 9,
        ..Options::default()
    };
    let error = quantize(&net, None, &wide).unwrap_err();
    assert_eq!(error.to_string(), "weight_bits = 9 is outside 2..=8");
}

#[test]
fn clips_compose() {
    let mut clip = node("Clip", &["c"], "y", &[]);
    clip.attribute.push(AttributeProto {
        name: "max".into(),
        f: Some(6.0),
        ..Default::default()
    });
    let weights = floats("w", &[1, 1, 1, 1], vec![1.0]);
    let nodes = vec![
        node("Conv", &["x", "w"], "k", &[]),
        node("Relu", &["k"], "c", &[]),
        clip,
    ];
    let net = network(&[1, 1, 2, 2], vec![weights], nodes);
    let FloatOp::Conv(conv) = &net.layers[0].op else {
        panic!("a convolution")
    };
    assert_eq!(
        conv.post.activation,
        Activation::Clamp {
            low: 0.0,
            high: 6.0
        }
    );
    assert_eq!(net.layers.len(), 1);
}

#[test]
fn truncated() {
    let whole = small();
    for cut in 0..whole.len() {
        assert!(
            load(&whole[..cut]).is_err(),
            "{cut} of {} bytes",
            whole.len()
        );
    }
}

#[test]
fn overflowing_dims() {
    let bad = floats("w", &[1 << 40, 1 << 40], vec![]);
    check_error(
        &model(
            &[1, 1, 2, 2],
            vec![bad],
            vec![node("Conv", &["x", "w"], "y", &[])],
        ),
        "tensor `w`: dims [1099511627776, 1099511627776] overflow the limit of 2^30 elements",
    );
    check_error(
        &model(
            &[1, 1 << 40, 1 << 40, 2],
            vec![],
            vec![node("Relu", &["x"], "y", &[])],
        ),
        "tensor `x`: dims [1, 1099511627776, 1099511627776, 2] are negative or exceed 2^28",
    );
    check_error(
        &model(
            &[1, 1, 2, 2],
            vec![floats("w", &[-1], vec![])],
            vec![node("Relu", &["x"], "y", &[])],
        ),
        "tensor `w`: dims [-1] have a negative extent",
    );
    check_error(
        &model(
            &[1, 1, 2, 2],
            vec![floats("w", &[100], vec![0.0])],
            vec![node("Relu", &["x"], "y", &[])],
        ),
        "tensor `w`: dims [100] need 100 elements, 1 present",
    );
}

#[test]
fn unsupported_operator() {
    check_error(
        &model(&[1, 1, 2, 2], vec![], vec![node("LSTM", &["x"], "y", &[])]),
        "node `y_node`: operator LSTM is not supported: replace it by convolutions, pooling, \
         additions and clamps, or cut the model before it and leave the rest to the host",
    );
}

#[test]
fn nan_weights() {
    let weights = floats("w", &[1, 1, 1, 2], vec![0.0, f32::NAN]);
    check_error(
        &model(
            &[1, 1, 2, 2],
            vec![weights],
            vec![node("Conv", &["x", "w"], "y", &[])],
        ),
        "tensor `w`: element 1 is NaN: values must be finite",
    );
}

#[test]
fn external_data() {
    let file = |location: &str| {
        let entry = StringStringEntryProto {
            key: "location".into(),
            value: location.into(),
        };
        let tensor = TensorProto {
            external_data: vec![entry],
            data_location: 1,
            ..floats("w", &[1, 1, 1, 1], vec![])
        };
        model(
            &[1, 1, 2, 2],
            vec![tensor],
            vec![node("Conv", &["x", "w"], "y", &[])],
        )
    };
    check_error(
        &file("../secret"),
        "tensor `w`: external data `../secret`: the path must stay inside the model's directory",
    );
    check_error(
        &file("w.bin"),
        "tensor `w`: external data `w.bin`: the file is absent (synthetic weights need a seed)",
    );
    let made = import(&file("w.bin"), &absent, Some(1)).expect("synthetic");
    assert_eq!(made.synthetic, ["w"]);
    let again = import(&file("w.bin"), &absent, Some(2)).expect("synthetic");
    assert_ne!(made.network, again.network);
    let read = import(&file("w.bin"), &|_| Ok(2f32.to_le_bytes().to_vec()), None).expect("reads");
    let FloatOp::Conv(conv) = &read.network.layers[0].op else {
        panic!("a convolution")
    };
    assert_eq!(conv.weights[[0, 0, 0, 0]].to_bits(), 2f32.to_bits());
}

/// Without weights the integer network has the same tensors and layers, and the data file of the
/// weights is not opened.
#[test]
fn shapes_alone() {
    let weights = |name: &str, dims: &[i64]| TensorProto {
        external_data: vec![StringStringEntryProto {
            key: "location".into(),
            value: "weights.bin".into(),
        }],
        data_location: 1,
        ..floats(name, dims, vec![])
    };
    let vector = |name: &str| floats(name, &[3], vec![0.5, 1.0, 2.0]);
    let file = model(
        &[1, 2, 4, 4],
        vec![
            weights("w", &[3, 2, 3, 3]),
            vector("scale"),
            vector("shift"),
            vector("mean"),
            vector("variance"),
            weights("matrix", &[12, 5]),
        ],
        vec![
            node("Conv", &["x", "w"], "a", &[]),
            node(
                "BatchNormalization",
                &["a", "scale", "shift", "mean", "variance"],
                "b",
                &[],
            ),
            node("Relu", &["b"], "c", &[]),
            node("Flatten", &["c"], "d", &[]),
            node("MatMul", &["d", "matrix"], "y", &[]),
        ],
    );
    let untouched = |name: &str| panic!("{name} is opened");
    let shapes = quantizer::import_shapes(&file, &untouched).expect("shapes");
    assert!(shapes.network.shapes_only && shapes.synthetic.is_empty());
    let valued = import(&file, &absent, Some(1)).expect("synthetic");
    let [shapes, valued] = [shapes, valued].map(|import| {
        let options = Options::default();
        quantize(&import.network, None, &options).expect("integer")
    });
    assert_eq!(shapes.tensors.len(), valued.tensors.len());
    for (a, b) in shapes.tensors.iter().zip(&valued.tensors) {
        assert_eq!((&a.name, a.shape, a.format), (&b.name, b.shape, b.format));
    }
    assert_eq!(shapes.layers.len(), 2);
    for (a, b) in shapes.layers.iter().zip(&valued.layers) {
        let (Some(conv), Some(other)) = (a.conv(), b.conv()) else {
            panic!("convolutions")
        };
        assert_eq!((&a.name, a.output), (&b.name, b.output));
        assert_eq!(conv.weights.dim(), other.weights.dim());
        assert_eq!(conv.window, other.window);
        assert_eq!(conv.post.q_min, other.post.q_min);
        assert!(conv.weights.iter().all(|&weight| weight == 0));
    }
}
