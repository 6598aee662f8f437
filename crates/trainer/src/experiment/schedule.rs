//! Schedules of the learning rate and of loss weights, as pure functions of the step.

use serde::{Deserialize, Serialize};

/// Learning rate schedule. Warm-up is in epochs and comes first; the rest of the schedule runs over the whole
/// training (`multistep`) or over the remaining steps (`cosine`, `poly`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Constant.
    Constant {
        /// Epochs of linear warm-up.
        #[serde(default)]
        warmup_epochs: f64,
    },
    /// Multiplied by `factor` at each milestone.
    Multistep {
        /// Milestones as fractions of all epochs, ascending, in (0, 1).
        at: Vec<f64>,
        /// Factor at each milestone.
        factor: f64,
        /// Epochs of linear warm-up.
        #[serde(default)]
        warmup_epochs: f64,
    },
    /// Half a cosine from the learning rate to `end` times it.
    Cosine {
        /// Final fraction of the learning rate.
        #[serde(default)]
        end: f64,
        /// Epochs of linear warm-up.
        #[serde(default)]
        warmup_epochs: f64,
    },
    /// `(1 - t)^power`, ending at 0.
    Poly {
        /// Exponent, usually 0.9.
        power: f64,
        /// Epochs of linear warm-up.
        #[serde(default)]
        warmup_epochs: f64,
    },
}

impl Schedule {
    /// Returns the factor on the learning rate at `step` (from 0) of `epochs * per_epoch` steps.
    ///
    /// Warm-up of `w` steps is `(step + 1) / w`, so that the first step is not zero.
    pub fn factor(&self, step: u64, epochs: u64, per_epoch: u64) -> f64 {
        let total = (epochs * per_epoch) as f64;
        let warm = self.warmup_epochs() * per_epoch as f64;
        let step = step as f64;
        if step + 1.0 < warm {
            return (step + 1.0) / warm;
        }
        let left = (total - warm).max(1.0);
        let t = ((step - warm) / left).clamp(0.0, 1.0);
        match self {
            Self::Constant { .. } => 1.0,
            Self::Multistep { at, factor, .. } => {
                // Milestones are rounded to whole epochs.
                let epoch = (step / per_epoch.max(1) as f64).floor();
                let passed =
                    at.iter().filter(|milestone| epoch >= (*milestone * epochs as f64).round()).count();
                factor.powi(passed as i32)
            }
            Self::Cosine { end, .. } => end + (1.0 - end) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos()),
            Self::Poly { power, .. } => (1.0 - t).powf(*power),
        }
    }

    pub(crate) fn warmup_epochs(&self) -> f64 {
        match self {
            Self::Constant { warmup_epochs }
            | Self::Multistep { warmup_epochs, .. }
            | Self::Cosine { warmup_epochs, .. }
            | Self::Poly { warmup_epochs, .. } => *warmup_epochs,
        }
    }

    /// Describes the schedule for captions.
    pub fn describe(&self, epochs: u64) -> String {
        let mut text = match self {
            Self::Constant { .. } => "constant".to_string(),
            Self::Multistep { at, factor, .. } => {
                let epochs: Vec<String> =
                    at.iter().map(|milestone| (milestone * epochs as f64).round().to_string()).collect();
                format!("x{factor} after epochs {}", epochs.join(", "))
            }
            Self::Cosine { end, .. } if *end == 0.0 => "cosine to 0".to_string(),
            Self::Cosine { end, .. } => format!("cosine to x{end}"),
            Self::Poly { power, .. } => format!("poly {power}"),
        };
        if self.warmup_epochs() > 0.0 {
            let epochs = self.warmup_epochs();
            let word = if epochs == 1.0 { "epoch" } else { "epochs" };
            text.push_str(&format!(", {epochs} {word} of linear warm-up"));
        }
        text
    }

    /// Checks that all values are in range.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let warm = self.warmup_epochs();
        if !(warm >= 0.0 && warm.is_finite()) {
            return Err(format!("`warmup_epochs`: expected 0 or more, found {warm}"));
        }
        match self {
            Self::Multistep { at, factor, .. } => {
                let ascending = at.windows(2).all(|w| w[0] < w[1]);
                if !ascending || at.iter().any(|at| !(*at > 0.0 && *at < 1.0)) {
                    return Err(format!(
                        "`at`: expected ascending fractions of the training in (0, 1), found {at:?}"
                    ));
                }
                if !(*factor >= 0.0 && factor.is_finite()) {
                    return Err(format!("`factor`: expected 0 or more, found {factor}"));
                }
                Ok(())
            }
            Self::Cosine { end, .. } if !(0.0..=1.0).contains(end) => {
                Err(format!("`end`: expected 0 to 1, found {end}"))
            }
            Self::Poly { power, .. } if !(*power > 0.0 && power.is_finite()) => {
                Err(format!("`power`: expected a number above 0, found {power}"))
            }
            _ => Ok(()),
        }
    }
}

