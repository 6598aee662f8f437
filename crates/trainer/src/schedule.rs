//! Learning rate over time, as pure functions of the step.

use serde::{Deserialize, Serialize};

/// The learning rate over time. Warm-up is counted in epochs and comes first; the rest of the
/// schedule runs over the whole training (`multistep`) or over what is left (`cosine`, `poly`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The same all the time.
    Constant {
        /// Epochs of linear warm-up.
        #[serde(default)]
        warmup_epochs: f64,
    },
    /// Multiplied by `factor` at each of these parts of the training.
    Multistep {
        /// Parts of all epochs, ascending, in (0, 1).
        at: Vec<f64>,
        /// Factor at each of them.
        factor: f64,
        /// Epochs of linear warm-up.
        #[serde(default)]
        warmup_epochs: f64,
    },
    /// Half a cosine down to `end` times the learning rate.
    Cosine {
        /// Part of the learning rate at the end.
        #[serde(default)]
        end: f64,
        /// Epochs of linear warm-up.
        #[serde(default)]
        warmup_epochs: f64,
    },
    /// `(1 - t)^power` down to 0.
    Poly {
        /// Exponent, usually 0.9.
        power: f64,
        /// Epochs of linear warm-up.
        #[serde(default)]
        warmup_epochs: f64,
    },
}

impl Schedule {
    /// Factor on the learning rate for `step` (from 0) of `epochs * per_epoch` steps.
    ///
    /// Warm-up of `w` steps gives `(step + 1) / w`, so that the first step already moves.
    pub fn factor(&self, step: u64, epochs: u64, per_epoch: u64) -> f64 {
        let total = (epochs * per_epoch) as f64;
        let warm = self.warmup_epochs() * per_epoch as f64;
        let step = step as f64;
        if step + 1.0 < warm {
            return (step + 1.0) / warm;
        }
        let left = (total - warm).max(1.0);
        let t = ((step - warm) / left).clamp(0.0, 1.0); // part of the rest that is done
        match self {
            Self::Constant { .. } => 1.0,
            Self::Multistep { at, factor, .. } => {
                // Milestones fall on whole epochs, as 150 of 240 does; a fraction is rounded.
                let epoch = (step / per_epoch.max(1) as f64).floor();
                let passed = at.iter().filter(|part| epoch >= (*part * epochs as f64).round()).count();
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

    /// In words, for captions.
    pub fn describe(&self, epochs: u64) -> String {
        let mut text = match self {
            Self::Constant { .. } => "constant".to_string(),
            Self::Multistep { at, factor, .. } => {
                let epochs: Vec<String> =
                    at.iter().map(|part| (part * epochs as f64).round().to_string()).collect();
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

    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let warm = self.warmup_epochs();
        if !(warm >= 0.0 && warm.is_finite()) {
            return Err(format!("`warmup_epochs` is {warm}, expected 0 or more"));
        }
        match self {
            Self::Multistep { at, factor, .. } => {
                let ascending = at.windows(2).all(|w| w[0] < w[1]);
                if !ascending || at.iter().any(|part| !(*part > 0.0 && *part < 1.0)) {
                    return Err(format!(
                        "`at` is {at:?}, expected ascending parts of the training in (0, 1)"
                    ));
                }
                if !(*factor >= 0.0 && factor.is_finite()) {
                    return Err(format!("`factor` is {factor}, expected 0 or more"));
                }
                Ok(())
            }
            Self::Cosine { end, .. } if !(0.0..=1.0).contains(end) => {
                Err(format!("`end` is {end}, expected 0 to 1"))
            }
            Self::Poly { power, .. } if !(*power > 0.0 && power.is_finite()) => {
                Err(format!("`power` is {power}, expected a number above 0"))
            }
            _ => Ok(()),
        }
    }
}

/// Factor on the weights of a method's terms, epoch by epoch: linear warm-up, `min(epoch / warmup, 1)`
/// with the first epoch counted as 1 (as DKD and ReviewKD do), then the decay.
#[derive(Debug, Clone)]
pub(crate) struct Course {
    pub(crate) warmup: f64,
    pub(crate) decay: Option<Schedule>,
    /// Epochs of the training.
    pub(crate) epochs: u64,
}

impl Course {
    /// The factor in an epoch, from 0.
    pub(crate) fn factor(&self, epoch: u64) -> f64 {
        let grown = if self.warmup <= 0.0 { 1.0 } else { ((epoch + 1) as f64 / self.warmup).min(1.0) };
        match &self.decay {
            Some(decay) => grown * decay.factor(epoch, self.epochs, 1),
            None => grown,
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
    fn multistep_of_240_epochs() {
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
    fn cosine_after_warm_up() {
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
    fn poly_and_constant() {
        let s = Schedule::Poly { power: 0.9, warmup_epochs: 0.0 };
        close(s.factor(0, 10, 10), 1.0);
        close(s.factor(50, 10, 10), 0.5f64.powf(0.9));
        let s = Schedule::Constant { warmup_epochs: 1.0 };
        close(s.factor(0, 3, 4), 0.25);
        close(s.factor(3, 3, 4), 1.0);
        close(s.factor(11, 3, 4), 1.0);
    }

    #[test]
    fn weights_grow_and_fall_by_epochs() {
        let grows = Course { warmup: 20.0, decay: None, epochs: 240 };
        close(grows.factor(0), 0.05);
        close(grows.factor(19), 1.0);
        close(grows.factor(100), 1.0);
        close(Course { warmup: 0.0, ..grows.clone() }.factor(0), 1.0);

        let falls = |decay| Course { warmup: 2.0, decay: Some(decay), epochs: 10 };
        let linear = falls(Schedule::Poly { power: 1.0, warmup_epochs: 0.0 });
        close(linear.factor(0), 0.5);
        close(linear.factor(1), 0.9);
        close(linear.factor(9), 0.1);
        let ends = falls(Schedule::Multistep { at: vec![0.5], factor: 0.0, warmup_epochs: 0.0 });
        close(ends.factor(4), 1.0);
        close(ends.factor(5), 0.0);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let bad = Schedule::Multistep { at: vec![0.7, 0.6], factor: 0.1, warmup_epochs: 0.0 };
        assert!(bad.check().unwrap_err().contains("ascending"));
        let bad = Schedule::Multistep { at: vec![0.5], factor: -0.1, warmup_epochs: 0.0 };
        assert!(bad.check().unwrap_err().contains("`factor` is -0.1"));
        assert!(Schedule::Poly { power: 0.0, warmup_epochs: 0.0 }.check().is_err());
        assert!(Schedule::Cosine { end: 2.0, warmup_epochs: 0.0 }.check().is_err());
        assert!(Schedule::Constant { warmup_epochs: -1.0 }.check().is_err());
        assert!(Schedule::Cosine { end: 0.0, warmup_epochs: 5.0 }.check().is_ok());
    }
}
