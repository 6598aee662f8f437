//! Classes of houses, tanks and courts.

use super::Scene;
use super::canvas::{Color, Frame, mix, shade};

/// Layout of a street of houses.
struct Street {
    /// Distances between houses along and across the street.
    pitch: (f32, f32),
    /// Half sides of a house.
    house: (f32, f32),
    trees: u32,
    road: f32,
}

impl Scene {
    /// Draws double rows of houses with streets between them.
    fn houses(&mut self, street: &Street) {
        let frame = self.frame;
        let road = self.palette.asphalt;
        let (pu, pv) = street.pitch;
        let block = 2.0 * pv + 2.0 * street.road;
        for r in -4..5 {
            let middle = r as f32 * block;
            let road_frame = frame.sub(0.0, middle - pv - street.road, (1.0, 0.0));
            self.canvas.rect(&road_frame, (0.0, 0.0), (90.0, street.road), road);
            for side in [-0.5, 0.5] {
                for i in -12..13 {
                    let u = (i as f32 + 0.25 * side) * pu + self.between(-0.08, 0.08) * pu;
                    let v = middle + side * pv + self.between(-0.06, 0.06) * pv;
                    if !frame.visible(u, v, 8.0) {
                        continue;
                    }
                    let wide =
                        (street.house.0 * self.between(0.8, 1.15), street.house.1 * self.between(0.8, 1.15));
                    self.house(&frame, (u, v), wide);
                }
            }
        }
        self.trees(street.trees, 1.2, 2.3);
    }

    /// Draws a gabled roof, darker on the shadow side, some with a wing.
    fn house(&mut self, frame: &Frame, (u, v): (f32, f32), half: (f32, f32)) {
        let roof = self.palette.roof(&mut self.draw);
        self.block(frame, (u, v), half, 1.2, roof);
        let dark = shade(roof, 0.75);
        if self.chance(50) {
            self.canvas.rect(frame, (u, v + half.1 / 2.0), (half.0, half.1 / 2.0), dark);
        } else {
            self.canvas.rect(frame, (u + half.0 / 2.0, v), (half.0 / 2.0, half.1), dark);
        }
        if self.chance(35) {
            let side = if self.chance(50) { 1.0 } else { -1.0 };
            let wing = (u + side * half.0 * 0.8, v + half.1 * 0.5);
            self.block(frame, wing, (half.0 * 0.4, half.1 * 0.6), 1.0, shade(roof, 0.92));
        }
    }
}

/// A few large roofs with fittings and long shadows.
pub(super) fn buildings(s: &mut Scene) {
    let ground = if s.chance(60) { s.palette.asphalt } else { s.palette.concrete };
    s.cover(ground);
    let frame = s.frame;
    let (across, along) = (s.between(22.0, 28.0), s.between(22.0, 30.0));
    for i in -2..3 {
        for j in -2..3 {
            if s.chance(15) {
                continue;
            }
            let half = (across * s.between(0.28, 0.42), along * s.between(0.28, 0.42));
            let (u, v) = (i as f32 * across + s.between(-2.0, 2.0), j as f32 * along + s.between(-2.0, 2.0));
            if !frame.visible(u, v, 24.0) {
                continue;
            }
            let roof = shade(s.palette.concrete, s.between(0.7, 1.35));
            let height = s.between(3.0, 6.5);
            s.block(&frame, (u, v), half, height, roof);
            let rim = (half.0 - 0.9, half.1 - 0.9);
            s.canvas.rect(&frame, (u, v), rim, shade(roof, 0.85));
            for _ in 0..s.count(2, 6) {
                let local = (u + rim.0 * s.between(-0.8, 0.8), v + rim.1 * s.between(-0.8, 0.8));
                let fitting = (s.between(0.6, 1.8), s.between(0.6, 1.5));
                s.block(&frame, local, fitting, 0.7, shade(roof, 1.2));
            }
        }
    }
}

