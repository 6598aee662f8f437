//! JPEG, by zune-jpeg in strict mode.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{As, Decoded, Input, MAX_SIDE, RGB, collect, exif};
use crate::Result;

pub(super) fn decode(input: &Input, to: As) -> Result<Decoded> {
    // The decoder fills what is missing with grey, even in strict mode if only the last rows
    // are: so the end is looked for first.
    if !is_whole(input.bytes) {
        return Err(input.broken("it ends before its end marker, so it was cut off"));
    }
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(input.bytes), options);
    decoder.decode_headers().map_err(|e| input.broken(e))?;
    let Some(info) = decoder.info() else { return Err(input.broken("no frame header")) };
    let size = input.checked_size(info.width.into(), info.height.into())?;
    let mut channels = 3;
    if to != As::Rgb {
        if decoder.input_colorspace() == Some(ColorSpace::Luma) {
            let options = options.jpeg_set_out_colorspace(ColorSpace::Luma);
            decoder.set_options(options);
            channels = 1;
        } else if to == As::Index {
            return Err(input.unsupported("colours", "a label mask of palette indices or grey values"));
        }
    }
    let pixels = decoder.decode().map_err(|e| input.broken(e))?;
    let orientation = decoder.exif().map_or(1, |e| exif::orientation(e));
    let stored = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => "grey",
        Some(ColorSpace::CMYK | ColorSpace::YCCK) => "CMYK",
        _ => RGB,
    };
    Ok(Decoded { raster: collect(input, size, channels, pixels, to)?, orientation, stored })
}

/// Whether there is an end marker behind the scans. Segments are skipped by their length, so that
/// a thumbnail's end marker does not count.
fn is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    let mut scanned = false;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff)) {
        at += found + 1;
        match bytes.get(at) {
            None => return false,
            // Fill bytes, stuffed zeros and restarts belong to the scan.
            Some(0xff) => {}
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            Some(0xd9) => return scanned,
            Some(marker) => {
                scanned |= *marker == 0xda;
                // In a scan a marker is what it seems, so most files need no further look.
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

    #[test]
    fn the_end_marker_of_a_thumbnail_does_not_count() {
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
