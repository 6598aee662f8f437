//! Checkpoints of a run folder: whole or not there, the newest two kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use stillhouse_core::Error as CoreError;
use stillhouse_core::data::Position;

use stillhouse_runs::{Best, CHECKPOINT_PREFIX, Seconds, tensors};

use crate::{Error, Result};

const FORMAT: u32 = 1;
const KEPT: usize = 2;

/// Where a run stands, besides its tensors. Random numbers are addressed by step and need nothing
/// else.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Steps done.
    pub(crate) step: u64,
    /// Where the loader goes on.
    pub(crate) position: Position,
    /// Sums over the epoch under way, for its log line.
    pub(crate) tally: Tally,
    /// The best tested epoch so far.
    pub(crate) best: Option<Best>,
    /// Time taken so far.
    pub(crate) seconds: Seconds,
    /// What it was computed on, in turn: a run may be continued elsewhere, and its result says so.
    #[serde(default)]
    pub(crate) computed_on: Vec<String>,
}

/// Sums over the steps of an epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) steps: u64,
    pub(crate) images: u64,
    pub(crate) right: Option<u64>,
    #[serde(with = "bits")]
    pub(crate) total: f64,
    #[serde(with = "bits_by_name")]
    pub(crate) terms: BTreeMap<String, f64>,
    /// Weights in force at the last step.
    #[serde(with = "bits_by_name")]
    pub(crate) weights: BTreeMap<String, f64>,
    /// Terms, as `<method>.<term>`, that had a value and a weight other than 0 at some step.
    pub(crate) ran: BTreeSet<String>,
    /// Connectors' weights that had a gradient other than 0 at some step.
    pub(crate) moved: BTreeSet<String>,
    pub(crate) seconds: f64,
    /// Seconds of them in which training waited for the loader.
    #[serde(default)]
    pub(crate) waited: f64,
}

/// Sums go through the file bit by bit: a decimal that is read back may differ in its last digit.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

mod bits_by_name {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &BTreeMap<String, f64>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(value.iter().map(|(name, sum)| (name, sum.to_bits())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
        let sums = BTreeMap::<String, u64>::deserialize(from)?;
        Ok(sums.into_iter().map(|(name, sum)| (name, f64::from_bits(sum))).collect())
    }
}

/// `state.json`: the state and the hashes of its neighbors.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    format: u32,
    /// Hash of the run that it belongs to.
    run: String,
    state: State,
    sha256: BTreeMap<String, String>,
}

/// Named tensors.
pub(crate) type Tensors = Vec<(String, Tensor)>;

/// A file and what makes its tensors, one file at a time: they may be copies of the parameters.
pub(crate) type Group<'a> = (&'static str, &'a dyn Fn() -> Result<Tensors>);

/// Writes tensors to a file; gives its SHA-256.
type Write = fn(&Path, &[(String, Tensor)]) -> stillhouse_runs::Result<String>;

/// A checkpoint that was read back.
pub(crate) struct Loaded {
    pub(crate) state: State,
    groups: BTreeMap<String, Tensors>,
}

impl Loaded {
    /// The tensors of one file.
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
    /// Those of the run with that hash.
    pub(crate) fn new(folder: &Path, run: &str) -> Self {
        Self { folder: folder.to_path_buf(), run: run.to_string(), write: tensors::write }
    }

    /// Writes `checkpoint-<step>/` and removes all but the newest two. After an error the earlier
    /// checkpoints are as they were.
    pub(crate) fn save(&self, state: &State, groups: &[Group]) -> Result<()> {
        let target = self.folder.join(format!("{CHECKPOINT_PREFIX}{}", state.step));
        let part = self.folder.join(format!("{CHECKPOINT_PREFIX}{}.part", state.step));
        if let Err(source) = self.save_to(&part, &target, state, groups) {
            let _ = fs::remove_dir_all(&part);
            let (folder, step, source) = (self.folder.clone(), state.step, Box::new(source));
            return Err(Error::Checkpoint { folder, step, bytes: bytes(groups)?, source });
        }
        for (_, old) in self.list()?.into_iter().rev().skip(KEPT) {
            remove(&old)?;
        }
        Ok(())
    }

    fn save_to(&self, part: &Path, target: &Path, state: &State, groups: &[Group]) -> Result<()> {
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
        // Only one that was found invalid, or one of the very same values, can be there already.
        remove(target)?;
        Ok(stillhouse_core::fs::rename_folder(part, target)?)
    }

    /// The newest valid checkpoint. Others that are newer are removed, as are unfinished files; each
    /// removal is told.
    pub(crate) fn load(&self, device: &Device, tell: &mut dyn FnMut(String)) -> Result<Option<Loaded>> {
        self.clean()?;
        for (step, path) in self.list()?.into_iter().rev() {
            match self.read(step, &path, device) {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(e) => {
                    tell(format!("{}: not a valid checkpoint, removed: {e}", path.display()));
                    remove(&path)?;
                }
            }
        }
        Ok(None)
    }

    /// Removes all checkpoints and unfinished files: the run is finished.
    pub(crate) fn clear(&self) -> Result<()> {
        self.clean()?;
        for (_, path) in self.list()? {
            remove(&path)?;
        }
        Ok(())
    }

    /// Removes what a killed process left unfinished.
    fn clean(&self) -> Result<()> {
        for path in entries(&self.folder)? {
            if path.extension().is_some_and(|e| e == "part") {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Steps and folders, oldest first.
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
            let what = format!("format {} of step {}", file.format, file.state.step);
            return Err(Error::folder(
                &state,
                format!("expected format {FORMAT} of step {step}, found {what}"),
            ));
        }
        if file.run != self.run {
            return Err(Error::folder(&state, format!("of run {}, expected {}", file.run, self.run)));
        }
        let mut groups = BTreeMap::new();
        for (name, expected) in &file.sha256 {
            let path = path.join(name);
            let found = stillhouse_core::fs::sha256_file(&path)?;
            if found != *expected {
                return Err(Error::folder(&path, format!("sha256 is {found}, expected {expected}")));
            }
            let group = name.trim_end_matches(".safetensors").to_string();
            groups.insert(group, tensors::read(&path, device)?);
        }
        Ok(Loaded { state: file.state, groups })
    }
}

/// What the values take on the disk.
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
        let state = State { step, ..State::default() };
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
    fn the_newest_two_are_kept_and_any_damage_falls_back() {
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
            let mut told = Vec::new();
            let loaded = checkpoints.load(&Device::Cpu, &mut |t| told.push(t)).unwrap().unwrap();
            assert_eq!(loaded.state.step, 20);
            assert!(told.len() == 1 && told[0].contains("checkpoint-30"), "{told:?}");
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
    fn a_checkpoint_of_another_run_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        save(&Checkpoints::new(folder.path(), "other"), 5).unwrap();
        assert_eq!(newest(&Checkpoints::new(folder.path(), "run")), None);
    }
}
