//! Where our side computes, and how: chosen once, before anything is made.

use std::sync::OnceLock;

use candle_core::Device;
use clap::ValueEnum;
use stillhouse_core::Tape;

/// What `--device` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The processor
    Cpu,
    /// An NVIDIA card, the first
    Cuda,
}

/// What `--precision` takes: how a card multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    F32,
    /// f32 whose factors are rounded to 10 bits in products
    Tf32,
    Bf16,
}

impl Precision {
    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }
}

struct Chosen {
    device: Device,
    precision: Precision,
    /// Bytes of the card that were in use before we made anything.
    before: u64,
}

static CHOSEN: OnceLock<Chosen> = OnceLock::new();

/// Opens the card for the whole program; without that it computes on the processor in f32.
///
/// # Errors
/// No support in this build, or no card.
pub(crate) fn open_card(precision: Precision) -> anyhow::Result<()> {
    let device = card()?;
    #[cfg(feature = "cuda")]
    stillhouse_ops::allow_tf32(precision == Precision::Tf32);
    let before = in_use(&device).unwrap_or(0);
    let _ = CHOSEN.set(Chosen { device, precision, before }); // the program chooses once
    Ok(())
}

/// The first card, or what to do for want of it.
#[cfg(feature = "cuda")]
pub(crate) fn card() -> anyhow::Result<Device> {
    Device::new_cuda(0).map_err(|e| {
        // Behind the first line candle may have put a backtrace.
        let e = e.to_string();
        anyhow::anyhow!(
            "no CUDA device can be used: {}; see what `nvidia-smi` says, or leave `--device cuda` out",
            e.lines().next().unwrap_or_default()
        )
    })
}

/// The first card, or what to do for want of it.
#[cfg(not(feature = "cuda"))]
pub(crate) fn card() -> anyhow::Result<Device> {
    anyhow::bail!(
        "this build has no CUDA support; on a machine with a card, the CUDA toolkit and cuDNN take \
         `make bench ARGS=\"--device cuda\"`, which builds it with `--features cuda` (docs/cuda.md)"
    )
}

/// The device of the program.
pub(crate) fn device() -> Device {
    CHOSEN.get().map_or(Device::Cpu, |chosen| chosen.device.clone())
}

/// Lets a tape of a card compute as `--precision` says.
///
/// # Errors
/// What the network or the build lacks for bf16.
pub(crate) fn set_precision(tape: &mut Tape) -> anyhow::Result<()> {
    if CHOSEN.get().is_some_and(|chosen| chosen.precision == Precision::Bf16) {
        tape.set_precision(stillhouse_ops::Precision::Bf16)?;
    }
    Ok(())
}

/// KiB of the card that came to be in use since it was opened; none on the processor.
pub(crate) fn taken() -> Option<f64> {
    let chosen = CHOSEN.get()?;
    Some(in_use(&chosen.device)?.saturating_sub(chosen.before) as f64 / 1024.0)
}

/// Bytes of a card that are in use, by whomever.
fn in_use(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(card) = device {
        let (free, total) = card.cuda_stream().context().mem_get_info().ok()?;
        return Some(total.saturating_sub(free) as u64);
    }
    let _ = device;
    None
}
