//! Which printed number stands beside which run, and on which page: the papers' names for our ids.

use serde::Serialize;

use crate::accuracy::Cell;
use crate::published::{Published, PublishedCell};
use crate::{Result, frkdnet, mksmt};

/// A printed table of accuracies.
#[derive(Debug, Clone, Copy)]
struct Printed {
    /// Id among the published ones.
    id: &'static str,
    /// Its methods in the order of print.
    methods: &'static [&'static str],
}

const ALL: &[&str] =
    &["baseline", "kd", "dkd", "nst", "vid", "kdsvd", "reviewkd", "rkd", "sp", "class_centric"];

const PRINTED: &[Printed] = &[
    Printed { id: "p1.t3", methods: ALL },
    Printed { id: "p1.t5", methods: ALL },
    Printed { id: "p1.t6", methods: &["baseline", "nst", "nst_all", "class_centric"] },
    Printed { id: "p1.t7", methods: &["baseline", "nst_all", "class_centric"] },
    Printed { id: frkdnet::TABLE_1, methods: frkdnet::PARTS },
    Printed { id: frkdnet::TABLE_2, methods: frkdnet::METHODS },
    Printed { id: frkdnet::FIG_4, methods: frkdnet::GAMMAS },
    Printed { id: "p4.text", methods: &["baseline", "kl", "cosine", "kl_cosine"] },
];

/// Registry id of every method and its name in print.
const METHODS: [(&str, &str); 11] = [
    ("baseline", "Baseline"),
    ("kd", "KD"),
    ("dkd", "DKD"),
    ("nst", "NST"),
    ("nst_all", "NST_all"),
    ("vid", "VID"),
    ("kdsvd", "KDSVD"),
    ("reviewkd", "ReviewKD"),
    ("rkd", "RKD"),
    ("sp", "SP"),
    ("class_centric", "Ours"),
];

/// The method that paper 1 is about.
const CLASS_CENTER: &str = "class_centric";

/// Registry id of the students and their names in print.
pub(crate) const STUDENTS: [(&str, &str); 4] = [
    ("resnet18", "ResNet18"),
    ("mobilenetv2_100", "MobileNetV2"),
    ("deeplabv3plus_resnet18", "DeepLabV3+ ResNet18"),
    ("deeplabv3plus_mobilenetv2_100", "DeepLabV3+ MobileNetV2"),
];

/// Registry id of the datasets and their names in print.
pub(crate) const DATASETS: [(&str, &str); 4] =
    [("rsc11", "RSC11"), ("ucm", "UCM"), ("rsscn7", "RSSCN7"), ("aid", "AID")];

pub(crate) fn title<'a>(names: &[(&'a str, &'a str)], id: &str) -> Option<&'a str> {
    names.iter().find(|(known, _)| *known == id).map(|(_, title)| *title)
}

fn id<'a>(names: &[(&'a str, &'a str)], title: &str) -> Option<&'a str> {
    names.iter().find(|(_, known)| *known == title).map(|(id, _)| *id)
}

/// The page on which a printed number stands beside ours: the id of its table, but for the numbers
/// of the abstract, which stand where they are measured.
pub fn page_of(cell: &PublishedCell) -> &str {
    match (cell.table.as_str(), cell.row.as_str()) {
        ("p1.text", "data sets") => "p1.t1",
        ("p1.text", row) if row.starts_with("gain") && !row.contains("UCM") => "p1.t5",
        ("p1.text", _) => "p1.t3",
        ("p2.text", row) => frkdnet::page_of(row, &cell.col),
        ("p3.text", row) => mksmt::page(row, &cell.col),
        (table, _) => table,
    }
}

/// A printed number and ours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Id of its table among the published ones.
    pub table: String,
    /// Row as printed.
    pub row: String,
    /// Column as printed.
    pub col: String,
    /// Spelling in print.
    pub printed: String,
    /// Unit.
    pub unit: String,
    /// What is known about the printed number.
    pub note: Option<String>,
    /// Ours in the same unit; none as long as it is not measured.
    pub ours: Option<f64>,
}

impl Line {
    /// Puts our number beside a printed one.
    pub fn new(cell: &PublishedCell, ours: Option<f64>) -> Self {
        Self {
            table: cell.table.clone(),
            row: cell.row.clone(),
            col: cell.col.clone(),
            printed: cell.printed.clone(),
            unit: cell.unit.clone(),
            note: cell.note.clone(),
            ours,
        }
    }
}

