//! Validation of a dataset's files against its manifest (`stillhouse data check`).

mod inspect;
pub(crate) mod mask_content;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stillhouse_core::data::{Dataset, Label, Task, WHITE_LEVEL};
use stillhouse_core::registry::DatasetRequest;

use self::inspect::Inspector;
use self::mask_content::ValueCounts;
use crate::catalog;
use crate::diagnostics::{Diagnostic, Diagnostics, Kind, examples};
use crate::file_dataset::take_white_level;
use crate::manifest::{self, Manifest};
use crate::{Error, Result};

/// Diagnostics of one kind in the text; JSON has all.
const MAX_SHOWN: usize = 20;

/// Result of a check, as text or JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Registry name.
    pub dataset: String,
    /// Its title.
    pub title: String,
    /// Whether the files are a subset, so that counts are warnings.
    pub subset: bool,
    /// Images found.
    pub images: usize,
    /// Images according to the manifest, if known.
    pub expected: Option<usize>,
    /// Images of each class, in class order; empty for segmentation.
    pub classes: Vec<Count>,
    /// Images of each official split.
    pub splits: Vec<Count>,
    /// Stored mask values; empty for classification.
    pub mask_values: Vec<u8>,
    /// Groups of keys of identical images.
    pub duplicates: Vec<Vec<String>>,
    /// Image sizes, the most frequent first.
    pub sizes: Vec<SizeCount>,
    /// Errors, then warnings.
    pub diagnostics: Vec<Diagnostic>,
}

/// Image count of a class or an official split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Name of the class or split.
    pub name: String,
    /// Images found.
    pub found: usize,
    /// Images according to the manifest, if known.
    pub expected: Option<usize>,
}

/// Number of images of a size.
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
    /// Whether there is no error. Known peculiarities of the official files are warnings, as are
    /// identical images within a class and split.
    pub fn is_ok(&self) -> bool {
        !self.diagnostics.iter().any(|d| d.is_error)
    }
}

/// Reads the lists, decodes every file and compares the result with the manifest. With `subset`,
/// count differences are warnings. The report does not depend on the number of threads.
///
/// # Errors
///
/// A missing dataset, an unknown name or setting, an invalid manifest, or an unreadable list; all
/// other problems are in the report.
pub fn check(request: &DatasetRequest, subset: bool) -> stillhouse_core::Result<Report> {
    let manifest = manifest::find(&request.name, &request.roots)?;
    let Some(read) = catalog::reader(&request.name) else {
        let set = (crate::registry().get(&request.name)?.build)(request)?;
        return Ok(check_synthetic(&*set, manifest.as_deref()));
    };
    // An unknown name gets a suggestion.
    crate::registry_in(&request.roots).get(&request.name)?;
    let mut request = request.clone();
    request.options.remove("on_error");
    let white_level = take_white_level(&mut request)?;
    let mut diagnostics = Diagnostics::collecting();
    let set = read(&request, &mut diagnostics)?.with_white_level(white_level);
    let is_official = manifest.as_ref().is_some_and(|own| manifest::of_builtin(&own.name).is_ok());
    let inspected: Vec<Inspector> =
        set.samples.par_iter().map(|sample| Inspector::of_files(&set, sample, is_official)).collect();
    let mut found = diagnostics.found;
    if !is_official {
        found.extend(inspect::lossy_conversions(&set, &inspected));
    }
    if let (Some(white), None) = (set.white_level, white_level) {
        let message = format!(
            "16-bit images of a small range: values from 0 to {white} of 65535 become 0 to 255, larger ones 255; \
             {WHITE_LEVEL} in data.options sets another value"
        );
        found.push(Diagnostic { kind: Kind::SmallRange, message, is_error: false });
    }
    found.extend(inspect::mask_problems(&set, &inspected));
    Ok(report(&set, manifest.as_deref(), inspected, found, subset))
}

/// Decodes every image of a dataset, and its mask.
///
/// # Errors
///
/// Images that cannot be read, with their number and the first reasons.
pub fn require_readable(set: &dyn Dataset) -> Result<()> {
    let errors: Vec<String> = (0..set.len())
        .into_par_iter()
        .filter_map(|index| set.sample(index).err().map(|e| e.to_string()))
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    let summary = format!("{} of {} images cannot be read: {}", errors.len(), set.len(), examples(&errors));
    Err(Error::UnusableFiles { folder: set.info().name.clone().into(), summary })
}

