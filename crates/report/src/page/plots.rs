//! Charts from logs and predictions.

use maud::{Markup, html};
use stillhouse_runs::{EpochLog, Measure, mean_iou};

use super::{Page, html_table};
use crate::Record;
use crate::charts::{Line, Series, bar_chart, heatmap, line_chart};
use crate::published::setting;
use crate::results_table::BASELINE_PLAIN;

/// Training curves, one chart per student and column.
pub(super) fn training_curves(page: &Page) -> Markup {
    let columns = page.columns();
    html! {
        @if !columns.is_empty() {
            h2 { "Training curves" }
            div.figures {
                @for at in columns {
                    @let column = page.column_title(at);
                    @for (what, unit, value) in curves_of(page.table.measure) {
                        @let of_all = of_methods(page, at, value);
                        // One tested epoch is no curve.
                        @if of_all.iter().any(|l| l.points.len() > 1) {
                            (line_chart(&format!("{column}: {what}"), "epoch", unit, &of_all))
                        }
                    }
                }
            }
            p.small {
                "Means over the finished seeds. Test scores during training serve these charts only; nothing is selected \
                 by them."
            }
        }
    }
}

/// A value of an epoch of a run.
type Value = fn(&Record, &EpochLog) -> Option<f64>;

/// The curves of a measure: title, axis label, value.
fn curves_of(measure: Measure) -> [(&'static str, &'static str, Value); 2] {
    match measure {
        Measure::Accuracy => [
            ("error on test images", "error, %", test_error),
            ("error on training images", "error, %", train_error),
        ],
        // The weighted losses of two methods are not comparable, but each shows its convergence.
        Measure::MeanIou => [
            ("mean IoU on test images", "mean IoU, %", |_, epoch| mean_iou(&epoch.scores)),
            ("weighted loss", "loss", |_, epoch| Some(epoch.loss)),
        ],
    }
}

fn of_methods(page: &Page, at: (&str, &str, u64), value: Value) -> Vec<Line> {
    let methods = page.methods(at);
    let strong = page.charted(at).last().copied().unwrap_or_default().to_string();
    let curve = |method: &str| -> Vec<(f64, f64)> {
        let runs = page.runs_of(at, method);
        let Some(first) = runs.first() else { return Vec::new() };
        let mean = |epoch: u64| -> Option<f64> {
            let of = |run: &&Record| run.log.iter().find(|e| e.epoch == epoch).and_then(|e| value(run, e));
            let values: Option<Vec<f64>> = runs.iter().map(of).collect();
            values.map(|v| v.iter().sum::<f64>() / v.len() as f64)
        };
        first.log.iter().filter_map(|e| Some((e.epoch as f64, mean(e.epoch)?))).collect()
    };
    let lines =
        methods.iter().map(|m| Line { name: (*m).to_string(), points: curve(m), strong: *m == strong });
    lines.filter(|l| !l.points.is_empty()).collect()
}

fn test_error(run: &Record, epoch: &EpochLog) -> Option<f64> {
    epoch.test_correct.map(|correct| 100.0 - 100.0 * correct as f64 / run.result.total as f64)
}

fn train_error(_: &Record, epoch: &EpochLog) -> Option<f64> {
    epoch.train_accuracy.map(|a| 100.0 - 100.0 * a)
}

/// Confusion matrices of the teachers and of a few methods of each column, first seed.
pub(super) fn confusion_matrices(page: &Page) -> Markup {
    let mut figures: Vec<Markup> = Vec::new();
    let map = |title: String, record: &Record| {
        let matrix = record.confusion().ok()??;
        Some(heatmap(&title, &record.info.classes, &matrix))
    };
    for teacher in page.finished.teachers.iter().take(4) {
        let about = &teacher.info;
        let title =
            format!("{} (teacher), {}", about.student(), Page::data_title(&about.dataset(), about.ratio()));
        figures.extend(map(format!("{title}, {}", accuracy_text(teacher)), teacher));
    }
    for at in page.columns() {
        for method in page.charted(at) {
            if let Some(record) = page.runs_of(at, method).first() {
                figures.extend(map(
                    format!("{}: {method}, {}", page.column_title(at), accuracy_text(record)),
                    record,
                ));
            }
        }
    }
    html! {
        @if !figures.is_empty() {
            h2 { "Confusion matrices" }
            div.figures { @for figure in figures { (figure) } }
        }
    }
}

