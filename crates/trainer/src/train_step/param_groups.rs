//! Per-parameter settings of the optimizer: weight decay, frozen parameters, learning rate factors.

use stillhouse_ops::Param;
use stillhouse_ops::optim::Hyper;

use crate::experiment::{LrScale, TrainConfig};

/// Per-parameter settings of the optimizer. In patterns `*` matches any text, as in `layer1.*`.
#[derive(Debug, Clone, Default)]
pub struct ParamGroups {
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether norms and biases (all vectors) and relative position tables decay too.
    pub decay_norm_and_bias: bool,
    /// Patterns of frozen parameters.
    pub freeze: Vec<String>,
    /// Factors on the learning rate; the first matching pattern counts.
    pub lr_scale: Vec<LrScale>,
}

impl ParamGroups {
    /// The groups of a training configuration.
    pub(crate) fn from_config(train: &TrainConfig) -> Self {
        let (weight_decay, decay_norm_and_bias) = train.optimizer.weight_decay();
        let (freeze, lr_scale) = (train.freeze.clone(), train.lr_scale.clone());
        Self { weight_decay, decay_norm_and_bias, freeze, lr_scale }
    }

    /// Returns the settings of a parameter at a learning rate; `None` if it is frozen.
    pub(super) fn hyper(&self, param: &Param, lr: f64) -> Option<Hyper> {
        self.hyper_by_name(&param.name, param.shape.len(), lr)
    }

    fn hyper_by_name(&self, name: &str, rank: usize, lr: f64) -> Option<Hyper> {
        if self.freeze.iter().any(|pattern| matches(pattern, name)) {
            return None;
        }
        let scale = self.lr_scale.iter().find(|s| matches(&s.pattern, name)).map_or(1.0, |s| s.factor);
        // Norms and biases are the only vectors.
        let table = name.ends_with("relative_position_bias_table");
        let decays = rank > 1 && !table || self.decay_norm_and_bias;
        Some(Hyper { lr: lr * scale, weight_decay: if decays { self.weight_decay } else { 0.0 } })
    }

    /// Returns the patterns that match none of the names, most likely typos.
    pub(super) fn unmatched<'a>(&'a self, names: &[String]) -> Vec<&'a str> {
        let patterns = self.freeze.iter().chain(self.lr_scale.iter().map(|s| &s.pattern));
        patterns.filter(|p| !names.iter().any(|name| matches(p, name))).map(String::as_str).collect()
    }
}

/// Returns whether a name matches a pattern in which `*` stands for any text.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let mut chunks = pattern.split('*');
    let first = chunks.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut chunks: Vec<&str> = chunks.collect();
    let Some(last) = chunks.pop() else { return rest.is_empty() };
    for chunk in chunks {
        match rest.find(chunk) {
            Some(at) => rest = &rest[at + chunk.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_patterns() {
        let yes = [
            ("fc.weight", "fc.weight"),
            ("layer1.*", "layer1.0.conv1.weight"),
            ("*", "x"),
            ("*bn*.bias", "a.bn1.bias"),
        ];
        let no = [
            ("fc", "fc.weight"),
            ("layer1.*", "layer10.conv"),
            ("*.bias", "bias"),
            ("a*a", "a"),
            ("*bn*.bias", "a.bn1.weight"),
        ];
        for (pattern, name) in yes {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in no {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn applies_decay_freeze_and_lr_scale() {
        let mut groups = ParamGroups {
            weight_decay: 5e-4,
            decay_norm_and_bias: false,
            freeze: vec!["layer1.*".into()],
            lr_scale: vec![LrScale { pattern: "fc.*".into(), factor: 10.0 }],
        };
        let some = |lr, weight_decay| Some(Hyper { lr, weight_decay });
        assert_eq!(groups.hyper_by_name("conv1.weight", 4, 0.1), some(0.1, 5e-4));
        assert_eq!(groups.hyper_by_name("bn1.weight", 1, 0.1), some(0.1, 0.0));
        assert_eq!(groups.hyper_by_name("attn.relative_position_bias_table", 2, 0.1), some(0.1, 0.0));
        assert_eq!(groups.hyper_by_name("fc.weight", 2, 0.1), some(1.0, 5e-4));
        assert_eq!(groups.hyper_by_name("layer1.0.conv1.weight", 4, 0.1), None);
        let names = ["conv1.weight".to_string(), "fc.weight".to_string()];
        assert_eq!(groups.unmatched(&names), ["layer1.*"]);
        groups.decay_norm_and_bias = true;
        assert_eq!(groups.hyper_by_name("bn1.weight", 1, 0.1), some(0.1, 5e-4));
    }
}
