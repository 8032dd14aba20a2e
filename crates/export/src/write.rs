//! From the integer network to the bytes of an ONNX model.
//!
//! Invariant: every tensor of the network is one value of the model, under the tensor's own name
//! where that is free, in the narrowest of int8, uint8, int16 and uint16 that holds its format.

use crate::{
    Error, concat, conv,
    graph::{Data, Graph, value_info},
    numbers::{Interval, Numbers},
    pool,
};
use arith::{Format, Rounding};
use network::{Network, Op, TensorId};
use onnx::{
    DataType, GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto,
};
use serde_json::json;

/// Operators as of this version (2020): what every runtime has.
const OPSET: i64 = 13;
/// The file format of that time.
const IR_VERSION: i64 = 7;
/// Protocol buffers hold less than 2 GiB; this leaves room for everything but weights.
const MAX_WEIGHT_BYTES: usize = 1 << 30;

/// What is exported besides the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rounding of every requantization: the machine's.
    pub rounding: Rounding,
    /// The model takes the float network's input and quantizes it.
    pub float_input: bool,
    /// The model gives real numbers, `scale · integer`.
    pub float_output: bool,
    /// Every tensor is an output of the model.
    pub every_tensor: bool,
}

/// A model, and how its layers are computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// The ONNX file.
    pub bytes: Vec<u8>,
    /// One per layer.
    pub forms: Vec<Form>,
}

/// How a layer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `QLinearConv`, and a clamp where the format is narrower than its container.
    OneNode,
    /// A reduction, and a requantization in this number type.
    Explicit(Numbers),
    /// Moved, at most clamped: maximum pooling, sub-sampling, concatenation.
    Copied,
}

/// The tensors that exist already.
pub(crate) struct Values<'n> {
    pub(crate) network: &'n Network,
    pub(crate) rounding: Rounding,
    /// The tensors' own names, made unique: what callers use.
    given: Vec<String>,
    /// Names of the integer tensors: the same, unless a float takes it.
    names: Vec<String>,
    bounds: Vec<Interval>,
}

impl Values<'_> {
    /// Name of the integer tensor.
    pub(crate) fn name(&self, id: TensorId) -> &str {
        &self.names[id.index()]
    }

    /// What its elements can be.
    pub(crate) fn bounds(&self, id: TensorId) -> Interval {
        self.bounds[id.index()]
    }
}

/// The type that stores a format.
pub(crate) fn container(format: Format) -> DataType {
    match (format.bits > 8, format.signed) {
        (false, false) => DataType::Uint8,
        (false, true) => DataType::Int8,
        (true, false) => DataType::Uint16,
        (true, true) => DataType::Int16,
    }
}

/// Writes a network as an ONNX model.
///
/// # Errors
/// The network breaks a rule of its own, is too large for the file format, or real values are asked
/// for that float32 does not hold.
pub fn export(network: &Network, options: Options) -> Result<Export, Error> {
    network.verify()?;
    let n_bytes = network.n_weights();
    if n_bytes > MAX_WEIGHT_BYTES {
        return Err(Error::TooLarge {
            n_bytes,
            max: MAX_WEIGHT_BYTES,
        });
    }
    let mut graph = Graph::default();
    let (values, inputs) = begin(network, options, &mut graph);
    let mut values = values;
    let mut forms = Vec::with_capacity(network.layers.len());
    for layer in &network.layers {
        let output = network.output_of(layer);
        let name = values.name(layer.output).to_owned();
        graph.begin(&values.given[layer.output.index()]);
        let (made, form) = match &layer.op {
            Op::Conv(conv) => conv::add(&mut graph, &values, conv, output),
            Op::Pool(pool) => pool::add(&mut graph, &values, pool, output),
            Op::Concat(parts) => concat::add(&mut graph, &values, parts, output),
        };
        graph.finish(&made, &name);
        values.bounds[layer.output.index()] = made_bounds(&values, layer);
        forms.push(form);
    }
    let outputs = end(&values, options, &mut graph)?;
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "systole".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: OPSET,
        }],
        metadata_props: metadata(&values),
        graph: Some(GraphProto {
            node: graph.nodes,
            name: network.name.clone(),
            initializer: graph.initializers,
            input: inputs,
            output: outputs,
        }),
    };
    Ok(Export {
        bytes: onnx::encode(&model),
        forms,
    })
}

/// What the elements of a layer's output can be.
fn made_bounds(values: &Values<'_>, layer: &network::Layer) -> Interval {
    match (&layer.op, layer.op.post()) {
        (_, Some(post)) => Interval::new(post.q_min.into(), post.q_max.into()),
        (Op::Concat(_) | Op::Conv(_) | Op::Pool(_), None) => values.bounds(layer.output),
    }
}

