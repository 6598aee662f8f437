//! What `stillhouse data check` reports of a dataset.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stillhouse_core::data::{Dataset, Image, Label, Task};
use stillhouse_core::registry::DatasetRequest;

use crate::findings::{Finding, Kind, Notes};
use crate::listing::{Item, Listing, Truth, read_mask};
use crate::manifest::{self, Manifest};
use crate::{Error, image, set};

/// Findings of one kind that the text shows; JSON has all.
const SHOWN: usize = 20;

/// What was found in a dataset; printed as text, or kept as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Registry name.
    pub dataset: String,
    /// Its title.
    pub title: String,
    /// Whether only a part of the official set was meant, so that counts are no faults.
    pub subset: bool,
    /// Images found.
    pub images: usize,
    /// Images by the manifest, if there is one.
    pub expected: Option<usize>,
    /// Images of each class, in class order; empty for segmentation.
    pub classes: Vec<Count>,
    /// Images of each official list.
    pub splits: Vec<Count>,
    /// Values that the masks hold, as they are stored; empty for classification.
    pub mask_values: Vec<u8>,
    /// Keys of images with the same pixels, group by group.
    pub duplicates: Vec<Vec<String>>,
    /// How often each size occurs, the most frequent first.
    pub sizes: Vec<SizeCount>,
    /// What is wrong or odd.
    pub findings: Vec<Finding>,
}

/// Images of one class or of one list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The class or list.
    pub name: String,
    /// Images found.
    pub found: usize,
    /// Images by the manifest, if it says.
    pub expected: Option<usize>,
}

/// How often a size occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeCount {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Images.
    pub images: usize,
}

impl Report {
    /// Whether nothing is wrong. Oddities that the official files are known to have are no faults,
    /// nor are images with the same pixels in one class and one split.
    pub fn is_ok(&self) -> bool {
        !self.findings.iter().any(|f| f.fault)
    }
}

/// Reads the lists and decodes every file of a dataset, and compares what it finds with the
/// manifest; for `subset` counts are reported, but no faults. The report does not depend on the
/// number of threads.
///
/// # Errors
///
/// A dataset that is not there, an unknown name or setting, or a list that cannot be read at all;
/// all other faults are in the report.
pub fn check(request: &DatasetRequest, subset: bool) -> stillhouse_core::Result<Report> {
    let Some(set) = set::ENTRIES.iter().find(|s| s.entry.name == request.name) else {
        let set = (crate::registry().get(&request.name)?.build)(request)?;
        return Ok(check_embedded(&*set));
    };
    let mut request = request.clone();
    request.options.remove("on_error");
    let mut notes = Notes::collecting();
    let listing = (set.read)(&request, &mut notes)?;
    let looks = listing.items.par_iter().map(|item| look_at(&listing, item)).collect();
    Ok(report(&listing, looks, notes.found, subset))
}

/// What one image file shows.
#[derive(Default)]
struct Look {
    /// Width, height, hash of the pixels; none if it is broken.
    image: Option<(usize, usize, String)>,
    values: BTreeSet<u8>,
    found: Vec<Finding>,
}

impl Look {
    fn see(&mut self, image: &Image) {
        self.image = Some((image.width, image.height, stillhouse_core::fs::sha256(&image.pixels)));
    }
}

fn look_at(listing: &Listing, item: &Item) -> Look {
    let mut look = Look::default();
    let mut size = None;
    match image::inspect_image(&item.path) {
        Err(e) => look.found.push(Finding::new(Kind::Broken, e)),
        Ok((image, stored)) => {
            size = Some((image.width, image.height));
            look.see(&image);
            let path = item.path.display();
            if stored.colors != image::RGB {
                let message = format!("{path}: stored as {}, read as RGB", stored.colors);
                look.found.push(Finding::new(Kind::NotRgb, message));
            }
            let extension = item.path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            let meant = match extension.as_str() {
                "jpg" | "jpeg" => "JPEG",
                "png" => "PNG",
                "tif" | "tiff" => "TIFF",
                "bmp" => "BMP",
                _ => stored.format,
            };
            if meant != stored.format {
                let message = format!("{path}: holds {}, read as such", stored.format);
                look.found.push(Finding::new(Kind::Extension, message));
            }
        }
    }
    if let Truth::Mask { path, .. } = &item.truth {
        match read_mask(path) {
            Err(e) => look.found.push(Finding::new(Kind::Broken, e)),
            Ok(mask) => {
                look.values = mask.labels.iter().copied().collect();
                let found = (mask.width, mask.height);
                if let Some(expected) = size.filter(|size| *size != found) {
                    let error = Error::MaskSize { path: path.clone(), found, expected };
                    look.found.push(Finding::new(Kind::MaskSize, error));
                }
                if let Some(Err(e)) = listing.masks.as_ref().map(|rule| rule.apply(mask, path)) {
                    look.found.push(Finding::new(Kind::MaskValue, e));
                }
            }
        }
    }
    look
}

