//! Datasets of files: a list of samples that are read on demand.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use stillhouse_core::data::{Dataset, DatasetInfo, IGNORE_INDEX, Label, Mask, Sample, Task};
use stillhouse_core::registry::DatasetRequest;

use crate::diagnostics::Diagnostics;
use crate::manifest::Manifest;
use crate::{Error, Result, decode};

/// One image file.
#[derive(Debug)]
pub(crate) struct FileSample {
    /// Its path below the dataset's root, with `/`.
    pub(crate) key: String,
    pub(crate) path: PathBuf,
    pub(crate) annotation: Annotation,
    /// Size of the image file.
    pub(crate) bytes: u64,
}

/// Label of an image, or its mask file.
#[derive(Debug)]
pub(crate) enum Annotation {
    Class(u32),
    Mask { path: PathBuf, bytes: u64 },
}

/// Mapping from stored mask values to classes.
#[derive(Debug, Clone)]
pub(crate) struct LabelMapping {
    /// Class of each stored value, 255 for "ignore"; `None` for invalid values.
    table: [Option<u8>; 256],
    /// Description of the valid values.
    expected: String,
}

impl LabelMapping {
    /// Maps the values 0 to `classes - 1` to themselves and `ignored` to 255.
    pub(crate) fn direct(classes: usize, ignored: u8) -> Self {
        let last = classes.saturating_sub(1);
        let mut table = [None; 256];
        for (value, class) in table.iter_mut().enumerate().take(classes.min(255)) {
            *class = Some(value as u8);
        }
        table[usize::from(ignored)] = Some(IGNORE_INDEX);
        Self { table, expected: format!("0 to {last}, or {ignored} for ignore") }
    }

    /// Maps values by a table.
    pub(crate) fn from_table(table: [Option<u8>; 256], expected: &str) -> Self {
        Self { table, expected: expected.to_string() }
    }

    /// Maps the stored values of a mask to classes.
    pub(crate) fn apply(&self, mut mask: Mask, path: &Path) -> Result<Mask> {
        for (i, label) in mask.labels.iter_mut().enumerate() {
            match self.table[usize::from(*label)] {
                Some(class) => *label = class,
                None => {
                    return Err(Error::MaskValue {
                        path: path.to_path_buf(),
                        value: *label,
                        x: i % mask.width,
                        y: i / mask.width,
                        expected: self.expected.clone(),
                    });
                }
            }
        }
        Ok(mask)
    }
}

/// Official splits by name, each in ascending order.
pub(crate) type Splits = Vec<(String, Vec<usize>)>;

/// A dataset of files.
#[derive(Debug)]
pub(crate) struct FileDataset {
    pub(crate) info: DatasetInfo,
    pub(crate) samples: Vec<FileSample>,
    pub(crate) masks: Option<LabelMapping>,
    pub(crate) splits: Splits,
}

impl FileDataset {
    /// Creates a dataset without masks and official splits.
    pub(crate) fn new(
        request: &DatasetRequest,
        title: &str,
        task: Task,
        classes: Vec<String>,
        samples: Vec<FileSample>,
    ) -> Self {
        let info = DatasetInfo {
            name: request.name.clone(),
            title: format!("{title}, {} images", samples.len()),
            classes,
            task,
            synthetic: false,
        };
        Self { info, samples, masks: None, splits: Vec::new() }
    }

    pub(crate) fn with_splits(self, splits: Splits) -> Self {
        Self { splits, ..self }
    }

    pub(crate) fn with_masks(self, rule: LabelMapping) -> Self {
        Self { masks: Some(rule), ..self }
    }

    /// Reads the label of an image of a given size.
    pub(crate) fn label(&self, sample: &FileSample, size: (usize, usize)) -> Result<Label> {
        let (path, rule) = match (&sample.annotation, &self.masks) {
            (Annotation::Class(class), _) => return Ok(Label::Class(*class)),
            (Annotation::Mask { path, .. }, rule) => (path, rule),
        };
        let mask = read_mask(path)?;
        let found = (mask.width, mask.height);
        if found != size {
            return Err(Error::MaskSize { path: path.clone(), found, expected: size });
        }
        Ok(Label::Mask(match rule {
            Some(rule) => rule.apply(mask, path)?,
            None => mask,
        }))
    }

    /// Leaves out samples that cannot be decoded, with a warning each.
    fn without_unreadable(mut self) -> Self {
        let errors: Vec<Option<String>> = (0..self.samples.len())
            .into_par_iter()
            .map(|index| self.sample(index).err().map(|e| e.to_string()))
            .collect();
        let skipped = errors.iter().flatten().count();
        for error in errors.iter().flatten() {
            tracing::warn!("skipped: {error}");
        }
        let mut new_indices: Vec<Option<usize>> = vec![None; errors.len()];
        let mut kept = 0;
        for (new_index, error) in new_indices.iter_mut().zip(&errors) {
            if error.is_none() {
                *new_index = Some(kept);
                kept += 1;
            }
        }
        let mut index = 0;
        self.samples.retain(|_| {
            index += 1;
            errors[index - 1].is_none()
        });
        for (_, list) in &mut self.splits {
            *list = list.iter().filter_map(|&i| new_indices[i]).collect();
        }
        if skipped > 0 {
            self.info.title.push_str(&format!(", {skipped} unreadable images skipped"));
        }
        self
    }
}

