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
pub(crate) const SETS: [Set; 11] = [
    crate::ucm::SET,
    crate::rsc11::SET,
    crate::rsscn7::SET,
    crate::aid::SET,
    crate::cub::SET,
    crate::nabirds::SET,
    crate::dogs::SET,
    crate::cityscapes::SET,
    crate::voc::SET,
    crate::camvid::SET,
    crate::folder::SET,
];
