//! Checks of labels, batch sizes and feature shapes, before training and in each step.

use std::collections::BTreeMap;

use candle_core::Tensor;
use stillhouse_core::data::{Target, Task};
use stillhouse_core::distiller::{FeatureShapes, LossContext};
use stillhouse_core::{Error, Result};

use super::constant_like;

/// Requires one class per image.
pub(crate) fn require_class_labels(shapes: &FeatureShapes, component: &str) -> Result<()> {
    match shapes.task {
        Task::Classification => Ok(()),
        Task::Segmentation => Err(Error::incompatible(
            component,
            "expected one class per image, found label masks; choose a method for segmentation",
        )),
    }
}

/// Requires label masks.
pub(crate) fn require_masks(shapes: &FeatureShapes, component: &str) -> Result<()> {
    match shapes.task {
        Task::Segmentation => Ok(()),
        Task::Classification => Err(Error::incompatible(
            component,
            "expected label masks, found one class per image; choose a method for classification",
        )),
    }
}

/// Requires at least `min` images in the smallest batch of an epoch. `reason` names the operation
/// that reads several images.
pub(crate) fn require_batch(shapes: &FeatureShapes, min: usize, reason: &str, component: &str) -> Result<()> {
    if shapes.batch >= min {
        return Ok(());
    }
    Err(Error::incompatible(
        component,
        format!(
            "{reason}: expected batches of at least {min} images, found {} in the smallest; use larger batches, \
             or drop the uneven last one (sampler: drop_last = true)",
            shapes.batch
        ),
    ))
}

/// Shape of a feature of the student.
pub(crate) fn student_shape<'a>(
    shapes: &'a FeatureShapes,
    feature: &str,
    component: &str,
) -> Result<&'a [usize]> {
    shape(&shapes.student, "student", feature, component)
}

fn shape<'a>(
    shapes: &'a BTreeMap<String, Vec<usize>>,
    side: &str,
    feature: &str,
    component: &str,
) -> Result<&'a [usize]> {
    shapes.get(feature).map(Vec::as_slice).ok_or_else(|| {
        let known = shapes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        Error::incompatible(component, format!("expected the {side}'s feature `{feature}`, found {known}"))
    })
}

/// Requires vectors; returns the lengths of the student's and the teacher's.
pub(crate) fn require_vectors(
    shapes: &FeatureShapes,
    feature: &str,
    component: &str,
) -> Result<(usize, usize)> {
    let length = |shapes, side| match shape(shapes, side, feature, component)? {
        [d] => Ok(*d),
        other => Err(Error::incompatible(
            component,
            format!("expected vectors [D], found the {side}'s feature `{feature}` of shape {other:?}"),
        )),
    };
    Ok((length(&shapes.student, "student")?, length(&shapes.teacher, "teacher")?))
}

/// Requires two vectors of equal length of the student.
pub(crate) fn require_equal_vectors(
    shapes: &FeatureShapes,
    (a, b): (&str, &str),
    component: &str,
) -> Result<()> {
    match (student_shape(shapes, a, component)?, student_shape(shapes, b, component)?) {
        ([x], [y]) if x == y => Ok(()),
        (x, y) => Err(Error::incompatible(
            component,
            format!("expected two vectors of equal length, found `{a}` of shape {x:?} and `{b}` of {y:?}"),
        )),
    }
}

/// Requires maps; returns the channels of the student's and the teacher's.
pub(crate) fn require_maps(shapes: &FeatureShapes, feature: &str, component: &str) -> Result<(usize, usize)> {
    let channels = |shapes, side| match shape(shapes, side, feature, component)? {
        [c, _, _] => Ok(*c),
        other => Err(Error::incompatible(
            component,
            format!("expected maps [C, H, W], found the {side}'s feature `{feature}` of shape {other:?}"),
        )),
    };
    Ok((channels(&shapes.student, "student")?, channels(&shapes.teacher, "teacher")?))
}

/// Requires maps of equal height and width; returns the channels of the student's and the teacher's.
pub(crate) fn require_same_size_maps(
    shapes: &FeatureShapes,
    feature: &str,
    component: &str,
) -> Result<(usize, usize)> {
    let channels = require_maps(shapes, feature, component)?;
    let (student, teacher) = (&shapes.student[feature], &shapes.teacher[feature]);
    if student[1..] == teacher[1..] {
        return Ok(channels);
    }
    Err(Error::incompatible(
        component,
        format!(
            "expected maps of equal size at `{feature}`, found {student:?} (student) and {teacher:?} (teacher); \
             use the same output stride for both networks, or another feature"
        ),
    ))
}

