//! `stillhouse weights diff`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use candle_core::DType;
use serde_json::json;
use stillhouse_backbones::weights_file::{Stored, WeightsFile};
use stillhouse_report::text::{Align, Grid};

use crate::error::{ExitStatus, Outcome, Prepared};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  stillhouse weights diff runs/a/student.safetensors runs/b/student.safetensors
  stillhouse weights diff before.safetensors after.safetensors --tolerance 1e-6

The exit code is 1 where names or shapes differ, or values by more than the tolerance.";

/// Compare two files of weights, tensor by tensor
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// One file
    one: PathBuf,
    /// The other
    other: PathBuf,
    /// Differences up to this count as none
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    tolerance: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let (mut one, mut other) =
        (WeightsFile::open(&args.one).prepared()?, WeightsFile::open(&args.other).prepared()?);
    let by_name = |file: &WeightsFile| -> BTreeMap<String, Stored> {
        file.tensors().iter().map(|t| (t.name.clone(), t.clone())).collect()
    };
    let (left, right) = (by_name(&one), by_name(&other));
    let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let (mut rows, mut same) = (Vec::new(), 0);
    for name in names {
        let what = match (left.get(name), right.get(name)) {
            (Some(a), Some(b)) if a.shape != b.shape => format!("{:?} and {:?}", a.shape, b.shape),
            (Some(a), Some(b)) if is_float(a) && is_float(b) => {
                let (a, b) = (one.read(a)?.to_dtype(DType::F64)?, other.read(b)?.to_dtype(DType::F64)?);
                let values = (a - b)?.abs()?.flatten_all()?.to_vec1::<f64>()?;
                let differ = values.iter().filter(|v| **v > args.tolerance || v.is_nan()).count();
                let most = values.iter().copied().fold(0.0, f64::max);
                if differ == 0 {
                    same += 1;
                    continue;
                }
                rows.push(json!({"name": name, "values": values.len(), "differ": differ, "most": most}));
                continue;
            }
            (Some(a), Some(b)) if a.dtype == b.dtype => continue, // counters
            (Some(a), Some(b)) => format!("{:?} and {:?}", a.dtype, b.dtype),
            (Some(_), None) => "only in the first".to_string(),
            _ => "only in the second".to_string(),
        };
        rows.push(json!({"name": name, "what": what}));
    }
    let ended = if rows.is_empty() { ExitStatus::Success } else { ExitStatus::Failure };
    if args.json {
        output::print_json(&json!({"same": same, "different": rows}));
        return Ok(ended);
    }
    let mut grid = Grid::new(&[("tensor", Align::Left), ("difference", Align::Left)]);
    for row in &rows {
        let what = match row["what"].as_str() {
            Some(what) => what.to_string(),
            None => format!(
                "{} of {} values, at most {:.3e}",
                row["differ"],
                row["values"],
                row["most"].as_f64().unwrap_or(f64::NAN)
            ),
        };
        grid.row([row["name"].as_str().unwrap_or_default().to_string(), what]);
    }
    let table = if rows.is_empty() { String::new() } else { format!("{}\n", grid.terminal()) };
    output::print(&format!("{table}{same} tensors are the same, {} differ", rows.len()));
    Ok(ended)
}

fn is_float(tensor: &Stored) -> bool {
    tensor.float().is_some()
}
