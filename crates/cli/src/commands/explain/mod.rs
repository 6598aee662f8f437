//! `stillhouse explain`: defaults, sources and sizes of a registered component.

mod experiment;

use serde_json::{Value, json};
use stillhouse_core::model::ModelSpec;
use stillhouse_core::registry::{DatasetRequest, Entry, Registry};
use stillhouse_core::{ParamStore, Rng, suggest};
use stillhouse_report::text_table::{Align, TextTable};

use crate::error::{CliError, ExitStatus, Outcome};
use crate::paths::Paths;
use crate::{experiments, output, registries};

const EXAMPLES: &str = "\
Examples:
  stillhouse explain class_centric                  a method, its defaults and their sources
  stillhouse explain loss kd
  stillhouse explain model resnet18 --size 64   features, parameters, multiply-accumulates
  stillhouse explain experiment table3 --profile quick --set train.epochs=3
  stillhouse explain table3 --json                 every resolved setting of every run";

/// Explain a method, model, dataset, metric or experiment
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Kind (loss, model, dataset, metric, experiment; optional) and name
    #[arg(required = true, num_args = 1..=2, value_names = ["KIND", "NAME"])]
    what: Vec<String>,
    /// Classes of a model's head
    #[arg(long, default_value_t = 21, value_name = "N")]
    classes: usize,
    /// Input size of a model in pixels [default: the model's own]
    #[arg(long, value_name = "PX")]
    size: Option<usize>,
    /// Pretrained weights whose model variant is shown, for example `imagenet`
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
        [name] => (find_kind(name)?, name.as_str()),
        _ => return Err(CliError::usage("expected a kind and a name")),
    };
    let registries = registries::registries();
    let value = match kind {
        "loss" => loss(registries.losses.get(name)?)?,
        "metric" => entry_json(kind, registries.metrics.get(name)?),
        "dataset" => dataset(registries.datasets.get(name)?),
        "model" => model(registries.models.get(name)?, args)?,
        _ => return experiment::run(name, args),
    };
    if args.json {
        output::print_json(&value);
    } else {
        output::print(&to_text(&value));
    }
    Ok(ExitStatus::Success)
}

fn kind_of(word: &str) -> Result<&'static str, CliError> {
    // `list` uses the plural.
    let word = match word {
        "losses" | "method" | "methods" => "loss",
        other => other.strip_suffix('s').unwrap_or(other),
    };
    KINDS.into_iter().find(|k| *k == word).ok_or_else(|| {
        let hint = suggest(word, KINDS).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        CliError::usage(format!("unknown kind `{word}`{hint}; known: {}", KINDS.join(", ")))
    })
}

/// Finds the kind of a name given without one.
fn find_kind(name: &str) -> Result<&'static str, CliError> {
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
    let hint = suggest(name, names.iter().map(|(_, n)| n.as_str()));
    let hint = hint.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    Err(CliError::usage(format!("unknown name `{name}`{hint}")).hint("`stillhouse list` shows all names"))
}

fn names_of<B: Copy>(kind: &'static str, registry: &Registry<B>) -> Vec<(&'static str, String)> {
    registry.entries().iter().map(|r| (kind, r.name.to_string())).collect()
}

fn entry_json<B: Copy>(kind: &str, entry: &Entry<B>) -> Value {
    json!({
        "kind": kind,
        "name": entry.name,
        "summary": entry.summary,
        "source": entry.source,
        "defaults": (entry.defaults)(),
    })
}

/// Describes a method by connecting it to reference feature shapes.
fn loss(entry: &Entry<stillhouse_core::distiller::DistillerBuild>) -> Result<Value, CliError> {
    let mut value = entry_json("loss", entry);
    let info = stillhouse_losses::method_info(entry)?;
    let terms: Vec<Value> = info.terms.iter().map(|(n, w)| json!({"name": n, "weight": w})).collect();
    value["labels"] = json!(info.labels);
    value["student_features"] = json!(info.student);
    value["teacher_features"] = json!(info.teacher);
    value["terms"] = json!(terms);
    value["connectors"] = json!(info.connectors);
    value["connector_values"] = json!(info.parameters);
    value["state"] = json!(info.state);
    Ok(value)
}

