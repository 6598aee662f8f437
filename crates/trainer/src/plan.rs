//! From an experiment to its cells, in the order in which they run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use stillhouse_core::Error as CoreError;
use stillhouse_core::data::{Dataset, Sampler};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_runs::{Role, RunDir, RunStatus, TEACHERS_DIR};
use toml::Table;

use crate::config::{CellConfig, DataConfig, NetworkConfig, Precision, TeacherRef, merge};
use crate::experiment::Written;
use crate::{Context, Error, Experiment, Result, RunInfo, losses};

/// Grows when the same configuration would give other numbers.
const HASH_FORMAT: u32 = 1;

/// All cells of one profile of an experiment; every teacher stands before the students that need it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The experiment's name.
    pub experiment: String,
    /// The profile; `default` where the experiment has none.
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
    /// The experiment that asked for it first.
    pub experiment: String,
    /// Its profile.
    pub profile: String,
    /// Teacher or student.
    pub role: Role,
    /// Row of the table: a method's registry id, `baseline`, ...; `teacher` for a teacher.
    pub method: String,
    /// Registry name of the network that is trained.
    pub student: String,
    /// Registry name of the dataset.
    pub dataset: String,
    /// Per cent of the images that train.
    pub ratio: u32,
    /// Seed.
    pub seed: u64,
    /// Readable name.
    pub name: String,
    /// Hash of the resolved configuration and the data's fingerprint; empty for a method that is not
    /// built.
    pub hash: String,
    /// The dataset's fingerprint.
    pub fingerprint: String,
    /// The run folder, which need not exist.
    pub folder: PathBuf,
    /// Place of its teacher's cell in the plan.
    pub teacher: Option<usize>,
    /// Its configuration; none for a method that is not built.
    pub config: Option<CellConfig>,
}

impl Cell {
    /// Returns the status of its run.
    pub fn status(&self) -> RunStatus {
        if self.is_built() { RunDir::new(&self.folder).status() } else { RunStatus::UnknownMethod }
    }

    /// Whether the method has a registry row.
    pub fn is_built(&self) -> bool {
        self.config.is_some()
    }
}

/// Plans all cells of a profile. Datasets are opened and pretrained weights looked up, so that what
/// is missing is said before anything runs.
///
/// A method of the `[matrix]` that has no registry row becomes a cell without a configuration; one
/// of `[[loss]]` is an error.
pub fn plan(experiment: &Experiment, profile: Option<&str>, context: &Context) -> Result<Plan> {
    let name = profile.unwrap_or("default").to_string();
    let folder = context.runs.join(experiment.name()).join(&name);
    let mut planner = Planner { context, experiment, profile: name, folder, data: BTreeMap::new() };
    let mut cells = Vec::new();
    for written in experiment.written(profile)? {
        planner.add(&written, &mut cells)?;
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

/// Plans a single run with its student in `output`; its teacher stays below the folder of all runs.
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
            let what = format!(
                "this experiment has {} runs, expected one; choose values with --set matrix.method='[\"kd\"]' \
                 and the like, or run it as an experiment",
                more.len()
            );
            return Err(Error::config(experiment.name(), what));
        }
    }
    Ok(plan)
}

struct Planner<'a> {
    context: &'a Context,
    experiment: &'a Experiment,
    profile: String,
    folder: PathBuf,
    data: BTreeMap<String, Arc<Found>>,
}

/// Two values of an axis can come to the same run: `a|scenes` and `b|scenes` where neither is found.
fn push(cells: &mut Vec<Cell>, cell: Cell) {
    if cells.iter().all(|c| c.folder != cell.folder) {
        cells.push(cell);
    }
}

/// A dataset that was opened.
struct Found {
    name: String,
    classes: Vec<String>,
    fingerprint: String,
}

