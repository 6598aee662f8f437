//! Transforms that a configuration names, and their pipeline.

use serde::{Deserialize, Serialize};
use stillhouse_core::Draw;
use stillhouse_core::data::{IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD};

use crate::image_buffer::ImageBuffer;
use crate::transforms::{self as t, Filter, Jitter};
use crate::{Error, Result};

/// A step of a pipeline, as a table with the key `op`. Masks are transformed with the same geometry
/// (nearest neighbor, ignored outside of the image) and are not affected by color.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transform {
    /// Resizes so that the shorter side has `size` pixels.
    ResizeShort {
        /// Pixels of the shorter side.
        size: usize,
        /// Default `bilinear`.
        #[serde(default)]
        filter: Filter,
    },
    /// Resizes to an exact size, regardless of the aspect ratio.
    Resize {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// Default `bilinear`.
        #[serde(default)]
        filter: Filter,
    },
    /// Crops the central square; smaller images are padded with zeros.
    CenterCrop {
        /// Pixels per side.
        size: usize,
    },
    /// Crops a box of random area and aspect ratio and resizes it to a square, like torchvision's
    /// `RandomResizedCrop`.
    RandomResizedCrop {
        /// Pixels per side.
        size: usize,
        /// Minimum and maximum fraction of the area; default `[0.08, 1.0]`.
        #[serde(default = "area")]
        scale: [f64; 2],
        /// Minimum and maximum width-to-height ratio; default `[0.75, 1.3333333333333333]`.
        #[serde(default = "proportions")]
        ratio: [f64; 2],
        /// Default `bilinear`.
        #[serde(default)]
        filter: Filter,
    },
    /// Crops a random square after padding with `padding` pixels of zeros; smaller images get more.
    RandomCrop {
        /// Pixels per side.
        size: usize,
        /// Padding on each side; default 0.
        #[serde(default)]
        padding: usize,
    },
    /// Scales by a random factor, then crops a random box, padded right and bottom with `fill`; for
    /// segmentation.
    RandomScaleCrop {
        /// Pixels per side, or rows if `width` is set.
        size: usize,
        /// Columns; default: same as rows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        width: Option<usize>,
        /// Minimum and maximum factor.
        scale: [f64; 2],
        /// Draws the factor from `min`, `min + step`, ... up to `max`; default: uniform.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<f64>,
        /// Color outside of the image; default `[124, 116, 104]`, ImageNet's mean.
        #[serde(default = "mean_color")]
        fill: [u8; 3],
    },
    /// Flips horizontally at random.
    Hflip {
        /// Probability; default 0.5.
        #[serde(default = "half")]
        p: f64,
    },
    /// Flips vertically at random.
    Vflip {
        /// Probability; default 0.5.
        #[serde(default = "half")]
        p: f64,
    },
    /// Rotates by 0 to 3 quarter turns with equal probability.
    Rot90 {},
    /// Scales brightness, contrast and saturation by a factor in `[max(0, 1 - x), 1 + x]` and shifts the
    /// hue by up to `hue` turns, in random order, like torchvision's `ColorJitter`.
    ColorJitter {
        /// Default 0: unchanged.
        #[serde(default)]
        brightness: f64,
        /// Default 0: unchanged.
        #[serde(default)]
        contrast: f64,
        /// Default 0: unchanged.
        #[serde(default)]
        saturation: f64,
        /// At most 0.5; default 0: unchanged.
        #[serde(default)]
        hue: f64,
    },
    /// Converts to three gray channels at random.
    Grayscale {
        /// Probability; default 0.1.
        #[serde(default = "tenth")]
        p: f64,
    },
    /// Computes `(v / 255 - mean) / std` per channel; always the last step. Default: ImageNet's
    /// statistics.
    Normalize {
        /// Default ImageNet's `[0.485, 0.456, 0.406]`.
        #[serde(default = "imagenet_mean")]
        mean: [f32; 3],
        /// Default ImageNet's `[0.229, 0.224, 0.225]`.
        #[serde(default = "imagenet_std")]
        std: [f32; 3],
    },
}

fn area() -> [f64; 2] {
    [0.08, 1.0]
}
fn proportions() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}
fn mean_color() -> [u8; 3] {
    [124, 116, 104]
}
fn half() -> f64 {
    0.5
}
fn tenth() -> f64 {
    0.1
}
fn imagenet_mean() -> [f32; 3] {
    IMAGENET_MEAN
}
fn imagenet_std() -> [f32; 3] {
    IMAGENET_STD
}

