//! Embedded procedural scenes: 21 classes of aerial-like images that need no file.
//!
//! Named after the classes of UC Merced Land Use, which they imitate in structure: furrows, planes
//! on aprons, diamonds, tanks, piers, lots of cars. Colors hardly tell the classes apart: all
//! draw from the same climates, grounds, roofs and lights, so a network has to see shapes.
//! An image follows from (seed, class, number) alone and is the same bytes on every machine.

mod canvas;
pub(crate) mod fields;
mod land;
mod palette;
pub(crate) mod species;
mod town;
mod traffic;

use std::sync::Arc;

use serde::Deserialize;
use stillhouse_core::Rng;
use stillhouse_core::data::{Dataset, DatasetInfo, Image, Label, Sample, Task};
use stillhouse_core::registry::{DatasetBuild, DatasetRequest, Entry};

use crate::Error;
use canvas::{Canvas, Frame, WORLD};
use palette::{Palette, between, direction};

/// Changes with the images.
const VERSION: u32 = 1;

pub(crate) const ENTRY: Entry<DatasetBuild> = Entry {
    name: "scenes",
    summary: "synthetic procedural aerial scenes: 21 classes, no files; for smoke runs and tests",
    source: "made by this program; manifest datasets/scenes.toml",
    defaults: || {
        let Options { size, per_class, seed } = Options::default();
        format!(
            "size = {size}  # pixels of a side\nper_class = {per_class}  # images of each class, twice those of ucm\n\
             seed = {seed}  # of the images\n"
        )
    },
    build: |request| open(request),
};

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    size: usize,
    per_class: usize,
    seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { size: 72, per_class: 200, seed: 0 }
    }
}

type Painter = fn(&mut Scene);

/// The classes and who paints them; the order is that of UC Merced.
const CLASSES: [(&str, Painter); 21] = [
    ("agricultural", land::agricultural),
    ("airplane", traffic::airplane),
    ("baseballdiamond", land::baseball_diamond),
    ("beach", land::beach),
    ("buildings", town::buildings),
    ("chaparral", land::chaparral),
    ("denseresidential", town::dense_residential),
    ("forest", land::forest),
    ("freeway", traffic::freeway),
    ("golfcourse", land::golf_course),
    ("harbor", traffic::harbor),
    ("intersection", traffic::intersection),
    ("mediumresidential", town::medium_residential),
    ("mobilehomepark", town::mobile_home_park),
    ("overpass", traffic::overpass),
    ("parkinglot", traffic::parking_lot),
    ("river", land::river),
    ("runway", traffic::runway),
    ("sparseresidential", town::sparse_residential),
    ("storagetanks", town::storage_tanks),
    ("tenniscourt", town::tennis_court),
];

/// One image while it is made.
struct Scene {
    canvas: Canvas,
    draw: stillhouse_core::Draw,
    palette: Palette,
    /// Near the middle, along a random direction, at a random scale.
    frame: Frame,
}

impl Scene {
    fn new(size: usize, mut draw: stillhouse_core::Draw) -> Self {
        let palette = Palette::new(&mut draw);
        let place = |draw: &mut _| between(draw, 0.35 * WORLD, 0.65 * WORLD);
        let (x, y) = (place(&mut draw), place(&mut draw));
        let frame = Frame::new(x, y, direction(&mut draw), between(&mut draw, 0.8, 1.25));
        Self { canvas: Canvas::new(size), draw, palette, frame }
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        between(&mut self.draw, low, high)
    }

    /// Uniform integer in `low..=high`.
    fn count(&mut self, low: u32, high: u32) -> u32 {
        low + self.draw.below(u64::from(high - low) + 1) as u32
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.draw.below(100) < percent
    }
}

fn make(options: Options, class: usize, number: usize) -> Vec<u8> {
    let rng = Rng::new(options.seed).stream("scenes");
    let mut scene = Scene::new(options.size, rng.at(class as u64, number as u64));
    (CLASSES[class].1)(&mut scene);
    let Scene { canvas, mut draw, palette, .. } = scene;
    palette.develop(&canvas, &mut draw)
}

/// Of five images of a class the last one tests in an official split.
const FIVE: usize = 5;

/// Whether a place is in the part of an official split that is asked for; none for an unknown part.
fn in_part(name: &str) -> Option<impl Fn(usize) -> bool> {
    let tests = match name {
        "train" => false,
        "test" => true,
        _ => return None,
    };
    Some(move |place: usize| (place % FIVE == FIVE - 1) == tests)
}

/// An synthetic set with one class for an image.
struct Painted {
    info: DatasetInfo,
    options: Options,
    kind: Kind,
}

/// What sets it apart from another.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    version: u32,
    /// Whether it has an official split.
    official: bool,
    /// Paints an image by class and number.
    make: fn(Options, usize, usize) -> Vec<u8>,
}

fn open(request: &DatasetRequest) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let classes = CLASSES.iter().map(|(name, _)| (*name).to_string()).collect();
    let options = stillhouse_core::config::from_table(&request.options, "dataset `scenes`")?;
    painted(request, Kind { name: "scenes", version: VERSION, official: false, make }, classes, options)
}

fn painted(
    request: &DatasetRequest,
    kind: Kind,
    classes: Vec<String>,
    options: Options,
) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let Options { size, per_class, .. } = options;
    let least = if kind.official { FIVE } else { 1 };
    if !(16..=1024).contains(&size) || !(least..=100_000).contains(&per_class) {
        let what = format!(
            "size {size} and per_class {per_class}, expected 16 to 1024 pixels and {least} to 100000 images"
        );
        return Err(Error::setting(format!("dataset `{}`", kind.name), what).into());
    }
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("{} (synthetic, procedural), {} images", kind.name, per_class * classes.len()),
        classes,
        task: Task::Classification,
        synthetic: true,
    };
    Ok(Arc::new(Painted { info, options, kind }))
}

impl Painted {
    /// Class and number within it.
    fn place(&self, index: usize) -> (usize, usize) {
        (index / self.options.per_class, index % self.options.per_class)
    }
}

impl Dataset for Painted {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        self.info.classes.len() * self.options.per_class
    }

    fn key(&self, index: usize) -> String {
        let (class, number) = self.place(index);
        let name = &self.info.classes[class];
        format!("{name}/{name}{number:05}")
    }

    fn class(&self, index: usize) -> Option<u32> {
        Some(self.place(index).0 as u32)
    }

    fn sample(&self, index: usize) -> stillhouse_core::Result<Sample> {
        let (class, number) = self.place(index);
        let size = self.options.size;
        let image =
            Image { width: size, height: size, pixels: (self.kind.make)(self.options, class, number) };
        Ok(Sample { id: index as u64, image, label: Label::Class(class as u32) })
    }

    fn fingerprint(&self) -> stillhouse_core::Result<String> {
        let text = format!("{} {} {:?}", self.kind.name, self.kind.version, self.options);
        Ok(stillhouse_core::fs::sha256(text.as_bytes()))
    }

    fn official_split(&self, name: &str) -> Option<Vec<usize>> {
        let is_in = in_part(name).filter(|_| self.kind.official)?;
        Some((0..self.len()).filter(|i| is_in(self.place(*i).1)).collect())
    }
}
