//! `stillhouse data stats`.

use std::path::PathBuf;

use stillhouse_datasets::stats;
use stillhouse_report::text_table::{Align, TextTable};

use super::DatasetArgs;
use crate::error::{ExitStatus, Outcome};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  stillhouse data stats ucm
  stillhouse data stats camvid --sheet camvid.png     eight images of each class, or images and masks";

/// Count classes, sizes and colors, and draw a contact sheet
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    dataset: DatasetArgs,
    /// Write a contact sheet (PNG)
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let set = args.dataset.open()?;
    let found = stats::stats(set.as_ref())?;
    if let Some(path) = &args.sheet {
        let sheet = stats::contact_sheet(set.as_ref(), 8, 96)?;
        let bytes = stats::png(&sheet).map_err(stillhouse_core::Error::from)?;
        stillhouse_core::fs::write_atomic(path, &bytes)?;
        output::status(&format!("contact sheet: {}", path.display()));
    }
    if args.json {
        output::print_json(&serde_json::to_value(&found)?);
        return Ok(ExitStatus::Success);
    }
    let labeled: u64 = found.classes.iter().map(|c| c.pixels).sum();
    let mut grid =
        TextTable::new(&[("class", Align::Left), ("images", Align::Right), ("pixels", Align::Right)]);
    for class in &found.classes {
        let share = class.pixels as f64 / (labeled.max(1) as f64) * 100.0;
        let pixels = if labeled > 0 { format!("{share:.2} %") } else { String::new() };
        grid.push([class.name.clone(), class.images.to_string(), pixels]);
    }
    let three = |v: [f64; 3]| v.map(|x| format!("{x:.4}")).join(", ");
    let side = |[a, b]: [usize; 2]| if a == b { a.to_string() } else { format!("{a} to {b}") };
    let all = labeled + found.ignored;
    let ignored = match found.ignored {
        0 => String::new(),
        n => format!("ignored  {:.2} % of the mask pixels\n", n as f64 / all as f64 * 100.0),
    };
    output::print(&format!(
        "{}: {}\n\n{}\nsize     {} x {}\nmean     {}\nstd      {}\n{ignored}",
        found.dataset,
        found.title,
        grid.terminal(),
        side(found.width),
        side(found.height),
        three(found.mean),
        three(found.std),
    ));
    Ok(ExitStatus::Success)
}
