//! The curve of a training run as SVG: loss to the left, top-1 to the right.
//!
//! Invariant: the drawing is a function of the epochs alone.

use anyhow::{Result, anyhow};
use plotters::prelude::{
    BLACK, ChartBuilder, Color, IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend,
    WHITE,
};
use trainer::Epoch;

const SIZE: (u32, u32) = (720, 400);
const LOSS: RGBColor = RGBColor(0xb0, 0x5a, 0x2c);
const TRAINING: RGBColor = RGBColor(0x8a, 0xa0, 0xb4);
const VALIDATION: RGBColor = RGBColor(0x1f, 0x4e, 0x79);

/// Draws the epochs.
///
/// # Errors
/// The drawing library refuses, which it does not on numbers that are finite.
pub fn draw(epochs: &[Epoch]) -> Result<String> {
    let mut text = String::new();
    try_draw(epochs, &mut text).map_err(|error| anyhow!("cannot draw the curve: {error}"))?;
    Ok(text)
}

fn try_draw(epochs: &[Epoch], text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let last = epochs.last().map_or(1.0, |e| e.epoch as f64).max(1.0);
    let peak = epochs.iter().map(|e| e.loss).fold(0.0, f64::max).max(1e-9);
    let rates = epochs
        .iter()
        .flat_map(|e| [Some(e.top1), e.validation_top1]);
    let least = rates.flatten().fold(1.0, f64::min);
    let floor = (100.0 * least / 5.0).floor() * 5.0;
    let floor = floor.min(95.0);
    let first = if last > 1.0 { 1.0 } else { 0.0 };
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .right_y_label_area_size(56)
        .build_cartesian_2d(first..last, 0.0..peak * 1.05)?
        .set_secondary_coord(first..last, floor..100.0);
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("epoch")
        .y_desc("loss")
        .draw()?;
    chart.configure_secondary_axes().y_desc("top-1, %").draw()?;
    let points = |of: &dyn Fn(&Epoch) -> Option<f64>| -> Vec<(f64, f64)> {
        let point = |e: &Epoch| Some((e.epoch as f64, of(e)?));
        epochs.iter().filter_map(point).collect()
    };
    let key = |color: RGBColor| {
        move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
    };
    chart
        .draw_series(LineSeries::new(
            points(&|e| Some(e.loss)),
            LOSS.stroke_width(2),
        ))?
        .label("loss")
        .legend(key(LOSS));
    for (name, color, series) in [
        (
            "top-1, training",
            TRAINING,
            points(&|e| Some(100.0 * e.top1)),
        ),
        (
            "top-1, kept aside",
            VALIDATION,
            points(&|e| Some(100.0 * e.validation_top1?)),
        ),
    ] {
        if !series.is_empty() {
            chart
                .draw_secondary_series(LineSeries::new(series, color.stroke_width(2)))?
                .label(name)
                .legend(key(color));
        }
    }
    chart
        .configure_series_labels()
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::draw;
    use trainer::Epoch;

    #[test]
    fn any_number_of_epochs_is_drawn() {
        for n in [0, 1, 2, 30] {
            let epochs: Vec<Epoch> = (1..=n)
                .map(|epoch| Epoch {
                    epoch,
                    rate: 0.1,
                    loss: 1.0 / epoch as f64,
                    top1: 1.0 - 0.5 / epoch as f64,
                    validation_top1: (epoch % 2 == 0).then_some(0.9),
                })
                .collect();
            let text = draw(&epochs).expect("finite");
            assert!(
                text.starts_with("<svg") && text.trim_end().ends_with("</svg>"),
                "{n}"
            );
            assert_eq!(text, draw(&epochs).expect("finite"));
        }
    }
}