/// Factor on the weights of a method's terms by epoch: linear warm-up `min(epoch / warmup, 1)`, with epochs
/// counted from 1 as in DKD and ReviewKD, times the decay.
#[derive(Debug, Clone, Default)]
pub struct WeightSchedule {
    /// Epochs of warm-up.
    pub warmup: f64,
    /// Schedule over the epochs.
    pub decay: Option<Schedule>,
    /// Epochs of the training.
    pub epochs: u64,
}

impl WeightSchedule {
    /// Returns the factor in an epoch, from 0.
    pub(crate) fn factor(&self, epoch: u64) -> f64 {
        let warmup = if self.warmup <= 0.0 { 1.0 } else { ((epoch + 1) as f64 / self.warmup).min(1.0) };
        match &self.decay {
            Some(decay) => warmup * decay.factor(epoch, self.epochs, 1),
            None => warmup,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn multistep_changes_at_its_milestones() {
        let s = Schedule::Multistep { at: vec![0.625, 0.75, 0.875], factor: 0.1, warmup_epochs: 0.0 };
        let at = |epoch: u64| s.factor(epoch * 26, 240, 26);
        close(at(0), 1.0);
        close(at(149), 1.0);
        close(s.factor(150 * 26 - 1, 240, 26), 1.0);
        close(at(150), 0.1);
        close(at(180), 0.01);
        close(at(210), 0.001);
        close(at(239), 0.001);
        assert_eq!(s.describe(240), "x0.1 after epochs 150, 180, 210");
    }

    #[test]
    fn cosine_follows_warmup() {
        let s = Schedule::Cosine { end: 0.0, warmup_epochs: 5.0 };
        let f = |step| s.factor(step, 65, 10); // 50 steps up, 600 down
        close(f(0), 1.0 / 50.0);
        close(f(24), 0.5);
        close(f(49), 1.0);
        close(f(50), 1.0);
        close(f(50 + 300), 0.5);
        close(f(50 + 200), 0.75);
        assert!(f(649) > 0.0 && f(649) < 1e-4);
        let s = Schedule::Cosine { end: 0.1, warmup_epochs: 0.0 };
        close(s.factor(50, 10, 10), 0.55);
    }

    #[test]
    fn poly_reaches_zero_and_constant_stays() {
        let s = Schedule::Poly { power: 0.9, warmup_epochs: 0.0 };
        close(s.factor(0, 10, 10), 1.0);
        close(s.factor(50, 10, 10), 0.5f64.powf(0.9));
        let s = Schedule::Constant { warmup_epochs: 1.0 };
        close(s.factor(0, 3, 4), 0.25);
        close(s.factor(3, 3, 4), 1.0);
        close(s.factor(11, 3, 4), 1.0);
    }

    #[test]
    fn weights_warm_up_and_decay_by_epoch() {
        let grows = WeightSchedule { warmup: 20.0, decay: None, epochs: 240 };
        close(grows.factor(0), 0.05);
        close(grows.factor(19), 1.0);
        close(grows.factor(100), 1.0);
        close(WeightSchedule { warmup: 0.0, ..grows.clone() }.factor(0), 1.0);

        let falls = |decay| WeightSchedule { warmup: 2.0, decay: Some(decay), epochs: 10 };
        let linear = falls(Schedule::Poly { power: 1.0, warmup_epochs: 0.0 });
        close(linear.factor(0), 0.5);
        close(linear.factor(1), 0.9);
        close(linear.factor(9), 0.1);
        let ends = falls(Schedule::Multistep { at: vec![0.5], factor: 0.0, warmup_epochs: 0.0 });
        close(ends.factor(4), 1.0);
        close(ends.factor(5), 0.0);
    }

    #[test]
    fn rejects_values_out_of_range() {
        let bad = Schedule::Multistep { at: vec![0.7, 0.6], factor: 0.1, warmup_epochs: 0.0 };
        assert!(bad.check().unwrap_err().contains("ascending"));
        let bad = Schedule::Multistep { at: vec![0.5], factor: -0.1, warmup_epochs: 0.0 };
        assert!(bad.check().unwrap_err().contains("`factor`: expected 0 or more, found -0.1"));
        assert!(Schedule::Poly { power: 0.0, warmup_epochs: 0.0 }.check().is_err());
        assert!(Schedule::Cosine { end: 2.0, warmup_epochs: 0.0 }.check().is_err());
        assert!(Schedule::Constant { warmup_epochs: -1.0 }.check().is_err());
        assert!(Schedule::Cosine { end: 0.0, warmup_epochs: 5.0 }.check().is_ok());
    }
}
