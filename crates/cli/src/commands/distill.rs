//! `stillhouse distill`: own images, one command.

use std::path::{Path, PathBuf};

use stillhouse_core::registry::DatasetRequest;
use stillhouse_trainer::{Context, Experiment, Plan, Role, plan, run_plan};

use crate::commands::{budget, common, estimate, report, table, weights_export};
use crate::error::{CliError, ExitStatus, Outcome, Prepared};
use crate::paths::Paths;
use crate::progress::Progress;
use crate::{output, signals};

/// The experiment that a distillation is; it stays in the output folder.
const FILE: &str = "distill.toml";
/// Name of its folder of runs.
const NAME: &str = "runs";

const EXAMPLES: &str = "\
Examples:
  stillhouse distill my/images --output out                       one folder of images for each class
  stillhouse distill my/images --output out --budget 30m          what fits into half an hour
  stillhouse distill my/images --output out --teacher resnet50 --student mobilenetv2_100 --method kd
  stillhouse distill my/images --output out --teacher runs/mine   a finished run teaches as it is

The images are split (the same class shares in both parts), the teacher is fine-tuned, the student is
trained with its help and, for comparison, alone. OUT then holds student.safetensors and config.toml,
which `stillhouse predict OUT image.jpg` takes, student.onnx for other programs, and the page
report.html. Started again, the same command goes on where it was stopped.";

/// Make a small network from own images, with the help of a large one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Folder with one folder of images for each class
    images: PathBuf,
    /// Where everything goes
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The large network, or the folder of a finished run
    #[arg(long, value_name = "NETWORK", default_value = "resnet50")]
    teacher: String,
    /// The small network
    #[arg(long, value_name = "NETWORK", default_value = "mobilenetv2_100")]
    student: String,
    /// How the large one helps (`stillhouse list losses`)
    #[arg(long, default_value = "class_centric")]
    method: String,
    /// Time to end in, as 30m or 2h: chooses epochs and size of the images
    #[arg(long, value_name = "TIME", value_parser = budget::time)]
    budget: Option<f64>,
    /// Epochs of the student; the teacher has half of them [default: 60]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10000))]
    epochs: Option<u64>,
    /// Side of the images in pixels [default: 160]
    #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u64).range(32..=1024))]
    size: Option<u64>,
    /// Per cent of the images that train
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u32).range(10..=95))]
    ratio: u32,
    /// Seed of the split, the start and the order
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What the experiment of a distillation is made of.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) images: PathBuf,
    pub(crate) classes: usize,
    pub(crate) count: usize,
    pub(crate) teacher: String,
    pub(crate) student: String,
    pub(crate) method: String,
    pub(crate) ratio: u32,
    pub(crate) seed: u64,
    pub(crate) epochs: u64,
    pub(crate) size: u64,
    /// At most so many training and test images of each class.
    pub(crate) per_class: Option<[usize; 2]>,
}

impl Recipe {
    /// Whether a finished run teaches.
    pub(crate) fn given_teacher(&self) -> bool {
        Path::new(&self.teacher).is_dir()
    }

    /// Epochs of the teacher.
    pub(crate) fn teacher_epochs(&self) -> u64 {
        self.epochs.div_ceil(2)
    }

    /// Batches with as many classes as they allow: of about 64 images, or fewer where there are few, so
    /// that an epoch has steps enough for the running statistics of batch norm to follow.
    pub(crate) fn batch(&self) -> [usize; 2] {
        let trained = self.count * self.ratio as usize / 100;
        let images = (trained / 8).clamp(16, 64);
        let classes = self.classes.clamp(1, images / 2);
        [classes, (images / classes).max(2)]
    }

