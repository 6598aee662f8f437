//! Datasets with one folder of images per class, as their manifest describes them.

use std::path::{Path, PathBuf};

use stillhouse_core::data::Task;
use stillhouse_core::registry::DatasetRequest;

use crate::catalog::manifest_of;
use crate::diagnostics::{Diagnostics, Kind, LeftOut};
use crate::file_dataset::{Annotation, FileDataset, FileSample, find_root, only_options, shortened};
use crate::layout::folders_in;
use crate::layout::scan::{Folder, scan};
use crate::manifest::Manifest;
use crate::{Error, Result};

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
    let mut folders = Vec::new();
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
        folders.push((index, class, scan(&path.join(folder))?));
    }
    let left_out: Vec<LeftOut> = folders.iter().flat_map(|(_, _, f)| f.all_left_out().cloned()).collect();
    diagnostics.left_out(&path, &left_out)?;
    let mut samples = Vec::new();
    for (index, class, folder) in &folders {
        let check_name = |stem: &str| match &manifest.file_pattern {
            Some(pattern) if !pattern.matches(&class.name, stem) => Err(pattern.expected(&class.name)),
            _ => Ok(()),
        };
        samples.extend(class_samples(folder, &folder.name, *index as u32, check_name, diagnostics)?);
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

/// Returns the images of one class folder in byte order of their paths, which follow `prefix` in their
/// keys. `check_name` returns the expectation for a name without extension that it rejects, which is an
/// error.
pub(crate) fn class_samples(
    folder: &Folder,
    prefix: &str,
    class: u32,
    check_name: impl Fn(&str) -> std::result::Result<(), String>,
    diagnostics: &mut Diagnostics,
) -> Result<Vec<FileSample>> {
    let mut samples = Vec::new();
    for image in folder.all_images() {
        let path = image.path.clone();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        if let Err(expected) = check_name(&stem) {
            let class = folder.name.clone();
            diagnostics
                .error(Kind::Mislabeled, Error::UnexpectedFile { path: path.clone(), class, expected })?;
            continue;
        }
        let key = format!("{prefix}/{}", relative(&folder.path, &path));
        samples.push(FileSample { key, path, annotation: Annotation::Class(class), bytes: image.bytes });
    }
    if samples.is_empty() {
        diagnostics.fatal(
            Kind::MissingClass,
            Error::EmptyClass {
                path: folder.path.clone(),
                class: folder.name.clone(),
                found: folder.all_left_out().count(),
            },
        )?;
    }
    samples.sort_by(|a, b| a.key.as_bytes().cmp(b.key.as_bytes()));
    Ok(samples)
}

/// Returns a path below a folder, with `/`.
pub(crate) fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}
