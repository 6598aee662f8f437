//! `stillhouse weights`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stillhouse_backbones::weights_file::WeightsFile;
use stillhouse_backbones::{Error as WeightsError, Fit, Manifest, fit, load_weights, manifests, save};
use stillhouse_core::fs::sha256_file;
use stillhouse_core::model::{Model, ModelSpec};
use stillhouse_core::{Error as CoreError, ParamStore, Rng};
use stillhouse_report::text::{Align, Grid};

use super::{weights_diff, weights_export, weights_fetch};
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::paths::Paths;
use crate::{output, registries};

const CHECK_EXAMPLES: &str = "\
Examples:
  stillhouse weights check                            all manifests whose files are found
  stillhouse weights check resnet50
  stillhouse weights check my.pth --arch resnet18     whose names it has, what fits and what does not

The exit code is 1 where a file is not the one that its manifest means, or does not fit the network.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  stillhouse weights import swin_t-704ceda3.pth --arch swin_tiny_patch4_window7_224 --output swin.safetensors
  stillhouse weights import pytorch_model.bin --arch resnet50 --output resnet50.safetensors

Reads safetensors and what torch.save writes (a state dict; nothing in the file is run), in the names of timm,
torchvision, Hugging Face and the Swin Transformer's authors; f16, bf16, f32 and f64. Writes f32 under timm's
names. docs/weights.md has the details.";

/// Look after weights
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    Fetch(weights_fetch::Args),
    Check(Check),
    Import(Import),
    Export(weights_export::Args),
    Diff(weights_diff::Args),
}

/// Compare files of weights with their manifests, or with a network
#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub(crate) struct Check {
    /// Network that has a manifest, or a file; all manifests where it is left out
    what: Option<String>,
    /// Name of its weights
    #[arg(long, default_value = "imagenet", value_name = "NAME")]
    name: String,
    #[command(flatten)]
    network: Network,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Bring a file of weights into timm's names
#[derive(Debug, clap::Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(crate) struct Import {
    /// File
    file: PathBuf,
    #[command(flatten)]
    network: Network,
    /// File to write, .safetensors
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Leave the head new where the file has none, or one of other classes
    #[arg(long)]
    new_head: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The network that a file belongs to.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Network {
    /// Network (`stillhouse list models`)
    #[arg(long, value_name = "NAME")]
    pub(super) arch: Option<String>,
    /// Architecture variant, as in output_stride=16
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) variant: Vec<String>,
    /// Classes of the head [default: those of the file]
    #[arg(long, value_name = "N")]
    pub(super) classes: Option<usize>,
}

impl Network {
    /// What is asked for.
    pub(super) fn request(&self) -> Result<ModelSpec, CliError> {
        let Some(arch) = &self.arch else {
            return Err(CliError::usage("which network is it for?").hint("name it: --arch resnet18"));
        };
        registries::registries().models.get(arch)?;
        let mut variant = toml::Table::new();
        for setting in &self.variant {
            // A word without quotes is meant as text.
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            let read = toml::from_str::<toml::Table>(&format!("value = {value}"));
            let value = read.ok().and_then(|mut t| t.remove("value")).unwrap_or_else(|| value.into());
            variant.insert(key.trim().to_string(), value);
        }
        Ok(ModelSpec { name: arch.clone(), classes: self.classes.unwrap_or(1000), variant })
    }

    /// What is asked for, with the classes of the file where none are named.
    pub(super) fn request_for(&self, file: &WeightsFile) -> Result<ModelSpec, CliError> {
        let mut request = self.request()?;
        if self.classes.is_none() {
            let params = ParamStore::meta();
            let network = build(&request, &params)?;
            request.classes = fit(file, &params, &network.head(), false).classes.unwrap_or(request.classes);
        }
        Ok(request)
    }
}

/// Builds a network in a store.
pub(super) fn build(request: &ModelSpec, params: &ParamStore) -> Result<Box<dyn Model>, CliError> {
    Ok((registries::registries().models.get(&request.name)?.build)(request, &params.builder(Rng::new(0)))?)
}

/// Refuses to write over something.
pub(super) fn must_be_new(path: &Path) -> Result<(), CliError> {
    let taken = match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => path.exists(),
    };
    if taken {
        return Err(CliError::usage(format!("{} is there already", path.display()))
            .hint("choose another place, or remove it; nothing is overwritten"));
    }
    Ok(())
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    match args {
        Args::Fetch(args) => weights_fetch::run(args),
        Args::Check(args) => check(args),
        Args::Import(args) => import(args),
        Args::Export(args) => weights_export::run(args),
        Args::Diff(args) => weights_diff::run(args),
    }
}

fn check(args: &Check) -> Outcome {
    match &args.what {
        Some(what) if Path::new(what).is_file() => check_file(Path::new(what), args),
        what => check_manifests(what.as_deref(), args),
    }
}

