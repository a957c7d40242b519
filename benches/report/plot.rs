//! One plot: a figure against the number of spokes, a line for each alternative, with its spread; or a figure in each of some
//! cases, a dot for each alternative.

use plotters::{coord::ranged1d::AsRangedCoord, prelude::*};

const SIZE: (u32, u32) = (560, 340);
/// Legible on white and on black, and told apart without red and green.
const COLOURS: [RGBColor; 6] = [
    RGBColor(43, 127, 214),
    RGBColor(224, 122, 31),
    RGBColor(156, 100, 200),
    RGBColor(110, 110, 110),
    RGBColor(0, 150, 140),
    RGBColor(200, 80, 120),
];
const AXIS: RGBColor = RGBColor(128, 128, 128);
/// Above this ratio of the largest to the smallest figure, the axis is logarithmic.
const LOG_FROM: f64 = 20.0;

/// A figure with its spread.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// The number of spokes, or of the case.
    pub at: f64,
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
}

/// A line of the plot.
#[derive(Debug)]
pub struct Line {
    pub name: String,
    pub points: Vec<Point>,
}

/// What is from left to right.
#[derive(Debug, Clone, Copy)]
pub enum Across<'a> {
    Spokes,
    /// Named ones, from 0 on.
    Cases(&'a [String]),
}

impl Across<'_> {
    fn label(self, at: f64) -> String {
        match self {
            Self::Spokes => short(at),
            // Between two cases is nothing.
            Self::Cases(_) if at.fract() != 0.0 || at < 0.0 => String::new(),
            Self::Cases(names) => names.get(at as usize).cloned().unwrap_or_default(),
        }
    }
}

/// Draws the lines. `None` if there is nothing to show, or nothing to compare it with.
pub fn draw(
    (title, unit): (&str, &str),
    across: Across<'_>,
    lines: &[Line],
) -> anyhow::Result<Option<String>> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let least = points().map(|p| p.median).fold(f64::INFINITY, f64::min);
    let most = points().map(|p| p.p90.max(p.median)).fold(0.0, f64::max);
    let first = points().map(|p| p.at).fold(f64::INFINITY, f64::min);
    let last = points().map(|p| p.at).fold(0.0, f64::max);
    if least <= 0.0 || last <= first {
        return Ok(None);
    }
    let mut svg = String::new();
    let what = (title, unit, across);
    let figures = 0.0..most * 1.1;
    let figures_log = (least / 2.0..most * 1.5).log_scale();
    let is_log = most / least > LOG_FROM;
    match across {
        Across::Cases(_) => {
            let cases = -0.5..last + 0.5;
            match is_log {
                true => drawn(&mut svg, what, lines, (cases, figures_log))?,
                false => drawn(&mut svg, what, lines, (cases, figures))?,
            }
        }
        Across::Spokes if first <= 0.0 => return Ok(None),
        Across::Spokes => {
            let spokes = (first / 1.2..last * 1.2).log_scale();
            match is_log {
                true => drawn(&mut svg, what, lines, (spokes, figures_log))?,
                false => drawn(&mut svg, what, lines, (spokes, figures))?,
            }
        }
    }
    Ok(Some(svg))
}

fn drawn<X, Y>(
    svg: &mut String,
    (title, unit, across): (&str, &str, Across<'_>),
    lines: &[Line],
    (x, y): (X, Y),
) -> anyhow::Result<()>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64> + Ranged<ValueType = f64>,
    Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64> + Ranged<ValueType = f64>,
{
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(AXIS.mix(0.25))
        .axis_style(AXIS)
        .x_desc(match across {
            Across::Spokes => "spokes",
            Across::Cases(_) => "",
        })
        .y_desc(unit)
        .x_label_formatter(&|x| across.label(*x))
        .y_label_formatter(&|y| short(*y))
        .draw()?;
    for (nth, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        // Beside each other, where they would lie upon each other.
        let (aside, width) = match across {
            Across::Spokes => (0.0, 2),
            Across::Cases(_) => (0.08 * (nth as f64 - (lines.len() as f64 - 1.0) / 2.0), 0),
        };
        let medians = line.points.iter().map(|p| (p.at + aside, p.median));
        let connected = medians.clone().filter(|_| width > 0);
        chart
            .draw_series(LineSeries::new(connected, colour.stroke_width(width)))?
            .label(&line.name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(medians.map(|at| Circle::new(at, 3, colour.filled())))?;
        chart.draw_series(line.points.iter().map(|p| {
            let spread = [(p.at + aside, p.p10), (p.at + aside, p.p90)];
            PathElement::new(spread, colour.mix(0.5).stroke_width(1))
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(AXIS)
        .draw()?;
    area.present()?;
    drop(chart);
    Ok(())
}

/// A figure with three digits and what it is a thousand of.
pub fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 || v == 0.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{unit}")
}
