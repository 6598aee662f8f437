//! The optimizer of a configuration.

use serde::{Deserialize, Serialize};
use stillhouse_ops::optim::{Adam, Optimizer, Sgd};

/// The optimizer and its hyper-parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent as in PyTorch.
    Sgd {
        /// Peak learning rate of the schedule.
        lr: f64,
        /// Momentum in [0, 1).
        #[serde(default)]
        momentum: f64,
        /// Nesterov momentum.
        #[serde(default)]
        nesterov: bool,
        /// Weight decay (L2).
        #[serde(default)]
        weight_decay: f64,
        /// Whether norms and biases (all vectors) and relative position tables decay too.
        #[serde(default = "default_true")]
        decay_norm_and_bias: bool,
    },
    /// Adam as in PyTorch, with the weight decay added to the gradient.
    Adam(AdamConfig),
    /// AdamW as in PyTorch, with decoupled weight decay.
    #[serde(rename = "adamw")]
    AdamW(AdamConfig),
}

/// Hyper-parameters of Adam and AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamConfig {
    /// Peak learning rate of the schedule.
    pub lr: f64,
    /// Decay rates of the first and second moments, in [0, 1).
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Term added to the denominator.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Whether norms and biases (all vectors) and relative position tables decay too.
    #[serde(default = "default_true")]
    pub decay_norm_and_bias: bool,
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn default_eps() -> f64 {
    1e-8
}

fn default_true() -> bool {
    true
}

impl OptimizerConfig {
    /// Returns the peak learning rate.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Sgd { lr, .. } => *lr,
            Self::Adam(adam) | Self::AdamW(adam) => adam.lr,
        }
    }

    /// Returns the weight decay, and whether norms and biases decay too.
    pub(crate) fn weight_decay(&self) -> (f64, bool) {
        match self {
            Self::Sgd { weight_decay, decay_norm_and_bias, .. } => (*weight_decay, *decay_norm_and_bias),
            Self::Adam(adam) | Self::AdamW(adam) => (adam.weight_decay, adam.decay_norm_and_bias),
        }
    }

    /// Creates the optimizer.
    pub(crate) fn build(&self) -> Optimizer {
        match self {
            Self::Sgd { momentum, nesterov, .. } => Optimizer::Sgd(Sgd::new(*momentum, *nesterov)),
            Self::Adam(adam) => Optimizer::Adam(Adam::new(adam.betas, adam.eps)),
            Self::AdamW(adam) => Optimizer::Adam(Adam::decoupled(adam.betas, adam.eps)),
        }
    }
}
