//! In-place optimizer updates: one kernel launch per parameter.
//!
//! The source is compiled by NVRTC on the first update of a thread.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaViewMut, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::compile_ptx;
use candle_core::{CpuStorage, CudaStorage, DType, Error, InplaceOp1, Layout, Result, Tensor};

use super::{Context, Number, with_view};
use crate::element::Float;
use crate::kernels::optim::{AdamStep, SgdStep};

const SOURCE: &str = include_str!("optim.cu");
/// Threads per block.
const BLOCK: u32 = 256;

/// SGD; see [`crate::kernels::optim::sgd`]. Parameter, gradient and momentum buffer have one shape, are
/// contiguous and on one GPU.
pub(crate) fn sgd(p: &Tensor, g: &Tensor, m: &Tensor, step: SgdStep) -> crate::Result<()> {
    check("sgd", p, &[g, m])?;
    Ok(match p.dtype() {
        DType::F64 => sgd_of::<f64>("sgd_f64", p, g, m, step),
        _ => sgd_of::<f32>("sgd_f32", p, g, m, step),
    }?)
}

/// Adam; see [`crate::kernels::optim::adam`]. Same requirements as [`sgd`].
pub(crate) fn adam(p: &Tensor, g: &Tensor, [m, v]: [&Tensor; 2], step: AdamStep) -> crate::Result<()> {
    check("adam", p, &[g, m, v])?;
    Ok(match p.dtype() {
        DType::F64 => adam_of::<f64>("adam_f64", p, g, [m, v], step),
        _ => adam_of::<f32>("adam_f32", p, g, [m, v], step),
    }?)
}

/// Checks lengths: the kernels rely on that of the parameter.
fn check(op: &'static str, p: &Tensor, others: &[&Tensor]) -> crate::Result<()> {
    match others.iter().find(|t| t.shape() != p.shape()) {
        Some(t) => Err(crate::Error::shape(op, format!("values of shape {:?}", p.dims()), t.dims())),
        None => Ok(()),
    }
}

fn sgd_of<T: Number + Float>(name: &str, p: &Tensor, g: &Tensor, m: &Tensor, s: SgdStep) -> Result<()> {
    let [lr, momentum, decay] = [s.lr, s.momentum, s.weight_decay].map(<T as Float>::narrow);
    let [nesterov, first] = [s.nesterov, s.first].map(i32::from);
    change::<T>(p, |mut p, device| {
        change::<T>(m, |mut m, _| {
            with_view::<T, _>(g, |g, _| {
                let (kernel, stream, n) = (kernel(name, device)?, device.cuda_stream(), p.len() as u64);
                let mut launch = stream.launch_builder(&kernel);
                launch.arg(&mut p).arg(&g).arg(&mut m).arg(&n);
                launch.arg(&lr).arg(&momentum).arg(&decay).arg(&nesterov).arg(&first);
                // SAFETY: arguments match the kernel's signature; the slices have `n` values, which bound
                // all accesses, and two written slices never alias.
                unsafe { launch.launch(grid(n)?) }?;
                Ok(())
            })
        })
    })
}

fn adam_of<T: Number + Float>(
    name: &str,
    p: &Tensor,
    g: &Tensor,
    [m, v]: [&Tensor; 2],
    s: AdamStep,
) -> Result<()> {
    let [keep, keep2] = s.betas;
    let (decay, shrink) =
        if s.decoupled { (0.0, 1.0 - s.lr * s.weight_decay) } else { (s.weight_decay, 1.0) };
    let over = 1.0 / s.correction[1].sqrt();
    let lr = s.lr / s.correction[0];
    let factors = [lr, keep, 1.0 - keep, keep2, 1.0 - keep2, over, s.eps, decay, shrink];
    let factors = factors.map(<T as Float>::narrow);
    change::<T>(p, |mut p, device| {
        change::<T>(m, |mut m, _| {
            change::<T>(v, |mut v, _| {
                with_view::<T, _>(g, |g, _| {
                    let (kernel, stream, n) = (kernel(name, device)?, device.cuda_stream(), p.len() as u64);
                    let mut launch = stream.launch_builder(&kernel);
                    launch.arg(&mut p).arg(&g).arg(&mut m).arg(&mut v).arg(&n);
                    for factor in &factors {
                        launch.arg(factor);
                    }
                    // SAFETY: see `sgd_of`.
                    unsafe { launch.launch(grid(n)?) }?;
                    Ok(())
                })
            })
        })
    })
}

/// Returns the launch configuration with one thread per value.
fn grid(n: u64) -> Result<LaunchConfig> {
    let blocks = u32::try_from(n.div_ceil(u64::from(BLOCK))).map_err(Error::wrap)?;
    Ok(LaunchConfig { grid_dim: (blocks.max(1), 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 })
}

/// Loads a compiled kernel on the GPU.
fn kernel(name: &str, device: &CudaDevice) -> Result<CudaFunction> {
    let module = Context::with(device, |context| match &context.updates {
        Some(module) => Ok(Arc::clone(module)),
        None => {
            let module: Arc<CudaModule> =
                device.cuda_stream().context().load_module(compile_ptx(SOURCE).map_err(Error::wrap)?)?;
            Ok(Arc::clone(context.updates.insert(module)))
        }
    })?;
    Ok(module.load_function(name)?)
}

/// Runs `f` on the values of a contiguous GPU tensor, in place.
fn change<T: Number>(
    t: &Tensor,
    f: impl FnOnce(CudaViewMut<'_, T>, &CudaDevice) -> Result<()>,
) -> Result<()> {
    struct Change<T, F>(Mutex<Option<F>>, PhantomData<fn(T)>);
    impl<T: Number, F: FnOnce(CudaViewMut<'_, T>, &CudaDevice) -> Result<()>> InplaceOp1 for Change<T, F> {
        fn name(&self) -> &'static str {
            "update"
        }
        fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
            candle_core::bail!("optimizer update: requires a GPU")
        }
        fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
            let Some((start, end)) = layout.contiguous_offsets() else {
                candle_core::bail!("in-place update requires contiguous values")
            };
            let device = storage.device().clone();
            let f = self.0.lock().ok().and_then(|mut f| f.take());
            let values = storage.as_cuda_slice_mut::<T>()?.try_slice_mut(start..end);
            match (f, values) {
                (Some(f), Some(values)) => f(values, &device),
                _ => candle_core::bail!("optimizer update: tensor out of bounds"),
            }
        }
    }
    t.inplace_op1(&Change(Mutex::new(Some(f)), PhantomData))
}