/// A file beside a network, or by itself.
fn check_file(path: &Path, args: &Check) -> Outcome {
    let file = WeightsFile::open(path)?;
    let values: usize = file.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum();
    let mut report = json!({
        "file": path,
        "format": file.format().to_string(),
        "tensors": file.tensors().len(),
        "values": values,
        "sha256": sha256_file(path)?,
        "metadata": file.metadata(),
    });
    let mut found = None;
    if args.network.arch.is_some() {
        let request = args.network.request_for(&file)?;
        let params = ParamStore::meta();
        let network = build(&request, &params)?;
        let fit = fit(&file, &params, &network.head(), false);
        report["network"] = json!(request.name);
        report["classes"] = json!(request.classes);
        report["fit"] = json!(fit);
        found = Some(fit);
    }
    if args.json {
        output::print_json(&report);
    } else {
        let mut text = format!(
            "{}: {}, {} tensors, {values} values\nsha256  {}\n",
            path.display(),
            file.format(),
            file.tensors().len(),
            report["sha256"].as_str().unwrap_or_default()
        );
        match &found {
            Some(fit) => text.push_str(&told(fit, &report["network"])),
            None => text.push_str("name a network with --arch to see whether it fits\n"),
        }
        output::print(&text);
    }
    Ok(if found.is_none_or(|fit| fit.fits()) { ExitStatus::Success } else { ExitStatus::Failure })
}

/// What fits and what does not, all of it.
fn told(fit: &Fit, network: &Value) -> String {
    let network = network.as_str().unwrap_or_default();
    let mut text = format!("names   {}\n{network:<8}{} parameters are in the file\n", fit.form, fit.taken);
    let lists = [
        ("missing", &fit.missing),
        ("unexpected", &fit.unexpected),
        ("of another shape or type", &fit.misshapen),
        ("note", &fit.left),
    ];
    for (what, list) in lists {
        for line in list {
            text.push_str(&format!("{what}: {line}\n"));
        }
    }
    text
}

/// Files of manifests: found or not, the right ones or not.
fn check_manifests(arch: Option<&str>, args: &Check) -> Outcome {
    let all = match arch {
        Some(arch) => vec![Manifest::find(arch, &args.name)?],
        None => manifests()?,
    };
    let roots = Paths::new(None).weights;
    let mut rows = Vec::new();
    let mut ended = ExitStatus::Success;
    for manifest in all {
        let looked = stillhouse_backbones::weights(&manifest.arch, &manifest.variant, &manifest.name, &roots);
        let (state, file, sha256) = match looked {
            Ok(info) => {
                let known = match manifest.sha256.len() {
                    64 => "verified",
                    0 => "found, no hash is published",
                    _ => "found, the published beginning of its hash agrees",
                };
                (known.to_string(), Some(info.path), Some(info.sha256))
            }
            Err(CoreError::Other(e)) => match e.downcast_ref::<WeightsError>() {
                Some(WeightsError::NoFile { .. }) if arch.is_none() => ("not found".to_string(), None, None),
                _ => {
                    ended = ExitStatus::Failure;
                    (e.to_string(), None, None)
                }
            },
            Err(e) => return Err(e.into()),
        };
        rows.push(json!({"weights": manifest.title(), "state": state, "file": file, "sha256": sha256}));
    }
    if args.json {
        output::print_json(&json!(rows));
        return Ok(ended);
    }
    let mut grid = Grid::new(&[("weights", Align::Left), ("state", Align::Left), ("sha256", Align::Left)]);
    for row in &rows {
        let word = |key: &str| row[key].as_str().unwrap_or_default().to_string();
        grid.row([word("weights"), word("state"), word("sha256")]);
    }
    output::print(&grid.terminal());
    Ok(ended)
}

fn import(args: &Import) -> Outcome {
    if args.output.extension().is_none_or(|e| e != "safetensors") {
        return Err(CliError::usage(format!(
            "{}: expected a name that ends in .safetensors",
            args.output.display()
        )));
    }
    must_be_new(&args.output)?;
    let file = WeightsFile::open(&args.file).prepared()?;
    let request = args.network.request_for(&file)?;
    let params = ParamStore::new(candle_core::DType::F32, &candle_core::Device::Cpu)?;
    let network = build(&request, &params)?;
    let head = network.head();
    let fit = fit(&file, &params, &head, args.new_head);
    let left = load_weights(&args.file, &params, &head, args.new_head)?;
    let mut metadata = std::collections::BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        ("arch".to_string(), request.name.clone()),
        ("classes".to_string(), request.classes.to_string()),
        ("source_sha256".to_string(), sha256_file(&args.file)?),
    ]);
    if !request.variant.is_empty() {
        metadata.insert("variant".into(), request.variant.to_string().trim().replace('\n', "; "));
    }
    save(&params, &args.output, &metadata)?;
    if args.json {
        output::print_json(&json!({
            "file": args.output, "network": request.name, "classes": request.classes,
            "source_format": file.format().to_string(), "fit": fit,
        }));
        return Ok(ExitStatus::Success);
    }
    for line in &left {
        output::status(&format!("note: {line}"));
    }
    output::print(&format!(
        "{}: {} with {} classes, {} parameters from names of {}",
        args.output.display(),
        request.name,
        request.classes,
        fit.taken,
        fit.form
    ));
    Ok(ExitStatus::Success)
}
