//! The experiment file as written: sections, matrix, profiles.

use std::path::Path;

use serde::Deserialize;
use stillhouse_core::{config, suggest};
use toml::{Table, Value};

use crate::config::{
    CellConfig, DataConfig, EvalConfig, LossConfig, NetworkConfig, TrainConfig, merge, scratch,
};
use crate::extends::extended;
use crate::{Error, Result};

/// An experiment file and what the command line sets on top of it.
///
/// Sections `[data] [teacher] [student] [[loss]] [train] [eval]` describe one run;
/// `[profile.NAME]` lays other values on top; each `[matrix]` axis (`student`, `dataset`,
/// `ratio`, `method`, `seed`) multiplies the runs; `[when.AXIS.VALUE]` lays values on the runs of one axis value.
#[derive(Debug, Clone)]
pub struct Experiment {
    name: String,
    origin: String,
    table: Table,
    sets: Vec<String>,
}

/// `[matrix]`: the runs are all combinations, the first axis outermost.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Matrix {
    student: Option<Vec<String>>,
    dataset: Option<Vec<String>>,
    ratio: Option<Vec<u32>>,
    method: Option<Vec<String>>,
    seed: Option<Vec<u64>>,
}

/// One run as written, before parts are looked up.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// Row of the table: the method axis, or the names of the losses.
    pub(crate) method: String,
    /// Whether the matrix named the method: then it may be one that is not built yet.
    pub(crate) listed: bool,
    /// Whether the matrix named the dataset: then it stands in the run's name.
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
    /// The folder of a finished run: that network teaches as it is, and nothing else is needed.
    pub(crate) run: Option<std::path::PathBuf>,
    #[serde(default)]
    pub(crate) model: String,
    #[serde(default = "scratch")]
    pub(crate) weights: String,
    #[serde(default)]
    pub(crate) variant: Table,
    #[serde(default)]
    pub(crate) precision: crate::config::Precision,
    pub(crate) train: Option<TrainConfig>,
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

const SECTIONS: [&str; 6] = ["data", "teacher", "student", "loss", "train", "eval"];
const ABOUT: [&str; 6] = ["name", "title", "matrix", "when", "profile", "published"];
const AXES: [&str; 5] = ["student", "dataset", "ratio", "method", "seed"];

/// One combination of the axes that there are.
#[derive(Clone, Copy)]
struct Point<'a> {
    seed: Option<&'a u64>,
    student: Option<&'a String>,
    dataset: Option<&'a String>,
    ratio: Option<&'a u32>,
    method: Option<&'a String>,
}

