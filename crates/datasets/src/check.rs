//! What `stillhouse data check` reports of a dataset.

use std::collections::BTreeMap;
use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stillhouse_core::data::{Dataset, Task};

use crate::manifest;

/// What was found in a dataset; printed as text, or kept as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Registry name.
    pub dataset: String,
    /// Its title.
    pub title: String,
    /// Images found.
    pub images: usize,
    /// Images by the manifest, if there is one.
    pub expected: Option<usize>,
    /// Images of each class, in class order; empty for segmentation.
    pub classes: Vec<ClassCount>,
    /// Images that cannot be read.
    pub broken: Vec<Broken>,
    /// Keys of images with the same pixels, group by group.
    pub duplicates: Vec<Vec<String>>,
    /// How often each size occurs, the most frequent first.
    pub sizes: Vec<SizeCount>,
}

/// Images of one class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCount {
    /// The class.
    pub name: String,
    /// Images found.
    pub found: usize,
    /// Images by the manifest, if it has the class.
    pub expected: Option<usize>,
}

/// An image that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// The image's key.
    pub key: String,
    /// Why, with the file's path.
    pub error: String,
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
    /// Whether all counts are the manifest's and every image can be read. Duplicates are no fault:
    /// the official sets have some.
    pub fn is_ok(&self) -> bool {
        self.broken.is_empty()
            && self.expected.is_none_or(|n| n == self.images)
            && self.classes.iter().all(|c| c.expected.is_none_or(|n| n == c.found))
    }
}

/// Decodes every image of a dataset and compares it with its manifest. The order of the report
/// does not depend on the number of threads.
pub fn check(dataset: &dyn Dataset) -> Report {
    let info = dataset.info();
    let manifest = manifest::find(&info.name);
    let looks: Vec<Result<(String, usize, usize), String>> = (0..dataset.len())
        .into_par_iter()
        .map(|index| {
            let image = dataset.sample(index).map_err(|e| e.to_string())?.image;
            Ok((stillhouse_core::files::sha256(&image.pixels), image.width, image.height))
        })
        .collect();
    let (mut sizes, mut hashes) = (BTreeMap::new(), BTreeMap::<_, Vec<usize>>::new());
    let mut broken = Vec::new();
    for (index, look) in looks.into_iter().enumerate() {
        match look {
            Ok((hash, width, height)) => {
                *sizes.entry((width, height)).or_insert(0) += 1;
                hashes.entry((hash, width, height)).or_default().push(index);
            }
            Err(error) => broken.push(Broken { key: dataset.key(index), error }),
        }
    }
    let mut sizes: Vec<SizeCount> =
        sizes.into_iter().map(|((width, height), images)| SizeCount { width, height, images }).collect();
    sizes.sort_by_key(|s| (std::cmp::Reverse(s.images), s.width, s.height));
    let mut duplicates: Vec<Vec<usize>> = hashes.into_values().filter(|group| group.len() > 1).collect();
    duplicates.sort_unstable();
    let mut counts = vec![0; info.classes.len()];
    for class in (0..dataset.len()).filter_map(|i| dataset.class(i)) {
        if let Some(count) = counts.get_mut(class as usize) {
            *count += 1;
        }
    }
    let expected =
        |name: &str| manifest.and_then(|m| m.classes.iter().find(|c| c.name == name)).map(|c| c.images);
    let counted = info.classes.iter().zip(counts);
    let classes = match info.task {
        Task::Segmentation => Vec::new(),
        Task::Classification => counted
            .map(|(name, found)| ClassCount { name: name.clone(), found, expected: expected(name) })
            .collect(),
    };
    Report {
        dataset: info.name.clone(),
        title: info.title.clone(),
        images: dataset.len(),
        expected: manifest.map(|m| m.classes.iter().map(|c| c.images).sum()),
        classes,
        broken,
        duplicates: duplicates.iter().map(|g| g.iter().map(|&i| dataset.key(i)).collect()).collect(),
        sizes,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |expected: Option<usize>| expected.map(|n| format!(" of {n}")).unwrap_or_default();
        writeln!(f, "{}: {}", self.dataset, self.title)?;
        writeln!(f, "images      {}{}", self.images, of(self.expected))?;
        let wrong: Vec<&ClassCount> =
            self.classes.iter().filter(|c| c.expected.is_some_and(|n| n != c.found)).collect();
        if wrong.is_empty() {
            let (least, most) =
                self.classes.iter().fold((usize::MAX, 0), |(a, b), c| (a.min(c.found), b.max(c.found)));
            if most > 0 {
                writeln!(f, "classes     {}, {least} to {most} images each", self.classes.len())?;
            }
        }
        for class in wrong {
            writeln!(f, "class       {}: {}{}", class.name, class.found, of(class.expected))?;
        }
        for size in &self.sizes {
            writeln!(f, "size        {}x{}: {} images", size.width, size.height, size.images)?;
        }
        for group in &self.duplicates {
            writeln!(f, "same pixels {}", group.join(", "))?;
        }
        for broken in &self.broken {
            writeln!(f, "broken      {}: {}", broken.key, broken.error)?;
        }
        write!(f, "{}", if self.is_ok() { "ok" } else { "not as expected" })
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
        let report = check(&set);
        assert!(!report.is_ok());
        assert_eq!((report.images, report.expected), (7, None));
        assert_eq!(report.broken[0].key, "c1/005.png");
        assert_eq!(report.sizes.iter().map(|s| s.images).sum::<usize>(), 6);
        let text = report.to_string();
        assert!(text.contains("broken      c1/005.png") && text.ends_with("not as expected"), "{text}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        assert!(check(&Fake::new(&[2])).is_ok());
    }

    #[test]
    fn equal_pixels_are_found() {
        // Values repeat with the index modulo 256, sizes modulo 6: 768 images apart.
        let report = check(&Fake::new(&[770]));
        assert_eq!(report.duplicates, [["c0/000.png", "c0/768.png"], ["c0/001.png", "c0/769.png"]]);
    }
}
