//! Metrics that are read some steps later, as on a GPU: the same numbers and errors, and nothing saved that is
//! not finite.

mod toy;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use candle_core::{DType, Device};
use stillhouse_runs::{CellResult, EpochLog};
use stillhouse_testkit::device;
use stillhouse_trainer::{Cell, Context, Error, Observer, Plan, plan, run_cell};
use toy::{log, trained};

/// Records steps and losses; stops the run after one of them.
#[derive(Default)]
struct Recorder {
    steps: Vec<(u64, u64)>,
    stop: Option<(u64, Context)>,
}

impl Observer for Recorder {
    fn step(&mut self, _cell: &Cell, done: u64, total: u64, loss: f64, _lr: f64) {
        assert_eq!(total, 18);
        self.steps.push((done, loss.to_bits()));
        if let Some((at, context)) = &self.stop
            && *at == done
        {
            context.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Plans a run whose metrics are read so many steps at a time.
fn planned(root: &Path, sets: &[&str], buffered: Option<u64>) -> (Context, Plan) {
    let mut context = toy::context(root);
    context.device = device();
    context.buffered_steps = buffered;
    let plan = plan(&toy::experiment(sets), None, &context).unwrap();
    (context, plan)
}

/// Returns the steps of the checkpoints, after checking that all values are finite.
fn checkpoints(folder: &Path) -> Vec<u64> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(step) = name.strip_prefix("checkpoint-") else { continue };
        steps.push(step.parse().unwrap());
        for file in ["student", "connectors", "optimizer"] {
            let all = candle_core::safetensors::load(path.join(format!("{file}.safetensors")), &Device::Cpu);
            for (name, tensor) in all.unwrap() {
                let sum = tensor.to_dtype(DType::F64).unwrap().abs().unwrap().sum_all().unwrap();
                assert!(sum.to_scalar::<f64>().unwrap().is_finite(), "{name} of step {step}");
            }
        }
    }
    steps.sort_unstable();
    steps
}

type Everything = (String, Vec<EpochLog>, CellResult, Vec<(u64, u64)>);

/// Trains teacher and student to the end.
fn uninterrupted(sets: &[&str], buffered: Option<u64>) -> Everything {
    let root = tempfile::tempdir().unwrap();
    let (context, plan) = planned(root.path(), sets, buffered);
    let mut recorder = Recorder::default();
    let (last, teachers) = plan.cells.split_last().unwrap();
    for cell in teachers {
        trained(run_cell(cell, &context, &mut ()).unwrap());
    }
    let result = trained(run_cell(last, &context, &mut recorder).unwrap());
    (result.student_sha256.clone(), log(&last.folder), result, recorder.steps)
}

const TWO_PHASES: [&str; 5] = [
    "student.model=stairs",
    "train.phase=[{ exit = 1, trainable = ['s1.*', 'out1.*'] }, {}]",
    "loss=[{ method = 'at_exit', phase = 1 }, { method = 'ce', phase = 2 }, { method = 'memory', phase = 2 }]",
    "train.micro_batch=4",
    "train.clip_norm=0.5",
];

#[test]
fn later_metrics_are_the_same() {
    let rival = ["loss=[{ method = 'rival' }]", "train.micro_batch=4", "train.ema=0.5"];
    let masks = [
        "data.dataset=fields",
        "teacher.model=dense_big",
        "student.model=dense",
        "loss=[{ method = 'rival' }]",
        "eval.metrics=['pixels']",
    ];
    let settings: [&[&str]; 5] = [&[], &["loss=[{ method = 'idle' }]"], &rival, &masks, &TWO_PHASES];
    for sets in settings {
        let expected = uninterrupted(sets, None);
        assert_eq!(expected.3.len(), 18);
        for buffered in [1, 4, 1000] {
            let (sha256, log, result, steps) = uninterrupted(sets, Some(buffered));
            assert_eq!(
                (&sha256, &log, &steps),
                (&expected.0, &expected.1, &expected.3),
                "{sets:?} {buffered}"
            );
            let of = |r: &CellResult| (r.correct, r.best, r.scores.clone(), r.terms.clone(), r.steps);
            assert_eq!(of(&result), of(&expected.2), "{sets:?} {buffered}");
        }
    }
}

#[test]
fn later_errors_name_their_own_step() {
    for every in ["2 steps", "4 steps", "1 epoch"] {
        for at in [0, 4, 5, 11, 17] {
            let run = |buffered: u64, more: &str| {
                let root = tempfile::tempdir().unwrap();
                let odd = format!("loss=[{{ method = 'odd', ce_weight = 1.0, at = {at}{more} }}]");
                let every = format!("train.checkpoint={every}");
                let (context, plan) = planned(root.path(), &[&odd, &every], Some(buffered));
                let cell = &plan.cells[0];
                let e = run_cell(cell, &context, &mut ()).unwrap_err();
                assert!(!cell.folder.join("result.json").exists());
                assert!(!cell.folder.join("student.safetensors").exists());
                let error = match e {
                    Error::NonFinite { term, value, step, ids } if value.is_nan() => (term, step, ids),
                    other => panic!("{other}"),
                };
                (
                    error,
                    checkpoints(&cell.folder),
                    fs::read_to_string(cell.folder.join("failure.txt")).unwrap(),
                )
            };
            let expected = run(1, "");
            assert_eq!((expected.0.0.as_str(), expected.0.1), ("odd", at));
            assert!(expected.1.iter().all(|step| *step <= at));
            for buffered in [3, 1000] {
                assert_eq!(run(buffered, ""), expected, "{every}, {buffered} steps at a time");
                // A consequence of it is not reported instead.
                let gone = format!(", gone = {}", at + 1);
                assert_eq!(run(buffered, &gone), expected, "{every}, {buffered} steps at a time");
            }
        }
    }
}

#[test]
fn later_metrics_survive_a_stop() {
    let root = tempfile::tempdir().unwrap();
    let sets = ["loss=[{ method = 'odd', ce_weight = 1.0, at = 7 }]", "train.checkpoint=2 steps"];
    let (context, plan) = planned(root.path(), &sets, Some(1000));
    let cell = &plan.cells[0];
    // Reported at the checkpoint after the sixth step, which ends an epoch.
    let mut recorder = Recorder { stop: Some((6, context.clone())), ..Recorder::default() };
    assert!(run_cell(cell, &context, &mut recorder).unwrap_err().is_interrupted());
    assert_eq!(checkpoints(&cell.folder).last(), Some(&6));
    context.stop.store(false, Ordering::Relaxed);
    let e = run_cell(cell, &context, &mut ()).unwrap_err();
    assert!(matches!(e, Error::NonFinite { step: 7, .. }), "{e}");
    assert_eq!(checkpoints(&cell.folder), [4, 6]);

    // A finite run ends with the same bytes wherever it is stopped.
    let expected = uninterrupted(&[], None);
    for stop in [1, 5, 6, 13] {
        let root = tempfile::tempdir().unwrap();
        let (context, plan) = planned(root.path(), &[], Some(5));
        trained(run_cell(&plan.cells[0], &context, &mut ()).unwrap());
        let mut recorder = Recorder { stop: Some((stop, context.clone())), ..Recorder::default() };
        assert!(run_cell(&plan.cells[1], &context, &mut recorder).unwrap_err().is_interrupted());
        context.stop.store(false, Ordering::Relaxed);
        let mut rest = Recorder::default();
        let result = trained(run_cell(&plan.cells[1], &context, &mut rest).unwrap());
        assert_eq!((&result.student_sha256, log(&plan.cells[1].folder)), (&expected.0, expected.1.clone()));
        let steps = [recorder.steps, rest.steps].concat();
        assert_eq!(steps, expected.3, "no step twice, none skipped");
    }
}

/// Runs these tests again with the graph engine, the only one on a GPU, in a process of its own.
#[test]
fn graph_engine_agrees() {
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .env("STILLHOUSE_ENGINE", "graph")
        .args(["later_"])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && stdout.contains("3 passed"), "{stdout}");
}
