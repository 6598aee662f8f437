//! Values of the masks of own images: each class has to occur, each value has to be known.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use stillhouse_core::data::{IGNORE_INDEX, Mask};

use crate::diagnostics::{Kind, examples};
use crate::file_dataset::{Annotation, FileDataset, FileSample, read_mask};
use crate::{Error, Result};

/// Fraction of ignored pixels above which a value is likely to be a class that was forgotten.
const MAX_IGNORED: f64 = 0.5;

/// Pixels of each stored mask value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValueCounts(Box<[u64; 256]>);

impl Default for ValueCounts {
    fn default() -> Self {
        Self(Box::new([0; 256]))
    }
}

impl ValueCounts {
    pub(crate) fn of(mask: &Mask) -> Self {
        let mut counts = Self::default();
        for label in &mask.labels {
            counts.0[usize::from(*label)] += 1;
        }
        counts
    }

    pub(crate) fn plus(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(sum, n)| *sum += n);
        self
    }

    /// Iterates over the values that occur and their pixels.
    pub(crate) fn occurring(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        (0..=255u8).zip(self.0.iter().copied()).filter(|(_, n)| *n > 0)
    }
}

/// Returns what makes the masks of the training part unusable as a whole: a class that never occurs, or
/// mostly ignored pixels without a class "ignore".
pub(crate) fn class_problems(set: &FileDataset, training: &ValueCounts) -> Vec<(Kind, Error)> {
    let (Some(mapping), Some(path)) = (&set.masks, &set.class_check) else { return Vec::new() };
    let mut occurring = BTreeSet::new();
    let (mut ignored, mut total) = (0, 0);
    let mut ignored_values = Vec::new();
    for (value, pixels) in training.occurring() {
        total += pixels;
        match mapping.class(value) {
            Some(IGNORE_INDEX) => {
                ignored += pixels;
                ignored_values.push(value.to_string());
            }
            Some(class) => {
                occurring.insert(class);
            }
            None => {}
        }
    }
    let share = ignored as f64 / total.max(1) as f64;
    let ignored_text =
        format!("{:.1} % of their pixels are {} (ignored)", 100.0 * share, ignored_values.join(", "));
    let problem = |message: String| Error::MaskContent { path: path.clone(), message };
    let missing: Vec<u8> = (0..set.info.classes.len() as u8).filter(|c| !occurring.contains(c)).collect();
    let mut problems = Vec::new();
    if !missing.is_empty() {
        let describe = |class: &u8| {
            let values: Vec<String> = mapping.values_of(*class).map(|v| v.to_string()).collect();
            format!("`{}` (value {})", set.info.classes[usize::from(*class)], values.join(", "))
        };
        let names: Vec<String> = missing.iter().map(describe).collect();
        let noun = if names.len() == 1 { "class" } else { "classes" };
        let verb = if names.len() == 1 { "occurs" } else { "occur" };
        let mut message = format!("{noun} {} never {verb} in the training images", names.join(", "));
        if ignored > 0 && !mapping.declares_ignored {
            let last = &set.info.classes[usize::from(missing[missing.len() - 1])];
            message.push_str(&format!("; {ignored_text}; if {} is a class, set ", ignored_values[0]));
            message.push_str(&suggestion(set, &ignored_values[0], last));
        } else {
            message.push_str("; remove the class, or name the values of the masks by `mask_values`");
        }
        problems.push((Kind::MissingClass, problem(message)));
    } else if share > MAX_IGNORED && !mapping.declares_ignored {
        let message = format!(
            "{ignored_text}; set {} if that is intended, or give the value to a class",
            suggestion(set, &ignored_values[0], "ignore")
        );
        problems.push((Kind::MaskValue, problem(message)));
    }
    problems
}

