//! The opening of a page: the answer in a sentence and a figure.

use maud::{Markup, html};

use crate::ResultsTable;
use crate::charts::{Interval, interval_chart};
use crate::results_table::BASELINE;
use crate::summary::{ColumnSummary, FIGURE_NOTE};

/// The sentence of the first column, a figure per student and column, the other sentences.
pub(super) fn answer(table: &ResultsTable) -> Markup {
    let summaries = table.column_summaries();
    let Some((first, others)) = summaries.split_first() else { return html! {} };
    html! {
        p.answer { (first.sentence()) }
        div.figures { @for summary in &summaries { (figure(summary)) } }
        p.small { (FIGURE_NOTE) }
        @if !others.is_empty() { ul.notes { @for summary in others { li { (summary.sentence()) } } } }
    }
}

fn figure(summary: &ColumnSummary) -> Markup {
    let rows = summary.rows.iter().filter(|r| r.method != BASELINE || summary.rows.len() == 1);
    let rows: Vec<Interval> = rows
        .map(|r| Interval {
            name: r.method.into(),
            value: r.mean,
            ends: r.interval,
            strong: r.is_significant(),
        })
        .collect();
    let baseline = summary.baseline.filter(|_| summary.rows.len() > 1);
    let references = [("alone", baseline), ("teacher", summary.teacher)];
    let references: Vec<(String, f64)> =
        references.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect();
    interval_chart(&summary.title, &summary.axis(), &rows, &references)
}
