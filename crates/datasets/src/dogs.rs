//! Stanford Dogs (Khosla et al., CVPR FGVC workshop 2011) in its official layout: MATLAB lists.

use std::path::Path;

use stillhouse_core::data::{DatasetInfo, Task};
use stillhouse_core::registry::{DatasetRequest, Entry};

use crate::class_folders::folders_in;
use crate::findings::{Kind, Notes};
use crate::listing::{Item, Listing, Truth, find, only_options};
use crate::lists::is_below;
use crate::set::Set;
use crate::{Error, Result, listing, manifest, mat};

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "dogs",
        summary: "Stanford Dogs: 120 breeds, 12,000 training and 8,580 test images",
        source: "Khosla, Jayadevaprakash, Yao and Fei-Fei, FGVC workshop 2011; manifest datasets/dogs.toml",
        defaults: || {
            String::from(
                "# Images, train_list.mat and test_list.mat lie in StanfordDogs under a data root; it\n\
                 # has an official split (split = \"official\")\n",
            )
        },
        build: |request| Ok(listing::open(request, read)?),
    },
    read,
};

/// Letters and digits of a synset id, which names of folders and files begin with.
const SYNSET: usize = 9;

fn read(request: &DatasetRequest, notes: &mut Notes) -> Result<Listing> {
    only_options(request, &[])?;
    let root = find(
        request,
        "Stanford Dogs",
        &["StanfordDogs", "stanford_dogs", "."],
        "train_list.mat",
        "unpack images.tar and lists.tar into StanfordDogs and set STILLHOUSE_DATA to the folder that \
         holds it, or `stillhouse data fetch dogs` (sources: datasets/dogs.toml)",
    )?;
    let classes: Vec<String> = manifest::find("dogs")
        .map(|m| m.classes.iter().map(|c| c.name.clone()).collect())
        .unwrap_or_default();
    let class_of = |name: &str| {
        let synset = name.get(..SYNSET)?;
        classes.iter().position(|c| c.starts_with(synset))
    };
    let images = root.join("Images");
    for folder in if images.is_dir() { folders_in(&images)? } else { Vec::new() } {
        if class_of(&folder).is_none() {
            notes.remark(
                Kind::ExtraClass,
                format!("{}: a folder of none of the 120 breeds", root.join("Images").join(folder).display()),
            );
        }
    }
    let mut items: Vec<Item> = Vec::new();
    let mut splits = Vec::new();
    for name in ["train", "test"] {
        let path = root.join(format!("{name}_list.mat"));
        let mut list = Vec::new();
        for (file, label) in entries(&path, class_of, notes)? {
            let place = format!("{}: {file}", path.display());
            let Some(class) = (1..=classes.len() as i64).contains(&label).then(|| label as u32 - 1) else {
                notes.fault(
                    Kind::LabelRange,
                    Error::WrongLabel {
                        place,
                        found: label.to_string(),
                        expected: format!("1 to {}", classes.len()),
                    },
                )?;
                continue;
            };
            // The folder and the file are both named by the synset.
            for part in file.split('/') {
                if class_of(part) != Some(class as usize) {
                    notes.fault(
                        Kind::Mislabeled,
                        Error::WrongLabel {
                            place: place.clone(),
                            found: format!("{label} ({})", classes[class as usize]),
                            expected: class_of(part).map_or_else(
                                || "a name that begins with a breed's synset".to_string(),
                                |c| format!("{}, as `{part}` says", c + 1),
                            ),
                        },
                    )?;
                    break;
                }
            }
            let image = root.join("Images").join(&file);
            let Ok(meta) = std::fs::metadata(&image) else {
                let named_by = path.display().to_string();
                notes.fault(Kind::MissingFile, Error::MissingFile { path: image, named_by })?;
                continue;
            };
            list.push(items.len());
            items.push(Item { key: file, path: image, truth: Truth::Class(class), bytes: meta.len() });
        }
        splits.push((name.to_string(), list));
    }
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("Stanford Dogs, {} images", items.len()),
        classes,
        task: Task::Classification,
        synthetic: false,
    };
    Ok(Listing { info, items, masks: None, splits })
}

/// The files and labels of a list. Labels that are all off by the same number are one fault.
fn entries(
    path: &Path,
    class_of: impl Fn(&str) -> Option<usize>,
    notes: &mut Notes,
) -> Result<Vec<(String, i64)>> {
    let refuse = |message: String| Error::Decode { name: path.display().to_string(), format: "MAT", message };
    let arrays = mat::read_file(path)?;
    let named = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, v)| v);
    let found: Vec<&str> = arrays.iter().map(|(n, _)| n.as_str()).collect();
    let (Some(files), Some(labels)) =
        (named("file_list").and_then(mat::Value::texts), named("labels").and_then(mat::Value::numbers))
    else {
        return Err(refuse(format!(
            "expected a cell array `file_list` of names and numbers `labels`, found {found:?}"
        )));
    };
    if files.len() != labels.len() {
        return Err(refuse(format!("{} names in file_list and {} labels", files.len(), labels.len())));
    }
    let mut all = Vec::with_capacity(files.len());
    for (place, (file, label)) in files.into_iter().zip(labels).enumerate() {
        if !is_below(file) || label.fract() != 0.0 || label.abs() > 1e9 {
            let found = format!("{file} with the label {label}");
            let expected = "a path below Images and a whole number".to_string();
            let error = Error::ListLine { path: path.to_path_buf(), line: place + 1, found, expected };
            notes.fault(Kind::ListLine, error)?;
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
        notes.fault(
            Kind::LabelRange,
            Error::WrongLabel {
                place: path.display().to_string(),
                found: format!("with every label off by {shift:+}"),
                expected: "1 to 120 in the order of the synsets".to_string(),
            },
        )?;
        for (_, label) in &mut all {
            *label -= shift;
        }
    }
    Ok(all)
}
