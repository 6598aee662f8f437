//! Embedded procedural land cover: aerial-like images with a class for every pixel, no files.
//!
//! Parcels with furrows, woods, a stream or a pond, a road and farmhouses on a meadow, in the colors
//! of the scenes: any ground may have any of them, so furrows, crowns and shapes tell as much as
//! color. A pixel that lies on the edge between two classes holds both and is ignored (255).
//! An image follows from (seed, number) alone and is the same bytes on every machine.

use std::sync::Arc;

use serde::Deserialize;
use stillhouse_core::Rng;
use stillhouse_core::data::{Dataset, DatasetInfo, Image, Label, Mask, Sample, Task};
use stillhouse_core::registry::{DatasetBuild, DatasetRequest, Entry};

use super::canvas::{Canvas, Color, Frame, WORLD, mix, shade, wave};
use super::palette::direction;
use super::{FIVE, Scene, in_part, land};
use crate::{Error, Result};

/// Changes with the images.
const VERSION: u32 = 1;

/// The label of pixels on an edge.
const IGNORE: u8 = 255;

pub(crate) const ENTRY: Entry<DatasetBuild> = Entry {
    name: "fields",
    summary: "synthetic procedural land cover with masks: 6 classes, no files; for smoke runs and tests",
    source: "made by this program; manifest datasets/fields.toml",
    defaults: || {
        let Options { size, images, seed } = Options::default();
        format!(
            "size = {size}  # pixels of a side\nimages = {images}  # of five one tests in the official split\n\
             seed = {seed}  # of the images\n"
        )
    },
    build: |request| open(request),
};

/// The classes in the order of their indices.
pub(crate) const CLASSES: [&str; 6] = ["meadow", "crop", "wood", "water", "road", "building"];
const CROP: usize = 1;
const WOOD: usize = 2;
const WATER: usize = 3;
const ROAD: usize = 4;
const BUILDING: usize = 5;

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    size: usize,
    images: usize,
    seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { size: 72, images: 500, seed: 0 }
    }
}

/// What a class is on the canvas of labels. No point of a parabola lies between others of it, so a
/// pixel that a shape covers in part is none of these.
fn code(class: usize) -> Color {
    let class = class as f32;
    [class, class * class, 0.0]
}

fn label(pixel: Color) -> u8 {
    let class = (pixel[0] + 0.5) as usize;
    if code(class) == pixel { class as u8 } else { IGNORE }
}

/// A scene and the labels of what is painted on it.
struct Land {
    scene: Scene,
    labels: Canvas,
}

impl Land {
    /// Open ground, then what lies over it from the lowest to the highest.
    fn paint(&mut self) {
        self.scene.open_ground();
        for _ in 0..self.scene.count(1, 3) {
            self.crop();
        }
        for _ in 0..self.scene.count(1, 2) {
            self.wood();
        }
        if self.scene.chance(75) {
            self.water();
        }
        let frame = self.scene.frame;
        if self.scene.chance(85) {
            self.road(&frame);
        }
        for _ in 0..self.scene.count(2, 7) {
            self.building(&frame);
        }
    }

    /// A frame anywhere on the image in any direction.
    fn anywhere(&mut self) -> Frame {
        let s = &mut self.scene;
        let (x, y) = (s.between(0.0, WORLD), s.between(0.0, WORLD));
        Frame::new(x, y, direction(&mut s.draw), 1.0)
    }

    /// A parcel of furrows.
    fn crop(&mut self) {
        let frame = self.anywhere();
        let s = &mut self.scene;
        let half = (s.between(12.0, 24.0), s.between(8.0, 16.0));
        let a = s.palette.open(&mut s.draw);
        let b = shade(a, s.between(0.55, 0.75));
        let period = s.between(2.6, 5.0);
        let noise = &s.palette.noise;
        let parcel = |u: f32, v: f32| (u.abs() - half.0).max(v.abs() - half.1);
        s.canvas.textured(&frame, half, parcel, |u, v| {
            let furrow = mix(a, b, 0.5 + 0.5 * wave(v / period));
            shade(furrow, 0.85 + 0.3 * noise.at(u / 12.0, v / 12.0))
        });
        self.labels.shape(&frame, half, code(CROP), parcel);
    }

    /// A stream from side to side, or a pond.
    fn water(&mut self) {
        let frame = self.anywhere();
        let s = &mut self.scene;
        let stream = s.chance(60);
        let (height, length, half) = (s.between(3.0, 9.0), s.between(40.0, 80.0), s.between(3.5, 7.0));
        let (a, b) = (s.between(7.0, 14.0), s.between(5.0, 10.0));
        let (noise, water) = (&s.palette.noise, s.palette.water);
        let bank = |u: f32, v: f32| {
            let worn = 3.0 * noise.at(u / 9.0, v / 9.0) - 1.5;
            let along = (v - height * wave(u / length)).abs() - half;
            let (p, q) = (u / a, v / b);
            worn + if stream { along } else { ((p * p + q * q).sqrt() - 1.0) * b }
        };
        let within = if stream { (land::ALL, land::ALL) } else { (1.4 * a, 1.4 * b) };
        let color = |u: f32, v: f32| shade(water, 0.9 + 0.2 * noise.at(u / 10.0, v / 5.0));
        s.canvas.textured(&frame, within, bank, color);
        self.labels.shape(&frame, within, code(WATER), bank);
    }

