//! Whether labels, batches and taps fit a method, said in words.

use std::collections::BTreeMap;

use candle_core::Tensor;
use stillhouse_core::data::{Target, Task};
use stillhouse_core::distiller::{FeatureShapes, LossContext};
use stillhouse_core::{Error, Result};

use crate::pool::pool_pair;

fn shape<'a>(
    taps: &'a BTreeMap<String, Vec<usize>>,
    side: &str,
    tap: &str,
    who: &str,
) -> Result<&'a [usize]> {
    taps.get(tap).map(Vec::as_slice).ok_or_else(|| {
        let known: Vec<&str> = taps.keys().map(String::as_str).collect();
        Error::incompatible(who, format!("needs the {side}'s tap `{tap}`, there are: {}", known.join(", ")))
    })
}

/// Refuses label masks: the method needs one class per image.
pub(crate) fn class_labels(shapes: &FeatureShapes, who: &str) -> Result<()> {
    match shapes.task {
        Task::Classification => Ok(()),
        Task::Segmentation => Err(Error::incompatible(
            who,
            "needs one class per image, but this dataset has label masks; take a method for masks",
        )),
    }
}

/// Refuses a smallest batch of fewer than `least` images; `what` says what takes so many.
pub(crate) fn images(shapes: &FeatureShapes, least: usize, what: &str, who: &str) -> Result<()> {
    if shapes.batch >= least {
        return Ok(());
    }
    let (found, images) = (shapes.batch, if shapes.batch == 1 { "image" } else { "images" });
    Err(Error::incompatible(
        who,
        format!(
            "{what} takes {least} images, but the smallest batch of an epoch has {found} {images}; take larger \
             batches, or drop the uneven last one (sampler: drop_last = true)"
        ),
    ))
}

/// Lengths of the student's and the teacher's vector `tap`; anything but a vector is refused.
pub(crate) fn vector_lengths(shapes: &FeatureShapes, tap: &str, who: &str) -> Result<(usize, usize)> {
    let length = |taps, side| match shape(taps, side, tap, who)? {
        [d] => Ok(*d),
        other => Err(Error::incompatible(
            who,
            format!("needs vectors [D], but the {side}'s tap `{tap}` has the shape {other:?}"),
        )),
    };
    Ok((length(&shapes.student, "student")?, length(&shapes.teacher, "teacher")?))
}

/// Refuses two taps of the student that are not vectors of one length.
pub(crate) fn same_vectors(shapes: &FeatureShapes, (a, b): (&str, &str), who: &str) -> Result<()> {
    match (shape(&shapes.student, "student", a, who)?, shape(&shapes.student, "student", b, who)?) {
        ([x], [y]) if x == y => Ok(()),
        (x, y) => Err(Error::incompatible(
            who,
            format!("needs two vectors of one length, but `{a}` has the shape {x:?} and `{b}` {y:?}"),
        )),
    }
}

/// The vectors `[B, D]` of student and teacher at one tap: the teacher's without gradient and in the
/// student's dtype.
pub(crate) fn vector_pair(context: &LossContext, tap: &str, who: &str) -> Result<(Tensor, Tensor)> {
    let student = context.student.get(tap)?;
    let teacher = context.teacher.get(tap)?.detach().to_dtype(student.dtype())?;
    match (student.dims(), teacher.dims()) {
        ([s, _], [t, _]) if s == t => Ok((student.clone(), teacher)),
        (s, t) => Err(Error::incompatible(
            who,
            format!("needs vectors [B, D] of one batch at `{tap}`, got {s:?} (student) and {t:?} (teacher)"),
        )),
    }
}

/// Channels of the student's and the teacher's map `tap`; anything but a map is refused.
pub(crate) fn map_channels(shapes: &FeatureShapes, tap: &str, who: &str) -> Result<(usize, usize)> {
    let channels = |taps, side| match shape(taps, side, tap, who)? {
        [c, _, _] => Ok(*c),
        other => Err(Error::incompatible(
            who,
            format!("needs maps [C, H, W], but the {side}'s tap `{tap}` has the shape {other:?}"),
        )),
    };
    Ok((channels(&shapes.student, "student")?, channels(&shapes.teacher, "teacher")?))
}

/// As [`map_channels`], for methods that compare position with position: maps of two sizes are
/// refused.
pub(crate) fn same_size_maps(shapes: &FeatureShapes, tap: &str, who: &str) -> Result<(usize, usize)> {
    let channels = map_channels(shapes, tap, who)?;
    let (student, teacher) = (&shapes.student[tap], &shapes.teacher[tap]);
    if student[1..] == teacher[1..] {
        return Ok(channels);
    }
    Err(Error::incompatible(
        who,
        format!(
            "compares the maps at `{tap}` position by position, but the student's is {student:?} and the \
             teacher's {teacher:?}; give both networks the same output stride, or take another tap"
        ),
    ))
}

