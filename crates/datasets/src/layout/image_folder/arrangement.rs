//! Recognizes how the folders of own images are arranged.

use std::collections::BTreeSet;
use std::path::Path;

use super::names::{Part, Role};
use crate::layout::scan::{Folder, is_image, is_junk};
use crate::{Error, Result};

/// Arrangement of a folder of own images.
#[derive(Debug)]
pub(crate) struct Arrangement<'a> {
    /// Folder that the keys of the samples are relative to: the given one, or one below it.
    pub(crate) root: &'a Folder,
    pub(crate) content: Content<'a>,
    /// Folders and images that belong to nothing, for messages.
    pub(crate) notes: Vec<String>,
}

/// Content of the folder.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    /// One folder per class.
    Classes(&'a Folder),
    /// One folder per class in each part: a given split.
    ClassParts(Vec<(Part, &'a Folder)>),
    /// Folders of images and of masks; the parts are a given split if there are several.
    Masks(Vec<MaskFolders<'a>>),
}

/// A folder of images and the folder of their masks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaskFolders<'a> {
    pub(crate) part: Option<Part>,
    pub(crate) images: &'a Folder,
    pub(crate) masks: &'a Folder,
}

/// Recognizes the arrangement of a folder. A folder that only contains one other folder of folders stands
/// for that one, so the given folder may be one level too high.
///
/// # Errors
///
/// Fewer than two classes, parts without training images or with other classes, and arrangements that
/// can be understood in several ways; the message has the folder to give instead, if there is one.
pub(crate) fn recognize(given: &Folder) -> Result<Arrangement<'_>> {
    let mut notes = Vec::new();
    let (root, content) = recognize_below(given, &mut notes)?;
    let used = match &content {
        Content::Classes(_) => root.folders.iter().collect(),
        Content::ClassParts(parts) => parts.iter().map(|(_, folder)| *folder).collect(),
        Content::Masks(folders) => folders.iter().flat_map(|f| [f.images, f.masks]).collect::<Vec<_>>(),
    };
    let is_used = |folder: &Folder| used.iter().any(|u| u.path.starts_with(&folder.path));
    for folder in root.folders_with_images().into_iter().filter(|folder| !is_used(folder)) {
        notes.push(unused_images(folder, folder.all_images().count(), "in this folder"));
    }
    if !root.images.is_empty() {
        notes.push(unused_images(root, root.images.len(), "next to the folders"));
    }
    notes.extend(parent_note(&given.path));
    Ok(Arrangement { root, content, notes })
}

fn unused_images(folder: &Folder, images: usize, position: &str) -> String {
    format!("{}: left out {images} images {position}", folder.path.display())
}

fn recognize_below<'a>(given: &'a Folder, notes: &mut Vec<String>) -> Result<(&'a Folder, Content<'a>)> {
    let mut root = given;
    loop {
        if let Some(masks) = mask_folders(root)? {
            if masks.iter().all(|m| m.part.is_some_and(|part| part != Part::Train)) {
                return Err(no_training_part(root));
            }
            return Ok((root, Content::Masks(masks)));
        }
        match class_parts(root, notes)? {
            Parts::Given(parts) => return Ok((root, Content::ClassParts(parts))),
            Parts::OnlyTraining(folder) => {
                root = folder;
                continue;
            }
            Parts::None => {}
        }
        match root.folders_with_images()[..] {
            [only] if !only.folders_with_images().is_empty() => {
                if !root.images.is_empty() {
                    notes.push(unused_images(root, root.images.len(), "next to the folders"));
                }
                root = only;
            }
            [_] if root.folders.len() == 1 => return Err(one_class(given, root)),
            [] if root.folders.is_empty() => return Err(no_class(given, root)),
            _ => break,
        }
    }
    if let Some(copy) = nested_copy(root) {
        return Err(Error::Layout {
            path: root.path.clone(),
            found: format!("`{}`, a folder with the same class folders again", copy.name),
            expected: format!(
                "class folders once: give {} as the folder of images, or move it away",
                copy.path.display()
            ),
        });
    }
    if let Some(class) = root.folders_with_images().into_iter().find(|class| has_parts(class)) {
        return Err(Error::Layout {
            path: class.path.clone(),
            found: "a training and another part inside of a class".to_string(),
            expected: format!("the parts above the classes, such as `train/{}`", class.name),
        });
    }
    Ok((root, Content::Classes(root)))
}

/// Returns whether a folder contains `train` and another part.
fn has_parts(folder: &Folder) -> bool {
    let folders = folder.folders_with_images();
    let parts: BTreeSet<Part> =
        folders.iter().filter_map(|f| Part::of_folder(&f.name).map(|(part, _)| part)).collect();
    parts.len() > 1 && parts.contains(&Part::Train)
}

