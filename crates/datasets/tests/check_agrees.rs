//! `check` and training see the same images, in generated folders of every arrangement.

mod fixtures;

use std::collections::BTreeMap;
use std::path::Path;

use fixtures::{bmp, gif, gray, jpeg, png, put, request, webp};
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use stillhouse_core::registry::DatasetRequest;
use stillhouse_datasets::{Kind, check, registry, require_readable};

/// An entry of a class folder.
#[derive(Debug, Clone, Copy)]
enum Item {
    /// An image, its format and its extension.
    Image(u8, u8),
    /// An image in a folder below.
    Nested,
    /// An image without its last rows.
    Truncated,
    /// A format without decoder.
    Foreign,
    /// A file named like an image.
    Misnamed,
    DeadLink,
    Text,
    Junk,
}

impl Item {
    /// Writes the entry; returns its path below the class folder if it can be decoded.
    fn write(self, class: &Path, number: usize) -> Option<String> {
        const EXTENSIONS: [&str; 6] = [".png", ".jpg", ".JPE", ".jfif", ".webp", ""];
        let put_as = |name: String, bytes: Vec<u8>| {
            put(&class.join(&name), bytes);
            name
        };
        match self {
            Self::Image(format, extension) => {
                let bytes = match format % 5 {
                    0 => png(6, 5, number),
                    1 => jpeg(8, 8, number),
                    2 => webp(6, 5, number),
                    3 => gif(6, 5, number),
                    _ => bmp(6, 5, number),
                };
                let extension = EXTENSIONS[usize::from(extension) % EXTENSIONS.len()];
                return Some(put_as(format!("{number:03}{extension}"), bytes));
            }
            Self::Nested => {
                return Some(put_as(format!("sub{}/deep/{number}.png", number % 2), png(6, 5, number)));
            }
            Self::Truncated => {
                let bytes = png(30, 30, number);
                put_as(format!("{number}.png"), bytes[..bytes.len() / 2].to_vec());
            }
            Self::Foreign => drop(put_as(format!("{number}.avif"), b"\0\0\0\x1cftypavif".to_vec())),
            Self::Misnamed => drop(put_as(format!("{number}.jpg"), b"<html>".to_vec())),
            Self::DeadLink => {
                #[cfg(unix)]
                std::os::unix::fs::symlink(class.join("absent"), class.join(format!("{number}.jpg")))
                    .unwrap();
            }
            Self::Text => drop(put_as(format!("{number}.txt"), b"text".to_vec())),
            Self::Junk => drop(put_as(format!("._{number}.png"), b"x".to_vec())),
        }
        None
    }

    /// Whether training refuses it unless told to skip.
    fn is_refused(self) -> bool {
        matches!(self, Self::Foreign | Self::Misnamed) || cfg!(unix) && matches!(self, Self::DeadLink)
    }
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        6 => (any::<u8>(), any::<u8>()).prop_map(|(format, extension)| Item::Image(format, extension)),
        2 => Just(Item::Nested),
        1 => Just(Item::Truncated),
        1 => Just(Item::Foreign),
        1 => Just(Item::Misnamed),
        1 => Just(Item::DeadLink),
        1 => Just(Item::Text),
        1 => Just(Item::Junk),
    ]
}

/// Folders of the parts, below the root; one empty name is a set without parts.
const LAYOUTS: [(&str, &[&str]); 6] = [
    ("", &[""]),
    ("set/2750/", &[""]),
    ("", &["train/", "test/"]),
    ("", &["Training/", "valid/"]),
    ("wrapper/", &["train/", "val/", "test/"]),
    ("", &["seg_train/seg_train/", "seg_test/seg_test/"]),
];

fn own(path: &Path, options: &str) -> DatasetRequest {
    let options = toml::from_str(options).unwrap();
    DatasetRequest { path: Some(path.to_path_buf()), options, ..request("folder", path) }
}

