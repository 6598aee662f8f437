//! State dicts in a pickled checkpoint, wherever they are.

use std::collections::HashSet;

use super::pickle::{Id, Object, Pickle, TensorRef, Value};

/// Maximum number of keys on the path of a state dict, and of nested modules of a whole model.
const MAX_DEPTH: usize = 32;
/// Maximum number of tensors of all state dicts.
const MAX_TENSORS: usize = 100_000;
/// Maximum number of keys in messages.
const MAX_SHOWN: usize = 8;

/// A dictionary of tensors in a checkpoint.
#[derive(Debug)]
pub(super) struct PickledDict {
    /// Dotted path of the dictionary; empty if it is the whole file.
    pub(super) key: String,
    pub(super) tensors: Vec<(String, TensorRef)>,
    /// Names of tensors of types that are not read (quantized, sparse).
    pub(super) unsupported: Vec<String>,
}

/// Finds all dictionaries with tensors: the root, below any string keys (`state_dict`, `model.ema`), and the
/// parameters and buffers of pickled modules. Lists of tensors and optimizer states, whose keys are numbers,
/// are not among them. The first is the outermost.
pub(super) fn find(pickle: &Pickle) -> Result<Vec<PickledDict>, String> {
    let mut search = Search { pickle, seen: HashSet::new(), found: Vec::new(), tensors: 0 };
    search.visit(pickle.root, "", 0)?;
    if search.found.is_empty() {
        return Err(describe_root(pickle));
    }
    Ok(search.found)
}

struct Search<'a> {
    pickle: &'a Pickle,
    /// Visited dictionaries, so that a value that is repeated or contains itself is visited once.
    seen: HashSet<Id>,
    found: Vec<PickledDict>,
    tensors: usize,
}

impl Search<'_> {
    fn visit(&mut self, id: Id, key: &str, depth: usize) -> Result<(), String> {
        let pickle = self.pickle;
        if depth > MAX_DEPTH || !self.seen.insert(id) {
            return Ok(());
        }
        match pickle.value(id) {
            Value::Dict(pairs) => self.visit_dict(pairs, key, depth),
            Value::Object(object) => self.visit_object(object, key, depth),
            Value::List(items) | Value::Tuple(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.visit(*item, &join(key, &i.to_string()), depth + 1)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn visit_dict(&mut self, pairs: &[(Id, Id)], key: &str, depth: usize) -> Result<(), String> {
        let mut dict = PickledDict { key: key.into(), tensors: Vec::new(), unsupported: Vec::new() };
        for (name, value) in pairs {
            if let Some(name) = self.pickle.string(*name) {
                self.add(&mut dict, name.into(), *value)?;
            }
        }
        if !dict.tensors.is_empty() {
            self.found.push(dict);
        }
        for (name, value) in pairs {
            if let Some(name) = self.pickle.string(*name) {
                self.visit(*value, &join(key, name), depth + 1)?;
            }
        }
        Ok(())
    }

    /// Visits an instance of `nn.Module`, a subclass of `dict`, or a wrapper with a model among its
    /// attributes.
    fn visit_object(&mut self, object: &Object, key: &str, depth: usize) -> Result<(), String> {
        let pickle = self.pickle;
        let attributes = attributes(pickle, object);
        if attributes.iter().any(|(name, _)| pickle.string(*name) == Some("_modules")) {
            let mut dict = PickledDict { key: key.into(), tensors: Vec::new(), unsupported: Vec::new() };
            self.add_module(&mut dict, attributes, "", 0)?;
            if !dict.tensors.is_empty() {
                self.found.push(dict);
            }
            return Ok(());
        }
        let all: Vec<(Id, Id)> = object.items.iter().chain(attributes).copied().collect();
        self.visit_dict(&all, key, depth)
    }

    /// Adds the parameters and buffers of a module and of those inside it.
    fn add_module(
        &mut self,
        dict: &mut PickledDict,
        attributes: &[(Id, Id)],
        prefix: &str,
        depth: usize,
    ) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("modules nested deeper than {MAX_DEPTH}"));
        }
        let pickle = self.pickle;
        let entries = |wanted: &str| {
            let (_, id) = attributes.iter().find(|(name, _)| pickle.string(*name) == Some(wanted))?;
            match pickle.value(*id) {
                Value::Dict(pairs) => Some(pairs.as_slice()),
                Value::Object(object) => Some(object.items.as_slice()),
                _ => None,
            }
        };
        for kind in ["_parameters", "_buffers"] {
            for (name, value) in entries(kind).unwrap_or_default() {
                if let Some(name) = pickle.string(*name) {
                    self.add(dict, join(prefix, name), *value)?;
                }
            }
        }
        for (name, value) in entries("_modules").unwrap_or_default() {
            let (Some(name), Value::Object(module)) = (pickle.string(*name), pickle.value(*value)) else {
                continue;
            };
            // Also bounds the work on modules without parameters that contain each other.
            self.count(1)?;
            self.add_module(dict, self::attributes(pickle, module), &join(prefix, name), depth + 1)?;
        }
        Ok(())
    }

    fn add(&mut self, dict: &mut PickledDict, name: String, value: Id) -> Result<(), String> {
        match self.pickle.value(value) {
            Value::Tensor(at) => {
                self.count(1)?;
                dict.tensors.push((name, (**at).clone()));
            }
            Value::Object(object) if self.pickle.class(object).contains("tensor") => {
                self.count(1)?;
                dict.unsupported.push(format!("{name} ({})", self.pickle.class(object)));
            }
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self, tensors: usize) -> Result<(), String> {
        self.tensors += tensors;
        if self.tensors > MAX_TENSORS {
            return Err(format!("more than {MAX_TENSORS} tensors"));
        }
        Ok(())
    }
}

/// Returns the attributes of an object. With `__slots__` its state is `(attributes, slots)`.
fn attributes<'a>(pickle: &'a Pickle, object: &Object) -> &'a [(Id, Id)] {
    let dict = |id: Id| match pickle.value(id) {
        Value::Dict(pairs) => Some(pairs.as_slice()),
        _ => None,
    };
    let Some(state) = object.state else { return &[] };
    let found = match pickle.value(state) {
        Value::Tuple(items) => items.iter().find_map(|id| dict(*id)),
        _ => dict(state),
    };
    found.unwrap_or_default()
}

fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.into() } else { format!("{key}.{name}") }
}

/// Describes a pickle without a state dict.
fn describe_root(pickle: &Pickle) -> String {
    match pickle.value(pickle.root) {
        Value::Dict(pairs) => {
            let keys: Vec<&str> = pairs.iter().filter_map(|(key, _)| pickle.string(*key)).collect();
            let more = if keys.len() > MAX_SHOWN { ", ..." } else { "" };
            match &keys[..keys.len().min(MAX_SHOWN)] {
                [] => "empty dictionary, no tensors".into(),
                keys => format!("dictionary without named tensors (keys: {}{more})", keys.join(", ")),
            }
        }
        Value::Object(object) => format!(
            "a Python object of `{}` without parameters that can be read; save the state dict: \
             torch.save(model.state_dict(), ...)",
            pickle.class(object)
        ),
        Value::Tensor(_) => "a single tensor, not a state dict".into(),
        Value::List(_) | Value::Tuple(_) => "a list without state dicts".into(),
        _ => "no dictionary of tensors".into(),
    }
}
