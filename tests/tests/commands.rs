//! Help, exit codes, and commands that train little or nothing.

use std::fs;

use stillhouse_tests::{CmdOutput, images, on_images, root, run, stillhouse, tiny, write};

#[test]
fn help_has_examples() {
    let folder = tempfile::tempdir().unwrap();
    for command in [
        "",
        "train",
        "eval",
        "predict",
        "distill",
        "reproduce",
        "report",
        "runs",
        "submit slurm",
        "list",
        "explain",
        "data check",
        "data stats",
        "data split",
        "data fetch",
        "weights fetch",
        "weights check",
        "weights import",
        "weights export",
        "weights diff",
        "doctor",
        "completions",
    ] {
        let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let said = run(folder.path(), &args).expect_code(0);
        assert!(said.stdout.contains("Examples:"), "{command}: {}", said.stdout);
        assert!(said.stdout.contains("--threads"), "{command}: {}", said.stdout);
        assert!(!said.stdout.contains('\u{1b}'), "{command} has color without a terminal");
    }
    assert!(run(folder.path(), &["--version"]).expect_code(0).stdout.starts_with("stillhouse "));
}

#[test]
fn usage_errors_exit_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        vec![],
        vec!["distil"],
        vec!["train"],
        vec!["train", "x.toml", "--output", "o", "--no-such-flag"],
        vec!["list", "lossses"],
        vec!["predict", "x.safetensors"],
    ] {
        run(folder.path(), &args).expect_code(2);
    }
    run(folder.path(), &["--threads", "0", "list"]).expect_code(2).expect_stderr(&["--threads is 0"]);
    run(folder.path(), &["--device", "cuda", "list"]).expect_code(2).expect_stderr(&["no CUDA", "hint: "]);
    run(folder.path(), &["--precision", "tf32", "list"])
        .expect_code(2)
        .expect_stderr(&["requires a GPU", "--device cuda"]);
    run(folder.path(), &["--precision", "bf16", "list"])
        .expect_code(2)
        .expect_stderr(&["requires a GPU", "supports f32 only"]);
    let said = stillhouse(folder.path(), &["list"]).env("STILLHOUSE_THREADS", "many").output().unwrap();
    CmdOutput::from(said).expect_code(2).expect_stderr(&["STILLHOUSE_THREADS", "many"]);
    run(folder.path(), &["reproduce", "tabel3"]).expect_code(2).expect_stderr(&["did you mean `table3`"]);
    run(folder.path(), &["explain", "clas_centric"])
        .expect_code(2)
        .expect_stderr(&["did you mean `class_centric`"]);
    run(folder.path(), &["explain", "model", "resnet19"]).expect_code(2).expect_stderr(&["resnet18"]);
    run(folder.path(), &["data", "check", "ucn"]).expect_code(2).expect_stderr(&["did you mean `ucm`"]);
    run(folder.path(), &["train", "no.toml", "--output", "o"]).expect_code(2).expect_stderr(&["no.toml"]);
    run(folder.path(), &["weights", "fetch", "resnet101", "--name", "imagenett"])
        .expect_code(2)
        .expect_stderr(&["did you mean `imagenet`"]);
    run(folder.path(), &["weights", "fetch", "resnet18"])
        .expect_code(2)
        .expect_stderr(&["no direct download", "hint: "]);
    run(folder.path(), &["weights", "export", "none", "--output", "o"])
        .expect_code(2)
        .expect_stderr(&["no such file or folder: none"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}

/// Only a closed pipe may end a command quietly.
#[test]
#[cfg(target_os = "linux")]
fn fails_if_stdout_is_full() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["list"][..], &["--help"], &["list", "--json"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = stillhouse(folder.path(), args).stdout(full).output().unwrap();
        CmdOutput::from(output).expect_code(1).expect_stderr(&["cannot write to stdout"]);
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = stillhouse(folder.path(), &["list"]).stdout(writer).output().unwrap();
    CmdOutput::from(output).expect_code(0);
}

#[test]
fn lists_and_explains_every_component() {
    let folder = tempfile::tempdir().unwrap();
    let all = run(folder.path(), &["list", "--json"]).expect_code(0).json();
    for (kind, name) in [
        ("losses", "class_centric"),
        ("models", "resnet50"),
        ("datasets", "scenes"),
        ("metrics", "accuracy"),
        ("experiments", "table3"),
    ] {
        let rows = all[kind].as_array().unwrap();
        assert!(rows.iter().any(|r| r["name"] == name), "no {name} in {rows:?}");
    }
    assert!(run(folder.path(), &["list", "losses"]).expect_code(0).stdout.contains("kd"));
    // Explaining a model builds it, so one of them represents all.
    for kind in ["losses", "datasets", "metrics", "experiments"] {
        for row in all[kind].as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            if name != "folder" {
                let said = run(folder.path(), &["explain", kind, name]).expect_code(0);
                assert!(said.stdout.contains(name), "{}", said.stdout);
            }
        }
    }
    let network =
        run(folder.path(), &["explain", "resnet18", "--classes", "21", "--json"]).expect_code(0).json();
    assert_eq!(network["parameters"], 11_187_285);
    assert!(
        network["features"].as_array().unwrap().iter().any(|t| t["name"] == "F4" && t["channels"] == 512)
    );
    let plan =
        run(folder.path(), &["explain", "table3", "--set", "train.epochs=7", "--json"]).expect_code(0).json();
    let student = plan["cells"].as_array().unwrap().iter().find(|c| c["role"] == "student").unwrap();
    assert_eq!(student["config"]["train"]["epochs"], 7);
}

