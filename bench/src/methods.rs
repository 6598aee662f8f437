//! Cost of a step with each method relative to cross-entropy alone and to kd: `make bench CASE=methods`.
//! PyTorch has no counterpart.
//!
//! Classification methods are timed with ResNet50 and ResNet18 on 64 images of 64 px; methods that require
//! early exits with exits on ResNet18; methods on label masks with two DeepLabV3+ on the same backbones and
//! 16 images, with `skd_pixelwise`, kd per pixel, in place of kd.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use stillhouse_losses::{method_info, registry};

use crate::Args;
use crate::steps::{CaseModel, StepSpec};
use crate::summary::{median, write};
use crate::worker::{Worker, clock};

/// Name prefix of these cases: `methods-NAME`.
pub(crate) const PREFIX: &str = "methods";

/// Networks that a method is timed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Networks {
    Classifier,
    Exits,
    Segmenter,
}

impl Networks {
    const ALL: [Self; 3] = [Self::Classifier, Self::Exits, Self::Segmenter];

    /// Returns the networks with the features that a method requires.
    fn for_method(method: &str) -> anyhow::Result<Self> {
        let info = method_info(registry().get(method)?)?;
        Ok(match info.labels {
            "masks" => Self::Segmenter,
            _ if info.student.iter().any(|name| name.starts_with("exit")) => Self::Exits,
            _ => Self::Classifier,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Classifier => "classifier",
            Self::Exits => "exits",
            Self::Segmenter => "segmenter",
        }
    }

    /// Returns the kd method of these networks.
    fn kd(self) -> Option<&'static str> {
        match self {
            Self::Classifier => Some("kd"),
            Self::Exits => None,
            Self::Segmenter => Some("skd_pixelwise"),
        }
    }

    /// Returns the student of cross-entropy alone, student and teacher of a method, and the batch size.
    fn models(self) -> (CaseModel, CaseModel, Option<CaseModel>, usize) {
        let plain = |name| CaseModel::new(name, toml::Table::new());
        let on = |name, backbone: &str| CaseModel::new(name, toml::toml! { backbone = backbone });
        match self {
            Self::Classifier => (plain("resnet18"), plain("resnet18"), Some(plain("resnet50")), 64),
            // The cost of the early exits counts as cost of the method.
            Self::Exits => (plain("resnet18"), on("exits", "resnet18"), None, 64),
            Self::Segmenter => {
                let [small, large] = ["resnet18", "resnet50"].map(|backbone| on("deeplabv3plus", backbone));
                (small.clone(), small, Some(large), 16)
            }
        }
    }

    /// Returns the step of a method with cross-entropy, or of cross-entropy alone.
    fn step_spec(self, method: Option<&str>) -> StepSpec {
        let (plain, student, teacher, batch) = self.models();
        let (student, teacher) = if method.is_some() { (student, teacher) } else { (plain, None) };
        let method = method.map(String::from);
        let (options, masks) = (toml::Table::new(), self == Self::Segmenter);
        StepSpec { student, teacher, method, options, batch, size: 64, masks }
    }
}

/// Returns the step of a case name: `methods-kd`, `methods-segmenter-alone`.
pub(crate) fn step_spec(name: &str) -> anyhow::Result<StepSpec> {
    let name = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')).unwrap_or(name);
    if let Some(networks) = Networks::ALL.iter().find(|n| format!("{}-alone", n.name()) == name) {
        return Ok(networks.step_spec(None));
    }
    Ok(Networks::for_method(name)?.step_spec(Some(name)))
}

/// Returns the names of all these cases.
pub(crate) fn names() -> Vec<String> {
    let registry = registry();
    let methods = registry.entries().iter().filter(|entry| entry.name != "ce");
    methods.map(|entry| format!("{PREFIX}-{}", entry.name)).collect()
}

/// Result of one method with one thread count.
#[derive(Debug, Serialize, Deserialize)]
struct MethodResult {
    method: String,
    networks: Networks,
    threads: usize,
    /// `wall` or `cpu`.
    clock: String,
    ms: f64,
    /// Median over rounds of the time over that of cross-entropy alone.
    over_ce: f64,
    /// The same over kd.
    over_kd: Option<f64>,
    peak_mib: f64,
    ce_peak_mib: f64,
    kd_peak_mib: Option<f64>,
    rounds: usize,
}

