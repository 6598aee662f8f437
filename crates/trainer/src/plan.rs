//! Plans: the cells of an experiment in execution order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use stillhouse_core::Error as CoreError;
use stillhouse_core::data::{Dataset, Sampler, WHITE_LEVEL};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_core::weights::WeightsSource;
use stillhouse_runs::{Role, RunDir, RunStatus, TEACHERS_DIR};
use toml::Table;

use crate::experiment::{
    CellConfig, DataConfig, NetworkConfig, Precision, TeacherRef, UnresolvedRun, losses, merge,
};
use crate::{Context, Error, Experiment, Result, RunInfo};

/// Incremented when the same configuration gives other numbers.
const HASH_FORMAT: u32 = 1;

/// Initial weights of a teacher that is pretrained here, by `[teacher.pretrain]`.
pub(crate) const PRETRAIN: &str = "pretrain";

/// The cells of one profile of an experiment. Teachers precede their students.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the experiment.
    pub experiment: String,
    /// The profile; `default` if the experiment has none.
    pub profile: String,
    /// `runs/<experiment>/<profile>`.
    pub folder: PathBuf,
    /// The experiment's `[published]` section.
    pub published: Table,
    /// The cells.
    pub cells: Vec<Cell>,
}

/// One training run with its own folder.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Experiment that planned it first.
    pub experiment: String,
    /// Profile of the experiment.
    pub profile: String,
    /// What it trains.
    pub role: Role,
    /// Method of the table row: a registry id, `baseline`, ...; `teacher` or `pretraining` for a teacher.
    pub method: String,
    /// Registry id of the trained network.
    pub student: String,
    /// Registry id of the dataset.
    pub dataset: String,
    /// Training ratio in percent; 0 with an official split.
    pub ratio: u32,
    /// Seed.
    pub seed: u64,
    /// Human-readable name.
    pub name: String,
    /// Hash of the resolved configuration and the data's fingerprint; empty for an unknown method.
    pub hash: String,
    /// Fingerprint of the dataset.
    pub fingerprint: String,
    /// The run folder, which may not exist yet.
    pub folder: PathBuf,
    /// Index of the cell that it needs in the plan: that of its teacher, or of a teacher's pretraining.
    pub needs: Option<usize>,
    /// Resolved configuration; none for an unknown method.
    pub config: Option<CellConfig>,
}

impl Cell {
    /// Returns whether its run is finished.
    pub fn is_finished(&self) -> bool {
        RunDir::new(&self.folder).is_finished()
    }

    /// Returns the status of its run.
    pub fn status(&self) -> RunStatus {
        if self.is_runnable() { RunDir::new(&self.folder).status() } else { RunStatus::UnknownMethod }
    }

    /// Returns the name of its folder below that of the teachers.
    fn run_name(&self) -> String {
        format!("{}-{}", self.name, self.hash)
    }

    /// Returns whether the method is in the registry.
    pub fn is_runnable(&self) -> bool {
        self.config.is_some()
    }
}

/// Plans all cells of a profile. Opens datasets and locates pretrained weights: missing ones are errors before
/// anything runs.
///
/// An unknown method of the `[matrix]` becomes a cell without configuration; in `[[loss]]` it is an error.
pub fn plan(experiment: &Experiment, profile: Option<&str>, context: &Context) -> Result<Plan> {
    let name = profile.unwrap_or("default").to_string();
    let folder = context.runs.join(experiment.name()).join(&name);
    let mut planner = Planner { context, experiment, profile: name, folder, datasets: BTreeMap::new() };
    let mut cells = Vec::new();
    for run in experiment.runs(profile)? {
        planner.add(&run, &mut cells)?;
    }
    let Planner { profile, folder, .. } = planner;
    let plan = Plan {
        experiment: experiment.name().into(),
        profile,
        folder,
        published: experiment.published(),
        cells,
    };
    Ok(plan)
}