impl Planner<'_> {
    fn add(&mut self, written: &Written, cells: &mut Vec<Cell>) -> Result<()> {
        let found = self.find(&written.data)?;
        // A row whose losses are named by the matrix may be one that is still to come.
        let unknown = written.loss.iter().find(|l| self.context.registries.losses.get(&l.method).is_err());
        if let Some(loss) = unknown {
            if loss.method != written.method || !written.listed {
                self.context.registries.losses.get(&loss.method)?;
            }
            let cell = self.cell(Role::Student, written, &found, None, None)?;
            push(cells, cell);
            return Ok(());
        }
        let mut config = written.student_cell(None);
        self.resolve(&mut config, &found)?;
        let mut reads_teacher = false;
        for loss in &config.loss {
            reads_teacher |=
                !losses::build(&self.context.registries, loss)?.required_features().teacher.is_empty();
        }
        let mut teacher = None;
        let precision = written.teacher.as_ref().map_or_else(Default::default, |t| t.precision);
        let given = written.teacher.as_ref().and_then(|t| t.run.as_deref());
        if reads_teacher && let Some(run) = given {
            config.teacher = Some(self.given(run, precision, &found)?);
        } else if reads_teacher {
            let Some(mut own) = written.teacher_cell() else {
                let what = format!("`{}` reads a teacher, but there is no [teacher] section", written.method);
                return Err(Error::config(self.experiment.name(), what));
            };
            self.resolve(&mut own, &found)?;
            let cell = self.cell(Role::Teacher, written, &found, Some(own), None)?;
            let place = cells.iter().position(|c| c.folder == cell.folder);
            let place = place.unwrap_or_else(|| {
                cells.push(cell);
                cells.len() - 1
            });
            let cell = &cells[place];
            let folder = format!("{}-{}", cell.name, cell.hash);
            config.teacher =
                Some(TeacherRef { model: cell.student.clone(), cell: folder, run: None, precision });
            teacher = Some(place);
        }
        push(cells, self.cell(Role::Student, written, &found, Some(config), teacher)?);
        Ok(())
    }

    /// A finished run as the teacher; its classes are those of the dataset.
    fn given(&self, run: &Path, precision: Precision, found: &Found) -> Result<TeacherRef> {
        let info: RunInfo = RunDir::new(run).info()?;
        if info.classes != found.classes {
            let other = info.classes.iter().zip(&found.classes).find(|(a, b)| a != b);
            let first =
                other.map_or_else(String::new, |(a, b)| format!(", the first other one is `{a}` for `{b}`"));
            let what = format!(
                "knows {} classes, the dataset `{}` has {}{first}: it cannot teach it",
                info.classes.len(),
                found.name,
                found.classes.len()
            );
            return Err(Error::folder(run, what));
        }
        let run = std::path::absolute(run).map_err(CoreError::io(run))?;
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
        written: &Written,
        found: &Found,
        config: Option<CellConfig>,
        teacher: Option<usize>,
    ) -> Result<Cell> {
        let (ratio, seed) = (written.data.ratio, written.train.seed);
        let student = config.as_ref().map_or(&written.student, |c| &c.student).model.clone();
        let cut = if ratio == 0 { "official".to_string() } else { ratio.to_string() };
        let (method, name) = match role {
            Role::Teacher => ("teacher".to_string(), format!("{student}-{}-{cut}-s{seed}", found.name)),
            Role::Student => {
                let data = if written.by_dataset { format!("{}-", found.name) } else { String::new() };
                (written.method.clone(), format!("{student}-{data}{cut}-{}-s{seed}", written.method))
            }
        };
        let hash = match &config {
            Some(config) => hash(config, &found.fingerprint)?,
            None => String::new(),
        };
        let folder = match role {
            Role::Teacher => self.context.runs.join(TEACHERS_DIR),
            Role::Student => self.folder.clone(),
        };
        let folder = folder.join(if hash.is_empty() { name.clone() } else { format!("{name}-{hash}") });
        Ok(Cell {
            experiment: self.experiment.name().into(),
            profile: self.profile.clone(),
            role,
            method,
            student,
            dataset: found.name.clone(),
            ratio,
            seed,
            name,
            hash,
            fingerprint: found.fingerprint.clone(),
            folder,
            teacher,
            config,
        })
    }

    /// Opens the dataset, once for all cells that name it.
    fn find(&mut self, data: &DataConfig) -> Result<Arc<Found>> {
        let key = format!("{} {:?} {}", data.dataset, data.path, data.options);
        if let Some(found) = self.data.get(&key) {
            return Ok(found.clone());
        }
        let (name, dataset) = first_found(self.context, &data.dataset, |name| {
            open_dataset(self.context, &DataConfig { dataset: name.into(), ..data.clone() })
        })?;
        let classes = dataset.info().classes.clone();
        let found = Arc::new(Found { name, classes, fingerprint: dataset.fingerprint()? });
        self.data.insert(key, found.clone());
        Ok(found)
    }

    /// Puts what was found in place of what was asked for, and defaults in place of nothing.
    fn resolve(&self, config: &mut CellConfig, found: &Found) -> Result<()> {
        config.data.dataset.clone_from(&found.name);
        if let Sampler::ClassBalanced { classes, .. } = &mut config.train.sampler {
            *classes = (*classes).min(found.classes.len());
        }
        self.context.registries.models.get(&config.student.model)?;
        for metric in &config.eval.metrics {
            self.context.registries.metrics.get(metric)?;
        }
        self.resolve_network(&mut config.student, &mut config.data)?;
        config.loss = losses::resolve(&self.context.registries, &config.loss)?;
        config.check(self.experiment.name())
    }

    fn resolve_network(&self, network: &mut NetworkConfig, data: &mut DataConfig) -> Result<()> {
        let (name, weights) = first_found(self.context, &network.init, |name| match name {
            "scratch" => Ok(None),
            _ => {
                let roots = &self.context.weight_roots;
                (self.context.registries.weights)(&network.model, &network.variant, name, roots).map(Some)
            }
        })?;
        network.init = name;
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

/// Tries `a|b|c` in order: the first that is there. Anything but "not there" is an error at once.
fn first_found<T>(
    context: &Context,
    names: &str,
    mut open: impl FnMut(&str) -> std::result::Result<T, CoreError>,
) -> Result<(String, T)> {
    let mut names = names.split('|').map(str::trim).peekable();
    loop {
        let name = names.next().unwrap_or_default();
        match open(name) {
            Ok(found) => return Ok((name.to_string(), found)),
            Err(e) if names.peek().is_some() && (context.missing)(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The run folder of a teacher.
pub(crate) fn teacher_folder(context: &Context, teacher: &TeacherRef) -> PathBuf {
    teacher.run.clone().unwrap_or_else(|| context.runs.join(TEACHERS_DIR).join(&teacher.cell))
}

/// Opens the dataset of a resolved configuration.
pub(crate) fn open_dataset(
    context: &Context,
    data: &DataConfig,
) -> std::result::Result<Arc<dyn Dataset>, CoreError> {
    let row = context.registries.datasets.get(&data.dataset)?;
    (row.build)(&DatasetRequest {
        name: data.dataset.clone(),
        roots: context.data_roots.clone(),
        path: data.path.clone(),
        options: data.options.clone(),
    })
}

/// The first eight hex digits over the resolved configuration and the data's fingerprint. Where the
/// data lies, how much of it is kept in memory, what is computed twice to save memory, and when
/// checkpoints are written change no number.
fn hash(config: &CellConfig, fingerprint: &str) -> Result<String> {
    let mut config = config.clone();
    config.data.path = None;
    config.data.cache_mib = 0;
    if let Some(teacher) = &mut config.teacher {
        teacher.run = None;
    }
    config.train.checkpoint = Default::default();
    config.train.checkpointing = false;
    let text = format!("format = {HASH_FORMAT}\nidentity = {fingerprint}\n{}", config.to_toml()?);
    Ok(stillhouse_core::fs::sha256(text.as_bytes())[..8].to_string())
}
