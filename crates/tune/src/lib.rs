//! Post-training quantization against what is computed: rounding learned layer by layer, scales
//! searched on the network's output error, and the choice among methods.
//!
//! ```text
//! float values (recorded by whoever can run the float network) ──► Targets ─┐
//! quantizer::quantize ──► Network ──► functional: integers of every layer ──┴─► Choices ──► quantizer
//! ```
//!
//! Invariant: results depend on the networks, the recorded values, the images, the options and the
//! seed alone, never on the number of threads; every float sum has a fixed order.

mod adaround;
mod alone;
mod error;
mod guarantee;
mod judge;
mod mixed;
mod problem;
mod rounding;
mod scales;
mod sensitivity;
mod simulate;
mod targets;

pub use adaround::{Fit, LayerFit, Settings, adaround};
pub use alone::{ActivationSearch, search_activations};
pub use error::Error;
pub use guarantee::Guarantee;
pub use judge::{OutputError, output_error};
pub use mixed::{Budget, Cycles, Mix, MixedSearch, mixed};
pub use problem::Problem;
pub use rounding::{Rounded, RoundingSettings, learn};
pub use scales::{ScaleSearch, search_scales};
pub use sensitivity::{Case, Outcome, Sensitivity, Source, sensitivity};
pub use targets::Targets;

use arith::Arithmetic;
use ndarray::Array3;
use network::{Network, Tensor};
use quantizer::{Choices, FloatNetwork, Observer, Options};

/// Gives the integers of a calibration image for an input tensor: `[channel, row, column]`.
pub type Images<'a> = dyn Fn(usize, &Tensor) -> Array3<i32> + Sync + 'a;

/// Hears how far a search is: what it works on, steps done, steps in all.
pub type Progress<'a> = dyn FnMut(&str, usize, usize) + 'a;

/// Everything that a search starts from.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The folded float network.
    pub float: &'a FloatNetwork,
    /// What calibration saw.
    pub observer: &'a Observer,
    /// How the network is quantized.
    pub options: &'a Options,
    /// The machine's arithmetic.
    pub arithmetic: Arithmetic,
    /// The float network's values.
    pub targets: &'a Targets,
    /// The images that they belong to.
    pub images: &'a Images<'a>,
}

impl Subject<'_> {
    /// The integer network under some choices.
    ///
    /// # Errors
    /// As [`quantizer::quantize_with`].
    pub fn quantize(&self, choices: &Choices) -> Result<Network, Error> {
        let observer = Some(self.observer);
        let network = quantizer::quantize_with(self.float, observer, self.options, choices)?;
        Ok(network)
    }
}