/// Follows folders that only contain one other folder of folders.
fn unwrapped(folder: &Folder) -> &Folder {
    match folder.folders_with_images()[..] {
        [only] if !only.folders_with_images().is_empty() => unwrapped(only),
        _ => folder,
    }
}

enum Parts<'a> {
    None,
    /// Training images and images to test on.
    Given(Vec<(Part, &'a Folder)>),
    /// The other parts have no labels.
    OnlyTraining(&'a Folder),
}

fn class_parts<'a>(root: &'a Folder, notes: &mut Vec<String>) -> Result<Parts<'a>> {
    let filled = root.folders_with_images();
    let named: Vec<(Part, String, &Folder)> = filled
        .iter()
        .filter_map(|folder| Part::of_folder(&folder.name).map(|(part, rest)| (part, rest, *folder)))
        .collect();
    let Some((_, rest, training)) = named.iter().find(|(part, ..)| *part == Part::Train) else {
        // A folder of one part alone is as good as any other folder.
        if named.len() > 1 && named.len() == filled.len() {
            return Err(no_training_part(root));
        }
        return Ok(Parts::None);
    };
    let training = unwrapped(training);
    let mut parts: Vec<(Part, &Folder)> = Vec::new();
    for (part, other, folder) in &named {
        if other != rest && !shares_folders(unwrapped(folder), training) {
            continue;
        }
        if let Some((_, other)) = parts.iter().find(|(known, _)| known == part) {
            return Err(Error::Layout {
                path: root.path.clone(),
                found: format!("`{}` and `{}`", other.name, folder.name),
                expected: format!("one folder for the part `{}`", part.split()),
            });
        }
        parts.push((*part, unwrapped(folder)));
    }
    if parts.len() < 2 {
        let is_part = |folder: &&&Folder| {
            !std::ptr::eq(unwrapped(folder), training) && shares_folders(unwrapped(folder), training)
        };
        return match filled.iter().find(is_part) {
            None => Ok(Parts::None),
            Some(other) => Err(Error::Layout {
                path: root.path.clone(),
                found: format!("`{}` with class folders of the training part", other.name),
                expected: "parts with usual names: rename it to `test` or `val`, or move it away".to_string(),
            }),
        };
    }
    if training.folders_with_images().is_empty() {
        return Err(Error::Layout {
            path: training.path.clone(),
            found: format!("{} images and no folder", training.images.len()),
            expected: "one folder of images per class".to_string(),
        });
    }
    for (_, folder) in parts.iter().filter(|(_, f)| f.folders_with_images().is_empty()) {
        notes.push(unused_images(folder, folder.images.len(), "without class folders"));
    }
    parts.retain(|(_, folder)| !folder.folders_with_images().is_empty());
    if parts.len() < 2 {
        return Ok(Parts::OnlyTraining(training));
    }
    parts.sort_by_key(|(part, _)| *part);
    Ok(Parts::Given(parts))
}

/// Returns whether two folders have a folder with images of the same name.
fn shares_folders(a: &Folder, b: &Folder) -> bool {
    let names = b.folders_with_images();
    a.folders_with_images().iter().any(|folder| names.iter().any(|other| other.name == folder.name))
}

/// Finds folders of images and masks: `images` and `masks`, `images/train` and `masks/train`,
/// `train/images` and `train/masks`, or `train` and `train_masks`.
fn mask_folders(root: &Folder) -> Result<Option<Vec<MaskFolders<'_>>>> {
    let filled = root.folders_with_images();
    let named: Vec<_> = filled.iter().map(|folder| (Role::of_folder(&folder.name), *folder)).collect();
    let folders = |part: Option<Part>, role: Option<Role>| -> Vec<&Folder> {
        named.iter().filter(|(name, _)| *name == (part, role)).map(|(_, folder)| *folder).collect()
    };
    let mut found = Vec::new();
    for part in [None, Some(Part::Train), Some(Part::Val), Some(Part::Test)] {
        let masks = folders(part, Some(Role::Masks));
        let mut images = folders(part, Some(Role::Images));
        if images.is_empty() && part.is_some() {
            images = folders(part, None);
        }
        match (&images[..], &masks[..]) {
            ([], _) | (_, []) => {}
            ([images], [masks]) => found.push(MaskFolders { part, images, masks }),
            _ => {
                let names: Vec<&str> = images.iter().chain(&masks).map(|f| f.name.as_str()).collect();
                return Err(Error::Layout {
                    path: root.path.clone(),
                    found: format!("the folders {}", names.join(", ")),
                    expected:
                        "one folder of images and one of masks; otherwise write lists (see docs/datasets.md)"
                            .to_string(),
                });
            }
        }
    }
    if let [MaskFolders { part: None, images, masks }] = found[..] {
        let parts = parts_below(images, masks);
        return Ok(Some(if parts.is_empty() { found } else { parts }));
    }
    if found.is_empty() {
        for (name, folder) in &named {
            if let (Some(part), None) = name
                && let Some(inner) = mask_folders(folder)?
                && let [MaskFolders { part: None, images, masks }] = inner[..]
            {
                found.push(MaskFolders { part: Some(*part), images, masks });
            }
        }
        found.sort_by_key(|m| m.part);
    }
    Ok((!found.is_empty()).then_some(found))
}

