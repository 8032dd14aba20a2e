//! ONNX to the float network: names are bound to constants or activations, node by node.
//!
//! Invariant: an activation's ONNX dims hold the same elements, in the same order, as its
//! `channels × height × width`; the batch is one image whatever the file says.

use crate::constant::{Constant, Reader};
use crate::float::{FloatNetwork, FloatOp, FloatTensor};
use crate::raw::{RawGraph, RawNode, RawOp};
use crate::{Error, ExternalData, constant_fold as fold_op, fold};
use network::Shape;
use onnx::{AttributeProto, GraphProto, NodeProto, ValueInfoProto};
use std::{collections::BTreeMap, sync::Arc};

/// An imported model.
#[derive(Clone, Debug, PartialEq)]
pub struct Import {
    /// The folded network.
    pub network: FloatNetwork,
    /// Tensors whose external data is absent and that hold synthetic values.
    pub synthetic: Vec<String>,
    /// Nodes left to the host (a final `Softmax`).
    pub host_nodes: Vec<String>,
}

/// Reads an ONNX model (opset 7 to 21) and folds it.
///
/// `external` opens data files beside the model; `synthetic_seed` replaces absent ones
/// by seeded values (uniform, spread as `sqrt(6 / fan_in)`; see [`Import::synthetic`]).
///
/// # Errors
/// Truncated or inconsistent files, unsupported operators, absent data: see [`Error`].
pub fn import(
    bytes: &[u8],
    external: &ExternalData<'_>,
    synthetic_seed: Option<u64>,
) -> Result<Import, Error> {
    import_with(bytes, Reader::new(external, synthetic_seed), false)
}

/// As [`import`], without the weights; those in data files are not even looked for: enough for what does
/// not depend on values, like latency.
///
/// # Errors
/// As [`import`].
pub fn import_shapes(bytes: &[u8], external: &ExternalData<'_>) -> Result<Import, Error> {
    import_with(bytes, Reader::of_shapes(external), true)
}

fn import_with(bytes: &[u8], mut reader: Reader<'_>, shapes_only: bool) -> Result<Import, Error> {
    let model = onnx::decode(bytes).map_err(Error::Decode)?;
    let graph = model.graph.unwrap_or_default();
    if graph.node.is_empty() {
        return Err(Error::Malformed("it has no graph with nodes".into()));
    }
    let is_onnx = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    let opset = model
        .opset_import
        .iter()
        .find(|set| is_onnx(&set.domain))
        .ok_or_else(|| Error::Malformed("it names no opset".into()))?
        .version;
    if !(7..=21).contains(&opset) {
        return Err(Error::Opset { found: opset });
    }
    let mut importer = Importer::new(&graph, &mut reader)?;
    for proto in &graph.node {
        let node = Node::new(proto);
        if !is_onnx(&proto.domain) {
            return Err(node.unsupported(&format!(
                "it belongs to the domain `{}`: export with ONNX's own operators",
                proto.domain
            )));
        }
        importer.node(&node, &mut reader)?;
    }
    let mut outputs = Vec::new();
    for output in &graph.output {
        match importer.bindings.get(&output.name) {
            Some(Binding::Activation { value, .. } | Binding::Host(value)) => outputs.push(*value),
            Some(Binding::Constant(_)) => {
                return Err(tensor_error(&output.name, "this output is constant"));
            }
            None => return Err(tensor_error(&output.name, "no node makes this output")),
        }
    }
    outputs.dedup();
    if outputs.is_empty() || outputs.contains(&0) {
        return Err(Error::Malformed("no output depends on a layer".into()));
    }
    let Importer {
        values,
        nodes,
        host_nodes,
        ..
    } = importer;
    let raw = RawGraph {
        name: graph.name,
        values,
        nodes,
        outputs,
        shapes_only,
    };
    let network = fold::fold(raw);
    for layer in network.layers.iter().filter(|_| !shapes_only) {
        let FloatOp::Conv(conv) = &layer.op else {
            continue;
        };
        let mut values = conv.weights.iter().chain(&conv.bias);
        if let Some(index) = values.position(|v| !v.is_finite()) {
            return Err(Error::Layer {
                layer: layer.name.clone(),
                problem: format!("folded weight {index} exceeds the range of float32"),
            });
        }
    }
    Ok(Import {
        network,
        synthetic: reader.synthetic,
        host_nodes,
    })
}

