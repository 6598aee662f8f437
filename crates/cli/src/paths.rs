//! Search paths of data, weights and runs.

use std::path::{Path, PathBuf};

/// Search paths, in order.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// Folders of datasets.
    pub(crate) data: Vec<PathBuf>,
    /// Folders of pretrained weights.
    pub(crate) weights: Vec<PathBuf>,
    /// Folder of runs.
    pub(crate) runs: PathBuf,
}

impl Paths {
    /// Reads the environment, then adds the current folder; `runs` is the value of `--runs`.
    pub(crate) fn new(runs: Option<&Path>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let roots = |name: &str, below: &str| -> Vec<PathBuf> {
            variable(name).into_iter().chain([PathBuf::from(below)]).collect()
        };
        // The cache of the Hugging Face tools.
        let hub = variable("HF_HUB_CACHE")
            .or_else(|| Some(variable("HF_HOME")?.join("hub")))
            .or_else(|| Some(variable("HOME")?.join(".cache/huggingface/hub")));
        let mut weights = roots("STILLHOUSE_WEIGHTS", "weights");
        weights.extend(hub.filter(|cache| cache.is_dir()));
        let runs = runs.map(Path::to_path_buf).or_else(|| variable("STILLHOUSE_RUNS"));
        Self {
            data: roots("STILLHOUSE_DATA", "datasets"),
            weights,
            runs: runs.unwrap_or_else(|| PathBuf::from("runs")),
        }
    }
}

/// Returns the free bytes of the disk for a path, which need not exist.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|p| p.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(existing).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_free_space_for_a_missing_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(&folder.path().join("not/there/yet")).unwrap() > 0);
    }
}
