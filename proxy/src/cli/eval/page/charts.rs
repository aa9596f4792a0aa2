//! Charts of an evaluation, as SVG.

use anyhow::{Result, anyhow};
use forethought_core::evidence::Verdict;
use plotters::prelude::*;

/// Named curves of points.
pub(super) type Curves = Vec<(String, Vec<(f64, f64)>)>;

const SIZE: (u32, u32) = (480, 360);
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(255, 127, 14), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];
const HARMFUL: RGBColor = RGBColor(214, 39, 40);
const BENIGN: RGBColor = RGBColor(31, 119, 180);
/// Bars of a histogram.
const BARS: usize = 20;
/// Bins of a reliability diagram.
const BINS: usize = 10;

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a chart can't be drawn: {error}")
}

/// Curves in the unit square, with a diagonal where that means something.
///
/// # Errors
/// It can't be drawn.
pub(super) fn lines(title: &str, axes: (&str, &str), diagonal: bool, curves: &Curves) -> Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..1.0, 0.0..1.0)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc(axes.0)
        .y_desc(axes.1)
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    if diagonal {
        let diagonal = LineSeries::new([(0.0, 0.0), (1.0, 1.0)], BLACK.mix(0.25));
        chart.draw_series(diagonal).map_err(failed)?;
    }
    for (i, (name, points)) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
            .map_err(failed)?
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(failed)?;
    area.present().map_err(failed)?;
    drop(chart);
    drop(area);
    Ok(svg)
}

/// How many rows of each label have which score.
///
/// # Errors
/// It can't be drawn.
pub(super) fn histogram(title: &str, scored: &[(f64, Verdict)]) -> Result<String> {
    let mut counts = [[0_usize; BARS]; 2];
    for (score, label) in scored {
        let bar = ((score * BARS as f64) as usize).min(BARS - 1);
        counts[usize::from(*label == Verdict::Benign)][bar] += 1;
    }
    let most = counts.iter().flatten().copied().max().unwrap_or(0).max(1) as f64;
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..1.0, 0.0..most * 1.05)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("score")
        .y_desc("rows")
        .y_label_formatter(&|rows| format!("{rows:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for (i, (name, colour)) in [("harmful", HARMFUL), ("benign", BENIGN)].into_iter().enumerate() {
        let bars = counts[i].iter().enumerate().map(|(bar, count)| {
            // Two bars side by side in each twentieth.
            let left = (bar as f64 + 0.5 * i as f64) / BARS as f64;
            Rectangle::new([(left, 0.0), (left + 0.45 / BARS as f64, *count as f64)], colour.filled())
        });
        chart
            .draw_series(bars)
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE.mix(0.8))
        .draw()
        .map_err(failed)?;
    area.present().map_err(failed)?;
    drop(chart);
    drop(area);
    Ok(svg)
}

/// For each tenth of the scale that holds rows, their mean score and the share of them that is harmful.
pub(super) fn reliability(scored: &[(f64, Verdict)]) -> Vec<(f64, f64)> {
    let mut bins = [(0_usize, 0.0, 0_usize); BINS];
    for (score, label) in scored {
        let (count, sum, harmful) = &mut bins[((score * BINS as f64) as usize).min(BINS - 1)];
        *count += 1;
        *sum += score;
        *harmful += usize::from(*label == Verdict::Harmful);
    }
    let filled = bins.iter().filter(|(count, ..)| *count > 0);
    filled.map(|(count, sum, harmful)| (sum / *count as f64, *harmful as f64 / *count as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reliability_is_by_tenths() {
        let rows = [
            (0.0, Verdict::Benign),
            (0.05, Verdict::Harmful),
            (0.95, Verdict::Harmful),
            (1.0, Verdict::Harmful),
        ];
        let found = reliability(&rows);
        assert_eq!(found.len(), 2);
        assert!((found[0].0 - 0.025).abs() < 1e-12 && (found[0].1 - 0.5).abs() < 1e-12);
        assert!((found[1].0 - 0.975).abs() < 1e-12 && (found[1].1 - 1.0).abs() < 1e-12);
        assert!(reliability(&[]).is_empty());
    }
}
