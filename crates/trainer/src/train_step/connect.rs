//! Connectors of the methods, created before the first step.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use stillhouse_core::distiller::{FeatureShapes, RequiredFeatures};
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::Mode;

use super::methods::BoundMethod;
use super::{CONNECTOR_PREFIX, InputInfo};
use crate::{Network, Result};

/// Returns the shapes of features, from one image of zeros.
fn feature_shapes(
    network: &Network,
    features: &[String],
    (height, width): (usize, usize),
) -> Result<BTreeMap<String, Vec<usize>>> {
    let mut tape = Tape::new(&network.params, Mode::Eval)?;
    tape.select_features(features);
    tape.begin(Rng::new(0), 0);
    let images = Tensor::zeros((1, 3, height, width), DType::F32, network.params.device())?;
    Ok(network.model.forward(&images, &mut tape)?.shapes())
}

/// Creates the connectors of all methods in the student's store.
pub(super) fn connect(
    methods: &mut [BoundMethod],
    student: &Network,
    teacher: Option<&Network>,
    input: &InputInfo,
    rng: Rng,
) -> Result<()> {
    let mut required = RequiredFeatures::default();
    for method in methods.iter() {
        let own = method.distiller.required_features();
        required.student.extend(own.student);
        required.teacher.extend(own.teacher);
    }
    let student_shapes = feature_shapes(student, &required.student, input.size)?;
    let teacher_shapes = match teacher {
        Some(teacher) => feature_shapes(teacher, &required.teacher, input.size)?,
        None => BTreeMap::new(),
    };
    let builder = student.params.builder(rng).pp(CONNECTOR_PREFIX.trim_end_matches('.'));
    for method in methods {
        let own = method.distiller.required_features();
        let pick = |all: &BTreeMap<String, Vec<usize>>, names: &[String]| {
            all.iter().filter(|(n, _)| names.contains(n)).map(|(n, s)| (n.clone(), s.clone())).collect()
        };
        let shapes = FeatureShapes {
            student: pick(&student_shapes, &own.student),
            teacher: pick(&teacher_shapes, &own.teacher),
            task: input.task,
            classes: student.model.classes(),
            batch: input.smallest_batch,
            samples: input.samples,
        };
        method.distiller.connect(&shapes, &builder.pp(&method.label))?;
    }
    Ok(())
}
