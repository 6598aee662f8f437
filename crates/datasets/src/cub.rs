//! CUB-200-2011 (Wah et al. 2011) in its official layout: text files by image id.

use std::collections::BTreeSet;

use stillhouse_core::data::{DatasetInfo, Task};
use stillhouse_core::registry::{DatasetRequest, Entry};

use crate::findings::{Kind, Notes};
use crate::listing::{Listing, find, only_options};
use crate::set::Set;
use crate::{Error, Result, id_lists, listing};

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "cub",
        summary: "CUB-200-2011: 200 bird species, 5,994 training and 5,794 test images",
        source: "Wah, Branson, Welinder, Perona and Belongie, CNS-TR-2011-001; manifest datasets/cub.toml",
        defaults: || {
            String::from(
                "# the folder CUB_200_2011 lies under a data root; it has an official split\n\
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
        "CUB-200-2011",
        &["CUB_200_2011", "."],
        "images.txt",
        "unpack CUB_200_2011.tgz and set STILLHOUSE_DATA to the folder that holds CUB_200_2011, or \
         `stillhouse data fetch cub` (sources: datasets/cub.toml)",
    )?;
    let names = id_lists::classes(&root, notes)?;
    // The ids are 1 to the number of classes; a label is the id less one.
    for (place, id) in names.keys().enumerate() {
        if *id as usize != place + 1 {
            let found = format!("the class id {id} in place {}", place + 1);
            let expected = "class ids from 1 without a gap".to_string();
            notes
                .fault(Kind::LabelRange, Error::Layout { path: root.join("classes.txt"), found, expected })?;
            break;
        }
    }
    let ids: Vec<u32> = names.keys().copied().collect();
    let index = |id: u32| ids.binary_search(&id).ok().map(|i| i as u32);
    let rows = id_lists::rows(&root, folder_id, notes)?;
    let (items, splits) = id_lists::items(&root, &rows, index, folder_id, notes)?;
    for item in &items {
        let (folder, file) = item.key.split_once('/').unwrap_or_default();
        let species = folder.split_once('.').map_or(folder, |(_, name)| name).to_lowercase();
        if !file.to_lowercase().starts_with(&species) {
            notes.fault(
                Kind::Mislabeled,
                Error::UnexpectedFile {
                    path: item.path.clone(),
                    class: folder.to_string(),
                    expected: format!("a name that begins with {species}"),
                },
            )?;
        }
    }
    let known: BTreeSet<&str> = names.values().map(String::as_str).collect();
    id_lists::extra_folders(&root, |f| known.contains(f), "a folder that classes.txt does not name", notes)?;
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("CUB-200-2011, {} images", items.len()),
        classes: names.into_values().collect(),
        task: Task::Classification,
        synthetic: false,
    };
    Ok(Listing { info, items, masks: None, splits })
}

/// The class id that a folder's name begins with: `001.Black_footed_Albatross/...` is 1.
fn folder_id(path: &str) -> Option<u32> {
    path.split_once('.').and_then(|(id, _)| id.parse().ok())
}
