//! Values of a configuration that are out of range, refused in words.

use stillhouse_core::data::{Sampler, SplitMode};

use super::{CellConfig, OptimizerConfig, TrainConfig};
use crate::{Error, Result};

impl CellConfig {
    /// Refuses values that are out of range; `origin` says where they were written.
    pub fn check(&self, origin: &str) -> Result<()> {
        let want = |ok: bool, field: &str, found: &dyn std::fmt::Debug, allowed: &str| {
            if ok {
                Ok(())
            } else {
                Err(Error::config(origin, format!("`{field}` is {found:?}, expected {allowed}")))
            }
        };
        let data = &self.data;
        if data.split == SplitMode::Official {
            want(data.ratio == 0, "data.ratio", &data.ratio, "none beside `split = \"official\"`")?;
        } else {
            let allowed = "1 to 99 (per cent that train), or `split = \"official\"` where the set has one";
            want((1..=99).contains(&data.ratio), "data.ratio", &data.ratio, allowed)?;
        }
        let sides = [("data.image_size", Some(data.image_size)), ("data.image_width", data.image_width)];
        for (field, side) in sides.into_iter().filter_map(|(field, side)| Some((field, side?))) {
            want((1..=8192).contains(&side), field, &side, "1 to 8192 pixels")?;
        }
        want(data.std.iter().all(|s| *s > 0.0), "data.std", &data.std, "values above 0")?;
        if let Some([train, test]) = data.per_class {
            want(train > 0 && test > 0, "data.per_class", &[train, test], "two counts above 0")?;
        }
        self.train.check(origin)?;
        want(self.eval.batch > 0, "eval.batch", &self.eval.batch, "at least 1")?;
        for (i, loss) in self.loss.iter().enumerate() {
            let field = format!("loss.{}.warmup_epochs", loss.method);
            let ok = loss.warmup_epochs.is_none_or(|w| w >= 0.0 && w.is_finite());
            want(ok, &field, &loss.warmup_epochs, "0 or more epochs")?;
            if let Some(decay) = &loss.decay {
                let fault = match decay.check() {
                    Ok(()) if decay.warmup_epochs() == 0.0 => None,
                    Ok(()) => Some("`warmup_epochs` stands beside `decay`, not in it".to_string()),
                    Err(what) => Some(what),
                };
                if let Some(what) = fault {
                    return Err(Error::config(origin, format!("`loss.{}.decay`: {what}", loss.method)));
                }
            }
            if self.loss[..i].iter().any(|l| (&l.method, l.step) == (&loss.method, loss.step)) {
                let of = loss.step.map_or_else(String::new, |step| format!(" for step {step}"));
                return Err(Error::config(
                    origin,
                    format!("method `{}` stands twice in `loss`{of}", loss.method),
                ));
            }
        }
        self.check_steps(origin)
    }

    /// Every loss belongs to a step that there is, and every one of several steps has a loss.
    fn check_steps(&self, origin: &str) -> Result<()> {
        let (steps, bad) = (self.train.step.len(), |what: String| Err(Error::config(origin, what)));
        for loss in &self.loss {
            let field = format!("loss.{}.step", loss.method);
            match loss.step {
                Some(step) if !(1..=steps.max(1)).contains(&step) => {
                    let count = steps.max(1);
                    return bad(format!(
                        "`{field}` is {step}, expected 1 to {count}, the steps of `train.step`"
                    ));
                }
                None if steps > 1 => {
                    return bad(format!("`{field}` is not given, expected 1 to {steps}, one of the steps"));
                }
                _ => {}
            }
        }
        if steps > 1
            && let Some(idle) = (1..=steps).find(|step| self.loss.iter().all(|l| l.step != Some(*step)))
        {
            return bad(format!(
                "`train.step`: step {idle} of {steps} has no loss, expected one with `step = {idle}`"
            ));
        }
        Ok(())
    }
}

impl TrainConfig {
    fn check(&self, origin: &str) -> Result<()> {
        let bad = |field: &str, found: &dyn std::fmt::Debug, allowed: &str| {
            Err(Error::config(origin, format!("`train.{field}` is {found:?}, expected {allowed}")))
        };
        if !(1..=1_000_000).contains(&self.epochs) {
            return bad("epochs", &self.epochs, "1 to 1000000");
        }
        let (lr, weight_decay) = (self.optimizer.lr(), self.optimizer.weight_decay().0);
        if !(lr > 0.0 && lr.is_finite()) {
            return bad("optimizer.lr", &lr, "a number above 0");
        }
        if !(weight_decay >= 0.0 && weight_decay.is_finite()) {
            return bad("optimizer.weight_decay", &weight_decay, "0 or more");
        }
        match &self.optimizer {
            OptimizerConfig::Sgd { momentum, nesterov, .. } => {
                if !(0.0..1.0).contains(momentum) {
                    return bad("optimizer.momentum", momentum, "0 up to, not including, 1");
                }
                if *nesterov && *momentum == 0.0 {
                    return bad("optimizer.nesterov", nesterov, "false where the momentum is 0");
                }
            }
            OptimizerConfig::Adam(adam) | OptimizerConfig::AdamW(adam) => {
                if !adam.betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
                    return bad("optimizer.betas", &adam.betas, "two numbers of 0 up to, not including, 1");
                }
                if !(adam.eps > 0.0 && adam.eps.is_finite()) {
                    return bad("optimizer.eps", &adam.eps, "a number above 0");
                }
            }
        }
        if let Some(most) = self.clip_norm
            && !(most > 0.0 && most.is_finite())
        {
            return bad("clip_norm", &most, "a number above 0");
        }
        if let Some(decay) = self.ema
            && !(decay > 0.0 && decay < 1.0)
        {
            return bad("ema", &decay, "a number above 0 and below 1, as 0.999");
        }
        if self.step.iter().any(|step| step.exit == Some(0)) {
            return bad("step.exit", &0, "an exit of the network, from 1");
        }
        if self.micro_batch == Some(0) {
            return bad("micro_batch", &0, "at least 1 image");
        }
        let sizes = match self.sampler {
            Sampler::Shuffle { batch, .. } | Sampler::Sequential { batch } => batch,
            Sampler::ClassBalanced { classes, per_class } => classes.min(per_class),
        };
        if sizes == 0 {
            return bad("sampler", &self.sampler, "counts above 0");
        }
        for scale in &self.lr_scale {
            if !(scale.factor >= 0.0 && scale.factor.is_finite()) {
                return bad("lr_scale", scale, "factors of 0 or more");
            }
        }
        self.schedule.check().map_err(|what| Error::config(origin, format!("`train.schedule`: {what}")))
    }
}
