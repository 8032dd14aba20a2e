//! Where the taps of a window read, for every output row and column, found once per network.
//!
//! Invariant: what [`Window::source`] says.

use network::{Shape, Window};
use std::ops::Range;

#[derive(Debug)]
pub(crate) struct Taps {
    /// Rows, then columns: `[output index][tap]`.
    sources: [Vec<Option<usize>>; 2],
    kernel: [usize; 2],
    /// Outputs all of whose taps lie inside the input.
    inside: [Range<usize>; 2],
    stride: [usize; 2],
}

impl Taps {
    pub fn new(window: Window, input: Shape, output: Shape) -> Self {
        let (from, to) = (input.extent(), output.extent());
        let sources = [0, 1].map(|axis| {
            (0..to[axis])
                .flat_map(|index| (0..window.kernel[axis]).map(move |tap| (index, tap)))
                .map(|(index, tap)| window.source(axis, index, tap, from[axis]))
                .collect::<Vec<_>>()
        });
        let inside = [0, 1].map(|axis| {
            let mut outputs = sources[axis].chunks_exact(window.kernel[axis]);
            let is_inside = |taps: &[Option<usize>]| taps.iter().all(Option::is_some);
            let start = outputs.clone().take_while(|taps| !is_inside(taps)).count();
            start
                ..start
                    + outputs
                        .by_ref()
                        .skip(start)
                        .take_while(|taps| is_inside(taps))
                        .count()
        });
        Self {
            sources,
            kernel: window.kernel,
            inside,
            stride: window.stride,
        }
    }

    /// The input rows of an output row's taps; `None` in the padding.
    pub fn rows(&self, y: usize) -> &[Option<usize>] {
        &self.sources[0][y * self.kernel[0]..][..self.kernel[0]]
    }

    /// The input columns of an output column's taps; `None` in the padding.
    pub fn columns(&self, x: usize) -> &[Option<usize>] {
        &self.sources[1][x * self.kernel[1]..][..self.kernel[1]]
    }

    /// Output columns all of whose taps lie inside the input.
    pub fn columns_inside(&self) -> Range<usize> {
        self.inside[1].clone()
    }

    /// Input columns between two output columns.
    pub fn column_step(&self) -> usize {
        self.stride[1]
    }

    /// Whether every tap of a pixel lies inside the input.
    pub fn is_inside(&self, [y, x]: [usize; 2]) -> bool {
        self.inside[0].contains(&y) && self.inside[1].contains(&x)
    }
}
