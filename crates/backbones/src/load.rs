//! Weights from files into a network.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::Serialize;
use stillhouse_core::{ParamStore, Result};
use stillhouse_ops::Param;

use crate::Error;
use crate::names::{FORMS, Form, is_derived};
use crate::weights_file::{Stored, WeightsFile};

/// Where the parameters of a network stand inside of another (DeepLabV3+, exits).
const BACKBONE: &str = "backbone.";

/// How a file's tensors and a network's parameters meet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Whose names the file has.
    pub form: String,
    /// Parameters that the file gives.
    pub taken: usize,
    /// Names that the network has and the file has not.
    pub missing: Vec<String>,
    /// Names that the file has and the network has not.
    pub unexpected: Vec<String>,
    /// Names whose shape or element type cannot be used, with found and expected.
    pub misshapen: Vec<String>,
    /// Classes of the file's head, where it is not to be replaced and they are others.
    pub classes: Option<usize>,
    /// What stays new or unused although the file fits, a sentence each.
    pub left: Vec<String>,
}

impl Fit {
    /// Whether the file can be loaded.
    pub fn fits(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

/// Compares a file with a network: nothing is loaded. `replace_head` as in [`load_weights`].
pub fn fit(file: &WeightsFile, params: &ParamStore, head: &[String], replace_head: bool) -> Fit {
    Meeting::of(file, &params.all(), head, replace_head).fit
}

/// Loads a file of weights into parameters: safetensors, or what PyTorch has saved; in the names of
/// timm, torchvision or Hugging Face (see `docs/weights.md`); f16, bf16, f32 and f64 are converted.
///
/// Every entry of `params` must be in the file with its shape, and nothing else may be (counters and
/// tables that a network computes by itself aside): what does not fit is reported at once, and nothing
/// is loaded. With `replace_head` the names in `head` may be missing or have another number of classes,
/// and a file of a network alone may serve one that stands on it (`backbone.*`), all else of which
/// stays as it is. Returns what was left so, a sentence each, for the log.
///
/// The file is read tensor by tensor: memory for one tensor is needed besides the network's own,
/// whatever the file claims.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Misfit`] and [`Error::Classes`], inside
/// [`stillhouse_core::Error::Other`]; I/O errors with the path.
pub fn load_weights(
    path: &Path,
    params: &ParamStore,
    head: &[String],
    replace_head: bool,
) -> Result<Vec<String>> {
    let mut file = WeightsFile::open(path)?;
    let entries = params.all();
    let Meeting { fit, take, form, classes } = Meeting::of(&file, &entries, head, replace_head);
    if !fit.fits() {
        let Fit { missing, unexpected, misshapen, .. } = fit;
        return Err(Error::Misfit { path: path.to_path_buf(), missing, unexpected, misshapen }.into());
    }
    if let Some(Classes { name, expected, found }) = classes {
        return Err(Error::Classes { path: path.to_path_buf(), name, expected, found }.into());
    }
    for (place, parts) in take {
        let param = &entries[place];
        let mut values = Vec::new();
        for part in parts {
            values.push(file.read(&part)?);
        }
        let mut values = match values.as_slice() {
            [whole] => whole.clone(),
            parts => Tensor::cat(parts, 0)?,
        };
        if values.dims() != param.shape {
            values = values.reshape(param.shape.as_slice())?;
        }
        if form.variance != 0.0 && param.name.ends_with(".running_var") {
            values = (values.to_dtype(DType::F64)? + form.variance)?;
        }
        if let Some(id) = params.id(&param.name) {
            params.import(id, &values)?;
        }
    }
    Ok(fit.left)
}

/// A head of another number of classes.
struct Classes {
    name: String,
    expected: usize,
    found: usize,
}

/// A file's tensors beside a network's parameters.
struct Meeting {
    fit: Fit,
    form: &'static Form,
    /// Place of a parameter, and its parts in the file.
    take: Vec<(usize, Vec<Stored>)>,
    /// A head that would fit with other classes, where it is not to be replaced.
    classes: Option<Classes>,
}

impl Meeting {
    fn of(file: &WeightsFile, entries: &[Param], head: &[String], replace_head: bool) -> Self {
        let names: HashSet<&str> = entries.iter().map(|p| p.name.as_str()).collect();
        let inside = replace_head && entries.iter().any(|p| p.name.starts_with(BACKBONE));
        let scopes: &[&str] = if inside { &["", BACKBONE] } else { &[""] };
        let mut best = (0, "", &FORMS[0]);
        for scope in scopes {
            for form in FORMS {
                let named = |t: &&Stored| {
                    let name = (form.rename)(&t.name).map(|r| format!("{scope}{}", r.name));
                    name.is_some_and(|n| names.contains(n.as_str()))
                };
                let hits = file.tensors().iter().filter(named).count();
                if hits > best.0 {
                    best = (hits, scope, form);
                }
            }
        }
        let (_, scope, form) = best;
        Self::in_form(file, entries, (head, replace_head), scope, form)
    }

    fn in_form(
        file: &WeightsFile,
        entries: &[Param],
        (head, replace_head): (&[String], bool),
        scope: &str,
        form: &'static Form,
    ) -> Self {
        let mut parts: HashMap<String, BTreeMap<usize, &Stored>> = HashMap::new();
        let mut fit = Fit { form: form.name.into(), ..Fit::default() };
        for tensor in file.tensors().iter().filter(|t| !is_derived(&t.name)) {
            match (form.rename)(&tensor.name) {
                Some(to) => {
                    let name = format!("{scope}{}", to.name);
                    let twin = parts.entry(name).or_default().insert(to.part.unwrap_or(0), tensor);
                    fit.unexpected.extend(twin.map(|t| t.name.clone()));
                }
                None => fit.unexpected.push(tensor.name.clone()),
            }
        }
        let (mut take, mut classes, mut apart) = (Vec::new(), None, 0);
        for (place, param) in entries.iter().enumerate() {
            let replaceable = replace_head && head.contains(&param.name);
            let Some(found) = parts.remove(&param.name) else {
                if !param.name.starts_with(scope) {
                    apart += 1;
                } else if replaceable {
                    fit.left.push(format!("{}: not in the file, stays new", param.name));
                } else {
                    fit.missing.push(param.name.clone());
                }
                continue;
            };
            let found: Vec<Stored> = found.into_values().cloned().collect();
            let (shape, expected) = (joined(&found), &param.shape);
            let shown = found.first().map(Stored::shown).unwrap_or_default();
            if same_values(&shape, expected) && found.iter().all(|t| t.float().is_some()) {
                take.push((place, found));
            } else if replaceable {
                fit.left.push(format!("{}: {shown} in the file, stays new {expected:?}", param.name));
            } else if head.contains(&param.name) && only_classes_differ(&shape, expected) {
                let name = param.name.clone();
                classes.get_or_insert(Classes { name, expected: expected[0], found: shape[0] });
            } else {
                fit.misshapen.push(format!("{}: {shown}, expected {expected:?}", param.name));
            }
        }
        fit.taken = take.len();
        fit.classes = classes.as_ref().map(|c: &Classes| c.found);
        let mut unused: Vec<String> = parts.into_values().flatten().map(|(_, t)| t.name.clone()).collect();
        unused.append(&mut fit.unexpected);
        unused.sort();
        if scope.is_empty() {
            fit.unexpected = unused;
        } else {
            fit.left.push(format!("{apart} parameters outside of `{scope}*` stay new"));
            if !unused.is_empty() {
                fit.left.push(format!("not used of the file: {}", unused.join(", ")));
            }
        }
        Self { fit, form, take, classes }
    }
}

/// The shape of parts one below the other.
fn joined(parts: &[Stored]) -> Vec<usize> {
    let mut shape = parts.first().map_or_else(Vec::new, |t| t.shape.clone());
    if let Some(first) = shape.first_mut() {
        *first = parts.iter().map(|t| t.shape.first().copied().unwrap_or(0)).sum();
    }
    shape
}

/// The same shape, or a linear layer's weight for a convolution that covers the whole map.
fn same_values(found: &[usize], expected: &[usize]) -> bool {
    let linear = found.len() == 2 && expected.len() == 4 && found[0] == expected[0];
    found == expected || linear && found[1] == expected[1..].iter().product::<usize>()
}

fn only_classes_differ(found: &[usize], expected: &[usize]) -> bool {
    found.len() == expected.len() && found.first() != expected.first() && found[1..] == expected[1..]
}