impl Experiment {
    /// Reads a file; its name without `.toml` is the experiment's, unless it says `name = "..."`. With
    /// `extends = "other"` it says in what it differs from `other.toml` in its folder.
    /// Every profile is checked, so that a mistake in one is found before another has run.
    pub fn load(path: &Path) -> Result<Self> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(stillhouse_core::Error::io(path));
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let beside = |name: &str| read(&path.with_file_name(format!("{name}.toml")));
        Self::parse_beside(&read(path)?, &path.display().to_string(), &stem, &beside)
    }

    /// Reads text that extends no other; `origin` stands in messages.
    pub fn parse(text: &str, origin: &str, name: &str) -> Result<Self> {
        let alone =
            |name: &str| Err(stillhouse_core::Error::incompatible(name, "no other file is at hand here"));
        Self::parse_beside(text, origin, name, &alone)
    }

    /// Reads text; `text_of` gives the text of the experiment that it extends, if it does.
    pub fn parse_beside(
        text: &str,
        origin: &str,
        name: &str,
        text_of: &dyn Fn(&str) -> stillhouse_core::Result<String>,
    ) -> Result<Self> {
        let table = extended(config::parse(text, origin)?, origin, text_of)?;
        let name = table.get("name").and_then(Value::as_str).unwrap_or(name).to_string();
        let ok = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !ok || name.starts_with('.') {
            let what =
                format!("`name` is {name:?}, expected letters, digits, `-` and `_`: it names a folder");
            return Err(Error::config(origin, what));
        }
        let this = Self { name, origin: origin.to_string(), table, sets: Vec::new() };
        let profiles = this.profiles();
        if profiles.is_empty() {
            this.written(None)?;
        }
        for profile in &profiles {
            this.written(Some(profile))?;
        }
        Ok(this)
    }

    /// Its name: the folder below `runs/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its title, for headings.
    pub fn title(&self) -> &str {
        self.table.get("title").and_then(Value::as_str).unwrap_or(&self.name)
    }

    /// Names of its profiles, sorted.
    pub fn profiles(&self) -> Vec<String> {
        match self.table.get("profile") {
            Some(Value::Table(profiles)) => profiles.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// The `[published]` section, as it stands there.
    pub fn published(&self) -> Table {
        match self.table.get("published") {
            Some(Value::Table(published)) => published.clone(),
            _ => Table::new(),
        }
    }

    /// Sets a value on top of file, profile and axes, as `--set train.epochs=3` does.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        config::set(&mut Table::new(), assignment)?;
        self.sets.push(assignment.to_string());
        Ok(())
    }

    /// All runs of one profile, in the order of the matrix.
    pub(crate) fn written(&self, profile: Option<&str>) -> Result<Vec<Written>> {
        let (doc, origin) = self.document(profile)?;
        let matrix: Matrix = match doc.get("matrix") {
            Some(Value::Table(t)) => config::from_table(t, &format!("{origin} [matrix]"))?,
            Some(other) => return Err(wrong_type(&origin, "matrix", other)),
            None => Matrix::default(),
        };
        matrix.check(&origin)?;
        let when = when(&doc, &origin)?;
        let mut all = Vec::new();
        for seed in axis(&matrix.seed) {
            for student in axis(&matrix.student) {
                for dataset in axis(&matrix.dataset) {
                    for ratio in axis(&matrix.ratio) {
                        for method in axis(&matrix.method) {
                            let point = Point { seed, student, dataset, ratio, method };
                            all.push(self.one(&doc, &origin, &when, point)?);
                        }
                    }
                }
            }
        }
        Ok(all)
    }

    /// The file with its profile and settings laid on top, and what to call it in messages.
    fn document(&self, profile: Option<&str>) -> Result<(Table, String)> {
        let mut doc = self.table.clone();
        let profiles = doc.remove("profile");
        let mut origin = self.origin.clone();
        if let Some(profile) = profile {
            let names = self.profiles();
            let Some(Value::Table(over)) = profiles.as_ref().and_then(|p| p.get(profile)) else {
                let hint = suggest(profile, names.iter().map(String::as_str))
                    .map(|n| format!("; did you mean `{n}`?"))
                    .unwrap_or_default();
                let what = format!("no profile `{profile}`{hint}; known: {}", names.join(", "));
                return Err(Error::config(&self.origin, what));
            };
            merge(&mut doc, over);
            origin = format!("{origin} [profile.{profile}]");
        }
        for assignment in &self.sets {
            // Overlaid rather than set, so that a sampler of another kind replaces the whole sampler.
            let mut over = Table::new();
            config::set(&mut over, assignment)?;
            merge(&mut doc, &over);
        }
        if !self.sets.is_empty() {
            origin = format!("{origin} with --set");
        }
        for key in doc.keys() {
            if !SECTIONS.contains(&key.as_str()) && !ABOUT.contains(&key.as_str()) {
                let known = SECTIONS.iter().chain(&ABOUT).copied();
                let hint = suggest(key, known.clone()).map(|n| format!("; did you mean `{n}`?"));
                let known = known.collect::<Vec<_>>().join("`, `");
                let hint = hint.unwrap_or_default();
                let what = format!("unknown field `{key}`, expected one of `{known}`{hint}");
                return Err(Error::config(&origin, what));
            }
        }
        Ok((doc, origin))
    }

    fn one(
        &self,
        doc: &Table,
        origin: &str,
        when: &[(String, String, Table)],
        Point { seed, student, dataset, ratio, method }: Point,
    ) -> Result<Written> {
        let mut doc = doc.clone();
        for key in ABOUT {
            doc.remove(key);
        }
        let mut put = |path: &str, value: Value| {
            let mut over = Table::new();
            let (section, field) = path.split_once('.').unwrap_or((path, ""));
            over.insert(section.into(), Value::Table(Table::from_iter([(field.to_string(), value)])));
            merge(&mut doc, &over);
        };
        if let Some(seed) = seed {
            put("train.seed", Value::Integer(i64::try_from(*seed).unwrap_or(i64::MAX)));
        }
        if let Some(student) = student {
            put("student.model", Value::String(student.clone()));
        }
        if let Some(dataset) = dataset {
            put("data.dataset", Value::String(dataset.clone()));
        }
        if let Some(ratio) = ratio {
            put("data.ratio", Value::Integer(i64::from(*ratio)));
        }
        let model = doc.get("student").and_then(|s| s.get("model")).and_then(Value::as_str);
        let model = model.unwrap_or_default().to_string();
        let holds = |name: &str, value: &str| match name {
            "student" => *value == model,
            // Of `a|b` the first: that is the one which is meant.
            "dataset" => dataset.is_some_and(|d| d.split('|').next() == Some(value)),
            "ratio" => ratio.is_some_and(|r| r.to_string() == *value),
            "seed" => seed.is_some_and(|s| s.to_string() == *value),
            _ => method.is_some_and(|m| m == value),
        };
        if let Some(method) = method {
            // The list of losses is what the axis picks its method's settings from; another axis may
            // have another list.
            for (name, value, over) in when {
                if let Some(losses) = over.get("loss")
                    && name != "method"
                    && holds(name, value)
                {
                    doc.insert("loss".into(), losses.clone());
                }
            }
            let own = doc.get("loss").and_then(Value::as_array).and_then(|losses| {
                losses.iter().find(|l| l.get("method").and_then(Value::as_str) == Some(method)).cloned()
            });
            let entry = own.unwrap_or_else(|| {
                Value::Table(Table::from_iter([("method".to_string(), Value::String(method.clone()))]))
            });
            doc.insert("loss".into(), Value::Array(vec![entry]));
        }
        for (name, value, over) in when {
            if holds(name, value) {
                let mut over = over.clone();
                if name != "method" && method.is_some() {
                    over.remove("loss"); // picked from above
                }
                let network = over.get("student").and_then(Value::as_table);
                let other = network.is_some_and(|n| n.contains_key("model"));
                // A variant is that of one network.
                if other && let Some(Value::Table(student)) = doc.get_mut("student") {
                    student.remove("variant");
                }
                merge(&mut doc, &over);
            }
        }
        for assignment in &self.sets {
            let section = assignment.split(['.', '=']).next().unwrap_or_default().trim();
            if SECTIONS.contains(&section) && section != "loss" {
                let mut over = Table::new();
                config::set(&mut over, assignment)?;
                merge(&mut doc, &over);
            }
        }
        let sections: Sections = config::from_table(&doc, origin)?;
        let listed = method.is_some();
        let method = method.cloned().unwrap_or_else(|| {
            let names: Vec<&str> =
                sections.loss.iter().map(|l| l.method.as_str()).filter(|m| *m != "ce").collect();
            if names.is_empty() { "baseline".to_string() } else { names.join("+") }
        });
        let Sections { data, teacher, student, loss, train, eval } = sections;
        let by_dataset = dataset.is_some();
        if let Some(teacher) = &teacher
            && teacher.run.is_none()
            && (teacher.model.is_empty() || teacher.train.is_none())
        {
            let what = "[teacher] needs `model` and a section [teacher.train], or `run`, the folder of a \
                        finished run";
            return Err(Error::config(origin, what));
        }
        let written = Written { method, listed, by_dataset, data, teacher, student, loss, train, eval };
        written.student_cell(None).check(origin)?;
        if let Some(cell) = written.teacher_cell() {
            cell.check(&format!("{origin} [teacher]"))?;
        }
        Ok(written)
    }
}

