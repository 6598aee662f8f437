//! The machine and the program, as results state them.

use std::collections::BTreeMap;

/// Version, revision, system, processor, cores, threads, instruction set; card, engine and precision,
/// where they are chosen.
pub(crate) fn environment() -> BTreeMap<String, String> {
    let values = [
        ("revision", env!("STILLHOUSE_REVISION").to_string()),
        ("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("processor", cpu_name()),
        ("cores", std::thread::available_parallelism().map_or(1, usize::from).to_string()),
        ("threads", rayon::current_num_threads().to_string()),
        ("instructions", stillhouse_ops::isa().to_string()),
        ("build", if cfg!(debug_assertions) { "development" } else { "release" }.to_string()),
    ];
    let card = crate::device::card().map(|card| ("card", card));
    let engine = std::env::var("STILLHOUSE_ENGINE").ok().map(|engine| ("engine", engine));
    let precision = crate::device::lower().map(|words| ("precision", words.to_string()));
    values
        .into_iter()
        .chain(card)
        .chain(engine)
        .chain(precision)
        .map(|(name, value)| (name.to_string(), value))
        .collect()
}

/// The program with its revision, in one word for pages.
pub(crate) fn program() -> String {
    format!("stillhouse {} ({})", env!("CARGO_PKG_VERSION"), env!("STILLHOUSE_REVISION"))
}

/// The processor's name.
pub(crate) fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':'))
        .map_or_else(|| "unknown processor".to_string(), |(_, n)| n.trim().to_string())
}
