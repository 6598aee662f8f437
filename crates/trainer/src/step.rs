//! One batch: teacher, student, terms, gradients, update.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use stillhouse_core::data::{Batch, Target};
use stillhouse_core::distiller::{ADVERSARY, Distiller, LossContext, Term};
use stillhouse_core::model::Features;
use stillhouse_core::{Rng, Tape};
use stillhouse_ops::optim::{Ema, Optimizer};
use stillhouse_ops::{Gradients, Param};

use crate::evaluate::{right, to_device};
use crate::groups::Groups;
use crate::losses::{CE, is_ce};
use crate::readings::{Place, Readings, ToldTerm, value_of};
use crate::schedule::Course;
use crate::steps::StepPlan;
use crate::teacher::Teacher;
use crate::{Error, Network, Result};

/// Prefix of all parameters in the student's store that are not the student's.
pub(crate) const CONNECTORS: &str = "connector.";

/// Whether a parameter is the student's own.
pub(crate) fn is_own(name: &str) -> bool {
    !name.starts_with(CONNECTORS)
}

/// Whether a parameter belongs to the adversary of a method: `connector.<method>.d.<name>`.
fn is_opponents(name: &str) -> bool {
    let below_method = name.strip_prefix(CONNECTORS).and_then(|rest| rest.split_once('.'));
    let own = below_method.and_then(|(_, own)| own.strip_prefix(ADVERSARY));
    own.is_some_and(|rest| rest.starts_with('.'))
}

/// A method at work.
pub(crate) struct Method {
    pub(crate) distiller: Box<dyn Distiller>,
    /// Place of its training step in the batch.
    pub(crate) step: usize,
    /// Its name, with the step where there are several: `step1-ce`. Its connectors stand below it.
    pub(crate) label: String,
    /// `step1-` before the names of its terms where there are several steps.
    pub(crate) prefix: String,
    /// Factor on the weights of its terms, cross-entropies excepted.
    pub(crate) course: Course,
    pub(crate) rng: Rng,
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
    pub(crate) rule: Optimizer,
    /// The moving average of the student's weights, where it is asked for.
    pub(crate) average: Option<Ema>,
    /// The largest norm of the gradients of a step.
    pub(crate) clip_norm: Option<f64>,
    /// Images of the parts over which the gradients of a step are added up.
    pub(crate) micro_batch: Option<usize>,
    /// Random numbers of dropout and the like, addressed by step.
    pub(crate) rng: Rng,
    /// What the steps tell.
    pub(crate) readings: Readings,
}

/// Where a step stands in the training.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) step: u64,
    pub(crate) per_epoch: u64,
    pub(crate) lr: f64,
}

impl Learner {
    /// Runs all training steps of one batch, which lies in the host's memory. What they tell goes to
    /// the readings; connectors that are known to get a gradient are not looked at.
    ///
    /// An error may come from values that an earlier step has spoilt: then it is that step's which is
    /// told.
    pub(crate) fn learn(&mut self, batch: &Batch, at: Moment, known: &BTreeSet<String>) -> Result<()> {
        let learned = self.steps(batch, at, known);
        if learned.is_err()
            && let Err(earlier @ Error::NonFinite { .. }) = self.readings.told(true)
        {
            return Err(earlier);
        }
        learned
    }

    fn steps(&mut self, batch: &Batch, at: Moment, known: &BTreeSet<String>) -> Result<()> {
        let parts = self.parts(batch, at)?;
        let logits = |plan: &StepPlan| plan.taps.iter().any(|tap| tap == "logits");
        let counting = self.plans.iter().position(logits);
        for place in 0..self.plans.len() {
            self.step(place, &parts, at, counting == Some(place), known)?;
        }
        if let Some(average) = &mut self.average {
            average.update(&self.student.params)?;
        }
        self.readings.over(at.lr, batch.ids.len() as u64)
    }

