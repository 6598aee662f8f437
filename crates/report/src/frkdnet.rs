//! The numbers of the FRKDNet paper beside ours: its names for our methods, networks and sets.

use crate::accuracy::Cell;
use crate::beside::{Line, Teacher};
use crate::networks::NetworkRow;
use crate::published::{Published, PublishedCell};
use crate::{Planned, Record};

/// Table 1: what each part brings.
pub(crate) const TABLE_1: &str = "p2.t1";
/// Table 2 and the figures that go with it.
pub(crate) const TABLE_2: &str = "p2.t2";
/// Fig. 4: mean IoU over gamma.
pub(crate) const FIG_4: &str = "p2.fig4";

/// The rows of each.
pub(crate) const PARTS: &[&str] = &["baseline", "frkd_refine", "frkd_inter", "frkd_intra", "frkd"];
pub(crate) const METHODS: &[&str] = &["baseline", "ka", "skdd", "ifvd", "cd", "frkd"];
pub(crate) const GAMMAS: &[&str] = &["baseline"];

const RESNET: &str = "deeplabv3plus_resnet18";
const MOBILENET: &str = "deeplabv3plus_mobilenetv2_100";
const CITYSCAPES: &str = "cityscapes";
const VOC: &str = "voc";

/// Places of two of Cityscapes' classes among its training ids.
const RIDER: usize = 12;
const BICYCLE: usize = 18;

/// What the row of a sweep begins with; the value follows.
pub(crate) const GAMMA: &str = "gamma_";

/// The page of a number of the text.
pub(crate) fn page_of(row: &str, col: &str) -> &'static str {
    match col {
        _ if row.starts_with("gamma") => FIG_4,
        "gain IoU Cityscapes val" | "gain Cityscapes test" => TABLE_2,
        _ if col.contains("Cityscapes") => TABLE_1,
        _ => TABLE_2,
    }
}

/// The printed mean IoU of a method in percent.
pub(crate) fn number(
    numbers: &Published,
    table: &str,
    method: &str,
    student: &str,
    dataset: &str,
) -> Option<f64> {
    let value = |table: &str, row: &str, col: &str| numbers.cell(table, row, col)?.value;
    if student != RESNET || table == FIG_4 && method != "baseline" {
        return None;
    }
    match (dataset, method) {
        (CITYSCAPES, method) => value(TABLE_1, part(method)?, "MIoU Cityscapes val"),
        (VOC, "frkd") => value("p2.text", "student, all", "MIoU VOC"),
        (VOC, "baseline") => value("p2.text", "student VOC ResNet18", "MIoU VOC"),
        (VOC, "ifvd") => value("p2.text", "IFVD ResNet18", "MIoU VOC"),
        (VOC, "cd") => value("p2.text", "CD ResNet18", "MIoU VOC"),
        _ => None,
    }
}

/// A method's row of Table 1.
fn part(method: &str) -> Option<&'static str> {
    Some(match method {
        "baseline" => "student ResNet18",
        "frkd_refine" => "student + feature refinement",
        "frkd_inter" => "student + feature refinement + inter",
        "frkd_intra" => "student + feature refinement + intra",
        "frkd" => "student, all",
        _ => return None,
    })
}

/// The printed mean IoU of the teacher in percent.
pub(crate) fn teacher(numbers: &Published, dataset: &str) -> Option<f64> {
    let found =
        (dataset == CITYSCAPES).then(|| numbers.cell(TABLE_1, "teacher ResNet101", "MIoU Cityscapes val"));
    found??.value
}

/// The value of a sweep's row.
pub(crate) fn gamma(method: &str) -> Option<f64> {
    method.strip_prefix(GAMMA)?.parse().ok()
}

