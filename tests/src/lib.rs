//! Helpers of the end-to-end tests, which run the binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub use stillhouse_testkit::command::CmdOutput;

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Returns the binary: `STILLHOUSE_TEST_BINARY`, or one built by cargo in the profile of this test.
///
/// # Panics
/// If it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // `make test` builds it with the whole workspace. A build of the package alone unifies features
        // differently and would rebuild half of the dependencies.
        if let Some(built) = std::env::var_os("STILLHOUSE_TEST_BINARY").map(PathBuf::from) {
            assert!(built.is_file(), "STILLHOUSE_TEST_BINARY: {} does not exist", built.display());
            return built;
        }
        // target/<profile>/deps/<test>
        let test = std::env::current_exe().expect("the test has a path");
        let profile = test.ancestors().nth(2).expect("tests lie in target/<profile>/deps");
        let name = profile.file_name().and_then(|n| n.to_str()).expect("the profile's folder has a name");
        let target = profile.parent().expect("the profile lies in the target folder");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root()).args(["build", "--quiet", "-p", "stillhouse-cli", "--bin", "stillhouse"]);
        cargo.arg("--target-dir").arg(target);
        cargo.args(["--profile", if name == "debug" { "dev" } else { name }]);
        let status = cargo.status().expect("cargo can be started");
        assert!(status.success(), "the binary does not build");
        profile.join(format!("stillhouse{}", std::env::consts::EXE_SUFFIX))
    })
}

/// Returns a command of the binary in a folder, without inherited `STILLHOUSE_*` variables.
pub fn stillhouse(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.current_dir(folder).args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STILLHOUSE_") {
            command.env_remove(&name);
        }
    }
    command.env("STILLHOUSE_THREADS", "2").env("NO_COLOR", "1");
    command
}

/// Runs a command of the binary.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn run(folder: &Path, args: &[&str]) -> CmdOutput {
    CmdOutput::run(&mut stillhouse(folder, args))
}

/// Returns an experiment that takes seconds and needs no files: teacher and student on synthetic images,
/// with additional lines.
pub fn tiny(more: &str) -> String {
    format!(
        r#"
title = "Tiny"
[data]
dataset = "scenes"
ratio = 80
per_class = [2, 1]
image_size = 32
train_transforms = [{{ op = "resize", width = 32, height = 32 }}, {{ op = "hflip" }}]
test_transforms = [{{ op = "resize", width = 32, height = 32 }}]
[teacher]
model = "mobilenetv2_100"
[teacher.train]
epochs = 1
sampler = {{ kind = "shuffle", batch = 14 }}
optimizer = {{ kind = "sgd", lr = 0.01, momentum = 0.9 }}
schedule = {{ kind = "constant" }}
checkpoint = "1 step"
[student]
model = "mobilenetv2_100"
[[loss]]
method = "kd"
[train]
epochs = 3
sampler = {{ kind = "class_balanced", classes = 7, per_class = 2 }}
optimizer = {{ kind = "sgd", lr = 0.01, momentum = 0.9 }}
schedule = {{ kind = "constant" }}
checkpoint = "1 step"
{more}
"#
    )
}

/// Creates a folder of two classes with a few small images each, JPEG and PNG.
///
/// # Panics
/// If files cannot be copied.
pub fn images(folder: &Path) {
    let from = root().join("tests/golden/transforms/data");
    for (class, files) in [
        ("meadow", ["jpeg_420.input.jpg", "jpeg_422.input.jpg", "jpeg_444.input.jpg", "jpeg_420.image.png"]),
        (
            "quarry",
            [
                "jpeg_exif_3.input.jpg",
                "jpeg_exif_5.input.jpg",
                "jpeg_low_quality.image.png",
                "jpeg_restart.image.png",
            ],
        ),
    ] {
        let folder = folder.join(class);
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        for file in files {
            std::fs::copy(from.join(file), folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        }
    }
}

/// Returns an experiment on a folder of images, without a teacher.
pub fn on_images(folder: &Path) -> String {
    format!(
        r#"
[data]
dataset = "folder"
path = {folder:?}
ratio = 50
image_size = 64
train_transforms = [{{ op = "resize", width = 64, height = 64 }}]
test_transforms = [{{ op = "resize", width = 64, height = 64 }}]
[student]
model = "mobilenetv2_100"
[train]
epochs = 2
sampler = {{ kind = "shuffle", batch = 2, drop_last = true }}
optimizer = {{ kind = "sgd", lr = 0.001, momentum = 0.9 }}
schedule = {{ kind = "constant" }}
checkpoint = "1 step"
"#
    )
}

/// Writes a file in a folder; returns its path.
///
/// # Panics
/// If it cannot be written.
pub fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}
