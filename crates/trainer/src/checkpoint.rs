//! Checkpoints of a run folder: written atomically, the newest two are kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::Error as CoreError;
use stillhouse_core::data::Position;
use stillhouse_runs::{Best, CHECKPOINT_PREFIX, Seconds, tensors};

use crate::epoch_stats::EpochStats;
use crate::{Error, Result};

const FORMAT: u32 = 1;
/// Checkpoints that are kept.
const MAX_CHECKPOINTS: usize = 2;

/// State of a run besides its tensors. Random numbers are addressed by step and need no state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainingState {
    /// Steps done.
    pub(crate) step: u64,
    /// Position of the loader.
    pub(crate) position: Position,
    /// Sums over the current epoch.
    pub(crate) stats: EpochStats,
    /// The best tested epoch so far.
    pub(crate) best: Option<Best>,
    /// Time spent so far.
    pub(crate) seconds: Seconds,
    /// Devices of the run in order: a run may be resumed on another.
    pub(crate) devices: Vec<String>,
}

/// `state.json`: the state and the hashes of the other files.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    format: u32,
    /// Hash of the run.
    run: String,
    state: TrainingState,
    sha256: BTreeMap<String, String>,
}

/// Named tensors.
pub(crate) type Tensors = Vec<(String, Tensor)>;

/// Name of a file and a function that returns its tensors. They may be copies of the parameters, so only one
/// file is in memory at a time.
pub(crate) type Group<'a> = (&'static str, &'a dyn Fn() -> Result<Tensors>);

/// Writes tensors to a file; returns its SHA-256.
type Write = fn(&Path, &[(String, Tensor)]) -> stillhouse_runs::Result<String>;

/// A loaded checkpoint.
pub(crate) struct Loaded {
    pub(crate) state: TrainingState,
    groups: BTreeMap<String, Tensors>,
}

impl Loaded {
    /// Returns the tensors of one file.
    pub(crate) fn group(&self, name: &str) -> &[(String, Tensor)] {
        self.groups.get(name).map_or(&[], Vec::as_slice)
    }
}

/// The checkpoints of one run folder.
pub(crate) struct Checkpoints {
    folder: PathBuf,
    run: String,
    write: Write,
}

impl Checkpoints {
    /// The checkpoints of the run with that hash.
    pub(crate) fn new(folder: &Path, run: &str) -> Self {
        Self { folder: folder.to_path_buf(), run: run.to_string(), write: tensors::write }
    }

    /// Writes `checkpoint-<step>/` and removes all but the newest two. On errors the earlier checkpoints stay
    /// intact.
    pub(crate) fn save(&self, state: &TrainingState, groups: &[Group]) -> Result<()> {
        let target = self.folder.join(format!("{CHECKPOINT_PREFIX}{}", state.step));
        let part = self.folder.join(format!("{CHECKPOINT_PREFIX}{}.part", state.step));
        if let Err(source) = self.save_to(&part, &target, state, groups) {
            let _ = fs::remove_dir_all(&part);
            let (folder, step, source) = (self.folder.clone(), state.step, Box::new(source));
            return Err(Error::Checkpoint { folder, step, bytes: bytes(groups)?, source });
        }
        for (_, old) in self.list()?.into_iter().rev().skip(MAX_CHECKPOINTS) {
            remove(&old)?;
        }
        Ok(())
    }

    fn save_to(&self, part: &Path, target: &Path, state: &TrainingState, groups: &[Group]) -> Result<()> {
        remove(part)?;
        fs::create_dir_all(part).map_err(CoreError::io(part))?;
        let mut sha256 = BTreeMap::new();
        for (name, tensors) in groups {
            let name = format!("{name}.safetensors");
            let hash = (self.write)(&part.join(&name), &tensors()?)?;
            sha256.insert(name, hash);
        }
        let file = StateFile { format: FORMAT, run: self.run.clone(), state: state.clone(), sha256 };
        let json = serde_json::to_vec_pretty(&file).map_err(|e| Error::folder(&self.folder, e))?;
        stillhouse_core::fs::write_atomic(&part.join("state.json"), &json)?;
        // An existing one is invalid, or has the same values.
        remove(target)?;
        Ok(stillhouse_core::fs::rename_folder(part, target)?)
    }

    /// Loads the newest valid checkpoint. Removes newer invalid ones, which `report` receives, and unfinished
    /// files.
    pub(crate) fn load(&self, device: &Device, report: &mut dyn FnMut(String)) -> Result<Option<Loaded>> {
        self.clean()?;
        for (step, path) in self.list()?.into_iter().rev() {
            match self.read(step, &path, device) {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(e) => {
                    report(format!("removed an invalid checkpoint: {}: {e}", path.display()));
                    remove(&path)?;
                }
            }
        }
        Ok(None)
    }

    /// Removes all checkpoints and unfinished files of a finished run.
    pub(crate) fn clear(&self) -> Result<()> {
        self.clean()?;
        for (_, path) in self.list()? {
            remove(&path)?;
        }
        Ok(())
    }

