//! Assignment of the tensors of a file to the parameters of a model.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use stillhouse_core::Result;
use stillhouse_ops::Param;

use super::key_mapping::{NamingScheme, SCHEMES, is_derived, without_wrappers};
use super::read::{StateDict, StoredTensor, WeightsFile};
use super::report::{Head, LoadReport};
use crate::Error;

/// Prefix of a backbone's parameters in a model with another head (DeepLabV3+, early exits).
const BACKBONE: &str = "backbone.";
/// Maximum number of components of a prefix.
const MAX_PREFIX: usize = 12;
/// Maximum number of interpretations that are compared in full.
const MAX_COMPARED: usize = 32;
/// Names of a last layer in other models, besides numbers.
const HEAD_NAMES: [&str; 8] =
    ["fc", "classifier", "head", "last_linear", "linear", "logits", "output", "cls_head"];

/// The parameters of a model.
pub(super) struct Target<'a> {
    params: &'a [Param],
    index: HashMap<&'a str, usize>,
    head: &'a [String],
    replace_head: bool,
}

impl<'a> Target<'a> {
    pub(super) fn new(params: &'a [Param], head: &'a [String], replace_head: bool) -> Self {
        let index = params.iter().enumerate().map(|(i, p)| (p.name.as_str(), i)).collect();
        Self { params, index, head, replace_head }
    }

    fn is_head(&self, param: &Param) -> bool {
        self.head.contains(&param.name)
    }
}

/// An interpretation of the names of a state dict.
#[derive(Clone)]
struct Reading<'a> {
    dict: &'a StateDict,
    /// Prefix of the model's tensors in the state dict, with the dot: `module.`, `encoder.`
    prefix: String,
    scheme: &'static NamingScheme,
    /// Prefix of their parameters in the model.
    inside: &'static str,
    /// Number of tensors that fit a parameter.
    hits: usize,
}

impl Reading<'_> {
    /// Returns the path of the state dict and the prefix, as a key.
    fn full_key(&self) -> String {
        let parts = [self.dict.key.as_str(), self.prefix.trim_end_matches('.')];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
    }
}

/// A head with a different number of classes.
pub(super) struct Classes {
    pub(super) name: String,
    pub(super) expected: usize,
    pub(super) found: usize,
}

/// Assignment of the tensors of a file to parameters.
pub(super) struct Matching<'a> {
    pub(super) report: LoadReport,
    pub(super) scheme: &'static NamingScheme,
    /// Index of a parameter, and its parts in the file.
    pub(super) sources: Vec<(usize, Vec<&'a StoredTensor>)>,
    /// A head that differs in the number of classes only, if it is not replaced.
    pub(super) classes: Option<Classes>,
    full_key: String,
}

impl<'a> Matching<'a> {
    /// Finds the state dict, the prefix and the naming scheme that fit. `key` restricts the choice.
    ///
    /// # Errors
    /// [`Error::UnknownKey`]; [`Error::Ambiguous`] if different tensors fit equally well.
    pub(super) fn best(file: &'a WeightsFile, target: &Target<'_>, key: Option<&str>) -> Result<Self> {
        let mut readings: Vec<Reading<'a>> =
            file.state_dicts().iter().flat_map(|dict| readings(dict, target, key)).collect();
        if let Some(key) = key {
            readings = select(readings, key);
            if readings.is_empty() {
                let known = file.state_dicts().iter().map(StateDict::title).collect();
                let path = file.path().to_path_buf();
                return Err(Error::UnknownKey { path, key: key.into(), known }.into());
            }
        }
        // The most hits, then the parameters of the whole model, then the longest prefix.
        readings
            .sort_by_key(|r| (std::cmp::Reverse(r.hits), r.inside.len(), std::cmp::Reverse(r.prefix.len())));
        readings.truncate(MAX_COMPARED);
        let mut all: Vec<Self> = readings.iter().map(|r| Self::new(file, r, target)).collect();
        let fits: Vec<usize> = (0..all.len()).filter(|i| all[*i].fits()).collect();
        let trained = |i: &usize| {
            let momentum = all[*i].full_key.contains("encoder_k");
            let twin = all[*i].full_key.replace("encoder_k", "encoder_q");
            !momentum || fits.iter().all(|other| all[*other].full_key != twin)
        };
        let fits: Vec<usize> = fits.iter().copied().filter(trained).collect();
        let most = fits.iter().map(|i| all[*i].sources.len()).max();
        let Some(&best) = fits.iter().find(|i| Some(all[**i].sources.len()) == most) else {
            return Ok(all.swap_remove(0));
        };
        let rivals = fits.iter().filter(|i| Some(all[**i].sources.len()) == most);
        let rivals: Vec<&Self> =
            rivals.map(|i| &all[*i]).filter(|m| m.locations() != all[best].locations()).collect();
        if !rivals.is_empty() {
            let keys = std::iter::once(&all[best]).chain(rivals).map(|m| m.full_key.clone()).collect();
            return Err(Error::Ambiguous { path: file.path().to_path_buf(), keys }.into());
        }
        Ok(all.swap_remove(best))
    }

