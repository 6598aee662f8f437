//! Experiments: the file with its sections, profiles and matrix.

pub(crate) mod config;
mod inherit;
pub(crate) mod losses;
mod matrix;
pub(crate) mod schedule;

use std::path::Path;

use serde::Deserialize;
use stillhouse_core::weights::WeightsSource;
use stillhouse_core::{config as core_config, suggest};
use toml::{Table, Value};

pub(crate) use config::merge;
pub use config::{
    AdamConfig, CellConfig, CheckpointInterval, DataConfig, EvalConfig, LossConfig, LrScale, NetworkConfig,
    OptimizerConfig, PhaseConfig, Precision, TeacherRef, TrainConfig, View,
};
use inherit::inherit;
use matrix::{Matrix, Overrides, Point};
pub use schedule::{Schedule, WeightSchedule};

use crate::{Error, Result};

/// An experiment file and the settings of the command line on top of it.
///
/// The sections `[data] [teacher] [student] [[loss]] [train] [eval]` describe one run. `[profile.NAME]`
/// overrides values, each `[matrix]` axis (`student`, `dataset`, `ratio`, `method`, `seed`) multiplies the
/// runs, and `[when.AXIS.VALUE]` overrides values of the runs of one axis value.
#[derive(Debug, Clone)]
pub struct Experiment {
    name: String,
    origin: String,
    table: Table,
    assignments: Vec<String>,
}

/// One run before the registries are consulted.
#[derive(Debug, Clone)]
pub(crate) struct UnresolvedRun {
    /// Table row: the method axis, or the names of the losses.
    pub(crate) method: String,
    /// Whether the method comes from the matrix: then it may be unknown.
    pub(crate) from_matrix: bool,
    /// Whether the dataset comes from the matrix: then it is part of the run's name.
    pub(crate) by_dataset: bool,
    pub(crate) data: DataConfig,
    pub(crate) teacher: Option<TeacherSection>,
    pub(crate) student: NetworkConfig,
    pub(crate) loss: Vec<LossConfig>,
    pub(crate) train: TrainConfig,
    pub(crate) eval: EvalConfig,
}

/// `[teacher]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TeacherSection {
    /// Folder of a finished run whose network is the teacher.
    pub(crate) run: Option<std::path::PathBuf>,
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default = "WeightsSource::scratch")]
    pub(crate) weights: WeightsSource,
    #[serde(default)]
    pub(crate) variant: Table,
    #[serde(default)]
    pub(crate) precision: Precision,
    /// Training from scratch on other images, if the weights are `pretrain`.
    pub(crate) pretrain: Option<PretrainSection>,
    /// Training on the training images; without it the weights are taken as they are.
    pub(crate) train: Option<TrainConfig>,
}

/// `[teacher.pretrain]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PretrainSection {
    pub(crate) data: DataConfig,
    pub(crate) train: TrainConfig,
}

impl TeacherSection {
    /// Returns whether it says where the teacher comes from.
    fn is_complete(&self) -> bool {
        self.run.is_some() || !self.model.is_empty() && (self.train.is_some() || !self.weights.is_scratch())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    data: DataConfig,
    teacher: Option<TeacherSection>,
    student: NetworkConfig,
    #[serde(default)]
    loss: Vec<LossConfig>,
    train: TrainConfig,
    #[serde(default)]
    eval: EvalConfig,
}

/// Sections of a run.
const SECTIONS: [&str; 6] = ["data", "teacher", "student", "loss", "train", "eval"];
/// Keys of the experiment as a whole.
const EXPERIMENT_KEYS: [&str; 6] = ["name", "title", "matrix", "when", "profile", "published"];

impl Experiment {
    /// Reads a file. Its name without `.toml` is the experiment's unless `name = "..."` is set; with
    /// `extends = "other"` it overrides `other.toml` of the same folder. All profiles are checked, unless
    /// there are assignments ([`Self::set`]): those may mend a value, and a plan checks its own profile.
    pub fn load(path: &Path, assignments: &[String]) -> Result<Self> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(stillhouse_core::Error::io(path));
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let sibling = |name: &str| read(&path.with_file_name(format!("{name}.toml")));
        Self::parse_extending(&read(path)?, &path.display().to_string(), &stem, assignments, &sibling)
    }

