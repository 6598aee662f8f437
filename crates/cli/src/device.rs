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

/// What `--precision` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    /// 32 bits
    F32,
    /// 32 bits; a card rounds the factors of products to TF32, with 10 bits of mantissa
    Tf32,
    /// Maps in bf16, on a card; weights, statistics, losses and optimizers in 32 bits
    Bf16,
}

struct Chosen {
    device: Device,
    precision: Precision,
}

static CHOSEN: OnceLock<Chosen> = OnceLock::new();

/// Opens the device for the whole program.
pub(crate) fn choose(choice: Choice, precision: Precision) -> Result<(), Problem> {
    let device = match (choice, precision) {
        (Choice::Cpu, Precision::Tf32) => {
            return Err(Problem::usage("--precision tf32 is of cards, and the device is the processor")
                .hint("leave it out, or choose a card: --device cuda"));
        }
        (Choice::Cpu, Precision::Bf16) if !graph() => {
            let hint = "leave it out, or choose a card: --device cuda; on the processor a frozen teacher \
                        alone can be in bf16: --set teacher.precision=bf16";
            let what = "--precision bf16 is of cards: the processor's kernels train in f32 alone";
            return Err(Problem::usage(what).hint(hint));
        }
        (Choice::Cpu, _) => Device::Cpu,
        (Choice::Cuda, _) => open_card(precision)?,
    };
    let _ = CHOSEN.set(Chosen { device, precision }); // the program chooses once
    Ok(())
}

/// Whether networks on the processor run as candle's graph.
fn graph() -> bool {
    matches!(Engine::of(&Device::Cpu), Ok(Engine::Graph))
}

#[cfg(feature = "cuda")]
fn open_card(precision: Precision) -> Result<Device, Problem> {
    let device = Device::new_cuda(0).map_err(|e| {
        // Behind the first line candle may have put a backtrace.
        let e = e.to_string();
        Problem::usage(format!("no CUDA device can be used: {}", e.lines().next().unwrap_or_default()))
            .hint("see what `nvidia-smi` says, or run on the processor: --device cpu")
    })?;
    stillhouse_ops::allow_tf32(precision == Precision::Tf32);
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn open_card(_: Precision) -> Result<Device, Problem> {
    Err(Problem::usage("this build has no CUDA support").hint("run on the processor: --device cpu"))
}

/// The device of the program.
pub(crate) fn device() -> Device {
    CHOSEN.get().map_or(Device::Cpu, |chosen| chosen.device.clone())
}

/// What the networks of the program compute in.
pub(crate) fn precision() -> stillhouse_ops::Precision {
    match CHOSEN.get().map(|chosen| chosen.precision) {
        Some(Precision::Bf16) => stillhouse_ops::Precision::Bf16,
        _ => stillhouse_ops::Precision::Full,
    }
}

/// The precision, if it is not f32.
pub(crate) fn lower() -> Option<&'static str> {
    match CHOSEN.get()?.precision {
        Precision::F32 => None,
        Precision::Tf32 => Some("TF32"),
        Precision::Bf16 => Some("bf16"),
    }
}

/// The device and what of it has a say in the numbers, for captions.
pub(crate) fn words(threads: usize) -> String {
    match card() {
        Some(card) => card,
        None => {
            let engine = if graph() { ", candle's graph" } else { "" };
            let precision = lower().map(|words| format!(", {words}")).unwrap_or_default();
            format!("CPU, {threads} threads, {}{engine}{precision}", stillhouse_ops::isa())
        }
    }
}

/// The card and its precision, if there is one in use.
pub(crate) fn card() -> Option<String> {
    let chosen = CHOSEN.get().filter(|chosen| !chosen.device.is_cpu())?;
    Some(format!("CUDA, {}, {}", name(&chosen.device), lower().unwrap_or("f32")))
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