/// Compares a check with training that refuses, and with training that skips. `expected` are the keys of
/// the samples that can be decoded, `broken` counts those that cannot.
fn compare(
    path: &Path,
    options: &str,
    expected: &[String],
    broken: usize,
    refused: bool,
) -> Result<(), proptest::test_runner::TestCaseError> {
    let build = registry().get("folder").unwrap().build;
    let report = check(&own(path, options), false).unwrap();
    let unreadable = report.diagnostics.iter().filter(|d| d.kind == Kind::Broken).count();
    prop_assert_eq!(report.images - unreadable, expected.len(), "{}", &report);
    prop_assert_eq!(unreadable, broken, "{}", &report);
    prop_assert!(broken == 0 && !refused || !report.is_ok(), "{}", &report);
    let strict = build(&own(path, options));
    prop_assert_eq!(strict.is_err(), refused, "{:?}", strict.as_ref().err().map(ToString::to_string));
    if let Ok(set) = strict {
        prop_assert_eq!(set.len(), report.images);
        prop_assert_eq!(require_readable(&*set).is_err(), broken > 0);
    }
    let set = build(&own(path, &format!("{options}\non_error = 'skip'"))).unwrap();
    let mut keys: Vec<String> = (0..set.len()).map(|i| set.key(i)).collect();
    keys.sort();
    let mut expected = expected.to_vec();
    expected.sort();
    prop_assert_eq!(&keys, &expected);
    require_readable(&*set).unwrap();
    if broken == 0 {
        let mut counts = BTreeMap::new();
        for class in (0..set.len()).filter_map(|i| set.class(i)) {
            *counts.entry(set.info().classes[class as usize].clone()).or_insert(0) += 1;
        }
        let reported: BTreeMap<String, usize> =
            report.classes.into_iter().map(|c| (c.name, c.found)).collect();
        prop_assert_eq!(counts, reported);
        for split in report.splits {
            prop_assert_eq!(set.official_split(&split.name).unwrap().len(), split.found);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(fixtures::cases(96))
    })]

    #[test]
    fn check_and_training_agree_on_class_folders(
        layout in 0..LAYOUTS.len(),
        classes in prop::collection::vec(prop::collection::vec(item(), 0..6), 2..4),
    ) {
        let root = tempfile::tempdir().unwrap();
        let (prefix, parts) = LAYOUTS[layout];
        let (mut expected, mut broken, mut refused, mut number) = (Vec::new(), 0, false, 0);
        for part in parts {
            for (class, items) in classes.iter().enumerate() {
                let class = format!("{part}class{class}");
                // Each class has an image, so that the classes are the same in all parts.
                for item in [Item::Image(0, 0)].iter().chain(items) {
                    number += 1;
                    let below = item.write(&root.path().join(format!("{prefix}{class}")), number);
                    expected.extend(below.map(|name| format!("{class}/{name}")));
                    broken += usize::from(matches!(item, Item::Truncated));
                    refused |= item.is_refused();
                }
            }
        }
        compare(root.path(), "", &expected, broken, refused)?;
    }

    #[test]
    fn check_and_training_agree_on_masks(
        by_part in any::<bool>(),
        images in prop::collection::vec((item(), prop::option::weighted(0.8, 0u8..3)), 0..8),
        extra_masks in 0usize..3,
    ) {
        let root = tempfile::tempdir().unwrap();
        let parts = if by_part { &["train/", "test/"][..] } else { &[""][..] };
        let mask = |number: usize| gray(6, 5, move |x, y| ((x + y + number) % 2) as u8);
        let (mut expected, mut broken, mut refused, mut number) = (Vec::new(), 0, false, 0);
        for part in parts {
            let at = |folder: &str| root.path().join(format!("{part}{folder}"));
            for (item, suffix) in [(Item::Image(0, 0), Some(0))].iter().chain(&images) {
                number += 1;
                // A JPEG of 8x8 pixels does not have the size of the masks.
                let item = match item {
                    Item::Image(format, extension) if format % 5 == 1 => Item::Image(0, *extension),
                    other => *other,
                };
                let below = item.write(&at("images"), number);
                let stem = match &below {
                    Some(name) => name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem).to_string(),
                    None => number.to_string(),
                };
                let is_listed = below.is_some() || matches!(item, Item::Truncated);
                refused |= item.is_refused() || is_listed != suffix.is_some();
                if let Some(suffix) = suffix {
                    let affix = ["", "_mask", "-gt"][usize::from(*suffix)];
                    put(&at("masks").join(format!("{stem}{affix}.png")), mask(number));
                    broken += usize::from(matches!(item, Item::Truncated));
                    expected.extend(below.map(|name| format!("{part}images/{name}")));
                }
            }
            for extra in 0..extra_masks {
                put(&at("masks").join(format!("extra{extra}.png")), mask(extra));
                refused = true;
            }
        }
        compare(root.path(), "classes = ['a', 'b']", &expected, broken, refused)?;
    }
}