    fn fits(&self) -> bool {
        self.report.matches() && self.classes.is_none() && !self.sources.is_empty()
    }

    /// Returns where the values of the parameters are.
    fn locations(&self) -> Vec<(usize, usize, u64)> {
        let parts = self.sources.iter().flat_map(|(param, parts)| parts.iter().map(move |t| (param, t)));
        parts.map(|(param, t)| (*param, t.location().0, t.location().1)).collect()
    }

    fn new(file: &WeightsFile, reading: &Reading<'a>, target: &Target<'_>) -> Self {
        let Reading { dict, prefix, scheme, inside, .. } = reading;
        let mut report = LoadReport {
            file: file.path().display().to_string(),
            format: file.format().to_string(),
            key: dict.key.clone(),
            prefix: prefix.clone(),
            naming: scheme.name.into(),
            unsupported: dict.unsupported.clone(),
            ..LoadReport::default()
        };
        let mut parts: HashMap<usize, BTreeMap<usize, &'a StoredTensor>> = HashMap::new();
        // Tensors under the prefix that the model does not have, and those outside of it.
        let (mut foreign, mut outside) = (Vec::new(), Vec::new());
        // First components of the names of the model's layers, without the head.
        let mut body: BTreeSet<String> = BTreeSet::new();
        for param in target.params.iter().filter(|p| !target.is_head(p)) {
            body.extend(param.name.strip_prefix(inside).map(first_component));
        }
        for tensor in dict.tensors.iter().filter(|t| !is_derived(&t.name)) {
            let Some(inner) = tensor.name.strip_prefix(prefix.as_str()) else {
                outside.push(tensor);
                continue;
            };
            let inner = without_wrappers(inner);
            let renamed = (scheme.rename)(&inner);
            let index = renamed
                .as_ref()
                .and_then(|to| target.index.get(format!("{inside}{}", to.name).as_str()).copied());
            match (renamed, index) {
                (Some(to), Some(index)) => {
                    if !target.is_head(&target.params[index]) {
                        body.insert(first_component(&inner));
                    }
                    let twice = parts.entry(index).or_default().insert(to.part.unwrap_or(0), tensor);
                    report.unexpected.extend(twice.map(|t| t.name.clone()));
                }
                _ => foreign.push((tensor, inner.into_owned())),
            }
        }
        let unclaimed: Vec<&'a StoredTensor> =
            foreign.iter().map(|(t, _)| *t).chain(outside.iter().copied()).collect();
        let head = inside.is_empty().then(|| find_head(&unclaimed, &parts, target)).flatten();
        let mut head_source = None;
        for (index, tensor) in head.unwrap_or_default() {
            parts.insert(index, BTreeMap::from([(0, tensor)]));
            foreign.retain(|(t, _)| t.name != tensor.name);
            outside.retain(|t| t.name != tensor.name);
            head_source = Some(layer_of(&tensor.name).to_string());
        }
        let mut matching =
            Self { report, scheme, sources: Vec::new(), classes: None, full_key: reading.full_key() };
        matching.assign(parts, target, inside);
        for head in &mut matching.report.heads {
            head.source.clone_from(&head_source);
        }
        for (tensor, inner) in foreign {
            // A layer more is another model; a module more is another head.
            let is_other_module = !body.contains(&first_component(&inner));
            match target.replace_head && is_other_module {
                true => matching.report.left_out.push(tensor.name.clone()),
                false => matching.report.unexpected.push(tensor.name.clone()),
            }
        }
        matching.report.left_out.extend(outside.iter().map(|t| t.name.clone()));
        matching.report.left_out.sort();
        matching.report.unexpected.sort();
        matching
    }