    /// The weights of all terms by name, with the step where there are several.
    pub(crate) fn weights(&self) -> BTreeMap<String, f64> {
        let named = |m: &Method| {
            let prefix = m.prefix.clone();
            m.distiller
                .term_weights()
                .into_iter()
                .map(move |(name, weight)| (format!("{prefix}{name}"), weight))
        };
        self.methods.iter().flat_map(named).collect()
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
            let name = &method.label;
            let faded = method.course.factor(epoch.saturating_sub(1)) == 0.0;
            let why = if faded { "its weight has decayed to 0" } else { "no step gave it a value" };
            let on = method.distiller.term_weights().into_iter().filter(|(_, weight)| *weight != 0.0);
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

    /// The batch in parts of `micro_batch` images on the device, each with what the teacher makes of it.
    fn parts(&mut self, batch: &Batch, at: Moment) -> Result<Vec<Part>> {
        let images = batch.ids.len();
        let size = self.micro_batch.unwrap_or(images).clamp(1, images.max(1));
        let mut parts = Vec::new();
        for start in (0..images).step_by(size) {
            let len = size.min(images - start);
            let host = batch.labels.narrow(start, len)?;
            let ids = batch.ids[start..start + len].to_vec();
            let images_of = batch.images.narrow(0, start, len)?;
            let labels = host.clone();
            let batch = to_device(Batch { images: images_of, labels, ids }, self.student.params.device())?;
            let target = Target { device: batch.labels.clone(), host };
            let place = Place::new(at.step, &batch);
            let teacher = match &mut self.teacher {
                Some(teacher) => teacher.forward(&batch)?,
                None => Features::default(),
            };
            parts.push(Part { batch, target, place, teacher, share: len as f64 / images as f64 });
        }
        Ok(parts)
    }

    /// One step: the gradients of all parts, one update, then adversaries and what moves by itself. Its
    /// logits count what is right if they are to.
    fn step(
        &mut self,
        place: usize,
        parts: &[Part],
        at: Moment,
        counting: bool,
        known: &BTreeSet<String>,
    ) -> Result<()> {
        let plan = self.plans[place].clone();
        // A batch of one step and one part draws as it always has.
        let streams: Vec<Option<String>> =
            (0..parts.len()).map(|i| (place + i > 0).then(|| format!("step {place} part {i}"))).collect();
        let stream = |rng: Rng, i: usize| streams[i].as_ref().map_or(rng, |name| rng.stream(name));
        let (mut sum, mut features) = (None, Vec::new());
        self.tape.select_features(&plan.taps);
        for (i, part) in parts.iter().enumerate() {
            self.tape.begin(stream(self.rng, i), at.step);
            let student = self.student.model.forward(&part.batch.images, &mut self.tape)?;
            let mut terms = Vec::new();
            for method in plan.methods.iter().map(|m| &self.methods[*m]) {
                let factor = method.course.factor(at.step / at.per_epoch);
                for mut term in method.distiller.terms(&part.step(&student, at, stream(method.rng, i)))? {
                    if !is_ce(&term.name) {
                        term.weight *= factor;
                    }
                    terms.push((method, term));
                }
            }
            let total = part.shared(add_up(&terms, part, &mut self.readings)?)?;
            let gradients = self.tape.backward(&total)?;
            self.readings.finite(&part.place, &gradients)?;
            sum = Some(added(sum, gradients)?);
            if counting && let Some(count) = right(student.logits()?, &part.batch.labels)? {
                self.readings.right(&count)?;
            }
            features.push(student);
        }
        self.readings.summed(true)?;
        if let Some(gradients) = sum {
            self.update(&plan, gradients, parts, at, known)?;
        }
        self.update_opponents(&plan, parts, &features, stream, at)?;
        for (i, (part, student)) in parts.iter().zip(&features).enumerate() {
            for place in &plan.methods {
                let method = &mut self.methods[*place];
                let rng = stream(method.rng, i);
                method.distiller.after_step(&part.step(student, at, rng), &self.student.params)?;
            }
        }
        Ok(())
    }

    /// Moves what the step is to move, adversaries aside.
    fn update(
        &mut self,
        plan: &StepPlan,
        mut gradients: Gradients,
        parts: &[Part],
        at: Moment,
        known: &BTreeSet<String>,
    ) -> Result<()> {
        if let [_, last @ ..] = parts
            && let Some(part) = last.last()
        {
            self.readings.finite(&part.place, &gradients)?; // sums of finite gradients need not be
        }
        note_moved(&self.connectors, &gradients, known, &mut self.readings)?;
        let groups = &self.groups;
        let hyper = |param: &Param| {
            let own = plan.moves(&param.name) && !is_opponents(&param.name);
            if own { groups.hyper(param, at.lr) } else { None }
        };
        let params = &self.student.params;
        if plan.is_partial() && !gradients.ids().any(|id| hyper(&params.get(id)).is_some()) {
            let what = "a training step moves nothing: its losses have no gradient for the parameters that are \
                        to move";
            return Err(stillhouse_core::Error::incompatible("train.step", what).into());
        }
        if let Some(most) = self.clip_norm {
            gradients.clip_norm(most, |param| hyper(param).is_some())?;
        }
        Ok(self.rule.step(params, &gradients, hyper)?)
    }

    /// Moves the adversaries of the step's methods, if they have some.
    fn update_opponents(
        &mut self,
        plan: &StepPlan,
        parts: &[Part],
        features: &[Features],
        stream: impl Fn(Rng, usize) -> Rng,
        at: Moment,
    ) -> Result<()> {
        let mut sum = None;
        for (i, (part, student)) in parts.iter().zip(features).enumerate() {
            let mut terms = Vec::new();
            for method in plan.methods.iter().map(|m| &self.methods[*m]) {
                let own = method.distiller.adversary_terms(&part.step(student, at, stream(method.rng, i)))?;
                terms.extend(own.into_iter().map(|term| (method, term)));
            }
            if terms.is_empty() {
                continue;
            }
            let total = part.shared(add_up(&terms, part, &mut self.readings)?)?;
            let gradients = Gradients::from_graph(&self.student.params, &total)?;
            self.readings.finite(&part.place, &gradients)?;
            sum = Some(added(sum, gradients)?);
        }
        self.readings.summed(false)?; // the total is the student's alone
        let Some(gradients) = sum else { return Ok(()) };
        // Even with a gradient of 0: the last bias cancels out of a difference of verdicts.
        let params = &self.student.params;
        let names = gradients.names().into_iter();
        self.readings.moved(names.filter(|name| is_opponents(name)).collect())?;
        let groups = &self.groups;
        Ok(self.rule.step(params, &gradients, |param| {
            if is_opponents(&param.name) { groups.hyper(param, at.lr) } else { None }
        })?)
    }
}

/// A part of a batch; most often the whole.
struct Part {
    batch: Batch,
    target: Target,
    place: Place,
    /// What the teacher makes of it.
    teacher: Features,
    /// Its part of the batch's images.
    share: f64,
}

impl Part {
    fn step<'a>(&'a self, student: &'a Features, at: Moment, rng: Rng) -> LossContext<'a> {
        LossContext {
            images: Some(&self.batch.images),
            ids: &self.batch.ids,
            epoch: at.step as f64 / at.per_epoch as f64,
            step: at.step,
            rng,
            ..LossContext::new(student, &self.teacher, &self.target)
        }
    }

