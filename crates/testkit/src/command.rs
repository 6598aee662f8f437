//! Output of child processes.

use std::process::{Command, Output};

/// Captured output and exit code of a finished process.
#[derive(Debug, Clone)]
pub struct CmdOutput {
    /// Exit code; `None` if a signal ended the process.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for CmdOutput {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl CmdOutput {
    /// Runs a command to its end and captures its output.
    ///
    /// # Panics
    /// If the command cannot be started.
    #[track_caller]
    pub fn run(command: &mut Command) -> Self {
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}")).into()
    }

    /// Asserts the exit code, and that standard error shows neither a panic nor a backtrace.
    ///
    /// # Panics
    /// With the whole output.
    #[track_caller]
    pub fn expect_code(self, expected: i32) -> Self {
        assert_eq!(self.code, Some(expected), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        for word in ["panicked", "internal error", "stack backtrace"] {
            assert!(!self.stderr.contains(word), "`{word}` in\n{}", self.stderr);
        }
        self
    }

    /// Asserts that standard error contains all of `words`.
    ///
    /// # Panics
    /// With standard error.
    #[track_caller]
    pub fn expect_stderr(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.stderr.contains(word), "no `{word}` in\n{}", self.stderr);
        }
        self
    }

    /// Parses standard output as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e} in\n{}", self.stdout))
    }

    /// Asserts that a test binary succeeded, and returns how many of its tests ran and passed. A
    /// filter that matches no test succeeds too, so callers check the number.
    ///
    /// # Panics
    /// If a test failed, or the output has no `test result` line.
    #[track_caller]
    pub fn tests_passed(self) -> usize {
        let output = self.expect_code(0);
        let line = output.stdout.lines().find(|line| line.starts_with("test result: ok. "));
        let passed = line.and_then(|line| line["test result: ok. ".len()..].split(' ').next()?.parse().ok());
        passed.unwrap_or_else(|| panic!("no `test result` in\n{}", output.stdout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_tests_of_a_child() {
        let child = |filter: &str| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            CmdOutput::run(command.args(["--exact", filter])).tests_passed()
        };
        assert_eq!(child("generator::tests::rejects_names_without_a_rule"), 1);
        assert_eq!(child("no_such_test"), 0);
    }
}
