//! Everything that can be wrong with a float model or with what is asked of it.
//!
//! Invariant: each message names the place (node, tensor or layer), the value and what to do.

/// An error of the quantizer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The bytes are no protobuf message, or are cut off.
    #[error("not an ONNX model, or a truncated one: {0}")]
    Decode(String),
    /// The message is readable and lacks something that every model has.
    #[error("not an ONNX model: {0}")]
    Malformed(String),
    /// The operator set is outside what the import knows.
    #[error("opset {found} is not supported: export the model with opset 7 to 21")]
    Opset {
        /// Version of the default domain.
        found: i64,
    },
    /// A tensor's dims, type or data do not fit together.
    #[error("tensor `{tensor}`: {problem}")]
    Tensor {
        /// Initializer, constant, input or value name.
        tensor: String,
        /// What is wrong, with value and limit.
        problem: String,
    },
    /// Data files beside the model are absent.
    #[error("tensor `{tensor}`: external data `{location}`: {problem}")]
    ExternalData {
        /// Initializer name.
        tensor: String,
        /// The file that the model names.
        location: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A weight that is no finite number.
    #[error("tensor `{tensor}`: element {index} is {value}: values must be finite")]
    NotFinite {
        /// Tensor name.
        tensor: String,
        /// First such element.
        index: usize,
        /// `NaN`, `inf` or `-inf`.
        value: f32,
    },
    /// An operator that has no lowering.
    #[error("node `{node}`: operator {op} is not supported: {hint}")]
    Unsupported {
        /// Node name.
        node: String,
        /// ONNX operator.
        op: String,
        /// What to do.
        hint: String,
    },
    /// A supported operator with inputs or attributes that it cannot have.
    #[error("node `{node}` ({op}): {problem}")]
    Node {
        /// Node name.
        node: String,
        /// ONNX operator.
        op: String,
        /// What is wrong, with value and limit.
        problem: String,
    },
    /// An option outside its range, or one that names a layer that does not exist.
    #[error("{0}")]
    Options(String),
    /// A layer that has no integer form under the options.
    #[error("layer `{layer}`: {problem}")]
    Layer {
        /// Layer name.
        layer: String,
        /// What is wrong, with value and limit.
        problem: String,
    },
    /// The observer has not seen a tensor.
    #[error("tensor `{tensor}`: no calibration values were observed")]
    NotObserved {
        /// Value name.
        tensor: String,
    },
}
