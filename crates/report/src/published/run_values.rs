//! Looks up selected numbers in finished runs.

use toml::{Table, Value};

use super::selector::{Quantity, Reduce, Selector, TEACHER, reduce};
use crate::results_table::Teacher;
use crate::{Measure, Planned, Record};

/// Finished runs and their teachers.
pub(crate) struct RunValues<'a> {
    pub(crate) runs: &'a [(Planned, Record)],
    /// The teachers as the runs of their students describe them.
    pub(crate) teachers: &'a [Teacher],
    /// The run folders of the teachers.
    pub(crate) teacher_runs: &'a [Record],
}

/// The runs of one cell, which differ in their seed.
type Cell<'a> = Vec<&'a (Planned, Record)>;

impl RunValues<'_> {
    /// Returns the number that a selector without an operand selects.
    pub(crate) fn value(&self, selector: &Selector) -> Option<f64> {
        let quantity = selector.quantity?;
        if selector.model.is_some() {
            return None;
        }
        if selector.method.as_deref() == Some(TEACHER) {
            return self.teacher_value(quantity, selector);
        }
        let cells = self.cells(selector);
        match quantity {
            Quantity::ClassAccuracy => class_accuracy(&cells.first()?.first()?.1, selector.class.as_deref()?),
            Quantity::Modules => modules(&cells.first()?.first()?.1, selector.pattern.as_deref()?),
            Quantity::Methods => count_distinct(cells.iter().map(|c| &c[0].0.method)),
            Quantity::Datasets => count_distinct(cells.iter().map(|c| &c[0].0.dataset)),
            _ => {
                let values: Vec<_> = cells
                    .iter()
                    .filter_map(|cell| Some((cell_value(cell, quantity, selector)?, score(cell))))
                    .collect();
                let default = if quantity.is_score() { Reduce::Mean } else { Reduce::Same };
                reduce(&values, selector.reduce.unwrap_or(default))
            }
        }
    }

    /// The selected runs, cell by cell in the order of the plan.
    fn cells(&self, selector: &Selector) -> Vec<Cell<'_>> {
        let key = |p: &Planned| (p.method.clone(), p.student.clone(), p.dataset.clone(), p.ratio);
        let mut cells: Vec<Cell> = Vec::new();
        for run in self.runs {
            let p = &run.0;
            if selector.selects(&p.method, &p.student, &p.dataset, p.ratio) {
                match cells.iter_mut().find(|c| key(&c[0].0) == key(p)) {
                    Some(cell) => cell.push(run),
                    None => cells.push(vec![run]),
                }
            }
        }
        cells
    }

    fn teacher_value(&self, quantity: Quantity, selector: &Selector) -> Option<f64> {
        if quantity == Quantity::ClassAccuracy {
            let selected = |r: &&Record| selector.selects_data(&r.info.dataset(), r.info.ratio());
            return class_accuracy(self.teacher_runs.iter().find(selected)?, selector.class.as_deref()?);
        }
        let measure = measure(quantity)?;
        let selected = self.teachers.iter().filter(|t| {
            t.measure() == measure
                && selector.selects_data(&t.dataset, t.ratio)
                && selector.student.as_ref().is_none_or(|model| *model == t.model)
        });
        let values: Vec<_> = selected.map(|t| (t.percent, None)).collect();
        reduce(&values, selector.reduce.unwrap_or(Reduce::Mean))
    }
}

fn measure(quantity: Quantity) -> Option<Measure> {
    match quantity {
        Quantity::Accuracy => Some(Measure::Accuracy),
        Quantity::MeanIou => Some(Measure::MeanIou),
        _ => None,
    }
}

/// Mean score of a cell, by which `reduce = "best"` chooses.
fn score(cell: &Cell) -> Option<f64> {
    mean(cell, |record| record.result.percent())
}

