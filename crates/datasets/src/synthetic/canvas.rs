//! Canvas of linear colors with antialiased shapes.
//!
//! Uses only sums, products, quotients, floors and square roots, which round identically on every
//! machine, so the images have the same bytes everywhere.

use stillhouse_core::Draw;

/// Red, green, blue from 0 (black) to 1 (white); intermediate values may exceed the range.
pub(super) type Color = [f32; 3];

/// Side of the world in units; an image shows all of it at any resolution.
pub(super) const WORLD: f32 = 64.0;

/// Position, direction and scale: maps local `(u, v)` to world units.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) x: f32,
    pub(super) y: f32,
    c: f32,
    s: f32,
    k: f32,
}

impl Frame {
    /// Creates a frame at a world position along a unit vector.
    pub(super) fn new(x: f32, y: f32, (c, s): (f32, f32), k: f32) -> Self {
        Self { x, y, c, s, k }
    }

    /// Returns a frame at a local position, along a local direction of any length.
    pub(super) fn sub(self, u: f32, v: f32, along: (f32, f32)) -> Self {
        let (x, y) = self.at(u, v);
        let length = (along.0 * along.0 + along.1 * along.1).sqrt().max(1e-6);
        let (c, s) = (along.0 / length, along.1 / length);
        Self { x, y, c: self.c * c - self.s * s, s: self.s * c + self.c * s, k: self.k }
    }

    pub(super) fn at(self, u: f32, v: f32) -> (f32, f32) {
        (self.x + self.k * (u * self.c - v * self.s), self.y + self.k * (u * self.s + v * self.c))
    }

    /// Whether a local position is within `margin` local units of the image.
    pub(super) fn visible(self, u: f32, v: f32, margin: f32) -> bool {
        let (x, y) = self.at(u, v);
        let m = margin * self.k;
        x > -m && y > -m && x < WORLD + m && y < WORLD + m
    }
}

/// Smooth random values in 0..1 over the plane.
pub(super) struct Noise {
    lattice: [f32; 256],
}

impl Noise {
    pub(super) fn new(draw: &mut Draw) -> Self {
        let mut lattice = [0.0; 256];
        for four in lattice.chunks_exact_mut(4) {
            let bits = draw.next_u32().to_le_bytes();
            four.iter_mut().zip(bits).for_each(|(v, b)| *v = f32::from(b) / 255.0);
        }
        Self { lattice }
    }

    /// Returns the value at a point; integer points are independent.
    pub(super) fn at(&self, x: f32, y: f32) -> f32 {
        let (ix, iy) = (floor(x), floor(y));
        let (fx, fy) = (x - ix, y - iy);
        let (fx, fy) = (fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy));
        let (ix, iy) = (ix as i32, iy as i32);
        let value = |dx: i32, dy: i32| {
            let cell = ((ix + dx) & 15) + (((iy + dy) & 15) << 4);
            self.lattice[cell as usize]
        };
        let top = value(0, 0) + fx * (value(1, 0) - value(0, 0));
        let bottom = value(0, 1) + fx * (value(1, 1) - value(0, 1));
        top + fy * (bottom - top)
    }
}

/// `f32::floor` for small values; the standard one is a function call without SSE 4.1.
pub(super) fn floor(v: f32) -> f32 {
    let whole = v as i32 as f32;
    if whole > v { whole - 1.0 } else { whole }
}

/// Returns the interval of `t` with `|shift + t * slope| <= half`.
fn slab(half: f32, shift: f32, slope: f32) -> (f32, f32) {
    if slope.abs() < 1e-3 {
        // Parallel to the row: decided by the other sides and the distance.
        return (-4.0 * WORLD, 4.0 * WORLD);
    }
    let (a, b) = ((-half - shift) / slope, (half - shift) / slope);
    (a.min(b), a.max(b))
}

/// A smooth wave of period 1 between -1 and 1 (two parabolas).
pub(super) fn wave(turns: f32) -> f32 {
    let t = turns - floor(turns);
    if t < 0.5 { 16.0 * t * (0.5 - t) } else { -16.0 * (t - 0.5) * (1.0 - t) }
}

pub(super) fn mix(a: Color, b: Color, part: f32) -> Color {
    [0, 1, 2].map(|i| a[i] + part * (b[i] - a[i]))
}

pub(super) fn shade(color: Color, factor: f32) -> Color {
    color.map(|v| v * factor)
}

/// An image that is being drawn.
pub(super) struct Canvas {
    pub(super) size: usize,
    /// Pixels per world unit.
    scale: f32,
    pub(super) pixels: Vec<Color>,
}

impl Canvas {
    pub(super) fn new(size: usize) -> Self {
        Self { size, scale: size as f32 / WORLD, pixels: vec![[0.0; 3]; size * size] }
    }