/// Dense roofs with narrow streets.
pub(super) fn dense_residential(s: &mut Scene) {
    s.open_ground();
    let pitch = (s.between(6.4, 7.8), s.between(8.0, 9.2));
    let street = Street { pitch, house: (0.43 * pitch.0, 0.4 * pitch.1), trees: 10, road: 1.9 };
    s.houses(&street);
}

/// Houses with gardens and trees along streets.
pub(super) fn medium_residential(s: &mut Scene) {
    let lawn = if s.chance(70) { s.palette.grass } else { s.palette.dry };
    s.cover(lawn);
    let pitch = (s.between(12.5, 15.5), s.between(15.0, 18.0));
    let street = Street {
        pitch,
        house: (s.between(3.8, 4.8), s.between(3.3, 4.2)),
        trees: s.count(24, 44),
        road: 2.6,
    };
    s.houses(&street);
}

/// One or two houses, a drive, much land and many trees.
pub(super) fn sparse_residential(s: &mut Scene) {
    s.open_ground();
    let frame = s.frame;
    let drive = mix(s.palette.concrete, s.palette.soil, s.between(0.0, 0.7));
    let houses = s.count(1, 2);
    let trees = s.count(25, 70);
    s.trees(trees, 1.5, 3.0);
    for i in 0..houses {
        let u = if i == 0 { s.between(-3.0, 3.0) } else { s.between(20.0, 26.0) };
        let v = s.between(-8.0, 8.0);
        let bend = s.between(-8.0, 8.0);
        s.canvas.line(&frame, (u, v), (u + bend, v + 14.0), 1.1, drive);
        s.canvas.line(&frame, (u + bend, v + 14.0), (u + bend, v + 70.0), 1.1, drive);
        let lawn = frame.sub(u, v, (1.0, 0.4));
        let green = shade(s.palette.grass, 1.1);
        let axes = (s.between(9.0, 12.0), s.between(7.0, 10.0));
        s.canvas.ellipse(&lawn, axes, green);
        s.canvas.line(&frame, (u, v), (u + bend, v + 14.0), 1.1, drive);
        let half = (s.between(4.5, 6.5), s.between(3.2, 4.4));
        s.house(&frame, (u, v), half);
        for _ in 0..s.count(2, 5) {
            let (du, dv, r) = (s.between(-12.0, 12.0), s.between(7.0, 12.0), s.between(1.5, 2.8));
            s.tree(&frame, u + du, v - dv, r);
        }
    }
}

/// Long pale boxes side by side, slanted to their lanes.
pub(super) fn mobile_home_park(s: &mut Scene) {
    let ground = mix(s.palette.asphalt, s.palette.open(&mut s.draw), s.between(0.2, 0.8));
    s.cover(ground);
    let (frame, road) = (s.frame, s.palette.asphalt);
    let (pitch, long) = (s.between(5.0, 6.2), s.between(5.2, 6.6));
    let (slant, row) = (s.between(-0.7, 0.7), 2.0 * long + 5.0);
    for r in -4..5 {
        let v = r as f32 * row;
        s.canvas.rect(&frame, (0.0, v + row / 2.0), (90.0, 1.9), road);
        for i in -14..15 {
            let u = i as f32 * pitch;
            if !frame.visible(u, v, 9.0) || s.chance(6) {
                continue;
            }
            let local = frame.sub(u, v + s.between(-0.6, 0.6), (slant, 1.0));
            let roof: Color = shade(s.palette.white, s.between(0.72, 1.02));
            s.block(&local, (0.0, 0.0), (long * 0.92, 1.5), 1.0, roof);
            s.canvas.rect(&local, (0.0, 0.7), (long * 0.92, 0.8), shade(roof, 0.88));
            if s.chance(30) {
                let (along, r) = (s.between(-4.0, 4.0), s.between(0.9, 1.5));
                s.tree(&local, along, 2.6, r);
            }
        }
    }
}