/// An image and, for segmentation, its mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) image: ImageBuffer,
    pub(crate) mask: Option<ImageBuffer>,
}

impl Pair {
    /// Applies an operation to both.
    fn both(self, f: impl Fn(&ImageBuffer) -> ImageBuffer) -> Self {
        Self { image: f(&self.image), mask: self.mask.as_ref().map(f) }
    }

    fn resized(self, (width, height): (usize, usize), filter: Filter) -> Self {
        if (self.image.width, self.image.height) == (width, height) {
            return self;
        }
        Self {
            image: t::resize(&self.image, width, height, filter),
            mask: self.mask.map(|m| t::resize(&m, width, height, Filter::Nearest)),
        }
    }

    fn cropped(self, at: (i64, i64), (width, height): (usize, usize), fill: &[u8]) -> Self {
        if at == (0, 0) && (self.image.width, self.image.height) == (width, height) {
            return self;
        }
        Self {
            image: t::crop_with(&self.image, at.0, at.1, width, height, fill),
            mask: self.mask.map(|m| t::crop_with(&m, at.0, at.1, width, height, &[IGNORE_INDEX])),
        }
    }
}

impl Transform {
    /// Whether the step is deterministic.
    fn is_fixed(&self) -> bool {
        matches!(self, Self::ResizeShort { .. } | Self::Resize { .. } | Self::CenterCrop { .. })
    }

    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::setting("transform", why));
        let range = |name: &str, [low, high]: [f64; 2], most: f64| {
            if low > 0.0 && low <= high && high <= most {
                Ok(())
            } else {
                wrong(format!("expected 0 < min <= max <= {most} for {name}, found [{low}, {high}]"))
            }
        };
        let side = |size: usize| {
            if (1..=crate::decode::MAX_SIDE).contains(&size) {
                Ok(())
            } else {
                wrong(format!("expected a side of 1 to {} pixels, found {size}", crate::decode::MAX_SIDE))
            }
        };
        let chance = |name: &str, p: f64| {
            if (0.0..=1.0).contains(&p) {
                Ok(())
            } else {
                wrong(format!("{name} needs p from 0 to 1, found {p}"))
            }
        };
        match *self {
            Self::ResizeShort { size, .. } | Self::CenterCrop { size } => side(size),
            Self::Resize { width, height, .. } => side(width).and(side(height)),
            Self::RandomResizedCrop { size, scale, ratio, .. } => {
                side(size).and(range("scale", scale, 1.0)).and(range("ratio", ratio, 1e3))
            }
            Self::RandomCrop { size, padding } => side(size).and(side(padding + 1)),
            Self::RandomScaleCrop { size, width, scale, step, .. } => {
                side(size).and(side(width.unwrap_or(size))).and(range("scale", scale, 64.0))?;
                match step {
                    Some(step) if !(step > 0.0 && step <= scale[1]) => {
                        wrong(format!("expected a step above 0 and at most {}, found {step}", scale[1]))
                    }
                    _ => Ok(()),
                }
            }
            Self::Hflip { p } => chance("hflip", p),
            Self::Vflip { p } => chance("vflip", p),
            Self::Grayscale { p } => chance("grayscale", p),
            Self::Rot90 {} => Ok(()),
            Self::ColorJitter { brightness, contrast, saturation, hue } => {
                let factors = [brightness, contrast, saturation];
                if factors.iter().all(|f| (0.0..=1e3).contains(f)) && (0.0..=0.5).contains(&hue) {
                    Ok(())
                } else {
                    wrong(format!(
                        "expected factors of at least 0 and hue up to 0.5, found {factors:?} and {hue}"
                    ))
                }
            }
            Self::Normalize { mean, std } => {
                if std.iter().all(|s| *s > 0.0 && s.is_finite()) && mean.iter().all(|m| m.is_finite()) {
                    Ok(())
                } else {
                    wrong(format!("expected std above 0, found {std:?} (mean {mean:?})"))
                }
            }
        }
    }

    /// Applies the step with random numbers from `draw`.
    fn apply(&self, pair: Pair, draw: &mut Draw) -> Pair {
        let (w, h) = (pair.image.width, pair.image.height);
        match *self {
            Self::ResizeShort { size, filter } => pair.resized(t::short_side_size(w, h, size, None), filter),
            Self::Resize { width, height, filter } => pair.resized((width, height), filter),
            Self::CenterCrop { size } if (w, h) == (size, size) => pair,
            Self::CenterCrop { size } => {
                let mask = pair.mask.map(|m| {
                    // Inverted labels make the zero padding of a crop "ignore".
                    t::invert(&t::center_crop(&t::invert(&m), size, size))
                });
                Pair { image: t::center_crop(&pair.image, size, size), mask }
            }
            Self::RandomResizedCrop { size, scale, ratio, filter } => {
                let (at, cut) = random_box((w, h), scale, ratio, draw);
                let one =
                    |buffer: &ImageBuffer, filter| t::resized_crop(buffer, at, cut, (size, size), filter);
                Pair {
                    mask: pair.mask.as_ref().map(|mask| one(mask, Filter::Nearest)),
                    image: one(&pair.image, filter),
                }
            }
            Self::RandomCrop { size, padding } => {
                let room = |n: usize| {
                    let border = padding.max(size.saturating_sub(n).div_ceil(2));
                    (n + 2 * border - size, border)
                };
                let ((x, left), (y, top)) = (room(w), room(h));
                let x = draw.below(x as u64 + 1) as i64 - left as i64;
                let y = draw.below(y as u64 + 1) as i64 - top as i64;
                pair.cropped((x, y), (size, size), &[0])
            }
            Self::RandomScaleCrop { size, width, scale, step, fill } => {
                let factor = match step {
                    None => draw.uniform_in(scale[0], scale[1]),
                    Some(step) => {
                        // Tolerance for rounding, so that 0.5 to 2 in steps of 0.1 includes 2.
                        let steps = ((scale[1] - scale[0]) / step + 1e-6) as u64;
                        scale[0] + step * draw.below(steps + 1) as f64
                    }
                };
                let scaled = |n: usize| ((n as f64 * factor) as usize).max(1);
                let (w, h) = (scaled(w), scaled(h));
                let width = width.unwrap_or(size);
                let x = draw.below(w.saturating_sub(width) as u64 + 1) as i64;
                let y = draw.below(h.saturating_sub(size) as u64 + 1) as i64;
                pair.resized((w, h), Filter::Bilinear).cropped((x, y), (width, size), &fill)
            }
            Self::Hflip { p } if draw.chance(p) => pair.both(t::hflip),
            Self::Vflip { p } if draw.chance(p) => pair.both(t::vflip),
            Self::Hflip { .. } | Self::Vflip { .. } | Self::Normalize { .. } => pair,
            Self::Rot90 {} => match draw.below(4) as i64 {
                0 => pair,
                k => pair.both(|r| t::rot90(r, k)),
            },
            Self::ColorJitter { brightness, contrast, saturation, hue } => {
                let mut factor = |x: f64| draw.uniform_in((1.0 - x).max(0.0), 1.0 + x) as f32;
                let mut steps = [
                    (brightness, Jitter::Brightness(factor(brightness))),
                    (contrast, Jitter::Contrast(factor(contrast))),
                    (saturation, Jitter::Saturation(factor(saturation))),
                    (hue, Jitter::Hue(draw.uniform_in(-hue, hue) as f32)),
                ];
                draw.shuffle(&mut steps);
                let steps: Vec<Jitter> = steps.iter().filter(|s| s.0 > 0.0).map(|s| s.1).collect();
                Pair { image: t::color_jitter(&pair.image, &steps), ..pair }
            }
            Self::Grayscale { p } if draw.chance(p) => {
                Pair { image: t::grayscale(&pair.image, pair.image.channels), ..pair }
            }
            Self::Grayscale { .. } => pair,
        }
    }
}

