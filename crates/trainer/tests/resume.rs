//! A run that is stopped or killed at any point and resumed ends like an uninterrupted one.

mod toy;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stillhouse_runs::{CellResult, EpochLog, RunStatus};
use stillhouse_testkit::corruption;
use stillhouse_trainer::{Cell, Context, Error, Observer, Outcome, Plan, evaluate, plan, run_cell};
use toy::{log, trained};

/// Stops or panics after a number of steps.
#[derive(Default)]
struct At {
    stop: Option<(u64, Arc<AtomicBool>)>,
    die: Option<u64>,
    /// Panic while testing, after this many epochs.
    die_testing: Option<u64>,
    stop_testing: Option<(u64, Arc<AtomicBool>)>,
    epochs: u64,
    steps: Vec<u64>,
    messages: Vec<String>,
}

impl Observer for At {
    fn step(&mut self, _cell: &Cell, done: u64, _total: u64, loss: f64, _lr: f64) {
        assert!(loss.is_finite());
        self.steps.push(done);
        if let Some((at, flag)) = &self.stop
            && *at == done
        {
            flag.store(true, Ordering::Relaxed);
        }
        if self.die == Some(done) {
            panic!("killed");
        }
    }
    fn testing(&mut self, _cell: &Cell, _done: u64, _total: u64) {
        if self.die_testing == Some(self.epochs) {
            panic!("killed");
        }
        if let Some((at, flag)) = &self.stop_testing
            && *at == self.epochs
        {
            flag.store(true, Ordering::Relaxed);
        }
    }
    fn epoch(&mut self, _cell: &Cell, line: &EpochLog) {
        self.epochs = line.epoch;
    }
    fn message(&mut self, _cell: &Cell, text: &str) {
        self.messages.push(text.to_string());
    }
}

struct Bench {
    _root: tempfile::TempDir,
    context: Context,
    plan: Plan,
    /// Result of the uninterrupted run.
    expected: CellResult,
    log: Vec<EpochLog>,
}

impl Bench {
    fn new(sets: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let context = toy::context(root.path());
        let plan = plan(&toy::experiment(sets), None, &context).unwrap();
        assert_eq!(plan.cells.len(), 2);
        trained(run_cell(&plan.cells[0], &context, &mut ()).unwrap());
        let expected = trained(run_cell(&plan.cells[1], &context, &mut ()).unwrap());
        let log = log(&plan.cells[1].folder);
        Self { _root: root, context, plan, expected, log }
    }

    /// Returns the student's cell with a folder of its own.
    fn cell(&self, name: &str) -> Cell {
        let mut cell = self.plan.cells[1].clone();
        cell.folder.set_file_name(name);
        cell
    }

    fn run(&self, cell: &Cell, at: &mut At) -> stillhouse_trainer::Result<Outcome> {
        self.context.stop.store(false, Ordering::Relaxed);
        run_cell(cell, &self.context, at)
    }

    fn die(&self, cell: &Cell, mut at: At) {
        let died = catch_unwind(AssertUnwindSafe(|| self.run(cell, &mut at).map(drop)));
        assert!(died.is_err(), "expected a panic");
    }

