//! The float network as an ONNX model: the import's other direction.
//!
//! Invariant: importing the bytes gives the same network: layers, names, weights. Opset 13; the batch
//! is symbolic.

use crate::Error;
use crate::float::{Activation, FloatConv, FloatNetwork, FloatOp, FloatPool, FloatPost, View};
use network::{Reduction, Shape, Window};
use onnx::{
    AttributeProto, DataType, DimensionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

const OPSET: i64 = 13;
const IR_VERSION: i64 = 8;

/// Writes a float network as an ONNX model.
///
/// # Errors
/// A layer that ONNX has no plain operators for: one that moves its input's channels, or a sum over
/// windows that is no average.
pub fn to_onnx(net: &FloatNetwork) -> Result<Vec<u8>, Error> {
    let mut writer = Writer {
        net,
        nodes: Vec::new(),
        constants: Vec::new(),
    };
    for index in 0..net.layers.len() {
        writer.layer(index)?;
    }
    let info = |tensor: usize| value_info(&net.tensors[tensor].name, net.tensors[tensor].shape);
    let graph = GraphProto {
        node: writer.nodes,
        name: net.name.clone(),
        initializer: writer.constants,
        input: vec![info(0)],
        output: net.outputs.iter().map(|&t| info(t)).collect(),
    };
    Ok(onnx::encode(&ModelProto {
        ir_version: IR_VERSION,
        producer_name: "systole".into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: OPSET,
        }],
        ..ModelProto::default()
    }))
}

struct Writer<'a> {
    net: &'a FloatNetwork,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

/// One node to come.
struct Step {
    operator: &'static str,
    /// Behind the value so far.
    operands: Vec<String>,
    attributes: Vec<AttributeProto>,
}

