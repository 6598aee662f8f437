//! Where data, weights and runs are looked for.

use std::path::{Path, PathBuf};

/// Roots in the order of looking.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Folders that may hold datasets.
    pub(crate) data: Vec<PathBuf>,
    /// Folders that may hold pretrained weights.
    pub(crate) weights: Vec<PathBuf>,
    /// The folder of runs.
    pub(crate) runs: PathBuf,
}

impl Places {
    /// From the environment, then below the current folder; `runs` is the flag of that name.
    pub(crate) fn new(runs: Option<&Path>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let roots = |name: &str, below: &str| -> Vec<PathBuf> {
            variable(name).into_iter().chain([PathBuf::from(below)]).collect()
        };
        // What the hub's own tools have downloaded.
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

/// Free bytes of the disk that would hold the path, which need not exist.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let there = absolute.ancestors().find(|p| p.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(there).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_of_a_folder_to_come() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(&folder.path().join("not/there/yet")).unwrap() > 0);
    }
}
