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
    pub synthetic: bool,
    /// Training images.
    pub train_images: u64,
    /// Test images.
    pub test_images: u64,
    /// Side of the training images in pixels; rows where `image_width` is given.
    pub image_size: u64,
    /// Columns, where they are no squares.
    #[serde(default)]
    pub image_width: Option<u64>,
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
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TeacherFacts {
    /// Registry name.
    pub model: String,
    /// Its folder below the folder of teachers.
    pub cell: String,
    /// `scratch`, or the weights' name.
    pub init: String,
    /// Its epochs.
    pub epochs: u64,
    /// Its test images right; none for label masks.
    pub right: Option<u64>,
    /// Its test images.
    pub tested: u64,
    /// Figures of the metrics of its test.
    #[serde(default)]
    pub scores: BTreeMap<String, Option<f64>>,
}

impl TeacherFacts {
    /// Share of test images classified rightly, or mean IoU, in percent.
    pub fn percent(&self) -> Option<f64> {
        match self.right {
            Some(right) => Some(100.0 * right as f64 / self.tested.max(1) as f64),
            None => mean_iou(&self.scores),
        }
    }
}

impl Facts {
    /// `64`, or `512x1024` where rows and columns differ.
    pub fn size(&self) -> String {
        size_words(self.image_size, self.image_width)
    }
}

/// `64`, or `512x1024`: rows and columns where they differ.
pub(crate) fn size_words(height: u64, width: Option<u64>) -> String {
    match width {
        Some(width) if width != height => format!("{height}x{width}"),
        _ => height.to_string(),
    }
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

    /// What its figure is.
    pub fn measure(&self) -> Measure {
        if self.right.is_some() { Measure::Accuracy } else { Measure::MeanIou }
    }

    /// Share of test images classified rightly, or mean IoU of label masks, in percent; none if neither
    /// was counted.
    pub fn percent(&self) -> Option<f64> {
        match self.right {
            Some(right) => Some(100.0 * right as f64 / self.tested as f64),
            None => mean_iou(&self.scores),
        }
    }

    /// IoU of each class in percent; none for a class in neither truth nor prediction. Empty where no
    /// label masks were counted.
    pub fn class_iou(&self) -> Vec<Option<f64>> {
        let scores = (0..).map_while(|class| self.scores.get(&format!("iou.{class}")));
        scores.map(|score| score.map(|v| 100.0 * v)).collect()
    }
}

/// Mean IoU in percent among the figures of a test of label masks.
pub(crate) fn mean_iou(scores: &BTreeMap<String, Option<f64>>) -> Option<f64> {
    scores.get("miou").copied().flatten().map(|v| 100.0 * v)
}

/// What a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum Measure {
    /// Part of the test images classified rightly.
    #[default]
    #[serde(rename = "accuracy")]
    Accuracy,
    /// Mean intersection over union of label masks, from one confusion matrix over all pixels of the
    /// test images.
    #[serde(rename = "mean IoU")]
    MeanIou,
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Accuracy => "accuracy",
            Self::MeanIou => "mean IoU",
        })
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
    use stillhouse_core::fs::FolderLock;

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
        let scores = r#"{"miou": 0.5, "iou.0": 1.0, "iou.1": null, "iou.2": 0.25, "right": 3.0}"#;
        let text = format!("{{\"format\": 1, \"right\": null, \"tested\": 4, \"scores\": {scores}}}");
        fs::write(folder.join("result.json"), text).unwrap();
        let masks = RunResult::read(folder).unwrap().unwrap();
        assert_eq!((masks.percent(), masks.measure()), (Some(50.0), Measure::MeanIou));
        assert_eq!(masks.class_iou(), [Some(100.0), None, Some(25.0)]);
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