/// The shape `[N, H, W]` of logits that both networks give for the positions of a map.
pub(crate) fn same_logit_maps<'a>(shapes: &'a FeatureShapes, who: &str) -> Result<&'a [usize]> {
    same_logits(shapes, who)?;
    match student_logits(shapes, who)? {
        logits @ [_, _, _] => Ok(logits),
        other => Err(Error::incompatible(
            who,
            format!(
                "needs logits [N, H, W] of a network for dense prediction, but they have the shape {other:?}"
            ),
        )),
    }
}

/// Refuses maps that are not logits of both networks for the same positions: `logits` itself, or a tap
/// with a channel for each class.
pub(crate) fn same_maps_of_logits(shapes: &FeatureShapes, tap: &str, who: &str) -> Result<()> {
    if tap == "logits" {
        return same_logit_maps(shapes, who).map(|_| ());
    }
    let (student, teacher) = same_size_maps(shapes, tap, who)?;
    if (student, teacher) == (shapes.classes, shapes.classes) {
        return Ok(());
    }
    Err(Error::incompatible(
        who,
        format!(
            "needs logits of {} classes, but the student's tap `{tap}` has {student} channels and the teacher's \
             {teacher}; take `logits`, or a tap before its last upsampling",
            shapes.classes
        ),
    ))
}

/// Refuses classes: the method needs label masks.
pub(crate) fn masks(shapes: &FeatureShapes, who: &str) -> Result<()> {
    match shapes.task {
        Task::Segmentation => Ok(()),
        Task::Classification => Err(Error::incompatible(
            who,
            "needs label masks, but this dataset has one class per image; take a method for classes",
        )),
    }
}

/// Refuses logits of student and teacher that have not the same shape.
pub(crate) fn same_logits(shapes: &FeatureShapes, who: &str) -> Result<()> {
    let student = student_logits(shapes, who)?;
    let teacher = shape(&shapes.teacher, "teacher", "logits", who)?;
    if student == teacher {
        return Ok(());
    }
    Err(Error::incompatible(
        who,
        format!(
            "needs logits of one shape (classes first), but the student gives {student:?} and the teacher \
             {teacher:?}; take a teacher that was trained on the same classes"
        ),
    ))
}

/// The shape of the student's logits, `[N]` or `[N, H, W]`, where N must be the dataset's classes.
pub(crate) fn student_logits<'a>(shapes: &'a FeatureShapes, who: &str) -> Result<&'a [usize]> {
    logits_at(shapes, "logits", who)
}

/// The shape of the logits at a tap, `[N]` or `[N, H, W]`, where N must be the dataset's classes.
pub(crate) fn class_tap<'a>(shapes: &'a FeatureShapes, tap: &str, who: &str) -> Result<&'a [usize]> {
    logits_at(shapes, tap, who)
}

/// Refuses anything but one class per image and the logits `[N]` of a classifier at that tap.
pub(crate) fn class_logits(shapes: &FeatureShapes, tap: &str, who: &str) -> Result<()> {
    class_labels(shapes, who)?;
    match logits_at(shapes, tap, who)? {
        [_] => Ok(()),
        other => Err(Error::incompatible(
            who,
            format!(
                "needs the logits [N] of a classifier, but the student's `{tap}` has the shape {other:?}"
            ),
        )),
    }
}

fn logits_at<'a>(shapes: &'a FeatureShapes, tap: &str, who: &str) -> Result<&'a [usize]> {
    let logits = shape(&shapes.student, "student", tap, who)?;
    match logits.first() {
        Some(n) if *n == shapes.classes => Ok(logits),
        _ => Err(Error::incompatible(
            who,
            format!(
                "the dataset has {} classes, but the student's `{tap}` has the shape {logits:?}",
                shapes.classes
            ),
        )),
    }
}

/// The shape of any of the student's taps.
pub(crate) fn student_shape<'a>(shapes: &'a FeatureShapes, tap: &str, who: &str) -> Result<&'a [usize]> {
    shape(&shapes.student, "student", tap, who)
}

/// The labels of `images` images, each below `classes`.
pub(crate) fn labels(target: &Target, (images, classes): (usize, usize), who: &str) -> Result<Vec<u32>> {
    let labels = target.host_classes(who)?.to_vec1::<u32>()?;
    if labels.len() != images {
        let found = labels.len();
        return Err(Error::incompatible(
            who,
            format!("needs a label for each of {images} images, got {found}"),
        ));
    }
    match labels.iter().find(|y| **y as usize >= classes) {
        None => Ok(labels),
        Some(y) => {
            Err(Error::incompatible(who, format!("found label {y}, but the logits have {classes} classes")))
        }
    }
}

