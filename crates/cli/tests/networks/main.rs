//! Rearranged and equalized networks against the float reference, value for value, and on the machine.

#[path = "../../../quantizer/tests/models/mod.rs"]
mod models;

use arith::SplitMix64;
use assert_cmd::Command;
use models::{floats, ints, node};
use network::{Shape, Window};
use onnx::{AttributeType, NodeProto};
use quantizer::{
    Activation, FloatConv, FloatLayer, FloatNetwork, FloatOp, FloatPart, FloatPost, FloatTensor,
    Observer, View, equalize, to_onnx,
};
use std::{fs, path::Path};

const SHAPE: Shape = Shape {
    channels: 3,
    height: 8,
    width: 8,
};

fn reals(seed: u64, n: usize) -> Vec<f32> {
    let mut random = SplitMix64(seed);
    (0..n)
        .map(|_| random.between(-1000, 1000) as f32 / 1000.0)
        .collect()
}

/// `YOLOv2`'s head: what is two layers back comes as blocks of 2 × 2 pixels beside what is there.
fn head(passthrough: Vec<NodeProto>) -> Vec<u8> {
    let weights = |name: &str, seed, dims: &[i64]| {
        floats(
            name,
            dims,
            reals(seed, dims.iter().product::<i64>() as usize),
        )
    };
    let constants = vec![
        weights("w0", 1, &[4, 3, 3, 3]),
        weights("w1", 2, &[6, 4, 3, 3]),
        weights("w2", 3, &[5, 22, 1, 1]),
        ints("split", &[1, 4, 4, 2, 4, 2]),
        ints("blocks", &[1, 16, 4, 4]),
    ];
    let conv = |x: &str, w: &str, y: &str, stride: i64, pad: i64| {
        let attributes: &[(&str, &[i64])] = &[
            ("pads", &[pad; 4]),
            ("strides", &[stride, stride]),
            ("dilations", &[1, 1]),
        ];
        node("Conv", &[x, w], y, attributes)
    };
    let mut nodes = vec![
        conv("x", "w0", "c0", 1, 1),
        node("Relu", &["c0"], "a", &[]),
        conv("a", "w1", "b", 2, 1),
    ];
    nodes.extend(passthrough);
    nodes.push(node("Concat", &["p", "b"], "j", &[("axis", &[1])]));
    nodes.push(conv("j", "w2", "y", 1, 0));
    for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
        let is_list = attribute.ints.len() > 1;
        attribute.kind = if is_list {
            AttributeType::Ints
        } else {
            AttributeType::Int
        } as i32;
        if is_list {
            attribute.i = None;
        } else {
            attribute.ints.clear();
        }
    }
    let mut model = onnx::decode(&models::model(&[1, 3, 8, 8], constants, nodes)).expect("own");
    let graph = model.graph.as_mut().expect("there");
    graph.output[0] = models::value("y", &[1, 5, 4, 4]);
    onnx::encode(&model)
}

fn moved() -> Vec<u8> {
    head(vec![
        node("Reshape", &["a", "split"], "p0", &[]),
        node("Transpose", &["p0"], "p1", &[("perm", &[0, 3, 5, 1, 2, 4])]),
        node("Reshape", &["p1", "blocks"], "p", &[]),
    ])
}

fn space_to_depth() -> Vec<u8> {
    head(vec![node(
        "SpaceToDepth",
        &["a"],
        "p",
        &[("blocksize", &[2])],
    )])
}

fn values(model: &[u8], names: &[&str], image: &[f32]) -> Vec<Vec<f32>> {
    let model = reference::Model::load(model.to_vec(), []).expect("readable");
    let tensors = model.run(image, [1, 3, 8, 8], names).expect("runs");
    tensors.into_iter().map(|tensor| tensor.data).collect()
}

fn folded(bytes: &[u8]) -> FloatNetwork {
    models::load(bytes).expect("imports").network
}

