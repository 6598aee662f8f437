//! Synthetic animals: four families of five species that differ in one mark.
//!
//! Birds, fish, butterflies and beetles in any colors on any ground; a species is plain, barred,
//! spotted, capped or tailed. The family is recognized by the outline, the species by a detail, and
//! neither by color, as in fine-grained recognition. Animals face left or right and are upright, so
//! a vertically flipped image is out of distribution.

use std::sync::Arc;

use stillhouse_core::Rng;
use stillhouse_core::data::Dataset;
use stillhouse_core::registry::DatasetRequest;

use super::canvas::{Color, Frame, shade};
use super::palette::between;
use super::{ImageSettings, Scene, SyntheticDataset, SyntheticKind};

pub(super) const NAME: &str = "species";

/// Mark that distinguishes the species of a family.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mark {
    Plain,
    Barred,
    Spotted,
    Capped,
    Tailed,
}

// The manifest lists the classes by family, then by mark, in this order.
const MARKS: [Mark; 5] = [Mark::Plain, Mark::Barred, Mark::Spotted, Mark::Capped, Mark::Tailed];
const FAMILIES: [fn(&mut Animal); 4] = [Animal::bird, Animal::fish, Animal::butterfly, Animal::beetle];

/// An animal that is being drawn. Positions are along the viewing direction and down.
struct Animal {
    scene: Scene,
    frame: Frame,
    /// 1 if it faces right, -1 if left.
    side: f32,
    mark: Mark,
    body: Color,
    wing: Color,
    /// Color of bars, spots and caps.
    ink: Color,
}

impl Animal {
    fn new(size: usize, mark: Mark, draw: stillhouse_core::Draw) -> Self {
        let mut scene = Scene::new(size, draw);
        scene.open_ground();
        let frame = scene.frame;
        for _ in 0..scene.count(2, 6) {
            // Grass and stones in the background.
            let (u, v) = (scene.between(-32.0, 32.0), scene.between(-32.0, 32.0));
            let (r, light) = (scene.between(1.0, 4.0), scene.between(0.7, 1.25));
            let color = shade(scene.palette.open(&mut scene.draw), light);
            scene.canvas.disc(&frame, (u, v), r, color);
        }
        let (tilt, scale) = (scene.between(-0.2, 0.2), scene.between(0.85, 1.2));
        let length = (1.0 + tilt * tilt).sqrt();
        let frame = Frame::new(frame.x, frame.y, (1.0 / length, tilt / length), scale);
        let side = if scene.chance(50) { 1.0 } else { -1.0 };
        let body = scene.palette.roof(&mut scene.draw);
        let wing = shade(body, scene.between(0.75, 1.3));
        let darker = wing.iter().sum::<f32>() > 1.2;
        let ink = shade(
            wing,
            if darker { between(&mut scene.draw, 0.3, 0.45) } else { between(&mut scene.draw, 1.9, 2.4) },
        );
        Self { scene, frame, side, mark, body, wing, ink }
    }

    fn ellipse(&mut self, (u, v): (f32, f32), radii: (f32, f32), along: (f32, f32), color: Color) {
        let frame = self.frame.sub(self.side * u, v, (self.side * along.0, along.1));
        self.scene.canvas.ellipse(&frame, radii, color);
    }

    fn disc(&mut self, (u, v): (f32, f32), r: f32, color: Color) {
        self.scene.canvas.disc(&self.frame, (self.side * u, v), r, color);
    }

    fn line(&mut self, from: (f32, f32), to: (f32, f32), half: f32, color: Color) {
        let side = |(u, v): (f32, f32)| (self.side * u, v);
        let (from, to) = (side(from), side(to));
        self.scene.canvas.line(&self.frame, from, to, half, color);
    }

    fn eye(&mut self, at: (f32, f32)) {
        self.disc(at, 1.1, [0.9; 3]);
        self.disc(at, 0.6, [0.05; 3]);
    }

    /// Draws bars or spots on an area of about `2 a` by `2 b`.
    fn marks(&mut self, (u, v): (f32, f32), (a, b): (f32, f32)) {
        let ink = self.ink;
        for step in [-0.55, 0.0, 0.55] {
            match self.mark {
                Mark::Barred => self.line((u + step * a, v - 0.6 * b), (u + step * a, v + 0.6 * b), 0.8, ink),
                Mark::Spotted => {
                    self.disc((u + step * a, v - 0.35 * b), 1.1, ink);
                    self.disc((u + step * a, v + 0.35 * b), 1.1, ink);
                }
                _ => {}
            }
        }
    }

