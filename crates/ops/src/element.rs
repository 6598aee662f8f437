//! The element types of the tape and the choice of the instruction set.

use std::sync::OnceLock;

use candle_core::{CpuStorage, DType, Tensor};

use crate::kernels::special;
use crate::simd::{Avx2, Avx512, Kernel, Scalar};

/// Instruction set that the `f32` kernels run on.
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

/// The instruction set in use: the best that the machine has, or the lower one that the
/// environment variable `STILLHOUSE_ISA` names (`scalar`, `avx2`, `avx512`). Read once.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let wanted = match std::env::var("STILLHOUSE_ISA").as_deref() {
            Ok("scalar") => Isa::Scalar,
            Ok("avx2") => Isa::Avx2,
            _ => Isa::Avx512,
        };
        wanted.min(best())
    })
}

/// Calls a generic method by the element type of a tape or a store.
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

/// `f32` or `f64`: what a tape can compute in.
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
    /// candle's name of the type.
    const TYPE: DType;
    /// Rounds from f64.
    fn of(x: f64) -> Self;
    /// Widens to f64.
    fn wide(self) -> f64;
    /// Square root.
    fn root(self) -> Self;
    /// e to this power.
    fn power_of_e(self) -> Self;
    /// Distribution function and density of the standard normal.
    fn normal(self) -> (Self, Self);
    /// The values of a CPU storage of this type.
    fn slice(storage: &CpuStorage) -> candle_core::Result<&[Self]>;
    /// The values of a CPU storage of this type, to change.
    fn slice_mut(storage: &mut CpuStorage) -> candle_core::Result<&mut [Self]>;
    /// Runs a kernel on the instruction set in use (`f64`: always the plain simd).
    fn run<K: Kernel<Self>>(kernel: K) -> K::Out;
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const TYPE: DType = DType::F32;
    fn of(x: f64) -> Self {
        x as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn power_of_e(self) -> Self {
        special::exp32(self)
    }
    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        special::normal32(self)
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
    fn of(x: f64) -> Self {
        x
    }
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    fn power_of_e(self) -> Self {
        self.exp()
    }
    fn normal(self) -> (Self, Self) {
        special::normal64(self)
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

/// The values of a contiguous CPU tensor, without a copy where it is contiguous.
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
