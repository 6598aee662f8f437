//! NVIDIA GPUs: convolution, batch norm and pooling by cuDNN, optimizer updates by own kernels. All other
//! operations are composed of candle's.
//!
//! Maps are `[B, C, H, W]`, contiguous, f32, f64 or bf16. Operations that cuDNN does not support in bf16
//! run in f32 between two casts. Each convolution uses the fastest algorithm that cuDNN declares
//! deterministic, benchmarked once per shape; only that first pass synchronizes with the GPU.

#![allow(unsafe_code)]

mod conv;
mod descriptors;
mod norm;
mod optim;
mod pool;

pub(crate) use conv::conv2d;
pub(crate) use norm::batch_norm;
pub(crate) use optim::{adam, sgd};
pub(crate) use pool::max_pool;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::{CudnnDataType, result, sys};
use candle_core::cuda_backend::cudarc::driver::{
    CudaModule, CudaSlice, CudaView, DeviceRepr, ValidAsZeroBits,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};

use half::bf16;

static TF32: AtomicBool = AtomicBool::new(false);

/// Permits TF32 (10 bits of mantissa, accumulation in f32) for convolutions and matrix products of f32 on
/// GPUs that support it. Off by default.
pub fn allow_tf32(on: bool) {
    TF32.store(on, Ordering::Relaxed);
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(on);
}

/// Returns the math type of convolutions.
fn math<T: Number>() -> sys::cudnnMathType_t {
    match T::TYPE {
        DType::BF16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        _ if TF32.load(Ordering::Relaxed) => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
        _ => sys::cudnnMathType_t::CUDNN_FMA_MATH,
    }
}

/// Element types of maps.
trait Number: CudaDType + CudnnDataType + DeviceRepr + ValidAsZeroBits {
    /// The corresponding candle dtype.
    const TYPE: DType;
    /// Type of accumulators, scaling factors and batch norm parameters.
    type Wide: Number;
    const ONE: Self::Wide;
    const ZERO: Self::Wide;
}

macro_rules! number {
    ($type:ty, $name:ident, $wide:ty) => {
        impl Number for $type {
            const TYPE: DType = DType::$name;
            type Wide = $wide;
            const ONE: $wide = 1.0;
            const ZERO: $wide = 0.0;
        }
    };
}
number!(f32, F32, f32);
number!(f64, F64, f64);
number!(bf16, BF16, f32);

/// Returns whether the status means that cuDNN does not support an operation in bf16.
fn lacks<T: Number>(status: sys::cudnnStatus_t) -> bool {
    // Since cuDNN 9 the thousands encode the category: 2 bad parameter, 3 not supported.
    T::TYPE == DType::BF16 && matches!(status as u32 / 1000, 2 | 3)
}

/// Per-thread state of a GPU. The handle is leaked on purpose: a thread-local destructor could run after
/// the driver has shut down.
struct Context {
    handle: sys::cudnnHandle_t,
    workspace: Option<CudaSlice<u8>>,
    algorithms: HashMap<conv::Key, Option<conv::Algorithm>>,
    /// Whether cuDNN rejected batch norm in bf16.
    norm_in_f32: bool,
    /// Compiled optimizer kernels.
    updates: Option<Arc<CudaModule>>,
}

thread_local! {
    static CONTEXTS: RefCell<HashMap<DeviceId, Context>> = RefCell::default();
}

impl Context {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread()?;
        let handle = result::create_handle()?;
        // SAFETY: the handle has just been created; candle keeps the stream as long as the device.
        unsafe { result::set_stream(handle, stream.cu_stream() as *mut _) }?;
        Ok(Self { handle, workspace: None, algorithms: HashMap::new(), norm_in_f32: false, updates: None })
    }

    /// Runs `f` with the calling thread's context of a GPU.
    fn with<R>(device: &CudaDevice, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        CONTEXTS.with(|contexts| {
            let mut contexts = contexts.try_borrow_mut().map_err(candle_core::Error::wrap)?;
            let context = match contexts.entry(device.id()) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => new.insert(Self::new(device)?),
            };
            f(context)
        })
    }

    /// Returns a workspace of at least `bytes`, shared by all calls, which run in stream order.
    fn workspace(&mut self, bytes: usize, device: &CudaDevice) -> Result<&mut CudaSlice<u8>> {
        let enough = self.workspace.take().filter(|space| space.len() >= bytes);
        let space = match enough {
            Some(space) => space,
            // SAFETY: cuDNN writes a workspace before it reads it.
            None => unsafe { device.alloc::<u8>(bytes.max(1)) }?,
        };
        Ok(self.workspace.insert(space))
    }
}

/// Returns the values of a contiguous argument.
fn view<'a, T: Number>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous argument")
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// Allocates uninitialized device memory.
fn fresh<T: Number>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every caller passes it to a cuDNN call that writes all of it.
    unsafe { device.alloc::<T>(len) }
}

/// Wraps device memory as a tensor without a graph.
fn tensor<T: Number>(values: CudaSlice<T>, device: &CudaDevice, shape: impl Into<Shape>) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(values, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// Runs `f` on the values of a contiguous GPU tensor.
fn with_view<T: Number, R>(
    t: &Tensor,
    f: impl FnOnce(CudaView<'_, T>, &CudaDevice) -> Result<R>,
) -> Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { candle_core::bail!("expected a GPU tensor") };
    f(view::<T>(storage, layout)?, storage.device())
}

/// Returns a scaling factor as cuDNN reads it.
fn factor<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

/// Converts sizes for cuDNN.
fn sizes<const N: usize>(dims: [usize; N]) -> Result<[i32; N]> {
    let mut out = [0; N];
    for (o, d) in out.iter_mut().zip(dims) {
        *o = i32::try_from(d).map_err(candle_core::Error::wrap)?;
    }
    Ok(out)
}

/// Binds `$ptr` to a device pointer for reading.
macro_rules! read {
    ($ptr:ident = $slice:expr, $stream:expr) => {
        let ($ptr, _guard) = DevicePtr::device_ptr($slice, $stream);
        let $ptr = $ptr as *const c_void;
    };
}
/// Binds a device pointer for writing.
macro_rules! write_to {
    ($ptr:ident = $slice:expr, $stream:expr) => {
        let ($ptr, _guard) = DevicePtrMut::device_ptr_mut($slice, $stream);
        let $ptr = $ptr as *mut c_void;
    };
}
use {read, write_to};
