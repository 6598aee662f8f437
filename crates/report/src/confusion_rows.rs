//! Table 7 of the class-centric paper: the printed rows of its four confusion matrices beside ours.

use serde::Deserialize;

use crate::beside::Line;
use crate::{Planned, Published, Record, Result};

/// The id of the table among the published ones.
pub const TABLE: &str = "p1.t7";

/// One printed row: its entries in the order of print; their columns are lost.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ConfusionRow {
    /// Table.
    pub table: String,
    /// `student`, `teacher`, `nst_all` or `ours`.
    pub model: String,
    /// The model in words.
    pub model_name: String,
    /// Class.
    pub row: String,
    /// Entries that are not 0, in percent.
    pub printed: Vec<String>,
    /// The entry of the class itself, in percent.
    pub diagonal: f64,
    /// How certain the columns are.
    pub status: String,
}

/// The printed models and the rows of our table; the teacher is no row.
const MODELS: [(&str, &str); 3] =
    [("student", "baseline"), ("nst_all", "nst_all"), ("ours", "class_centric")];

/// Every printed row beside our part of the class that is classified rightly, first seed; without
/// ours where the runs are on another dataset or not finished.
pub(crate) fn lines(runs: &[(Planned, Record)], teachers: &[Record]) -> Result<Vec<Line>> {
    let published = Published::builtin()?;
    let mut lines = Vec::new();
    for row in published.confusion_rows.iter().filter(|r| r.table == TABLE) {
        let record = match MODELS.iter().find(|(model, _)| *model == row.model) {
            Some((_, method)) => runs.iter().find(|(p, _)| p.method == *method).map(|(_, record)| record),
            None => teachers.first(),
        };
        let ours = record.map(|record| right_of(record, &row.row)).transpose()?.flatten();
        lines.push(Line {
            table: row.table.clone(),
            row: format!("{}: {}", row.model_name, row.row.replace('_', " ")),
            col: "entries; ours: the class itself".to_string(),
            printed: row.printed.join(" "),
            unit: "%".to_string(),
            note: Some(format!("the class itself {:.2}; {}", row.diagonal, row.status)),
            ours,
        });
    }
    Ok(lines)
}

/// Part of a class that is classified rightly, in percent; none if there is no such class.
fn right_of(record: &Record, class: &str) -> Result<Option<f64>> {
    let plain = |name: &str| name.to_lowercase().replace(['_', '-'], " ");
    let Some(at) = record.info.classes.iter().position(|c| plain(c) == plain(class)) else {
        return Ok(None);
    };
    let Some(matrix) = record.confusion()? else { return Ok(None) };
    let (hit, of) = (matrix.true_positives()[at], matrix.support()[at]);
    Ok((of > 0).then(|| 100.0 * hit as f64 / of as f64))
}
