//! `stillhouse distill`: distills a student for a folder of images.

mod budget;
mod recipe;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use stillhouse_backbones::weights::{WeightsFile, similar_models};
use stillhouse_core::data::{SplitMode, SplitSpec};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_runs::Role;
use stillhouse_trainer::{Context, Experiment, Plan, check_plan, plan, run_plan};

use self::recipe::{Recipe, TeacherSource};
use crate::commands::budget::parse_duration;
use crate::commands::{common, estimate, report, table, weights};
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::paths::Paths;
use crate::progress::Progress;
use crate::{output, signals};

/// Experiment file in the output folder.
const FILE: &str = "distill.toml";
/// Name of the experiment and its folder of runs.
const NAME: &str = "runs";

const EXAMPLES: &str = "\
Examples:
  stillhouse distill my/images --output out                       one folder of images per class
  stillhouse distill my/images --output out --budget 30m          finishes within half an hour
  stillhouse distill my/images --output out --teacher resnet50 --student mobilenetv2_100 --method kd
  stillhouse distill my/images --output out --teacher runs/mine   use a finished run as the teacher
  stillhouse distill my/images --output out --teacher my.pth      use your trained weights as they are

The images are split per class, the teacher is fine-tuned (unless it is trained already), and the student is trained with the teacher
and, as a baseline, without it. OUT then holds student.safetensors and config.toml for
`stillhouse predict OUT image.jpg`, student.onnx for other runtimes, and report.html. Running the same
command again resumes an interrupted distillation.";

/// Distill a small model for your own images
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Folder with one folder of images per class
    images: PathBuf,
    /// Output folder
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Teacher: a model to fine-tune, trained weights (a file), or the folder of a finished run
    #[arg(long, value_name = "TEACHER", default_value = "resnet50")]
    teacher: String,
    /// Model of the teacher's weights file [default: the one that fits]
    #[arg(long, value_name = "MODEL")]
    teacher_model: Option<String>,
    /// Student model
    #[arg(long, value_name = "MODEL", default_value = "mobilenetv2_100")]
    student: String,
    /// Distillation method (`stillhouse list losses`)
    #[arg(long, default_value = "class_centric")]
    method: String,
    /// Time budget, such as 30m or 2h; sets epochs and image size
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    budget: Option<f64>,
    /// Epochs of the student; the teacher gets half as many [default: 60]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10000))]
    epochs: Option<u64>,
    /// Image size in pixels [default: 160, or that of a network with a fixed size]
    #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u64).range(32..=1024))]
    size: Option<u64>,
    /// Percentage of the images used for training
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u32).range(10..=95))]
    ratio: u32,
    /// Seed of split, initialization and order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Check everything that is known before training, and stop
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args, threads: usize) -> Outcome {
    if args.budget.is_some() && (args.epochs.is_some() || args.size.is_some()) {
        return Err(CliError::usage(
            "--budget sets epochs and image size: it cannot be combined with --epochs or --size",
        ));
    }
    if !args.images.is_dir() {
        return Err(CliError::usage(format!("{}: no such folder", args.images.display()))
            .hint("give a folder that holds one folder of images per class"));
    }
    let stop = signals::stop_flag()?;
    let mut context = common::context(&Paths::new(Some(&args.output)), stop);
    // Teacher and students stay inside the output folder.
    context.runs.clone_from(&args.output);
    let experiment = match experiment(args, &context) {
        // Interrupted while measuring: nothing was written.
        Err(e)
            if e.source.downcast_ref::<stillhouse_trainer::Error>().is_some_and(|e| e.is_interrupted()) =>
        {
            return Ok(ExitStatus::Interrupted);
        }
        other => other?,
    };
    let plan = plan(&experiment, None, &context).prepared()?;
    check_plan(&plan, &context).prepared()?;
    if args.check {
        return Ok(common::checked(&plan));
    }
    warn_of_scratch(&plan);
    let writer = table::TableWriter::new(&experiment, Default::default(), &plan, &context, &[], threads)?;
    output::status(&writer.spec.caption.text());
    estimate::announce(&plan, &context, threads);
    let mut progress = Progress::new(&plan, || ());
    let outcome = run_plan(&plan, &context, &mut progress);
    progress.clear();
    drop(progress);
    let table = writer.write(&args.output)?;
    let outcomes = match outcome {
        Err(e) if e.is_interrupted() => {
            output::status(&e.to_string());
            return Ok(ExitStatus::Interrupted);
        }
        other => other?,
    };
    let failed = outcomes.iter().any(|o| o.result().is_none());
    let figures = match failed {
        true => report::Figures::default(),
        false => report::Figures {
            features: vec!["baseline".into(), args.method.clone()],
            samples: Some(args.method.clone()),
            label_maps: true,
        },
    };
    let page = report::write_page(&writer.spec, &table, &args.output, &figures, &context)?;
    output::print(&table.terminal(output::terminal_width()));
    if failed {
        return Ok(ExitStatus::Failure);
    }
    export_student(&plan, args)?;
    let output = args.output.display();
    let onnx = match weights::onnx_of_run(&args.output) {
        Ok(bytes) => {
            stillhouse_core::fs::write_atomic(&args.output.join("student.onnx"), &bytes)?;
            format!("         {output}/student.onnx\n")
        }
        Err(error) => {
            // Not every model can be written as ONNX.
            output::status(&format!("student.onnx was not written: {:#}", error.source));
            String::new()
        }
    };
    output::print(&format!(
        "\nstudent  {output}/student.safetensors\n{onnx}report   {}\npredict  stillhouse predict {output} IMAGE...",
        page.display()
    ));
    Ok(ExitStatus::Success)
}

