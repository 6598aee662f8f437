//! Plans, the order of their cells, and errors that stop them.

mod toy;

use std::fs;

use stillhouse_core::fs::FolderLock;
use stillhouse_runs::{Role, RunDir};
use stillhouse_trainer::{
    Context, Error, Experiment, Outcome, Plan, evaluate, plan, plan_single, run_cell, run_plan,
};

fn planned(context: &Context, sets: &[&str]) -> Plan {
    plan(&toy::experiment(sets), None, context).unwrap()
}

const MATRIX: &str = r#"
[matrix]
student = ["small", "big"]
method = ["baseline", "memory", "later"]
seed = [0, 1]
[when.method.baseline]
loss = []
"#;

fn matrix(context: &Context) -> Plan {
    let experiment = Experiment::parse(&format!("{}{MATRIX}", toy::TOY), "toy.toml", "toy").unwrap();
    plan(&experiment, None, context).unwrap()
}

#[test]
fn hashes_follow_settings_and_data() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let base = planned(&context, &[]);
    let hashes = |sets: &[&str]| {
        let plan = planned(&context, sets);
        (plan.cells[0].hash.clone(), plan.cells[1].hash.clone())
    };
    let same = hashes(&[]);
    assert_eq!(same, (base.cells[0].hash.clone(), base.cells[1].hash.clone()));
    assert_eq!(same, hashes(&["data.cache_mib=7", "train.checkpoint=9 steps"]), "changes no number");
    for set in ["train.seed=1", "data.ratio=60", "data.dataset=other"] {
        let other = hashes(&[set]);
        assert!(other.0 != same.0 && other.1 != same.1, "{set}: changes teacher and student");
    }
    for set in ["train.epochs=4", "train.optimizer.lr=0.2", "student.model=big", "teacher.precision=bf16"] {
        let other = hashes(&[set]);
        assert!(other.0 == same.0 && other.1 != same.1, "{set}: changes the student alone");
    }
    let other = hashes(&["teacher.train.epochs=3"]);
    assert!(other.0 != same.0 && other.1 != same.1, "a changed teacher changes its student");
    let loss = base.cells[1].config.as_ref().unwrap().loss.clone();
    let weights: Vec<_> = loss.iter().map(|l| (l.method.as_str(), l.options["weight"].as_float())).collect();
    assert_eq!(weights, [("ce", Some(1.0)), ("memory", Some(0.5))], "defaults are filled in");
    assert_eq!(loss[1].warmup_epochs, Some(2.0));
}

#[test]
fn a_matrix_shares_teachers_and_keeps_unknown_methods() {
    let root = tempfile::tempdir().unwrap();
    let plan = matrix(&toy::context(root.path()));
    let names: Vec<&str> = plan.cells.iter().map(|c| c.name.as_str()).collect();
    let expected = [
        "small-80-baseline-s0",
        "big-stripes-80-s0",
        "small-80-memory-s0",
        "small-80-later-s0",
        "big-80-baseline-s0",
        "big-80-memory-s0",
        "big-80-later-s0",
        "small-80-baseline-s1",
        "big-stripes-80-s1",
        "small-80-memory-s1",
        "small-80-later-s1",
        "big-80-baseline-s1",
        "big-80-memory-s1",
        "big-80-later-s1",
    ];
    assert_eq!(names, expected);
    assert_eq!(plan.cells[2].needs, Some(1));
    assert_eq!(plan.cells[5].needs, Some(1), "one teacher for both students");
    assert_eq!((plan.cells[0].needs, plan.cells[1].role), (None, Role::Teacher));
    assert!(!plan.cells[3].is_runnable() && plan.cells[3].hash.is_empty());
    assert!(plan.cells[1].folder.starts_with(root.path().join("runs/teachers")));
    let name = format!("runs/toy/default/small-80-memory-s0-{}", plan.cells[2].hash);
    assert_eq!(plan.cells[2].folder, root.path().join(name));
}

