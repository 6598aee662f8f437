//! Table 3 from scratch to `table.json`, with tiny settings.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use stillhouse_tests::{run, stillhouse};

/// Returns the command of a tiny table with additional settings.
fn tiny_table<'a>(more: &[&'a str]) -> Vec<&'a str> {
    const SETTINGS: [&str; 9] = [
        "data.per_class=[2, 1]",
        "data.image_size=32",
        "data.train_transforms=[{ op = 'resize', width = 32, height = 32 }]",
        "data.test_transforms=[{ op = 'resize', width = 32, height = 32 }]",
        "teacher.train.epochs=1",
        "teacher.weights=imagenet|scratch",
        "teacher.model=resnet18",
        "matrix.student=['mobilenetv2_100']",
        "matrix.ratio=[80]",
    ];
    let sets = SETTINGS.iter().chain(more).flat_map(|set| ["--set", *set]);
    ["reproduce", "table3", "--profile", "quick"].into_iter().chain(sets).collect()
}

#[test]
fn table3_end_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let methods = "matrix.method=['baseline', 'kd', 'class_centric', 'sp', 'baseline_plain']";
    let args = tiny_table(&["train.epochs=1", methods]);
    let list: Vec<&str> = args.iter().copied().chain(["--list"]).collect();
    let listed = run(folder.path(), &list).expect_code(0).stdout;
    assert!(listed.contains("pending"), "{listed}");
    assert!(!folder.path().join("runs").exists(), "--list runs nothing");

    let said = run(folder.path(), &args).expect_code(0);
    assert!(said.stdout.contains("QUICK RUN"), "{}", said.stdout);
    let table = folder.path().join("runs/table3/quick");
    let markdown = fs::read_to_string(table.join("table.md")).unwrap();
    assert!(markdown.contains("QUICK RUN") && markdown.contains("from scratch"), "{markdown}");
    let text = fs::read_to_string(table.join("table.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for part in ["Seeds: 0", "32 px", "CPU", "1 epochs", "class-balanced"] {
        assert!(json["caption"].as_str().unwrap().contains(part), "no `{part}` in {}", json["caption"]);
    }
    let cell = |method: &str| {
        let cells = json["cells"].as_array().unwrap();
        cells.iter().find(|c| c["method"] == method).unwrap_or_else(|| panic!("no {method} in {text}"))
    };
    for method in ["baseline", "kd", "class_centric", "baseline_plain"] {
        let cell = cell(method);
        assert_eq!((&cell["state"], &cell["n"]), (&"done".into(), &1.into()), "{cell}");
        assert_eq!(cell["total"], serde_json::json!([21]));
        assert_eq!((&cell["student"], &cell["ratio"]), (&"mobilenetv2_100".into(), &80.into()));
    }
    assert_eq!(cell("class_centric")["published"], 94.76);
    assert_eq!(cell("baseline_plain")["published"], serde_json::Value::Null);

    for network in json["networks"].as_array().unwrap() {
        assert!(network["latency_ms"].as_f64().unwrap() > 0.0, "{network}");
    }
    let test = json["tests"].as_array().unwrap().iter().find(|t| t["method"] == "kd").unwrap();
    assert_eq!(test["seeds"].as_array().unwrap().len(), 1, "paired on the same images: {test}");

    // The page is self-contained: no scripts, no external resources.
    let page = fs::read_to_string(table.join("report.html")).unwrap();
    for part in
        ["QUICK RUN", "<svg", "Confusion matrices", "(teacher)", "class_centric", "revision", "McNemar"]
    {
        assert!(page.contains(part), "no `{part}` on the page");
    }
    for part in ["<script", "src=\"http", "href=\"http", "url(", "@import"] {
        assert!(!page.contains(part), "`{part}` on the page");
    }

    // Running it again changes nothing; neither does rebuilding it from the run folders.
    run(folder.path(), &args).expect_code(0);
    assert_eq!(fs::read_to_string(table.join("table.json")).unwrap(), text);
    fs::remove_file(table.join("report.html")).unwrap();
    run(folder.path(), &["report", "runs/table3/quick"]).expect_code(0);
    assert_eq!(fs::read_to_string(table.join("table.json")).unwrap(), text);
    assert_eq!(fs::read_to_string(table.join("report.html")).unwrap(), page);
    // Without plan.json the caption is derived from the runs; the numbers are the same.
    fs::remove_file(table.join("plan.json")).unwrap();
    let said =
        run(folder.path(), &["report", "runs/table3/quick", "--output", "again", "--json"]).expect_code(0);
    let again = said.json();
    let means = |json: &serde_json::Value| -> Vec<(String, String)> {
        let cells = json["cells"].as_array().unwrap().iter().filter(|c| c["state"] == "done");
        let mut means: Vec<_> = cells.map(|c| (c["method"].to_string(), c["correct"].to_string())).collect();
        means.sort();
        means
    };
    assert_eq!(means(&again), means(&json));

    inspect_runs(folder.path(), &args);
}

