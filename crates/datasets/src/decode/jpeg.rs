//! JPEG: baseline files with [`baseline`], all others with zune-jpeg in strict mode.

mod baseline;
mod color;
mod huffman;
mod idct;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Decoded, Input, MAX_SIDE, PixelFormat, RGB, collect, exif};
use crate::Result;

pub(super) fn decode(input: &Input, to: PixelFormat) -> Result<Decoded> {
    let fits = |width: usize, height: usize| input.checked_size(width as u64, height as u64).is_ok();
    if let Some(image) = baseline::decode(input.bytes, fits) {
        let stored = if image.channels == 1 { "gray" } else { RGB };
        let orientation = exif::orientation(&image.exif);
        let buffer = collect(input, image.size, image.channels, image.pixels, to)?;
        return Ok(Decoded { buffer, orientation, stored });
    }
    decode_any(input, to)
}

/// Decodes with zune-jpeg, which describes errors.
fn decode_any(input: &Input, to: PixelFormat) -> Result<Decoded> {
    // Even in strict mode the decoder fills missing last rows with gray, so the end marker is
    // required first.
    if !is_whole(input.bytes) {
        return Err(input.corrupt("truncated before the end marker"));
    }
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(input.bytes), options);
    decoder.decode_headers().map_err(|e| input.corrupt(e))?;
    let Some(info) = decoder.info() else { return Err(input.corrupt("no frame header")) };
    let size = input.checked_size(info.width.into(), info.height.into())?;
    let mut channels = 3;
    if to != PixelFormat::Rgb {
        if decoder.input_colorspace() == Some(ColorSpace::Luma) {
            let options = options.jpeg_set_out_colorspace(ColorSpace::Luma);
            decoder.set_options(options);
            channels = 1;
        } else if to == PixelFormat::Index {
            return Err(input.unsupported("colors", "a label mask of palette indices or gray values"));
        }
    }
    let pixels = decoder.decode().map_err(|e| input.corrupt(e))?;
    let orientation = decoder.exif().map_or(1, |e| exif::orientation(e));
    let stored = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => "gray",
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => "CMYK",
        _ => RGB,
    };
    Ok(Decoded { buffer: collect(input, size, channels, pixels, to)?, orientation, stored })
}

/// Whether an end marker follows the scans. Segments are skipped by their length, so a thumbnail's
/// end marker does not count.
fn is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    let mut scanned = false;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)) {
        at += found + 1;
        match bytes.get(at) {
            None => return false,
            // Fill bytes, stuffed zeros and restarts are part of the scan.
            Some(0xff) => {}
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            Some(0xd9) => return scanned,
            Some(marker) => {
                scanned |= *marker == 0xda;
                // Markers within a scan are unambiguous, so most files need no second pass.
                if scanned && bytes.ends_with(&[0xff, 0xd9]) {
                    return true;
                }
                let Some(length) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_buffer::ImageBuffer;

    /// Files written by Pillow and its decoded pixels; see `make.py`.
    fn files() -> Vec<(String, Vec<u8>, ImageBuffer)> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/jpeg");
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "jpg"));
        paths.sort();
        let file = |path: std::path::PathBuf| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_string();
            let png = std::fs::read(path.with_extension("png")).unwrap();
            let buffer = crate::decode::decode(&png, &name, PixelFormat::Rgb, false).unwrap();
            (name, std::fs::read(path).unwrap(), buffer)
        };
        paths.into_iter().map(file).collect()
    }

    #[test]
    fn decodes_baseline_files_to_the_pixels_of_libjpeg() {
        let mut baseline = 0;
        for (name, bytes, expected) in files() {
            let input = Input { bytes: &bytes, name: &name, format: "JPEG" };
            let ours = baseline::decode(&bytes, |_, _| true);
            assert_eq!(ours.is_none(), name.starts_with("other"), "{name}");
            baseline += usize::from(ours.is_some());
            let found = decode(&input, PixelFormat::Rgb).unwrap().buffer;
            assert_eq!((found.width, found.height), (expected.width, expected.height), "{name}");
            let furthest = found.pixels.iter().zip(&expected.pixels).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(furthest.unwrap() <= if ours.is_some() { 0 } else { 12 }, "{name}: {furthest:?}");
        }
        assert!(baseline >= 8);
    }

    #[test]
    fn leaves_truncated_files_to_zune_jpeg() {
        for (name, bytes, _) in files() {
            // A cut after the pixels may leave the first byte of the end marker.
            for end in 0..bytes.len() - 1 {
                assert!(baseline::decode(&bytes[..end], |_, _| true).is_none(), "{name} up to {end}");
            }
        }
    }

    #[test]
    fn rejects_large_images_before_decoding() {
        for (_, bytes, _) in files() {
            assert!(baseline::decode(&bytes, |_, _| false).is_none());
        }
    }

    #[test]
    fn ignores_the_end_marker_of_a_thumbnail() {
        let mut file = vec![0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 0, 0];
        file.extend([0xff, 0xda, 0, 4, 0, 0, 1, 2, 0xff, 0, 3, 0xff, 0xd0, 4]);
        assert!(!is_whole(&file));
        file.extend([0xff, 0xff, 0xd9]);
        assert!(is_whole(&file));
        for n in 0..file.len() {
            assert!(!is_whole(&file[..n]));
        }
    }
}
