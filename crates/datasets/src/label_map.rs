//! Label maps as pictures: the colors of the classes, masks as palette PNGs, overlays.

use stillhouse_core::data::{Image, Mask};

use crate::{Error, Raster, Result};

/// Labels of pixels that count nowhere.
const IGNORE: u8 = 255;

/// The colors of Cityscapes' classes, as its own tools have them.
const CITYSCAPES: [[u8; 3]; 19] = [
    [128, 64, 128],
    [244, 35, 232],
    [70, 70, 70],
    [102, 102, 156],
    [190, 153, 153],
    [153, 153, 153],
    [250, 170, 30],
    [220, 220, 0],
    [107, 142, 35],
    [152, 251, 152],
    [70, 130, 180],
    [220, 20, 60],
    [255, 0, 0],
    [0, 0, 142],
    [0, 0, 70],
    [0, 60, 100],
    [0, 80, 100],
    [0, 0, 230],
    [119, 11, 32],
];

/// The colors of CamVid's eleven classes, as the set's authors have them.
const CAMVID: [[u8; 3]; 11] = [
    [128, 128, 128],
    [128, 0, 0],
    [192, 192, 128],
    [128, 64, 128],
    [0, 0, 192],
    [128, 128, 0],
    [192, 128, 128],
    [64, 64, 128],
    [64, 0, 128],
    [64, 64, 0],
    [0, 128, 192],
];

/// The colors of the synthetic fields.
const FIELDS: [[u8; 3]; 6] =
    [[146, 208, 80], [255, 192, 0], [0, 112, 60], [0, 112, 192], [128, 128, 128], [192, 0, 0]];

/// A color for each class of a dataset: its authors' where they are known, VOC's palette for all
/// others and for labels that are no class.
pub fn colors(dataset: &str) -> [[u8; 3]; 256] {
    let own: &[[u8; 3]] = match dataset {
        "cityscapes" => &CITYSCAPES,
        "camvid" => &CAMVID,
        "fields" => &FIELDS,
        _ => &[],
    };
    let mut all = [[0; 3]; 256];
    for (label, to) in (0..=255u8).zip(&mut all) {
        *to = own.get(usize::from(label)).copied().unwrap_or_else(|| voc(label));
    }
    all
}

/// VOC's palette: the bits of the index, from the lowest, go to red, green, blue, from the highest.
pub(crate) fn voc(label: u8) -> [u8; 3] {
    let mut color = [0; 3];
    for j in 0..3 {
        for (channel, value) in color.iter_mut().enumerate() {
            *value |= (label >> (3 * j + channel).min(7) & u8::from(3 * j + channel < 8)) << (7 - j);
        }
    }
    color
}

/// A mask as a PNG of indices with a palette, as VOC gives out its labels.
///
/// # Errors
/// A mask without pixels, or whose labels are not `width * height`.
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

/// The image with the colors of its labels over it; where they are "ignore", the image dimmed.
///
/// # Errors
/// A mask of another size than the image.
pub fn overlay(image: &Image, mask: &Mask, colors: &[[u8; 3]; 256]) -> Result<Raster> {
    if (image.width, image.height) != (mask.width, mask.height) {
        let why = format!(
            "a mask of {}x{} over an image of {}x{}",
            mask.width, mask.height, image.width, image.height
        );
        return Err(Error::setting("overlay", why));
    }
    let mut raster = Raster::from(image.clone());
    for (pixel, label) in raster.pixels.chunks_exact_mut(3).zip(&mask.labels) {
        let color = if *label == IGNORE { [0; 3] } else { colors[usize::from(*label)] };
        for (value, own) in pixel.iter_mut().zip(color) {
            *value = ((2 * u16::from(*value) + 3 * u16::from(own)) / 5) as u8;
        }
    }
    Ok(raster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn palettes() {
        assert_eq!((voc(1), voc(2), voc(15)), ([128, 0, 0], [0, 128, 0], [192, 128, 128]));
        assert_eq!(colors("voc")[255], [224, 224, 192]);
        assert_eq!((colors("camvid")[3], colors("camvid")[11]), ([128, 64, 128], voc(11)));
        let mut cityscapes = CITYSCAPES.to_vec();
        cityscapes.sort_unstable();
        cityscapes.dedup();
        assert_eq!(cityscapes.len(), crate::cityscapes::CLASSES.len());
        assert_eq!(CAMVID.len(), crate::camvid::CLASSES.len());
        assert_eq!(FIELDS.len(), crate::scenes::fields::CLASSES.len());
    }

    #[test]
    fn a_mask_is_read_back() {
        let mask = Mask { width: 3, height: 2, labels: vec![0, 1, 2, 255, 20, 7] };
        let bytes = mask_png(&mask, &colors("voc")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(crate::image::read_mask(&path).unwrap(), mask);
        assert_eq!(crate::image::read_image(&path).unwrap().pixels[3..6], [128, 0, 0]);
        assert!(mask_png(&Mask { labels: vec![0], ..mask }, &colors("voc")).is_err());
    }

    #[test]
    fn overlays_show_both() {
        let image = Image { width: 2, height: 1, pixels: vec![100; 6] };
        let mask = Mask { width: 2, height: 1, labels: vec![1, 255] };
        assert_eq!(overlay(&image, &mask, &colors("voc")).unwrap().pixels, [116, 40, 40, 40, 40, 40]);
        let e = overlay(&image, &Mask { width: 1, height: 2, ..mask }, &colors("voc")).unwrap_err();
        assert!(e.to_string().contains("1x2 over an image of 2x1"), "{e}");
    }
}
