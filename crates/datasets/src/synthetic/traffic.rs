//! Classes of roads, aprons and piers.

use super::Scene;
use super::canvas::{Color, Frame, floor, mix, shade, wave};
use super::land::ALL;

impl Scene {
    /// Draws an infinite straight band along u.
    pub(super) fn band(&mut self, frame: &Frame, v: f32, half: f32, color: Color) {
        self.canvas.shape(frame, (ALL, v.abs() + half), color, |_, w| (w - v).abs() - half);
    }

    /// Draws a dashed line along u.
    pub(super) fn dashes(&mut self, frame: &Frame, v: f32, half: f32, (dash, gap): (f32, f32), color: Color) {
        let period = dash + gap;
        self.canvas.shape(frame, (ALL, v.abs() + half), color, |u, w| {
            let within = u - floor(u / period) * period - dash / 2.0;
            ((w - v).abs() - half).max(within.abs() - dash / 2.0)
        });
    }

    /// Draws a rectangle with its shadow.
    pub(super) fn block(
        &mut self,
        frame: &Frame,
        (u, v): (f32, f32),
        (hu, hv): (f32, f32),
        height: f32,
        color: Color,
    ) {
        if !frame.visible(u, v, hu + hv + height) {
            return;
        }
        let mut cast = frame.sub(u, v, (1.0, 0.0));
        cast.x += height * self.palette.sun.0;
        cast.y += height * self.palette.sun.1;
        self.canvas.shadow(&cast, (hu, hv), 0.5, |u, v| (u.abs() - hu).max(v.abs() - hv));
        self.canvas.rect(frame, (u, v), (hu, hv), color);
    }

    /// Draws cars at random positions of a lane along u.
    pub(super) fn cars(&mut self, frame: &Frame, v: f32, percent: u64) {
        for i in -6..6 {
            if self.chance(percent) {
                let u = (i as f32 + self.between(0.2, 0.8)) * 9.0;
                let color = self.palette.paint(&mut self.draw);
                self.block(frame, (u, v), (1.5, 0.75), 0.5, color);
            }
        }
    }
}

/// One to three planes on an apron.
pub(super) fn airplane(s: &mut Scene) {
    let apron = if s.chance(50) { s.palette.concrete } else { s.palette.asphalt };
    s.cover(apron);
    let frame = s.frame;
    if s.chance(60) {
        let (v, half) = (s.between(16.0, 30.0), s.between(4.0, 12.0));
        let verge = s.palette.open(&mut s.draw);
        s.band(&frame, v + half, half, verge);
    }
    let line = mix(apron, [0.8, 0.7, 0.2], 0.7);
    let guide = s.between(-2.0, 2.0);
    s.band(&frame, guide, 0.3, line);
    let planes = s.count(1, 3);
    let size = if planes == 1 { s.between(13.0, 19.0) } else { s.between(8.5, 11.0) };
    for i in 0..planes {
        let spread = 2.3 * size;
        let u = (i as f32 - (planes - 1) as f32 / 2.0) * spread + s.between(-1.5, 1.5);
        let (v, tilt) = (s.between(-4.0, 4.0), s.between(-0.3, 0.3));
        let local = frame.sub(u, v, (tilt, 1.0));
        let body = shade(s.palette.white, s.between(0.9, 1.05));
        let mut cast = local;
        cast.x += 0.12 * size * s.palette.sun.0;
        cast.y += 0.12 * size * s.palette.sun.1;
        plane(s, &cast, size, shade(apron, 0.5));
        plane(s, &local, size, body);
    }
}

fn plane(s: &mut Scene, frame: &Frame, size: f32, color: Color) {
    let width = 0.1 * size;
    s.canvas.line(frame, (-0.85 * size, 0.0), (0.9 * size, 0.0), width, color);
    for side in [-1.0, 1.0] {
        s.canvas.line(frame, (0.2 * size, 0.0), (-0.25 * size, side * 0.9 * size), 0.9 * width, color);
        s.canvas.line(frame, (-0.7 * size, 0.0), (-0.9 * size, side * 0.35 * size), 0.7 * width, color);
        let engine = frame.sub(0.12 * size, side * 0.38 * size, (1.0, 0.0));
        s.canvas.ellipse(&engine, (0.14 * size, 0.06 * size), shade(color, 0.8));
    }
}

/// Two carriageways with lanes, a median and cars.
pub(super) fn freeway(s: &mut Scene) {
    s.open_ground();
    let (frame, road) = (s.frame, if s.chance(50) { s.palette.asphalt } else { s.palette.concrete });
    let (lane, lanes) = (s.between(2.5, 3.0), s.count(3, 4));
    let (median, half) = (s.between(0.8, 2.2), lane * lanes as f32 / 2.0);
    let middle = s.palette.open(&mut s.draw);
    let trees = s.count(0, 14);
    s.trees(trees, 1.3, 2.4);
    s.band(&frame, 0.0, median + 2.0 * half + 0.6, middle);
    for side in [-1.0, 1.0] {
        s.band(&frame, side * (median + half), half + 0.4, road);
        for i in 1..lanes {
            let line = mix(road, s.palette.white, 0.8);
            s.dashes(&frame, side * (median + lane * i as f32), 0.25, (2.0, 3.0), line);
        }
        for i in 0..lanes {
            s.cars(&frame, side * (median + lane * (i as f32 + 0.5)), 25);
        }
    }
    if s.chance(60) {
        let barrier = s.palette.white;
        s.band(&frame, 0.0, 0.35, barrier);
    }
}

