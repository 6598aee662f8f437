//! The text files of CUB-200-2011 and NABirds: images, labels and split by image id.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::class_folders::folders_in;
use crate::findings::{Kind, Notes};
use crate::listing::{Item, Splits, Truth};
use crate::lists::{is_below, pairs, wrong_line};
use crate::{Error, Result};

/// One image of the lists.
pub(crate) struct Row {
    /// Its path below `images/`.
    pub(crate) path: String,
    /// The class id as it stands in the list.
    pub(crate) class: u32,
    pub(crate) trains: bool,
    /// `image_class_labels.txt:LINE`, for messages.
    pub(crate) place: String,
}

/// Reads `images.txt`, `image_class_labels.txt` and `train_test_split.txt`; rows stand in the order
/// of `images.txt`. `folder_id` gives the class id that a file's folder stands for, if it says.
pub(crate) fn rows(
    root: &Path,
    folder_id: impl Fn(&str) -> Option<u32>,
    notes: &mut Notes,
) -> Result<Vec<Row>> {
    let word = |text: &str| (!text.is_empty()).then(|| text.to_string());
    let images = root.join("images.txt");
    let listed = pairs(&images, "an image id and a path below images/", notes, |id, path| {
        word(id).zip(is_below(path).then(|| path.to_string()))
    })?;
    let labels_path = root.join("image_class_labels.txt");
    let labels = by_id(
        &labels_path,
        pairs(&labels_path, "an image id and a class id", notes, |id, class| {
            word(id).zip(class.parse::<u32>().ok())
        })?,
        notes,
    )?;
    let split_path = root.join("train_test_split.txt");
    let split = by_id(
        &split_path,
        pairs(&split_path, "an image id and 1 (train) or 0 (test)", notes, |id, side| {
            word(id).zip(match side {
                "1" => Some(true),
                "0" => Some(false),
                _ => None,
            })
        })?,
        notes,
    )?;
    let listed = by_id(&images, listed, notes)?;
    let mut rows: Vec<(usize, Row)> = Vec::with_capacity(listed.len());
    for (id, (line, path)) in &listed {
        let missing =
            |list: &Path| wrong_line(&images, *line, id, &format!("an id that {} has too", list.display()));
        let Some((label_line, class)) = labels.get(id) else {
            notes.fault(Kind::ListLine, missing(&labels_path))?;
            continue;
        };
        let Some((_, trains)) = split.get(id) else {
            notes.fault(Kind::ListLine, missing(&split_path))?;
            continue;
        };
        let place = format!("{}:{label_line}", labels_path.display());
        rows.push((*line, Row { path: path.clone(), class: *class, trains: *trains, place }));
    }
    for (list, ids) in [
        (&labels_path, labels.iter().map(|(id, (line, _))| (id, *line)).collect::<Vec<_>>()),
        (&split_path, split.iter().map(|(id, (line, _))| (id, *line)).collect()),
    ] {
        let mut unknown: Vec<_> = ids.into_iter().filter(|(id, _)| !listed.contains_key(*id)).collect();
        unknown.sort_by_key(|(_, line)| *line);
        for (id, line) in unknown {
            notes.fault(Kind::ListLine, wrong_line(list, line, id, "an id of images.txt"))?;
        }
    }
    rows.sort_by_key(|(line, _)| *line);
    let mut rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    // Labels that are all off by the same number are one fault, not one a line.
    let off = |row: &Row| Some(i64::from(row.class) - i64::from(folder_id(&row.path)?));
    if let Some(shift) = rows.first().and_then(off)
        && shift != 0
        && rows.len() > 1
        && rows.iter().all(|row| off(row) == Some(shift))
    {
        notes.fault(
            Kind::LabelRange,
            Error::WrongLabel {
                place: labels_path.display().to_string(),
                found: format!("with every class id off by {shift:+}"),
                expected: "the class ids that the folders are named by".to_string(),
            },
        )?;
        for row in &mut rows {
            row.class = folder_id(&row.path).unwrap_or(row.class);
        }
    }
    Ok(rows)
}

/// An id's line and value; a repeated id is a fault.
fn by_id<T>(
    path: &Path,
    all: Vec<(usize, (String, T))>,
    notes: &mut Notes,
) -> Result<HashMap<String, (usize, T)>> {
    let mut map = HashMap::with_capacity(all.len());
    for (line, (id, value)) in all {
        if map.contains_key(&id) {
            notes.fault(Kind::ListLine, wrong_line(path, line, &id, "an id that stands once"))?;
            continue;
        }
        map.insert(id, (line, value));
    }
    Ok(map)
}

/// `classes.txt`: class ids and names, in the order of ids.
pub(crate) fn classes(root: &Path, notes: &mut Notes) -> Result<BTreeMap<u32, String>> {
    let path = root.join("classes.txt");
    let listed = pairs(&path, "a class id and a name", notes, |id, name| {
        Some((id.parse::<u32>().ok()?, name.to_string()))
    })?;
    let mut all = BTreeMap::new();
    for (line, (id, name)) in listed {
        if all.insert(id, name).is_some() {
            notes
                .fault(Kind::ListLine, wrong_line(&path, line, &id.to_string(), "an id that stands once"))?;
        }
    }
    Ok(all)
}

/// Items and the official lists `train` and `test`. `index` gives the index of a class id;
/// `folder_id` is that of [`rows`].
pub(crate) fn items(
    root: &Path,
    rows: &[Row],
    index: impl Fn(u32) -> Option<u32>,
    folder_id: impl Fn(&str) -> Option<u32>,
    notes: &mut Notes,
) -> Result<(Vec<Item>, Splits)> {
    let mut items = Vec::with_capacity(rows.len());
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for row in rows {
        let path = root.join("images").join(&row.path);
        let Some(class) = index(row.class) else {
            notes.fault(
                Kind::LabelRange,
                Error::WrongLabel {
                    place: row.place.clone(),
                    found: row.class.to_string(),
                    expected: "a class id of classes.txt".to_string(),
                },
            )?;
            continue;
        };
        if let Some(expected) = folder_id(&row.path)
            && expected != row.class
        {
            notes.fault(
                Kind::Mislabeled,
                Error::WrongLabel {
                    place: row.place.clone(),
                    found: row.class.to_string(),
                    expected: format!("{expected}, as the folder of {} says", row.path),
                },
            )?;
        }
        let Ok(meta) = std::fs::metadata(&path) else {
            let named_by = root.join("images.txt").display().to_string();
            notes.fault(Kind::MissingFile, Error::MissingFile { path, named_by })?;
            continue;
        };
        (if row.trains { &mut train } else { &mut test }).push(items.len());
        items.push(Item { key: row.path.clone(), path, truth: Truth::Class(class), bytes: meta.len() });
    }
    Ok((items, vec![("train".to_string(), train), ("test".to_string(), test)]))
}

/// Remarks the folders below `images/` that are not `known`, with the reason `why`.
pub(crate) fn extra_folders(
    root: &Path,
    known: impl Fn(&str) -> bool,
    why: &str,
    notes: &mut Notes,
) -> Result<()> {
    let images = root.join("images");
    if !images.is_dir() {
        return Ok(());
    }
    for folder in folders_in(&images)?.into_iter().filter(|folder| !known(folder)) {
        notes.remark(Kind::ExtraClass, format!("{}: {why}", images.join(folder).display()));
    }
    Ok(())
}
