//! Stanford Dogs (Khosla et al., CVPR FGVC workshop 2011): MATLAB lists.

use std::path::Path;

use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use super::{DatasetEntry, common_defaults};
use crate::decode::mat;
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{Annotation, FileDataset, FileSample, find_root, only_options};
use crate::layout::folders_in;
use crate::layout::text_lists::is_below;
use crate::manifest::of_builtin;
use crate::{Error, Result};

pub(crate) const ENTRY: DatasetEntry = DatasetEntry { name: "dogs", read, defaults: common_defaults };

/// Length of a synset id, with which the names of folders and files start.
const SYNSET: usize = 9;

fn read(request: &DatasetRequest, diagnostics: &mut Diagnostics) -> Result<FileDataset> {
    only_options(request, &[])?;
    let manifest = of_builtin("dogs")?;
    let root = find_root(request, manifest, &["StanfordDogs", "stanford_dogs", "."], "train_list.mat")?;
    let classes = manifest.class_names();
    let class_of = |name: &str| {
        let synset = name.get(..SYNSET)?;
        classes.iter().position(|c| c.starts_with(synset))
    };
    let images = root.join("Images");
    for folder in if images.is_dir() { folders_in(&images)? } else { Vec::new() } {
        if class_of(&folder).is_none() {
            diagnostics.warning(
                Kind::ExtraClass,
                format!(
                    "{}: ignored folder: expected one of the 120 breeds",
                    root.join("Images").join(folder).display()
                ),
            );
        }
    }
    let mut samples: Vec<FileSample> = Vec::new();
    let mut splits = Vec::new();
    for name in ["train", "test"] {
        let path = root.join(format!("{name}_list.mat"));
        let mut list = Vec::new();
        for (file, label) in entries(&path, class_of, diagnostics)? {
            let location = format!("{}: {file}", path.display());
            let Some(class) = (1..=classes.len() as i64).contains(&label).then(|| label as u32 - 1) else {
                diagnostics.error(
                    Kind::LabelRange,
                    Error::WrongLabel {
                        location,
                        found: label.to_string(),
                        expected: format!("1 to {}", classes.len()),
                    },
                )?;
                continue;
            };
            // The names of both the folder and the file start with the synset.
            for part in file.split('/') {
                if class_of(part) != Some(class as usize) {
                    diagnostics.error(
                        Kind::Mislabeled,
                        Error::WrongLabel {
                            location: location.clone(),
                            found: format!("{label} ({})", classes[class as usize]),
                            expected: class_of(part).map_or_else(
                                || "a name that starts with a breed's synset".to_string(),
                                |c| format!("{} according to the name `{part}`", c + 1),
                            ),
                        },
                    )?;
                    break;
                }
            }
            let image = root.join("Images").join(&file);
            let Ok(meta) = std::fs::metadata(&image) else {
                let listed_by = path.display().to_string();
                diagnostics.error(Kind::MissingFile, Error::MissingFile { path: image, listed_by })?;
                continue;
            };
            list.push(samples.len());
            samples.push(FileSample {
                key: file,
                path: image,
                annotation: Annotation::Class(class),
                bytes: meta.len(),
            });
        }
        splits.push((name.to_string(), list));
    }
    Ok(FileDataset::new(request, &manifest.title, Task::Classification, classes, samples).with_splits(splits))
}

/// Reads the files and labels of a list. A constant offset of all labels is reported once.
fn entries(
    path: &Path,
    class_of: impl Fn(&str) -> Option<usize>,
    diagnostics: &mut Diagnostics,
) -> Result<Vec<(String, i64)>> {
    let invalid =
        |message: String| Error::Decode { name: path.display().to_string(), format: "MAT", message };
    let arrays = mat::read_file(path)?;
    let named = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, v)| v);
    let found: Vec<&str> = arrays.iter().map(|(n, _)| n.as_str()).collect();
    let (Some(files), Some(labels)) =
        (named("file_list").and_then(mat::Value::texts), named("labels").and_then(mat::Value::numbers))
    else {
        return Err(invalid(format!(
            "expected a cell array `file_list` of names and numbers `labels`, found {found:?}"
        )));
    };
    if files.len() != labels.len() {
        return Err(invalid(format!("{} names in file_list and {} labels", files.len(), labels.len())));
    }
    let mut all = Vec::with_capacity(files.len());
    for (location, (file, label)) in files.into_iter().zip(labels).enumerate() {
        if !is_below(file) || label.fract() != 0.0 || label.abs() > 1e9 {
            let found = format!("{file} with label {label}");
            let expected = "a path below Images and an integer label".to_string();
            let error = Error::ListLine { path: path.to_path_buf(), line: location + 1, found, expected };
            diagnostics.error(Kind::ListLine, error)?;
            continue;
        }
        all.push((file.to_string(), *label as i64));
    }
    let off = |(file, label): &(String, i64)| Some(label - 1 - class_of(file)? as i64);
    if let Some(shift) = all.first().and_then(off)
        && shift != 0
        && all.len() > 1
        && all.iter().all(|entry| off(entry) == Some(shift))
    {
        diagnostics.error(
            Kind::LabelRange,
            Error::WrongLabel {
                location: path.display().to_string(),
                found: format!("an offset of {shift:+} in every label"),
                expected: "labels from 1 to 120 in the order of the synsets".to_string(),
            },
        )?;
        for (_, label) in &mut all {
            *label -= shift;
        }
    }
    Ok(all)
}
