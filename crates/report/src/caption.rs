//! Captions: data, resolution, schedule, seeds, device, sampler, phases of a batch, initial weights.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// The caption of a table. Every field is printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// The experiment's title.
    pub title: String,
    /// `quick`, `reduced` or `paper`; any but `paper` is labeled as a different setting.
    pub profile: String,
    /// The data: "UC Merced Land Use, 2100 images".
    pub data: String,
    /// Whether the images are procedural.
    pub synthetic: bool,
    /// Side of the input in pixels, `512x1024` if it is not square.
    pub resolution: String,
    /// Transforms of the test images, if they differ from training.
    #[serde(default)]
    pub tested: String,
    /// Epochs, learning rates and schedule as text.
    pub schedule: String,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Device as text.
    pub device: String,
    /// Sampler as text.
    pub sampler: String,
    /// Training phases of a batch by method; empty if every method has one.
    #[serde(default)]
    pub phases: String,
    /// Registry id of the teacher, for headings; empty if there is none or several.
    #[serde(default)]
    pub teacher_network: String,
    /// Initial weights and schedule of the teacher.
    pub teacher: String,
    /// Initial weights of the students.
    pub student: String,
    /// Settings that were changed on the command line.
    pub changed: Vec<String>,
}

impl Caption {
    /// Returns how the runs differ from the paper's; none if they do not.
    pub fn label(&self) -> Option<String> {
        match self.profile.as_str() {
            // An experiment without profiles is not mistaken for the paper's.
            "default" => None,
            "paper" if self.changed.is_empty() => None,
            "paper" => Some("CHANGED SETTINGS, not the paper's.".to_string()),
            "quick" => {
                Some("QUICK RUN: small images and short schedules, not the paper's setting.".to_string())
            }
            "reduced" => Some("REDUCED RUN, not the paper's setting.".to_string()),
            other => Some(format!("PROFILE {other}, not the paper's setting.")),
        }
    }

    /// Formats the caption as one paragraph.
    pub fn text(&self) -> String {
        let label = self.label().map(|l| l + " ").unwrap_or_default();
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let mut text = format!(
            "{}. {label}Profile: {}. Data: {}. Resolution: {} px.{} \
             Schedule: {}. Seeds: {}. Device: {}. Sampler: {}.{} Teacher: {}. Students: {}.",
            self.title.trim_end_matches('.'),
            self.profile,
            self.data,
            self.resolution,
            if self.tested.is_empty() { String::new() } else { format!(" Tested on {}.", self.tested) },
            self.schedule,
            seeds.join(", "),
            self.device,
            self.sampler,
            if self.phases.is_empty() {
                String::new()
            } else {
                format!(" Phases of a batch: {}.", self.phases)
            },
            self.teacher,
            self.student
        );
        if !self.changed.is_empty() {
            text.push_str(&format!(" Changed: {}.", self.changed.join(", ")));
        }
        text
    }
}

/// Describes the training phases of a batch by method, from resolved configurations: losses, depth and trained
/// parameters of each phase. Empty if every method has one phase.
pub fn phases<'a>(runs: impl IntoIterator<Item = (&'a str, &'a Table)>) -> String {
    let mut found: Vec<(String, Vec<&str>)> = Vec::new();
    for (method, run) in runs {
        let text = phases_of(run);
        match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, methods)) if methods.contains(&method) => {}
            Some((_, methods)) => methods.push(method),
            None => found.push((text, vec![method])),
        }
    }
    if found.iter().all(|(text, _)| text == ONE) {
        return String::new();
    }
    let texts = found.into_iter().map(|(text, methods)| format!("{text} for {}", methods.join(", ")));
    texts.collect::<Vec<_>>().join("; ")
}

const ONE: &str = "one";

fn phases_of(run: &Table) -> String {
    let list = |table: Option<&Value>, key: &str| -> Vec<Value> {
        table.and_then(|t| t.get(key)?.as_array().cloned()).unwrap_or_default()
    };
    let phases = list(run.get("train"), "phase");
    if phases.len() < 2 {
        return ONE.to_string();
    }
    let losses = run.get("loss").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut texts = Vec::new();
    for (number, phase) in (1i64..).zip(&phases) {
        let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).map(str::to_string);
        let own = losses.iter().filter(|l| l.get("phase").and_then(Value::as_integer) == Some(number));
        let own: Vec<String> = own
            .filter_map(|loss| {
                let method = text(loss, "method")?;
                Some(text(loss, "feature").map_or(method.clone(), |feature| format!("{method} at {feature}")))
            })
            .collect();
        let trainable = list(Some(phase), "trainable");
        let trainable: Vec<&str> = trainable.iter().filter_map(Value::as_str).collect();
        let trainable = if trainable.is_empty() { "all".to_string() } else { trainable.join(" ") };
        let exit = phase.get("exit").and_then(Value::as_integer);
        let depth = exit.map_or_else(String::new, |exit| format!(" runs to exit {exit} and"));
        texts.push(format!("{number}. {},{depth} trains {trainable}", own.join(" + ")));
    }
    format!("{} ({})", phases.len(), texts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describes_phases_by_method() {
        let table = |text: &str| toml::from_str::<Table>(text).unwrap();
        let (one, single) = (table("loss = []\n[train]\nepochs = 1"), table("train.phase = [{ exit = 3 }]"));
        let two = table(
            "loss = [{ method = 'ce', feature = 'exit3.logits', phase = 1 }, { method = 'self_kl', phase = 2 }]\n\
             [[train.phase]]\nexit = 3\ntrainable = ['backbone.layers.0.*', 'out3.*']\n[[train.phase]]\n",
        );
        assert_eq!(phases([("baseline", &one), ("kd", &single)]), "");
        let text = phases([("baseline", &one), ("two", &two), ("two", &two), ("t2", &two)]);
        assert_eq!(
            text,
            "one for baseline; 2 (1. ce at exit3.logits, runs to exit 3 and trains \
             backbone.layers.0.* out3.*; 2. self_kl, trains all) for two, t2"
        );
        let caption = Caption { phases: text, ..Caption::default() };
        assert!(caption.text().contains("Phases of a batch: one for baseline; 2 (1. ce at"));
        assert!(!Caption::default().text().contains("Phases of a batch"));
    }

    #[test]
    fn labels_all_but_the_papers_own_settings() {
        let mut caption = Caption { profile: "quick".into(), ..Caption::default() };
        assert!(caption.text().contains("QUICK RUN"));
        caption.profile = "reduced".into();
        assert!(caption.text().contains("REDUCED RUN, not the paper's"));
        caption.profile = "paper".into();
        assert!(!caption.text().contains("not the paper's"));
        caption.changed = vec!["train.epochs=3".into()];
        assert!(caption.text().contains("not the paper's") && caption.text().contains("train.epochs=3"));
    }
}