#[test]
fn doctor_reports_findings() {
    let folder = tempfile::tempdir().unwrap();
    let report = run(folder.path(), &["doctor", "--json"]).expect_code(0).json();
    assert_eq!(report["threads"], 2);
    assert!(report["runs"]["free_bytes"].as_u64().unwrap() > 0);
    let ucm = report["data"]["datasets"].as_array().unwrap().iter().find(|d| d["name"] == "ucm").unwrap();
    assert_eq!(ucm["found"], false);
    assert!(run(folder.path(), &["doctor"]).expect_code(0).stdout.contains("instructions"));
    // A file in place of the folder of runs.
    write(folder.path(), "runs", "");
    assert!(run(folder.path(), &["doctor"]).expect_code(1).stdout.contains("finding: "));
}

#[test]
fn completions_name_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(folder.path(), &["completions", shell]).expect_code(0).stdout.contains("reproduce"));
    }
}

#[test]
fn data_check_reports_broken_images() {
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("own"));
    let report =
        run(folder.path(), &["data", "check", "folder", "--root", "own", "--json"]).expect_code(0).json();
    assert_eq!(report["images"], 8);
    assert_eq!(report["classes"].as_array().unwrap().len(), 2);
    let file = folder.path().join("own/quarry/jpeg_exif_3.input.jpg");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let said = run(folder.path(), &["data", "check", "folder", "--root", "own"]).expect_code(1);
    assert!(said.stdout.contains("quarry/jpeg_exif_3.input.jpg"), "{}", said.stdout);
}

