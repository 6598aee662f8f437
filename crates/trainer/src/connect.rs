//! The connectors of the methods, made before the first step.

use candle_core::{DType, Tensor};
use stillhouse_core::data::Task;
use stillhouse_core::distiller::FeatureShapes;
use stillhouse_core::model::Features;
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::Mode;

use crate::step::{CONNECTORS, Method};
use crate::{Network, Result};

/// FeatureShapes of all taps that are needed, found out by one image of zeros.
pub(crate) fn probe(
    network: &Network,
    taps: &[String],
    (height, width): (usize, usize),
    mode: Mode,
) -> Result<Features> {
    let mut tape = Tape::new(&network.params, mode)?;
    tape.select_features(taps);
    tape.begin(Rng::new(0), 0);
    let images = Tensor::zeros((1, 3, height, width), DType::F32, network.params.device())?;
    Ok(network.model.forward(&images, &mut tape)?)
}

/// Makes the connectors of all methods in the student's store.
pub(crate) fn connect(
    methods: &mut [Method],
    student: &Network,
    teacher: Option<&Network>,
    (task, batch, samples): (Task, usize, usize),
    size: (usize, usize),
    rng: Rng,
) -> Result<()> {
    let mut needs = stillhouse_core::distiller::RequiredFeatures::default();
    for method in methods.iter() {
        let own = method.distiller.required_features();
        needs.student.extend(own.student);
        needs.teacher.extend(own.teacher);
    }
    let of_student = probe(student, &needs.student, size, Mode::Eval)?.shapes();
    let of_teacher = match teacher {
        Some(teacher) => probe(teacher, &needs.teacher, size, Mode::Eval)?.shapes(),
        None => Default::default(),
    };
    let builder = student.params.builder(rng).pp(CONNECTORS.trim_end_matches('.'));
    for method in methods {
        let own = method.distiller.required_features();
        let pick = |all: &std::collections::BTreeMap<String, Vec<usize>>, names: &[String]| {
            all.iter().filter(|(n, _)| names.contains(n)).map(|(n, s)| (n.clone(), s.clone())).collect()
        };
        let shapes = FeatureShapes {
            student: pick(&of_student, &own.student),
            teacher: pick(&of_teacher, &own.teacher),
            task,
            classes: student.model.classes(),
            batch,
            samples,
        };
        method.distiller.connect(&shapes, &builder.pp(&method.label))?;
    }
    Ok(())
}
