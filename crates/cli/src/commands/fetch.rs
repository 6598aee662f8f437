//! `stillhouse data fetch`.

use std::path::PathBuf;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use stillhouse_datasets::fetch::{Fetch, Progress, Tell, fetch};
use stillhouse_datasets::manifest;

use crate::error::{CliError, ExitStatus, Outcome};
use crate::paths::Paths;
use crate::{output, registries};

const EXAMPLES: &str = "\
Examples:
  stillhouse data fetch ucm
  stillhouse data fetch cub --root /data              then: stillhouse data check cub --root /data

Environment:
  STILLHOUSE_DATA      where it goes (else ./datasets)
  HF_TOKEN             token of the hub, for sets that ask who you are (or HF_TOKEN_PATH, HF_HOME)
  HF_ENDPOINT          another address of the hub
  HF_HUB_OFFLINE=1     download nothing

A download that was cut off goes on where it was when the command is started again; a set is there when
all of it is, verified and unpacked.";

/// Download a dataset from its official source or mirror, verify and unpack it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Dataset (`stillhouse list datasets`)
    name: String,
    /// Folder that is to hold it; instead of that of the environment
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Keep the downloaded archives, in .fetch
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    registries::registries().datasets.get(&args.name)?;
    let root = args.root.clone().or_else(|| Paths::new(None).data.into_iter().next());
    let Some(root) = root else { return Err(CliError::usage("no folder for datasets")) };
    let mut how = Fetch::from_env(root);
    how.keep = args.keep;
    if let Some(manifest) = manifest::find(&args.name) {
        output::status(&format!("{}: {}", manifest.title, manifest.license));
    }
    let done = with_bar(|tell| fetch(&args.name, &how, tell)).map_err(stillhouse_core::Error::from)?;
    if args.json {
        let mut value = serde_json::to_value(&done)?;
        value["check"] = json!(format!("stillhouse data check {}", args.name));
        output::print_json(&value);
        return Ok(ExitStatus::Success);
    }
    if done.was_there {
        output::print(&format!("{} is there already; remove it to fetch it anew", done.folder.display()));
        return Ok(ExitStatus::Success);
    }
    for origin in &done.from {
        let hash = origin.sha256.as_ref().map_or_else(String::new, |h| format!(", sha256 {h}"));
        let verified = if origin.verified { "verified" } else { "no published hash to compare with" };
        output::print(&format!("{} ({}{hash}, {verified})", origin.url, output::size(origin.size)));
    }
    output::print(&format!("{}\nnext: stillhouse data check {}", done.folder.display(), args.name));
    Ok(ExitStatus::Success)
}

/// Runs a download and shows how far it is.
pub(super) fn with_bar<T>(run: impl FnOnce(Tell) -> T) -> T {
    let bar = Mutex::new(Bar::default());
    run(&|progress: Progress| {
        if let Ok(mut bar) = bar.lock() {
            bar.show(progress);
        }
    })
}

/// One bar at a time, on stderr; where nobody looks, a line at the beginning and at the end.
#[derive(Default)]
struct Bar(Option<ProgressBar>);

impl Bar {
    fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Say(text) => match &self.0 {
                Some(bar) if !bar.is_hidden() => bar.suspend(|| output::status(&text)),
                _ => output::status(&text),
            },
            Progress::Begin(name, bytes) => {
                let bar = bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
                let form = if bytes.is_some() {
                    "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}"
                } else {
                    "{msg} {spinner} {bytes} {bytes_per_sec}"
                };
                if let Ok(style) = ProgressStyle::with_template(form) {
                    bar.set_style(style);
                }
                if bar.is_hidden() {
                    let size = bytes.map_or_else(String::new, |n| format!(" ({})", output::size(n)));
                    output::status(&format!("fetching {name}{size}"));
                }
                bar.set_message(name);
                self.0 = Some(bar);
            }
            Progress::Again => self.each(|bar| bar.set_position(0)),
            Progress::More(bytes) => self.each(|bar| bar.inc(bytes)),
            Progress::End => {
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