impl Written {
    /// The student's run, its parts not looked up yet.
    pub(crate) fn student_cell(&self, teacher: Option<crate::config::TeacherRef>) -> CellConfig {
        CellConfig {
            data: self.data.clone(),
            student: self.student.clone(),
            teacher,
            loss: self.loss.clone(),
            train: self.train.clone(),
            eval: self.eval.clone(),
        }
    }

    /// The teacher's run: the same data, cross-entropy alone, the same seed; none where a finished run
    /// teaches.
    pub(crate) fn teacher_cell(&self) -> Option<CellConfig> {
        let teacher = self.teacher.as_ref().filter(|t| t.run.is_none())?;
        let train = teacher.train.clone()?;
        Some(CellConfig {
            data: self.data.clone(),
            student: NetworkConfig {
                model: teacher.model.clone(),
                init: teacher.weights.clone(),
                weights_sha256: None,
                variant: teacher.variant.clone(),
            },
            teacher: None,
            loss: Vec::new(),
            train: TrainConfig { seed: self.train.seed, ..train },
            eval: self.eval.clone(),
        })
    }
}

impl Matrix {
    fn check(&self, origin: &str) -> Result<()> {
        let lengths = [
            self.student.as_ref().map(Vec::len),
            self.dataset.as_ref().map(Vec::len),
            self.ratio.as_ref().map(Vec::len),
            self.method.as_ref().map(Vec::len),
            self.seed.as_ref().map(Vec::len),
        ];
        for (name, length) in AXES.iter().zip(lengths) {
            if length == Some(0) {
                return Err(Error::config(origin, format!("`matrix.{name}` is empty, expected values")));
            }
        }
        if self.seed.iter().flatten().any(|s| i64::try_from(*s).is_err()) {
            return Err(Error::config(origin, format!("`matrix.seed`: seeds go up to {}", i64::MAX)));
        }
        Ok(())
    }
}

