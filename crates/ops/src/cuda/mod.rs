//! Convolution, batch norm and pooling on an NVIDIA card, by cuDNN; optimizers, by a kernel of their own.
//! What is not here is composed of candle's operations.
//!
//! Maps are `[B, C, H, W]`, contiguous, f32, f64 or bf16. What cuDNN says that it cannot do in bf16 is
//! done in f32 between two casts. Every algorithm of convolution is the fastest that
//! cuDNN calls deterministic, measured once for every shape: that pass waits for the card, no other does.

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

/// Whether products of f32 may be rounded to TF32 (10 bits of mantissa, sums in f32) on cards that
/// have it, in convolutions and matrix products. Off at first.
pub fn allow_tf32(on: bool) {
    TF32.store(on, Ordering::Relaxed);
    candle_core::cuda_backend::set_gemm_reduced_precision_f32(on);
}

/// How convolutions may multiply.
fn math<T: Number>() -> sys::cudnnMathType_t {
    match T::TYPE {
        DType::BF16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        _ if TF32.load(Ordering::Relaxed) => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
        _ => sys::cudnnMathType_t::CUDNN_FMA_MATH,
    }
}

/// The types of maps.
trait Number: CudaDType + CudnnDataType + DeviceRepr + ValidAsZeroBits {
    /// candle's name of the type.
    const TYPE: DType;
    /// What sums, factors and the parameters of batch norm are.
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

/// Whether cuDNN does not do a thing in bf16 that it may do in f32.
fn lacks<T: Number>(status: sys::cudnnStatus_t) -> bool {
    // Since its version 9 the thousands are the kind: 2 wrong arguments, 3 not supported.
    T::TYPE == DType::BF16 && matches!(status as u32 / 1000, 2 | 3)
}

/// What a thread keeps for a card. The handle lives as long as the thread's process: destroying it in
/// a destructor of the thread could come after the driver's own end.
struct Context {
    handle: sys::cudnnHandle_t,
    workspace: Option<CudaSlice<u8>>,
    algorithms: HashMap<conv::Key, Option<conv::Algorithm>>,
    /// Batch norm of bf16 has been refused.
    norm_in_f32: bool,
    /// The updates of optimizers, compiled.
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
        // SAFETY: the handle has just been made; candle keeps the stream as long as the device.
        unsafe { result::set_stream(handle, stream.cu_stream() as *mut _) }?;
        Ok(Self { handle, workspace: None, algorithms: HashMap::new(), norm_in_f32: false, updates: None })
    }

    /// Runs `f` with the context of a card on this thread.
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

    /// At least that many bytes; the same ones for every call, which run one after the other.
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

/// The values of a contiguous argument.
fn view<'a, T: Number>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous argument")
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// New memory on the card, not yet written.
fn fresh<T: Number>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every caller has all of it written by the next call of cuDNN.
    unsafe { device.alloc::<T>(len) }
}

/// A tensor outside of the graph.
fn tensor<T: Number>(values: CudaSlice<T>, device: &CudaDevice, shape: impl Into<Shape>) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(values, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// Runs `f` on the values of a contiguous tensor of a card.
fn with_view<T: Number, R>(
    t: &Tensor,
    f: impl FnOnce(CudaView<'_, T>, &CudaDevice) -> Result<R>,
) -> Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { candle_core::bail!("expected a tensor on a card") };
    f(view::<T>(storage, layout)?, storage.device())
}

/// A factor as cuDNN reads it.
fn factor<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

/// Sizes as cuDNN takes them.
fn sizes<const N: usize>(dims: [usize; N]) -> Result<[i32; N]> {
    let mut out = [0; N];
    for (o, d) in out.iter_mut().zip(dims) {
        *o = i32::try_from(d).map_err(candle_core::Error::wrap)?;
    }
    Ok(out)
}

/// Where values lie on the card, to read, while `$ptr` is in use.
macro_rules! read {
    ($ptr:ident = $slice:expr, $stream:expr) => {
        let ($ptr, _guard) = DevicePtr::device_ptr($slice, $stream);
        let $ptr = $ptr as *const c_void;
    };
}
/// The same to write.
macro_rules! write_to {
    ($ptr:ident = $slice:expr, $stream:expr) => {
        let ($ptr, _guard) = DevicePtrMut::device_ptr_mut($slice, $stream);
        let $ptr = $ptr as *mut c_void;
    };
}
use {read, write_to};
