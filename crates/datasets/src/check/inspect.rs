//! Reads the files of one sample for a check.

use std::collections::BTreeMap;
use std::path::Path;

use stillhouse_core::data::Image;

use super::mask_content::{ValueCounts, class_problems, training_samples};
use crate::diagnostics::{Diagnostic, Kind, examples};
use crate::file_dataset::{Annotation, FileDataset, FileSample, read_mask};
use crate::{Error, decode};

/// Content and problems of one sample.
#[derive(Default)]
pub(super) struct Inspector {
    /// Width, height and hash of the pixels; `None` if it cannot be decoded.
    pub(super) image: Option<(usize, usize, String)>,
    /// Stored color type.
    colors: &'static str,
    pub(super) mask_values: Option<ValueCounts>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Inspector {
    pub(super) fn hash(&mut self, image: &Image) {
        self.image = Some((image.width, image.height, stillhouse_core::fs::sha256(&image.pixels)));
    }

    pub(super) fn error(&mut self, kind: Kind, message: impl ToString) {
        self.diagnostics.push(Diagnostic::error(kind, message));
    }

    /// Reads the files of a sample. Those of an official dataset have the color type and the extension of
    /// their format; own images may have any.
    pub(super) fn of_files(set: &FileDataset, sample: &FileSample, is_official: bool) -> Self {
        let mut inspector = Self::default();
        let size = inspector.image_file(&sample.path, set.white_level, is_official);
        if let Annotation::Mask { path, .. } = &sample.annotation {
            inspector.mask_file(set, path, size);
        }
        inspector
    }

    /// Decodes an image; returns its size.
    fn image_file(&mut self, path: &Path, white: Option<u16>, is_official: bool) -> Option<(usize, usize)> {
        let (image, stored) = match decode::inspect_image(path, white) {
            Ok(decoded) => decoded,
            Err(e) => {
                self.error(Kind::Broken, e);
                return None;
            }
        };
        self.hash(&image);
        self.colors = stored.colors;
        let size = Some((image.width, image.height));
        if !is_official {
            return size;
        }
        let file = path.display();
        if stored.colors != decode::RGB {
            self.error(Kind::NotRgb, format!("{file}: expected {}, found {}", decode::RGB, stored.colors));
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let expected = match extension.as_str() {
            "jpg" | "jpeg" => "JPEG",
            "png" => "PNG",
            "tif" | "tiff" => "TIFF",
            "bmp" => "BMP",
            "webp" => "WebP",
            "gif" => "GIF",
            _ => stored.format,
        };
        if expected != stored.format {
            self.error(Kind::Extension, format!("{file}: expected {expected}, found {}", stored.format));
        }
        size
    }

    fn mask_file(&mut self, set: &FileDataset, path: &Path, size: Option<(usize, usize)>) {
        let mask = match read_mask(path) {
            Ok(mask) => mask,
            Err(e) => return self.error(Kind::Broken, e),
        };
        self.mask_values = Some(ValueCounts::of(&mask));
        let found = (mask.width, mask.height);
        if let Some(expected) = size.filter(|size| *size != found) {
            self.error(Kind::MaskSize, Error::MaskSize { path: path.to_path_buf(), found, expected });
        }
        if let Some(Err(e)) = set.masks.as_ref().map(|mapping| mapping.apply(mask, path)) {
            self.error(Kind::MaskValue, e);
        }
    }
}

/// Reports own images whose conversion to 8-bit RGB loses information, one diagnostic per color type.
/// Gray and palette images lose nothing.
pub(super) fn lossy_conversions(set: &FileDataset, inspected: &[Inspector]) -> Vec<Diagnostic> {
    let mut files = BTreeMap::<&str, Vec<String>>::new();
    for (inspector, sample) in inspected.iter().zip(&set.samples) {
        files.entry(inspector.colors).or_default().push(sample.key.clone());
    }
    let describe = |(colors, keys): (&str, Vec<String>)| {
        let loss = if colors.contains("alpha") {
            "transparency is dropped"
        } else if colors.contains("16-bit") {
            "values are reduced to 8 bits"
        } else if colors.contains("CMYK") {
            "inks are converted without a color profile"
        } else {
            return None;
        };
        let message = format!("{} images of {colors}: {loss}: {}", keys.len(), examples(&keys));
        Some(Diagnostic { kind: Kind::NotRgb, message, is_error: false })
    };
    files.into_iter().filter_map(describe).collect()
}

/// Reports classes that do not occur in the masks of own images, and masks that are mostly ignored.
pub(super) fn mask_problems(set: &FileDataset, inspected: &[Inspector]) -> Vec<Diagnostic> {
    let training = training_samples(set).into_iter().zip(inspected).filter(|(is_training, _)| *is_training);
    let counts = training.filter_map(|(_, inspector)| inspector.mask_values.as_ref());
    let total = counts.fold(ValueCounts::default(), ValueCounts::plus);
    class_problems(set, &total).into_iter().map(|(kind, error)| Diagnostic::error(kind, error)).collect()
}
