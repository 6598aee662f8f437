//! `stillhouse data`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;
use serde_json::json;
use stillhouse_core::data::{Dataset, Task};
use stillhouse_core::registry::DatasetRequest;

use crate::places::Places;
use crate::problem::{Ended, Outcome, Prepared};
use crate::{parts, talk};

const EXAMPLES: &str = "\
Examples:
  stillhouse data check ucm                           in the folders that `stillhouse doctor` names
  stillhouse data check ucm --root /data --json
  stillhouse data check folder --path my/images       any folder with one folder of images per class

The exit code is 1 where an image cannot be read.";

/// Look after datasets
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    Check(Check),
}

/// Read every image of a dataset, and count
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
    let found = check(set.as_ref())?;
    if args.json {
        talk::json(&json!({
            "dataset": args.name,
            "title": set.info().title,
            "identity": found.identity,
            "images": set.len(),
            "classes": found.classes.iter().map(|(n, c)| json!({"name": n, "images": c})).collect::<Vec<_>>(),
            "sizes": found.sizes.iter().map(|(s, c)| json!({"width": s.0, "height": s.1, "images": c})).collect::<Vec<_>>(),
            "findings": found.broken,
        }));
    } else {
        talk::out(&readable(set.as_ref(), &found));
    }
    Ok(if found.broken.is_empty() { Ended::Well } else { Ended::Findings })
}

struct Found {
    identity: String,
    classes: Vec<(String, usize)>,
    sizes: Vec<((usize, usize), usize)>,
    broken: Vec<String>,
}

fn check(set: &dyn Dataset) -> Result<Found, stillhouse_core::Error> {
    let read: Vec<_> = (0..set.len())
        .into_par_iter()
        .map(|i| match set.sample(i) {
            Ok(sample) => Ok((sample.image.width, sample.image.height)),
            Err(e) => Err(format!("{}: {e}", set.key(i))),
        })
        .collect();
    let mut sizes: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for size in read.iter().flatten() {
        *sizes.entry(*size).or_default() += 1;
    }
    let mut sizes: Vec<_> = sizes.into_iter().collect();
    sizes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut counts = vec![0; set.info().classes.len()];
    for class in (0..set.len()).filter_map(|i| set.class(i)) {
        if let Some(count) = counts.get_mut(class as usize) {
            *count += 1;
        }
    }
    Ok(Found {
        identity: set.identity()?,
        classes: set.info().classes.iter().cloned().zip(counts).collect(),
        sizes,
        broken: read.into_iter().filter_map(Result::err).collect(),
    })
}

fn readable(set: &dyn Dataset, found: &Found) -> String {
    let mut text =
        format!("{}\n{} images, identity {}\n", set.info().title, set.len(), short(&found.identity));
    let sizes: Vec<String> =
        found.sizes.iter().take(5).map(|((w, h), count)| format!("{w}x{h} ({count})")).collect();
    let more =
        if found.sizes.len() > 5 { format!(", {} more", found.sizes.len() - 5) } else { String::new() };
    text.push_str(&format!("sizes: {}{more}\n", sizes.join(", ")));
    if set.info().task == Task::Classification {
        let classes: Vec<String> = found.classes.iter().map(|(n, c)| format!("{n} {c}")).collect();
        text.push_str(&format!("{} classes: {}\n", classes.len(), classes.join(", ")));
    }
    match found.broken.as_slice() {
        [] => text.push_str("every image can be read\n"),
        broken => {
            text.push_str(&format!("{} images cannot be read:\n", broken.len()));
            for line in broken {
                text.push_str(&format!("  {line}\n"));
            }
        }
    }
    text
}

fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