/// Plans a single run with the student in `output`; its teacher stays in the folder of all runs.
pub fn plan_single(
    experiment: &Experiment,
    profile: Option<&str>,
    output: &Path,
    context: &Context,
) -> Result<Plan> {
    let mut plan = plan(experiment, profile, context)?;
    let mut students: Vec<&mut Cell> = plan.cells.iter_mut().filter(|c| c.role == Role::Student).collect();
    match students.as_mut_slice() {
        [cell] => cell.folder = output.to_path_buf(),
        more => {
            let message = format!(
                "expected one run, found {}\n\nhint: select one with --set, as in \
                 --set matrix.method='[\"kd\"]'; `stillhouse reproduce` runs all of them",
                more.len()
            );
            return Err(Error::config(experiment.name(), message));
        }
    }
    Ok(plan)
}

struct Planner<'a> {
    context: &'a Context,
    experiment: &'a Experiment,
    profile: String,
    folder: PathBuf,
    datasets: BTreeMap<String, Arc<OpenDataset>>,
}

/// Appends a cell unless it is planned already (`a|c` and `b|c` resolve to the same run if only `c` is found);
/// returns its index.
fn push(cells: &mut Vec<Cell>, cell: Cell) -> usize {
    cells.iter().position(|c| c.folder == cell.folder).unwrap_or_else(|| {
        cells.push(cell);
        cells.len() - 1
    })
}

/// An opened dataset.
struct OpenDataset {
    name: String,
    classes: Vec<String>,
    fingerprint: String,
    white_level: Option<u16>,
}