/// The maps `[B, C, h, w]` of student and teacher at one tap: the teacher's without gradient and in
/// the student's dtype, the larger one pooled to the smaller height and width.
pub(crate) fn map_pair(context: &LossContext, tap: &str, who: &str) -> Result<(Tensor, Tensor)> {
    let (student, teacher) = maps(context, tap, who)?;
    pool_pair(&student, &teacher)
}

/// As [`map_pair`], each in its own size.
pub(crate) fn maps(context: &LossContext, tap: &str, who: &str) -> Result<(Tensor, Tensor)> {
    let student = context.student.get(tap)?;
    let teacher = context.teacher.get(tap)?.detach().to_dtype(student.dtype())?;
    let (s, t) = (student.dims(), teacher.dims());
    if s.len() != 4 || t.len() != 4 || s[0] != t[0] {
        return Err(Error::incompatible(
            who,
            format!(
                "needs maps [B, C, H, W] of one batch at `{tap}`, got {s:?} (student) and {t:?} (teacher)"
            ),
        ));
    }
    Ok((student.clone(), teacher))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misfits_are_told_in_words() {
        let taps = |c: usize, n: usize| {
            BTreeMap::from([
                ("F1".to_string(), vec![c, 7, 7]),
                ("pooled".to_string(), vec![c]),
                ("logits".to_string(), vec![n]),
            ])
        };
        let shapes =
            FeatureShapes { student: taps(64, 7), teacher: taps(256, 21), classes: 7, ..Default::default() };
        assert_eq!(map_channels(&shapes, "F1", "m").unwrap(), (64, 256));
        let e = map_channels(&shapes, "F2", "m").unwrap_err().to_string();
        assert!(e.contains("student's tap `F2`") && e.contains("F1, logits, pooled"), "{e}");
        let e = map_channels(&shapes, "pooled", "m").unwrap_err().to_string();
        assert!(e.contains("needs maps [C, H, W]") && e.contains("[64]"), "{e}");
        let e = same_logits(&shapes, "kd").unwrap_err().to_string();
        assert!(e.contains("kd") && e.contains("[7]") && e.contains("[21]"), "{e}");
        assert_eq!(vector_lengths(&shapes, "pooled", "m").unwrap(), (64, 256));
        let e = vector_lengths(&shapes, "F1", "m").unwrap_err().to_string();
        assert!(e.contains("needs vectors [D]") && e.contains("[64, 7, 7]"), "{e}");
        let e = same_logit_maps(&FeatureShapes { teacher: taps(256, 7), ..shapes.clone() }, "m").unwrap_err();
        assert!(e.to_string().contains("dense prediction"), "{e}");
        let mut other = shapes.clone();
        other.teacher.insert("F1".into(), vec![256, 7, 9]);
        let e = same_size_maps(&other, "F1", "m").unwrap_err().to_string();
        assert!(e.contains("[64, 7, 7]") && e.contains("[256, 7, 9]"), "{e}");
        let e = masks(&shapes, "m").unwrap_err().to_string();
        assert!(e.contains("label masks"), "{e}");
        assert!(masks(&FeatureShapes { task: Task::Segmentation, ..shapes.clone() }, "m").is_ok());
        let e = student_logits(&FeatureShapes { classes: 9, ..shapes }, "ce").unwrap_err().to_string();
        assert!(e.contains("9 classes") && e.contains("[7]"), "{e}");
    }

    #[test]
    fn labels_and_batches_are_told_in_words() {
        let shapes = FeatureShapes { batch: 1, ..Default::default() };
        class_labels(&shapes, "m").unwrap();
        images(&shapes, 1, "a mean", "m").unwrap();
        let e = images(&shapes, 2, "a distance", "m").unwrap_err().to_string();
        assert!(e.contains("a distance takes 2 images") && e.contains("has 1 image;"), "{e}");
        let taps = [("logits".to_string(), vec![7, 4, 4])].into();
        let maps = FeatureShapes { student: taps, classes: 7, ..shapes.clone() };
        let e = class_logits(&maps, "logits", "m").unwrap_err().to_string();
        assert!(e.contains("of a classifier") && e.contains("[7, 4, 4]"), "{e}");
        let masks = FeatureShapes { task: Task::Segmentation, ..shapes };
        let e = class_labels(&masks, "m").unwrap_err().to_string();
        assert!(e.contains("one class per image") && e.contains("masks"), "{e}");
    }
}
