//! Table 1 of the class-centric paper: the datasets as printed, beside what their manifests hold.

use crate::accuracy::lines_grid;
use crate::beside::{DATASETS, Line, page_of};
use crate::{Published, Result, facts};

/// Id of the table among the published ones.
const TABLE: &str = "p1.t1";

/// Every printed number of the datasets beside ours; `known` tells classes and images of a dataset by
/// registry id. Resolution and side of the images are told by the files, not by a manifest.
pub fn lines(known: impl Fn(&str) -> Option<(usize, usize)>) -> Result<Vec<Line>> {
    let published = Published::builtin()?;
    let ours = |row: &str, col: &str| -> Option<f64> {
        if col == "sets" {
            return Some(DATASETS.iter().filter(|(id, _)| known(id).is_some()).count() as f64);
        }
        let (id, _) = DATASETS.iter().find(|(_, title)| *title == row)?;
        let (classes, images) = known(id)?;
        match col {
            "classes" => Some(classes as f64),
            "images" => Some(images as f64),
            "images per class" => Some(images as f64 / classes as f64),
            _ => None,
        }
    };
    let mine = published.cells.iter().filter(|c| page_of(c) == TABLE);
    Ok(mine.map(|c| Line::new(c, ours(&c.row, &c.col))).collect())
}

/// The table for a terminal.
pub fn terminal(lines: &[Line]) -> String {
    format!(
        "Table 1: the datasets as printed, and as their manifests have them; images per class are means.\n\n{}\n{}",
        lines_grid(lines).terminal(),
        facts::list(facts::of(TABLE))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_numbers_stand_beside_ours() {
        let lines = lines(|name| if name == "ucm" { Some((21, 2100)) } else { None }).unwrap();
        assert_eq!(lines.len(), 21, "four datasets with five numbers each, and their count");
        let ours = |row: &str, col: &str| lines.iter().find(|l| l.row == row && l.col == col).unwrap().ours;
        assert_eq!(ours("UCM", "classes"), Some(21.0));
        assert_eq!(ours("UCM", "images per class"), Some(100.0));
        assert_eq!((ours("AID", "images"), ours("data sets", "sets")), (None, Some(1.0)));
        assert!(terminal(&lines).contains("10000"));
    }
}
