//! Weights over the epochs, and what is told of terms and connectors that do nothing.

mod toy;

use stillhouse_runs::EpochLog;
use stillhouse_trainer::{Cell, Context, Observer, plan, run_cell};

#[derive(Default)]
struct Heard {
    lines: Vec<EpochLog>,
    messages: Vec<String>,
}

impl Observer for Heard {
    fn epoch(&mut self, _cell: &Cell, line: &EpochLog) {
        self.lines.push(line.clone());
    }
    fn message(&mut self, _cell: &Cell, text: &str) {
        self.messages.push(text.to_string());
    }
}

fn run(context: &Context, sets: &[&str]) -> Heard {
    let mut heard = Heard::default();
    for cell in &plan(&toy::experiment(sets), None, context).unwrap().cells {
        heard = Heard::default();
        run_cell(cell, context, &mut heard).unwrap();
    }
    heard
}

#[test]
fn weights_grow_fall_and_are_logged() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    // Two epochs of warm-up are the method's default; its own weight is 0.5, of three epochs.
    let decay = "{ kind = 'multistep', at = [0.67], factor = 0.0 }";
    let heard = run(&context, &[&format!("loss=[{{ method = 'memory', decay = {decay} }}]")]);
    let weights: Vec<f64> = heard.lines.iter().map(|line| line.weights["memory"]).collect();
    assert_eq!(weights, [0.25, 0.5, 0.0]);
    assert!(heard.lines.iter().all(|line| line.weights["ce"] == 1.0), "labels neither grow nor fall");
    let warnings: Vec<usize> = heard.lines.iter().map(|line| line.warnings.len()).collect();
    assert_eq!(warnings, [0, 0, 1], "a connector of a term that is over is not told besides");
    assert!(heard.lines[2].warnings[0].contains("`memory` did not run: its weight has decayed to 0"));
    let last = &heard.lines[2];
    assert!((last.loss - last.terms["ce"]).abs() < 1e-12 && last.terms["memory"] > 0.0);
}

#[test]
fn what_does_nothing_is_told() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let heard = run(&context, &["loss=[{ method = 'idle' }]"]);
    for line in &heard.lines {
        let [term, connector] = line.warnings.as_slice() else { panic!("{:?}", line.warnings) };
        assert!(term.contains("`never` of `idle`") && term.contains("no step gave it a value"), "{term}");
        assert!(connector.contains("`connector.idle.unused` got no gradient"), "{connector}");
    }
    assert_eq!(heard.lines.len(), 3);
    assert_eq!(heard.messages.len(), 2, "each once: {:?}", heard.messages);
    // A connector that is not to move is not missed.
    let heard = run(&context, &["loss=[{ method = 'idle' }]", "train.freeze=['connector.*']"]);
    assert!(heard.lines.iter().all(|line| line.warnings.len() == 1), "{:?}", heard.messages);
}

#[test]
fn a_decay_out_of_range_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let context = toy::context(root.path());
    let error = |decay: &str| {
        let set = format!("loss=[{{ method = 'memory', decay = {decay} }}]");
        plan(&toy::experiment(&[&set]), None, &context).unwrap_err().to_string()
    };
    let e = error("{ kind = 'cosine', warmup_epochs = 2 }");
    assert!(e.contains("loss.memory.decay") && e.contains("beside `decay`"), "{e}");
    let e = error("{ kind = 'multistep', at = [1.5], factor = 0.1 }");
    assert!(e.contains("loss.memory.decay") && e.contains("(0, 1)"), "{e}");
}
