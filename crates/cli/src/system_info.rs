//! Machine and program information recorded with results.

use std::collections::BTreeMap;

/// Collects revision, system, processor, cores, threads and instruction set; GPU, engine and precision
/// if they are not the defaults.
pub(crate) fn collect() -> BTreeMap<String, String> {
    let values = [
        ("revision", env!("STILLHOUSE_REVISION").to_string()),
        ("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("processor", cpu_name()),
        ("cores", std::thread::available_parallelism().map_or(1, usize::from).to_string()),
        ("threads", rayon::current_num_threads().to_string()),
        ("instructions", stillhouse_ops::isa().to_string()),
        ("build", if cfg!(debug_assertions) { "development" } else { "release" }.to_string()),
    ];
    let gpu = crate::device::gpu().map(|gpu| ("gpu", gpu));
    let engine = std::env::var("STILLHOUSE_ENGINE").ok().map(|engine| ("engine", engine));
    let precision = crate::device::reduced_precision().map(|name| ("precision", name.to_string()));
    values
        .into_iter()
        .chain(gpu)
        .chain(engine)
        .chain(precision)
        .map(|(name, value)| (name.to_string(), value))
        .collect()
}

/// Returns the program name with version and revision.
pub(crate) fn program() -> String {
    format!("stillhouse {} ({})", env!("CARGO_PKG_VERSION"), env!("STILLHOUSE_REVISION"))
}

/// Returns the processor's name.
pub(crate) fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':'))
        .map_or_else(|| "unknown processor".to_string(), |(_, n)| n.trim().to_string())
}