/// Draws left and top, width and height of a box: ten attempts with random area and log-uniform aspect
/// ratio, then the central box with the nearest valid ratio.
fn random_box(
    (w, h): (usize, usize),
    scale: [f64; 2],
    ratio: [f64; 2],
    draw: &mut Draw,
) -> ((i64, i64), (usize, usize)) {
    let (width, height) = (w as f64, h as f64);
    for _ in 0..10 {
        let area = width * height * draw.uniform_in(scale[0], scale[1]);
        let proportion = draw.uniform_in(ratio[0].ln(), ratio[1].ln()).exp();
        let cw = (area * proportion).sqrt().round() as usize;
        let ch = (area / proportion).sqrt().round() as usize;
        if (1..=w).contains(&cw) && (1..=h).contains(&ch) {
            let top = draw.below((h - ch) as u64 + 1) as i64;
            let left = draw.below((w - cw) as u64 + 1) as i64;
            return ((left, top), (cw, ch));
        }
    }
    let own = width / height;
    let (cw, ch) = if own < ratio[0] {
        (w, ((width / ratio[0]).round() as usize).clamp(1, h))
    } else if own > ratio[1] {
        (((height * ratio[1]).round() as usize).clamp(1, w), h)
    } else {
        (w, h)
    };
    (((w - cw) as i64 / 2, (h - ch) as i64 / 2), (cw, ch))
}

