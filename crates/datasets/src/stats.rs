//! Statistics and a contact sheet of a dataset.

use rayon::prelude::*;
use serde::Serialize;
use stillhouse_core::Result;
use stillhouse_core::data::{Dataset, IGNORE_INDEX, Label, Sample, Task};

use crate::image_buffer::ImageBuffer;
use crate::palette::voc_color;
use crate::transforms::{Filter, resize};

/// Statistics of a dataset (`stillhouse data stats`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Registry name.
    pub dataset: String,
    /// Title.
    pub title: String,
    /// Images.
    pub images: usize,
    /// Classes in the order of their indices.
    pub classes: Vec<ClassStats>,
    /// Ignored mask pixels; 0 for classification.
    pub ignored: u64,
    /// Smallest and largest width.
    pub width: [usize; 2],
    /// Smallest and largest height.
    pub height: [usize; 2],
    /// Mean of red, green and blue over all pixels, from 0 to 1.
    pub mean: [f64; 3],
    /// Standard deviation of red, green and blue.
    pub std: [f64; 3],
}

/// Statistics of a class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassStats {
    /// Name.
    pub name: String,
    /// Images of the class; for segmentation, images that contain it.
    pub images: usize,
    /// Mask pixels of the class; 0 for classification.
    pub pixels: u64,
}

/// Sums over one image.
#[derive(Clone)]
struct Sums {
    size: [usize; 2],
    values: [u64; 3],
    squares: [u64; 3],
    class: Option<u32>,
    labels: Option<Box<[u64; 256]>>,
}

fn sums(sample: &Sample) -> Sums {
    let image = &sample.image;
    let (mut values, mut squares) = ([0; 3], [0; 3]);
    for pixel in image.pixels.chunks_exact(3) {
        for c in 0..3 {
            let v = u64::from(pixel[c]);
            values[c] += v;
            squares[c] += v * v;
        }
    }
    let (class, labels) = match &sample.label {
        Label::Class(class) => (Some(*class), None),
        Label::Mask(mask) => {
            let mut counts = Box::new([0; 256]);
            mask.labels.iter().for_each(|l| counts[usize::from(*l)] += 1);
            (None, Some(counts))
        }
    };
    Sums { size: [image.width, image.height], values, squares, class, labels }
}

/// Computes the statistics of all samples. All sums are of integers, so the result does not depend on
/// the number of threads.
///
/// # Errors
///
/// An unreadable image or mask.
pub fn stats(set: &dyn Dataset) -> Result<Stats> {
    let all: Vec<Sums> =
        (0..set.len()).into_par_iter().map(|index| Ok(sums(&set.sample(index)?))).collect::<Result<_>>()?;
    let info = set.info();
    let mut classes: Vec<ClassStats> =
        info.classes.iter().map(|name| ClassStats { name: name.clone(), images: 0, pixels: 0 }).collect();
    let (mut values, mut squares) = ([0u128; 3], [0u128; 3]);
    let (mut width, mut height) = ([usize::MAX, 0], [usize::MAX, 0]);
    let (mut pixels, mut ignored) = (0u128, 0);
    for one in &all {
        for c in 0..3 {
            values[c] += u128::from(one.values[c]);
            squares[c] += u128::from(one.squares[c]);
        }
        let [w, h] = one.size;
        pixels += (w * h) as u128;
        width = [width[0].min(w), width[1].max(w)];
        height = [height[0].min(h), height[1].max(h)];
        if let Some(class) = one.class.and_then(|c| classes.get_mut(c as usize)) {
            class.images += 1;
        }
        if let Some(labels) = &one.labels {
            ignored += labels[usize::from(IGNORE_INDEX)];
            for (class, n) in classes.iter_mut().zip(labels.iter()) {
                class.images += usize::from(*n > 0);
                class.pixels += n;
            }
        }
    }
    let n = (pixels as f64).max(1.0);
    let mean = values.map(|v| v as f64 / n);
    let std = [0, 1, 2].map(|c| (squares[c] as f64 / n - mean[c] * mean[c]).max(0.0).sqrt() / 255.0);
    let least = |[a, b]: [usize; 2]| [a.min(b), b];
    Ok(Stats {
        dataset: info.name.clone(),
        title: info.title.clone(),
        images: set.len(),
        classes,
        ignored,
        width: least(width),
        height: least(height),
        mean: mean.map(|m| m / 255.0),
        std,
    })
}

