//! Bar charts by class.

use maud::{Markup, html};

use super::{WIDTH, at, color, legend};

const BAR: f64 = 7.0;
const LETTERS: f64 = 11.0;

/// Percentages by class; none for a class without images.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Percent by class.
    pub values: Vec<Option<f64>>,
}

/// Draws horizontal bars from 0 to 100 %, one group per class.
pub fn bar_chart(title: &str, classes: &[String], series: &[Series]) -> Markup {
    let group = (BAR * series.len() as f64).max(LETTERS) + 6.0;
    let longest = classes.iter().map(|c| c.chars().count().min(22)).max().unwrap_or(0) as f64;
    let left = longest * LETTERS * 0.56 + 8.0;
    let scale = (WIDTH - left - 34.0) / 100.0;
    let height = group * classes.len() as f64 + 22.0;
    let entries: Vec<(String, &str)> =
        series.iter().enumerate().map(|(i, s)| (s.name.clone(), color(i))).collect();
    html! {
        figure {
            figcaption { (title) }
            svg viewBox=(format!("0 0 {WIDTH} {}", at(height))) role="img" aria-label=(title) {
                @for tick in [0.0, 25.0, 50.0, 75.0, 100.0] {
                    @let x = at(left + tick * scale);
                    line.grid x1=(x) x2=(x) y1="0" y2=(at(height - 18.0)) {}
                    text x=(x) y=(at(height - 4.0)) text-anchor="middle" font-size=(LETTERS) { (tick) " %" }
                }
                @for (c, class) in classes.iter().enumerate() {
                    @let top = group * c as f64 + 3.0;
                    @let word: String = class.chars().take(22).collect();
                    text x=(at(left - 5.0)) y=(at(top + group / 2.0)) text-anchor="end" font-size=(LETTERS) { (word) }
                    @for (s, one) in series.iter().enumerate() {
                        @if let Some(value) = one.values.get(c).copied().flatten() {
                            rect x=(at(left)) y=(at(top + BAR * s as f64)) width=(at((value * scale).max(0.5)))
                                height=(at(BAR - 1.0)) fill=(color(s)) {
                                title { (class) ", " (one.name) ": " (format!("{value:.2}")) " %" }
                            }
                        }
                    }
                }
            }
            (legend(&entries))
        }
    }
}