pub(crate) fn tensor_error(tensor: &str, problem: &str) -> Error {
    Error::Tensor {
        tensor: tensor.into(),
        problem: problem.into(),
    }
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(crate) enum Binding {
    Constant(Arc<Constant>),
    /// A value, seen with ONNX dims.
    Activation {
        value: usize,
        dims: Vec<usize>,
    },
    /// The host computes the rest from this value.
    Host(usize),
}

/// An operand that is an activation.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub(crate) value: usize,
    pub(crate) dims: Vec<usize>,
    pub(crate) shape: Shape,
}

pub(crate) struct Importer {
    pub(crate) bindings: BTreeMap<String, Binding>,
    pub(crate) values: Vec<FloatTensor>,
    pub(crate) nodes: Vec<RawNode>,
    pub(crate) host_nodes: Vec<String>,
    /// The file's fixed batch, which is read as 1.
    pub(crate) batch: i64,
    /// Elements of all computed constants.
    n_computed: usize,
}

/// A node and its attributes.
pub(crate) struct Node<'a> {
    pub(crate) proto: &'a NodeProto,
    pub(crate) name: String,
}

impl<'a> Node<'a> {
    fn new(proto: &'a NodeProto) -> Self {
        let name = if proto.name.is_empty() {
            let output = proto.output.first().map_or("", String::as_str);
            format!("{}_{output}", proto.op_type)
        } else {
            proto.name.clone()
        };
        Self { proto, name }
    }

    pub(crate) fn error(&self, problem: impl Into<String>) -> Error {
        Error::Node {
            node: self.name.clone(),
            op: self.proto.op_type.clone(),
            problem: problem.into(),
        }
    }

    pub(crate) fn unsupported(&self, hint: &str) -> Error {
        let op = self.proto.op_type.clone();
        Error::Unsupported {
            node: self.name.clone(),
            op,
            hint: hint.into(),
        }
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.proto.attribute.iter().find(|a| a.name == name)
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).and_then(|a| a.i).unwrap_or(default)
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> Result<f32, Error> {
        let value = self.attribute(name).and_then(|a| a.f).unwrap_or(default);
        if value.is_nan() {
            Err(self.error(format!("{name} is NaN")))
        } else {
            Ok(value)
        }
    }

    pub(crate) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    pub(crate) fn text(&self, name: &str, default: &'a str) -> &'a str {
        let bytes = self.attribute(name).and_then(|a| a.s.as_deref());
        bytes.map_or(default, |bytes| std::str::from_utf8(bytes).unwrap_or("?"))
    }

    pub(crate) fn output(&self) -> Result<&'a str, Error> {
        match self.proto.output.first() {
            Some(name) if !name.is_empty() => Ok(name),
            _ => Err(self.error("has no output")),
        }
    }

    /// Name of an operand, unless it is absent.
    pub(crate) fn input(&self, index: usize) -> Option<&'a str> {
        self.proto
            .input
            .get(index)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }
}

impl Importer {
    fn new(graph: &GraphProto, reader: &mut Reader<'_>) -> Result<Self, Error> {
        let mut bindings = BTreeMap::new();
        for tensor in &graph.initializer {
            let constant = Arc::new(reader.read(tensor)?);
            bindings.insert(tensor.name.clone(), Binding::Constant(constant));
        }
        let inputs: Vec<&ValueInfoProto> = graph
            .input
            .iter()
            .filter(|v| !bindings.contains_key(&v.name))
            .collect();
        let &[input] = inputs.as_slice() else {
            return Err(Error::Malformed(format!(
                "it has {} inputs besides its weights, 1 is supported",
                inputs.len()
            )));
        };
        let (dims, shape, batch) = input_dims(input)?;
        let name = input.name.clone();
        bindings.insert(name.clone(), Binding::Activation { value: 0, dims });
        let values = vec![FloatTensor { name, shape }];
        Ok(Self {
            bindings,
            values,
            nodes: Vec::new(),
            host_nodes: Vec::new(),
            batch,
            n_computed: 0,
        })
    }

