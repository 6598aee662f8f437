//! `stillhouse weights fetch`.

use std::path::PathBuf;

use serde_json::json;
use stillhouse_backbones::weights::{Manifest, find_weights};
use stillhouse_core::fs::FolderLock;
use stillhouse_datasets::fetch::{Client, Fetch};

use crate::commands::data::fetch::with_progress_bar;
use crate::error::{CliError, ExitStatus, Outcome};
use crate::output;
use crate::paths::Paths;

const EXAMPLES: &str = "\
Examples:
  stillhouse weights fetch vgg16
  stillhouse weights fetch swin_tiny_patch4_window7_224 --root /weights

Environment:
  STILLHOUSE_WEIGHTS   destination folder [default: ./weights]
  HF_HUB_OFFLINE=1     disable downloads

Files in the Hugging Face cache (hf download timm/...) are used without a download.";

/// Download pretrained weights from their official source and verify them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Model
    arch: String,
    /// Name of the weights
    #[arg(long, default_value = "imagenet", value_name = "NAME")]
    name: String,
    /// Destination folder; overrides STILLHOUSE_WEIGHTS
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
    let print_result = |file: PathBuf, sha256: String, cached: bool| {
        if args.json {
            output::print_json(&json!({"file": file, "sha256": sha256, "cached": cached}));
        } else {
            let state = if cached { " (already downloaded)" } else { "" };
            let note = if manifest.sha256.is_empty() { " (no published hash)" } else { "" };
            output::print(&format!("{}{state}\nsha256  {sha256}{note}", file.display()));
        }
        Ok(ExitStatus::Success)
    };
    if let Ok(found) = find_weights(&manifest.arch, &manifest.variant, &manifest.name.as_str().into(), &roots)
    {
        return print_result(found.path, found.sha256, true);
    }
    let fetch = Fetch::from_env(root.clone());
    let Some(url) = &manifest.url else {
        return Err(CliError::usage(format!("no direct download: {}", manifest.title())).hint(&manifest.get));
    };
    if fetch.offline {
        return Err(CliError::failed(format!(
            "weights not found and downloads disabled by HF_HUB_OFFLINE: {}",
            root.join(&manifest.file).display()
        ))
        .hint("unset HF_HUB_OFFLINE, or copy the file there"));
    }
    let path = root.join(&manifest.file);
    if path.exists() {
        // `find_weights` rejected this file: report why.
        manifest.verify(&path)?;
    }
    output::status(&format!("{}: {}", manifest.title(), manifest.license));
    let _lock = FolderLock::take(&root.join(".fetch"))?;
    let client = Client::new(&fetch).map_err(stillhouse_core::Error::from)?;
    let pinned = manifest.is_pinned().then(|| manifest.sha256.clone());
    let part = root.join(".fetch").join(&manifest.file);
    with_progress_bar(|progress| client.file(url, &part, manifest.bytes, pinned, progress))
        .map_err(stillhouse_core::Error::from)?;
    match manifest.verify(&part) {
        Ok(sha256) => {
            stillhouse_core::fs::rename(&part, &path)?;
            print_result(path, sha256, false)
        }
        Err(e) => {
            // A wrong file must not be resumed.
            let _ = std::fs::remove_file(&part);
            Err(e.into())
        }
    }
}
