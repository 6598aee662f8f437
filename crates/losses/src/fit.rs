//! Whether the taps of student and teacher fit a method, said in words.

use std::collections::BTreeMap;

use candle_core::Tensor;
use stillhouse_core::distiller::{Shapes, Step};
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
        Error::unfit(who, format!("needs the {side}'s tap `{tap}`, there are: {}", known.join(", ")))
    })
}

/// Channels of the student's and the teacher's map `tap`; anything but a map is refused.
pub(crate) fn map_channels(shapes: &Shapes, tap: &str, who: &str) -> Result<(usize, usize)> {
    let channels = |taps, side| match shape(taps, side, tap, who)? {
        [c, _, _] => Ok(*c),
        other => Err(Error::unfit(
            who,
            format!("needs maps [C, H, W], but the {side}'s tap `{tap}` has the shape {other:?}"),
        )),
    };
    Ok((channels(&shapes.student, "student")?, channels(&shapes.teacher, "teacher")?))
}

/// Refuses logits of student and teacher that have not the same shape.
pub(crate) fn same_logits(shapes: &Shapes, who: &str) -> Result<()> {
    let student = student_logits(shapes, who)?;
    let teacher = shape(&shapes.teacher, "teacher", "logits", who)?;
    if student == teacher {
        return Ok(());
    }
    Err(Error::unfit(
        who,
        format!(
            "needs logits of one shape (classes first), but the student gives {student:?} and the teacher \
             {teacher:?}; take a teacher that was trained on the same classes"
        ),
    ))
}

/// The shape of the student's logits, `[N]` or `[N, H, W]`, where N must be the dataset's classes.
pub(crate) fn student_logits<'a>(shapes: &'a Shapes, who: &str) -> Result<&'a [usize]> {
    let logits = shape(&shapes.student, "student", "logits", who)?;
    match logits.first() {
        Some(n) if *n == shapes.classes => Ok(logits),
        _ => Err(Error::unfit(
            who,
            format!(
                "the dataset has {} classes, but the student's logits have the shape {logits:?}",
                shapes.classes
            ),
        )),
    }
}

/// The maps `[B, C, h, w]` of student and teacher at one tap: the teacher's without gradient and in
/// the student's dtype, the larger one pooled to the smaller height and width.
pub(crate) fn map_pair(step: &Step, tap: &str, who: &str) -> Result<(Tensor, Tensor)> {
    let student = step.student.get(tap)?;
    let teacher = step.teacher.get(tap)?.detach().to_dtype(student.dtype())?;
    let (s, t) = (student.dims(), teacher.dims());
    if s.len() != 4 || t.len() != 4 || s[0] != t[0] {
        return Err(Error::unfit(
            who,
            format!(
                "needs maps [B, C, H, W] of one batch at `{tap}`, got {s:?} (student) and {t:?} (teacher)"
            ),
        ));
    }
    pool_pair(student, &teacher)
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
            Shapes { student: taps(64, 7), teacher: taps(256, 21), classes: 7, ..Default::default() };
        assert_eq!(map_channels(&shapes, "F1", "m").unwrap(), (64, 256));
        let e = map_channels(&shapes, "F2", "m").unwrap_err().to_string();
        assert!(e.contains("student's tap `F2`") && e.contains("F1, logits, pooled"), "{e}");
        let e = map_channels(&shapes, "pooled", "m").unwrap_err().to_string();
        assert!(e.contains("needs maps [C, H, W]") && e.contains("[64]"), "{e}");
        let e = same_logits(&shapes, "kd").unwrap_err().to_string();
        assert!(e.contains("kd") && e.contains("[7]") && e.contains("[21]"), "{e}");
        let e = student_logits(&Shapes { classes: 9, ..shapes }, "ce").unwrap_err().to_string();
        assert!(e.contains("9 classes") && e.contains("[7]"), "{e}");
    }
}
