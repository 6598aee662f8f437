//! The numbers that the papers print, as printed.

use serde::Deserialize;
use stillhouse_core::config;

use crate::Result;
use crate::confusion_rows::ConfusionRow;

/// The file of the repository, synthetic, so that the binary works outside of the checkout.
const TEXT: &str = include_str!("../../../experiments/published_tables.toml");

/// One printed number.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PublishedCell {
    /// Table, for example `p1.t3`.
    pub table: String,
    /// Row as printed, for example `KD`.
    pub row: String,
    /// Column, for example `ResNet50-ResNet18@80`.
    pub col: String,
    /// The number; absent where only a word is printed.
    pub value: Option<f64>,
    /// Its spelling.
    pub printed: String,
    /// Unit, for example `%`.
    pub unit: String,
    /// Images right that the percentage stands for, where the size of the test set is known.
    pub count: Option<u64>,
    /// Images tested.
    pub of: Option<u64>,
    /// Remark.
    pub note: Option<String>,
}

/// A paper.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Paper {
    /// Short id, for example `p1`.
    pub id: String,
    /// Name of its method.
    pub short: String,
    /// Title.
    pub title: String,
    /// Authors.
    pub authors: String,
    /// Journal, volume, pages.
    pub venue: String,
    /// Year.
    pub year: u32,
    /// DOI, if it has one.
    pub doi: Option<String>,
}

/// A table of a paper.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PaperTable {
    /// Id, for example `p1.t3`.
    pub id: String,
    /// The paper's id.
    pub paper: String,
    /// Title.
    pub title: String,
    /// Remark.
    pub note: Option<String>,
}

/// All printed numbers.
#[derive(Debug, Clone, Deserialize)]
pub struct Published {
    /// The papers.
    #[serde(rename = "paper")]
    pub papers: Vec<Paper>,
    /// Their tables.
    #[serde(rename = "table")]
    pub tables: Vec<PaperTable>,
    /// Their numbers.
    #[serde(rename = "cell")]
    pub cells: Vec<PublishedCell>,
    /// The rows of printed confusion matrices.
    #[serde(rename = "confusion_row")]
    pub confusion_rows: Vec<ConfusionRow>,
}

impl Published {
    /// The numbers that come with the program.
    pub fn builtin() -> Result<Self> {
        Ok(config::parse(TEXT, "experiments/published_tables.toml")?)
    }

    /// One printed number.
    pub fn cell(&self, table: &str, row: &str, col: &str) -> Option<&PublishedCell> {
        self.cells.iter().find(|c| c.table == table && c.row == row && c.col == col)
    }

    /// The rows of a table in the order of print.
    pub fn rows(&self, table: &str) -> Vec<&str> {
        let mut rows: Vec<&str> = Vec::new();
        for cell in self.cells.iter().filter(|c| c.table == table) {
            if !rows.contains(&cell.row.as_str()) {
                rows.push(&cell.row);
            }
        }
        rows
    }

    /// A table and the paper it stands in.
    pub fn table(&self, id: &str) -> Option<(&Paper, &PaperTable)> {
        let table = self.tables.iter().find(|t| t.id == id)?;
        Some((self.papers.iter().find(|p| p.id == table.paper)?, table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_percentage_of_table_3_is_its_count() {
        let published = Published::builtin().unwrap();
        assert_eq!(published.rows("p1.t3").len(), 10);
        let cells: Vec<_> = published.cells.iter().filter(|c| c.table == "p1.t3").collect();
        assert_eq!(cells.len(), 40);
        for cell in cells {
            let (count, of) = (cell.count.unwrap() as f64, cell.of.unwrap() as f64);
            assert!((100.0 * count / of - cell.value.unwrap()).abs() < 0.006, "{cell:?}");
        }
        let ours = published.cell("p1.t3", "Ours", "ResNet50-ResNet18@80").unwrap();
        assert_eq!(ours.value, Some(97.14));
        let (paper, table) = published.table("p1.t3").unwrap();
        assert_eq!((paper.year, table.paper.as_str()), (2023, "p1"));
    }
}