    /// Crowns beside crowns.
    fn wood(&mut self) {
        let frame = self.anywhere();
        let s = &mut self.scene;
        let (a, b) = (s.between(9.0, 18.0), s.between(7.0, 13.0));
        let floor = shade(s.palette.tree, 0.6);
        let edge = |u: f32, v: f32| {
            let (p, q) = (u / a, v / b);
            ((p * p + q * q).sqrt() - 1.0) * b
        };
        s.canvas.shape(&frame, (a, b), floor, edge);
        self.labels.shape(&frame, (a, b), code(WOOD), edge);
        let r = s.between(1.8, 3.0);
        for _ in 0..(2.5 * a * b / (r * r)) as u32 {
            let ((x, y), far) = (direction(&mut s.draw), s.between(0.1, 1.0));
            let (u, v, crown) = (a * x * far, b * y * far, r * s.between(0.75, 1.25));
            s.tree(&frame, u, v, crown);
            let (x, y) = frame.at(u, v);
            self.labels.disc(&Frame::new(x, y, (1.0, 0.0), 1.0), (0.0, 0.0), crown, code(WOOD));
        }
    }

    fn road(&mut self, frame: &Frame) {
        let s = &mut self.scene;
        let half = s.between(2.0, 3.2);
        let color = if s.chance(50) { s.palette.asphalt } else { s.palette.dry };
        let track = |_: f32, v: f32| v.abs() - half;
        s.canvas.shape(frame, (land::ALL, half), color, track);
        self.labels.shape(frame, (land::ALL, half), code(ROAD), track);
    }

    /// A farmhouse beside the road, or where it might be.
    fn building(&mut self, frame: &Frame) {
        let s = &mut self.scene;
        let (hu, hv) = (s.between(3.0, 5.5), s.between(2.4, 4.0));
        let side = if s.chance(50) { 1.0 } else { -1.0 };
        let at = (s.between(-28.0, 28.0), side * (hv + s.between(4.0, 10.0)));
        let roof = s.palette.roof(&mut s.draw);
        s.block(frame, at, (hu, hv), 1.4, roof);
        s.canvas.rect(frame, (at.0, at.1 + hv / 2.0), (hu, hv / 2.0), shade(roof, 0.75));
        self.labels.rect(frame, at, (hu, hv), code(BUILDING));
    }
}

fn make(options: Options, number: usize) -> (Vec<u8>, Vec<u8>) {
    let rng = Rng::new(options.seed).stream("fields");
    let scene = Scene::new(options.size, rng.at(0, number as u64));
    let mut land = Land { scene, labels: Canvas::new(options.size) };
    land.paint();
    let Scene { canvas, mut draw, palette, .. } = land.scene;
    (palette.develop(&canvas, &mut draw), land.labels.pixels.into_iter().map(label).collect())
}

struct Fields {
    info: DatasetInfo,
    options: Options,
}

fn open(request: &DatasetRequest) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let options: Options = stillhouse_core::config::from_table(&request.options, "dataset `fields`")?;
    check(options)?;
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("fields (synthetic, procedural), {} images", options.images),
        classes: CLASSES.map(String::from).to_vec(),
        task: Task::Segmentation,
        synthetic: true,
    };
    Ok(Arc::new(Fields { info, options }))
}

fn check(options: Options) -> Result<()> {
    let Options { size, images, .. } = options;
    if !(16..=1024).contains(&size) || !(FIVE..=100_000).contains(&images) {
        return Err(Error::setting(
            "dataset `fields`",
            format!("size {size} and images {images}, expected 16 to 1024 pixels and 5 to 100000 images"),
        ));
    }
    Ok(())
}

impl Dataset for Fields {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        self.options.images
    }

    fn key(&self, index: usize) -> String {
        format!("fields{index:05}")
    }

    fn class(&self, _index: usize) -> Option<u32> {
        None
    }

    fn sample(&self, index: usize) -> stillhouse_core::Result<Sample> {
        let size = self.options.size;
        let (pixels, labels) = make(self.options, index);
        let image = Image { width: size, height: size, pixels };
        let label = Label::Mask(Mask { width: size, height: size, labels });
        Ok(Sample { id: index as u64, image, label })
    }

    fn fingerprint(&self) -> stillhouse_core::Result<String> {
        let text = format!("fields {VERSION} {:?}", self.options);
        Ok(stillhouse_core::fs::sha256(text.as_bytes()))
    }

    fn official_split(&self, name: &str) -> Option<Vec<usize>> {
        let is_in = in_part(name)?;
        Some((0..self.len()).filter(|i| is_in(*i)).collect())
    }
}
