//! Loading of weights files into a model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::Serialize;
use stillhouse_core::weights::LoadOptions;
use stillhouse_core::{ParamStore, Result};
use stillhouse_ops::Param;

use super::key_mapping::{NamingScheme, SCHEMES, is_derived};
use super::read::{StoredTensor, WeightsFile};
use crate::Error;

/// Prefix of a backbone's parameters in a model with another head (DeepLabV3+, early exits).
const BACKBONE: &str = "backbone.";

/// Comparison of the tensors of a file with the parameters of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Naming scheme of the file.
    pub naming: String,
    /// Number of parameters that can be loaded.
    pub matched: usize,
    /// Parameters that are not in the file.
    pub missing: Vec<String>,
    /// Tensors that the model does not have.
    pub unexpected: Vec<String>,
    /// Tensors of a different shape or an unsupported type, with expected and found.
    pub mismatched: Vec<String>,
    /// Number of classes of the file's head, if it differs and the head is not replaced.
    pub classes: Option<usize>,
    /// Notes on parameters that keep their initial values and on unused tensors.
    pub skipped: Vec<String>,
}

impl LoadReport {
    /// Returns whether the file can be loaded.
    pub fn matches(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

/// Compares a file with a model without loading it; see [`load_weights`] for `replace_head`.
pub fn compare_weights(
    file: &WeightsFile,
    params: &ParamStore,
    head: &[String],
    replace_head: bool,
) -> LoadReport {
    Matching::new(file, &params.all(), head, replace_head).report
}

/// Loads a safetensors or PyTorch file, in the names of timm, torchvision or Hugging Face (see
/// `docs/weights.md`), into parameters; f16, bf16, f32 and f64 are converted.
///
/// The file must have exactly the parameters, with the same shapes (except for counters and computed
/// tables). Otherwise all mismatches are reported and nothing is loaded. With `replace_head`, the
/// parameters in `head` may be missing or have a different number of classes, and the file of a
/// backbone may be loaded into a model with another head (`backbone.*`). Returns notes on parameters
/// that keep their initial values, for the log.
///
/// The file is read tensor by tensor and needs memory for one tensor at a time.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Mismatch`], [`Error::Classes`], or an I/O error.
pub fn load_weights(
    path: &Path,
    params: &ParamStore,
    head: &[String],
    options: &LoadOptions<'_>,
) -> Result<Vec<String>> {
    let replace_head = options.replace_head;
    let mut file = WeightsFile::open(path)?;
    let entries = params.all();
    let Matching { report, sources, scheme, classes } = Matching::new(&file, &entries, head, replace_head);
    if !report.matches() {
        let LoadReport { missing, unexpected, mismatched, .. } = report;
        return Err(Error::Mismatch { path: path.to_path_buf(), missing, unexpected, mismatched }.into());
    }
    if let Some(Classes { name, expected, found }) = classes {
        return Err(Error::Classes { path: path.to_path_buf(), name, expected, found }.into());
    }
    for (index, parts) in sources {
        let param = &entries[index];
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
        if scheme.variance != 0.0 && param.name.ends_with(".running_var") {
            values = (values.to_dtype(DType::F64)? + scheme.variance)?;
        }
        if let Some(id) = params.id(&param.name) {
            params.import(id, &values)?;
        }
    }
    Ok(report.skipped)
}

/// A head with a different number of classes.
struct Classes {
    name: String,
    expected: usize,
    found: usize,
}

/// Assignment of the tensors of a file to parameters.
struct Matching {
    report: LoadReport,
    scheme: &'static NamingScheme,
    /// Index of a parameter, and its parts in the file.
    sources: Vec<(usize, Vec<StoredTensor>)>,
    /// A head that differs in the number of classes only, if it is not replaced.
    classes: Option<Classes>,
}

impl Matching {
    fn new(file: &WeightsFile, entries: &[Param], head: &[String], replace_head: bool) -> Self {
        let names: HashSet<&str> = entries.iter().map(|p| p.name.as_str()).collect();
        let has_backbone = replace_head && entries.iter().any(|p| p.name.starts_with(BACKBONE));
        let prefixes: &[&str] = if has_backbone { &["", BACKBONE] } else { &[""] };
        let mut best = (0, "", &SCHEMES[0]);
        for prefix in prefixes {
            for scheme in SCHEMES {
                let is_known = |t: &&StoredTensor| {
                    let name = (scheme.rename)(&t.name).map(|r| format!("{prefix}{}", r.name));
                    name.is_some_and(|n| names.contains(n.as_str()))
                };
                let count = file.tensors().iter().filter(is_known).count();
                if count > best.0 {
                    best = (count, prefix, scheme);
                }
            }
        }
        let (_, prefix, scheme) = best;
        Self::with_scheme(file, entries, (head, replace_head), prefix, scheme)
    }

    fn with_scheme(
        file: &WeightsFile,
        entries: &[Param],
        (head, replace_head): (&[String], bool),
        prefix: &str,
        scheme: &'static NamingScheme,
    ) -> Self {
        let mut parts: HashMap<String, BTreeMap<usize, &StoredTensor>> = HashMap::new();
        let mut report = LoadReport { naming: scheme.name.into(), ..LoadReport::default() };
        for tensor in file.tensors().iter().filter(|t| !is_derived(&t.name)) {
            match (scheme.rename)(&tensor.name) {
                Some(to) => {
                    let name = format!("{prefix}{}", to.name);
                    let duplicate = parts.entry(name).or_default().insert(to.part.unwrap_or(0), tensor);
                    report.unexpected.extend(duplicate.map(|t| t.name.clone()));
                }
                None => report.unexpected.push(tensor.name.clone()),
            }
        }
        let (mut sources, mut classes, mut outside) = (Vec::new(), None, 0);
        for (index, param) in entries.iter().enumerate() {
            let replaceable = replace_head && head.contains(&param.name);
            let Some(found) = parts.remove(&param.name) else {
                if !param.name.starts_with(prefix) {
                    outside += 1;
                } else if replaceable {
                    report.skipped.push(format!("{}: not in the file, keeps its initial value", param.name));
                } else {
                    report.missing.push(param.name.clone());
                }
                continue;
            };
            let found: Vec<StoredTensor> = found.into_values().cloned().collect();
            let (shape, expected) = (concatenated(&found), &param.shape);
            let shown = found.first().map(StoredTensor::describe).unwrap_or_default();
            if is_compatible(&shape, expected) && found.iter().all(|t| t.float_dtype().is_some()) {
                sources.push((index, found));
            } else if replaceable {
                report.skipped.push(format!(
                    "{}: expected {expected:?}, found {shown}; keeps its initial value",
                    param.name
                ));
            } else if head.contains(&param.name) && differs_in_classes_only(&shape, expected) {
                let name = param.name.clone();
                classes.get_or_insert(Classes { name, expected: expected[0], found: shape[0] });
            } else {
                report.mismatched.push(format!("{}: expected {expected:?}, found {shown}", param.name));
            }
        }
        report.matched = sources.len();
        report.classes = classes.as_ref().map(|c: &Classes| c.found);
        let mut unused: Vec<String> = parts.into_values().flatten().map(|(_, t)| t.name.clone()).collect();
        unused.append(&mut report.unexpected);
        unused.sort();
        if prefix.is_empty() {
            report.unexpected = unused;
        } else {
            report
                .skipped
                .push(format!("{outside} parameters outside of `{prefix}*` keep their initial values"));
            if !unused.is_empty() {
                report.skipped.push(format!("unused tensors of the file: {}", unused.join(", ")));
            }
        }
        Self { report, scheme, sources, classes }
    }
}

/// Returns the shape of parts concatenated along the first dimension.
fn concatenated(parts: &[StoredTensor]) -> Vec<usize> {
    let mut shape = parts.first().map_or_else(Vec::new, |t| t.shape.clone());
    if let Some(first) = shape.first_mut() {
        *first = parts.iter().map(|t| t.shape.first().copied().unwrap_or(0)).sum();
    }
    shape
}

/// Returns whether shapes are equal, or a linear layer's weight fits a convolution over the whole map.
fn is_compatible(found: &[usize], expected: &[usize]) -> bool {
    let linear = found.len() == 2 && expected.len() == 4 && found[0] == expected[0];
    found == expected || linear && found[1] == expected[1..].iter().product::<usize>()
}

fn differs_in_classes_only(found: &[usize], expected: &[usize]) -> bool {
    found.len() == expected.len() && found.first() != expected.first() && found[1..] == expected[1..]
}
