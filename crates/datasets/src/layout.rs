//! File layouts that several datasets share.

pub(crate) mod class_folders;
pub(crate) mod cub_format;
pub(crate) mod image_folder;
pub(crate) mod image_mask_pairs;
pub(crate) mod scan;
pub(crate) mod text_lists;

use std::path::Path;

use crate::{Error, Result};

/// Returns the names of the folders in a folder in byte order, without hidden ones.
pub(crate) fn folders_in(path: &Path) -> Result<Vec<String>> {
    names_in(path, true)
}

/// Returns the names of the files in a folder in byte order, without hidden ones.
pub(crate) fn files_in(path: &Path) -> Result<Vec<String>> {
    names_in(path, false)
}

fn names_in(path: &Path, folders: bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() == folders {
            names.push(name);
        }
    }
    names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}
