//! Activation functions that are fused into convolutions.

/// Activation function of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Identity.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

impl Activation {
    /// Returns the open interval of outputs on which the derivative is one.
    pub(crate) fn bounds(self) -> Option<(f64, f64)> {
        match self {
            Self::None => None,
            Self::Relu => Some((0.0, f64::INFINITY)),
            Self::Relu6 => Some((0.0, 6.0)),
        }
    }
}
