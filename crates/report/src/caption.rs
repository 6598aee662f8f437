//! What stands above a table: data, resolution, schedule, seeds, device, sampler, teacher.

use serde::{Deserialize, Serialize};

/// What stands above the table. Every field is printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// The experiment's title.
    pub title: String,
    /// `smoke`, `reduced` or `paper`; anything but `paper` is labelled as not the paper's.
    pub profile: String,
    /// The data: "UC Merced Land Use, 2100 images".
    pub data: String,
    /// Whether the images are made by the program, in place of real ones.
    pub embedded: bool,
    /// Side of the input in pixels, `512x1024` where rows and columns differ.
    pub resolution: String,
    /// How test images are seen, where that is not as in training.
    #[serde(default)]
    pub tested: String,
    /// Epochs, batches and learning rates in words.
    pub schedule: String,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Device in words.
    pub device: String,
    /// How batches are drawn.
    pub sampler: String,
    /// Registry id of the teacher; empty where there is none or there are several. Stands in headings.
    #[serde(default)]
    pub teacher_network: String,
    /// Whether the teacher began from weights or from scratch.
    pub teacher: String,
    /// Whether the student began from weights or from scratch.
    pub student: String,
    /// Settings that were changed from the command line.
    pub changed: Vec<String>,
}

impl Caption {
    /// What tells a run apart from the paper's own; none where there is nothing to tell.
    pub fn label(&self) -> Option<String> {
        match self.profile.as_str() {
            // An experiment without profiles has nothing that it could be taken for.
            "default" => None,
            "paper" if self.changed.is_empty() => None,
            "paper" => Some("CHANGED SETTINGS, not the paper's.".to_string()),
            "smoke" => {
                Some("SMOKE RUN: it shows that the path works, not what the methods are worth.".to_string())
            }
            "reduced" => Some("REDUCED RUN, not the paper's setting.".to_string()),
            other => Some(format!("PROFILE {other}, not the paper's setting.")),
        }
    }

    /// The caption as one paragraph.
    pub fn text(&self) -> String {
        let label = self.label().map(|l| l + " ").unwrap_or_default();
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let mut text = format!(
            "{}. {label}Profile: {}. Data: {}. Resolution: {} px.{} \
             Schedule: {}. Seeds: {}. Device: {}. Sampler: {}. Teacher: {}. Students: {}.",
            self.title.trim_end_matches('.'),
            self.profile,
            self.data,
            self.resolution,
            if self.tested.is_empty() { String::new() } else { format!(" Tested on {}.", self.tested) },
            self.schedule,
            seeds.join(", "),
            self.device,
            self.sampler,
            self.teacher,
            self.student
        );
        if !self.changed.is_empty() {
            text.push_str(&format!(" Changed: {}.", self.changed.join(", ")));
        }
        text
    }
}
