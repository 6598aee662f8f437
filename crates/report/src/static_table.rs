//! Tables that run nothing: dataset counts and model sizes, next to the published numbers.

use serde::{Deserialize, Serialize};
use stillhouse_core::config;
use toml::{Table, Value};

use crate::published::{ComparedValue, PublishedTable, Quantity, Selector, comparison_table};
use crate::text_table::{Align, TextTable};
use crate::{Error, PublishedSection, Result};

/// An experiment file with `kind`: a table that is counted, not trained.
#[derive(Debug, Clone, PartialEq)]
pub enum StaticTable {
    /// `kind = "datasets"`.
    Datasets(DatasetTable),
    /// `kind = "model_sizes"`.
    ModelSizes(ModelSizeTable),
}

/// Classes and images of datasets.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetTable {
    /// Title.
    pub title: String,
    /// Registry ids.
    pub datasets: Vec<String>,
    /// Published numbers to compare with.
    pub published: Option<PublishedSection>,
}

/// Parameters and operations of networks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSizeTable {
    /// Title.
    pub title: String,
    /// Registry ids, the one that the others are compared with first.
    pub models: Vec<String>,
    /// Classes of their heads.
    pub classes: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// How operations are counted.
    #[serde(default)]
    pub flops: FlopsRule,
    /// Remark shown below the table.
    pub note: Option<String>,
    /// Published numbers to compare with.
    pub published: Option<PublishedSection>,
}

/// Weights of a count of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlopsRule {
    /// Operations per multiply-accumulate.
    pub per_mac: u64,
    /// Operations per output of a batch norm.
    pub per_batch_norm_output: u64,
}

impl Default for FlopsRule {
    fn default() -> Self {
        Self { per_mac: 2, per_batch_norm_output: 0 }
    }
}

/// Counts of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatasetCounts {
    /// Registry id.
    pub dataset: String,
    /// Classes.
    pub classes: usize,
    /// Images.
    pub images: usize,
}

/// Counts of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelCounts {
    /// Registry id.
    pub model: String,
    /// Trainable parameters.
    pub parameters: u64,
    /// Multiply-accumulates of one image.
    pub macs: u64,
    /// Operations of one image, as the table counts them.
    pub flops: u64,
}

/// A finished table. These are the fields of its JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StaticResult {
    /// Title.
    pub title: String,
    /// Counts of datasets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<DatasetCounts>,
    /// Counts of networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelCounts>,
    /// Published numbers with the measured ones.
    pub published: Vec<ComparedValue>,
    /// Findings about the published numbers.
    pub known: Vec<String>,
}

impl StaticTable {
    /// Parses an experiment file; `None` unless it has the key `kind`. `origin` appears in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Option<Self>> {
        let mut table: Table = config::parse(text, origin)?;
        Ok(match table.remove("kind") {
            None => None,
            Some(Value::String(kind)) if kind == "datasets" => {
                Some(Self::Datasets(config::from_table(&table, origin)?))
            }
            Some(Value::String(kind)) if kind == "model_sizes" => {
                Some(Self::ModelSizes(config::from_table(&table, origin)?))
            }
            Some(other) => {
                let message = format!("`kind`: expected \"datasets\" or \"model_sizes\", found {other}");
                return Err(Error::unreadable(origin, message));
            }
        })
    }

    /// Title.
    pub fn title(&self) -> &str {
        match self {
            Self::Datasets(table) => &table.title,
            Self::ModelSizes(table) => &table.title,
        }
    }

    /// Published numbers to compare with.
    pub fn published(&self) -> Option<&PublishedSection> {
        match self {
            Self::Datasets(table) => table.published.as_ref(),
            Self::ModelSizes(table) => table.published.as_ref(),
        }
    }
}

impl DatasetTable {
    /// Compares the counts of the known datasets with the published numbers.
    pub fn result(&self, counts: Vec<DatasetCounts>, published: Option<&PublishedTable>) -> StaticResult {
        let value = |selector: &Selector| -> Option<f64> {
            let quantity = selector.quantity?;
            if quantity == Quantity::Datasets {
                return Some(counts.len() as f64);
            }
            let dataset = selector.dataset.as_ref()?;
            let DatasetCounts { classes, images, .. } = counts.iter().find(|c| c.dataset == *dataset)?;
            match quantity {
                Quantity::Classes => Some(*classes as f64),
                Quantity::Images => Some(*images as f64),
                Quantity::ImagesPerClass => (*classes > 0).then(|| *images as f64 / *classes as f64),
                _ => None,
            }
        };
        let compared = published.map_or_else(Vec::new, |p| p.compare(&value));
        StaticResult {
            title: self.title.clone(),
            published: compared,
            known: published.map_or_else(Vec::new, |p| p.known().to_vec()),
            datasets: counts,
            models: Vec::new(),
        }
    }
}

