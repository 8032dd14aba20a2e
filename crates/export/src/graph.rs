//! The ONNX graph while it grows.
//!
//! Invariant: every value has a name of its own; equal constants are stored once; nodes stand in
//! the order in which they were asked for, so equal networks give equal bytes.

use onnx::{
    AttributeProto, AttributeType, DataType, DimensionProto, NodeProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use std::collections::{BTreeMap, BTreeSet};

/// Elements of a constant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Float(Vec<f32>),
    Double(Vec<f64>),
    Int8(Vec<i8>),
    Uint8(Vec<u8>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
}

impl Data {
    fn data_type(&self) -> DataType {
        match self {
            Self::Float(_) => DataType::Float,
            Self::Double(_) => DataType::Double,
            Self::Int8(_) => DataType::Int8,
            Self::Uint8(_) => DataType::Uint8,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Float(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Double(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Int8(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Uint8(v) => v.clone(),
            Self::Int32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::Int64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
}

/// A named constant of a node.
#[derive(Clone, Debug)]
pub(crate) enum Attribute<'a> {
    Int(&'a str, i64),
    Ints(&'a str, Vec<i64>),
}

/// Nodes and constants so far.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) initializers: Vec<TensorProto>,
    taken: BTreeSet<String>,
    constants: BTreeMap<(i32, Vec<i64>, Vec<u8>), String>,
    prefix: String,
    /// The first node since [`Graph::begin`].
    first: usize,
}

impl Graph {
    /// Begins a tensor: names of the values that follow begin with this.
    pub(crate) fn begin(&mut self, prefix: &str) {
        prefix.clone_into(&mut self.prefix);
        self.first = self.nodes.len();
    }

    /// Takes names that callers use before any other.
    pub(crate) fn reserve(&mut self, names: &[String]) {
        self.taken.extend(names.iter().cloned());
    }

    /// `wanted`, or the first of `wanted_2`, `wanted_3`, … that is free.
    pub(crate) fn unique(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut n = 1;
        while name.is_empty() || !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}_{n}");
        }
        name
    }

    /// Adds a node; the name of its result.
    pub(crate) fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        step: &str,
        attributes: &[Attribute<'_>],
    ) -> String {
        let output = self.unique(&format!("{}/{step}", self.prefix));
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.clone()],
            name: output.clone(),
            op_type: operator.to_owned(),
            attribute: attributes.iter().map(attribute).collect(),
            domain: String::new(),
        });
        output
    }

    /// A conversion.
    pub(crate) fn cast(&mut self, input: &str, to: DataType, step: &str) -> String {
        self.node("Cast", &[input], step, &[Attribute::Int("to", to as i64)])
    }

    /// A constant; an equal one is used again.
    pub(crate) fn constant(&mut self, dims: &[usize], data: &Data, what: &str) -> String {
        let dims: Vec<i64> = dims.iter().map(|&extent| extent as i64).collect();
        let bytes = data.to_bytes();
        let key = (data.data_type() as i32, dims, bytes);
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = self.unique(&format!("{}/{what}", self.prefix));
        let (data_type, dims, raw_data) = key.clone();
        self.initializers.push(TensorProto {
            dims,
            data_type,
            name: name.clone(),
            raw_data,
            ..TensorProto::default()
        });
        self.constants.insert(key, name.clone());
        name
    }

    /// A constant without extents.
    pub(crate) fn scalar(&mut self, data: &Data, what: &str) -> String {
        self.constant(&[], data, what)
    }

    /// A list of positions or extents.
    pub(crate) fn integers(&mut self, list: &[i64], what: &str) -> String {
        self.constant(&[list.len()], &Data::Int64(list.to_vec()), what)
    }

    /// Ends a tensor: the value `current` gets the reserved name `wanted`. A node that has made it
    /// for this tensor is renamed, a value from before is copied.
    pub(crate) fn finish(&mut self, current: &str, wanted: &str) {
        match self.nodes[self.first..].last_mut() {
            Some(node) if node.output[0] == current => {
                wanted.clone_into(&mut node.output[0]);
                wanted.clone_into(&mut node.name);
                self.taken.remove(current);
            }
            _ => self.nodes.push(NodeProto {
                input: vec![current.to_owned()],
                output: vec![wanted.to_owned()],
                name: wanted.to_owned(),
                op_type: "Identity".to_owned(),
                ..NodeProto::default()
            }),
        }
    }
}

fn attribute(attribute: &Attribute<'_>) -> AttributeProto {
    match attribute {
        Attribute::Int(name, value) => AttributeProto {
            name: (*name).to_owned(),
            i: Some(*value),
            kind: AttributeType::Int as i32,
            ..AttributeProto::default()
        },
        Attribute::Ints(name, values) => AttributeProto {
            name: (*name).to_owned(),
            ints: values.clone(),
            kind: AttributeType::Ints as i32,
            ..AttributeProto::default()
        },
    }
}

/// An input or output of the graph: any number of images.
pub(crate) fn value_info(name: &str, data_type: DataType, shape: network::Shape) -> ValueInfoProto {
    let batch = DimensionProto {
        dim_param: Some("N".to_owned()),
        dim_value: None,
    };
    let extents = [shape.channels, shape.height, shape.width];
    let extents = extents.map(|extent| DimensionProto {
        dim_value: Some(extent as i64),
        dim_param: None,
    });
    let dim = std::iter::once(batch).chain(extents).collect();
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: data_type as i32,
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}
