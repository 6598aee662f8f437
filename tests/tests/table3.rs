//! Table 3 from nothing to `table.json`, as small as it can be made.

use std::fs;

use stillhouse_tests::run;

#[test]
fn a_tiny_table_3() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [
        "data.per_class=[2, 1]",
        "data.image_size=32",
        "data.train_transforms=[{ op = 'resize', width = 32, height = 32 }]",
        "data.test_transforms=[{ op = 'resize', width = 32, height = 32 }]",
        "train.epochs=1",
        "teacher.train.epochs=1",
        "teacher.backbone=resnet18",
        "matrix.method=['baseline', 'kd', 'class_centre', 'sp', 'baseline_plain']",
        "matrix.student=['mobilenetv2_100']",
        "matrix.ratio=[80]",
    ];
    let mut args = vec!["reproduce", "table3", "--profile", "smoke"];
    for set in &sets {
        args.extend(["--set", set]);
    }
    let list: Vec<&str> = args.iter().copied().chain(["--list"]).collect();
    let listed = run(folder.path(), &list).code(0).stdout;
    assert!(listed.contains("pending"), "{listed}");
    assert!(!folder.path().join("runs").exists(), "--list runs nothing");

    let said = run(folder.path(), &args).code(0);
    assert!(said.stdout.contains("SMOKE RUN"), "{}", said.stdout);
    let table = folder.path().join("runs/table3/smoke");
    let markdown = fs::read_to_string(table.join("table.md")).unwrap();
    assert!(markdown.contains("SMOKE RUN") && markdown.contains("from scratch"), "{markdown}");
    let text = fs::read_to_string(table.join("table.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    for part in ["Seeds: 0", "32 px", "CPU", "1 epochs", "class-balanced"] {
        assert!(json["caption"].as_str().unwrap().contains(part), "no `{part}` in {}", json["caption"]);
    }
    let cell = |method: &str| {
        let cells = json["cells"].as_array().unwrap();
        cells.iter().find(|c| c["method"] == method).unwrap_or_else(|| panic!("no {method} in {text}"))
    };
    for method in ["baseline", "kd", "class_centre", "baseline_plain"] {
        let cell = cell(method);
        assert_eq!((&cell["state"], &cell["n"]), (&"done".into(), &1.into()), "{cell}");
        assert_eq!(cell["tested"], serde_json::json!([21]));
        assert_eq!((&cell["student"], &cell["ratio"]), (&"mobilenetv2_100".into(), &80.into()));
    }
    assert_eq!(cell("class_centre")["published"], 94.76);
    assert_eq!(cell("baseline_plain")["published"], serde_json::Value::Null);

    // Nothing is left to do, and the table is the same.
    run(folder.path(), &args).code(0);
    assert_eq!(fs::read_to_string(table.join("table.json")).unwrap(), text);
}
