//! From a float ONNX model to the integer network: import, batch-norm folding, calibration,
//! integer tensors.
//!
//! ```text
//! bytes --import--> FloatNetwork --(Observer, Options) quantize--> network::Network
//! ```

mod arrangement;
mod choices;
mod constant;
mod constant_fold;
mod divergence;
mod equalize;
mod error;
mod float;
mod fold;
mod guarantee;
mod import;
mod lower;
mod observer;
mod quantize;
mod raw;
mod rearrange;
mod scale;
mod write;

pub use arrangement::FloatPart;
pub use choices::{Choices, LayerChoice};
pub use constant::{ExternalData, synthetic_files};
pub use equalize::{Equalized, equalize};
pub use error::Error;
pub use float::{
    Activation, FloatConv, FloatLayer, FloatNetwork, FloatOp, FloatPool, FloatPost, FloatTensor,
    View,
};
pub use import::{Import, import, import_shapes};
pub use observer::Observer;
pub use quantize::{
    Granularity, LayerBits, Options, quantize, quantize_at, quantize_with, scale_groups,
};
pub use scale::Method;
pub use write::to_onnx;
