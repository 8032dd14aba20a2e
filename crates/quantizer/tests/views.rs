//! Operators that move elements become views: which channels, rows and columns each reads.

mod models;

use models::{check_error, floats, ints, load, model, network, node};
use network::{Margin, Reduction};
use onnx::{NodeProto, TensorProto};
use quantizer::{FloatNetwork, FloatOp, Observer, Options, quantize};

/// The folded text of a network of `nodes` on an 8 × 4 × 6 input `x`.
fn folded(constants: Vec<TensorProto>, nodes: Vec<NodeProto>) -> String {
    network(&[1, 8, 4, 6], constants, nodes).to_string()
}

fn reorg(perm: &[i64]) -> (Vec<TensorProto>, Vec<NodeProto>) {
    let constants = vec![
        ints("split", &[1, 8, 2, 2, 3, 2]),
        ints("join", &[1, 32, 2, 3]),
    ];
    let nodes = vec![
        node("Reshape", &["x", "split"], "a", &[]),
        node("Transpose", &["a"], "b", &[("perm", perm)]),
        node("Reshape", &["b", "join"], "y", &[]),
    ];
    (constants, nodes)
}

const BLOCKS: &str =
    "concat x stride 2x2 x stride 2x2 offset 0x1 x stride 2x2 offset 1x0 x stride 2x2 offset 1x1";

#[test]
fn both_forms_of_the_passthrough_are_the_same_views() {
    let expected = format!("network g\ninput x 8x4x6\ny 32x2x3 = {BLOCKS}  # y_node\noutput y\n");
    let (constants, nodes) = reorg(&[0, 3, 5, 1, 2, 4]);
    assert_eq!(folded(constants, nodes), expected);
    let nodes = vec![node("SpaceToDepth", &["x"], "y", &[("blocksize", &[2])])];
    assert_eq!(folded(vec![], nodes), expected);
}

/// `PixelUnshuffle` keeps the channels of a block together.
#[test]
fn channel_major_blocks() {
    let (constants, nodes) = reorg(&[0, 1, 3, 5, 2, 4]);
    let net = network(&[1, 8, 4, 6], constants, nodes);
    let FloatOp::Concat(parts) = &net.layers[0].op else {
        panic!("views")
    };
    assert_eq!(parts.len(), 32);
    for (i, part) in parts.iter().enumerate() {
        assert_eq!((part.channel, part.n_channels), (i / 4, 1));
        assert_eq!(part.offset, [i / 2 % 2, i % 2]);
        assert_eq!(part.stride, [2, 2]);
    }
}

#[test]
fn a_concatenation_reads_the_views_of_its_operands() {
    let nodes = vec![
        node("SpaceToDepth", &["x"], "s", &[("blocksize", &[2])]),
        node(
            "MaxPool",
            &["x"],
            "p",
            &[("kernel_shape", &[2, 2]), ("strides", &[2, 2])],
        ),
        node("Concat", &["s", "p"], "y", &[("axis", &[1])]),
    ];
    let text = folded(vec![], nodes);
    assert!(
        text.contains(&format!("y 40x2x3 = {BLOCKS} p  # y_node")),
        "{text}"
    );
}

#[test]
fn slices_splits_and_shuffles() {
    let constants = vec![
        ints("starts", &[1, 1, 0]),
        ints("ends", &[5, 4, 6]),
        ints("axes", &[1, 2, 3]),
        ints("steps", &[1, 2, 2]),
        ints("groups", &[1, 2, 4, 4, 6]),
        ints("flat", &[1, 8, 4, 6]),
    ];
    let slice = node("Slice", &["x", "starts", "ends", "axes", "steps"], "y", &[]);
    let text = folded(constants.clone(), vec![slice]);
    assert!(
        text.contains("y 4x2x3 = concat x[1..5] stride 2x2 offset 1x0  #"),
        "{text}"
    );

    let mut split = node("Split", &["x"], "a", &[("axis", &[1])]);
    split.output.push("b".into());
    let nodes = vec![split, node("Concat", &["b", "a"], "y", &[("axis", &[1])])];
    let text = folded(vec![], nodes);
    assert!(
        text.contains("y 8x4x6 = concat x[4..8] x[0..4]  #"),
        "{text}"
    );

    let nodes = vec![
        node("Reshape", &["x", "groups"], "a", &[]),
        node("Transpose", &["a"], "b", &[("perm", &[0, 2, 1, 3, 4])]),
        node("Reshape", &["b", "flat"], "y", &[]),
    ];
    let text = folded(constants, nodes);
    assert!(
        text.contains("y 8x4x6 = concat x[0..1] x[4..5] x[1..2] x[5..6] x[2..3]"),
        "{text}"
    );
}

