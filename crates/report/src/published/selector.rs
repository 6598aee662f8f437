//! Selectors: which measured number a printed number is compared with.

use serde::{Deserialize, Serialize};

/// Method of a selector that selects teachers.
pub(crate) const TEACHER: &str = "teacher";

/// Selects measured numbers by what was run and what was measured. A key that is missing matches everything.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// The measured quantity. Required, except in an operand, which inherits it.
    pub quantity: Option<Quantity>,
    /// Method; `teacher` for teachers. A trailing `*` matches any ending.
    pub method: Option<String>,
    /// Methods to leave out, of the same form.
    #[serde(default)]
    pub except: Vec<String>,
    /// Registry id of the student, or of its backbone.
    pub student: Option<String>,
    /// Registry id of a network, in a table of model sizes.
    pub model: Option<String>,
    /// Registry id of the dataset.
    pub dataset: Option<String>,
    /// Training ratio in percent; 0 with an official split.
    pub ratio: Option<u64>,
    /// Early exit (`exit3`); the network's own output if missing.
    pub exit: Option<String>,
    /// View of the test images (`hflip`, `vflip`); unchanged images if missing.
    pub view: Option<String>,
    /// Class name.
    pub class: Option<String>,
    /// Path of a setting: `train.optimizer.lr`, or `loss.<method>.<key>`.
    pub key: Option<String>,
    /// Parameter names, with one `*`: `backbone.layers.2.blocks.*`.
    pub pattern: Option<String>,
    /// How several matching cells become one number.
    pub reduce: Option<Reduce>,
    /// Subtracts the number of this selector.
    pub minus: Option<Box<Selector>>,
    /// Percentage above the number of this selector.
    pub relative_to: Option<Box<Selector>>,
    /// Percentage of the number of this selector.
    pub percent_of: Option<Box<Selector>>,
}

/// A measured quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Percentage of test images classified correctly.
    Accuracy,
    /// Mean IoU in percent.
    MeanIou,
    /// IoU of one class in percent.
    ClassIou,
    /// Percentage of one class's test images classified correctly, of the first matching run.
    ClassAccuracy,
    /// Trainable parameters.
    Parameters,
    /// Multiply-accumulates of one image.
    Macs,
    /// Operations of one image: twice the multiply-accumulates, unless a size table counts them otherwise.
    Flops,
    /// Training images.
    TrainImages,
    /// Test images.
    TestImages,
    /// Images of a dataset.
    Images,
    /// Mean number of images per class.
    ImagesPerClass,
    /// Classes of a dataset.
    Classes,
    /// Training ratio in percent.
    Ratio,
    /// Finished seeds of a cell.
    Seeds,
    /// Number of different methods.
    Methods,
    /// Number of different datasets.
    Datasets,
    /// A resolved setting.
    Setting,
    /// Number of different values of the `*` of a pattern among the parameter names.
    Modules,
}

/// How several numbers become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduce {
    /// Their mean; the default for scores.
    Mean,
    /// The value that all share, if they do; the default for everything but scores.
    Same,
    /// The largest.
    Max,
    /// The smallest.
    Min,
    /// The value of the cell with the highest score.
    Best,
}

impl Quantity {
    /// Whether it is a score in percent.
    pub(crate) fn is_score(self) -> bool {
        matches!(self, Self::Accuracy | Self::MeanIou | Self::ClassIou | Self::ClassAccuracy)
    }
}

impl Selector {
    /// Whether a method is selected.
    pub(crate) fn selects_method(&self, method: &str) -> bool {
        self.method.as_ref().is_none_or(|pattern| matches(pattern, method))
            && !self.except.iter().any(|pattern| matches(pattern, method))
    }

    /// Whether a cell of a table is selected.
    pub(crate) fn selects(&self, method: &str, student: &str, dataset: &str, ratio: u64) -> bool {
        self.selects_method(method)
            && self.student.as_ref().is_none_or(|s| s == student)
            && self.selects_data(dataset, ratio)
    }

    /// Whether data are selected.
    pub(crate) fn selects_data(&self, dataset: &str, ratio: u64) -> bool {
        self.dataset.as_ref().is_none_or(|d| d == dataset) && self.ratio.is_none_or(|r| r == ratio)
    }

    /// Whether it selects the score of one method as it is: no difference, no other view, no reduction.
    pub(crate) fn is_plain_score(&self) -> bool {
        matches!(self.quantity, Some(Quantity::Accuracy | Quantity::MeanIou))
            && self.method.as_ref().is_some_and(|m| !m.ends_with('*'))
            && self.operand().is_none()
            && self.view.is_none()
            && self.reduce.is_none()
    }

    /// The other selector of a difference or ratio.
    pub(crate) fn operand(&self) -> Option<&Selector> {
        self.minus.as_deref().or(self.relative_to.as_deref()).or(self.percent_of.as_deref())
    }

    /// Returns the operand with every key that it lacks taken from this selector.
    fn complete(&self, operand: &Selector) -> Selector {
        let or = |own: &Option<String>, base: &Option<String>| own.clone().or_else(|| base.clone());
        Selector {
            quantity: operand.quantity.or(self.quantity),
            method: or(&operand.method, &self.method),
            except: match operand.method {
                Some(_) => operand.except.clone(),
                None => self.except.clone(),
            },
            student: or(&operand.student, &self.student),
            model: or(&operand.model, &self.model),
            dataset: or(&operand.dataset, &self.dataset),
            ratio: operand.ratio.or(self.ratio),
            exit: or(&operand.exit, &self.exit),
            view: or(&operand.view, &self.view),
            class: or(&operand.class, &self.class),
            key: or(&operand.key, &self.key),
            pattern: or(&operand.pattern, &self.pattern),
            reduce: operand.reduce.or(self.reduce),
            minus: None,
            relative_to: None,
            percent_of: None,
        }
    }

