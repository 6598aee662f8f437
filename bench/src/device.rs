//! Device and precision of this process, set once at startup.

use std::sync::OnceLock;

use candle_core::Device;
use clap::ValueEnum;
use stillhouse_core::Tape;

/// Value of `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// CPU
    Cpu,
    /// First NVIDIA GPU
    Cuda,
}

/// Value of `--precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    F32,
    /// f32 with products rounded to 10 bits of mantissa
    Tf32,
    Bf16,
}

impl Precision {
    /// Returns the name as given on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

struct Selected {
    device: Device,
    precision: Precision,
    /// Bytes of GPU memory in use before this process allocated any.
    baseline: u64,
}

static SELECTED: OnceLock<Selected> = OnceLock::new();

/// Selects the first GPU for the whole process; the default is the CPU in f32.
///
/// # Errors
/// The build has no CUDA support, or there is no GPU.
pub(crate) fn open_gpu(precision: Precision) -> anyhow::Result<()> {
    let device = first_gpu()?;
    #[cfg(feature = "cuda")]
    stillhouse_ops::allow_tf32(precision == Precision::Tf32);
    let baseline = memory_in_use(&device).unwrap_or(0);
    let _ = SELECTED.set(Selected { device, precision, baseline }); // called once
    Ok(())
}

/// Opens the first GPU.
#[cfg(feature = "cuda")]
pub(crate) fn first_gpu() -> anyhow::Result<Device> {
    Device::new_cuda(0).map_err(|e| {
        // candle may append a backtrace after the first line.
        let e = e.to_string();
        anyhow::anyhow!(
            "cannot open a CUDA device: {}\n\nhint: check `nvidia-smi`, or run without `--device cuda`",
            e.lines().next().unwrap_or_default()
        )
    })
}

/// Opens the first GPU.
#[cfg(not(feature = "cuda"))]
pub(crate) fn first_gpu() -> anyhow::Result<Device> {
    anyhow::bail!(
        "this build has no CUDA support\n\nhint: on a machine with an NVIDIA GPU, the CUDA toolkit and cuDNN, \
         `make bench ARGS=\"--device cuda\"` builds with `--features cuda` (docs/cuda.md)"
    )
}

/// Returns the device of the process.
pub(crate) fn device() -> Device {
    SELECTED.get().map_or(Device::Cpu, |selected| selected.device.clone())
}

/// Sets the precision of a tape on the GPU.
///
/// # Errors
/// The network or the build does not support bf16.
pub(crate) fn set_precision(tape: &mut Tape) -> anyhow::Result<()> {
    if SELECTED.get().is_some_and(|selected| selected.precision == Precision::Bf16) {
        tape.set_precision(stillhouse_ops::Precision::Bf16)?;
    }
    Ok(())
}

/// Returns the growth of GPU memory in use since [`open_gpu`] in KiB; `None` on the CPU.
pub(crate) fn gpu_memory_used() -> Option<f64> {
    let selected = SELECTED.get()?;
    Some(memory_in_use(&selected.device)?.saturating_sub(selected.baseline) as f64 / 1024.0)
}

/// Returns the bytes of GPU memory in use by all processes.
fn memory_in_use(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        let (free, total) = gpu.cuda_stream().context().mem_get_info().ok()?;
        return Some(total.saturating_sub(free) as u64);
    }
    let _ = device;
    None
}
