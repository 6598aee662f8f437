//! Element types of the tape and selection of the instruction set.

use std::sync::OnceLock;

use candle_core::{CpuStorage, DType, Tensor};

use crate::kernels::math;
use crate::simd::{Avx2, Avx512, Kernel, Scalar};

/// Instruction set of the `f32` kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// No explicit vectors.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F.
    Avx512,
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

fn best() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
    }
    Isa::Scalar
}

/// Returns the instruction set in use: the best one of the machine, or a lower one named by the
/// environment variable `STILLHOUSE_ISA` (`scalar`, `avx2`, `avx512`). Read once.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let requested = match std::env::var("STILLHOUSE_ISA").as_deref() {
            Ok("scalar") => Isa::Scalar,
            Ok("avx2") => Isa::Avx2,
            _ => Isa::Avx512,
        };
        requested.min(best())
    })
}

/// Dispatches a generic call on the element type of a tape or a parameter store.
macro_rules! dispatch_dtype {
    ($of:expr, $T:ident => $call:expr) => {
        match $of.dtype() {
            candle_core::DType::F64 => {
                type $T = f64;
                $call
            }
            _ => {
                type $T = f32;
                $call
            }
        }
    };
}
pub(crate) use dispatch_dtype;

/// Element type of a tape: `f32` or `f64`.
pub(crate) trait Float:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + std::fmt::Debug
    + std::iter::Sum
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::SubAssign
    + std::ops::MulAssign
    + candle_core::WithDType
    + 'static
{
    /// Zero.
    const ZERO: Self;
    /// The corresponding candle dtype.
    const TYPE: DType;
    /// Converts from f64, rounding to nearest.
    fn narrow(x: f64) -> Self;
    /// Converts to f64.
    fn widen(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Exponential function; a vectorizable approximation for `f32`.
    fn fast_exp(self) -> Self;
    /// Cumulative distribution function and density of the standard normal.
    fn normal_cdf_pdf(self) -> (Self, Self);
    /// Returns the values of a CPU storage of this type.
    fn slice(storage: &CpuStorage) -> candle_core::Result<&[Self]>;
    /// Returns the values of a CPU storage of this type for writing.
    fn slice_mut(storage: &mut CpuStorage) -> candle_core::Result<&mut [Self]>;
    /// Runs a kernel on the instruction set in use (`f64`: always [`Scalar`]).
    fn run<K: Kernel<Self>>(kernel: K) -> K::Out;
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const TYPE: DType = DType::F32;
    fn narrow(x: f64) -> Self {
        x as f32
    }
    fn widen(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn fast_exp(self) -> Self {
        math::exp32(self)
    }
    #[inline(always)]
    fn normal_cdf_pdf(self) -> (Self, Self) {
        math::normal32(self)
    }
    fn slice(storage: &CpuStorage) -> candle_core::Result<&[Self]> {
        storage.as_slice::<f32>()
    }
    fn slice_mut(storage: &mut CpuStorage) -> candle_core::Result<&mut [Self]> {
        match storage {
            CpuStorage::F32(v) => Ok(v),
            _ => candle_core::bail!("expected f32 values"),
        }
    }
    fn run<K: Kernel<Self>>(kernel: K) -> K::Out {
        match isa() {
            Isa::Scalar => kernel.run::<Scalar<f32>>(),
            Isa::Avx2 => Avx2::run(kernel),
            Isa::Avx512 => Avx512::run(kernel),
        }
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const TYPE: DType = DType::F64;
    fn narrow(x: f64) -> Self {
        x
    }
    fn widen(self) -> f64 {
        self
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn fast_exp(self) -> Self {
        self.exp()
    }
    fn normal_cdf_pdf(self) -> (Self, Self) {
        math::normal64(self)
    }
    fn slice(storage: &CpuStorage) -> candle_core::Result<&[Self]> {
        storage.as_slice::<f64>()
    }
    fn slice_mut(storage: &mut CpuStorage) -> candle_core::Result<&mut [Self]> {
        match storage {
            CpuStorage::F64(v) => Ok(v),
            _ => candle_core::bail!("expected f64 values"),
        }
    }
    fn run<K: Kernel<Self>>(kernel: K) -> K::Out {
        kernel.run::<Scalar<f64>>()
    }
}

/// Calls `f` with the values of a CPU tensor; copies them only if the tensor is not contiguous.
pub(crate) fn with_values<T: Float, R>(t: &Tensor, f: impl FnOnce(&[T]) -> R) -> candle_core::Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("expected a tensor on the CPU")
    };
    let values = T::slice(storage)?;
    let start = layout.start_offset();
    Ok(f(&values[start..start + layout.shape().elem_count()]))
}
