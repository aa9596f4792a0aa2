//! The report's plots, as SVG.

use std::path::Path;

use forethought_core::probe::Position;
use plotters::prelude::*;

use crate::probe::{
    curve::Point,
    error::{ProbeError, Result},
    search::Cell,
};

const SIZE: (u32, u32) = (720, 400);
/// Told apart by those who can't tell red from green, too (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// A line of a plot: its points `(x, y)` and how far each may be off.
struct Line {
    name: String,
    points: Vec<(f64, f64, f64)>,
}

/// AUROC by layer, a line for each position.
pub(super) fn layers(path: &Path, cells: &[Cell]) -> Result<()> {
    let line = |position: Position| {
        let own = cells.iter().filter(|cell| cell.position == position);
        let points: Vec<_> = own.map(|cell| (cell.layer as f64, cell.auroc, 0.0)).collect();
        (!points.is_empty()).then(|| Line { name: position.to_string(), points })
    };
    let lines: Vec<Line> = Position::ALL.into_iter().filter_map(line).collect();
    let last = cells.iter().map(|cell| cell.layer).max().unwrap_or(1).max(1) as f64;
    let title = "AUROC by layer and position, on rows not seen";
    draw(path, title, "layer (0 is the embedding)", 0.0..last, |x| format!("{x:.0}"), &lines)
}

/// AUROC by number of examples, a line for each set; bars are one standard deviation over the draws.
pub(super) fn curve(path: &Path, points: &[Point]) -> Result<()> {
    let names = points.first().map(|p| p.sets.iter().map(|s| s.name.clone()).collect::<Vec<_>>());
    let lines: Vec<Line> = names
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(i, name)| {
            // The logarithm, for sizes double from point to point.
            let point =
                |p: &Point| p.sets.get(i).map(|s| ((p.size.max(1) as f64).log10(), s.mean, s.deviation));
            Line { name, points: points.iter().filter_map(point).collect() }
        })
        .collect();
    let sizes = points.iter().map(|p| (p.size.max(1) as f64).log10());
    let (low, high) = sizes.fold((f64::INFINITY, 0.0f64), |(l, h), x| (l.min(x), h.max(x)));
    let range = if low < high { low - 0.05..high + 0.05 } else { 0.0..high.max(1.0) };
    let title = "AUROC by number of examples";
    draw(path, title, "examples (logarithmic)", range, |x| format!("{:.0}", 10f64.powf(x)), &lines)
}

fn draw(
    path: &Path,
    title: &str,
    x_name: &str,
    x_range: std::ops::Range<f64>,
    x_label: impl Fn(f64) -> String,
    lines: &[Line],
) -> Result<()> {
    let failed = |problem: String| ProbeError::Plot { path: path.to_owned(), problem };
    let lowest = lines.iter().flat_map(|l| &l.points).map(|(_, y, off)| y - off).fold(0.9, f64::min);
    let y_range = (lowest * 20.0).floor() / 20.0..1.0;
    let try_draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(x_range, y_range)?;
        chart
            .configure_mesh()
            .x_desc(x_name)
            .y_desc("AUROC")
            .x_label_formatter(&|x| x_label(*x))
            .y_label_formatter(&|y| format!("{y:.2}"))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (line, colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
            let points = line.points.iter().map(|&(x, y, _)| (x, y));
            chart
                .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
            let bars = line.points.iter().filter(|(_, _, off)| *off > 0.0);
            chart.draw_series(
                bars.map(|&(x, y, off)| PathElement::new([(x, y - off), (x, (y + off).min(1.0))], colour)),
            )?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        root.present()?;
        Ok(())
    };
    try_draw().map_err(|e| failed(e.to_string()))
}
