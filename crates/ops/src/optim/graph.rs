//! Optimizer updates on the graph engine: one in-place kernel per parameter on a GPU, candle operations
//! elsewhere. Nothing is transferred to the host.

use candle_core::Tensor;

use crate::kernels::optim::{AdamStep, SgdStep};
use crate::params::ParamStore;
use crate::{ParamId, Result};

/// Adds the L2 penalty to a gradient.
fn decayed(g: &Tensor, p: &Tensor, decay: f64) -> Result<Tensor> {
    Ok(if decay == 0.0 { g.clone() } else { (g + (p * decay)?)? })
}

/// SGD; see [`crate::kernels::optim::sgd`].
pub(super) fn sgd(params: &ParamStore, id: ParamId, g: &Tensor, m: &mut Tensor, step: SgdStep) -> Result<()> {
    let p = params.get(id).var().as_detached_tensor();
    #[cfg(feature = "cuda")]
    if p.device().is_cuda() {
        crate::cuda::sgd(&p, g, m, step)?;
        params.touch();
        return Ok(());
    }
    let g = decayed(&g.detach(), &p, step.weight_decay)?;
    *m = if step.first { g.copy()? } else { ((&*m * step.momentum)? + &g)? };
    let by = if step.nesterov { (g + (&*m * step.momentum)?)? } else { m.clone() };
    params.set(id, &(p - (by * step.lr)?)?)
}

/// Adam; see [`crate::kernels::optim::adam`].
pub(super) fn adam(
    params: &ParamStore,
    id: ParamId,
    g: &Tensor,
    [m, v]: [&mut Tensor; 2],
    step: AdamStep,
) -> Result<()> {
    let p = params.get(id).var().as_detached_tensor();
    #[cfg(feature = "cuda")]
    if p.device().is_cuda() {
        crate::cuda::adam(&p, g, [m, v], step)?;
        params.touch();
        return Ok(());
    }
    let (decay, shrink) = match step.decoupled {
        true => (0.0, 1.0 - step.lr * step.weight_decay),
        false => (step.weight_decay, 1.0),
    };
    let g = decayed(&g.detach(), &p, decay)?;
    let [keep, keep2] = step.betas;
    *m = ((&*m * keep)? + (&g * (1.0 - keep))?)?;
    *v = ((&*v * keep2)? + (g.sqr()? * (1.0 - keep2))?)?;
    let root = (v.sqrt()? / step.correction[1].sqrt())?;
    let by = (&*m / (root + step.eps)?)?;
    params.set(id, &((p * shrink)? - (by * (step.lr / step.correction[0]))?)?)
}
