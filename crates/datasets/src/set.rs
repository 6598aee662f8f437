//! All datasets, each with how it is registered and how its files are read.

use stillhouse_core::registry::{DatasetBuild, Entry};

use crate::listing::Read;

/// A dataset of files.
#[derive(Clone, Copy)]
pub(crate) struct Set {
    pub(crate) entry: Entry<DatasetBuild>,
    pub(crate) read: Read,
}

/// In the order of listing.
pub(crate) const ENTRIES: [Set; 11] = [
    crate::ucm::ENTRY,
    crate::rsc11::ENTRY,
    crate::rsscn7::ENTRY,
    crate::aid::ENTRY,
    crate::cub::ENTRY,
    crate::nabirds::ENTRY,
    crate::dogs::ENTRY,
    crate::cityscapes::ENTRY,
    crate::voc::ENTRY,
    crate::camvid::ENTRY,
    crate::folder::ENTRY,
];
