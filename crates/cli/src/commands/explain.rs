//! `stillhouse explain`.

use serde_json::{Value, json};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::registry::{DatasetRequest, Entry, Registry};
use stillhouse_core::{ParamStore, Rng, suggest};
use stillhouse_report::text::{Align, Grid};

use crate::commands::explain_experiment;
use crate::error::{CliError, ExitStatus, Outcome};
use crate::paths::Paths;
use crate::{experiments, output, registries};

const EXAMPLES: &str = "\
Examples:
  stillhouse explain class_centric                  a method, its defaults and their sources
  stillhouse explain loss kd
  stillhouse explain model resnet18 --size 64   taps, parameters, multiply-accumulates
  stillhouse explain experiment table3 --profile smoke --set train.epochs=3
  stillhouse explain table3 --json                 every resolved value of every run";

/// Explain a method, network, dataset, metric or experiment: defaults and sources, taps, parameters, operations
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Kind (loss, model, dataset, metric, experiment; may be left out) and name
    #[arg(required = true, num_args = 1..=2, value_names = ["KIND", "NAME"])]
    what: Vec<String>,
    /// Classes of a network's head
    #[arg(long, default_value_t = 21, value_name = "N")]
    classes: usize,
    /// Side of a network's input in pixels [default: what the network is made for]
    #[arg(long, value_name = "PX")]
    size: Option<usize>,
    /// Pretrained weights whose variant of a network is meant, for example `imagenet`
    #[arg(long, value_name = "NAME")]
    weights: Option<String>,
    /// Profile of an experiment
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Change a setting of an experiment, as in train.epochs=3
    #[arg(long, value_name = "A.B=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const KINDS: [&str; 5] = ["loss", "model", "dataset", "metric", "experiment"];

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let (kind, name) = match args.what.as_slice() {
        [kind, name] => (kind_of(kind)?, name.as_str()),
        [name] => (find(name)?, name.as_str()),
        _ => return Err(CliError::usage("expected a kind and a name")),
    };
    let registries = registries::registries();
    let value = match kind {
        "loss" => loss(registries.losses.get(name)?)?,
        "metric" => row(kind, registries.metrics.get(name)?),
        "dataset" => dataset(registries.datasets.get(name)?),
        "model" => model(registries.models.get(name)?, args)?,
        _ => return explain_experiment::run(name, args),
    };
    if args.json {
        output::print_json(&value);
    } else {
        output::print(&readable(&value));
    }
    Ok(ExitStatus::Success)
}

fn kind_of(word: &str) -> Result<&'static str, CliError> {
    // `losses` is understood as `loss` is: `list` calls them so.
    let word = match word {
        "losses" | "method" | "methods" => "loss",
        other => other.strip_suffix('s').unwrap_or(other),
    };
    KINDS.into_iter().find(|k| *k == word).ok_or_else(|| {
        let near = suggest(word, KINDS).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        CliError::usage(format!("unknown kind `{word}`{near}; known: {}", KINDS.join(", ")))
    })
}

/// The kind of a name that stands alone.
fn find(name: &str) -> Result<&'static str, CliError> {
    let registries = registries::registries();
    let mut names: Vec<(&'static str, String)> = Vec::new();
    names.extend(names_of("loss", &registries.losses));
    names.extend(names_of("model", &registries.models));
    names.extend(names_of("dataset", &registries.datasets));
    names.extend(names_of("metric", &registries.metrics));
    names.extend(experiments::all().into_iter().map(|e| ("experiment", e.name)));
    if let Some((kind, _)) = names.iter().find(|(_, n)| n == name) {
        return Ok(kind);
    }
    if name.ends_with(".toml") {
        return Ok("experiment");
    }
    let near = suggest(name, names.iter().map(|(_, n)| n.as_str()));
    let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    Err(CliError::usage(format!("nothing is called `{name}`{near}"))
        .hint("`stillhouse list` names everything"))
}

