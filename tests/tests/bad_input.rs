//! Bad input ends with a clear error and an exit code, and nothing is lost.

use std::fs;
use std::path::Path;
use std::process::Command;

use stillhouse_tests::{binary, images, on_images, run, stillhouse, write};

/// A folder with images and an experiment on them.
fn prepared() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("own"));
    write(folder.path(), "x.toml", &on_images(&folder.path().join("own")));
    folder
}

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["train", "x.toml", "--output", "out"].into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn missing_data_folder() {
    let folder = prepared();
    let said = run(folder.path(), &train(&["--set", "data.dataset=ucm"])).code(2);
    said.tells(&["error: ", "UCMerced_LandUse", "STILLHOUSE_DATA"]);
    run(folder.path(), &train(&["--set", "data.path=nowhere"])).code(2).tells(&["nowhere"]);
    run(folder.path(), &["data", "check", "ucm"]).code(2).tells(&["UCMerced_LandUse"]);
    assert!(!folder.path().join("out").exists());
    // A profile that needs real data names it; smoke goes on without.
    run(folder.path(), &["reproduce", "table3", "--profile", "reduced"]).code(2).tells(&["UCMerced_LandUse"]);
}

#[test]
fn an_empty_class() {
    let folder = prepared();
    fs::create_dir(folder.path().join("own/lagoon")).unwrap();
    run(folder.path(), &train(&[])).code(2).tells(&["lagoon", "no image"]);
    let said = run(folder.path(), &["data", "check", "folder", "--root", "own"]).code(1);
    assert!(said.stdout.contains("lagoon"), "{}", said.stdout);
}

#[test]
fn a_truncated_jpeg() {
    let folder = prepared();
    let file = folder.path().join("own/meadow/jpeg_420.input.jpg");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 3]).unwrap();
    run(folder.path(), &train(&[])).code(1).tells(&["jpeg_420.input.jpg", "broken JPEG"]);
    // With the file mended the same command has another dataset before it, and says so or runs.
    fs::write(&file, &bytes).unwrap();
    fs::remove_dir_all(folder.path().join("out")).unwrap();
    run(folder.path(), &train(&[])).code(0);
}

#[test]
fn weights_of_another_class_count() {
    let folder = prepared();
    run(folder.path(), &train(&["--set", "train.epochs=1"])).code(0);
    fs::create_dir(folder.path().join("own/lagoon")).unwrap();
    for file in ["jpeg_420.image.png", "jpeg_444.input.jpg"] {
        fs::copy(folder.path().join("own/meadow").join(file), folder.path().join("own/lagoon").join(file))
            .unwrap();
    }
    run(folder.path(), &["train", "x.toml", "--output", "three", "--set", "train.epochs=1"]).code(0);
    fs::copy(folder.path().join("out/student.safetensors"), folder.path().join("three/other.safetensors"))
        .unwrap();
    let image = "own/meadow/jpeg_420.image.png";
    run(folder.path(), &["predict", "three/other.safetensors", image]).code(2).tells(&[
        "other.safetensors",
        "2 classes",
        "3",
    ]);
    // As a start for training the head is replaced, and that is said.
    let from = "student.init=three/student.safetensors";
    run(folder.path(), &["train", "x.toml", "--output", "fine", "--set", "train.epochs=1", "--set", from])
        .code(0);
}

#[test]
fn weights_that_are_none() {
    let folder = prepared();
    write(folder.path(), "bad.safetensors", "no weights");
    let said = run(folder.path(), &train(&["--set", "student.init=bad.safetensors"]));
    assert!(said.code == Some(1) || said.code == Some(2), "{said:?}");
    said.tells(&["bad.safetensors"]);
    run(folder.path(), &train(&["--set", "student.init=imagenet"])).code(2).tells(&["STILLHOUSE_WEIGHTS"]);
}

