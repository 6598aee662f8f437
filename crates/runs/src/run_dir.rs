//! Layout of a run folder, and reading and writing its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stillhouse_core::data::Split;
use stillhouse_core::fs::{FolderLock, write_atomic};
use stillhouse_core::{Error as CoreError, config};
use toml::Table;

use crate::{CellResult, EpochLog, Error, Predictions, Result, RunInfo, RunStatus, tensors};

/// Prefix of checkpoint folders; the number of steps follows.
pub const CHECKPOINT_PREFIX: &str = "checkpoint-";
/// Folder of teachers below the folder of all runs.
pub const TEACHERS_DIR: &str = "teachers";

/// Maximum number of differing settings in an error.
const MAX_DIFFERENCES: usize = 6;

/// A run folder, which need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The run folder at a path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `config.toml`: identity and resolved configuration.
    pub fn config_path(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    /// `split.json`: training and test images.
    pub fn split_path(&self) -> PathBuf {
        self.0.join("split.json")
    }

    /// `log.jsonl`: one line per epoch.
    pub fn log_path(&self) -> PathBuf {
        self.0.join("log.jsonl")
    }

    /// `events`: scalars for TensorBoard.
    pub fn events_path(&self) -> PathBuf {
        self.0.join("events")
    }

    /// `student.safetensors`: the trained network.
    pub fn student_path(&self) -> PathBuf {
        self.0.join("student.safetensors")
    }

    /// `predictions.safetensors`: logits and labels of the test images.
    pub fn predictions_path(&self) -> PathBuf {
        self.0.join("predictions.safetensors")
    }

    /// `result.json`: what the finished run measured.
    pub fn result_path(&self) -> PathBuf {
        self.0.join("result.json")
    }

    /// `failure.txt`: the error that stopped the last attempt. A new attempt removes it.
    pub fn failure_path(&self) -> PathBuf {
        self.0.join("failure.txt")
    }

    /// Returns whether the folder holds a `config.toml`.
    pub fn is_run(&self) -> bool {
        self.config_path().is_file()
    }

    /// Returns whether the run is finished.
    pub fn is_finished(&self) -> bool {
        self.result_path().is_file()
    }

    /// Returns the status of the run.
    pub fn status(&self) -> RunStatus {
        if self.is_finished() {
            RunStatus::Done
        } else if self.is_locked() {
            RunStatus::Running
        } else if self.failure_path().is_file() {
            RunStatus::Failed
        } else {
            RunStatus::Pending
        }
    }

    /// Returns whether a process holds the folder's lock.
    fn is_locked(&self) -> bool {
        // A shared lock, held for an instant: two readers do not disturb each other.
        File::open(self.0.join("lock"))
            .is_ok_and(|f| matches!(f.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Creates the folder if needed and locks it until the guard is dropped.
    pub fn lock(&self) -> Result<FolderLock> {
        Ok(FolderLock::take(&self.0)?)
    }

    /// Takes the folder for a run if [`Self::check_owner`] agrees.
    pub fn claim<C: Serialize>(&self, run: &RunInfo<C>) -> Result<()> {
        self.check_owner(run)?;
        let path = self.config_path();
        if path.exists() && read_info::<Table>(&path)?.hash != run.hash {
            return fs::remove_file(&path).map_err(|e| CoreError::io(&path)(e).into());
        }
        Ok(())
    }

    /// Checks that the folder is empty, belongs to a run of the same hash, or to one that an error stopped
    /// before its first checkpoint: its settings may be corrected. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the settings in which the two runs differ.
    pub fn check_owner<C: Serialize>(&self, run: &RunInfo<C>) -> Result<()> {
        let path = self.config_path();
        if !path.exists() {
            // A process that was killed before it wrote its first file leaves only these.
            let expected = |name: &str| name == "lock" || name == "failure.txt" || name.ends_with(".part");
            for name in self.entries()? {
                if !expected(&name) {
                    let reason = format!(
                        "not a run folder: expected an empty folder, found `{name}`; choose another output \
                         folder"
                    );
                    return Err(Error::invalid(&self.0, reason));
                }
            }
            return Ok(());
        }
        let found: RunInfo<Table> = read_info(&path)?;
        if found.hash != run.hash && self.has_progress()? {
            let reason = format!(
                "the folder holds another run: expected `{}` with hash {}, found `{}` with hash {}{}; choose \
                 another output folder",
                run.cell,
                run.hash,
                found.cell,
                found.hash,
                differences(run, &found)
            );
            return Err(Error::invalid(&self.0, reason));
        }
        Ok(())
    }

    /// Returns whether a checkpoint, a log or an output file exists.
    fn has_progress(&self) -> Result<bool> {
        let outputs = [self.log_path(), self.student_path(), self.predictions_path(), self.result_path()];
        Ok(outputs.iter().any(|path| path.exists())
            || self.entries()?.iter().any(|name| name.starts_with(CHECKPOINT_PREFIX)))
    }

    fn entries(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.0).map_err(CoreError::io(&self.0))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        Ok(names.collect::<std::io::Result<_>>().map_err(CoreError::io(&self.0))?)
    }

    /// Reads `config.toml`; an error if it does not exist.
    pub fn info<C: DeserializeOwned>(&self) -> Result<RunInfo<C>> {
        if !self.is_run() {
            return Err(Error::invalid(&self.0, "not a run folder: no config.toml"));
        }
        read_info(&self.config_path())
    }

    /// Writes `config.toml` unless it exists.
    pub fn write_info<C: Serialize>(&self, info: &RunInfo<C>) -> Result<()> {
        let path = self.config_path();
        if path.exists() {
            return Ok(());
        }
        // Through a table, which sorts the keys.
        let table = Table::try_from(info).map_err(|e| Error::invalid(&path, e))?;
        let text = toml::to_string(&table).map_err(|e| Error::invalid(&path, e))?;
        Ok(write_atomic(&path, text.as_bytes())?)
    }

    /// Returns the error that stopped the last attempt, if one did.
    pub fn failure(&self) -> Option<String> {
        fs::read_to_string(self.failure_path()).ok().map(|text| text.trim().to_string())
    }

    /// Writes `failure.txt`.
    pub fn write_failure(&self, error: &dyn std::error::Error) -> Result<()> {
        Ok(write_atomic(&self.failure_path(), format!("{error}\n").as_bytes())?)
    }

    /// Removes `failure.txt`.
    pub fn clear_failure(&self) -> Result<()> {
        match fs::remove_file(self.failure_path()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(CoreError::io(self.failure_path())(e).into())
            }
            _ => Ok(()),
        }
    }

    /// Writes `split.json`.
    pub fn write_split(&self, split: &Split) -> Result<()> {
        let path = self.split_path();
        let text = serde_json::to_vec(split).map_err(|e| Error::invalid(&path, e))?;
        Ok(write_atomic(&path, &text)?)
    }

    /// Reads `log.jsonl`, without a last line that a killed process cut off. Empty if it does not exist.
    pub fn log(&self) -> Result<Vec<EpochLog>> {
        let text = read_text(&self.log_path())?.unwrap_or_default();
        Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Appends a line to `log.jsonl`.
    pub fn append_log(&self, line: &EpochLog) -> Result<()> {
        let path = self.log_path();
        let mut text = serde_json::to_string(line).map_err(|e| Error::invalid(&path, e))?;
        text.push('\n');
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
            .map_err(CoreError::io(&path))?;
        Ok(())
    }

    /// Truncates `log.jsonl` to its first `steps` steps: later epochs are trained again. Returns the lines
    /// that are left.
    pub fn rewind_log(&self, steps: u64) -> Result<Vec<EpochLog>> {
        let path = self.log_path();
        let Some(text) = read_text(&path)? else { return Ok(Vec::new()) };
        // A killed process may have cut off its last line.
        let mut lines = Vec::new();
        let mut kept = String::new();
        for line in text.lines() {
            if let Ok(epoch) = serde_json::from_str::<EpochLog>(line)
                && epoch.step <= steps
            {
                kept.push_str(line);
                kept.push('\n');
                lines.push(epoch);
            }
        }
        if kept != text {
            write_atomic(&path, kept.as_bytes())?;
        }
        Ok(lines)
    }

    /// Writes `student.safetensors`; returns its SHA-256.
    pub fn write_student(&self, values: &[(String, Tensor)]) -> Result<String> {
        tensors::write(&self.student_path(), values)
    }

    /// Writes `predictions.safetensors`: dataset indices and, for classification, logits `[n, classes]` and
    /// labels `[n]`.
    pub fn write_predictions(
        &self,
        ids: &[u64],
        logits: Option<&Tensor>,
        labels: Option<&Tensor>,
    ) -> Result<()> {
        Predictions::write(&self.predictions_path(), ids, logits, labels)
    }

    /// Reads `predictions.safetensors`; `None` if it does not exist or holds no logits.
    pub fn predictions(&self) -> Result<Option<Predictions>> {
        Predictions::read(&self.predictions_path())
    }

    /// Reads `result.json`; `None` if the run is not finished.
    pub fn result(&self) -> Result<Option<CellResult>> {
        let path = self.result_path();
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let result: CellResult = serde_json::from_str(&text).map_err(|e| {
            Error::invalid(&path, format!("not a valid result: {e}; remove the file to run the cell again"))
        })?;
        check_format(&path, result.format, CellResult::FORMAT)?;
        let correct = result.correct.unwrap_or(0);
        if correct > result.total || result.total == 0 {
            let reason = format!("not a valid result: {correct} correct of {} test images", result.total);
            return Err(Error::invalid(&path, reason));
        }
        Ok(Some(result))
    }

    /// Writes `result.json`.
    pub fn write_result(&self, result: &CellResult) -> Result<()> {
        let path = self.result_path();
        let mut text = serde_json::to_string_pretty(result).map_err(|e| Error::invalid(&path, e))?;
        text.push('\n');
        Ok(write_atomic(&path, text.as_bytes())?)
    }
}

impl<C: DeserializeOwned> RunInfo<C> {
    /// Parses the text of a `config.toml`; `path` appears in errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let info: Self = config::parse(text, &path.display().to_string())?;
        check_format(path, info.format, Self::FORMAT)?;
        Ok(info)
    }
}

fn read_info<C: DeserializeOwned>(path: &Path) -> Result<RunInfo<C>> {
    RunInfo::parse(&fs::read_to_string(path).map_err(CoreError::io(path))?, path)
}

fn check_format(path: &Path, found: u32, newest: u32) -> Result<()> {
    if found > newest {
        let reason = format!("written by a newer program: expected format {newest} or older, found {found}");
        return Err(Error::invalid(path, reason));
    }
    Ok(())
}

/// Reads a file; `None` if it does not exist.
fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CoreError::io(path)(e).into()),
    }
}

