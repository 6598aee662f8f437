//! Check of a whole plan before anything is trained or written: whatever is known from configuration, data
//! listing and shapes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stillhouse_core::data::{Dataset, LoaderSpec, Sampler, Split};
use stillhouse_core::distiller::{FeatureShapes, RequiredFeatures};
use stillhouse_core::model::{Model, ModelSpec, trace};
use stillhouse_core::{ParamStore, Rng};
use stillhouse_ops::op::Op;
use stillhouse_ops::trace::Trace;
use stillhouse_runs::{RunDir, RunStatus};

use crate::cell_runner::run_info;
use crate::experiment::{CellConfig, DataConfig, NetworkConfig, losses};
use crate::plan::{open_dataset, teacher_folder};
use crate::{Cell, Context, Error, Network, Plan, Result, RunInfo};

/// A reason why cells of a plan cannot be trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanProblem {
    /// The cells.
    pub cells: Vec<String>,
    /// The reason, and what to do.
    pub reason: String,
}

/// Checks all cells of a plan that are neither finished nor running: output folders, splits, image sizes,
/// batches, initial weights, and the shapes of networks, methods and connectors. Nothing is written.
///
/// # Errors
/// [`Error::Plan`] with all problems found.
pub fn check_plan(plan: &Plan, context: &Context) -> Result<()> {
    check_cells(plan, plan.cells.iter(), context)
}

/// Checks one cell as [`check_plan`] checks all.
///
/// # Errors
/// [`Error::Plan`] with all problems found.
pub fn check_cell(plan: &Plan, cell: &Cell, context: &Context) -> Result<()> {
    check_cells(plan, std::iter::once(cell), context)
}

fn check_cells<'a>(plan: &Plan, cells: impl Iterator<Item = &'a Cell>, context: &Context) -> Result<()> {
    let mut checker = Checker { plan, context, data: HashMap::new(), weights: HashMap::new() };
    let mut problems: Vec<PlanProblem> = Vec::new();
    for cell in cells {
        let Some(config) = &cell.config else { continue };
        let status = cell.status();
        if status == RunStatus::Running {
            continue;
        }
        let folder = check_folder(cell, config).err();
        // A finished run of the same settings is only read.
        let others = if status == RunStatus::Done { Vec::new() } else { checker.problems(config) };
        for reason in folder.into_iter().chain(others) {
            match problems.iter_mut().find(|known| known.reason == reason) {
                Some(known) => known.cells.push(cell.name.clone()),
                None => problems.push(PlanProblem { cells: vec![cell.name.clone()], reason }),
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Plan(problems)) }
}

/// Formats problems, each with the first of its cells.
pub(crate) fn describe(problems: &[PlanProblem]) -> String {
    let text = |problem: &PlanProblem| match &problem.cells[..] {
        [only] => format!("{only}: {}", problem.reason),
        [first, rest @ ..] => format!("{first} and {} more: {}", rest.len(), problem.reason),
        [] => problem.reason.clone(),
    };
    problems.iter().map(text).collect::<Vec<_>>().join("\n\n")
}

/// Dataset and split of a cell.
#[derive(Clone)]
struct Data {
    dataset: Arc<dyn Dataset>,
    split: Arc<Split>,
    problems: Vec<String>,
}

struct Checker<'a> {
    plan: &'a Plan,
    context: &'a Context,
    /// By data configuration and seed; an error is the reason.
    data: HashMap<String, std::result::Result<Data, String>>,
    /// Problems of initial weights, by network.
    weights: HashMap<String, Option<String>>,
}

/// A network without values.
struct Shape {
    model: Box<dyn Model>,
    params: ParamStore,
}

impl Shape {
    fn new(context: &Context, config: &NetworkConfig, classes: usize) -> Result<Self> {
        let params = ParamStore::meta();
        let entry = context.registries.models.get(&config.model)?;
        let spec = ModelSpec { name: config.model.clone(), classes, variant: config.variant.clone() };
        let model = (entry.build)(&spec, &params.builder(Rng::new(0)))?;
        Ok(Self { model, params })
    }

    /// Traces the network with the features.
    fn trace(&self, size: (usize, usize), features: &[String]) -> Result<Trace> {
        let features: Vec<&str> = features.iter().map(String::as_str).collect();
        Ok(trace(self.model.as_ref(), &self.params, size, Some(&features))?)
    }
}

/// Returns the shapes of the traced features without the batch axis.
fn shapes(trace: &Trace) -> BTreeMap<String, Vec<usize>> {
    let shape = |index: usize| trace.entries[index].output.dims()[1..].to_vec();
    trace.features.iter().map(|(name, index)| (name.clone(), shape(*index))).collect()
}

