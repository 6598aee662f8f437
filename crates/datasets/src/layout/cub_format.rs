//! Text files of CUB-200-2011 and NABirds: images, labels and split keyed by image id.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::folders_in;
use super::text_lists::{is_below, pairs, wrong_line};
use crate::diagnostics::{Diagnostics, Kind};
use crate::file_dataset::{Annotation, FileSample, Splits};
use crate::{Error, Result};

/// One image of the lists.
pub(crate) struct Row {
    /// Its path below `images/`.
    pub(crate) path: String,
    /// Class id in the list.
    pub(crate) class: u32,
    pub(crate) trains: bool,
    /// `image_class_labels.txt:LINE`, for messages.
    pub(crate) location: String,
}

/// Reads `images.txt`, `image_class_labels.txt` and `train_test_split.txt`, in the order of
/// `images.txt`. `folder_id` returns the class id in the name of a file's folder, if it has one.
pub(crate) fn rows(
    root: &Path,
    folder_id: impl Fn(&str) -> Option<u32>,
    diagnostics: &mut Diagnostics,
) -> Result<Vec<Row>> {
    let word = |text: &str| (!text.is_empty()).then(|| text.to_string());
    let images = root.join("images.txt");
    let listed = pairs(&images, "an image id and a path below images/", diagnostics, |id, path| {
        word(id).zip(is_below(path).then(|| path.to_string()))
    })?;
    let labels_path = root.join("image_class_labels.txt");
    let labels = by_id(
        &labels_path,
        pairs(&labels_path, "an image id and a class id", diagnostics, |id, class| {
            word(id).zip(class.parse::<u32>().ok())
        })?,
        diagnostics,
    )?;
    let split_path = root.join("train_test_split.txt");
    let split = by_id(
        &split_path,
        pairs(&split_path, "an image id and 1 (train) or 0 (test)", diagnostics, |id, side| {
            word(id).zip(match side {
                "1" => Some(true),
                "0" => Some(false),
                _ => None,
            })
        })?,
        diagnostics,
    )?;
    let listed = by_id(&images, listed, diagnostics)?;
    let mut rows: Vec<(usize, Row)> = Vec::with_capacity(listed.len());
    for (id, (line, path)) in &listed {
        let missing =
            |list: &Path| wrong_line(&images, *line, id, &format!("an id that {} has too", list.display()));
        let Some((label_line, class)) = labels.get(id) else {
            diagnostics.error(Kind::ListLine, missing(&labels_path))?;
            continue;
        };
        let Some((_, trains)) = split.get(id) else {
            diagnostics.error(Kind::ListLine, missing(&split_path))?;
            continue;
        };
        let location = format!("{}:{label_line}", labels_path.display());
        rows.push((*line, Row { path: path.clone(), class: *class, trains: *trains, location }));
    }
    for (list, ids) in [
        (&labels_path, labels.iter().map(|(id, (line, _))| (id, *line)).collect::<Vec<_>>()),
        (&split_path, split.iter().map(|(id, (line, _))| (id, *line)).collect()),
    ] {
        let mut unknown: Vec<_> = ids.into_iter().filter(|(id, _)| !listed.contains_key(*id)).collect();
        unknown.sort_by_key(|(_, line)| *line);
        for (id, line) in unknown {
            diagnostics.error(Kind::ListLine, wrong_line(list, line, id, "an id of images.txt"))?;
        }
    }
    rows.sort_by_key(|(line, _)| *line);
    let mut rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    // A constant offset of all labels is reported once, not per line.
    let off = |row: &Row| Some(i64::from(row.class) - i64::from(folder_id(&row.path)?));
    if let Some(shift) = rows.first().and_then(off)
        && shift != 0
        && rows.len() > 1
        && rows.iter().all(|row| off(row) == Some(shift))
    {
        diagnostics.error(
            Kind::LabelRange,
            Error::WrongLabel {
                location: labels_path.display().to_string(),
                found: format!("an offset of {shift:+} in every class id"),
                expected: "the class ids in the folder names".to_string(),
            },
        )?;
        for row in &mut rows {
            row.class = folder_id(&row.path).unwrap_or(row.class);
        }
    }
    Ok(rows)
}

