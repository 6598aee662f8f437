//! Heads: layers after the last feature map of a backbone.

mod classifier;

pub(crate) use classifier::{Classifier, Neck};
