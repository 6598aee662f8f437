//! `stillhouse weights fetch`.

use std::path::PathBuf;

use serde_json::json;
use stillhouse_backbones::Manifest;
use stillhouse_core::fs::FolderLock;
use stillhouse_datasets::fetch::{Client, Fetch};

use super::fetch::with_bar;
use crate::error::{CliError, ExitStatus, Outcome};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse weights fetch vgg16
  stillhouse weights fetch swin_tiny_patch4_window7_224 --root /weights

Environment:
  STILLHOUSE_WEIGHTS   where it goes (else ./weights)
  HF_HUB_OFFLINE=1     download nothing

What the hub's own tools have in their cache (hf download timm/...) is found there and need not be fetched.";

/// Download pretrained weights from their official source and compare them with their manifest
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Network
    arch: String,
    /// Name of its weights
    #[arg(long, default_value = "imagenet", value_name = "NAME")]
    name: String,
    /// Folder that is to hold the file; instead of that of the environment
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let manifest = Manifest::find(&args.arch, &args.name)?;
    let roots = args.root.clone().map_or_else(|| Paths::new(None).weights, |root| vec![root]);
    let Some(root) = roots.first().cloned() else {
        return Err(CliError::usage("no folder for weights"));
    };
    let told = |file: PathBuf, sha256: String, was_there: bool| {
        if args.json {
            output::print_json(&json!({"file": file, "sha256": sha256, "was_there": was_there}));
        } else {
            let there = if was_there { " is there already" } else { "" };
            let known = if manifest.sha256.is_empty() { " (no published hash to compare with)" } else { "" };
            output::print(&format!("{}{there}\nsha256  {sha256}{known}", file.display()));
        }
        Ok(ExitStatus::Success)
    };
    if let Ok(found) =
        stillhouse_backbones::weights(&manifest.arch, &manifest.variant, &manifest.name, &roots)
    {
        return told(found.path, found.sha256, true);
    }
    let how = Fetch::from_env(root.clone());
    let Some(url) = &manifest.url else {
        return Err(CliError::usage(format!("{} cannot be downloaded as it is", manifest.title()))
            .hint(&manifest.get));
    };
    if how.offline {
        return Err(CliError::failed(format!(
            "{} is not there and HF_HUB_OFFLINE forbids to download",
            root.join(&manifest.file).display()
        ))
        .hint("unset it, or put the file there"));
    }
    let path = root.join(&manifest.file);
    if path.exists() {
        // There, but not the right one: `weights` above has refused it.
        manifest.check(&path)?;
    }
    output::status(&format!("{}: {}", manifest.title(), manifest.license));
    let _lock = FolderLock::take(&root.join(".fetch"))?;
    let client = Client::new(&how).map_err(stillhouse_core::Error::from)?;
    let pinned = manifest.is_pinned().then(|| manifest.sha256.clone());
    let part = root.join(".fetch").join(&manifest.file);
    with_bar(|tell| client.file(url, &part, manifest.bytes, pinned, tell))
        .map_err(stillhouse_core::Error::from)?;
    match manifest.check(&part) {
        Ok(sha256) => {
            stillhouse_core::fs::rename(&part, &path)?;
            told(path, sha256, false)
        }
        Err(e) => {
            // Wrong bytes are of no use for a later try.
            let _ = std::fs::remove_file(&part);
            Err(e.into())
        }
    }
}
