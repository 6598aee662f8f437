//! One batch: teacher, student, terms, gradients, update.

use std::collections::BTreeSet;

use candle_core::{DType, Tensor};
use stillhouse_core::data::{Batch, Target, Task};
use stillhouse_core::distiller::{Distiller, OPPONENT, Shapes, Step, Term};
use stillhouse_core::network::Features;
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::optim::{Average, Rule};
use stillhouse_ops::{Gradients, Mode, Param};

use crate::evaluate::count_right;
use crate::groups::{Groups, fits};
use crate::losses::{CE, is_ce};
use crate::schedule::Course;
use crate::{Error, Network, Result};

/// Prefix of all parameters in the student's store that are not the student's.
pub(crate) const CONNECTORS: &str = "connector.";

/// Whether a parameter is the student's own.
pub(crate) fn is_own(name: &str) -> bool {
    !name.starts_with(CONNECTORS)
}

/// Whether a parameter belongs to the opponent of a method: `connector.<method>.d.<name>`.
fn is_opponents(name: &str) -> bool {
    let below_method = name.strip_prefix(CONNECTORS).and_then(|rest| rest.split_once('.'));
    let own = below_method.and_then(|(_, own)| own.strip_prefix(OPPONENT));
    own.is_some_and(|rest| rest.starts_with('.'))
}

/// A method at work.
pub(crate) struct Method {
    pub(crate) distiller: Box<dyn Distiller>,
    /// Factor on the weights of its terms, cross-entropies excepted.
    pub(crate) course: Course,
    pub(crate) rng: Rng,
}

/// What one training step of a batch is: which taps of the student are kept, which methods count,
/// which parameters move. Plain training has one step.
#[derive(Debug, Clone)]
pub(crate) struct StepPlan {
    pub(crate) taps: Vec<String>,
    pub(crate) methods: Vec<usize>,
    /// Patterns of the parameters that move.
    pub(crate) moves: Vec<String>,
}

/// The frozen teacher.
pub(crate) struct Teacher {
    pub(crate) network: Network,
    pub(crate) tape: Tape,
    /// Factor and summand per channel `[1, 3, 1, 1]` from the student's normalisation to the
    /// teacher's, where they differ.
    pub(crate) renormalise: Option<(Tensor, Tensor)>,
}

impl Teacher {
    fn forward(&mut self, images: &Tensor) -> Result<Features> {
        self.tape.begin(Rng::new(0), 0);
        Ok(match &self.renormalise {
            None => self.network.backbone.forward(images, &mut self.tape)?,
            Some((factor, summand)) => {
                let images = images.broadcast_mul(factor)?.broadcast_add(summand)?;
                self.network.backbone.forward(&images, &mut self.tape)?
            }
        })
    }
}

/// Everything that a step changes or reads, apart from the batch.
pub(crate) struct Learner {
    pub(crate) student: Network,
    pub(crate) tape: Tape,
    pub(crate) teacher: Option<Teacher>,
    pub(crate) methods: Vec<Method>,
    pub(crate) plans: Vec<StepPlan>,
    pub(crate) groups: Groups,
    /// Names of the connectors' weights that are to move.
    pub(crate) connectors: Vec<String>,
    pub(crate) rule: Rule,
    /// The moving average of the student's weights, where it is asked for.
    pub(crate) average: Option<Average>,
    /// The largest norm of the gradients of a step.
    pub(crate) clip_norm: Option<f64>,
    /// Random numbers of dropout and the like, addressed by step.
    pub(crate) rng: Rng,
}

/// Where a step stands in the training.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) step: u64,
    pub(crate) per_epoch: u64,
    pub(crate) lr: f64,
}

/// What a step tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) terms: Vec<ToldTerm>,
    /// The weighted sum.
    pub(crate) total: f64,
    pub(crate) right: Option<u64>,
}

/// A term as it is logged.
#[derive(Debug, Clone)]
pub(crate) struct ToldTerm {
    /// The method's name, if another method has a term of the same name, and the term's.
    pub(crate) name: String,
    /// `<method>.<term>`
    pub(crate) path: String,
    /// Without the weight.
    pub(crate) value: f64,
    /// In force now.
    pub(crate) weight: f64,
}

impl Learner {
    /// Runs all training steps of one batch; names of connectors that get a gradient are added to
    /// `moved`.
    pub(crate) fn learn(&mut self, batch: &Batch, at: Moment, moved: &mut BTreeSet<String>) -> Result<Told> {
        let teacher = match &mut self.teacher {
            Some(teacher) => teacher.forward(&batch.images)?,
            None => Features::default(),
        };
        let mut told = Told::default();
        for place in 0..self.plans.len() {
            self.step(&self.plans[place].clone(), batch, &teacher, at, &mut told, moved)?;
        }
        if let Some(average) = &mut self.average {
            average.update(&self.student.params)?;
        }
        Ok(told)
    }

