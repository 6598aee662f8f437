//! `stillhouse list`: registered components and experiments.

use serde_json::json;
use stillhouse_core::registry::Registry;
use stillhouse_report::text_table::{Align, TextTable};

use crate::error::{ExitStatus, Outcome};
use crate::experiments::Loaded;
use crate::{experiments, output, registries};

const EXAMPLES: &str = "\
Examples:
  stillhouse list
  stillhouse list losses
  stillhouse list models --json";

/// List methods, models, datasets, metrics and experiments
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Kind [default: all]
    kind: Option<Kind>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Losses,
    Models,
    Datasets,
    Metrics,
    Experiments,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Losses, Self::Models, Self::Datasets, Self::Metrics, Self::Experiments];

    fn title(self) -> &'static str {
        match self {
            Self::Losses => "losses",
            Self::Models => "models",
            Self::Datasets => "datasets",
            Self::Metrics => "metrics",
            Self::Experiments => "experiments",
        }
    }

    fn rows(self) -> Vec<Row> {
        let registries = registries::registries();
        match self {
            Self::Losses => rows(&registries.losses),
            Self::Models => rows(&registries.models),
            Self::Datasets => rows(&registries.datasets),
            Self::Metrics => rows(&registries.metrics),
            Self::Experiments => experiments::all().into_iter().map(experiment).collect(),
        }
    }
}

struct Row {
    name: String,
    summary: String,
    source: String,
}

fn rows<B: Copy>(registry: &Registry<B>) -> Vec<Row> {
    registry
        .entries()
        .iter()
        .map(|r| Row { name: r.name.into(), summary: r.summary.into(), source: r.source.into() })
        .collect()
}

fn experiment(found: experiments::Found) -> Row {
    let source = found.path.map_or_else(|| "built in".to_string(), |p| p.display().to_string());
    let summary = match experiments::open(&found.name, &[]) {
        Ok(Loaded::Static(table)) => table.title().to_string(),
        Ok(Loaded::Runs(e)) if e.profiles().is_empty() => e.title().to_string(),
        Ok(Loaded::Runs(e)) => format!("{} (profiles: {})", e.title(), e.profiles().join(", ")),
        Err(error) => format!("invalid: {}", error.source),
    };
    Row { name: found.name, summary, source }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let kinds: Vec<Kind> = args.kind.map_or_else(|| Kind::ALL.to_vec(), |k| vec![k]);
    if args.json {
        let mut all = serde_json::Map::new();
        for kind in kinds {
            let rows = kind
                .rows()
                .into_iter()
                .map(|r| json!({"name": r.name, "summary": r.summary, "source": r.source}))
                .collect();
            all.insert(kind.title().to_string(), serde_json::Value::Array(rows));
        }
        output::print_json(&serde_json::Value::Object(all));
        return Ok(ExitStatus::Success);
    }
    let mut text = String::new();
    for kind in kinds {
        // People look methods up by their paper.
        let source = if kind == Kind::Losses { "paper" } else { "" };
        let mut grid =
            TextTable::new(&[(kind.title(), Align::Left), ("", Align::Left), (source, Align::Left)]);
        for row in kind.rows() {
            grid.push([row.name, row.summary, if source.is_empty() { String::new() } else { row.source }]);
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&grid.terminal());
    }
    output::print(&text);
    Ok(ExitStatus::Success)
}
