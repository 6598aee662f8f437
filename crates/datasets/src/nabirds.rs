//! NABirds (Van Horn et al., CVPR 2015) in its official layout: text files by image id, class ids
//! with gaps.

use std::collections::BTreeSet;

use stillhouse_core::data::{DatasetInfo, Task};
use stillhouse_core::registry::{DatasetRequest, Entry};

use crate::findings::{Kind, Notes};
use crate::listing::{Listing, find, only_options};
use crate::set::Set;
use crate::{Error, Result, id_lists, listing};

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "nabirds",
        summary: "NABirds: 555 bird categories, 23,929 training and 24,633 test images",
        source: "Van Horn et al., CVPR 2015; manifest datasets/nabirds.toml",
        defaults: || {
            String::from(
                "# the folder nabirds lies under a data root; it has an official split\n\
                 # (split = \"official\")\n",
            )
        },
        build: |request| Ok(listing::open(request, read)?),
    },
    read,
};

fn read(request: &DatasetRequest, notes: &mut Notes) -> Result<Listing> {
    only_options(request, &[])?;
    let root = find(
        request,
        "NABirds",
        &["nabirds", "NABirds", "."],
        "images.txt",
        "register at https://dl.allaboutbirds.org/nabirds, accept the terms, unpack the archive and set \
         STILLHOUSE_DATA to the folder that holds nabirds",
    )?;
    let names = id_lists::classes(&root, notes)?;
    let rows = id_lists::rows(&root, folder_id, notes)?;
    // classes.txt names the whole hierarchy; the classes are the ids that images have, in
    // numerical order.
    let used: BTreeSet<u32> = rows.iter().map(|r| r.class).collect();
    let mut classes = Vec::with_capacity(used.len());
    for id in &used {
        if !names.contains_key(id) {
            notes.fault(
                Kind::LabelRange,
                Error::WrongLabel {
                    place: root.join("image_class_labels.txt").display().to_string(),
                    found: id.to_string(),
                    expected: "a class id of classes.txt".to_string(),
                },
            )?;
        }
        // Names repeat in the hierarchy, so the id stays with them.
        classes.push(names.get(id).map_or_else(|| id.to_string(), |name| format!("{id} {name}")));
    }
    let ids: Vec<u32> = used.into_iter().collect();
    let index = |id: u32| ids.binary_search(&id).ok().map(|i| i as u32);
    let (items, splits) = id_lists::items(&root, &rows, index, folder_id, notes)?;
    let is_used = |folder: &str| folder.parse().is_ok_and(|id: u32| ids.binary_search(&id).is_ok());
    id_lists::extra_folders(&root, is_used, "a folder that no listed image lies in", notes)?;
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("NABirds, {} images", items.len()),
        classes,
        task: Task::Classification,
        synthetic: false,
    };
    Ok(Listing { info, items, masks: None, splits })
}

/// The class id that a folder is named: `0817/...` is 817.
fn folder_id(path: &str) -> Option<u32> {
    path.split_once('/').and_then(|(id, _)| id.parse().ok())
}
