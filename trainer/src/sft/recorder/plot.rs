//! A run's curves as SVG.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::prelude::*;

use super::{Line, failed};
use crate::error::{Result, TrainError};

/// A curve: steps and values.
type Curve = Vec<(f64, f64)>;

const SIZE: (u32, u32) = (800, 450);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];
/// Share of the old mean in a smoothed curve.
const SMOOTH: f64 = 0.9;

/// Draws `loss.svg` and, once there are scores, `eval.svg`.
pub(super) fn draw(folder: &Path, lines: &[Line]) -> Result<()> {
    let (mut losses, mut scores) = (Vec::new(), BTreeMap::<String, Curve>::new());
    let mut set_losses = BTreeMap::<String, Curve>::new();
    let mut smooth = None;
    for line in lines {
        match line {
            Line::Step(line) => {
                let mean = SMOOTH * smooth.unwrap_or(line.loss) + (1.0 - SMOOTH) * line.loss;
                smooth = Some(mean);
                losses.push((line.step as f64, mean));
            }
            Line::Evaluation(evaluation) => {
                let step = evaluation.step as f64;
                for (set, found) in &evaluation.sets {
                    set_losses.entry(set.clone()).or_default().push((step, found.loss));
                    for (what, value) in [("AUROC", found.auroc), ("accuracy", found.accuracy)] {
                        if let Some(value) = value {
                            scores.entry(format!("{set}: {what}")).or_default().push((step, value));
                        }
                    }
                }
            }
        }
    }
    let mut curves = vec![("training, smoothed".to_owned(), losses)];
    curves.extend(set_losses);
    chart(&folder.join("loss.svg"), "loss", &curves)?;
    if !scores.is_empty() {
        chart(&folder.join("eval.svg"), "direct verdict", &scores.into_iter().collect::<Vec<_>>())?;
    }
    Ok(())
}

fn chart(path: &Path, title: &str, curves: &[(String, Curve)]) -> Result<()> {
    let points = || curves.iter().flat_map(|(_, curve)| curve).filter(|(_, value)| value.is_finite());
    let last = points().map(|(step, _)| *step).fold(1.0, f64::max);
    let low = points().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
    let high = points().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return Ok(());
    }
    let room = (high - low).max(1e-3) * 0.05;
    // Written to memory first: a plot that is half written would replace a good one.
    let mut svg = String::new();
    draw_chart(&mut svg, title, curves, last, (low - room)..(high + room)).map_err(|problem| {
        TrainError::File { path: path.to_owned(), source: std::io::Error::other(problem) }
    })?;
    std::fs::write(path, svg).map_err(failed(path))
}

fn draw_chart(
    svg: &mut String,
    title: &str,
    curves: &[(String, Curve)],
    last: f64,
    range: std::ops::Range<f64>,
) -> std::result::Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|e| text(&e))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, range)
        .map_err(|e| text(&e))?;
    chart.configure_mesh().x_desc("step").light_line_style(TRANSPARENT).draw().map_err(|e| text(&e))?;
    for (i, (name, curve)) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let finite = curve.iter().copied().filter(|(_, value)| value.is_finite());
        chart
            .draw_series(LineSeries::new(finite, colour.stroke_width(2)))
            .map_err(|e| text(&e))?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .draw()
        .map_err(|e| text(&e))?;
    area.present().map_err(|e| text(&e))
}
