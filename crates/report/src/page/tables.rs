//! Tables of a page: results with differences, significance tests, published numbers, networks.

use maud::{Markup, html};

use super::{Page, html_table};
use crate::published::comparison_table;
use crate::results_table::{
    BASELINE, BASELINE_PLAIN, SIGNIFICANCE_NOTE, TableCell, distinct, open_cells, ratio_text,
};
use crate::{Measure, RunStatus, exit_accuracy, networks};

/// One table per student: mean, counts, difference to the baseline, published number, difference to it.
pub(super) fn results(page: &Page) -> Markup {
    let table = page.table;
    let students = distinct(table.cells.iter().map(|c| c.student.as_str()));
    let open = open_cells(table);
    html! {
        h2 { (match table.measure { Measure::Accuracy => "Accuracy", Measure::MeanIou => "Mean IoU" }) }
        @for student in students { h3 { (table.heading(student)) } (student_table(page, student)) }
        p.small {
            (match table.measure {
                Measure::Accuracy => "Percentage of test images classified correctly after the last epoch: mean over n seeds \
                    ± standard deviation (n - 1); below it, correct and all test images, summed over the seeds.",
                Measure::MeanIou => "Mean IoU in percent after the last epoch, from one confusion matrix over all pixels of \
                    the test images: mean over n seeds ± standard deviation (n - 1); below it, test images, summed over \
                    the seeds.",
            })
            " Colored columns are differences in percentage points: to the baseline, trained with the same batches, and \
             to the published number."
        }
        @if !open.is_empty() { p { "Not all cells are done: " (open.join(", ")) "." } }
    }
}

/// Accuracy at every exit and on flipped images.
pub(super) fn exits(page: &Page) -> Markup {
    html! {
        @if !page.table.exits.is_empty() {
            h2 { "Exits and views" }
            (html_table(&exit_accuracy::text_table(&page.table.exits)))
            p.small { (exit_accuracy::NOTE) }
        }
    }
}

fn student_table(page: &Page, student: &str) -> Markup {
    let cells: Vec<&TableCell> = page.table.cells.iter().filter(|c| c.student == student).collect();
    let columns = distinct(cells.iter().map(|c| (c.dataset.as_str(), c.ratio)));
    let methods = distinct(cells.iter().map(|c| c.method.as_str()));
    let find = |method: &str, (dataset, ratio): (&str, u64)| {
        cells.iter().find(|c| c.method == method && c.dataset == dataset && c.ratio == ratio).copied()
    };
    // The colors scale with the largest difference to the baseline in this table.
    let leads = columns.iter().flat_map(|at| {
        let base = find(BASELINE, *at).and_then(|c| c.mean);
        methods.iter().filter_map(move |m| Some((find(m, *at)?.mean? - base?).abs()))
    });
    let largest = leads.fold(0.0, f64::max).max(1.0);
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "method" }
                        @for (dataset, ratio) in &columns {
                            th { (dataset) " " (ratio_text(*ratio)) }
                            th { "Δ baseline" } th { "published" } th { "Δ published" }
                        }
                    }
                }
                tbody {
                    @for method in &methods {
                        tr {
                            td {
                                (method)
                                @if let Some(sampler) = sampler(page, student, method) { br; small { (sampler) } }
                            }
                            @for at in &columns { (cell_columns(page, find(method, *at), find(BASELINE, *at), largest, best(&cells, *at))) }
                        }
                    }
                }
            }
        }
    }
}

/// The highest mean of a column.
fn best(cells: &[&TableCell], (dataset, ratio): (&str, u64)) -> Option<f64> {
    let here =
        cells.iter().filter(|c| c.dataset == dataset && c.ratio == ratio && c.method != BASELINE_PLAIN);
    here.filter_map(|c| c.mean).reduce(f64::max)
}

fn sampler(page: &Page, student: &str, method: &str) -> Option<String> {
    let (_, record) = page.finished.runs.iter().find(|(p, _)| p.student == student && p.method == method)?;
    Some(record.result.summary.sampler.clone())
}

fn cell_columns(
    page: &Page,
    cell: Option<&TableCell>,
    baseline: Option<&TableCell>,
    largest: f64,
    best: Option<f64>,
) -> Markup {
    let Some(cell) = cell else { return html! { td { "not planned" } td {} td {} td {} } };
    let lead = match (cell.mean, baseline.and_then(|b| b.mean)) {
        (Some(own), Some(base)) if cell.method != BASELINE => Some(own - base),
        _ => None,
    };
    // Results on procedural images do not differ from the published ones in a meaningful way.
    let published = cell.published.filter(|_| !page.spec.caption.synthetic);
    let difference = cell.mean.zip(published).map(|(measured, published)| measured - published);
    html! {
        td {
            @match cell.mean {
                Some(mean) => {
                    @let number = format!("{mean:.2}");
                    @if cell.mean == best && cell.method != BASELINE_PLAIN { b { (number) } } @else { (number) }
                    @if let Some(std) = cell.std { " ± " (format!("{std:.2}")) }
                    br;
                    small {
                        @if !cell.correct.is_empty() { (cell.correct.iter().sum::<u64>()) "/" }
                        (cell.total.iter().sum::<u64>())
                        @if cell.correct.is_empty() { " images" }
                        ", n = " (cell.n)
                        @if cell.state != RunStatus::Done { ", " (cell.state) }
                    }
                },
                None => (cell.state),
            }
        }
        (delta(lead, largest))
        td { @match cell.published { Some(v) => (format!("{v:.2}")), None => "-" } }
        (delta(difference, largest.max(10.0)))
    }
}

/// A difference, shaded green or red in proportion to its size.
fn delta(value: Option<f64>, largest: f64) -> Markup {
    let Some(value) = value else { return html! { td { "-" } } };
    let color = if value < 0.0 { "--down" } else { "--up" };
    let strength = (value.abs() / largest).min(1.0) * 0.5;
    html! { td style=(format!("background:rgba(var({color}),{strength:.2})")) { (format!("{value:+.2}")) } }
}

/// Significance tests of every method against the best other one.
pub(super) fn significance(page: &Page) -> Markup {
    html! {
        @if !page.table.tests.is_empty() {
            h2 { "Significance" }
            (html_table(&page.table.significance_table()))
            p.small { (SIGNIFICANCE_NOTE) }
        }
    }
}

/// Published and measured numbers, and notes on the published ones.
pub(super) fn published(page: &Page) -> Markup {
    html! {
        @if !page.table.published.is_empty() {
            h2 { "Published numbers" }
            details {
                summary { "All " (page.table.published.len()) " published numbers and the measured ones" }
                (html_table(&comparison_table(&page.table.published)))
            }
        }
        @if !page.table.known().is_empty() {
            p { "Notes on the published numbers:" }
            ul.notes { @for note in page.table.known() { li { (note) } } }
        }
    }
}

/// Size and speed of each network.
pub(super) fn networks(page: &Page) -> Markup {
    html! {
        @if !page.table.networks.is_empty() {
            h2 { "Size and speed" }
            (html_table(&networks::text_table(&page.table.networks)))
            p.small { (networks::NOTE) }
        }
    }
}