/// A vector that was flattened with its channels last moves the weights instead.
#[test]
fn channels_last_before_a_matrix_product() {
    let n = 8 * 4 * 6;
    let weights = floats("w", &[1, n], (0..n).map(|i| i as f32).collect());
    let nodes = vec![
        node("Transpose", &["x"], "t", &[("perm", &[0, 2, 3, 1])]),
        node("Flatten", &["t"], "f", &[]),
        node("Gemm", &["f", "w"], "y", &[("transB", &[1])]),
    ];
    let net = network(&[1, 8, 4, 6], vec![weights], nodes);
    let FloatOp::Conv(conv) = &net.layers[0].op else {
        panic!("a convolution")
    };
    for ((_, c, y, x), &w) in conv.weights.indexed_iter() {
        assert_eq!(w as usize, (y * 6 + x) * 8 + c);
    }
}

#[test]
fn what_is_no_view_is_refused() {
    let constants = vec![
        ints("split", &[1, 2, 2, 2, 4, 6]),
        ints("join", &[1, 2, 8, 12]),
    ];
    let nodes = vec![
        node("Reshape", &["x", "split"], "a", &[]),
        node("Transpose", &["a"], "b", &[("perm", &[0, 3, 4, 1, 5, 2])]),
        node("Reshape", &["b", "join"], "c", &[]),
        node("Relu", &["c"], "y", &[]),
    ];
    check_error(
        &model(&[1, 8, 4, 6], constants, nodes),
        "node `y_node` (Relu): reads [1, 2, 8, 12], a rearrangement of 8×4×6 that is no strided \
         view of its channels: remove the Reshape or Transpose before it",
    );
    check_error(
        &model(
            &[1, 8, 4, 6],
            vec![],
            vec![node("SpaceToDepth", &["x"], "y", &[("blocksize", &[3])])],
        ),
        "node `y_node` (SpaceToDepth): blocksize 3 does not divide 4x6",
    );
}

/// Detectors end by moving channels last; the host does that.
#[test]
fn a_rearranged_output_is_left_to_the_host() {
    let weights = floats("w", &[2, 8, 1, 1], vec![1.0; 16]);
    let nodes = vec![
        node("Conv", &["x", "w"], "c", &[]),
        node("Transpose", &["c"], "y", &[("perm", &[0, 2, 3, 1])]),
    ];
    let made = load(&model(&[1, 8, 4, 6], vec![weights], nodes)).expect("imports");
    assert_eq!(made.host_nodes, ["y_node"]);
    let outputs = &made.network.outputs;
    assert_eq!(made.network.tensors[outputs[0]].name, "c");
}

#[test]
fn averages_count_taps_as_onnx_says() {
    let average = |include: i64| {
        let attributes: &[(&str, &[i64])] = &[
            ("kernel_shape", &[3, 3]),
            ("pads", &[1, 1, 1, 1]),
            ("count_include_pad", &[include]),
        ];
        let net = network(
            &[1, 8, 4, 6],
            vec![],
            vec![node("AveragePool", &["x"], "y", attributes)],
        );
        let FloatOp::Pool(pool) = net.layers[0].op.clone() else {
            panic!("a pool")
        };
        assert_eq!(pool.reduction, Reduction::Sum);
        pool.margin
    };
    assert_eq!(average(0), Some(Margin::default()));
    assert_eq!(
        average(1),
        Some(Margin {
            before: [1, 1],
            after: [1, 1]
        })
    );
}

/// A part that others read too keeps its scale and is brought to the concatenation's.
#[test]
fn parts_are_brought_to_one_scale() {
    let weights = |name: &str, w: f32| floats(name, &[8, 8, 1, 1], vec![w; 64]);
    let nodes = vec![
        node("Conv", &["x", "small"], "a", &[]),
        node("Conv", &["x", "large"], "b", &[]),
        node("Concat", &["a", "b"], "y", &[("axis", &[1])]),
        node("MaxPool", &["a"], "z", &[("kernel_shape", &[2, 2])]),
    ];
    let constants = vec![weights("small", 0.01), weights("large", 1.0)];
    let mut proto = onnx::decode(&model(&[1, 8, 4, 6], constants, nodes)).expect("own bytes");
    let graph = proto.graph.as_mut().expect("there");
    graph.output.push(models::value("y", &[]));
    let net: FloatNetwork = load(&onnx::encode(&proto)).expect("imports").network;
    let mut seen = Observer::new();
    for (name, peak) in [("x", 1.0), ("a", 0.08), ("b", 8.0), ("y", 8.0)] {
        seen.observe(name, &[-peak, peak]).expect("finite");
    }
    assert_eq!(net.observed_values(), ["x", "a", "b", "y"]);
    let made = quantize(&net, Some(&seen), &Options::default()).expect("quantizes");
    made.verify().expect("is a network");
    let scale = |name: &str| {
        let tensor = made.tensors.iter().find(|t| t.name == name);
        tensor.expect("there").scale.real()
    };
    assert!(scale("a") < scale("y") / 50.0 && scale("b").to_bits() == scale("y").to_bits());
    let concat = made.layers.iter().find_map(|layer| match &layer.op {
        network::Op::Concat(parts) => Some(parts),
        _ => None,
    });
    let parts = concat.expect("a concatenation");
    assert_ne!(parts[0].requant, arith::Requant::IDENTITY);
    assert_eq!(parts[1].requant, arith::Requant::IDENTITY);
}