#[test]
fn unknown_fields_and_names() {
    let folder = prepared();
    run(folder.path(), &train(&["--set", "train.epoch=3"]))
        .code(2)
        .tells(&["epoch", "did you mean `epochs`"]);
    run(folder.path(), &train(&["--set", "loss=[{ method = 'clas_centric' }]"]))
        .code(2)
        .tells(&["clas_centric", "did you mean `class_centric`"]);
    run(folder.path(), &train(&["--set", "loss=[{ method = 'kd', temprature = 2.0 }]"]))
        .code(2)
        .tells(&["temprature"]);
    run(folder.path(), &train(&["--set", "student.backbone=resnet19"])).code(2).tells(&["resnet18"]);
    run(folder.path(), &train(&["--set", "train.epochs=three"])).code(2).tells(&["epochs", "three"]);
    run(folder.path(), &train(&["--set", "train.epochs"])).code(2).tells(&["KEY=VALUE"]);
    let text = on_images(&folder.path().join("own")).replace("epochs = 2", "epochs = 2\nepoch = 2");
    write(folder.path(), "x.toml", &text);
    run(folder.path(), &train(&[])).code(2).tells(&["x.toml", "epoch"]);
    write(folder.path(), "x.toml", "[data\n");
    run(folder.path(), &train(&[])).code(2).tells(&["x.toml:1"]);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn an_output_folder_in_use() {
    let folder = prepared();
    run(folder.path(), &train(&[])).code(0);
    let before = fs::read(folder.path().join("out/student.safetensors")).unwrap();
    // Another run is not laid over it.
    run(folder.path(), &train(&["--set", "train.epochs=3"])).code(2).tells(&["out", "another output folder"]);
    assert_eq!(fs::read(folder.path().join("out/student.safetensors")).unwrap(), before);
    // A folder of something else.
    fs::create_dir(folder.path().join("mine")).unwrap();
    write(&folder.path().join("mine"), "letter.txt", "dear");
    let said = run(folder.path(), &["train", "x.toml", "--output", "mine/letter.txt"]);
    assert!(said.code == Some(1) || said.code == Some(2), "{said:?}");
    assert_eq!(fs::read_to_string(folder.path().join("mine/letter.txt")).unwrap(), "dear");
    // A process that is at it.
    let mut first =
        stillhouse(folder.path(), &["train", "x.toml", "--output", "busy", "--set", "train.epochs=500"])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
    let lock = folder.path().join("busy/config.toml");
    for _ in 0..600 {
        if lock.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let said = run(folder.path(), &["train", "x.toml", "--output", "busy", "--set", "train.epochs=500"]);
    first.kill().unwrap();
    first.wait().unwrap();
    said.code(2).tells(&["busy", "another process"]);
}

/// The disk is full in the middle of a run: the error says so, earlier checkpoints stay, and with
/// room again the run ends with the bytes of one that was never stopped.
#[test]
fn a_full_disk_during_a_checkpoint() {
    let folder = prepared();
    let args = ["train", "x.toml", "--output", "disk/out", "--set", "train.epochs=3"];
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    match SmallDisk::mount(&disk, "40m") {
        Some(mounted) => {
            let said = run(folder.path(), &args).code(1);
            assert!(checkpoints(&disk.join("out")) > 0, "no checkpoint before the disk was full: {said:?}");
            said.tells(&["checkpoint", "No space left"]);
            mounted.resize("400m");
            compare(folder.path(), &args);
        }
        None => {
            // No right to mount: a limit on the size of a file does as well.
            let command = format!("trap '' XFSZ; ulimit -f 4000; exec {:?} {}", binary(), args.join(" "));
            let output =
                Command::new("bash").args(["-c", &command]).current_dir(folder.path()).output().unwrap();
            stillhouse_tests::Said::from(output).code(1).tells(&["checkpoint", "File too large"]);
            compare(folder.path(), &args);
        }
    }
}

fn compare(folder: &Path, args: &[&str]) {
    run(folder, args).code(0);
    run(folder, &["train", "x.toml", "--output", "whole", "--set", "train.epochs=3"]).code(0);
    let student = |run: &str| fs::read(folder.join(run).join("student.safetensors")).unwrap();
    assert!(student("disk/out") == student("whole"), "the student differs from the uninterrupted one");
}

fn checkpoints(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with("checkpoint-")).count()
}

/// A mounted tmpfs, taken away at the end.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        let option = format!("size={size}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &option, "tmpfs"]).arg(at).output();
        mount.is_ok_and(|m| m.status.success()).then(|| Self(at.to_path_buf()))
    }

    fn resize(&self, size: &str) {
        let option = format!("remount,size={size}");
        let status = Command::new("mount").args(["-o", &option]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
