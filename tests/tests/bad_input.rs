//! Invalid input: clear errors, exit codes, and no lost work.

use std::fs;
use std::path::Path;
use std::process::Command;

use stillhouse_tests::{binary, images, on_images, run, stillhouse, write};

/// Creates a folder with images and an experiment on them.
fn image_experiment() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    images(&folder.path().join("own"));
    write(folder.path(), "x.toml", &on_images(&folder.path().join("own")));
    folder
}

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["train", "x.toml", "--output", "out"].into_iter().chain(more.iter().copied()).collect()
}

#[test]
fn rejects_missing_data_folder() {
    let folder = image_experiment();
    let said = run(folder.path(), &train(&["--set", "data.dataset=ucm"])).expect_code(2);
    said.expect_stderr(&["error: ", "UCMerced_LandUse", "STILLHOUSE_DATA"]);
    run(folder.path(), &train(&["--set", "data.path=nowhere"])).expect_code(2).expect_stderr(&["nowhere"]);
    run(folder.path(), &["data", "check", "ucm"]).expect_code(2).expect_stderr(&["UCMerced_LandUse"]);
    assert!(!folder.path().join("out").exists());
    // A profile that needs real data names the dataset.
    run(folder.path(), &["reproduce", "table3", "--profile", "reduced"])
        .expect_code(2)
        .expect_stderr(&["UCMerced_LandUse"]);
}

#[test]
fn rejects_empty_class() {
    let folder = image_experiment();
    fs::create_dir(folder.path().join("own/lagoon")).unwrap();
    run(folder.path(), &train(&[])).expect_code(2).expect_stderr(&["lagoon", "no image"]);
    let said = run(folder.path(), &["data", "check", "folder", "--root", "own"]).expect_code(1);
    assert!(said.stdout.contains("lagoon"), "{}", said.stdout);
}

#[test]
fn reports_truncated_jpeg() {
    let folder = image_experiment();
    let file = folder.path().join("own/meadow/jpeg_420.input.jpg");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 3]).unwrap();
    run(folder.path(), &train(&[])).expect_code(2).expect_stderr(&["jpeg_420.input.jpg", "corrupt JPEG"]);
    assert!(!folder.path().join("out").exists(), "refused before anything is written");
    fs::write(&file, &bytes).unwrap();
    run(folder.path(), &train(&[])).expect_code(0);
}

#[test]
fn rejects_weights_with_another_class_count() {
    let folder = image_experiment();
    run(folder.path(), &train(&["--set", "train.epochs=1"])).expect_code(0);
    fs::create_dir(folder.path().join("own/lagoon")).unwrap();
    for file in ["jpeg_420.image.png", "jpeg_444.input.jpg"] {
        fs::copy(folder.path().join("own/meadow").join(file), folder.path().join("own/lagoon").join(file))
            .unwrap();
    }
    run(folder.path(), &["train", "x.toml", "--output", "three", "--set", "train.epochs=1"]).expect_code(0);
    fs::copy(folder.path().join("out/student.safetensors"), folder.path().join("three/other.safetensors"))
        .unwrap();
    let image = "own/meadow/jpeg_420.image.png";
    run(folder.path(), &["predict", "three/other.safetensors", image]).expect_code(2).expect_stderr(&[
        "other.safetensors",
        "2 classes",
        "3",
    ]);
    // Training from these weights replaces the head.
    let from = "student.init=three/student.safetensors";
    run(folder.path(), &["train", "x.toml", "--output", "fine", "--set", "train.epochs=1", "--set", from])
        .expect_code(0);
}

#[test]
fn rejects_invalid_weights_file() {
    let folder = image_experiment();
    write(folder.path(), "bad.safetensors", "no weights");
    let said = run(folder.path(), &train(&["--set", "student.init=bad.safetensors"]));
    assert!(said.code == Some(1) || said.code == Some(2), "{said:?}");
    said.expect_stderr(&["bad.safetensors"]);
    run(folder.path(), &train(&["--set", "student.init=imagenet"]))
        .expect_code(2)
        .expect_stderr(&["STILLHOUSE_WEIGHTS"]);
}

