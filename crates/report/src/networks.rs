//! Size and speed of the networks of a table.

use std::collections::BTreeMap;

use serde::Serialize;
use stillhouse_runs::format_size;

use crate::text_table::{Align, TextTable, optional};
use crate::{Planned, Record};

/// One network at one size of images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkRow {
    /// Registry id.
    pub network: String,
    /// Height of the training images in pixels; the width too unless `image_width` is set.
    pub image_size: usize,
    /// Width of the training images, if they are not square.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_width: Option<usize>,
    /// Trainable parameters.
    pub parameters: u64,
    /// Percentage of the largest teacher's parameters; none without a teacher.
    pub percent_of_teacher: Option<f64>,
    /// Multiply-accumulates of one image.
    pub macs: u64,
    /// Latency of a single image in milliseconds, median over the runs.
    pub latency_ms: Option<f64>,
    /// Throughput in batches of 32, median over the runs.
    pub images_per_second: Option<f64>,
}

/// Returns the networks of these runs and teachers, the largest first.
pub(crate) fn rows(runs: &[(Planned, Record)], teachers: &[Record]) -> Vec<NetworkRow> {
    // Network, height and width of its training images.
    type Key = (String, usize, Option<usize>);
    let mut found: BTreeMap<Key, Vec<&Record>> = BTreeMap::new();
    for record in teachers.iter().chain(runs.iter().map(|(_, record)| record)) {
        let (rows, columns) = (record.result.summary.image_size, record.result.summary.image_width);
        found.entry((record.info.student(), rows, columns)).or_default().push(record);
    }
    let largest = teachers.iter().map(|t| t.result.parameters).max().filter(|p| *p > 0);
    let row = |((network, image_size, image_width), records): (Key, Vec<&Record>)| {
        let speeds = || records.iter().filter_map(|r| r.result.speed);
        let parameters = records[0].result.parameters;
        NetworkRow {
            network,
            image_size,
            image_width,
            parameters,
            percent_of_teacher: largest.map(|of| 100.0 * parameters as f64 / of as f64),
            macs: records[0].result.macs,
            latency_ms: median(speeds().map(|s| s.latency_ms).collect()),
            images_per_second: median(speeds().map(|s| s.images_per_second).collect()),
        }
    };
    let mut rows: Vec<NetworkRow> = found.into_iter().map(row).collect();
    rows.sort_by_key(|r| std::cmp::Reverse(r.parameters));
    rows
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Note below the table.
pub const NOTE: &str = "Speed: inference with the trained network on the machine of its run, which may have been \
    busy with other work; medians over the runs.";

/// Returns the networks as a text table.
pub fn text_table(rows: &[NetworkRow]) -> TextTable {
    let mut table = TextTable::new(&[
        ("network", Align::Left),
        ("px", Align::Right),
        ("parameters M", Align::Right),
        ("% of teacher", Align::Right),
        ("MACs G", Align::Right),
        ("latency ms", Align::Right),
        ("images/s, batch 32", Align::Right),
    ]);
    for row in rows {
        table.push([
            row.network.clone(),
            format_size(row.image_size, row.image_width),
            format!("{:.2}", row.parameters as f64 / 1e6),
            optional(row.percent_of_teacher, 2),
            format!("{:.3}", row.macs as f64 / 1e9),
            optional(row.latency_ms, 1),
            optional(row.images_per_second, 0),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_medians() {
        assert_eq!((median(vec![]), median(vec![3.0, 1.0, 2.0])), (None, Some(2.0)));
    }
}
