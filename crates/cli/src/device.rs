//! Where to compute: chosen once, before anything is made.

use std::sync::OnceLock;

use candle_core::Device;
use clap::ValueEnum;
use stillhouse_ops::Engine;

use crate::problem::Problem;

/// What `--device` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The processor
    Cpu,
    /// An NVIDIA card, the first
    Cuda,
}

struct Chosen {
    device: Device,
    tf32: bool,
}

static CHOSEN: OnceLock<Chosen> = OnceLock::new();

/// Opens the device for the whole program.
pub(crate) fn choose(choice: Choice, tf32: bool) -> Result<(), Problem> {
    let device = match choice {
        Choice::Cpu if tf32 => {
            return Err(Problem::usage("--tf32 is of cards, and the device is the processor")
                .hint("leave it out, or choose a card: --device cuda"));
        }
        Choice::Cpu => Device::Cpu,
        Choice::Cuda => open_card(tf32)?,
    };
    let _ = CHOSEN.set(Chosen { device, tf32 }); // the program chooses once
    Ok(())
}

#[cfg(feature = "cuda")]
fn open_card(tf32: bool) -> Result<Device, Problem> {
    let device = Device::new_cuda(0).map_err(|e| {
        // Behind the first line candle may have put a backtrace.
        let e = e.to_string();
        Problem::usage(format!("no CUDA device can be used: {}", e.lines().next().unwrap_or_default()))
            .hint("see what `nvidia-smi` says, or run on the processor: --device cpu")
    })?;
    stillhouse_ops::allow_tf32(tf32);
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn open_card(_tf32: bool) -> Result<Device, Problem> {
    Err(Problem::usage("this build has no CUDA support").hint("run on the processor: --device cpu"))
}

/// The device of the program.
pub(crate) fn device() -> Device {
    CHOSEN.get().map_or(Device::Cpu, |chosen| chosen.device.clone())
}

/// The device and what of it has a say in the numbers, for captions.
pub(crate) fn words(threads: usize) -> String {
    match card() {
        Some(card) => card,
        None => {
            let graph = matches!(Engine::of(&Device::Cpu), Ok(Engine::Graph));
            let engine = if graph { ", candle's graph" } else { "" };
            format!("CPU, {threads} threads, {}{engine}", stillhouse_ops::isa())
        }
    }
}

/// The card and how it multiplies, if there is one in use.
pub(crate) fn card() -> Option<String> {
    let chosen = CHOSEN.get().filter(|chosen| !chosen.device.is_cpu())?;
    let precision = if chosen.tf32 { "TF32" } else { "f32" };
    Some(format!("CUDA, {}, {precision}", name(&chosen.device)))
}

/// What the driver calls the card.
fn name(device: &Device) -> String {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = device
        && let Ok(name) = card.cuda_stream().context().name()
    {
        return name;
    }
    let _ = device;
    "unknown card".to_string()
}