/// Lists and compares finished runs, runs single cells and writes cluster jobs.
fn inspect_runs(folder: &Path, args: &[&str]) {
    let all = run(folder, &["runs", "ls", "--json"]).expect_code(0).json();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 6, "a teacher and five students: {all:?}");
    let path = |method: &str| {
        let found = all.iter().find(|r| r["method"] == method).unwrap();
        assert_eq!(found["state"], "done");
        found["folder"].as_str().unwrap().to_string()
    };
    let (a, b) = (path("kd"), path("class_centric"));
    let events = folder.join(&a).join("events/events.out.tfevents.0.stillhouse");
    assert!(fs::read(events).unwrap().windows(10).any(|w| w == b"train/loss"), "no TensorBoard scalar");
    let shown = run(folder, &["runs", "show", &a]).expect_code(0).stdout;
    assert!(shown.contains("train.epochs") && shown.contains("accuracy, %"), "{shown}");
    let different = run(folder, &["runs", "diff", &a, &b, "--json"]).expect_code(0).json();
    let names: Vec<&str> =
        different.as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"loss.1.method") && !names.contains(&"train.epochs"), "{names:?}");
    run(folder, &["runs", "show", "nowhere"]).expect_code(2).expect_stderr(&["nowhere", "config.toml"]);

    let with = |more: &[&str]| -> Vec<String> { args.iter().chain(more).map(|a| (*a).to_string()).collect() };
    let call = |more: &[&str]| {
        let args = with(more);
        run(folder, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let plan = call(&["--plan", "--json"]).expect_code(0).json();
    let cells = plan["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 6);
    let kd = cells.iter().find(|c| c["method"] == "kd").unwrap();
    let teacher = &cells[kd["needs"].as_u64().unwrap() as usize - 1];
    assert_eq!(teacher["role"], "teacher");
    let said = call(&["--cell", &format!("{}/6", kd["cell"])]).expect_code(0);
    assert!(said.stdout.contains("done (before)"), "{}", said.stdout);
    call(&["--cell", "1/7"]).expect_code(2).expect_stderr(&["the plan has 6 cells"]);
    call(&["--cell", "0/6"]).expect_code(2);

    // Cluster jobs: none, until a result is removed.
    let submit: Vec<String> = with(&["--dry-run"]).into_iter().skip(1).collect();
    let submit: Vec<&str> =
        ["submit", "slurm"].into_iter().chain(submit.iter().map(String::as_str)).collect();
    run(folder, &submit).expect_code(0).expect_stderr(&["all cells are already finished"]);
    fs::remove_file(folder.join(&a).join("result.json")).unwrap();
    let scripts = run(folder, &submit).expect_code(0).stdout;
    let script = fs::read_to_string(Path::new(scripts.trim()).join("students.sh")).unwrap();
    assert!(script.contains(&format!("CELLS=({})", kd["cell"])), "{script}");
    assert!(script.contains("#SBATCH --array=1-1%8") && script.contains("--cell \"$CELL/6\""), "{script}");
}

/// An interrupted table keeps its finished runs, resumes the current one and ends with the same table.
#[test]
fn interrupted_table_resumes_to_the_same_table() {
    let args = tiny_table(&[
        "train.epochs=4",
        "train.checkpoint=1 step",
        "matrix.method=['baseline', 'kd', 'class_centric']",
    ]);
    let whole = tempfile::tempdir().unwrap();
    run(whole.path(), &args).expect_code(0);

    let folder = tempfile::tempdir().unwrap();
    let mut child =
        stillhouse(folder.path(), &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Wait until the second student, `kd`, has made some steps.
    let second_student_runs = || {
        let runs = fs::read_dir(folder.path().join("runs/table3/quick")).into_iter().flatten().flatten();
        let mut kd = runs.map(|r| r.path()).filter(|p| p.to_string_lossy().contains("-kd-"));
        kd.any(|p| (2..9).any(|step| p.join(format!("checkpoint-{step}/state.json")).exists()))
    };
    while !second_student_runs() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let said: stillhouse_tests::CmdOutput = child.wait_with_output().unwrap().into();
    said.expect_code(130).expect_stderr(&["same command again"]);
    let stopped = results(folder.path());
    // The baseline and the teacher; also `kd` if it finished before the signal.
    assert!((2..=3).contains(&stopped.len()), "{:?}", stopped.keys());

    run(folder.path(), &args).expect_code(0);
    let (uninterrupted, resumed) = (results(whole.path()), results(folder.path()));
    assert_eq!(resumed.len(), 4);
    for (name, result) in &resumed {
        if let Some(before) = stopped.get(name) {
            assert_eq!(result, before, "{name} was finished but ran again");
        }
        for part in ["student_sha256", "correct", "total"] {
            assert_eq!(result[part], uninterrupted[name][part], "{part} of {name}");
        }
    }
    let cells = |folder: &Path| {
        let text = fs::read_to_string(folder.join("runs/table3/quick/table.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["cells"].clone()
    };
    assert_eq!(cells(folder.path()), cells(whole.path()));
}

/// Reads the results of all finished runs, teachers included, by folder name.
fn results(folder: &Path) -> BTreeMap<String, serde_json::Value> {
    let mut found = BTreeMap::new();
    for of in ["runs/table3/quick", "runs/teachers"] {
        for run in fs::read_dir(folder.join(of)).into_iter().flatten().flatten() {
            if let Ok(text) = fs::read_to_string(run.path().join("result.json")) {
                let name = run.file_name().to_string_lossy().into_owned();
                found.insert(name, serde_json::from_str(&text).unwrap());
            }
        }
    }
    found
}