/// The values of an axis, or one "not given".
fn axis<T>(values: &Option<Vec<T>>) -> Vec<Option<&T>> {
    match values {
        Some(values) => values.iter().map(Some).collect(),
        None => vec![None],
    }
}

/// `[when.AXIS.VALUE]` in the order of the axes, so that a later axis lays its values on top.
fn when(doc: &Table, origin: &str) -> Result<Vec<(String, String, Table)>> {
    let mut all = Vec::new();
    let axes = match doc.get("when") {
        Some(Value::Table(axes)) => axes,
        Some(other) => return Err(wrong_type(origin, "when", other)),
        None => return Ok(all),
    };
    if let Some(unknown) = axes.keys().find(|k| !AXES.contains(&k.as_str())) {
        let hint = suggest(unknown, AXES).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        let what = format!("in `when`: unknown axis `{unknown}`, expected one of {AXES:?}{hint}");
        return Err(Error::config(origin, what));
    }
    for name in AXES {
        let Some(values) = axes.get(name) else { continue };
        let Value::Table(values) = values else {
            return Err(wrong_type(origin, &format!("when.{name}"), values));
        };
        for (value, over) in values {
            let Value::Table(over) = over else {
                return Err(wrong_type(origin, &format!("when.{name}.{value}"), over));
            };
            if let Some(key) = over.keys().find(|k| !SECTIONS.contains(&k.as_str())) {
                let what =
                    format!("in `when.{name}.{value}`: unknown field `{key}`, expected one of {SECTIONS:?}");
                return Err(Error::config(origin, what));
            }
            all.push((name.to_string(), value.clone(), over.clone()));
        }
    }
    Ok(all)
}

