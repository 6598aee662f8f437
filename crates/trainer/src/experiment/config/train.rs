//! `[train]`: the training recipe.

use serde::{Deserialize, Serialize};
use stillhouse_core::data::Sampler;

use super::OptimizerConfig;
use crate::experiment::schedule::Schedule;

/// The training recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Epochs; 0 takes pretrained weights as they are, head included, and only tests them.
    pub epochs: u64,
    /// Seed of split, initialization, order, augmentation and methods.
    #[serde(default)]
    pub seed: u64,
    /// How batches are drawn.
    pub sampler: Sampler,
    /// Optimizer.
    pub optimizer: OptimizerConfig,
    /// Learning rate schedule.
    pub schedule: Schedule,
    /// Phases of a training step; empty: a single phase that trains everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phase: Vec<PhaseConfig>,
    /// Images per micro-batch: gradients are accumulated over the micro-batches of a batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Recompute activations within blocks in the backward pass, if the network has such blocks: less
    /// memory, more time, the same numbers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gradient_checkpointing: bool,
    /// Batch norms keep their running statistics.
    #[serde(default)]
    pub frozen_bn: bool,
    /// Patterns of frozen parameters, such as `layer1.*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Learning rate factors; the first matching pattern counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lr_scale: Vec<LrScale>,
    /// Maximum norm of all gradients together; larger gradients are scaled down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Decay of a moving average of the student's weights, which is tested and saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Interval of checkpoints.
    #[serde(default)]
    pub checkpoint: CheckpointInterval,
}

/// One phase of a training step: a forward pass, its losses and an update.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseConfig {
    /// Stage of the deepest early exit that runs; the losses of the phase may not require deeper features.
    /// `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<usize>,
    /// Patterns of trainable student parameters, such as `layer1.*`; empty: all. Connectors of the phase's
    /// losses are always trainable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trainable: Vec<String>,
}

/// Learning rate factor of some parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrScale {
    /// Pattern of parameter names; `*` matches any text.
    pub pattern: String,
    /// Factor on the learning rate.
    pub factor: f64,
}

/// Interval of checkpoints, written `2 epochs` or `50 steps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CheckpointInterval {
    /// At the end of every n-th epoch.
    Epochs(u64),
    /// After every n-th step.
    Steps(u64),
}

impl Default for CheckpointInterval {
    fn default() -> Self {
        Self::Epochs(1)
    }
}

impl std::fmt::Display for CheckpointInterval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (n, unit) = match self {
            Self::Epochs(n) => (n, "epoch"),
            Self::Steps(n) => (n, "step"),
        };
        write!(f, "{n} {unit}{}", if *n == 1 { "" } else { "s" })
    }
}

impl From<CheckpointInterval> for String {
    fn from(interval: CheckpointInterval) -> Self {
        interval.to_string()
    }
}

impl TryFrom<String> for CheckpointInterval {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let invalid = || format!("invalid interval: expected `2 epochs` or `50 steps`, found `{text}`");
        let (n, unit) = text.trim().split_once(' ').ok_or_else(invalid)?;
        let n = n.parse().ok().filter(|n| *n > 0).ok_or_else(invalid)?;
        match unit.trim() {
            "epoch" | "epochs" => Ok(Self::Epochs(n)),
            "step" | "steps" => Ok(Self::Steps(n)),
            _ => Err(invalid()),
        }
    }
}

impl TrainConfig {
    /// The recipe of a network that is taken as it is.
    pub(crate) fn untrained(seed: u64) -> Self {
        Self {
            epochs: 0,
            seed,
            sampler: Sampler::Sequential { batch: 1 },
            optimizer: OptimizerConfig::Sgd {
                lr: 1.0,
                momentum: 0.0,
                nesterov: false,
                weight_decay: 0.0,
                decay_norm_and_bias: true,
            },
            schedule: Schedule::Constant { warmup_epochs: 0.0 },
            phase: Vec::new(),
            micro_batch: None,
            gradient_checkpointing: false,
            frozen_bn: true,
            freeze: Vec::new(),
            lr_scale: Vec::new(),
            clip_norm: None,
            ema: None,
            checkpoint: CheckpointInterval::default(),
        }
    }

    /// Returns the images per batch.
    pub fn batch_size(&self) -> usize {
        match self.sampler {
            Sampler::Shuffle { batch, .. } | Sampler::Sequential { batch } => batch,
            Sampler::ClassBalanced { classes, per_class } => classes * per_class,
        }
    }

    /// Returns the size of the smallest batch, or micro-batch, of an epoch over `images` images: the last
    /// one may be uneven.
    pub(crate) fn smallest_batch(&self, images: usize) -> usize {
        let batch = self.batch_size();
        let last = match self.sampler {
            Sampler::ClassBalanced { .. } => batch,
            Sampler::Shuffle { drop_last: true, .. } => batch.min(images),
            _ if images.is_multiple_of(batch) => batch,
            _ => images % batch,
        };
        let remainder =
            |images: usize, size: usize| if images.is_multiple_of(size) { size } else { images % size };
        match self.micro_batch {
            Some(size) => remainder(last, size.min(last)).min(remainder(batch, size.min(batch))),
            None => last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoint_intervals_round_trip() {
        let intervals =
            [("1 epoch", CheckpointInterval::Epochs(1)), ("50 steps", CheckpointInterval::Steps(50))];
        for (text, interval) in intervals {
            assert_eq!(CheckpointInterval::try_from(text.to_string()), Ok(interval));
            assert_eq!(interval.to_string(), text);
        }
        for text in ["0 steps", "3", "epochs", "2 hours", "-1 steps"] {
            assert!(
                CheckpointInterval::try_from(text.to_string()).unwrap_err().contains("50 steps"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_smallest_batch_is_the_last() {
        let smallest = |settings: &str, images| {
            let text = format!(
                "epochs = 1\noptimizer = {{ kind = \"sgd\", lr = 0.1 }}\nschedule = {{ kind = \"constant\" }}\n\
                 {settings}"
            );
            stillhouse_core::config::parse::<TrainConfig>(&text, "test").unwrap().smallest_batch(images)
        };
        let shuffled = "sampler = { kind = \"shuffle\", batch = 32 }";
        assert_eq!([65, 64, 63, 20].map(|n| smallest(shuffled, n)), [1, 32, 31, 20]);
        let even = "sampler = { kind = \"shuffle\", batch = 32, drop_last = true }";
        assert_eq!(smallest(even, 65), 32);
        let balanced = "sampler = { kind = \"class_balanced\", classes = 3, per_class = 2 }";
        assert_eq!(smallest(balanced, 65), 6);
        let sizes = [(8, 64), (12, 64), (8, 66), (64, 64)];
        let micro = sizes.map(|(size, n)| smallest(&format!("micro_batch = {size}\n{shuffled}"), n));
        assert_eq!(micro, [8, 8, 2, 32]);
    }
}
