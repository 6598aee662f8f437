//! Line charts.

use maud::{Markup, html};

use super::{Axis, WIDTH, at, color, legend, short};

const HEIGHT: f64 = 280.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 38.0;

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// Points with ascending x.
    pub points: Vec<(f64, f64)>,
    /// Whether it is drawn thick.
    pub strong: bool,
}

/// Draws curves over a common axis, with a legend.
pub fn line_chart(title: &str, x_label: &str, y_label: &str, lines: &[Line]) -> Markup {
    let all = || lines.iter().flat_map(|l| l.points.iter().copied());
    let x = Axis::from_values(all().map(|p| p.0), 6);
    let y = Axis::from_values(all().map(|p| p.1), 5);
    let across = |v: f64| x.position(v, LEFT, WIDTH - RIGHT);
    let up = |v: f64| y.position(v, HEIGHT - BOTTOM, TOP);
    let entries: Vec<(String, &str)> =
        lines.iter().enumerate().map(|(i, l)| (l.name.clone(), color(i))).collect();
    html! {
        figure {
            figcaption { (title) }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(title) {
                @for tick in &y.ticks {
                    line.grid x1=(at(LEFT)) x2=(at(WIDTH - RIGHT)) y1=(at(up(*tick))) y2=(at(up(*tick))) {}
                    text x=(at(LEFT - 6.0)) y=(at(up(*tick) + 4.0)) text-anchor="end" { (short(*tick)) }
                }
                @for tick in &x.ticks {
                    text x=(at(across(*tick))) y=(at(HEIGHT - BOTTOM + 16.0)) text-anchor="middle" { (short(*tick)) }
                }
                text x=(at((LEFT + WIDTH) / 2.0)) y=(at(HEIGHT - 4.0)) text-anchor="middle" { (x_label) }
                text x="12" y=(at((HEIGHT - BOTTOM) / 2.0)) text-anchor="middle"
                    transform=(format!("rotate(-90 12 {})", at((HEIGHT - BOTTOM) / 2.0))) { (y_label) }
                @for (i, line) in lines.iter().enumerate() {
                    @let path: Vec<String> = line.points.iter().map(|(a, b)| format!("{},{}", at(across(*a)), at(up(*b)))).collect();
                    polyline points=(path.join(" ")) fill="none" stroke=(color(i))
                        stroke-width=(if line.strong { "3" } else { "1.5" }) stroke-linejoin="round" {
                        title { (line.name) @if let Some((_, last)) = line.points.last() { ": " (format!("{last:.3}")) " at the end" } }
                    }
                    @if let [(a, b)] = line.points.as_slice() {
                        circle cx=(at(across(*a))) cy=(at(up(*b))) r="3" fill=(color(i)) { title { (line.name) } }
                    }
                }
            }
            (legend(&entries))
        }
    }
}
