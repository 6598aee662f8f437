//! Table 4 of the class-centric paper: parameters, operations and compression of the networks.

use serde::Serialize;

use crate::text::{Align, Grid};
use crate::{Published, Result};

/// Id of the table among the published ones.
const TABLE: &str = "p1.t4";

/// What was counted of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    /// Registry id.
    pub network: String,
    /// Its name in print.
    pub title: String,
    /// Trainable values.
    pub parameters: u64,
    /// Operations as the paper counts them.
    pub flops: u64,
    /// Multiply-accumulates of convolutions and linear layers.
    pub macs: u64,
}

/// One network: ours and the printed numbers. These are the fields of the JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Registry id.
    pub network: String,
    #[serde(skip)]
    title: String,
    /// Parameters in millions.
    pub parameters_m: f64,
    /// As printed.
    pub published_parameters_m: Option<f64>,
    /// Operations in billions, as the paper counts them.
    pub flops_g: f64,
    /// As printed.
    pub published_flops_g: Option<f64>,
    /// Multiply-accumulates in billions, as most others count.
    pub macs_g: f64,
    /// Parameters in percent of the first network's; none for the first.
    pub compression: Option<f64>,
    /// As printed.
    pub published_compression: Option<f64>,
}

/// The networks beside the printed numbers; the first is the teacher.
pub fn rows(counted: &[Counted]) -> Result<Vec<Row>> {
    let published = Published::builtin()?;
    let number = |title: &str, column| published.cell(TABLE, title, column).and_then(|c| c.value);
    let row = |(place, c): (usize, &Counted)| Row {
        network: c.network.clone(),
        title: c.title.clone(),
        parameters_m: c.parameters as f64 / 1e6,
        published_parameters_m: number(&c.title, "Parameters"),
        flops_g: c.flops as f64 / 1e9,
        published_flops_g: number(&c.title, "FLOPs"),
        macs_g: c.macs as f64 / 1e9,
        compression: (place > 0).then(|| 100.0 * c.parameters as f64 / counted[0].parameters as f64),
        published_compression: number(&c.title, "compression"),
    };
    Ok(counted.iter().enumerate().map(row).collect())
}

/// The table for a terminal.
pub fn terminal(rows: &[Row]) -> String {
    let mut columns = vec![("network", Align::Left)];
    for head in ["parameters M", "paper", "FLOPs G", "paper", "MACs G", "of the teacher %", "paper"] {
        columns.push((head, Align::Right));
    }
    let mut grid = Grid::new(&columns);
    let some = |v: Option<f64>| v.map_or_else(|| "-".to_string(), |v| format!("{v:.2}"));
    for r in rows {
        grid.row([
            r.title.clone(),
            format!("{:.2}", r.parameters_m),
            some(r.published_parameters_m),
            format!("{:.2}", r.flops_g),
            some(r.published_flops_g),
            format!("{:.2}", r.macs_g),
            some(r.compression),
            some(r.published_compression),
        ]);
    }
    format!(
        "Table 4: size of the networks with 21 classes, one image of 224 x 224. FLOPs as the paper counts them: \n\
         8 x (multiply-accumulates + 2 x batch-norm outputs), our reading.\n\n{}",
        grid.terminal()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_numbers_stand_beside_ours() {
        let counted = |network: &str, title: &str, parameters, flops| Counted {
            network: network.into(),
            title: title.into(),
            parameters,
            flops,
            macs: flops / 8,
        };
        let all = [
            counted("resnet50", "ResNet50", 23_551_061, 32_875_300_000),
            counted("resnet18", "ResNet18", 11_187_285, 14_548_300_000),
            counted("own", "Own", 1_000_000, 1_000_000_000),
        ];
        let rows = rows(&all).unwrap();
        assert_eq!((rows[0].published_flops_g, rows[0].compression), (Some(32.88), None));
        assert_eq!(rows[1].published_compression, Some(47.52));
        assert!((rows[1].compression.unwrap() - 47.50).abs() < 0.01);
        assert_eq!(rows[2].published_parameters_m, None);
        let text = terminal(&rows);
        assert!(text.contains("47.50") && text.contains("47.52") && text.contains("32.88"), "{text}");
    }
}
