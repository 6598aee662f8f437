//! Segmentation of images: masks, overlays and class areas.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use stillhouse_core::data::{BatchSource, Image, LoaderSpec, Mask, Sampler};
use stillhouse_core::{Rng, Tape};
use stillhouse_datasets::transforms::{Filter, resize};
use stillhouse_datasets::{ImageBuffer, manifest, palette, stats};
use stillhouse_ops::Mode;
use stillhouse_trainer::{Context, Network, RunInfo};

use super::UnlabeledImages;
use crate::error::CliError;
use crate::output;

/// Segmentation of one image and its output files.
pub(super) struct Segmentation {
    file: String,
    mask: PathBuf,
    overlay: PathBuf,
    width: usize,
    height: usize,
    /// Pixels per class, largest area first.
    areas: Vec<(String, u64)>,
}

impl Segmentation {
    fn fraction(&self, pixels: u64) -> f64 {
        pixels as f64 / (self.width * self.height).max(1) as f64
    }

    /// Formats every class with its pixels as JSON.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let areas: Vec<_> = self
            .areas
            .iter()
            .map(|(name, n)| json!({"class": name, "pixels": n, "fraction": self.fraction(*n)}))
            .collect();
        json!({
            "image": self.file, "width": self.width, "height": self.height, "mask": self.mask,
            "overlay": self.overlay, "areas": areas,
        })
    }

    /// Formats the largest areas and the output files as one line.
    pub(super) fn to_text(&self, top: usize) -> String {
        let areas = self.areas.iter().take(top).filter(|(_, pixels)| *pixels > 0);
        let areas: Vec<String> =
            areas.map(|(name, n)| format!("{name} {:.1} %", 100.0 * self.fraction(*n))).collect();
        format!("{}: {} ({}, {})", self.file, areas.join(", "), self.mask.display(), self.overlay.display())
    }
}

/// Segments whole images one at a time, in bounded memory, and writes `NAME-mask.png` and
/// `NAME-overlay.png`.
pub(super) struct Segmenter<'a> {
    info: &'a RunInfo,
    network: &'a Network,
    context: &'a Context,
    tape: Tape,
    folder: PathBuf,
    colors: [[u8; 3]; 256],
    transforms: Vec<toml::Table>,
    /// Stems of the files written so far.
    written: BTreeSet<String>,
}

impl<'a> Segmenter<'a> {
    pub(super) fn new(
        info: &'a RunInfo,
        network: &'a Network,
        context: &'a Context,
        folder: PathBuf,
    ) -> Result<Self, CliError> {
        let mut tape = Tape::new(&network.params, Mode::Inference)?;
        tape.select_features(&["logits"]);
        // Crops would leave pixels without labels.
        let resizes = |t: &&toml::Table| {
            t.get("op").and_then(toml::Value::as_str).is_some_and(|op| op.starts_with("resize"))
        };
        let all = &info.run.data.test_transforms;
        let kept: Vec<toml::Table> = all.iter().filter(resizes).cloned().collect();
        if kept.len() < all.len() {
            output::status("note: the run was tested on crops; masks cover whole images");
        }
        let transforms = info.run.data.normalized(&kept);
        let known = manifest::find(&info.run.data.dataset, &context.data_roots)?;
        let colors = palette::colors(known.as_deref());
        Ok(Self { info, network, context, tape, folder, colors, transforms, written: BTreeSet::new() })
    }

    /// Segments one image.
    pub(super) fn segment(&mut self, file: &Path, image: Image) -> Result<Segmentation, CliError> {
        let name = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if !self.written.insert(name.clone()) {
            return Err(CliError::usage(format!(
                "{}: another image is also named `{name}`; its mask would be overwritten",
                file.display()
            ))
            .hint("run them separately, each with its own --output"));
        }
        let (width, height) = (image.width, image.height);
        let mask = self.mask(file, &image)?;
        let overlay = palette::overlay(&image, &mask, &self.colors)?;
        let path = |what: &str| self.folder.join(format!("{name}-{what}.png"));
        let (mask_file, overlay_file) = (path("mask"), path("overlay"));
        std::fs::create_dir_all(&self.folder).map_err(stillhouse_core::Error::io(&self.folder))?;
        stillhouse_core::fs::write_atomic(&mask_file, &palette::mask_png(&mask, &self.colors)?)?;
        stillhouse_core::fs::write_atomic(&overlay_file, &stats::png(&overlay)?)?;
        let mut counts = vec![0u64; self.info.classes.len()];
        for label in &mask.labels {
            if let Some(count) = counts.get_mut(usize::from(*label)) {
                *count += 1;
            }
        }
        let mut areas: Vec<(String, u64)> = self.info.classes.iter().cloned().zip(counts).collect();
        areas.sort_by_key(|(_, pixels)| std::cmp::Reverse(*pixels));
        let file = file.display().to_string();
        Ok(Segmentation { file, mask: mask_file, overlay: overlay_file, width, height, areas })
    }

    /// Predicts the class of each pixel; if the run resizes images, labels are resized back (nearest).
    fn mask(&mut self, file: &Path, image: &Image) -> Result<Mask, CliError> {
        let set = Arc::new(UnlabeledImages::new(self.info, vec![(file, image.clone())]));
        let spec = LoaderSpec {
            indices: vec![0],
            sampler: Sampler::Sequential { batch: 1 },
            transforms: self.transforms.clone(),
            rng: Rng::new(0),
            cache_bytes: 0,
        };
        let mut loader: Box<dyn BatchSource> = (self.context.registries.loader)(set, &spec)?;
        let Some(batch) = loader.next_batch()? else {
            return Err(CliError::failed(format!("{}: the loader gave no image", file.display())));
        };
        let (_, _, height, width) = batch.images.dims4()?;
        let labels = stillhouse_trainer::label_map(self.network, &mut self.tape, &batch.images)?;
        let mask = Mask { width, height, labels };
        if (width, height) == (image.width, image.height) {
            return Ok(mask);
        }
        Ok(resize(&ImageBuffer::from(mask), image.width, image.height, Filter::Nearest).into_mask())
    }
}
