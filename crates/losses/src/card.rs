//! What a method is made of, found out by connecting it: for `explain` and the page of all methods.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use stillhouse_core::data::Task;
use stillhouse_core::distiller::{DistillerBuild, FeatureShapes};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamStore, Result, Rng};
use stillhouse_ops::ParamKind;

/// A method with its defaults, between ResNet50 as teacher and ResNet18 as student at 224 px.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Labels that it fits: `classes`, `masks` or `any`.
    pub labels: &'static str,
    /// Taps of the student.
    pub student: Vec<String>,
    /// Taps of the teacher; empty for methods without one.
    pub teacher: Vec<String>,
    /// Terms and their weights.
    pub terms: Vec<(String, f64)>,
    /// Trained parts, with `<stage>` for the name of a tap.
    pub connectors: Vec<String>,
    /// Values in them.
    pub parameters: usize,
    /// State that moves by itself and stands in checkpoints; running statistics of norms left out.
    pub state: Vec<String>,
}

/// Connects the method of a row with its defaults.
///
/// # Errors
/// If it fits neither a dataset of classes nor one of masks.
pub fn card(row: &Entry<DistillerBuild>) -> Result<Card> {
    let method = (row.build)(&toml::Table::new())?;
    let needs = method.required_features();
    let connect = |task| {
        let params = ParamStore::new(DType::F32, &Device::Cpu)?;
        let shapes = FeatureShapes {
            student: shapes(&needs.student, [64, 128, 256, 512], task),
            teacher: shapes(&needs.teacher, [256, 512, 1024, 2048], task),
            task,
            classes: CLASSES,
            batch: 64,
            samples: 1680,
        };
        (row.build)(&toml::Table::new())?.connect(&shapes, &params.builder(Rng::new(0)))?;
        Ok::<_, stillhouse_core::Error>(params)
    };
    let (labels, params) = match (connect(Task::Classification), connect(Task::Segmentation)) {
        (Ok(params), Ok(_)) => ("any", params),
        (Ok(params), Err(_)) => ("classes", params),
        (Err(_), Ok(params)) => ("masks", params),
        (Err(e), Err(_)) => return Err(e),
    };
    let (mut connectors, mut state) = (Vec::new(), Vec::new());
    for param in params.all() {
        let name = part(&param.name, &needs.student);
        let list = if param.kind == ParamKind::Weight { &mut connectors } else { &mut state };
        if !list.contains(&name) {
            list.push(name);
        }
    }
    state.retain(|name| !connectors.contains(name));
    Ok(Card {
        labels,
        student: needs.student.clone(),
        teacher: needs.teacher.clone(),
        terms: method.term_weights(),
        connectors,
        parameters: params.count_weights(),
        state,
    })
}

/// UC Merced's.
const CLASSES: usize = 21;

/// What the two networks would give at these taps; networks for masks keep stages 3 and 4 at stride 8.
fn shapes(taps: &[String], channels: [usize; 4], task: Task) -> BTreeMap<String, Vec<usize>> {
    let shape = |tap: &str| {
        let stage =
            tap.strip_prefix('F').and_then(|n| n.parse::<usize>().ok()).filter(|n| (1..=4).contains(n));
        match (stage, task) {
            (Some(n), Task::Classification) => vec![channels[n - 1], 112 >> n, 112 >> n],
            (Some(n), Task::Segmentation) => vec![channels[n - 1], 112 >> n.min(2), 112 >> n.min(2)],
            (None, Task::Classification) if tap.ends_with("logits") => vec![CLASSES],
            (None, Task::Segmentation) if tap.ends_with("logits") => vec![CLASSES, 28, 28],
            (None, _) => vec![channels[3]],
        }
    };
    taps.iter().map(|tap| (tap.clone(), shape(tap))).collect()
}

/// The part that a value belongs to, the same for all stages.
fn part(name: &str, taps: &[String]) -> String {
    const OF_LAYERS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];
    let name = match name.rsplit_once('.') {
        Some((layer, last)) if OF_LAYERS.contains(&last) => layer,
        _ => name,
    };
    let word =
        |word: &str| if taps.iter().any(|t| t == word) { "<stage>".to_string() } else { word.to_string() };
    name.split('.').map(word).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ENTRIES, registry};

    #[test]
    fn every_method_has_one() {
        for row in ENTRIES {
            let card = card(row).unwrap();
            assert!(!card.student.is_empty() && !card.terms.is_empty(), "{}", row.name);
            assert_eq!(card.connectors.is_empty(), card.parameters == 0, "{}", row.name);
        }
    }

    #[test]
    fn parts_are_named_once() {
        let of = |name: &str| card(registry().get(name).unwrap()).unwrap();
        let vid = of("vid");
        let parts = ["<stage>.regressor0", "<stage>.regressor1", "<stage>.regressor2", "<stage>.log_scale"];
        assert_eq!((vid.connectors, vid.labels), (parts.map(String::from).to_vec(), "any"));
        let one = |s: usize, t: usize| s * t + 2 * t * t + t;
        assert_eq!(vid.parameters, one(64, 256) + one(128, 512) + one(256, 1024) + one(512, 2048));
        let crd = of("crd");
        assert_eq!(crd.connectors, ["embed_student", "embed_teacher"]);
        assert_eq!(crd.state, ["bank_s", "log_z_student", "bank_t", "log_z_teacher", "image"]);
        assert_eq!(of("dkd").labels, "classes");
        assert!(of("ce").teacher.is_empty());
    }
}
