//! Colors of an image: a climate shared by all classes, with random variation.

use stillhouse_core::Draw;

use super::canvas::{Canvas, Color, Noise, mix, shade};

/// Grass, dry ground, soil, trees, water of six climates.
const CLIMATES: [[Color; 5]; 6] = [
    [[0.32, 0.46, 0.22], [0.55, 0.52, 0.34], [0.50, 0.40, 0.28], [0.15, 0.27, 0.13], [0.16, 0.28, 0.36]],
    [[0.48, 0.47, 0.28], [0.70, 0.62, 0.44], [0.62, 0.48, 0.34], [0.27, 0.31, 0.17], [0.28, 0.38, 0.36]],
    [[0.40, 0.38, 0.26], [0.52, 0.46, 0.36], [0.44, 0.34, 0.28], [0.34, 0.26, 0.16], [0.22, 0.24, 0.24]],
    [[0.46, 0.48, 0.44], [0.60, 0.58, 0.54], [0.50, 0.46, 0.42], [0.26, 0.29, 0.25], [0.30, 0.36, 0.40]],
    [[0.42, 0.44, 0.24], [0.64, 0.48, 0.36], [0.60, 0.36, 0.24], [0.20, 0.28, 0.16], [0.34, 0.36, 0.26]],
    [[0.26, 0.40, 0.28], [0.44, 0.48, 0.40], [0.36, 0.34, 0.30], [0.10, 0.22, 0.16], [0.10, 0.18, 0.24]],
];

pub(super) struct Palette {
    pub(super) grass: Color,
    pub(super) dry: Color,
    pub(super) soil: Color,
    pub(super) tree: Color,
    pub(super) water: Color,
    pub(super) asphalt: Color,
    pub(super) concrete: Color,
    pub(super) sand: Color,
    pub(super) white: Color,
    pub(super) noise: Noise,
    /// Direction of shadows.
    pub(super) sun: (f32, f32),
    gain: Color,
    slope: (f32, f32),
    grain: f32,
}

pub(super) fn between(draw: &mut Draw, low: f32, high: f32) -> f32 {
    // 24 bits: exact in f32.
    low + (high - low) * ((draw.next_u32() >> 8) as f32 / 16_777_216.0)
}

/// Draws a random unit vector.
pub(super) fn direction(draw: &mut Draw) -> (f32, f32) {
    loop {
        let (x, y) = (between(draw, -1.0, 1.0), between(draw, -1.0, 1.0));
        let length = (x * x + y * y).sqrt();
        if (0.1..=1.0).contains(&length) {
            return (x / length, y / length);
        }
    }
}

fn jittered(draw: &mut Draw, color: Color, by: f32) -> Color {
    let light = between(draw, 1.0 - by, 1.0 + by);
    color.map(|v| v * light * between(draw, 1.0 - by / 3.0, 1.0 + by / 3.0))
}

impl Palette {
    pub(super) fn new(draw: &mut Draw) -> Self {
        let noise = Noise::new(draw);
        let climate = CLIMATES[draw.below(CLIMATES.len() as u64) as usize];
        let [grass, dry, soil, tree, water] = climate.map(|c| jittered(draw, c, 0.25));
        let sun = direction(draw);
        let light = between(draw, 0.75, 1.3);
        let gain = [0, 1, 2].map(|_| light * between(draw, 0.88, 1.12));
        Self {
            grass,
            dry,
            soil,
            tree,
            water,
            asphalt: jittered(draw, [0.36, 0.36, 0.37], 0.25),
            concrete: jittered(draw, [0.62, 0.61, 0.58], 0.2),
            sand: jittered(draw, [0.76, 0.69, 0.55], 0.2),
            white: jittered(draw, [0.88, 0.88, 0.87], 0.08),
            noise,
            sun,
            gain,
            slope: (between(draw, -0.12, 0.12), between(draw, -0.12, 0.12)),
            grain: between(draw, 0.01, 0.05),
        }
    }

    /// Draws the color of an open ground; most classes use all of them.
    pub(super) fn open(&self, draw: &mut Draw) -> Color {
        [self.grass, self.dry, self.soil, mix(self.grass, self.dry, 0.5)][draw.below(4) as usize]
    }

    /// Draws the color of a roof.
    pub(super) fn roof(&self, draw: &mut Draw) -> Color {
        let base = [
            [0.52, 0.34, 0.28],
            [0.46, 0.45, 0.45],
            [0.70, 0.68, 0.64],
            [0.40, 0.34, 0.30],
            [0.58, 0.50, 0.42],
        ];
        let color = base[draw.below(5) as usize];
        jittered(draw, color, 0.2)
    }

    /// Draws the color of a car or a boat.
    pub(super) fn paint(&self, draw: &mut Draw) -> Color {
        let base = [
            [0.86, 0.86, 0.85],
            [0.14, 0.14, 0.16],
            [0.55, 0.56, 0.58],
            [0.55, 0.16, 0.14],
            [0.18, 0.26, 0.45],
        ];
        base[draw.below(5) as usize]
    }

    /// Applies light and sensor noise, and quantizes to 8 bits.
    pub(super) fn develop(&self, canvas: &Canvas, draw: &mut Draw) -> Vec<u8> {
        let mut state = draw.next_u32() | 1;
        let size = canvas.size as f32;
        let mut out = Vec::with_capacity(canvas.pixels.len() * 3);
        for (i, pixel) in canvas.pixels.iter().enumerate() {
            let (x, y) = ((i % canvas.size) as f32 / size - 0.5, (i / canvas.size) as f32 / size - 0.5);
            let light = 1.0 + x * self.slope.0 + y * self.slope.1;
            // xorshift noise in luminance, and less in color.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let grain = |shift: u32| ((state >> shift & 255) as f32 / 255.0 - 0.5) * self.grain;
            let common = 2.0 * grain(0);
            let seen = shade(*pixel, light);
            for (c, seen) in seen.into_iter().enumerate() {
                let value = seen * self.gain[c] + common + grain(8 * (c as u32 + 1)) * 0.7;
                out.push((value * 255.0 + 0.5).clamp(0.0, 255.0) as u8);
            }
        }
        out
    }
}
