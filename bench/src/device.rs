//! Device and precision of this process, selected once at startup.

use std::sync::OnceLock;

use candle_core::Device;
use stillhouse_trainer::{DeviceArg, PrecisionArg, gpu_memory_in_use, open_device};

struct Selected {
    device: Device,
    precision: PrecisionArg,
    /// Bytes of GPU memory in use before this process allocated any.
    baseline: u64,
}

static SELECTED: OnceLock<Selected> = OnceLock::new();

/// Selects the first GPU for the whole process; the default is the CPU in f32.
///
/// # Errors
/// The build has no CUDA support, or there is no GPU.
pub(crate) fn select_gpu(precision: PrecisionArg) -> anyhow::Result<()> {
    let device = open_device(DeviceArg::Cuda, precision)?;
    let baseline = gpu_memory_in_use(&device).unwrap_or(0);
    let _ = SELECTED.set(Selected { device, precision, baseline }); // called once
    Ok(())
}

/// Returns the device of the process.
pub(crate) fn device() -> Device {
    SELECTED.get().map_or(Device::Cpu, |selected| selected.device.clone())
}

/// Returns the precision of the networks.
pub(crate) fn precision() -> stillhouse_ops::Precision {
    SELECTED.get().map_or(stillhouse_ops::Precision::Full, |selected| selected.precision.of_networks())
}

/// Returns the growth of GPU memory in use since [`select_gpu`] in KiB; `None` on the CPU.
pub(crate) fn gpu_memory_used() -> Option<f64> {
    let selected = SELECTED.get()?;
    Some(gpu_memory_in_use(&selected.device)?.saturating_sub(selected.baseline) as f64 / 1024.0)
}