    /// A mean over the part as its share of the mean over the batch.
    fn shared(&self, total: Tensor) -> Result<Tensor> {
        Ok(if self.share == 1.0 { total } else { (total * self.share)? })
    }
}

/// The gradients of one part more.
fn added(sum: Option<Gradients>, gradients: Gradients) -> Result<Gradients> {
    match sum {
        Some(mut sum) => {
            sum.add(gradients)?;
            Ok(sum)
        }
        None => Ok(gradients),
    }
}

/// Asks which connectors have a gradient other than 0; those that are known to are not looked at, nor
/// are adversaries, which have an update of their own.
fn note_moved(
    connectors: &[String],
    gradients: &Gradients,
    known: &BTreeSet<String>,
    readings: &mut Readings,
) -> Result<()> {
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for name in connectors.iter().filter(|name| !known.contains(*name) && !is_opponents(name)) {
        if let Some(largest) = gradients.max_abs(name)? {
            names.push(name.clone());
            values.push(largest);
        }
    }
    readings.largest(names, &values)
}

/// The weighted sum of the terms of a part. Each goes to the readings, which refuse what is not finite.
fn add_up(terms: &[(&Method, Term)], part: &Part, readings: &mut Readings) -> Result<Tensor> {
    let (mut total, mut told, mut values): (Option<Tensor>, _, _) = (None, Vec::new(), Vec::new());
    for (i, (method, term)) in terms.iter().enumerate() {
        let own = method.distiller.name();
        let twin = terms[..i].iter().find(|(_, t)| t.name == term.name);
        if let Some((first, other)) = twin
            && term.name == CE
        {
            return Err(Error::TwoCeWeights {
                first: first.distiller.name().to_string(),
                first_weight: other.weight,
                second: own.to_string(),
                second_weight: term.weight,
            });
        }
        if term.value.elem_count() != 1 {
            let what =
                format!("its term `{}` has shape {:?}, expected a scalar", term.name, term.value.dims());
            return Err(stillhouse_core::Error::incompatible(own, what).into());
        }
        let name = if twin.is_some() { format!("{own}.{}", term.name) } else { term.name.clone() };
        let name = format!("{}{name}", method.prefix);
        let path = format!("{}.{}", method.label, term.name);
        let scalar = term.value.reshape(())?;
        told.push(ToldTerm { name, path, value: f64::NAN, weight: term.weight });
        values.push(value_of(&scalar)?);
        let weighted = (scalar * term.weight)?;
        total = Some(match total {
            Some(total) => (total + weighted)?,
            None => weighted,
        });
    }
    let Some(total) = total else {
        return Err(
            stillhouse_core::Error::incompatible("loss", "no method gives a term for this step").into()
        );
    };
    readings.terms(&part.place, part.share, told, &values)?;
    Ok(total)
}

#[cfg(test)]
mod tests;