/// `seed 0, 392/420 correct`.
fn accuracy_text(record: &Record) -> String {
    let correct = record.result.correct.unwrap_or_default();
    format!("seed {}, {correct}/{} correct", record.info.seed(), record.result.total)
}

/// Scores over the values of a setting, one curve per student and column.
pub(super) fn sweep(page: &Page) -> Markup {
    let Some(key) = page.spec.published.as_ref().and_then(|p| p.sweep.as_deref()) else { return html! {} };
    let curve = |at: (&str, &str, u64)| -> Option<Line> {
        let here =
            page.table.cells.iter().filter(|c| (c.student.as_str(), c.dataset.as_str(), c.ratio) == at);
        let mut points: Vec<(f64, f64)> = here
            .filter_map(|cell| {
                let record = *page.runs_of(at, &cell.method).first()?;
                Some((setting(&record.info.run, key)?, cell.mean?))
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let name = page.column_title(at);
        (!points.is_empty()).then_some(Line { name, points, strong: false })
    };
    let curves: Vec<Line> = page.columns().into_iter().filter_map(curve).collect();
    let (name, measure) = (key.rsplit('.').next().unwrap_or(key), page.table.measure);
    html! {
        @if !curves.is_empty() {
            h2 { "Sweep of " (name) }
            div.figures {
                (line_chart(&format!("{measure} over {key}"), name, &format!("{measure}, %"), &curves))
            }
        }
    }
}

/// IoU by class: a bar chart and a table per column.
fn iou_by_class(page: &Page) -> Markup {
    html! {
        h2 { "IoU by class" }
        p.soft {
            "Intersection over union of each class in percent, mean over the finished seeds; no bar for a class absent from \
             truth and prediction."
        }
        div.figures {
            @for table in &page.table.by_class {
                @let series: Vec<Series> = table.methods.iter()
                    .map(|(name, values)| Series { name: name.clone(), values: values.clone() }).collect();
                (bar_chart(&page.column_title((&table.student, &table.dataset, table.ratio)), &table.classes, &series))
            }
        }
        @for table in &page.table.by_class {
            details {
                summary { "Table: " (page.column_title((&table.student, &table.dataset, table.ratio))) }
                (html_table(&table.text_table()))
            }
        }
    }
}

/// Bar charts of the accuracy by class of a few methods.
pub(super) fn by_class(page: &Page) -> Markup {
    if !page.table.by_class.is_empty() {
        return iou_by_class(page);
    }
    let columns = page.columns();
    let figure = |at: (&str, &str, u64)| -> Option<Markup> {
        let mut series = Vec::new();
        let mut classes = None;
        for method in page.charted(at).into_iter().filter(|m| *m != BASELINE_PLAIN) {
            let runs = page.runs_of(at, method);
            let record = runs.first()?;
            let matrix = record.confusion().ok()??;
            let by_class = matrix.true_positives().into_iter().zip(matrix.support());
            let values = by_class.map(|(hit, of)| (of > 0).then(|| 100.0 * hit as f64 / of as f64));
            series.push(Series { name: method.to_string(), values: values.collect() });
            classes = Some(&record.info.classes);
        }
        Some(bar_chart(&page.column_title(at), classes?, &series))
    };
    let figures: Vec<Markup> = columns.into_iter().filter_map(figure).collect();
    html! {
        @if !figures.is_empty() {
            h2 { "Accuracy by class" }
            p.soft { "Percentage of each class's test images classified correctly, first seed." }
            div.figures { @for figure in figures { (figure) } }
        }
    }
}
