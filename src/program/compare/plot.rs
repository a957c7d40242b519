//! One plot of the report: a figure against the number of spokes, a line per strategy, as an SVG element.
//!
//! Text takes the page's colour (its style sheet sees to that), axes and lines are mid-tones that show on light and dark.

use std::collections::BTreeSet;

use plotters::{
    coord::ranged1d::{DefaultFormatting, KeyPointHint},
    prelude::*,
};

use super::{
    crossover::Metric,
    row::{Cell, Strategy},
};

const SIZE: (u32, u32) = (360, 240);
/// Below this ratio of the largest to the smallest figure, an axis from nothing shows them all.
const LOG_FROM: f64 = 30.0;
const AXIS: RGBColor = RGBColor(128, 128, 128);

/// A strategy's colour: distinguishable without red and green, legible on white and on black.
pub(crate) const fn colour(strategy: Strategy) -> RGBColor {
    match strategy {
        Strategy::Direct => RGBColor(43, 127, 214),
        Strategy::Gossip => RGBColor(224, 122, 31),
        Strategy::Auto => RGBColor(156, 100, 200),
    }
}

/// The points of one line.
type Points = Vec<(f64, f64)>;

/// A plot, and whether its axis of figures is logarithmic. `None` if there is nothing to show.
pub(crate) struct Plot {
    pub(crate) svg: String,
    pub(crate) logarithmic: bool,
}

/// Draws one metric for one size of event.
pub(crate) fn draw(cells: &[Cell], size: u64, metric: &Metric) -> anyhow::Result<Option<Plot>> {
    let lines = lines(cells, size, metric);
    let all: Vec<(f64, f64)> = lines
        .iter()
        .flat_map(|(_, points)| points)
        .copied()
        .collect();
    let least = all.iter().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
    let most = all.iter().map(|(_, y)| *y).fold(0.0, f64::max);
    if all.is_empty() || most <= 0.0 {
        return Ok(None);
    }
    let counts: BTreeSet<u64> = all.iter().map(|(x, _)| *x as u64).collect();
    let logarithmic = least > 0.0 && most / least > LOG_FROM;
    let figures = if logarithmic {
        let (low, high) = (least / 1.5, most * 1.5);
        Axis {
            low,
            high,
            ticks: log_ticks(low, high, metric.binary),
            logarithmic,
        }
    } else {
        let step = tick_step(most, metric.binary);
        let steps = (most * 1.05 / step).ceil();
        let ticks = (0..=steps as u32).map(|n| f64::from(n) * step).collect();
        Axis {
            low: 0.0,
            high: steps * step,
            ticks,
            logarithmic,
        }
    };
    let spokes = Axis {
        low: counts.first().map_or(1.0, |&least| least as f64 / 1.2),
        high: counts.last().map_or(1.0, |&most| most as f64 * 1.2),
        ticks: spaced(&counts),
        logarithmic: true,
    };
    let svg = render(&lines, spokes, figures, metric)?;
    Ok(Some(Plot { svg, logarithmic }))
}

fn lines(cells: &[Cell], size: u64, metric: &Metric) -> Vec<(Strategy, Points)> {
    let strategies: BTreeSet<_> = cells.iter().map(|cell| cell.row.strategy).collect();
    strategies
        .into_iter()
        .map(|strategy| {
            let mut points: Points = cells
                .iter()
                .map(|cell| &cell.row)
                .filter(|row| row.size == size && row.strategy == strategy)
                .filter_map(|row| Some((row.spokes as f64, (metric.value)(row)?)))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            (strategy, points)
        })
        .collect()
}

