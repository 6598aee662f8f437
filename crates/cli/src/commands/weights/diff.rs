//! `stillhouse weights diff`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use candle_core::DType;
use serde_json::json;
use stillhouse_backbones::weights::{StoredTensor, WeightsFile};
use stillhouse_report::text_table::{Align, TextTable};

use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  stillhouse weights diff runs/a/student.safetensors runs/b/student.safetensors
  stillhouse weights diff before.safetensors after.safetensors --tolerance 1e-6

Exits with 1 if names or shapes differ, or values by more than the tolerance.";

/// Compare two weights files, tensor by tensor
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// First file
    first: PathBuf,
    /// Second file
    second: PathBuf,
    /// Maximum absolute difference of equal values
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    tolerance: f64,
    /// State dict in both files, such as state_dict_ema [default: the only one]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let (first, second) =
        (WeightsFile::open(&args.first).prepared()?, WeightsFile::open(&args.second).prepared()?);
    let by_name = |file: &WeightsFile| -> Result<BTreeMap<String, StoredTensor>, CliError> {
        let dict = file.state_dict(args.key.as_deref())?;
        Ok(dict.tensors.iter().map(|t| (t.name.clone(), t.clone())).collect())
    };
    let (left, right) = (by_name(&first)?, by_name(&second)?);
    let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let (mut rows, mut equal) = (Vec::new(), 0);
    for name in names {
        let what = match (left.get(name), right.get(name)) {
            (Some(a), Some(b)) if a.shape != b.shape => format!("{:?} and {:?}", a.shape, b.shape),
            (Some(a), Some(b)) if is_float(a) && is_float(b) => {
                let (a, b) = (first.read(a)?.to_dtype(DType::F64)?, second.read(b)?.to_dtype(DType::F64)?);
                let values = (a - b)?.abs()?.flatten_all()?.to_vec1::<f64>()?;
                let different = values.iter().filter(|v| **v > args.tolerance || v.is_nan()).count();
                let max = values.iter().copied().fold(0.0, f64::max);
                if different == 0 {
                    equal += 1;
                    continue;
                }
                rows.push(json!({"name": name, "values": values.len(), "different": different, "max_difference": max}));
                continue;
            }
            (Some(a), Some(b)) if a.dtype == b.dtype => continue, // counters
            (Some(a), Some(b)) => format!("{:?} and {:?}", a.dtype, b.dtype),
            (Some(_), None) => "only in the first file".to_string(),
            _ => "only in the second file".to_string(),
        };
        rows.push(json!({"name": name, "what": what}));
    }
    let status = if rows.is_empty() { ExitStatus::Success } else { ExitStatus::Failure };
    if args.json {
        output::print_json(&json!({"equal": equal, "different": rows}));
        return Ok(status);
    }
    let mut table = TextTable::new(&[("tensor", Align::Left), ("difference", Align::Left)]);
    for row in &rows {
        let what = match row["what"].as_str() {
            Some(what) => what.to_string(),
            None => format!(
                "{} of {} values, maximum {:.3e}",
                row["different"],
                row["values"],
                row["max_difference"].as_f64().unwrap_or(f64::NAN)
            ),
        };
        table.push([row["name"].as_str().unwrap_or_default().to_string(), what]);
    }
    let text = if rows.is_empty() { String::new() } else { format!("{}\n", table.terminal()) };
    output::print(&format!("{text}{equal} tensors are equal, {} differ", rows.len()));
    Ok(status)
}

fn is_float(tensor: &StoredTensor) -> bool {
    tensor.float_dtype().is_some()
}
