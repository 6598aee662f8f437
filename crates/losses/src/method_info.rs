//! Description of a method, obtained by connecting it: for `explain` and docs/methods.md.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use stillhouse_core::data::Task;
use stillhouse_core::distiller::{DistillerBuild, FeatureShapes};
use stillhouse_core::registry::Entry;
use stillhouse_core::{ParamStore, Result, Rng};
use stillhouse_ops::ParamKind;

/// Properties of a method with its defaults, for ResNet50 as teacher and ResNet18 as student at 224 px.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodInfo {
    /// Supported labels: `classes`, `masks` or `any`.
    pub labels: &'static str,
    /// Features of the student.
    pub student: Vec<String>,
    /// Features of the teacher; empty for methods without a teacher.
    pub teacher: Vec<String>,
    /// Names and weights of the terms.
    pub terms: Vec<(String, f64)>,
    /// Trained layers, with `<stage>` for the name of a feature.
    pub connectors: Vec<String>,
    /// Number of their parameters.
    pub parameters: usize,
    /// Buffers in checkpoints, without running statistics of norms.
    pub state: Vec<String>,
}

/// Connects the method of an entry with its defaults.
///
/// # Errors
/// If it supports neither classes nor masks.
pub fn method_info(entry: &Entry<DistillerBuild>) -> Result<MethodInfo> {
    let method = (entry.build)(&toml::Table::new())?;
    let required = method.required_features();
    let connect = |task| {
        let params = ParamStore::new(DType::F32, &Device::Cpu)?;
        let shapes = FeatureShapes {
            student: shapes(&required.student, [64, 128, 256, 512], task),
            teacher: shapes(&required.teacher, [256, 512, 1024, 2048], task),
            task,
            classes: CLASSES,
            batch: 64,
            samples: 1680,
        };
        (entry.build)(&toml::Table::new())?.connect(&shapes, &params.builder(Rng::new(0)))?;
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
        let name = layer(&param.name, &required.student);
        let list = if param.kind == ParamKind::Weight { &mut connectors } else { &mut state };
        if !list.contains(&name) {
            list.push(name);
        }
    }
    state.retain(|name| !connectors.contains(name));
    Ok(MethodInfo {
        labels,
        student: required.student.clone(),
        teacher: required.teacher.clone(),
        terms: method.term_weights(),
        connectors,
        parameters: params.count_weights(),
        state,
    })
}

/// Number of classes of UC Merced.
const CLASSES: usize = 21;

/// Shapes of the features; stages 3 and 4 of networks for segmentation have stride 8.
fn shapes(features: &[String], channels: [usize; 4], task: Task) -> BTreeMap<String, Vec<usize>> {
    let shape = |feature: &str| {
        let stage =
            feature.strip_prefix('F').and_then(|n| n.parse::<usize>().ok()).filter(|n| (1..=4).contains(n));
        match (stage, task) {
            (Some(n), Task::Classification) => vec![channels[n - 1], 112 >> n, 112 >> n],
            (Some(n), Task::Segmentation) => vec![channels[n - 1], 112 >> n.min(2), 112 >> n.min(2)],
            (None, Task::Classification) if feature.ends_with("logits") => vec![CLASSES],
            (None, Task::Segmentation) if feature.ends_with("logits") => vec![CLASSES, 28, 28],
            (None, _) => vec![channels[3]],
        }
    };
    features.iter().map(|feature| (feature.clone(), shape(feature))).collect()
}

/// Name of a parameter's layer, with `<stage>` for the name of a feature.
fn layer(name: &str, features: &[String]) -> String {
    const OF_A_LAYER: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];
    let name = match name.rsplit_once('.') {
        Some((layer, last)) if OF_A_LAYER.contains(&last) => layer,
        _ => name,
    };
    let segment = |segment: &str| match features.iter().any(|f| f == segment) {
        true => "<stage>".to_string(),
        false => segment.to_string(),
    };
    name.split('.').map(segment).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ENTRIES, registry};

    #[test]
    fn describes_every_method() {
        for entry in ENTRIES {
            let info = method_info(entry).unwrap();
            assert!(!info.student.is_empty() && !info.terms.is_empty(), "{}", entry.name);
            assert_eq!(info.connectors.is_empty(), info.parameters == 0, "{}", entry.name);
        }
    }

    #[test]
    fn lists_each_layer_once() {
        let of = |name: &str| method_info(registry().get(name).unwrap()).unwrap();
        let vid = of("vid");
        let layers = ["<stage>.regressor0", "<stage>.regressor1", "<stage>.regressor2", "<stage>.log_scale"];
        assert_eq!((vid.connectors, vid.labels), (layers.map(String::from).to_vec(), "any"));
        let one = |s: usize, t: usize| s * t + 2 * t * t + t;
        assert_eq!(vid.parameters, one(64, 256) + one(128, 512) + one(256, 1024) + one(512, 2048));
        let crd = of("crd");
        assert_eq!(crd.connectors, ["embed_student", "embed_teacher"]);
        assert_eq!(crd.state, ["bank_s", "log_z_student", "bank_t", "log_z_teacher", "image"]);
        assert_eq!(of("dkd").labels, "classes");
        assert!(of("ce").teacher.is_empty());
    }
}