/// A finished teacher.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub struct Teacher {
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training part in percent.
    pub ratio: u64,
    /// Seed.
    pub seed: u64,
    /// Registry id of the network.
    pub model: String,
    /// `scratch`, or the weights' name.
    pub init: String,
    /// Its folder below the folder of teachers.
    pub cell: String,
    /// Test images classified correctly; none for label masks.
    pub correct: Option<u64>,
    /// Test images.
    pub total: u64,
    /// Images right, or mean IoU, in percent.
    pub percent: f64,
}

/// One printed table and its numbers.
#[derive(Debug, Clone)]
pub struct Beside {
    table: Printed,
    numbers: Published,
}

impl Beside {
    /// The printed figures of this id (`p1.t3`, `p1.t5`, `p1.t6`, `p1.t7`, `p2.t1`, `p2.t2`, `p2.fig4`,
    /// `p4.text`); none if it has no such table.
    pub fn of(id: &str) -> Result<Option<Self>> {
        let Some(table) = PRINTED.iter().find(|t| t.id == id) else { return Ok(None) };
        Ok(Some(Self { table: *table, numbers: Published::builtin()? }))
    }

    /// Id of the printed table.
    pub fn id(&self) -> &'static str {
        self.table.id
    }

    /// Its methods in the order of print, by registry id.
    pub(crate) fn methods(&self) -> &'static [&'static str] {
        self.table.methods
    }

    /// The printed accuracy or mean IoU of a method in percent.
    pub(crate) fn number(&self, method: &str, student: &str, dataset: &str, ratio: u64) -> Option<f64> {
        if self.table.id.starts_with("p2.") {
            return frkdnet::number(&self.numbers, self.table.id, method, student, dataset);
        }
        let name = title(&METHODS, method)?;
        let student = title(&STUDENTS, student)?;
        match self.place(dataset)? {
            ("p1.t3", _) => self.numbers.cell("p1.t3", name, &format!("ResNet50-{student}@{ratio}"))?.value,
            (table, row) => {
                let name = if method == "baseline" { "Student" } else { name };
                (student == "ResNet18" && ratio == 60).then(|| self.numbers.cell(table, row, name)?.value)?
            }
        }
    }

    /// The printed accuracy or mean IoU of the teacher in percent.
    pub fn teacher(&self, dataset: &str) -> Option<f64> {
        if self.table.id.starts_with("p2.") {
            return frkdnet::teacher(&self.numbers, dataset);
        }
        let (table, row) = self.place(dataset)?;
        self.numbers.cell(table, row, "Teacher")?.value
    }

    /// The table and the row in which the accuracies on a dataset are printed. A dataset that is not the
    /// table's own stands in Table 5; one that the paper does not have takes the place of the table's own.
    fn place(&self, dataset: &str) -> Option<(&'static str, &'static str)> {
        let row = title(&DATASETS, dataset);
        let (own, place) = match self.table.id {
            "p1.t3" => ("ucm", ("p1.t3", "")),
            // Table 7 has no accuracies of its own: they are those of Table 6.
            "p1.t6" | "p1.t7" => ("rsc11", ("p1.t6", "overall accuracy")),
            table => return Some((table, row?)),
        };
        match row {
            Some(row) if dataset != own => Some(("p1.t5", row)),
            _ => Some(place),
        }
    }

    /// Every printed number of this page beside ours.
    pub(crate) fn lines(&self, cells: &[Cell], teachers: &[Teacher]) -> Vec<Line> {
        let mine = self.numbers.cells.iter().filter(|c| page_of(c) == self.table.id);
        mine.map(|c| Line::new(c, self.ours(c, cells, teachers))).collect()
    }

    fn ours(&self, printed: &PublishedCell, cells: &[Cell], teachers: &[Teacher]) -> Option<f64> {
        let (row, col) = (printed.row.as_str(), printed.col.as_str());
        let mean = |method: &str, student: &str, dataset: &str, ratio: u64| {
            let here = |c: &&Cell| c.student == student && c.dataset == dataset && c.ratio == ratio;
            cells.iter().filter(here).find(|c| c.method == method)?.mean
        };
        let teacher = |dataset: &str| {
            let percents: Vec<f64> =
                teachers.iter().filter(|t| t.dataset == dataset).map(|t| t.percent).collect();
            (!percents.is_empty()).then(|| percents.iter().sum::<f64>() / percents.len() as f64)
        };
        // Tables 6 and 7 are on one dataset, RSC11 in print; another one is another's numbers.
        match printed.table.as_str() {
            "p1.t3" => {
                let (student, ratio) = col.strip_prefix("ResNet50-")?.split_once('@')?;
                mean(id(&METHODS, row)?, id(&STUDENTS, student)?, "ucm", ratio.parse().ok()?)
            }
            "p1.t5" if col == "Teacher" => teacher(id(&DATASETS, row)?),
            "p1.t5" => mean(method(col)?, "resnet18", id(&DATASETS, row)?, 60),
            "p1.t6" if col == "Teacher" => teacher("rsc11"),
            "p1.t6" if col.starts_with("gain") => gain(cells, "resnet18", "rsc11", 60, CLASS_CENTER),
            "p1.t6" => mean(method(col)?, "resnet18", "rsc11", 60),
            "p1.text" if row.starts_with("gain") => {
                let words: Vec<&str> = row.split(' ').collect();
                let [_, dataset, ratio, series, _] = words.as_slice() else { return None };
                let student = if *series == "same" { "resnet18" } else { "mobilenetv2_100" };
                gain(cells, student, id(&DATASETS, dataset)?, ratio.parse().ok()?, CLASS_CENTER)
            }
            "p1.text" => {
                let done: Vec<&Cell> = cells.iter().filter(|c| c.n > 0).collect();
                match row {
                    "training ratio high" => done.iter().map(|c| c.ratio as f64).reduce(f64::max),
                    "training ratio low" => done.iter().map(|c| c.ratio as f64).reduce(f64::min),
                    "repeats" => done.iter().map(|c| c.n as f64).reduce(f64::min),
                    "other methods compared" => {
                        let mut names: Vec<&str> = done.iter().map(|c| c.method.as_str()).collect();
                        names.retain(|m| !m.starts_with("baseline") && *m != CLASS_CENTER);
                        names.sort_unstable();
                        names.dedup();
                        (!done.is_empty()).then_some(names.len() as f64)
                    }
                    _ => None,
                }
            }
            "p2.t1" | "p2.text" => frkdnet::ours(printed, cells, teachers),
            "p4.text" if col == "accuracy" => {
                cells.iter().filter(|c| c.method == "kl_cosine").filter_map(|c| c.mean).reduce(f64::max)
            }
            "p4.text" => {
                let mut sets: Vec<&str> =
                    cells.iter().filter(|c| c.n > 0).map(|c| c.dataset.as_str()).collect();
                sets.sort_unstable();
                sets.dedup();
                (!sets.is_empty()).then_some(sets.len() as f64)
            }
            _ => None,
        }
    }
}

