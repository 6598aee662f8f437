//! Range checks of a configuration.

use std::fmt::Debug;

use stillhouse_core::data::{Sampler, SplitMode};

use super::{CellConfig, OptimizerConfig, TrainConfig};
use crate::{Error, Result};

/// Fails unless `valid`.
fn require(origin: &str, valid: bool, field: &str, expected: &str, found: &dyn Debug) -> Result<()> {
    if valid {
        return Ok(());
    }
    Err(Error::config(origin, format!("invalid `{field}`: expected {expected}, found {found:?}")))
}

impl CellConfig {
    /// Checks that all values are in range; `origin` is their source.
    pub fn check(&self, origin: &str) -> Result<()> {
        let data = &self.data;
        if data.split == SplitMode::Official {
            let expected = "no ratio with `split = \"official\"`";
            require(origin, data.ratio == 0, "data.ratio", expected, &data.ratio)?;
        } else {
            let expected = "1 to 99 (percent), or `split = \"official\"` if the dataset has one";
            require(origin, (1..=99).contains(&data.ratio), "data.ratio", expected, &data.ratio)?;
        }
        let sides = [("data.image_size", Some(data.image_size)), ("data.image_width", data.image_width)];
        for (field, side) in sides.into_iter().filter_map(|(field, side)| Some((field, side?))) {
            require(origin, (1..=8192).contains(&side), field, "1 to 8192 pixels", &side)?;
        }
        let positive = data.std.iter().all(|s| *s > 0.0);
        require(origin, positive, "data.std", "values above 0", &data.std)?;
        if let Some(limits) = data.per_class {
            let positive = limits.iter().all(|n| *n > 0);
            require(origin, positive, "data.per_class", "two counts above 0", &limits)?;
        }
        if self.train.epochs == 0 && self.student.init.is_scratch() {
            let message = "invalid `train.epochs`: expected 1 to 1000000, or 0 to take pretrained weights as \
                           they are, found 0 with random initial weights";
            return Err(Error::config(origin, message));
        }
        self.train.check(origin)?;
        require(origin, self.eval.batch > 0, "eval.batch", "at least 1", &self.eval.batch)?;
        for (i, loss) in self.loss.iter().enumerate() {
            let field = format!("loss.{}.warmup_epochs", loss.method);
            let valid = loss.warmup_epochs.is_none_or(|w| w >= 0.0 && w.is_finite());
            require(origin, valid, &field, "0 or more epochs", &loss.warmup_epochs)?;
            if let Some(decay) = &loss.decay {
                let fault = match decay.check() {
                    Ok(()) if decay.warmup_epochs() == 0.0 => None,
                    Ok(()) => Some("`warmup_epochs` belongs next to `decay`, not into it".to_string()),
                    Err(what) => Some(what),
                };
                if let Some(what) = fault {
                    return Err(Error::config(
                        origin,
                        format!("invalid `loss.{}.decay`: {what}", loss.method),
                    ));
                }
            }
            if self.loss[..i].iter().any(|l| (&l.method, l.phase) == (&loss.method, loss.phase)) {
                let phase = loss.phase.map_or_else(String::new, |phase| format!(" in phase {phase}"));
                let message = format!("duplicate method in `loss`: `{}`{phase}", loss.method);
                return Err(Error::config(origin, message));
            }
        }
        self.check_phases(origin)
    }

    /// Checks that every loss belongs to an existing phase, and each of several phases has a loss.
    fn check_phases(&self, origin: &str) -> Result<()> {
        let phases = self.train.phase.len();
        for loss in &self.loss {
            let field = format!("loss.{}.phase", loss.method);
            let expected = format!("1 to {}", phases.max(1));
            match loss.phase {
                Some(phase) => {
                    require(origin, (1..=phases.max(1)).contains(&phase), &field, &expected, &phase)?;
                }
                None if phases > 1 => {
                    let message = format!("missing `{field}`: expected {expected}, one of `train.phase`");
                    return Err(Error::config(origin, message));
                }
                None => {}
            }
        }
        if phases > 1
            && let Some(unused) = (1..=phases).find(|phase| self.loss.iter().all(|l| l.phase != Some(*phase)))
        {
            let message = format!(
                "`train.phase`: phase {unused} of {phases} has no loss: expected one with `phase = {unused}`"
            );
            return Err(Error::config(origin, message));
        }
        Ok(())
    }
}

impl TrainConfig {
    fn check(&self, origin: &str) -> Result<()> {
        let require = |valid: bool, field: &str, expected: &str, found: &dyn Debug| {
            require(origin, valid, &format!("train.{field}"), expected, found)
        };
        require(self.epochs <= 1_000_000, "epochs", "1 to 1000000", &self.epochs)?;
        let (lr, weight_decay) = (self.optimizer.lr(), self.optimizer.weight_decay().0);
        require(lr > 0.0 && lr.is_finite(), "optimizer.lr", "a number above 0", &lr)?;
        let valid = weight_decay >= 0.0 && weight_decay.is_finite();
        require(valid, "optimizer.weight_decay", "0 or more", &weight_decay)?;
        match &self.optimizer {
            OptimizerConfig::Sgd { momentum, nesterov, .. } => {
                let valid = (0.0..1.0).contains(momentum);
                require(valid, "optimizer.momentum", "at least 0 and below 1", momentum)?;
                let valid = !*nesterov || *momentum > 0.0;
                require(valid, "optimizer.nesterov", "false with a momentum of 0", nesterov)?;
            }
            OptimizerConfig::Adam(adam) | OptimizerConfig::AdamW(adam) => {
                let valid = adam.betas.iter().all(|beta| (0.0..1.0).contains(beta));
                require(valid, "optimizer.betas", "two numbers of at least 0 and below 1", &adam.betas)?;
                let valid = adam.eps > 0.0 && adam.eps.is_finite();
                require(valid, "optimizer.eps", "a number above 0", &adam.eps)?;
            }
        }
        let valid = self.clip_norm.is_none_or(|norm| norm > 0.0 && norm.is_finite());
        require(valid, "clip_norm", "a number above 0", &self.clip_norm)?;
        let valid = self.ema.is_none_or(|decay| decay > 0.0 && decay < 1.0);
        require(valid, "ema", "a number above 0 and below 1, such as 0.999", &self.ema)?;
        let valid = self.phase.iter().all(|phase| phase.exit != Some(0));
        require(valid, "phase.exit", "a stage with an early exit, from 1", &0)?;
        require(self.micro_batch != Some(0), "micro_batch", "at least 1 image", &0)?;
        let smallest = match self.sampler {
            Sampler::Shuffle { batch, .. } | Sampler::Sequential { batch } => batch,
            Sampler::ClassBalanced { classes, per_class } => classes.min(per_class),
        };
        require(smallest > 0, "sampler", "counts above 0", &self.sampler)?;
        for scale in &self.lr_scale {
            let valid = scale.factor >= 0.0 && scale.factor.is_finite();
            require(valid, "lr_scale", "factors of 0 or more", scale)?;
        }
        self.schedule
            .check()
            .map_err(|what| Error::config(origin, format!("invalid `train.schedule`: {what}")))
    }
}
