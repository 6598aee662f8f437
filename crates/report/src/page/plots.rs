//! The figures of a page that come from logs and predictions.

use maud::{Markup, html};
use stillhouse_runs::{EpochLog, Measure, mean_iou};

use super::{Page, grid};
use crate::Record;
use crate::accuracy::{BELOW, network_title};
use crate::frkdnet::gamma;
use crate::svg::{Line, Series, bars, heat_map, lines};

/// Errors under training, a figure for each student and column.
pub(super) fn curves(page: &Page) -> Markup {
    let columns = page.columns();
    html! {
        @if !columns.is_empty() {
            h2 { "Under training" }
            div.figures {
                @for at in columns {
                    @let place = page.place(at);
                    @for (what, unit, value) in curves_of(page.table.measure) {
                        @let of_all = of_methods(page, at, value);
                        // One tested epoch is no curve.
                        @if of_all.iter().any(|l| l.points.len() > 1) {
                            (lines(&format!("{place}: {what}"), "epoch", unit, &of_all))
                        }
                    }
                }
            }
            p.small {
                "Means over the finished seeds. Test images are looked at while training only to draw this; nothing is \
                 chosen by them."
            }
        }
    }
}

/// A figure of an epoch of a run.
type Value = fn(&Record, &EpochLog) -> Option<f64>;

/// The curves that there are for such figures: title, axis, value.
fn curves_of(measure: Measure) -> [(&'static str, &'static str, Value); 2] {
    match measure {
        Measure::Accuracy => [
            ("error on test images", "error, %", test_error),
            ("error on training images", "error, %", train_error),
        ],
        // The weighted sums of two methods are sums of different things, yet each tells how it falls.
        Measure::MeanIou => [
            ("mean IoU on test images", "mean IoU, %", |_, epoch| mean_iou(&epoch.scores)),
            ("weighted loss", "loss", |_, epoch| Some(epoch.loss)),
        ],
    }
}

fn of_methods(page: &Page, at: (&str, &str, u64), value: Value) -> Vec<Line> {
    let methods = page.methods(at);
    let strong = page.chosen(at).last().copied().unwrap_or_default().to_string();
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

/// Confusion matrices of the teacher and of a few methods of each column, of the first seed.
pub(super) fn confusions(page: &Page) -> Markup {
    let mut figures: Vec<Markup> = Vec::new();
    let map = |title: String, record: &Record| {
        let matrix = record.confusion().ok()??;
        Some(heat_map(&title, &record.info.classes, &matrix))
    };
    for teacher in page.teachers.iter().take(4) {
        let about = &teacher.info;
        let whose = format!(
            "{} (teacher), {}",
            network_title(&about.student()),
            Page::part(&about.dataset(), about.ratio())
        );
        figures.extend(map(format!("{whose}, {}", words(teacher)), teacher));
    }
    for at in page.columns() {
        for method in page.chosen(at) {
            if let Some(record) = page.runs_of(at, method).first() {
                figures.extend(map(format!("{}: {method}, {}", page.place(at), words(record)), record));
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
fn words(record: &Record) -> String {
    let correct = record.result.correct.unwrap_or_default();
    format!("seed {}, {correct}/{} correct", record.info.seed(), record.result.total)
}

/// Mean IoU over the values of a sweep, a figure for all columns of a student.
pub(super) fn sweep(page: &Page) -> Markup {
    let curve = |at: (&str, &str, u64)| -> Option<Line> {
        let here =
            page.table.cells.iter().filter(|c| (c.student.as_str(), c.dataset.as_str(), c.ratio) == at);
        let mut points: Vec<(f64, f64)> = here.filter_map(|c| Some((gamma(&c.method)?, c.mean?))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let name = format!("{}, {}", page.table.heading(at.0), Page::part(at.1, at.2));
        (!points.is_empty()).then_some(Line { name, points, strong: false })
    };
    let curves: Vec<Line> = page.columns().into_iter().filter_map(curve).collect();
    html! {
        @if !curves.is_empty() {
            h2 { "Over gamma" }
            div.figures { (lines("mean IoU over gamma, the weight of the distances", "gamma", "mean IoU, %", &curves)) }
        }
    }
}

/// IoU by class: bars of all methods, and the figures.
fn iou_by_class(page: &Page) -> Markup {
    html! {
        h2 { "IoU by class" }
        p.soft {
            "Intersection over union of each class in percent, mean over the finished seeds; no bar for a class that is in \
             neither truth nor prediction."
        }
        div.figures {
            @for table in &page.table.by_class {
                @let series: Vec<Series> = table.methods.iter()
                    .map(|(name, values)| Series { name: name.clone(), values: values.clone() }).collect();
                (bars(&page.place((&table.student, &table.dataset, table.ratio)), &table.classes, &series))
            }
        }
        @for table in &page.table.by_class {
            details {
                summary { "Figures: " (page.place((&table.student, &table.dataset, table.ratio))) }
                (grid(&table.grid()))
            }
        }
    }
}

/// Bars by class of the same few methods.
pub(super) fn by_class(page: &Page) -> Markup {
    if !page.table.by_class.is_empty() {
        return iou_by_class(page);
    }
    let columns = page.columns();
    let figure = |at: (&str, &str, u64)| -> Option<Markup> {
        let mut series = Vec::new();
        let mut classes = None;
        for method in page.chosen(at).into_iter().filter(|m| *m != BELOW) {
            let runs = page.runs_of(at, method);
            let record = runs.first()?;
            let matrix = record.confusion().ok()??;
            let by_class = matrix.true_positives().into_iter().zip(matrix.support());
            let values = by_class.map(|(hit, of)| (of > 0).then(|| 100.0 * hit as f64 / of as f64));
            series.push(Series { name: method.to_string(), values: values.collect() });
            classes = Some(&record.info.classes);
        }
        Some(bars(&page.place(at), classes?, &series))
    };
    let figures: Vec<Markup> = columns.into_iter().filter_map(figure).collect();
    html! {
        @if !figures.is_empty() {
            h2 { "By class" }
            p.soft { "Part of each class's test images that is classified rightly, first seed." }
            div.figures { @for figure in figures { (figure) } }
        }
    }
}
