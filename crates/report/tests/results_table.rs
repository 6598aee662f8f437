//! Results tables of hand-made run folders, next to the numbers of a made-up paper.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use stillhouse_core::fs::FolderLock;
use stillhouse_report::page::{Page, Samples};
use stillhouse_report::{
    Caption, Measure, Paper, Planned, PublishedSection, Record, ResultsTable, RunStatus, TableSpec,
};
use stillhouse_runs::{CellResult, RunDir, RunInfo, RunSummary, TeacherSummary};

const PAPER: &str = r#"
title = "Distillation of Roses"
short = "Roses"
authors = "A. B."
venue = "Journal of Roses 1(1): 1-2"
year = 2020
text = "all of it"

[[table]]
id = "t1"
title = "Accuracy, %"
dataset = "roses"
known = ["Single runs."]
values = [
    { row = "student", column = "80 %", printed = "92.14", value = 92.14, unit = "%", source = "table", measured = { quantity = "accuracy", method = "baseline", student = "small", dataset = "roses", ratio = 80 } },
    { row = "KD", column = "80 %", printed = "95.48", value = 95.48, unit = "%", source = "table", measured = { quantity = "accuracy", method = "kd", student = "small", dataset = "roses", ratio = 80 } },
    { row = "gain", column = "80 %", printed = "3.34", value = 3.34, unit = "points", source = "text", measured = { quantity = "accuracy", method = "kd", student = "small", dataset = "roses", ratio = 80, minus = { method = "baseline" } } },
    { row = "teacher", column = "80 %", printed = "97.0", value = 97.0, unit = "%", source = "text", measured = { quantity = "accuracy", method = "teacher", dataset = "roses" } },
    { row = "KD, S3", column = "80 %", printed = "90.0", value = 90.0, unit = "%", source = "text", measured = { quantity = "accuracy", method = "kd", dataset = "roses", exit = "exit3" } },
    { row = "KD", column = "upside down", printed = "7", value = 7, unit = "points", source = "text", measured = { quantity = "accuracy", method = "kd", student = "small", dataset = "roses", ratio = 80, minus = { view = "vflip" } } },
    { row = "student", column = "parameters", printed = "1.5M", value = 1.5, unit = "M", source = "text", measured = { quantity = "parameters", student = "small" } },
    { row = "student", column = "learning rate", printed = "0.1", value = 0.1, source = "text", measured = { quantity = "setting", key = "train.optimizer.lr" } },
    { row = "methods", column = "count", printed = "1", value = 1, unit = "methods", source = "abstract", measured = { quantity = "methods", except = ["baseline*"] } },
    { row = "another paper's", column = "80 %", printed = "93", value = 93, unit = "%", source = "table" },
]

[[table]]
id = "masks"
title = "Mean IoU, %"
values = [
    { row = "KD", column = "mean IoU", printed = "61.0", value = 61.0, unit = "%", source = "table", measured = { quantity = "mean_iou", method = "kd", dataset = "roses" } },
    { row = "KD", column = "thorn", printed = "5", value = 5, unit = "points", source = "text", measured = { quantity = "class_iou", class = "thorn", method = "kd", dataset = "roses", minus = { method = "baseline" } } },
]
"#;

fn caption() -> Caption {
    Caption {
        title: "Table 1: accuracy, %".into(),
        profile: "quick".into(),
        synthetic: true,
        data: "roses (synthetic)".into(),
        resolution: "64".into(),
        schedule: "3 epochs".into(),
        seeds: vec![0, 1],
        device: "CPU, 2 threads".into(),
        sampler: "21 classes x 3".into(),
        teacher_network: "large".into(),
        teacher: "from scratch".into(),
        student: "from scratch".into(),
        ..Caption::default()
    }
}

fn run(root: &Path, method: &str, student: &str, ratio: u64, seed: u64) -> Planned {
    let folder = root.join(format!("{method}-{student}-{ratio}-{seed}"));
    Planned { method: method.into(), student: student.into(), dataset: "roses".into(), ratio, seed, folder }
}

fn write(run: &Planned, result: CellResult) {
    let dir = RunDir::new(&run.folder);
    fs::create_dir_all(dir.path()).unwrap();
    let text = format!(
        "student.model = '{}'\ndata = {{ dataset = '{}', ratio = {} }}\ntrain = {{ seed = {}, optimizer.lr = 0.2 }}\n",
        run.student, run.dataset, run.ratio, run.seed
    );
    let info = RunInfo {
        format: 1,
        experiment: "roses_table1".into(),
        profile: "p".into(),
        cell: run.method.clone(),
        hash: "h".into(),
        method: run.method.clone(),
        classes: vec!["petal".into(), "thorn".into()],
        run: toml::from_str(&text).unwrap(),
        ..RunInfo::<toml::Table>::default()
    };
    dir.write_info(&info).unwrap();
    dir.write_result(&CellResult { format: 1, ..result }).unwrap();
}

