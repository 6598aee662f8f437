//! `stillhouse data check`.

use super::DatasetArgs;
use crate::error::{ExitStatus, Outcome, Prepared};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  stillhouse data check ucm                           in the data roots that `stillhouse doctor` lists
  stillhouse data check ucm --root /data --json
  stillhouse data check cub --subset                  counts are warnings
  stillhouse data check folder --path my/images       own images in class folders
  stillhouse data check folder --path my/fields --set 'mask_values={ 0 = \"land\", 255 = \"water\" }'
  stillhouse data check folder --path my/fields --set 'classes=[\"land\", \"water\"]' --set train=train.txt

Exits with 1 if there are errors: layout, lists, labels, counts, unreadable files, masks, identical
images in two splits or two classes.";

/// Read every file of a dataset and compare it with its manifest
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    dataset: DatasetArgs,
    /// The files are a subset of the official dataset: report counts as warnings
    #[arg(long)]
    subset: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let report = stillhouse_datasets::check(&args.dataset.request()?, args.subset).prepared()?;
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["ok"] = report.is_ok().into();
        output::print_json(&value);
    } else {
        output::print(&report.to_string());
    }
    Ok(if report.is_ok() { ExitStatus::Success } else { ExitStatus::Failure })
}