impl Checker<'_> {
    fn problems(&mut self, config: &CellConfig) -> Vec<String> {
        let mut found = Vec::new();
        match self.data(config) {
            Err(reason) => found.push(reason),
            Ok(data) => {
                found.extend(data.problems.iter().cloned());
                found.extend(check_batches(config, data.split.train.len()).err());
                if let Err(e) = self.check_shapes(config, &data) {
                    found.push(e.to_string());
                }
                found.extend(self.check_weights(config, data.dataset.info().classes.len()));
            }
        }
        found
    }

    /// Opens dataset and split, and transforms some training images.
    fn data(&mut self, config: &CellConfig) -> std::result::Result<Data, String> {
        let key = format!("{:?} {}", config.data, config.train.seed);
        if let Some(known) = self.data.get(&key) {
            return known.clone();
        }
        let opened = open_data(self.context, &config.data, config.train.seed).map_err(|e| e.to_string());
        self.data.insert(key, opened.clone());
        opened
    }

    /// Runs student and teacher on shapes, and connects the methods.
    fn check_shapes(&self, config: &CellConfig, data: &Data) -> Result<()> {
        let size = config.data.size();
        let classes = data.dataset.info().classes.len();
        let student = Shape::new(self.context, &config.student, classes)?;
        let mut methods = Vec::new();
        let mut required = RequiredFeatures::default();
        for loss in &config.loss {
            let distiller = losses::build(&self.context.registries, loss)?;
            let own = distiller.required_features();
            required.student.extend(own.student);
            required.teacher.extend(own.teacher);
            methods.push((loss, distiller));
        }
        let logits = vec!["logits".to_string()];
        check_batch_norm(config, data.split.train.len(), &student.trace(size, &logits)?)?;
        let student_shapes = shapes(&student.trace(size, &required.student)?);
        let teacher_shapes = match self.teacher(config)? {
            Some(network) => {
                shapes(&Shape::new(self.context, &network, classes)?.trace(size, &required.teacher)?)
            }
            None => BTreeMap::new(),
        };
        let pick = |all: &BTreeMap<String, Vec<usize>>, names: &[String]| {
            all.iter().filter(|(n, _)| names.contains(n)).map(|(n, s)| (n.clone(), s.clone())).collect()
        };
        for (loss, mut distiller) in methods {
            let own = distiller.required_features();
            let shapes = FeatureShapes {
                student: pick(&student_shapes, &own.student),
                teacher: pick(&teacher_shapes, &own.teacher),
                task: data.dataset.info().task,
                classes: student.model.classes(),
                batch: config.train.smallest_batch(data.split.train.len()),
                samples: data.split.train.len(),
            };
            let label = format!("connector.{}-{}", loss.phase.unwrap_or(1), loss.method);
            distiller.connect(&shapes, &student.params.builder(Rng::new(0)).pp(&label))?;
        }
        Ok(())
    }

    /// Returns the teacher's network: that of its cell in the plan, or of a finished run.
    fn teacher(&self, config: &CellConfig) -> Result<Option<NetworkConfig>> {
        let Some(reference) = &config.teacher else { return Ok(None) };
        let planned = self.plan.cells.iter().find(|c| format!("{}-{}", c.name, c.hash) == reference.cell);
        if let (None, Some(own)) = (&reference.run, planned.and_then(|c| c.config.as_ref())) {
            return Ok(Some(own.student.clone()));
        }
        let info: RunInfo = RunDir::new(teacher_folder(self.context, reference)).info()?;
        Ok(Some(info.run.student))
    }

    /// Loads pretrained initial weights.
    fn check_weights(&mut self, config: &CellConfig, classes: usize) -> Option<String> {
        let network = &config.student;
        network.weights_sha256.as_ref()?;
        let replace_head = config.train.epochs > 0;
        let key = format!("{network:?} {classes} {replace_head}");
        if let Some(known) = self.weights.get(&key) {
            return known.clone();
        }
        let loaded = Network::new(self.context, network, classes, Rng::new(0))
            .and_then(|built| built.load_pretrained(self.context, network, replace_head));
        let problem = loaded.err().map(|e| e.to_string());
        self.weights.insert(key, problem.clone());
        problem
    }
}

