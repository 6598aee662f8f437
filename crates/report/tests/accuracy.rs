//! Tables of accuracy from run folders made by hand.

use std::fs;
use std::path::Path;

use stillhouse_core::files::FolderLock;
use stillhouse_report::run::FAILURE;
use stillhouse_report::{AccuracyTable, Beside, Caption, Planned, State};

fn caption() -> Caption {
    Caption {
        title: "Table 3: overall accuracy, %".into(),
        profile: "smoke".into(),
        embedded: true,
        data: "scenes (embedded, procedural)".into(),
        resolution: "64".into(),
        schedule: "3 epochs".into(),
        seeds: vec![0, 1],
        device: "CPU, 2 threads".into(),
        sampler: "21 classes x 3".into(),
        teacher: "from scratch".into(),
        student: "from scratch".into(),
        changed: vec![],
    }
}

fn run(root: &Path, method: &str, student: &str, ratio: u64, seed: u64) -> Planned {
    let folder = root.join(format!("{method}-{student}-{ratio}-{seed}"));
    Planned { method: method.into(), student: student.into(), dataset: "ucm".into(), ratio, seed, folder }
}

fn finish(run: &Planned, right: u64, tested: u64) {
    fs::create_dir_all(&run.folder).unwrap();
    fs::write(
        run.folder.join("result.json"),
        format!("{{\"format\": 1, \"right\": {right}, \"tested\": {tested}}}"),
    )
    .unwrap();
}

fn grid(root: &Path) -> Vec<Planned> {
    let mut runs = Vec::new();
    for method in ["baseline", "baseline_plain", "kd", "class_centre"] {
        for student in ["resnet18", "mobilenetv2_100"] {
            for ratio in [80, 60] {
                runs.extend((0..2).map(|seed| run(root, method, student, ratio, seed)));
            }
        }
    }
    runs
}

fn built(method: &str) -> bool {
    ["kd", "class_centre"].contains(&method)
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
    let failing = find("class_centre", "resnet18", 60, 1);
    fs::create_dir_all(&failing.folder).unwrap();
    fs::write(failing.folder.join(FAILURE), "term `class_centre` is NaN at step 3\n").unwrap();
    let running = find("class_centre", "mobilenetv2_100", 80, 0);
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
    assert_eq!((kd.state, kd.n, kd.published), (State::Done, 2, Some(95.48)));
    assert!((kd.mean.unwrap() - 100.0 * 401.0 / 420.0).abs() < 1e-9);
    assert!((kd.std.unwrap() - 200.0 / 420.0 / 2f64.sqrt()).abs() < 1e-9);
    assert_eq!((kd.right.as_slice(), kd.tested.as_slice()), ([400, 402].as_slice(), [420, 420].as_slice()));
    let half = cell("baseline", "resnet18", 80);
    assert_eq!((half.state, half.n, half.std), (State::Pending, 1, None));
    assert_eq!(cell("class_centre", "resnet18", 60).state, State::Failed);
    assert_eq!(cell("class_centre", "mobilenetv2_100", 80).state, State::Running);
    assert_eq!(cell("sp", "mobilenetv2_100", 60).state, State::NotBuilt);
    assert_eq!(cell("sp", "mobilenetv2_100", 60).published, Some(59.05));
    assert_eq!(cell("baseline_plain", "resnet18", 80).published, None);

    let text = table.terminal(100);
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "SMOKE RUN",
        "scenes (embedded, procedural)",
        "64 px",
        "Seeds: 0, 1.",
        "ResNet50 -> ResNet18",
        "95.48 ± 0.34",
        "802/840",
        "plain shuffling",
        "93.10 (pending) (391/420, n = 1)",
        "kd resnet18 ucm 80 %: 400/420 402/420",
        "class_centre resnet18 ucm 60 % seed 1 failed: term `class_centre` is NaN",
        "28 not built",
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
    assert_eq!(keys, ["caption", "cells"]);
    let mut fields: Vec<&String> = json["cells"][0].as_object().unwrap().keys().collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "dataset",
            "mean",
            "method",
            "n",
            "published",
            "ratio",
            "right",
            "state",
            "std",
            "student",
            "tested"
        ]
    );
    let states: Vec<&str> =
        json["cells"].as_array().unwrap().iter().map(|c| c["state"].as_str().unwrap()).collect();
    assert!(states.contains(&"not built") && states.contains(&"done") && states.contains(&"pending"));
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
        for method in ["baseline", "nst_all", "class_centre"] {
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
    assert_eq!(number("class_centre", "rsc11"), Some(94.37));
    assert_eq!((number("class_centre", "scenes"), number("nst_all", "rsc11")), (None, None));
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
            ("class_centre", Some(94.37))
        ]
    );
    assert!(Beside::of("p1.t1").unwrap().is_none());
}
