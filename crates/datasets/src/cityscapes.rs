//! Cityscapes (Cordts et al., CVPR 2016), fine annotations, in its official layout.

use std::path::Path;

use stillhouse_core::data::{DatasetInfo, Task};
use stillhouse_core::registry::{DatasetRequest, Entry};

use crate::class_folders::folders_in;
use crate::findings::{Kind, Notes};
use crate::listing::{Item, Listing, MaskRule, Truth, find, only_options};
use crate::set::Set;
use crate::{Error, Result, listing};

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "cityscapes",
        summary: "Cityscapes: street scenes of 2048x1024 with 19 classes, 2,975 training and 500 test (val) images",
        source: "Cordts et al., CVPR 2016; manifest datasets/cityscapes.toml",
        defaults: || {
            String::from(
                "# leftImg8bit and gtFine lie in the folder cityscapes under a data root; it has an\n\
                 # official split (split = \"official\" trains on train and tests on val)\n",
            )
        },
        build: |request| Ok(listing::open(request, read)?),
    },
    read,
};

/// The classes in the order of their training ids.
pub(crate) const CLASSES: [&str; 19] = [
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
];

/// The label ids of the classes above, in their order; the other ids from 0 to 33 are ignored.
const LABEL_IDS: [u8; 19] = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33];

/// labelId to trainId. -1 (license plate) is 255 in a byte.
fn rule() -> MaskRule {
    let mut table = [None; 256];
    table[..34].fill(Some(255));
    table[255] = Some(255);
    for (class, id) in LABEL_IDS.iter().enumerate() {
        table[usize::from(*id)] = Some(class as u8);
    }
    MaskRule::table(table, "a label id from 0 to 33 (or 255 for -1)")
}

fn read(request: &DatasetRequest, notes: &mut Notes) -> Result<Listing> {
    only_options(request, &[])?;
    let root = find(
        request,
        "Cityscapes",
        &["cityscapes", "Cityscapes", "."],
        "leftImg8bit",
        "register at https://www.cityscapes-dataset.com, unpack leftImg8bit_trainvaltest.zip and \
         gtFine_trainvaltest.zip into the folder cityscapes and set STILLHOUSE_DATA to the folder that \
         holds it",
    )?;
    let mut items = Vec::new();
    let mut splits = Vec::new();
    // The test images have no labels.
    for split in ["train", "val"] {
        let from = items.len();
        read_split(&root, split, &mut items, notes)?;
        splits.push((split.to_string(), (from..items.len()).collect()));
    }
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("Cityscapes, {} images", items.len()),
        classes: CLASSES.map(String::from).to_vec(),
        task: Task::Segmentation,
        synthetic: false,
    };
    Ok(Listing { info, items, masks: Some(rule()), splits })
}

fn read_split(root: &Path, split: &str, items: &mut Vec<Item>, notes: &mut Notes) -> Result<()> {
    const IMAGE: &str = "_leftImg8bit.png";
    const MASK: &str = "_gtFine_labelIds.png";
    let images = root.join("leftImg8bit").join(split);
    if !images.is_dir() {
        let named_by = "the official layout".to_string();
        return notes.fault(Kind::Layout, Error::MissingFile { path: images, named_by });
    }
    for city in folders_in(&images)? {
        let (image_folder, mask_folder) = (images.join(&city), root.join("gtFine").join(split).join(&city));
        for name in files_in(&image_folder)? {
            let frame = name.strip_suffix(IMAGE).filter(|f| is_frame(f, &city));
            let Some(frame) = frame else {
                let expected = format!("{city}_000000_000000{IMAGE}");
                let error =
                    Error::UnexpectedFile { path: image_folder.join(&name), class: city.clone(), expected };
                notes.fault(Kind::Layout, error)?;
                continue;
            };
            let (path, mask) = (image_folder.join(&name), mask_folder.join(format!("{frame}{MASK}")));
            let Ok(meta) = std::fs::metadata(&mask) else {
                let named_by = path.display().to_string();
                notes.fault(Kind::MissingFile, Error::MissingFile { path: mask, named_by })?;
                continue;
            };
            let truth = Truth::Mask { path: mask, bytes: meta.len() };
            let bytes = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
            items.push(Item { key: format!("{split}/{city}/{frame}"), path, truth, bytes });
        }
        // Masks whose image is gone.
        if mask_folder.is_dir() {
            for name in files_in(&mask_folder)? {
                let Some(frame) = name.strip_suffix(MASK) else { continue };
                let path = image_folder.join(format!("{frame}{IMAGE}"));
                if !path.exists() {
                    let named_by = mask_folder.join(&name).display().to_string();
                    notes.fault(Kind::MissingFile, Error::MissingFile { path, named_by })?;
                }
            }
        }
    }
    Ok(())
}

/// `<city>_<6 digits>_<6 digits>`.
fn is_frame(name: &str, city: &str) -> bool {
    let numbers = name.strip_prefix(city).and_then(|rest| rest.strip_prefix('_'));
    numbers
        .and_then(|n| n.split_once('_'))
        .is_some_and(|(a, b)| [a, b].iter().all(|n| n.len() == 6 && n.bytes().all(|c| c.is_ascii_digit())))
}

/// The names of the files in a folder, in byte order, hidden ones left out.
pub(crate) fn files_in(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}