/// Draws thumbnails of `side` pixels: for classification, a row of up to `columns` images per class;
/// for segmentation, images next to their masks.
///
/// # Errors
///
/// An unreadable image.
pub fn contact_sheet(set: &dyn Dataset, columns: usize, side: usize) -> Result<ImageBuffer> {
    // Keeps the sheet viewable.
    const MAX_ROWS: usize = 256;
    let columns = columns.max(2);
    let info = set.info();
    let mut cells: Vec<(usize, usize, usize)> = Vec::new();
    match info.task {
        Task::Classification => {
            let mut shown = vec![0; info.classes.len()];
            for index in 0..set.len() {
                let row = set.class(index).map_or(0, |c| c as usize);
                if let Some(n) = shown.get_mut(row).filter(|n| **n < columns && row < MAX_ROWS) {
                    cells.push((row, *n, index));
                    *n += 1;
                }
            }
        }
        Task::Segmentation => {
            let most = (columns / 2 * MAX_ROWS.min(16)).min(set.len());
            // Evenly spaced over the dataset.
            cells =
                (0..most).map(|i| (i / (columns / 2), i % (columns / 2) * 2, i * set.len() / most)).collect();
        }
    }
    let rows = cells.iter().map(|c| c.0 + 1).max().unwrap_or(1);
    let mut sheet = ImageBuffer::filled(columns * side, rows * side, 3, 0);
    let thumbnails: Vec<(usize, usize, ImageBuffer)> = cells
        .into_par_iter()
        .map(|(row, column, index)| {
            let sample = set.sample(index)?;
            let mut all = vec![(row, column, resize(&sample.image.into(), side, side, Filter::Bicubic))];
            if let Label::Mask(mask) = sample.label {
                let small = resize(&mask.into(), side, side, Filter::Nearest);
                let pixels = small.pixels.iter().flat_map(|l| voc_color(*l)).collect();
                all.push((row, column + 1, ImageBuffer { channels: 3, pixels, ..small }));
            }
            Ok(all)
        })
        .collect::<Result<Vec<_>>>()?
        .concat();
    for (row, column, image) in thumbnails {
        for (y, line) in image.pixels.chunks_exact(3 * side).enumerate() {
            let at = ((row * side + y) * columns + column) * side * 3;
            sheet.pixels[at..at + line.len()].copy_from_slice(line);
        }
    }
    Ok(sheet)
}

/// Encodes an RGB image as PNG.
///
/// # Errors
///
/// An image that is not RGB.
pub fn png(image: &ImageBuffer) -> crate::Result<Vec<u8>> {
    let wrong = |e: png::EncodingError| crate::Error::setting("PNG", e);
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, image.width as u32, image.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(wrong)?;
    writer.write_image_data(&image.pixels).map_err(wrong)?;
    writer.finish().map_err(wrong)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[test]
    fn computes_statistics() {
        let set = Fake::new(&[4, 3]);
        let found = stats(&set).unwrap();
        assert_eq!(found.classes.iter().map(|c| c.images).collect::<Vec<_>>(), [4, 3]);
        assert_eq!((found.width, found.height, found.ignored), ([20, 22], [18, 19], 0));
        // Reference in f64.
        let mut red: Vec<f64> = Vec::new();
        for index in 0..7 {
            red.extend(
                set.sample(index).unwrap().image.pixels.iter().step_by(3).map(|v| f64::from(*v) / 255.0),
            );
        }
        let mean = red.iter().sum::<f64>() / red.len() as f64;
        let std = (red.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / red.len() as f64).sqrt();
        assert!((found.mean[0] - mean).abs() < 1e-12 && (found.std[0] - std).abs() < 1e-12);
    }

    #[test]
    fn counts_and_draws_masks() {
        let set = Fake::new(&[1, 1, 1, 1, 1]).without_classes();
        let found = stats(&set).unwrap();
        let pixels: u64 = found.classes.iter().map(|c| c.pixels).sum();
        assert!(found.classes.iter().all(|c| c.images == 5) && pixels > 5 * 300);
        let sheet = contact_sheet(&set, 4, 10).unwrap();
        assert_eq!((sheet.width, sheet.height), (40, 30));
        let decoded =
            crate::decode::decode(&png(&sheet).unwrap(), "sheet", crate::decode::PixelFormat::Rgb, false)
                .unwrap();
        assert_eq!(decoded, sheet);
        let sheet = contact_sheet(&Fake::new(&[3, 9]), 8, 12).unwrap();
        assert_eq!((sheet.width, sheet.height), (96, 24));
    }
}
