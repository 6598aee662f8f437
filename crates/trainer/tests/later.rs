//! What steps tell, read some steps later as on a card: the same numbers, the same errors, and nothing
//! written that is not finite.

mod toy;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use candle_core::{DType, Device};
use stillhouse_testkit::device;
use stillhouse_runs::{CellResult, EpochLog};
use stillhouse_trainer::{Cell, Context, Error, Observer, Plan, plan, run_cell};
use toy::{log, trained};

/// Steps and losses as they were told; asks to stop after one of them.
#[derive(Default)]
struct Told {
    steps: Vec<(u64, u64)>,
    stop: Option<(u64, Context)>,
}

impl Observer for Told {
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

/// A plan whose values are read so many steps at a time.
fn planned(root: &Path, sets: &[&str], together: Option<u64>) -> (Context, Plan) {
    let mut context = toy::context(root);
    context.device = device();
    context.read_together = together;
    let plan = plan(&toy::experiment(sets), None, &context).unwrap();
    (context, plan)
}

/// Steps of the checkpoints, of which all values are finite.
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

/// Teacher and student to their ends.
fn whole(sets: &[&str], together: Option<u64>) -> Everything {
    let root = tempfile::tempdir().unwrap();
    let (context, plan) = planned(root.path(), sets, together);
    let mut told = Told::default();
    let (last, teachers) = plan.cells.split_last().unwrap();
    for cell in teachers {
        trained(run_cell(cell, &context, &mut ()).unwrap());
    }
    let result = trained(run_cell(last, &context, &mut told).unwrap());
    (result.student_sha256.clone(), log(&last.folder), result, told.steps)
}

const TWO_STEPS: [&str; 5] = [
    "student.model=stairs",
    "train.step=[{ exit = 1, moves = ['s1.*', 'out1.*'] }, {}]",
    "loss=[{ method = 'at_exit', step = 1 }, { method = 'ce', step = 2 }, { method = 'memory', step = 2 }]",
    "train.micro_batch=4",
    "train.clip_norm=0.5",
];

/// Whenever they are read, values, warnings and weights are the same.
#[test]
fn later_is_the_same() {
    let rival = ["loss=[{ method = 'rival' }]", "train.micro_batch=4", "train.ema=0.5"];
    let masks = [
        "data.dataset=fields",
        "teacher.model=dense_big",
        "student.model=dense",
        "loss=[{ method = 'rival' }]",
        "eval.metrics=['pixels']",
    ];
    let settings: [&[&str]; 5] = [&[], &["loss=[{ method = 'idle' }]"], &rival, &masks, &TWO_STEPS];
    for sets in settings {
        let expected = whole(sets, None);
        assert_eq!(expected.3.len(), 18);
        for together in [1, 4, 1000] {
            let (sha256, log, result, steps) = whole(sets, Some(together));
            assert_eq!(
                (&sha256, &log, &steps),
                (&expected.0, &expected.1, &expected.3),
                "{sets:?} {together}"
            );
            let of = |r: &CellResult| (r.correct, r.best, r.scores.clone(), r.terms.clone(), r.steps);
            assert_eq!(of(&result), of(&expected.2), "{sets:?} {together}");
        }
    }
}

/// The same words, whenever they come, and no checkpoint or result from then on.
#[test]
fn later_an_error_names_its_own_step() {
    for every in ["2 steps", "4 steps", "1 epoch"] {
        for at in [0, 4, 5, 11, 17] {
            let run = |together: u64, more: &str| {
                let root = tempfile::tempdir().unwrap();
                let odd = format!("loss=[{{ method = 'odd', ce_weight = 1.0, at = {at}{more} }}]");
                let every = format!("train.checkpoint={every}");
                let (context, plan) = planned(root.path(), &[&odd, &every], Some(together));
                let cell = &plan.cells[0];
                let e = run_cell(cell, &context, &mut ()).unwrap_err();
                assert!(!cell.folder.join("result.json").exists());
                assert!(!cell.folder.join("student.safetensors").exists());
                let words = match e {
                    Error::NonFinite { term, value, step, ids } if value.is_nan() => (term, step, ids),
                    other => panic!("{other}"),
                };
                (
                    words,
                    checkpoints(&cell.folder),
                    fs::read_to_string(cell.folder.join("failure.txt")).unwrap(),
                )
            };
            let expected = run(1, "");
            assert_eq!((expected.0.0.as_str(), expected.0.1), ("odd", at));
            assert!(expected.1.iter().all(|step| *step <= at));
            for together in [3, 1000] {
                assert_eq!(run(together, ""), expected, "{every}, {together} steps at a time");
                // What goes wrong because of it is not what is told.
                let gone = format!(", gone = {}", at + 1);
                assert_eq!(run(together, &gone), expected, "{every}, {together} steps at a time");
            }
        }
    }
}

/// Who stops a run that has gone wrong without knowing it is told so, and keeps what was right.
#[test]
fn later_a_stopped_run_is_whole() {
    let root = tempfile::tempdir().unwrap();
    let sets = ["loss=[{ method = 'odd', ce_weight = 1.0, at = 7 }]", "train.checkpoint=2 steps"];
    let (context, plan) = planned(root.path(), &sets, Some(1000));
    let cell = &plan.cells[0];
    // Told at the checkpoint after the sixth step, which ends an epoch.
    let mut told = Told { stop: Some((6, context.clone())), ..Told::default() };
    assert!(run_cell(cell, &context, &mut told).unwrap_err().is_interrupted());
    assert_eq!(checkpoints(&cell.folder).last(), Some(&6));
    context.stop.store(false, Ordering::Relaxed);
    let e = run_cell(cell, &context, &mut ()).unwrap_err();
    assert!(matches!(e, Error::NonFinite { step: 7, .. }), "{e}");
    assert_eq!(checkpoints(&cell.folder), [4, 6]);

    // A run that is right ends with the same bytes wherever it is stopped.
    let expected = whole(&[], None);
    for stop in [1, 5, 6, 13] {
        let root = tempfile::tempdir().unwrap();
        let (context, plan) = planned(root.path(), &[], Some(5));
        trained(run_cell(&plan.cells[0], &context, &mut ()).unwrap());
        let mut told = Told { stop: Some((stop, context.clone())), ..Told::default() };
        assert!(run_cell(&plan.cells[1], &context, &mut told).unwrap_err().is_interrupted());
        context.stop.store(false, Ordering::Relaxed);
        let mut rest = Told::default();
        let result = trained(run_cell(&plan.cells[1], &context, &mut rest).unwrap());
        assert_eq!((&result.student_sha256, log(&plan.cells[1].folder)), (&expected.0, expected.1.clone()));
        let steps = [told.steps, rest.steps].concat();
        assert_eq!(steps, expected.3, "no step is told twice, none is left out");
    }
}

/// All of this once more as candle graphs, in a process of its own; a card runs nothing else.
#[test]
fn graphs_agree() {
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .env("STILLHOUSE_ENGINE", "graph")
        .args(["later_"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}