/// Returns the setting in which a value stands for a class, and the other classes keep theirs.
fn suggestion(set: &FileDataset, value: &str, name: &str) -> String {
    let Some(mapping) = &set.masks else { return String::new() };
    let mut entries = Vec::new();
    for (index, class) in (0u8..).zip(&set.info.classes) {
        let values = mapping.values_of(index).filter(|_| class != name);
        entries.extend(values.map(|v| format!("{v} = \"{class}\"")));
    }
    entries.push(format!("{value} = \"{name}\""));
    format!("mask_values = {{ {} }}", entries.join(", "))
}

/// Reads all masks before they are used; the same files are read once per process.
///
/// # Errors
///
/// Values that belong to no class, with their pixels; unreadable masks, with their number; the problems
/// of [`class_problems`].
pub(crate) fn require_usable(set: &FileDataset) -> Result<()> {
    static USABLE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let (Some(mapping), Some(path)) = (&set.masks, &set.class_check) else { return Ok(()) };
    let key = file_key(set);
    if USABLE.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
        return Ok(());
    }
    let is_training = training_samples(set);
    let read: Vec<Result<ValueCounts>> =
        set.samples.par_iter().map(|s| read_mask(mask_of(s)?).map(|mask| ValueCounts::of(&mask))).collect();
    let broken: Vec<String> = read.iter().filter_map(|r| r.as_ref().err().map(ToString::to_string)).collect();
    if !broken.is_empty() {
        let message = format!("{} of {} cannot be read: {}", broken.len(), read.len(), examples(&broken));
        return Err(Error::MaskContent { path: path.clone(), message });
    }
    let (mut all, mut training) = (ValueCounts::default(), ValueCounts::default());
    let mut first_unknown = None;
    for ((counts, sample), is_training) in read.iter().flatten().zip(&set.samples).zip(is_training) {
        all = all.plus(counts);
        if is_training {
            training = training.plus(counts);
        }
        if first_unknown.is_none() && counts.occurring().any(|(value, _)| mapping.class(value).is_none()) {
            first_unknown = Some(sample);
        }
    }
    if let Some(sample) = first_unknown {
        let unknown = all.occurring().filter(|(value, _)| mapping.class(*value).is_none());
        let unknown: Vec<String> = unknown.map(|(value, n)| format!("{value} ({n} pixels)")).collect();
        let more = if unknown.len() > 20 { ", ..." } else { "" };
        let message = format!(
            "expected {}, found {}{more}, first in {}; name the values by `mask_values`, \"ignore\" included",
            mapping.expected,
            unknown[..unknown.len().min(20)].join(", "),
            mask_of(sample)?.display()
        );
        return Err(Error::MaskContent { path: path.clone(), message });
    }
    if let Some((_, error)) = class_problems(set, &training).into_iter().next() {
        return Err(error);
    }
    USABLE.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
    Ok(())
}

/// Returns for each sample whether it is of the training part; all are if there are no parts.
pub(crate) fn training_samples(set: &FileDataset) -> Vec<bool> {
    let Some((_, list)) = set.splits.iter().find(|(name, _)| name == "train") else {
        return vec![true; set.samples.len()];
    };
    let mut is_training = vec![false; set.samples.len()];
    list.iter().for_each(|&index| is_training[index] = true);
    is_training
}

fn mask_of(sample: &FileSample) -> Result<&Path> {
    match &sample.annotation {
        Annotation::Mask { path, .. } => Ok(path),
        Annotation::Class(_) => Err(Error::setting(sample.path.display(), "expected a mask, found a class")),
    }
}

/// Identifies the masks by path, size and time of change, and their classes by name and value.
fn file_key(set: &FileDataset) -> String {
    let mut text = format!("{:?}\n{:?}\n{:?}\n", set.info.classes, set.masks, set.splits);
    for sample in &set.samples {
        if let Annotation::Mask { path, bytes } = &sample.annotation {
            let changed = std::fs::metadata(path).and_then(|meta| meta.modified());
            text.push_str(&format!("{}\t{bytes}\t{changed:?}\n", path.display()));
        }
    }
    stillhouse_core::fs::sha256(text.as_bytes())
}