/// Our number beside a printed one, as far as it is one of accuracies.
pub(crate) fn ours(printed: &PublishedCell, cells: &[Cell], teachers: &[Teacher]) -> Option<f64> {
    let (row, col) = (printed.row.as_str(), printed.col.as_str());
    let cell = |method: &str, student: &str, dataset: &str| {
        let here = |c: &&Cell| c.student == student && c.dataset == dataset && c.n > 0;
        cells.iter().filter(here).find(|c| c.method == method)
    };
    let mean = |method: &str, student: &str, dataset: &str| cell(method, student, dataset)?.mean;
    let over = |method: &str, other: &str, student: &str, dataset: &str| {
        Some(mean(method, student, dataset)? - mean(other, student, dataset)?)
    };
    let class = |class: usize, other: &str| -> Option<f64> {
        let of = |method| cell(method, RESNET, CITYSCAPES)?.class_iou.get(class).copied().flatten();
        Some(of("frkd")? - of(other)?)
    };
    let taught = || {
        let own: Vec<f64> = teachers.iter().filter(|t| t.dataset == CITYSCAPES).map(|t| t.percent).collect();
        (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
    };
    let set = if col.contains("VOC") || row.contains("VOC") { VOC } else { CITYSCAPES };
    match (row, col) {
        ("teacher ResNet101", _) => taught(),
        ("feature refinement", _) => mean("frkd_refine", RESNET, set),
        ("feature refinement + inter", _) => mean("frkd_inter", RESNET, set),
        ("student ResNet18", "MIoU Cityscapes val") => mean("baseline", RESNET, set),
        ("student + feature refinement", _) => mean("frkd_refine", RESNET, set),
        ("student + feature refinement + inter", _) => mean("frkd_inter", RESNET, set),
        ("student + feature refinement + intra", _) => mean("frkd_intra", RESNET, set),
        ("student, all", _) => mean("frkd", RESNET, set),
        ("intra-class loss", _) => over("frkd_intra", "frkd_refine", RESNET, set),
        ("all over plain student", "relative gain Cityscapes") => {
            Some(100.0 * over("frkd", "baseline", RESNET, set)? / mean("baseline", RESNET, set)?)
        }
        ("all over plain student", _) => over("frkd", "baseline", RESNET, set),
        ("student below teacher", _) => Some(taught()? - mean("frkd", RESNET, set)?),
        ("rider: over IFVD", _) => class(RIDER, "ifvd"),
        ("rider: over CD", _) => class(RIDER, "cd"),
        ("bicycle: over IFVD", _) => class(BICYCLE, "ifvd"),
        ("bicycle: over CD", _) => class(BICYCLE, "cd"),
        ("MobileNetV2: over plain student", _) => over("frkd", "baseline", MOBILENET, VOC),
        ("MobileNetV2: over IFVD", _) => over("frkd", "ifvd", MOBILENET, VOC),
        ("MobileNetV2: over CD", _) => over("frkd", "cd", MOBILENET, VOC),
        ("ResNet18: over plain student", _) => over("frkd", "baseline", RESNET, VOC),
        ("ResNet18: over IFVD", _) => over("frkd", "ifvd", RESNET, VOC),
        ("ResNet18: over CD", _) => over("frkd", "cd", RESNET, VOC),
        ("student VOC ResNet18", _) => mean("baseline", RESNET, VOC),
        ("IFVD ResNet18", _) => mean("ifvd", RESNET, VOC),
        ("CD ResNet18", _) => mean("cd", RESNET, VOC),
        ("gamma VOC" | "gamma Cityscapes", _) => {
            let swept = cells.iter().filter(|c| c.student == RESNET && c.dataset == set);
            let values = swept.filter_map(|c| Some((gamma(&c.method)?, c.mean?)));
            values.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(gamma, _)| gamma)
        }
        _ if row.starts_with("gamma sweep") => {
            let value: f64 = row.rsplit(' ').next()?.parse().ok()?;
            cell(&format!("{GAMMA}{value}"), RESNET, set).map(|_| value)
        }
        _ => None,
    }
}

/// Fills in what the runs themselves tell: sizes, counts of images and classes, the learning rate.
pub(crate) fn measured(lines: &mut [Line], networks: &[NetworkRow], runs: &[(Planned, Record)]) {
    let network = || networks.iter().find(|n| n.network == RESNET);
    let of = |dataset: &str| runs.iter().find(|(p, _)| p.dataset == dataset).map(|(_, record)| record);
    let summary = |dataset: &str| Some(&of(dataset)?.result.summary);
    for line in lines.iter_mut().filter(|l| l.table == "p2.text") {
        let found = match (line.row.as_str(), line.col.as_str()) {
            ("student ResNet18", "parameters") => network().map(|n| n.parameters as f64 / 1e6),
            ("student ResNet18", "FLOPs") => network().map(|n| 2.0 * n.macs as f64 / 1e9),
            ("Cityscapes train", _) => summary(CITYSCAPES).map(|f| f.train_images as f64),
            ("Cityscapes val", _) => summary(CITYSCAPES).map(|f| f.test_images as f64),
            ("VOC train", _) => summary(VOC).map(|f| f.train_images as f64),
            ("VOC val", _) => summary(VOC).map(|f| f.test_images as f64),
            ("Cityscapes", "classes") => of(CITYSCAPES).map(|record| record.info.classes.len() as f64),
            ("initial learning rate", _) => {
                runs.first().and_then(|(_, record)| record.info.get("train.optimizer.lr")?.as_float())
            }
            _ => None,
        };
        line.ours = line.ours.or(found);
    }
}