    /// Parses text that extends no other experiment; `origin` appears in errors.
    pub fn parse(text: &str, origin: &str, name: &str) -> Result<Self> {
        let none = |name: &str| {
            Err(stillhouse_core::Error::incompatible(name, "`extends` is only available in files"))
        };
        Self::parse_extending(text, origin, name, &[], &none)
    }

    /// Parses text as [`Self::load`] does; `read_base` returns the text of the experiment that it extends.
    pub fn parse_extending(
        text: &str,
        origin: &str,
        name: &str,
        assignments: &[String],
        read_base: &dyn Fn(&str) -> stillhouse_core::Result<String>,
    ) -> Result<Self> {
        let table = inherit(core_config::parse(text, origin)?, origin, read_base)?;
        let name = table.get("name").and_then(Value::as_str).unwrap_or(name).to_string();
        let valid = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !valid || name.starts_with('.') {
            let message = format!(
                "invalid `name`: expected letters, digits, `-` and `_`, because it names a folder, found {name:?}"
            );
            return Err(Error::config(origin, message));
        }
        let mut this = Self { name, origin: origin.to_string(), table, assignments: Vec::new() };
        for assignment in assignments {
            this.set(assignment)?;
        }
        if assignments.is_empty() {
            let profiles = this.profiles();
            if profiles.is_empty() {
                this.runs(None)?;
            }
            for profile in &profiles {
                this.runs(Some(profile))?;
            }
        }
        Ok(this)
    }

    /// Returns the name: the folder below `runs/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the title for headings.
    pub fn title(&self) -> &str {
        self.table.get("title").and_then(Value::as_str).unwrap_or(&self.name)
    }