/// Lists the first settings in which two runs differ; empty if there are none.
fn differences<C: Serialize>(run: &RunInfo<C>, found: &RunInfo<Table>) -> String {
    let expected = Table::try_from(&run.run).map(|table| config::flatten(&table)).unwrap_or_default();
    let found_settings = config::flatten(&found.run);
    let names: BTreeSet<&String> = expected.keys().chain(found_settings.keys()).collect();
    let value = |settings: &BTreeMap<String, String>, name: &String| {
        settings.get(name).cloned().unwrap_or_else(|| "none".into())
    };
    let (mut changed, only_one): (Vec<&String>, Vec<&String>) = names
        .into_iter()
        .filter(|name| expected.get(*name) != found_settings.get(*name))
        .partition(|name| expected.contains_key(*name) && found_settings.contains_key(*name));
    changed.extend(only_one);
    let mut lines: Vec<String> = changed
        .into_iter()
        .map(|name| {
            let (expected, found) = (value(&expected, name), value(&found_settings, name));
            format!("{name}: expected {expected}, found {found}")
        })
        .collect();
    if run.fingerprint != found.fingerprint {
        let (expected, found) = (&run.fingerprint, &found.fingerprint);
        lines.insert(0, format!("the dataset's fingerprint: expected {expected}, found {found}"));
    }
    if let Some(more) = lines.len().checked_sub(MAX_DIFFERENCES).filter(|more| *more > 0) {
        lines.truncate(MAX_DIFFERENCES);
        lines.push(format!("and {more} more"));
    }
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_dir() -> (tempfile::TempDir, RunDir) {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        (folder, run)
    }

    #[test]
    fn status_follows_the_files() {
        let (_folder, run) = run_dir();
        assert_eq!(run.status(), RunStatus::Pending);
        assert_eq!(RunDir::new(run.path().join("missing")).status(), RunStatus::Pending);
        let lock = run.lock().unwrap();
        assert_eq!(run.status(), RunStatus::Running);
        drop(lock);
        assert_eq!(run.status(), RunStatus::Pending);
        run.write_failure(&Error::invalid("x", "the loss is NaN")).unwrap();
        assert_eq!(
            (run.status(), run.failure().unwrap().as_str()),
            (RunStatus::Failed, "x: the loss is NaN")
        );
        run.clear_failure().unwrap();
        assert_eq!(run.status(), RunStatus::Pending);
        run.write_result(&CellResult { total: 4, correct: Some(3), ..Default::default() }).unwrap();
        assert_eq!(run.status(), RunStatus::Done);
    }

    #[test]
    fn results_round_trip_and_invalid_ones_are_rejected() {
        let (_folder, run) = run_dir();
        assert_eq!(run.result().unwrap(), None);
        let result = CellResult { total: 4, correct: Some(3), ..Default::default() };
        run.write_result(&result).unwrap();
        assert_eq!(run.result().unwrap(), Some(result.clone()));
        for invalid in [
            CellResult { correct: Some(5), ..result.clone() },
            CellResult { correct: None, total: 0, ..result.clone() },
            CellResult { format: 9, ..result },
        ] {
            run.write_result(&invalid).unwrap();
            assert!(run.result().unwrap_err().to_string().contains("result.json"));
        }
        for text in ["{", "{}"] {
            fs::write(run.result_path(), text).unwrap();
            let error = run.result().unwrap_err().to_string();
            assert!(error.contains("result.json: not a valid result"), "{error}");
        }
    }

    #[test]
    fn info_round_trips_and_answers_paths() {
        let (_folder, run) = run_dir();
        let error = run.info::<Table>().unwrap_err().to_string();
        assert!(error.contains("not a run folder: no config.toml"), "{error}");
        let settings = "data = { dataset = 'toy', ratio = 80 }\ntrain = { seed = 3, optimizer = { lr = 0.1 } }\n\
                        student = { model = 'exits', variant = { backbone = 'net' } }";
        let info = RunInfo {
            cell: "c".into(),
            run: toml::from_str(settings).unwrap(),
            ..RunInfo::<Table>::default()
        };
        run.write_info(&info).unwrap();
        let read: RunInfo = run.info().unwrap();
        assert_eq!(read, info);
        assert_eq!(
            (read.student(), read.backbone(), read.dataset()),
            ("exits".into(), "net".into(), "toy".into())
        );
        assert_eq!((read.ratio(), read.seed()), (80, 3));
        assert_eq!(read.get("train.optimizer.lr").and_then(toml::Value::as_float), Some(0.1));
        fs::write(run.config_path(), "cell = 3").unwrap();
        assert!(run.info::<Table>().unwrap_err().to_string().contains("config.toml"));
    }

    #[test]
    fn log_is_truncated_on_resume() {
        let (_folder, run) = run_dir();
        assert_eq!((run.log().unwrap(), run.rewind_log(9).unwrap()), (vec![], vec![]));
        let line = |epoch| EpochLog { epoch, step: 10 * epoch, ..Default::default() };
        for epoch in 1..=3 {
            run.append_log(&line(epoch)).unwrap();
        }
        let text = fs::read_to_string(run.log_path()).unwrap();
        fs::write(run.log_path(), text + "{\"epoch\": 4, \"st").unwrap();
        assert_eq!(run.log().unwrap().len(), 3);
        assert_eq!(run.rewind_log(20).unwrap(), [line(1), line(2)]);
        assert_eq!(run.log().unwrap(), [line(1), line(2)]);
    }

    #[test]
    fn rejects_folders_of_other_runs() {
        let (_folder, run) = run_dir();
        let info = |cell: &str, hash: &str, settings: &str| RunInfo::<Table> {
            cell: cell.into(),
            hash: hash.into(),
            run: toml::from_str(settings).unwrap(),
            ..Default::default()
        };
        let one = info("a", "1", "train.epochs = 2\ndata.ratio = 80\nloss = [{ method = 'kd' }]");
        let two = info("b", "2", "train.epochs = 3\ndata.ratio = 80\nloss = []\nclip = true");
        fs::write(run.path().join("notes.txt"), "").unwrap();
        assert!(run.claim(&one).unwrap_err().to_string().contains("found `notes.txt`"));
        fs::remove_file(run.path().join("notes.txt")).unwrap();
        run.claim(&one).unwrap();
        run.write_info(&one).unwrap();
        run.claim(&one).unwrap();
        fs::create_dir(run.path().join("checkpoint-10")).unwrap();
        let error = run.claim(&two).unwrap_err().to_string();
        for words in [
            "expected `b` with hash 2, found `a` with hash 1",
            "train.epochs: expected 3, found 2",
            "clip: expected true, found none",
            "loss.0.method: expected none, found kd",
        ] {
            assert!(error.contains(words), "{words} is missing: {error}");
        }
        assert!(!error.contains("data.ratio"), "{error}");
        let moved = RunInfo { fingerprint: "other".into(), hash: "3".into(), ..one.clone() };
        assert!(run.claim(&moved).unwrap_err().to_string().contains("fingerprint: expected other"));
        fs::remove_dir(run.path().join("checkpoint-10")).unwrap();
        run.claim(&two).unwrap();
        assert!(!run.is_run(), "a run without progress gives way");
    }
}