fn names_of<B: Copy>(kind: &'static str, registry: &Registry<B>) -> Vec<(&'static str, String)> {
    registry.entries().iter().map(|r| (kind, r.name.to_string())).collect()
}

fn row<B: Copy>(kind: &str, entry: &Entry<B>) -> Value {
    json!({
        "kind": kind,
        "name": entry.name,
        "summary": entry.summary,
        "source": entry.source,
        "defaults": (entry.defaults)(),
    })
}

/// A method: what it is made of, found out by connecting it.
fn loss(entry: &Entry<stillhouse_core::distiller::DistillerBuild>) -> Result<Value, CliError> {
    let mut value = row("loss", entry);
    let card = stillhouse_losses::card(entry)?;
    let terms: Vec<Value> = card.terms.iter().map(|(n, w)| json!({"name": n, "weight": w})).collect();
    value["labels"] = json!(card.labels);
    value["student_taps"] = json!(card.student);
    value["teacher_taps"] = json!(card.teacher);
    value["terms"] = json!(terms);
    value["connectors"] = json!(card.connectors);
    value["connector_values"] = json!(card.parameters);
    value["state"] = json!(card.state);
    Ok(value)
}

fn dataset(entry: &Entry<stillhouse_core::registry::DatasetBuild>) -> Value {
    let mut value = row("dataset", entry);
    let request = DatasetRequest {
        name: entry.name.to_string(),
        roots: Paths::new(None).data,
        path: None,
        options: toml::Table::new(),
    };
    match (entry.build)(&request) {
        Ok(set) => {
            value["found"] = json!(set.info().title);
            value["images"] = json!(set.len());
            value["classes"] = json!(set.info().classes);
        }
        Err(e) => value["found"] = json!(format!("no: {e}")),
    }
    value
}

fn model(entry: &Entry<stillhouse_core::model::ModelBuild>, args: &Args) -> Result<Value, CliError> {
    let mut value = row("model", entry);
    let manifests: Vec<_> =
        stillhouse_backbones::manifests()?.into_iter().filter(|m| m.arch == entry.name).collect();
    let variant = match &args.weights {
        None => toml::Table::new(),
        Some(name) => match manifests.iter().find(|m| m.name == *name) {
            Some(manifest) => manifest.variant.clone(),
            None => {
                let known: Vec<&str> = manifests.iter().map(|m| m.name.as_str()).collect();
                let near = suggest(name, known.iter().copied());
                let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
                let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
                return Err(CliError::usage(format!(
                    "no weights `{name}` for {}{near}; known: {known}",
                    entry.name
                )));
            }
        },
    };
    let request = ModelSpec { name: entry.name.to_string(), classes: args.classes, variant };
    let size = args.size.unwrap_or_else(|| stillhouse_backbones::usual_size(entry.name));
    let counts = stillhouse_backbones::count(&request, size, size)?;
    let network = (entry.build)(&request, &ParamStore::meta().builder(Rng::new(0)))?;
    let taps: Vec<Value> = network
        .features()
        .iter()
        .map(|t| json!({"name": t.name, "channels": t.channels, "stride": t.stride}))
        .collect();
    value["classes"] = json!(args.classes);
    value["size"] = json!(size);
    value["variant"] = json!(request.variant);
    value["taps"] = json!(taps);
    value["parameters"] = json!(counts.parameters);
    value["macs"] = json!(counts.macs);
    value["attention_macs"] = json!(counts.attention_macs);
    value["training_bytes_per_image"] = json!(4 * counts.kept_values);
    value["table4_flops"] = json!(counts.table4_flops());
    value["weights"] = json!(
        manifests
            .iter()
            .map(|m| json!({"name": m.name, "file": m.file, "source": m.source, "license": m.license}))
            .collect::<Vec<_>>()
    );
    Ok(value)
}

