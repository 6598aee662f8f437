//! What every method costs in a step beside plain cross-entropy and beside kd: `make bench
//! CASE=methods`. Ours alone: there is nothing of PyTorch's to compare with.
//!
//! A method that a classifier carries is timed between ResNet50 and ResNet18, 64 images of 64 px; one
//! that reads exits on ResNet18 with exits; one that reads label masks between two DeepLabV3+ on the
//! same networks, 16 images, where `skd_pixelwise`, kd for every pixel, stands in for kd.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use stillhouse_losses::{method_info, registry};

use crate::Args;
use crate::steps::{CaseModel, StepSpec};
use crate::summary::{median, write};
use crate::worker::{Worker, clock};

/// Beginning of the names of these cases: `methods-NAME`.
pub(crate) const PREFIX: &str = "methods";

/// Networks that carry a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Carrier {
    Classifier,
    Exits,
    Segmenter,
}

impl Carrier {
    const ALL: [Self; 3] = [Self::Classifier, Self::Exits, Self::Segmenter];

    /// The first that has what the method reads.
    fn of(method: &str) -> anyhow::Result<Self> {
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

    /// Its kd.
    fn kd(self) -> Option<&'static str> {
        match self {
            Self::Classifier => Some("kd"),
            Self::Exits => None,
            Self::Segmenter => Some("skd_pixelwise"),
        }
    }

    /// The student of plain cross-entropy, the student and the teacher of a method, images.
    fn networks(self) -> (CaseModel, CaseModel, Option<CaseModel>, usize) {
        let plain = |name| CaseModel::new(name, toml::Table::new());
        let on = |name, backbone: &str| CaseModel::new(name, toml::toml! { backbone = backbone });
        match self {
            Self::Classifier => (plain("resnet18"), plain("resnet18"), Some(plain("resnet50")), 64),
            // The early exits are part of what the method takes.
            Self::Exits => (plain("resnet18"), on("exits", "resnet18"), None, 64),
            Self::Segmenter => {
                let [small, large] = ["resnet18", "resnet50"].map(|body| on("deeplabv3plus", body));
                (small.clone(), small, Some(large), 16)
            }
        }
    }

    /// A step of a method with cross-entropy beside it, or of cross-entropy alone.
    fn step_spec(self, method: Option<&str>) -> StepSpec {
        let (plain, student, teacher, batch) = self.networks();
        let (student, teacher) = if method.is_some() { (student, teacher) } else { (plain, None) };
        let method = method.map(String::from);
        let (options, masks) = (toml::Table::new(), self == Self::Segmenter);
        StepSpec { student, teacher, method, options, batch, size: 64, masks }
    }
}

/// The step that a contender of this name runs: `methods-kd`, `methods-segmenter-alone`.
pub(crate) fn step_spec(name: &str) -> anyhow::Result<StepSpec> {
    let name = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')).unwrap_or(name);
    if let Some(carrier) = Carrier::ALL.iter().find(|c| format!("{}-alone", c.name()) == name) {
        return Ok(carrier.step_spec(None));
    }
    Ok(Carrier::of(name)?.step_spec(Some(name)))
}

/// Names of all these cases.
pub(crate) fn names() -> Vec<String> {
    let rows = registry();
    let distils = rows.entries().iter().filter(|row| row.name != "ce");
    distils.map(|row| format!("{PREFIX}-{}", row.name)).collect()
}

/// One method with one number of threads.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    method: String,
    carrier: Carrier,
    threads: usize,
    /// `wall` or `cpu`.
    clock: String,
    ms: f64,
    /// Medians of the rounds' ratios.
    over_ce: f64,
    over_kd: Option<f64>,
    peak_mib: f64,
    ce_peak_mib: f64,
    kd_peak_mib: Option<f64>,
    rounds: usize,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over_kd = self.over_kd.map_or("-".into(), |ratio| format!("{ratio:.2}"));
        let kd_peak = self.kd_peak_mib.map_or("-".into(), |peak| format!("{peak:.0}"));
        write!(
            f,
            "{:14} {:10} {:>7} {:>5} {:>9.0} {:>8.2} {over_kd:>8} {:>9.0} {:>7.0} {kd_peak:>7}",
            self.method,
            self.carrier.name(),
            self.threads,
            self.clock,
            self.ms,
            self.over_ce,
            self.peak_mib,
            self.ce_peak_mib
        )
    }
}

/// Times the methods whose cases begin as `--case` says; a round is a step of plain cross-entropy,
/// one of kd, one of the method.
pub(crate) fn measure(args: &Args) -> anyhow::Result<()> {
    let wanted = args.case.as_deref().unwrap_or(PREFIX);
    println!(
        "{:14} {:10} {:>7} {:>5} {:>9} {:>8} {:>8} {:>9} {:>7} {:>7}",
        "method", "networks", "threads", "clock", "ms", "over ce", "over kd", "peak MiB", "of ce", "of kd"
    );
    let output = args.output.with_file_name("methods.json");
    let mut lines = read(&output);
    for &threads in &args.threads {
        for carrier in Carrier::ALL {
            let mut methods = Vec::new();
            for name in names().into_iter().filter(|name| name.starts_with(wanted)) {
                let method = name[PREFIX.len() + 1..].to_string();
                if Carrier::of(&method)? == carrier {
                    methods.push(method);
                }
            }
            if methods.is_empty() {
                continue;
            }
            let alone = format!("{PREFIX}-{}-alone", carrier.name());
            let mut ce = Worker::spawn_ours(&alone, threads, None)?;
            let mut kd = match carrier.kd() {
                Some(name) => Some(Worker::spawn_ours(&format!("{PREFIX}-{name}"), threads, None)?),
                None => None,
            };
            for worker in [&mut ce].into_iter().chain(&mut kd) {
                worker.run_steps(WARM_UP)?;
            }
            for method in methods {
                let line = against(&method, carrier, &mut ce, kd.as_mut(), threads, args.rounds)
                    .with_context(|| format!("method `{method}`"))?;
                println!("{line}");
                lines.retain(|l| (&l.method, l.threads) != (&line.method, line.threads));
                lines.push(line);
                write(&output, &lines)?;
            }
        }
    }
    Ok(())
}

const WARM_UP: usize = 2;

fn against(
    method: &str,
    carrier: Carrier,
    ce: &mut Worker,
    mut kd: Option<&mut Worker>,
    threads: usize,
    rounds: usize,
) -> anyhow::Result<Line> {
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
    Ok(Line {
        method: method.into(),
        carrier,
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

/// Lines of an earlier run, which methods of this one replace; none if there is no such file.
fn read(path: &Path) -> Vec<Line> {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
