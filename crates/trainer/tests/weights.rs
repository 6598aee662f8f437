//! Schedules of loss weights, and warnings about unused terms and connectors.

mod toy;

use stillhouse_runs::EpochLog;
use stillhouse_trainer::{Cell, Context, Observer, plan, run_cell};

#[derive(Default)]
struct Recorder {
    lines: Vec<EpochLog>,
    messages: Vec<String>,
}

impl Observer for Recorder {
    fn epoch(&mut self, _cell: &Cell, line: &EpochLog) {
        self.lines.push(line.clone());
    }
    fn message(&mut self, _cell: &Cell, text: &str) {
        self.messages.push(text.to_string());
    }
}

fn run(context: &Context, sets: &[&str]) -> Recorder {
    let mut recorder = Recorder::default();
    for cell in &plan(&toy::experiment(sets), None, context).unwrap().cells {
        recorder = Recorder::default();
        run_cell(cell, context, &mut recorder).unwrap();
    }
    recorder
}

#[test]
fn weights_follow_their_schedule_in_the_log() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    // The method's defaults are two epochs of warm-up and a weight of 0.5; the run has three epochs.
    let decay = "{ kind = 'multistep', at = [0.67], factor = 0.0 }";
    let recorder = run(&context, &[&format!("loss=[{{ method = 'memory', decay = {decay} }}]")]);
    let weights: Vec<f64> = recorder.lines.iter().map(|line| line.weights["memory"]).collect();
    assert_eq!(weights, [0.25, 0.5, 0.0]);
    assert!(recorder.lines.iter().all(|line| line.weights["ce"] == 1.0), "the cross-entropy has no schedule");
    let warnings: Vec<usize> = recorder.lines.iter().map(|line| line.warnings.len()).collect();
    assert_eq!(warnings, [0, 0, 1], "no warning for the connector of a decayed term");
    assert!(recorder.lines[2].warnings[0].contains("`memory` was not used: its weight has decayed to 0"));
    let last = &recorder.lines[2];
    assert!((last.loss - last.terms["ce"]).abs() < 1e-12 && last.terms["memory"] > 0.0);
}

#[test]
fn warns_of_unused_terms_and_connectors() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let recorder = run(&context, &["loss=[{ method = 'idle' }]"]);
    for line in &recorder.lines {
        let [term, connector] = line.warnings.as_slice() else { panic!("{:?}", line.warnings) };
        assert!(term.contains("`never` of `idle`") && term.contains("no step had a value for it"), "{term}");
        assert!(connector.contains("`connector.idle.unused` is not trained"), "{connector}");
    }
    assert_eq!(recorder.lines.len(), 3);
    assert_eq!(recorder.messages.len(), 2, "each once: {:?}", recorder.messages);
    // No warning for a frozen connector.
    let recorder = run(&context, &["loss=[{ method = 'idle' }]", "train.freeze=['connector.*']"]);
    assert!(recorder.lines.iter().all(|line| line.warnings.len() == 1), "{:?}", recorder.messages);
}

#[test]
fn rejects_decays_out_of_range() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let error = |decay: &str| {
        let set = format!("loss=[{{ method = 'memory', decay = {decay} }}]");
        plan(&toy::experiment(&[&set]), None, &context).unwrap_err().to_string()
    };
    let e = error("{ kind = 'cosine', warmup_epochs = 2 }");
    assert!(e.contains("loss.memory.decay") && e.contains("next to `decay`"), "{e}");
    let e = error("{ kind = 'multistep', at = [1.5], factor = 0.1 }");
    assert!(e.contains("loss.memory.decay") && e.contains("(0, 1)"), "{e}");
}