/// Requires equal shapes of the student's and the teacher's logits.
pub(crate) fn require_equal_logits(shapes: &FeatureShapes, component: &str) -> Result<()> {
    let student = require_student_logits(shapes, component)?;
    let teacher = shape(&shapes.teacher, "teacher", "logits", component)?;
    if student == teacher {
        return Ok(());
    }
    Err(Error::incompatible(
        component,
        format!(
            "expected logits of equal shape, found {student:?} (student) and {teacher:?} (teacher); use a \
             teacher that was trained on the same classes"
        ),
    ))
}

/// Requires logits `[N, H, W]` of equal shape of both networks.
pub(crate) fn require_logit_maps<'a>(shapes: &'a FeatureShapes, component: &str) -> Result<&'a [usize]> {
    require_equal_logits(shapes, component)?;
    match require_student_logits(shapes, component)? {
        logits @ [_, _, _] => Ok(logits),
        other => Err(Error::incompatible(
            component,
            format!("expected logits [N, H, W] of a network for dense prediction, found the shape {other:?}"),
        )),
    }
}

/// Requires maps of equal size with one channel per class: `logits` or another feature.
pub(crate) fn require_class_maps(shapes: &FeatureShapes, feature: &str, component: &str) -> Result<()> {
    if feature == "logits" {
        return require_logit_maps(shapes, component).map(|_| ());
    }
    let (student, teacher) = require_same_size_maps(shapes, feature, component)?;
    if (student, teacher) == (shapes.classes, shapes.classes) {
        return Ok(());
    }
    Err(Error::incompatible(
        component,
        format!(
            "expected {} channels, one per class, at `{feature}`, found {student} (student) and {teacher} \
             (teacher); use `logits`, or the logits before the last upsampling",
            shapes.classes
        ),
    ))
}

/// Requires one class per image and logits `[N]` of the student.
pub(crate) fn require_classifier_logits(
    shapes: &FeatureShapes,
    feature: &str,
    component: &str,
) -> Result<()> {
    require_class_labels(shapes, component)?;
    match require_logits_at(shapes, feature, component)? {
        [_] => Ok(()),
        other => Err(Error::incompatible(
            component,
            format!(
                "expected logits [N] of a classifier, found the student's `{feature}` of shape {other:?}"
            ),
        )),
    }
}

/// Requires one logit per class of the dataset; returns the shape `[N]` or `[N, H, W]` of the
/// student's `logits`.
pub(crate) fn require_student_logits<'a>(shapes: &'a FeatureShapes, component: &str) -> Result<&'a [usize]> {
    require_logits_at(shapes, "logits", component)
}

/// Requires one logit per class of the dataset; returns the shape `[N]` or `[N, H, W]` of the
/// student's logits at a feature.
pub(crate) fn require_logits_at<'a>(
    shapes: &'a FeatureShapes,
    feature: &str,
    component: &str,
) -> Result<&'a [usize]> {
    let logits = student_shape(shapes, feature, component)?;
    match logits.first() {
        Some(n) if *n == shapes.classes => Ok(logits),
        _ => Err(Error::incompatible(
            component,
            format!(
                "expected logits of {} classes, found the student's `{feature}` of shape {logits:?}",
                shapes.classes
            ),
        )),
    }
}

/// Class labels of a batch, each below `classes`.
pub(crate) fn class_labels(
    target: &Target,
    (images, classes): (usize, usize),
    component: &str,
) -> Result<Vec<u32>> {
    let labels = target.host_classes(component)?.to_vec1::<u32>()?;
    if labels.len() != images {
        return Err(Error::incompatible(
            component,
            format!("expected a label for each of {images} images, found {}", labels.len()),
        ));
    }
    match labels.iter().find(|y| **y as usize >= classes) {
        None => Ok(labels),
        Some(y) => Err(Error::incompatible(
            component,
            format!("expected labels below {classes}, the number of logits, found label {y}"),
        )),
    }
}

/// The student's and the teacher's vectors `[B, D]`; the teacher's without gradient and in the
/// student's dtype.
pub(crate) fn vector_pair(context: &LossContext, feature: &str, component: &str) -> Result<(Tensor, Tensor)> {
    let student = context.student.get(feature)?;
    let teacher = constant_like(context.teacher.get(feature)?, student)?;
    match (student.dims(), teacher.dims()) {
        ([s, _], [t, _]) if s == t => Ok((student.clone(), teacher)),
        (s, t) => Err(Error::incompatible(
            component,
            format!(
                "expected vectors [B, D] of one batch at `{feature}`, found {s:?} (student) and {t:?} (teacher)"
            ),
        )),
    }
}