impl Planner<'_> {
    fn add(&mut self, run: &UnresolvedRun, cells: &mut Vec<Cell>) -> Result<()> {
        let dataset = self.open(&run.data)?;
        let unknown = run.loss.iter().find(|l| self.context.registries.losses.get(&l.method).is_err());
        if let Some(loss) = unknown {
            if loss.method != run.method || !run.from_matrix {
                self.context.registries.losses.get(&loss.method)?;
            }
            let cell = self.cell(Role::Student, run, &dataset, None, None)?;
            push(cells, cell);
            return Ok(());
        }
        let mut config = run.student_config(None);
        self.resolve(&mut config, &dataset, false)?;
        let mut requires_teacher = false;
        for loss in &config.loss {
            requires_teacher |=
                !losses::build(&self.context.registries, loss)?.required_features().teacher.is_empty();
        }
        let mut teacher = None;
        let precision = run.teacher.as_ref().map_or_else(Default::default, |t| t.precision);
        let existing = run.teacher.as_ref().and_then(|t| t.run.as_deref());
        if requires_teacher && let Some(folder) = existing {
            config.teacher = Some(self.existing_teacher(folder, precision, &dataset)?);
        } else if requires_teacher {
            let Some(mut own) = run.teacher_config() else {
                let message = format!("`{}` requires a teacher: add a section [teacher]", run.method);
                return Err(Error::config(self.experiment.name(), message));
            };
            let pretraining = run.pretraining_config();
            self.resolve(&mut own, &dataset, pretraining.is_some())?;
            let mut needs = None;
            if let Some(mut config) = pretraining.filter(|_| own.student.init == PRETRAIN.into()) {
                let images = self.open(&config.data)?;
                self.resolve(&mut config, &images, false)?;
                let index = push(cells, self.cell(Role::Pretraining, run, &images, Some(config), None)?);
                own.student.pretraining = Some(cells[index].run_name());
                needs = Some(index);
            }
            let index = push(cells, self.cell(Role::Teacher, run, &dataset, Some(own), needs)?);
            let cell = &cells[index];
            let (model, cell) = (cell.student.clone(), cell.run_name());
            config.teacher = Some(TeacherRef { model, cell, run: None, precision });
            teacher = Some(index);
        }
        push(cells, self.cell(Role::Student, run, &dataset, Some(config), teacher)?);
        Ok(())
    }

    /// References a finished run as the teacher, whose classes must be those of the dataset.
    fn existing_teacher(
        &self,
        folder: &Path,
        precision: Precision,
        dataset: &OpenDataset,
    ) -> Result<TeacherRef> {
        let info: RunInfo = RunDir::new(folder).info()?;
        if info.classes != dataset.classes {
            let mismatch = dataset.classes.iter().zip(&info.classes).find(|(a, b)| a != b);
            let first = mismatch
                .map_or_else(String::new, |(a, b)| format!("; first mismatch: expected `{a}`, found `{b}`"));
            let reason = format!(
                "the teacher has other classes than the dataset `{}`: expected {}, found {}{first}",
                dataset.name,
                dataset.classes.len(),
                info.classes.len()
            );
            return Err(Error::folder(folder, reason));
        }
        let run = std::path::absolute(folder).map_err(CoreError::io(folder))?;
        Ok(TeacherRef {
            model: info.run.student.model,
            cell: format!("{}-{}", info.cell, info.hash),
            run: Some(run),
            precision,
        })
    }

    fn cell(
        &self,
        role: Role,
        run: &UnresolvedRun,
        dataset: &OpenDataset,
        config: Option<CellConfig>,
        needs: Option<usize>,
    ) -> Result<Cell> {
        let (ratio, seed) = match config.as_ref().filter(|_| role == Role::Pretraining) {
            Some(own) => (own.data.ratio, own.train.seed),
            None => (run.data.ratio, run.train.seed),
        };
        let student = config.as_ref().map_or(&run.student, |c| &c.student).model.clone();
        let split = if ratio == 0 { "official".to_string() } else { ratio.to_string() };
        let (method, name) = match role {
            Role::Pretraining => {
                ("pretraining".to_string(), format!("{student}-{}-pretraining-s{seed}", dataset.name))
            }
            Role::Teacher => ("teacher".to_string(), format!("{student}-{}-{split}-s{seed}", dataset.name)),
            Role::Student => {
                let data = if run.by_dataset { format!("{}-", dataset.name) } else { String::new() };
                (run.method.clone(), format!("{student}-{data}{split}-{}-s{seed}", run.method))
            }
        };
        let hash = match &config {
            Some(config) => hash(config, &dataset.fingerprint)?,
            None => String::new(),
        };
        let folder = match role {
            Role::Pretraining | Role::Teacher => self.context.runs.join(TEACHERS_DIR),
            Role::Student => self.folder.clone(),
        };
        let folder = folder.join(if hash.is_empty() { name.clone() } else { format!("{name}-{hash}") });
        Ok(Cell {
            experiment: self.experiment.name().into(),
            profile: self.profile.clone(),
            role,
            method,
            student,
            dataset: dataset.name.clone(),
            ratio,
            seed,
            name,
            hash,
            fingerprint: dataset.fingerprint.clone(),
            folder,
            needs,
            config,
        })
    }

    /// Opens the dataset, once for all of its cells.
    fn open(&mut self, data: &DataConfig) -> Result<Arc<OpenDataset>> {
        let key = format!("{} {:?} {}", data.dataset, data.path, data.options);
        if let Some(open) = self.datasets.get(&key) {
            return Ok(open.clone());
        }
        let (name, dataset) = first_found(self.context, &data.dataset, |name| {
            open_dataset(self.context, &DataConfig { dataset: name.into(), ..data.clone() })
        })?;
        let classes = dataset.info().classes.clone();
        let (fingerprint, white_level) = (dataset.fingerprint()?, dataset.white_level());
        let open = Arc::new(OpenDataset { name, classes, fingerprint, white_level });
        self.datasets.insert(key, open.clone());
        Ok(open)
    }

    /// Replaces alternatives by what was found and fills in defaults. `can_pretrain`: the initial weights may
    /// be those of a pretraining.
    fn resolve(&self, config: &mut CellConfig, dataset: &OpenDataset, can_pretrain: bool) -> Result<()> {
        config.data.dataset.clone_from(&dataset.name);
        if let Some(white) = dataset.white_level {
            // Found once, then part of the run: all later readers use the same value.
            config.data.options.insert(WHITE_LEVEL.into(), i64::from(white).into());
        }
        if let Sampler::ClassBalanced { classes, .. } = &mut config.train.sampler {
            *classes = (*classes).min(dataset.classes.len());
        }
        self.context.registries.models.get(&config.student.model)?;
        for metric in &config.eval.metrics {
            self.context.registries.metrics.get(metric)?;
        }
        self.resolve_network(&mut config.student, &mut config.data, can_pretrain)?;
        config.loss = losses::resolve(&self.context.registries, &config.loss)?;
        config.check(self.experiment.name())
    }

    fn resolve_network(
        &self,
        network: &mut NetworkConfig,
        data: &mut DataConfig,
        can_pretrain: bool,
    ) -> Result<()> {
        let find = |source: &WeightsSource| {
            let roots = &self.context.weight_roots;
            let found = (!(source.is_scratch() || can_pretrain && *source == PRETRAIN.into()))
                .then(|| (self.context.registries.weights)(&network.model, &network.variant, source, roots));
            found.transpose()
        };
        let (init, weights) = match &network.init {
            WeightsSource::Name(names) => {
                let (name, weights) = first_found(self.context, names, |name| find(&name.into()))?;
                (WeightsSource::Name(name), weights)
            }
            file => (file.clone(), find(file)?),
        };
        network.init = init;
        if let Some(weights) = weights {
            let mut variant = weights.variant;
            merge(&mut variant, &network.variant);
            network.variant = variant;
            network.weights_sha256 = Some(weights.sha256);
            (data.mean, data.std) = (weights.mean, weights.std);
        }
        Ok(())
    }
}

