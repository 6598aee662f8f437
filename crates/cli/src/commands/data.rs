//! `stillhouse data`.

use std::path::PathBuf;

use stillhouse_core::registry::DatasetRequest;

use crate::places::Places;
use crate::problem::{Ended, Outcome, Prepared};
use crate::{parts, talk};

const EXAMPLES: &str = "\
Examples:
  stillhouse data check ucm                           in the folders that `stillhouse doctor` names
  stillhouse data check ucm --root /data --json
  stillhouse data check folder --path my/images       any folder with one folder of images per class

The exit code is 1 where an image cannot be read or a count is not that of the manifest.";

/// Look after datasets
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    Check(Check),
}

/// Read every image of a dataset, and compare the counts with its manifest
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Check {
    /// Dataset (`stillhouse list datasets`)
    name: String,
    /// Folder that holds it; instead of those of the environment
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The folder of class folders, for `folder`
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let Args::Check(args) = args;
    let entry = *parts::parts().datasets.get(&args.name)?;
    let request = DatasetRequest {
        name: args.name.clone(),
        roots: args.root.clone().map_or_else(|| Places::new(None).data, |root| vec![root]),
        // `folder` has no layout of its own: its root is its path.
        path: args.path.clone().or_else(|| args.root.clone().filter(|_| args.name == "folder")),
        options: toml::Table::new(),
    };
    let set = (entry.build)(&request).prepared()?;
    let report = stillhouse_datasets::check(set.as_ref());
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["ok"] = report.is_ok().into();
        value["identity"] = set.identity()?.into();
        talk::json(&value);
    } else {
        talk::out(&report.to_string());
    }
    Ok(if report.is_ok() { Ended::Well } else { Ended::Findings })
}
