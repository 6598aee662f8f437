//! Synthetic datasets: images that the program draws, without files.
//!
//! An image depends on the seed, its class and its number alone and has the same bytes on every
//! machine. Classes and default settings are in the manifests.

mod canvas;
mod fields;
mod land;
mod palette;
mod scenes;
mod species;
mod town;
mod traffic;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use stillhouse_core::data::{Dataset, DatasetInfo, Image, Label, Sample, Task};
use stillhouse_core::registry::{DatasetBuild, DatasetRequest};

use crate::manifest::of_builtin;
use crate::{Error, Result};
use canvas::{Canvas, Frame, WORLD};
use palette::{Palette, between, direction};

/// Returns the constructor of a synthetic dataset.
pub(crate) fn builder(name: &str) -> Option<DatasetBuild> {
    match name {
        scenes::NAME => Some(scenes::open),
        fields::NAME => Some(fields::open),
        species::NAME => Some(species::open),
        _ => None,
    }
}

/// Returns the settings of a synthetic dataset with their defaults, as TOML text.
pub(crate) fn defaults(name: &str) -> Option<fn() -> String> {
    fn text(name: &str) -> String {
        of_builtin(name).map(|manifest| manifest.defaults.to_string()).unwrap_or_default()
    }
    match name {
        scenes::NAME => Some(|| text(scenes::NAME)),
        fields::NAME => Some(|| text(fields::NAME)),
        species::NAME => Some(|| text(species::NAME)),
        _ => None,
    }
}

/// Merges the manifest's defaults with the options of a request.
fn settings<T: DeserializeOwned>(name: &str, request: &DatasetRequest) -> stillhouse_core::Result<T> {
    let mut table = of_builtin(name)?.defaults.clone();
    stillhouse_core::config::merge(&mut table, &request.options);
    stillhouse_core::config::from_table(&table, &format!("dataset `{name}`"))
}

/// Settings of a dataset with one class per image.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageSettings {
    size: usize,
    per_class: usize,
    seed: u64,
}

/// An image that is being drawn.
struct Scene {
    canvas: Canvas,
    draw: stillhouse_core::Draw,
    palette: Palette,
    /// Near the center, with a random direction and scale.
    frame: Frame,
}

impl Scene {
    fn new(size: usize, mut draw: stillhouse_core::Draw) -> Self {
        let palette = Palette::new(&mut draw);
        let coordinate = |draw: &mut _| between(draw, 0.35 * WORLD, 0.65 * WORLD);
        let (x, y) = (coordinate(&mut draw), coordinate(&mut draw));
        let frame = Frame::new(x, y, direction(&mut draw), between(&mut draw, 0.8, 1.25));
        Self { canvas: Canvas::new(size), draw, palette, frame }
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        between(&mut self.draw, low, high)
    }

    /// Returns a uniform integer in `low..=high`.
    fn count(&mut self, low: u32, high: u32) -> u32 {
        low + self.draw.below(u64::from(high - low) + 1) as u32
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.draw.below(100) < percent
    }
}

/// In an official split, the last of every five images of a class is a test image.
const TEST_INTERVAL: usize = 5;

/// Returns whether a number belongs to an official split; `None` for an unknown split.
fn is_in_split(name: &str) -> Option<impl Fn(usize) -> bool> {
    let is_test = match name {
        "train" => false,
        "test" => true,
        _ => return None,
    };
    Some(move |number: usize| (number % TEST_INTERVAL == TEST_INTERVAL - 1) == is_test)
}

/// Limits of the settings `size` and the number of images.
fn check_settings(name: &str, size: usize, (setting, images): (&str, usize), has_split: bool) -> Result<()> {
    let min = if has_split { TEST_INTERVAL } else { 1 };
    if (16..=1024).contains(&size) && (min..=100_000).contains(&images) {
        return Ok(());
    }
    Err(Error::setting(
        format!("dataset `{name}`"),
        format!(
            "expected size from 16 to 1024 and {setting} from {min} to 100000, found size = {size} and \
             {setting} = {images}"
        ),
    ))
}

/// A synthetic dataset with one class per image.
struct SyntheticDataset {
    info: DatasetInfo,
    settings: ImageSettings,
    kind: SyntheticKind,
}

/// Content of a synthetic dataset.
#[derive(Clone, Copy)]
struct SyntheticKind {
    name: &'static str,
    /// To be changed when the images change.
    version: u32,
    classes: usize,
    has_split: bool,
    /// Draws an image by class and number.
    draw: fn(ImageSettings, usize, usize) -> Vec<u8>,
}

impl SyntheticDataset {
    fn open(request: &DatasetRequest, kind: SyntheticKind) -> stillhouse_core::Result<Self> {
        let settings: ImageSettings = settings(kind.name, request)?;
        let images = ("per_class", settings.per_class);
        check_settings(kind.name, settings.size, images, kind.has_split)?;
        let classes = of_builtin(kind.name)?.class_names();
        if classes.len() != kind.classes {
            let message = format!(
                "datasets/{}.toml: expected {} classes, found {}",
                kind.name,
                kind.classes,
                classes.len()
            );
            return Err(Error::Manifest(message).into());
        }
        let images = settings.per_class * classes.len();
        let info = DatasetInfo {
            name: request.name.clone(),
            title: format!("{} (synthetic, procedural), {images} images", kind.name),
            classes,
            task: Task::Classification,
            synthetic: true,
        };
        Ok(Self { info, settings, kind })
    }

    /// Returns the class of an image and its number within the class.
    fn locate(&self, index: usize) -> (usize, usize) {
        (index / self.settings.per_class, index % self.settings.per_class)
    }
}

impl Dataset for SyntheticDataset {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        self.info.classes.len() * self.settings.per_class
    }

    fn key(&self, index: usize) -> String {
        let (class, number) = self.locate(index);
        let name = &self.info.classes[class];
        format!("{name}/{name}{number:05}")
    }

    fn class(&self, index: usize) -> Option<u32> {
        Some(self.locate(index).0 as u32)
    }

    fn sample(&self, index: usize) -> stillhouse_core::Result<Sample> {
        let (class, number) = self.locate(index);
        let size = self.settings.size;
        let pixels = (self.kind.draw)(self.settings, class, number);
        let image = Image { width: size, height: size, pixels };
        Ok(Sample { id: index as u64, image, label: Label::Class(class as u32) })
    }

    fn fingerprint(&self) -> stillhouse_core::Result<String> {
        let SyntheticKind { name, version, .. } = self.kind;
        let ImageSettings { size, per_class, seed } = self.settings;
        let text =
            format!("{name} {version} Options {{ size: {size}, per_class: {per_class}, seed: {seed} }}");
        Ok(stillhouse_core::fs::sha256(text.as_bytes()))
    }

    fn official_split(&self, name: &str) -> Option<Vec<usize>> {
        let is_in = is_in_split(name).filter(|_| self.kind.has_split)?;
        Some((0..self.len()).filter(|i| is_in(self.locate(*i).1)).collect())
    }
}
