//! Helpers of the end-to-end tests, which run the binary as a person would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The binary, built once by cargo in the profile that this test was built in.
///
/// # Panics
/// If it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
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

/// A command of the binary in a folder, in an environment of its own.
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

/// What a command said and how it ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Its results.
    pub stdout: String,
    /// Its talk.
    pub stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// Refuses any other exit code, panics and backtraces.
    ///
    /// # Panics
    /// With all that was said.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        assert_eq!(self.code, Some(expected), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        for word in ["panicked", "internal error", "stack backtrace"] {
            assert!(!self.stderr.contains(word), "`{word}` in\n{}", self.stderr);
        }
        self
    }

    /// Refuses an error message without all of these words.
    ///
    /// # Panics
    /// With the message.
    #[track_caller]
    pub fn tells(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in\n{}", self.stderr);
        }
        self
    }

    /// The results as JSON.
    ///
    /// # Panics
    /// If they are none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in\n{}", self.stdout))
    }
}

/// Runs a command of the binary to its end.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn run(folder: &Path, args: &[&str]) -> Said {
    stillhouse(folder, args).output().expect("the binary can be started").into()
}