/// An axis with its ticks where we want them: at the numbers of spokes that were measured, and at round figures.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    logarithmic: bool,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let scale = |v: f64| if self.logarithmic { v.ln() } else { v };
        let part = (scale(*value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        start + (part * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.low..self.high
    }
}

fn render(
    lines: &[(Strategy, Points)],
    spokes: Axis,
    figures: Axis,
    metric: &Metric,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .margin_right(12)
            .x_label_area_size(40)
            .y_label_area_size(62)
            .build_cartesian_2d(spokes, figures)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(AXIS.mix(0.35))
            .light_line_style(TRANSPARENT)
            .axis_style(AXIS)
            .label_style(("sans-serif", 13))
            .axis_desc_style(("sans-serif", 13))
            .x_desc("spokes")
            .x_label_formatter(&|n| format!("{n:.0}"))
            .y_label_formatter(&|y| (metric.show)(*y))
            .draw()?;
        for (strategy, points) in lines {
            let colour = colour(*strategy);
            chart.draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(2),
            ))?;
            // A mark of its own for each strategy, for whoever does not tell the colours apart.
            let at = points.iter().copied();
            match strategy {
                Strategy::Direct => {
                    chart.draw_series(at.map(|at| Circle::new(at, 4, colour.filled())))?
                }
                Strategy::Gossip => {
                    chart.draw_series(at.map(|at| TriangleMarker::new(at, 6, colour.filled())))?
                }
                Strategy::Auto => {
                    chart.draw_series(at.map(|at| Cross::new(at, 5, colour.stroke_width(2))))?
                }
            };
        }
        area.present()?;
    }
    Ok(svg)
}

/// The numbers of spokes, without those whose labels would run into the one before.
fn spaced(counts: &BTreeSet<u64>) -> Vec<f64> {
    let width = match (counts.first(), counts.last()) {
        (Some(&least), Some(&most)) => (most as f64 / least as f64).ln() + 2.0 * 1.2f64.ln(),
        _ => 0.0,
    };
    let mut kept: Vec<f64> = Vec::new();
    for &count in counts {
        let count = count as f64;
        if kept
            .last()
            .is_none_or(|last| (count / last).ln() > 0.05 * width)
        {
            kept.push(count);
        }
    }
    kept
}

/// A step that makes three to six ticks: 1, 2 or 5 times a power of ten, or a power of two.
fn tick_step(most: f64, binary: bool) -> f64 {
    if binary {
        return 2f64.powf((most / 6.0).log2().ceil());
    }
    let power = 10f64.powf((most / 5.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|n| n * power)
        .find(|step| most / step <= 6.0)
        .unwrap_or(10.0 * power)
}

/// Powers of ten (of four for bytes) within the range, with 2 and 5 times these while they are few.
fn log_ticks(low: f64, high: f64, binary: bool) -> Vec<f64> {
    let base = if binary { 4.0f64 } else { 10.0 };
    let steps: &[f64] = match high / low {
        _ if binary => &[1.0],
        wide if wide > 1e3 => &[1.0],
        _ => &[1.0, 2.0, 5.0],
    };
    let powers = (low.log(base).floor() as i32)..=(high.log(base).ceil() as i32);
    powers
        .flat_map(|power| steps.iter().map(move |n| n * base.powi(power)))
        .filter(|tick| (low..=high).contains(tick))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_close_counts_do_not_overlap() {
        assert_eq!(
            spaced(&BTreeSet::from([8, 10, 100, 101])),
            [8.0, 10.0, 100.0]
        );
        assert_eq!(spaced(&BTreeSet::from([50])), [50.0]);
    }

    #[test]
    fn ticks_are_few_and_round() {
        for most in [0.8, 1.0, 37.0, 105_000.0, 999.0] {
            for binary in [false, true] {
                let step = tick_step(most, binary);
                assert!((2.0..=6.0).contains(&(most / step)), "{most} by {step}");
            }
        }
        assert_eq!(tick_step(1000.0, false), 200.0);
        assert_eq!(tick_step(20_000.0, true), 4096.0);
        let rounded = |ticks: Vec<f64>| ticks.iter().map(|t| t.round()).collect::<Vec<_>>();
        assert_eq!(
            rounded(log_ticks(8.0, 300.0, false)),
            [10.0, 20.0, 50.0, 100.0, 200.0]
        );
        assert_eq!(
            rounded(log_ticks(1000.0, 20_000.0, true)),
            [1024.0, 4096.0, 16384.0]
        );
        assert_eq!(log_ticks(5.0, 50_000.0, false).len(), 4);
    }
}