/// Mean over the seeds; none unless every seed has a value.
fn mean(cell: &Cell, value: impl Fn(&Record) -> Option<f64>) -> Option<f64> {
    let values: Option<Vec<f64>> = cell.iter().map(|(_, record)| value(record)).collect();
    let values = values?;
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

fn cell_value(cell: &Cell, quantity: Quantity, selector: &Selector) -> Option<f64> {
    let (planned, first) = cell.first()?;
    let summary = &first.result.summary;
    let known = |count: u64| (count > 0).then_some(count as f64);
    match quantity {
        Quantity::Accuracy | Quantity::MeanIou => mean(cell, |record| {
            let exit = selector.exit.as_deref();
            match &selector.view {
                None if exit.is_none() => {
                    (Some(record.result.measure()) == measure(quantity)).then(|| record.result.percent())?
                }
                view => test_accuracy(record, view.as_deref(), exit),
            }
        }),
        Quantity::ClassIou => {
            let class = class_index(first, selector.class.as_deref()?)?;
            mean(cell, |record| record.result.class_iou().get(class).copied().flatten())
        }
        Quantity::Parameters => known(first.result.parameters),
        Quantity::Macs => known(first.result.macs),
        Quantity::Flops => known(2 * first.result.macs),
        Quantity::TrainImages => known(summary.train_images as u64),
        Quantity::TestImages => known(summary.test_images as u64),
        Quantity::Images => known((summary.train_images + summary.test_images) as u64),
        Quantity::Classes => known(first.info.classes.len() as u64),
        Quantity::ImagesPerClass => {
            let images = cell_value(cell, Quantity::Images, selector)?;
            Some(images / known(first.info.classes.len() as u64)?)
        }
        Quantity::Ratio => Some(planned.ratio as f64),
        Quantity::Seeds => Some(cell.len() as f64),
        Quantity::Setting => setting(&first.info.run, selector.key.as_deref()?),
        Quantity::ClassAccuracy | Quantity::Modules | Quantity::Methods | Quantity::Datasets => None,
    }
}

/// Accuracy in percent on a view of the test images, at an early exit or the network's own output.
pub(crate) fn test_accuracy(record: &Record, view: Option<&str>, exit: Option<&str>) -> Option<f64> {
    let names = view.into_iter().chain(exit).chain(["accuracy"]);
    let score = record.result.scores.get(&names.collect::<Vec<_>>().join("."))?;
    score.map(|share| 100.0 * share)
}

/// The index of a class, however its name is spelled.
fn class_index(record: &Record, class: &str) -> Option<usize> {
    let plain = |name: &str| name.to_lowercase().replace(['_', '-'], " ");
    record.info.classes.iter().position(|c| plain(c) == plain(class))
}

/// Percentage of a class's test images classified correctly.
fn class_accuracy(record: &Record, class: &str) -> Option<f64> {
    let class = class_index(record, class)?;
    let matrix = record.confusion().ok()??;
    let (correct, total) = (*matrix.true_positives().get(class)?, *matrix.support().get(class)?);
    (total > 0).then(|| 100.0 * correct as f64 / total as f64)
}

fn count_distinct<'a>(names: impl Iterator<Item = &'a String>) -> Option<f64> {
    let mut names: Vec<&String> = names.collect();
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then_some(names.len() as f64)
}

/// A number of a resolved configuration. Below a list of tables, a name selects the one with that `method`.
pub(crate) fn setting(run: &Table, key: &str) -> Option<f64> {
    let mut parts = key.split('.');
    let first = run.get(parts.next()?)?;
    let value = parts.try_fold(first, |value, part| match value {
        Value::Array(list) => list.iter().find(|v| v.get("method").and_then(Value::as_str) == Some(part)),
        other => other.get(part),
    })?;
    value.as_float().or_else(|| value.as_integer().map(|i| i as f64))
}

/// Number of different values of the pattern's `*` among the parameter names.
fn modules(record: &Record, pattern: &str) -> Option<f64> {
    let (start, end) = pattern.split_once('*')?;
    let names = record.parameter_names().ok()?;
    let value = |name: &String| -> Option<String> {
        let rest = name.strip_prefix(start)?;
        let value = rest.split('.').next()?;
        rest.strip_prefix(value)?.starts_with(end).then(|| value.to_string())
    };
    let mut found: Vec<String> = names.iter().filter_map(value).collect();
    found.sort_unstable();
    found.dedup();
    (!found.is_empty()).then_some(found.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_settings_by_path() {
        let run: Table = toml::from_str(
            "train.optimizer.lr = 0.1\n[[loss]]\nmethod = 'ce'\n[[loss]]\nmethod = 'x'\nscale = 2\n",
        )
        .unwrap();
        assert_eq!(setting(&run, "train.optimizer.lr"), Some(0.1));
        assert_eq!(setting(&run, "loss.x.scale"), Some(2.0));
        assert_eq!((setting(&run, "loss.y.scale"), setting(&run, "train.lr")), (None, None));
    }
}
