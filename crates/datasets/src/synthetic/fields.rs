//! Synthetic land cover: aerial images with a class for every pixel.
//!
//! Parcels with furrows, woods, a stream or a pond, a road and farmhouses on a meadow, in the colors
//! of the scenes. Any ground may have any color, so furrows, crowns and shapes are as informative as
//! color. A pixel on the edge between two classes contains both and is ignored.

use std::sync::Arc;

use serde::Deserialize;
use stillhouse_core::Rng;
use stillhouse_core::data::{Dataset, DatasetInfo, IGNORE_INDEX, Image, Label, Mask, Sample, Task};
use stillhouse_core::registry::DatasetRequest;

use super::canvas::{Canvas, Color, Frame, WORLD, mix, shade, wave};
use super::palette::direction;
use super::{Scene, check_settings, is_in_split, land, settings};
use crate::manifest::of_builtin;

/// To be changed when the images change.
const VERSION: u32 = 1;

pub(super) const NAME: &str = "fields";

// Class indices, in the order of the manifest; 0 is the meadow.
const CROP: usize = 1;
const WOOD: usize = 2;
const WATER: usize = 3;
const ROAD: usize = 4;
const BUILDING: usize = 5;

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldSettings {
    size: usize,
    images: usize,
    seed: u64,
}

/// Encodes a class on the canvas of labels. No point of a parabola lies between two others, so a
/// pixel that a shape covers in part decodes to no class.
fn encode(class: usize) -> Color {
    let class = class as f32;
    [class, class * class, 0.0]
}

fn label(pixel: Color) -> u8 {
    let class = (pixel[0] + 0.5) as usize;
    if encode(class) == pixel { class as u8 } else { IGNORE_INDEX }
}

/// A scene and its labels.
struct Land {
    scene: Scene,
    labels: Canvas,
}

impl Land {
    /// Draws open ground, then the objects on it from the lowest to the highest.
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

    /// Returns a frame with a random position and direction.
    fn anywhere(&mut self) -> Frame {
        let s = &mut self.scene;
        let (x, y) = (s.between(0.0, WORLD), s.between(0.0, WORLD));
        Frame::new(x, y, direction(&mut s.draw), 1.0)
    }

    /// Draws a parcel of furrows.
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
        self.labels.shape(&frame, half, encode(CROP), parcel);
    }

    /// Draws a stream across the image, or a pond.
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
        self.labels.shape(&frame, within, encode(WATER), bank);
    }

    /// Draws dense tree crowns.
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
        self.labels.shape(&frame, (a, b), encode(WOOD), edge);
        let r = s.between(1.8, 3.0);
        for _ in 0..(2.5 * a * b / (r * r)) as u32 {
            let ((x, y), far) = (direction(&mut s.draw), s.between(0.1, 1.0));
            let (u, v, crown) = (a * x * far, b * y * far, r * s.between(0.75, 1.25));
            s.tree(&frame, u, v, crown);
            let (x, y) = frame.at(u, v);
            self.labels.disc(&Frame::new(x, y, (1.0, 0.0), 1.0), (0.0, 0.0), crown, encode(WOOD));
        }
    }

    fn road(&mut self, frame: &Frame) {
        let s = &mut self.scene;
        let half = s.between(2.0, 3.2);
        let color = if s.chance(50) { s.palette.asphalt } else { s.palette.dry };
        let track = |_: f32, v: f32| v.abs() - half;
        s.canvas.shape(frame, (land::ALL, half), color, track);
        self.labels.shape(frame, (land::ALL, half), encode(ROAD), track);
    }

    /// Draws a farmhouse along the road.
    fn building(&mut self, frame: &Frame) {
        let s = &mut self.scene;
        let (hu, hv) = (s.between(3.0, 5.5), s.between(2.4, 4.0));
        let side = if s.chance(50) { 1.0 } else { -1.0 };
        let at = (s.between(-28.0, 28.0), side * (hv + s.between(4.0, 10.0)));
        let roof = s.palette.roof(&mut s.draw);
        s.block(frame, at, (hu, hv), 1.4, roof);
        s.canvas.rect(frame, (at.0, at.1 + hv / 2.0), (hu, hv / 2.0), shade(roof, 0.75));
        self.labels.rect(frame, at, (hu, hv), encode(BUILDING));
    }
}

fn draw(settings: FieldSettings, number: usize) -> (Vec<u8>, Vec<u8>) {
    let rng = Rng::new(settings.seed).stream("fields");
    let scene = Scene::new(settings.size, rng.at(0, number as u64));
    let mut land = Land { scene, labels: Canvas::new(settings.size) };
    land.paint();
    let Scene { canvas, mut draw, palette, .. } = land.scene;
    (palette.develop(&canvas, &mut draw), land.labels.pixels.into_iter().map(label).collect())
}

struct Fields {
    info: DatasetInfo,
    settings: FieldSettings,
}

pub(super) fn open(request: &DatasetRequest) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let settings: FieldSettings = settings(NAME, request)?;
    check_settings(NAME, settings.size, ("images", settings.images), true)?;
    let info = DatasetInfo {
        name: request.name.clone(),
        title: format!("fields (synthetic, procedural), {} images", settings.images),
        classes: of_builtin(NAME)?.class_names(),
        task: Task::Segmentation,
        synthetic: true,
    };
    Ok(Arc::new(Fields { info, settings }))
}

impl Dataset for Fields {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn len(&self) -> usize {
        self.settings.images
    }

    fn key(&self, index: usize) -> String {
        format!("fields{index:05}")
    }

    fn class(&self, _index: usize) -> Option<u32> {
        None
    }

    fn sample(&self, index: usize) -> stillhouse_core::Result<Sample> {
        let size = self.settings.size;
        let (pixels, labels) = draw(self.settings, index);
        let image = Image { width: size, height: size, pixels };
        let label = Label::Mask(Mask { width: size, height: size, labels });
        Ok(Sample { id: index as u64, image, label })
    }

    fn fingerprint(&self) -> stillhouse_core::Result<String> {
        let FieldSettings { size, images, seed } = self.settings;
        let text = format!("fields {VERSION} Options {{ size: {size}, images: {images}, seed: {seed} }}");
        Ok(stillhouse_core::fs::sha256(text.as_bytes()))
    }

    fn official_split(&self, name: &str) -> Option<Vec<usize>> {
        let is_in = is_in_split(name)?;
        Some((0..self.len()).filter(|i| is_in(*i)).collect())
    }
}