#[test]
fn suggests_names_for_unknown_fields() {
    let folder = image_experiment();
    run(folder.path(), &train(&["--set", "train.epoch=3"]))
        .expect_code(2)
        .expect_stderr(&["epoch", "did you mean `epochs`"]);
    run(folder.path(), &train(&["--set", "loss=[{ method = 'clas_centric' }]"]))
        .expect_code(2)
        .expect_stderr(&["clas_centric", "did you mean `class_centric`"]);
    run(folder.path(), &train(&["--set", "loss=[{ method = 'kd', temprature = 2.0 }]"]))
        .expect_code(2)
        .expect_stderr(&["temprature"]);
    run(folder.path(), &train(&["--set", "student.model=resnet19"]))
        .expect_code(2)
        .expect_stderr(&["resnet18"]);
    run(folder.path(), &train(&["--set", "train.epochs=three"]))
        .expect_code(2)
        .expect_stderr(&["epochs", "three"]);
    run(folder.path(), &train(&["--set", "train.epochs"])).expect_code(2).expect_stderr(&["KEY=VALUE"]);
    let text = on_images(&folder.path().join("own")).replace("epochs = 2", "epochs = 2\nepoch = 2");
    write(folder.path(), "x.toml", &text);
    run(folder.path(), &train(&[])).expect_code(2).expect_stderr(&["x.toml", "epoch"]);
    write(folder.path(), "x.toml", "[data\n");
    run(folder.path(), &train(&[])).expect_code(2).expect_stderr(&["x.toml:1"]);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn rejects_output_folder_in_use() {
    let folder = image_experiment();
    run(folder.path(), &train(&[])).expect_code(0);
    let before = fs::read(folder.path().join("out/student.safetensors")).unwrap();
    // A different run does not overwrite it.
    run(folder.path(), &train(&["--set", "train.epochs=3"]))
        .expect_code(2)
        .expect_stderr(&["out", "another output folder"]);
    assert_eq!(fs::read(folder.path().join("out/student.safetensors")).unwrap(), before);
    // Files that do not belong to a run.
    fs::create_dir(folder.path().join("mine")).unwrap();
    write(&folder.path().join("mine"), "letter.txt", "dear");
    let said = run(folder.path(), &["train", "x.toml", "--output", "mine/letter.txt"]);
    assert!(said.code == Some(1) || said.code == Some(2), "{said:?}");
    assert_eq!(fs::read_to_string(folder.path().join("mine/letter.txt")).unwrap(), "dear");
    // A run in progress.
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
    said.expect_code(2).expect_stderr(&["busy", "another process"]);
}

/// A full disk in the middle of a run is reported, earlier checkpoints stay valid, and the run resumes to
/// the same bytes once there is space.
#[test]
fn resumes_after_a_full_disk() {
    let folder = image_experiment();
    let args = ["train", "x.toml", "--output", "disk/out", "--set", "train.epochs=3"];
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    match SmallDisk::mount(&disk, "40m") {
        Some(mounted) => {
            let said = run(folder.path(), &args).expect_code(1);
            assert!(checkpoints(&disk.join("out")) > 0, "no checkpoint before the disk was full: {said:?}");
            said.expect_stderr(&["checkpoint", "No space left"]);
            mounted.resize("400m");
            compare(folder.path(), &args);
        }
        None => {
            // Without the right to mount, a file size limit has the same effect.
            let command = format!("trap '' XFSZ; ulimit -f 4000; exec {:?} {}", binary(), args.join(" "));
            let output =
                Command::new("bash").args(["-c", &command]).current_dir(folder.path()).output().unwrap();
            stillhouse_tests::CmdOutput::from(output)
                .expect_code(1)
                .expect_stderr(&["checkpoint", "File too large"]);
            compare(folder.path(), &args);
        }
    }
}

fn compare(folder: &Path, args: &[&str]) {
    run(folder, args).expect_code(0);
    run(folder, &["train", "x.toml", "--output", "whole", "--set", "train.epochs=3"]).expect_code(0);
    let student = |run: &str| fs::read(folder.join(run).join("student.safetensors")).unwrap();
    assert!(student("disk/out") == student("whole"), "the student differs from the uninterrupted one");
}

fn checkpoints(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with("checkpoint-")).count()
}

/// A tmpfs, unmounted on drop.
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
