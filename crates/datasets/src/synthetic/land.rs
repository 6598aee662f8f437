//! Classes of open land and water.

use super::Scene;
use super::canvas::{Color, Frame, WORLD, mix, shade, wave};

/// Larger than the distance of any image corner from a frame near the image.
pub(super) const ALL: f32 = 140.0;

impl Scene {
    /// Draws ground in two blended shades.
    pub(super) fn cover(&mut self, color: Color) {
        let other = shade(color, self.between(0.75, 1.25));
        let (coarse, fine) = (self.between(9.0, 18.0), self.between(2.0, 4.0));
        let (dx, dy) = (self.between(0.0, 16.0), self.between(0.0, 16.0));
        let noise = &self.palette.noise;
        self.canvas.ground(|x, y| {
            let n = 0.7 * noise.at(x / coarse + dx, y / coarse + dy)
                + 0.3 * noise.at(x / fine + dy, y / fine + dx);
            mix(color, other, n)
        });
    }

    /// Draws a random ground.
    pub(super) fn open_ground(&mut self) {
        let color = self.palette.open(&mut self.draw);
        self.cover(color);
    }

    /// Draws a tree with its shadow at a local position.
    pub(super) fn tree(&mut self, frame: &Frame, u: f32, v: f32, r: f32) {
        if !frame.visible(u, v, 2.0 * r) {
            return;
        }
        let color = shade(self.palette.tree, self.between(0.8, 1.35));
        let (x, y) = frame.at(u, v);
        let (sx, sy) = self.palette.sun;
        let world = Frame::new(x, y, (1.0, 0.0), 1.0);
        let cast = world.sub(0.6 * r * sx, 0.6 * r * sy, (1.0, 0.0));
        self.canvas.shadow(&cast, (r, r), 0.6, |u, v| (u * u + v * v).sqrt() - r);
        self.canvas.disc(&world, (0.0, 0.0), r, color);
        self.canvas.disc(&world, (-0.3 * r * sx, -0.3 * r * sy), 0.55 * r, shade(color, 1.3));
    }

    /// Draws trees at random positions.
    pub(super) fn trees(&mut self, count: u32, low: f32, high: f32) {
        let world = Frame::new(0.0, 0.0, (1.0, 0.0), 1.0);
        for _ in 0..count {
            let (x, y, r) = (self.between(0.0, WORLD), self.between(0.0, WORLD), self.between(low, high));
            self.tree(&world, x, y, r);
        }
    }
}

/// Furrows: parallel stripes, often two fields with different ones.
pub(super) fn agricultural(s: &mut Scene) {
    let fields = s.count(1, 2);
    for field in 0..fields {
        let frame = s.frame.sub(0.0, s.between(-8.0, 8.0), (s.between(0.6, 1.0), s.between(-0.6, 0.6)));
        let a = s.palette.open(&mut s.draw);
        let b = shade(a, s.between(0.6, 0.8));
        let (period, bend) = (s.between(2.2, 4.6), s.between(-1.5, 1.5));
        let turned = s.chance(50);
        let noise = &s.palette.noise;
        let color = |u: f32, v: f32| {
            let (u, v) = if turned { (v, u) } else { (u, v) };
            let ridge = wave((v + bend * wave(u / 90.0)) / period);
            let worn = noise.at(u / 12.0, v / 12.0);
            shade(mix(a, b, 0.5 + 0.5 * ridge), 0.85 + 0.3 * worn)
        };
        s.canvas.textured(&frame, (ALL, ALL), |_, v| if field == 0 { -1.0 } else { -v }, color);
        if field == 1 {
            let path = s.palette.dry;
            s.canvas.shape(&frame, (ALL, ALL), path, |_, v| v.abs() - 0.9);
        }
    }
}

