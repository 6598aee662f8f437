//! Golden cases of transforms and decoders, selected by their metadata, not by their names.
//!
//! Reference: Pillow 13.0.0 and torchvision 0.29.2; each case has its tolerances.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stillhouse_datasets::ImageBuffer;
use stillhouse_datasets::decode::{PixelFormat, decode, decode_u16};
use stillhouse_datasets::transforms::{self as t, Filter, Jitter, PadMode, Padding, ScaleCrop};
use stillhouse_testkit::golden::{self, Case};

/// Shape and values of a result or an expectation.
#[derive(Debug)]
struct Values {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl From<ImageBuffer> for Values {
    fn from(buffer: ImageBuffer) -> Self {
        let shape = vec![buffer.height, buffer.width, buffer.channels];
        Self { shape, values: buffer.pixels.iter().map(|&v| f64::from(v)).collect() }
    }
}

fn params<T: DeserializeOwned>(case: &Case) -> T {
    serde_json::from_value(case.meta["params"].clone()).unwrap_or_else(|e| panic!("{case}: params: {e}"))
}

fn text<'a>(case: &Case, value: &'a Value) -> &'a str {
    value.as_str().unwrap_or_else(|| panic!("{case}: expected a text, found {value}"))
}

fn bytes(case: &Case, name: &str) -> Vec<u8> {
    let path = case.file(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads a PNG with its own number of channels.
fn png(case: &Case, name: &str) -> ImageBuffer {
    let bytes = bytes(case, name);
    decode(&bytes, name, PixelFormat::Index, false)
        .or_else(|_| decode(&bytes, name, PixelFormat::Rgb, false))
        .unwrap_or_else(|e| panic!("{case}: {e}"))
}

fn expectation(case: &Case, name: &str) -> Values {
    if name.ends_with(".png") {
        return png(case, name).into();
    }
    let tensors = golden::tensors(&case.file(name), None);
    let out = &tensors["out"];
    let values = out.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    Values { shape: out.dims().to_vec(), values }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Factor {
    factor: f32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    width: usize,
    height: usize,
    filter: Filter,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShortSide {
    size: usize,
    filter: Filter,
    max_size: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Middle {
    width: usize,
    height: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CropBox {
    left: i64,
    top: i64,
    width: usize,
    height: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResizedCrop {
    left: i64,
    top: i64,
    width: usize,
    height: usize,
    out_width: usize,
    out_height: usize,
    filter: Filter,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Fill {
    One(u8),
    Each([u8; 3]),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pad {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
    mode: String,
    fill: Option<Fill>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Joint {
    scaled_width: usize,
    scaled_height: usize,
    crop_width: usize,
    crop_height: usize,
    left: i64,
    top: i64,
    flip: bool,
    image_fill: [u8; 3],
    mask_fill: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turns {
    k: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Steps {
    steps: Vec<(String, f32)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Channels {
    channels: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Blur {
    kernel: (usize, usize),
    sigma: (f64, f64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bits {
    bits: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Threshold {
    threshold: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Statistics {
    mean: Vec<f32>,
    std: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Puzzle {
    n: usize,
    permutation: Vec<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decode {
    r#as: String,
    #[serde(default)]
    orient: bool,
}

/// Runs the operation of a case.
fn run(case: &Case, op: &str) -> BTreeMap<&'static str, Values> {
    let input = |key: &str| png(case, text(case, &case.meta["inputs"][key]));
    if op == "scale_crop_joint" {
        let p: Joint = params(case);
        let to = ScaleCrop {
            scaled: (p.scaled_width, p.scaled_height),
            crop: (p.crop_width, p.crop_height),
            at: (p.left, p.top),
            flip: p.flip,
            image_fill: p.image_fill,
            mask_fill: p.mask_fill,
        };
        let (image, mask) = t::scale_crop_joint(&input("image"), &input("mask"), to);
        return BTreeMap::from([("image", image.into()), ("mask", mask.into())]);
    }
    if op == "decode" {
        return BTreeMap::from([("image", run_decode(case))]);
    }
    let factor = |f: fn(&ImageBuffer, f32) -> ImageBuffer| f(&input("image"), params::<Factor>(case).factor);
    let plain = |f: fn(&ImageBuffer) -> ImageBuffer| {
        let Nothing {} = params(case);
        f(&input("image"))
    };
    let buffer = match op {
        "resize" => {
            let p: Size = params(case);
            t::resize(&input("image"), p.width, p.height, p.filter)
        }
        "resize_short_side" => {
            let p: ShortSide = params(case);
            t::resize_short_side(&input("image"), p.size, p.max_size, p.filter)
        }
        "center_crop" => {
            let p: Middle = params(case);
            t::center_crop(&input("image"), p.width, p.height)
        }
        "crop" => {
            let p: CropBox = params(case);
            t::crop(&input("image"), p.left, p.top, p.width, p.height)
        }
        "resized_crop" => {
            let p: ResizedCrop = params(case);
            let out = (p.out_width, p.out_height);
            t::resized_crop(&input("image"), (p.left, p.top), (p.width, p.height), out, p.filter)
        }
        "pad" => {
            let p: Pad = params(case);
            let mode = match (p.mode.as_str(), p.fill) {
                ("constant", Some(Fill::One(v))) => PadMode::Constant([v; 3]),
                ("constant", Some(Fill::Each(v))) => PadMode::Constant(v),
                ("reflect", None) => PadMode::Reflect,
                ("edge", None) => PadMode::Edge,
                (mode, _) => panic!("{case}: mode `{mode}` with or without fill"),
            };
            let by = Padding { left: p.left, top: p.top, right: p.right, bottom: p.bottom };
            t::pad(&input("image"), by, mode).unwrap()
        }
        "hflip" => plain(t::hflip),
        "vflip" => plain(t::vflip),
        "rot90" => t::rot90(&input("image"), params::<Turns>(case).k),
        "brightness" => factor(t::brightness),
        "contrast" => factor(t::contrast),
        "saturation" => factor(t::saturation),
        "hue" => factor(t::hue),
        "sharpness" => factor(t::sharpness),
        "color_jitter" => {
            let steps = params::<Steps>(case).steps.into_iter().map(|(name, f)| match name.as_str() {
                "brightness" => Jitter::Brightness(f),
                "contrast" => Jitter::Contrast(f),
                "saturation" => Jitter::Saturation(f),
                "hue" => Jitter::Hue(f),
                _ => panic!("{case}: step `{name}`"),
            });
            t::color_jitter(&input("image"), &steps.collect::<Vec<_>>())
        }
        "grayscale" => t::grayscale(&input("image"), params::<Channels>(case).channels),
        "gaussian_blur" => {
            let p: Blur = params(case);
            t::gaussian_blur(&input("image"), p.kernel, p.sigma).unwrap()
        }
        "autocontrast" => plain(t::autocontrast),
        "equalize" => plain(t::equalize),
        "invert" => plain(t::invert),
        "posterize" => t::posterize(&input("image"), params::<Bits>(case).bits),
        "solarize" => t::solarize(&input("image"), params::<Threshold>(case).threshold),
        "jigsaw" => {
            let p: Puzzle = params(case);
            t::jigsaw(&input("image"), p.n, &p.permutation).unwrap()
        }
        "normalize" => {
            let p: Statistics = params(case);
            let image = input("image");
            let values = t::normalize(&image, &p.mean, &p.std).into_iter().map(f64::from).collect();
            let shape = vec![image.channels, image.height, image.width];
            return BTreeMap::from([("image", Values { shape, values })]);
        }
        _ => panic!("{case}: unknown operation `{op}`"),
    };
    BTreeMap::from([("image", buffer.into())])
}

fn run_decode(case: &Case) -> Values {
    let p: Decode = params(case);
    let name = text(case, &case.meta["inputs"]["file"]);
    let bytes = bytes(case, name);
    let to = match p.r#as.as_str() {
        "rgb" => PixelFormat::Rgb,
        "luma" => PixelFormat::Luma,
        "index" => PixelFormat::Index,
        "u16" => {
            assert!(!p.orient, "{case}: orient of 16-bit values");
            let (width, height, values) = decode_u16(&bytes, name).unwrap_or_else(|e| panic!("{case}: {e}"));
            let values = values.into_iter().map(f64::from).collect();
            return Values { shape: vec![height, width], values };
        }
        other => panic!("{case}: decode as `{other}`"),
    };
    decode(&bytes, name, to, p.orient).unwrap_or_else(|e| panic!("{case}: {e}")).into()
}

/// Compares a result with the expectation within a tolerance.
fn compare(got: &Values, want: &Values, tolerance: &Value) -> Result<(), String> {
    let (Some(max_abs), Some(mean_abs)) = (tolerance["max_abs"].as_f64(), tolerance["mean_abs"].as_f64())
    else {
        return Err(format!("no tolerance: {tolerance}"));
    };
    if got.shape != want.shape {
        return Err(format!("shape {:?}, expected {:?}", got.shape, want.shape));
    }
    let differences = got.values.iter().zip(&want.values).map(|(a, b)| (a - b).abs());
    let max = differences.clone().fold(0.0, f64::max);
    let mean = differences.sum::<f64>() / want.values.len() as f64;
    // NaN fails this comparison.
    if max <= max_abs && mean <= mean_abs {
        Ok(())
    } else {
        Err(format!("max {max} of {max_abs}, mean {mean} of {mean_abs}"))
    }
}

#[test]
fn matches_every_golden_case() {
    let cases = golden::require("transforms");
    let (mut counts, mut wrong) = (BTreeMap::new(), Vec::new());
    for case in &cases {
        assert_eq!(case.meta["format"], "stillhouse-golden-transform-1", "{case}");
        let op = text(case, &case.meta["op"]);
        let results = run(case, op);
        let expected =
            case.meta["expected"].as_object().unwrap_or_else(|| panic!("{case}: nothing expected"));
        assert!(expected.keys().eq(results.keys()), "{case}: expected {expected:?}");
        for (key, name) in expected {
            let want = expectation(case, text(case, name));
            if let Err(why) = compare(&results[key.as_str()], &want, &case.meta["tolerance"][key]) {
                wrong.push(format!("{case} ({op}, {key}): {why}"));
            }
        }
        *counts.entry(op.to_string()).or_insert(0) += 1;
    }
    println!("{} cases: {counts:?}", counts.values().sum::<usize>());
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}