/// Elements that move keep their values: both forms, and the views that the import makes of them.
#[test]
fn both_forms_of_the_passthrough_are_the_same_function() {
    let image = reals(9, SHAPE.len());
    let [source, blocks, joined, output]: [Vec<f32>; 4] =
        values(&moved(), &["a", "p", "j", "y"], &image)
            .try_into()
            .expect("four");
    // Channel (2·dy + dx)·4 + c of a block is channel c at (2y + dy, 2x + dx).
    for (i, &found) in blocks.iter().enumerate() {
        let (channel, row, column) = (i / 16, i / 4 % 4, i % 4);
        let (block, c) = (channel / 4, channel % 4);
        let (row, column) = (2 * row + block / 2, 2 * column + block % 2);
        assert_eq!(
            found.to_bits(),
            source[(c * 8 + row) * 8 + column].to_bits()
        );
    }
    let other = values(&space_to_depth(), &["p", "j", "y"], &image);
    assert_eq!(other, [blocks, joined.clone(), output.clone()]);
    let net = folded(&moved());
    assert_eq!(net.layers, folded(&space_to_depth()).layers);
    let views = net
        .layers
        .iter()
        .filter(|l| matches!(l.op, FloatOp::Concat(_)));
    assert_eq!(views.count(), 1, "rearranging takes no layer of its own");
    let names = [&net.tensors[3].name, &net.tensors[4].name].map(String::as_str);
    assert_eq!(
        values(&to_onnx(&net).expect("plain"), &names, &image),
        [joined, output]
    );
}

/// Event model, stepped model and oracle, every tensor; both forms leave the same integers.
#[test]
fn both_forms_of_the_passthrough_run_alike_on_every_dataflow() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |bytes: &[u8], machine: &str| {
        let path = folder.path().join("head.onnx");
        fs::write(&path, bytes).expect("writable");
        run(&path, machine)
    };
    let mut outputs = Vec::new();
    for machine in ["paper-8x8-os", "paper-8x8-ws", "paper-8x8-is"] {
        let report = run(&moved(), machine);
        assert_eq!(report["checked"]["n_images"], 2);
        assert_eq!(report["images"], run(&space_to_depth(), machine)["images"]);
        outputs.push(report["images"].clone());
    }
    assert!(
        outputs[0][0]["outputs"][0]["integers"]
            .as_array()
            .is_some_and(|v| v.len() == 80)
    );
}

fn run(model: &Path, machine: &str) -> serde_json::Value {
    let mut command = Command::cargo_bin("systole").expect("built");
    command.arg("run").arg(model).args([
        "--machine",
        machine,
        "--synthetic-images",
        "3:2",
        "--all",
        "--check",
        "--stepped",
        "--json",
    ]);
    let made = command.assert().success().get_output().stdout.clone();
    serde_json::from_slice(&made).expect("JSON")
}

struct Builder(FloatNetwork);

impl Builder {
    fn push(&mut self, channels: usize, op: FloatOp) -> usize {
        let output = self.0.tensors.len();
        let (name, shape) = (format!("t{output}"), Shape { channels, ..SHAPE });
        self.0.tensors.push(FloatTensor { name, shape });
        let name = format!("l{output}");
        self.0.layers.push(FloatLayer { name, output, op });
        output
    }

    /// Weights whose output channels differ much.
    fn conv(
        &mut self,
        input: usize,
        n: usize,
        kernel: usize,
        groups: usize,
        post: FloatPost,
    ) -> usize {
        let n_group_inputs = self.0.tensors[input].shape.channels / groups;
        let n_weights = n_group_inputs * kernel * kernel;
        let seed = self.0.tensors.len() as u64;
        let spread = |c: usize| [1.0, 0.02, 30.0, 0.3][c % 4];
        let weights: Vec<f32> = reals(seed, n * n_weights)
            .into_iter()
            .enumerate()
            .map(|(i, w)| w * spread(i / n_weights))
            .collect();
        let dims = (n, n_group_inputs, kernel, kernel);
        let conv = FloatConv {
            input,
            window: Window {
                kernel: [kernel; 2],
                pad: [kernel / 2; 2],
                ..Window::UNIT
            },
            groups,
            weights: ndarray::Array4::from_shape_vec(dims, weights).expect("as many"),
            bias: (0..n).map(|c| spread(c) * 0.1).collect(),
            post,
        };
        self.push(n, FloatOp::Conv(conv))
    }
}