    /// Returns the names of the profiles, sorted.
    pub fn profiles(&self) -> Vec<String> {
        match self.table.get("profile") {
            Some(Value::Table(profiles)) => profiles.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Returns the `[published]` section.
    pub fn published(&self) -> Table {
        match self.table.get("published") {
            Some(Value::Table(published)) => published.clone(),
            _ => Table::new(),
        }
    }

    /// Sets a value on top of file, profile and matrix: `train.epochs=3`.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        core_config::set(&mut Table::new(), assignment)?;
        self.assignments.push(assignment.to_string());
        Ok(())
    }

    /// Returns all runs of a profile in matrix order.
    pub(crate) fn runs(&self, profile: Option<&str>) -> Result<Vec<UnresolvedRun>> {
        let (doc, origin) = self.document(profile)?;
        let matrix = Matrix::parse(&doc, &origin)?;
        let overrides = Overrides::parse(&doc, &origin)?;
        matrix.points().map(|point| self.run_at(&doc, &origin, &overrides, point)).collect()
    }

    /// Returns the file with the profile and the settings merged in, and its name for errors.
    fn document(&self, profile: Option<&str>) -> Result<(Table, String)> {
        let mut doc = self.table.clone();
        let profiles = doc.remove("profile");
        let mut origin = self.origin.clone();
        if let Some(profile) = profile {
            let names = self.profiles();
            let Some(Value::Table(over)) = profiles.as_ref().and_then(|p| p.get(profile)) else {
                let hint = did_you_mean(profile, names.iter().map(String::as_str));
                let message = format!("unknown profile `{profile}`{hint}; known: {}", names.join(", "));
                return Err(Error::config(&self.origin, message));
            };
            merge(&mut doc, over);
            origin = format!("{origin} [profile.{profile}]");
        }
        for assignment in &self.assignments {
            // Merged rather than set: a sampler of another kind replaces the whole sampler.
            let mut over = Table::new();
            core_config::set(&mut over, assignment)?;
            merge(&mut doc, &over);
        }
        if !self.assignments.is_empty() {
            origin = format!("{origin} with --set");
        }
        let known = || SECTIONS.iter().chain(&EXPERIMENT_KEYS).copied();
        if let Some(key) = doc.keys().find(|key| !known().any(|k| k == key.as_str())) {
            let hint = did_you_mean(key, known());
            let known = known().collect::<Vec<_>>().join("`, `");
            let message = format!("unknown field `{key}`, expected one of `{known}`{hint}");
            return Err(Error::config(&origin, message));
        }
        Ok((doc, origin))
    }

    /// Returns the run of one combination of axis values.
    fn run_at(
        &self,
        doc: &Table,
        origin: &str,
        overrides: &Overrides,
        point: Point,
    ) -> Result<UnresolvedRun> {
        let mut doc = doc.clone();
        for key in EXPERIMENT_KEYS {
            doc.remove(key);
        }
        point.apply(&mut doc, overrides);
        for assignment in &self.assignments {
            let section = assignment.split(['.', '=']).next().unwrap_or_default().trim();
            if SECTIONS.contains(&section) && section != "loss" {
                let mut over = Table::new();
                core_config::set(&mut over, assignment)?;
                merge(&mut doc, &over);
            }
        }
        let Sections { data, teacher, student, loss, train, eval } = core_config::from_table(&doc, origin)?;
        let method = point.method.map_or_else(|| row_name(&loss), str::to_string);
        if let Some(teacher) = &teacher
            && !teacher.is_complete()
        {
            let message = "incomplete [teacher]: expected `model` and [teacher.train] to train it here, `model` \
                           and `weights` to take a trained network as it is, or `run`, the folder of a \
                           finished run";
            return Err(Error::config(origin, message));
        }
        let (from_matrix, by_dataset) = (point.method.is_some(), point.dataset.is_some());
        let run =
            UnresolvedRun { method, from_matrix, by_dataset, data, teacher, student, loss, train, eval };
        run.student_config(None).check(origin)?;
        if let Some(config) = run.teacher_config() {
            config.check(&format!("{origin} [teacher]"))?;
        }
        if let Some(config) = run.pretraining_config() {
            config.check(&format!("{origin} [teacher.pretrain]"))?;
        }
        Ok(run)
    }
}

/// Returns the table row of a run without a method axis: the names of its losses, or `baseline`.
fn row_name(losses: &[LossConfig]) -> String {
    let names: Vec<&str> = losses.iter().map(|l| l.method.as_str()).filter(|m| *m != losses::CE).collect();
    if names.is_empty() { "baseline".to_string() } else { names.join("+") }
}

impl UnresolvedRun {
    /// Returns the student's configuration.
    pub(crate) fn student_config(&self, teacher: Option<TeacherRef>) -> CellConfig {
        CellConfig {
            data: self.data.clone(),
            student: self.student.clone(),
            teacher,
            loss: self.loss.clone(),
            train: self.train.clone(),
            eval: self.eval.clone(),
        }
    }

    /// Returns the teacher's configuration: the same data and seed, cross-entropy alone. `None` if the teacher
    /// is a finished run.
    pub(crate) fn teacher_config(&self) -> Option<CellConfig> {
        let teacher = self.teacher.as_ref().filter(|t| t.run.is_none())?;
        let train = teacher.train.clone().unwrap_or_else(|| TrainConfig::untrained(self.train.seed));
        Some(CellConfig {
            data: self.data.clone(),
            student: NetworkConfig {
                model: teacher.model.clone(),
                init: teacher.weights.clone(),
                pretraining: None,
                weights_sha256: None,
                variant: teacher.variant.clone(),
            },
            teacher: None,
            loss: Vec::new(),
            train: TrainConfig { seed: self.train.seed, ..train },
            eval: self.eval.clone(),
        })
    }