/// Checks a synthetic dataset.
fn check_synthetic(set: &dyn Dataset, manifest: Option<&Manifest>) -> Report {
    let inspect = |index: usize| {
        let mut inspector = Inspector::default();
        match set.sample(index) {
            Ok(sample) => {
                inspector.hash(&sample.image);
                if let Label::Mask(mask) = sample.label {
                    inspector.mask_values = Some(ValueCounts::of(&mask));
                }
            }
            Err(e) => inspector.error(Kind::Broken, format!("{}: {e}", set.key(index))),
        }
        inspector
    };
    report(set, manifest, (0..set.len()).into_par_iter().map(inspect).collect(), Vec::new(), false)
}

fn report(
    set: &dyn Dataset,
    manifest: Option<&Manifest>,
    inspected: Vec<Inspector>,
    mut diagnostics: Vec<Diagnostic>,
    subset: bool,
) -> Report {
    let info = set.info();
    let (mut sizes, mut identical) = (BTreeMap::new(), BTreeMap::<_, Vec<usize>>::new());
    let mut values = BTreeSet::new();
    for (index, sample) in inspected.into_iter().enumerate() {
        if let Some((width, height, hash)) = sample.image {
            *sizes.entry((width, height)).or_insert(0) += 1;
            identical.entry((hash, width, height)).or_default().push(index);
        }
        values.extend(sample.mask_values.iter().flat_map(ValueCounts::occurring).map(|(value, _)| value));
        diagnostics.extend(sample.diagnostics);
    }
    let mut sizes: Vec<SizeCount> =
        sizes.into_iter().map(|((width, height), images)| SizeCount { width, height, images }).collect();
    sizes.sort_by_key(|s| (std::cmp::Reverse(s.images), s.width, s.height));
    let mut groups: Vec<Vec<usize>> = identical.into_values().filter(|group| group.len() > 1).collect();
    groups.sort_unstable();
    let splits = official_splits(set);
    diagnostics.extend(groups.iter().map(|group| duplicate(set, &splits, group)));
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
    diagnostics.extend(count_errors(set, manifest, expected, &classes, &splits));
    for diagnostic in &mut diagnostics {
        let known = manifest.is_some_and(|m| m.allow.contains(&diagnostic.kind));
        let is_subset = subset && matches!(diagnostic.kind, Kind::Count | Kind::MissingClass);
        diagnostic.is_error &= !known && !is_subset;
    }
    // Errors first, then by kind; within a kind in the order of the files.
    diagnostics.sort_by_key(|d| (!d.is_error, d.kind));
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
        diagnostics,
    }
}