/// The report of images that are made by the program.
fn check_embedded(set: &dyn Dataset) -> Report {
    let look = |index: usize| {
        let mut look = Look::default();
        match set.sample(index) {
            Ok(sample) => {
                look.see(&sample.image);
                if let Label::Mask(mask) = sample.label {
                    look.values.extend(mask.labels);
                }
            }
            Err(e) => look.found.push(Finding::new(Kind::Broken, format!("{}: {e}", set.key(index)))),
        }
        look
    };
    report(set, (0..set.len()).into_par_iter().map(look).collect(), Vec::new(), false)
}

fn report(set: &dyn Dataset, looks: Vec<Look>, mut findings: Vec<Finding>, subset: bool) -> Report {
    let info = set.info();
    let manifest = manifest::find(&info.name);
    let (mut sizes, mut same) = (BTreeMap::new(), BTreeMap::<_, Vec<usize>>::new());
    let mut values = BTreeSet::new();
    for (index, look) in looks.into_iter().enumerate() {
        if let Some((width, height, hash)) = look.image {
            *sizes.entry((width, height)).or_insert(0) += 1;
            same.entry((hash, width, height)).or_default().push(index);
        }
        values.extend(look.values);
        findings.extend(look.found);
    }
    let mut sizes: Vec<SizeCount> =
        sizes.into_iter().map(|((width, height), images)| SizeCount { width, height, images }).collect();
    sizes.sort_by_key(|s| (std::cmp::Reverse(s.images), s.width, s.height));
    let mut groups: Vec<Vec<usize>> = same.into_values().filter(|group| group.len() > 1).collect();
    groups.sort_unstable();
    let splits = official(set);
    findings.extend(groups.iter().map(|group| duplicate(set, &splits, group)));
    let classes = class_counts(set, manifest);
    let splits: Vec<Count> = splits
        .into_iter()
        .map(|(name, list)| Count {
            found: list.len(),
            expected: manifest.and_then(|m| m.split(&name)),
            name,
        })
        .collect();
    let expected = manifest.and_then(Manifest::total);
    findings.extend(counts(set, manifest, expected, &classes, &splits));
    for finding in &mut findings {
        let known = manifest.is_some_and(|m| m.allow.contains(&finding.kind));
        let part = subset && matches!(finding.kind, Kind::Count | Kind::MissingClass);
        finding.fault &= !known && !part;
    }
    // Faults first, then by kind; within a kind in the order of the files.
    findings.sort_by_key(|f| (!f.fault, f.kind));
    let keys = |group: &Vec<usize>| group.iter().map(|&i| set.key(i)).collect();
    Report {
        dataset: info.name.clone(),
        title: info.title.clone(),
        subset,
        images: set.len(),
        expected,
        classes,
        splits,
        mask_values: values.into_iter().collect(),
        duplicates: groups.iter().map(keys).collect(),
        sizes,
        findings,
    }
}

fn official(set: &dyn Dataset) -> Vec<(String, Vec<usize>)> {
    let lists = ["train", "val", "test"].map(|name| Some((name.to_string(), set.official_split(name)?)));
    lists.into_iter().flatten().collect()
}

fn class_counts(set: &dyn Dataset, manifest: Option<&Manifest>) -> Vec<Count> {
    let info = set.info();
    if info.task == Task::Segmentation {
        return Vec::new();
    }
    let mut counts = vec![0; info.classes.len()];
    for class in (0..set.len()).filter_map(|i| set.class(i)) {
        if let Some(count) = counts.get_mut(class as usize) {
            *count += 1;
        }
    }
    let expected = |name: &str| manifest?.classes.iter().find(|c| c.name == name)?.images;
    let counted = info.classes.iter().zip(counts);
    counted.map(|(name, found)| Count { name: name.clone(), found, expected: expected(name) }).collect()
}

/// Counts that are not the manifest's.
fn counts(
    set: &dyn Dataset,
    manifest: Option<&Manifest>,
    expected: Option<usize>,
    classes: &[Count],
    splits: &[Count],
) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut compare = |what: String, found: usize, expected: Option<usize>| {
        if let Some(expected) = expected.filter(|n| *n != found) {
            let message = format!("{what}: found {found}, the official set has {expected}");
            all.push(Finding::new(Kind::Count, message));
        }
    };
    compare("images".to_string(), set.len(), expected);
    compare("classes".to_string(), set.info().classes.len(), manifest.and_then(Manifest::class_count));
    for count in splits {
        compare(format!("images of the list `{}`", count.name), count.found, count.expected);
    }
    for count in classes {
        compare(format!("images of the class `{}`", count.name), count.found, count.expected);
    }
    all
}

