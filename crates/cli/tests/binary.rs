//! The binary starts. Its end-to-end tests are a package of their own, `tests/`; that this file is
//! here makes `cargo test --workspace` build the binary for them.

use std::process::Command;

#[test]
fn it_tells_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_stillhouse")).arg("--version").output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.trim(), format!("stillhouse {}", env!("CARGO_PKG_VERSION")));
}