    /// Assigns the parts to parameters. A head is loaded as a whole or not at all.
    fn assign(
        &mut self,
        mut parts: HashMap<usize, BTreeMap<usize, &'a StoredTensor>>,
        target: &Target<'_>,
        inside: &str,
    ) {
        // Of the layers of the head: the first reason why one is not loaded.
        let mut heads: BTreeMap<&str, Option<String>> = BTreeMap::new();
        for (index, param) in target.params.iter().enumerate() {
            let is_head = target.is_head(param);
            let layer = layer_of(&param.name);
            if !param.name.starts_with(inside) {
                self.report.outside += 1;
                continue;
            }
            let state = is_head.then(|| heads.entry(layer).or_default());
            let Some(found) = parts.remove(&index) else {
                match state {
                    Some(reason) if target.replace_head => {
                        reason.get_or_insert("not in the file".into());
                    }
                    _ => self.report.missing.push(param.name.clone()),
                }
                continue;
            };
            let found: Vec<&StoredTensor> = found.into_values().collect();
            let (shape, expected) = (concatenated(&found), &param.shape);
            let shown = found.first().map(|t| t.describe()).unwrap_or_default();
            if is_compatible(&shape, expected) && found.iter().all(|t| t.float_dtype().is_some()) {
                self.sources.push((index, found));
                continue;
            }
            match state {
                Some(reason) if target.replace_head => {
                    reason.get_or_insert(format!("expected {expected:?}, found {shown}"));
                }
                Some(_) if differs_in_classes_only(&shape, expected) => {
                    let name = param.name.clone();
                    self.classes.get_or_insert(Classes { name, expected: expected[0], found: shape[0] });
                }
                _ => {
                    let line = format!("{}: expected {expected:?}, found {shown}", param.name);
                    self.report.mismatched.push(line);
                }
            }
        }
        self.sources.retain(|(index, _)| {
            let name = &target.params[*index].name;
            !target.head.contains(name) || heads.get(layer_of(name)).is_none_or(Option::is_none)
        });
        let fresh = |(name, fresh): (&str, Option<String>)| Head { name: name.into(), source: None, fresh };
        self.report.heads = heads.into_iter().map(fresh).collect();
        self.report.inside = inside.into();
        self.report.matched = self.sources.len();
        self.report.total = target.params.len();
        self.report.classes = self.classes.as_ref().map(|c| c.found);
    }
}

/// Returns the interpretations of a state dict with the hits of each: for every prefix that at least a tenth
/// of the tensors share, or that a key may mean, the best naming scheme.
fn readings<'a>(dict: &'a StateDict, target: &Target<'_>, key: Option<&str>) -> Vec<Reading<'a>> {
    let names = || dict.tensors.iter().map(|t| t.name.as_str()).filter(|name| !is_derived(name));
    let total = names().count();
    let mut shared: BTreeMap<&str, usize> = BTreeMap::from([("", total)]);
    for name in names() {
        for (dot, _) in name.match_indices('.').take(MAX_PREFIX) {
            *shared.entry(&name[..=dot]).or_default() += 1;
        }
    }
    let is_key = |prefix: &str| {
        key.is_some_and(|key| format!(".{}.{prefix}", dict.key).ends_with(&format!(".{key}.")))
    };
    shared.retain(|prefix, count| *count * 10 >= total || is_key(prefix));
    let insides: &[&'static str] =
        match target.replace_head && target.params.iter().any(|p| p.name.starts_with(BACKBONE)) {
            true => &["", BACKBONE],
            false => &[""],
        };
    let best = |prefix: &str| {
        let mut best = Reading { dict, prefix: prefix.into(), scheme: &SCHEMES[0], inside: "", hits: 0 };
        for inside in insides {
            for scheme in SCHEMES {
                let hits = dict.tensors.iter().filter(|t| is_hit(t, prefix, scheme, inside, target)).count();
                if hits > best.hits {
                    best = Reading { scheme, inside, hits, ..best };
                }
            }
        }
        best
    };
    let all = shared.into_keys().map(best);
    all.filter(|reading| reading.hits > 0 || reading.prefix.is_empty()).collect()
}

fn is_hit(
    tensor: &StoredTensor,
    prefix: &str,
    scheme: &NamingScheme,
    inside: &str,
    target: &Target<'_>,
) -> bool {
    let Some(inner) = tensor.name.strip_prefix(prefix).filter(|name| !is_derived(name)) else { return false };
    let Some(to) = (scheme.rename)(&without_wrappers(inner)) else { return false };
    let index = match inside {
        "" => target.index.get(to.name.as_str()),
        inside => target.index.get(format!("{inside}{}", to.name).as_str()),
    };
    index.is_some_and(|i| {
        let param = &target.params[*i];
        to.part.is_some() || is_compatible(&tensor.shape, &param.shape) || target.is_head(param)
    })
}

/// Keeps what a key means: a state dict or a prefix of exactly this path, or else all whose path contains it.
fn select<'a>(readings: Vec<Reading<'a>>, key: &str) -> Vec<Reading<'a>> {
    let contains = |r: &Reading<'_>| format!(".{}.", r.full_key()).contains(&format!(".{key}."));
    let by: &dyn Fn(&Reading<'_>) -> bool = if readings.iter().any(|r| r.dict.key == key) {
        &|r| r.dict.key == key
    } else if readings.iter().any(|r| r.full_key() == key) {
        &|r| r.full_key() == key
    } else {
        &contains
    };
    readings.into_iter().filter(|r| by(r)).collect()
}