    /// Runs `f` while the student has the averages of its weights, if it has some.
    pub(crate) fn averaged<T>(&mut self, f: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.swap_average()?;
        let result = f(self);
        self.swap_average()?;
        result
    }

    fn swap_average(&mut self) -> Result<()> {
        match &mut self.average {
            Some(average) => Ok(average.swap(&self.student.params)?),
            None => Ok(()),
        }
    }

    /// What did nothing in an epoch (from 1) although it was to: terms that are not among `ran`,
    /// connectors not among `moved`. A term that the settings give the weight 0 is meant to be off.
    pub(crate) fn idle(&self, epoch: u64, ran: &BTreeSet<String>, moved: &BTreeSet<String>) -> Vec<String> {
        let mut found = Vec::new();
        for method in &self.methods {
            let name = method.distiller.name();
            let faded = method.course.factor(epoch.saturating_sub(1)) == 0.0;
            let why = if faded { "its weight has decayed to 0" } else { "no step gave it a value" };
            let on = method.distiller.weights().into_iter().filter(|(_, weight)| *weight != 0.0);
            let idle = on.filter(|(term, _)| !ran.contains(&format!("{name}.{term}")));
            found.extend(idle.map(|(term, _)| format!("term `{term}` of `{name}` did not run: {why}")));
            if faded {
                continue; // and so nothing moves its connectors
            }
            let own = format!("{CONNECTORS}{name}.");
            let still = self.connectors.iter().filter(|c| c.starts_with(&own) && !moved.contains(*c));
            found.extend(still.map(|c| format!("`{c}` got no gradient: it is not trained")));
        }
        found
    }

    fn step(
        &mut self,
        plan: &StepPlan,
        batch: &Batch,
        teacher: &Features,
        at: Moment,
        told: &mut Told,
        moved: &mut BTreeSet<String>,
    ) -> Result<()> {
        self.tape.want(&plan.taps);
        self.tape.begin(self.rng, at.step);
        let student = self.student.backbone.forward(&batch.images, &mut self.tape)?;
        let nothing = Features::default();
        let step = |rng| Step {
            student: &student,
            teacher,
            target: &batch.target,
            images: &batch.images,
            ids: &batch.ids,
            given: &nothing,
            epoch: at.step as f64 / at.per_epoch as f64,
            step: at.step,
            train: true,
            rng,
        };
        let mut terms: Vec<(String, Term)> = Vec::new(); // with the method of each
        for place in &plan.methods {
            let method = &self.methods[*place];
            let name = method.distiller.name().to_string();
            let factor = method.course.factor(at.step / at.per_epoch);
            for mut term in method.distiller.terms(&step(method.rng))? {
                if !is_ce(&term.name) {
                    term.weight *= factor;
                }
                terms.push((name.clone(), term));
            }
        }
        let total = add_up(&mut terms, batch, at.step, told)?;
        let mut gradients = self.tape.backward(&total)?;
        let groups = &self.groups;
        let moves = |name: &str| plan.moves.iter().any(|pattern| fits(pattern, name));
        finite(&gradients, batch, at.step)?;
        note_moved(&self.connectors, &gradients, moved)?;
        let hyper = |param: &Param| {
            let own = moves(&param.name) && !is_opponents(&param.name);
            if own { groups.hyper(param, at.lr) } else { None }
        };
        if let Some(most) = self.clip_norm {
            gradients.clip_norm(most, |param| hyper(param).is_some())?;
        }
        self.rule.step(&self.student.params, &gradients, hyper)?;

        let mut terms = Vec::new();
        for place in &plan.methods {
            let method = &self.methods[*place];
            let name = method.distiller.name();
            let own = method.distiller.opponent(&step(method.rng))?;
            terms.extend(own.into_iter().map(|term| (name.to_string(), term)));
        }
        if !terms.is_empty() {
            let mut apart = Told { terms: std::mem::take(&mut told.terms), ..Told::default() };
            let total = add_up(&mut terms, batch, at.step, &mut apart)?;
            told.terms = apart.terms;
            let gradients = Gradients::of_graph(&self.student.params, &total)?;
            finite(&gradients, batch, at.step)?;
            // Even with a gradient of 0: the last bias cancels out of a difference of verdicts.
            let names = gradients.ids().map(|id| self.student.params.get(id).name);
            moved.extend(names.filter(|name| is_opponents(name)));
            self.rule.step(&self.student.params, &gradients, |param| {
                let own = moves(&param.name) && is_opponents(&param.name);
                if own { groups.hyper(param, at.lr) } else { None }
            })?;
        }
        for place in &plan.methods {
            let method = &mut self.methods[*place];
            method.distiller.after_step(&step(method.rng), &self.student.params)?;
        }
        if told.right.is_none() && matches!(batch.target, Target::Classes(_)) {
            told.right = count_right(&student, &batch.target)?;
        }
        Ok(())
    }
}