/// Maps each id to its line and value; a duplicate id is an error.
fn by_id<T>(
    path: &Path,
    all: Vec<(usize, (String, T))>,
    diagnostics: &mut Diagnostics,
) -> Result<HashMap<String, (usize, T)>> {
    let mut map = HashMap::with_capacity(all.len());
    for (line, (id, value)) in all {
        if map.contains_key(&id) {
            diagnostics
                .error(Kind::ListLine, wrong_line(path, line, &id, "an id that is not listed above"))?;
            continue;
        }
        map.insert(id, (line, value));
    }
    Ok(map)
}

/// Reads `classes.txt`: names by class id.
pub(crate) fn classes(root: &Path, diagnostics: &mut Diagnostics) -> Result<BTreeMap<u32, String>> {
    let path = root.join("classes.txt");
    let listed = pairs(&path, "a class id and a name", diagnostics, |id, name| {
        Some((id.parse::<u32>().ok()?, name.to_string()))
    })?;
    let mut all = BTreeMap::new();
    for (line, (id, name)) in listed {
        if all.insert(id, name).is_some() {
            diagnostics.error(
                Kind::ListLine,
                wrong_line(&path, line, &id.to_string(), "an id that is not listed above"),
            )?;
        }
    }
    Ok(all)
}

/// Returns the samples and the official splits `train` and `test`. `index` maps a class id to a
/// class index; `folder_id` is that of [`rows`].
pub(crate) fn samples(
    root: &Path,
    rows: &[Row],
    index: impl Fn(u32) -> Option<u32>,
    folder_id: impl Fn(&str) -> Option<u32>,
    diagnostics: &mut Diagnostics,
) -> Result<(Vec<FileSample>, Splits)> {
    let mut samples = Vec::with_capacity(rows.len());
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for row in rows {
        let path = root.join("images").join(&row.path);
        let Some(class) = index(row.class) else {
            diagnostics.error(
                Kind::LabelRange,
                Error::WrongLabel {
                    location: row.location.clone(),
                    found: row.class.to_string(),
                    expected: "a class id of classes.txt".to_string(),
                },
            )?;
            continue;
        };
        if let Some(expected) = folder_id(&row.path)
            && expected != row.class
        {
            diagnostics.error(
                Kind::Mislabeled,
                Error::WrongLabel {
                    location: row.location.clone(),
                    found: row.class.to_string(),
                    expected: format!("{expected} according to the folder of {}", row.path),
                },
            )?;
        }
        let Ok(meta) = std::fs::metadata(&path) else {
            let listed_by = root.join("images.txt").display().to_string();
            diagnostics.error(Kind::MissingFile, Error::MissingFile { path, listed_by })?;
            continue;
        };
        (if row.trains { &mut train } else { &mut test }).push(samples.len());
        samples.push(FileSample {
            key: row.path.clone(),
            path,
            annotation: Annotation::Class(class),
            bytes: meta.len(),
        });
    }
    Ok((samples, vec![("train".to_string(), train), ("test".to_string(), test)]))
}

/// Reports the folders below `images/` that are not `known` as warnings with a message.
pub(crate) fn extra_folders(
    root: &Path,
    known: impl Fn(&str) -> bool,
    message: &str,
    diagnostics: &mut Diagnostics,
) -> Result<()> {
    let images = root.join("images");
    if !images.is_dir() {
        return Ok(());
    }
    for folder in folders_in(&images)?.into_iter().filter(|folder| !known(folder)) {
        diagnostics.warning(Kind::ExtraClass, format!("{}: {message}", images.join(folder).display()));
    }
    Ok(())
}
