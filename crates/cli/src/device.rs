//! Device and precision of the program, selected once at startup.

use std::sync::OnceLock;

use candle_core::Device;
use clap::ValueEnum;
use stillhouse_ops::Engine;

use crate::error::CliError;

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
    /// 32-bit floats
    F32,
    /// 32-bit floats, matrix products in TF32 (10-bit mantissa; GPU only)
    Tf32,
    /// Feature maps in bf16; weights, statistics, losses and optimizer state in f32 (GPU only)
    Bf16,
}

struct Selected {
    device: Device,
    precision: Precision,
}

static SELECTED: OnceLock<Selected> = OnceLock::new();

/// Opens the device.
pub(crate) fn select(device: DeviceArg, precision: Precision) -> Result<(), CliError> {
    let device = match (device, precision) {
        (DeviceArg::Cpu, Precision::Tf32) => {
            return Err(CliError::usage("--precision tf32 requires a GPU; the device is the CPU")
                .hint("omit --precision, or select a GPU with --device cuda"));
        }
        (DeviceArg::Cpu, Precision::Bf16) if !uses_graph_engine() => {
            return Err(CliError::usage("--precision bf16 requires a GPU; CPU training supports f32 only")
                .hint("omit --precision, or select a GPU with --device cuda"));
        }
        (DeviceArg::Cpu, _) => Device::Cpu,
        (DeviceArg::Cuda, _) => open_gpu(precision)?,
    };
    // The program selects once; a second call would be ignored.
    let _ = SELECTED.set(Selected { device, precision });
    Ok(())
}

/// Returns whether networks on the CPU run on candle's graph (`STILLHOUSE_ENGINE=graph`).
fn uses_graph_engine() -> bool {
    matches!(Engine::for_device(&Device::Cpu), Ok(Engine::Graph))
}

#[cfg(feature = "cuda")]
fn open_gpu(precision: Precision) -> Result<Device, CliError> {
    let device = Device::new_cuda(0).map_err(|e| {
        // candle may append a backtrace after the first line.
        let e = e.to_string();
        CliError::usage(format!("no usable CUDA device: {}", e.lines().next().unwrap_or_default()))
            .hint("check `nvidia-smi`, or run on the CPU with --device cpu")
    })?;
    stillhouse_ops::allow_tf32(precision == Precision::Tf32);
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(_: Precision) -> Result<Device, CliError> {
    Err(CliError::usage("this build has no CUDA support")
        .hint("run on the CPU with --device cpu, or build with --features cuda"))
}

/// Returns the device of the program.
pub(crate) fn device() -> Device {
    SELECTED.get().map_or(Device::Cpu, |selected| selected.device.clone())
}

/// Returns the precision of the networks.
pub(crate) fn precision() -> stillhouse_ops::Precision {
    match SELECTED.get().map(|selected| selected.precision) {
        Some(Precision::Bf16) => stillhouse_ops::Precision::Bf16,
        _ => stillhouse_ops::Precision::Full,
    }
}

/// Returns the precision if it is not f32.
pub(crate) fn reduced_precision() -> Option<&'static str> {
    match SELECTED.get()?.precision {
        Precision::F32 => None,
        Precision::Tf32 => Some("TF32"),
        Precision::Bf16 => Some("bf16"),
    }
}

/// Describes the device, with everything that influences the numbers, for captions.
pub(crate) fn describe(threads: usize) -> String {
    match gpu() {
        Some(gpu) => gpu,
        None => {
            let engine = if uses_graph_engine() { ", candle's graph" } else { "" };
            let precision = reduced_precision().map(|name| format!(", {name}")).unwrap_or_default();
            format!("CPU, {threads} threads, {}{engine}{precision}", stillhouse_ops::isa())
        }
    }
}

/// Describes the GPU in use and its precision.
pub(crate) fn gpu() -> Option<String> {
    let selected = SELECTED.get().filter(|selected| !selected.device.is_cpu())?;
    Some(format!("CUDA, {}, {}", gpu_name(&selected.device), reduced_precision().unwrap_or("f32")))
}

/// Returns the GPU's name as the driver reports it.
fn gpu_name(device: &Device) -> String {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device
        && let Ok(name) = gpu.cuda_stream().context().name()
    {
        return name;
    }
    let _ = device;
    "unknown GPU".to_string()
}
