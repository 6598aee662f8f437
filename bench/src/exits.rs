//! Our side of MKSMT's case: the two training steps of a batch, as the trainer has them.

use candle_core::Tensor;
use stillhouse_core::data::Target;
use stillhouse_core::distiller::LossContext;
use stillhouse_core::model::Features;
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::Mode;
use stillhouse_ops::optim::{Adam, Hyper};

use crate::cases::Case;
use crate::device::device;
use crate::steps::{CaseModel, add_up, build, images, labels};
use crate::worker::StepFn;

/// Cross-entropy at the early exit moves what it runs; then cross-entropy at the last one with the
/// divergence between both moves everything. AdamW, two exits on the case's network.
pub(crate) fn make(case: &Case) -> anyhow::Result<StepFn> {
    let variant = toml::from_str(&format!("backbone = '{}'\ndrop_path = 0.0", case.network))?;
    let net = CaseModel::new("mksmt", variant).build(1)?;
    let (images, target) =
        (images(case.batch, case.size)?, Target::new(labels(case.batch, case.size, false)?, &device())?);
    let first = build("ce", &toml::toml! { tap = "exit3.logits" })?;
    let second = build("self_kl", &toml::Table::new())?;
    let mut tape = Tape::new(&net.params, Mode::Train)?;
    let mut rule = Adam::decoupled([0.9, 0.999], 1e-8);
    let (nothing, ids) = (Features::default(), (0..case.batch as u64).collect::<Vec<_>>());
    let mut step = 0;
    Ok(Box::new(move || {
        let mut losses = Vec::new();
        for method in [&first, &second] {
            tape.select_features(&method.required_features().student);
            tape.begin(Rng::new(0), step);
            let features = net.model.forward(&images, &mut tape)?;
            let moment = LossContext {
                images: Some(&images),
                ids: &ids,
                step,
                ..LossContext::new(&features, &nothing, &target)
            };
            let total = add_up(method.terms(&moment)?)?.ok_or_else(|| anyhow::anyhow!("no term"))?;
            let gradients = tape.backward(&total)?;
            // What has no gradient does not move.
            rule.step(&net.params, &gradients, |_| Some(Hyper { lr: 1e-4, weight_decay: 5e-4 }))?;
            losses.push(total.detach());
        }
        step += 1;
        Ok(Tensor::stack(&losses, 0)?.sum_all()?)
    }))
}
