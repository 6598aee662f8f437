//! CUB-200-2011 (Wah et al. 2011): text files keyed by image id.

use std::collections::BTreeSet;

use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use super::{DatasetEntry, common_defaults};
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{FileDataset, find_root, only_options};
use crate::layout::cub_format;
use crate::manifest::of_builtin;
use crate::{Error, Result};

pub(crate) const ENTRY: DatasetEntry = DatasetEntry { name: "cub", read, defaults: common_defaults };

fn read(request: &DatasetRequest, diagnostics: &mut Diagnostics) -> Result<FileDataset> {
    only_options(request, &[])?;
    let manifest = of_builtin("cub")?;
    let root = find_root(request, manifest, &["CUB_200_2011", "."], "images.txt")?;
    let names = cub_format::classes(&root, diagnostics)?;
    // Class ids are 1 to the number of classes; a label is its class id minus one.
    for (index, id) in names.keys().enumerate() {
        if *id as usize != index + 1 {
            let found = format!("class id {id} at position {}", index + 1);
            let expected = "consecutive class ids from 1".to_string();
            diagnostics
                .error(Kind::LabelRange, Error::Layout { path: root.join("classes.txt"), found, expected })?;
            break;
        }
    }
    let ids: Vec<u32> = names.keys().copied().collect();
    let index = |id: u32| ids.binary_search(&id).ok().map(|i| i as u32);
    let rows = cub_format::rows(&root, folder_id, diagnostics)?;
    let (samples, splits) = cub_format::samples(&root, &rows, index, folder_id, diagnostics)?;
    for sample in &samples {
        let (folder, file) = sample.key.split_once('/').unwrap_or_default();
        let species = folder.split_once('.').map_or(folder, |(_, name)| name).to_lowercase();
        if !file.to_lowercase().starts_with(&species) {
            diagnostics.error(
                Kind::Mislabeled,
                Error::UnexpectedFile {
                    path: sample.path.clone(),
                    class: folder.to_string(),
                    expected: format!("a name that starts with {species}"),
                },
            )?;
        }
    }
    let known: BTreeSet<&str> = names.values().map(String::as_str).collect();
    cub_format::extra_folders(&root, |f| known.contains(f), "folder not listed in classes.txt", diagnostics)?;
    let classes = names.into_values().collect();
    Ok(FileDataset::new(request, &manifest.title, Task::Classification, classes, samples).with_splits(splits))
}

/// Parses the class id of a path: `001.Black_footed_Albatross/...` is 1.
fn folder_id(path: &str) -> Option<u32> {
    path.split_once('.').and_then(|(id, _)| id.parse().ok())
}