    /// Removes unfinished files of a killed process.
    fn clean(&self) -> Result<()> {
        for path in entries(&self.folder)? {
            if path.extension().is_some_and(|e| e == "part") {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Returns steps and folders, oldest first.
    fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut all: Vec<(u64, PathBuf)> = entries(&self.folder)?
            .into_iter()
            .filter_map(|path| {
                let step = path.file_name()?.to_str()?.strip_prefix(CHECKPOINT_PREFIX)?.parse().ok()?;
                Some((step, path))
            })
            .collect();
        all.sort();
        Ok(all)
    }

    fn read(&self, step: u64, path: &Path, device: &Device) -> Result<Loaded> {
        let state = path.join("state.json");
        let text = fs::read(&state).map_err(CoreError::io(&state))?;
        let file: StateFile = serde_json::from_slice(&text).map_err(|e| Error::folder(&state, e))?;
        if (file.format, file.state.step) != (FORMAT, step) {
            let reason = format!(
                "expected format {FORMAT} of step {step}, found format {} of step {}",
                file.format, file.state.step
            );
            return Err(Error::folder(&state, reason));
        }
        if file.run != self.run {
            return Err(Error::folder(&state, format!("expected run {}, found {}", self.run, file.run)));
        }
        let mut groups = BTreeMap::new();
        for (name, expected) in &file.sha256 {
            let path = path.join(name);
            let found = stillhouse_core::fs::sha256_file(&path)?;
            if found != *expected {
                return Err(Error::folder(&path, format!("expected SHA-256 {expected}, found {found}")));
            }
            let group = name.trim_end_matches(".safetensors").to_string();
            groups.insert(group, tensors::read(&path, device)?);
        }
        Ok(Loaded { state: file.state, groups })
    }
}

/// Returns the size of the values on disk.
fn bytes(groups: &[Group]) -> Result<u64> {
    let mut bytes = 0;
    for (_, tensors) in groups {
        bytes +=
            tensors()?.iter().map(|(_, t)| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum::<u64>();
    }
    Ok(bytes)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).map_err(CoreError::io(folder))? {
        all.push(entry.map_err(CoreError::io(folder))?.path());
    }
    Ok(all)
}

fn remove(path: &Path) -> stillhouse_core::Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(CoreError::io(path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(checkpoints: &Checkpoints, step: u64) -> Result<()> {
        let value = Tensor::new(&[step as f32, 0.1], &Device::Cpu)?;
        let state = TrainingState { step, ..TrainingState::default() };
        let student = || Ok(vec![("w".into(), value.clone())]);
        checkpoints.save(&state, &[("student", &student), ("optimizer", &|| Ok(Vec::new()))])
    }

    fn newest(checkpoints: &Checkpoints) -> Option<u64> {
        let loaded = checkpoints.load(&Device::Cpu, &mut |_| {}).unwrap()?;
        let value = loaded.group("student")[0].1.to_vec1::<f32>().unwrap();
        assert_eq!(value, [loaded.state.step as f32, 0.1]);
        Some(loaded.state.step)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = entries(folder)
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn keeps_two_and_falls_back_on_damage() {
        let variants: [fn(&Path); 6] = [
            |c| fs::remove_file(c.join("state.json")).unwrap(),
            |c| stillhouse_testkit::corruption::truncate(&c.join("state.json"), 20),
            |c| fs::remove_file(c.join("optimizer.safetensors")).unwrap(),
            |c| stillhouse_testkit::corruption::truncate(&c.join("student.safetensors"), 5),
            |c| {
                let length = fs::metadata(c.join("student.safetensors")).unwrap().len();
                stillhouse_testkit::corruption::flip_bits(&c.join("student.safetensors"), length - 1, 1);
            },
            |c| {
                let text = fs::read_to_string(c.join("state.json")).unwrap();
                fs::write(c.join("state.json"), text.replace("\"step\": 30", "\"step\": 31")).unwrap();
            },
        ];
        for damage in variants {
            let folder = tempfile::tempdir().unwrap();
            let checkpoints = Checkpoints::new(folder.path(), "run");
            assert_eq!(newest(&checkpoints), None);
            for step in [10, 9, 20, 30] {
                save(&checkpoints, step).unwrap();
            }
            assert_eq!(names(folder.path()), ["checkpoint-20", "checkpoint-30"]);
            assert_eq!(newest(&checkpoints), Some(30));
            fs::create_dir(folder.path().join("checkpoint-40.part")).unwrap();
            fs::write(folder.path().join("log.jsonl.77.part"), "half").unwrap();
            damage(&folder.path().join("checkpoint-30"));
            let mut reports = Vec::new();
            let loaded = checkpoints.load(&Device::Cpu, &mut |t| reports.push(t)).unwrap().unwrap();
            assert_eq!(loaded.state.step, 20);
            assert!(reports.len() == 1 && reports[0].contains("checkpoint-30"), "{reports:?}");
            assert_eq!(names(folder.path()), ["checkpoint-20"]);
            checkpoints.clear().unwrap();
            assert!(names(folder.path()).is_empty());
        }
    }

    #[test]
    fn a_full_disk_leaves_earlier_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::new(folder.path(), "run");
        save(&checkpoints, 1).unwrap();
        save(&checkpoints, 2).unwrap();
        checkpoints.write = |path, _| {
            Ok(stillhouse_core::fs::write_atomic_hashed(path, |file| {
                file.write_all(b"the beginning of a header")?;
                Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
            })?)
        };
        let e = save(&checkpoints, 3).unwrap_err().to_string();
        assert!(e.contains("step 3") && e.contains("intact") && e.contains("no storage space"), "{e}");
        assert_eq!(names(folder.path()), ["checkpoint-1", "checkpoint-2"]);
        assert_eq!(newest(&checkpoints), Some(2));
    }

    #[test]
    fn ignores_checkpoints_of_other_runs() {
        let folder = tempfile::tempdir().unwrap();
        save(&Checkpoints::new(folder.path(), "other"), 5).unwrap();
        assert_eq!(newest(&Checkpoints::new(folder.path(), "run")), None);
    }
}