impl Dataset for FileDataset {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn key(&self, index: usize) -> String {
        self.samples[index].key.clone()
    }

    fn class(&self, index: usize) -> Option<u32> {
        match self.samples[index].annotation {
            Annotation::Class(class) => Some(class),
            Annotation::Mask { .. } => None,
        }
    }

    fn sample(&self, index: usize) -> stillhouse_core::Result<Sample> {
        let sample = &self.samples[index];
        let image = decode::read_image(&sample.path)?;
        let label = self.label(sample, (image.width, image.height))?;
        Ok(Sample { id: index as u64, image, label })
    }

    fn fingerprint(&self) -> stillhouse_core::Result<String> {
        let mut text = format!("{}\n", self.info.name);
        for sample in &self.samples {
            text.push_str(&format!("{}\t{}", sample.key, sample.bytes));
            match &sample.annotation {
                Annotation::Mask { bytes, .. } => text.push_str(&format!("\tmask {bytes}")),
                // With official lists, the keys do not determine the labels.
                Annotation::Class(class) if !self.splits.is_empty() => text.push_str(&format!("\t{class}")),
                Annotation::Class(_) => {}
            }
            text.push('\n');
        }
        for (name, list) in &self.splits {
            text.push_str(&format!("{name}\t{list:?}\n"));
        }
        Ok(stillhouse_core::fs::sha256(text.as_bytes()))
    }

    fn official_split(&self, name: &str) -> Option<Vec<usize>> {
        self.splits.iter().find(|(n, _)| n == name).map(|(_, list)| list.clone())
    }
}

/// Reads a mask file: an indexed image, or a `.mat` file of the augmented VOC labels.
pub(crate) fn read_mask(path: &Path) -> Result<Mask> {
    if path.extension().is_some_and(|e| e == "mat") {
        crate::catalog::voc::read_mat(path)
    } else {
        decode::read_mask(path)
    }
}

/// Lists the samples of a dataset and reports problems as diagnostics.
pub(crate) type ReadFiles = fn(&DatasetRequest, &mut Diagnostics) -> Result<FileDataset>;

/// Opens a dataset. With the setting `on_error = "error"` (default) the first problem is an error;
/// with `"skip"` invalid samples are left out with a warning, which decodes every image once.
pub(crate) fn open(request: &DatasetRequest, read: ReadFiles) -> Result<Arc<dyn Dataset>> {
    let mut request = request.clone();
    let policy = request.options.remove("on_error");
    match policy.as_ref().map_or(Some("error"), toml::Value::as_str) {
        Some("error") => Ok(Arc::new(read(&request, &mut Diagnostics::strict())?)),
        Some("skip") => {
            let mut diagnostics = Diagnostics::collecting();
            let listing = read(&request, &mut diagnostics)?;
            for finding in &diagnostics.found {
                tracing::warn!("skipped: {}", finding.message);
            }
            Ok(Arc::new(listing.without_unreadable()))
        }
        _ => Err(Error::setting(
            format!("dataset `{}`", request.name),
            format!("expected on_error = \"error\" or \"skip\", found {}", policy.unwrap_or(false.into())),
        )),
    }
}

/// Returns the folder of a dataset: the given path or a root, or one of `folders` below them that
/// contains `marker`. The folder `.` stands for the root itself.
///
/// # Errors
///
/// None of them exists.
pub(crate) fn find_root(
    request: &DatasetRequest,
    manifest: &Manifest,
    folders: &[&str],
    marker: &str,
) -> Result<PathBuf> {
    let roots: Vec<&PathBuf> = request.path.iter().chain(&request.roots).collect();
    for root in &roots {
        for name in folders {
            let folder = if *name == "." { (*root).clone() } else { root.join(name) };
            if folder.join(marker).exists() {
                return Ok(folder);
            }
        }
    }
    let searched: Vec<String> = roots.iter().map(|p| p.display().to_string()).collect();
    let official = folders.first().copied().unwrap_or_default();
    Err(Error::MissingDataset {
        dataset: manifest.title.clone(),
        expected: if marker.is_empty() { official.to_string() } else { format!("{official} with {marker}") },
        searched: if searched.is_empty() { "no data root".to_string() } else { searched.join(", ") },
        hint: manifest.hint(),
    })
}

/// Rejects unknown settings.
pub(crate) fn only_options(request: &DatasetRequest, known: &[&str]) -> Result<()> {
    match request.options.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let known: Vec<String> = known.iter().chain(&["on_error"]).map(|k| format!("`{k}`")).collect();
            Err(Error::setting(
                format!("dataset `{}`", request.name),
                format!("unknown setting `{key}`: expected {}", known.join(", ")),
            ))
        }
    }
}

/// Formats a list of names for a message.
pub(crate) fn shortened(names: &[String]) -> String {
    match names.len() {
        0 => "none".to_string(),
        n if n <= 30 => format!("{n} ({})", names.join(", ")),
        n => format!("{n} ({}, ...)", names[..30].join(", ")),
    }
}
