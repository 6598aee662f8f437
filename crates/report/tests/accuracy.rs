//! Tables of accuracy from run folders made by hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use stillhouse_core::fs::FolderLock;
use stillhouse_report::beside::page_of;
use stillhouse_report::published::PublishedCell;
use stillhouse_report::{
    AccuracyTable, Asked, Beside, Caption, Measure, Planned, Published, RunStatus, mksmt,
};
use stillhouse_runs::{CellResult, RunDir, RunInfo, RunSummary, TeacherSummary};

fn caption() -> Caption {
    Caption {
        title: "Table 3: overall accuracy, %".into(),
        profile: "smoke".into(),
        synthetic: true,
        data: "scenes (synthetic, procedural)".into(),
        resolution: "64".into(),
        tested: String::new(),
        schedule: "3 epochs".into(),
        seeds: vec![0, 1],
        device: "CPU, 2 threads".into(),
        sampler: "21 classes x 3".into(),
        steps: String::new(),
        teacher_network: "resnet50".into(),
        teacher: "from scratch".into(),
        student: "from scratch".into(),
        changed: vec![],
    }
}

fn run(root: &Path, method: &str, student: &str, ratio: u64, seed: u64) -> Planned {
    let folder = root.join(format!("{method}-{student}-{ratio}-{seed}"));
    Planned { method: method.into(), student: student.into(), dataset: "ucm".into(), ratio, seed, folder }
}

fn finish(run: &Planned, correct: u64, total: u64) {
    write(run, &CellResult { correct: Some(correct), total, ..Default::default() });
}

fn write(run: &Planned, result: &CellResult) {
    RunDir::new(&run.folder).write_result(result).unwrap();
}

/// Writes the `config.toml` of a run.
fn write_info(run: &Planned, classes: &[String], settings: &str) {
    let info = RunInfo {
        experiment: "x".into(),
        profile: "p".into(),
        cell: run.method.clone(),
        hash: "h".into(),
        method: run.method.clone(),
        classes: classes.to_vec(),
        run: toml::from_str(settings).unwrap(),
        ..RunInfo::<toml::Table>::default()
    };
    RunDir::new(&run.folder).write_info(&info).unwrap();
}

fn grid(root: &Path) -> Vec<Planned> {
    let mut runs = Vec::new();
    for method in ["baseline", "baseline_plain", "kd", "class_centric"] {
        for student in ["resnet18", "mobilenetv2_100"] {
            for ratio in [80, 60] {
                runs.extend((0..2).map(|seed| run(root, method, student, ratio, seed)));
            }
        }
    }
    runs
}

fn built(method: &str) -> bool {
    ["kd", "class_centric"].contains(&method)
}

