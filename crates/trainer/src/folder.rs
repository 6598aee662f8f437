//! The files of a run folder other than its checkpoints.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use stillhouse_core::data::Split;
use stillhouse_core::{Error as CoreError, Rng, config};

use crate::checkpoint;
use crate::config::{CellConfig, to_toml};
use crate::{Cell, CellResult, Context, EpochLog, Error, Network, Result, Role, tensors};

const FORMAT: u32 = 1;

/// Paths of a run folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }
    pub(crate) fn split(&self) -> PathBuf {
        self.0.join("split.json")
    }
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log.jsonl")
    }
    pub(crate) fn student(&self) -> PathBuf {
        self.0.join("student.safetensors")
    }
    pub(crate) fn predictions(&self) -> PathBuf {
        self.0.join("predictions.safetensors")
    }
    pub(crate) fn result(&self) -> PathBuf {
        self.0.join("result.json")
    }
    /// Why the last try failed, for tables; a new start removes it.
    pub(crate) fn failure(&self) -> PathBuf {
        self.0.join("failure.txt")
    }

    /// Refuses a folder that holds another run, or something else altogether.
    pub(crate) fn claim(&self, cell: &Cell) -> Result<()> {
        let path = self.config();
        if !path.exists() {
            // A process that ended before its first file leaves only these.
            let ours = |name: &str| name == "lock" || name == "failure.txt" || name.ends_with(".part");
            for entry in fs::read_dir(&self.0).map_err(CoreError::io(&self.0))? {
                let name = entry.map_err(CoreError::io(&self.0))?.file_name();
                if !ours(&name.to_string_lossy()) {
                    let what = format!(
                        "holds {} and is no run folder; choose another output folder",
                        name.to_string_lossy()
                    );
                    return Err(Error::folder(&self.0, what));
                }
            }
            return Ok(());
        }
        let found = RunInfo::read(&path)?;
        if found.hash != cell.hash {
            if !self.has_work()? {
                // An error ended that run before its first checkpoint: it may be put right and run here.
                return fs::remove_file(&path).map_err(|e| CoreError::io(&path)(e).into());
            }
            let what = format!(
                "holds the run `{}` with hash {}, not `{}` with hash {}: its settings or its data differ; \
                 choose another output folder",
                found.cell, found.hash, cell.name, cell.hash
            );
            return Err(Error::folder(&self.0, what));
        }
        Ok(())
    }

    /// Whether a checkpoint, a line of the log or a result is there.
    fn has_work(&self) -> Result<bool> {
        for entry in fs::read_dir(&self.0).map_err(CoreError::io(&self.0))? {
            let name = entry.map_err(CoreError::io(&self.0))?.file_name();
            let is = |path: PathBuf| path.file_name() == Some(&name);
            let checkpoint = name.to_string_lossy().starts_with(checkpoint::PREFIX);
            if checkpoint
                || is(self.log())
                || is(self.student())
                || is(self.predictions())
                || is(self.result())
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes `config.toml`, the first time.
    pub(crate) fn describe(&self, info: &RunInfo) -> Result<()> {
        let path = self.config();
        if path.exists() {
            return Ok(());
        }
        Ok(stillhouse_core::fs::write_atomic(&path, to_toml(info)?.as_bytes())?)
    }

    /// Removes the note of an earlier failure.
    pub(crate) fn forget_failure(&self) -> Result<()> {
        match fs::remove_file(self.failure()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(CoreError::io(self.failure())(e).into())
            }
            _ => Ok(()),
        }
    }

    /// Writes which samples train and which test.
    pub(crate) fn write_split(&self, split: &Split) -> Result<()> {
        let text = serde_json::to_vec(split).map_err(|e| Error::folder(self.split(), e))?;
        Ok(stillhouse_core::fs::write_atomic(&self.split(), &text)?)
    }

    /// Cuts the log back to the lines of `steps` steps: what came later is run again. Gives what stays.
    pub(crate) fn rewind_log(&self, steps: u64) -> Result<Vec<EpochLog>> {
        let path = self.log();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(CoreError::io(&path)(e).into()),
        };
        // The last line may be cut off where the process was killed.
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
            stillhouse_core::fs::write_atomic(&path, kept.as_bytes())?;
        }
        Ok(lines)
    }

    /// Appends a line to the log.
    pub(crate) fn append_log(&self, line: &EpochLog) -> Result<()> {
        let path = self.log();
        let mut text = serde_json::to_string(line).map_err(|e| Error::folder(&path, e))?;
        text.push('\n');
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all()))
            .map_err(CoreError::io(&path))?;
        Ok(())
    }

    /// Writes `student.safetensors`; returns its SHA-256.
    pub(crate) fn write_student(&self, values: &[(String, Tensor)]) -> Result<String> {
        tensors::write(&self.student(), values)
    }

    /// The result, if the run is finished.
    pub(crate) fn finished(&self) -> Result<Option<CellResult>> {
        let path = self.result();
        if path.exists() { CellResult::read(&path).map(Some) } else { Ok(None) }
    }
}

/// `config.toml` of a run folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInfo {
    /// Version of the file's form.
    pub format: u32,
    /// Version of the program that began the run.
    pub version: String,
    /// The experiment's name.
    pub experiment: String,
    /// Its profile.
    pub profile: String,
    /// Name of the cell.
    pub cell: String,
    /// Hash of the resolved configuration and the data's fingerprint.
    pub hash: String,
    /// Teacher or student.
    pub role: Role,
    /// Row of the table.
    pub method: String,
    /// The dataset's fingerprint.
    pub fingerprint: String,
    /// Class names in the order of the logits.
    pub classes: Vec<String>,
    /// The resolved configuration.
    pub run: CellConfig,
}

impl RunInfo {
    pub(crate) fn new(cell: &Cell, config: &CellConfig, classes: &[String]) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            experiment: cell.experiment.clone(),
            profile: cell.profile.clone(),
            cell: cell.name.clone(),
            hash: cell.hash.clone(),
            role: cell.role,
            method: cell.method.clone(),
            fingerprint: cell.fingerprint.clone(),
            classes: classes.to_vec(),
            run: config.clone(),
        }
    }

    /// Reads a `config.toml`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(CoreError::io(path))?;
        let info: Self = config::parse(&text, &path.display().to_string())?;
        if info.format > FORMAT {
            let what = format!("format {} is newer than this program's {FORMAT}", info.format);
            return Err(Error::folder(path, what));
        }
        Ok(info)
    }
}

/// Opens a finished run folder: what it says about itself, and its network with the trained weights.
pub fn open_run(folder: &Path, context: &Context) -> Result<(RunInfo, Network)> {
    let files = Folder(folder.to_path_buf());
    if !files.config().is_file() {
        return Err(Error::folder(folder, "is no run folder: it has no config.toml"));
    }
    let info = RunInfo::read(&files.config())?;
    if !files.student().is_file() {
        return Err(Error::folder(folder, "has no student.safetensors: the run is not finished"));
    }
    let network = Network::new(context, &info.run.student, info.classes.len(), Rng::new(0))?;
    network.load(context, &files.student())?;
    Ok((info, network))
}