fn duplicate(set: &dyn Dataset, splits: &[(String, Vec<usize>)], group: &[usize]) -> Finding {
    let side = |index: usize| splits.iter().position(|(_, list)| list.binary_search(&index).is_ok());
    let differ = |f: &dyn Fn(usize) -> Option<usize>| group.iter().any(|&i| f(i) != f(group[0]));
    let class = |index: usize| set.class(index).map(|c| c as usize);
    let named = |&i: &usize| match side(i) {
        Some(split) => format!("{} ({})", set.key(i), splits[split].0),
        None => set.key(i),
    };
    let message = group.iter().map(named).collect::<Vec<_>>().join(", ");
    if differ(&side) {
        Finding::new(Kind::DuplicateAcrossSplits, message)
    } else if differ(&class) {
        Finding::new(Kind::DuplicateAcrossClasses, message)
    } else {
        Finding { kind: Kind::Duplicate, message, fault: false }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |expected: Option<usize>| expected.map(|n| format!(" of {n}")).unwrap_or_default();
        let part = if self.subset { " (a part of the official set)" } else { "" };
        writeln!(f, "{}: {}{part}", self.dataset, self.title)?;
        writeln!(f, "{:<12}{}{}", "images", self.images, of(self.expected))?;
        for split in &self.splits {
            writeln!(f, "{:<12}{}: {}{}", "list", split.name, split.found, of(split.expected))?;
        }
        if !self.classes.is_empty() {
            let found = self.classes.iter().map(|c| c.found);
            let (least, most) = found.fold((usize::MAX, 0), |(a, b), n| (a.min(n), b.max(n)));
            writeln!(f, "{:<12}{}, {least} to {most} images each", "classes", self.classes.len())?;
        }
        if !self.mask_values.is_empty() {
            let values: Vec<String> = self.mask_values.iter().map(ToString::to_string).collect();
            writeln!(f, "{:<12}{}", "mask values", values.join(" "))?;
        }
        for size in self.sizes.iter().take(SHOWN) {
            writeln!(f, "{:<12}{}x{}: {} images", "size", size.width, size.height, size.images)?;
        }
        if self.sizes.len() > SHOWN {
            writeln!(f, "{:<12}and {} more sizes", "", self.sizes.len() - SHOWN)?;
        }
        let mut shown = BTreeMap::<(Kind, bool), usize>::new();
        for finding in &self.findings {
            let n = shown.entry((finding.kind, finding.fault)).or_insert(0);
            *n += 1;
            if *n <= SHOWN {
                let mark = if finding.fault { "fault" } else { "note" };
                writeln!(f, "{mark:<12}{}: {}", finding.kind, finding.message)?;
            }
        }
        for ((kind, fault), n) in shown.into_iter().filter(|(_, n)| *n > SHOWN) {
            let mark = if fault { "fault" } else { "note" };
            writeln!(f, "{mark:<12}{kind}: {} more (--json shows all)", n - SHOWN)?;
        }
        let faults = self.findings.iter().filter(|f| f.fault).count();
        match faults {
            0 => write!(f, "ok"),
            n => write!(f, "not as expected: {n} fault{}", if n == 1 { "" } else { "s" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn faults_are_found() {
        let mut set = Fake::new(&[3, 4]);
        set.broken = Some(5);
        let report = check_embedded(&set);
        assert!(!report.is_ok());
        assert_eq!((report.images, report.expected), (7, None));
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.sizes.iter().map(|s| s.images).sum::<usize>(), 6);
        let text = report.to_string();
        assert!(text.contains("broken: c1/005.png") && text.ends_with("1 fault"), "{text}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert!(check_embedded(&Fake::new(&[2])).is_ok());
    }

    #[test]
    fn equal_pixels_are_found() {
        // Values repeat with the index modulo 256, sizes modulo 6: 768 images apart.
        let report = check_embedded(&Fake::new(&[770]));
        assert_eq!(report.duplicates, [["c0/000.png", "c0/768.png"], ["c0/001.png", "c0/769.png"]]);
        assert!(report.is_ok());
        let report = check_embedded(&Fake::new(&[760, 10]));
        assert_eq!(report.findings[0].kind, Kind::DuplicateAcrossClasses);
        assert!(!report.is_ok());
    }
}