    /// Returns the configuration of the teacher's pretraining, which has its own data, recipe and seed: it is
    /// the same for all runs.
    pub(crate) fn pretraining_config(&self) -> Option<CellConfig> {
        let teacher = self.teacher.as_ref()?;
        let PretrainSection { data, train } = teacher.pretrain.clone()?;
        let student = NetworkConfig {
            model: teacher.model.clone(),
            init: WeightsSource::scratch(),
            pretraining: None,
            weights_sha256: None,
            variant: teacher.variant.clone(),
        };
        let eval = EvalConfig { metrics: self.eval.metrics.clone(), ..EvalConfig::default() };
        Some(CellConfig { data, student, teacher: None, loss: Vec::new(), train, eval })
    }
}

/// Returns a suggestion for a misspelled name; empty if no known name is close.
fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    suggest(name, known).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
}

fn wrong_type(origin: &str, field: &str, found: &Value) -> Error {
    Error::config(origin, format!("invalid `{field}`: expected a table, found a {}", found.type_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [data]
        dataset = "toy"
        ratio = 80
        image_size = 8
        train_transforms = []
        test_transforms = []
        [student]
        model = "a"
        [train]
        epochs = 4
        sampler = { kind = "class_balanced", classes = 2, per_class = 2 }
        optimizer = { kind = "sgd", lr = 0.1, momentum = 0.9 }
        schedule = { kind = "constant" }
        [[loss]]
        method = "kd"
        weight = 2.0
        [matrix]
        student = ["a", "b"]
        method = ["baseline", "plain", "kd", "other"]
        [when.student.b]
        train.optimizer.lr = 0.01
        [when.method.baseline]
        loss = []
        [when.method.plain]
        loss = []
        train.sampler = { kind = "shuffle", batch = 4 }
        [profile.tiny]
        train.epochs = 1
        matrix.student = ["b"]
        [profile.full]
    "#;

    fn load(text: &str) -> Result<Experiment> {
        Experiment::parse(text, "x.toml", "x")
    }

    #[test]
    fn merges_profiles_axes_and_settings() {
        let mut experiment = load(TEXT).unwrap();
        assert_eq!(experiment.profiles(), ["full", "tiny"]);
        let runs = experiment.runs(Some("full")).unwrap();
        let names: Vec<String> = runs.iter().map(|w| format!("{} {}", w.student.model, w.method)).collect();
        assert_eq!(
            names,
            ["a baseline", "a plain", "a kd", "a other", "b baseline", "b plain", "b kd", "b other"]
        );
        assert_eq!(runs[0].train.optimizer.lr(), 0.1);
        assert_eq!(runs[4].train.optimizer.lr(), 0.01);
        assert!(runs[0].loss.is_empty() && runs[1].loss.is_empty());
        assert_eq!(runs[1].train.batch_size(), 4);
        assert_eq!(runs[2].loss[0].options["weight"].as_float(), Some(2.0));
        assert!(runs[3].loss[0].options.is_empty() && runs[3].loss[0].method == "other");
        let tiny = experiment.runs(Some("tiny")).unwrap();
        assert_eq!((tiny.len(), tiny[0].train.epochs), (4, 1));
        experiment.set("train.optimizer.lr=0.5").unwrap();
        experiment.set("matrix.seed=[3,4]").unwrap();
        let runs = experiment.runs(Some("tiny")).unwrap();
        assert_eq!((runs.len(), runs[0].train.seed, runs[4].train.seed), (8, 3, 4));
        assert!(runs.iter().all(|r| r.train.optimizer.lr() == 0.5), "--set has the last word");
    }

    #[test]
    fn axes_override_the_settings_of_methods() {
        let text = TEXT.replacen(
            "[when.student.b]",
            "[when.student.b]\nloss = [{ method = 'kd', weight = 3.0 }, { method = 'other', feature = 'F1' }]",
            1,
        );
        let runs = load(&text).unwrap().runs(Some("full")).unwrap();
        let loss = |at: usize| {
            let of: Vec<_> = runs[at].loss.iter().map(|l| (l.method.as_str(), l.options.len())).collect();
            (runs[at].method.clone(), of)
        };
        assert_eq!(loss(2), ("kd".to_string(), vec![("kd", 1)]));
        assert_eq!(loss(3), ("other".to_string(), vec![("other", 0)]));
        assert!(runs[4].loss.is_empty(), "overrides of the method come last");
        assert_eq!(loss(7), ("other".to_string(), vec![("other", 1)]));
        let weight = |at: usize| runs[at].loss[0].options["weight"].as_float();
        assert_eq!((weight(2), weight(6)), (Some(2.0), Some(3.0)));
    }

    #[test]
    fn another_network_drops_the_variant() {
        let text = TEXT.replace(
            "[student]\n        model = \"a\"",
            "[student]\n        model = \"a\"\n        variant.k = 3",
        );
        let variants = |more: &str| -> Vec<String> {
            let text = text.replace("student = [\"a\", \"b\"]\n", "");
            let text = text.replace("[when.student.b]\n        train.optimizer.lr = 0.01\n", more);
            let experiment =
                load(&text.replace("train.epochs = 1\n        matrix.student = [\"b\"]\n", "")).unwrap();
            let runs = experiment.runs(Some("full")).unwrap();
            runs.iter().map(|w| format!("{}: {}", w.student.model, w.student.variant)).collect()
        };
        assert_eq!(variants("")[2].trim(), "a: k = 3");
        let other = variants("[when.method.kd]\n        student.model = \"c\"\n");
        assert_eq!((other[1].trim(), other[2].trim()), ("a: k = 3", "c:"));
        let other = variants("[when.method.kd.student]\n        model = \"c\"\n        variant.n = 1\n");
        assert_eq!(other[2].trim(), "c: n = 1");
        let more = variants("[when.method.kd]\n        student.variant.n = 1\n");
        assert_eq!(more[2].trim(), "a: k = 3\nn = 1");
    }

    #[test]
    fn errors_name_their_source() {
        let cases = [
            ("[data]", "[dat]\n[data]", "did you mean `data`"),
            ("epochs = 4", "epochs = 4\nepoch = 3", "did you mean `epochs`"),
            ("momentum = 0.9", "momentun = 0.9", "did you mean `momentum`"),
            ("momentum = 0.9", "momentum = 1.5", "invalid `train.optimizer.momentum`"),
            ("ratio = 80", "ratio = 100", "invalid `data.ratio`"),
            ("epochs = 4", "epochs = 0", "invalid `train.epochs`"),
            ("train.epochs = 1", "train.epoch = 1", "[profile.tiny]"),
            ("[when.student.b]", "[when.studnt.b]", "did you mean `student`"),
            ("train.optimizer.lr = 0.01", "trai.x = 1", "in `when.student.b`"),
            ("method = [\"baseline\"", "methods = [1]\nmethod = [\"baseline\"", "did you mean `method`"),
            ("student = [\"a\", \"b\"]", "student = []", "invalid `matrix.student`"),
        ];
        for (from, to, expected) in cases {
            assert!(TEXT.contains(from), "{from}");
            let e = load(&TEXT.replacen(from, to, 1)).map(|_| "accepted").unwrap_err().to_string();
            assert!(e.contains(expected) && e.contains("x.toml"), "{to}: {e}");
        }
        let e = load(TEXT).unwrap().runs(Some("tyny")).unwrap_err().to_string();
        assert!(e.contains("did you mean `tiny`"), "{e}");
        assert!(load(TEXT).unwrap().set("no value").is_err());
    }
}
