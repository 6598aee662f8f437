//! Pixels of libjpeg-turbo, and damaged files. `data/make.py` writes the files.

use std::fs;
use std::path::{Path, PathBuf};

use stillhouse_jpeg::{Color, Decoder, Error, Warning, decode};

/// Name, JPEG file, and width, height and RGB pixels as libjpeg decodes them.
type Case = (String, Vec<u8>, (usize, usize), Vec<u8>);

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
    paths.sort();
    assert!(paths.len() >= 25);
    let case = |path: PathBuf| {
        let png = fs::File::open(path.with_extension("png")).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(info.color_type, png::ColorType::Rgb);
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        (name, fs::read(path).unwrap(), (info.width as usize, info.height as usize), pixels)
    };
    paths.into_iter().map(case).collect()
}

fn file(name: &str) -> Vec<u8> {
    cases().into_iter().find(|(n, ..)| n == name).unwrap().1
}

#[test]
fn decodes_to_the_pixels_of_libjpeg() {
    for (name, bytes, size, expected) in cases() {
        let image = decode(&bytes).unwrap();
        assert_eq!((image.width, image.height), size, "{name}");
        let is_cut = name.contains("cut");
        assert_eq!(image.warnings.iter().any(|w| w.loses_pixels()), is_cut, "{name}: {:?}", image.warnings);
        let color = match &name {
            n if n.contains("gray") => Color::Luma,
            n if n.contains("cmyk") => Color::Cmyk,
            _ => Color::Rgb,
        };
        assert_eq!(image.color, color, "{name}");
        assert!(image.into_rgb() == expected, "{name}: other pixels");
    }
}

#[test]
fn fills_files_that_end_early_and_says_so() {
    for (name, bytes, size, _) in cases().into_iter().filter(|(name, ..)| !name.contains("cut")) {
        // A cut after the pixels may leave the first byte of the end marker.
        for end in 0..bytes.len() - 1 {
            match decode(&bytes[..end]) {
                Ok(image) => {
                    assert_eq!((image.width, image.height), size, "{name} up to {end}");
                    assert!(image.warnings.contains(&Warning::Truncated), "{name} up to {end}");
                }
                Err(Error::Truncated | Error::Corrupt(_)) => {}
                Err(e) => panic!("{name} up to {end}: {e}"),
            }
        }
    }
}

/// Replaces single bytes at random; `STILLHOUSE_MUTATIONS` sets the number of files.
#[test]
fn survives_damaged_files() {
    let number = std::env::var("STILLHOUSE_MUTATIONS").map_or(3_000, |n| n.parse().unwrap());
    let cases = cases();
    let mut state = 1u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut decoded, mut refused) = (0, 0);
    for i in 0..number {
        let mut bytes = cases[i % cases.len()].1.clone();
        for _ in 0..=draw(6) {
            let at = draw(bytes.len());
            bytes[at] = draw(256) as u8;
        }
        if draw(8) == 0 {
            bytes.truncate(draw(bytes.len()));
        }
        match Decoder::new(&bytes).and_then(|d| d.with_max_pixels(1 << 20).decode()) {
            Ok(image) => {
                assert_eq!(image.pixels.len(), image.width * image.height * image.color.channels());
                decoded += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(decoded > number / 4 && refused > number / 20, "{decoded} decoded, {refused} refused");
}

#[test]
fn limits_the_pixels() {
    let result = Decoder::new(&file("444")).unwrap().with_max_pixels(53 * 37 - 1).decode();
    assert_eq!(result.unwrap_err(), Error::TooLarge { width: 53, height: 37 });
    assert!(Decoder::new(&file("444")).unwrap().with_max_pixels(53 * 37).decode().is_ok());
}

#[test]
fn names_variants_that_are_not_supported() {
    let baseline = file("444");
    let frame = baseline.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    for (marker, precision, word) in
        [(0xc9, 8, "arithmetic"), (0xc3, 8, "lossless"), (0xc5, 8, "hierarchical"), (0xc1, 12, "12")]
    {
        let mut bytes = baseline.clone();
        (bytes[frame + 1], bytes[frame + 4]) = (marker, precision);
        match decode(&bytes).unwrap_err() {
            Error::Unsupported(found) => assert!(found.contains(word), "{found}"),
            other => panic!("{word}: {other}"),
        }
    }
    assert!(matches!(decode(b"GIF89a").unwrap_err(), Error::Corrupt(_)));
    assert!(decode(b"").is_err());
}

/// A damaged byte often changes the number of blocks that the coded data holds.
#[test]
fn tells_damage_by_the_length_of_the_coded_data() {
    for name in ["444", "420", "progressive_420"] {
        let bytes = file(name);
        let whole = decode(&bytes).unwrap();
        let scan = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap() + 14;
        let (mut missing, mut excess) = (0, 0);
        for at in scan..bytes.len() - 2 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let Ok(image) = decode(&damaged) else { continue };
            if image.pixels != whole.pixels {
                missing += usize::from(image.warnings.contains(&Warning::MissingData));
                excess += usize::from(image.warnings.contains(&Warning::ExcessData));
            }
        }
        assert!(missing > 5 && excess > 20, "{name}: {missing} too short, {excess} too long");
    }
}