fn official_splits(set: &dyn Dataset) -> Vec<(String, Vec<usize>)> {
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

/// Compares counts with the manifest.
fn count_errors(
    set: &dyn Dataset,
    manifest: Option<&Manifest>,
    expected: Option<usize>,
    classes: &[Count],
    splits: &[Count],
) -> Vec<Diagnostic> {
    let mut all = Vec::new();
    let mut compare = |unit: String, found: usize, expected: Option<usize>| {
        if let Some(expected) = expected.filter(|n| *n != found) {
            let message = format!("{unit}: expected {expected}, found {found}");
            all.push(Diagnostic::error(Kind::Count, message));
        }
    };
    compare("images".to_string(), set.len(), expected);
    compare("classes".to_string(), set.info().classes.len(), manifest.and_then(Manifest::class_count));
    for count in splits {
        compare(format!("images of the split `{}`", count.name), count.found, count.expected);
    }
    // With a single image, a class is in one part of a split only.
    let single = classes.iter().filter(|class| class.found == 1 && splits.is_empty() && expected.is_none());
    let single: Vec<String> = single.map(|class| format!("`{}`", class.name)).collect();
    for count in classes {
        compare(format!("images of the class `{}`", count.name), count.found, count.expected);
    }
    if !single.is_empty() {
        let message = format!("{} classes have one image only: {}", single.len(), examples(&single));
        all.push(Diagnostic { kind: Kind::Count, message, is_error: false });
    }
    all
}

fn duplicate(set: &dyn Dataset, splits: &[(String, Vec<usize>)], group: &[usize]) -> Diagnostic {
    let split_of = |index: usize| splits.iter().position(|(_, list)| list.binary_search(&index).is_ok());
    let differ = |f: &dyn Fn(usize) -> Option<usize>| group.iter().any(|&i| f(i) != f(group[0]));
    let class = |index: usize| set.class(index).map(|c| c as usize);
    let named = |&i: &usize| match split_of(i) {
        Some(split) => format!("{} ({})", set.key(i), splits[split].0),
        None => set.key(i),
    };
    let message = group.iter().map(named).collect::<Vec<_>>().join(", ");
    if differ(&split_of) {
        Diagnostic::error(Kind::DuplicateAcrossSplits, message)
    } else if differ(&class) {
        Diagnostic::error(Kind::DuplicateAcrossClasses, message)
    } else {
        Diagnostic { kind: Kind::Duplicate, message, is_error: false }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |expected: Option<usize>| expected.map(|n| format!(" of {n}")).unwrap_or_default();
        let subset = if self.subset { " (subset)" } else { "" };
        writeln!(f, "{}: {}{subset}", self.dataset, self.title)?;
        writeln!(f, "{:<12}{}{}", "images", self.images, of(self.expected))?;
        for split in &self.splits {
            writeln!(f, "{:<12}{}: {}{}", "split", split.name, split.found, of(split.expected))?;
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
        for size in self.sizes.iter().take(MAX_SHOWN) {
            writeln!(f, "{:<12}{}x{}: {} images", "size", size.width, size.height, size.images)?;
        }
        if self.sizes.len() > MAX_SHOWN {
            writeln!(f, "{:<12}and {} more sizes", "", self.sizes.len() - MAX_SHOWN)?;
        }
        let mut shown = BTreeMap::<(Kind, bool), usize>::new();
        for diagnostic in &self.diagnostics {
            let n = shown.entry((diagnostic.kind, diagnostic.is_error)).or_insert(0);
            *n += 1;
            if *n <= MAX_SHOWN {
                let mark = if diagnostic.is_error { "error" } else { "warning" };
                writeln!(f, "{mark:<12}{}: {}", diagnostic.kind, diagnostic.message)?;
            }
        }
        for ((kind, is_error), n) in shown.into_iter().filter(|(_, n)| *n > MAX_SHOWN) {
            let mark = if is_error { "error" } else { "warning" };
            writeln!(f, "{mark:<12}{kind}: {} more (--json shows all)", n - MAX_SHOWN)?;
        }
        let errors = self.diagnostics.iter().filter(|d| d.is_error).count();
        match errors {
            0 => write!(f, "ok"),
            n => write!(f, "failed: {n} error{}", if n == 1 { "" } else { "s" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn reports_unreadable_images() {
        let mut set = Fake::new(&[3, 4]);
        set.broken = Some(5);
        let report = check_synthetic(&set, None);
        assert!(!report.is_ok());
        assert_eq!((report.images, report.expected), (7, None));
        assert_eq!(report.diagnostics.len(), 1);
        assert_eq!(report.sizes.iter().map(|s| s.images).sum::<usize>(), 6);
        let text = report.to_string();
        assert!(text.contains("unreadable: c1/005.png") && text.ends_with("1 error"), "{text}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert!(check_synthetic(&Fake::new(&[2]), None).is_ok());
    }

    #[test]
    fn reports_identical_images() {
        // Values repeat with the index modulo 256, sizes modulo 6: 768 images apart.
        let report = check_synthetic(&Fake::new(&[770]), None);
        assert_eq!(report.duplicates, [["c0/000.png", "c0/768.png"], ["c0/001.png", "c0/769.png"]]);
        assert!(report.is_ok());
        let report = check_synthetic(&Fake::new(&[760, 10]), None);
        assert_eq!(report.diagnostics[0].kind, Kind::DuplicateAcrossClasses);
        assert!(!report.is_ok());
    }
}
