//! Images with masks beside them, named by lists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::findings::{Kind, Notes};
use crate::listing::{Item, Splits, Truth};
use crate::{Error, Result};

/// Gathers pairs and the official lists that they stand in.
pub(crate) struct Pairs {
    pub(crate) items: Vec<Item>,
    pub(crate) splits: Splits,
}

impl Pairs {
    pub(crate) fn new() -> Self {
        Self { items: Vec::new(), splits: Vec::new() }
    }

    /// Adds the pairs of one list: key, image, mask. A file that is not there is a fault, and so is
    /// a key that stands twice in the list.
    pub(crate) fn add(
        &mut self,
        split: &str,
        list: &Path,
        pairs: impl IntoIterator<Item = (usize, String, PathBuf, PathBuf)>,
        notes: &mut Notes,
    ) -> Result<()> {
        let mut indices = Vec::new();
        let mut seen = BTreeSet::new();
        for (line, key, path, mask) in pairs {
            if !seen.insert(key.clone()) {
                let error = crate::lists::wrong_line(list, line, &key, "a name that stands once");
                notes.fault(Kind::ListLine, error)?;
                continue;
            }
            let mut sizes = [0; 2];
            let mut there = true;
            for (file, size) in [&path, &mask].into_iter().zip(&mut sizes) {
                match std::fs::metadata(file) {
                    Ok(meta) => *size = meta.len(),
                    Err(_) => {
                        let named_by = format!("{}:{line}", list.display());
                        notes
                            .fault(Kind::MissingFile, Error::MissingFile { path: file.clone(), named_by })?;
                        there = false;
                    }
                }
            }
            if there {
                indices.push(self.items.len());
                let truth = Truth::Mask { path: mask, bytes: sizes[1] };
                self.items.push(Item { key, path, truth, bytes: sizes[0] });
            }
        }
        self.splits.push((split.to_string(), indices));
        Ok(())
    }
}
