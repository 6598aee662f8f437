//! The index of a checkpoint in several files: `{"weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Maximum size of an index in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Maximum number of shards.
const MAX_SHARDS: usize = 512;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads the names of the tensors by shard. The shards are files next to the index.
pub(super) fn read_index(path: &Path, mut file: impl Read, length: u64) -> Result<Vec<Shard>, String> {
    if length > MAX_BYTES {
        return Err(format!("JSON of {length} bytes (limit {MAX_BYTES})"));
    }
    let mut text = Vec::new();
    file.by_ref().take(MAX_BYTES).read_to_end(&mut text).map_err(|e| e.to_string())?;
    let Ok(Index { weight_map }) = serde_json::from_slice(&text) else {
        return Err(describe_json(&text));
    };
    let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        // Separators would lead out of the folder.
        let is_name = Path::new(shard).file_name().is_some_and(|name| name.to_str() == Some(shard));
        if !is_name {
            return Err(format!("index of shards: expected file names, found `{}`", shard.escape_debug()));
        }
        shards.entry(shard).or_default().insert(tensor);
    }
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(format!("index of {} shards (expected 1 to {MAX_SHARDS})", shards.len()));
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let missing: Vec<&str> = shards.keys().filter(|name| !folder.join(name).is_file()).copied().collect();
    if let [first, ..] = missing.as_slice() {
        return Err(format!(
            "the index of {} shards, {} of which are missing next to it, such as `{first}`; get them too",
            shards.len(),
            missing.len()
        ));
    }
    let shard = |(name, tensors): (&str, BTreeSet<&str>)| Shard {
        path: folder.join(name),
        tensors: tensors.into_iter().map(ToString::to_string).collect(),
    };
    Ok(shards.into_iter().map(shard).collect())
}

/// One of several files of a checkpoint.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    /// Names of its tensors.
    pub(super) tensors: Vec<String>,
}

/// Describes JSON that is not an index.
fn describe_json(text: &[u8]) -> String {
    let keys: Vec<String> = match serde_json::from_slice(text) {
        Ok(serde_json::Value::Object(all)) => all.keys().take(4).map(|k| format!("`{k}`")).collect(),
        Ok(_) => Vec::new(),
        Err(_) => return "a text file in braces, not weights".into(),
    };
    match keys.is_empty() {
        true => "JSON, not weights".into(),
        false => format!("JSON with {}, not weights", keys.join(", ")),
    }
}
