//! Device and precision of the program, selected once at startup.

use std::sync::OnceLock;

use candle_core::Device;
use stillhouse_trainer::{
    DeviceArg, Error as TrainerError, PrecisionArg, cpu_uses_graph_engine, gpu_name, open_device,
};

use crate::error::CliError;

struct Selected {
    device: Device,
    precision: PrecisionArg,
}

static SELECTED: OnceLock<Selected> = OnceLock::new();

/// Opens the device.
pub(crate) fn select(device: DeviceArg, precision: PrecisionArg) -> Result<(), CliError> {
    let device = open_device(device, precision).map_err(|e| match e {
        TrainerError::Device { message, hint } => CliError::usage(message).hint(hint),
        other => other.into(),
    })?;
    // The program selects once; a second call would be ignored.
    let _ = SELECTED.set(Selected { device, precision });
    Ok(())
}

/// Returns the device of the program.
pub(crate) fn device() -> Device {
    SELECTED.get().map_or(Device::Cpu, |selected| selected.device.clone())
}

/// Returns the precision of the networks.
pub(crate) fn precision() -> stillhouse_ops::Precision {
    SELECTED.get().map_or(stillhouse_ops::Precision::Full, |selected| selected.precision.of_networks())
}

/// Returns the precision if it is not f32.
pub(crate) fn reduced_precision() -> Option<&'static str> {
    match SELECTED.get()?.precision {
        PrecisionArg::F32 => None,
        PrecisionArg::Tf32 => Some("TF32"),
        PrecisionArg::Bf16 => Some("bf16"),
    }
}

/// Describes the device, with everything that influences the numbers, for captions.
pub(crate) fn describe(threads: usize) -> String {
    match gpu() {
        Some(gpu) => gpu,
        None => {
            let engine = if cpu_uses_graph_engine() { ", candle's graph" } else { "" };
            let precision = reduced_precision().map(|name| format!(", {name}")).unwrap_or_default();
            format!("CPU, {threads} threads, {}{engine}{precision}", stillhouse_ops::isa())
        }
    }
}

/// Describes the GPU in use and its precision.
pub(crate) fn gpu() -> Option<String> {
    let name = gpu_name(&SELECTED.get()?.device)?;
    Some(format!("CUDA, {name}, {}", reduced_precision().unwrap_or("f32")))
}
