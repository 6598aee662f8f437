//! Selection of the device and its numeric precision.

use candle_core::Device;
use stillhouse_ops::EngineKind;

use crate::{Error, Result};

/// Value of `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum DeviceArg {
    /// CPU
    Cpu,
    /// First NVIDIA GPU
    Cuda,
}

/// Value of `--precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum PrecisionArg {
    /// 32-bit floats
    F32,
    /// 32-bit floats, matrix products in TF32 (10-bit mantissa; GPU only)
    Tf32,
    /// Feature maps in bf16; weights, statistics, losses and optimizer state in f32 (GPU only)
    Bf16,
}

impl PrecisionArg {
    /// Returns the name as given on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// Returns the precision of networks.
    pub fn of_networks(self) -> stillhouse_ops::Precision {
        match self {
            Self::F32 | Self::Tf32 => stillhouse_ops::Precision::Full,
            Self::Bf16 => stillhouse_ops::Precision::Bf16,
        }
    }
}

/// Opens a device. TF32 is switched on or off for the whole process.
///
/// # Errors
/// If there is no GPU, the build has no CUDA support, or the device does not support the precision.
pub fn open_device(device: DeviceArg, precision: PrecisionArg) -> Result<Device> {
    let requires_gpu = |message: &str| {
        let hint = "omit --precision, or select a GPU with --device cuda".to_string();
        Err(Error::Device { message: message.to_string(), hint })
    };
    match (device, precision) {
        (DeviceArg::Cpu, PrecisionArg::Tf32) => {
            requires_gpu("--precision tf32 requires a GPU; the device is the CPU")
        }
        (DeviceArg::Cpu, PrecisionArg::Bf16) if !cpu_uses_graph_engine() => {
            requires_gpu("--precision bf16 requires a GPU; CPU training supports f32 only")
        }
        (DeviceArg::Cpu, _) => Ok(Device::Cpu),
        (DeviceArg::Cuda, _) => open_gpu(precision),
    }
}

/// Returns whether networks on the CPU run on candle's graph (`STILLHOUSE_ENGINE=graph`).
pub fn cpu_uses_graph_engine() -> bool {
    matches!(EngineKind::for_device(&Device::Cpu), Ok(EngineKind::Graph))
}

#[cfg(feature = "cuda")]
fn open_gpu(precision: PrecisionArg) -> Result<Device> {
    let device = Device::new_cuda(0).map_err(|e| {
        // candle may append a backtrace after the first line.
        let e = e.to_string();
        let message = format!("no usable CUDA device: {}", e.lines().next().unwrap_or_default());
        Error::Device { message, hint: "check `nvidia-smi`, or run on the CPU with --device cpu".into() }
    })?;
    stillhouse_ops::allow_tf32(precision == PrecisionArg::Tf32);
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_: PrecisionArg) -> Result<Device> {
    let message = "this build has no CUDA support".to_string();
    let hint = "run on the CPU with --device cpu, or build with --features cuda (docs/cuda.md)".into();
    Err(Error::Device { message, hint })
}

/// Returns the name of a GPU as the driver reports it; `None` on the CPU.
pub fn gpu_name(device: &Device) -> Option<String> {
    if device.is_cpu() {
        return None;
    }
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device
        && let Ok(name) = gpu.cuda_stream().context().name()
    {
        return Some(name);
    }
    Some("unknown GPU".to_string())
}

/// Returns the bytes of GPU memory in use by all processes; `None` on the CPU.
pub fn gpu_memory_in_use(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        let (free, total) = gpu.cuda_stream().context().mem_get_info().ok()?;
        return Some(total.saturating_sub(free) as u64);
    }
    let _ = device;
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reduced_precision_requires_a_gpu() {
        assert!(open_device(DeviceArg::Cpu, PrecisionArg::F32).unwrap().is_cpu());
        let error = open_device(DeviceArg::Cpu, PrecisionArg::Tf32).unwrap_err().to_string();
        assert!(error.contains("requires a GPU") && error.contains("hint: "), "{error}");
    }
}
