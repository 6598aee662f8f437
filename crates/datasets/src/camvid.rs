//! CamVid (Brostow et al. 2008), the version of 480x360 with 11 classes.

use std::path::{Path, PathBuf};

use stillhouse_core::data::{DatasetInfo, Task};
use stillhouse_core::registry::{DatasetRequest, Entry};

use crate::cityscapes::files_in;
use crate::findings::{Kind, Notes};
use crate::listing::{Listing, MaskRule, find, only_options};
use crate::lists::{lines, wrong_line};
use crate::pairs::Pairs;
use crate::set::Set;
use crate::{Result, listing};

pub(crate) const ENTRY: Set = Set {
    entry: Entry {
        name: "camvid",
        summary: "CamVid: street scenes of 480x360 with 11 classes, 367 training, 101 val and 233 test images",
        source: "Brostow, Fauqueur and Cipolla, Pattern Recognition Letters 2009; manifest datasets/camvid.toml",
        defaults: || {
            String::from(
                "# the folder CamVid lies under a data root; it has an official split\n\
                 # (split = \"official\")\n",
            )
        },
        build: |request| Ok(listing::open(request, read)?),
    },
    read,
};

/// The classes in the order of their indices; the value 11 is "unlabeled" and ignored.
pub(crate) const CLASSES: [&str; 11] = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
];

fn read(request: &DatasetRequest, notes: &mut Notes) -> Result<Listing> {
    only_options(request, &[])?;
    let root = find(
        request,
        "CamVid",
        &["CamVid", "camvid", "."],
        "trainannot",
        "set STILLHOUSE_DATA to the folder that holds CamVid (sources: datasets/camvid.toml)",
    )?;
    let mut pairs = Pairs::new();
    for split in ["train", "val", "test"] {
        let list = root.join(format!("{split}.txt"));
        let entries = if list.exists() { listed(&root, &list, split, notes)? } else { beside(&root, split)? };
        pairs.add(split, &list, entries, notes)?;
    }
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("CamVid, {} images", pairs.items.len()),
        classes: CLASSES.map(String::from).to_vec(),
        task: Task::Segmentation,
        synthetic: false,
    };
    let masks = Some(MaskRule::plain(CLASSES.len(), 11));
    Ok(Listing { info, items: pairs.items, masks, splits: pairs.splits })
}

type Entry4 = (usize, String, PathBuf, PathBuf);

/// `image mask` of each line. The official lists begin their paths with a folder of their authors',
/// so only the last folder and the name count.
fn listed(root: &Path, list: &Path, split: &str, notes: &mut Notes) -> Result<Vec<Entry4>> {
    let mut entries = Vec::new();
    for line in lines(list, notes)? {
        let below = |text: &str, folder: &str| {
            let (before, file) = text.rsplit_once('/')?;
            let fits = before == folder || before.ends_with(&format!("/{folder}"));
            (fits && !file.is_empty() && file != "..").then(|| root.join(folder).join(file))
        };
        let words = line.text.split_once([' ', '\t']);
        let both = words.and_then(|(image, mask)| {
            below(image, split).zip(below(mask.trim_start(), &format!("{split}annot")))
        });
        let Some((image, mask)) = both else {
            let expected = format!("{split}/NAME {split}annot/NAME.png");
            notes.fault(Kind::ListLine, wrong_line(list, line.number, &line.text, &expected))?;
            continue;
        };
        let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if stem(&image) != stem(&mask) {
            let expected = "an image and a mask of the same name";
            notes.fault(Kind::Mislabeled, wrong_line(list, line.number, &line.text, expected))?;
        }
        entries.push((line.number, format!("{split}/{}", stem(&image)), image, mask));
    }
    Ok(entries)
}

/// Without a list: all files of the split's folder, each with the mask of its name.
fn beside(root: &Path, split: &str) -> Result<Vec<Entry4>> {
    let folder = root.join(split);
    let entries = files_in(&folder)?.into_iter().enumerate().map(|(i, file)| {
        let stem = Path::new(&file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mask = root.join(format!("{split}annot/{stem}.png"));
        (i + 1, format!("{split}/{stem}"), folder.join(&file), mask)
    });
    Ok(entries.collect())
}
