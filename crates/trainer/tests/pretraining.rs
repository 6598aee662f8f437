//! Teachers that are pretrained here, and teachers that are taken as they are.

mod toy;

use stillhouse_runs::{Role, RunDir};
use stillhouse_trainer::{Context, Experiment, Outcome, Plan, plan, run_plan};

/// The toy experiment with a pretraining of the teacher on other images.
fn experiment(name: &str, sets: &[&str]) -> Experiment {
    let text = format!(
        "{}{}",
        toy::TOY.replace("model = \"big\"\n", "model = \"big\"\nweights = \"imagenet|pretrain\"\n"),
        r#"
[teacher.pretrain.data]
dataset = "other"
ratio = 60
image_size = 6
train_transforms = []
test_transforms = []

[teacher.pretrain.train]
epochs = 1
seed = 9
sampler = { kind = "shuffle", batch = 8 }
optimizer = { kind = "sgd", lr = 0.05 }
schedule = { kind = "constant" }
"#
    );
    let mut experiment = Experiment::parse(&text, "toy.toml", name).unwrap();
    sets.iter().for_each(|set| experiment.set(set).unwrap());
    experiment
}

fn planned(context: &Context, name: &str, sets: &[&str]) -> Plan {
    plan(&experiment(name, sets), None, context).unwrap()
}

fn roles(plan: &Plan) -> Vec<Role> {
    plan.cells.iter().map(|cell| cell.role).collect()
}

#[test]
fn pretraining_comes_first_and_is_shared() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let first = planned(&context, "first", &["matrix.seed=[0, 1]"]);
    let expected = [Role::Pretraining, Role::Teacher, Role::Student, Role::Teacher, Role::Student];
    assert_eq!(roles(&first), expected, "one pretraining for all seeds");
    let needs: Vec<_> = first.cells.iter().map(|cell| cell.needs).collect();
    assert_eq!(needs, [None, Some(0), Some(1), Some(0), Some(3)]);
    assert_eq!(first.cells[0].name, "big-other-pretraining-s9");
    let outcomes = run_plan(&first, &context, &mut ()).unwrap();
    let student = outcomes[2].result().unwrap();
    assert!(matches!(outcomes[0], Outcome::Trained(_)));
    let init = &student.summary.teacher.as_ref().unwrap().init;
    assert!(init.starts_with("pretrain: ") && init.ends_with(" images, 1 epoch"), "{init}");

    // Another experiment finds the finished pretraining.
    let second = planned(&context, "second", &["train.epochs=1"]);
    assert_eq!(second.cells[0].folder, first.cells[0].folder);
    assert!(matches!(run_plan(&second, &context, &mut ()).unwrap()[0], Outcome::Finished(_)));
    let other = planned(&context, "second", &["teacher.pretrain.train.seed=8"]);
    assert_ne!(other.cells[1].hash, second.cells[1].hash, "another pretraining is another teacher");
}

#[test]
fn found_weights_need_no_pretraining() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    toy::write_weights(root.path());
    assert_eq!(roles(&planned(&context, "toy", &[])), [Role::Teacher, Role::Student]);
    let e = plan(&toy::experiment(&["teacher.weights=pretrain"]), None, &context).unwrap_err();
    assert!(e.to_string().contains("pretrain"), "{e}");
}

#[test]
fn a_teacher_without_training_is_taken_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let plan = planned(&context, "toy", &["teacher.train.epochs=0"]);
    let outcomes = run_plan(&plan, &context, &mut ()).unwrap();
    let [pretrained, teacher, student] = [0, 1, 2].map(|i| outcomes[i].result().unwrap());
    assert_eq!(teacher.student_sha256, pretrained.student_sha256);
    assert_eq!((teacher.epochs, teacher.steps, teacher.total), (0, 0, 8));
    assert!(teacher.correct.is_some() && student.steps > 0);
    assert!(RunDir::new(&plan.cells[1].folder).log().unwrap().is_empty());

    // The file's head must fit: these weights are for seven classes, the images have three.
    toy::write_weights(root.path());
    let plan = planned(&context, "toy", &["teacher.train.epochs=0"]);
    let outcomes = run_plan(&plan, &context, &mut ()).unwrap();
    assert!(matches!(&outcomes[0], Outcome::Failed(why) if why.contains("head") || why.contains("fc")));
    let e = plan_error(&context, &["teacher.train.epochs=0", "teacher.weights=scratch"]);
    assert!(e.contains("0 to take pretrained weights as they are"), "{e}");
}

fn plan_error(context: &Context, sets: &[&str]) -> String {
    plan(&toy::experiment(sets), None, context).unwrap_err().to_string()
}
