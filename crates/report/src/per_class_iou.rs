//! IoU of each class by method.

use serde::Serialize;

use crate::results_table::{BASELINE_PLAIN, TableCell};
use crate::text_table::{Align, TextTable, optional};
use crate::{Planned, Record};

/// IoU by class of one student and column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PerClassIou {
    /// Registry id of the student.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training ratio in percent; 0 with an official split.
    pub ratio: u64,
    /// Class names.
    pub classes: Vec<String>,
    /// Method and IoU of each class in percent, mean over the seeds; none for a class absent from truth and
    /// prediction of a seed.
    pub methods: Vec<(String, Vec<Option<f64>>)>,
}

/// Returns the tables of all columns with label masks.
pub(crate) fn tables(cells: &[TableCell], runs: &[(Planned, Record)]) -> Vec<PerClassIou> {
    let mut all: Vec<PerClassIou> = Vec::new();
    for cell in cells.iter().filter(|c| !c.class_iou.is_empty() && c.method != BASELINE_PLAIN) {
        let row = (cell.method.clone(), cell.class_iou.clone());
        let same = |t: &&mut PerClassIou| {
            (&t.student, &t.dataset, t.ratio) == (&cell.student, &cell.dataset, cell.ratio)
        };
        if let Some(table) = all.iter_mut().find(same) {
            table.methods.push(row);
            continue;
        }
        let of =
            |p: &Planned| (&p.student, &p.dataset, p.ratio) == (&cell.student, &cell.dataset, cell.ratio);
        let Some((_, record)) = runs.iter().find(|(p, _)| of(p)) else { continue };
        all.push(PerClassIou {
            student: cell.student.clone(),
            dataset: cell.dataset.clone(),
            ratio: cell.ratio,
            classes: record.info.classes.clone(),
            methods: vec![row],
        });
    }
    all
}

impl PerClassIou {
    /// Returns a text table: a row per class, a column per method.
    pub fn text_table(&self) -> TextTable {
        let mut heads = vec![("class", Align::Left)];
        heads.extend(self.methods.iter().map(|(name, _)| (name.as_str(), Align::Right)));
        let mut table = TextTable::new(&heads);
        for (class, name) in self.classes.iter().enumerate() {
            let values = self.methods.iter().map(|(_, values)| values.get(class).copied().flatten());
            table.push(std::iter::once(name.clone()).chain(values.map(|v| optional(v, 2))));
        }
        table
    }
}
