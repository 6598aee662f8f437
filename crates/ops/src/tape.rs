//! The tape.

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, gradients recorded.
    Train,
    /// Running statistics, gradients recorded and parameters trained: for weights whose statistics
    /// are all they have.
    TrainFrozenBn,
    /// Running statistics, nothing recorded.
    Eval,
    /// Running statistics, gradients of the taps recorded (Grad-CAM).
    EvalRecord,
    /// As `Eval`, with batch norm folded into the weights once.
    Frozen,
}

/// The tape.
#[derive(Debug)]
pub struct Tape {}
