//! Datasets of files: a list of samples that are read on demand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use stillhouse_core::data::{Dataset, DatasetInfo, IGNORE_INDEX, Label, Mask, Sample, Task, WHITE_LEVEL};
use stillhouse_core::registry::DatasetRequest;

use crate::check::mask_content;
use crate::diagnostics::{Diagnostics, examples, warn_once};
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
    pub(crate) expected: String,
    /// Whether the user named ignored values, so that many ignored pixels are intended.
    pub(crate) declares_ignored: bool,
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
        Self::from_table(table, &format!("0 to {last}, or {ignored} for ignore"))
    }

    /// Maps values by a table.
    pub(crate) fn from_table(table: [Option<u8>; 256], expected: &str) -> Self {
        Self { table, expected: expected.to_string(), declares_ignored: false }
    }

    /// Returns the class of a stored value, 255 for "ignore"; `None` for invalid values.
    pub(crate) fn class(&self, value: u8) -> Option<u8> {
        self.table[usize::from(value)]
    }

    /// Iterates over the stored values of a class.
    pub(crate) fn values_of(&self, class: u8) -> impl Iterator<Item = u8> + '_ {
        (0..=255).filter(move |value| self.class(*value) == Some(class))
    }

    /// Maps the stored values of a mask to classes.
    pub(crate) fn apply(&self, mut mask: Mask, path: &Path) -> Result<Mask> {
        for (i, label) in mask.labels.iter_mut().enumerate() {
            match self.class(*label) {
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
    /// Whether the folders define the splits, so that none is drawn.
    pub(crate) has_given_split: bool,
    /// 16-bit value that becomes white.
    pub(crate) white_level: Option<u16>,
    /// Folder for messages if each class has to occur in the masks.
    pub(crate) class_check: Option<PathBuf>,
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
        Self {
            info,
            samples,
            masks: None,
            splits: Vec::new(),
            has_given_split: false,
            white_level: None,
            class_check: None,
        }
    }

    pub(crate) fn with_splits(self, splits: Splits) -> Self {
        Self { splits, ..self }
    }

    /// Requires each class to occur in the masks of the training part.
    pub(crate) fn requiring_all_classes(self, path: &Path) -> Self {
        Self { class_check: Some(path.to_path_buf()), ..self }
    }

    pub(crate) fn with_masks(self, rule: LabelMapping) -> Self {
        Self { masks: Some(rule), ..self }
    }

    /// Sets the white level: the given one, or the largest value of some images, evenly spread, if their
    /// 16-bit values leave the upper bit unused. Unreadable images are left to others.
    pub(crate) fn with_white_level(mut self, given: Option<u16>) -> Self {
        let step = self.samples.len().div_ceil(WHITE_LEVEL_SAMPLES).max(1);
        let largest = || {
            let sampled: Vec<&FileSample> = self.samples.iter().step_by(step).collect();
            let values = sampled.par_iter().filter_map(|sample| decode::max_u16(&sample.path).ok().flatten());
            values.max().filter(|value| (1..0x8000).contains(value))
        };
        self.white_level = given.or_else(largest);
        if let Some(white) = self.white_level {
            self.info.title.push_str(&format!(", 16-bit values to {white}"));
        }
        self
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

    /// Leaves out samples that cannot be decoded, with one warning.
    ///
    /// # Errors
    ///
    /// A class that has no image left.
    fn without_unreadable(mut self) -> Result<Self> {
        let classes_of = |set: &Self| (0..set.len()).filter_map(|i| set.class(i)).collect::<BTreeSet<u32>>();
        let classes = classes_of(&self);
        let errors: Vec<Option<String>> = (0..self.samples.len())
            .into_par_iter()
            .map(|index| self.sample(index).err().map(|e| e.to_string()))
            .collect();
        let messages: Vec<String> = errors.iter().flatten().cloned().collect();
        let skipped = messages.len();
        if skipped > 0 {
            warn_once(&format!(
                "{}: skipped {skipped} unreadable images: {}",
                self.info.title,
                examples(&messages)
            ));
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
        match classes.difference(&classes_of(&self)).next() {
            None => Ok(self),
            Some(&class) => Err(Error::setting(
                format!("class `{}`", self.info.classes[class as usize]),
                "none of its images can be read; replace them or remove the class",
            )),
        }
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
        let image = decode::read_image(&sample.path, self.white_level)?;
        let label = self.label(sample, (image.width, image.height))?;
        Ok(Sample { id: index as u64, image, label })
    }

    fn fingerprint(&self) -> stillhouse_core::Result<String> {
        let mut text = format!("{}\n", self.info.name);
        if let Some(white) = self.white_level {
            text.push_str(&format!("{WHITE_LEVEL}\t{white}\n"));
        }
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

    fn has_given_split(&self) -> bool {
        self.has_given_split
    }

    fn white_level(&self) -> Option<u16> {
        self.white_level
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

/// Images whose 16-bit values are looked at.
const WHITE_LEVEL_SAMPLES: usize = 64;

/// Takes the white level out of the settings of a dataset.
///
/// # Errors
/// A value that is not an integer from 1 to 65535.
pub(crate) fn take_white_level(request: &mut DatasetRequest) -> Result<Option<u16>> {
    let Some(value) = request.options.remove(WHITE_LEVEL) else { return Ok(None) };
    let level = value.as_integer().and_then(|v| u16::try_from(v).ok()).filter(|v| *v > 0);
    level.map(Some).ok_or_else(|| {
        let origin = format!("dataset `{}`", request.name);
        Error::setting(origin, format!("expected {WHITE_LEVEL} from 1 to 65535, found {value}"))
    })
}

/// Lists the samples of a dataset and reports problems as diagnostics.
pub(crate) type ReadFiles = fn(&DatasetRequest, &mut Diagnostics) -> Result<FileDataset>;

/// Opens a dataset. With the setting `on_error = "error"` (default) unusable samples are an error; with
/// `"skip"` they are left out with a warning, which decodes every image once.
pub(crate) fn open(request: &DatasetRequest, read: ReadFiles) -> Result<Arc<dyn Dataset>> {
    let mut request = request.clone();
    let policy = request.options.remove("on_error");
    let white_level = take_white_level(&mut request)?;
    let with_white_level = |set: FileDataset| set.with_white_level(white_level);
    let set = match policy.as_ref().map_or(Some("error"), toml::Value::as_str) {
        Some("error") => {
            let mut diagnostics = Diagnostics::strict();
            let set = read(&request, &mut diagnostics)?;
            diagnostics.tell();
            with_white_level(set)
        }
        Some("skip") => {
            let mut diagnostics = Diagnostics::skipping();
            let mut set = read(&request, &mut diagnostics)?;
            diagnostics.tell();
            let left_out = diagnostics.errors();
            if left_out > 0 {
                set.info.title.push_str(&format!(", {left_out} files or lines left out"));
            }
            with_white_level(set).without_unreadable()?
        }
        _ => {
            return Err(Error::setting(
                format!("dataset `{}`", request.name),
                format!(
                    "expected on_error = \"error\" or \"skip\", found {}",
                    policy.unwrap_or(false.into())
                ),
            ));
        }
    };
    mask_content::require_usable(&set)?;
    Ok(Arc::new(set))
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
            let known: Vec<String> =
                known.iter().chain(&["on_error", WHITE_LEVEL]).map(|k| format!("`{k}`")).collect();
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
