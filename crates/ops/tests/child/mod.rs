//! Reruns tests of the same binary in a child process with another environment.

use std::process::Command;

/// Runs the tests selected by `filter` with the environment variable set, and checks that exactly
/// `expected` of them ran and passed.
pub(crate) fn rerun((variable, value): (&str, &str), filter: &[&str], expected: usize) {
    let output = Command::new(std::env::current_exe().unwrap())
        .env(variable, value)
        .args(filter)
        .arg("--test-threads=1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{variable}={value}: {stdout}");
    assert!(stdout.contains(&format!("test result: ok. {expected} passed")), "{variable}={value}: {stdout}");
}
