//! AID (Xia et al., IEEE TGRS 2017) in its official layout.

use stillhouse_core::registry::Entry;

use crate::class_folders::{ClassFolders, is_numbered};
use crate::listing;
use crate::set::Set;

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "aid",
        summary: "AID: 30 classes, 10,000 aerial images of 600x600 in all",
        source: "Xia et al., IEEE TGRS 55(7), 2017, arXiv 1608.05167; manifest datasets/aid.toml",
        defaults: || String::from("# the folder AID lies under a data root\n"),
        build: |request| Ok(listing::open(request, |r, n| FOLDERS.read(r, n))?),
    },
    read: |request, notes| FOLDERS.read(request, notes),
};

/// The classes in the order of their indices.
pub(crate) const CLASSES: [&str; 30] = [
    "Airport",
    "BareLand",
    "BaseballField",
    "Beach",
    "Bridge",
    "Center",
    "Church",
    "Commercial",
    "DenseResidential",
    "Desert",
    "Farmland",
    "Forest",
    "Industrial",
    "Meadow",
    "MediumResidential",
    "Mountain",
    "Park",
    "Parking",
    "Playground",
    "Pond",
    "Port",
    "RailwayStation",
    "Resort",
    "River",
    "School",
    "SparseResidential",
    "Square",
    "Stadium",
    "StorageTanks",
    "Viaduct",
];

const FOLDERS: ClassFolders = ClassFolders {
    title: "AID",
    folders: &["AID"],
    classes: &CLASSES,
    hint: "unpack it and set STILLHOUSE_DATA to the folder that holds AID, or \
           `stillhouse data fetch aid` (sources: datasets/aid.toml)",
    accept: |class, stem| {
        let name = class.to_lowercase();
        if is_numbered(stem, &format!("{name}_"), 1, 3) {
            Ok(())
        } else {
            Err(format!("{name}_1.jpg, {name}_2.jpg, ..."))
        }
    },
};
