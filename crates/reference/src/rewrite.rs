//! Operators, names of files and left-out attributes that the library does not know, written with what
//! it knows.
//!
//! Invariant: every value keeps its name and its elements; a model that needs none of this keeps its
//! bytes.

use onnx::{AttributeProto, AttributeType, DataType, GraphProto, NodeProto, TensorProto};
use std::collections::BTreeMap;

/// Axes of a window: a file of many nodes cannot make long lists out of one.
const MAX_AXES: usize = 8;

/// Data files by the name that the model gives.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A model that the library can read, and its data files under the names that it then gives. What
/// cannot be decoded stays as it is, for the library to complain about.
pub(crate) fn readable(bytes: Vec<u8>, files: Files) -> (Vec<u8>, Files) {
    let Ok(mut model) = onnx::decode(&bytes) else {
        return (bytes, files);
    };
    let Some(graph) = &mut model.graph else {
        return (bytes, files);
    };
    let has_blocks = space_to_depth(graph);
    let has_gaps = spell_out(graph);
    if files.is_empty() && !has_blocks && !has_gaps {
        return (bytes, files);
    }
    let files = rename(graph, files);
    (onnx::encode(&model), files)
}

/// The library wants attributes of windows that the standard lets a file leave out. False when none
/// was.
fn spell_out(graph: &mut GraphProto) -> bool {
    let ranks: BTreeMap<&str, usize> = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.dims.len()))
        .collect();
    let mut is_found = false;
    for node in &mut graph.node {
        let names: &[&str] = match node.op_type.as_str() {
            "Conv" => &["strides", "pads", "dilations"],
            "MaxPool" | "AveragePool" => &["strides", "pads"],
            _ => continue,
        };
        if !matches!(node.domain.as_str(), "" | "ai.onnx") {
            continue;
        }
        let kernel = node.attribute.iter().find(|a| a.name == "kernel_shape");
        let of_weights = node.input.get(1).and_then(|name| ranks.get(name.as_str()));
        let n_axes = kernel
            .map(|kernel| kernel.ints.len())
            .or_else(|| of_weights.map(|rank| rank.saturating_sub(2)))
            .unwrap_or(2)
            .min(MAX_AXES);
        for &name in names {
            let has = |name: &str| node.attribute.iter().any(|a| a.name == name);
            if has(name) || (name == "pads" && has("auto_pad")) {
                continue;
            }
            node.attribute.push(AttributeProto {
                name: name.into(),
                ints: if name == "pads" {
                    vec![0; 2 * n_axes]
                } else {
                    vec![1; n_axes]
                },
                kind: AttributeType::Ints as i32,
                ..AttributeProto::default()
            });
            is_found = true;
        }
    }
    is_found
}

/// The library takes data files by the end of their names only.
fn rename(graph: &mut GraphProto, files: Files) -> Files {
    let mut names = BTreeMap::new();
    let mut renamed = Files::new();
    for (index, (name, contents)) in files.into_iter().enumerate() {
        let new = format!("{index}.data");
        renamed.insert(new.clone(), contents);
        names.insert(name, new);
    }
    let tensors = graph
        .initializer
        .iter_mut()
        .filter(|t| t.data_location == 1);
    for entry in tensors.flat_map(|tensor| &mut tensor.external_data) {
        if let (true, Some(new)) = (entry.key == "location", names.get(&entry.value)) {
            entry.value.clone_from(new);
        }
    }
    renamed
}

/// `SpaceToDepth` becomes one strided `Slice` for each position in the block, and their `Concat`.
/// False when there is none.
fn space_to_depth(graph: &mut GraphProto) -> bool {
    let is_wanted = |node: &NodeProto| {
        node.op_type == "SpaceToDepth"
            && matches!(node.domain.as_str(), "" | "ai.onnx")
            && node.input.len() == 1
            && node.output.len() == 1
    };
    let mut initializers = Vec::new();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        let block = node.attribute.iter().find(|a| a.name == "blocksize");
        match block.and_then(|a| a.i) {
            Some(block @ 1..=64) if is_wanted(&node) => {
                slices(&node, block, &mut nodes, &mut initializers);
            }
            _ => nodes.push(node),
        }
    }
    graph.node = nodes;
    let is_found = !initializers.is_empty();
    graph.initializer.extend(initializers);
    is_found
}

fn slices(
    node: &NodeProto,
    block: i64,
    nodes: &mut Vec<NodeProto>,
    constants: &mut Vec<TensorProto>,
) {
    let (input, output) = (&node.input[0], &node.output[0]);
    let mut constant = |what: &str, values: [i64; 2]| {
        let name = format!("{output}/{what}");
        constants.push(TensorProto {
            dims: vec![2],
            data_type: DataType::Int64 as i32,
            name: name.clone(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..TensorProto::default()
        });
        name
    };
    let ends = constant("ends", [i64::MAX; 2]);
    let axes = constant("axes", [2, 3]);
    let steps = constant("steps", [block; 2]);
    let mut parts = Vec::new();
    for y in 0..block {
        for x in 0..block {
            let starts = constant(&format!("starts_{y}_{x}"), [y, x]);
            let part = format!("{output}/part_{y}_{x}");
            nodes.push(NodeProto {
                input: vec![
                    input.clone(),
                    starts,
                    ends.clone(),
                    axes.clone(),
                    steps.clone(),
                ],
                output: vec![part.clone()],
                name: format!("{part}/slice"),
                op_type: "Slice".into(),
                ..NodeProto::default()
            });
            parts.push(part);
        }
    }
    nodes.push(NodeProto {
        input: parts,
        output: vec![output.clone()],
        name: node.name.clone(),
        op_type: "Concat".into(),
        attribute: vec![AttributeProto {
            name: "axis".into(),
            i: Some(1),
            kind: AttributeType::Int as i32,
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    });
}