impl fmt::Display for MethodResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over_kd = self.over_kd.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let kd_peak = self.kd_peak_mib.map_or("-".into(), |peak| format!("{peak:.0}"));
        write!(
            f,
            "{:14} {:10} {:>7} {:>5} {:>9.0} {:>8.2} {over_kd:>8} {:>9.0} {:>7.0} {kd_peak:>7}",
            self.method,
            self.networks.name(),
            self.threads,
            self.clock,
            self.ms,
            self.over_ce,
            self.peak_mib,
            self.ce_peak_mib
        )
    }
}

/// Times the methods with the prefix `--case`. A round is a step of cross-entropy alone, one of kd and one of
/// the method.
pub(crate) fn measure(args: &Args) -> anyhow::Result<()> {
    let prefix = args.case.as_deref().unwrap_or(PREFIX);
    println!(
        "{:14} {:10} {:>7} {:>5} {:>9} {:>8} {:>8} {:>9} {:>7} {:>7}",
        "method", "networks", "threads", "clock", "ms", "over ce", "over kd", "peak MiB", "of ce", "of kd"
    );
    let output = args.output.with_file_name("methods.json");
    let mut results = read(&output);
    for &threads in &args.threads {
        for networks in Networks::ALL {
            let mut methods = Vec::new();
            for name in names().into_iter().filter(|name| name.starts_with(prefix)) {
                let method = name[PREFIX.len() + 1..].to_string();
                if Networks::for_method(&method)? == networks {
                    methods.push(method);
                }
            }
            if methods.is_empty() {
                continue;
            }
            let alone = format!("{PREFIX}-{}-alone", networks.name());
            let mut ce = Worker::spawn_ours(&alone, threads, None)?;
            let mut kd = match networks.kd() {
                Some(name) => Some(Worker::spawn_ours(&format!("{PREFIX}-{name}"), threads, None)?),
                None => None,
            };
            for worker in [&mut ce].into_iter().chain(&mut kd) {
                worker.run_steps(WARM_UP)?;
            }
            for method in methods {
                let result = compare(&method, networks, &mut ce, kd.as_mut(), threads, args.rounds)
                    .with_context(|| format!("method `{method}`"))?;
                println!("{result}");
                results.retain(|r| (&r.method, r.threads) != (&result.method, result.threads));
                results.push(result);
                write(&output, &results)?;
            }
        }
    }
    Ok(())
}

const WARM_UP: usize = 2;

/// Runs all rounds of one method.
fn compare(
    method: &str,
    networks: Networks,
    ce: &mut Worker,
    mut kd: Option<&mut Worker>,
    threads: usize,
    rounds: usize,
) -> anyhow::Result<MethodResult> {
    let mut own = Worker::spawn_ours(&format!("{PREFIX}-{method}"), threads, None)?;
    own.run_steps(WARM_UP)?;
    let clock = clock(threads);
    let (mut times, mut over_ce, mut over_kd) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let of_ce = ce.run_steps(1)?.ms(clock);
        let of_kd = kd.as_mut().map(|kd| kd.run_steps(1)).transpose()?.map(|elapsed| elapsed.ms(clock));
        let time = own.run_steps(1)?.ms(clock);
        over_ce.push(time / of_ce);
        over_kd.extend(of_kd.map(|of_kd| time / of_kd));
        times.push(time);
    }
    Ok(MethodResult {
        method: method.into(),
        networks,
        threads,
        clock: clock.into(),
        ms: median(&times),
        over_ce: median(&over_ce),
        over_kd: (!over_kd.is_empty()).then(|| median(&over_kd)),
        peak_mib: own.memory().peak,
        ce_peak_mib: ce.memory().peak,
        kd_peak_mib: kd.map(|kd| kd.memory().peak),
        rounds,
    })
}

/// Reads the results of an earlier run; empty if there is no readable file.
fn read(path: &Path) -> Vec<MethodResult> {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
