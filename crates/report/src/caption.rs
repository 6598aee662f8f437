//! What stands above a table: data, resolution, schedule, seeds, device, sampler, steps of a batch,
//! teacher.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// What stands above the table. Every field is printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caption {
    /// The experiment's title.
    pub title: String,
    /// `smoke`, `reduced` or `paper`; anything but `paper` is labeled as not the paper's.
    pub profile: String,
    /// The data: "UC Merced Land Use, 2100 images".
    pub data: String,
    /// Whether the images are made by the program, in place of real ones.
    pub synthetic: bool,
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
    /// The training steps of a batch by method; empty where every method has one.
    #[serde(default)]
    pub steps: String,
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
            if self.steps.is_empty() { String::new() } else { format!(" Steps of a batch: {}.", self.steps) },
            self.teacher,
            self.student
        );
        if !self.changed.is_empty() {
            text.push_str(&format!(" Changed: {}.", self.changed.join(", ")));
        }
        text
    }
}

/// The training steps of a batch of all methods, from their resolved configurations: what each step
/// reads, how far the network runs and what moves. Empty where every method has one step.
pub fn steps<'a>(runs: impl IntoIterator<Item = (&'a str, &'a Table)>) -> String {
    let mut found: Vec<(String, Vec<&str>)> = Vec::new();
    for (method, run) in runs {
        let text = steps_of(run);
        match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, methods)) if methods.contains(&method) => {}
            Some((_, methods)) => methods.push(method),
            None => found.push((text, vec![method])),
        }
    }
    if found.iter().all(|(text, _)| text == ONE) {
        return String::new();
    }
    let parts = found.into_iter().map(|(text, methods)| format!("{text} for {}", methods.join(", ")));
    parts.collect::<Vec<_>>().join("; ")
}

const ONE: &str = "one";

fn steps_of(run: &Table) -> String {
    let list = |table: Option<&Value>, key: &str| -> Vec<Value> {
        table.and_then(|t| t.get(key)?.as_array().cloned()).unwrap_or_default()
    };
    let steps = list(run.get("train"), "step");
    if steps.len() < 2 {
        return ONE.to_string();
    }
    let losses = run.get("loss").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut told = Vec::new();
    for (place, step) in (1i64..).zip(&steps) {
        let word = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).map(str::to_string);
        let own = losses.iter().filter(|l| l.get("step").and_then(Value::as_integer) == Some(place));
        let own: Vec<String> = own
            .filter_map(|loss| {
                let method = word(loss, "method")?;
                Some(word(loss, "tap").map_or(method.clone(), |tap| format!("{method} at {tap}")))
            })
            .collect();
        let moves = list(Some(step), "moves");
        let moves: Vec<&str> = moves.iter().filter_map(Value::as_str).collect();
        let moves = if moves.is_empty() { "all".to_string() } else { moves.join(" ") };
        let exit = step.get("exit").and_then(Value::as_integer);
        let depth = exit.map_or_else(String::new, |exit| format!(" runs to exit {exit} and"));
        told.push(format!("{place}. {},{depth} moves {moves}", own.join(" + ")));
    }
    format!("{} ({})", steps.len(), told.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_by_method() {
        let table = |text: &str| toml::from_str::<Table>(text).unwrap();
        let (one, single) = (table("loss = []\n[train]\nepochs = 1"), table("train.step = [{ exit = 3 }]"));
        let two = table(
            "loss = [{ method = 'ce', tap = 'exit3.logits', step = 1 }, { method = 'self_kl', step = 2 }]\n\
             [[train.step]]\nexit = 3\nmoves = ['backbone.layers.0.*', 'out3.*']\n[[train.step]]\n",
        );
        assert_eq!(steps([("baseline", &one), ("kd", &single)]), "");
        let text = steps([("baseline", &one), ("mksmt", &two), ("mksmt", &two), ("t2", &two)]);
        assert_eq!(
            text,
            "one for baseline; 2 (1. ce at exit3.logits, runs to exit 3 and moves \
             backbone.layers.0.* out3.*; 2. self_kl, moves all) for mksmt, t2"
        );
        let caption = Caption { steps: text, ..Caption::default() };
        assert!(caption.text().contains("Steps of a batch: one for baseline; 2 (1. ce at"));
        assert!(!Caption::default().text().contains("Steps of a batch"));
    }
}