    /// The experiment file.
    pub(crate) fn text(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let [classes, each] = self.batch();
        let (size, short) = (self.size, self.size * 8 / 7);
        let teacher = match self.given_teacher() {
            true => format!("run = {}\n", quoted(&self.teacher)),
            false => format!(
                "model = {}\nweights = \"imagenet|scratch\"\n\n[teacher.train]\nepochs = {}\n\
                 sampler = {{ kind = \"shuffle\", batch = 32 }}\n\
                 optimizer = {{ kind = \"sgd\", lr = 0.01, momentum = 0.9, weight_decay = 5e-4 }}\n\
                 schedule = {{ kind = \"cosine\", warmup_epochs = 1 }}\n",
                quoted(&self.teacher),
                self.teacher_epochs()
            ),
        };
        let methods = match self.method.as_str() {
            "baseline" => "[\"baseline\"]".to_string(),
            method => format!("[\"baseline\", {}]", quoted(method)),
        };
        let per_class = self.per_class.map_or_else(String::new, |[a, b]| format!("per_class = [{a}, {b}]\n"));
        format!(
            "title = {title}\n\n[data]\ndataset = \"folder\"\npath = {path}\nratio = {ratio}\n{per_class}\
             image_size = {size}\ntrain_transforms = [\n    {{ op = \"resize_short\", size = {short} }},\n    \
             {{ op = \"random_resized_crop\", size = {size}, scale = [0.5, 1.0] }},\n    {{ op = \"hflip\" }},\n]\n\
             test_transforms = [{{ op = \"resize_short\", size = {short} }}, {{ op = \"center_crop\", size = {size} }}]\n\n\
             [teacher]\n{teacher}\n[student]\nbackbone = {student}\ninit = \"imagenet|scratch\"\n\n\
             [train]\nepochs = {epochs}\nseed = {seed}\n\
             sampler = {{ kind = \"class_balanced\", classes = {classes}, per_class = {each} }}\n\
             optimizer = {{ kind = \"sgd\", lr = 0.02, momentum = 0.9, weight_decay = 5e-4 }}\n\
             schedule = {{ kind = \"cosine\", warmup_epochs = 1 }}\n\n\
             [eval]\nevery_epochs = 1\nmetrics = [\"accuracy\"]\n\n\
             [matrix]\nmethod = {methods}\n\n[when.method.baseline]\nloss = []\n",
            title = quoted(&format!("Distilled: {} to {}", self.teacher, self.student)),
            path = quoted(&self.images.display().to_string()),
            ratio = self.ratio,
            student = quoted(&self.student),
            epochs = self.epochs,
            seed = self.seed,
        )
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, threads: usize) -> Outcome {
    if args.budget.is_some() && (args.epochs.is_some() || args.size.is_some()) {
        return Err(CliError::usage("--budget chooses epochs and size: leave --epochs and --size out"));
    }
    if !args.images.is_dir() {
        return Err(CliError::usage(format!("{}: no such folder", args.images.display()))
            .hint("give a folder that holds one folder of images for each class"));
    }
    let stop = signals::stop_flag()?;
    let mut context = common::context(&Paths::new(Some(&args.output)), stop);
    // Teacher and students lie in the output folder alone.
    context.runs.clone_from(&args.output);
    let experiment = match experiment(args, &context) {
        // Stopped while steps were measured: nothing is left behind, the same command begins again.
        Err(e)
            if e.source.downcast_ref::<stillhouse_trainer::Error>().is_some_and(|e| e.is_interrupted()) =>
        {
            return Ok(ExitStatus::Interrupted);
        }
        other => other?,
    };
    let plan = plan(&experiment, None, &context).prepared()?;
    let maker = table::Maker::new(&experiment, &plan, &context, &[], threads)?;
    output::status(&maker.asked.caption.text());
    estimate::announce(&plan, &context, threads);
    let mut progress = Progress::new(&plan, || ());
    let outcome = run_plan(&plan, &context, &mut progress);
    progress.end();
    drop(progress);
    let made = maker.write(&args.output)?;
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
    let page = report::write_page(&maker.asked, &made, &args.output, &figures, &context)?;
    output::print(&made.terminal(output::terminal_width()));
    if failed {
        return Ok(ExitStatus::Failure);
    }
    hand_over(&plan, args)?;
    let output = args.output.display();
    let onnx = match weights_export::onnx_of_run(&args.output) {
        Ok(bytes) => {
            stillhouse_core::fs::write_atomic(&args.output.join("student.onnx"), &bytes)?;
            format!("         {output}/student.onnx\n")
        }
        Err(error) => {
            // Not every network has a form in ONNX; the student is there all the same.
            output::status(&format!("no student.onnx: {:#}", error.source));
            String::new()
        }
    };
    output::print(&format!(
        "\nstudent  {output}/student.safetensors\n{onnx}report   {}\npredict  stillhouse predict {output} IMAGE...",
        page.display()
    ));
    Ok(ExitStatus::Success)
}

/// The experiment of an earlier start with the same arguments, or a new one, kept in the output folder.
fn experiment(args: &Args, context: &Context) -> Result<Experiment, CliError> {
    let path = args.output.join(FILE);
    let head = format!(
        "# stillhouse distill {} --teacher {} --student {} --method {} --ratio {} --seed {}{}{}{}\n",
        args.images.display(),
        args.teacher,
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
            output::status(&format!("goes on with {origin}"));
            return Experiment::parse(&text, &origin, NAME).prepared();
        }
        Ok(text) => {
            let before = text.lines().next().unwrap_or_default().trim_start_matches("# ");
            return Err(CliError::usage(format!("{origin} is of another start: {before}"))
                .hint("take the same arguments to go on with it, or another --output"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(stillhouse_core::Error::io(&path)(e).into()),
    }
    let row = context.registries.datasets.get("folder")?;
    let set = (row.build)(&DatasetRequest {
        name: "folder".into(),
        roots: Vec::new(),
        path: Some(args.images.clone()),
        options: Default::default(),
    })
    .prepared()?;
    if args.method != "baseline" {
        context.registries.losses.get(&args.method)?;
    }
    let mut recipe = Recipe {
        images: std::path::absolute(&args.images).map_err(stillhouse_core::Error::io(&args.images))?,
        classes: set.info().classes.len(),
        count: set.len(),
        teacher: args.teacher.clone(),
        student: args.student.clone(),
        method: args.method.clone(),
        ratio: args.ratio,
        seed: args.seed,
        epochs: args.epochs.unwrap_or(60),
        size: args.size.unwrap_or(160),
        per_class: None,
    };
    if let Some(seconds) = args.budget {
        budget::choose(&mut recipe, seconds, context)?;
    }
    let text = head + &recipe.text();
    let experiment = Experiment::parse(&text, &origin, NAME).prepared()?;
    // What cannot be planned leaves nothing behind.
    plan(&experiment, None, context).prepared()?;
    stillhouse_core::fs::write_atomic(&path, text.as_bytes())?;
    Ok(experiment)
}

/// Puts the bare student and what tells its classes where a person looks for them.
fn hand_over(plan: &Plan, args: &Args) -> Result<(), CliError> {
    let students = plan.cells.iter().filter(|c| c.role == Role::Student && c.method == args.method);
    for cell in students {
        // With its result last it is a finished run, which can be tested again and can teach.
        for name in ["student.safetensors", "config.toml", "result.json"] {
            let from = cell.folder.join(name);
            let bytes = std::fs::read(&from).map_err(stillhouse_core::Error::io(&from))?;
            stillhouse_core::fs::write_atomic(&args.output.join(name), &bytes)?;
        }
    }
    Ok(())
}