#[test]
fn finished_cells_are_not_run_again() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let plan = matrix(&context);
    let first = run_plan(&plan, &context, &mut ()).unwrap();
    let again = run_plan(&plan, &context, &mut ()).unwrap();
    for ((cell, first), again) in plan.cells.iter().zip(&first).zip(&again) {
        match (first, again) {
            (Outcome::UnknownMethod, Outcome::UnknownMethod) => assert_eq!(cell.method, "later"),
            (Outcome::Trained(a), Outcome::Finished(b)) => {
                let written = RunDir::new(&cell.folder).result().unwrap().unwrap();
                assert_eq!((&written, &a.student_sha256), (b.as_ref(), &b.student_sha256));
                assert_eq!((a.total, a.scores["count"], a.scores["undefined"]), (8, Some(8.0), None));
                assert_eq!(a.summary.teacher.is_some(), cell.method == "memory");
                assert!(a.correct.unwrap() <= 8 && a.parameters > 0);
            }
            other => panic!("{}: {other:?}", cell.name),
        }
    }
    // The same student with and without the method.
    let sha = |i: usize| first[i].result().unwrap().student_sha256.clone();
    assert_ne!(sha(0), sha(2));
    let folder = &plan.cells[2].folder;
    let config = fs::read_to_string(folder.join("config.toml")).unwrap();
    assert!(config.contains("mean = [0.485, 0.456, 0.406]"), "{config}");
    let (info, evaluation) =
        evaluate(folder, &["count".into()], &Default::default(), &context, |_, _| {}).unwrap();
    assert_eq!(info.classes, ["c0", "c1", "c2"]);
    assert_eq!(evaluation.correct, first[2].result().unwrap().correct);
    let saved =
        candle_core::safetensors::load(folder.join("predictions.safetensors"), &candle_core::Device::Cpu)
            .unwrap();
    let logits = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(logits(&saved["logits"]), logits(evaluation.logits.as_ref().unwrap()));
    assert_eq!(saved["indices"].to_vec1::<i64>().unwrap().len(), 8);
}

#[test]
fn a_non_finite_term_stops_before_the_update() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let sets = ["loss=[{ method = \"odd\", at = 4 }]", "train.checkpoint=4 steps"];
    let plan = planned(&context, &sets);
    let cell = &plan.cells[0];
    let ids = match run_cell(cell, &context, &mut ()) {
        Err(Error::NonFinite { term, step, ids, value }) => {
            assert_eq!((term.as_str(), step, value.is_nan()), ("odd", 4, true));
            ids
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(ids.len(), 6);
    let note = fs::read_to_string(cell.folder.join("failure.txt")).unwrap();
    assert!(
        note.contains("`odd`") && note.contains("step 4") && note.contains(&format!("{ids:?}")),
        "{note}"
    );
    let saved =
        |step: u64| fs::read(cell.folder.join(format!("checkpoint-{step}/student.safetensors"))).unwrap();
    let before = saved(4);
    // A new attempt fails at the same step with the same weights.
    let e = run_cell(cell, &context, &mut ()).unwrap_err();
    assert!(matches!(e, Error::NonFinite { step: 4, .. }), "{e}");
    assert_eq!(saved(4), before);
}

#[test]
fn rejects_two_weights_of_the_cross_entropy() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let two = "loss=[{ method = \"ce\", weight = 0.1 }, { method = \"odd\", ce_weight = 0.9 }]";
    let e = plan(&toy::experiment(&[two]), None, &context).unwrap_err();
    assert!(
        matches!(&e, Error::TwoCeWeights { first, second, .. } if first == "ce" && second == "odd"),
        "{e}"
    );
    // A method that does not declare its term is caught at its first step.
    let silent = "loss=[{ method = \"ce\" }, { method = \"odd\", ce_weight = 0.9, silent = 1 }]";
    let planned = planned(&context, &[silent]);
    let e = run_cell(&planned.cells[0], &context, &mut ()).unwrap_err();
    assert!(matches!(e, Error::TwoCeWeights { .. }), "{e}");
    let e = plan(&toy::experiment(&["loss=[{ method = \"memori\" }]"]), None, &context).unwrap_err();
    assert!(e.to_string().contains("did you mean `memory`"), "{e}");
    let without = "loss=[{ method = \"odd\", ce_weight = 0 }]";
    let without = plan(&toy::experiment(&[without]), None, &context).unwrap();
    assert_eq!(without.cells[0].config.as_ref().unwrap().loss.len(), 1, "no cross-entropy is added");
}

#[test]
fn rejects_folders_of_other_processes_and_runs() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let output = root.path().join("out");
    let single = |sets: &[&str]| plan_single(&toy::experiment(sets), None, &output, &context).unwrap();
    let plan = single(&["train.epochs=1", "loss=[]"]);
    let lock = FolderLock::take(&output).unwrap();
    let e = run_cell(&plan.cells[0], &context, &mut ()).unwrap_err().to_string();
    assert!(e.contains("another process"), "{e}");
    drop(lock);
    run_cell(&plan.cells[0], &context, &mut ()).unwrap();
    let before = fs::read(output.join("result.json")).unwrap();
    let other = single(&["train.epochs=2", "loss=[]"]);
    let e = run_cell(&other.cells[0], &context, &mut ()).unwrap_err().to_string();
    assert!(e.contains("choose another output folder"), "{e}");
    assert_eq!(fs::read(output.join("result.json")).unwrap(), before);

    // A run that failed before its first checkpoint gives way to one with corrected settings.
    let output = root.path().join("failed");
    let single = |sets: &[&str]| plan_single(&toy::experiment(sets), None, &output, &context).unwrap();
    let silent = "loss=[{ method = \"ce\" }, { method = \"odd\", ce_weight = 0.9, silent = 1 }]";
    run_cell(&single(&["train.epochs=1", silent]).cells[0], &context, &mut ()).unwrap_err();
    assert!(output.join("config.toml").exists());
    run_cell(&single(&["train.epochs=1", "loss=[]"]).cells[0], &context, &mut ()).unwrap();

    let foreign = root.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "precious").unwrap();
    let plan = plan_single(&toy::experiment(&["loss=[]"]), None, &foreign, &context).unwrap();
    let e = run_cell(&plan.cells[0], &context, &mut ()).unwrap_err().to_string();
    assert!(e.contains("thesis.tex"), "{e}");
}