/// Inverted residuals: linear bottlenecks, depthwise layers, clips, an addition, a concatenation.
fn inverted_residuals(seed: u64) -> FloatNetwork {
    let post = |activation, residual: Option<usize>| FloatPost {
        residual: residual.map(|tensor| View {
            tensor,
            stride: [1, 1],
            channel_offset: 0,
        }),
        activation,
    };
    let clip = |high| Activation::Clamp { low: 0.0, high };
    let input = FloatTensor {
        name: "x".into(),
        shape: SHAPE,
    };
    let mut b = Builder(FloatNetwork {
        name: format!("inverted residuals {seed}"),
        tensors: vec![input],
        outputs: Vec::new(),
        layers: Vec::new(),
        shapes_only: false,
    });
    let relu = clip(f32::INFINITY);
    let first = b.conv(0, 8, 3, 1, post(relu, None));
    let depthwise = b.conv(
        first,
        8,
        3,
        8,
        post(Activation::Leaky { slope: 0.25 }, None),
    );
    let narrow = b.conv(depthwise, 4, 1, 1, FloatPost::NONE);
    let wide = b.conv(narrow, 12, 1, 1, post(clip(6.0), None));
    let wide = b.conv(wide, 12, 3, 12, post(clip(6.0), None));
    let added = b.conv(wide, 4, 1, 1, post(Activation::None, Some(narrow)));
    let parts = [(added, 4), (first, 8)].map(|(tensor, n)| FloatPart::whole(tensor, n));
    let joined = b.push(12, FloatOp::Concat(parts.to_vec()));
    let last = b.conv(joined, 6, 1, 2, FloatPost::NONE);
    b.0.outputs = vec![last];
    b.0
}

/// Powers of two leave every bit of the outputs; ranges come together.
#[test]
fn equalization_changes_no_bit_of_the_function() {
    let net = inverted_residuals(1);
    let bytes = to_onnx(&net).expect("plain");
    let names: Vec<&str> = net.tensors.iter().map(|t| t.name.as_str()).collect();
    let mut observer = Observer::new();
    let images: Vec<Vec<f32>> = (0..4).map(|i| reals(20 + i, SHAPE.len())).collect();
    for image in &images {
        for (tensor, seen) in net.tensors.iter().zip(values(&bytes, &names, image)) {
            observer
                .observe_images(&tensor.name, &seen, tensor.shape)
                .expect("finite");
        }
    }
    let made = equalize(&net, &observer).expect("observed");
    assert!(made.n_scaled >= 20, "{}", made.n_scaled);
    assert_ne!(made.network, net);
    let after = to_onnx(&made.network).expect("plain");
    let spread = |values: &[f32], n_channels: usize| {
        let peak = |plane: &[f32]| plane.iter().fold(0f32, |m, v| m.max(v.abs()));
        let peaks: Vec<f32> = values.chunks(values.len() / n_channels).map(peak).collect();
        peaks.iter().copied().fold(0.0, f32::max)
            / peaks.iter().copied().fold(f32::INFINITY, f32::min)
    };
    for image in &images {
        let (old, new) = (values(&bytes, &names, image), values(&after, &names, image));
        // Input, what is clipped at 6, and the output.
        for fixed in [0, 4, 5, net.outputs[0]] {
            assert_eq!(old[fixed], new[fixed], "{}", names[fixed]);
        }
        // The linear bottleneck's channels were a thousand apart.
        let [before, after] = [&old[3], &new[3]].map(|values| spread(values, 4));
        assert!(after < before / 4.0, "{before} {after}");
    }
}

/// The command writes a model that the others take; its outputs are the model's.
#[test]
fn equalize_writes_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let [from, to] = ["model.onnx", "equal.onnx"].map(|name| folder.path().join(name));
    let net = inverted_residuals(1);
    fs::write(&from, to_onnx(&net).expect("plain")).expect("writable");
    let mut command = Command::cargo_bin("systole").expect("built");
    let arguments = ["--synthetic-images", "5:8", "-o"];
    command
        .arg("equalize")
        .arg(&from)
        .args(arguments)
        .arg(&to)
        .assert()
        .success();
    let [old, new] = [from, to].map(|path| fs::read(path).expect("there"));
    assert_ne!(folded(&old), folded(&new));
    let image = reals(30, SHAPE.len());
    let output = net.tensors[net.outputs[0]].name.as_str();
    assert_eq!(
        values(&old, &[output], &image),
        values(&new, &[output], &image)
    );
}
