//! Charts of values with confidence intervals.

use maud::{Markup, html};

use super::{Axis, WIDTH, at, short};

const ROW: f64 = 19.0;
const LETTERS: f64 = 12.0;

/// A value with its interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Interval {
    /// Name of the row.
    pub name: String,
    /// The value in percent.
    pub value: f64,
    /// Ends of its confidence interval.
    pub ends: Option<[f64; 2]>,
    /// Whether it is drawn in the strong color.
    pub strong: bool,
}

/// Draws a row per value, and vertical lines at the named reference values.
pub fn interval_chart(title: &str, axis: &Axis, rows: &[Interval], references: &[(String, f64)]) -> Markup {
    let longest = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0) as f64;
    let left = longest * LETTERS * 0.56 + 8.0;
    let right = WIDTH - 52.0;
    let top = if references.is_empty() { 4.0 } else { 18.0 };
    let bottom = top + ROW * rows.len() as f64;
    let x = |value: f64| at(axis.position(value, left, right));
    html! {
        figure {
            figcaption { (title) }
            svg viewBox=(format!("0 0 {WIDTH} {}", at(bottom + 20.0))) role="img" aria-label=(title) {
                @for tick in &axis.ticks {
                    line.grid x1=(x(*tick)) x2=(x(*tick)) y1=(at(top)) y2=(at(bottom)) {}
                    text x=(x(*tick)) y=(at(bottom + 15.0)) text-anchor="middle" font-size=(LETTERS) { (short(*tick)) " %" }
                }
                @for (name, value) in references {
                    line.reference x1=(x(*value)) x2=(x(*value)) y1=(at(top - 3.0)) y2=(at(bottom)) {}
                    text x=(x(*value)) y=(at(top - 6.0)) text-anchor="middle" font-size=(LETTERS) { (name) }
                }
                @for (i, row) in rows.iter().enumerate() {
                    @let y = top + ROW * (i as f64 + 0.5);
                    @let class = if row.strong { "strong" } else { "weak" };
                    text x=(at(left - 6.0)) y=(at(y + 4.0)) text-anchor="end" font-size=(LETTERS) { (row.name) }
                    @if let Some([low, high]) = row.ends {
                        line.(class) x1=(x(low)) x2=(x(high)) y1=(at(y)) y2=(at(y)) {}
                    }
                    circle.(class) cx=(x(row.value)) cy=(at(y)) r="4" {
                        title {
                            (row.name) ": " (format!("{:.2}", row.value)) " %"
                            @if let Some([low, high]) = row.ends { (format!(" ({low:.2} to {high:.2})")) }
                        }
                    }
                    text x=(at(right + 6.0)) y=(at(y + 4.0)) font-size=(LETTERS) {
                        (format!("{:.2}", row.value)) @if row.strong { "*" }
                    }
                }
            }
        }
    }
}