#[test]
fn ours_beside_the_papers() {
    let root = tempfile::tempdir().unwrap();
    let runs = grid(root.path());
    let find = |method: &str, student: &str, ratio: u64, seed: u64| {
        let like = run(root.path(), method, student, ratio, seed);
        runs.iter().find(|r| **r == like).unwrap().clone()
    };
    finish(&find("kd", "resnet18", 80, 0), 400, 420);
    finish(&find("kd", "resnet18", 80, 1), 402, 420);
    finish(&find("baseline", "resnet18", 80, 0), 390, 420);
    finish(&find("baseline_plain", "resnet18", 80, 0), 391, 420);
    let failing = find("class_centric", "resnet18", 60, 1);
    fs::create_dir_all(&failing.folder).unwrap();
    fs::write(failing.folder.join("failure.txt"), "term `class_centric` is NaN at step 3\n").unwrap();
    let running = find("class_centric", "mobilenetv2_100", 80, 0);
    let lock = FolderLock::take(&running.folder).unwrap();

    let published = Beside::of("p1.t3").unwrap();
    let table = AccuracyTable::collect(&caption(), &runs, built, published.as_ref()).unwrap();
    drop(lock);
    assert_eq!(table.cells.len(), 44, "ten methods, two students, two ratios, and four below");
    assert!(table.failed());
    let cell = |method: &str, student: &str, ratio: u64| {
        table.cells.iter().find(|c| c.method == method && c.student == student && c.ratio == ratio).unwrap()
    };
    let kd = cell("kd", "resnet18", 80);
    assert_eq!((kd.state, kd.n, kd.published), (RunStatus::Done, 2, Some(95.48)));
    assert!((kd.mean.unwrap() - 100.0 * 401.0 / 420.0).abs() < 1e-9);
    assert!((kd.std.unwrap() - 200.0 / 420.0 / 2f64.sqrt()).abs() < 1e-9);
    assert_eq!((kd.correct.as_slice(), kd.total.as_slice()), ([400, 402].as_slice(), [420, 420].as_slice()));
    let half = cell("baseline", "resnet18", 80);
    assert_eq!((half.state, half.n, half.std), (RunStatus::Pending, 1, None));
    assert_eq!(cell("class_centric", "resnet18", 60).state, RunStatus::Failed);
    assert_eq!(cell("class_centric", "mobilenetv2_100", 80).state, RunStatus::Running);
    assert_eq!(cell("sp", "mobilenetv2_100", 60).state, RunStatus::UnknownMethod);
    assert_eq!(cell("sp", "mobilenetv2_100", 60).published, Some(59.05));
    assert_eq!(cell("baseline_plain", "resnet18", 80).published, None);

    let text = table.terminal(100);
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "SMOKE RUN",
        "scenes (synthetic, procedural)",
        "64 px",
        "Seeds: 0, 1.",
        "ResNet50 -> ResNet18",
        "95.48 ± 0.34",
        "802/840",
        "plain shuffling",
        "93.10 (pending) (391/420, n = 1)",
        "kd resnet18 ucm 80 %: 400/420 402/420",
        "class_centric resnet18 ucm 60 % seed 1 failed: term `class_centric` is NaN",
        "28 unknown method",
    ] {
        assert!(flat.contains(part), "no `{part}` in\n{text}");
    }
    assert!(text.lines().all(|l| l.chars().count() <= 110), "{text}");
    assert!(table.markdown().contains("| kd | 95.48 ± 0.34 | 802/840 | 2 | 95.48 |"), "{}", table.markdown());

    let out = root.path().join("out");
    table.write(&out).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("table.json")).unwrap()).unwrap();
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["caption", "cells", "measure", "networks", "published", "tests"]);
    let mut fields: Vec<&String> = json["cells"][0].as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "correct",
            "dataset",
            "mean",
            "method",
            "n",
            "published",
            "ratio",
            "state",
            "std",
            "student",
            "total",
            "values"
        ]
    );
    let states: Vec<&str> =
        json["cells"].as_array().unwrap().iter().map(|c| c["state"].as_str().unwrap()).collect();
    assert!(states.contains(&"unknown_method") && states.contains(&"done") && states.contains(&"pending"));
    assert_eq!(json["cells"][43]["method"], "baseline_plain");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2, "no temporary file stays");
}

#[test]
fn a_part_of_the_table_is_a_table() {
    let root = tempfile::tempdir().unwrap();
    let runs = vec![
        run(root.path(), "baseline", "resnet18", 80, 0),
        run(root.path(), "my_method", "resnet18", 80, 0),
    ];
    let published = Beside::of("p1.t3").unwrap();
    let known = |m: &str| m == "my_method" || built(m);
    let table = AccuracyTable::collect(&caption(), &runs, known, published.as_ref()).unwrap();
    let methods: Vec<&str> = table.cells.iter().map(|c| c.method.as_str()).collect();
    assert_eq!(
        methods,
        ["baseline", "dkd", "nst", "vid", "kdsvd", "reviewkd", "rkd", "sp", "my_method"],
        "kd is built and was not planned; an own method has a row"
    );
    let own = AccuracyTable::collect(&caption(), &runs, known, None).unwrap();
    assert_eq!(own.cells.len(), 2, "an own experiment has no rows of the paper");
}

#[test]
fn only_the_papers_own_settings_go_without_a_label() {
    let mut caption = caption();
    assert!(caption.text().contains("SMOKE RUN"));
    caption.profile = "reduced".into();
    assert!(caption.text().contains("REDUCED RUN, not the paper's"));
    caption.profile = "paper".into();
    assert!(!caption.text().contains("not the paper's"));
    caption.changed = vec!["train.epochs=3".into()];
    assert!(caption.text().contains("not the paper's") && caption.text().contains("train.epochs=3"));
}

