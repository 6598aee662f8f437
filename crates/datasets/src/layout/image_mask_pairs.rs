//! Image and mask pairs, named by lists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{Annotation, FileSample, Splits};
use crate::{Error, Result};

/// One pair of a list.
pub(crate) struct ListedPair {
    /// Line of the list, from 1.
    pub(crate) line: usize,
    /// Key of the sample.
    pub(crate) key: String,
    pub(crate) image: PathBuf,
    pub(crate) mask: PathBuf,
}

/// Samples of several lists, with one official split per list.
pub(crate) struct ImageMaskPairs {
    pub(crate) samples: Vec<FileSample>,
    pub(crate) splits: Splits,
}

impl ImageMaskPairs {
    pub(crate) fn new() -> Self {
        Self { samples: Vec::new(), splits: Vec::new() }
    }

    /// Adds the pairs of one list. Missing files and duplicate keys are errors.
    pub(crate) fn add(
        &mut self,
        split: &str,
        list: &Path,
        pairs: impl IntoIterator<Item = ListedPair>,
        diagnostics: &mut Diagnostics,
    ) -> Result<()> {
        let mut indices = Vec::new();
        let mut seen = BTreeSet::new();
        for ListedPair { line, key, image: path, mask } in pairs {
            if !seen.insert(key.clone()) {
                let error = crate::layout::text_lists::wrong_line(
                    list,
                    line,
                    &key,
                    "a name that is not listed above",
                );
                diagnostics.error(Kind::ListLine, error)?;
                continue;
            }
            let mut sizes = [0; 2];
            let mut exist = true;
            for (file, size) in [&path, &mask].into_iter().zip(&mut sizes) {
                match std::fs::metadata(file) {
                    Ok(meta) => *size = meta.len(),
                    Err(_) => {
                        let listed_by = format!("{}:{line}", list.display());
                        diagnostics
                            .error(Kind::MissingFile, Error::MissingFile { path: file.clone(), listed_by })?;
                        exist = false;
                    }
                }
            }
            if exist {
                indices.push(self.samples.len());
                let annotation = Annotation::Mask { path: mask, bytes: sizes[1] };
                self.samples.push(FileSample { key, path, annotation, bytes: sizes[0] });
            }
        }
        self.splits.push((split.to_string(), indices));
        Ok(())
    }
}