/// A lone broad strip with a dashed middle, threshold bars and a taxiway.
pub(super) fn runway(s: &mut Scene) {
    let verge = s.palette.open(&mut s.draw);
    s.cover(verge);
    let (frame, road) = (s.frame, if s.chance(70) { s.palette.asphalt } else { s.palette.concrete });
    let half = s.between(7.0, 10.0);
    if s.chance(65) {
        let away = half + s.between(11.0, 16.0);
        let side = if s.chance(50) { 1.0 } else { -1.0 };
        let taxi = shade(road, 1.1);
        s.band(&frame, side * away, 2.2, taxi);
        let link = frame.sub(s.between(-20.0, 20.0), 0.0, (s.between(-0.5, 0.5), side));
        s.canvas.rect(&link, (away / 2.0, 0.0), (away / 2.0 + 2.0, 2.0), taxi);
    }
    let edge = s.palette.white;
    s.band(&frame, 0.0, half, road);
    for side in [-1.0, 1.0] {
        s.band(&frame, side * (half - 0.9), 0.3, edge);
    }
    s.dashes(&frame, 0.0, 0.45, (6.0, 4.5), edge);
    if s.chance(55) {
        let u = s.between(-24.0, 24.0);
        let bars = 4;
        for i in 0..bars {
            for side in [-1.0, 1.0] {
                let v = side * (i as f32 + 0.7) * (half - 1.5) / bars as f32;
                s.canvas.rect(&frame, (u, v), (4.0, 0.55), edge);
            }
        }
    }
    let noise = &s.palette.noise;
    let rubber = shade(road, 0.75);
    let worn: Vec<f32> = (0..4).map(|i| noise.at(i as f32, 2.5)).collect();
    for (i, w) in worn.iter().enumerate() {
        let v = (i as f32 - 1.5) * 1.6;
        s.canvas.rect(&frame, (30.0 * w - 15.0, v), (14.0 * w, 0.25), rubber);
    }
}

/// Two roads that cross on one level, with stop lines and corner lots.
pub(super) fn intersection(s: &mut Scene) {
    s.open_ground();
    let (frame, road) = (s.frame, s.palette.asphalt);
    let (a, b) = (s.between(4.5, 6.5), s.between(3.5, 5.5));
    let other = frame.sub(0.0, 0.0, (s.between(-0.25, 0.25), 1.0));
    let (walk, line) = (s.palette.concrete, s.palette.white);
    for (f, half) in [(&frame, a), (&other, b)] {
        s.band(f, 0.0, half + 1.2, walk);
    }
    // Corner lots: a house or trees in each.
    for (du, dv) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
        let (u, v) = (du * (b + s.between(9.0, 13.0)), dv * (a + s.between(9.0, 12.0)));
        if s.chance(65) {
            let roof = s.palette.roof(&mut s.draw);
            let half = (s.between(3.5, 6.5), s.between(3.0, 5.5));
            s.block(&frame, (u, v), half, 2.0, roof);
        } else {
            for _ in 0..4 {
                let (tu, tv, r) = (s.between(-4.0, 4.0), s.between(-4.0, 4.0), s.between(1.4, 2.4));
                s.tree(&frame, u + tu, v + tv, r);
            }
        }
    }
    for (f, half) in [(&frame, a), (&other, b)] {
        s.band(f, 0.0, half, road);
    }
    let yellow = mix(road, [0.85, 0.7, 0.2], 0.8);
    for (f, half, across) in [(frame, a, b), (other, b, a)] {
        for side in [-1.0, 1.0] {
            let arm = f.sub(side * (across + 22.0), 0.0, (1.0, 0.0));
            s.canvas.rect(&arm, (0.0, 0.0), (20.0, 0.3), yellow);
            // Zebra crossing.
            let bars = (half / 1.3) as i32;
            for i in -bars..=bars {
                s.canvas.rect(&f, (side * (across + 1.2), i as f32 * 1.3), (0.9, 0.35), line);
            }
            s.cars(&arm, side * half / 2.0, 14);
        }
    }
}