/// A validated sequence of transforms that ends with a normalization.
#[derive(Debug, Clone)]
pub struct Pipeline {
    steps: Vec<Transform>,
    /// Leading deterministic steps, whose result is cached.
    fixed: usize,
    mean: [f32; 3],
    std: [f32; 3],
}

impl Pipeline {
    /// Parses and validates the tables of a configuration.
    ///
    /// # Errors
    ///
    /// An unknown `op` or key, a value out of range, or a `normalize` that is not the last step; the
    /// message has the index of the step.
    pub fn new(tables: &[toml::Table]) -> stillhouse_core::Result<Self> {
        let (mut mean, mut std) = (imagenet_mean(), imagenet_std());
        let mut steps = Vec::with_capacity(tables.len());
        for (i, table) in tables.iter().enumerate() {
            let origin = format!("transforms[{i}]");
            let step: Transform = stillhouse_core::config::from_table(table, &origin)?;
            step.check().map_err(|e| stillhouse_core::Error::config(&origin, e))?;
            if let Transform::Normalize { mean: m, std: s } = step {
                if i + 1 < tables.len() {
                    return Err(stillhouse_core::Error::config(
                        &origin,
                        "expected normalize as the last step",
                    ));
                }
                (mean, std) = (m, s);
            } else {
                steps.push(step);
            }
        }
        let fixed = steps.iter().take_while(|s| s.is_fixed()).count();
        Ok(Self { steps, fixed, mean, std })
    }

    /// Applies the steps before the first random one.
    pub(crate) fn fixed(&self, pair: Pair) -> Pair {
        // Deterministic steps draw nothing.
        let mut draw = stillhouse_core::Rng::new(0).at(0, 0);
        self.steps[..self.fixed].iter().fold(pair, |pair, step| step.apply(pair, &mut draw))
    }

    /// Whether an image has at most eight views: every step is deterministic, a flip or a quarter turn.
    pub(crate) fn repeats_views(&self) -> bool {
        let repeats = |step: &Transform| {
            step.is_fixed()
                || matches!(step, Transform::Hflip { .. } | Transform::Vflip { .. } | Transform::Rot90 {})
        };
        self.steps.iter().all(repeats)
    }

    /// Applies the steps from the first random one on.
    pub(crate) fn random(&self, pair: Pair, draw: &mut Draw) -> Pair {
        self.steps[self.fixed..].iter().fold(pair, |pair, step| step.apply(pair, draw))
    }