    /// Returns the selected number, with differences and ratios taken; `value` looks plain selectors up.
    pub fn evaluate(&self, value: &dyn Fn(&Selector) -> Option<f64>) -> Option<f64> {
        let own = value(self)?;
        let Some(operand) = self.operand() else { return Some(own) };
        let other = value(&self.complete(operand))?;
        match (&self.minus, &self.relative_to) {
            (Some(_), _) => Some(own - other),
            (None, Some(_)) => (other != 0.0).then(|| 100.0 * (own - other) / other),
            (None, None) => (other != 0.0).then(|| 100.0 * own / other),
        }
    }

    /// Returns what is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        let Some(quantity) = self.quantity else { return Some("missing key `quantity`".into()) };
        let required = match quantity {
            Quantity::ClassIou | Quantity::ClassAccuracy => Some(("class", self.class.is_some())),
            Quantity::Setting => Some(("key", self.key.is_some())),
            Quantity::Modules => Some(("pattern", self.pattern.as_ref().is_some_and(|p| p.contains('*')))),
            _ => None,
        };
        if let Some((key, false)) = required {
            return Some(format!("quantity `{}` requires `{key}`", name(quantity)));
        }
        let operands = [&self.minus, &self.relative_to, &self.percent_of];
        if operands.iter().filter(|o| o.is_some()).count() > 1 {
            return Some("expected at most one of `minus`, `relative_to`, `percent_of`".into());
        }
        let nested = self.operand().is_some_and(|o| o.operand().is_some());
        nested.then(|| "an operand has an operand of its own".into())
    }
}

fn name(quantity: Quantity) -> String {
    let value = serde_json::to_value(quantity).unwrap_or_default();
    value.as_str().unwrap_or_default().to_string()
}

fn matches(pattern: &str, method: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == method, |start| method.starts_with(start))
}

/// Reduces the numbers of several cells, each given with the score of its cell.
pub(crate) fn reduce(values: &[(f64, Option<f64>)], by: Reduce) -> Option<f64> {
    let numbers = || values.iter().map(|(value, _)| *value);
    let (first, _) = values.first()?;
    match by {
        Reduce::Mean => Some(numbers().sum::<f64>() / values.len() as f64),
        Reduce::Same => numbers().all(|v| v == *first).then_some(*first),
        Reduce::Max => numbers().reduce(f64::max),
        Reduce::Min => numbers().reduce(f64::min),
        Reduce::Best => {
            let scored = values.iter().filter_map(|(value, score)| Some((*value, (*score)?)));
            scored.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(value, _)| value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(text: &str) -> Selector {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn takes_differences_and_ratios() {
        let value = |s: &Selector| match (s.method.as_deref(), s.dataset.as_deref()) {
            (Some("a"), Some("d")) => Some(60.0),
            (Some("b"), Some("d")) => Some(50.0),
            _ => None,
        };
        let base = "quantity = 'accuracy'\nmethod = 'a'\ndataset = 'd'\n";
        let of = |operand: &str| selector(&format!("{base}{operand}")).evaluate(&value);
        assert_eq!(of(""), Some(60.0));
        assert_eq!(of("minus = { method = 'b' }"), Some(10.0));
        assert_eq!(of("relative_to = { method = 'b' }"), Some(20.0));
        assert_eq!(of("percent_of = { method = 'b' }"), Some(120.0));
        assert_eq!(of("minus = { method = 'c' }"), None);
    }

    #[test]
    fn matches_methods_by_prefix_and_exception() {
        let some = selector("quantity = 'accuracy'\nmethod = 'gamma_*'\nexcept = ['gamma_9']");
        assert!(some.selects_method("gamma_1") && !some.selects_method("gamma_9"));
        assert!(!some.selects_method("kd") && !some.is_plain_score());
        assert!(selector("quantity = 'ratio'").selects("kd", "s", "d", 80));
    }

    #[test]
    fn reduces_cells() {
        let values = [(1.0, Some(70.0)), (3.0, Some(90.0)), (2.0, None)];
        let all = [Reduce::Mean, Reduce::Same, Reduce::Max, Reduce::Min, Reduce::Best];
        assert_eq!(all.map(|by| reduce(&values, by)), [Some(2.0), None, Some(3.0), Some(1.0), Some(3.0)]);
        assert_eq!(reduce(&[], Reduce::Mean), None);
    }

    #[test]
    fn rejects_incomplete_selectors() {
        for (text, expected) in [
            ("method = 'kd'", "`quantity`"),
            ("quantity = 'class_iou'", "requires `class`"),
            ("quantity = 'setting'", "requires `key`"),
            ("quantity = 'ratio'\nminus = {}\npercent_of = {}", "at most one"),
        ] {
            assert!(selector(text).problem().unwrap().contains(expected), "{text}");
        }
        assert!(toml::from_str::<Selector>("quantity = 'speed'").is_err());
    }
}