/// A road on a bridge over another.
pub(super) fn overpass(s: &mut Scene) {
    s.open_ground();
    let trees = s.count(0, 12);
    s.trees(trees, 1.3, 2.4);
    let (frame, low) = (s.frame, s.palette.asphalt);
    let high = s.palette.concrete;
    let (a, b) = (s.between(7.0, 10.0), s.between(5.0, 7.5));
    let across = frame.sub(0.0, 0.0, (s.between(-0.6, 0.6), 1.0));
    s.band(&frame, 0.0, a, low);
    let line = mix(low, s.palette.white, 0.8);
    let barrier = s.palette.white;
    s.band(&frame, 0.0, 0.35, barrier);
    for side in [-1.0, 1.0] {
        s.dashes(&frame, side * a / 2.0, 0.25, (2.0, 3.0), line);
        s.cars(&frame, side * a * 0.25, 16);
        s.cars(&frame, side * a * 0.75, 16);
    }
    // Ramps that swing from one road to the other.
    let ramps = s.count(0, 2);
    for i in 0..ramps {
        let (side, r) = (if i == 0 { 1.0 } else { -1.0 }, s.between(13.0, 17.0));
        let center = frame.sub(side * (r + b * 0.6), side * (r + a * 0.4), (1.0, 0.0));
        let ramp = shade(low, 1.1);
        s.canvas.shape(&center, (r + 2.0, r + 2.0), ramp, |u, v| ((u * u + v * v).sqrt() - r).abs() - 1.7);
    }
    let mut cast = across;
    cast.x += 2.4 * s.palette.sun.0;
    cast.y += 2.4 * s.palette.sun.1;
    s.canvas.shadow(&cast, (ALL, b + 0.8), 0.45, |_, v| v.abs() - b - 0.8);
    s.band(&across, 0.0, b + 0.8, barrier);
    s.band(&across, 0.0, b, high);
    let mark = mix(high, [0.2, 0.2, 0.2], 0.6);
    s.dashes(&across, 0.0, 0.25, (2.0, 3.0), mark);
    for side in [-1.0, 1.0] {
        s.cars(&across, side * b / 2.0, 22);
    }
}

/// Rows of parked cars.
pub(super) fn parking_lot(s: &mut Scene) {
    let road = if s.chance(75) { s.palette.asphalt } else { s.palette.concrete };
    s.cover(road);
    let frame = s.frame;
    let (pitch, long) = (s.between(2.5, 3.1), s.between(2.3, 2.7));
    let (aisle, full) = (s.between(4.5, 6.5), u64::from(s.count(60, 95)));
    let line = mix(road, s.palette.white, 0.6);
    let row = 2.0 * long + aisle;
    for r in -4..5 {
        let v = r as f32 * row * 1.5;
        for side in [-1.0, 1.0] {
            let v = v + side * long;
            for i in -18..18 {
                let u = i as f32 * pitch;
                if !frame.visible(u, v, 4.0) {
                    continue;
                }
                s.canvas.rect(&frame, (u + pitch / 2.0, v), (0.18, long), line);
                if s.chance(full) {
                    let color = s.palette.paint(&mut s.draw);
                    let slip = s.between(-0.3, 0.3);
                    s.block(&frame, (u, v + slip), (0.34 * pitch, 0.78 * long), 0.5, color);
                }
            }
        }
    }
}

/// Piers with boats on both sides.
pub(super) fn harbor(s: &mut Scene) {
    let water = s.palette.water;
    s.cover(water);
    let (frame, wood) = (s.frame, shade(s.palette.concrete, s.between(0.9, 1.15)));
    let (boat, beam) = (s.between(3.6, 5.6), s.between(1.0, 1.5));
    let (pitch, apart) = (2.0 * beam + s.between(0.8, 1.4), 4.0 * boat + s.between(3.0, 7.0));
    let shift = s.between(-6.0, 6.0);
    let quay = s.chance(40).then(|| s.between(14.0, 26.0));
    for r in -2..3 {
        let v = shift + r as f32 * apart;
        s.canvas.rect(&frame, (0.0, v), (60.0, 0.8), wood);
        for side in [-1.0, 1.0] {
            for i in -16..16 {
                let (u, v) = (i as f32 * pitch, v + side * (boat + 1.4));
                if !frame.visible(u, v, 6.0) || !s.chance(85) {
                    continue;
                }
                let hull = shade(s.palette.white, s.between(0.8, 1.05));
                let deck = s.palette.paint(&mut s.draw);
                let (half, width) = (boat * s.between(0.7, 1.0), beam * s.between(0.75, 1.0));
                let local = frame.sub(u, v, (0.0, side));
                s.canvas.shape(&local, (half, width), hull, |u, v| {
                    // Blunt towards the pier, pointed towards the water.
                    let taper = (1.0 - ((u + 0.2 * half) / (1.2 * half)).max(0.0)).max(0.0);
                    (v.abs() - width * taper.min(0.6) / 0.6).max(-half - u).max(u - half)
                });
                s.canvas.rect(&local, (-0.3 * half, 0.0), (0.3 * half, 0.5 * width), mix(hull, deck, 0.6));
            }
        }
    }
    if let Some(u) = quay {
        let ground = s.palette.concrete;
        let end = frame.sub(u + 30.0, 0.0, (1.0, 0.0));
        s.canvas.shape(&end, (ALL, ALL), ground, |u, v| -30.0 - u + 0.4 * wave(v / 30.0));
    }
}
