//! The case of MKSMT: two training phases per batch.

use stillhouse_ops::optim::{Adam, Optimizer};
use stillhouse_trainer::{ParamGroups, PhaseConfig, TrainStepBuilder};

use crate::cases::Case;
use crate::steps::{CaseModel, build_method, repeat};
use crate::worker::StepFn;

/// Builds a step with the cross-entropy at the early exit, then the cross-entropy at the last exit and the
/// divergence between both. AdamW, two exits on the network of the case.
pub(crate) fn build_step(case: &Case) -> anyhow::Result<StepFn> {
    let variant = toml::from_str(&format!("backbone = '{}'\ndrop_path = 0.0", case.network))?;
    let student = CaseModel::new("mksmt", variant).build(1)?;
    let optimizer = Optimizer::Adam(Adam::decoupled([0.9, 0.999], 1e-8));
    let mut builder = TrainStepBuilder::new(student, optimizer);
    builder.phases = vec![PhaseConfig { exit: Some(3), trainable: Vec::new() }, PhaseConfig::default()];
    builder.methods = vec![
        build_method("ce", &toml::toml! { feature = "exit3.logits" })?,
        build_method("self_kl", &toml::Table::new())?,
    ];
    builder.methods[1].phase = 1;
    builder.param_groups =
        ParamGroups { weight_decay: 5e-4, decay_norm_and_bias: true, ..ParamGroups::default() };
    repeat(builder, case.batch, case.size, false, 1e-4)
}
