//! What is known before training is refused before training: exit code 2, nothing written, and within seconds.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use stillhouse_tests::{images, run};

/// Files and folders below a folder.
fn listing(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap().path();
            all.push(entry.display().to_string());
            if entry.is_dir() {
                open.push(entry);
            }
        }
    }
    all.sort();
    all
}

/// Runs a command that must be refused with these words.
#[track_caller]
fn refused(folder: &Path, args: &[&str], words: &[&str]) {
    let (before, start) = (listing(folder), Instant::now());
    run(folder, args).expect_code(2).expect_stderr(words);
    assert!(start.elapsed() < Duration::from_secs(60), "{args:?} trained something before");
    assert_eq!(listing(folder), before, "{args:?} wrote something");
}

#[test]
fn distill_refuses_what_does_not_fit() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    images(&folder.join("own"));
    fs::write(folder.join("file"), b"").unwrap();
    let distill = |more: &[&'static str]| [&["distill", "own"], more].concat();
    for (more, words) in [
        (&["--output", "out", "--method", "frkd"][..], &["frkd", "label masks"][..]),
        (
            &["--output", "out", "--method", "kd", "--student", "deeplabv3plus_resnet18"],
            &["expected logits [N]", "one class per image"],
        ),
        (
            &["--output", "out", "--teacher", "swin_tiny_patch4_window7_224", "--size", "160"],
            &["expected 224 x 224, found 160 x 160"],
        ),
        (&["--output", "out", "--student", "resnet18", "--method", "byot"], &["exit"]),
        (&["--output", "file"], &["not usable", "another --output"]),
        (&["--output", "own/out"], &["inside of the folder of images", "another output folder"]),
        (&["--output", "own"], &["inside of the folder of images"]),
        (&["--output", "out", "--threads", "1000"], &["--threads is 1000", "cores"]),
    ] {
        refused(folder, &distill(more), words);
    }
    // Weights of another number of classes cannot teach as they are, and an unknown file has no model.
    run(folder, &["train", "quickstart", "--output", "run", "--set", "train.epochs=1", "--set", "loss=[]"])
        .expect_code(0);
    let weights = "run/student.safetensors";
    refused(folder, &distill(&["--output", "out", "--teacher", weights]), &["classes"]);
    let other = ["--output", "out", "--teacher", weights, "--teacher-model", "resnet50"];
    refused(folder, &distill(&other), &["resnet50"]);
    fs::write(folder.join("page.pth"), "<!DOCTYPE html><html></html>").unwrap();
    refused(folder, &distill(&["--output", "out", "--teacher", "page.pth"]), &["page.pth", "HTML"]);
    // Networks without ImageNet weights start from scratch, and the size suits a network that has only one.
    for more in [
        &[
            "--output",
            "out",
            "--student",
            "cifar_resnet20",
            "--teacher",
            "vgg11",
            "--method",
            "kd",
            "--check",
        ][..],
        &["--output", "out", "--student", "exits", "--method", "byot", "--check"],
        &["--output", "out", "--teacher", "swin_tiny_patch4_window7_224", "--method", "kd", "--check"],
    ] {
        let before = listing(folder);
        assert!(run(folder, &distill(more)).expect_code(0).stdout.contains("ok: "), "{more:?}");
        assert_eq!(listing(folder), before);
    }
}

#[test]
fn train_refuses_what_cannot_be_trained() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    fs::write(folder.join("file"), b"").unwrap();
    let train = |sets: &[&'static str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        [&["train", "quickstart", "--output", "out"][..], &sets.collect::<Vec<_>>()].concat()
    };
    let tiny = "data.train_transforms=[{ op = 'resize', width = 32, height = 32 }]";
    for (sets, words) in [
        (&["data.image_size=32"][..], &["64 x 64 pixels", "32 x 32"][..]),
        (&[tiny], &["32 x 32 pixels", "64 x 64"]),
        (&["data.train_transforms=[]"], &["72 x 72 pixels", "64 x 64"]),
        (&["data.image_width=96"], &["64 x 64 pixels", "64 x 96"]),
        (&["data.ratio=0.8"], &["did you mean 80?"]),
        (
            &["loss=[{ method = 'rkd' }]", "train.sampler={ kind = 'shuffle', batch = 1 }"],
            &["at least 2 images"],
        ),
        (
            &[
                "student.model='deeplabv3plus_resnet18'",
                "loss=[]",
                "data.dataset='fields'",
                "data.split='official'",
                "data.ratio=0",
                "train.sampler={ kind = 'shuffle', batch = 1 }",
            ],
            &["single value per channel", "drop_last"],
        ),
        (&["student.init='file/none.pth'"], &["none.pth"]),
        (
            &["train.sampler={ kind = 'shuffle', batch = 4000, drop_last = true }"],
            &["too few training images"],
        ),
    ] {
        refused(folder, &train(sets), words);
    }
    refused(folder, &["train", "quickstart", "--output", "file"], &["file is a file"]);
    refused(folder, &["train", "quickstart", "--output", "file/deep/out"], &["file is a file"]);
    let check = run(folder, &["train", "quickstart", "--output", "out", "--check"]).expect_code(0);
    assert!(check.stdout.contains("ok: 2 runs checked"));
    assert_eq!(listing(folder).len(), 1, "--check writes nothing");
}

#[test]
fn set_mends_a_wrong_value_of_the_file() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    images(&folder.join("own"));
    let text = stillhouse_tests::on_images(&folder.join("own")).replace("ratio = ", "ratio = 0.");
    stillhouse_tests::write(folder, "x.toml", &text);
    refused(folder, &["train", "x.toml", "--output", "out"], &["ratio", "expected whole percent"]);
    let args = ["train", "x.toml", "--output", "out", "--set", "data.ratio=50", "--check"];
    assert!(run(folder, &args).expect_code(0).stdout.contains("ok: "));
}

#[test]
fn reproduce_checks_all_cells_first() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let set = ["--set", "matrix.method=[\"baseline\", \"frkd\", \"cwd\"]"];
    let args = [&["reproduce", "table3", "--profile", "quick"], &set[..]].concat();
    refused(folder, &args, &["frkd", "and 3 more", "label masks"]);
    let args = ["reproduce", "table3", "--profile", "quick", "--check"];
    assert!(run(folder, &args).expect_code(0).stdout.contains("ok: 47 runs checked"));
    assert!(listing(folder).is_empty());
}

#[test]
fn a_folder_of_another_run_is_refused_before_the_teacher_is_trained() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let short = ["--set", "train.epochs=1", "--set", "teacher.train.epochs=1", "--set", "loss=[]"];
    let args = [&["train", "quickstart", "--output", "out"], &short[..]].concat();
    run(folder, &args).expect_code(0);
    let words = ["out", "holds another run", "train.epochs: expected", "found 1"];
    refused(folder, &["train", "quickstart", "--output", "out"], &words);
    assert!(run(folder, &args).expect_code(0).stdout.contains("already finished"));
}