    /// Colors every pixel by its world position.
    pub(super) fn ground(&mut self, color: impl Fn(f32, f32) -> Color) {
        for (i, pixel) in self.pixels.iter_mut().enumerate() {
            let (x, y) = ((i % self.size) as f32 + 0.5, (i / self.size) as f32 + 0.5);
            *pixel = color(x / self.scale, y / self.scale);
        }
    }

    /// Draws a shape given by a signed distance (local units, negative inside) within the half sides
    /// `within` around the frame's origin; `ink` receives the pixel and its local position.
    fn paint(
        &mut self,
        frame: &Frame,
        within: (f32, f32),
        distance: impl Fn(f32, f32) -> f32,
        ink: impl Fn(Color, f32, f32) -> Color,
    ) {
        let Frame { x, y, c, s, k } = *frame;
        // Half a pixel of soft edge, with a margin for rounding.
        let margin = 0.5 / self.scale + 0.5;
        let (across, along) = (within.0 * k + margin, within.1 * k + margin);
        let pixel_at = |v: f32| (v * self.scale).clamp(0.0, self.size as f32) as usize;
        let height = across * s.abs() + along * c.abs();
        let inverse = 1.0 / k;
        for py in pixel_at(y - height)..pixel_at(y + height + 1.0) {
            let dy = (py as f32 + 0.5) / self.scale - y;
            // Intersection of the row with both pairs of sides.
            let (a, b) = slab(across, dy * s, c);
            let (d, e) = slab(along, -dy * c, s);
            let (left, right) = (x + a.max(d), x + b.min(e));
            for px in pixel_at(left - margin)..pixel_at(right + margin) {
                let dx = (px as f32 + 0.5) / self.scale - x;
                let u = (dx * c + dy * s) * inverse;
                let v = (dy * c - dx * s) * inverse;
                let cover = (0.5 - distance(u, v) * k * self.scale).clamp(0.0, 1.0);
                if cover > 0.0 {
                    let pixel = &mut self.pixels[py * self.size + px];
                    *pixel = mix(*pixel, ink(*pixel, u, v), cover);
                }
            }
        }
    }

    /// Draws a shape of one color.
    pub(super) fn shape(
        &mut self,
        frame: &Frame,
        within: (f32, f32),
        color: Color,
        distance: impl Fn(f32, f32) -> f32,
    ) {
        self.paint(frame, within, distance, |_, _, _| color);
    }

    /// Draws a shape whose color depends on the local position.
    pub(super) fn textured(
        &mut self,
        frame: &Frame,
        within: (f32, f32),
        distance: impl Fn(f32, f32) -> f32,
        color: impl Fn(f32, f32) -> Color,
    ) {
        self.paint(frame, within, distance, |_, u, v| color(u, v));
    }

    /// Draws a rectangle around a local position.
    pub(super) fn rect(&mut self, frame: &Frame, (u, v): (f32, f32), (hu, hv): (f32, f32), color: Color) {
        let frame = frame.sub(u, v, (1.0, 0.0));
        self.shape(&frame, (hu, hv), color, |u, v| (u.abs() - hu).max(v.abs() - hv));
    }

    /// Draws a disc around a local position.
    pub(super) fn disc(&mut self, frame: &Frame, (u, v): (f32, f32), r: f32, color: Color) {
        let frame = frame.sub(u, v, (1.0, 0.0));
        self.shape(&frame, (r, r), color, |u, v| (u * u + v * v).sqrt() - r);
    }

    /// Draws an ellipse around a local position.
    pub(super) fn ellipse(&mut self, frame: &Frame, (a, b): (f32, f32), color: Color) {
        self.shape(frame, (1.3 * a, 1.3 * b), color, |u, v| {
            let (p, q) = (u / a, v / b);
            ((p * p + q * q).sqrt() - 1.0) * a.min(b)
        });
    }

    /// Draws a thick line between local positions, with round ends.
    pub(super) fn line(&mut self, frame: &Frame, from: (f32, f32), to: (f32, f32), half: f32, color: Color) {
        let (du, dv) = (to.0 - from.0, to.1 - from.1);
        let length = (du * du + dv * dv).sqrt();
        let frame = frame.sub((from.0 + to.0) / 2.0, (from.1 + to.1) / 2.0, (du, dv));
        self.shape(&frame, (length / 2.0 + half, half), color, |u, v| {
            let beyond = (u.abs() - length / 2.0).max(0.0);
            (beyond * beyond + v * v).sqrt() - half
        });
    }

    /// Darkens a shape.
    pub(super) fn shadow(
        &mut self,
        frame: &Frame,
        within: (f32, f32),
        depth: f32,
        distance: impl Fn(f32, f32) -> f32,
    ) {
        self.paint(frame, within, distance, |under, _, _| shade(under, depth));
    }
}