fn readable(value: &Value) -> String {
    let word = |key: &str| value[key].as_str().unwrap_or_default();
    let mut text =
        format!("{} {}\n{}\n\nsource: {}\n", word("kind"), word("name"), word("summary"), word("source"));
    if value["terms"].is_array() {
        text.push_str(&method_parts(value));
    }
    if !word("defaults").is_empty() {
        text.push_str(&format!("\ndefaults:\n  {}\n", word("defaults").trim_end().replace('\n', "\n  ")));
    }
    if let Some(found) = value["found"].as_str() {
        text.push_str(&format!("\nfound: {found}\n"));
    }
    if let (Some(images), Some(classes)) = (value["images"].as_u64(), value["classes"].as_array()) {
        let names: Vec<&str> = classes.iter().filter_map(Value::as_str).collect();
        text.push_str(&format!("images: {images}\nclasses: {} ({})\n", names.len(), names.join(", ")));
    }
    if let Some(taps) = value["taps"].as_array() {
        text.push_str(&network_figures(value, taps));
    }
    text
}

/// Taps, terms, connectors and state of a method.
fn method_parts(value: &Value) -> String {
    let words = |key: &str| {
        let list: Vec<&str> = value[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if list.is_empty() { "none".to_string() } else { list.join(", ") }
    };
    let term = |t: &Value| format!("{} x {}", t["weight"], t["name"].as_str().unwrap_or_default());
    let terms: Vec<String> = value["terms"].as_array().into_iter().flatten().map(term).collect();
    let mut grid = Grid::new(&[("part", Align::Left), ("with the defaults", Align::Left)]);
    let mut line = |name: &str, what: String| grid.row([name.to_string(), what]);
    line("labels", value["labels"].as_str().unwrap_or_default().to_string());
    line("taps of the student", words("student_taps"));
    line("taps of the teacher", words("teacher_taps"));
    line("terms", terms.join(" + "));
    line("connectors", words("connectors"));
    if let Some(values @ 1..) = value["connector_values"].as_u64() {
        line("", format!("{:.2} M values between ResNet50 and ResNet18", values as f64 / 1e6));
    }
    line("state", words("state"));
    format!("\n{}", grid.terminal())
}

fn network_figures(value: &Value, taps: &[Value]) -> String {
    let size = value["size"].as_u64().unwrap_or_default();
    let number = |key: &str| value[key].as_u64().unwrap_or_default() as f64;
    let mut grid = Grid::new(&[("tap", Align::Left), ("shape without batch", Align::Left)]);
    for tap in taps {
        let (channels, stride) = (&tap["channels"], tap["stride"].as_u64().unwrap_or_default());
        let side = if stride == 0 { 0 } else { size.div_ceil(stride) };
        let shape = if stride == 0 {
            format!("[{channels}]")
        } else {
            format!("[{channels}, {side}, {side}], stride {stride}")
        };
        grid.row([tap["name"].as_str().unwrap_or_default().to_string(), shape]);
    }
    let mut text = format!(
        "\nwith {} classes at {size} x {size} px:\n  parameters            {:.2} M ({})\n  \
         multiply-accumulates  {:.3} G\n  FLOPs                 {:.3} G (two for each multiply-accumulate)\n  \
         as the paper's table  {:.2} G (its Table 4, eight images)\n  \
         activations           {} for each image of a training step\n\n{}",
        value["classes"],
        number("parameters") / 1e6,
        value["parameters"],
        number("macs") / 1e9,
        2.0 * number("macs") / 1e9,
        number("table4_flops") / 1e9,
        output::size(value["training_bytes_per_image"].as_u64().unwrap_or_default()),
        grid.terminal()
    );
    for weights in value["weights"].as_array().into_iter().flatten() {
        let word = |key: &str| weights[key].as_str().unwrap_or_default();
        text.push_str(&format!(
            "\nweights {} ({}): {} License: {}\n",
            word("name"),
            word("file"),
            word("source"),
            word("license")
        ));
    }
    text
}