/// Registry id of a method as Tables 5 and 6 print it.
fn method(printed: &str) -> Option<&'static str> {
    if printed == "Student" { Some("baseline") } else { id(&METHODS, printed) }
}

/// A method's lead over the best other one in percentage points.
fn gain(cells: &[Cell], student: &str, dataset: &str, ratio: u64, method: &str) -> Option<f64> {
    let here = |c: &&Cell| {
        c.student == student && c.dataset == dataset && c.ratio == ratio && c.method != "baseline_plain"
    };
    let others = cells.iter().filter(here).filter(|c| c.method != method).filter_map(|c| c.mean);
    let own = cells.iter().filter(here).find(|c| c.method == method)?.mean?;
    others.reduce(f64::max).map(|best| own - best)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run on another dataset of the paper has that dataset's numbers beside it, or none.
    #[test]
    fn printed_numbers_are_of_the_same_dataset() {
        let number = |id: &str, method: &str, dataset: &str, ratio: u64| {
            Beside::of(id).unwrap().unwrap().number(method, "resnet18", dataset, ratio)
        };
        let six = number("p1.t6", "class_centric", "rsc11", 60);
        assert_eq!((six, number("p1.t6", "class_centric", "rsscn7", 60)), (Some(94.37), Some(91.70)));
        assert_eq!(number("p1.t6", "class_centric", "scenes", 60), six, "in place of RSC11");
        assert_eq!(number("p1.t6", "nst_all", "rsscn7", 60), None);
        assert_eq!(number("p1.t6", "class_centric", "rsc11", 80), None);
        assert_eq!(number("p1.t5", "class_centric", "rsscn7", 60), Some(91.70));
        assert_eq!(number("p1.t3", "class_centric", "ucm", 80), Some(97.14));
        assert_eq!(number("p1.t3", "class_centric", "rsscn7", 80), None);
        assert_eq!(number("p1.t3", "class_centric", "rsscn7", 60), Some(91.70));
        let teacher = |id: &str, dataset: &str| Beside::of(id).unwrap().unwrap().teacher(dataset);
        assert_eq!((teacher("p1.t6", "rsc11"), teacher("p1.t6", "rsscn7")), (Some(92.35), Some(91.07)));
        assert_eq!(teacher("p1.t3", "ucm"), None, "not printed");
    }
}
