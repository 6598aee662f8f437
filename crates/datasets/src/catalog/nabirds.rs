//! NABirds (Van Horn et al., CVPR 2015): text files keyed by image id, class ids with gaps.

use std::collections::BTreeSet;

use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use super::{DatasetEntry, common_defaults};
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{FileDataset, find_root, only_options};
use crate::layout::cub_format;
use crate::manifest::of_builtin;
use crate::{Error, Result};

pub(crate) const ENTRY: DatasetEntry = DatasetEntry { name: "nabirds", read, defaults: common_defaults };

fn read(request: &DatasetRequest, diagnostics: &mut Diagnostics) -> Result<FileDataset> {
    only_options(request, &[])?;
    let manifest = of_builtin("nabirds")?;
    let root = find_root(request, manifest, &["nabirds", "NABirds", "."], "images.txt")?;
    let names = cub_format::classes(&root, diagnostics)?;
    let rows = cub_format::rows(&root, folder_id, diagnostics)?;
    // classes.txt lists the whole hierarchy; the classes are the ids that occur in the labels, in
    // numerical order.
    let used: BTreeSet<u32> = rows.iter().map(|r| r.class).collect();
    let mut classes = Vec::with_capacity(used.len());
    for id in &used {
        if !names.contains_key(id) {
            diagnostics.error(
                Kind::LabelRange,
                Error::WrongLabel {
                    location: root.join("image_class_labels.txt").display().to_string(),
                    found: id.to_string(),
                    expected: "a class id of classes.txt".to_string(),
                },
            )?;
        }
        // Names repeat within the hierarchy, so the id is kept.
        classes.push(names.get(id).map_or_else(|| id.to_string(), |name| format!("{id} {name}")));
    }
    let ids: Vec<u32> = used.into_iter().collect();
    let index = |id: u32| ids.binary_search(&id).ok().map(|i| i as u32);
    let (samples, splits) = cub_format::samples(&root, &rows, index, folder_id, diagnostics)?;
    let is_used = |folder: &str| folder.parse().is_ok_and(|id: u32| ids.binary_search(&id).is_ok());
    cub_format::extra_folders(&root, is_used, "folder without a listed image", diagnostics)?;
    Ok(FileDataset::new(request, &manifest.title, Task::Classification, classes, samples).with_splits(splits))
}

/// Parses the class id of a path: `0817/...` is 817.
fn folder_id(path: &str) -> Option<u32> {
    path.split_once('/').and_then(|(id, _)| id.parse().ok())
}