/// The student's and the teacher's maps `[B, C, H, W]`, each in its own size; the teacher's without
/// gradient and in the student's dtype.
pub(crate) fn map_pair(context: &LossContext, feature: &str, component: &str) -> Result<(Tensor, Tensor)> {
    let student = context.student.get(feature)?;
    let teacher = constant_like(context.teacher.get(feature)?, student)?;
    let (s, t) = (student.dims(), teacher.dims());
    if s.len() != 4 || t.len() != 4 || s[0] != t[0] {
        return Err(Error::incompatible(
            component,
            format!(
                "expected maps [B, C, H, W] of one batch at `{feature}`, found {s:?} (student) and {t:?} (teacher)"
            ),
        ));
    }
    Ok((student.clone(), teacher))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_incompatible_shapes() {
        let features = |c: usize, n: usize| {
            BTreeMap::from([
                ("F1".to_string(), vec![c, 7, 7]),
                ("pooled".to_string(), vec![c]),
                ("logits".to_string(), vec![n]),
            ])
        };
        let shapes = FeatureShapes {
            student: features(64, 7),
            teacher: features(256, 21),
            classes: 7,
            ..Default::default()
        };
        assert_eq!(require_maps(&shapes, "F1", "m").unwrap(), (64, 256));
        let e = require_maps(&shapes, "F2", "m").unwrap_err().to_string();
        assert!(e.contains("student's feature `F2`") && e.contains("F1, logits, pooled"), "{e}");
        let e = require_maps(&shapes, "pooled", "m").unwrap_err().to_string();
        assert!(e.contains("expected maps [C, H, W]") && e.contains("[64]"), "{e}");
        let e = require_equal_logits(&shapes, "kd").unwrap_err().to_string();
        assert!(e.contains("kd") && e.contains("[7]") && e.contains("[21]"), "{e}");
        assert_eq!(require_vectors(&shapes, "pooled", "m").unwrap(), (64, 256));
        let e = require_vectors(&shapes, "F1", "m").unwrap_err().to_string();
        assert!(e.contains("expected vectors [D]") && e.contains("[64, 7, 7]"), "{e}");
        let same_classes = FeatureShapes { teacher: features(256, 7), ..shapes.clone() };
        let e = require_logit_maps(&same_classes, "m").unwrap_err().to_string();
        assert!(e.contains("dense prediction"), "{e}");
        let mut other = shapes.clone();
        other.teacher.insert("F1".into(), vec![256, 7, 9]);
        let e = require_same_size_maps(&other, "F1", "m").unwrap_err().to_string();
        assert!(e.contains("[64, 7, 7]") && e.contains("[256, 7, 9]"), "{e}");
        let e = require_masks(&shapes, "m").unwrap_err().to_string();
        assert!(e.contains("label masks"), "{e}");
        assert!(require_masks(&FeatureShapes { task: Task::Segmentation, ..shapes.clone() }, "m").is_ok());
        let e =
            require_student_logits(&FeatureShapes { classes: 9, ..shapes }, "ce").unwrap_err().to_string();
        assert!(e.contains("9 classes") && e.contains("[7]"), "{e}");
    }

    #[test]
    fn reports_incompatible_labels_and_batches() {
        let shapes = FeatureShapes { batch: 1, ..Default::default() };
        require_class_labels(&shapes, "m").unwrap();
        require_batch(&shapes, 1, "means", "m").unwrap();
        let e = require_batch(&shapes, 2, "distances", "m").unwrap_err().to_string();
        assert!(e.contains("distances: expected batches of at least 2 images, found 1"), "{e}");
        let features = [("logits".to_string(), vec![7, 4, 4])].into();
        let maps = FeatureShapes { student: features, classes: 7, ..shapes.clone() };
        let e = require_classifier_logits(&maps, "logits", "m").unwrap_err().to_string();
        assert!(e.contains("of a classifier") && e.contains("[7, 4, 4]"), "{e}");
        let masks = FeatureShapes { task: Task::Segmentation, ..shapes };
        let e = require_class_labels(&masks, "m").unwrap_err().to_string();
        assert!(e.contains("one class per image") && e.contains("masks"), "{e}");
    }
}
