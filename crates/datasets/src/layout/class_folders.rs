//! Datasets with one folder of images per class, as their manifest describes them.

use std::fs;
use std::path::{Path, PathBuf};

use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use crate::catalog::manifest_of;
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{Annotation, FileDataset, FileSample, find_root, only_options, shortened};
use crate::layout::folders_in;
use crate::manifest::Manifest;
use crate::{Error, Result};

/// Extensions of image files, in any case. The format is detected by content.
pub(crate) const EXTENSIONS: [&str; 5] = ["jpg", "jpeg", "png", "tif", "tiff"];

/// Reads class folders. A folder matches a class regardless of case, spaces, `_` and `-`.
pub(crate) fn read(request: &DatasetRequest, diagnostics: &mut Diagnostics) -> Result<FileDataset> {
    let manifest = manifest_of(request)?;
    only_options(request, &[])?;
    let class_of = |folder: &str| {
        let name = simplified(folder);
        manifest.classes.iter().position(|c| simplified(&c.name) == name)
    };
    let path = class_root(request, &manifest, class_of)?;
    let found = folders_in(&path)?;
    let mut samples = Vec::new();
    for (index, class) in manifest.classes.iter().enumerate() {
        let Some(folder) = found.iter().find(|f| class_of(f) == Some(index)) else {
            diagnostics.error(
                Kind::MissingClass,
                Error::MissingClass {
                    path: path.clone(),
                    class: class.name.clone(),
                    expected: manifest.classes.len(),
                    found: shortened(&found),
                },
            )?;
            continue;
        };
        let check_name = |stem: &str| match &manifest.file_pattern {
            Some(pattern) if !pattern.matches(&class.name, stem) => Err(pattern.expected(&class.name)),
            _ => Ok(()),
        };
        samples.extend(class_samples(&path.join(folder), folder, index as u32, check_name, diagnostics)?);
    }
    for extra in found.iter().filter(|f| class_of(f).is_none()) {
        diagnostics.warning(
            Kind::ExtraClass,
            format!(
                "{}: ignored folder: expected one of the {} classes",
                path.join(extra).display(),
                manifest.classes.len()
            ),
        );
    }
    let classes = manifest.class_names();
    Ok(FileDataset::new(request, &manifest.title, Task::Classification, classes, samples))
}

/// Finds the folder of the class folders. A root may also be that folder itself, or contain it as
/// `Images`: then it has at least half of the classes.
fn class_root(
    request: &DatasetRequest,
    manifest: &Manifest,
    class_of: impl Fn(&str) -> Option<usize>,
) -> Result<PathBuf> {
    let folders: Vec<&str> = manifest.folders.iter().map(String::as_str).collect();
    find_root(request, manifest, &folders, "").or_else(|error| {
        let has_classes = |path: &PathBuf| {
            folders_in(path).is_ok_and(|names| {
                2 * names.iter().filter(|n| class_of(n).is_some()).count() >= manifest.classes.len()
            })
        };
        let candidates = request.path.iter().chain(&request.roots);
        candidates.flat_map(|p| [p.clone(), p.join("Images")]).find(has_classes).ok_or(error)
    })
}

/// Returns a name without case, spaces, `_` and `-`.
pub(crate) fn simplified(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, ' ' | '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Returns the images of one class folder in byte order of their names. `check_name` returns the
/// expectation for a name without extension that it rejects, which is an error.
pub(crate) fn class_samples(
    folder: &Path,
    name: &str,
    class: u32,
    check_name: impl Fn(&str) -> std::result::Result<(), String>,
    diagnostics: &mut Diagnostics,
) -> Result<Vec<FileSample>> {
    let mut samples = Vec::new();
    let mut rejected = Vec::new();
    let mut others = 0;
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some((stem, extension)) = path.file_stem().zip(path.extension()) else {
            others += 1;
            continue;
        };
        let (stem, extension) = (stem.to_string_lossy(), extension.to_string_lossy().to_lowercase());
        if stem.starts_with('.') || !EXTENSIONS.contains(&extension.as_str()) {
            others += 1;
            continue;
        }
        if let Err(expected) = check_name(&stem) {
            rejected.push(Error::UnexpectedFile { path, class: name.to_string(), expected });
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let key = format!("{name}/{file}");
        let bytes = fs::metadata(&path).map_err(Error::io(&path))?.len();
        samples.push(FileSample { key, path, annotation: Annotation::Class(class), bytes });
    }
    rejected.sort_by_key(ToString::to_string);
    for error in rejected {
        diagnostics.error(Kind::Mislabeled, error)?;
    }
    if samples.is_empty() {
        diagnostics.error(
            Kind::MissingClass,
            Error::EmptyClass {
                path: folder.to_path_buf(),
                class: name.to_string(),
                extensions: EXTENSIONS.join(", "),
                found: others,
            },
        )?;
    }
    samples.sort_by(|a, b| a.key.as_bytes().cmp(b.key.as_bytes()));
    Ok(samples)
}