    /// Runs to the end and compares with the uninterrupted run.
    fn finish(&self, cell: &Cell) -> At {
        let mut at = At::default();
        let result = trained(self.run(cell, &mut at).unwrap());
        assert_eq!(result.student_sha256, self.expected.student_sha256, "{}", cell.folder.display());
        let bytes = stillhouse_core::fs::sha256_file(&cell.folder.join("student.safetensors")).unwrap();
        assert_eq!(bytes, self.expected.student_sha256);
        assert_eq!(log(&cell.folder), self.log);
        assert_eq!((result.correct, result.best, &result.scores), {
            (self.expected.correct, self.expected.best, &self.expected.scores)
        });
        assert!(checkpoints(&cell.folder).is_empty(), "a finished run keeps no checkpoint");
        let rest: Vec<_> = names(&cell.folder).into_iter().filter(|n| n.ends_with(".part")).collect();
        assert!(rest.is_empty(), "{rest:?}");
        at
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<(u64, PathBuf)> = names(folder)
        .iter()
        .filter_map(|n| Some((n.strip_prefix("checkpoint-")?.parse().ok()?, folder.join(n))))
        .collect();
    all.sort();
    all.into_iter().map(|(_, path)| path).collect()
}

#[test]
fn resumes_after_a_stop_at_every_step() {
    let bench = Bench::new(&[]);
    let total = bench.expected.steps;
    assert_eq!(total, 18);
    for step in 1..=total {
        let cell = bench.cell(&format!("stop-{step}"));
        let flag = bench.context.stop.clone();
        let mut at = At { stop: Some((step, flag)), ..At::default() };
        match bench.run(&cell, &mut at) {
            Err(Error::Interrupted { step: stopped, .. }) => assert_eq!(stopped, step),
            other => panic!("expected an interruption after {step}, got {other:?}"),
        }
        assert!(cell.status() != RunStatus::Done);
        let at = bench.finish(&cell);
        assert_eq!(at.steps.first().copied().unwrap_or(total + 1), step + 1, "no step twice, none skipped");
    }
}

#[test]
fn the_result_lists_every_device() {
    let mut bench = Bench::new(&[]);
    assert_eq!(bench.expected.summary.device, "cpu");
    let cell = bench.cell("elsewhere");
    bench.context.environment.insert("precision".into(), "bf16".into());
    let mut at = At { stop: Some((4, bench.context.stop.clone())), ..At::default() };
    assert!(bench.run(&cell, &mut at).is_err());
    bench.context.environment.remove("precision");
    let result = trained(bench.run(&cell, &mut At::default()).unwrap());
    assert_eq!(result.summary.device, "cpu, bf16; then cpu");
}

#[test]
fn resumes_every_optimizer() {
    let mut hashes = vec![Bench::new(&[]).expected.student_sha256];
    for kind in ["adam", "adamw"] {
        let optimizer = format!(
            "train.optimizer={{ kind = '{kind}', lr = 0.01, betas = [0.8, 0.95], weight_decay = 0.1 }}"
        );
        for clip in [None, Some("train.clip_norm=0.01")] {
            let sets: Vec<&str> = [optimizer.as_str()].into_iter().chain(clip).collect();
            let bench = Bench::new(&sets);
            for step in [1, 8, 17] {
                let cell = bench.cell(&format!("{kind}-{step}"));
                bench.die(&cell, At { die: Some(step), ..At::default() });
                bench.finish(&cell);
            }
            hashes.push(bench.expected.student_sha256);
        }
    }
    let different: std::collections::BTreeSet<&String> = hashes.iter().collect();
    assert_eq!(different.len(), 5, "every setting trains a different student");
}

#[test]
fn resumes_the_moving_average() {
    let plain = Bench::new(&[]);
    let bench = Bench::new(&["train.ema=0.5"]);
    assert_ne!(bench.expected.student_sha256, plain.expected.student_sha256);
    let losses = |bench: &Bench| bench.log.iter().map(|line| line.loss).collect::<Vec<_>>();
    assert_eq!(losses(&bench), losses(&plain), "the average does not affect training");
    for step in [1, 8, 17] {
        let cell = bench.cell(&format!("kill-{step}"));
        bench.die(&cell, At { die: Some(step), ..At::default() });
        bench.finish(&cell);
    }
    let cell = bench.cell("stop-testing");
    let mut at = At { stop_testing: Some((1, bench.context.stop.clone())), ..At::default() };
    assert!(bench.run(&cell, &mut at).unwrap_err().is_interrupted());
    bench.finish(&cell);
    let e = plan(&toy::experiment(&["train.ema=1.0"]), None, &bench.context).unwrap_err().to_string();
    assert!(e.contains("train.ema") && e.contains("below 1"), "{e}");
}

#[test]
fn resumes_after_a_kill_at_every_step() {
    let bench = Bench::new(&[]);
    for step in 1..=bench.expected.steps {
        let cell = bench.cell(&format!("kill-{step}"));
        bench.die(&cell, At { die: Some(step), ..At::default() });
        // A killed process may also leave unfinished files and folders, and half a line.
        fs::create_dir(cell.folder.join("checkpoint-17.part")).unwrap();
        fs::write(cell.folder.join("checkpoint-17.part/student.safetensors"), "half").unwrap();
        fs::write(cell.folder.join("result.json.1.part"), "{").unwrap();
        let line = fs::read_to_string(cell.folder.join("log.jsonl")).unwrap_or_default();
        fs::write(cell.folder.join("log.jsonl"), line + "{\"epoch\": 2, \"st").unwrap();
        let at = bench.finish(&cell);
        let resumed = (step - 1) / 2 * 2 + 1; // checkpoints after every second step, the last not yet
        assert_eq!(at.steps[0], resumed, "killed after step {step}");
    }
}

#[test]
fn resumes_after_a_kill_or_stop_while_testing() {
    let bench = Bench::new(&[]);
    for epoch in 0..3 {
        let cell = bench.cell(&format!("kill-test-{epoch}"));
        bench.die(&cell, At { die_testing: Some(epoch), ..At::default() });
        bench.finish(&cell);
        let cell = bench.cell(&format!("stop-test-{epoch}"));
        let mut at = At { stop_testing: Some((epoch, bench.context.stop.clone())), ..At::default() };
        let e = bench.run(&cell, &mut at).unwrap_err();
        assert!(e.is_interrupted(), "{e}");
        let at = bench.finish(&cell);
        assert_eq!(at.steps.len() as u64, 18 - 6 * (epoch + 1), "training is not repeated for a test");
    }
}

#[test]
fn falls_back_over_damaged_checkpoints() {
    let bench = Bench::new(&[]);
    let cell = bench.cell("again");
    for step in [5, 9, 14] {
        bench.die(&cell, At { die: Some(step), ..At::default() });
        let newest = checkpoints(&cell.folder).pop().unwrap();
        if step == 9 {
            corruption::truncate(&newest.join("optimizer.safetensors"), 40);
        } else {
            fs::remove_file(newest.join("state.json")).unwrap();
        }
    }
    let at = bench.finish(&cell);
    assert_eq!(at.steps[0], 11, "12 is damaged, 10 is valid");
    assert!(at.messages.iter().any(|m| m.contains("checkpoint-12") && m.contains("state.json")));
}

#[test]
fn the_checkpoint_interval_changes_no_number_and_no_hash() {
    let bench = Bench::new(&[]);
    let other = Bench::new(&["train.checkpoint=1 epoch"]);
    assert_eq!(other.plan.cells[1].hash, bench.plan.cells[1].hash);
    assert_eq!(other.expected.student_sha256, bench.expected.student_sha256);
    let cell = other.cell("kill");
    other.die(&cell, At { die: Some(11), ..At::default() });
    assert_eq!(other.finish(&cell).steps[0], 7);
}

/// Returns the adversary's weights after a number of steps.
fn adversary(bench: &Bench, step: u64) -> Vec<f32> {
    let cell = bench.cell(&format!("adversary-{step}"));
    let mut at = At { stop: Some((step, bench.context.stop.clone())), ..At::default() };
    assert!(bench.run(&cell, &mut at).unwrap_err().is_interrupted());
    let path = checkpoints(&cell.folder).pop().unwrap().join("connectors.safetensors");
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    tensors["connector.rival.d.weight"].flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn student_and_adversary_train_separately() {
    // The adversary's terms train it and are logged.
    let bench = Bench::new(&["loss=[{ method = 'rival' }]"]);
    let [first, third] = [1, 3].map(|step| adversary(&bench, step));
    assert!(first.iter().zip(&third).all(|(a, b)| a != b), "{first:?} {third:?}");
    let terms: Vec<&str> = bench.expected.terms.keys().map(String::as_str).collect();
    assert_eq!(terms, ["adversarial", "ce", "fake", "real"]);
    let line = bench.log.last().unwrap();
    let total = line.terms["ce"] + 0.1 * line.terms["adversarial"];
    assert!((line.loss - total).abs() < 1e-9, "the loss is the student's alone: {} {total}", line.loss);

    // The student's terms do not train it.
    let frozen = Bench::new(&["loss=[{ method = 'rival', frozen = 1 }]"]);
    assert_eq!(adversary(&frozen, 1), adversary(&frozen, 3));

    // The adversary's terms do not train the student.
    let unheard = Bench::new(&["loss=[{ method = 'rival', weight = 0.0 }]"]);
    let deaf = Bench::new(&["loss=[{ method = 'rival', weight = 0.0, frozen = 1 }]"]);
    assert_eq!(unheard.expected.student_sha256, deaf.expected.student_sha256);
    assert_ne!(bench.expected.student_sha256, deaf.expected.student_sha256);

    for step in [1, 6, 9, 17] {
        let cell = bench.cell(&format!("kill-{step}"));
        bench.die(&cell, At { die: Some(step), ..At::default() });
        bench.finish(&cell);
    }
}

#[test]
fn trains_tests_and_resumes_on_label_masks() {
    let dense = [
        "data.dataset=fields",
        "teacher.model=dense_big",
        "student.model=dense",
        "loss=[{ method = 'rival' }]",
        "eval.metrics=['pixels']",
    ];
    let bench = Bench::new(&dense);
    let result = &bench.expected;
    assert_eq!((result.correct, result.best, result.total), (None, None, 8));
    let of_epoch: Vec<f64> = bench.log.iter().map(|line| line.scores["pixels"].unwrap()).collect();
    assert_eq!(of_epoch.last().copied(), result.scores["pixels"]);
    assert!(of_epoch[2] > 0.9, "three classes are learned: {of_epoch:?}");
    assert!(bench.log[2].terms["ce"] < 0.7 * bench.log[0].terms["ce"], "{:?}", bench.log);
    assert!(bench.log.iter().all(|line| line.train_accuracy.is_none() && line.test_correct.is_none()));

    for step in [3, 7, 16] {
        let cell = bench.cell(&format!("kill-{step}"));
        bench.die(&cell, At { die: Some(step), ..At::default() });
        bench.finish(&cell);
    }
    // Without names: all metrics that support masks.
    let (_, again) =
        evaluate(&bench.plan.cells[1].folder, &[], &Default::default(), &bench.context, |_, _| {}).unwrap();
    let scores: Vec<_> = again.scores.iter().map(|s| (s.name.as_str(), Some(s.value))).collect();
    assert_eq!(scores, [("pixels", result.scores["pixels"])]);
    assert!(again.logits.is_none() && again.labels.is_none());
    let classes = Bench::new(&[]);
    let (_, again) =
        evaluate(&classes.plan.cells[1].folder, &[], &Default::default(), &classes.context, |_, _| {})
            .unwrap();
    assert_eq!(again.scores[0].name, "count");

    // Unsupported metrics are rejected before the first step.
    let sets = [&dense[..4], &["eval.metrics=['pixels', 'count']"]].concat();
    let plan = plan(&toy::experiment(&sets), None, &bench.context).unwrap();
    let e = run_cell(&plan.cells[0], &bench.context, &mut ()).unwrap_err().to_string();
    assert!(e.contains("`count` does not support label masks") && e.contains("one of pixels"), "{e}");
    assert!(checkpoints(&plan.cells[0].folder).is_empty());
}

#[test]
fn seeds_differ_and_connectors_stay_out_of_the_student() {
    let bench = Bench::new(&[]);
    let other = Bench::new(&["train.seed=1"]);
    assert_ne!(other.expected.student_sha256, bench.expected.student_sha256);
    let path = bench.plan.cells[1].folder.join("student.safetensors");
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let mut names: Vec<&str> = tensors.keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = [
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.weight",
        "conv1.weight",
        "fc.bias",
        "fc.weight",
    ];
    assert_eq!(names, expected);
}

/// Two phases: the first up to the first exit, the second everything.
const TWO_PHASES: [&str; 4] = [
    "student.model=stairs",
    "train.phase=[{ exit = 1, trainable = ['s1.*', 'out1.*'] }, {}]",
    "loss=[{ method = 'at_exit', phase = 1 }, { method = 'ce', phase = 2 }, { method = 'memory', phase = 2 }, \
     { method = 'fuse', phase = 2 }]",
    "train.optimizer={ kind = 'adamw', lr = 0.01, weight_decay = 0.1 }",
];

#[test]
fn resumes_after_a_kill_between_two_phases() {
    let bench = Bench::new(&TWO_PHASES);
    assert_eq!(bench.expected.steps, 18, "steps count batches, not phases");
    let terms: Vec<&str> = bench.expected.terms.keys().map(String::as_str).collect();
    assert_eq!(terms, ["phase1-ce_exit", "phase2-ce", "phase2-fuse", "phase2-memory"]);
    assert!(bench.log[2].train_accuracy.unwrap() > bench.log[0].train_accuracy.unwrap(), "{:?}", bench.log);
    for step in [0, 1, 8, 17] {
        let cell = bench.cell(&format!("fuse-{step}"));
        toy::stairs::kill_at(step);
        bench.die(&cell, At::default());
        let at = bench.finish(&cell);
        assert_eq!(at.steps[0], step / 2 * 2 + 1, "a checkpoint after every second step");
    }
    // The same with micro-batches.
    let micro = Bench::new(&[&TWO_PHASES[..], &["train.micro_batch=4", "train.clip_norm=0.5"]].concat());
    assert_ne!(micro.expected.student_sha256, bench.expected.student_sha256);
    let cell = micro.cell("fuse");
    toy::stairs::kill_at(9);
    micro.die(&cell, At::default());
    micro.finish(&cell);
}

#[test]
fn rejects_invalid_phases_before_the_first_step() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let error = |sets: &[&str]| {
        let sets = [&TWO_PHASES[..1], sets].concat();
        match plan(&toy::experiment(&sets), None, &context) {
            Err(e) => e.to_string(),
            Ok(plan) => {
                let student = plan.cells.iter().find(|c| c.student == "stairs").unwrap();
                let e = run_cell(student, &context, &mut ()).unwrap_err().to_string();
                assert!(checkpoints(&student.folder).is_empty());
                e
            }
        }
    };
    let both = "loss=[{ method = 'at_exit', phase = 1 }, { method = 'ce', phase = 2 }]";
    let one = "loss=[{ method = 'at_exit' }]";
    let cases: [(&[&str], &[&str]); 11] = [
        (&["train.phase=[{}, {}]", "loss=[{ method = 'ce' }]"], &["`loss.ce.phase`", "1 to 2"]),
        (&["train.phase=[{}, {}]", "loss=[{ method = 'ce', phase = 3 }]"], &["found 3", "1 to 2"]),
        (&["loss=[{ method = 'ce', phase = 2 }]"], &["`loss.ce.phase`", "1 to 1, found 2"]),
        (&["train.phase=[{}, {}]", "loss=[{ method = 'ce', phase = 2 }]"], &["phase 1 of 2 has no loss"]),
        (&["train.phase=[{ exit = 0 }]"], &["`train.phase.exit`", "found 0"]),
        (&["train.phase=[{ exit = 3 }]", one], &["invalid `exit` for `stairs`", "[1, 2], found 3"]),
        (
            &[
                "train.phase=[{ exit = 1 }, {}]",
                "loss=[{ method = 'ce', phase = 1 }, { method = 'at_exit', phase = 2 }]",
            ],
            &["phase 1 ends at exit 1", "`ce` requires the deeper feature `logits`"],
        ),
        (
            &["train.phase=[{ exit = 1, trainable = ['s3.*'] }, {}]", both],
            &["phase 1 of 2", "`s3.*` matches no parameter"],
        ),
        (
            &["train.phase=[{ exit = 1, trainable = ['s1.bn.running_*'] }, {}]", both],
            &["phase 1 of 2 trains nothing"],
        ),
        (
            &["train.phase=[{ exit = 1, trainable = ['out2.*'] }, {}]", both],
            &["trains nothing", "no gradient"],
        ),
        (
            &["loss=[{ method = 'at_exit', feature = 'exit7.logits' }]"],
            &["requires the feature `exit7.logits`", "exit2.logits"],
        ),
    ];
    for (sets, words) in cases {
        let e = error(sets);
        assert!(words.iter().all(|word| e.contains(word)), "{sets:?}: {e}");
    }
    let e = error(&["train.micro_batch=0"]);
    assert!(e.contains("invalid `train.micro_batch`"), "{e}");
}