/// Loads the experiment of an earlier start with the same arguments, or creates it.
fn experiment(args: &Args, context: &Context) -> Result<Experiment, CliError> {
    let path = args.output.join(FILE);
    let head = format!(
        "# stillhouse distill {} --teacher {}{} --student {} --method {} --ratio {} --seed {}{}{}{}\n",
        args.images.display(),
        args.teacher,
        args.teacher_model.as_ref().map_or_else(String::new, |m| format!(" --teacher-model {m}")),
        args.student,
        args.method,
        args.ratio,
        args.seed,
        args.budget.map_or_else(String::new, |b| format!(" --budget {b}s")),
        args.epochs.map_or_else(String::new, |e| format!(" --epochs {e}")),
        args.size.map_or_else(String::new, |s| format!(" --size {s}")),
    );
    let origin = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) if text.starts_with(&head) => {
            output::status(&format!("resuming {origin}"));
            return Experiment::parse(&text, &origin, NAME).prepared();
        }
        Ok(text) => {
            let before = text.lines().next().unwrap_or_default().trim_start_matches("# ");
            return Err(CliError::usage(format!("{origin} was created by another command: {before}"))
                .hint("use the same arguments to resume it, or another --output"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => {
            return Err(CliError::usage(format!("the output folder is not usable: {origin}: {e}"))
                .hint("choose another --output"));
        }
    }
    let row = context.registries.datasets.get("folder")?;
    let set = (row.build)(&DatasetRequest {
        name: "folder".into(),
        roots: Vec::new(),
        path: Some(args.images.clone()),
        options: Default::default(),
    })
    .prepared()?;
    stillhouse_datasets::require_readable(&*set).prepared()?;
    if args.method != "baseline" {
        context.registries.losses.get(&args.method)?;
    }
    let teacher = teacher_source(args)?;
    let split = SplitSpec {
        ratio: f64::from(args.ratio) / 100.0,
        mode: SplitMode::default(),
        seed: args.seed,
        per_class: None,
    };
    let mut recipe = Recipe {
        size: args.size.unwrap_or_else(|| default_size(&teacher, &args.student)),
        images: std::path::absolute(&args.images).map_err(stillhouse_core::Error::io(&args.images))?,
        classes: set.info().classes.len(),
        train_images: stillhouse_datasets::split(&*set, &split).prepared()?.train.len(),
        teacher,
        student: args.student.clone(),
        method: args.method.clone(),
        ratio: args.ratio,
        seed: args.seed,
        epochs: args.epochs.unwrap_or(60),
        per_class: None,
    };
    if let Some(seconds) = args.budget {
        // Measuring takes minutes.
        let experiment = Experiment::parse(&recipe.to_toml(), &origin, NAME).prepared()?;
        check_plan(&plan(&experiment, None, context).prepared()?, context).prepared()?;
        budget::apply(&mut recipe, seconds, context)?;
    }
    let text = head + &recipe.to_toml();
    let experiment = Experiment::parse(&text, &origin, NAME).prepared()?;
    // Plan before writing: an invalid experiment leaves no file.
    check_plan(&plan(&experiment, None, context).prepared()?, context).prepared()?;
    if args.check {
        return Ok(experiment);
    }
    stillhouse_core::fs::write_atomic(&path, text.as_bytes())?;
    Ok(experiment)
}

/// Finds out what `--teacher` names: a folder is a run, a file holds weights, anything else is a model.
fn teacher_source(args: &Args) -> Result<TeacherSource, CliError> {
    let path = Path::new(&args.teacher);
    let is_path = path.is_file() || args.teacher.contains(std::path::is_separator);
    let absolute = || std::path::absolute(path).map_err(stillhouse_core::Error::io(path));
    if path.is_dir() || !is_path {
        if args.teacher_model.is_some() {
            return Err(CliError::usage("--teacher-model belongs to a weights file as --teacher"));
        }
        return Ok(match path.is_dir() {
            true => TeacherSource::Run(absolute()?),
            false => TeacherSource::Model(args.teacher.clone()),
        });
    }
    let file = absolute()?;
    if let Some(model) = &args.teacher_model {
        return Ok(TeacherSource::File { file, model: model.clone() });
    }
    let models = similar_models(&WeightsFile::open(&file).prepared()?).prepared()?;
    match &models[..] {
        [model] => Ok(TeacherSource::File { file, model: model.clone() }),
        [] => Err(CliError::usage(format!(
            "{}: the weights fit no model of `stillhouse list models`",
            file.display()
        ))
        .hint("`stillhouse weights check FILE --arch MODEL` compares them with one")),
        several => Err(CliError::usage(format!(
            "{}: the weights fit several models: {}",
            file.display(),
            several.join(", ")
        ))
        .hint("name one with --teacher-model")),
    }
}

/// Default image size: that of a network with a fixed size, or one that trains fast.
fn default_size(teacher: &TeacherSource, student: &str) -> u64 {
    let fixed = |name: &&str| name.starts_with("swin_") || *name == "mksmt";
    let sizes = teacher.model().into_iter().chain([student]).filter(fixed);
    sizes.map(|name| stillhouse_backbones::default_image_size(name) as u64).next().unwrap_or(160)
}

/// Warns about networks that start from scratch.
fn warn_of_scratch(plan: &Plan) {
    let mut networks = BTreeSet::new();
    for config in plan.cells.iter().filter_map(|cell| cell.config.as_ref()) {
        if config.student.init.is_scratch() {
            networks.insert(config.student.model.as_str());
        }
    }
    for model in networks {
        let fetch = match stillhouse_backbones::weights::Manifest::find(model, "imagenet") {
            Ok(_) => format!("get them with `stillhouse weights fetch {model}`"),
            Err(_) => "there are none for this network".to_string(),
        };
        output::status(&format!(
            "warning: {model} starts from scratch, without ImageNet weights: {fetch}; few images need them"
        ));
    }
}

/// Copies the student and its configuration to the top of the output folder.
fn export_student(plan: &Plan, args: &Args) -> Result<(), CliError> {
    let students = plan.cells.iter().filter(|c| c.role == Role::Student && c.method == args.method);
    for cell in students {
        // result.json last: the folder is then a finished run.
        for name in ["student.safetensors", "config.toml", "result.json"] {
            let from = cell.folder.join(name);
            let bytes = std::fs::read(&from).map_err(stillhouse_core::Error::io(&from))?;
            stillhouse_core::fs::write_atomic(&args.output.join(name), &bytes)?;
        }
    }
    Ok(())
}