/// A fan of soil with a square of grass in it.
pub(super) fn baseball_diamond(s: &mut Scene) {
    let lawn = if s.chance(70) { s.palette.grass } else { s.palette.dry };
    s.cover(lawn);
    let (frame, soil) = (s.frame, mix(s.palette.soil, s.palette.sand, s.between(0.2, 0.7)));
    let r = s.between(15.0, 20.0);
    let home = frame.sub(-0.6 * r, -0.6 * r, (1.0, 0.0));
    // The fan: within the angle at the home plate and a radius.
    s.canvas.shape(&home, (2.0 * r, 2.0 * r), soil, |u, v| {
        let round = (u * u + v * v).sqrt() - 1.35 * r;
        round.max(-2.0 - u).max(-2.0 - v)
    });
    let (half, lawn) = (0.42 * r, shade(lawn, 1.1));
    s.canvas.rect(&home, (0.55 * r, 0.55 * r), (half, half), lawn);
    s.canvas.disc(&home, (0.5 * r, 0.5 * r), 0.1 * r, soil);
    let line = s.palette.white;
    s.canvas.line(&home, (0.0, 0.0), (2.2 * r, 0.0), 0.35, line);
    s.canvas.line(&home, (0.0, 0.0), (0.0, 2.2 * r), 0.35, line);
    s.canvas.disc(&home, (0.0, 0.0), 0.16 * r, soil);
    let trees = s.count(0, 6);
    s.trees(trees, 1.5, 2.5);
}

/// Water, foam and sand along a wavy line.
pub(super) fn beach(s: &mut Scene) {
    let (sand, water) = (s.palette.sand, s.palette.water);
    let sand = mix(sand, s.palette.dry, s.between(0.0, 0.6));
    s.cover(sand);
    let (frame, shift) = (s.frame, s.between(-12.0, 12.0));
    let (height, length, phase) = (s.between(1.0, 4.0), s.between(30.0, 60.0), s.between(0.0, 1.0));
    let shore = |u: f32| shift + height * wave(u / length + phase) + 0.4 * height * wave(u / (0.37 * length));
    let shallow = mix(water, [0.55, 0.7, 0.68], 0.45);
    let noise = &s.palette.noise;
    s.canvas.textured(
        &frame,
        (ALL, ALL),
        |u, v| shore(u) - v,
        |u, v| {
            let depth = ((v - shore(u)) / 18.0).clamp(0.0, 1.0);
            shade(mix(shallow, water, depth), 0.9 + 0.2 * noise.at(u / 6.0, v / 2.5))
        },
    );
    let wet = shade(sand, 0.72);
    s.canvas.shape(&frame, (ALL, ALL), wet, |u, v| (v - shore(u) + 1.8).abs() - 1.6);
    let foam = s.palette.white;
    let breakers = s.count(1, 3);
    for i in 0..breakers {
        let (away, wide) = (i as f32 * s.between(3.0, 5.0), s.between(0.5, 1.3));
        let noise = &s.palette.noise;
        s.canvas.shape(&frame, (ALL, ALL), foam, |u, v| {
            (v - shore(u) - away).abs() - wide * (0.3 + 1.2 * noise.at(u / 7.0 + 5.0 * i as f32, 3.0))
        });
    }
    let scrub = s.count(0, 8);
    for _ in 0..scrub {
        let (u, v) = (s.between(-40.0, 40.0), shift - s.between(10.0, 30.0));
        let r = s.between(0.8, 1.6);
        s.tree(&frame, u, v, r);
    }
}

/// Bare ground dotted with small dark bushes.
pub(super) fn chaparral(s: &mut Scene) {
    let ground = mix(s.palette.dry, s.palette.sand, s.between(0.0, 0.8));
    s.cover(ground);
    let world = Frame::new(0.0, 0.0, (1.0, 0.0), 1.0);
    let step = s.between(4.2, 5.8);
    let cells = (WORLD / step) as u32 + 1;
    for row in 0..cells {
        for column in 0..cells {
            if s.chance(82) {
                let x = (column as f32 + s.between(0.1, 0.9)) * step;
                let y = (row as f32 + s.between(0.1, 0.9)) * step;
                let r = s.between(0.8, 1.7);
                let bush = shade(s.palette.tree, s.between(0.8, 1.1));
                s.canvas.disc(&world, (x, y), r, bush);
            }
        }
    }
}

