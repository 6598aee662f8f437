//! Runs that are killed at random moments resume to the same bytes.
//!
//! `STILLHOUSE_KILLS` sets the number of kills (default 5).

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use stillhouse_tests::{binary, run, stillhouse, tiny, write};

const ARGS: [&str; 4] = ["train", "x.toml", "--output", "out"];

#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let kills: u32 = std::env::var("STILLHOUSE_KILLS").map_or(5, |text| text.parse().unwrap());
    binary();
    let whole = tempfile::tempdir().unwrap();
    write(whole.path(), "x.toml", &tiny(""));
    let begun = Instant::now();
    run(whole.path(), &ARGS).expect_code(0);
    let length = begun.elapsed();
    println!("uninterrupted: {:.1} s, student {}", length.as_secs_f64(), sha256(whole.path()));

    let mut random = Random::new();
    let (mut done, mut rounds) = (0, 0);
    while done < kills {
        // A new folder, killed until it finishes or the kills are used up.
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "x.toml", &tiny(""));
        while done < kills {
            let mut child = start(folder.path());
            // Shorter than the run: most runs are killed more than once.
            std::thread::sleep(length.mul_f64(0.6 * random.next()));
            if child.try_wait().unwrap().is_some() {
                break; // finished before the kill
            }
            child.kill().unwrap();
            child.wait().unwrap();
            done += 1;
        }
        run(folder.path(), &ARGS).expect_code(0);
        rounds += 1;
        let (expected, found) = (sha256(whole.path()), sha256(folder.path()));
        assert_eq!(found, expected, "after {done} kills (seed {})", random.seed);
        for file in ["out/student.safetensors", "out/predictions.safetensors", "out/split.json"] {
            let same =
                fs::read(folder.path().join(file)).unwrap() == fs::read(whole.path().join(file)).unwrap();
            assert!(same, "{file} differs after {done} kills (seed {})", random.seed);
        }
    }
    println!("{done} kills in {rounds} rounds, the same student each time (seed {})", random.seed);
}

#[test]
fn ctrl_c_writes_a_checkpoint_and_the_run_resumes() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "x.toml", &tiny(""));
    let mut child = start(folder.path());
    let config = folder.path().join("out/config.toml");
    // The teacher has finished, the student has started.
    for _ in 0..2400 {
        if config.exists() || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let said: stillhouse_tests::CmdOutput = child.wait_with_output().unwrap().into();
    said.expect_code(130).expect_stderr(&["stopping", "same command"]);
    assert!(!folder.path().join("out/result.json").exists());
    run(folder.path(), &ARGS).expect_code(0);
    assert!(folder.path().join("out/result.json").exists());
}

fn start(folder: &Path) -> Child {
    stillhouse(folder, &ARGS).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn sha256(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("out/result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    result["student_sha256"].as_str().unwrap().to_string()
}

/// Random numbers in [0, 1); the seed is printed on failure.
struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        Self { seed: now, state: now }
    }

    fn next(&mut self) -> f64 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 11) as f64 / (1u64 << 53) as f64
    }
}