    /// The binding of an operand.
    fn binding(&self, node: &Node<'_>, index: usize) -> Result<&Binding, Error> {
        let name = node
            .input(index)
            .ok_or_else(|| node.error(format!("input {index} absent")))?;
        match self.bindings.get(name) {
            None => Err(node.error(format!("input `{name}` is made by no earlier node"))),
            Some(Binding::Host(_)) => Err(node.error(format!(
                "reads `{name}` behind a Softmax: only a final Softmax is left to the host"
            ))),
            Some(binding) => Ok(binding),
        }
    }

    pub(crate) fn constant(
        &self,
        node: &Node<'_>,
        index: usize,
    ) -> Result<Option<Arc<Constant>>, Error> {
        if node.input(index).is_none() {
            return Ok(None);
        }
        match self.binding(node, index)? {
            Binding::Constant(constant) => Ok(Some(constant.clone())),
            _ => Err(node.error(format!("input {index} must be constant"))),
        }
    }

    /// A constant operand that must be present.
    pub(crate) fn needed(&self, node: &Node<'_>, index: usize) -> Result<Arc<Constant>, Error> {
        self.constant(node, index)?
            .ok_or_else(|| node.error(format!("input {index} absent")))
    }

    /// A constant integer operand, or the attribute of older opsets.
    pub(crate) fn ints(
        &self,
        node: &Node<'_>,
        index: usize,
        attribute: &str,
    ) -> Result<Option<Vec<i64>>, Error> {
        if let Some(ints) = node.ints(attribute) {
            return Ok(Some(ints.to_vec()));
        }
        let Some(constant) = self.constant(node, index)? else {
            return Ok(None);
        };
        match constant.as_ints() {
            Some(ints) => Ok(Some(ints.to_vec())),
            None => Err(node.error(format!("{attribute} must be integers"))),
        }
    }

    pub(crate) fn is_constant(&self, node: &Node<'_>, index: usize) -> Result<bool, Error> {
        Ok(matches!(self.binding(node, index)?, Binding::Constant(_)))
    }

    pub(crate) fn activation(&self, node: &Node<'_>, index: usize) -> Result<Operand, Error> {
        match self.binding(node, index)? {
            Binding::Activation { value, dims } => {
                let shape = self.values[*value].shape;
                Ok(Operand {
                    value: *value,
                    dims: dims.clone(),
                    shape,
                })
            }
            _ => Err(node.error(format!("input {index} must not be constant"))),
        }
    }

    /// An activation with dims `[1, C, H, W]`.
    pub(crate) fn image(&self, node: &Node<'_>, index: usize) -> Result<Operand, Error> {
        let operand = self.activation(node, index)?;
        let Shape {
            channels,
            height,
            width,
        } = operand.shape;
        if operand.dims == [1, channels, height, width] {
            return Ok(operand);
        }
        Err(node.error(format!(
            "reads {:?}, a reshaping of {channels}x{height}x{width} that is no relabelling: \
             remove the Reshape or Transpose before it",
            operand.dims
        )))
    }

    /// Binds the node's output to a new value.
    pub(crate) fn emit(
        &mut self,
        node: &Node<'_>,
        shape: Shape,
        dims: Vec<usize>,
        op: RawOp,
    ) -> Result<(), Error> {
        let Shape {
            channels,
            height,
            width,
        } = shape;
        let n = channels
            .checked_mul(height)
            .and_then(|n| n.checked_mul(width));
        if n.is_none_or(|n| n == 0 || n > 1 << 28) || channels > 1 << 16 {
            return Err(node.error(format!(
                "output {channels}x{height}x{width} is empty, has more than 2^28 elements \
                 or more than 2^16 channels"
            )));
        }
        let name = node.output()?;
        let value = self.values.len();
        self.values.push(FloatTensor {
            name: name.into(),
            shape,
        });
        self.nodes.push(RawNode {
            name: node.name.clone(),
            output: value,
            op,
        });
        self.bind(node, Binding::Activation { value, dims })
    }

    pub(crate) fn bind(&mut self, node: &Node<'_>, binding: Binding) -> Result<(), Error> {
        let name = node.output()?;
        if self.bindings.insert(name.into(), binding).is_some() {
            return Err(node.error(format!("`{name}` is made twice")));
        }
        Ok(())
    }

    fn bind_constant(&mut self, node: &Node<'_>, constant: Constant) -> Result<(), Error> {
        self.n_computed += constant.data.len();
        if self.n_computed > 1 << 28 {
            return Err(node.error("computed constants have more than 2^28 elements in all"));
        }
        self.bind(node, Binding::Constant(Arc::new(constant)))
    }