fn finish(run: &Planned, correct: u64, total: u64) {
    write(run, CellResult { correct: Some(correct), total, ..Default::default() });
}

fn spec(table: Option<&str>, runs: Vec<Planned>) -> TableSpec {
    let section = table.map(|table| PublishedSection {
        paper: Some("roses".into()),
        table: Some(table.into()),
        ..Default::default()
    });
    TableSpec::new(caption(), section, Vec::new(), runs)
}

fn paper() -> Paper {
    Paper::parse(PAPER, "paper.toml").unwrap()
}

fn measured(table: &ResultsTable, row: &str, column: &str) -> Option<f64> {
    let found = table.published.iter().find(|v| v.row == row && v.column == column);
    found.unwrap_or_else(|| panic!("no {row}, {column}")).measured
}

#[test]
fn shows_results_next_to_published_numbers() {
    let root = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for method in ["baseline", "baseline_plain", "kd", "own", "missing"] {
        for student in ["small", "other"] {
            runs.extend((0..2).map(|seed| run(root.path(), method, student, 80, seed)));
        }
    }
    let find = |method: &str, student: &str, seed: u64| {
        let like = run(root.path(), method, student, 80, seed);
        runs.iter().find(|r| **r == like).unwrap().clone()
    };
    finish(&find("kd", "small", 0), 400, 420);
    finish(&find("kd", "small", 1), 402, 420);
    finish(&find("baseline", "small", 0), 390, 420);
    finish(&find("baseline_plain", "small", 0), 391, 420);
    let failing = find("own", "small", 1);
    fs::create_dir_all(&failing.folder).unwrap();
    fs::write(failing.folder.join("failure.txt"), "term `own` is NaN at step 3\n").unwrap();
    let running = find("own", "other", 0);
    let lock = FolderLock::take(&running.folder).unwrap();

    let mut spec = spec(Some("t1"), runs);
    spec.unknown_methods = vec!["missing".into()];
    let table = spec.table(Some(&paper())).unwrap();
    drop(lock);
    assert_eq!(table.cells.len(), 10, "five methods and two students");
    assert_eq!(table.cells[9].method, "baseline_plain");
    assert!(table.has_failures());
    let cell = |method: &str, student: &str| {
        table.cells.iter().find(|c| c.method == method && c.student == student).unwrap()
    };
    let kd = cell("kd", "small");
    assert_eq!((kd.state, kd.n, kd.published), (RunStatus::Done, 2, Some(95.48)));
    assert!((kd.mean.unwrap() - 100.0 * 401.0 / 420.0).abs() < 1e-9);
    assert!((kd.std.unwrap() - 200.0 / 420.0 / 2f64.sqrt()).abs() < 1e-9);
    assert_eq!((kd.correct.as_slice(), kd.total.as_slice()), (&[400, 402][..], &[420, 420][..]));
    let half = cell("baseline", "small");
    assert_eq!((half.state, half.n, half.std), (RunStatus::Pending, 1, None));
    assert_eq!(cell("own", "small").state, RunStatus::Failed);
    assert_eq!(cell("own", "other").state, RunStatus::Running);
    assert_eq!(cell("missing", "small").state, RunStatus::UnknownMethod);
    assert_eq!((cell("kd", "other").published, cell("baseline_plain", "small").published), (None, None));

    let text = table.terminal(100);
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "QUICK RUN",
        "roses (synthetic)",
        "64 px",
        "Seeds: 0, 1.",
        "large -> small",
        "95.48 ± 0.34",
        "802/840",
        "plain shuffling",
        "93.10 (pending) (391/420, n = 1)",
        "kd small roses 80 %: 400/420 402/420",
        "own small roses 80 % seed 1 failed: term `own` is NaN",
        "2 unknown method",
    ] {
        assert!(flat.contains(expected), "no `{expected}` in\n{text}");
    }
    assert!(text.lines().all(|l| l.chars().count() <= 110), "{text}");
    let markdown = table.markdown();
    assert!(markdown.contains("| kd | 95.48 ± 0.34 | 802/840 | 2 | 95.48 |"), "{markdown}");
    assert!(markdown.contains("- Single runs."), "{markdown}");

    let out = root.path().join("out");
    table.write(&out).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("table.json")).unwrap()).unwrap();
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["baseline_tests", "caption", "cells", "measure", "networks", "published", "tests"]);
    let mut fields: Vec<&str> = json["cells"][0].as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    let expected = [
        "correct",
        "dataset",
        "interval",
        "mean",
        "method",
        "n",
        "published",
        "ratio",
        "state",
        "std",
        "student",
        "total",
        "values",
    ];
    assert_eq!(fields, expected);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn measures_every_published_number() {
    let root = tempfile::tempdir().unwrap();
    let teacher = TeacherSummary {
        model: "large".into(),
        cell: "t".into(),
        init: "scratch".into(),
        correct: Some(96),
        total: 100,
        ..Default::default()
    };
    let mut runs = Vec::new();
    for (method, correct) in [("baseline", 80), ("kd", 90)] {
        for seed in 0..2 {
            let run = run(root.path(), method, "small", 80, seed);
            let mut scores = BTreeMap::new();
            if method == "kd" {
                scores.insert("exit3.accuracy".to_string(), Some(0.85));
                scores.insert("vflip.accuracy".to_string(), Some(0.7 + 0.1 * seed as f64));
            }
            let summary = RunSummary { teacher: Some(teacher.clone()), ..Default::default() };
            let correct = Some(correct + 2 * seed);
            write(
                &run,
                CellResult {
                    correct,
                    total: 100,
                    scores,
                    parameters: 1_250_000,
                    summary,
                    ..Default::default()
                },
            );
            runs.push(run);
        }
    }
    let mut spec = spec(Some("t1"), runs);
    spec.caption.synthetic = false;
    let table = spec.table(Some(&paper())).unwrap();
    assert_eq!(table.published.len(), 10);
    for (row, column, value) in [
        ("student", "80 %", 81.0),
        ("KD", "80 %", 91.0),
        ("gain", "80 %", 10.0),
        ("teacher", "80 %", 96.0),
        ("KD, S3", "80 %", 85.0),
        ("KD", "upside down", 16.0),
        ("student", "parameters", 1.25),
        ("student", "learning rate", 0.2),
        ("methods", "count", 1.0),
    ] {
        let found = measured(&table, row, column);
        assert!(found.is_some_and(|v| (v - value).abs() < 1e-9), "{row}, {column}: {found:?}");
    }
    assert_eq!(measured(&table, "another paper's", "80 %"), None);
    let early = table.exits.iter().find(|e| e.method == "kd" && e.exit == "exit3").unwrap();
    assert_eq!((early.mean, early.std, early.n, early.published), (85.0, Some(0.0), 2, Some(90.0)));
    let last = table.exits.iter().find(|e| e.method == "kd" && e.exit == "last").unwrap();
    assert!(last.interval.is_some_and(|[low, high]| low < 91.0 && 91.0 < high));
    assert_eq!((last.hflip, last.published), (None, Some(95.48)));
    assert!(!table.exits.iter().any(|e| e.method == "baseline" && e.exit == "exit3"));
    let markdown = table.markdown();
    assert!(markdown.contains("Teachers: 80 % seed 0: 96.00 (96/100, published 97.00)"), "{markdown}");
    let finished = spec.finished().unwrap();
    let html = Page {
        spec: &spec,
        table: &table,
        finished: &finished,
        embeddings: &[],
        samples: &Samples::default(),
        program: "test",
    }
    .html();
    assert!(html.contains("All 10 published numbers and the measured ones") && html.contains(">-4.48</td>"));
}

