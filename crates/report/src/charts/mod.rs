//! Charts as inline SVG: line charts, heatmaps, bar charts, intervals, scatter plots. Colors come from the page's style;
//! values are shown as tooltips, without a script.

mod bar_chart;
mod heatmap;
mod interval_chart;
mod line_chart;
mod scatter;

use maud::{Markup, html};

pub use bar_chart::{Series, bar_chart};
pub use heatmap::heatmap;
pub use interval_chart::{Interval, interval_chart};
pub use line_chart::{Line, line_chart};
pub use scatter::{Group, scatter};

/// Width of every chart in its own units: text stays readable on a screen of 390 px.
const WIDTH: f64 = 460.0;

/// The color-blind safe palette of Okabe and Ito, then darker colors.
pub const COLORS: [&str; 12] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c510a", "#5e3c99",
    "#b2182b", "#35978f", "#bcbd22",
];

/// Returns the color of the n-th series.
pub fn color(index: usize) -> &'static str {
    COLORS[index % COLORS.len()]
}

/// A range of values with round ticks.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Positions of the ticks.
    pub ticks: Vec<f64>,
}

impl Axis {
    /// Returns the axis of all finite values, with about `ticks` ticks; 0 to 1 without values.
    pub fn from_values(values: impl Iterator<Item = f64>, ticks: usize) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if low == high {
            let by = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (low - by, high + by);
        }
        let rough = (high - low) / ticks.max(1) as f64;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].iter().map(|f| f * magnitude).find(|s| *s >= rough).unwrap_or(rough);
        let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
        let ticks: Vec<f64> = (first..=last).map(|i| i as f64 * step).collect();
        Self { low: first as f64 * step, high: last as f64 * step, ticks }
    }

    /// Scales a value to a position between `from` and `to`.
    pub(crate) fn position(&self, value: f64, from: f64, to: f64) -> f64 {
        from + (value - self.low) / (self.high - self.low) * (to - from)
    }
}

/// Formats a tick label.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_string() } else { text.to_string() }
}

/// Formats a coordinate, rounded to a tenth.
fn at(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_string).unwrap_or(text)
}

/// Legend of the colors.
fn legend(entries: &[(String, &str)]) -> Markup {
    html! {
        ul.legend {
            @for (name, color) in entries {
                li { span.swatch style=(format!("background:{color}")) {} (name) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_the_ends_of_an_axis() {
        let axis = Axis::from_values([3.2, 17.8].into_iter(), 5);
        assert_eq!((axis.low, axis.high, axis.ticks.len()), (0.0, 20.0, 5));
        assert_eq!(axis.position(10.0, 100.0, 200.0), 150.0);
        let flat = Axis::from_values([2.0, 2.0, f64::NAN].into_iter(), 4);
        assert!(flat.low < 2.0 && flat.high > 2.0);
        let none = Axis::from_values(std::iter::empty(), 5);
        assert_eq!((none.low, none.high), (0.0, 1.0));
        assert_eq!((short(0.25), short(20.0), short(-0.0)), ("0.25".into(), "20".into(), "0".into()));
    }

    #[test]
    fn escapes_names() {
        let line = Line { name: "<script>".into(), points: vec![(1.0, 2.0), (2.0, 1.0)], strong: true };
        let text = line_chart("a & b", "epoch", "error", &[line]).into_string();
        assert!(!text.contains("<script>") && text.contains("&lt;script&gt;") && text.contains("a &amp; b"));
    }
}
