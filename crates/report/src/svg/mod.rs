//! Figures as inline SVG: lines, heat maps, bars, points. They take their colors from the page's
//! style and need no script; what a mark stands for is told when one rests on it.

mod bars;
mod heat;
mod lines;
mod points;

use maud::{Markup, html};

pub use bars::{Series, bars};
pub use heat::heat_map;
pub use lines::{Line, lines};
pub use points::{Group, points};

/// Width of every figure in its own units: at a width of 390 px letters stay readable.
const WIDTH: f64 = 460.0;

/// Colors that stay apart for most eyes (Okabe and Ito), then darker ones of the same.
pub const COLORS: [&str; 12] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c510a", "#5e3c99",
    "#b2182b", "#35978f", "#bcbd22",
];

/// The color of the n-th thing.
pub fn color(at: usize) -> &'static str {
    COLORS[at % COLORS.len()]
}

/// A range of values with round ticks.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Where it is marked.
    pub ticks: Vec<f64>,
}

impl Axis {
    /// Round ends around all finite values, with about so many ticks; 0 to 1 without values.
    pub fn around(values: impl Iterator<Item = f64>, ticks: usize) -> Self {
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

    /// Where a value stands between `from` and `to`.
    fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        from + (value - self.low) / (self.high - self.low) * (to - from)
    }
}

/// A number as short as it can be told apart on an axis.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_string() } else { text.to_string() }
}

/// A coordinate: a tenth is enough.
fn at(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_string).unwrap_or(text)
}

/// The words for colors, below a figure.
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
    fn round_ends() {
        let axis = Axis::around([3.2, 17.8].into_iter(), 5);
        assert_eq!((axis.low, axis.high, axis.ticks.len()), (0.0, 20.0, 5));
        assert_eq!(axis.place(10.0, 100.0, 200.0), 150.0);
        let flat = Axis::around([2.0, 2.0, f64::NAN].into_iter(), 4);
        assert!(flat.low < 2.0 && flat.high > 2.0);
        let none = Axis::around(std::iter::empty(), 5);
        assert_eq!((none.low, none.high), (0.0, 1.0));
        assert_eq!((short(0.25), short(20.0), short(-0.0)), ("0.25".into(), "20".into(), "0".into()));
    }

    #[test]
    fn names_are_escaped() {
        let line = Line { name: "<script>".into(), points: vec![(1.0, 2.0), (2.0, 1.0)], strong: true };
        let text = lines("a & b", "epoch", "error", &[line]).into_string();
        assert!(!text.contains("<script>") && text.contains("&lt;script&gt;") && text.contains("a &amp; b"));
    }
}
