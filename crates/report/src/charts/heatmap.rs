//! Heatmaps of confusion matrices.

use maud::{Markup, html};
use stillhouse_metrics::ConfusionMatrix;

use super::at;

/// Smallest and largest side of a cell.
const CELL_SIZE: (f64, f64) = (5.0, 26.0);
/// With more classes, counts are shown in tooltips only.
const MAX_CLASSES_WITH_COUNTS: usize = 32;

/// Draws a confusion matrix: rows are true classes, columns predicted ones; the shade is the fraction of the
/// row, the number the images. Errors have a color of their own.
pub fn heatmap(title: &str, classes: &[String], matrix: &ConfusionMatrix) -> Markup {
    let n = matrix.classes();
    let name = |i: usize| classes.get(i).map_or_else(|| i.to_string(), Clone::clone);
    let longest = (0..n).map(|i| name(i).chars().count().min(22)).max().unwrap_or(0) as f64;
    let cell: f64 = 440.0 / n.max(1) as f64;
    let cell = cell.clamp(CELL_SIZE.0, CELL_SIZE.1);
    let letters = (cell * 0.8).min(11.0);
    let named = letters >= 5.0;
    let side = if named { longest * letters * 0.58 + 8.0 } else { 4.0 };
    let (width, height) = (side + cell * n as f64 + 2.0, side + cell * n as f64 + 2.0);
    let fractions = matrix.row_normalized();
    let counts = matrix.counts();
    html! {
        figure.heat {
            figcaption { (title) }
            div.scroll {
                svg viewBox=(format!("0 0 {} {}", at(width), at(height))) role="img" aria-label=(title)
                    style=(format!("min-width:{}px;max-width:{}px", at(width.min(560.0) * 0.9), at(width * 1.4))) {
                    @if named {
                        @for i in 0..n {
                            @let middle = side + cell * (i as f64 + 0.5);
                            @let word: String = name(i).chars().take(22).collect();
                            text x=(at(side - 4.0)) y=(at(middle + letters * 0.35)) text-anchor="end"
                                font-size=(at(letters)) { (word) }
                            text font-size=(at(letters)) text-anchor="start"
                                transform=(format!("translate({} {}) rotate(-90)", at(middle + letters * 0.35), at(side - 4.0))) { (word) }
                        }
                    }
                    @for row in 0..n {
                        @for column in 0..n {
                            @let count = counts[row * n + column];
                            @let fraction = fractions[row * n + column];
                            @if count > 0 {
                                @let (x, y) = (side + cell * column as f64, side + cell * row as f64);
                                rect.(if row == column { "hit" } else { "miss" }) x=(at(x)) y=(at(y)) width=(at(cell))
                                    height=(at(cell)) fill-opacity=(format!("{:.3}", 0.12 + 0.88 * fraction)) {
                                    title {
                                        (name(row)) " predicted as " (name(column)) ": " (count) " ("
                                        (format!("{:.2}", 100.0 * fraction)) " %)"
                                    }
                                }
                                @if n <= MAX_CLASSES_WITH_COUNTS {
                                    text.(if fraction > 0.55 { "on" } else { "off" }) x=(at(x + cell / 2.0))
                                        y=(at(y + cell / 2.0 + letters * 0.32)) text-anchor="middle"
                                        font-size=(at(letters * 0.9)) pointer-events="none" { (count) }
                                }
                            }
                        }
                    }
                    rect.frame x=(at(side)) y=(at(side)) width=(at(cell * n as f64)) height=(at(cell * n as f64)) {}
                }
            }
            p.small { "Rows: true class; columns: predicted class; numbers: images." }
        }
    }
}