#[test]
fn derives_tables_from_run_folders() {
    let root = tempfile::tempdir().unwrap();
    for method in ["own", "kd", "baseline"] {
        finish(&run(root.path(), method, "small", 80, 0), 9, 10);
    }
    let paper = paper();
    let published = |name: &str| {
        assert_eq!(name, "roses_table1");
        let methods = paper.published_table("t1").unwrap().methods();
        (spec(Some("t1"), vec![]).published, methods.into_iter().map(str::to_string).collect())
    };
    let specs = TableSpec::from_runs(&[root.path().to_path_buf()], published).unwrap();
    assert_eq!(specs.len(), 1);
    let methods: Vec<&str> = specs[0].runs.iter().map(|r| r.method.as_str()).collect();
    assert_eq!(methods, ["baseline", "kd", "own"], "in the order of print, then by name");
    let table = specs[0].table(Some(&paper)).unwrap();
    assert_eq!(table.cells[1].published, Some(95.48));
    specs[0].write(root.path()).unwrap();
    assert_eq!(TableSpec::read(root.path()).unwrap().as_ref(), Some(&specs[0]));
}

#[test]
fn works_without_a_paper() {
    let root = tempfile::tempdir().unwrap();
    let runs = vec![run(root.path(), "baseline", "small", 80, 0), run(root.path(), "own", "small", 60, 0)];
    let table = spec(None, runs).table(None).unwrap();
    let columns: Vec<_> = table.cells.iter().map(|c| (c.method.as_str(), c.ratio, c.published)).collect();
    assert_eq!(columns, [("baseline", 80, None), ("own", 60, None)]);
    assert!(table.published.is_empty());
}