fn wrong_type(origin: &str, field: &str, found: &Value) -> Error {
    Error::config(origin, format!("`{field}` is a {}, expected a table", found.type_str()))
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
    fn axes_profiles_and_settings_are_laid_on_each_other() {
        let mut experiment = load(TEXT).unwrap();
        assert_eq!(experiment.profiles(), ["full", "tiny"]);
        let runs = experiment.written(Some("full")).unwrap();
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
        let tiny = experiment.written(Some("tiny")).unwrap();
        assert_eq!((tiny.len(), tiny[0].train.epochs), (4, 1));
        experiment.set("train.optimizer.lr=0.5").unwrap();
        experiment.set("matrix.seed=[3,4]").unwrap();
        let runs = experiment.written(Some("tiny")).unwrap();
        assert_eq!((runs.len(), runs[0].train.seed, runs[4].train.seed), (8, 3, 4));
        assert!(runs.iter().all(|r| r.train.optimizer.lr() == 0.5), "--set comes last");
    }

    /// The method axis picks from the list of losses, and another axis may have another list.
    #[test]
    fn an_axis_may_have_settings_of_methods() {
        let text = TEXT.replacen(
            "[when.student.b]",
            "[when.student.b]\nloss = [{ method = 'kd', weight = 3.0 }, { method = 'other', tap = 'F1' }]",
            1,
        );
        let runs = load(&text).unwrap().written(Some("full")).unwrap();
        let loss = |at: usize| {
            let of: Vec<_> = runs[at].loss.iter().map(|l| (l.method.as_str(), l.options.len())).collect();
            (runs[at].method.clone(), of)
        };
        assert_eq!(loss(2), ("kd".to_string(), vec![("kd", 1)]));
        assert_eq!(loss(3), ("other".to_string(), vec![("other", 0)]));
        assert!(runs[4].loss.is_empty(), "the method's own word is the last");
        assert_eq!(loss(7), ("other".to_string(), vec![("other", 1)]));
        let weight = |at: usize| runs[at].loss[0].options["weight"].as_float();
        assert_eq!((weight(2), weight(6)), (Some(2.0), Some(3.0)));
    }

    #[test]
    fn another_network_has_no_variant_of_the_first() {
        let text = TEXT.replace(
            "[student]\n        model = \"a\"",
            "[student]\n        model = \"a\"\n        variant.k = 3",
        );
        let variants = |more: &str| -> Vec<String> {
            let text = text.replace("student = [\"a\", \"b\"]\n", "");
            let text = text.replace("[when.student.b]\n        train.optimizer.lr = 0.01\n", more);
            let experiment =
                load(&text.replace("train.epochs = 1\n        matrix.student = [\"b\"]\n", "")).unwrap();
            let runs = experiment.written(Some("full")).unwrap();
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
    fn mistakes_are_named_wherever_they_stand() {
        let cases = [
            ("[data]", "[dat]\n[data]", "did you mean `data`"),
            ("epochs = 4", "epochs = 4\nepoch = 3", "did you mean `epochs`"),
            ("momentum = 0.9", "momentun = 0.9", "did you mean `momentum`"),
            ("momentum = 0.9", "momentum = 1.5", "`train.optimizer.momentum` is 1.5"),
            ("ratio = 80", "ratio = 100", "`data.ratio` is 100"),
            ("epochs = 4", "epochs = 0", "`train.epochs` is 0"),
            ("train.epochs = 1", "train.epoch = 1", "[profile.tiny]"),
            ("[when.student.b]", "[when.studnt.b]", "did you mean `student`"),
            ("train.optimizer.lr = 0.01", "trai.x = 1", "in `when.student.b`"),
            ("method = [\"baseline\"", "methods = [1]\nmethod = [\"baseline\"", "did you mean `method`"),
            ("student = [\"a\", \"b\"]", "student = []", "`matrix.student` is empty"),
        ];
        for (from, to, expected) in cases {
            assert!(TEXT.contains(from), "{from}");
            let e = load(&TEXT.replacen(from, to, 1)).map(|_| "accepted").unwrap_err().to_string();
            assert!(e.contains(expected) && e.contains("x.toml"), "{to}: {e}");
        }
        let e = load(TEXT).unwrap().written(Some("tyny")).unwrap_err().to_string();
        assert!(e.contains("did you mean `tiny`"), "{e}");
        assert!(load(TEXT).unwrap().set("no value").is_err());
    }
}
