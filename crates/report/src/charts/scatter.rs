//! Scatter plots, colored by class.

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::{Axis, at, color, legend};

const SIDE: f64 = 460.0;

/// The points of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Name in the legend.
    pub name: String,
    /// Coordinates.
    pub points: Vec<[f64; 2]>,
}

/// Draws points in a square. The axes have no meaning and no ticks. Classes that share a color differ in
/// their shape.
pub fn scatter(title: &str, groups: &[Group]) -> Markup {
    let all = || groups.iter().flat_map(|g| g.points.iter());
    let ends = |axis: usize| Axis::from_values(all().map(|p| p[axis]), 50);
    let (x, y) = (ends(0), ends(1));
    let across = |v: f64| x.position(v, 10.0, SIDE - 10.0);
    let up = |v: f64| y.position(v, SIDE - 10.0, 10.0);
    let entries: Vec<(String, &str)> =
        groups.iter().enumerate().map(|(i, g)| (g.name.clone(), color(i))).collect();
    html! {
        figure {
            figcaption { (title) }
            svg viewBox=(format!("0 0 {SIDE} {SIDE}")) role="img" aria-label=(title) {
                rect.frame x="1" y="1" width=(SIDE - 2.0) height=(SIDE - 2.0) {}
                @for (g, group) in groups.iter().enumerate() {
                    g fill=(color(g)) {
                        title { (group.name) }
                        @for [a, b] in &group.points {
                            @let (a, b) = (across(*a), up(*b));
                            @if g < super::COLORS.len() {
                                circle cx=(at(a)) cy=(at(b)) r="3.5" {}
                            } @else {
                                rect x=(at(a - 3.0)) y=(at(b - 3.0)) width="6" height="6" {}
                            }
                        }
                    }
                }
            }
            (legend(&entries))
        }
    }
}