#[test]
fn a_column_for_each_dataset() {
    let root = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for dataset in ["rsc11", "scenes"] {
        for method in ["baseline", "nst_all", "class_centric"] {
            let like = run(root.path(), method, "resnet18", 60, 0);
            let folder = root.path().join(dataset).join(method);
            runs.push(Planned { dataset: dataset.into(), folder, ..like });
        }
    }
    finish(&runs[0], 90, 100);
    let built = |m: &str| built(m) || m == "nst_all";
    let published = Beside::of("p1.t5").unwrap();
    let table = AccuracyTable::collect(&caption(), &runs, built, published.as_ref()).unwrap();
    let number = |method: &str, dataset: &str| {
        let cell = table.cells.iter().find(|c| c.method == method && c.dataset == dataset);
        cell.and_then(|c| c.published)
    };
    assert_eq!(number("baseline", "rsc11"), Some(90.14));
    assert_eq!(number("class_centric", "rsc11"), Some(94.37));
    assert_eq!((number("class_centric", "scenes"), number("nst_all", "rsc11")), (None, None));
    assert_eq!(published.unwrap().teacher("rsc11"), Some(92.35));
    let text = table.markdown();
    assert!(
        text.contains("| rsc11 60 %: ours |") && text.contains("| baseline | 90.00 | 90/100 | 1 | 90.14 |"),
        "{text}"
    );

    let published = Beside::of("p1.t6").unwrap();
    let table = AccuracyTable::collect(&caption(), &runs[..3], built, published.as_ref()).unwrap();
    let numbers: Vec<_> = table.cells.iter().map(|c| (c.method.as_str(), c.published)).collect();
    assert_eq!(
        numbers,
        [
            ("baseline", Some(90.14)),
            ("nst", Some(89.74)), // not built here
            ("nst_all", Some(92.56)),
            ("class_centric", Some(94.37))
        ]
    );
    assert!(Beside::of("p1.t1").unwrap().is_none());
}

/// Every number that papers 1 and 4 print stands beside ours in some table: each belongs to a page,
/// and with all runs done each accuracy, gain and count of the pages of accuracies has ours.
#[test]
fn every_printed_number_of_papers_1_and_4_has_a_page() {
    let published = Published::builtin().unwrap();
    let mine = |c: &&PublishedCell| c.table.starts_with("p1.") || c.table.starts_with("p4.");
    let pages = ["p1.t1", "p1.t3", "p1.t4", "p1.t5", "p1.t6", "p4.text"];
    for cell in published.cells.iter().filter(mine) {
        assert!(pages.contains(&page_of(cell)), "{cell:?}");
    }
    let root = tempfile::tempdir().unwrap();
    let (all, both) = (
        ["baseline", "kd", "dkd", "nst", "vid", "kdsvd", "reviewkd", "rkd", "sp", "class_centric"].as_slice(),
        ["resnet18", "mobilenetv2_100"].as_slice(),
    );
    let of_6 = ["baseline", "nst", "nst_all", "class_centric"].as_slice();
    let of_4 = ["baseline", "kl", "cosine", "kl_cosine"].as_slice();
    let one = ["resnet18"].as_slice();
    let land = ["ucm", "aid", "rsscn7"].as_slice();
    let grids = [
        ("p1.t3", all, both, ["ucm"].as_slice(), [80, 60].as_slice()),
        ("p1.t5", all, one, ["rsc11", "rsscn7", "aid"].as_slice(), [60].as_slice()),
        ("p1.t6", of_6, one, ["rsc11"].as_slice(), [60].as_slice()),
        ("p4.text", of_4, ["mobilenetv2_100"].as_slice(), land, [80].as_slice()),
    ];
    for (page, methods, students, datasets, ratios) in grids {
        let mut runs = Vec::new();
        for method in methods {
            for student in students {
                for dataset in datasets {
                    for ratio in ratios {
                        let like = run(&root.path().join(page).join(dataset), method, student, *ratio, 0);
                        let planned = Planned { dataset: (*dataset).into(), ..like };
                        let teacher = TeacherSummary {
                            model: "resnet50".into(),
                            cell: "t".into(),
                            correct: Some(80),
                            total: 100,
                            ..Default::default()
                        };
                        let summary = RunSummary { teacher: Some(teacher), ..Default::default() };
                        let (correct, total) = (Some(90), 100);
                        write(&planned, &CellResult { correct, total, summary, ..Default::default() });
                        runs.push(planned);
                    }
                }
            }
        }
        let beside = Beside::of(page).unwrap();
        let table = AccuracyTable::collect(&caption(), &runs, |_| true, beside.as_ref()).unwrap();
        let expected: Vec<&PublishedCell> = published.cells.iter().filter(|c| page_of(c) == page).collect();
        assert_eq!(table.published.len(), expected.len());
        for (line, cell) in table.published.iter().zip(expected) {
            assert_eq!((&line.table, &line.row, &line.col), (&cell.table, &cell.row, &cell.col));
            assert!(line.ours.is_some(), "{page}: no number of ours beside {line:?}");
            let value = match cell {
                c if c.col == "Teacher" => 80.0,
                c if c.row.starts_with("gain") || c.col.starts_with("gain") => 0.0,
                c if c.unit == "%" && c.col != "ratio" => 90.0,
                _ => continue,
            };
            assert_eq!(line.ours, Some(value), "{line:?}");
        }
        let (markdown, json) = (table.markdown(), table.json().unwrap());
        for line in &table.published {
            assert!(markdown.contains(&format!("| {} |", line.printed)), "{page}: {line:?}\n{markdown}");
            assert!(json.contains(&line.printed));
        }
    }
}

