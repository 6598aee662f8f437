//! RSSCN7 (Zou et al., IEEE GRSL 2015) in its official layout.

use stillhouse_core::registry::Entry;

use crate::class_folders::{ClassFolders, is_numbered};
use crate::listing;
use crate::set::Set;

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "rsscn7",
        summary: "RSSCN7: 7 classes of 400 aerial images at four scales, 400x400",
        source: "Zou, Ni, Zhang and Wang, IEEE GRSL 12(11), 2015; manifest datasets/rsscn7.toml",
        defaults: || String::from("# the folder RSSCN7 lies under a data root\n"),
        build: |request| Ok(listing::open(request, |r, n| FOLDERS.read(r, n))?),
    },
    read: |request, notes| FOLDERS.read(request, notes),
};

/// The classes in the order of their indices.
pub(crate) const CLASSES: [&str; 7] =
    ["aGrass", "bField", "cIndustry", "dRiverLake", "eForest", "fResident", "gParking"];

const FOLDERS: ClassFolders = ClassFolders {
    title: "RSSCN7",
    folders: &["RSSCN7", "RSSCN7-master"],
    classes: &CLASSES,
    hint: "set STILLHOUSE_DATA to the folder that holds RSSCN7, or `stillhouse data fetch rsscn7` \
           (sources: datasets/rsscn7.toml)",
    accept: |class, stem| {
        let letter = &class[..1];
        if is_numbered(stem, letter, 3, 3) {
            Ok(())
        } else {
            Err(format!("{letter}001.jpg to {letter}400.jpg"))
        }
    },
};
