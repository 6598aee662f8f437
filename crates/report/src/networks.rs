//! Size and speed of the networks of a table: what remains of the teacher, and how fast it is.

use std::collections::BTreeMap;

use serde::Serialize;
use stillhouse_runs::format_size;

use crate::accuracy::network_title;
use crate::text::{Align, Grid};
use crate::{Planned, Record};

/// One network at one size of images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkRow {
    /// Registry id.
    pub network: String,
    /// Side of the training images in pixels; rows where `image_width` is given.
    pub image_size: usize,
    /// Columns, where they are no squares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_width: Option<usize>,
    /// Trainable values.
    pub parameters: u64,
    /// Parameters in percent of the teacher's; none without a teacher.
    pub of_the_teacher: Option<f64>,
    /// Multiply-accumulates of one image.
    pub macs: u64,
    /// Milliseconds for one image alone, the median over the runs.
    pub latency_ms: Option<f64>,
    /// Images per second in batches of 32, the median over the runs.
    pub images_per_second: Option<f64>,
}

/// The networks of these runs and teachers, the largest first.
pub fn rows(runs: &[(Planned, Record)], teachers: &[Record]) -> Vec<NetworkRow> {
    // By network and rows and columns of its training images.
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
            of_the_teacher: largest.map(|of| 100.0 * parameters as f64 / of as f64),
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

/// What stands below the grid.
pub const BELOW: &str = "Speed: the trained network, without gradients, on the machine of its run while that \
    machine did whatever else it did; medians over the runs.";

/// The networks as a grid.
pub fn grid(rows: &[NetworkRow]) -> Grid {
    let mut grid = Grid::new(&[
        ("network", Align::Left),
        ("px", Align::Right),
        ("parameters M", Align::Right),
        ("of the teacher %", Align::Right),
        ("MACs G", Align::Right),
        ("one image ms", Align::Right),
        ("batches of 32, images/s", Align::Right),
    ]);
    let some = |v: Option<f64>, digits: usize| v.map_or_else(|| "-".to_string(), |v| format!("{v:.digits$}"));
    for row in rows {
        grid.row([
            network_title(&row.network).to_string(),
            format_size(row.image_size, row.image_width),
            format!("{:.2}", row.parameters as f64 / 1e6),
            some(row.of_the_teacher, 2),
            format!("{:.3}", row.macs as f64 / 1e9),
            some(row.latency_ms, 1),
            some(row.images_per_second, 0),
        ]);
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!((median(vec![]), median(vec![3.0, 1.0, 2.0])), (None, Some(2.0)));
    }
}
