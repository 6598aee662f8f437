//! Usual names of the parts of a dataset and of folders of images and masks.

use crate::layout::class_folders::simplified;

/// A part of a dataset that its own folders define.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Train,
    Val,
    Test,
}

impl Part {
    pub(crate) const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// Name of the official split.
    pub(crate) fn split(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }

    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["trainingset", "trainset", "traindata", "training", "train", "trn"],
            Self::Val => {
                &["validationset", "valset", "validation", "valid", "val", "evaluation", "eval", "dev"]
            }
            Self::Test => &["testingset", "testset", "testdata", "testing", "tests", "test", "tst"],
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.words().contains(&word))
    }

    /// Recognizes a folder's name: `Train`, or `seg_train` with the rest `seg`. Folders are parts of one
    /// dataset if their rests are equal.
    pub(crate) fn of_folder(name: &str) -> Option<(Self, String)> {
        if let Some(part) = Self::of_word(&simplified(name)) {
            return Some((part, String::new()));
        }
        let words: Vec<String> = name.split(['_', '-', '.', ' ']).map(str::to_lowercase).collect();
        let mut parts = words.iter().enumerate().filter_map(|(i, word)| Some((i, Self::of_word(word)?)));
        let (index, part) = parts.next()?;
        let rest = words.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, word)| word.as_str());
        parts.next().is_none().then(|| (part, rest.collect::<Vec<_>>().join("_")))
    }
}

/// Content of a folder of a segmentation dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Images,
    Masks,
}

impl Role {
    const ALL: [Self; 2] = [Self::Images, Self::Masks];

    /// Names of folders, without case, spaces, `_` and `-`.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Self::Images => &[
                "images",
                "image",
                "imgs",
                "img",
                "imgdir",
                "imagedir",
                "jpegimages",
                "rgb",
                "photos",
                "pictures",
                "frames",
                "inputs",
                "input",
                "leftimg8bit",
            ],
            Self::Masks => &[
                "masks",
                "mask",
                "maskdir",
                "labels",
                "label",
                "labelmaps",
                "annotations",
                "annotation",
                "annots",
                "annot",
                "anndir",
                "ann",
                "gt",
                "gts",
                "groundtruth",
                "groundtruths",
                "segmentationclass",
                "segmentationmasks",
                "segmentations",
                "segmentation",
                "segs",
                "seg",
                "targets",
                "target",
                "gtfine",
            ],
        }
    }

    /// Words that a file's name may have in addition to those of its counterpart.
    fn affixes(self) -> &'static [&'static str] {
        match self {
            Self::Images => &["image", "img", "rgb", "sat", "leftimg8bit", "input"],
            Self::Masks => &[
                "mask",
                "masks",
                "label",
                "labels",
                "labelids",
                "labeltrainids",
                "annotation",
                "annot",
                "ann",
                "gt",
                "groundtruth",
                "seg",
                "segmentation",
                "gtfine",
                "target",
                "l",
            ],
        }
    }

    /// Recognizes a folder's name, with the part that it may begin or end with: `train_masks`.
    pub(crate) fn of_folder(name: &str) -> (Option<Part>, Option<Self>) {
        let name = simplified(name);
        let role_of = |text: &str| Self::ALL.into_iter().find(|role| role.folders().contains(&text));
        if let Some(role) = role_of(&name) {
            return (None, Some(role));
        }
        for part in Part::ALL {
            for word in part.words() {
                if name == *word {
                    return (Some(part), None);
                }
                let rests = [name.strip_prefix(word), name.strip_suffix(word)];
                if let Some(role) = rests.into_iter().flatten().find_map(role_of) {
                    return (Some(part), Some(role));
                }
            }
        }
        (None, None)
    }

    /// Returns a file's path without extension, in lowercase and without the words of the role at either
    /// end of its name: `a/7_mask` and `a/7`, or `mask7` and `img7`, are counterparts.
    pub(crate) fn pair_key(self, stem: &str) -> String {
        let stem = stem.to_lowercase();
        let (folder, mut name) = match stem.rsplit_once('/') {
            Some((folder, name)) => (Some(folder), name),
            None => (None, stem.as_str()),
        };
        let separator = ['_', '-', '.', ' '];
        while let Some(rest) = self.affixes().iter().find_map(|word| {
            let after = name
                .strip_prefix(word)
                .filter(|rest| rest.starts_with(separator) || rest.starts_with(|c: char| c.is_ascii_digit()));
            let before = name.strip_suffix(word).filter(|rest| rest.ends_with(separator));
            after.or(before).map(|rest| rest.trim_matches(separator)).filter(|rest| !rest.is_empty())
        }) {
            name = rest;
        }
        folder.map_or_else(|| name.to_string(), |folder| format!("{folder}/{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_parts() {
        for (name, part) in [
            ("train", Part::Train),
            ("Training", Part::Train),
            ("TRAIN_SET", Part::Train),
            ("valid", Part::Val),
            ("Validation", Part::Val),
            ("eval", Part::Val),
            ("Testing", Part::Test),
            ("test", Part::Test),
        ] {
            assert_eq!(Part::of_folder(name), Some((part, String::new())), "{name}");
        }
        let rest = |name: &str| Part::of_folder(name).map(|(_, rest)| rest);
        assert_eq!(rest("seg_train"), rest("seg_test"));
        assert_ne!(rest("train_station"), rest("test_tube"));
        for name in ["trainer", "contest", "valley", "train_test", "cat"] {
            assert_eq!(Part::of_folder(name), None, "{name}");
        }
    }

    #[test]
    fn recognizes_folders_of_images_and_masks() {
        for (name, found) in [
            ("Images", (None, Some(Role::Images))),
            ("SegmentationClass", (None, Some(Role::Masks))),
            ("train_masks", (Some(Part::Train), Some(Role::Masks))),
            ("trainannot", (Some(Part::Train), Some(Role::Masks))),
            ("images_val", (Some(Part::Val), Some(Role::Images))),
            ("test", (Some(Part::Test), None)),
            ("meadow", (None, None)),
            ("no_mask", (None, None)),
        ] {
            assert_eq!(Role::of_folder(name), found, "{name}");
        }
    }

    #[test]
    fn pairs_file_names() {
        for (image, mask) in [
            ("7", "7_mask"),
            ("img7", "mask7"),
            ("a/7_sat", "a/7_mask"),
            ("0016E5_01", "0016E5_01_L"),
            ("aachen_0_leftImg8bit", "aachen_0_gtFine_labelIds"),
            ("x", "mask-x"),
        ] {
            assert_eq!(Role::Images.pair_key(image), Role::Masks.pair_key(mask), "{image} {mask}");
        }
        assert_ne!(Role::Images.pair_key("7"), Role::Masks.pair_key("8_mask"));
        assert_eq!(Role::Masks.pair_key("mask"), "mask");
    }
}
