//! The tables of a page: accuracies with their deltas, tests, printed numbers, networks.

use maud::{Markup, html};

use super::{Page, grid};
use crate::accuracy::{BELOW, Cell, lines_grid, part_words};
use crate::{AccuracyTable, exits, networks};
use crate::{Measure, RunStatus};

/// A table for each student: mean, counts, difference from the student alone, and the printed number.
pub(super) fn tables(page: &Page) -> Markup {
    let table = page.table;
    let mut students: Vec<&str> = Vec::new();
    for cell in &table.cells {
        if !students.contains(&cell.student.as_str()) {
            students.push(&cell.student);
        }
    }
    html! {
        h2 { (match table.measure { Measure::Accuracy => "Accuracy", Measure::MeanIou => "Mean IoU" }) }
        @for student in students { h3 { (table.heading(student)) } (accuracies(page, student)) }
        p.small {
            (match table.measure {
                Measure::Accuracy => "Percent of the test images classified rightly by the network of the last epoch: mean \
                    over n seeds ± standard deviation (n - 1); below it correct of all test images, summed over the seeds.",
                Measure::MeanIou => "Mean IoU in percent of the network of the last epoch, from one confusion matrix over all \
                    pixels of the test images: mean over n seeds ± standard deviation (n - 1); below it test images, summed \
                    over the seeds.",
            })
            " The colored columns are differences in percentage points: to the baseline, which is drawn in the same \
             batches, and to the printed number."
        }
        @let states = open(table);
        @if !states.is_empty() { p { (states) } }
    }
}

/// Accuracies at every exit and on other views.
pub(super) fn exits(page: &Page) -> Markup {
    html! {
        @if !page.table.exits.is_empty() {
            h2 { "Exits and views" }
            (grid(&exits::grid(&page.table.exits)))
            p.small { (exits::BELOW) }
        }
    }
}

fn open(table: &AccuracyTable) -> String {
    let count = |state| table.cells.iter().filter(|c| c.state == state).count();
    let open = [RunStatus::Pending, RunStatus::Running, RunStatus::Failed, RunStatus::UnknownMethod];
    let open: Vec<String> =
        open.into_iter().filter(|s| count(*s) > 0).map(|s| format!("{} {s}", count(s))).collect();
    if open.is_empty() { String::new() } else { format!("Not all cells are done: {}.", open.join(", ")) }
}

fn accuracies(page: &Page, student: &str) -> Markup {
    let cells: Vec<&Cell> = page.table.cells.iter().filter(|c| c.student == student).collect();
    let mut columns: Vec<(&str, u64)> = Vec::new();
    let mut methods: Vec<&str> = Vec::new();
    for cell in &cells {
        if !columns.contains(&(&cell.dataset, cell.ratio)) {
            columns.push((&cell.dataset, cell.ratio));
        }
        if !methods.contains(&cell.method.as_str()) {
            methods.push(&cell.method);
        }
    }
    let find = |method: &str, (dataset, ratio): (&str, u64)| {
        cells.iter().find(|c| c.method == method && c.dataset == dataset && c.ratio == ratio).copied()
    };
    // The scale of the colors: the largest difference from the baseline in this table.
    let leads = columns.iter().flat_map(|at| {
        let base = find("baseline", *at).and_then(|c| c.mean);
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
                            th { (dataset) " " (part_words(*ratio)) }
                            th { "Δ baseline" } th { "paper" } th { "Δ paper" }
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
                            @for at in &columns { (four(page, find(method, *at), find("baseline", *at), largest, best(&cells, *at))) }
                        }
                    }
                }
            }
        }
    }
}

/// The highest mean of a column.
fn best(cells: &[&Cell], (dataset, ratio): (&str, u64)) -> Option<f64> {
    let here = cells.iter().filter(|c| c.dataset == dataset && c.ratio == ratio && c.method != BELOW);
    here.filter_map(|c| c.mean).reduce(f64::max)
}

fn sampler(page: &Page, student: &str, method: &str) -> Option<String> {
    let (_, record) = page.runs.iter().find(|(p, _)| p.student == student && p.method == method)?;
    Some(record.result.summary.sampler.clone())
}

fn four(
    page: &Page,
    cell: Option<&Cell>,
    baseline: Option<&Cell>,
    largest: f64,
    best: Option<f64>,
) -> Markup {
    let Some(cell) = cell else { return html! { td { "not planned" } td {} td {} td {} } };
    let lead = match (cell.mean, baseline.and_then(|b| b.mean)) {
        (Some(own), Some(base)) if cell.method != "baseline" => Some(own - base),
        _ => None,
    };
    // Procedural images are no other measurement of what the paper measured.
    let paper = cell.published.filter(|_| !page.asked.caption.synthetic);
    let from_paper = cell.mean.zip(paper).map(|(own, paper)| own - paper);
    html! {
        td {
            @match cell.mean {
                Some(mean) => {
                    @let number = format!("{mean:.2}");
                    @if cell.mean == best && cell.method != BELOW { b { (number) } } @else { (number) }
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
        (delta(from_paper, largest.max(10.0)))
    }
}

/// A difference with its shade: green ahead, red behind, as strong as it is large.
fn delta(value: Option<f64>, largest: f64) -> Markup {
    let Some(value) = value else { return html! { td { "-" } } };
    let color = if value < 0.0 { "--down" } else { "--up" };
    let strength = (value.abs() / largest).min(1.0) * 0.5;
    html! { td style=(format!("background:rgba(var({color}),{strength:.2})")) { (format!("{value:+.2}")) } }
}

/// Every method beside the best other one.
pub(super) fn tests(page: &Page) -> Markup {
    html! {
        @if !page.table.tests.is_empty() {
            h2 { "Is the difference more than chance?" }
            (grid(&page.table.tests_grid()))
            p.small { (crate::accuracy::TESTS) }
        }
    }
}

/// Printed numbers beside ours, and what is known about them.
pub(super) fn printed(page: &Page) -> Markup {
    html! {
        @if !page.table.published.is_empty() {
            h2 { "Printed numbers" }
            details { summary { "All " (page.table.published.len()) " printed numbers beside ours" }
                (grid(&lines_grid(&page.table.published))) }
        }
        @if !page.table.facts().is_empty() {
            p { "What is known about the printed numbers:" }
            ul.facts { @for fact in page.table.facts() { li { (fact) } } }
        }
    }
}

/// Size and speed of each network.
pub(super) fn networks(page: &Page) -> Markup {
    html! {
        @if !page.table.networks.is_empty() {
            h2 { "Size and speed" }
            (grid(&networks::grid(&page.table.networks)))
            p.small { (networks::BELOW) }
        }
    }
}
