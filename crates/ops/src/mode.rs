//! How a network runs: mode, engine, precision.

use candle_core::{DType, Device};

use crate::{Error, Result};

/// Mode of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics; gradients recorded; running statistics updated.
    Train,
    /// Running statistics; gradients recorded. For fine-tuning with frozen batch norm.
    TrainFrozenBn,
    /// Running statistics; nothing recorded.
    Eval,
    /// Running statistics; gradients of features recorded (Grad-CAM), none of parameters.
    EvalWithGrad,
    /// Like `Eval` for constant weights: batch norm is folded once.
    Inference,
}

impl Mode {
    /// Returns whether the forward pass is recorded.
    pub fn records(self) -> bool {
        matches!(self, Self::Train | Self::TrainFrozenBn | Self::EvalWithGrad)
    }

    /// Returns whether parameters get gradients and dropout is active.
    pub fn trains(self) -> bool {
        matches!(self, Self::Train | Self::TrainFrozenBn)
    }
}

/// Execution engine of the networks of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// The tape's own CPU kernels.
    Kernels,
    /// candle's graph, on any device; slower on the CPU, where it serves as a reference.
    Graph,
}

impl EngineKind {
    /// Returns the default engine: the graph on a GPU; on the CPU the kernels, unless
    /// `STILLHOUSE_ENGINE=kernels|graph` overrides it.
    ///
    /// # Errors
    /// An unknown value of `STILLHOUSE_ENGINE`.
    pub fn for_device(device: &Device) -> Result<Self> {
        if !device.is_cpu() {
            return Ok(Self::Graph);
        }
        match std::env::var("STILLHOUSE_ENGINE").as_deref() {
            Ok("graph") => Ok(Self::Graph),
            Ok("kernels" | "") | Err(_) => Ok(Self::Kernels),
            Ok(other) => {
                let what =
                    format!("invalid STILLHOUSE_ENGINE: expected `kernels` or `graph`, found `{other}`");
                Err(Error::usage("EngineKind::for_device", what))
            }
        }
    }
}

/// Numeric precision of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The type of the parameters.
    #[default]
    Full,
    /// Feature maps and their gradients in bf16, on the graph engine only.
    ///
    /// Weights are rounded to bf16 where they are multiplied with a map. Parameters, their gradients,
    /// running and batch statistics, reductions over pixels or channels, and extracted features are f32.
    Bf16,
}

impl Precision {
    /// Checks that a network of `dtype` parameters can run in this precision.
    pub(crate) fn check(self, dtype: DType, engine: EngineKind) -> Result<()> {
        match self {
            Self::Full => Ok(()),
            Self::Bf16 if dtype != DType::F32 => {
                Err(Error::usage("bf16", format!("expected f32 parameters, found {dtype:?}")))
            }
            Self::Bf16 if engine == EngineKind::Kernels => {
                Err(Error::usage("bf16", "requires a GPU; the CPU kernels support f32 only"))
            }
            Self::Bf16 => Ok(()),
        }
    }
}