/// Opens the first of `a|b|c` that is not missing. Any other error is returned at once.
fn first_found<T>(
    context: &Context,
    names: &str,
    mut open: impl FnMut(&str) -> std::result::Result<T, CoreError>,
) -> Result<(String, T)> {
    let mut names = names.split('|').map(str::trim).peekable();
    loop {
        let name = names.next().unwrap_or_default();
        match open(name) {
            Ok(value) => return Ok((name.to_string(), value)),
            Err(e) if names.peek().is_some() && (context.missing)(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Returns the run folder of a teacher.
pub(crate) fn teacher_folder(context: &Context, teacher: &TeacherRef) -> PathBuf {
    teacher.run.clone().unwrap_or_else(|| context.runs.join(TEACHERS_DIR).join(&teacher.cell))
}

/// Opens the dataset of a resolved configuration.
pub(crate) fn open_dataset(
    context: &Context,
    data: &DataConfig,
) -> std::result::Result<Arc<dyn Dataset>, CoreError> {
    let entry = context.registries.datasets.get(&data.dataset)?;
    (entry.build)(&DatasetRequest {
        name: data.dataset.clone(),
        roots: context.data_roots.clone(),
        path: data.path.clone(),
        options: data.options.clone(),
    })
}

/// Returns the first eight hex digits of the hash of the resolved configuration and the data's fingerprint.
/// Settings that change no number are left out: paths, cache size, gradient checkpointing and the checkpoint
/// interval.
fn hash(config: &CellConfig, fingerprint: &str) -> Result<String> {
    let mut config = config.clone();
    config.data.path = None;
    config.data.cache_mib = 0;
    if let Some(teacher) = &mut config.teacher {
        teacher.run = None;
    }
    config.train.checkpoint = Default::default();
    config.train.gradient_checkpointing = false;
    let text = format!("format = {HASH_FORMAT}\nfingerprint = {fingerprint}\n{}", config.to_toml()?);
    Ok(stillhouse_core::fs::sha256(text.as_bytes())[..8].to_string())
}