#[test]
fn measures_label_masks() {
    let root = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for (method, miou) in [("baseline", 0.5), ("kd", 0.6)] {
        let run = run(root.path(), method, "small", 0, 0);
        let iou = |value| Some(value);
        let scores = [("miou", iou(miou)), ("iou.0", None), ("iou.1", iou(miou + 0.1))];
        let scores = scores.map(|(name, value)| (name.to_string(), value)).into_iter().collect();
        write(&run, CellResult { total: 35, scores, ..Default::default() });
        runs.push(run);
    }
    let table = spec(Some("masks"), runs).table(Some(&paper())).unwrap();
    assert_eq!(table.measure, Measure::MeanIou);
    assert_eq!(table.cells[1].class_iou, [None, Some(70.0)]);
    assert_eq!(table.cells[1].published, Some(61.0));
    let gain = measured(&table, "KD", "thorn").unwrap();
    assert!((gain - 10.0).abs() < 1e-9);
    let markdown = table.markdown();
    assert!(
        markdown.contains("| thorn | 60.00 | 70.00 |") && markdown.contains("| petal | - | - |"),
        "{markdown}"
    );
}

#[test]
fn rejects_label_masks_without_a_mean_iou() {
    let root = tempfile::tempdir().unwrap();
    let run = run(root.path(), "kd", "small", 0, 0);
    write(&run, CellResult { total: 2, ..Default::default() });
    let error = spec(None, vec![run]).table(None).unwrap_err().to_string();
    assert!(error.contains("eval.metrics = [\"segmentation\"]"), "{error}");
}

#[test]
fn ignores_folders_that_are_no_finished_runs() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Record::read(folder.path()).unwrap().is_none());
    fs::write(folder.path().join("config.toml"), "cell = 3").unwrap();
    assert!(Record::read(folder.path()).unwrap_err().to_string().contains("config.toml"));
}

#[test]
fn opens_with_the_answer() {
    let root = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for (method, correct) in [("baseline", 240), ("kd", 280), ("sp", 200), ("own", 250)] {
        for seed in 0..3 {
            let run = run(root.path(), method, "small", 80, seed);
            // `own` differs from the baseline by chance alone.
            let noise = match method {
                "own" => [0, 30, 0],
                "baseline" => [0, 1, 3],
                _ => [1, 0, 3],
            };
            finish(&run, correct + noise[seed as usize], 400);
            runs.push(run);
        }
    }
    let single = run(root.path(), "baseline", "small", 60, 0);
    finish(&single, 200, 400);
    runs.push(single);
    let spec = spec(None, runs);
    let table = spec.table(None).unwrap();
    let sentence = "small, roses 80 %: 2 of 3 methods are above the student alone (60.33 %), 1 of them significantly; \
                    the best is kd with 70.33 % (+10.00).";
    let unwrapped = table.terminal(100).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(unwrapped.contains(sentence), "{unwrapped}");
    assert!(unwrapped.contains("small, roses 60 %: baseline 50.00 %."), "{unwrapped}");
    assert!(table.markdown().contains(sentence));
    let terminal = table.terminal(100);
    let row = |name: &str| {
        let mut rows = terminal.lines().filter(|l| l.starts_with(name) && l.contains('o'));
        rows.next_back().unwrap_or_else(|| panic!("no `{name}` in {terminal}")).to_string()
    };
    let column = |row: &str| row.chars().position(|c| c == 'o').unwrap();
    let kd = row("kd ");
    assert!(kd.contains("70.33*") && kd.contains(':'), "significant, and the student alone is marked: {kd}");
    assert!(row("sp ").contains("50.33*"), "worse is marked too");
    assert!(!row("own ").contains('*'));
    assert!(column(&row("sp ")[10..]) < column(&kd[10..]));

    let cell = |method: &str, ratio: u64| {
        table.cells.iter().find(|c| c.method == method && c.ratio == ratio).unwrap().interval.unwrap()
    };
    let [low, high] = cell("baseline", 60);
    assert!((low - 45.12).abs() < 0.01 && (high - 54.88).abs() < 0.01, "Wilson's interval of one seed");
    let [low, high] = cell("kd", 80);
    assert!(
        low < 70.33 && high > 70.33 && (high + low) / 2.0 - 70.333 < 1e-2,
        "t over the seeds: {low} {high}"
    );

    let finished = spec.finished().unwrap();
    let samples = Samples::default();
    let page = Page {
        spec: &spec,
        table: &table,
        finished: &finished,
        embeddings: &[],
        samples: &samples,
        program: "",
    };
    let html = page.html();
    let answer = html.find(sentence).unwrap();
    assert!(answer < html.find("<svg").unwrap() && html.find("<svg").unwrap() < html.find("<dl>").unwrap());
    assert!(html.contains("70.33*"));
}
