//! Small ONNX models for the tests of the import.
#![allow(dead_code, reason = "each test binary uses a part")]

use onnx::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use quantizer::{Error, FloatNetwork, Import, import};

pub fn floats(name: &str, dims: &[i64], values: Vec<f32>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 1,
        float_data: values,
        ..Default::default()
    }
}

pub fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: 7,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

pub fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, &[i64])]) -> NodeProto {
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

pub fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
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

pub fn model(dims: &[i64], initializer: Vec<TensorProto>, node: Vec<NodeProto>) -> Vec<u8> {
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

pub fn absent(_: &str) -> std::io::Result<Vec<u8>> {
    Err(std::io::ErrorKind::NotFound.into())
}

pub fn load(bytes: &[u8]) -> Result<Import, Error> {
    import(bytes, &absent, None)
}

pub fn check_error(bytes: &[u8], expected: &str) {
    assert_eq!(
        load(bytes).expect_err("must be refused").to_string(),
        expected
    );
}

pub fn network(dims: &[i64], initializer: Vec<TensorProto>, nodes: Vec<NodeProto>) -> FloatNetwork {
    load(&model(dims, initializer, nodes))
        .expect("imports")
        .network
}