/// Names of all tensors, and the model's input.
fn begin<'n>(
    network: &'n Network,
    options: Options,
    graph: &mut Graph,
) -> (Values<'n>, Vec<ValueInfoProto>) {
    let outermost = |id: usize| {
        let id = TensorId(id);
        if id == network.input {
            options.float_input
        } else {
            options.float_output && is_output(network, options, id)
        }
    };
    let format_bounds = |tensor: &network::Tensor| {
        Interval::new(tensor.format.q_min().into(), tensor.format.q_max().into())
    };
    let given = network.unique_names();
    graph.reserve(&given);
    let names = (0..given.len())
        .map(|id| {
            if outermost(id) {
                graph.unique(&format!("{}/integer", given[id]))
            } else {
                given[id].clone()
            }
        })
        .collect();
    let values = Values {
        network,
        rounding: options.rounding,
        given,
        names,
        bounds: network.tensors.iter().map(format_bounds).collect(),
    };
    let input = network.tensor(network.input);
    let given = &values.given[network.input.index()];
    let data_type = if options.float_input {
        graph.begin(given);
        quantize_input(graph, &values, given);
        DataType::Float
    } else {
        container(input.format)
    };
    let info = value_info(given, data_type, input.shape);
    (values, vec![info])
}

/// `clamp(round_half_even(x / scale))` in doubles, as the command line quantizes its images.
fn quantize_input(graph: &mut Graph, values: &Values<'_>, given: &str) {
    let id = values.network.input;
    let tensor = values.network.tensor(id);
    let number = |value: f64| Data::Double(vec![value]);
    let x = graph.cast(given, DataType::Double, "double");
    let scale = graph.scalar(&number(tensor.scale.real()), "scale");
    let x = graph.node("Div", &[&x, &scale], "divided", &[]);
    let x = graph.node("Round", &[&x], "rounded", &[]);
    let low = graph.scalar(&number(tensor.format.q_min().into()), "q_min");
    let high = graph.scalar(&number(tensor.format.q_max().into()), "q_max");
    let x = graph.node("Clip", &[&x, &low, &high], "clamped", &[]);
    let x = graph.cast(&x, container(tensor.format), "quantized");
    graph.finish(&x, values.name(id));
}

fn is_output(network: &Network, options: Options, id: TensorId) -> bool {
    network.outputs.contains(&id) || (options.every_tensor && id != network.input)
}

/// The model's outputs: the network's first, then every other tensor if wanted.
fn end(
    values: &Values<'_>,
    options: Options,
    graph: &mut Graph,
) -> Result<Vec<ValueInfoProto>, Error> {
    let network = values.network;
    let mut ids: Vec<TensorId> = Vec::new();
    let all = (0..network.tensors.len()).map(TensorId);
    for id in network.outputs.iter().copied().chain(all) {
        if is_output(network, options, id) && !ids.contains(&id) {
            ids.push(id);
        }
    }
    let mut infos = Vec::with_capacity(ids.len());
    for id in ids {
        let tensor = network.tensor(id);
        let integer = values.name(id);
        let is_input = id == network.input;
        let mut given = values.given[id.index()].clone();
        if is_input {
            // An input cannot be an output of the same name.
            given = graph.unique(&format!("{given}/copy"));
        }
        graph.begin(&given);
        if options.float_output {
            let scale = tensor.scale.real();
            let largest = scale * f64::from(1 << tensor.format.bits);
            if scale < f64::from(f32::MIN_POSITIVE) || largest > f64::from(f32::MAX) {
                let tensor = tensor.name.clone();
                return Err(Error::Scale { tensor, scale });
            }
            let x = graph.cast(integer, DataType::Float, "float");
            let scale = graph.scalar(&Data::Float(vec![scale as f32]), "scale");
            let x = graph.node("Mul", &[&x, &scale], "real", &[]);
            graph.finish(&x, &given);
            infos.push(value_info(&given, DataType::Float, tensor.shape));
        } else {
            if is_input {
                let copy = graph.node("Identity", &[integer], "copied", &[]);
                graph.finish(&copy, &given);
            }
            infos.push(value_info(&given, container(tensor.format), tensor.shape));
        }
    }
    Ok(infos)
}

/// What an integer tensor means, for people and programs that read the model.
fn metadata(values: &Values<'_>) -> Vec<StringStringEntryProto> {
    let network = values.network;
    let tensors: serde_json::Map<String, serde_json::Value> = network
        .tensors
        .iter()
        .enumerate()
        .map(|(id, tensor)| {
            let meaning = json!({
                "tensor": tensor.name,
                "bits": tensor.format.bits,
                "signed": tensor.format.signed,
                "scale": tensor.scale.real(),
            });
            (values.name(TensorId(id)).to_owned(), meaning)
        })
        .collect();
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: format!("systole.{key}"),
        value,
    };
    vec![
        entry("network", format!("{:016x}", network::fingerprint(network))),
        entry(
            "rounding",
            json!(values.rounding).to_string().replace('"', ""),
        ),
        entry("tensors", serde_json::Value::Object(tensors).to_string()),
    ]
}
