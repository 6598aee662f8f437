//! Classification of images with a trained student.

use std::path::Path;
use std::sync::Arc;

use candle_core::D;
use serde_json::json;
use stillhouse_core::data::{BatchSource, Dataset, Image, LoaderSpec, Sampler};
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::Mode;
use stillhouse_trainer::{Context, Network, RunInfo};

use super::{BATCH, UnlabeledImages};
use crate::error::CliError;

/// Class probabilities of one image, most probable first.
pub(super) struct ImageScores {
    file: String,
    classes: Vec<(String, f32)>,
}

impl ImageScores {
    pub(super) fn to_json(&self) -> serde_json::Value {
        let classes: Vec<_> =
            self.classes.iter().map(|(name, p)| json!({"class": name, "probability": p})).collect();
        json!({"image": self.file, "classes": classes})
    }

    pub(super) fn to_text(&self, top: usize) -> String {
        let classes: Vec<String> =
            self.classes.iter().take(top).map(|(name, p)| format!("{name} {:.1} %", 100.0 * p)).collect();
        format!("{}: {}", self.file, classes.join(", "))
    }
}

/// Classifies images with the test transforms of a run.
pub(super) fn classify(
    images: Vec<(&Path, Image)>,
    info: &RunInfo,
    network: &Network,
    context: &Context,
) -> Result<Vec<ImageScores>, CliError> {
    let files: Vec<String> = images.iter().map(|(file, _)| file.display().to_string()).collect();
    let dataset = Arc::new(UnlabeledImages::new(info, images));
    let spec = LoaderSpec {
        indices: (0..dataset.len()).collect(),
        sampler: Sampler::Sequential { batch: BATCH },
        transforms: info.run.data.normalized(&info.run.data.test_transforms),
        rng: Rng::new(0),
        cache_bytes: 0,
    };
    let mut loader: Box<dyn BatchSource> = (context.registries.loader)(dataset, &spec)?;
    let mut tape = Tape::new(&network.params, Mode::Inference)?;
    tape.select_features(&["logits"]);
    let mut scores = Vec::new();
    while let Some(batch) = loader.next_batch()? {
        tape.begin(Rng::new(0), 0);
        let features = network.model.forward(&batch.images, &mut tape)?;
        let logits = features.logits()?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?; // [B, N]
        let probabilities = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?.to_vec2::<f32>()?;
        for (row, id) in probabilities.into_iter().zip(&batch.ids) {
            let mut classes: Vec<(String, f32)> = info.classes.iter().cloned().zip(row).collect();
            classes.sort_by(|a, b| b.1.total_cmp(&a.1));
            scores.push(ImageScores { file: files[*id as usize].clone(), classes });
        }
    }
    Ok(scores)
}
