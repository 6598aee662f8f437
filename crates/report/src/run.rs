//! What a run folder tells.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where a run, or all runs of a table's cell, stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Finished.
    #[serde(rename = "done")]
    Done,
    /// Stopped by an error.
    #[serde(rename = "failed")]
    Failed,
    /// A process is at it.
    #[serde(rename = "running")]
    Running,
    /// Not begun, or interrupted.
    #[serde(rename = "pending")]
    Pending,
    /// The method does not exist in this program yet.
    #[serde(rename = "not built")]
    NotBuilt,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Running => "running",
            Self::Pending => "pending",
            Self::NotBuilt => "not built",
        })
    }
}

/// Newest version of `result.json` that is understood.
const FORMAT: u32 = 1;

/// The part of a `result.json` that reports read. What an older program did not write is empty.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RunResult {
    /// Version of the file.
    pub format: u32,
    /// Test images that the network of the last epoch classifies right; none for label masks.
    pub right: Option<u64>,
    /// Test images.
    pub tested: u64,
    /// Figures of the metrics.
    #[serde(default)]
    pub scores: BTreeMap<String, Option<f64>>,
    /// The best tested epoch, which no table shows as the result.
    #[serde(default)]
    pub best: Option<Best>,
    /// Seconds taken.
    #[serde(default)]
    pub seconds: Seconds,
    /// Weights of the trained network.
    #[serde(default)]
    pub parameters: u64,
    /// Multiply-accumulates of one image.
    #[serde(default)]
    pub macs: u64,
    /// How fast the trained network classifies.
    #[serde(default)]
    pub speed: Option<Speed>,
    /// What a caption states.
    #[serde(default)]
    pub facts: Option<Facts>,
}

/// The best tested epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Best {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Test images right.
    pub right: u64,
}

/// Seconds taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct Seconds {
    /// In training steps.
    pub train: f64,
    /// In tests.
    pub test: f64,
}

/// How fast a network classifies on the machine of its run.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Speed {
    /// Milliseconds for one image alone, the median of several.
    pub latency_ms: f64,
    /// Images per second in batches of 32.
    pub images_per_second: f64,
}

/// What a run says about its data, its recipe and its machine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Facts {
    /// The dataset in words.
    pub title: String,
    /// Whether its images are procedural.
    pub embedded: bool,
    /// Training images.
    pub train_images: u64,
    /// Test images.
    pub test_images: u64,
    /// Side of the images in pixels.
    pub image_size: u64,
    /// Epochs.
    pub epochs: u64,
    /// Learning rate and schedule in words.
    pub schedule: String,
    /// Batches in words.
    pub sampler: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// `scratch`, or the weights' name.
    pub init: String,
    /// The teacher, where there is one.
    pub teacher: Option<TeacherFacts>,
    /// Version of the program.
    pub version: String,
    /// The program's revision, the processor, threads and the like.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// The teacher of a student.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TeacherFacts {
    /// Registry name.
    pub backbone: String,
    /// Its folder below the folder of teachers.
    pub cell: String,
    /// `scratch`, or the weights' name.
    pub init: String,
    /// Its epochs.
    pub epochs: u64,
    /// Its test images right.
    pub right: Option<u64>,
    /// Its test images.
    pub tested: u64,
}

impl RunResult {
    /// Reads `result.json` of a run folder; `None` if the run has not finished.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("result.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(stillhouse_core::Error::io(&path)(e).into()),
        };
        let unreadable = |message: String| Error::Unreadable { path: path.display().to_string(), message };
        let result: Self = serde_json::from_str(&text).map_err(|e| {
            unreadable(format!("not a result of this program ({e}); remove the file to run the cell again"))
        })?;
        if result.format > FORMAT {
            let what = format!("format {} is newer than this program's {FORMAT}", result.format);
            return Err(unreadable(what));
        }
        let right = result.right.unwrap_or(0);
        if right > result.tested || result.tested == 0 {
            return Err(unreadable(format!("{right} right of {} tested", result.tested)));
        }
        Ok(Some(result))
    }

    /// Share of test images classified rightly, in percent; none for label masks.
    pub fn percent(&self) -> Option<f64> {
        self.right.map(|right| 100.0 * right as f64 / self.tested as f64)
    }
}

/// The file in which a run tells why its last try failed; a new start removes it.
pub const FAILURE: &str = "failure.txt";

/// Where the run of a folder stands.
pub fn state(folder: &Path) -> State {
    if folder.join("result.json").is_file() {
        State::Done
    } else if is_locked(folder) {
        State::Running
    } else if folder.join(FAILURE).is_file() {
        State::Failed
    } else {
        State::Pending
    }
}

/// Whether a process holds the folder's lock.
fn is_locked(folder: &Path) -> bool {
    // A shared lock, held for an instant: two reports do not disturb each other.
    File::open(folder.join("lock"))
        .is_ok_and(|f| matches!(f.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use stillhouse_core::files::FolderLock;

    use super::*;

    #[test]
    fn states_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert_eq!(state(folder), State::Pending);
        assert_eq!(state(&folder.join("nowhere")), State::Pending);
        let lock = FolderLock::take(folder).unwrap();
        assert_eq!(state(folder), State::Running);
        drop(lock);
        assert_eq!(state(folder), State::Pending);
        fs::write(folder.join(FAILURE), "the loss became NaN").unwrap();
        assert_eq!(state(folder), State::Failed);
        fs::write(folder.join("result.json"), "{\"format\": 1, \"right\": 3, \"tested\": 4, \"other\": {}}")
            .unwrap();
        assert_eq!(state(folder), State::Done);
        assert_eq!(RunResult::read(folder).unwrap().unwrap().percent(), Some(75.0));
        fs::write(folder.join("result.json"), "{\"format\": 1, \"right\": null, \"tested\": 4}").unwrap();
        assert_eq!(RunResult::read(folder).unwrap().unwrap().percent(), None);
    }

    #[test]
    fn bad_results_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RunResult::read(folder.path()).unwrap(), None);
        for text in [
            "{",
            "{}",
            "{\"format\": 1, \"right\": 5, \"tested\": 4}",
            "{\"format\": 1, \"right\": 0, \"tested\": 0}",
            "{\"format\": 9, \"right\": 3, \"tested\": 4}",
        ] {
            fs::write(folder.path().join("result.json"), text).unwrap();
            let e = RunResult::read(folder.path()).unwrap_err().to_string();
            assert!(e.contains("result.json"), "{e}");
        }
    }
}
