//! The optimizer of a configuration.

use serde::{Deserialize, Serialize};
use stillhouse_ops::optim::{Adam, Optimizer, Sgd};

/// The optimizer and its hyper-parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent as PyTorch has it.
    Sgd {
        /// Highest learning rate of the schedule.
        lr: f64,
        /// Momentum in [0, 1).
        #[serde(default)]
        momentum: f64,
        /// Nesterov's form.
        #[serde(default)]
        nesterov: bool,
        /// Weight decay (L2).
        #[serde(default)]
        weight_decay: f64,
        /// Whether norms and biases (all vectors) and tables of relative positions decay as well.
        #[serde(default = "yes")]
        decay_norm_and_bias: bool,
    },
    /// Adam as PyTorch has it: the weight decay is part of the gradient.
    Adam(AdamConfig),
    /// AdamW as PyTorch has it: the weight decay shrinks the weights themselves.
    #[serde(rename = "adamw")]
    AdamW(AdamConfig),
}

/// Hyper-parameters of Adam and AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamConfig {
    /// Highest learning rate of the schedule.
    pub lr: f64,
    /// Decays of the means of gradients and of their squares, in [0, 1).
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// Added to the root of the mean of squares.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Whether norms and biases (all vectors) and tables of relative positions decay as well.
    #[serde(default = "yes")]
    pub decay_norm_and_bias: bool,
}

fn betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn eps() -> f64 {
    1e-8
}

fn yes() -> bool {
    true
}

impl OptimizerConfig {
    /// The highest learning rate.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Sgd { lr, .. } => *lr,
            Self::Adam(adam) | Self::AdamW(adam) => adam.lr,
        }
    }

    /// The weight decay, and whether norms and biases decay as well.
    pub(crate) fn weight_decay(&self) -> (f64, bool) {
        match self {
            Self::Sgd { weight_decay, decay_norm_and_bias, .. } => (*weight_decay, *decay_norm_and_bias),
            Self::Adam(adam) | Self::AdamW(adam) => (adam.weight_decay, adam.decay_norm_and_bias),
        }
    }

    /// The optimizer itself.
    pub(crate) fn rule(&self) -> Optimizer {
        match self {
            Self::Sgd { momentum, nesterov, .. } => Optimizer::Sgd(Sgd::new(*momentum, *nesterov)),
            Self::Adam(adam) => Optimizer::Adam(Adam::new(adam.betas, adam.eps)),
            Self::AdamW(adam) => Optimizer::Adam(Adam::decoupled(adam.betas, adam.eps)),
        }
    }
}
