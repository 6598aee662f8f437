//! Label maps of test images side by side: the image, the truth, the student alone and each method.

use stillhouse_core::data::{Image, Mask};
use stillhouse_datasets::transforms::{Filter, resize};
use stillhouse_datasets::{ImageBuffer, manifest, palette, stats};
use stillhouse_report::page::{Sample, Samples};
use stillhouse_report::{Planned, Record};
use stillhouse_trainer::{Context, LabelMap, label_maps};

use crate::error::CliError;
use crate::output;

/// Test images of each dataset.
const IMAGES: usize = 4;
/// Methods of a row.
const METHODS: usize = 6;
/// Longest side of a picture in pixels.
const SIDE: usize = 320;

/// Rows of pictures for each dataset, of its first student and seed.
pub(crate) fn make(runs: &[(Planned, Record)], context: &Context) -> Result<Samples, CliError> {
    let mut samples = Samples {
        text: "The image as the network sees it, the true classes (dark where they do not count), and what each \
                network makes of it."
            .to_string(),
        ..Samples::default()
    };
    let mut datasets: Vec<&str> = Vec::new();
    for (planned, first) in runs {
        if datasets.contains(&planned.dataset.as_str()) {
            continue;
        }
        datasets.push(&planned.dataset);
        let same = |p: &Planned| {
            (&p.student, &p.dataset, p.ratio, p.seed)
                == (&planned.student, &planned.dataset, planned.ratio, planned.seed)
        };
        let here: Vec<&(Planned, Record)> = runs.iter().filter(|(p, _)| same(p)).collect();
        let known = manifest::find(&planned.dataset, &context.data_roots)?;
        let colors = palette::colors(known.as_deref());
        let mut maps = Vec::new();
        for (planned, record) in spread(&here, METHODS) {
            output::status(&format!(
                "label maps of {}, {}, {}",
                planned.method, planned.student, planned.dataset
            ));
            maps.push((planned.method.as_str(), label_maps(record.dir.path(), IMAGES, context)?.1));
        }
        for at in 0..maps.first().map_or(0, |(_, of)| of.len()) {
            samples.all.push(row(at, &maps, &colors)?);
        }
        let several = runs.iter().any(|(p, _)| p.dataset != planned.dataset);
        for (class, [r, g, b]) in first.info.classes.iter().zip(colors) {
            let name = if several { format!("{}: {class}", planned.dataset) } else { class.clone() };
            samples.legend.push((format!("#{r:02x}{g:02x}{b:02x}"), name));
        }
    }
    Ok(samples)
}

/// At most so many of them, evenly spread, the first and the last among them.
fn spread<T: Copy>(all: &[T], most: usize) -> Vec<T> {
    if all.len() <= most {
        return all.to_vec();
    }
    (0..most).map(|i| all[i * (all.len() - 1) / (most - 1)]).collect()
}

/// One image: itself, its truth, and the maps of all methods.
fn row(at: usize, maps: &[(&str, Vec<LabelMap>)], colors: &[[u8; 3]; 256]) -> Result<Sample, CliError> {
    let own = &maps[0].1[at];
    let pixels = own.image.iter().map(|v| (255.0 * v).round() as u8).collect();
    let image = Image { width: own.width, height: own.height, pixels };
    let over = |labels: &[u8]| -> Result<Vec<u8>, CliError> {
        let mask = Mask { width: own.width, height: own.height, labels: labels.to_vec() };
        picture(palette::overlay(&image, &mask, colors)?)
    };
    let mut pictures = vec![
        ("image".to_string(), picture(ImageBuffer::from(image.clone()))?),
        ("truth".to_string(), over(&own.truth)?),
    ];
    for (method, maps) in maps {
        let map = maps.get(at).filter(|m| m.id == own.id).ok_or_else(|| {
            CliError::failed(format!("`{method}` was tested on other images than the first method"))
        })?;
        pictures.push(((*method).to_string(), over(&map.predicted)?));
    }
    Ok(Sample { title: format!("test image {}, {}x{} pixels", own.id, own.width, own.height), pictures })
}

/// As PNG, made smaller where it is large.
fn picture(image: ImageBuffer) -> Result<Vec<u8>, CliError> {
    let longest = image.width.max(image.height);
    if longest <= SIDE {
        return Ok(stats::png(&image)?);
    }
    let side = |n: usize| (n * SIDE / longest).max(1);
    Ok(stats::png(&resize(&image, side(image.width), side(image.height), Filter::Bilinear))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_of_many() {
        assert_eq!(spread(&[1, 2, 3], 6), [1, 2, 3]);
        let ten: Vec<u32> = (0..10).collect();
        assert_eq!(spread(&ten, 6), [0, 1, 3, 5, 7, 9]);
    }
}