/// Crowns over crowns.
pub(super) fn forest(s: &mut Scene) {
    let floor = shade(s.palette.tree, 0.6);
    s.cover(floor);
    let r = s.between(2.0, 3.4);
    let crowns = (1.15 * WORLD * WORLD / (r * r)) as u32 / 2;
    s.trees(crowns.min(420), 0.75 * r, 1.25 * r);
}

/// Fairways as smooth wide bands, bunkers of sand, round greens, groups of trees.
pub(super) fn golf_course(s: &mut Scene) {
    let rough = if s.chance(70) { s.palette.grass } else { s.palette.dry };
    s.cover(shade(rough, 0.85));
    let frame = s.frame;
    let (fairway, wide) = (mix(shade(rough, 1.25), s.palette.grass, 0.4), s.between(7.0, 11.0));
    let (height, length, phase) = (s.between(5.0, 10.0), s.between(50.0, 90.0), s.between(0.0, 1.0));
    let path = |u: f32| height * wave(u / length + phase);
    let end = s.between(8.0, 24.0);
    s.canvas.shape(&frame, (ALL, ALL), fairway, |u, v| {
        let beyond = (u - end).max(0.0);
        ((v - path(u.min(end))).abs() - wide).max(beyond - wide)
    });
    let (gu, gv) = (end + s.between(-2.0, 4.0), path(end));
    let green = shade(fairway, 1.15);
    let local = frame.sub(gu, gv, (1.0, s.between(-1.0, 1.0)));
    s.canvas.ellipse(&local, (7.0, 5.0), green);
    let bunkers = s.count(3, 6);
    for _ in 0..bunkers {
        let (u, v) = (gu + s.between(-26.0, 12.0), gv + s.between(-15.0, 15.0));
        let (a, b) = (s.between(2.0, 4.6), s.between(1.4, 2.6));
        let sand = s.palette.sand;
        let local = frame.sub(u, v, (s.between(-1.0, 1.0), 0.7));
        s.canvas.ellipse(&local, (a, b), sand);
        let second = local.sub(0.6 * a, 0.5 * b, (1.0, 0.6));
        s.canvas.ellipse(&second, (0.8 * a, 0.8 * b), sand);
    }
    let groups = s.count(2, 4);
    for _ in 0..groups {
        let (u, v) = (s.between(-40.0, 40.0), s.between(14.0, 28.0) * if s.chance(50) { 1.0 } else { -1.0 });
        for _ in 0..s.count(3, 7) {
            let (du, dv, r) = (s.between(-6.0, 6.0), s.between(-4.0, 4.0), s.between(1.5, 2.6));
            s.tree(&frame, u + du, v + dv, r);
        }
    }
}

/// A bending band of water between trees.
pub(super) fn river(s: &mut Scene) {
    s.open_ground();
    let water = s.palette.water;
    let half = s.between(5.0, 9.5);
    let frame = s.frame;
    let (height, length, phase) = (s.between(4.0, 11.0), s.between(45.0, 80.0), s.between(0.0, 1.0));
    let noise = &s.palette.noise;
    let bank = |u: f32, v: f32| {
        let middle = height * wave(u / length + phase) + 3.0 * noise.at(u / 14.0, 1.5);
        (v - middle).abs() - half * (0.8 + 0.4 * noise.at(u / 20.0, 7.5))
    };
    let mud = mix(s.palette.soil, s.palette.sand, 0.4);
    s.canvas.shape(&frame, (ALL, ALL), mud, |u, v| bank(u, v) - 1.4);
    s.canvas.textured(&frame, (ALL, ALL), bank, |u, v| shade(water, 0.9 + 0.2 * noise.at(u / 10.0, v / 5.0)));
    let trees = s.count(30, 90);
    for _ in 0..trees {
        let (u, away) = (s.between(-48.0, 48.0), half + s.between(2.5, 16.0));
        let side = if s.chance(50) { 1.0 } else { -1.0 };
        let middle = height * wave(u / length + phase) + 1.5;
        let r = s.between(1.3, 2.6);
        s.tree(&frame, u, middle + side * away, r);
    }
}