fn open_data(context: &Context, data: &DataConfig, seed: u64) -> Result<Data> {
    let dataset = open_dataset(context, data)?;
    let split = Arc::new((context.registries.split)(dataset.as_ref(), &data.split_spec(seed))?);
    let mut problems = Vec::new();
    if split.test.is_empty() {
        problems.push("no test image: the split leaves all images to the training part".to_string());
    }
    // The first, a middle and the last image: without a resize, sizes may differ.
    let train = &split.train;
    let mut indices = vec![train.first(), train.get(train.len() / 2), train.last()];
    indices.dedup();
    for index in indices.into_iter().flatten() {
        let found = transformed_size(context, &dataset, data, *index)?;
        if found != data.size() {
            let ((h, w), (height, width)) = (found, data.size());
            problems.push(format!(
                "data.train_transforms end at {h} x {w} pixels, but data.image_size is {height} x {width}: \
                 captions, networks and exports would state another size than the images have\n\nhint: let \
                 the last transform end at {height} x {width}, such as {{ op = \"random_resized_crop\", size = \
                 {height} }}, or set data.image_size = {h}{}",
                if h == w { String::new() } else { format!(" and data.image_width = {w}") }
            ));
            break;
        }
    }
    Ok(Data { dataset, split, problems })
}

/// Returns height and width of a transformed training image.
fn transformed_size(
    context: &Context,
    dataset: &Arc<dyn Dataset>,
    data: &DataConfig,
    index: usize,
) -> Result<(usize, usize)> {
    let spec = LoaderSpec {
        indices: vec![index],
        sampler: Sampler::Sequential { batch: 1 },
        transforms: data.normalized(&data.train_transforms),
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    let mut loader = (context.registries.loader)(dataset.clone(), &spec)?;
    let batch = loader
        .next_batch()?
        .ok_or_else(|| Error::config("data", "the loader gives no batch for a single image"))?;
    let (_, _, height, width) = batch.images.dims4()?;
    Ok((height, width))
}

fn check_batches(config: &CellConfig, images: usize) -> std::result::Result<(), String> {
    let batch = config.train.batch_size();
    let drops = matches!(config.train.sampler, Sampler::Shuffle { drop_last: true, .. });
    if images == 0 || drops && images < batch {
        return Err(format!("too few training images: expected a batch of {batch}, found {images}"));
    }
    Ok(())
}

/// A batch norm that sees one value per channel has no variance.
fn check_batch_norm(config: &CellConfig, images: usize, trace: &Trace) -> Result<()> {
    if config.train.frozen_bn || config.train.smallest_batch(images) != 1 {
        return Ok(());
    }
    let is_single = |op: &Op, [height, width]: [usize; 2]| match op {
        Op::Conv(conv) => conv.norm.is_some() && height * width == 1,
        _ => false,
    };
    if !trace.entries.iter().any(|entry| is_single(&entry.op, entry.output.size())) {
        return Ok(());
    }
    let batch = config.train.batch_size();
    let cause = match config.train.micro_batch {
        Some(size) => format!("batches of {batch} images in parts of {size}"),
        None => format!("{images} training images in batches of {batch}"),
    };
    let message = format!(
        "{cause} leave a last batch of one image, and a batch norm of `{}` then sees a single value per \
         channel\n\nhint: set drop_last = true in train.sampler, or another batch size",
        config.student.model
    );
    Err(Error::config("train.sampler", message))
}

/// Checks that the run folder can be created, is empty or holds this run, and is not among the images.
fn check_folder(cell: &Cell, config: &CellConfig) -> std::result::Result<(), String> {
    let reason =
        |e: std::io::Error, path: &Path| format!("the output folder is not usable: {}: {e}", path.display());
    let folder = std::path::absolute(&cell.folder).map_err(|e| reason(e, &cell.folder))?;
    let existing = nearest_existing(&folder);
    if let Some(images) = &config.data.path
        && let (Ok(images), Ok(real)) = (images.canonicalize(), existing.canonicalize())
        && real.starts_with(&images)
    {
        return Err(format!(
            "the output folder is inside of the folder of images, {}: it would become a class\n\nhint: choose \
             another output folder",
            images.display()
        ));
    }
    if !existing.is_dir() {
        return Err(format!(
            "the output folder is not usable: {} is a file\n\nhint: choose another output folder",
            existing.display()
        ));
    }
    // Creates nothing that outlives the check.
    tempfile::tempfile_in(&existing).map_err(|e| reason(e, &existing))?;
    if folder.exists() {
        RunDir::new(&folder).check_owner(&run_info(cell, config, &[])).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn nearest_existing(folder: &Path) -> PathBuf {
    folder.ancestors().find(|path| path.exists()).unwrap_or(folder).to_path_buf()
}