/// A finished run on label masks, of classes whose IoU is `miou` and, of the 13th and 19th, 1 and 2
/// points more.
fn finish_masks(planned: &Planned, miou: f64) {
    let classes: Vec<String> = (0..19).map(|c| format!("c{c}")).collect();
    let iou = |c: usize| {
        miou + if c == 12 {
            0.01
        } else if c == 18 {
            0.02
        } else {
            0.0
        }
    };
    let mut scores: BTreeMap<String, Option<f64>> =
        (0..19).map(|c| (format!("iou.{c}"), Some(iou(c)))).collect();
    scores.insert("miou".into(), Some(miou));
    let teacher = TeacherSummary {
        model: "deeplabv3plus_resnet101".into(),
        cell: "t".into(),
        total: 35,
        scores: BTreeMap::from([("miou".into(), Some(0.8))]),
        ..Default::default()
    };
    let summary = RunSummary {
        train_images: 60,
        test_images: 35,
        image_size: 512,
        image_width: Some(1024),
        teacher: Some(teacher),
        ..Default::default()
    };
    let (parameters, macs) = (16610000, 60000000000);
    write(planned, &CellResult { total: 35, scores, parameters, macs, summary, ..Default::default() });
    let settings = format!(
        "[student]\nmodel = '{}'\n[data]\ndataset = '{}'\n[train]\nseed = {}\noptimizer = {{ lr = 0.002 }}",
        planned.student, planned.dataset, planned.seed
    );
    write_info(planned, &classes, &settings);
}

/// Paper 2: every number stands on one of three pages, and with all runs done each has ours beside it,
/// but for those of networks and of a test server that are not ours.
#[test]
fn every_printed_number_of_paper_2_has_a_page() {
    let published = Published::builtin().unwrap();
    let (resnet, mobilenet) = ("deeplabv3plus_resnet18", "deeplabv3plus_mobilenetv2_100");
    let gammas: Vec<String> = (1..10).map(|i| format!("gamma_0.{i}")).collect();
    let mut swept = vec!["baseline"];
    swept.extend(gammas.iter().map(String::as_str));
    let pages = [
        ("p2.t1", vec!["baseline", "frkd_refine", "frkd_inter", "frkd_intra", "frkd"], vec![resnet]),
        ("p2.t2", vec!["baseline", "ka", "skdd", "ifvd", "cd", "frkd"], vec![resnet, mobilenet]),
        ("p2.fig4", swept, vec![resnet]),
    ];
    let mine = published.cells.iter().filter(|c| c.table.starts_with("p2."));
    for cell in mine.clone() {
        assert!(pages.iter().any(|(page, ..)| page_of(cell) == *page), "{cell:?}");
    }
    let mut shown = 0;
    for (page, methods, students) in pages {
        let root = tempfile::tempdir().unwrap();
        let mut runs = Vec::new();
        for (at, method) in methods.iter().enumerate() {
            for student in &students {
                for dataset in ["cityscapes", "voc"] {
                    let like = run(&root.path().join(dataset), method, student, 0, 0);
                    let planned = Planned { dataset: dataset.into(), ..like };
                    finish_masks(&planned, 0.5 + 0.01 * at as f64);
                    runs.push(planned);
                }
            }
        }
        let asked = Asked::new(caption(), Some(page.into()), vec![], runs);
        let table = asked.table().unwrap();
        assert_eq!(table.measure, Measure::MeanIou);
        let expected: Vec<&PublishedCell> = mine.clone().filter(|c| page_of(c) == page).collect();
        assert_eq!(table.published.len(), expected.len());
        let markdown = table.markdown();
        for line in &table.published {
            shown += 1;
            assert!(markdown.contains(&format!("| {} |", line.printed)), "{page}: {line:?}\n{markdown}");
            let others = ["FCN", "ANN", "over ICNet", "over FCN", "over ANN", "Cityscapes test", "VOC test"];
            assert_eq!(line.ours.is_some(), !others.contains(&line.row.as_str()), "{page}: {line:?}");
        }
        let ours = |row: &str, col: &str| {
            let line = table.published.iter().find(|l| l.row == row && l.col == col);
            line.unwrap_or_else(|| panic!("no {row} {col}")).ours.unwrap()
        };
        let near = |row: &str, col: &str, value: f64| {
            assert!((ours(row, col) - value).abs() < 1e-9, "{page} {row} {col}: {}", ours(row, col));
        };
        match page {
            "p2.t1" => {
                let cell = table.cells.iter().find(|c| c.method == "frkd" && c.dataset == "cityscapes");
                assert_eq!(cell.unwrap().published, Some(76.53));
                near("student + feature refinement", "MIoU Cityscapes val", 51.0);
                near("all over plain student", "relative gain Cityscapes", 8.0);
                near("student below teacher", "difference Cityscapes", 80.0 - 54.0);
                assert!(
                    markdown.contains("official split seed 0: 80.00 (35 images, paper 77.74)"),
                    "{markdown}"
                );
            }
            "p2.t2" => {
                near("rider: over IFVD", "gain IoU Cityscapes val", 2.0);
                near("MobileNetV2: over CD", "gain VOC val", 1.0);
                near("student ResNet18", "parameters", 16.61);
                near("student ResNet18", "FLOPs", 120.0);
                near("VOC train", "images", 60.0);
                near("initial learning rate", "value", 0.002);
                assert_eq!(table.by_class.len(), 4);
                assert!(
                    markdown.contains("| c12 | 51.00 |") && markdown.contains("| 512x1024 |"),
                    "{markdown}"
                );
            }
            _ => {
                near("gamma VOC", "value", 0.9);
                near("gamma sweep Cityscapes 0.3", "gamma", 0.3);
            }
        }
    }
    assert_eq!(shown, mine.count());
}