    fn node(&mut self, node: &Node<'_>, reader: &mut Reader<'_>) -> Result<(), Error> {
        if self.fold_constant(node, reader)? {
            Ok(())
        } else {
            self.lower(node)
        }
    }

    /// Computes a node whose operands are constant (or only whose shape counts); false if it is
    /// none.
    fn fold_constant(&mut self, node: &Node<'_>, reader: &mut Reader<'_>) -> Result<bool, Error> {
        let op = node.proto.op_type.as_str();
        let explain = |problem: String| node.error(problem);
        let constant = match op {
            "Constant" => {
                if let Some(tensor) = node.attribute("value").and_then(|a| a.t.as_ref()) {
                    let mut tensor = tensor.clone();
                    tensor.name = node.output()?.into();
                    reader.read(&tensor)?
                } else if let Some(ints) = node.ints("value_ints") {
                    Constant::ints(ints.to_vec())
                } else if let Some(i) = node.attribute("value_int").and_then(|a| a.i) {
                    Constant {
                        dims: vec![],
                        ..Constant::ints(vec![i])
                    }
                } else if let Some(f) = node.attribute("value_float").and_then(|a| a.f) {
                    Constant {
                        dims: vec![],
                        data: crate::constant::Data::Float(vec![f]),
                    }
                } else {
                    return Err(node.unsupported("only numeric constants are supported"));
                }
            }
            "Shape" => {
                let dims = match self.binding(node, 0)? {
                    Binding::Constant(constant) => constant.dims.clone(),
                    Binding::Activation { dims, .. } => dims.clone(),
                    Binding::Host(_) => unreachable!("refused by `binding`"),
                };
                let dims = Constant::ints(dims.iter().map(|&d| d as i64).collect());
                let (start, end) = (node.int("start", 0), node.int("end", i64::MAX));
                let range = fold_op::slice_ranges(&dims.dims, &[start], &[end], None, None);
                range
                    .and_then(|r| fold_op::slice(&dims, &r))
                    .map_err(explain)?
            }
            "ConstantOfShape" => {
                let shape = self.ints(node, 0, "shape")?.unwrap_or_default();
                let value = match node.attribute("value").and_then(|a| a.t.as_ref()) {
                    Some(tensor) => Some(reader.read(tensor)?),
                    None => None,
                };
                fold_op::of_shape(&shape, value.as_ref()).map_err(explain)?
            }
            "Gather" | "Cast" | "Concat" | "Unsqueeze" | "Squeeze" | "Slice" | "Reshape"
            | "Transpose" | "Identity" | "Flatten" | "Add" | "Sub" | "Mul" | "Div"
            | "DequantizeLinear" => {
                for index in 0..node.proto.input.len() {
                    if node.input(index).is_some() && !self.is_constant(node, index)? {
                        return Ok(false);
                    }
                }
                self.compute(node)?
            }
            _ => return Ok(false),
        };
        self.bind_constant(node, constant)?;
        Ok(true)
    }

    fn compute(&self, node: &Node<'_>) -> Result<Constant, Error> {
        let input = self.needed(node, 0)?;
        let relabelled = |dims: Vec<usize>| Constant {
            dims,
            data: input.data.clone(),
        };
        let result = match node.proto.op_type.as_str() {
            "Gather" => fold_op::gather(&input, &*self.needed(node, 1)?, node.int("axis", 0)),
            "Cast" => fold_op::cast(&input, node.int("to", 0)),
            "Concat" => {
                let n = node.proto.input.len();
                let all: Vec<_> = (0..n)
                    .map(|i| self.needed(node, i))
                    .collect::<Result<_, _>>()?;
                let all: Vec<&Constant> = all.iter().map(AsRef::as_ref).collect();
                fold_op::concat(&all, node.int("axis", 0))
            }
            "Slice" => self
                .slice_operands(node, &input.dims)
                .and_then(|r| fold_op::slice(&input, &r).map_err(|e| node.error(e)))
                .map_err(|e| e.to_string()),
            "Transpose" => fold_op::transpose(&input, node.ints("perm").unwrap_or_default()),
            "Unsqueeze" | "Squeeze" | "Reshape" | "Identity" | "Flatten" => {
                return self.relabel(node, &input.dims).map(relabelled);
            }
            "DequantizeLinear" => {
                let zero_point = self.constant(node, 2)?;
                let scale = self.needed(node, 1)?;
                fold_op::dequantize(&input, &scale, zero_point.as_deref(), node.int("axis", 1))
            }
            op => fold_op::arithmetic(op, &input, &*self.needed(node, 1)?),
        };
        result.map_err(|problem| node.error(problem))
    }