#[test]
fn data_stats_sheet_and_split() {
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("own"));
    let stats = ["data", "stats", "folder", "--path", "own", "--sheet", "sheet.png", "--json"];
    let found = run(folder.path(), &stats).expect_code(0).json();
    assert_eq!((&found["images"], &found["classes"][1]["images"]), (&8.into(), &4.into()));
    assert!(fs::read(folder.path().join("sheet.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(run(folder.path(), &stats[..5]).expect_code(0).stdout.contains("quarry"));
    run(folder.path(), &["data", "split", "folder", "--path", "own", "--ratio", "50", "--output", "lists"])
        .expect_code(0);
    let read = |name: &str| fs::read_to_string(folder.path().join("lists").join(name)).unwrap();
    assert_eq!((read("train.txt").lines().count(), read("test.txt").lines().count()), (4, 4));
    assert!(read("train.txt").contains("\tmeadow\n"));
    run(folder.path(), &["data", "split", "folder", "--path", "own", "--mode", "official", "--output", "o"])
        .expect_code(2)
        .expect_stderr(&["no official split"]);
}

#[test]
fn fetch_explains_what_cannot_be_downloaded() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), &["data", "fetch", "cityscapes"])
        .expect_code(2)
        .expect_stderr(&["register", "gtFine"]);
    run(folder.path(), &["data", "fetch", "scenes"])
        .expect_code(2)
        .expect_stderr(&["no source to download from"]);
    let said =
        stillhouse(folder.path(), &["data", "fetch", "ucm"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    CmdOutput::from(said).expect_code(1).expect_stderr(&["HF_HUB_OFFLINE", "UCMerced_LandUse"]);
    let said = stillhouse(folder.path(), &["weights", "fetch", "vgg16"])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    CmdOutput::from(said).expect_code(1).expect_stderr(&["HF_HUB_OFFLINE", "vgg16-397923af.pth"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
}

#[test]
fn train_eval_predict() {
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("own"));
    write(folder.path(), "x.toml", &on_images(&folder.path().join("own")));
    let done = run(folder.path(), &["train", "x.toml", "--output", "out", "--json"]).expect_code(0).json();
    let (correct, total) = (&done["result"]["correct"], &done["result"]["total"]);
    assert_eq!(total, 4);
    for file in ["config.toml", "log.jsonl", "student.safetensors", "predictions.safetensors", "result.json"]
    {
        assert!(folder.path().join("out").join(file).is_file(), "{file}");
    }
    let checkpoints = fs::read_dir(folder.path().join("out")).unwrap().flatten();
    assert_eq!(checkpoints.filter(|e| e.file_name().to_string_lossy().starts_with("checkpoint")).count(), 0);

    let again = run(folder.path(), &["train", "x.toml", "--output", "out"]).expect_code(0);
    assert!(again.stdout.contains("already finished"), "{}", again.stdout);

    // Images that were moved since are still found, by --path or a setting.
    fs::rename(folder.path().join("own"), folder.path().join("moved")).unwrap();
    run(folder.path(), &["eval", "out"]).expect_code(2).expect_stderr(&["own"]);
    let moved = ["eval", "out", "--json", "--path", "moved", "--set", "eval.batch=1"];
    let said = run(folder.path(), &moved).expect_code(0).json();
    assert_eq!((&said["correct"], &said["total"]), (correct, total));
    run(folder.path(), &["eval", "out", "--set", "train.epochs=3"])
        .expect_code(2)
        .expect_stderr(&["`train` belongs to the training"]);
    fs::rename(folder.path().join("moved"), folder.path().join("own")).unwrap();

    let again = run(folder.path(), &["eval", "out", "--json"]).expect_code(0).json();
    assert_eq!((&again["correct"], &again["total"]), (correct, total));

    let image = folder.path().join("own/meadow/jpeg_420.input.jpg");
    let image = image.to_str().unwrap();
    let said =
        run(folder.path(), &["predict", "out/student.safetensors", image, "--json"]).expect_code(0).json();
    let classes = said[0]["classes"].as_array().unwrap();
    let sum: f64 = classes.iter().map(|c| c["probability"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5 && classes.len() == 2, "{said}");
    assert!(run(folder.path(), &["predict", "out", image]).expect_code(0).stdout.contains(" %"));
    // Export the student and import it again.
    let weights = |args: &[&str]| run(folder.path(), &[&["weights"], args].concat());
    let export = ["export", "out", "--output", "exported", "--onnx", "--dtype", "f16", "--json"];
    let exported = weights(&export).expect_code(0).json();
    assert_eq!((&exported["classes"], &exported["timm_error"]), (&2.into(), &serde_json::Value::Null));
    for file in ["model.safetensors", "config.json", "README.md", "model.onnx"] {
        assert!(folder.path().join("exported").join(file).is_file(), "{file}");
    }
    let card = fs::read_to_string(folder.path().join("exported/README.md")).unwrap();
    assert!(card.contains("meadow, quarry") && card.contains("4 test images correct"), "{card}");
    weights(&export).expect_code(2).expect_stderr(&["already exists"]);
    let (half, whole) = ("exported/model.safetensors", "out/student.safetensors");
    let import = ["import", half, "--arch", "mobilenetv2_100", "--output", "back.safetensors", "--json"];
    let imported = weights(&import).expect_code(0).json();
    assert_eq!((&imported["classes"], &imported["report"]["naming"]), (&2.into(), &"timm".into()));
    assert!(weights(&["diff", whole, "back.safetensors"]).expect_code(1).stdout.contains("conv_stem.weight"));
    let same =
        weights(&["diff", whole, "back.safetensors", "--tolerance", "0.1", "--json"]).expect_code(0).json();
    assert_eq!(same["equal"], imported["report"]["matched"]);
    let other = weights(&["check", whole, "--arch", "mobilenetv2_140", "--json"]).expect_code(1).json();
    assert!(!other["report"]["mismatched"].as_array().unwrap().is_empty());
    assert!(weights(&["check"]).expect_code(0).stdout.contains("resnet101.imagenet"));
    // An unreadable image does not stop the others.
    write(folder.path(), "no.jpg", "no image");
    let said =
        run(folder.path(), &["predict", "out", "no.jpg", image]).expect_code(1).expect_stderr(&["no.jpg"]);
    assert!(said.stdout.contains("jpeg_420"), "{}", said.stdout);
}

/// Teacher, student, method and optimizer on candle's graph, as on a GPU.
#[test]
fn graph_engine_trains_like_the_kernels() {
    let folder = tempfile::tempdir().unwrap();
    // Rounding differences grow less than in MobileNetV2, whose last maps have one pixel.
    write(folder.path(), "x.toml", &tiny("").replace("mobilenetv2_100", "cifar_resnet20"));
    let totals = |engine: &str, precision: &str| -> Vec<f64> {
        let runs = format!("{engine}-{precision}");
        let args = ["train", "x.toml", "--output", &format!("{runs}/out"), "--precision", precision];
        let mut train = stillhouse(folder.path(), &args);
        let said = train.env("STILLHOUSE_ENGINE", engine).env("STILLHOUSE_RUNS", &runs).output().unwrap();
        CmdOutput::from(said).expect_code(0);
        let log = fs::read_to_string(folder.path().join(runs).join("out/log.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let (kernels, graph, low) = (totals("kernels", "f32"), totals("graph", "f32"), totals("graph", "bf16"));
    assert_eq!(kernels.len(), 3);
    assert!((low[0] - graph[0]).abs() < 0.02 * graph[0] && low != graph, "{low:?} {graph:?}");
    // Rounding differences grow with each step.
    for ((a, b), part) in kernels.iter().zip(&graph).zip([0.005, 0.02, 0.1]) {
        assert!((a - b).abs() < part * a.abs(), "{kernels:?} {graph:?}");
    }
    assert_ne!(kernels, graph, "the engines round differently");
    for (runs, precision) in [("graph-f32", false), ("graph-bf16", true)] {
        let result = fs::read_to_string(folder.path().join(runs).join("out/result.json")).unwrap();
        assert!(result.contains("\"engine\": \"graph\""), "{result}");
        assert_eq!(result.contains("\"precision\": \"bf16\""), precision, "{result}");
    }
    let mut wrong = stillhouse(folder.path(), &["train", "x.toml", "--output", "new"]);
    CmdOutput::from(wrong.env("STILLHOUSE_ENGINE", "grahp").output().unwrap())
        .expect_stderr(&["grahp", "`kernels` or `graph`"]);
}

#[test]
fn own_experiment_gets_a_table() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "mine.toml",
        &tiny("[matrix]\nmethod = [\"baseline\", \"kd\"]\n[when.method.baseline]\nloss = []"),
    );
    let said = run(folder.path(), &["reproduce", "mine.toml", "--set", "train.epochs=1"]).expect_code(0);
    assert!(said.stdout.contains("kd") && !said.stdout.contains("rkd"), "{}", said.stdout);
}

/// Tables that run nothing: the measured increase of parameters is close to the published one.
#[test]
fn counts_datasets_and_models() {
    let folder = tempfile::tempdir().unwrap();
    let json = run(folder.path(), &["reproduce", "mksmt_sizes", "--json"]).expect_code(0).json();
    assert_eq!(json["models"].as_array().unwrap().len(), 2);
    let increase = &json["published"][0];
    let measured = increase["measured"].as_f64().unwrap();
    assert!((1.05..1.15).contains(&measured) && increase["published"] == "1.1", "{json}");
    let said = run(folder.path(), &["reproduce", "mksmt_sizes"]).expect_code(0);
    assert!(said.stdout.contains("Table 7") && said.stdout.contains("1.08"), "{}", said.stdout);
    let json = run(folder.path(), &["reproduce", "table1", "--json"]).expect_code(0).json();
    assert_eq!(json["datasets"].as_array().unwrap().len(), 4, "{json}");
    run(folder.path(), &["reproduce", "table1", "--set", "train.epochs=1"])
        .expect_code(2)
        .expect_stderr(&["table1", "no settings"]);
}

/// A paper that the binary does not contain is a folder: its experiment is found by name, and its numbers are shown
/// next to the measured ones.
#[test]
fn own_paper_is_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let paper = folder.path().join("experiments/roses");
    fs::create_dir_all(&paper).unwrap();
    let text = r#"
title = "Distillation of Roses"
short = "Roses"
authors = "A. B."
venue = "Journal of Roses 1(1): 1-2"
year = 2020
text = "all of it"

[[table]]
id = "t1"
title = "Accuracy, %"
values = [
    { row = "KD", column = "80 %", printed = "77.7", value = 77.7, unit = "%", source = "table", measured = { quantity = "accuracy", method = "kd", dataset = "scenes" } },
    { row = "KD", column = "gain", printed = "3.3", value = 3.3, unit = "points", source = "text", measured = { quantity = "accuracy", method = "kd", dataset = "scenes", minus = { method = "baseline" } } },
]
"#;
    fs::write(paper.join("paper.toml"), text).unwrap();
    let experiment = tiny(
        "[matrix]\nmethod = [\"baseline\", \"kd\"]\n[when.method.baseline]\nloss = []\n\
         [published]\npaper = \"roses\"\ntable = \"t1\"",
    );
    fs::write(paper.join("roses_table1.toml"), experiment).unwrap();
    let listed = run(folder.path(), &["list", "experiments"]).expect_code(0).stdout;
    assert!(listed.contains("roses_table1"), "{listed}");
    let args = ["reproduce", "roses_table1", "--set", "train.epochs=1", "--json"];
    let json = run(folder.path(), &args).expect_code(0).json();
    assert_eq!(json["cells"][1]["published"], 77.7, "{json}");
    for line in json["published"].as_array().unwrap() {
        assert!(line["measured"].is_f64(), "{line}");
    }
    let table = folder.path().join("runs/roses_table1/default");
    let page = fs::read_to_string(table.join("report.html")).unwrap();
    assert!(page.contains("77.7") && page.contains("3.3"));
    // From elsewhere: the table names the paper's file.
    let elsewhere = tempfile::tempdir().unwrap();
    let again = run(elsewhere.path(), &["report", table.to_str().unwrap(), "--json"]).expect_code(0).json();
    assert_eq!(again["published"], json["published"]);
}

/// Swin with two exits and two training phases per batch: a table with both exits.
#[test]
fn two_phases_per_batch_get_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let sets = [
        "data.per_class=[1,1]",
        "data.image_size=32",
        "data.train_transforms=[{ op = 'resize', width = 32, height = 32 }]",
        "data.test_transforms=[{ op = 'resize', width = 32, height = 32 }]",
        "student.variant.img_size=32",
        "train.epochs=1",
        "eval.views=['vflip']",
        "matrix.method=['mksmt']",
    ];
    let mut args = vec!["reproduce", "mksmt_cub", "--profile", "quick", "--json"];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let json = run(folder.path(), &args).expect_code(0).json();
    for part in [
        "species (synthetic, procedural)",
        "Phases of a batch: 2 (1. ce at exit3.logits, runs to exit 3 and trains",
    ] {
        assert!(json["caption"].as_str().unwrap().contains(part), "{json}");
    }
    let cells = json["cells"].as_array().unwrap();
    assert!(
        cells.iter().all(|c| c["student"] == "swin_tiny_patch4_window7_224" && c["state"] == "done"),
        "{json}"
    );
    let exits = json["exits"].as_array().unwrap();
    let named = |e: &serde_json::Value| format!("{} {} {}", e["method"], e["exit"], e["vflip"].is_f64());
    let named: Vec<String> = exits.iter().map(named).collect();
    let of = |method: &str, exit: &str| format!("\"{method}\" \"{exit}\" true");
    assert_eq!(named, [of("mksmt", "exit3"), of("mksmt", "last")]);
    let published = json["published"].as_array().unwrap();
    assert!(published.iter().any(|line| line["row"] == "MKSMT" && line["published"] == "92.8"), "{json}");
    run(folder.path(), &["report", "runs/mksmt_cub/quick", "--samples", "mksmt"]).expect_code(0);
    let page = fs::read_to_string(folder.path().join("runs/mksmt_cub/quick/report.html")).unwrap();
    for text in ["Exits and views", "Grad-CAM at F2", "maps at F2, F3, F4", "vflip", "92.8"] {
        assert!(page.contains(text), "no `{text}` on the page");
    }
}

#[test]
fn make_help_lists_targets() {
    let output = std::process::Command::new("make").arg("help").current_dir(root()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for target in ["reproduce-table3", "test", "check", "kill-test"] {
        assert!(text.contains(&format!("make {target}")), "{text}");
    }
}

/// From own images to a prediction; the same command resumes, other arguments are refused.
#[test]
fn own_images_in_one_command() {
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("mine"));
    let args = [
        "distill",
        "mine",
        "--output",
        "out",
        "--teacher",
        "resnet18",
        "--method",
        "kd",
        "--epochs",
        "2",
        "--size",
        "32",
    ];
    let said = run(folder.path(), &args).expect_code(0);
    assert!(said.stdout.contains("stillhouse predict out"), "{}", said.stdout);
    for file in
        ["student.safetensors", "student.onnx", "config.toml", "report.html", "table.json", "distill.toml"]
    {
        assert!(folder.path().join("out").join(file).is_file(), "{file}");
    }
    let page = std::fs::read_to_string(folder.path().join("out/report.html")).unwrap();
    assert!(page.contains("data:image/png;base64,") && page.contains("Grad-CAM"), "no samples on the page");
    let said = run(folder.path(), &["predict", "out", "mine/quarry/jpeg_restart.image.png"]).expect_code(0);
    assert!(said.stdout.contains("meadow") && said.stdout.contains("quarry"), "{}", said.stdout);

    let student = std::fs::read(folder.path().join("out/student.safetensors")).unwrap();
    run(folder.path(), &args).expect_code(0).expect_stderr(&["resuming"]);
    assert_eq!(std::fs::read(folder.path().join("out/student.safetensors")).unwrap(), student);
    let other = ["distill", "mine", "--output", "out", "--teacher", "resnet18", "--epochs", "3"];
    run(folder.path(), &other).expect_code(2).expect_stderr(&["created by another command", "--method kd"]);

    // The finished student teaches as it is: the plan has no teacher to train.
    let given = [
        "distill",
        "mine",
        "--output",
        "second",
        "--teacher",
        "out",
        "--method",
        "kd",
        "--epochs",
        "1",
        "--size",
        "32",
    ];
    run(folder.path(), &given).expect_code(0);
    assert!(!folder.path().join("second/teachers").exists());

    // So do weights without a run: they are tested, not trained, and the model is found by its tensors.
    let weights = "out/student.safetensors";
    let args = ["distill", "mine", "--output", "third", "--method", "dkd", "--epochs", "1", "--size", "32"];
    let said = run(folder.path(), &[&args[..], &["--teacher", weights]].concat()).expect_code(0);
    let said = said.expect_stderr(&["taken as it is", "in the order", "as they are"]);
    // The images have two classes.
    said.expect_stderr(&["term `nckd` of `dkd` has no effect: it was 0 in every step"]);
    let teachers = std::fs::read_dir(folder.path().join("third/teachers")).unwrap();
    let [teacher] = &teachers.map(|e| e.unwrap().path()).collect::<Vec<_>>()[..] else { panic!() };
    let [first, second] =
        [folder.path().join(weights), teacher.join("student.safetensors")].map(|p| std::fs::read(p).unwrap());
    assert!(first == second, "the teacher's weights are those of the file");
    run(folder.path(), &["distill", "nowhere", "--output", "x"])
        .expect_code(2)
        .expect_stderr(&["nowhere: no such folder"]);
    run(folder.path(), &["distill", "mine", "--output", "x", "--budget", "soon"]).expect_code(2);
}