impl Writer<'_> {
    fn layer(&mut self, index: usize) -> Result<(), Error> {
        let layer = &self.net.layers[index];
        let error = |problem: &str| Error::Layer {
            layer: layer.name.clone(),
            problem: format!("{problem}: it cannot be written as ONNX"),
        };
        let (input, mut steps, post) = match &layer.op {
            FloatOp::Conv(conv) => (conv.input, vec![self.conv(index, conv)], conv.post.clone()),
            FloatOp::Pool(pool) => {
                let steps = self.pool(index, pool).map_err(error)?;
                (pool.input, steps, pool.post.clone())
            }
            FloatOp::Concat(inputs) => {
                let rest = inputs[1..].iter().map(|&t| self.name(t)).collect();
                let step = step("Concat", rest, vec![int("axis", 1)]);
                (inputs[0], vec![step], FloatPost::NONE)
            }
        };
        if let Some(view) = post.residual {
            let operand = self.view(index, view);
            steps.push(step("Add", vec![operand], Vec::new()));
        }
        steps.extend(self.activation(index, post.activation));
        if steps.is_empty() {
            steps.push(step("Identity", Vec::new(), Vec::new()));
        }
        self.chain(index, &self.name(input), steps);
        Ok(())
    }

    fn name(&self, tensor: usize) -> String {
        self.net.tensors[tensor].name.clone()
    }

    fn shape(&self, tensor: usize) -> Shape {
        self.net.tensors[tensor].shape
    }

    /// The steps one after the other; the last makes the layer's tensor, the first has its name.
    fn chain(&mut self, index: usize, input: &str, steps: Vec<Step>) {
        let layer = &self.net.layers[index];
        let output = self.name(layer.output);
        let n = steps.len();
        let mut value = input.to_owned();
        for (at, step) in steps.into_iter().enumerate() {
            let made = if at + 1 == n {
                output.clone()
            } else {
                format!("{output}/{at}")
            };
            let name = if at == 0 {
                layer.name.clone()
            } else {
                format!("{}/{at}", layer.name)
            };
            let mut operands = vec![std::mem::replace(&mut value, made.clone())];
            operands.extend(step.operands);
            self.nodes.push(NodeProto {
                input: operands,
                output: vec![made],
                name,
                op_type: step.operator.into(),
                attribute: step.attributes,
                domain: String::new(),
            });
        }
    }

    fn floats(
        &mut self,
        name: String,
        dims: &[usize],
        values: impl Iterator<Item = f32>,
    ) -> String {
        let raw_data = values.flat_map(f32::to_le_bytes).collect();
        self.constant(name, dims, DataType::Float, raw_data)
    }

    fn integers(&mut self, name: String, values: &[i64]) -> String {
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, &[values.len()], DataType::Int64, raw_data)
    }

    fn constant(
        &mut self,
        name: String,
        dims: &[usize],
        kind: DataType,
        raw_data: Vec<u8>,
    ) -> String {
        self.constants.push(TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: kind as i32,
            name: name.clone(),
            raw_data,
            ..TensorProto::default()
        });
        name
    }

    fn conv(&mut self, index: usize, conv: &FloatConv) -> Step {
        let layer = &self.net.layers[index];
        let (o, c, h, w) = conv.weights.dim();
        let name = |what: &str| format!("{}.{what}", layer.name);
        let weights = self.floats(name("weight"), &[o, c, h, w], conv.weights.iter().copied());
        let bias = self.floats(name("bias"), &[o], conv.bias.iter().copied());
        let mut attributes = window(
            conv.window,
            self.shape(conv.input),
            self.shape(layer.output),
        );
        attributes.push(ints("dilations", &conv.window.dilation.map(|d| d as i64)));
        attributes.push(int("group", conv.groups as i64));
        step("Conv", vec![weights, bias], attributes)
    }

    fn pool(&mut self, index: usize, pool: &FloatPool) -> Result<Vec<Step>, &'static str> {
        let output = self.net.layers[index].output;
        if pool.channel_offset != 0
            || self.shape(pool.input).channels != self.shape(output).channels
        {
            return Err("it moves its input's channels");
        }
        let taps = pool.window.n_taps();
        if taps == 1 && pool.divisor == 1 {
            let [down, right] = pool.window.stride;
            if [down, right] == [1, 1] {
                return Ok(Vec::new());
            }
            let operands = self.sampling(index, [down, right]);
            return Ok(vec![step("Slice", operands, Vec::new())]);
        }
        let mut attributes = window(pool.window, self.shape(pool.input), self.shape(output));
        match pool.reduction {
            Reduction::Max => {
                attributes.push(ints("dilations", &pool.window.dilation.map(|d| d as i64)));
                Ok(vec![step("MaxPool", Vec::new(), attributes)])
            }
            Reduction::Sum if pool.divisor == taps && pool.window.dilation == [1, 1] => {
                attributes.push(int("count_include_pad", 1));
                Ok(vec![step("AveragePool", Vec::new(), attributes)])
            }
            Reduction::Sum => Err("its sum over windows is no average"),
        }
    }

    /// Operands of a `Slice` that takes every so many rows and columns.
    fn sampling(&mut self, index: usize, [down, right]: [usize; 2]) -> Vec<String> {
        let layer = &self.net.layers[index];
        let lists: [(&str, [i64; 2]); 4] = [
            ("starts", [0, 0]),
            ("ends", [i64::MAX, i64::MAX]),
            ("axes", [2, 3]),
            ("steps", [down as i64, right as i64]),
        ];
        lists
            .iter()
            .map(|(what, list)| self.integers(format!("{}.{what}", layer.name), list))
            .collect()
    }

    /// A second operand: sub-sampled, then with zero channels around.
    fn view(&mut self, index: usize, view: View) -> String {
        let (layer, from) = (&self.net.layers[index], self.shape(view.tensor));
        let to = self.shape(layer.output);
        let mut value = self.name(view.tensor);
        let mut push = |this: &mut Self, operator: &str, operands: Vec<String>| {
            let made = format!(
                "{}/{}",
                self::Writer::name(this, layer.output),
                operator.to_lowercase()
            );
            let mut input = vec![std::mem::replace(&mut value, made.clone())];
            input.extend(operands);
            this.nodes.push(NodeProto {
                input,
                output: vec![made],
                name: format!("{}/{}", layer.name, operator.to_lowercase()),
                op_type: operator.into(),
                ..NodeProto::default()
            });
        };
        if view.stride != [1, 1] {
            let operands = self.sampling(index, view.stride);
            push(self, "Slice", operands);
        }
        let behind = to.channels - view.channel_offset - from.channels;
        if view.channel_offset + behind > 0 {
            let pads = [0, view.channel_offset as i64, 0, 0, 0, behind as i64, 0, 0];
            let pads = self.integers(format!("{}.pads", layer.name), &pads);
            push(self, "Pad", vec![pads]);
        }
        value
    }

    fn activation(&mut self, index: usize, activation: Activation) -> Option<Step> {
        let name = |what: &str| format!("{}.{what}", self.net.layers[index].name);
        match activation {
            Activation::None => None,
            Activation::Clamp { low, high } if low == 0.0 && high == f32::INFINITY => {
                Some(step("Relu", Vec::new(), Vec::new()))
            }
            Activation::Clamp { low, high } => {
                let names = [name("low"), name("high")];
                let bounds = names.into_iter().zip([low, high]);
                let operands =
                    bounds.map(|(name, bound)| self.floats(name, &[], std::iter::once(bound)));
                Some(step("Clip", operands.collect(), Vec::new()))
            }
            Activation::Leaky { slope } => {
                let alpha = AttributeProto {
                    name: "alpha".into(),
                    f: Some(slope),
                    kind: 1,
                    ..AttributeProto::default()
                };
                Some(step("LeakyRelu", Vec::new(), vec![alpha]))
            }
        }
    }
}

fn step(operator: &'static str, operands: Vec<String>, attributes: Vec<AttributeProto>) -> Step {
    Step {
        operator,
        operands,
        attributes,
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i: Some(value),
        kind: onnx::AttributeType::Int as i32,
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ints: values.to_vec(),
        kind: onnx::AttributeType::Ints as i32,
        ..AttributeProto::default()
    }
}

fn window(window: Window, from: Shape, to: Shape) -> Vec<AttributeProto> {
    let after = [0, 1].map(|axis| {
        let rest = window.pad_after(axis, from.extent()[axis], to.extent()[axis]);
        // Elements that no window reads are left out by the operator too.
        rest.max(0)
    });
    let [top, left] = window.pad.map(|p| p as i64);
    vec![
        ints("kernel_shape", &window.kernel.map(|k| k as i64)),
        ints("strides", &window.stride.map(|s| s as i64)),
        ints("pads", &[top, left, after[0], after[1]]),
    ]
}

fn value_info(name: &str, shape: Shape) -> ValueInfoProto {
    let batch = DimensionProto {
        dim_value: None,
        dim_param: Some("N".into()),
    };
    let extents = [shape.channels, shape.height, shape.width];
    let rest = extents.map(|extent| DimensionProto {
        dim_value: Some(extent as i64),
        dim_param: None,
    });
    let shape = TensorShapeProto {
        dim: std::iter::once(batch).chain(rest).collect(),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: DataType::Float as i32,
                shape: Some(shape),
            }),
        }),
    }
}
