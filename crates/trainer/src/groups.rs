//! Which parameters move, and how fast.

use stillhouse_ops::Param;
use stillhouse_ops::optim::Hyper;

use crate::config::{LrScale, TrainConfig};

/// Settings of every parameter, from the recipe.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    weight_decay: f64,
    decay_norm_and_bias: bool,
    freeze: Vec<String>,
    lr_scale: Vec<LrScale>,
}

impl Groups {
    pub(crate) fn new(train: &TrainConfig) -> Self {
        let (weight_decay, decay_norm_and_bias) = train.optimizer.weight_decay();
        let (freeze, lr_scale) = (train.freeze.clone(), train.lr_scale.clone());
        Self { weight_decay, decay_norm_and_bias, freeze, lr_scale }
    }

    /// Settings of a parameter at this learning rate; none means that it does not move at all.
    pub(crate) fn hyper(&self, param: &Param, lr: f64) -> Option<Hyper> {
        self.hyper_of(&param.name, param.shape.len(), lr)
    }

    fn hyper_of(&self, name: &str, rank: usize, lr: f64) -> Option<Hyper> {
        if self.freeze.iter().any(|pattern| fits(pattern, name)) {
            return None;
        }
        let scale = self.lr_scale.iter().find(|s| fits(&s.pattern, name)).map_or(1.0, |s| s.factor);
        // Norms and biases are vectors; nothing else is.
        let table = name.ends_with("relative_position_bias_table");
        let decays = rank > 1 && !table || self.decay_norm_and_bias;
        Some(Hyper { lr: lr * scale, weight_decay: if decays { self.weight_decay } else { 0.0 } })
    }

    /// Patterns that fit none of the names: most likely typing mistakes.
    pub(crate) fn unused<'a>(&'a self, names: &[String]) -> Vec<&'a str> {
        let patterns = self.freeze.iter().chain(self.lr_scale.iter().map(|s| &s.pattern));
        patterns.filter(|p| !names.iter().any(|name| fits(p, name))).map(String::as_str).collect()
    }
}

/// Whether a name fits a pattern in which `*` stands for any text.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
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
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in no {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn groups_decay_freeze_and_scale() {
        let mut groups = Groups {
            weight_decay: 5e-4,
            decay_norm_and_bias: false,
            freeze: vec!["layer1.*".into()],
            lr_scale: vec![LrScale { pattern: "fc.*".into(), factor: 10.0 }],
        };
        let some = |lr, weight_decay| Some(Hyper { lr, weight_decay });
        assert_eq!(groups.hyper_of("conv1.weight", 4, 0.1), some(0.1, 5e-4));
        assert_eq!(groups.hyper_of("bn1.weight", 1, 0.1), some(0.1, 0.0));
        assert_eq!(groups.hyper_of("attn.relative_position_bias_table", 2, 0.1), some(0.1, 0.0));
        assert_eq!(groups.hyper_of("fc.weight", 2, 0.1), some(1.0, 5e-4));
        assert_eq!(groups.hyper_of("layer1.0.conv1.weight", 4, 0.1), None);
        let names = ["conv1.weight".to_string(), "fc.weight".to_string()];
        assert_eq!(groups.unused(&names), ["layer1.*"]);
        groups.decay_norm_and_bias = true;
        assert_eq!(groups.hyper_of("bn1.weight", 1, 0.1), some(0.1, 5e-4));
    }
}
