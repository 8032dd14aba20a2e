//! The points of a sweep as a picture: the first axis against the second, the front as a line.
//!
//! Invariant: the same points give the same bytes.

use super::front::{Axis, Placed};
use anyhow::{Result, anyhow};
use plotters::prelude::{
    ChartBuilder, Circle, IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend,
    SeriesLabelPosition, ShapeStyle, WHITE,
};
use std::collections::BTreeMap;

/// Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// Draws; of more than two axes the first two count. Empty when there is nothing to draw.
///
/// # Errors
/// The library refuses the picture.
pub fn svg(networks: &BTreeMap<String, Vec<Placed>>, axes: &[Axis]) -> Result<String> {
    let mut text = String::new();
    let points = || {
        networks
            .values()
            .flatten()
            .filter(|point| point.values.len() >= 2)
    };
    let scale = |axis: usize| Scale::over(points().map(|point| point.values[axis]));
    if points().next().is_none() || axes.len() < 2 {
        return Ok(text);
    }
    let (x, y) = (scale(0), scale(1));
    {
        let area = SVGBackend::with_string(&mut text, (900, 600)).into_drawing_area();
        area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(80)
            .build_cartesian_2d(x.range(), y.range())
            .map_err(|error| anyhow!("{error}"))?;
        chart
            .configure_mesh()
            .x_desc(axes[0].label)
            .y_desc(axes[1].label)
            .x_label_formatter(&|&value| x.label(value))
            .y_label_formatter(&|&value| y.label(value))
            .light_line_style(RGBColor(240, 240, 240))
            .draw()
            .map_err(|error| anyhow!("{error}"))?;
        for ((name, placed), colour) in networks.iter().zip(COLOURS.into_iter().cycle()) {
            let at = |point: &Placed| (x.place(point.values[0]), y.place(point.values[1]));
            let pale = ShapeStyle {
                color: RGBColor(170, 170, 170).into(),
                filled: true,
                stroke_width: 1,
            };
            let full = ShapeStyle {
                color: colour.into(),
                filled: true,
                stroke_width: 2,
            };
            let (front, others): (Vec<&Placed>, Vec<&Placed>) =
                placed.iter().partition(|point| point.is_front);
            chart
                .draw_series(others.iter().map(|point| Circle::new(at(point), 3, pale)))
                .map_err(|error| anyhow!("{error}"))?;
            if axes.len() == 2 {
                chart
                    .draw_series(LineSeries::new(front.iter().map(|point| at(point)), full))
                    .map_err(|error| anyhow!("{error}"))?;
            }
            chart
                .draw_series(front.iter().map(|point| Circle::new(at(point), 4, full)))
                .map_err(|error| anyhow!("{error}"))?
                .label(format!("{name}: front"))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], full));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(RGBColor(200, 200, 200))
            .draw()
            .map_err(|error| anyhow!("{error}"))?;
        area.present().map_err(|error| anyhow!("{error}"))?;
    }
    Ok(text)
}

/// An axis: logarithmic where values differ much, with a margin on both sides.
#[derive(Clone, Copy)]
struct Scale {
    is_logarithmic: bool,
    low: f64,
    high: f64,
}

impl Scale {
    fn over(values: impl Iterator<Item = f64> + Clone) -> Self {
        let low = values.clone().fold(f64::MAX, f64::min);
        let high = values.fold(f64::MIN, f64::max);
        let mut scale = Self {
            is_logarithmic: low > 0.0 && high > 20.0 * low,
            low,
            high,
        };
        let (low, high) = (scale.place(low), scale.place(high));
        let margin = if high > low {
            0.06 * (high - low)
        } else {
            0.5 * high.abs().max(1.0)
        };
        (scale.low, scale.high) = (low - margin, high + margin);
        scale
    }

    fn place(self, value: f64) -> f64 {
        if self.is_logarithmic {
            value.log10()
        } else {
            value
        }
    }

    fn range(self) -> std::ops::Range<f64> {
        self.low..self.high
    }

    fn label(self, place: f64) -> String {
        let value = if self.is_logarithmic {
            10f64.powf(place)
        } else {
            place
        };
        // As many decimals as three digits need.
        let digits = 2 - value.abs().max(1e-9).log10().floor() as i32;
        format!("{value:.*}", digits.clamp(0, 9) as usize)
    }
}