/// Finds the head among tensors of other names: the linear layer that takes the inputs of the model's head. If
/// there are several, that with its number of classes.
fn find_head<'a>(
    unclaimed: &[&'a StoredTensor],
    parts: &HashMap<usize, BTreeMap<usize, &'a StoredTensor>>,
    target: &Target<'_>,
) -> Option<Vec<(usize, &'a StoredTensor)>> {
    let head: Vec<usize> =
        target.head.iter().filter_map(|name| target.index.get(name.as_str()).copied()).collect();
    if head.iter().any(|index| parts.contains_key(index)) {
        return None;
    }
    let one = |end: &str| {
        let mut found = head.iter().copied().filter(|i| target.params[*i].name.ends_with(end));
        found.next().filter(|_| found.next().is_none())
    };
    let (weight, bias) = (one(".weight")?, one(".bias"));
    if head.len() != 1 + usize::from(bias.is_some()) {
        return None;
    }
    let (classes, inputs) = match target.params[weight].shape.as_slice() {
        [classes, inputs] | [classes, inputs, 1, 1] => (*classes, *inputs),
        _ => return None,
    };
    let layers = unclaimed.iter().filter_map(|tensor| {
        let layer = tensor.name.strip_suffix(".weight")?;
        let outputs = *tensor.shape.first().filter(|_| tensor.shape.get(1) == Some(&inputs))?;
        if !is_compatible(&tensor.shape, &[outputs, inputs, 1, 1]) {
            return None;
        }
        let bias = match bias {
            Some(_) => Some(*unclaimed.iter().find(|t| t.name == format!("{layer}.bias"))?),
            None => None,
        };
        Some((layer, outputs, *tensor, bias))
    });
    let layers: Vec<_> = layers.collect();
    let right = layers.iter().filter(|(_, outputs, ..)| *outputs == classes);
    let named = layers.iter().filter(|(layer, ..)| {
        let last = layer.rsplit('.').next().unwrap_or_default();
        HEAD_NAMES.contains(&last) || last.parse::<u8>().is_ok()
    });
    let (right, named): (Vec<_>, Vec<_>) = (right.collect(), named.collect());
    let (_, _, found, found_bias) = match (right.as_slice(), named.as_slice()) {
        ([one], _) | ([], [one]) => one,
        _ => return None,
    };
    let bias = bias.zip(*found_bias);
    Some(std::iter::once((weight, *found)).chain(bias).collect())
}

/// Returns the name of the layer of a parameter.
fn layer_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(layer, _)| layer)
}

fn first_component(name: &str) -> String {
    name.split('.').next().unwrap_or_default().to_string()
}

/// Returns the shape of parts concatenated along the first dimension.
fn concatenated(parts: &[&StoredTensor]) -> Vec<usize> {
    let mut shape = parts.first().map_or_else(Vec::new, |t| t.shape.clone());
    if let Some(first) = shape.first_mut() {
        *first = parts.iter().map(|t| t.shape.first().copied().unwrap_or(0)).sum();
    }
    shape
}

/// Returns whether shapes are equal, or a linear layer's weight fits a convolution over the whole map, or the
/// reverse.
fn is_compatible(found: &[usize], expected: &[usize]) -> bool {
    let flat = |linear: &[usize], conv: &[usize]| {
        linear.len() == 2
            && conv.len() == 4
            && linear[0] == conv[0]
            && linear[1] == conv[1..].iter().product::<usize>()
    };
    found == expected || flat(found, expected) || flat(expected, found) && found[2..] == [1, 1]
}

fn differs_in_classes_only(found: &[usize], expected: &[usize]) -> bool {
    found.len() == expected.len() && found.first() != expected.first() && found[1..] == expected[1..]
}