/// Round tanks with rims and shadows, in loose rows.
pub(super) fn storage_tanks(s: &mut Scene) {
    let ground = mix(s.palette.concrete, s.palette.open(&mut s.draw), s.between(0.3, 1.0));
    s.cover(ground);
    let frame = s.frame;
    let pitch = s.between(14.0, 26.0);
    for i in -3..4 {
        for j in -3..4 {
            let (u, v) = (i as f32 * pitch + s.between(-1.0, 1.0), j as f32 * pitch + s.between(-1.0, 1.0));
            if !frame.visible(u, v, 12.0) || s.chance(20) {
                continue;
            }
            let r = pitch * s.between(0.28, 0.42);
            let color = shade(s.palette.white, s.between(0.6, 1.05));
            let mut cast = frame.sub(u, v, (1.0, 0.0));
            cast.x += 0.4 * r * s.palette.sun.0;
            cast.y += 0.4 * r * s.palette.sun.1;
            s.canvas.shadow(&cast, (r, r), 0.45, |u, v| (u * u + v * v).sqrt() - r);
            s.canvas.disc(&frame, (u, v), r, shade(color, 0.8));
            s.canvas.disc(&frame, (u, v), 0.88 * r, color);
            let fitting = s.between(-0.5, 0.5) * r;
            s.canvas.disc(&frame, (u + fitting, v), 0.1 * r, shade(color, 0.6));
        }
    }
    if s.chance(60) {
        let pipe = s.palette.white;
        s.canvas.line(&frame, (-90.0, pitch / 2.0), (90.0, pitch / 2.0), 0.5, pipe);
    }
}

/// Courts with white lines and a net, one to four side by side.
pub(super) fn tennis_court(s: &mut Scene) {
    s.open_ground();
    let frame = s.frame;
    let hard: [Color; 5] =
        [[0.22, 0.40, 0.32], [0.22, 0.34, 0.52], [0.56, 0.32, 0.26], [0.42, 0.42, 0.42], [0.32, 0.42, 0.28]];
    let (inner, outer) = (hard[s.draw.below(5) as usize], hard[s.draw.below(5) as usize]);
    let outer = if inner == outer { shade(outer, 0.75) } else { outer };
    let courts = s.count(1, 4);
    let half = if courts == 1 { s.between(13.0, 16.0) } else { s.between(9.5, 12.0) };
    let wide = 0.46 * half;
    let pitch = 2.0 * wide + 0.42 * half;
    let all = (courts as f32 * pitch / 2.0 + 0.5, 1.45 * half);
    s.block(&frame, (0.0, 0.0), all, 0.8, outer);
    let (line, t) = (s.palette.white, 0.035 * half);
    for i in 0..courts {
        let u = (i as f32 - (courts - 1) as f32 / 2.0) * pitch;
        s.canvas.rect(&frame, (u, 0.0), (wide + t, half + t), line);
        s.canvas.rect(&frame, (u, 0.0), (wide - t, half - t), inner);
        for side in [-1.0, 1.0] {
            s.canvas.rect(&frame, (u + side * 0.75 * wide, 0.0), (t, half), line);
            s.canvas.rect(&frame, (u, side * 0.54 * half), (0.75 * wide, t), line);
        }
        s.canvas.rect(&frame, (u, 0.0), (t, 0.54 * half), line);
        let net = shade(inner, 0.45);
        s.canvas.rect(&frame, (u, 0.0), (wide * 1.1, 1.3 * t), net);
    }
    let trees = s.count(0, 14);
    for _ in 0..trees {
        let (u, v, r) = (s.between(-40.0, 40.0), all.1 + s.between(4.0, 14.0), s.between(1.4, 2.6));
        let side = if s.chance(50) { 1.0 } else { -1.0 };
        s.tree(&frame, u, side * v, r);
    }
}