/// Adds the connectors that have a gradient other than 0; those that are known to are not looked at,
/// nor are opponents, which have an update of their own.
fn note_moved(connectors: &[String], gradients: &Gradients, moved: &mut BTreeSet<String>) -> Result<()> {
    for name in connectors {
        if !moved.contains(name)
            && !is_opponents(name)
            && let Some(gradient) = gradients.param(name)?
            && gradient.flatten_all()?.abs()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>()? > 0.0
        {
            moved.insert(name.clone());
        }
    }
    Ok(())
}

/// The weighted sum of the terms. Each is checked before anything is updated.
fn add_up(terms: &mut [(String, Term)], batch: &Batch, step: u64, told: &mut Told) -> Result<Tensor> {
    let mut total: Option<Tensor> = None;
    for i in 0..terms.len() {
        let (before, rest) = terms.split_at(i);
        let (method, term) = &rest[0];
        let twin = before.iter().find(|(_, t)| t.name == term.name);
        if let Some((first, other)) = twin
            && term.name == CE
        {
            return Err(Error::TwoCeWeights {
                first: first.clone(),
                first_weight: other.weight,
                second: method.clone(),
                second_weight: term.weight,
            });
        }
        if term.value.elem_count() != 1 {
            let what =
                format!("its term `{}` has shape {:?}, expected a scalar", term.name, term.value.dims());
            return Err(stillhouse_core::Error::unfit(method, what).into());
        }
        let name = if twin.is_some() { format!("{method}.{}", term.name) } else { term.name.clone() };
        let scalar = term.value.reshape(())?;
        let value = scalar.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if !value.is_finite() {
            return Err(non_finite(&name, value, batch, step));
        }
        let path = format!("{method}.{}", term.name);
        told.terms.push(ToldTerm { name, path, value, weight: term.weight });
        told.total += value * term.weight;
        let weighted = (scalar * term.weight)?;
        total = Some(match total {
            Some(total) => (total + weighted)?,
            None => weighted,
        });
    }
    match total {
        Some(_) if !told.total.is_finite() => Err(non_finite("total", told.total, batch, step)),
        Some(total) => Ok(total),
        None => Err(stillhouse_core::Error::unfit("loss", "no method gives a term for this step").into()),
    }
}

/// Refuses gradients that are not finite.
fn finite(gradients: &Gradients, batch: &Batch, step: u64) -> Result<()> {
    match gradients.first_non_finite()? {
        Some(name) => Err(non_finite(&format!("gradient of {name}"), f64::NAN, batch, step)),
        None => Ok(()),
    }
}

fn non_finite(term: &str, value: f64, batch: &Batch, step: u64) -> Error {
    Error::NonFinite { term: term.to_string(), value, step, ids: batch.ids.clone() }
}

/// Shapes of all taps that are needed, found out by one image of zeros.
pub(crate) fn probe(
    network: &Network,
    taps: &[String],
    (height, width): (usize, usize),
    mode: Mode,
) -> Result<Features> {
    let mut tape = Tape::new(&network.params, mode)?;
    tape.want(taps);
    tape.begin(Rng::new(0), 0);
    let images = Tensor::zeros((1, 3, height, width), DType::F32, network.params.device())?;
    Ok(network.backbone.forward(&images, &mut tape)?)
}

/// Makes the connectors of all methods in the student's store.
pub(crate) fn connect(
    methods: &mut [Method],
    student: &Network,
    teacher: Option<&Network>,
    (task, batch, samples): (Task, usize, usize),
    size: (usize, usize),
    rng: Rng,
) -> Result<()> {
    let mut needs = stillhouse_core::distiller::Needs::default();
    for method in methods.iter() {
        let own = method.distiller.needs();
        needs.student.extend(own.student);
        needs.teacher.extend(own.teacher);
    }
    let of_student = probe(student, &needs.student, size, Mode::Eval)?.shapes();
    let of_teacher = match teacher {
        Some(teacher) => probe(teacher, &needs.teacher, size, Mode::Eval)?.shapes(),
        None => Default::default(),
    };
    let builder = student.params.builder(rng).pp(CONNECTORS.trim_end_matches('.'));
    for method in methods {
        let own = method.distiller.needs();
        let pick = |all: &std::collections::BTreeMap<String, Vec<usize>>, names: &[String]| {
            all.iter().filter(|(n, _)| names.contains(n)).map(|(n, s)| (n.clone(), s.clone())).collect()
        };
        let shapes = Shapes {
            student: pick(&of_student, &own.student),
            teacher: pick(&of_teacher, &own.teacher),
            task,
            classes: student.backbone.classes(),
            batch,
            samples,
        };
        let name = method.distiller.name().to_string();
        method.distiller.connect(&shapes, &builder.pp(name))?;
    }
    Ok(())
}
