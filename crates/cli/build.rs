//! Records the revision that the binary is built from, and embeds the repository's experiments.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The repository's experiments and papers.
const EXPERIMENTS: &str = "../../experiments";
/// Measured tables in [`EXPERIMENTS`], which are not experiments.
const RESULTS: &str = "results";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    // The log of HEAD grows with every commit; a source package without git has none.
    let log = Path::new("../../.git/logs/HEAD");
    if log.exists() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    let revision = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|out| out.status.success())
        .and_then(|out| String::from_utf8(out.stdout).ok())
        .map_or_else(|| "unknown".to_string(), |text| text.trim().to_string());
    println!("cargo::rustc-env=STILLHOUSE_REVISION={revision}");
    embed_experiments()
}

/// Writes a slice of (path below `experiments/`, text) for `include!`.
fn embed_experiments() -> io::Result<()> {
    let root = fs::canonicalize(EXPERIMENTS)?;
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    files.sort();
    let mut code = String::from("&[\n");
    for file in files {
        let Ok(below) = file.strip_prefix(&root) else { continue };
        let name = below.to_string_lossy().replace('\\', "/");
        let _ = writeln!(code, "    ({name:?}, include_str!({:?})),", file.display().to_string());
    }
    code.push_str("]\n");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    fs::write(out.join("experiments.rs"), code)
}

/// Collects the TOML files of a folder and of its subfolders.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    println!("cargo::rerun-if-changed={}", folder.display());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != RESULTS) {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    Ok(())
}