fn dataset(entry: &Entry<stillhouse_core::registry::DatasetBuild>) -> Value {
    let mut value = entry_json("dataset", entry);
    let request = DatasetRequest {
        name: entry.name.to_string(),
        roots: Paths::new(None).data,
        path: None,
        options: toml::Table::new(),
    };
    if let Ok(Some(manifest)) = stillhouse_datasets::manifest::find(entry.name, &request.roots) {
        value["manifest"] = json!(manifest.origin);
        value["license"] = json!(manifest.license);
        value["layout"] = json!(manifest.layout);
        value["notes"] = json!(manifest.notes);
    }
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
    let mut value = entry_json("model", entry);
    let manifests: Vec<_> =
        stillhouse_backbones::weights::manifests()?.into_iter().filter(|m| m.arch == entry.name).collect();
    let variant = match &args.weights {
        None => toml::Table::new(),
        Some(name) => match manifests.iter().find(|m| m.name == *name) {
            Some(manifest) => manifest.variant.clone(),
            None => {
                let known: Vec<&str> = manifests.iter().map(|m| m.name.as_str()).collect();
                let hint = suggest(name, known.iter().copied());
                let hint = hint.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
                let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
                return Err(CliError::usage(format!(
                    "no weights `{name}` for {}{hint}; known: {known}",
                    entry.name
                )));
            }
        },
    };
    let request = ModelSpec { name: entry.name.to_string(), classes: args.classes, variant };
    let size = args.size.unwrap_or_else(|| stillhouse_backbones::default_image_size(entry.name));
    let counts = stillhouse_backbones::count(&request, size, size)?;
    let network = (entry.build)(&request, &ParamStore::meta().builder(Rng::new(0)))?;
    let features: Vec<Value> = network
        .features()
        .iter()
        .map(|t| json!({"name": t.name, "channels": t.channels, "stride": t.stride}))
        .collect();
    value["classes"] = json!(args.classes);
    value["size"] = json!(size);
    value["variant"] = json!(request.variant);
    value["features"] = json!(features);
    value["parameters"] = json!(counts.parameters);
    value["macs"] = json!(counts.macs);
    value["attention_macs"] = json!(counts.attention_macs);
    value["training_bytes_per_image"] = json!(4 * counts.activations);
    value["table4_flops"] = json!(stillhouse_backbones::table4_flops(&counts));
    value["weights"] = json!(
        manifests
            .iter()
            .map(|m| json!({"name": m.name, "file": m.file, "source": m.source, "license": m.license}))
            .collect::<Vec<_>>()
    );
    Ok(value)
}

fn to_text(value: &Value) -> String {
    let text_of = |key: &str| value[key].as_str().unwrap_or_default();
    let mut text = format!(
        "{} {}\n{}\n\nsource: {}\n",
        text_of("kind"),
        text_of("name"),
        text_of("summary"),
        text_of("source")
    );
    if value["terms"].is_array() {
        text.push_str(&method_parts(value));
    }
    if !text_of("defaults").is_empty() {
        text.push_str(&format!("\ndefaults:\n  {}\n", text_of("defaults").trim_end().replace('\n', "\n  ")));
    }
    for key in ["manifest", "license", "layout"] {
        if let Some(line) = value[key].as_str().filter(|line| !line.is_empty()) {
            text.push_str(&format!("\n{key}: {line}"));
        }
    }
    for note in value["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        text.push_str(&format!("\nnote: {note}"));
    }
    if value["manifest"].is_string() {
        text.push('\n');
    }
    if let Some(found) = value["found"].as_str() {
        text.push_str(&format!("\nfound: {found}\n"));
    }
    if let (Some(images), Some(classes)) = (value["images"].as_u64(), value["classes"].as_array()) {
        let names: Vec<&str> = classes.iter().filter_map(Value::as_str).collect();
        text.push_str(&format!("images: {images}\nclasses: {} ({})\n", names.len(), names.join(", ")));
    }
    if let Some(features) = value["features"].as_array() {
        text.push_str(&model_sizes(value, features));
    }
    text
}

/// Formats features, terms, connectors and state of a method.
fn method_parts(value: &Value) -> String {
    let words = |key: &str| {
        let list: Vec<&str> = value[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if list.is_empty() { "none".to_string() } else { list.join(", ") }
    };
    let term = |t: &Value| format!("{} x {}", t["weight"], t["name"].as_str().unwrap_or_default());
    let terms: Vec<String> = value["terms"].as_array().into_iter().flatten().map(term).collect();
    let mut grid = TextTable::new(&[("part", Align::Left), ("with default settings", Align::Left)]);
    let mut line = |name: &str, what: String| grid.push([name.to_string(), what]);
    line("labels", value["labels"].as_str().unwrap_or_default().to_string());
    line("student features", words("student_features"));
    line("teacher features", words("teacher_features"));
    line("terms", terms.join(" + "));
    line("connectors", words("connectors"));
    if let Some(values @ 1..) = value["connector_values"].as_u64() {
        line("", format!("{:.2} M values for ResNet50 to ResNet18", values as f64 / 1e6));
    }
    line("state", words("state"));
    format!("\n{}", grid.terminal())
}

fn model_sizes(value: &Value, features: &[Value]) -> String {
    let size = value["size"].as_u64().unwrap_or_default();
    let number = |key: &str| value[key].as_u64().unwrap_or_default() as f64;
    let mut grid = TextTable::new(&[("feature", Align::Left), ("shape without batch", Align::Left)]);
    for feature in features {
        let (channels, stride) = (&feature["channels"], feature["stride"].as_u64().unwrap_or_default());
        let side = if stride == 0 { 0 } else { size.div_ceil(stride) };
        let shape = if stride == 0 {
            format!("[{channels}]")
        } else {
            format!("[{channels}, {side}, {side}], stride {stride}")
        };
        grid.push([feature["name"].as_str().unwrap_or_default().to_string(), shape]);
    }
    let mut text = format!(
        "\nwith {} classes at {size} x {size} px:\n  parameters            {:.2} M ({})\n  \
         multiply-accumulates  {:.3} G\n  FLOPs                 {:.3} G (2 per multiply-accumulate)\n  \
         as the paper's table  {:.2} G (its Table 4, eight images)\n  \
         activations           {} per image in training\n\n{}",
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
        let text_of = |key: &str| weights[key].as_str().unwrap_or_default();
        text.push_str(&format!(
            "\nweights {} ({}): {} License: {}\n",
            text_of("name"),
            text_of("file"),
            text_of("source"),
            text_of("license")
        ));
    }
    text
}
