//! RSC11 (Zhao, Tang and Huo, J. Applied Remote Sensing 2016) in its official layout.

use stillhouse_core::registry::Entry;

use crate::class_folders::ClassFolders;
use crate::listing;
use crate::set::Set;

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "rsc11",
        summary: "RSC11: 11 classes, 1,232 aerial images of 512x512 in all",
        source: "Zhao, Tang and Huo, J. Applied Remote Sensing 10(3), 2016; manifest datasets/rsc11.toml",
        defaults: || String::from("# the folder RS_C11_Database lies under a data root\n"),
        build: |request| Ok(listing::open(request, |r, n| FOLDERS.read(r, n))?),
    },
    read: |request, notes| FOLDERS.read(request, notes),
};

/// The classes in the order of their indices, which is that of the paper's tables.
pub(crate) const CLASSES: [&str; 11] = [
    "dense forest",
    "grassland",
    "harbor",
    "high buildings",
    "low buildings",
    "overpass",
    "railway",
    "residential area",
    "roads",
    "sparse forest",
    "storage tanks",
];

const FOLDERS: ClassFolders = ClassFolders {
    title: "RSC11",
    folders: &["RS_C11_Database", "RSC11", "RS_C11"],
    classes: &CLASSES,
    hint: "unpack it and set STILLHOUSE_DATA to the folder that holds RS_C11_Database, or \
           `stillhouse data fetch rsc11` (sources: datasets/rsc11.toml)",
    // How the official files are named inside of their folders is not laid down anywhere.
    accept: |_, _| Ok(()),
};