    fn bird(&mut self) {
        let (body, wing, ink) = (self.body, self.wing, self.ink);
        let leg = [0.25, 0.2, 0.15];
        let tail = if self.mark == Mark::Tailed { 27.0 } else { 18.0 };
        self.line((-9.0, 2.0), (-tail, 5.0), 2.0, wing);
        for foot in [-1.5, 2.5] {
            self.line((foot, 6.0), (foot + 0.5, 14.0), 0.6, leg);
        }
        self.ellipse((0.0, 0.0), (12.0, 8.0), (1.0, -0.25), body);
        self.disc((11.0, -7.0), 5.5, body);
        self.line((15.0, -7.0), (20.0, -6.2), 1.0, [0.85, 0.6, 0.15]);
        self.ellipse((-2.0, 0.5), (8.5, 5.0), (1.0, -0.1), wing);
        self.marks((-2.0, 0.5), (8.5, 5.0));
        if self.mark == Mark::Capped {
            self.ellipse((10.5, -10.0), (5.0, 2.6), (1.0, 0.0), ink);
        }
        self.eye((12.5, -8.0));
    }

    fn fish(&mut self) {
        let (body, wing, ink) = (self.body, self.wing, self.ink);
        let tail = if self.mark == Mark::Tailed { 25.0 } else { 17.5 };
        for lobe in [-1.0, 1.0] {
            self.line((-11.0, 0.0), (-tail, 7.0 * lobe), 2.0, wing);
        }
        self.ellipse((0.0, -6.5), (6.0, 3.0), (1.0, 0.15), wing);
        self.ellipse((1.0, 0.0), (14.0, 7.5), (1.0, 0.0), body);
        self.marks((-1.0, 0.0), (10.0, 7.0));
        if self.mark == Mark::Capped {
            self.ellipse((11.5, -0.5), (3.8, 5.0), (1.0, 0.0), ink);
        }
        self.ellipse((2.0, 3.0), (3.5, 1.6), (1.0, 0.5), wing);
        self.eye((10.5, -1.8));
    }

    /// Draws a top view, head up.
    fn butterfly(&mut self) {
        let (body, wing, ink) = (self.body, self.wing, self.ink);
        for side in [-1.0, 1.0] {
            if self.mark == Mark::Tailed {
                self.line((side * 8.0, 9.0), (side * 11.0, 20.0), 1.2, wing);
            }
            self.ellipse((side * 8.0, 6.5), (7.5, 5.5), (1.0, side * 0.6), shade(wing, 0.9));
            self.ellipse((side * 10.0, -5.0), (11.0, 7.0), (1.0, side * -0.45), wing);
            self.marks((side * 10.0, -5.0), (8.0, 6.0));
            if self.mark == Mark::Capped {
                self.ellipse((side * 17.5, -8.5), (3.4, 4.0), (1.0, 0.0), ink);
            }
            self.line((0.0, -9.0), (side * 4.0, -16.0), 0.5, shade(body, 0.5));
        }
        self.ellipse((0.0, 0.0), (2.0, 11.0), (1.0, 0.0), shade(body, 0.6));
    }

    /// Draws a top view, head up.
    fn beetle(&mut self) {
        let (body, wing, ink) = (self.body, self.wing, self.ink);
        let dark = shade(body, 0.45);
        for side in [-1.0, 1.0] {
            for leg in [-5.0, 1.0, 7.0] {
                self.line((side * 6.0, leg), (side * 15.0, leg + 0.5 * leg), 0.7, dark);
            }
            if self.mark == Mark::Tailed {
                self.line((side * 3.0, 13.0), (side * 5.0, 21.0), 0.9, dark);
            }
        }
        self.disc((0.0, -12.0), 5.0, dark);
        self.ellipse((0.0, 2.0), (9.5, 13.0), (1.0, 0.0), wing);
        for side in [-1.0, 1.0] {
            self.marks((side * 4.5, 2.5), (4.5, 12.0));
        }
        if self.mark == Mark::Capped {
            self.ellipse((0.0, -7.5), (7.0, 3.6), (1.0, 0.0), ink);
        }
        self.line((0.0, -9.0), (0.0, 14.0), 0.5, dark);
    }
}

fn draw(settings: ImageSettings, class: usize, number: usize) -> Vec<u8> {
    let rng = Rng::new(settings.seed).stream("species");
    let (family, mark) = (class / MARKS.len(), class % MARKS.len());
    let mut animal = Animal::new(settings.size, MARKS[mark], rng.at(class as u64, number as u64));
    FAMILIES[family](&mut animal);
    let Scene { canvas, mut draw, palette, .. } = animal.scene;
    palette.develop(&canvas, &mut draw)
}

pub(super) fn open(request: &DatasetRequest) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let classes = FAMILIES.len() * MARKS.len();
    let kind = SyntheticKind { name: NAME, version: 1, classes, has_split: true, draw };
    Ok(Arc::new(SyntheticDataset::open(request, kind)?))
}