/// Pairs the parts below a folder of images and a folder of masks.
fn parts_below<'a>(images: &'a Folder, masks: &'a Folder) -> Vec<MaskFolders<'a>> {
    let part_of = |folder: &Folder| Part::of_folder(&folder.name).map(|(part, _)| part);
    let find = |folder: &'a Folder, part| folder.folders.iter().find(move |f| part_of(f) == Some(part));
    let pair = |part| {
        let (images, masks) = (find(images, part)?, find(masks, part)?);
        (images.has_images() && masks.has_images()).then_some(MaskFolders { part: Some(part), images, masks })
    };
    Part::ALL.into_iter().filter_map(pair).collect()
}

/// Finds a folder that has all class folders again: an archive that was unpacked into itself.
fn nested_copy(root: &Folder) -> Option<&Folder> {
    let names = |folder: &'_ Folder| -> BTreeSet<String> {
        folder.folders_with_images().iter().map(|f| f.name.clone()).collect()
    };
    let all = names(root);
    root.folders.iter().find(|folder| {
        let mut others = all.clone();
        others.remove(&folder.name);
        others.len() > 1 && names(folder) == others
    })
}

/// Explains that the given folder is a part of a dataset with other parts.
fn parent_note(given: &Path) -> Option<String> {
    let given = std::path::absolute(given).ok()?;
    let part_of = |name: &str| Part::of_folder(name).map(|(part, _)| part);
    let own = part_of(given.file_name()?.to_str()?)?;
    let parent = given.parent()?;
    let others =
        folder_names(parent).into_iter().filter(|name| part_of(name).is_some_and(|part| part != own));
    let others: Vec<String> = others.map(|name| format!("`{name}`")).collect();
    (!others.is_empty()).then(|| {
        format!(
            "{}: only this part is used; {} has {} too: give that folder to use its split",
            given.display(),
            parent.display(),
            others.join(" and ")
        )
    })
}

fn folder_names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    folders.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !is_junk(name)).collect()
}

fn no_training_part(root: &Folder) -> Error {
    let names: Vec<String> = root.folders_with_images().iter().map(|f| format!("`{}`", f.name)).collect();
    Error::Layout {
        path: root.path.clone(),
        found: names.join(", "),
        expected: "a folder `train` next to `test` or `val`".to_string(),
    }
}

fn one_class(given: &Folder, root: &Folder) -> Error {
    let names: Vec<&str> = root.folders.iter().map(|f| f.name.as_str()).collect();
    let found = format!("one class, `{}`", names.join(", "));
    let expected = "one folder of images per class, of at least two classes".to_string() + &class_hint(given);
    Error::Layout { path: root.path.clone(), found, expected }
}

fn no_class(given: &Folder, root: &Folder) -> Error {
    let found = match root.images.len() {
        0 => "no folder".to_string(),
        n => format!("{n} images and no folder"),
    };
    let expected = "one folder of images per class".to_string() + &class_hint(given);
    Error::Layout { path: root.path.clone(), found, expected }
}

/// Names the parent of a folder of images, if its folders look like classes.
fn class_hint(given: &Folder) -> String {
    let path = std::path::absolute(&given.path).ok();
    let Some(parent) = path.as_deref().and_then(Path::parent).filter(|_| !given.images.is_empty()) else {
        return String::new();
    };
    let classes = folder_names(parent).into_iter().filter(|name| begins_with_images(&parent.join(name)));
    match classes.count() {
        0 | 1 => String::new(),
        n => format!(
            "; if `{}` is a class, give {}, which has {n} folders of images",
            given.name,
            parent.display()
        ),
    }
}

/// Returns whether one of the first files of a folder is an image; the folder may be large.
fn begins_with_images(folder: &Path) -> bool {
    const LOOKED_AT: usize = 20;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.take(LOOKED_AT).any(|entry| is_image(&entry.path()))
}
