//! Class colors, masks as palette PNGs, and overlays of masks on images.

use stillhouse_core::data::{IGNORE_INDEX, Image, Mask};

use crate::manifest::Manifest;
use crate::{Error, ImageBuffer, Result};

/// Returns a color for each label: the class colors of a manifest, VOC's palette for all others.
pub fn colors(manifest: Option<&Manifest>) -> [[u8; 3]; 256] {
    let classes = manifest.map_or(&[][..], |m| &m.classes);
    let mut all = [[0; 3]; 256];
    for (label, color) in (0..=255u8).zip(&mut all) {
        let own = classes.get(usize::from(label)).and_then(|class| class.color);
        *color = own.unwrap_or_else(|| voc_color(label));
    }
    all
}

/// Returns VOC's color of a label: the bits of the index, from the lowest, alternate between red,
/// green and blue, from the highest.
pub(crate) fn voc_color(label: u8) -> [u8; 3] {
    let mut color = [0; 3];
    for j in 0..3 {
        for (channel, value) in color.iter_mut().enumerate() {
            *value |= (label >> (3 * j + channel).min(7) & u8::from(3 * j + channel < 8)) << (7 - j);
        }
    }
    color
}

/// Encodes a mask as an indexed PNG with a palette, the format of VOC's labels.
///
/// # Errors
/// An empty mask, or one whose labels are not `width * height`.
pub fn mask_png(mask: &Mask, colors: &[[u8; 3]; 256]) -> Result<Vec<u8>> {
    let wrong = |e: png::EncodingError| Error::setting("PNG", e);
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, mask.width as u32, mask.height as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(colors.concat());
    let mut writer = encoder.write_header().map_err(wrong)?;
    writer.write_image_data(&mask.labels).map_err(wrong)?;
    writer.finish().map_err(wrong)?;
    Ok(out)
}

/// Blends an image with the colors of its labels; ignored pixels are darkened.
///
/// # Errors
/// A mask whose size differs from the image.
pub fn overlay(image: &Image, mask: &Mask, colors: &[[u8; 3]; 256]) -> Result<ImageBuffer> {
    if (image.width, image.height) != (mask.width, mask.height) {
        let why = format!(
            "expected a mask of the image's {}x{} pixels, found {}x{}",
            image.width, image.height, mask.width, mask.height
        );
        return Err(Error::setting("overlay", why));
    }
    let mut buffer = ImageBuffer::from(image.clone());
    for (pixel, label) in buffer.pixels.chunks_exact_mut(3).zip(&mask.labels) {
        let color = if *label == IGNORE_INDEX { [0; 3] } else { colors[usize::from(*label)] };
        for (value, own) in pixel.iter_mut().zip(color) {
            *value = ((2 * u16::from(*value) + 3 * u16::from(own)) / 5) as u8;
        }
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::of_builtin;

    fn of(name: &str) -> [[u8; 3]; 256] {
        colors(Some(of_builtin(name).unwrap()))
    }

    #[test]
    fn uses_manifest_colors_then_the_voc_palette() {
        assert_eq!((voc_color(1), voc_color(2), voc_color(15)), ([128, 0, 0], [0, 128, 0], [192, 128, 128]));
        assert_eq!(of("voc")[255], [224, 224, 192]);
        assert_eq!((of("camvid")[3], of("camvid")[11]), ([128, 64, 128], voc_color(11)));
        for name in ["cityscapes", "camvid", "fields"] {
            let mut colors: Vec<_> =
                of_builtin(name).unwrap().classes.iter().map(|c| c.color.unwrap()).collect();
            let classes = colors.len();
            colors.sort_unstable();
            colors.dedup();
            assert_eq!(colors.len(), classes, "{name}");
        }
        assert_eq!(colors(None)[1], [128, 0, 0]);
    }

    #[test]
    fn round_trips_masks() {
        let mask = Mask { width: 3, height: 2, labels: vec![0, 1, 2, 255, 20, 7] };
        let bytes = mask_png(&mask, &colors(None)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(crate::decode::read_mask(&path).unwrap(), mask);
        assert_eq!(crate::decode::read_image(&path, None).unwrap().pixels[3..6], [128, 0, 0]);
        assert!(mask_png(&Mask { labels: vec![0], ..mask }, &colors(None)).is_err());
    }

    #[test]
    fn blends_labels_and_darkens_ignored_pixels() {
        let image = Image { width: 2, height: 1, pixels: vec![100; 6] };
        let mask = Mask { width: 2, height: 1, labels: vec![1, 255] };
        assert_eq!(overlay(&image, &mask, &colors(None)).unwrap().pixels, [116, 40, 40, 40, 40, 40]);
        let e = overlay(&image, &Mask { width: 1, height: 2, ..mask }, &colors(None)).unwrap_err();
        assert!(e.to_string().contains("2x1 pixels, found 1x2"), "{e}");
    }
}
