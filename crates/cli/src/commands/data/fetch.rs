//! `stillhouse data fetch`.

use std::path::PathBuf;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use stillhouse_datasets::fetch::{Fetch, Progress, ProgressFn, fetch};
use stillhouse_datasets::manifest;

use super::data_roots;
use crate::error::{CliError, ExitStatus, Outcome};
use crate::{output, registries};

const EXAMPLES: &str = "\
Examples:
  stillhouse data fetch ucm
  stillhouse data fetch cub --root /data              then: stillhouse data check cub --root /data

Environment:
  STILLHOUSE_DATA      data root to download into [default: ./datasets]
  HF_TOKEN             hub token, for datasets that require authentication (or HF_TOKEN_PATH, HF_HOME)
  HF_ENDPOINT          hub endpoint
  HF_HUB_OFFLINE=1     forbid downloads

Run the command again to resume an interrupted download. The dataset's folder appears once all of it is
verified and unpacked.";

/// Download a dataset from its source or a mirror, verify and unpack it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Dataset (`stillhouse list datasets`)
    name: String,
    /// Data root to download into, instead of STILLHOUSE_DATA
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Keep the downloaded archives in .fetch
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let roots = data_roots(args.root.as_ref());
    registries::datasets_in(&roots).get(&args.name)?;
    let found = manifest::find(&args.name, &roots).map_err(stillhouse_core::Error::from)?;
    let Some(manifest) = found else {
        return Err(CliError::usage(format!("`{}` has no manifest, so nothing to download", args.name)));
    };
    let Some(root) = roots.into_iter().next() else {
        return Err(CliError::usage("no data root: expected --root or STILLHOUSE_DATA"));
    };
    let mut config = Fetch::from_env(root);
    config.keep = args.keep;
    output::status(&format!("{}: {}", manifest.title, manifest.license));
    let done = with_progress_bar(|progress| fetch(&manifest, &config, progress))
        .map_err(stillhouse_core::Error::from)?;
    if args.json {
        let mut value = serde_json::to_value(&done)?;
        value["check"] = json!(format!("stillhouse data check {}", args.name));
        output::print_json(&value);
        return Ok(ExitStatus::Success);
    }
    if done.already_present {
        output::print(&format!("{} exists already; remove it to download it again", done.folder.display()));
        return Ok(ExitStatus::Success);
    }
    for origin in &done.from {
        let hash = origin.sha256.as_ref().map_or_else(String::new, |h| format!(", sha256 {h}"));
        let verified = if origin.verified { "verified" } else { "no published hash" };
        output::print(&format!("{} ({}{hash}, {verified})", origin.url, output::size(origin.size)));
    }
    output::print(&format!("{}\nnext: stillhouse data check {}", done.folder.display(), args.name));
    Ok(ExitStatus::Success)
}

/// Runs a download with a progress bar.
pub(crate) fn with_progress_bar<T>(run: impl FnOnce(ProgressFn) -> T) -> T {
    let bar = Mutex::new(Bar::default());
    run(&|event: Progress| {
        if let Ok(mut bar) = bar.lock() {
            bar.handle(event);
        }
    })
}

/// One bar at a time on stderr; a line per download if stderr is not a terminal.
#[derive(Default)]
struct Bar(Option<ProgressBar>);

impl Bar {
    fn handle(&mut self, event: Progress) {
        match event {
            Progress::Message(text) => match &self.0 {
                Some(bar) if !bar.is_hidden() => bar.suspend(|| output::status(&text)),
                _ => output::status(&text),
            },
            Progress::Started(name, bytes) => {
                let bar = bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
                let template = if bytes.is_some() {
                    "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}"
                } else {
                    "{msg} {spinner} {bytes} {bytes_per_sec}"
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                if bar.is_hidden() {
                    let size = bytes.map_or_else(String::new, |n| format!(" ({})", output::size(n)));
                    output::status(&format!("downloading {name}{size}"));
                }
                bar.set_message(name);
                self.0 = Some(bar);
            }
            Progress::Restarted => self.each(|bar| bar.set_position(0)),
            Progress::Advanced(bytes) => self.each(|bar| bar.inc(bytes)),
            Progress::Finished => {
                self.each(ProgressBar::finish_and_clear);
                self.0 = None;
            }
        }
    }

    fn each(&self, f: impl Fn(&ProgressBar)) {
        if let Some(bar) = &self.0 {
            f(bar);
        }
    }
}
