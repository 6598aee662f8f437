//! Embedded procedural animals: four families of five species that differ by one mark, no files.
//!
//! A bird, a fish, a butterfly or a beetle stands in any colors on any ground; its species is plain,
//! barred, spotted, capped or tailed. So the family is told by the shape of the whole, the species by
//! a detail, and neither by color: what fine-grained recognition has to do. Animals look to the left
//! or to the right and stand upright, so an image turned upside down is one that was never seen.
//! An image follows from (seed, class, number) alone and is the same bytes on every machine.

use std::sync::Arc;

use stillhouse_core::Rng;
use stillhouse_core::data::Dataset;
use stillhouse_core::registry::{DatasetBuild, DatasetRequest, Entry};

use super::canvas::{Color, Frame, shade};
use super::palette::between;
use super::{Kind, Options, Scene, painted};

/// Changes with the images.
const VERSION: u32 = 1;

pub(crate) const ENTRY: Entry<DatasetBuild> = Entry {
    name: "species",
    summary: "synthetic procedural animals: 4 families of 5 species that differ by a mark, no files; for smoke runs and tests",
    source: "made by this program; manifest datasets/species.toml",
    defaults: || {
        let Options { size, seed, .. } = Options::default();
        format!(
            "size = {size}  # pixels of a side\nper_class = {PER_CLASS}  # of five one tests in the official split\n\
             seed = {seed}  # of the images\n"
        )
    },
    build: |request| open(request),
};

/// Images of each class where none are asked for.
const PER_CLASS: usize = 50;

/// What tells the species of a family apart.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mark {
    Plain,
    Barred,
    Spotted,
    Capped,
    Tailed,
}

const MARKS: [(&str, Mark); 5] = [
    ("plain", Mark::Plain),
    ("barred", Mark::Barred),
    ("spotted", Mark::Spotted),
    ("capped", Mark::Capped),
    ("tailed", Mark::Tailed),
];

type Painter = fn(&mut Animal);

const FAMILIES: [(&str, Painter); 4] = [
    ("bird", Animal::bird),
    ("fish", Animal::fish),
    ("butterfly", Animal::butterfly),
    ("beetle", Animal::beetle),
];

/// Names in the order of the indices: `bird_plain`, `bird_barred`, ...
fn classes() -> Vec<String> {
    let all = FAMILIES.iter().flat_map(|(family, _)| MARKS.iter().map(move |(mark, _)| (family, mark)));
    all.map(|(family, mark)| format!("{family}_{mark}")).collect()
}

/// An animal while it is painted. Positions are along (to where it looks) and down.
struct Animal {
    scene: Scene,
    frame: Frame,
    /// 1 where it looks to the right, -1 to the left.
    side: f32,
    mark: Mark,
    body: Color,
    wing: Color,
    /// Of bars, spots and caps.
    ink: Color,
}

impl Animal {
    fn new(size: usize, mark: Mark, draw: stillhouse_core::Draw) -> Self {
        let mut scene = Scene::new(size, draw);
        scene.open_ground();
        let frame = scene.frame;
        for _ in 0..scene.count(2, 6) {
            // Grass and stones behind it.
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

    /// Bars or spots on a part of it that is about `2 a` long and `2 b` high.
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

    /// Seen from above, its head up.
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

    /// Seen from above, its head up.
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

fn make(options: Options, class: usize, number: usize) -> Vec<u8> {
    let rng = Rng::new(options.seed).stream("species");
    let (family, mark) = (class / MARKS.len(), class % MARKS.len());
    let mut animal = Animal::new(options.size, MARKS[mark].1, rng.at(class as u64, number as u64));
    (FAMILIES[family].1)(&mut animal);
    let Scene { canvas, mut draw, palette, .. } = animal.scene;
    palette.develop(&canvas, &mut draw)
}

fn open(request: &DatasetRequest) -> stillhouse_core::Result<Arc<dyn Dataset>> {
    let table = &request.options;
    let mut options: Options = stillhouse_core::config::from_table(table, "dataset `species`")?;
    if !table.contains_key("per_class") {
        options.per_class = PER_CLASS;
    }
    painted(request, Kind { name: "species", version: VERSION, official: true, make }, classes(), options)
}
