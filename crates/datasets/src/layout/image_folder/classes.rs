//! Own images in class folders, with or without given parts.

use std::path::Path;

use super::names::Part;
use crate::diagnostics::{Diagnostics, Kind, LeftOut, examples};
use crate::file_dataset::{FileSample, Splits};
use crate::layout::class_folders::{class_samples, relative};
use crate::layout::scan::Folder;
use crate::{Error, Result};

/// Classes, samples and the given split, which is empty without parts.
pub(crate) type ClassSamples = (Vec<String>, Vec<FileSample>, Splits);

/// Reads one folder per class.
pub(crate) fn from_folders(root: &Folder, diagnostics: &mut Diagnostics) -> Result<ClassSamples> {
    let classes: Vec<String> = root.folders.iter().map(|f| f.name.clone()).collect();
    let mut left_out: Vec<LeftOut> = root.left_out.iter().filter(|f| f.is_error).cloned().collect();
    left_out.extend(root.folders.iter().flat_map(|f| f.all_left_out().cloned()));
    diagnostics.left_out(&root.path, &left_out)?;
    let mut samples = Vec::new();
    for (class, folder) in (0..).zip(&root.folders) {
        samples.extend(class_samples(folder, &folder.name, class, |_| Ok(()), diagnostics)?);
    }
    Ok((classes, samples, Vec::new()))
}

/// Reads parts with one folder per class each. The training part determines the classes.
pub(crate) fn from_parts(
    root: &Folder,
    parts: &[(Part, &Folder)],
    diagnostics: &mut Diagnostics,
) -> Result<ClassSamples> {
    let training = parts.iter().find(|(part, _)| *part == Part::Train).map(|(_, folder)| *folder);
    let folders = training.map(|f| f.folders.as_slice()).unwrap_or_default();
    let classes: Vec<String> = folders.iter().map(|f| f.name.clone()).collect();
    if classes.len() < 2 {
        return Err(Error::Layout {
            path: training.unwrap_or(root).path.clone(),
            found: format!("one class, `{}`", classes.join(", ")),
            expected: "one folder of images per class, of at least two classes".to_string(),
        });
    }
    let mut left_out: Vec<LeftOut> = Vec::new();
    for (_, folder) in parts {
        left_out.extend(folder.left_out.iter().filter(|f| f.is_error).cloned());
        left_out.extend(folder.folders.iter().flat_map(|f| f.all_left_out().cloned()));
    }
    diagnostics.left_out(&root.path, &left_out)?;
    let (mut samples, mut splits) = (Vec::new(), Vec::new());
    for (part, folder) in parts {
        let extra: Vec<String> = folder
            .folders_with_images()
            .iter()
            .filter(|f| !classes.contains(&f.name))
            .map(|f| format!("`{}`", f.name))
            .collect();
        if !extra.is_empty() {
            let error = Error::Layout {
                path: folder.path.clone(),
                found: format!("{} ({})", extra.len(), examples(&extra)),
                expected: "the classes of the training part only".to_string(),
            };
            diagnostics.fatal(Kind::ExtraClass, error)?;
        }
        let from = samples.len();
        let mut missing = Vec::new();
        for (class, name) in classes.iter().enumerate() {
            match folder.folders.iter().find(|f| f.name == *name) {
                Some(found) if found.has_images() || *part == Part::Train => {
                    let prefix = relative(&root.path, &found.path);
                    samples.extend(class_samples(found, &prefix, class as u32, |_| Ok(()), diagnostics)?);
                }
                _ => missing.push(format!("`{name}`")),
            }
        }
        if !missing.is_empty() {
            let names = examples(&missing);
            diagnostics.note(
                Kind::MissingClass,
                format!("{}: no image of {} classes: {names}", folder.path.display(), missing.len()),
            );
        }
        splits.push((part.split().to_string(), (from..samples.len()).collect()));
    }
    Ok((classes, samples, splits))
}

/// Returns a file's path below a folder without extension, with `/`.
pub(crate) fn below(folder: &Folder, path: &Path) -> String {
    relative(&folder.path, &path.with_extension(""))
}