    pub(crate) fn slice_operands(
        &self,
        node: &Node<'_>,
        dims: &[usize],
    ) -> Result<Vec<fold_op::Range>, Error> {
        let starts = self.ints(node, 1, "starts")?.unwrap_or_default();
        let ends = self.ints(node, 2, "ends")?.unwrap_or_default();
        let axes = self.ints(node, 3, "axes")?;
        let steps = self.ints(node, 4, "steps")?;
        fold_op::slice_ranges(dims, &starts, &ends, axes.as_deref(), steps.as_deref())
            .map_err(|problem| node.error(problem))
    }

    /// New dims of a node that moves no data.
    pub(crate) fn relabel(&self, node: &Node<'_>, dims: &[usize]) -> Result<Vec<usize>, Error> {
        let result = match node.proto.op_type.as_str() {
            "Flatten" => {
                let at = node.int("axis", 1);
                let at = if at == dims.len() as i64 {
                    dims.len()
                } else {
                    fold_op::axis(at, dims.len()).map_err(|e| node.error(e))?
                };
                Ok(vec![
                    dims[..at].iter().product(),
                    dims[at..].iter().product(),
                ])
            }
            "Reshape" => {
                let target = self.ints(node, 1, "shape")?.unwrap_or_default();
                let allow_zero = node.int("allowzero", 0) == 1;
                fold_op::reshape_dims(dims, &target, allow_zero).or_else(|problem| {
                    // A file with a fixed batch has it in its constants as well.
                    match target.first() {
                        Some(&first) if first == self.batch && first > 1 => {
                            let one = [&[1], &target[1..]].concat();
                            fold_op::reshape_dims(dims, &one, allow_zero)
                        }
                        _ => Err(problem),
                    }
                })
            }
            "Squeeze" => fold_op::squeeze_dims(dims, self.ints(node, 1, "axes")?.as_deref()),
            "Unsqueeze" => {
                let axes = self.ints(node, 1, "axes")?.unwrap_or_default();
                fold_op::unsqueeze_dims(dims, &axes)
            }
            _ => Ok(dims.to_vec()),
        };
        result.map_err(|problem| node.error(problem))
    }
}

/// Dims with batch 1, extent of one image, and the file's batch (0 when symbolic).
fn input_dims(input: &ValueInfoProto) -> Result<(Vec<usize>, Shape, i64), Error> {
    let shape = input
        .r#type
        .as_ref()
        .and_then(|t| t.tensor_type.as_ref()?.shape.as_ref());
    let given: Vec<i64> = shape
        .ok_or_else(|| tensor_error(&input.name, "the input has no shape"))?
        .dim
        .iter()
        .map(|d| d.dim_value.unwrap_or(0))
        .collect();
    let batched = given.len() != 3;
    let image = if batched {
        given.get(1..).unwrap_or_default()
    } else {
        &given[..]
    };
    let mut n = 1i64;
    for &extent in image {
        if extent == 0 {
            return Err(tensor_error(
                &input.name,
                &format!("dims {given:?}: only the batch may be symbolic"),
            ));
        }
        n = n
            .checked_mul(extent)
            .filter(|&n| extent > 0 && n <= 1 << 28)
            .ok_or_else(|| {
                tensor_error(
                    &input.name,
                    &format!("dims {given:?} are negative or exceed 2^28"),
                )
            })?;
    }
    let at = |i: usize| image.get(i).map_or(1, |&d| d as usize);
    let shape = match image.len() {
        1 | 3 if image[0] <= 1 << 16 => Shape {
            channels: at(0),
            height: at(1),
            width: at(2),
        },
        _ => {
            return Err(tensor_error(
                &input.name,
                &format!("dims {given:?}: the input must be N×C×H×W or N×C, C ≤ 65536"),
            ));
        }
    };
    let mut dims: Vec<usize> = image.iter().map(|&d| d as usize).collect();
    if batched {
        dims.insert(0, 1);
    }
    Ok((dims, shape, if batched { given[0] } else { 0 }))
}