/// Masks without a mean IoU, and a class that is nowhere.
#[test]
fn masks_need_their_figure() {
    let root = tempfile::tempdir().unwrap();
    let planned = run(root.path(), "frkd", "deeplabv3plus_resnet18", 0, 0);
    let collect = |scores: &[(&str, Option<f64>)]| {
        let scores = scores.iter().map(|(name, value)| ((*name).to_string(), *value)).collect();
        write(&planned, &CellResult { total: 2, scores, ..Default::default() });
        AccuracyTable::collect(&caption(), std::slice::from_ref(&planned), |_| true, None)
    };
    assert!(collect(&[]).unwrap_err().to_string().contains("eval.metrics = [\"segmentation\"]"));
    let table = collect(&[("miou", Some(0.25)), ("iou.0", Some(0.25)), ("iou.1", None)]).unwrap();
    assert_eq!(
        (table.cells[0].mean, table.cells[0].class_iou.as_slice()),
        (Some(25.0), &[Some(25.0), None][..])
    );
}

/// A finished run of a network with exits, as its folder tells it.
fn finish_exits(run: &Planned, classes: usize, correct: u64, scores: &[(&str, f64)]) {
    let temperature = run.method.strip_prefix('t').and_then(|t| t.parse().ok()).unwrap_or(1.0);
    let names: Vec<String> = (0..classes).map(|c| format!("c{c}")).collect();
    let alone = run.method == "baseline";
    let (network, variant) = match alone {
        true => (run.student.as_str(), String::new()),
        false => ("mksmt", format!("variant = {{ backbone = '{}' }}", run.student)),
    };
    let settings = format!(
        "[student]\nmodel = '{network}'\n{variant}\n[data]\ndataset = '{}'\nratio = 0\n[train]\nseed = {}\n\
         [[loss]]\nmethod = 'self_kl'\nlambda1 = 1.0\nlambda2 = 1.0\ntemperature = {temperature:?}\n",
        run.dataset, run.seed
    );
    write_info(run, &names, &settings);
    let scores = scores.iter().map(|(name, value)| ((*name).to_string(), Some(*value))).collect();
    let summary = RunSummary { train_images: 400, test_images: 600, image_size: 64, ..Default::default() };
    let (correct, parameters) = (Some(correct), if alone { 100_000 } else { 101_080 });
    write(run, &CellResult { correct, total: 1000, parameters, scores, summary, ..Default::default() });
}