    /// Appends the normalized `[3, H, W]` values to `out`.
    pub(crate) fn finish(&self, image: &ImageBuffer, out: &mut Vec<f32>) {
        t::normalize_into(image, &self.mean, &self.std, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
    use stillhouse_core::Rng;

    use super::*;

    fn pipeline(text: &str) -> stillhouse_core::Result<Pipeline> {
        let table: toml::Table = toml::from_str(&format!("t = [{text}]")).unwrap();
        let tables: Vec<toml::Table> =
            table["t"].as_array().unwrap().iter().map(|v| v.as_table().unwrap().clone()).collect();
        Pipeline::new(&tables)
    }

    fn pair(width: usize, height: usize) -> Pair {
        let pixels = (0..width * height * 3).map(|i| (i * 31) as u8).collect();
        let mask = ImageBuffer { width, height, channels: 1, pixels: vec![4; width * height] };
        Pair { image: ImageBuffer { width, height, channels: 3, pixels }, mask: Some(mask) }
    }

    #[test]
    fn parses_pipelines() {
        let train = r#"{op="resize_short", size=72}, {op="random_resized_crop", size=64, scale=[0.5,1.0], ratio=[0.75,1.3333]},
            {op="hflip", p=0.5}, {op="vflip"}, {op="rot90"}, {op="color_jitter", brightness=0.2, hue=0.1}, {op="normalize"}"#;
        let train = pipeline(train).unwrap();
        assert_eq!((train.fixed, train.steps.len()), (1, 6));
        assert_eq!(train.mean, imagenet_mean());
        let test = pipeline(r#"{op="resize", width=64, height=64}, {op="center_crop", size=64}, {op="normalize", mean=[0.0,0.5,1.0], std=[1.0,2.0,3.0]}"#).unwrap();
        assert_eq!((test.fixed, test.mean, test.std), (2, [0.0, 0.5, 1.0], [1.0, 2.0, 3.0]));
        assert_eq!(pipeline("").unwrap().fixed, 0);
    }

    #[test]
    fn rejects_invalid_steps() {
        for (text, expected) in [
            (r#"{op="hflp"}"#, "did you mean `hflip`"),
            (r#"{op="hflip", q=0.5}"#, "`q`"),
            (r#"{op="rot90", k=2}"#, "`k`"),
            (r#"{op="hflip", p=1.5}"#, "found 1.5"),
            (r#"{op="hflip"}, {op="resize_short"}"#, "transforms[1]"),
            (r#"{op="resize_short", size=0}"#, "found 0"),
            (r#"{op="random_resized_crop", size=8, scale=[0.9, 0.5]}"#, "scale"),
            (r#"{op="normalize"}, {op="hflip"}"#, "last step"),
            (r#"{op="normalize", std=[0.0, 1.0, 1.0]}"#, "above 0"),
            (r#"{op="color_jitter", hue=0.7}"#, "up to 0.5"),
            (r#"{size=3}"#, "op"),
            (r#"{op="random_scale_crop", size=8, scale=[0.5, 2.0], step=0.0}"#, "found 0"),
        ] {
            let e = pipeline(text).unwrap_err().to_string();
            assert!(e.contains(expected), "{text}: {e}");
        }
    }

    #[test]
    fn ignores_mask_pixels_outside_of_the_image() {
        let p = pipeline(r#"{op="center_crop", size=6}"#).unwrap();
        let mask = p.fixed(pair(4, 4)).mask.unwrap();
        assert_eq!(mask.pixels.iter().filter(|&&v| v == 4).count(), 16);
        assert_eq!(mask.pixels.iter().filter(|&&v| v == IGNORE_INDEX).count(), 20);
    }

    /// The unpadded columns of a 10-column image reveal the factor.
    #[test]
    fn draws_factors_in_steps() {
        let p =
            pipeline(r#"{op="random_scale_crop", size=8, width=40, scale=[0.5, 2.0], step=0.1}"#).unwrap();
        let rng = Rng::new(3);
        let mut seen = std::collections::BTreeSet::new();
        for at in 0..200 {
            let out = p.random(p.fixed(pair(10, 10)), &mut rng.at(0, at));
            assert_eq!((out.image.width, out.image.height), (40, 8));
            let row = &out.mask.unwrap().pixels[..40];
            seen.insert(row.iter().filter(|&&v| v != IGNORE_INDEX).count());
        }
        // 10 x 0.5, 0.6, ... 2.0; products just below an integer are truncated.
        assert!(seen.len() >= 14 && seen.first() == Some(&5) && seen.last() == Some(&20), "{seen:?}");
    }

    proptest! {
        #[test]
        fn keeps_the_output_size_for_any_input(w in 1usize..50, h in 1usize..50, seed: u64) {
            let p = pipeline(r#"{op="random_scale_crop", size=20, scale=[0.1, 2.0]}, {op="random_crop", size=24, padding=3},
                {op="color_jitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.5}, {op="grayscale"},
                {op="random_resized_crop", size=9, scale=[0.01, 1.0], ratio=[0.1, 10.0]}, {op="rot90"}, {op="hflip"}, {op="vflip"}"#).unwrap();
            let rng = Rng::new(seed);
            let out = p.random(p.fixed(pair(w, h)), &mut rng.at(0, 0));
            prop_assert_eq!((out.image.width, out.image.height), (9, 9));
            prop_assert_eq!(out.mask.as_ref().map(|m| (m.width, m.height)), Some((9, 9)));
            prop_assert!(out.mask.as_ref().unwrap().pixels.iter().all(|&v| v == 4 || v == IGNORE_INDEX));
            prop_assert_eq!(&out, &p.random(p.fixed(pair(w, h)), &mut rng.at(0, 0)));
            let mut values = Vec::new();
            p.finish(&out.image, &mut values);
            prop_assert_eq!(values.len(), 3 * 81);
            prop_assert!(values.iter().all(|v| v.is_finite()));
        }
    }
}