#[test]
fn falls_back_if_missing_but_not_if_broken() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let sets = ["data.dataset=absent|stripes", "teacher.weights=imagenet|scratch"];
    let without = planned(&context, &sets);
    let config = without.cells[0].config.clone().unwrap();
    assert_eq!(
        (config.data.dataset.as_str(), config.student.init.to_string().as_str()),
        ("stripes", "scratch")
    );
    let e = plan(&toy::experiment(&["data.dataset=broken|stripes"]), None, &context).unwrap_err();
    assert!(e.to_string().contains("is empty"), "{e}");
    assert!(plan(&toy::experiment(&["teacher.weights=imagenet"]), None, &context).is_err());

    toy::write_weights(root.path());
    let with = planned(&context, &sets);
    let config = with.cells[0].config.clone().unwrap();
    assert_eq!((config.student.init.to_string().as_str(), config.data.mean), ("imagenet", [0.5; 3]));
    assert_ne!(with.cells[0].hash, without.cells[0].hash);
    let outcomes = run_plan(&with, &context, &mut ()).unwrap();
    let summary = &outcomes[1].result().unwrap().summary;
    assert_eq!(summary.teacher.as_ref().unwrap().init, "imagenet");
    assert_eq!(summary.init, "scratch");
}

#[test]
fn a_failed_teacher_fails_only_its_students() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let plan = matrix(&context);
    fs::create_dir_all(&plan.cells[1].folder).unwrap();
    fs::write(plan.cells[1].folder.join("mine.txt"), "x").unwrap();
    let outcomes = run_plan(&plan, &context, &mut ()).unwrap();
    assert!(matches!(&outcomes[1], Outcome::Failed(why) if why.contains("mine.txt")));
    assert!(
        matches!(&outcomes[2], Outcome::Failed(why) if why.contains("teacher of `small-80-memory-s0` is not finished"))
    );
    assert!(matches!((&outcomes[0], &outcomes[9]), (Outcome::Trained(_), Outcome::Trained(_))));
}

#[test]
fn rejects_bf16_teacher_on_cpu() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let outcomes = run_plan(&planned(&context, &["teacher.precision=bf16"]), &context, &mut ()).unwrap();
    assert!(matches!(&outcomes[0], Outcome::Trained(_)), "the teacher itself trains in f32");
    assert!(matches!(&outcomes[1], Outcome::Failed(why) if why.contains("requires a GPU")), "{outcomes:?}");
}

#[test]
fn tests_exits_and_views() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let sets = ["student.model=stairs", "loss=[]", "eval.features=['exit1.logits', 'exit2.logits']"];
    let with = |more: &[&str]| {
        let plan = planned(&context, &[&sets[..], more].concat());
        run_cell(&plan.cells[0], &context, &mut ())
    };
    let outcome = with(&["eval.views=['hflip', 'vflip']"]).unwrap();
    let result = outcome.result().unwrap();
    let accuracy = |name: &str| result.scores[name].unwrap();
    let expected = result.correct.unwrap() as f64 / result.total as f64;
    assert_eq!(accuracy("exit2.accuracy"), expected, "the last exit is the network's output");
    let names: Vec<&str> = result.scores.keys().map(String::as_str).filter(|n| n.contains('.')).collect();
    let expected_names =
        ["exit1", "exit2", "hflip", "hflip.exit1", "hflip.exit2", "vflip", "vflip.exit1", "vflip.exit2"];
    assert_eq!(names, expected_names.map(|name| format!("{name}.accuracy")));
    assert_eq!(accuracy("vflip.exit2.accuracy"), accuracy("vflip.accuracy"));
    let e = with(&["eval.features=['exit3.logits']"]).unwrap_err().to_string();
    assert!(e.contains("found `exit3.logits`") && e.contains("exit2.logits"), "{e}");
    let e = with(&["eval.features=['pooled']"]).unwrap_err().to_string();
    assert!(e.contains("`pooled`"), "{e}");
    let dense = [
        "data.dataset=fields",
        "student.model=dense",
        "eval.features=[]",
        "eval.views=['hflip']",
        "eval.metrics=[]",
    ];
    let e = with(&dense).unwrap_err().to_string();
    assert!(e.contains("label masks"), "{e}");
}