/// Every number that the text of paper 3 prints stands on the page of an experiment, beside ours where
/// it is not that of another paper's network.
#[test]
fn every_printed_number_of_paper_3_stands_beside_ours() {
    let published = Published::builtin().unwrap();
    let root = tempfile::tempdir().unwrap();
    let of_a_set = ["baseline", "mksmt"].as_slice();
    let ablation = [
        "baseline",
        "single",
        "mksmt",
        "asynchronous",
        "no_distillation",
        "features",
        "t2",
        "t3",
        "t4",
        "t7",
        "t10",
    ];
    let grids = [
        ("p3.cub", "cub", of_a_set),
        ("p3.nabirds", "nabirds", of_a_set),
        ("p3.dogs", "dogs", of_a_set),
        ("p3.ablation", "cub", ablation.as_slice()),
    ];
    let mut shown = 0;
    for (page, dataset, methods) in grids {
        let mut runs = Vec::new();
        for (i, method) in methods.iter().enumerate() {
            for seed in 0..2 {
                let like = run(&root.path().join(page), method, "swin_large_patch4_window12_384", 0, seed);
                let run = Planned { dataset: dataset.into(), ..like };
                let correct = 900 + 2 * i as u64 + seed;
                let mut scores = vec![("hflip.accuracy", 0.9), ("vflip.accuracy", 0.8), ("top1", 0.5)];
                if *method != "baseline" {
                    scores.push(("exit3.accuracy", 0.85));
                }
                finish_exits(&run, 12, correct, &scores);
                runs.push(run);
            }
        }
        let asked = Asked::new(caption(), Some(page.to_string()), Vec::new(), runs);
        let table = asked.table().unwrap();
        let expected: Vec<&PublishedCell> = published.cells.iter().filter(|c| page_of(c) == page).collect();
        assert_eq!(table.published.len(), expected.len());
        shown += expected.len();
        for (line, cell) in table.published.iter().zip(expected) {
            assert_eq!((&line.row, &line.col), (&cell.row, &cell.col));
            let other = cell.row.contains("best CNN");
            assert_eq!(line.ours.is_none(), other, "{page}: {line:?}");
            let value = match (cell.row.as_str(), cell.unit.as_str()) {
                (_, "blocks" | "") => cell.value.unwrap(),
                (_, "classes") => 12.0,
                (_, "images") => 1000.0,
                (row, "points") if row.contains("S3") => 0.0,
                ("MKSMT against Swin-L", _) if cell.col == "parameters" => 1.08,
                ("MKSMT against Swin-L", _) => 0.2,
                ("two steps without distillation, S3", _) => 85.0,
                _ => continue,
            };
            assert!(line.ours.is_none_or(|ours| (ours - value).abs() < 1e-9), "{line:?}");
        }
        // S3 and S4 of every method, with spread and interval over the seeds.
        let early = table.exits.iter().find(|e| e.method == "mksmt" && e.exit == "exit3").unwrap();
        assert_eq!((early.mean, early.std, early.n, early.vflip), (85.0, Some(0.0), 2, None));
        let last = table.exits.iter().find(|e| e.method == "baseline" && e.exit == "last").unwrap();
        assert_eq!((last.mean, last.n, last.hflip, last.vflip), (90.05, 2, Some(90.0), Some(80.0)));
        assert!(last.interval.is_some_and(|[low, high]| low < 90.05 && 90.05 < high));
        assert!(!table.exits.iter().any(|e| e.method == "baseline" && e.exit == "exit3"));
        let (markdown, terminal) = (table.markdown(), table.terminal(100));
        for text in [&markdown, &terminal] {
            assert!(text.contains("upside down") && text.contains("85.00 ± 0.00"), "{text}");
        }
        assert!(table.networks.len() == 2 && !table.facts().is_empty());
        assert!(table.cells.iter().all(|c| c.student.starts_with("swin_large") && c.n == 2), "one grid");
        assert_eq!(table.cells.len(), methods.len());
    }
    assert_eq!(shown, published.cells.iter().filter(|c| c.table.starts_with("p3.")).count());
    assert!(mksmt::PAGES.iter().all(|page| published.cells.iter().any(|c| page_of(c) == *page)));
    let ours = |method: &str| {
        let table = Published::builtin().unwrap();
        table.cell("p3.text", method, "accuracy CUB").unwrap().value
    };
    assert_eq!((ours("MKSMT"), ours("Swin-L alone")), (Some(92.8), Some(91.9)));
}
