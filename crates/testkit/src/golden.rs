//! Golden values.
//!
//! A test checks every case of a folder by its metadata, and depends neither on the names nor on the
//! number of cases.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// One case: a JSON file, and the tensors of the safetensors file that it names.
#[derive(Debug, Clone)]
pub struct Case {
    /// Path of the JSON file; other file names are relative to its folder.
    pub path: PathBuf,
    /// Content of the JSON file.
    pub meta: Value,
    /// Tensors of the file `meta["tensors"]`; empty without one. candle has no u16: such tensors are
    /// read as u32.
    pub tensors: HashMap<String, Tensor>,
}

/// Returns the folder of a kind (`losses`, `metrics`, `models`, `transforms`) below
/// `STILLHOUSE_GOLDEN`, or else below the workspace's `tests/golden`. A relative `STILLHOUSE_GOLDEN`
/// is relative to the workspace's root.
pub fn folder(kind: &str) -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = workspace.join(golden_root().unwrap_or_else(|| "tests/golden".into()));
    assert!(root.is_dir(), "folder of golden values {} does not exist", root.display());
    root.join(kind)
}

fn golden_root() -> Option<OsString> {
    std::env::var_os("STILLHOUSE_GOLDEN").filter(|root| !root.is_empty())
}

/// Reads every `*.json` of the kind's folder, sorted by path; empty if there is no such folder.
pub fn cases(kind: &str) -> Vec<Case> {
    cases_in(&folder(kind))
}

/// Reads the cases as [`cases`] does, and panics if the folder exists without any, or if it is
/// missing from the workspace's own `tests/golden`.
pub fn require(kind: &str) -> Vec<Case> {
    let folder = folder(kind);
    let cases = cases_in(&folder);
    let absent = golden_root().is_some() && !folder.exists();
    assert!(absent || !cases.is_empty(), "{}: no cases", folder.display());
    cases
}

/// Reads every `*.json` of a folder, sorted by path; empty if there is no such folder.
pub fn cases_in(folder: &Path) -> Vec<Case> {
    if !folder.exists() {
        return Vec::new();
    }
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap_or_else(|e| panic!("{}: {e}", folder.display())).path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

/// Reads one case.
pub fn read(path: &Path) -> Case {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let meta: Value = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensors = match &meta["tensors"] {
        Value::Null => HashMap::new(),
        Value::String(name) => {
            let Value::String(sha256) = &meta["sha256"] else {
                panic!("{}: `tensors` is `{name}`, but `sha256` is missing", path.display());
            };
            tensors(&path.with_file_name(name), Some(sha256))
        }
        other => panic!("{}: `tensors` is {other}, expected a file name", path.display()),
    };
    Case { path: path.to_path_buf(), meta, tensors }
}

/// Reads all tensors of a safetensors file, and panics if its SHA-256 differs from the given one.
pub fn tensors(path: &Path, sha256: Option<&str>) -> HashMap<String, Tensor> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if let Some(want) = sha256 {
        let got: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(got, want.to_lowercase(), "{}: SHA-256", path.display());
    }
    candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Case {
    /// Returns the tensor of that name.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| {
            let mut known: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
            known.sort_unstable();
            panic!("{self}: no tensor `{name}`; known: {}", known.join(", "))
        })
    }

    /// Returns whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensor(name).dims().to_vec()
    }

    /// Returns the values of a tensor in row-major order, widened to f64.
    pub fn f64s(&self, name: &str) -> Vec<f64> {
        let tensor = self.tensor(name);
        let values = tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1());
        values.unwrap_or_else(|e| panic!("{self}: tensor `{name}`: {e}"))
    }

    /// Returns the values of an integer tensor in row-major order.
    pub fn i64s(&self, name: &str) -> Vec<i64> {
        let tensor = self.tensor(name);
        assert!(tensor.dtype().is_int(), "{self}: tensor `{name}` is {:?}, not integers", tensor.dtype());
        let values = tensor.to_dtype(DType::I64).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1());
        values.unwrap_or_else(|e| panic!("{self}: tensor `{name}`: {e}"))
    }

    /// Resolves a file name of the metadata, which is relative to the case's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.with_file_name(name)
    }
}

/// Shows the file name without folder and extension, for messages only.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path.file_stem().unwrap_or_default().to_string_lossy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corruption;

    fn write_case(folder: &Path) -> PathBuf {
        let a = Tensor::new(&[[1.5f64, f64::NAN], [3., 4.]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[1i64, -2, 3], &Device::Cpu).unwrap();
        let empty = Tensor::zeros((0, 4), DType::F64, &Device::Cpu).unwrap();
        let all = HashMap::from([("a", a), ("b", b), ("empty", empty)]);
        let file = folder.join("one.safetensors");
        candle_core::safetensors::save(&all, &file).unwrap();
        let hash: String =
            Sha256::digest(fs::read(&file).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
        let meta = serde_json::json!({"tensors": "one.safetensors", "sha256": hash, "family": "x"});
        fs::write(folder.join("one.json"), meta.to_string()).unwrap();
        fs::write(folder.join("plain.json"), "{\"kind\": \"generator\"}").unwrap();
        fs::write(folder.join("README.md"), "not a case").unwrap();
        file
    }

    #[test]
    fn reads_every_case_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(cases_in(&folder.path().join("absent")).is_empty());
        write_case(folder.path());
        let cases = cases_in(folder.path());
        assert_eq!(cases.len(), 2);
        let case = &cases[0];
        assert_eq!(case.meta["family"], "x");
        assert_eq!(case.shape("a"), [2, 2]);
        let a = case.f64s("a");
        assert!(a[1].is_nan() && (a[0], a[2], a[3]) == (1.5, 3., 4.));
        assert_eq!(case.i64s("b"), [1, -2, 3]);
        assert_eq!((case.shape("empty"), case.f64s("empty").len()), (vec![0, 4], 0));
        assert!(case.has("a") && !case.has("c"));
        assert_eq!(case.file("data/x.png"), folder.path().join("data/x.png"));
        assert!(cases[1].tensors.is_empty());
        assert_eq!(case.to_string(), "one");
    }

    #[test]
    #[should_panic(expected = "SHA-256")]
    fn rejects_changed_tensors() {
        let folder = tempfile::tempdir().unwrap();
        let file = write_case(folder.path());
        let last = fs::metadata(&file).unwrap().len() - 1;
        corruption::flip_bits(&file, last, 1);
        cases_in(folder.path());
    }

    #[test]
    #[should_panic(expected = "one.json")]
    fn rejects_a_truncated_case() {
        let folder = tempfile::tempdir().unwrap();
        write_case(folder.path());
        corruption::truncate(&folder.path().join("one.json"), 7);
        cases_in(folder.path());
    }

    #[test]
    #[should_panic(expected = "not integers")]
    fn rejects_floats_for_integers() {
        let folder = tempfile::tempdir().unwrap();
        write_case(folder.path());
        cases_in(folder.path())[0].i64s("a");
    }
}