impl ModelSizeTable {
    /// Compares the counts of the networks with the published numbers.
    pub fn result(&self, counts: Vec<ModelCounts>, published: Option<&PublishedTable>) -> StaticResult {
        let value = |selector: &Selector| -> Option<f64> {
            let model = selector.model.as_ref()?;
            let counts = counts.iter().find(|c| c.model == *model)?;
            match selector.quantity? {
                Quantity::Parameters => Some(counts.parameters as f64),
                Quantity::Macs => Some(counts.macs as f64),
                Quantity::Flops => Some(counts.flops as f64),
                _ => None,
            }
        };
        let compared = published.map_or_else(Vec::new, |p| p.compare(&value));
        StaticResult {
            title: self.title.clone(),
            published: compared,
            known: self.note.iter().chain(published.map_or(&[][..], |p| p.known())).cloned().collect(),
            datasets: Vec::new(),
            models: counts,
        }
    }
}

impl StaticResult {
    /// Formats the table for a terminal.
    pub fn terminal(&self) -> String {
        let mut text = format!("{}\n", self.title);
        if !self.datasets.is_empty() {
            let heads = [("dataset", Align::Left), ("classes", Align::Right), ("images", Align::Right)];
            let mut table = TextTable::new(&heads);
            for counts in &self.datasets {
                table.push([counts.dataset.clone(), counts.classes.to_string(), counts.images.to_string()]);
            }
            text.push_str(&format!("\n{}", table.terminal()));
        }
        if let Some(first) = self.models.first() {
            let mut heads = vec![("model", Align::Left)];
            heads.extend(["parameters M", "% of first", "MACs G", "FLOPs G"].map(|h| (h, Align::Right)));
            let mut table = TextTable::new(&heads);
            for counts in &self.models {
                table.push([
                    counts.model.clone(),
                    format!("{:.2}", counts.parameters as f64 / 1e6),
                    format!("{:.2}", 100.0 * counts.parameters as f64 / first.parameters.max(1) as f64),
                    format!("{:.2}", counts.macs as f64 / 1e9),
                    format!("{:.2}", counts.flops as f64 / 1e9),
                ]);
            }
            text.push_str(&format!("\n{}", table.terminal()));
        }
        if !self.published.is_empty() {
            text.push_str(&format!("\n{}", comparison_table(&self.published).terminal()));
        }
        if !self.known.is_empty() {
            let list: String = self.known.iter().map(|f| format!("- {f}\n")).collect();
            text.push_str(&format!("\n{list}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Paper;

    const PAPER: &str = r#"
title = "A paper"
short = "A"
authors = "B"
venue = "C"
year = 2020
text = "all of it"

[[table]]
id = "t1"
title = "Sizes"
known = ["A finding."]
values = [
    { row = "roses", column = "images", printed = "40", value = 40, unit = "images", source = "table", measured = { quantity = "images", dataset = "roses" } },
    { row = "roses", column = "per class", printed = "20", value = 20, unit = "images", source = "table", measured = { quantity = "images_per_class", dataset = "roses" } },
    { row = "small", column = "FLOPs", printed = "8.1", value = 8.1, unit = "G", source = "table", measured = { quantity = "flops", model = "small" } },
    { row = "small", column = "compression", printed = "25", value = 25, unit = "%", source = "table", measured = { quantity = "parameters", model = "small", percent_of = { model = "large" } } },
]
"#;

    #[test]
    fn compares_datasets() {
        let table = StaticTable::parse("kind = 'datasets'\ntitle = 'T'\ndatasets = ['roses']", "x.toml");
        let Ok(Some(StaticTable::Datasets(table))) = table else { panic!("{table:?}") };
        let counts = vec![DatasetCounts { dataset: "roses".into(), classes: 2, images: 41 }];
        let paper = Paper::parse(PAPER, "paper.toml").unwrap();
        let result = table.result(counts, Some(&paper.published_table("t1").unwrap()));
        let measured: Vec<_> = result.published.iter().map(|v| v.measured).collect();
        assert_eq!(measured, [Some(41.0), Some(20.5), None, None]);
        assert!(result.terminal().contains("- A finding."));
    }

    #[test]
    fn compares_model_sizes() {
        let text = "kind = 'model_sizes'\ntitle = 'T'\nmodels = ['large', 'small']\nclasses = 2\n\
                    image_size = 8\nflops = { per_mac = 8 }\n";
        let Ok(Some(StaticTable::ModelSizes(table))) = StaticTable::parse(text, "x.toml") else { panic!() };
        assert_eq!(table.flops, FlopsRule { per_mac: 8, per_batch_norm_output: 0 });
        let counts = |model: &str, parameters| ModelCounts {
            model: model.into(),
            parameters,
            macs: 1_000_000_000,
            flops: 8_000_000_000,
        };
        let paper = Paper::parse(PAPER, "paper.toml").unwrap();
        let counts = vec![counts("large", 4000), counts("small", 1000)];
        let result = table.result(counts, Some(&paper.published_table("t1").unwrap()));
        let measured: Vec<_> = result.published.iter().map(|v| v.measured).collect();
        assert_eq!(measured, [None, None, Some(8.0), Some(25.0)]);
    }

    #[test]
    fn rejects_unknown_kinds_and_keys() {
        assert_eq!(StaticTable::parse("title = 'runs'", "x.toml").unwrap(), None);
        let error = |text: &str| StaticTable::parse(text, "x.toml").unwrap_err().to_string();
        assert!(error("kind = 'sizes'").contains("expected \"datasets\" or \"model_sizes\""));
        assert!(error("kind = 'datasets'\ntitle = 'T'\ndatasets = []\nmodels = []").contains("models"));
    }
}
