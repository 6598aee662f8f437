//! `[matrix]` and `[when]`: the axes of an experiment and the overrides of their values.

use serde::Deserialize;
use stillhouse_core::config as core_config;
use toml::{Table, Value};

use super::{SECTIONS, did_you_mean, merge, wrong_type};
use crate::{Error, Result};

const AXES: [&str; 5] = ["student", "dataset", "ratio", "method", "seed"];

/// `[matrix]`: the runs are all combinations of the axis values.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Matrix {
    student: Option<Vec<String>>,
    dataset: Option<Vec<String>>,
    ratio: Option<Vec<u32>>,
    method: Option<Vec<String>>,
    seed: Option<Vec<u64>>,
}

/// One combination of axis values.
#[derive(Clone, Copy)]
pub(super) struct Point<'a> {
    seed: Option<u64>,
    student: Option<&'a str>,
    pub(super) dataset: Option<&'a str>,
    ratio: Option<u32>,
    pub(super) method: Option<&'a str>,
}

/// `[when.AXIS.VALUE]` in the order of the axes: a later axis overrides an earlier one.
pub(super) struct Overrides(Vec<(&'static str, String, Table)>);

impl Matrix {
    /// Reads the section of an experiment; empty if it has none.
    pub(super) fn parse(doc: &Table, origin: &str) -> Result<Self> {
        let matrix: Self = match doc.get("matrix") {
            Some(Value::Table(t)) => core_config::from_table(t, &format!("{origin} [matrix]"))?,
            Some(other) => return Err(wrong_type(origin, "matrix", other)),
            None => Self::default(),
        };
        let lengths = [
            matrix.student.as_ref().map(Vec::len),
            matrix.dataset.as_ref().map(Vec::len),
            matrix.ratio.as_ref().map(Vec::len),
            matrix.method.as_ref().map(Vec::len),
            matrix.seed.as_ref().map(Vec::len),
        ];
        if let Some((axis, _)) = AXES.iter().zip(lengths).find(|(_, length)| *length == Some(0)) {
            let message = format!("invalid `matrix.{axis}`: expected values, found an empty list");
            return Err(Error::config(origin, message));
        }
        if let Some(seed) = matrix.seed.iter().flatten().find(|s| i64::try_from(**s).is_err()) {
            let message = format!("invalid `matrix.seed`: expected at most {}, found {seed}", i64::MAX);
            return Err(Error::config(origin, message));
        }
        Ok(matrix)
    }

    /// Iterates over all combinations, seeds outermost and methods innermost.
    pub(super) fn points(&self) -> impl Iterator<Item = Point<'_>> {
        let mut points = Vec::new();
        for seed in values(&self.seed) {
            for student in values(&self.student) {
                for dataset in values(&self.dataset) {
                    for ratio in values(&self.ratio) {
                        for method in values(&self.method) {
                            points.push(Point {
                                seed: seed.copied(),
                                student: student.map(String::as_str),
                                dataset: dataset.map(String::as_str),
                                ratio: ratio.copied(),
                                method: method.map(String::as_str),
                            });
                        }
                    }
                }
            }
        }
        points.into_iter()
    }
}

/// Returns the values of an axis, or a single `None` without the axis.
fn values<T>(axis: &Option<Vec<T>>) -> Vec<Option<&T>> {
    match axis {
        Some(values) => values.iter().map(Some).collect(),
        None => vec![None],
    }
}

impl Overrides {
    /// Reads the sections of an experiment.
    pub(super) fn parse(doc: &Table, origin: &str) -> Result<Self> {
        let mut all = Vec::new();
        let axes = match doc.get("when") {
            Some(Value::Table(axes)) => axes,
            Some(other) => return Err(wrong_type(origin, "when", other)),
            None => return Ok(Self(all)),
        };
        if let Some(unknown) = axes.keys().find(|k| !AXES.contains(&k.as_str())) {
            let hint = did_you_mean(unknown, AXES);
            let message = format!("in `when`: unknown axis `{unknown}`, expected one of {AXES:?}{hint}");
            return Err(Error::config(origin, message));
        }
        for axis in AXES {
            let Some(values) = axes.get(axis) else { continue };
            let Value::Table(values) = values else {
                return Err(wrong_type(origin, &format!("when.{axis}"), values));
            };
            for (value, over) in values {
                let Value::Table(over) = over else {
                    return Err(wrong_type(origin, &format!("when.{axis}.{value}"), over));
                };
                if let Some(key) = over.keys().find(|k| !SECTIONS.contains(&k.as_str())) {
                    let message = format!(
                        "in `when.{axis}.{value}`: unknown field `{key}`, expected one of {SECTIONS:?}"
                    );
                    return Err(Error::config(origin, message));
                }
                all.push((axis, value.clone(), over.clone()));
            }
        }
        Ok(Self(all))
    }
}

impl Point<'_> {
    /// Applies the axis values and their overrides to the sections of a run.
    pub(super) fn apply(&self, doc: &mut Table, overrides: &Overrides) {
        let mut set = |section: &str, field: &str, value: Value| {
            let section_table = Value::Table(Table::from_iter([(field.to_string(), value)]));
            merge(doc, &Table::from_iter([(section.to_string(), section_table)]));
        };
        if let Some(seed) = self.seed {
            set("train", "seed", Value::Integer(i64::try_from(seed).unwrap_or(i64::MAX)));
        }
        if let Some(student) = self.student {
            set("student", "model", Value::String(student.to_string()));
        }
        if let Some(dataset) = self.dataset {
            set("data", "dataset", Value::String(dataset.to_string()));
        }
        if let Some(ratio) = self.ratio {
            set("data", "ratio", Value::Integer(i64::from(ratio)));
        }
        let model = doc.get("student").and_then(|s| s.get("model")).and_then(Value::as_str);
        let model = model.unwrap_or_default().to_string();
        let matches = |axis: &str, value: &str| match axis {
            "student" => value == model,
            // The preferred one of `a|b`.
            "dataset" => self.dataset.is_some_and(|d| d.split('|').next() == Some(value)),
            "ratio" => self.ratio.is_some_and(|r| r.to_string() == value),
            "seed" => self.seed.is_some_and(|s| s.to_string() == value),
            _ => self.method == Some(value),
        };
        let matching = || overrides.0.iter().filter(|(axis, value, _)| matches(axis, value));
        if let Some(method) = self.method {
            // Another axis may override the list of losses that the method's settings are picked from.
            for (_, _, over) in matching().filter(|(axis, ..)| *axis != "method") {
                if let Some(losses) = over.get("loss") {
                    doc.insert("loss".into(), losses.clone());
                }
            }
            let own = doc.get("loss").and_then(Value::as_array).and_then(|losses| {
                losses.iter().find(|l| l.get("method").and_then(Value::as_str) == Some(method)).cloned()
            });
            let entry = own.unwrap_or_else(|| {
                Value::Table(Table::from_iter([("method".to_string(), Value::String(method.to_string()))]))
            });
            doc.insert("loss".into(), Value::Array(vec![entry]));
        }
        for (axis, _, over) in matching() {
            let mut over = over.clone();
            if *axis != "method" && self.method.is_some() {
                over.remove("loss"); // picked above
            }
            let network = over.get("student").and_then(Value::as_table);
            // A variant belongs to one network: another network drops it.
            if network.is_some_and(|n| n.contains_key("model"))
                && let Some(Value::Table(student)) = doc.get_mut("student")
            {
                student.remove("variant");
            }
            merge(doc, &over);
        }
    }
}
