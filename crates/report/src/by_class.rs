//! IoU of each class, method by method.

use serde::Serialize;

use crate::accuracy::{BELOW, Cell};
use crate::text::{Align, Grid};
use crate::{Planned, Record};

/// The classes of one student and column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByClass {
    /// Registry id of the student.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training part in percent; 0 with an official split.
    pub ratio: u64,
    /// Class names.
    pub classes: Vec<String>,
    /// IoU of each class in percent, mean over the seeds; none for a class in neither truth nor
    /// prediction of some seed.
    pub methods: Vec<(String, Vec<Option<f64>>)>,
}

/// The tables of all columns whose runs count label masks.
pub(crate) fn tables(cells: &[Cell], runs: &[(Planned, Record)]) -> Vec<ByClass> {
    let mut all: Vec<ByClass> = Vec::new();
    for cell in cells.iter().filter(|c| !c.class_iou.is_empty() && c.method != BELOW) {
        let row = (cell.method.clone(), cell.class_iou.clone());
        let same = |t: &&mut ByClass| {
            (&t.student, &t.dataset, t.ratio) == (&cell.student, &cell.dataset, cell.ratio)
        };
        if let Some(table) = all.iter_mut().find(same) {
            table.methods.push(row);
            continue;
        }
        let of =
            |p: &Planned| (&p.student, &p.dataset, p.ratio) == (&cell.student, &cell.dataset, cell.ratio);
        let Some((_, record)) = runs.iter().find(|(p, _)| of(p)) else { continue };
        all.push(ByClass {
            student: cell.student.clone(),
            dataset: cell.dataset.clone(),
            ratio: cell.ratio,
            classes: record.info.classes.clone(),
            methods: vec![row],
        });
    }
    all
}

impl ByClass {
    /// A row for each class, a column for each method.
    pub fn grid(&self) -> Grid {
        let mut heads = vec![("class", Align::Left)];
        heads.extend(self.methods.iter().map(|(name, _)| (name.as_str(), Align::Right)));
        let mut grid = Grid::new(&heads);
        for (at, class) in self.classes.iter().enumerate() {
            let values = self.methods.iter().map(|(_, values)| values.get(at).copied().flatten());
            let values = values.map(|v| v.map_or_else(|| "-".to_string(), |v| format!("{v:.2}")));
            grid.row([class.clone()].into_iter().chain(values));
        }
        grid
    }
}
